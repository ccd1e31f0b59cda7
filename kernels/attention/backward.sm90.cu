// attention: the backward kernels of Hopper for 16-bit types: dq, dk and dv out of five products of wgmma a tile of the scores.
// axes      q, dq, y, dy [B, Nq, H, D]; k, v, dk, dv [B, Nk, H / group, D]: a token's rows of q, k, v and their gradients are `row`
//           numbers apart; lse, total [B, H, Nq]; bias [H, Nq, Nk]; lengths [B]; seen: see common/seen.cuh; exponent, inner [B, H, rows to whole tiles];
//           sums [B, H, tiles of queries, QUERIES * D] in the order of accumulators; turns: a ticket, then [B, H, tiles of queries];
//           spoiled_q [B, H, tiles of 64 queries], spoiled_k [B, H / group, tiles of 64 keys]
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D a multiple of 8 from 16 to 128, not padded to a power of two
// launch    bwd: one block for KEYS keys of a head, that walks all queries that see them: a warp copies, two warps add dq's
//           sums to memory, two warpgroups multiply, each for 64 keys; bwd_begin before it, bwd_end after it: see there
// paths     where nothing is hidden a tile has no mask; where a hidden number may have spoiled a sum its tile is marked for the
//           general kernels, which run behind these
// matrix    HGMMA on sm_90a for bf16 and f16
// traffic   k, v, dk, dv once; q and dy once, dq's sums in f32 twice for KEYS keys, out of the cache where a section fits into it
// dropout   drawn while products run: of four neighbouring keys, rows of four lanes, each lane draws for one of two keys and one of two
//           queries that all four have, and gives each of the others its bits
// order     dq's sums are added keys ascending, each block when the one before has: same input, same bits. Atomic is the ticket alone
// waiting   a block takes its work in the order in which blocks start, and waits for nothing but work that was taken before its own:
//           of all that is unfinished the first waits for nobody. So it ends whatever the number of blocks that run at once
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
    Barrier k_full, v_full, q_full[STAGES], q_empty[STAGES], dy_full[STAGES], dy_empty[STAGES];
    Barrier sums_full[SUM_STAGES], sums_empty[SUM_STAGES];
    Work work;
    Clear clear;  // here, because registers are short
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

// Adds the dq of every SUM_STAGES-th step to its sum in memory, when the blocks of keys that take the tile before this one have: their
// number is the turn.
// The first sets. One thread for each stage: while one waits until its sum has arrived, the next is on its way.
DEVICE void add(Shared& s, const Problem& of, const Work& work, int stage, f32* sums, int* turns) {
    int step = 0;
    u32 parity = 0;
    each_step(of, work, [&](int head, int tile) {
        if (step++ % SUM_STAGES != stage) return;
        i64 place = (i64)(work.sample * of.heads + head) * of.tiles() + tile;
        int turn = work.block - of.seen(work).first(tile * QUERIES) / KEYS;
        while (load_acquired(turns + place) != turn) {}
        s.sums_full[stage].wait(parity);
        parity ^= 1;
        global_proxy_fence();
        if (turn == 0) {
            store_bytes(sums + place * SUM_COUNT, s.sums[stage], SUM_COUNT * 4);
        } else {
            add_floats(sums + place * SUM_COUNT, s.sums[stage], SUM_COUNT * 4);
        }
        store_commit();
        store_wait_read<0>();
        s.sums_empty[stage].arrive();
        store_wait<0>();
        global_proxy_fence();
        store_released(turns + place, turn + 1);
    });
}

// Multiplies: 64 keys with all queries that see them, and COLUMNS columns of dq.
template <int COLUMNS>
DEVICE void weigh(Shared& s, const Problem& of, const Work& work, int group, const Results& to, const f32* bias, float scale) {
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; ++i) dk[i] = 0.0f, dv[i] = 0.0f;
    float factor = scale * LOG2_E;
    if (work.steps > 0) {
        float p[QUERIES / 2], dp[QUERIES / 2], dq[COLUMNS > 0 ? COLUMNS / 2 : 4];
        u32 weight[QUERIES / 16][4];
        int first_key = first_key_of(work, group);
            Kept kept;
        int count = 0, i0 = work.highest() * QUERIES, head = work.kv_head * of.group;
        u32 keys = low_k(s.k + group * 8192), values = low_k(s.v + group * 8192);
        u32 key_columns = low_n(s.k + group % PANELS * KEY_PANEL, KEY_PANEL);
        s.k_full.wait(0);
        s.q_full[0].wait(0);
        issue_scores(p, keys, low_k(s.q[0]));
        s.v_full.wait(0);
#pragma unroll 1
        for (bool is_last = false; !is_last;) {
            if (HAS_DROPOUT) {
                i64 row = ((i64)work.sample * of.heads + head) * of.nq + i0;
                kept.draw(of.dropping, row, of.nk, work.block * KEYS + 64 * group + warp_id() % 4 * 16);
            }
            wgmma_wait<0>();
            pin(p);
            int stage = count % STAGES;
            unsigned char* ds = s.ds[count % 2];
            s.dy_full[stage].wait(count / STAGES % 2);
            issue_scores(dp, values, low_k(s.dy[stage]));
            if (HAS_BIAS) add_bias(p, bias + (i64)head * of.nq * of.nk, i0, first_key, of, factor);
            if (s.clear.has(i0)) {
                probabilities<false>(p, s.exponent[stage], HAS_BIAS ? 1.0f : factor, Seeing(), i0, kept);
            } else {
                Seeing seen(of, work, group);
                probabilities<true>(p, s.exponent[stage], HAS_BIAS ? 1.0f : factor, seen, i0, kept);
            }
            to_operand(weight, p, weight_of);
            issue_sums(dv, weight, low_n(s.dy[stage], QUERY_PANEL));
            wgmma_wait<1>();
            pin(dp);
            if (s.clear.has(i0)) {
                gradients<false>(dp, p, s.inner[stage], Seeing(), i0, of);
            } else {
                Seeing seen(of, work, group);
                gradients<true>(dp, p, s.inner[stage], seen, i0, of);
            }
            u32 slope[QUERIES / 16][4];
            to_operand(slope, dp, [](float ds) { return ds; });
            keep(ds, slope, group);
            proxy_fence();
            issue_sums(dk, slope, low_n(s.q[stage], QUERY_PANEL));
            wgmma_wait<1>();
            pin(dv);
            if (lane() == 0) s.dy_empty[stage].arrive();
            named_sync(1, 256);
            if constexpr (COLUMNS > 0) issue_dq(dq, low_n(ds, KEY_PANEL), key_columns);
            // The next scores; the last step makes its own again, which nobody uses: a branch would end the run of products.
            is_last = count + 1 == work.steps * of.group;
            int next = is_last ? count : count + 1;
            s.q_full[next % STAGES].wait(next / STAGES % 2);
            issue_scores(p, keys, low_k(s.q[next % STAGES]));
            // All but the next scores.
            wgmma_wait<1>();
            pin(dk);
            if (lane() == 0) s.q_empty[stage].arrive();
            if constexpr (COLUMNS > 0) {
                pin(dq);
                int at = count % SUM_STAGES;
                s.sums_empty[at].wait(count / SUM_STAGES % 2 ^ 1);
                float4* sums = (float4*)(s.sums[at] + group * 64 * FIRST_COLUMNS) + thread() % 128;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) sums[j * 128] = {dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]};
                proxy_fence();
                __syncwarp();
                if (lane() == 0) s.sums_full[at].arrive();
            }
            count = next;
            i0 -= QUERIES;
            if (i0 < work.lowest * QUERIES) i0 = work.highest() * QUERIES, ++head;
        }
        wgmma_wait<0>();
        pin(p);
    }
    int first_key = first_key_of(work, group);
    if (to.spoiled) {
        // The general kernels set or add what is left out here.
        bool is_odd = named_any(2 + group, 128, is_any_odd(dk) || is_any_odd(dv));
        int tile = 2 * work.block + group, tiles = (of.nk + 63) / 64, kv_heads = of.heads / of.group;
        if (thread() % 128 == 0 && tile < tiles) to.spoiled[(i64)(work.sample * kv_heads + work.kv_head) * tiles + tile] = is_odd;
        if (is_odd) return;
    }
    i64 first_row = (i64)work.sample * of.nk;
    if (to.dk) finish(to.dk + to.k_at + first_row * to.k_row + work.kv_head * D, to.k_row, dk, scale, first_key, of.nk, to.add_dk);
    float kept = HAS_DROPOUT ? of.dropping.scale : 1.0f;
    if (to.dv) finish(to.dv + to.v_at + first_row * to.v_row + work.kv_head * D, to.v_row, dv, kept, first_key, of.nk, to.add_dv);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_bwd(T* dk, T* dv, f32* sums, int* turns, int* spoiled_k, const __grid_constant__ TensorMap q,
                  const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap dy,
                  const f32* exponent, const f32* inner, const f32* bias, const int* lengths, const int* seen, i64 k_at, i64 v_at, i64 k_row,
                  i64 v_row, int nq, int nk, int before, int after, int heads, int group, int batch, float scale, int section, int add_dk,
                  int add_dv, i64 seed, i64 stream, int reach, float kept_scale) {
    extern __shared__ unsigned char memory[];
    Shared& s = *(Shared*)aligned<1024>(memory);
    Problem of{nq, nk, heads, group, batch, before, after, section, lengths, seen, {seed, stream, reach, kept_scale}};
    if (thread() == 0) {
        s.k_full.init(1), s.v_full.init(1);
        for (int i = 0; i < STAGES; ++i) {
            s.q_full[i].init(1), s.dy_full[i].init(1);
            s.q_empty[i].init(8), s.dy_empty[i].init(8);
        }
        for (int i = 0; i < SUM_STAGES; ++i) s.sums_full[i].init(SECOND_COLUMNS > 0 ? 8 : 4), s.sums_empty[i].init(1);
        barrier_init_fence();
        s.work = Work(of, atomicAdd(turns, 1));
        s.clear = Clear(of, s.work);
    }
    block_sync();
    const Work& work = s.work;
    Results to{dk, dv, k_at, v_at, k_row, v_row, add_dk, add_dv, spoiled_k};
    if (warp_id() < 4) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) copy(s, of, work, q, k, v, dy, exponent, inner);
        if (warp_id() > 0 && warp_id() <= SUM_STAGES && elected()) add(s, of, work, warp_id() - 1, sums, turns + 1);
    } else if (warp_id() < 8) {
        registers_up<REGISTERS>();
        weigh<FIRST_COLUMNS>(s, of, work, 0, to, bias, scale);
    } else {
        registers_up<REGISTERS>();
        weigh<SECOND_COLUMNS>(s, of, work, 1, to, bias, scale);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_begin(f32* exponent, f32* inner, f32* total, int* turns, const T* y, const T* dy, const f32* lse, const int* lengths,
                        const int* seen, i64 count, int nq, int nk, int before, int after, int heads) {
    begin(exponent, inner, total, turns, y, dy, lse, lengths, seen, count, nq, nk, before, after, heads);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_end(T* dq, int* spoiled_q, const f32* sums, const int* lengths, const int* seen, i64 q_at, i64 q_row, int nq, int nk,
                      int before, int after, int heads, float scale, int add_dq) {
    end(dq, spoiled_q, sums, lengths, seen, q_at, q_row, nq, nk, before, after, heads, scale, add_dq);
}
