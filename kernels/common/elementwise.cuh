// elementwise: y[i] = f(i, x[i], ..) for flat tensors of one length: what all activations, dropout, cast and scale share.
// launch    FLAT_THREADS threads; a block covers FLAT_THREADS * W * N numbers, N = flat_packs(inputs) and W = numbers in 16 bytes of the
//           widest type among inputs and result: flat_block
// paths     16-byte packs when every place is a multiple of its pack, else one number at a time; the last n % W numbers singly
// traffic   N packs of each input under way before the first is used: 4 loads or more
// order     every number is computed alone: same input, same bits

#pragma once
#include "common/math.cuh"
#include "common/pack.cuh"

constexpr int FLAT_THREADS = 256;

// Packs that a thread takes: four loads are under way with one input, four or more with several.
DEVICE constexpr int flat_packs(int inputs) { return inputs == 1 ? 4 : 2; }

template <typename U> DEVICE constexpr int widest() { return (int)sizeof(U); }
template <typename U, typename V, typename... More> DEVICE constexpr int widest() {
    return (int)sizeof(U) > widest<V, More...>() ? (int)sizeof(U) : widest<V, More...>();
}

// One input's packs of a thread.
template <typename U, int W, int N> struct Taken {
    Pack<U, W> pack[N];
};

template <int W, typename F, typename Y, typename... X>
DEVICE void flat_pack(Y* y, int add, i64 at, F& f, const Pack<X, W>&... x) {
    float v[W];
#pragma unroll
    for (int i = 0; i < W; ++i) v[i] = f(at + i, x.get(i)...);
    put<Y, W>(y + at, v, add);
}

template <int W, int N, typename F, typename Y, typename... X>
DEVICE void flat_packs_of(Y* y, int add, i64 first, i64 packs, F& f, Taken<X, W, N>... taken) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
        i64 p = first + k * FLAT_THREADS;
        if (p < packs) flat_pack<W, F, Y, X...>(y, add, p * W, f, taken.pack[k]...);
    }
}

template <int W, int N, typename U> DEVICE Taken<U, W, N> take(const U* x, i64 first, i64 packs) {
    Taken<U, W, N> t;
#pragma unroll
    for (int k = 0; k < N; ++k) {
        i64 p = first + k * FLAT_THREADS;
        if (p < packs) t.pack[k] = load_once<U, W>(x + p * W);
    }
    return t;
}

// y = f(i, x, ..), added to what is there with `add`. Called by every thread of every block of the grid.
template <typename F, typename Y, typename... X> DEVICE void map_flat(Y* y, int add, i64 n, F f, const X*... x) {
    constexpr int W = 16 / widest<Y, X...>(), N = flat_packs((int)sizeof...(X));
    i64 block = (i64)block_x() * (FLAT_THREADS * N);
    bool is_wide = is_aligned<sizeof(Y) * W>(y) && (is_aligned<sizeof(X) * W>(x) && ...);
    if (is_wide) {
        i64 packs = n / W, first = block + thread();
        flat_packs_of<W, N, F, Y, X...>(y, add, first, packs, f, take<W, N>(x, first, packs)...);
        // The numbers after the last whole pack: fewer than W.
        i64 at = packs * W + thread();
        if (block_x() == 0 && at < n) put(y + at, f(at, widen(x[at])...), add);
        return;
    }
    i64 end = least(n, (block + FLAT_THREADS * N) * W);
    for (i64 at = block * W + thread(); at < end; at += FLAT_THREADS) put(y + at, f(at, widen(x[at])...), add);
}
