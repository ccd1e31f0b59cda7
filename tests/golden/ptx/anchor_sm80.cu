// anchor: instructions by themselves, so that a difference between the emulator and a device has a name. Compiled for compute_80.
// axes      x, y [n, ...] words of 32 bits, as the line above each kernel says; what a word means is the instruction's matter
// launch    arithmetic: any grid that covers n; matrices: one warp a block

#include "common/device.cuh"

#define EACH(name, words_out) \
    extern "C" __global__ void name(u32* y, const u32* x, int n) { \
        int i = block_x() * 128 + thread(); \
        if (i >= n) return; \
        u32* o = y + (i64)i * words_out; \
        u32 a = x[2 * i], b = x[2 * i + 1]; \
        (void)b;
#define END }

// One instruction on 32-bit registers of the given kinds.
#define ONE(k, text, out, ...) asm("{ " text "; }" : "=" #out(o[k]) : __VA_ARGS__)
#define BINARY(k, name) asm(name " %0, %1, %2;" : "=r"(o[k]) : "r"(a), "r"(b))
#define UNARY(k, name) asm(name " %0, %1;" : "=r"(o[k]) : "r"(a))
#define FLOAT_2(k, name) \
    asm("{ .reg .f32 p, q, r; mov.b32 p, %1; mov.b32 q, %2; " name " r, p, q; mov.b32 %0, r; }" : "=r"(o[k]) : "r"(a), "r"(b))
#define FLOAT_1(k, name) asm("{ .reg .f32 p, r; mov.b32 p, %1; " name " r, p; mov.b32 %0, r; }" : "=r"(o[k]) : "r"(a))
#define FLOAT_3(k, name) \
    asm("{ .reg .f32 p, q, r; mov.b32 p, %1; mov.b32 q, %2; " name " r, p, q, p; mov.b32 %0, r; }" : "=r"(o[k]) : "r"(a), "r"(b))

// Floats of 32 bits: everything that IEEE fixes.
EACH(floats, 24)
    FLOAT_2(0, "add.rn.f32"); FLOAT_2(1, "add.rz.f32"); FLOAT_2(2, "add.rm.f32"); FLOAT_2(3, "add.rp.f32");
    FLOAT_2(4, "mul.rn.f32"); FLOAT_2(5, "mul.rz.f32"); FLOAT_2(6, "sub.rn.f32"); FLOAT_2(7, "mul.rn.ftz.f32");
    FLOAT_3(8, "fma.rn.f32"); FLOAT_3(9, "fma.rz.f32"); FLOAT_3(10, "fma.rm.f32"); FLOAT_3(11, "fma.rp.f32");
    FLOAT_2(12, "div.rn.f32"); FLOAT_2(13, "div.rp.f32"); FLOAT_1(14, "sqrt.rn.f32"); FLOAT_1(15, "rcp.rn.f32");
    FLOAT_2(16, "min.f32"); FLOAT_2(17, "max.f32"); FLOAT_2(18, "max.NaN.f32"); FLOAT_2(19, "min.NaN.f32");
    FLOAT_1(20, "abs.f32"); FLOAT_1(21, "neg.f32"); FLOAT_2(22, "add.rn.ftz.sat.f32"); FLOAT_2(23, "copysign.f32");
END

// Floats of 32 bits: what the special function unit approximates.
EACH(approximations, 8)
    FLOAT_1(0, "rcp.approx.f32"); FLOAT_1(1, "rsqrt.approx.f32"); FLOAT_1(2, "sqrt.approx.f32"); FLOAT_1(3, "ex2.approx.f32");
    FLOAT_1(4, "lg2.approx.f32"); FLOAT_1(5, "tanh.approx.f32"); FLOAT_1(6, "sin.approx.f32"); FLOAT_2(7, "div.full.f32");
END

// Integers of 32 bits.
EACH(words, 30)
    BINARY(0, "add.s32"); BINARY(1, "sub.s32"); BINARY(2, "mul.lo.s32"); BINARY(3, "mul.hi.s32"); BINARY(4, "mul.hi.u32");
    BINARY(5, "div.s32"); BINARY(6, "rem.s32"); BINARY(7, "div.u32"); BINARY(8, "rem.u32"); BINARY(9, "min.s32");
    BINARY(10, "max.u32"); BINARY(11, "shl.b32"); BINARY(12, "shr.u32"); BINARY(13, "shr.s32"); BINARY(14, "and.b32");
    BINARY(15, "xor.b32"); UNARY(16, "not.b32"); UNARY(17, "clz.b32"); UNARY(18, "popc.b32"); UNARY(19, "brev.b32");
    UNARY(20, "abs.s32"); UNARY(21, "neg.s32"); UNARY(22, "bfind.u32"); UNARY(23, "bfind.shiftamt.s32");
    ONE(24, "prmt.b32 %0, %1, %2, 0x9c31", r, "r"(a), "r"(b)); ONE(25, "bfe.u32 %0, %1, 5, 11", r, "r"(a));
    ONE(26, "bfe.s32 %0, %1, 3, 30", r, "r"(a)); ONE(27, "bfi.b32 %0, %1, %2, 7, 9", r, "r"(a), "r"(b));
    ONE(28, "lop3.b32 %0, %1, %2, 0x5a5a5a5a, 0xd2", r, "r"(a), "r"(b)); ONE(29, "shf.l.wrap.b32 %0, %1, %2, %2", r, "r"(a), "r"(b));
END

// Integers of 64 bits, from a and b as the low and high half and the other way round.
EACH(long_words, 24)
    u64 p = a | (u64)b << 32, q = (b ^ 0x9e3779b9u) | (u64)(a & 0xffff) << 32, r;
#define LONG(k, name) \
    asm(name " %0, %1, %2;" : "=l"(r) : "l"(p), "l"(q)); \
    o[2 * k] = (u32)r, o[2 * k + 1] = (u32)(r >> 32)
    LONG(0, "add.s64"); LONG(1, "sub.s64"); LONG(2, "mul.lo.s64"); LONG(3, "mul.hi.s64"); LONG(4, "mul.hi.u64"); LONG(5, "min.s64");
    LONG(6, "max.u64"); LONG(7, "div.u64"); LONG(8, "rem.s64"); LONG(9, "xor.b64");
    asm("shl.b64 %0, %1, %2;" : "=l"(r) : "l"(p), "r"(a)); o[20] = (u32)r, o[21] = (u32)(r >> 32);
    asm("shr.s64 %0, %1, %2;" : "=l"(r) : "l"(p), "r"(b & 63)); o[22] = (u32)r, o[23] = (u32)(r >> 32);
END

// From floats: integers of every rounding, halves, bfloats, doubles.
EACH(from_floats, 22)
#define CONVERT(k, name) asm("{ .reg .f32 p; mov.b32 p, %1; " name " %0, p; }" : "=r"(o[k]) : "r"(a))
    CONVERT(0, "cvt.rni.s32.f32"); CONVERT(1, "cvt.rzi.s32.f32"); CONVERT(2, "cvt.rmi.s32.f32"); CONVERT(3, "cvt.rpi.s32.f32");
    CONVERT(4, "cvt.rni.u32.f32"); CONVERT(5, "cvt.rzi.u32.f32"); CONVERT(6, "cvt.rzi.s8.f32"); CONVERT(7, "cvt.rzi.u16.f32");
    FLOAT_1(8, "cvt.rni.f32.f32"); FLOAT_1(9, "cvt.rzi.f32.f32"); FLOAT_1(10, "cvt.rmi.f32.f32"); FLOAT_1(11, "cvt.rpi.f32.f32");
#define HALF(k, name) \
    { u16 h; asm("{ .reg .f32 p; mov.b32 p, %1; " name " %0, p; }" : "=h"(h) : "r"(a)); o[k] = h; }
    HALF(12, "cvt.rn.f16.f32") HALF(13, "cvt.rz.f16.f32") HALF(14, "cvt.rn.bf16.f32") HALF(15, "cvt.rz.bf16.f32")
#define PAIR(k, name) \
    asm("{ .reg .f32 p, q; mov.b32 p, %1; mov.b32 q, %2; " name " %0, p, q; }" : "=r"(o[k]) : "r"(a), "r"(b))
    PAIR(16, "cvt.rn.bf16x2.f32"); PAIR(17, "cvt.rn.f16x2.f32"); PAIR(18, "cvt.rn.relu.bf16x2.f32"); CONVERT(19, "cvt.rna.tf32.f32");
    u64 wide; asm("{ .reg .f32 p; mov.b32 p, %1; cvt.rzi.s64.f32 %0, p; }" : "=l"(wide) : "r"(a)); o[20] = (u32)wide, o[21] = (u32)(wide >> 32);
END

// To floats: from integers, halves, doubles (two words).
EACH(to_floats, 12)
#define FROM(k, name) asm("{ .reg .f32 r; " name " r, %1; mov.b32 %0, r; }" : "=r"(o[k]) : "r"(a))
    FROM(0, "cvt.rn.f32.s32"); FROM(1, "cvt.rn.f32.u32"); FROM(2, "cvt.rz.f32.s32"); FROM(3, "cvt.rp.f32.u32"); FROM(4, "cvt.rn.f32.s8");
#define FROM_HALF(k, name) asm("{ .reg .f32 r; " name " r, %1; mov.b32 %0, r; }" : "=r"(o[k]) : "h"((u16)a))
    FROM_HALF(5, "cvt.f32.f16"); FROM_HALF(6, "cvt.rn.f32.u16");
    u64 p = a | (u64)b << 32;
#define FROM_LONG(k, name) asm("{ .reg .f32 r; " name " r, %1; mov.b32 %0, r; }" : "=r"(o[k]) : "l"(p))
    FROM_LONG(7, "cvt.rn.f32.s64"); FROM_LONG(8, "cvt.rz.f32.u64");
#define FROM_DOUBLE(k, name) asm("{ .reg .f32 r; .reg .f64 d; mov.b64 d, %1; " name " r, d; mov.b32 %0, r; }" : "=r"(o[k]) : "l"(p))
    FROM_DOUBLE(9, "cvt.rn.f32.f64"); FROM_DOUBLE(10, "cvt.rz.f32.f64"); FROM_DOUBLE(11, "cvt.rm.f32.f64");
END

// Doubles: two words each, a below a changed b and the other way round.
EACH(doubles, 16)
    u64 p = a | (u64)b << 32, q = b | (u64)(a ^ 0x5a000000u) << 32, r;
#define DOUBLE(k, name, inputs) \
    asm("{ .reg .f64 p, q, r; mov.b64 p, %1; mov.b64 q, %2; " name " r, " inputs "; mov.b64 %0, r; }" : "=l"(r) : "l"(p), "l"(q)); \
    o[2 * k] = (u32)r, o[2 * k + 1] = (u32)(r >> 32)
    DOUBLE(0, "add.rn.f64", "p, q"); DOUBLE(1, "mul.rn.f64", "p, q"); DOUBLE(2, "fma.rn.f64", "p, q, p"); DOUBLE(3, "div.rn.f64", "p, q");
    DOUBLE(4, "sqrt.rn.f64", "p"); DOUBLE(5, "add.rz.f64", "p, q"); DOUBLE(6, "min.f64", "p, q"); DOUBLE(7, "rcp.rn.f64", "q");
END

// Pairs of halves and of bfloats.
EACH(halves, 12)
    BINARY(0, "add.rn.f16x2"); BINARY(1, "mul.rn.f16x2"); BINARY(2, "sub.rn.f16x2"); BINARY(3, "min.f16x2"); BINARY(4, "max.NaN.f16x2");
    ONE(5, "fma.rn.f16x2 %0, %1, %2, %1", r, "r"(a), "r"(b)); ONE(6, "fma.rn.bf16x2 %0, %1, %2, %1", r, "r"(a), "r"(b));
    BINARY(7, "min.bf16x2"); BINARY(8, "max.NaN.bf16x2"); UNARY(9, "neg.bf16x2"); UNARY(10, "abs.f16x2");
    ONE(11, "fma.rn.relu.bf16x2 %0, %1, %2, %2", r, "r"(a), "r"(b));
END

// Comparisons, ordered and not, as bits; selection.
EACH(comparisons, 2)
    u32 bits = 0, bit;
#define COMPARE(k, name, type) \
    asm("{ .reg .pred c; .reg ." type " p, q; mov.b32 p, %1; mov.b32 q, %2; setp." name "." type " c, p, q; selp.u32 %0, 1, 0, c; }" \
        : "=r"(bit) : "r"(a), "r"(b)); \
    bits |= bit << k
    COMPARE(0, "lt", "f32"); COMPARE(1, "leu", "f32"); COMPARE(2, "num", "f32"); COMPARE(3, "nan", "f32"); COMPARE(4, "ne", "f32");
    COMPARE(5, "neu", "f32"); COMPARE(6, "lt", "s32"); COMPARE(7, "ge", "s32"); COMPARE(8, "lo", "u32"); COMPARE(9, "hs", "u32");
    o[0] = bits;
    ONE(1, "slct.b32.s32 %0, %1, 77, %2", r, "r"(a), "r"(b));
END

// Lanes: one block of 32 threads; 12 words a lane.
extern "C" __global__ void exchanges(u32* y, const u32* x) {
    u32 t = thread(), v = x[t], *o = y + 12 * t, from = x[32 + t];
    o[0] = __shfl_up_sync(~0u, v, 3, 8);
    o[1] = __shfl_down_sync(~0u, v, 5, 16);
    o[2] = __shfl_sync(~0u, v, from, 8);
    o[3] = __shfl_xor_sync(~0u, v, 21);
    o[4] = __ballot_sync(~0u, v & 4);
    o[5] = __match_any_sync(~0u, v & 7);
    o[6] = __reduce_add_sync(~0u, v);
    o[7] = __reduce_max_sync(~0u, (int)v);
    o[8] = __reduce_xor_sync(~0u, v);
    o[9] = __any_sync(~0u, v == 7) * 2 + __all_sync(~0u, v & 1);
    o[10] = t % 2 ? __shfl_sync(0xaaaaaaaau, v, from | 1) : __shfl_xor_sync(0x55555555u, v, 6);
    o[11] = __activemask();
}

// Matrices out of shared memory: one block of 32 threads, x [32, 4] rows of 16 bytes; 14 words a lane.
extern "C" __global__ void load_matrices(u32* y, const u32* x) {
    __shared__ alignas(16) u32 rows[128];
    u32 t = thread(), *o = y + 14 * t;
    for (int i = t; i < 128; i += 32) rows[i] = x[i];
    block_sync();
    u32 at = (u32)__cvta_generic_to_shared(rows + (t * 5 + 3) % 32 * 4);
#define MATRICES(flags) \
    asm("ldmatrix.sync.aligned.m8n8.x1" flags ".shared.b16 {%0}, [%1];" : "=r"(o[0]) : "r"(at)); \
    asm("ldmatrix.sync.aligned.m8n8.x2" flags ".shared.b16 {%0, %1}, [%2];" : "=r"(o[1]), "=r"(o[2]) : "r"(at)); \
    asm("ldmatrix.sync.aligned.m8n8.x4" flags ".shared.b16 {%0, %1, %2, %3}, [%4];" \
        : "=r"(o[3]), "=r"(o[4]), "=r"(o[5]), "=r"(o[6]) : "r"(at))
    MATRICES("");
    o += 7;
    MATRICES(".trans");
}

// Copies that nobody carries: 128 threads; x [128, 4] words to y [128, 4], of 16, 8 or 4 bytes, the rest zeros.
extern "C" __global__ void copies(u32* y, const u32* x) {
    __shared__ alignas(16) u32 tile[3][512];
    u32 t = thread();
#define COPY(k, flags, bytes, read) \
    asm volatile("cp.async." flags ".shared.global [%0], [%1], " #bytes ", %2;" \
                 ::"r"((u32)__cvta_generic_to_shared(tile[k] + t * (bytes / 4))), "l"(x + 4 * t), "r"((u32)(read)) : "memory"); \
    asm volatile("cp.async.commit_group;" ::: "memory")
    COPY(0, "cg", 16, t % 17);
    COPY(1, "ca", 8, t % 9);
    COPY(2, "ca", 4, t % 5);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    block_sync();
    for (int i = t; i < 512; i += 128) y[i] = tile[0][i ^ 4];
    for (int i = t; i < 256; i += 128) y[512 + i] = tile[1][i ^ 2];
    asm volatile("cp.async.wait_all;" ::: "memory");
    block_sync();
    y[768 + t] = tile[2][t ^ 9];
}

// Products of a warp, one a block: a, b, c and d in the registers of the instruction, NA, NB, NC words a lane.
#define PRODUCT(name, text, NA, NB, NC, out, in_a, in_b, in_c) \
    extern "C" __global__ void name(u32* d, const u32* a, const u32* b, const u32* c) { \
        i64 i = (i64)block_x() * 32 + thread(); \
        a += i * NA, b += i * NB, c += i * NC, d += i * NC; \
        asm volatile("mma.sync.aligned." text : out : in_a, in_b, in_c); \
    }
#define ALL(...) __VA_ARGS__
#define OUT_4 ALL("=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]))
#define OUT_2 ALL("=r"(d[0]), "=r"(d[1]))
#define IN_1(p) ALL("r"(p[0]))
#define IN_2(p) ALL("r"(p[0]), "r"(p[1]))
#define IN_4(p) ALL("r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]))
// With f32 registers for sums, whose bits come and go as words.
#define BODY(text, ra, rb, c0, c1, c2, c3) \
    "{ .reg .f32 e<4>, s<4>; mov.b32 s0, " c0 "; mov.b32 s1, " c1 "; mov.b32 s2, " c2 "; mov.b32 s3, " c3 "; mma.sync.aligned." text \
    " {e0, e1, e2, e3}, {" ra "}, {" rb "}, {s0, s1, s2, s3}; mov.b32 %0, e0; mov.b32 %1, e1; mov.b32 %2, e2; mov.b32 %3, e3; }"
#define FLOAT_PRODUCT(name, NA, NB, body, in_a, in_b) \
    extern "C" __global__ void name(u32* d, const u32* a, const u32* b, const u32* c) { \
        i64 i = (i64)block_x() * 32 + thread(); \
        a += i * NA, b += i * NB, c += i * 4, d += i * 4; \
        asm volatile(body : OUT_4 : in_a, in_b, IN_4(c)); \
    }
#define WIDE(name, text) FLOAT_PRODUCT(name, 4, 2, BODY(text, "%4, %5, %6, %7", "%8, %9", "%10", "%11", "%12", "%13"), IN_4(a), IN_2(b))
#define NARROW(name, text) FLOAT_PRODUCT(name, 2, 1, BODY(text, "%4, %5", "%6", "%7", "%8", "%9", "%10"), IN_2(a), IN_1(b))
WIDE(mma_bf16_16, "m16n8k16.row.col.f32.bf16.bf16.f32")
WIDE(mma_f16_16, "m16n8k16.row.col.f32.f16.f16.f32")
WIDE(mma_tf32_8, "m16n8k8.row.col.f32.tf32.tf32.f32")
NARROW(mma_bf16_8, "m16n8k8.row.col.f32.bf16.bf16.f32")
NARROW(mma_f16_8, "m16n8k8.row.col.f32.f16.f16.f32")
NARROW(mma_tf32_4, "m16n8k4.row.col.f32.tf32.tf32.f32")
PRODUCT(mma_half_16, "m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %9};", 4, 2, 2, OUT_2, IN_4(a), IN_2(b), IN_2(c))
PRODUCT(mma_s8_32, "m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};", 4, 2, 4, OUT_4, IN_4(a), IN_2(b), IN_4(c))
