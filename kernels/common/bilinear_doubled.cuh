// bilinear_doubled: resize_bilinear where both axes grow twice, forward also four times, pixels being areas: every weight is known. A warp
// asks for all its rows at once and walks nowhere: on planes of some hundred columns it is waiting for one row after the other that takes
// time.
// lanes     forward a lane has 16 bytes of a row of y, backward 8 columns of dy, and those of x or dx that they lie between
// halo      forward a row of x above and one below, from the caches; the columns beside the own from the neighbouring lanes
// measured  H200, 2026-11-22, bf16, 16 x 73 planes of 64 x 128: forward 25.7 us, 88 % of the copy rate, backward 25.2, 90 %; 4 rows a warp
//           26.1 and 26.2; walking down (common/bilinear_whole.cuh) 32.2 and 30.3, with rows further ahead 30.1; four times, forward, 80
//           planes of 180 x 360 48.8 us, 85 %, walking down 51.2, 81 %; f32, 40 planes 44.7 and 45.8
// order     as common/bilinear_whole.cuh

#pragma once
#include "common/bilinear_whole.cuh"

// Rows of x, or of dx, of a warp.
constexpr int DOUBLED_ROWS = 2;

// What a lane needs of a row of x: its own columns, and one beside the tile where it is the first or the last lane.
template <int UP> struct DoubledRow {
    static constexpr int N = WIDE<T>, OWN = N / UP;
    Pack<T, OWN> own;
    T edge;
};

template <int UP> struct Doubling {
    static constexpr int N = WIDE<T>, OWN = N / UP;
    int first, beside, w;
    bool is_there, has_edge;

    DEVICE Doubling(int tile, int w) : first((tile * WARP + lane()) * OWN), w(w), is_there(first < w) {
        int outside = lane() == 0 ? first - 1 : first + OWN;
        has_edge = is_there && (lane() == 0 || lane() == WARP - 1) && outside >= 0 && outside < w;
        beside = has_edge ? outside : 0;
    }
    DEVICE void load(DoubledRow<UP>& r, const T* row) const {
        r.own = load_kept<T, OWN>(row + (is_there ? first : 0));
        if (has_edge) r.edge = row[beside];
    }
    DEVICE void blend(float (&v)[N], const DoubledRow<UP>& r) const {
        float x[OWN + 2];
#pragma unroll
        for (int i = 0; i < OWN; ++i) x[i + 1] = r.own.get(i);
        float left = lane_at(x[OWN], (lane() + WARP - 1) % WARP), right = lane_at(x[1], (lane() + 1) % WARP);
        x[0] = first == 0 ? x[1] : left;
        x[OWN + 1] = first + OWN >= w ? x[OWN] : right;
        if (has_edge && lane() == 0) x[0] = widen(r.edge);
        if (has_edge && lane() != 0) x[OWN + 1] = widen(r.edge);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float share = right_weight<UP>(i);
            int k = (i + UP / 2) / UP;
            v[i] = fmaf(share, x[k + 1], mul(1.0f - share, x[k]));
        }
    }
};

// Both axes grow UP times.
template <int UP> DEVICE void grow_both(T* y, const T* x, const Part& part, int h, int w) {
    constexpr int N = Doubling<UP>::N, ROWS = DOUBLED_ROWS;
    Doubling<UP> columns(part.tile, w);
    int top = part.chunk * ROWS;
    const T* from = x + part.plane * h * w;
    T* to = y + ((part.plane * h + top) * UP * w + columns.first) * UP;
    DoubledRow<UP> row[ROWS + 2];
#pragma unroll
    for (int k = 0; k < ROWS + 2; ++k) {
        int i = top - 1 + k;
        i = i < 0 ? 0 : i < h ? i : h - 1;
        columns.load(row[k], from + (i64)i * w);
    }
    float above[N], here[N], below[N];
    columns.blend(above, row[0]), columns.blend(here, row[1]);
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
        if (top + k >= h) break;
        columns.blend(below, row[k + 2]);
#pragma unroll
        for (int j = 0; j < UP; ++j, to += UP * w) {
            float share = right_weight<UP>(j), v[N];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float high = j < UP / 2 ? above[i] : here[i], low = j < UP / 2 ? here[i] : below[i];
                v[i] = fmaf(share, low, mul(1.0f - share, high));
            }
            if (columns.is_there) store_once<T, N>(to, v);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) above[i] = here[i], here[i] = below[i];
    }
}

DEVICE void gather_doubled(T* dx, const T* dy, const Part& part, int h, int w, int add) {
    constexpr int N = Shares<2>::N, W = WIDE<T>, LOADS = N / W, ROWS = DOUBLED_ROWS;
    Shares<2> columns(part.tile, w, 2 * w);
    int top = part.chunk * ROWS;
    const T* from = dy + part.plane * h * w * 4;
    T* to = dx + (part.plane * h + top) * w;
    Pack<T, W> d[2 * ROWS + 2][LOADS];
#pragma unroll
    for (int k = 0; k < 2 * ROWS + 2; ++k) {
        int o = 2 * top - 1 + k;
#pragma unroll
        for (int p = 0; p < LOADS; ++p) {
#pragma unroll
            for (int i = 0; i < Pack<T, W>::WORDS; ++i) d[k][p].word[i] = 0;
            bool is_there = o >= 0 && o < 2 * h && columns.first < 2 * w;
            if (is_there) load_words_once(d[k][p].word, from + (i64)o * (2 * w) + columns.first + p * W);
        }
    }
#pragma unroll
    for (int k = 0; k < ROWS; ++k, to += w) {
        if (top + k >= h) break;
        // The first and the last row of the plane take what would belong to rows outside.
        float upper = top + k == 0 ? 1.0f : 0.75f, lower = top + k == h - 1 ? 1.0f : 0.75f, sum[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            int p = i / W, j = i % W;
            sum[i] = fmaf(upper, d[2 * k + 1][p].get(j), mul(0.25f, d[2 * k][p].get(j)));
            sum[i] = fmaf(lower, d[2 * k + 2][p].get(j), sum[i]);
            sum[i] = fmaf(0.25f, d[2 * k + 3][p].get(j), sum[i]);
        }
        columns.write(to, sum, add);
    }
}
