// relative_l2: loss = 1/B * sum over b of |p[b] - y[b]| / |y[b]|, with |d| = sqrt(sum of weight[h] * d^2).
// axes      p, y, dp, dy [B, n], a sample as rows of `width` numbers; weight, dweight [weights], those of the rows in turn; error, length
//           [B] f32; loss, dloss [1]; scales [B, 2] f64
// types     p, dp in T, y, dy in TARGET, each of f32, bf16, f16; weight, loss in f32; squares, their sums and the scales in f64
// launch    fwd: sums of the stretches of samples, norms a team a sample, then one block; bwd: a thread a sample for its scales, dp and dy
//           flat, dweight by sums of rows, of their stretches, of rows of one weight: common/totals.cuh
// paths     16-byte packs of the wider type, single numbers at the ends of a sample
// traffic   fwd reads p, y; bwd reads p, y for each gradient and writes it, which it reads when adding
// order     fixed: same input, same bits
// budget    sm_80 72 registers, sm_90a 80, gfx90a 96, gfx942 96; no spills
// source    Li et al. 2021, section 5; with e = |p - y|, l = |y|, s = dloss / (e * l * B), t = s * (e / l)^2 and a row's weight w:
//           dp = w * s * (p - y), dy = -dp - w * t * y, dw = sum of (s * (p - y)^2 - t * y^2) / 2

#include "common/totals.cuh"

struct Squares {
    const float* weight;
    Divisor width;
    Divisor weights;
    double total[2];
    template <int W> DEVICE void operator()(i64 at, const float (&p)[W], const float (&y)[W]) {
        double w = 1.0;
        auto enter = [&](i64 row) { w = weight ? (double)weight[modulo(row, weights)] : 1.0; };
        by_row<W>(at, width, enter, [&](int i) {
            double target = (double)y[i], d = (double)p[i] - target;
            total[0] = fused(w * d, d, total[0]);
            total[1] = fused(w * target, target, total[1]);
        });
    }
};

// The sums of squares of an item's numbers, on every thread of its team.
DEVICE void squares_of(Squares& squares, const Stretch& s, const Team& team, const T* p, const TARGET* y) {
    visit(s.begin, s.end, team.id(), team.lanes, squares, p, y);
    team.sum(squares.total);
}

extern "C" __global__ void __launch_bounds__(TOTAL_THREADS, 3) relative_l2_fwd_sums(
    int* sums, const T* p, const TARGET* y, const float* weight, i64 width, i64 weights, i64 samples, i64 n, i64 stretch, i64 stretches,
    int lanes) {
    follow();
    Team team{lanes};
    i64 item = team.item();
    Stretch s = stretch_of(item, samples, n, stretch, stretches);
    Squares squares{weight, Divisor(width), Divisor(weights)};
    squares_of(squares, s, team, p, y);
    double* to = (double*)sums + item * 2;
    if (team.id() == 0 && s.row < samples) to[0] = squares.total[0], to[1] = squares.total[1];
}

// Both norms of a sample, and their ratio in f64.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS)
    relative_l2_fwd_norms(float* error, float* length, int* ratios, const int* sums, i64 samples, i64 stretches, int lanes) {
    follow();
    Team team{lanes};
    i64 sample = team.item();
    double total[2] = {0.0, 0.0};
    if (sample < samples) {
        const double* from = (const double*)sums + sample * stretches * 2;
        for (i64 k = team.id(); k < stretches; k += lanes) total[0] += from[k * 2], total[1] += from[k * 2 + 1];
    }
    team.sum(total);
    if (team.id() > 0 || sample >= samples) return;
    double e = square_root(total[0]), l = square_root(total[1]);
    error[sample] = (float)e, length[sample] = (float)l;
    ((double*)ratios)[sample] = e / l;
}

// The ratios of stretches of samples; the last time the loss.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) relative_l2_fwd(
    float* loss, int* sums, const int* ratios, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes, i64 samples) {
    follow();
    total_rows((const double*)ratios, rows, n, stretch, stretches, lanes, [=](i64 at, double sum) {
        if (loss) {
            loss[at] = (float)(sum / (double)samples);
        } else {
            ((double*)sums)[at] = sum;
        }
    });
}

// s and t of a sample; 0 where the prediction is exact: at zero error every direction leads up equally.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS)
    relative_l2_bwd_scales(int* scales, const float* error, const float* length, const float* dloss, i64 samples) {
    follow();
    i64 sample = (i64)block_x() * TOTAL_THREADS + thread();
    if (sample >= samples) return;
    double e = (double)error[sample], l = (double)length[sample], q = e / l;
    double s = e == 0.0 ? 0.0 : (double)dloss[0] / (e * l * (double)samples);
    double* to = (double*)scales + sample * 2;
    to[0] = s, to[1] = s * q * q;
}

// What the gradients of a row are made with: its weight times s and t of its sample of `rows` rows.
struct RowScales {
    const double* scales;
    const float* weight;
    i64 rows;
    i64 weights;
    DEVICE float at(i64 row, int which) const {
        float scale = (float)scales[quotient(row, rows) * 2 + which];
        return weight ? mul(weight[modulo(row, weights)], scale) : scale;
    }
};
struct PullPrediction {
    RowScales scales;
    i64 width;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&p)[W], const float (&y)[W]) {
        float s = 0.0f;
        by_row<W>(at, width, [&](i64 row) { s = scales.at(row, 0); }, [&](int i) { v[i] = mul(s, p[i] - y[i]); });
    }
};
struct PullTarget {
    RowScales scales;
    i64 width;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&p)[W], const float (&y)[W]) {
        float s = 0.0f, t = 0.0f;
        auto enter = [&](i64 row) { s = scales.at(row, 0), t = scales.at(row, 1); };
        by_row<W>(at, width, enter, [&](int i) { v[i] = -(mul(s, p[i] - y[i]) + mul(t, y[i])); });
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) relative_l2_bwd_dp(
    T* dp, const T* p, const TARGET* y, const float* weight, const int* scales, i64 n, i64 width, i64 rows, i64 weights, int add_dp) {
    follow();
    map_packs(true, dp, add_dp, n, PullPrediction{{(const double*)scales, weight, rows, weights}, width}, p, y);
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) relative_l2_bwd_dy(
    TARGET* dy, const T* p, const TARGET* y, const float* weight, const int* scales, i64 n, i64 width, i64 rows, i64 weights, int add_dy) {
    follow();
    map_packs(true, dy, add_dy, n, PullTarget{{(const double*)scales, weight, rows, weights}, width}, p, y);
}

// What a stretch of a row adds to the gradient of the row's weight; `each` rows are a sample.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) relative_l2_bwd_dweight(
    int* sums, const T* p, const TARGET* y, const int* scales, i64 each, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes) {
    follow();
    Team team{lanes};
    i64 item = team.item();
    Stretch s = stretch_of(item, rows, n, stretch, stretches);
    Squares squares{nullptr, Divisor(n), Divisor(1)};
    squares_of(squares, s, team, p, y);
    if (team.id() > 0 || s.row >= rows) return;
    const double* scale = (const double*)scales + quotient(s.row, each) * 2;
    ((double*)sums)[item] = 0.5 * (scale[0] * squares.total[0] - scale[1] * squares.total[1]);
}

struct WeightGradient {
    float* dweight;
    double* sums;
    int add;
    DEVICE void operator()(i64 at, double sum) const {
        if (dweight) {
            put(dweight + at, (float)sum, add);
        } else {
            sums[at] = sum;
        }
    }
};
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) relative_l2_bwd_dweight_rows(
    float* dweight, int* sums, const int* x, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes, int add_dweight) {
    follow();
    WeightGradient to{dweight, (double*)sums, add_dweight};
    total_rows((const double*)x, rows, n, stretch, stretches, lanes, to);
}
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) relative_l2_bwd_dweight_axis(
    float* dweight, int* sums, const int* x, i64 outer, i64 n, i64 inner, i64 stretch, i64 stretches, int lanes, int add_dweight) {
    follow();
    WeightGradient to{dweight, (double*)sums, add_dweight};
    total_axis((const double*)x, outer, n, inner, stretch, stretches, lanes, to);
}
