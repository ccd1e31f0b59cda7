// mma: a warp multiplies 16 x 16 tiles under one name: mma.sync on NVIDIA (sm_80 and later), MFMA on AMD (CDNA).
// tile      d[16][16] += a[16][K] * b[16][K]^T, K = 16: both operands with k fastest, as `load` takes them from shared memory
// types     bf16 and f16 with f32 sums on both; f32 on AMD alone, exact products: NVIDIA's matrix units would round to tf32
// order     fixed by the hardware: same input, same bits
// source    PTX ISA, section "Matrix fragments for mma.m16n8k16"; AMD matrix instruction calculator, v_mfma_f32_16x16x16

#pragma once
#include "common/dtype.cuh"

// The sums of a tile: which element a lane's i-th number is, row(i) and column(i) say.
struct Tile16 {
    static constexpr int NUMBERS = 256 / WARP;
    float v[NUMBERS];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) v[i] = 0.0f;
    }
    DEVICE static int row(int i) {
#ifdef ON_NVIDIA
        return lane() / 4 + (i / 2 % 2) * 8;
#else
        return lane() / 16 * 4 + i;
#endif
    }
    DEVICE static int column(int i) {
#ifdef ON_NVIDIA
        return i / 4 * 8 + lane() % 4 * 2 + i % 2;
#else
        return lane() % 16;
#endif
    }
};

#ifdef ON_AMD
typedef float Float4 __attribute__((ext_vector_type(4)));
typedef short Short4 __attribute__((ext_vector_type(4)));
typedef _Float16 Half4 __attribute__((ext_vector_type(4)));
#endif

// Sixteen rows of sixteen numbers, k fastest, in the registers of a warp.
template <typename U> struct Frag16 {
    static constexpr int WORDS = 256 * sizeof(U) / 4 / WARP;
    u32 word[WORDS];

    // From shared memory: row r starts at at + r * stride. As the left operand.
    DEVICE void load_a(const U* at, int stride) {
#ifdef ON_NVIDIA
        const U* p = at + (lane() / 4) * stride + lane() % 4 * 2;
        word[0] = *(const u32*)p;
        word[1] = *(const u32*)(p + 8 * stride);
        word[2] = *(const u32*)(p + 8);
        word[3] = *(const u32*)(p + 8 * stride + 8);
#else
        load(at, stride);
#endif
    }
    // As the right operand: rows are the columns of the product.
    DEVICE void load_b(const U* at, int stride) {
#ifdef ON_NVIDIA
        const U* p = at + (lane() / 4) * stride + lane() % 4 * 2;
        word[0] = *(const u32*)p;
        word[1] = *(const u32*)(p + 8);
        word[2] = *(const u32*)(p + 8 * stride);
        word[3] = *(const u32*)(p + 8 * stride + 8);
#else
        load(at, stride);
#endif
    }
#ifdef ON_AMD
    // Numbers of a narrower type, widened; as either operand.
    template <typename V> DEVICE void load_widened(const V* at, int stride) {
        const V* p = at + lane() % 16 * stride + lane() / 16 * 4;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) word[i] = bits_of(widen(p[i]));
    }
    // Both operands alike: lane l holds row l % 16, four consecutive k from l / 16 * 4 on. For f32 k runs over four instructions.
    DEVICE void load(const U* at, int stride) {
        const u32* p = (const u32*)(at + lane() % 16 * stride + lane() / 16 * 4);
#pragma unroll
        for (int i = 0; i < WORDS; ++i) word[i] = p[i];
    }
#endif
};

// d += a * b^T.
template <typename U> DEVICE void mma16(Tile16& d, const Frag16<U>& a, const Frag16<U>& b);

#ifdef ON_NVIDIA
#define MMA_16816(TYPE, d, at, a, b0, b1)                                                                   \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, "            \
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                            \
                 : "+f"(d.v[at]), "+f"(d.v[at + 1]), "+f"(d.v[at + 2]), "+f"(d.v[at + 3])                    \
                 : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1))

template <> DEVICE void mma16<bf16>(Tile16& d, const Frag16<bf16>& a, const Frag16<bf16>& b) {
    MMA_16816("bf16", d, 0, a, b.word[0], b.word[1]);
    MMA_16816("bf16", d, 4, a, b.word[2], b.word[3]);
}
template <> DEVICE void mma16<f16>(Tile16& d, const Frag16<f16>& a, const Frag16<f16>& b) {
    MMA_16816("f16", d, 0, a, b.word[0], b.word[1]);
    MMA_16816("f16", d, 4, a, b.word[2], b.word[3]);
}
#undef MMA_16816
#else
DEVICE Float4 sums_of(const Tile16& d) { return Float4{d.v[0], d.v[1], d.v[2], d.v[3]}; }
DEVICE void put_sums(Tile16& d, Float4 v) { d.v[0] = v.x, d.v[1] = v.y, d.v[2] = v.z, d.v[3] = v.w; }
template <typename W, typename U> DEVICE W words_as(const Frag16<U>& f) {
    u64 both = (u64)f.word[0] | (u64)f.word[1] << 32;
    return __builtin_bit_cast(W, both);
}

template <> DEVICE void mma16<bf16>(Tile16& d, const Frag16<bf16>& a, const Frag16<bf16>& b) {
    put_sums(d, __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(words_as<Short4>(a), words_as<Short4>(b), sums_of(d), 0, 0, 0));
}
template <> DEVICE void mma16<f16>(Tile16& d, const Frag16<f16>& a, const Frag16<f16>& b) {
    put_sums(d, __builtin_amdgcn_mfma_f32_16x16x16f16(words_as<Half4>(a), words_as<Half4>(b), sums_of(d), 0, 0, 0));
}
// k = 4 an instruction: the i-th takes the i-th number of every lane, so its four k are i, 4 + i, 8 + i, 12 + i.
template <> DEVICE void mma16<f32>(Tile16& d, const Frag16<f32>& a, const Frag16<f32>& b) {
    Float4 sums = sums_of(d);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        sums = __builtin_amdgcn_mfma_f32_16x16x4f32(float_of(a.word[i]), float_of(b.word[i]), sums, 0, 0, 0);
    put_sums(d, sums);
}
#endif
