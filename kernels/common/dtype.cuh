// dtype: storage types f32, bf16, f16 and their conversions from and to f32, in which everything is computed.
// rounding  to nearest, ties to even; too large becomes infinite; NaN stays NaN
// hardware  sm_80 and later round both 16-bit types, two at a time; AMD rounds f16, and bf16 is integer code (4 operations)
// building  T, the storage type a file is compiled for, is given as -DT=f32, -DT=bf16 or -DT=f16: no template may be named T

#pragma once
#include "common/device.cuh"

using f32 = float;
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

#ifndef T
#define T f32
#endif

DEVICE float widen(f32 x) { return x; }
DEVICE float widen(bf16 x) { return float_of((u32)x.bits << 16); }
DEVICE float widen(f16 x) {
#ifdef ON_NVIDIA
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    return (float)__builtin_bit_cast(_Float16, x.bits);
#endif
}

// What stands in the low and the high half of a word.
template <typename U> DEVICE float widen_low(u32 word);
template <typename U> DEVICE float widen_high(u32 word);
template <> DEVICE float widen_low<bf16>(u32 word) { return float_of(word << 16); }
template <> DEVICE float widen_high<bf16>(u32 word) { return float_of(word & 0xffff0000u); }
template <> DEVICE float widen_low<f16>(u32 word) { return widen(f16{(u16)word}); }
template <> DEVICE float widen_high<f16>(u32 word) { return widen(f16{(u16)(word >> 16)}); }

#ifdef ON_AMD
// The bits of a rounded bf16, in the high half; the low half is what is left over.
DEVICE u32 bf16_bits(float x) {
    u32 bits = bits_of(x);
    u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return x == x ? rounded : 0x7fc00000u;
}
#endif

template <typename U> DEVICE U narrow(float x);
template <> DEVICE f32 narrow<f32>(float x) { return x; }
template <> DEVICE bf16 narrow<bf16>(float x) {
#ifdef ON_NVIDIA
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    return bf16{(u16)(bf16_bits(x) >> 16)};
#endif
}
template <> DEVICE f16 narrow<f16>(float x) {
#ifdef ON_NVIDIA
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    return f16{__builtin_bit_cast(u16, (_Float16)x)};
#endif
}

// Both halves of a word at once.
template <typename U> DEVICE u32 narrow_pair(float low, float high);
template <> DEVICE u32 narrow_pair<bf16>(float low, float high) {
#ifdef ON_NVIDIA
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return bf16_bits(low) >> 16 | (bf16_bits(high) & 0xffff0000u);
#endif
}
template <> DEVICE u32 narrow_pair<f16>(float low, float high) {
#ifdef ON_NVIDIA
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return narrow<f16>(low).bits | (u32)narrow<f16>(high).bits << 16;
#endif
}
