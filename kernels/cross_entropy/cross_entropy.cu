// cross_entropy: loss = 1/m * sum over the m labelled rows of log(sum of exp(logits)) - logits[label]; dlogits = (softmax - one) * dloss / m.
// axes      logits, dlogits [rows, V]; labels [rows]; lse [rows] f32, 0 for ignored rows; loss, dloss, scale [1]
// types     logits, dlogits in T of {f32, bf16, f16}; labels int; exponentials in f32, the sums over rows in f64
// launch    fwd: a team a stretch of a row (common/totals.cuh) leaves its largest logit and its sum, a thread a row adds the stretches,
//           one block the rows; bwd: labels counted by blocks, then by one, then flat (common/elementwise.cuh)
// paths     16-byte packs wherever places allow them, whatever V is: rows need not begin at a pack
// traffic   fwd reads the logits of labelled rows once; bwd reads logits, writes dlogits, which it reads when adding
// order     fixed: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 64, gfx942 64; no spills
// labels    that are neither in 0 .. V nor `ignored` make the loss and their rows of dlogits NaN, and the first of them is in `fault`
// source    sums that move with the largest number: Milakov, Gimelshein 2018, section 3

#include "common/reduce.cuh"
#include "common/totals.cuh"

// Below every number, so that nothing is subtracted from an infinity.
constexpr float LOWEST = -3.402823466e38f;

// The largest number so far, and the sum of the exponentials of all, each minus the largest.
struct Online {
    float top = LOWEST;
    float sum = 0.0f;
    template <int W> DEVICE void operator()(i64, const float (&x)[W]) {
        float above = top;
#pragma unroll
        for (int i = 0; i < W; ++i) above = larger(above, x[i]);
        if (above > top) sum *= exp_of<T>(top - above), top = above;
#pragma unroll
        for (int i = 0; i < W; ++i) sum += exp_of<T>(x[i] - top);
    }
};

// Over the threads of each team: fewer than a warp, a warp, or the block.
DEVICE float team_max(const Team& team, float v, BlockScratch<TOTAL_THREADS>& scratch) {
    if (team.lanes > WARP) return block_max(v, scratch);
    for (int m = team.lanes / 2; m > 0; m /= 2) v = larger(v, lane_xor(v, m));
    return v;
}
DEVICE float team_sum(const Team& team, float v, BlockScratch<TOTAL_THREADS>& scratch) {
    if (team.lanes > WARP) return block_sum(v, scratch);
    for (int m = team.lanes / 2; m > 0; m /= 2) v += lane_xor(v, m);
    return v;
}

// The largest and the sum of a stretch of a row; rows without a label are not read.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) cross_entropy_fwd_stretches(
    float* tops, float* sums, const T* logits, const int* labels, i64 rows, i64 v, i64 stretch, i64 stretches, int lanes, int ignored) {
    follow();
    __shared__ BlockScratch<TOTAL_THREADS> scratch;
    Team team{lanes};
    i64 item = team.item();
    Stretch s = stretch_of(item, rows, v, stretch, stretches);
    if (s.row < rows && labels[s.row] == ignored) s.end = s.begin;
    Online online;
    visit(s.begin, s.end, team.id(), lanes, online, logits);
    float top = team_max(team, online.top, scratch);
    float sum = team_sum(team, online.sum * exp_f32(online.top - top), scratch);
    if (team.id() == 0 && s.row < rows) tops[item] = top, sums[item] = sum;
}

// The log-sum-exp of every row, and of the rows of a block the sum of their losses, how many have a label, and how many a wrong one.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) cross_entropy_fwd_rows(
    float* lse, int* known, const float* tops, const float* sums, const T* logits, const int* labels, i64 rows, i64 v, i64 stretches,
    int ignored) {
    follow();
    i64 row = (i64)block_x() * TOTAL_THREADS + thread();
    double part[3] = {0.0, 0.0, 0.0};
    if (row < rows) {
        int label = labels[row];
        bool is_labelled = label != ignored, is_wrong = is_labelled && (label < 0 || label >= v);
        float all = is_wrong ? float_of(0x7fc00000u) : 0.0f;
        double loss = (double)all;
        if (is_labelled && !is_wrong) {
            float top = LOWEST, sum = 0.0f;
            for (i64 k = row * stretches; k < (row + 1) * stretches; ++k) top = larger(top, tops[k]);
            for (i64 k = row * stretches; k < (row + 1) * stretches; ++k) sum += mul(sums[k], exp_f32(tops[k] - top));
            // A row of nothing but -infinity has no softmax.
            float log_sum = sum == 0.0f ? float_of(0x7fc00000u) : log_f32(sum);
            all = top + log_sum;
            loss = (double)log_sum + ((double)top - (double)widen(logits[row * v + label]));
        }
        lse[row] = all;
        part[0] = loss, part[1] = is_labelled ? 1.0 : 0.0, part[2] = is_wrong ? 1.0 : 0.0;
    }
    Team{TOTAL_THREADS}.sum(part);
    double* to = (double*)known + (i64)block_x() * 3;
    if (thread() == 0) to[0] = part[0], to[1] = part[1], to[2] = part[2];
}

// One block: the loss. The first wrong label is told: `site`, its row in two ints, itself. An earlier fault stays until it is read.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) cross_entropy_fwd(
    float* loss, int* fault, const int* known, const int* labels, i64 blocks, i64 v, int ignored, int site) {
    follow();
    double part[3] = {0.0, 0.0, 0.0};
    for (i64 k = thread(); k < blocks; k += TOTAL_THREADS) {
#pragma unroll
        for (int i = 0; i < 3; ++i) part[i] += ((const double*)known)[k * 3 + i];
    }
    Team{TOTAL_THREADS}.sum(part);
    if (thread() > 0) return;
    loss[0] = (float)(part[0] / part[1]);
    if (part[2] == 0.0 || fault[0] != 0) return;
    i64 row = 0;
    // There is one, so this ends.
    while (labels[row] == ignored || (labels[row] >= 0 && labels[row] < v)) ++row;
    fault[0] = site, fault[1] = (int)row, fault[2] = (int)(row >> 32), fault[3] = labels[row];
}

constexpr int COUNTED_ROWS = 16 * TOTAL_THREADS;

// The labels of the rows [begin, end) that are not ignored, over the threads of the block.
DEVICE double labelled_rows(const int* labels, i64 begin, i64 end, int ignored) {
    double count[1] = {0.0};
    int mine = 0;
#pragma unroll 8
    for (i64 row = begin + thread(); row < end; row += TOTAL_THREADS) mine += labels[row] != ignored ? 1 : 0;
    count[0] = (double)mine;
    Team{TOTAL_THREADS}.sum(count);
    return count[0];
}

// The same of COUNTED_ROWS rows a block.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS)
    cross_entropy_bwd_labelled(int* labelled, const int* labels, i64 rows, int ignored) {
    follow();
    i64 begin = (i64)block_x() * COUNTED_ROWS;
    double count = labelled_rows(labels, begin, least(rows, begin + COUNTED_ROWS), ignored);
    if (thread() == 0) ((double*)labelled)[block_x()] = count;
}

// One block: dloss over the number of labelled rows, which `blocks` blocks have counted, or, without them, this one counts.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) cross_entropy_bwd_scale(
    float* scale, const int* labelled, const int* labels, const float* dloss, i64 blocks, i64 rows, int ignored) {
    follow();
    PlainTotal count{};
    if (labelled) {
        visit(0, blocks, thread(), TOTAL_THREADS, count, (const double*)labelled);
        Team{TOTAL_THREADS}.sum(count.total);
    } else {
        count.total[0] = labelled_rows(labels, 0, rows, ignored);
    }
    if (thread() == 0) scale[0] = divide(dloss[0], (float)count.total[0]);
}

struct Gradient {
    const int* labels;
    const float* lse;
    const float* scale;
    i64 v;
    int ignored;
    template <int W> DEVICE void operator()(i64 at, float (&d)[W], const float (&x)[W]) {
        float all = 0.0f, s = scale[0];
        bool is_labelled = false;
        i64 one_at = 0;
        auto enter = [&](i64 row) {
            int label = labels[row];
            is_labelled = label != ignored;
            one_at = row * v + label - at;
            all = lse[row];
        };
        // Whatever an ignored row holds, its gradient is 0.
        by_row<W>(at, v, enter, [&](int i) { d[i] = is_labelled ? mul(exp_of<T>(x[i] - all) - (i == one_at ? 1.0f : 0.0f), s) : 0.0f; });
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) cross_entropy_bwd_dlogits(
    T* dlogits, const T* logits, const int* labels, const float* lse, const float* scale, i64 n, i64 v, int ignored, int add_dlogits) {
    follow();
    map_packs(true, dlogits, add_dlogits, n, Gradient{labels, lse, scale, v, ignored}, logits);
}
