// adamw_product: adamw of a weight matrix whose gradient is dy^T * x: made a tile at a time where the update reads it, and never stored.
// axes      param, m, v and what they were before [N, K], in the same place or another; dy [R, N], x [R, K]; one of half and brain, or
//           none: [N, K], the new param in 16 bits
// types     T in {f32, bf16, f16}, the type of dy and x, sums in f32; m and v in f32 or, by name, in bf16; param in f32
// rounding  as adamw, which has the numbers of the step made: see kernels/adamw/adamw.cu; the gradient is not rounded
// launch    256 threads a tile of 64 x 128 of param, tiles of a row of tiles one after the other; any N, K, R
// skip      with `ready`, whose last number is not 0, nothing is written: gradients that are not finite
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for bf16 and f16
// paths     packs of 4 numbers where K is a multiple of 4 and all are aligned to them, else single numbers
// traffic   reads param, m, v, writes them and a shadow if there is one, each once; 192 R numbers of dy and x a tile, out of the cache
// floor     24 bytes a number with moments in f32 and 2 of a shadow, where adamw has 2 or 4 more, and the product before it writes as many;
//           the product of 64 rows is 128 FLOP a number, a fifth of the time of the bytes at most; not measured yet
// order     every number alone, its terms in the order of R: same input, same bits
// budget    sm_80 80 registers, sm_90a 80, gfx90a 160, gfx942 160; no spills
// source    Loshchilov, Hutter 2019, algorithm 2; a gradient is an outer product a sample: Goodfellow 2015, "Efficient per-example gradient
//           computations"

#include "common/adamw.cuh"
#include "common/outer.cuh"
#include "common/totals.cuh"

// Packs of a thread that are under way at once.
constexpr int PACKS = 2;
// Blocks at once on a multiprocessor of NVIDIA's: while one multiplies the others move. More than 3 fit where 64 registers do.
#if defined(ON_NVIDIA) && __CUDA_ARCH__ >= 900
constexpr int BLOCKS = sizeof(T) == 2 ? 4 : 3;
#else
constexpr int BLOCKS = 3;
#endif

// The tile of a block.
struct Place {
    i64 row, column;
    DEVICE Place(i64 tile, i64 columns) {
        i64 across = (columns + COLUMNS - 1) / COLUMNS, down = quotient(tile, across);
        row = down * ROWS, column = (tile - down * across) * COLUMNS;
    }
};

// Packs of W numbers of a tile: which a thread has.
template <int W> struct Share {
    static constexpr int ACROSS = COLUMNS / W, DOWN = OUTER_THREADS / ACROSS, COUNT = ROWS / DOWN;
    int row, column;
    DEVICE Share() : row((int)thread() / ACROSS), column((int)thread() % ACROSS * W) {}
};

template <typename M>
DEVICE void step_of(const State<M>& to, const Shadow& shadow, const Before<M>& from, const Side& dy, const Side& x, i64 depth,
                    i64 place, const float* ready, Rates rates, Dice dice) {
    constexpr int BYTES = ROWS * SUMS_STRIDE * 4 > Outer::BYTES ? ROWS * SUMS_STRIDE * 4 : Outer::BYTES;
    alignas(16) __shared__ char smem[BYTES];
    if (!is_made(ready, rates, dice)) return;
    float* sums = (float*)smem;
    i64 rows = dy.length, columns = x.length;
    Place tile(block_x(), columns);
    bool is_wide = columns % 4 == 0 && are_aligned<4>(to, shadow, from);
    Share<4> mine;
    Old<M, 4> old[PACKS];
    i64 at = (tile.row + mine.row) * columns + tile.column + mine.column;
    bool is_inside = tile.column + mine.column < columns;
    int left = (int)least(rows - tile.row - mine.row, ROWS);
    {
        Outer product;
        product.clear();
        product.add(dy, x, depth, tile.row, tile.column, smem);
        block_sync();
        product.put(sums);
    }
    block_sync();
    if (is_wide) {
#pragma unroll 1
        for (int i = 0; i < mine.COUNT; i += PACKS) {
#pragma unroll
            for (int k = 0; k < PACKS; ++k) {
                int down = (i + k) * mine.DOWN;
                if (is_inside && down < left) old[k].load(from, at + down * columns);
            }
#pragma unroll
            for (int k = 0; k < PACKS; ++k) {
                int down = (i + k) * mine.DOWN;
                if (!is_inside || down >= left) continue;
                float g[4];
                load_kept<f32, 4>(sums + (mine.row + down) * SUMS_STRIDE + mine.column).unpack(g);
                i64 here = at + down * columns;
                step_pack<M, 4>(to, shadow, old[k], g, here, place + here, rates, dice, [](int) { return true; });
            }
        }
        return;
    }
    for (int i = thread(); i < ROWS * COLUMNS; i += OUTER_THREADS) {
        int row = i / COLUMNS, column = i % COLUMNS;
        if (tile.row + row >= rows || tile.column + column >= columns) continue;
        i64 here = (tile.row + row) * columns + tile.column + column;
        Old<M, 1> one;
        one.load(from, here);
        float g[1] = {sums[row * SUMS_STRIDE + column]};
        step_pack<M, 1>(to, shadow, one, g, here, place + here, rates, dice, [](int) { return true; });
    }
}

extern "C" __global__ void __launch_bounds__(OUTER_THREADS, BLOCKS)
    adamw_product_fwd(f32* param, f32* m, f32* v, f16* half, bf16* brain, const f32* old_param, const f32* old_m, const f32* old_v,
    const T* dy, const T* x, i64 rows, i64 columns, i64 depth, const float* ready, float factor, float keep, float toward, float beta2,
    float take, float rate, float root, float eps) {
    follow();
    step_of<f32>({param, m, v}, {half, brain}, {old_param, old_m, old_v}, {dy, rows}, {x, columns}, depth, 0, ready,
                {factor, keep, toward, beta2, take, rate, root, eps}, {0, 0});
}

// The same with moments in bf16, of the step `step` unless the device knows it; the first number is `place` of all that draw.
extern "C" __global__ void __launch_bounds__(OUTER_THREADS, BLOCKS)
    adamw_product_fwd_stochastic(f32* param, bf16* m, bf16* v, f16* half, bf16* brain, const f32* old_param, const bf16* old_m,
    const bf16* old_v, const T* dy, const T* x, i64 rows, i64 columns, i64 depth, const float* ready, float factor, float keep,
    float toward, float beta2, float take, float rate, float root, float eps, i64 seed, i64 step, i64 place) {
    follow();
    step_of<bf16>({param, m, v}, {half, brain}, {old_param, old_m, old_v}, {dy, rows}, {x, columns}, depth, place, ready,
                {factor, keep, toward, beta2, take, rate, root, eps}, {seed, step});
}

// Sums of squares of the gradient, an f64 a block: block (row of tiles, share) has every `shares`-th tile of its row from `share` on.
extern "C" __global__ void __launch_bounds__(OUTER_THREADS, 3)
    adamw_product_fwd_squares(float* sums, const T* dy, const T* x, i64 rows, i64 columns, i64 depth, int shares) {
    follow();
    alignas(16) __shared__ char smem[Outer::BYTES];
    i64 down = block_x() / (u32)shares, across = (columns + COLUMNS - 1) / COLUMNS;
    double total[1] = {0.0};
    for (i64 c = block_x() % (u32)shares; c < across; c += shares) {
        Outer product;
        product.clear();
        product.add({dy, rows}, {x, columns}, depth, down * ROWS, c * COLUMNS, smem);
        float few = 0.0f;
        product.each([&](float g) { few = fmaf(g, g, few); });
        if (few > 1e-30f && few < infinity()) {
            total[0] += few;
        } else {
            product.each([&](float g) { total[0] = fused(g, g, total[0]); });
        }
        block_sync();
    }
    Team{OUTER_THREADS}.sum(total);
    if (thread() == 0) ((double*)sums)[block_x()] = total[0];
}
