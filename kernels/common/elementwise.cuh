// elementwise: y[i] = f(x[i], ..) for flat tensors of one length: what activations, sums with broadcast, dropout, cast and the last
// step of the normalisations share.
// launch    FLAT_THREADS threads; a block covers FLAT_THREADS * W * N numbers: W, the numbers in 16 bytes of the widest type among
//           inputs and result; N, the packs of a thread, 2 with one input and 1 with more
// paths     16-byte packs when every place is a multiple of its pack, else one number at a time; the last n % W numbers singly
// traffic   N packs of each input under way before the first is used: 2 loads or more; results leave the caches first
// measured  H200, 2026-11-22, bf16, of the copy rate: gelu 90 % with 4 packs, 93 % with 2; its gradient 92 % with 2, 95 % with 1; swiglu
//           91 % with 2, 98 % with 1, its gradients 91 and 94 %
// order     every number is computed alone: same input, same bits

#pragma once
#include "common/math.cuh"
#include "common/pack.cuh"

constexpr int FLAT_THREADS = 256;
// Packs of a thread where there is one input.
constexpr int PACKS_OF_ONE = 2;

template <typename U> DEVICE constexpr int widest() { return (int)sizeof(U); }
template <typename U, typename V, typename... More> DEVICE constexpr int widest() {
    return (int)sizeof(U) > widest<V, More...>() ? (int)sizeof(U) : widest<V, More...>();
}

// One input's packs of a thread.
template <typename U, int W, int N> struct Taken {
    Pack<U, W> pack[N];
};

template <int W, int N, typename U> DEVICE Taken<U, W, N> take(const U* x, i64 first, i64 packs) {
    Taken<U, W, N> t;
#pragma unroll
    for (int k = 0; k < N; ++k) {
        i64 p = first + k * FLAT_THREADS;
        if (p < packs) t.pack[k] = load_once<U, W>(x + p * W);
    }
    return t;
}

// The numbers of a pack as an array that a function can take.
template <int W> struct Numbers {
    float v[W];
    template <typename U> DEVICE explicit Numbers(const Pack<U, W>& p) { p.unpack(v); }
};

template <int W, typename F, typename Y, typename... X>
DEVICE void map_one(Y* y, int add, i64 at, F& f, const Pack<X, W>&... x) {
    float v[W];
    f(at, v, Numbers<W>(x).v...);
    if (add) {
        put<Y, W>(y + at, v, 1);
    } else if constexpr (sizeof(Y) * W == 16) {
        store_once<Y, W>(y + at, v);
    } else {
        store<Y, W>(y + at, v);
    }
}

template <int W, int N, typename F, typename Y, typename... X>
DEVICE void map_taken(Y* y, int add, i64 first, i64 packs, F& f, const Taken<X, W, N>&... x) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
        i64 p = first + k * FLAT_THREADS;
        if (p < packs) map_one<W, F, Y, X...>(y, add, p * W, f, x.pack[k]...);
    }
}

// f(at, v, x, ..) computes v[i], the number at + i of the result, from the numbers x[i]; all are arrays of W or of 1 floats. With add,
// they are added to what is there. Packs are taken where places allow it and `may_be_wide` says that f can: with a period, for
// instance, W must divide it. Called by every thread of every block.
template <typename F, typename Y, typename... X>
DEVICE void map_packs(bool may_be_wide, Y* y, int add, i64 n, F f, const X*... x) {
    constexpr int W = 16 / widest<Y, X...>(), N = sizeof...(X) == 1 ? PACKS_OF_ONE : 1;
    i64 block = (i64)block_x() * (FLAT_THREADS * N);
    if (may_be_wide && is_aligned<sizeof(Y) * W>(y) && (is_aligned<sizeof(X) * W>(x) && ...)) {
        i64 packs = n / W, first = block + thread();
        map_taken<W, N, F, Y, X...>(y, add, first, packs, f, take<W, N>(x, first, packs)...);
        // The numbers after the last whole pack: fewer than W.
        i64 at = packs * W + thread();
        if (block_x() == 0 && at < n) map_one<1, F, Y, X...>(y, add, at, f, load_kept<X, 1>(x + at)...);
        return;
    }
    i64 end = least(n, (block + FLAT_THREADS * N) * W);
    for (i64 at = block * W + thread(); at < end; at += FLAT_THREADS) {
        map_one<1, F, Y, X...>(y, add, at, f, load_kept<X, 1>(x + at)...);
    }
}

// A function of single numbers, whatever their places.
template <typename F> struct EachNumber {
    F f;
    template <int W, typename... X> DEVICE void operator()(i64, float (&v)[W], const X&... x) {
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = f(x[i]...);
    }
};

// y = f(x, ..), added to what is there with add.
template <typename F, typename Y, typename... X> DEVICE void map_flat(Y* y, int add, i64 n, F f, const X*... x) {
    map_packs(true, y, add, n, EachNumber<F>{f}, x...);
}

// y = f(x, b) where b has the `period` last places of x and is repeated.
template <typename F, typename U> struct Repeated {
    F f;
    const U* b;
    i64 period;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        Pack<U, W> p = load_kept<U, W>(b + modulo(at, period));
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = f(x[i], p.get(i));
    }
};

template <typename F, typename U>
DEVICE void map_repeated(U* y, int add, i64 n, F f, const U* x, const U* b, i64 period) {
    bool is_wide = period % WIDE<U> == 0 && is_aligned<16>(b);
    map_packs(is_wide, y, add, n, Repeated<F, U>{f, b, period}, x);
}
