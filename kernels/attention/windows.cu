// attention, windows of any size, head size and type: a warp a token, which reads what its window holds. short.cu is the fast way.
// axes      q, y, dq, dy [B, N, H, d]; k, v, dk, dv [B, N, H / group, d]: a token's rows are `row` numbers apart; bias [H, n, n] of the n
//           places of a window; lse, top, inverse, inner [B, H, N]
// types     T in {f32, bf16, f16}; scores, sums, bias in f32
// launch    a warp a token of a head, 128 threads; bwd_dbias a warp a number of the bias; no shared memory; any d up to 512
// paths     one: single numbers, neighbouring lanes for neighbours
// traffic   a token reads k and v of its window two times forward, three times for dq; out of the caches, for the most part
// order     places ascending, samples and windows ascending: same input, same bits
// budget    sm_80 96 registers, sm_90a 96, gfx90a 96, gfx942 96; no spills
// source    Liu et al. 2021, section 3.2, for shifted windows

#include "common/math.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/windows.cuh"

constexpr int THREADS = 128, MOST = 512 / WARP;

DEVICE float dot(const T* a, const T* b, int d) {
    float sum = 0.0f;
    for (int c = lane(); c < d; c += WARP) sum = fmaf(widen(a[c]), widen(b[c]), sum);
    return warp_sum(sum);
}

// Numbers lane, lane + WARP, .. of a row.
struct Row {
    float v[MOST];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < MOST; ++i) v[i] = 0.0f;
    }
    DEVICE void add(float weight, const T* x, int d) {
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            if (lane() + i * WARP < d) v[i] = fmaf(weight, widen(x[lane() + i * WARP]), v[i]);
    }
    DEVICE void put_to(T* to, float factor, int d, int add_to) const {
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            if (lane() + i * WARP < d) put(to + lane() + i * WARP, v[i] * factor, add_to);
    }
};

// Where q, k, v lie.
struct Layout {
    i64 q_at, k_at, v_at, q_row, k_row, v_row;
    int nq, heads, group, d;
    float scale;
};

// A head of a sample.
struct Head {
    const Layout& at;
    const Windows& windows;
    i64 sample, head;
    const f32* bias;

    DEVICE i64 row(int token) const { return (sample * at.heads + head) * at.nq + token; }
    DEVICE i64 q(int i) const { return at.q_at + (sample * at.nq + i) * at.q_row + head * at.d; }
    DEVICE i64 k(int j) const { return at.k_at + (sample * at.nq + j) * at.k_row + head / at.group * at.d; }
    DEVICE i64 v(int j) const { return at.v_at + (sample * at.nq + j) * at.v_row + head / at.group * at.d; }
    DEVICE i64 y(int i) const { return ((sample * at.nq + i) * at.heads + head) * at.d; }

    // The score of tokens i and j at places p and r.
    DEVICE float score(const T* qs, const T* ks, int i, int j, int p, int r) const {
        float s = dot(qs + q(i), ks + k(j), at.d) * at.scale;
        return bias ? s + bias[(head * windows.places() + p) * windows.places() + r] : s;
    }
    // Calls f(token, place) for what a token in this region of this window sees.
    template <typename F> DEVICE void each_seen(int window, int region, F f) const {
        for (int r = 0; r < windows.places(); ++r) {
            int of, j = windows.token(window, r, of);
            if (j >= 0 && of == region) f(j, r);
        }
    }
};

DEVICE Head head_of(const Layout& at, const Windows& windows, i64 number, int heads, const f32* bias) {
    i64 sample = quotient(number, heads);
    return {at, windows, sample, number - sample * heads, bias};
}

DEVICE float renewed(float top, float s) { return s > top || is_nan(s) ? s : top; }
DEVICE float finite_or_0(float top) { return top == -infinity() ? 0.0f : top; }

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_windows_fwd(T* y, f32* lse, const T* q, const T* k, const T* v, const f32* bias, i64 q_at, i64 k_at, i64 v_at, i64 q_row,
                          i64 k_row, i64 v_row, i64 rows, int nq, int heads, int group, int d, float scale, Windows windows) {
    i64 number = (i64)block_x() * (THREADS / WARP) + warp_id();
    if (number >= rows) return;
    i64 outer = quotient(number, nq);
    int i = (int)(number - outer * nq), window, p, region;
    Layout at{q_at, k_at, v_at, q_row, k_row, v_row, nq, heads, group, d, scale};
    Head h = head_of(at, windows, outer, heads, bias);
    windows.find(i, window, p, region);
    float top = -infinity(), total = 0.0f;
    h.each_seen(window, region, [&](int j, int r) { top = renewed(top, h.score(q, k, i, j, p, r)); });
    top = finite_or_0(top);
    Row sum;
    sum.clear();
    h.each_seen(window, region, [&](int j, int r) {
        float e = exp_f32(h.score(q, k, i, j, p, r) - top);
        total += e;
        sum.add(e, v + h.v(j), d);
    });
    sum.put_to(y + h.y(i), divide(1.0f, total == 0.0f ? 1.0f : total), d, 0);
    if (lane() == 0) lse[number] = top + log_f32(total);
}

// dq; and what the gradients of keys, values and bias need of every query: the greatest score, 1 / the sum of its powers, the sum of
// p * dp.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_windows_bwd_dq(T* dq, f32* top_of, f32* inverse_of, f32* inner_of, const T* q, const T* k, const T* v, const T* dy,
                             const f32* bias, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 rows, int nq,
                             int heads, int group, int d, float scale, Windows windows, int add_dq) {
    i64 number = (i64)block_x() * (THREADS / WARP) + warp_id();
    if (number >= rows) return;
    i64 outer = quotient(number, nq);
    int i = (int)(number - outer * nq), window, p, region;
    Layout at{q_at, k_at, v_at, q_row, k_row, v_row, nq, heads, group, d, scale};
    Head h = head_of(at, windows, outer, heads, bias);
    windows.find(i, window, p, region);
    float top = -infinity(), total = 0.0f, inner = 0.0f;
    h.each_seen(window, region, [&](int j, int r) { top = renewed(top, h.score(q, k, i, j, p, r)); });
    top = finite_or_0(top);
    h.each_seen(window, region, [&](int j, int r) {
        float e = exp_f32(h.score(q, k, i, j, p, r) - top);
        total += e;
        inner = fmaf(e, dot(dy + h.y(i), v + h.v(j), d), inner);
    });
    float inverse = total == 0.0f ? 1.0f : divide(1.0f, total);
    inner *= inverse;
    if (lane() == 0) top_of[number] = top, inverse_of[number] = inverse, inner_of[number] = inner;
    if (!dq) return;
    Row sum;
    sum.clear();
    h.each_seen(window, region, [&](int j, int r) {
        float weight = exp_f32(h.score(q, k, i, j, p, r) - top) * inverse;
        sum.add(weight * (dot(dy + h.y(i), v + h.v(j), d) - inner), k + h.k(j), d);
    });
    sum.put_to(dq + h.q(i), scale, d, add_dq);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_windows_bwd_dkv(T* dk, T* dv, const f32* top_of, const f32* inverse_of, const f32* inner_of, const T* q, const T* k,
                              const T* v, const T* dy, const f32* bias, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row,
                              i64 rows, int nq, int heads, int group, int d, float scale, Windows windows, int add_dk, int add_dv) {
    i64 number = (i64)block_x() * (THREADS / WARP) + warp_id();
    if (number >= rows) return;
    i64 outer = quotient(number, nq);
    int j = (int)(number - outer * nq), window, r, region;
    Layout at{q_at, k_at, v_at, q_row, k_row, v_row, nq, heads, group, d, scale};
    Head h = head_of(at, windows, outer, heads / group, bias);
    h.head *= group;
    windows.find(j, window, r, region);
    Row of_key, of_value;
    of_key.clear(), of_value.clear();
    for (int n = 0; n < group; ++n, ++h.head) {
        h.each_seen(window, region, [&](int i, int p) {
            i64 row = h.row(i);
            float weight = exp_f32(h.score(q, k, i, j, p, r) - top_of[row]) * inverse_of[row];
            of_key.add(weight * (dot(dy + h.y(i), v + h.v(j), d) - inner_of[row]), q + h.q(i), d);
            of_value.add(weight, dy + h.y(i), d);
        });
    }
    --h.head;
    if (dk) of_key.put_to(dk + h.k(j), scale, d, add_dk);
    if (dv) of_value.put_to(dv + h.v(j), 1.0f, d, add_dv);
}

// dbias: a warp a number, over samples and windows.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_windows_bwd_dbias(f32* dbias, const f32* top_of, const f32* inverse_of, const f32* inner_of, const T* q, const T* k,
                                const T* v, const T* dy, const f32* bias, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row,
                                i64 samples, int nq, int heads, int group, int d, float scale, Windows windows, int add_dbias) {
    i64 number = (i64)block_x() * (THREADS / WARP) + warp_id(), places = windows.places();
    i64 rest = quotient(number, places), head = quotient(rest, places);
    int r = (int)(number - rest * places), p = (int)(rest - head * places);
    if (head >= heads) return;
    Layout at{q_at, k_at, v_at, q_row, k_row, v_row, nq, heads, group, d, scale};
    float sum = 0.0f;
    for (i64 sample = 0; sample < samples; ++sample) {
        Head h{at, windows, sample, head, bias};
        for (int window = 0; window < windows.all(); ++window) {
            int of_query, of_key, i = windows.token(window, p, of_query), j = windows.token(window, r, of_key);
            if (i < 0 || j < 0 || of_query != of_key) continue;
            i64 row = h.row(i);
            float weight = exp_f32(h.score(q, k, i, j, p, r) - top_of[row]) * inverse_of[row];
            sum = fmaf(weight, dot(dy + h.y(i), v + h.v(j), d) - inner_of[row], sum);
        }
    }
    if (lane() == 0) put(dbias + number, sum, add_dbias);
}
