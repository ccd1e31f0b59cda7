// rng: Philox 4x32-10, bit for bit what src/rng.rs draws: element i of a stream is word i % 4 of block i / 4.
// source    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3

#pragma once
#include "common/device.cuh"

// Both halves of a product in one instruction.
DEVICE void wide_product(u32& high, u32& low, u32 a, u32 b) {
#ifdef ON_NVIDIA
    asm("{ .reg .b64 p;\n\tmul.wide.u32 p, %2, %3;\n\tmov.b64 {%1, %0}, p; }" : "=r"(high), "=r"(low) : "r"(a), "r"(b));
#else
    u64 p = (u64)a * b;
    high = (u32)(p >> 32), low = (u32)p;
#endif
}

// The four words of one block of stream `stream` under the key `seed`; the halves of the block's number apart, so that what follows from
// the upper one alone is worked out once where many blocks share it.
template <int N = 10> DEVICE void philox(u32 (&word)[4], i64 seed, i64 stream, u32 lower, u32 upper) {
    u32 k0 = (u32)seed, k1 = (u32)((u64)seed >> 32);
    u32 c0 = lower, c1 = upper, c2 = (u32)stream, c3 = (u32)((u64)stream >> 32);
#pragma unroll
    for (int round = 0; round < N; ++round) {
        u32 h0, l0, h1, l1;
        wide_product(h0, l0, c0, 0xD2511F53u);
        wide_product(h1, l1, c2, 0xCD9E8D57u);
        c0 = h1 ^ c1 ^ k0;
        c1 = l1;
        c2 = h0 ^ c3 ^ k1;
        c3 = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

DEVICE void philox(u32 (&word)[4], i64 seed, i64 stream, i64 block) { philox(word, seed, stream, (u32)block, (u32)((u64)block >> 32)); }

// The 32 bits of one element.
DEVICE u32 drawn_bits(i64 seed, i64 stream, i64 i) {
    u32 word[4];
    philox(word, seed, stream, i >> 2);
    u32 low = i & 1 ? word[1] : word[0], high = i & 1 ? word[3] : word[2];
    return i & 2 ? high : low;
}

// Uniform in [0, 1) in steps of 2^-24.
DEVICE float unit(u32 word) { return (float)(word >> 8) * 5.9604644775390625e-8f; }

// The factor of a drawn word: `scale` where its 24 bits reach `reach`, else 0. With reach = ceil(p * 2^24) that is unit >= p, as an
// integer comparison: conversions run at an eighth of the rate.
DEVICE float kept(u32 word, int reach, float scale) { return (int)(word >> 8) >= reach ? scale : 0.0f; }
