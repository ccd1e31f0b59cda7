// attention: the backward kernels of Hopper for 16-bit types: dq, dk and dv out of five products of wgmma a tile of the scores.
// axes      q, dq, y, dy [B, Nq, H, D]; k, v, dk, dv [B, Nk, H / group, D]: a token's rows of q, k, v and their gradients are `row`
//           numbers apart; lse, total [B, H, Nq]; bias [H, Nq, Nk]; lengths [B]; seen: see common/seen.cuh; exponent, inner [B, H, rows to whole tiles];
//           sums [B, H, tiles of queries, QUERIES * D] in the order of accumulators; turns: a ticket, then [B, H, tiles of queries];
//           spoiled_q [B, H, tiles of 64 queries], spoiled_k [B, H / group, tiles of 64 keys]
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D a multiple of 8 from 16 to 128, not padded to a power of two
// launch    bwd: as many blocks as multiprocessors; each takes KEYS keys of a head after KEYS keys and walks all queries that see them:
//           a warp takes work, one copies, two add dq's sums to memory, two warpgroups multiply, each for 64 keys; the next keys arrive
//           while gradients of the last leave; bwd_begin before it, bwd_end after it: see there
// paths     where nothing is hidden a tile has no mask; where a hidden number may have spoiled a sum its tile is marked for the
//           general kernels, which run behind these
// matrix    HGMMA on sm_90a for bf16 and f16
// traffic   k, v, dk, dv once; q and dy once, dq's sums in f32 twice for KEYS keys, out of the cache where a section fits into it
// dropout   drawn while products run: a block of Philox is for two lanes, which draw in turns and trade
// order     dq's sums are added keys ascending, each block when the one before has: same input, same bits. Atomic is the ticket alone
// waiting   work is numbered in the order in which it is taken, a block does its own in that order, and waits for nothing but work of
//           smaller numbers: of all that is unfinished the first waits for nobody. So it ends whatever the number of blocks that run at once
// floor     a step of 64 queries by 128 keys is 20 D clocks of the matrix units and at D of 128 2,944 of shared memory. ncu, 2048 tokens, D
//           of 128, the version before: 56 % of the matrix units, 67 % of shared memory, 1.75 GHz
// ladder    milliseconds at D of 128 with 512 tokens causal, 2048, 16384 (cuDNN in the same run), H200, 2026-11-22:
//           a block for each 128 keys            0.471 (0.435)  1.547 (1.570)  10.567 (10.140)
//           blocks that take work after work     0.413          1.471          10.413  predicted 0.39, 1.49; 16-byte stores of dk, dv
//           the next work taken at once          0.386          1.411          11.049  causal 16384 7.83 in place of 5.43: work that
//                                                is held and not done lets others wait; now taken behind the copies
//           one piece of code for products and   0.403          1.395           9.948  predicted 4 %: the branch for masks had stood
//           exponentials; 8 rows a thread before                                       between them (without any masks: 6 to 7 %)
//           Not better: whole steps twice (spills), one text for both warpgroups (-1 %), no wait of the warpgroup without dq (0),
//           a barrier in shared memory for dS in place of a named one (0; synccheck takes the latter's two places for divergence)
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithm 4; Shah et al. 2024, section 3; Spector et al. 2024 for keys as rows of the accumulators

#include "common/backward.cuh"

#ifdef STAGES_OF_BLOCK
constexpr int STAGES = STAGES_OF_BLOCK;
#else
constexpr int STAGES = D <= 64 ? 4 : 2;                     // tiles of queries on their way
#endif
// Of dq each warpgroup makes one panel of columns; of a single panel the first makes all.
constexpr int FIRST_COLUMNS = D <= 64 ? D : 64, SECOND_COLUMNS = D - FIRST_COLUMNS;
constexpr int TILE_BYTES = 2 * PANELS * KEY_PANEL + 2 * STAGES * PANELS * QUERY_PANEL + 2 * DS_BYTES;
#ifdef SUM_STAGES_OF_BLOCK
constexpr int SUM_STAGES = SUM_STAGES_OF_BLOCK;
#else
constexpr int SUM_STAGES = TILE_BYTES + 2 * SUM_COUNT * 4 + 3072 <= 227 * 1024 ? 2 : 1;
#endif
// What stands in one piece with the exponentials: gradients of probabilities, and the next operands, where registers suffice.
constexpr bool JOINS = !HAS_BIAS && (D <= 64 || !HAS_DROPOUT), JOINS_MORE = D <= 64;
constexpr bool ALL_TELL = !HAS_BIAS || D <= 64;  // a warp's lanes, that a work is done: beside a bias that takes registers which are not there
constexpr int COPIER_REGISTERS = D <= 64 ? 56 : 24, REGISTERS = D <= 64 ? 224 : 240;

struct Shared {
    static constexpr int STAGES = ::STAGES, DY_STAGES = ::STAGES;
    unsigned char k[PANELS * KEY_PANEL];
    unsigned char v[PANELS * KEY_PANEL];
    unsigned char q[STAGES][PANELS * QUERY_PANEL];
    unsigned char dy[STAGES][PANELS * QUERY_PANEL];
    unsigned char ds[2][DS_BYTES];  // a row for each key
    alignas(128) float sums[SUM_STAGES][SUM_COUNT];
    alignas(16) float exponent[STAGES][QUERIES];
    alignas(16) float inner[STAGES][QUERIES];
    Barrier k_full, v_full, k_empty, v_empty, q_full[STAGES], q_empty[STAGES], dy_full[STAGES], dy_empty[STAGES];
    Barrier ds_full[2], sums_full[SUM_STAGES], sums_empty[SUM_STAGES], work_full[2], work_empty[2], work_wanted;
    Work work[2];
    Clear clear[2];  // here, because registers are short
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

// Adds the dq of every SUM_STAGES-th step to its sum in memory, when the blocks of keys that take the tile before this one have: their
// number is the turn.
// The first sets. One thread for each stage: while one waits until its sum has arrived, the next is on its way.
DEVICE void add(Shared& s, const Problem& of, int stage, f32* sums, int* turns) {
    int step = 0;
    for (int turn = 0;; ++turn) {
        s.work_full[turn % 2].wait(turn / 2 % 2);
        const Work& work = s.work[turn % 2];
        if (work.steps < 0) return;
        each_step(of, work, [&](int head, int tile) {
            int count = step++;
            if (count % SUM_STAGES != stage) return;
            int place = (work.sample * of.heads + head) * of.tiles() + tile;
            int turn = work.block - of.seen(work).first(tile * QUERIES) / KEYS;
            while (load_acquired(turns + place) != turn) {}
            s.sums_full[stage].wait(count / SUM_STAGES % 2);
            global_proxy_fence();
            if (turn == 0) {
                store_bytes(sums + (i64)place * SUM_COUNT, s.sums[stage], SUM_COUNT * 4);
            } else {
                add_floats(sums + (i64)place * SUM_COUNT, s.sums[stage], SUM_COUNT * 4);
            }
            store_commit();
            store_wait_read<0>();
            s.sums_empty[stage].arrive();
            store_wait<0>();
            global_proxy_fence();
            store_released(turns + place, turn + 1);
        });
        s.work_empty[turn % 2].arrive();
    }
}

// Where a step stands: what its parts share.
struct Where {
    const Problem& of;
    const Work& work;
    const Kept& kept;
    int group, stage, i0;

    template <bool IS_MASKED> DEVICE Seeing seeing() const { return IS_MASKED ? Seeing(of, work, group) : Seeing(); }
};
DEVICE float same(float v) { return v; }

// The two parts of a step that masks change. What stands in one piece with products runs while they are issued: so the branch for masks
// is around both.
template <bool IS_MASKED>
DEVICE void weights_of(u32 (&weight)[QUERIES / 16][4], float (&p)[QUERIES / 2], float (&dp)[QUERIES / 2], float (&dv)[D / 2], Shared& s,
                       const Where& at, u32 values, float factor) {
    if (JOINS) issue_scores(dp, values, low_k(s.dy[at.stage]));
    probabilities<IS_MASKED>(p, s.exponent[at.stage], factor, at.seeing<IS_MASKED>(), at.i0, at.kept);
    if (JOINS_MORE) to_operand(weight, p, weight_of), issue_sums(dv, weight, low_n(s.dy[at.stage], QUERY_PANEL));
}
template <bool IS_MASKED>
DEVICE void slopes_of(u32 (&slope)[QUERIES / 16][4], const float (&p)[QUERIES / 2], float (&dp)[QUERIES / 2], unsigned char* ds, Shared& s,
                      const Where& at) {
    gradients<IS_MASKED>(dp, p, s.inner[at.stage], at.seeing<IS_MASKED>(), at.i0, at.of);
    if (JOINS_MORE) to_operand(slope, dp, same), keep(ds, slope, at.group);
}

// Multiplies: 64 keys with all queries that see them, and COLUMNS columns of dq. `count` is the number of steps so far.
template <int COLUMNS>
DEVICE void weigh(Shared& s, const Problem& of, int ring, int& count, int group, const Results& to, const f32* bias, float scale) {
    const Work& work = s.work[ring];
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; ++i) dk[i] = 0.0f, dv[i] = 0.0f;
    float factor = scale * LOG2_E;
    s.k_full.wait(ring);
    if (work.steps > 0) {
        float p[QUERIES / 2], dp[QUERIES / 2], dq[COLUMNS > 0 ? COLUMNS / 2 : 4];
        u32 weight[QUERIES / 16][4], slope[QUERIES / 16][4];
        Kept kept;
        int end = count + work.steps * of.group, i0 = work.highest() * QUERIES, head = work.kv_head * of.group;
        u32 keys = low_k(s.k + group * 8192), values = low_k(s.v + group * 8192);
        u32 key_columns = low_n(s.k + group % PANELS * KEY_PANEL, KEY_PANEL);
        s.q_full[count % STAGES].wait(count / STAGES % 2);
        issue_scores(p, keys, low_k(s.q[count % STAGES]));
        s.v_full.wait(ring);
#pragma unroll 1
        for (bool is_last = false; !is_last;) {
            if (HAS_DROPOUT)
                kept.draw(of.dropping, work.sample * of.heads + head, of.nq, i0, work.block * KEYS + 64 * group + warp_id() % 4 * 16);
            bool is_clear = s.clear[ring].has(i0);
            wgmma_wait<0>();
            pin(p);
            int stage = count % STAGES, now = count;
            unsigned char* ds = s.ds[count % 2];
            s.dy_full[stage].wait(count / STAGES % 2);
            if (!JOINS) issue_scores(dp, values, low_k(s.dy[stage]));
            if (HAS_BIAS) add_bias(p, bias + (i64)head * of.nq * of.nk, i0, first_key_of(work, group), of, factor);
            Where at{of, work, kept, group, stage, i0};
            if (is_clear) weights_of<false>(weight, p, dp, dv, s, at, values, HAS_BIAS ? 1.0f : factor);
            else weights_of<true>(weight, p, dp, dv, s, at, values, HAS_BIAS ? 1.0f : factor);
            if (!JOINS_MORE) to_operand(weight, p, weight_of), issue_sums(dv, weight, low_n(s.dy[stage], QUERY_PANEL));
            wgmma_wait<1>();
            pin(dp);
            if (is_clear) slopes_of<false>(slope, p, dp, ds, s, at);
            else slopes_of<true>(slope, p, dp, ds, s, at);
            if (!JOINS_MORE) to_operand(slope, dp, same), keep(ds, slope, group);
            proxy_fence();
            s.ds_full[count % 2].arrive();
            issue_sums(dk, slope, low_n(s.q[stage], QUERY_PANEL));
            wgmma_wait<1>();
            pin(dv);
            s.dy_empty[stage].arrive();
            s.ds_full[count % 2].wait(count / 2 % 2);
            if constexpr (COLUMNS > 0) issue_dq(dq, low_n(ds, KEY_PANEL), key_columns);
            // The next scores; the last step multiplies keys with keys, which nobody uses: a branch would end the run of products.
            ++count;
            is_last = count == end;
            if (!is_last) s.q_full[count % STAGES].wait(count / STAGES % 2);
            issue_scores(p, keys, low_k(is_last ? s.k : s.q[count % STAGES]));
            i0 -= QUERIES;
            if (i0 < work.lowest * QUERIES) i0 = work.highest() * QUERIES, ++head;
            // All but the next scores.
            wgmma_wait<1>();
            pin(dk);
            s.q_empty[stage].arrive();
            if constexpr (COLUMNS > 0) {
                pin(dq);
                int at = now % SUM_STAGES;
                s.sums_empty[at].wait(now / SUM_STAGES % 2 ^ 1);
                float4* sums = (float4*)(s.sums[at] + group * 64 * FIRST_COLUMNS) + thread() % 128;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) sums[j * 128] = {dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]};
                proxy_fence();
                s.sums_full[at].arrive();
            }
        }
        wgmma_wait<0>();
        pin(p);
    } else {
        s.v_full.wait(ring);
    }
    s.k_empty.arrive(), s.v_empty.arrive();
    int first_key = first_key_of(work, group);
    if (to.spoiled) {
        // The general kernels set or add what is left out here.
        bool is_odd = named_any(2 + group, 128, is_any_odd(dk) || is_any_odd(dv));
        int tile = 2 * work.block + group, tiles = (of.nk + 63) / 64, kv_heads = of.heads / of.group;
        if (thread() % 128 == 0 && tile < tiles) to.spoiled[(i64)(work.sample * kv_heads + work.kv_head) * tiles + tile] = is_odd;
        if (is_odd) return;
    }
    i64 first_row = (i64)work.sample * of.nk;
    asm volatile("" : "+l"(first_row));  // so that addresses are not made, and kept, before all products
    if (to.dk) finish(to.dk + to.k_at + first_row * to.k_row + work.kv_head * D, to.k_row, dk, scale, first_key, of.nk, to.add_dk);
    float kept = HAS_DROPOUT ? of.dropping.scale : 1.0f;
    if (to.dv) finish(to.dv + to.v_at + first_row * to.v_row + work.kv_head * D, to.v_row, dv, kept, first_key, of.nk, to.add_dv);
}

// The same for work after work.
template <int COLUMNS> DEVICE void weigh_all(Shared& s, const Problem& of, int group, const Results& to, const f32* bias, float scale) {
    int count = 0;
    for (Ring<2> ring;; ring.next()) {
        s.work_full[ring.stage].wait(ring.parity);
        if (s.work[ring.stage].steps < 0) return;
        weigh<COLUMNS>(s, of, ring.stage, count, group, to, bias, scale);
        __syncwarp();
        if (ALL_TELL || lane() == 0) s.work_empty[ring.stage].arrive();
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
        for (int i = 0; i < STAGES; ++i) {
            s.q_full[i].init(1), s.dy_full[i].init(1);
            s.q_empty[i].init(256), s.dy_empty[i].init(256);
        }
        for (int i = 0; i < SUM_STAGES; ++i) s.sums_full[i].init(SECOND_COLUMNS > 0 ? 256 : 128), s.sums_empty[i].init(1);
        for (int i = 0; i < 2; ++i) s.ds_full[i].init(256), s.work_full[i].init(1), s.work_empty[i].init((ALL_TELL ? 256 : 8) + 1 + SUM_STAGES);
        s.work_wanted.init(1);
        barrier_init_fence();
    }
    block_sync();
    Results to{dk, dv, k_at, v_at, k_row, v_row, add_dk, add_dv, spoiled_k};
    if (warp_id() < 4) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) feed(s, of, q, k, v, dy, exponent, inner);
        if (warp_id() == 3 && elected()) take(s, of, turns);
        if (warp_id() > 0 && warp_id() <= SUM_STAGES && elected()) add(s, of, warp_id() - 1, sums, turns + 1);
    } else if (warp_id() < 8) {
        registers_up<REGISTERS>();
        weigh_all<FIRST_COLUMNS>(s, of, 0, to, bias, scale);
    } else {
        registers_up<REGISTERS>();
        weigh_all<SECOND_COLUMNS>(s, of, 1, to, bias, scale);
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
