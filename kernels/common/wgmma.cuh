// wgmma: products of four warps, 64 rows by N columns, sums in f32 registers.
// layout    d[4 j + 2 h + e] of lane l in warp w of the group: row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + e
// operands  A and B by descriptor from shared memory, or A from four registers in the layout that d has once it is packed in pairs
// order     fence, products, commit, wait: between fence and wait nobody else touches d
// steps     16 elements of K a call; the next step of a K-major tile inside its swizzled span is 32 bytes further
// source    NVIDIA, Parallel Thread Execution ISA 8.8, section 9.7.15; the lists below are plain counting, N / 2 registers

#pragma once
#include "common/dtype.cuh"
#include "common/sm90.cuh"

// How a tile was permuted: the field of the descriptor, and bytes of a row.
enum class Swizzle : u32 { NONE = 0, B128 = 1, B64 = 2, B32 = 3 };

// Describes an operand: where it starts, and the two strides in bytes that its layout needs.
//   along K, swizzled:      leading unused, stride = 8 rows (1024 with B128)
//   along M or N, swizzled: leading = next panel of one span, stride = 8 rows of K
//   not swizzled, along K:  leading = next 16 bytes of K, stride = next 8 rows; along M or N: the other way round
DEVICE u64 matrix(const void* start, u32 leading, u32 stride, Swizzle swizzle) {
    u64 at = (shared_address(start) & 0x3ffff) >> 4;
    return at | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | (u64)swizzle << 62;
}
// The usual tile: rows of 128 bytes along K, written by a tensor map with the swizzle of 128 bytes, 1024-byte aligned.
DEVICE u64 matrix_along_k(const void* start) { return matrix(start, 16, 1024, Swizzle::B128); }
// K rows of 128 bytes along M or N, panels of 64 elements one after the other, `panel` bytes each.
DEVICE u64 matrix_along_n(const void* start, u32 panel) { return matrix(start, panel, 1024, Swizzle::B128); }
// The same by the lower half, the only one that moves: 32-bit steps of 16 bytes.
DEVICE u64 swizzled(u32 low) { return (u64)(1u << 30 | 1024 >> 4) << 32 | low; }
DEVICE u32 low_along_k(u32 address) { return (address & 0x3ffff) >> 4 | 1 << 16; }
DEVICE u32 low_along_n(u32 address, u32 panel) { return (address & 0x3ffff) >> 4 | panel >> 4 << 16; }

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N groups of products are unfinished.
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Ties the registers to this place in the text, so that the compiler moves no use of them across a fence or wait.
template <int R> DEVICE void pin(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Names of the accumulator's operands, and the operands: those of the first n columns.

#define NAMES_8 "%0, %1, %2, %3"
#define NAMES_16 NAMES_8 ", %4, %5, %6, %7"
#define NAMES_24 NAMES_16 ", %8, %9, %10, %11"
#define NAMES_32 NAMES_24 ", %12, %13, %14, %15"
#define NAMES_40 NAMES_32 ", %16, %17, %18, %19"
#define NAMES_48 NAMES_40 ", %20, %21, %22, %23"
#define NAMES_56 NAMES_48 ", %24, %25, %26, %27"
#define NAMES_64 NAMES_56 ", %28, %29, %30, %31"
#define NAMES_72 NAMES_64 ", %32, %33, %34, %35"
#define NAMES_80 NAMES_72 ", %36, %37, %38, %39"
#define NAMES_88 NAMES_80 ", %40, %41, %42, %43"
#define NAMES_96 NAMES_88 ", %44, %45, %46, %47"
#define NAMES_104 NAMES_96 ", %48, %49, %50, %51"
#define NAMES_112 NAMES_104 ", %52, %53, %54, %55"
#define NAMES_120 NAMES_112 ", %56, %57, %58, %59"
#define NAMES_128 NAMES_120 ", %60, %61, %62, %63"
#define NAMES_136 NAMES_128 ", %64, %65, %66, %67"
#define NAMES_144 NAMES_136 ", %68, %69, %70, %71"
#define NAMES_152 NAMES_144 ", %72, %73, %74, %75"
#define NAMES_160 NAMES_152 ", %76, %77, %78, %79"
#define NAMES_168 NAMES_160 ", %80, %81, %82, %83"
#define NAMES_176 NAMES_168 ", %84, %85, %86, %87"
#define NAMES_184 NAMES_176 ", %88, %89, %90, %91"
#define NAMES_192 NAMES_184 ", %92, %93, %94, %95"
#define NAMES_200 NAMES_192 ", %96, %97, %98, %99"
#define NAMES_208 NAMES_200 ", %100, %101, %102, %103"
#define NAMES_216 NAMES_208 ", %104, %105, %106, %107"
#define NAMES_224 NAMES_216 ", %108, %109, %110, %111"
#define NAMES_232 NAMES_224 ", %112, %113, %114, %115"
#define NAMES_240 NAMES_232 ", %116, %117, %118, %119"
#define NAMES_248 NAMES_240 ", %120, %121, %122, %123"
#define NAMES_256 NAMES_248 ", %124, %125, %126, %127"
#define HOLD_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define HOLD_16 HOLD_8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define HOLD_24 HOLD_16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define HOLD_32 HOLD_24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define HOLD_40 HOLD_32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define HOLD_48 HOLD_40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define HOLD_56 HOLD_48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define HOLD_64 HOLD_56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define HOLD_72 HOLD_64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define HOLD_80 HOLD_72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define HOLD_88 HOLD_80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define HOLD_96 HOLD_88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define HOLD_104 HOLD_96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define HOLD_112 HOLD_104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define HOLD_120 HOLD_112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define HOLD_128 HOLD_120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define HOLD_136 HOLD_128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define HOLD_144 HOLD_136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define HOLD_152 HOLD_144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define HOLD_160 HOLD_152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define HOLD_168 HOLD_160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define HOLD_176 HOLD_168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define HOLD_184 HOLD_176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define HOLD_192 HOLD_184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define HOLD_200 HOLD_192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define HOLD_208 HOLD_200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define HOLD_216 HOLD_208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define HOLD_224 HOLD_216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define HOLD_232 HOLD_224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define HOLD_240 HOLD_232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define HOLD_248 HOLD_240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define HOLD_256 HOLD_248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

// Wgmma<N>::bf16(d, a, b, add) and ::f16: d = A B, plus d where `add`, over 16 of K. A and B lie along K unless their template
// flag says that they lie along M or N; A in registers always lies along K.
template <int N> struct Wgmma;

#define WGMMA_HEAD(n, type, add) \
    "{ .reg .pred p;\n\tsetp.ne.b32 p, " add ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " {" NAMES_##n "}, "

// o0 and up are the numbers of the operands after d's.
#define WGMMA_TYPE(n, type, o0, o1, o2, o3, o4, o5, o6) \
    template <int A_ALONG_M = 0, int B_ALONG_N = 0> static DEVICE void type(float (&d)[n / 2], u64 a, u64 b, bool add) { \
        asm volatile(WGMMA_HEAD(n, type, o2) o0 ", " o1 ", p, 1, 1, " o3 ", " o4 "; }" \
                     : HOLD_##n \
                     : "l"(a), "l"(b), "r"((int)add), "n"(A_ALONG_M), "n"(B_ALONG_N) \
                     : "memory"); \
    } \
    template <int B_ALONG_N = 0> static DEVICE void type(float (&d)[n / 2], const u32 (&a)[4], u64 b, bool add) { \
        asm volatile(WGMMA_HEAD(n, type, o5) "{" o0 ", " o1 ", " o2 ", " o3 "}, " o4 ", p, 1, 1, " o6 "; }" \
                     : HOLD_##n \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"(B_ALONG_N) \
                     : "memory"); \
    }

#define WGMMA(n, ...) \
    template <> struct Wgmma<n> { \
        WGMMA_TYPE(n, bf16, __VA_ARGS__) \
        WGMMA_TYPE(n, f16, __VA_ARGS__) \
    };

WGMMA(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WGMMA(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA(24, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
WGMMA(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA(40, "%20", "%21", "%22", "%23", "%24", "%25", "%26")
WGMMA(48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
WGMMA(56, "%28", "%29", "%30", "%31", "%32", "%33", "%34")
WGMMA(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA(72, "%36", "%37", "%38", "%39", "%40", "%41", "%42")
WGMMA(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
WGMMA(88, "%44", "%45", "%46", "%47", "%48", "%49", "%50")
WGMMA(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
WGMMA(104, "%52", "%53", "%54", "%55", "%56", "%57", "%58")
WGMMA(112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
WGMMA(120, "%60", "%61", "%62", "%63", "%64", "%65", "%66")
WGMMA(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA(136, "%68", "%69", "%70", "%71", "%72", "%73", "%74")
WGMMA(144, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
WGMMA(152, "%76", "%77", "%78", "%79", "%80", "%81", "%82")
WGMMA(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
WGMMA(168, "%84", "%85", "%86", "%87", "%88", "%89", "%90")
WGMMA(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
WGMMA(184, "%92", "%93", "%94", "%95", "%96", "%97", "%98")
WGMMA(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
WGMMA(200, "%100", "%101", "%102", "%103", "%104", "%105", "%106")
WGMMA(208, "%104", "%105", "%106", "%107", "%108", "%109", "%110")
WGMMA(216, "%108", "%109", "%110", "%111", "%112", "%113", "%114")
WGMMA(224, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
WGMMA(232, "%116", "%117", "%118", "%119", "%120", "%121", "%122")
WGMMA(240, "%120", "%121", "%122", "%123", "%124", "%125", "%126")
WGMMA(248, "%124", "%125", "%126", "%127", "%128", "%129", "%130")
WGMMA(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

template <typename U> constexpr bool IS_BF16 = false;
template <> constexpr bool IS_BF16<bf16> = true;

// The same by storage type: both operands in shared memory, or A in registers.
template <typename U, int A_ALONG_M = 0, int B_ALONG_N = 0, int R> DEVICE void multiply(float (&d)[R], u64 a, u64 b, bool add) {
    if constexpr (IS_BF16<U>) Wgmma<2 * R>::template bf16<A_ALONG_M, B_ALONG_N>(d, a, b, add);
    else Wgmma<2 * R>::template f16<A_ALONG_M, B_ALONG_N>(d, a, b, add);
}
template <typename U, int B_ALONG_N = 0, int R> DEVICE void multiply(float (&d)[R], const u32 (&a)[4], u64 b, bool add) {
    if constexpr (IS_BF16<U>) Wgmma<2 * R>::template bf16<B_ALONG_N>(d, a, b, add);
    else Wgmma<2 * R>::template f16<B_ALONG_N>(d, a, b, add);
}
