// attention: the gradient of the bias on Hopper for 16-bit types: the gradients of the scores, summed over samples.
// axes      q, dy [B, Nq, H, D]; k, v [B, Nk, H / group, D], each behind a tensor map; bias, dbias [H, Nq, Nk]; lengths [B];
//           exponent, inner [B, H, rows to whole tiles], as bwd_begin of backward.sm90.cu leaves them
// types     T in {bf16, f16}; scores, sums, bias, dbias in f32; D a multiple of 8 from 16 to 128, not padded to a power of two
// launch    one block for 64 queries and 128 keys of a head, that walks the samples: a warp copies, two warpgroups multiply, each for
//           64 keys. Grid [blocks of keys * tiles of queries * heads]
// paths     where nothing is hidden a tile has no mask; samples in which nobody sees the tile are left out
// matrix    HGMMA on sm_90a for bf16 and f16
// traffic   bias and dbias once; for every tile and sample 192 rows of q, k, v and dy, out of the cache
// floor     8 bytes of bias and dbias a pair, against 4 D FLOPs a sample: on an H200 bytes up to 370 / D samples, then products
// order     samples ascending: same input, same bits
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithm 4: the gradient of the scores, before their factor

#include "common/backward.cuh"

constexpr int STAGES = D <= 64 ? 4 : 2;  // samples on their way
constexpr int COPIER_REGISTERS = 40, REGISTERS = 232;

struct Shared {
    unsigned char k[STAGES][PANELS * KEY_PANEL];
    unsigned char v[STAGES][PANELS * KEY_PANEL];
    unsigned char q[STAGES][PANELS * QUERY_PANEL];
    unsigned char dy[STAGES][PANELS * QUERY_PANEL];
    alignas(16) float exponent[STAGES][QUERIES];
    alignas(16) float inner[STAGES][QUERIES];
    Barrier full[STAGES], empty[STAGES];
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

// A block's place: queries from i0 on, a block of keys, a head.
struct Pane {
    int block, i0, head;

    DEVICE Pane(const Problem& of, int number) {
        int blocks = (of.nk + KEYS - 1) / KEYS, rest = number / blocks;
        block = number - rest * blocks, head = rest / of.tiles(), i0 = (rest - head * of.tiles()) * QUERIES;
    }
    // Whether any query of the tile may see a key of the block.
    DEVICE bool is_seen(const Problem& of, int sample) const {
        Seen<int> seen = of.seen(sample);
        int last = (i0 + QUERIES < of.nq ? i0 + QUERIES : of.nq) - 1;
        return seen.first(i0) < (block + 1) * KEYS && seen.end(last) > block * KEYS;
    }
};

// Calls step(sample) for each in which the pane is seen.
template <typename F> DEVICE void each_sample(const Problem& of, const Pane& pane, F step) {
#pragma unroll 1
    for (int sample = 0; sample < of.batch; ++sample)
        if (pane.is_seen(of, sample)) step(sample);
}

DEVICE void copy_samples(Shared& s, const Problem& of, const Pane& pane, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                         const TensorMap& dy, const f32* exponent, const f32* inner) {
    Ring<STAGES> at;
    each_sample(of, pane, [&](int sample) {
        i64 row = ((i64)(sample * of.heads + pane.head) * of.tiles()) * QUERIES + pane.i0;
        Barrier& full = s.full[at.stage];
        int kv_head = pane.head / of.group, key = pane.block * KEYS;
        s.empty[at.stage].wait(at.parity ^ 1);
        full.arrive_expect(2 * PANELS * (KEY_PANEL + QUERY_PANEL) + 2 * QUERIES * 4);
        for (int p = 0; p < PANELS; ++p) {
            load_box(s.k[at.stage] + p * KEY_PANEL, k, full, p * 64, kv_head, key, sample);
            load_box(s.q[at.stage] + p * QUERY_PANEL, q, full, p * 64, pane.head, pane.i0, sample);
            load_box(s.v[at.stage] + p * KEY_PANEL, v, full, p * 64, kv_head, key, sample);
            load_box(s.dy[at.stage] + p * QUERY_PANEL, dy, full, p * 64, pane.head, pane.i0, sample);
        }
        load_bytes(s.exponent[at.stage], exponent + row, QUERIES * 4, full);
        load_bytes(s.inner[at.stage], inner + row, QUERIES * 4, full);
        at.next();
    });
}

// 64 keys by the tile of queries, of all samples.
DEVICE void sum_samples(Shared& s, const Problem& of, const Pane& pane, int group, f32* dbias, const f32* bias, float factor, int add) {
    Work work;
    work.block = pane.block;
    int first_key = first_key_of(work, group);
    float sum[QUERIES / 2], added[QUERIES / 2];
#pragma unroll
    for (int i = 0; i < QUERIES / 2; ++i) sum[i] = 0.0f, added[i] = 0.0f;
    add_bias(added, bias + (i64)pane.head * of.nq * of.nk, pane.i0, first_key, of, 0.0f);
    Ring<STAGES> at;
    each_sample(of, pane, [&](int sample) {
        work.sample = sample, work.length = of.length(sample);
        float p[QUERIES / 2], dp[QUERIES / 2];
        Kept kept;
        if (HAS_DROPOUT)
            kept.draw(of.dropping, sample * of.heads + pane.head, of.nq, pane.i0, pane.block * KEYS + 64 * group + warp_id() % 4 * 16);
        s.full[at.stage].wait(at.parity);
        issue_scores(p, low_k(s.k[at.stage] + group * 8192), low_k(s.q[at.stage]));
        issue_scores(dp, low_k(s.v[at.stage] + group * 8192), low_k(s.dy[at.stage]));
        wgmma_wait<1>();
        pin(p);
#pragma unroll
        for (int i = 0; i < QUERIES / 2; ++i) p[i] = fmaf(p[i], factor, added[i]);
        bool is_clear = Clear(of, work).has(pane.i0);
        Seeing seen(of, work, group);
        if (is_clear) probabilities<false>(p, s.exponent[at.stage], 1.0f, seen, pane.i0, kept);
        else probabilities<true>(p, s.exponent[at.stage], 1.0f, seen, pane.i0, kept);
        wgmma_wait<0>();
        pin(dp);
        if (is_clear) gradients<false>(dp, p, s.inner[at.stage], seen, pane.i0, of);
        else gradients<true>(dp, p, s.inner[at.stage], seen, pane.i0, of);
        s.empty[at.stage].arrive();
        at.next();
#pragma unroll
        for (int i = 0; i < QUERIES / 2; ++i) sum[i] += dp[i];
    });
    dbias += (i64)pane.head * of.nq * of.nk;
#pragma unroll
    for (int i = 0; i < QUERIES / 2; ++i) {
        int query = pane.i0 + i / 4 * 8 + lane() % 4 * 2 + i % 2, key = first_key + i / 2 % 2 * 8;
        if (query < of.nq && key < of.nk) put(dbias + (i64)query * of.nk + key, sum[i], add);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_bwd_dbias(f32* dbias, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                        const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap dy, const f32* exponent,
                        const f32* inner, const f32* bias, const int* lengths, const int* seen, int nq, int nk, int before, int after,
                        int heads, int group, int batch, float scale, int add_dbias, i64 seed, i64 stream, int reach,
                        float kept_scale) {
    follow();
    extern __shared__ unsigned char memory[];
    Shared& s = *(Shared*)aligned<1024>(memory);
    Problem of{nq, nk, heads, group, batch, before, after, 1, lengths, seen, {seed, stream, reach, kept_scale}};
    Pane pane(of, block_x());
    if (thread() == 0) {
        for (int i = 0; i < STAGES; ++i) s.full[i].init(1), s.empty[i].init(256);
        barrier_init_fence();
    }
    block_sync();
    if (warp_id() < 4) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) copy_samples(s, of, pane, q, k, v, dy, exponent, inner);
    } else {
        registers_up<REGISTERS>();
        sum_samples(s, of, pane, warp_id() / 4 - 1, dbias, bias, scale * LOG2_E, add_dbias);
    }
}
