// expressions: what every line gives for 64 inputs, on a target and, with HOST defined, on the machine that compiles.
// make.sh compares nothing: it stores what the host gives, and a test holds the emulator to it.
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned __int128 u128;
typedef _Float16 f16;
typedef float f32;
typedef double f64;

#ifdef HOST
#define DEVICE static
#define KERNEL extern "C"
#define LANES for (int i = 0; i < 64; i++)
#else
#define DEVICE static __attribute__((device))
#define KERNEL extern "C" __attribute__((global))
#define LANES for (int i = __builtin_amdgcn_workitem_id_x(), once = 1; once; once = 0)
#endif

// NaN in one form: which bits it has is nobody's promise.
DEVICE u64 bits(f16 v) { return v != v ? 0x7e00 : __builtin_bit_cast(u16, v); }
DEVICE u64 bits(f32 v) { return v != v ? 0x7fc00000 : __builtin_bit_cast(u32, v); }
DEVICE u64 bits(f64 v) { return v != v ? 0x7ff8000000000000 : __builtin_bit_cast(u64, v); }
template <class T> DEVICE T most(T a, T b) { return a > b ? a : b; }
template <class T> DEVICE T least(T a, T b) { return a < b ? a : b; }
// Into what the integer can hold; NaN becomes the lowest.
template <class T> DEVICE T within(T v, T low, T high) { return v >= low ? (v <= high ? v : high) : low; }

// Wants a line number a line: the place of its results.
#define AT(k) y[64 * (k) + i]

KERNEL void integers(u64* y, const u64* x) {
    LANES {
        u64 a = x[i], b = x[64 + i], c = x[128 + i];
        i64 sa = a, sb = b;
        u32 n = b & 63;
        AT(0) = a + b * c;
        AT(1) = a - b - c;
        AT(2) = (u64)(((u128)a * b) >> 64);
        AT(3) = (u64)((i64)(i32)a * (i32)b);
        AT(4) = (u32)(((u64)(u32)a * (u32)b) >> 32);
        AT(5) = (a >> 1) / ((b >> 20) | 1);
        AT(6) = (a >> 1) % ((b >> 9) | 1);
        AT(7) = sa / ((i64)(b >> 1) | 1);
        AT(8) = (i64)((i32)a % (i32)(((u32)b >> 1) | 1));
        AT(9) = ((u32)a >> 1) / (((u32)b >> 3) | 1);
        AT(10) = a << n | a >> (63 - n);
        AT(11) = sa >> n;
        AT(12) = (u32)a << (n & 31);
        AT(13) = (i64)((i32)a >> (n & 31));
        AT(14) = (u16)((u16)a * (u16)b + (u16)c);
        AT(15) = (u8)((u8)a * (u8)b - (u8)c);
        AT(16) = (i64)(i8)a + (i16)b;
        AT(17) = __builtin_popcountll(a) + __builtin_clzll(b | 1) + __builtin_ctzll(c | 1ull << 63);
        AT(18) = __builtin_bitreverse64(a) ^ __builtin_bswap64(b);
        AT(19) = __builtin_rotateleft32(a, n & 31);
        AT(20) = most(sa, sb) ^ least(a, b);
        AT(21) = most((i16)a, (i16)b) + least((u16)a, (u16)c);
        AT(22) = sa < sb ? b : a > c ? c : a;
        AT(23) = ((u32)a & (u32)b) | (~(u32)a & (u32)c);
        AT(24) = ((u32)a ^ (u32)b) + (u32)c;
        AT(25) = (i64)most(most((i32)a, (i32)b), (i32)c) - least((u32)a, most((u32)b, (u32)c));
        AT(26) = (a >> 13 & 0x1ff) + ((i64)(a << 20) >> 40);
        AT(27) = (u64)(a == b) + (u64)(sa >= 0) * 2 + (u64)((u32)a != (u32)b) * 4;
    }
}

KERNEL void floats(u64* y, const u64* x) {
    LANES {
        u64 a = x[i], b = x[64 + i], c = x[128 + i];
        f64 d = __builtin_bit_cast(f64, a), e = __builtin_bit_cast(f64, b), g = __builtin_bit_cast(f64, c);
        f32 p = __builtin_bit_cast(f32, (u32)a), q = __builtin_bit_cast(f32, (u32)b), r = __builtin_bit_cast(f32, (u32)c);
        f16 h = __builtin_bit_cast(f16, (u16)a), k = __builtin_bit_cast(f16, (u16)b), m = __builtin_bit_cast(f16, (u16)c);
        AT(0) = bits(d + e);
        AT(1) = bits(d * e - g);
        AT(2) = bits(d / e);
        AT(3) = bits(__builtin_fma(d, e, g));
        AT(4) = bits(__builtin_sqrt(d));
        AT(5) = bits(__builtin_floor(d) + __builtin_rint(e));
        AT(6) = bits(__builtin_trunc(d) - __builtin_ceil(e));
        AT(7) = bits(p + q);
        AT(8) = bits(p * q - r);
        AT(9) = bits(p / q);
        AT(10) = bits(1.0f / p);
        AT(11) = bits(__builtin_fmaf(p, q, r));
        AT(12) = bits(__builtin_sqrtf(p));
        AT(13) = bits(__builtin_floorf(p) + __builtin_rintf(q));
        AT(14) = bits(__builtin_truncf(p) - __builtin_ceilf(q));
        AT(15) = bits((f16)(h + k));
        AT(16) = bits((f16)(h * k));
        AT(17) = bits((f16)(h / k));
        AT(18) = bits((f16)((f16)(h - k) * m));
        AT(19) = bits((f32)d) ^ bits((f16)p) << 32;
        AT(20) = bits((f64)p + (f64)h);
        AT(21) = bits((f16)d) ^ bits((f32)h) << 32;
        AT(22) = bits((f32)a) ^ bits((f32)(i64)b) << 32;
        AT(23) = bits((f64)a + (f64)(i64)b);
        AT(24) = bits((f32)(i32)a) ^ bits((f32)(u32)b) << 32;
        AT(25) = bits((f16)(i16)a) ^ bits((f16)(u16)b) << 32;
        AT(26) = (u64)within(d, 0.0, 1e19) + (u64)(i64)within(e, -9e18, 9e18);
        AT(27) = (u32)within(p, 0.0f, 4e9f) + (u64)(i32)within(q, -2e9f, 2e9f);
        AT(28) = (u64)(i16)within(h, (f16)-30000, (f16)30000);
        AT(29) = (d < e) + 2 * (d <= g) + 4 * (p == q) + 8 * (p != r) + 16 * (h > k) + 32 * !(h >= m) + 64 * !(p < q);
        AT(30) = bits(d < e ? d : g) ^ bits(p > q ? p : r);
        // Quotients that are just subnormal: rounded once, not twice.
        AT(32) = bits(1.0 / __builtin_bit_cast(f64, 0x7fe0000000000000 | a >> 12));
        AT(33) = bits(1.0f / __builtin_bit_cast(f32, 0x7e800000 | (u32)a >> 9));
        AT(31) = bits(__builtin_fabs(d) - __builtin_fabsf(p) * -2.0f);
    }
}

// Pointers that say nothing of their memory: the callee cannot know whether it reads private, shared or global memory.
template <class T> DEVICE __attribute__((noinline)) u64 total(const T* from, int n) {
    u64 sum = 0;
    for (int j = 0; j < n; j++) sum = sum * 31 + from[j];
    return sum;
}

KERNEL void pointers(u64* y, const u64* x) {
#ifndef HOST
    static __attribute__((shared)) u8 shared[64 * 16];
#endif
    LANES {
        u8 own[16];
        u16 halves[8];
        for (int j = 0; j < 16; j++) own[(j + i) & 15] = x[i] >> (j * 4);
        for (int j = 0; j < 8; j++) halves[j ^ (i & 7)] = x[64 + i] >> (j * 8);
#ifdef HOST
        u8* mine = own;
#else
        u8* mine = (u8*)shared + 16 * i;
        for (int j = 0; j < 16; j++) mine[j] = own[j];
#endif
        AT(0) = total(own, 16);
        AT(1) = total(halves, 8);
        AT(2) = total(mine, 16);
        AT(3) = total((const u8*)(x + i), 24);
        AT(4) = total((const i16*)halves, 8) + total((const i8*)mine, 16);
        AT(5) = total((const u32*)x + i, 5) + total(x + i, 3);
    }
}

#ifdef HOST
#include <stdio.h>
static u64 x[192], y[64 * 34];
int main() {
    // Edges of every type first, then bits from a generator of 64-bit words (Knuth's constants).
    static const u64 edges[] = {0, 1, ~0ull, 1ull << 63, 0x7fffffff, 0x80000000, 0xffffffff, 0x8000, 0x7c00, 0xfc00,
        0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0x10000000000000,
        0x7fefffffffffffff, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x800000, 0x7f7fffff, 0x3c00, 0x3ff};
    u64 state = 1;
    for (int j = 0; j < 192; j++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        u64 word = state ^ state >> 29;
        // Every third a float of moderate size in each width, every third an edge.
        u64 number = (0x3f00000000000000 | word >> 4) & 0xbfffffffffffffff;
        x[j] = j % 3 == 0 ? word : j % 3 == 1 ? number : edges[word % (sizeof edges / 8)];
    }
    fwrite(x, 8, 192, stdout);
    integers(y, x), fwrite(y, 8, 64 * 28, stdout);
    floats(y, x), fwrite(y, 8, 64 * 34, stdout);
    pointers(y, x), fwrite(y, 8, 64 * 6, stdout);
}
#endif
