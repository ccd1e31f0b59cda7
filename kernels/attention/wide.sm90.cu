// attention: the backward kernels of Hopper for 16-bit types and heads of more than 128 numbers.
// axes      as backward.sm90.cu; turns has two for each tile of queries
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D a multiple of 8 from 136 to 256, not padded to a power of two
// launch    bwd: as many blocks as multiprocessors; each takes 64 keys of a head after 64 keys and walks all queries that see them: a
//           warp takes work, one copies, two add dq's sums to memory, two warpgroups multiply. Registers hold one sum of 64 keys by D a warpgroup, so the first makes the scores, their
//           probabilities and dv, the second the gradients of both and dk; the probabilities pass through shared memory in the order of
//           accumulators, and each makes half of the columns of dq, a panel at a time. No product is made twice
// paths     masks and marked tiles as in backward.sm90.cu
// matrix    HGMMA on sm_90a for bf16 and f16
// traffic   k, v, dk, dv once; q and dy once, dq's sums in f32 twice for 64 keys
// floor     five products of 64 by 64 by D a step: 10 D clocks of the matrix units. Shared memory moves 3.7 KB a D: 14.5 D clocks
// order     as backward.sm90.cu: keys ascending for dq, tiles descending for dk and dv: same input, same bits
// waiting   as there
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithm 4; Shah et al. 2024, section 3

#include "common/backward.cuh"

constexpr int SHARES = 2;                        // of dq's columns: panels 0 and 1, and those behind them
constexpr int COPIER_REGISTERS = D <= 192 ? 40 : 24, REGISTERS = D <= 192 ? 232 : 240;

struct Shared {
    static constexpr int STAGES = 2, DY_STAGES = 1;
    unsigned char k[PANELS * KEY_PANEL];
    unsigned char v[PANELS * KEY_PANEL];
    unsigned char q[STAGES][PANELS * QUERY_PANEL];
    unsigned char dy[DY_STAGES][PANELS * QUERY_PANEL];
    unsigned char ds[DS_BYTES];  // a row for each key
    alignas(128) float sums[SHARES][QUERIES * 64];
    alignas(16) float4 probability[QUERIES / 8][128];
    alignas(16) float exponent[STAGES][QUERIES];
    alignas(16) float inner[DY_STAGES][QUERIES];
    Barrier k_full, v_full, k_empty, v_empty, q_full[STAGES], q_empty[STAGES], dy_full[DY_STAGES], dy_empty[DY_STAGES];
    Barrier sums_full[SHARES], sums_empty[SHARES];
    Barrier work_full[2], work_empty[2], work_wanted;
    Work work[2];
    Clear clear[2];  // here, because registers are short
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

// Named barriers: probabilities are there; the gradients of scores are, for the other warpgroup and for the own one; votes.
enum { PROBABILITIES = 1, SLOPES = 2, OWN_SLOPES = 3, VOTE = 4 };

// Adds a share of dq of every step to its sum in memory, a panel at a time, when the blocks of keys that take the tile before this one
// have. The first sets. One thread for each share.
template <int SHARE> DEVICE void add(Shared& s, const Problem& of, f32* sums, int* turns) {
    constexpr int FIRST = 2 * SHARE, END = SHARE == 0 ? 2 : PANELS;
    // Twice the number of works, and the parity of the next panel: registers are short.
    for (u32 state = 0;; state += 2) {
        s.work_full[state / 2 % 2].wait(state / 4 % 2);
        const Work& work = s.work[state / 2 % 2];
        if (work.steps < 0) return;
        each_step(of, work, [&](int head, int tile) {
            int place = (work.sample * of.heads + head) * of.tiles() + tile;
            int turn = work.block - of.seen(work).first(tile * QUERIES) / KEYS, *at = turns + place * TURNS + SHARE;
            while (load_acquired(at) != turn) {}
            global_proxy_fence();
            for (int p = FIRST; p < END; ++p) {
                int bytes = QUERIES * 4 * (p + 1 < PANELS ? 64 : D - 64 * p);
                f32* to = sums + (i64)place * SUM_COUNT + p * QUERIES * 64;
                s.sums_full[SHARE].wait(state % 2);
                state ^= 1;
                if (turn == 0) store_bytes(to, s.sums[SHARE], bytes);
                else add_floats(to, s.sums[SHARE], bytes);
                store_commit();
                store_wait_read<0>();
                s.sums_empty[SHARE].arrive();
            }
            store_wait<0>();
            global_proxy_fence();
            store_released(at, turn + 1);
        });
        s.work_empty[state / 2 % 2].arrive();
    }
}

// A panel of dq of the `step`-th step to where it is added from. What was issued before is finished afterwards.
template <int PANEL> DEVICE void weigh_panel(Shared& s, int step) {
    constexpr int SHARE = PANEL / 2, OF_STEP = SHARE == 0 ? 2 : PANELS - 2;
    constexpr int COLUMNS = PANEL + 1 < PANELS ? 64 : D - 64 * PANEL;
    float dq[COLUMNS / 2];
    issue_dq(dq, low_n(s.ds, KEY_PANEL), low_n(s.k + PANEL * KEY_PANEL, KEY_PANEL));
    wgmma_wait<0>();
    pin(dq);
    s.sums_empty[SHARE].wait((step * OF_STEP + PANEL % 2) % 2 ^ 1);
    float4* sums = (float4*)s.sums[SHARE] + thread() % 128;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) sums[j * 128] = {dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]};
    proxy_fence();
    s.sums_full[SHARE].arrive();
}

// Where a warpgroup stands: which step, and which queries of which head.
struct Place {
    int left, count, i0, head;

    // `count` is the number of steps of earlier work.
    DEVICE Place(const Problem& of, const Work& work, int count)
        : left(work.steps * of.group), count(count), i0(work.highest() * QUERIES), head(work.kv_head * of.group) {}
    DEVICE void next(const Work& work) {
        ++count, --left, i0 -= QUERIES;
        if (i0 < work.lowest * QUERIES) i0 = work.highest() * QUERIES, ++head;
    }
};

// The first warpgroup: probabilities, dv, and the first panels of dq.
DEVICE void weigh_values(Shared& s, const Problem& of, int ring, int& count, float (&dv)[D / 2], const f32* bias, float factor) {
    constexpr int STAGES = Shared::STAGES;
    const Work& work = s.work[ring];
    float x[QUERIES / 2];
    u32 weight[QUERIES / 16][4];
    Kept kept;
    Place at(of, work, count);
    u32 keys = low_k(s.k);
    s.q_full[count % STAGES].wait(count / STAGES % 2);
    issue_scores(x, keys, low_k(s.q[count % STAGES]));
#pragma unroll 1
    while (at.left > 0) {
        int stage = at.count % STAGES;
        if (HAS_DROPOUT) kept.draw(of.dropping, work.sample * of.heads + at.head, of.nq, at.i0, work.block * KEYS + warp_id() % 4 * 16);
        wgmma_wait<0>();
        pin(x);
        float scale = HAS_BIAS ? 1.0f : factor;
        if (HAS_BIAS) add_bias(x, bias + (i64)at.head * of.nq * of.nk, at.i0, first_key_of(work, 0), of, factor);
        if (s.clear[ring].has(at.i0)) {
            probabilities<false>(x, s.exponent[stage], scale, Seeing(), at.i0, kept);
        } else {
            probabilities<true>(x, s.exponent[stage], scale, Seeing(of, work, 0), at.i0, kept);
        }
        s.q_empty[stage].arrive();
#pragma unroll
        for (int j = 0; j < QUERIES / 8; ++j) s.probability[j][thread() % 128] = {x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]};
        named_arrive(PROBABILITIES, 256);
        to_operand(weight, x, weight_of);
        s.dy_full[0].wait(at.count % 2);
        issue_sums(dv, weight, low_n(s.dy[0], QUERY_PANEL));
        // The next scores; the last step multiplies keys with keys, which nobody uses: a branch would end the run of products.
        bool is_last = at.left == 1;
        int next = at.count + 1;
        if (!is_last) s.q_full[next % STAGES].wait(next / STAGES % 2);
        asm volatile("" : "+r"(keys));  // else descriptors of all steps are kept in registers
        issue_scores(x, keys, low_k(is_last ? s.k : s.q[next % STAGES]));
        wgmma_wait<1>();
        pin(dv);
        s.dy_empty[0].arrive();
        named_sync(SLOPES, 256);
        weigh_panel<0>(s, at.count);
        weigh_panel<1>(s, at.count);
        at.next(work);
    }
    wgmma_wait<0>();
    pin(x);
    count = at.count;
}

// The second: gradients of the probabilities and of the scores, dk, and the other panels of dq.
DEVICE void weigh_keys(Shared& s, const Problem& of, int ring, int& count, float (&dk)[D / 2]) {
    constexpr int STAGES = Shared::STAGES;
    const Work& work = s.work[ring];
    float dp[QUERIES / 2];
    u32 slope[QUERIES / 16][4];
    Place at(of, work, count);
    u32 values = low_k(s.v), gradients_of = low_k(s.dy[0]);
#pragma unroll 1
    while (at.left > 0) {
        int stage = at.count % STAGES;
        s.dy_full[0].wait(at.count % 2);
        issue_scores(dp, values, gradients_of);
        wgmma_wait<0>();
        pin(dp);
        named_sync(PROBABILITIES, 256);
        float p[QUERIES / 2];
#pragma unroll
        for (int j = 0; j < QUERIES / 8; ++j) {
            float4 x = s.probability[j][thread() % 128];
            p[4 * j] = x.x, p[4 * j + 1] = x.y, p[4 * j + 2] = x.z, p[4 * j + 3] = x.w;
        }
        if (s.clear[ring].has(at.i0)) {
            gradients<false>(dp, p, s.inner[0], Seeing(), at.i0, of);
        } else {
            gradients<true>(dp, p, s.inner[0], Seeing(of, work, 0), at.i0, of);
        }
        s.dy_empty[0].arrive();
        to_operand(slope, dp, [](float ds) { return ds; });
        keep(s.ds, slope, 0);
        proxy_fence();
        named_arrive(SLOPES, 256);
        named_sync(OWN_SLOPES, 128);
        s.q_full[stage].wait(at.count / STAGES % 2);
        issue_sums(dk, slope, low_n(s.q[stage], QUERY_PANEL));
        weigh_panel<2>(s, at.count);
        pin(dk);
        s.q_empty[stage].arrive();
        if constexpr (PANELS > 3) weigh_panel<3>(s, at.count);
        at.next(work);
    }
    count = at.count;
}

// dv or dk of a warpgroup, if all of both is finite or nothing is hidden.
template <bool IS_VALUE>
DEVICE void multiply_keys(Shared& s, const Problem& of, int ring, int& count, const Results& to, const f32* bias, float scale) {
    const Work& work = s.work[ring];
    float sum[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; ++i) sum[i] = 0.0f;
    s.k_full.wait(ring), s.v_full.wait(ring);
    if (work.steps > 0) {
        if constexpr (IS_VALUE) weigh_values(s, of, ring, count, sum, bias, scale * LOG2_E);
        else weigh_keys(s, of, ring, count, sum);
    }
    s.k_empty.arrive(), s.v_empty.arrive();
    if (to.spoiled) {
        // The general kernels set or add what is left out here.
        bool is_odd = named_any(VOTE, 256, is_any_odd(sum));
        int tiles = (of.nk + KEYS - 1) / KEYS, kv_heads = of.heads / of.group;
        if (IS_VALUE && thread() % 128 == 0) to.spoiled[(i64)(work.sample * kv_heads + work.kv_head) * tiles + work.block] = is_odd;
        if (is_odd) return;
    }
    i64 first_row = (i64)work.sample * of.nk;
    asm volatile("" : "+l"(first_row));  // so that addresses are not made, and kept, before all products
    int first_key = first_key_of(work, 0);
    if constexpr (IS_VALUE) {
        float kept = HAS_DROPOUT ? of.dropping.scale : 1.0f;
        if (to.dv) finish(to.dv + to.v_at + first_row * to.v_row + work.kv_head * D, to.v_row, sum, kept, first_key, of.nk, to.add_dv);
    } else {
        if (to.dk) finish(to.dk + to.k_at + first_row * to.k_row + work.kv_head * D, to.k_row, sum, scale, first_key, of.nk, to.add_dk);
    }
}

// The same for work after work.
template <bool IS_VALUE> DEVICE void multiply_all(Shared& s, const Problem& of, const Results& to, const f32* bias, float scale) {
    int count = 0;
    for (Ring<2> ring;; ring.next()) {
        s.work_full[ring.stage].wait(ring.parity);
        if (s.work[ring.stage].steps < 0) return;
        multiply_keys<IS_VALUE>(s, of, ring.stage, count, to, bias, scale);
        s.work_empty[ring.stage].arrive();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_bwd(T* dk, T* dv, f32* sums, int* turns, int* spoiled_k, const __grid_constant__ TensorMap q,
                  const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap dy,
                  const f32* exponent, const f32* inner, const f32* bias, const int* lengths, const int* seen, i64 k_at, i64 v_at, i64 k_row,
                  i64 v_row, int nq, int nk, int before, int after, int heads, int group, int batch, float scale, int section, int add_dk,
                  int add_dv, i64 seed, i64 stream, int reach, float kept_scale) {
    follow();
    extern __shared__ unsigned char memory[];
    Shared& s = *(Shared*)aligned<1024>(memory);
    Problem of{nq, nk, heads, group, batch, before, after, section, lengths, seen, {seed, stream, reach, kept_scale}};
    if (thread() == 0) {
        s.k_full.init(1), s.v_full.init(1), s.k_empty.init(256), s.v_empty.init(256);
        for (int i = 0; i < Shared::STAGES; ++i) s.q_full[i].init(1), s.q_empty[i].init(256);
        s.dy_full[0].init(1), s.dy_empty[0].init(256);
        for (int i = 0; i < SHARES; ++i) s.sums_full[i].init(128), s.sums_empty[i].init(1);
        for (int i = 0; i < 2; ++i) s.work_full[i].init(1), s.work_empty[i].init(256 + 1 + SHARES);
        s.work_wanted.init(1);
        barrier_init_fence();
    }
    block_sync();
    Results to{dk, dv, k_at, v_at, k_row, v_row, add_dk, add_dv, spoiled_k};
    if (warp_id() < 4) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) feed(s, of, q, k, v, dy, exponent, inner);
        if (warp_id() == 3 && elected()) take(s, of, turns);
        if (warp_id() == 1 && elected()) add<0>(s, of, sums, turns + 1);
        if (warp_id() == 2 && elected()) add<1>(s, of, sums, turns + 1);
    } else if (warp_id() < 8) {
        registers_up<REGISTERS>();
        multiply_all<true>(s, of, to, bias, scale);
    } else {
        registers_up<REGISTERS>();
        multiply_all<false>(s, of, to, bias, scale);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_begin(f32* exponent, f32* inner, f32* total, int* turns, const T* y, const T* dy, const f32* lse, const int* lengths,
                        const int* seen, i64 count, int nq, int nk, int before, int after, int heads) {
    follow();
    begin(exponent, inner, total, turns, y, dy, lse, lengths, seen, count, nq, nk, before, after, heads);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_end(T* dq, int* spoiled_q, const f32* sums, const int* lengths, const int* seen, i64 q_at, i64 q_row, int nq, int nk,
                      int before, int after, int heads, float scale, int add_dq) {
    follow();
    end(dq, spoiled_q, sums, lengths, seen, q_at, q_row, nq, nk, before, after, heads, scale, add_dq);
}
