// batch_norm, channels whole: under statistics of the batch, all numbers of a channel in the shared memory of a cluster of blocks, which
// reads them once. Hopper alone; batch_norm.cu has what does not fit, other statistics and single gradients.
// axes      x, y, dy, dx [B, C, S]; weight, bias, dweight, dbias [C]; all statistics [C] f32
// types     T in {f32, bf16, f16}; sums and statistics in f32, sums of means in f64
// launch    a cluster of 1, 2, 4 or 8 blocks a channel, each with `share` packs of 16 bytes of it, forward of x, backward of x and dy;
//           a block works on CHUNKS parts in turn, as they come
// needs     S a multiple of W, everything aligned to 16 bytes, a share in the shared memory of a block: the launcher sees to it
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding: each once
// order     threads by halving, warps and blocks from first to last: same input, same bits
// budget    sm_90a 64 registers; no spills
// measured  H200, 2026-11-23, bf16, 64 x 256 x 56 x 56, of the copy rate, forward / backward: 68 / 68 %; in two readings (batch_norm.cu)
//           52 / 53. Copied and waited for whole 69 / 64; results written back by bulk copies 67 / 63; eight parts 62 / 53; clusters of
//           four 66 / 62. Predicted 78 / 75 of parts and bulk copies: neither loads nor addresses are what it waits for
// source    Ioffe, Szegedy 2015, algorithms 1 and 2; merging of moments: Chan, Golub, LeVeque 1979

#include "common/groups.cuh"
#include "common/sm90.cuh"

constexpr int W = WIDE<T>;
constexpr int CHUNKS = 4;
// Where 16 bits are kept, a number takes one multiplication less: of 11 bits, it is at most 2^11 spreads away from its mean.
constexpr bool IS_NARROW = sizeof(T) == 2;
using Packed = Pack<T, W>;

// The packs of a channel that this block has: of rows of `per_row` packs, one a sample.
struct Share {
    u32 channel;
    u32 begin, end, per_row;
    i64 step;  // numbers from a row to the next

    DEVICE Share(int batch, int channels, int space, int share) {
        per_row = (u32)space / W;
        u32 all = (u32)batch * per_row, first = cluster_rank() * (u32)share;
        channel = block_x() / cluster_size();
        begin = first < all ? first : all;
        end = all - begin < (u32)share ? all : begin + share;
        step = (i64)channels * space;
    }
    DEVICE u32 packs() const { return end - begin; }
    DEVICE float count(u32 rank, u32 share, u32 all) const {
        u32 first = rank * share, left = first < all ? all - first : 0;
        return (float)((left < share ? left : share) * W);
    }
    // The place of pack k.
    DEVICE i64 at(u32 k) const {
        u32 row = (begin + k) / per_row;
        return row * step + (i64)channel * per_row * W + (begin + k - row * per_row) * W;
    }
    // The first pack of part i.
    DEVICE u32 part(int i) const {
        u32 most = (packs() + CHUNKS - 1) / CHUNKS, first = i * most;
        return first < packs() ? first : packs();
    }
    // One warp: part i comes to `to`, a run of a row for each copy.
    DEVICE void fetch(int i, Packed* to, const T* x, Barrier& barrier) const {
        u32 first = begin + part(i), last = begin + part(i + 1);
        if (first == last) return;
        for (u32 row = first / per_row + lane(); row * per_row < last; row += WARP) {
            u32 from = row * per_row, until = from + per_row;
            from = from < first ? first : from, until = until < last ? until : last;
            load_bytes(to + (from - begin), x + at(from - begin), (until - from) * 16, barrier);
        }
    }
};

// What the blocks of a cluster tell each other: two numbers, or the halves of one in f64 and a third.
struct Told {
    float a, b, c;
};
DEVICE double load_wide(u32 rank, const Told& told) {
    return __hiloint2double((int)bits_of(load_from(rank, &told.b)), (int)bits_of(load_from(rank, &told.a)));
}

// The barriers of the parts, each of which brings `bytes` bytes for a pack.
DEVICE void expect(Barrier (&barrier)[CHUNKS], const Share& mine, u32 bytes) {
    if (thread() == 0) {
        for (int i = 0; i < CHUNKS; ++i) barrier[i].init(1);
        barrier_init_fence();
        for (int i = 0; i < CHUNKS; ++i) barrier[i].arrive_expect((mine.part(i + 1) - mine.part(i)) * bytes);
    }
    block_sync();
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 4) batch_norm_fwd_whole(
    T* y, float* new_mean, float* new_var, float* mean, float* rstd, const T* x, const T* weight, const T* bias,
    const float* running_mean, const float* running_var, int batch, int channels, int space, int share, float eps, float kept,
    float taken, float taken_unbiased) {
    follow();
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ Barrier barrier[CHUNKS];
    __shared__ Told told;
    __shared__ BlockScratch<GROUP_THREADS> scratch;
    Packed* held = (Packed*)memory;
    Share mine(batch, channels, space, share);
    u32 packs = mine.packs(), c = mine.channel;
    expect(barrier, mine, 16);
    if (warp_id() == 0) {
        for (int i = 0; i < CHUNKS; ++i) mine.fetch(i, held, x, barrier[i]);
    }
    float scale = widen(weight[c]), offset = widen(bias[c]);
    double total[1] = {0.0};
    for (int part = 0; part < CHUNKS; ++part) {
        barrier[part].wait(0);
        for (u32 k = mine.part(part) + thread(); k < mine.part(part + 1); k += GROUP_THREADS) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < W; ++i) {
                if constexpr (IS_NARROW) {
                    sum += held[k].get(i);
                } else {
                    total[0] += (double)held[k].get(i);
                }
            }
            total[0] += (double)sum;
        }
    }
    Team{GROUP_THREADS}.sum(total);
    float own = packs ? (float)(total[0] / (double)(packs * W)) : 0.0f, square = 0.0f;
    for (u32 k = thread(); k < packs; k += GROUP_THREADS) {
#pragma unroll
        for (int i = 0; i < W; ++i) {
            float d = held[k].get(i) - own;
            square = fmaf(d, d, square);
        }
    }
    square = block_sum(square, scratch);
    if (thread() == 0) told = Told{float_of((u32)__double2loint(total[0])), float_of((u32)__double2hiint(total[0])), square};
    cluster_sync();
    u32 blocks = cluster_size(), rank = lane() < (int)blocks ? lane() : 0, all = (u32)batch * mine.per_row;
    float n = lane() < (int)blocks ? mine.count(rank, share, all) : 0.0f, count = (float)(all * W);
    double of_all = n > 0.0f ? load_wide(rank, told) : 0.0, of_its = of_all;
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) of_all += lane_xor(of_all, step);
    double middle = of_all / (double)count;
    float d = n > 0.0f ? (float)(of_its / (double)n - middle) : 0.0f, its_square = n > 0.0f ? load_from(rank, &told.c) : 0.0f;
    float variance = divide(warp_sum(fmaf(mul(n, d), d, its_square)), count);
    float m = (float)middle, s = inverse_root(variance + eps);
    if (cluster_rank() == 0 && thread() == 0) {
        new_mean[c] = fmaf(running_mean[c], kept, m * taken);
        new_var[c] = fmaf(running_var[c], kept, variance * taken_unbiased);
        mean[c] = m;
        rstd[c] = s;
    }
    cluster_arrive();
    float slope = scale * s, level = fmaf(-m, slope, offset);
    for (int part = 0; part < CHUNKS; ++part) {
        for (u32 k = mine.part(part) + thread(); k < mine.part(part + 1); k += GROUP_THREADS) {
            float v[W];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float number = held[k].get(i);
                v[i] = IS_NARROW ? fmaf(number, slope, level) : fmaf(number - m, slope, offset);
            }
            store_once<T, W>(y + mine.at(k), v);
        }
    }
    cluster_wait();
}

// All gradients under statistics of the batch; d_mean and d_var flow to the new statistics, if they are there: mean_share = m / n,
// var_share = 2 * m / (n - 1).
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 2) batch_norm_bwd_whole(
    T* dx, T* dweight, T* dbias, const T* x, const T* weight, const float* mean, const float* rstd, const T* dy, const float* d_mean,
    const float* d_var, int batch, int channels, int space, int share, float n, float mean_share, float var_share, int add_dx,
    int add_dweight, int add_dbias) {
    follow();
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ Barrier barrier[CHUNKS];
    __shared__ Told told;
    __shared__ BlockScratch<GROUP_THREADS> scratch;
    Packed *numbers = (Packed*)memory, *gradients = numbers + share;
    Share mine(batch, channels, space, share);
    u32 c = mine.channel;
    expect(barrier, mine, 32);
    if (warp_id() == 0) {
        for (int i = 0; i < CHUNKS; ++i) mine.fetch(i, numbers, x, barrier[i]), mine.fetch(i, gradients, dy, barrier[i]);
    }
    float m = mean[c], s = rstd[c], scale = widen(weight[c]) * s, sum = 0.0f, product = 0.0f;
    for (int part = 0; part < CHUNKS; ++part) {
        barrier[part].wait(0);
        for (u32 k = mine.part(part) + thread(); k < mine.part(part + 1); k += GROUP_THREADS) {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float d = gradients[k].get(i), number = numbers[k].get(i) - m;
                sum += d;
                product = fmaf(d, IS_NARROW ? number : number * s, product);
            }
        }
    }
    if (IS_NARROW) product *= s;
    block_sum2(sum, product, scratch);
    if (thread() == 0) told = Told{sum, product};
    cluster_sync();
    sum = product = 0.0f;
    for (u32 rank = 0; rank < cluster_size(); ++rank) sum += load_from(rank, &told.a), product += load_from(rank, &told.b);
    if (cluster_rank() == 0 && thread() == 0) {
        if (dweight) put(dweight + c, product, add_dweight);
        if (dbias) put(dbias + c, sum, add_dbias);
    }
    float shift = divide(mul(scale, sum), n), slope = divide(mul(scale, product), n);
    if (d_mean) shift = fmaf(-d_mean[c], mean_share, shift);
    if (d_var) slope -= divide(d_var[c] * var_share, s);
    cluster_arrive();
    float slant = -s * slope, level = -fmaf(m, slant, shift);
    for (int part = 0; part < CHUNKS; ++part) {
        for (u32 k = mine.part(part) + thread(); k < mine.part(part + 1); k += GROUP_THREADS) {
            float v[W];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float number = numbers[k].get(i), d = gradients[k].get(i);
                v[i] = IS_NARROW ? fmaf(d, scale, fmaf(number, slant, level)) : fmaf((m - number) * s, slope, mul(d, scale) - shift);
            }
            if (add_dx) {
                put<T, W>(dx + mine.at(k), v, 1);
            } else {
                store_once<T, W>(dx + mine.at(k), v);
            }
        }
    }
    cluster_wait();
}
