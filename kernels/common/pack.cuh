// pack: neighbouring numbers that one thread moves at once: 16 bytes where the place allows it.
// loads     load_once for what is read once (it does not displace what the caches hold), load_kept for what is read again
// widths    2, 4, 8 and 16 bytes; the place must be a multiple of the width: is_aligned says whether it is

#pragma once
#include "common/dtype.cuh"

// How many numbers of a type fit into 16 bytes.
template <typename U> constexpr int WIDE = 16 / (int)sizeof(U);

template <typename U, int W> struct alignas(sizeof(U) * W) Pack {
    static constexpr int BYTES = sizeof(U) * W;
    static constexpr int WORDS = BYTES / 4;
    u32 word[WORDS];

    DEVICE float get(int i) const {
        if constexpr (sizeof(U) == 4) {
            return float_of(word[i]);
        } else {
            return i % 2 ? widen_high<U>(word[i / 2]) : widen_low<U>(word[i / 2]);
        }
    }
    DEVICE void unpack(float (&v)[W]) const {
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = get(i);
    }
    DEVICE void pack(const float (&v)[W]) {
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            if constexpr (sizeof(U) == 4) {
                word[i] = bits_of(v[i]);
            } else {
                word[i] = narrow_pair<U>(v[2 * i], v[2 * i + 1]);
            }
        }
    }
};

// A single 16-bit number has no whole word.
template <typename U> struct Single {
    U value;
    DEVICE float get(int) const { return widen(value); }
    DEVICE void unpack(float (&v)[1]) const { v[0] = widen(value); }
    DEVICE void pack(const float (&v)[1]) { value = narrow<U>(v[0]); }
};
template <> struct Pack<bf16, 1> : Single<bf16> {};
template <> struct Pack<f16, 1> : Single<f16> {};

template <int BYTES> DEVICE bool is_aligned(const void* at) { return ((u64)at & (BYTES - 1)) == 0; }

#ifdef ON_AMD
typedef u32 Words2 __attribute__((ext_vector_type(2)));
typedef u32 Words4 __attribute__((ext_vector_type(4)));
#endif

// 4, 8 or 16 bytes of global memory that are read once. The order of such loads is that of the text, so that several of them are
// under way before the first result is used.
template <int WORDS> DEVICE void load_words_once(u32 (&word)[WORDS], const void* at) {
#ifdef ON_NVIDIA
    if constexpr (WORDS == 4) {
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                     : "l"(at));
    } else if constexpr (WORDS == 2) {
        asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(at));
    } else {
        asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(word[0]) : "l"(at));
    }
#else
    if constexpr (WORDS == 4) {
        Words4 w = __builtin_nontemporal_load((const Words4*)at);
        word[0] = w.x, word[1] = w.y, word[2] = w.z, word[3] = w.w;
    } else if constexpr (WORDS == 2) {
        Words2 w = __builtin_nontemporal_load((const Words2*)at);
        word[0] = w.x, word[1] = w.y;
    } else {
        word[0] = __builtin_nontemporal_load((const u32*)at);
    }
#endif
}

template <typename U, int W> DEVICE Pack<U, W> load_kept(const U* at) { return *(const Pack<U, W>*)at; }
template <typename U, int W> DEVICE Pack<U, W> load_once(const U* at) {
    if constexpr (sizeof(U) * W < 4) {
        return load_kept<U, W>(at);
    } else {
        Pack<U, W> p;
        load_words_once(p.word, at);
        return p;
    }
}
template <typename U, int W> DEVICE void store(U* at, const Pack<U, W>& p) { *(Pack<U, W>*)at = p; }
template <typename U, int W> DEVICE void store(U* at, const float (&v)[W]) {
    Pack<U, W> p;
    p.pack(v);
    store<U, W>(at, p);
}

// 16 bytes that are not read again soon: they are the first to leave the caches.
template <typename U, int W> DEVICE void store_once(U* at, const float (&v)[W]) {
    Pack<U, W> p;
    p.pack(v);
    static_assert(sizeof(p) == 16, "a whole pack");
#ifdef ON_NVIDIA
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(p.word[0]), "r"(p.word[1]), "r"(p.word[2]), "r"(p.word[3])
                 : "memory");
#else
    __builtin_nontemporal_store(Words4{p.word[0], p.word[1], p.word[2], p.word[3]}, (Words4*)at);
#endif
}

// A gradient is set or added: with add, what is there is widened, added in f32 and rounded once. Without, -0 is added, which changes
// no number: so the text that computes v exists once.
template <typename U, int W> DEVICE Pack<U, W> load_if(const U* at, int add) {
    Pack<U, W> p;
    if constexpr (sizeof(U) * W < 4) {
        p.value = narrow<U>(-0.0f);
        if (add) p.value = *at;
    } else {
#pragma unroll
        for (int i = 0; i < Pack<U, W>::WORDS; ++i) p.word[i] = sizeof(U) == 4 ? 0x80000000u : 0x80008000u;
        if (add) load_words_once(p.word, at);
    }
    return p;
}
template <typename U, int W> DEVICE void put(U* at, float (&v)[W], int add) {
    Pack<U, W> old = load_if<U, W>(at, add);
#pragma unroll
    for (int i = 0; i < W; ++i) v[i] = old.get(i) + v[i];
    store<U, W>(at, v);
}
template <typename U> DEVICE void put(U* at, float x, int add) {
    float v[1] = {x};
    put<U, 1>(at, v, add);
}
