// mean_error: loss = 1/n * sum of weight[h] * error(p - y), and its gradients: what squared_error and absolute_error share. ERROR is a
// struct of two functions, error(d) and pull(s, d), s times its derivative without the constant.
// launch    sums: common/totals.cuh; gradients of p and y flat: common/elementwise.cuh
// types     p in T, y in TARGET, each of f32, bf16, f16; errors in f32, sums in f64
// weights   of rows of `width` numbers, in turn; without them (a null pointer) all numbers are one row
// order     fixed: same input, same bits

#pragma once
#include "common/totals.cuh"

template <typename ERROR> struct WeightedErrors {
    const float* weight;
    Divisor width;
    Divisor weights;
    double total[1];
    template <int W> DEVICE void operator()(i64 at, const float (&p)[W], const float (&y)[W]) {
        double w = 1.0;
        auto enter = [&](i64 row) { w = weight ? (double)weight[modulo(row, weights)] : 1.0; };
        by_row<W>(at, width, enter, [&](int i) { total[0] = fused(w, (double)ERROR::error(p[i] - y[i]), total[0]); });
    }
};

// The sums of the stretches of n numbers.
template <typename ERROR>
DEVICE void error_sums(
    int* sums, const T* p, const TARGET* y, const float* weight, i64 width, i64 weights, i64 rows, i64 n, i64 stretch, i64 stretches,
    int lanes) {
    Team team{lanes};
    i64 item = team.item();
    Stretch s = stretch_of(item, rows, n, stretch, stretches);
    WeightedErrors<ERROR> errors{weight, Divisor(width), Divisor(weights)};
    visit(s.begin, s.end, team.id(), lanes, errors, p, y);
    team.sum(errors.total);
    if (team.id() == 0 && s.row < rows) ((double*)sums)[item] = errors.total[0];
}

// One block: the loss from the sums of the stretches.
DEVICE void mean_of_sums(float* loss, const int* sums, i64 stretches, i64 n) {
    Team team{TOTAL_THREADS};
    PlainTotal sum{};
    visit(0, stretches, team.id(), TOTAL_THREADS, sum, (const double*)sums);
    team.sum(sum.total);
    if (team.id() == 0) loss[0] = (float)(sum.total[0] / (double)n);
}

// The gradient of p, or with the other sign of y; `factor` is the derivative's constant over n.
template <typename ERROR> struct ErrorPull {
    const float* weight;
    const float* dloss;
    i64 width;
    i64 weights;
    float factor;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&p)[W], const float (&y)[W]) {
        float scale = mul(factor, dloss[0]), s = scale;
        auto enter = [&](i64 row) { s = weight ? mul(weight[modulo(row, weights)], scale) : scale; };
        by_row<W>(at, width, enter, [&](int i) { v[i] = ERROR::pull(s, p[i] - y[i]); });
    }
};

// The gradient of a weight: the sum of its errors, times dloss / n.
struct WeightGradient {
    float* dweight;
    double* sums;
    const float* dloss;
    i64 n;
    int add;
    DEVICE void operator()(i64 at, double sum) const {
        if (dweight) {
            put(dweight + at, (float)(sum * ((double)dloss[0] / (double)n)), add);
        } else {
            sums[at] = sum;
        }
    }
};
