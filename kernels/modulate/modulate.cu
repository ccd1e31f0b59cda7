// modulate: y[b, n, c] = x[b, n, c] * (base + scale[b, c]) + shift[b, c]; dx = dy * (base + scale); dscale and dshift are sums over n of
// dy * x and of dy.
// axes      x, y, dy, dx [B, N, C]; scale, shift, dscale, dshift [B, C]
// types     T in {f32, bf16, f16}; products and sums in f32
// launch    fwd, bwd_dx flat: common/elementwise.cuh; bwd_params in two stages for each sample: common/columns.cuh, block_z a sample
// paths     16-byte packs when W divides C, else single numbers
// traffic   fwd reads x, writes y; bwd_dx reads dy, writes dx, which it reads when adding; bwd_params reads x and dy, leaves
//           2 * stretches * C f32 a sample and adds them; scale and shift are found in the caches
// order     fixed: same input, same bits
// budget    sm_80 128 registers, sm_90a 128, gfx90a 184, gfx942 184; no spills
// measured  H200, 2026-11-22, bf16, 16 x 4096 x 1024, of the copy rate: fwd 91 %, bwd_dx 92 %, bwd_params 79 %
// source    Perez et al. 2018, equation 1; with base 1 Peebles, Xie 2023, section 3.2 (adaLN)

#include "common/columns.cuh"
#include "common/elementwise.cuh"

// Number `at` of x, `each` numbers a sample, is scaled and shifted by that of its sample and its place in `c`.
struct Modulated {
    const T* scale;
    const T* shift;  // or null
    i64 each;
    i64 c;
    float base;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        i64 place = quotient(at, each) * c + modulo(at, c);
        Pack<T, W> a = load_kept<T, W>(scale + place);
        if (!shift) {
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = mul(x[i], base + a.get(i));
            return;
        }
        Pack<T, W> b = load_kept<T, W>(shift + place);
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = fmaf(x[i], base + a.get(i), b.get(i));
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    modulate_fwd(T* y, const T* x, const T* scale, const T* shift, i64 n, i64 each, i64 c, float base) {
    follow();
    bool is_wide = c % WIDE<T> == 0 && is_aligned<16>(scale) && is_aligned<16>(shift);
    map_packs(is_wide, y, 0, n, Modulated{scale, shift, each, c, base}, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    modulate_bwd_dx(T* dx, const T* scale, const T* dy, i64 n, i64 each, i64 c, float base, int add_dx) {
    follow();
    bool is_wide = c % WIDE<T> == 0 && is_aligned<16>(scale);
    map_packs(is_wide, dx, add_dx, n, Modulated{scale, nullptr, each, c, base}, dy);
}

// Of a sample: sums of dy * x and of dy.
template <int W> struct ConditionTerm {
    const T* x;
    const T* dy;
    i64 c;
    template <typename S> DEVICE void operator()(i64 row, const Columns& columns, S (&sum)[2][W]) const {
        float number[W], d[W];
        load_columns<W>(number, x + row * c, columns);
        load_columns<W>(d, dy + row * c, columns);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            add_product(sum[0][i], d[i], number[i]);
            add_to(sum[1][i], d[i]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, 2) modulate_bwd_params(
    float* products, float* sums, const T* x, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    i64 sample = block_z() * rows * width;
    ConditionTerm<W> term{x + sample, dy + sample, width};
    column_partials2<W>(products, sums, rows, width, stretch, stretches, lanes, is_aligned<16>(x) && is_aligned<16>(dy), term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    modulate_bwd_total(T* d, const float* partial, i64 stretches, i64 width, int lanes, int add_d) {
    follow();
    column_totals(d, partial, stretches, width, lanes, add_d);
}
