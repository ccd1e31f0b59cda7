// attention, small: heads of short sequences and windows on Hopper, whole in shared memory, read once while earlier ones are multiplied.
// Forward, and all gradients at once
// axes      q, y, dq, dy [B, Nq, H, d]; k, v, dk, dv [B, Nk, H / group, d]: a token's rows are `row` numbers apart, all multiples of 16
//           bytes; bias [H, Nq, Nk]; lse [B, H, Nq]; lengths [B]; partial [blocks, teams, TOKENS * TOKENS] in the order of accumulators
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D in {32, 64}, TOKENS in {64, 144}: d is a multiple of 8, at most D, and
//           Nq, Nk are at most TOKENS; backward has groups of one head
// launch    one block a multiprocessor: four warps copy heads number block, block + step, .. into a ring of `stages`; three warpgroups
//           multiply forward, two or three backward; with a bias `step` is a multiple of H, so that a block has one head of all samples
// boxes     sequences, and windows of TOKENS tokens that lie in one piece but for their planes, come and go by tensor maps {numbers, heads,
//           columns, rows, planes}, `boxes` of them a head; windows that the end of a grid cuts, and lengths, token by token
// backward  of three slabs the first warpgroup has the first and the last, the second the middle one and all columns (dk, dv): those of
//           the first 128 queries while the last slab is computed
// paths     a bias lies in shared memory forward; backward reads it, and y, and takes 48 keys at a time, so that its gradient has registers
// matrix    HGMMA on sm_90a for bf16 and f16
// traffic   fwd q, k, v, y once: 8 d bytes a token and head, [2048, 144, 8, 64] is 1.21 GB, 0.284 ms at 4.26 TB/s; bwd q, k, v, dy, dq, dk,
//           dv once: 14 d bytes, 0.50 ms; what it needs of y is the sum of dy * y, which is that of p * dp
// ladder    measured on an H200, 2026-11-22, beside cuDNN in the same run, [2048, 144, 8, 64] forward and backward:
//           copied by 16 bytes, columns after all slabs, one for each warpgroup                0.40 ms x2.2    1.03 ms x2.4
//           columns by the second warpgroup. Predicted 0.8 ms: the first no longer waits                       0.93 ms x2.9
//           and operands by boxes. Predicted 0.34 and 0.75 ms: no copies in the way of stores  0.36 ms x2.5    0.90 ms x3.1
//           and results by boxes. Predicted 0.70 ms: a store of columns took 2,300 clocks                      0.80 ms x3.4
//           the last slab goes round the warps. Predicted 0.33 ms: one scheduler had 3 of 9    0.34 ms x2.65
//           not kept: logarithms of the next head ahead, backward 0.80 -> 0.84 ms; 256-byte sectors of the cache, no gain
// left      copies alone, without products, take 0.30 and 0.48 ms. With a bias 0.43 ms, 3.2 times cuDNN's speed, and 2.1 ms, 1.6 times;
//           128 tokens of 64 forward 0.95 of cuDNN, of 48 1.09, 100 tokens 1.08
// order     keys in one piece; dbias samples ascending, then blocks: same input, same bits; no atomics
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithms 1 and 4; Liu et al. 2021, section 3.2, for shifted windows

#ifndef D
#define D 64
#endif
#ifndef TOKENS
#define TOKENS 144
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif

#include "common/heads.cuh"

constexpr int FWD_GROUPS = 3, FWD_THREADS = 128 * (FWD_GROUPS + 1);
static_assert(SLABS <= FWD_GROUPS);
// Backward: warpgroups that share a head, and all that multiply; keys of a slab at a time: where that is not all of them, the sum of
// dy * y must be known before.
constexpr int TEAM = SLABS > 1 ? 2 : 1, BWD_GROUPS = TEAM == 2 || HAS_BIAS ? 2 : 3, BWD_THREADS = 128 * (BWD_GROUPS + 1);
constexpr int CHUNK = HAS_BIAS && TOKENS > 64 ? 48 : TOKENS;
constexpr bool READS_Y = CHUNK < TOKENS;
constexpr int SQUARE = TOKENS * TOKENS * 2;  // bytes of a head's probabilities
constexpr float LOG2_E = 1.442695041f, LOG_2 = 0.693147181f;

// A bias's numbers in the order in which threads need them: of 16 rows and 8 columns a lane's four lie side by side.
DEVICE void lay_bias(float* to, const f32* bias, int nq, int nk) {
    for (int at = thread(); at < TOKENS * TOKENS; at += FWD_THREADS) {
        int r = at / TOKENS, c = at - r * TOKENS, l = r % 8 * 4 + c % 8 / 2;
        to[((r / 16 * (TOKENS / 8) + c / 8) * 32 + l) * 4 + r / 8 % 2 * 2 + c % 2] = r < nq && c < nk ? bias[r * nk + c] * LOG2_E : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(FWD_THREADS, 1)
    attention_small_fwd(T* y, f32* lse, const T* q, const T* k, const T* v, const f32* bias, const int* lengths, i64 q_at, i64 k_at,
                        i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 q_tokens, i64 k_tokens, int nq, int nk, int heads, int group,
                        int d, float scale, int all, int step, int stages, Windows windows, int boxes,
                        const __grid_constant__ TensorMap y_box, const __grid_constant__ TensorMap q_box,
                        const __grid_constant__ TensorMap k_box, const __grid_constant__ TensorMap v_box) {
    extern __shared__ __align__(1024) unsigned char memory[];
    float* biases = (float*)(memory + stages * 3 * PANEL);
    Shared& s = *(Shared*)(biases + (bias ? TOKENS * TOKENS : 0));
    begin<3>(s, {{q + q_at, q_row, false}, {k + k_at, k_row, true}, {v + v_at, v_row, true}}, stages == 2 ? 2 : 1, 4 * FWD_GROUPS);
    if (bias) lay_bias(biases, bias + (i64)(block_x() % heads) * nq * nk, nq, nk);
    block_sync();
    Problem p{nq, nk, heads, group, d, all, step, stages, boxes, q_tokens, k_tokens, lengths, windows};
    if (warp_id() < 4) {
        registers_down<80>();
        const Boxes<3> of{{&q_box, &k_box, &v_box}};
        if (stages == 2) copy_heads<3, 2>(s, memory, p, of);
        else copy_heads<3, 1>(s, memory, p, of);
        return;
    }
    // Rows of a sequence leave as a box, through the place of its queries, which is free when they have left.
    const bool is_sent = boxes > 0 && !windows.are_there();
    int leaving = -1;
    registers_up<144>();
    const float factor = scale * LOG2_E;
    int turn = warp_id() / 4 - 1, stage = 0;
    u32 parity = 0;
#pragma unroll 1
    for (int i = 0, n = block_x(); n < all; ++i, n += step) {
        const unsigned char* at = memory + stage * 3 * PANEL;
        s.full[stage].wait(parity);
        if (turn < SLABS && turn * 64 < nq) {
            float x[SCORES], o[D / 2];
            u32 weight[STEPS][4];
            const Slab slab(turn, nq, i);
            issue_scores(x, along_d(at, slab.first), along_d(at + PANEL, 0));
            if (leaving >= 0) let_go(s, leaving);
            leaving = -1;
            Held held = s.held[stage];
            Rows rows(s, p, stage, slab);
            float top[2] = {0.0f, 0.0f}, total[2] = {0.0f, 0.0f};
            wgmma_wait<0>();
            pin(x);
            const bool is_idle = slab.is_idle;
            if (!is_idle) {
                float slope = factor;
                if (bias) {
                    const float4* b = (const float4*)biases + slab.tile() * (TOKENS / 8) * 32 + lane();
#pragma unroll
                    for (int j = 0; j < TOKENS / 8; ++j) {
                        float4 four = b[j * 32];
                        x[4 * j] = fmaf(x[4 * j], factor, four.x), x[4 * j + 1] = fmaf(x[4 * j + 1], factor, four.y);
                        x[4 * j + 2] = fmaf(x[4 * j + 2], factor, four.z), x[4 * j + 3] = fmaf(x[4 * j + 3], factor, four.w);
                    }
                    slope = 1.0f;
                }
                hide(x, 0, rows, s.seats(stage), held, -infinity());
                // Several chains a row: one alone would wait for itself.
                float most[2][2];
#pragma unroll
                for (int j = 0; j < TOKENS / 8; ++j)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        float pair = fmaxf(x[4 * j + 2 * h], x[4 * j + 2 * h + 1]);
                        most[h][j % 2] = j < 2 ? pair : fmaxf(most[h][j % 2], pair);
                    }
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float m = fmaxf(most[h][0], most[h][1]);
                    m = fmaxf(m, lane_xor(m, 1)), m = fmaxf(m, lane_xor(m, 2));
                    // Of a row that sees nothing all probabilities are 0.
                    top[h] = m == -infinity() ? 0.0f : m * slope;
                }
                float part[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
                for (int i = 0; i < SCORES; ++i) {
                    x[i] = exp2_small(fmaf(x[i], slope, -top[i / 2 % 2]));
                    part[i / 2 % 2][i % 2] += x[i];
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) total[h] = part[h][0] + part[h][1];
            }
#pragma unroll
            for (int i = 0; i < SCORES / 2; ++i) weight[i / 4][i % 4] = narrow_pair<T>(x[2 * i], x[2 * i + 1]);
            issue_sums(o, weight, along_tokens(at + 2 * PANEL));
            float share[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float sum = quad_sum(total[h]);
                share[h] = divide(1.0f, sum == 0.0f ? 1.0f : sum);
                float log = sum == 0.0f ? -infinity() : fmaf(top[h], LOG_2, log_f32(sum));
                if (lane() % 4 == 0 && rows.token[h] >= 0) lse[((i64)held.sample * heads + held.head) * q_tokens + rows.token[h]] = log;
            }
            wgmma_wait<0>();
            pin(o);
            __syncwarp();
            if (is_sent && !is_idle) {
                const int row = slab.row();
                unsigned char* rows_at = memory + stage * 3 * PANEL + row * SPAN;
                keep_rows(rows_at, o, share[0], share[1]);
                proxy_fence();
                __syncwarp();
                if (lane() == 0) store_box(y_box, rows_at, 0, held.head, row, 0, held.sample), store_commit();
                leaving = stage;
            } else {
                if (lane() == 0) s.empty[stage].arrive();
                T* to = y + ((i64)held.sample * q_tokens * heads + held.head) * d;
                if (!is_idle) store_slab(to, (i64)heads * d, o, rows, share[0], share[1], d, 0);
            }
        } else {
            if (leaving >= 0) let_go(s, leaving);
            leaving = -1;
            if (lane() == 0) s.empty[stage].arrive();
        }
        turn = turn == 0 ? FWD_GROUPS - 1 : turn - 1;
        if (++stage == stages) stage = 0, parity ^= 1;
    }
    if (lane() == 0) store_wait_read<0>();
}

// ---- gradients ----

// Probabilities and the gradients of scores, queries by keys, lie in blocks of 8 by 8: so a slab of either side is whole.
DEVICE u64 along_queries(const unsigned char* square) { return matrix(square, TOKENS * 16, 128, Swizzle::NONE); }
constexpr int QUERY_STEP = 2 * TOKENS * 16 >> 4;
constexpr int PART = CHUNK / 2;  // numbers of a slab's chunk of keys that a thread has

// A lane's part of the address of 16 rows of a square, and 16 columns of these, as the operand that they are.
DEVICE u32 kept_at(const unsigned char* square, int tile) {
    return shared_address(square) + (2 * tile + lane() / 8 % 2) * TOKENS * 16 + lane() / 16 * 128 + lane() % 8 * 16;
}
DEVICE void keep(u32 at, int step, const u32 (&p)[4]) { store_matrices(at + step * 256, p[0], p[1], p[2], p[3]); }

// Issues dq of a slab out of the gradients of scores that are kept: no registers hold them, nor sums before.
DEVICE void issue_kept(float (&o)[D / 2], const unsigned char* square, int first, u64 others) {
    u64 rows = matrix(square + first * TOKENS * 2, 128, TOKENS * 16, Swizzle::NONE);
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) multiply<T, 0, 1>(o, rows + step * 16, others + step * TOKEN_STEP, step > 0);
    wgmma_commit();
}

// Where a gradient goes.
struct Result {
    T* to;
    i64 at, row;
    int add;
};

// Where the gradients of a slab's biases are summed: in the order of a thread's numbers, 16 rows after 16.
DEVICE float4* place_of(f32* partial, int sums, int tile) {
    return (float4*)(partial + (i64)sums * TOKENS * TOKENS) + tile * (TOKENS / 8) * 32 + lane();
}

// A thread's biases of keys from c0 on: what is not there counts as 0.
template <int R> DEVICE void load_bias(float (&b)[R], int c0, const f32* bias, const Rows& rows, int nq, int nk) {
    const f32* at = bias + rows.r[0] * nk + c0 + lane() % 4 * 2;
    const bool is_whole = nk % 2 == 0 && rows.r[0] / 16 * 16 + 16 <= nq && c0 + 2 * R <= nk;
    if (is_whole) {
#pragma unroll
        for (int i = 0; i < R; i += 2) {
            Pack<f32, 2> two = load_kept<f32, 2>(at + i / 2 % 2 * 8 * nk + i / 4 * 8);
            b[i] = two.get(0), b[i + 1] = two.get(1);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
        int r = rows.r[i / 2 % 2], c = c0 + i / 4 * 8 + lane() % 4 * 2 + i % 2;
        b[i] = r < nq && c < nk ? bias[r * nk + c] : 0.0f;
    }
}

// The sum of dy * y of a thread's two rows: four lanes share a row.
DEVICE void sum_products(float (&inner)[2], const T* y, i64 row, const unsigned char* dy, const Rows& rows, int d) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = 0.0f;
#pragma unroll
        for (int c = lane() % 4; c < PIECES; c += 4) {
            if (rows.token[h] < 0 || c * 8 >= d) continue;
            Pack<T, 8> a = load_once<T, 8>(y + rows.token[h] * row + c * 8), b = load_kept<T, 8>((const T*)(dy + piece_at(rows.r[h], c)));
#pragma unroll
            for (int n = 0; n < 8; ++n) sum = fmaf(a.get(n), b.get(n), sum);
        }
        inner[h] = quad_sum(sum);
    }
}

// Issues dk or dv of a head, numbers by keys: the sum over the queries of some steps of `rows`' numbers times `square`'s.
template <int FROM, int TO> DEVICE void issue_columns(float (&x)[SCORES], const unsigned char* rows, const unsigned char* square) {
    u64 a = matrix(rows, 0, 8 * SPAN, TURN), b = along_queries(square);
    pin(x);
    wgmma_fence();
#pragma unroll
    for (int step = FROM; step < TO; ++step) multiply<T, 1, 1>(x, a + step * TOKEN_STEP, b + step * QUERY_STEP, step > 0);
    wgmma_commit();
}

// Puts it into the place of rows that no product needs any more, keys by numbers.
DEVICE void keep_columns(unsigned char* to, const float (&x)[SCORES], float factor) {
    int w = warp_id() % 4, h = lane() / 8 % 2, j = lane() / 16;
    if (16 * w >= D) return;
#pragma unroll
    for (int g = 0; g < STEPS; ++g) {
        u32 word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) word[i] = narrow_pair<T>(x[8 * g + 2 * i] * factor, x[8 * g + 2 * i + 1] * factor);
        int key = 16 * g + 8 * j + lane() % 8;
        store_matrices_transposed(shared_address(to + piece_at(key, 2 * w + h)), word[0], word[1], word[2], word[3]);
    }
}

// From there into the tokens' rows. One warpgroup.
DEVICE void send_columns(const Result& result, const unsigned char* from, const Problem& p, const Held& held, const int* seats) {
    constexpr int AT_ONCE = 128 / PIECES, BATCH = 3;
    const int c = thread() % PIECES;
    const bool is_cut = p.windows.are_there();
    T* to = result.to + result.at + held.sample * p.k_tokens * result.row + held.head * p.d + c * 8;
#pragma unroll 1
    for (int r0 = thread() % 128 / PIECES; r0 < TOKENS; r0 += BATCH * AT_ONCE) {
        Pack<T, 8> pack[BATCH];
        int token[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            int r = r0 + u * AT_ONCE, there = r < TOKENS ? r : 0;
            token[u] = r >= p.nk || c * 8 >= p.d ? -1 : is_cut ? seats[there] : r;
            pack[u] = load_kept<T, 8>((const T*)(from + piece_at(there, c)));
        }
#pragma unroll
        for (int u = 0; u < BATCH; ++u) put_pack(to + (i64)(token[u] & TOKEN_MASK) * result.row, pack[u], token[u] >= 0, result.add);
    }
}

// Warpgroups of a team of two hand rows of squares over: the first has those of the first slab and the last, and goes on to the next
// head; the second has those between, and all columns. Rows of the first 128 queries, and the others, are there, and are free again.
constexpr int LOW_THERE = 1, HIGH_THERE = 2, LOW_FREE = 3, HIGH_FREE = 4;
constexpr int LOW = TEAM == 2 ? 8 : STEPS;  // steps of columns before the last slab
// With a bias registers do not hold both columns.
constexpr bool HOLDS_BOTH = TEAM == 1 || !HAS_BIAS;

extern "C" __global__ void __launch_bounds__(BWD_THREADS, 1)
    attention_small_bwd(T* dq, T* dk, T* dv, f32* partial, const T* q, const T* k, const T* v, const T* y, const T* dy,
                        const f32* bias, const f32* lse, const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row,
                        i64 q_tokens, i64 k_tokens, int nq, int nk, int heads, int d, float scale, int all, int step, int stages,
                        int add_q, int add_k, int add_v, Windows windows, int boxes, int is_sent,
                        const __grid_constant__ TensorMap dk_box, const __grid_constant__ TensorMap dv_box,
                        const __grid_constant__ TensorMap q_box, const __grid_constant__ TensorMap dy_box,
                        const __grid_constant__ TensorMap k_box, const __grid_constant__ TensorMap v_box) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& s = *(Shared*)(memory + stages * 4 * PANEL + BWD_GROUPS / TEAM * 2 * SQUARE);
    begin<4>(s, {{q + q_at, q_row, false}, {dy, (i64)heads * d, false}, {k + k_at, k_row, true}, {v + v_at, v_row, true}}, TEAM,
             4 * BWD_GROUPS);
    block_sync();
    Problem p{nq, nk, heads, 1, d, all, step, stages, boxes, q_tokens, k_tokens, lengths, windows};
    if (warp_id() < 4) {
        registers_down<BWD_GROUPS == 2 ? 72 : 80>();
        copy_heads<4, TEAM>(s, memory, p, Boxes<4>{{&q_box, &dy_box, &k_box, &v_box}});
        return;
    }
    registers_up<BWD_GROUPS == 2 ? 216 : 144>();
    const float factor = scale * LOG2_E;
    const int me = warp_id() / 4 - 1, member = TEAM == 1 ? 0 : me, team = TEAM == 1 ? me : 0, teams = BWD_GROUPS / TEAM;
    const int sums = (int)block_x() * teams + team;
    unsigned char* square = memory + stages * 4 * PANEL + team * 2 * SQUARE;
    float of_bias[HAS_BIAS ? SCORES : 1];
#pragma unroll
    for (int c = 0; HAS_BIAS && c < SCORES; ++c) of_bias[c] = 0.0f;
#pragma unroll 1
    for (int i = 0, n = block_x(); n < all; ++i, n += step) {
        int stage = i % stages;
        unsigned char* at = memory + stage * 4 * PANEL;
        s.full[stage].wait(i / stages % 2);
        if (i % teams != team) {
            if (lane() == 0) s.empty[stage].arrive();
            continue;
        }
        Held held = s.held[stage];
        float logs[2];
        auto load_logs = [&](int slab) {
            const f32* of_head = lse + ((i64)held.sample * heads + held.head) * q_tokens;
            Rows rows(s, p, stage, slab * 64 + warp_id() % 4 * 16);
#pragma unroll
            for (int h = 0; h < 2; ++h) logs[h] = rows.token[h] < 0 ? -infinity() : of_head[rows.token[h]];
        };
        load_logs(member);
#pragma unroll 1
        for (int slab = member; slab < SLABS && (slab < 2 || slab * 64 < nq); slab += TEAM) {
            float o[D / 2], inner[2] = {0.0f, 0.0f}, exponent[2];
            Rows rows(s, p, stage, slab * 64 + warp_id() % 4 * 16);
#pragma unroll
            for (int h = 0; h < 2; ++h) exponent[h] = logs[h] == -infinity() ? infinity() : logs[h] * LOG2_E;
            // Those of the next slab are on their way while this one is computed.
            if (slab + TEAM < SLABS) load_logs(slab + TEAM);
            const int tile = slab * 4 + warp_id() % 4;
            const bool is_idle = tile * 16 >= TOKENS;
            float4* sum = HAS_BIAS ? place_of(partial, sums, tile) : nullptr;
#pragma unroll
            for (int c0 = 0; c0 < TOKENS; c0 += CHUNK) {
                float x[PART], g[PART];
                u32 weight[CHUNK / 16][4];
                issue_scores(x, along_d(at, slab * 64), along_d(at + 2 * PANEL, c0));
                // With a bias registers do not hold it and both products.
                auto issue_slopes = [&] { issue_scores(g, along_d(at + PANEL, slab * 64), along_d(at + 3 * PANEL, c0)); };
                if (!HAS_BIAS) issue_slopes();
                if (c0 == 0) {
                    if (READS_Y) sum_products(inner, y + ((i64)held.sample * q_tokens * heads + held.head) * d, (i64)heads * d, at + PANEL, rows, d);
                }
                float biases[HAS_BIAS ? PART : 4];
                if (HAS_BIAS && !is_idle) load_bias(biases, c0, bias + (i64)held.head * nq * nk, rows, nq, nk);
                wgmma_wait<HAS_BIAS ? 0 : 1>();
                pin(x);
                // The columns of the head before have taken what lay there.
                if (TEAM == 2 && member == 0 && c0 == 0 && i > 0) named_sync(slab == 0 ? LOW_FREE : HIGH_FREE, 256);
                if (!is_idle) {
#pragma unroll
                    for (int c = 0; c < PART; ++c) {
                        float added = HAS_BIAS ? fmaf(biases[HAS_BIAS ? c : 0], LOG2_E, -exponent[c / 2 % 2]) : -exponent[c / 2 % 2];
                        x[c] = exp2_small(fmaf(x[c], factor, added));
                    }
                    hide(x, c0, rows, s.seats(stage), held, 0.0f);
                    u32 to = kept_at(square + SQUARE, tile);
#pragma unroll
                    for (int step = 0; step < CHUNK / 16; ++step) {
#pragma unroll
                        for (int t = 0; t < 4; ++t) weight[step][t] = narrow_pair<T>(x[8 * step + 2 * t], x[8 * step + 2 * t + 1]);
                        keep(to, c0 / 16 + step, weight[step]);
                    }
                }
                if (HAS_BIAS) issue_slopes();
                // What earlier heads left of the last slab's: where biases were, while the products are made.
                if (HAS_BIAS && slab != member && !is_idle) {
#pragma unroll
                    for (int j = 0; HAS_BIAS && j < PART / 4; ++j) {
                        float4 before = {0.0f, 0.0f, 0.0f, 0.0f};
                        if (i >= teams) before = sum[(c0 / 8 + j) * 32];
                        biases[HAS_BIAS ? 4 * j : 0] = before.x, biases[HAS_BIAS ? 4 * j + 1 : 0] = before.y;
                        biases[HAS_BIAS ? 4 * j + 2 : 0] = before.z, biases[HAS_BIAS ? 4 * j + 3 : 0] = before.w;
                    }
                }
                wgmma_wait<0>();
                pin(g);
                if (!is_idle) {
                    if (!READS_Y) {
                        // The sum of dy * y is that of p * dp.
#pragma unroll
                        for (int c = 0; c < PART; ++c) inner[c / 2 % 2] = fmaf(x[c], g[c], inner[c / 2 % 2]);
                        inner[0] = quad_sum(inner[0]), inner[1] = quad_sum(inner[1]);
                    }
                    u32 to = kept_at(square, tile);
                    // Of one key the probability is 1 whatever its score: the difference would only be rounding.
                    const float one = held.keys == 1 ? 0.0f : 1.0f;
#pragma unroll
                    for (int step = 0; step < CHUNK / 16; ++step) {
                        float ds[8];
#pragma unroll
                        for (int t = 0; t < 8; ++t) {
                            int c = 8 * step + t;
                            ds[t] = x[c] * (g[c] - inner[t / 2 % 2]) * one;
                        }
                        if (HAS_BIAS && slab == member) {
#pragma unroll
                            for (int t = 0; t < 8; ++t) of_bias[HAS_BIAS ? c0 / 2 + 8 * step + t : 0] += ds[t];
                        } else if (HAS_BIAS) {
#pragma unroll
                            for (int j = 0; j < 2; ++j) {
                                const float* before = biases + (HAS_BIAS ? 8 * step + 4 * j : 0);
                                sum[(c0 / 8 + 2 * step + j) * 32] = {before[0] + ds[4 * j], before[1] + ds[4 * j + 1],
                                                                     before[2] + ds[4 * j + 2], before[3] + ds[4 * j + 3]};
                            }
                        }
#pragma unroll
                        for (int t = 0; t < 4; ++t) weight[step][t] = narrow_pair<T>(ds[2 * t], ds[2 * t + 1]);
                        keep(to, c0 / 16 + step, weight[step]);
                    }
                }
                if (!HAS_BIAS) issue_sums(o, weight, along_tokens(at + 2 * PANEL + c0 * SPAN), c0 > 0);
            }
            proxy_fence();
            if (TEAM == 2 && member == 0) named_arrive(slab == 0 ? LOW_THERE : HIGH_THERE, 256);
            if (HAS_BIAS) {
                named_sync(5 + me, 128);
                issue_kept(o, square, slab * 64, along_tokens(at + 2 * PANEL));
            }
            wgmma_wait<0>();
            pin(o);
            if (dq && !is_idle) {
                T* to = dq + q_at + held.sample * q_tokens * q_row + held.head * d;
                store_slab(to, q_row, o, rows, scale, scale, d, add_q);
            }
        }
        if (TEAM == 2 && member == 0) {
            __syncwarp();
            if (lane() == 0) s.empty[stage].arrive();
            continue;
        }
        // All columns. Those of the first 128 queries while the other warpgroup has the last slab.
        const bool is_last = n + step >= all, has_high = SLABS > 2 && nq > 128;
        float x[SCORES];
        named_sync(TEAM == 2 ? LOW_THERE : 1 + team, 128 * TEAM);
        issue_columns<0, LOW>(x, at + PANEL, square + SQUARE);
        if constexpr (HOLDS_BOTH) {
            float z[SCORES];
            issue_columns<0, LOW>(z, at, square);
            wgmma_wait<0>();
            pin(x), pin(z);
            if (TEAM == 2 && !is_last) named_arrive(LOW_FREE, 256);
            if (TEAM == 2 && has_high) {
                named_sync(HIGH_THERE, 256);
                issue_columns<LOW, STEPS>(x, at + PANEL, square + SQUARE);
                issue_columns<LOW, STEPS>(z, at, square);
                wgmma_wait<0>();
                pin(x), pin(z);
                if (!is_last) named_arrive(HIGH_FREE, 256);
            }
            named_sync(5 + me, 128);
            keep_columns(at + PANEL, x, 1.0f);
            keep_columns(at, z, scale);
        } else {
            if (TEAM == 2 && has_high) {
                named_sync(HIGH_THERE, 256);
                issue_columns<LOW, STEPS>(x, at + PANEL, square + SQUARE);
            }
            wgmma_wait<0>();
            pin(x);
            named_sync(5 + me, 128);
            keep_columns(at + PANEL, x, 1.0f);
            issue_columns<0, LOW>(x, at, square);
            if (TEAM == 2 && has_high) issue_columns<LOW, STEPS>(x, at, square);
            wgmma_wait<0>();
            pin(x);
            if (TEAM == 2 && !is_last) {
                named_arrive(LOW_FREE, 256);
                if (has_high) named_arrive(HIGH_FREE, 256);
            }
            named_sync(5 + me, 128);
            keep_columns(at, x, scale);
        }
        Place place;
        int first[3] = {0, 0, 0};
        if (windows.are_there()) windows.corner(first, n / heads % windows.all());
        const bool is_box = is_sent && place.find(p, held.sample, first);
        proxy_fence();
        named_sync(5 + me, 128);
        if (is_box) {
            const int bytes = box_bytes(p);
            for (int b = 0; thread() % 128 == 0 && b < boxes; ++b) {
                if (dv) store_box(dv_box, at + PANEL + b * bytes, 0, held.head, place.w, place.h, place.plane_of(p, b));
                if (dk) store_box(dk_box, at + b * bytes, 0, held.head, place.w, place.h, place.plane_of(p, b));
            }
            store_commit();
            store_wait_read<0>();
        } else {
            Result of_v{dv, v_at, v_row, add_v}, of_k{dk, k_at, k_row, add_k};
            const int* seats = s.seats(stage);
            if (dv) send_columns(of_v, at + PANEL, p, held, seats);
            if (dk) send_columns(of_k, at, p, held, seats);
        }
        __syncwarp();
        if (lane() == 0) s.empty[stage].arrive();
    }
    int tile = member * 4 + warp_id() % 4;
    if (HAS_BIAS && tile * 16 < TOKENS) {
        float4* sum = place_of(partial, sums, tile);
#pragma unroll
        for (int j = 0; HAS_BIAS && j < TOKENS / 8; ++j) sum[j * 32] = {of_bias[4 * j], of_bias[4 * j + 1], of_bias[4 * j + 2], of_bias[4 * j + 3]};
    }
}

// dbias: the partial sums of a head's blocks, in their order.
extern "C" __global__ void __launch_bounds__(256)
    attention_small_bwd_dbias(f32* dbias, const f32* partial, int nq, int nk, int heads, int shares, int add) {
    int at = (int)block_x() * 256 + thread();
    if (at >= heads * nq * nk) return;
    constexpr int TEAMS = BWD_GROUPS / TEAM;
    int r = at / nk, c = at - r * nk, head = r / nq, lane_of = 0;
    r -= head * nq, lane_of = r % 8 * 4 + c % 8 / 2;
    const f32* from = partial + ((r / 16 * (TOKENS / 8) + c / 8) * 32 + lane_of) * 4 + r / 8 % 2 * 2 + c % 2;
    float sum = 0.0f;
    for (int b = 0; b < shares; ++b)
#pragma unroll
        for (int t = 0; t < TEAMS; ++t) sum += from[(i64)((b * heads + head) * TEAMS + t) * TOKENS * TOKENS];
    put(dbias + at, sum, add);
}
