// matmul: y = activation(x * w + bias) and its gradients, as one product of two matrices in any of the four orientations.
// axes      a(m, k), b(k, n), y [M, N] row-major; of each operand one stride is 1
// types     T in {f32, bf16, f16}, sums in f32; bias [N] T; pre [M, N] f32
// launch    256 threads a 128 x 128 tile of y: grid [ceil(N / 128), ceil(M / 128)]; any M, N, K
// paths     16-byte loads of global memory where an operand starts and steps by multiples of 16 bytes, else single numbers
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for all types; f32 on NVIDIA is FFMA, 8 x 8 a thread
// traffic   every tile reads 128 rows of a and 128 of b: (M N K / 128) * 2 numbers; y once
// order     k ascending in one block: same input, same bits
// budget    sm_80 248 registers, sm_90a 248, gfx90a 296, gfx942 296; no spills
// source    Goto, van de Geijn 2008 for the blocking; PTX ISA and AMD's matrix calculator for the fragments

#include "common/mma.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 128;
constexpr int WIDTH = WIDE<T>;               // numbers of a 16-byte load
constexpr int DEPTH = sizeof(T) == 4 ? 16 : 32;  // k of one stage
constexpr int LOADS = TILE * DEPTH / WIDTH / THREADS;

#ifdef ON_NVIDIA
constexpr bool HAS_MATRIX_UNIT = sizeof(T) == 2;
#else
constexpr bool HAS_MATRIX_UNIT = true;
#endif

// Shared memory of one operand. For the matrix unit k is fastest, rows 16 bytes apart more than they are long: then the eight rows that a
// fragment reads at once lie in different banks. For FFMA the row is fastest: a thread reads eight neighbours.
constexpr int STRIDE = HAS_MATRIX_UNIT ? DEPTH + 16 / (int)sizeof(T) : TILE + 4;
constexpr int ROOM = HAS_MATRIX_UNIT ? TILE * STRIDE : DEPTH * STRIDE;

DEVICE int place(int row, int k) { return HAS_MATRIX_UNIT ? row * STRIDE + k : k * STRIDE + row; }

// An operand as [rows, K]: where it starts, its strides, its lengths.
struct Operand {
    const T* at;
    i64 row_stride, k_stride;
    i64 rows, depth;
    bool is_wide;
};

DEVICE Operand operand(const T* at, i64 row_stride, i64 k_stride, i64 rows, i64 depth) {
    i64 step = k_stride == 1 ? row_stride : k_stride;
    return {at, row_stride, k_stride, rows, depth, is_aligned<16>(at) && step % WIDTH == 0};
}

// The part of a stage that a thread moves: LOADS packs, each along the stride of 1.
struct Stage {
    Pack<T, WIDTH> pack[LOADS];
};

// Row and k of the first number of pack i.
DEVICE void pack_place(const Operand& o, int i, int& row, int& k) {
    int index = i * THREADS + thread();
    if (o.k_stride == 1) {
        row = index / (DEPTH / WIDTH), k = index % (DEPTH / WIDTH) * WIDTH;
    } else {
        row = index % (TILE / WIDTH) * WIDTH, k = index / (TILE / WIDTH);
    }
}

DEVICE T zero_of() {
    T z;
    z = narrow<T>(0.0f);
    return z;
}

DEVICE Pack<T, WIDTH> fetch(const Operand& o, i64 row, i64 k) {
    bool along_k = o.k_stride == 1;
    bool is_inside = along_k ? row < o.rows && k + WIDTH <= o.depth : row + WIDTH <= o.rows && k < o.depth;
    if (o.is_wide && is_inside) return load_kept<T, WIDTH>(o.at + row * o.row_stride + k * o.k_stride);
    union {
        Pack<T, WIDTH> pack;
        T number[WIDTH];
    } p;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        i64 r = along_k ? row : row + i, c = along_k ? k + i : k;
        p.number[i] = r < o.rows && c < o.depth ? o.at[r * o.row_stride + c * o.k_stride] : zero_of();
    }
    return p.pack;
}

DEVICE void fetch_stage(const Operand& o, i64 row0, i64 k0, Stage& stage) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        int row, k;
        pack_place(o, i, row, k);
        stage.pack[i] = fetch(o, row0 + row, k0 + k);
    }
}

DEVICE void keep_stage(const Operand& o, const Stage& stage, T* smem) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        int row, k;
        pack_place(o, i, row, k);
        if ((o.k_stride == 1) == HAS_MATRIX_UNIT) {
            store<T, WIDTH>(smem + place(row, k), stage.pack[i]);
            continue;
        }
        union {
            Pack<T, WIDTH> pack;
            T number[WIDTH];
        } p;
        p.pack = stage.pack[i];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            smem[o.k_stride == 1 ? place(row, k + j) : place(row + j, k)] = p.number[j];
        }
    }
}

// What becomes of a sum.
struct Epilogue {
    T* y;
    float* pre;
    const T* bias;
    i64 rows, columns;
    int activation;
    int add;
};

DEVICE float activate(float z, int activation);

// Sums go through shared memory, a strip of them at a time: neighbours in memory are then written by neighbouring lanes, and the
// text of the activations exists once and not once a sum.
DEVICE void finish(const Epilogue& e, i64 row, i64 column, float sum) {
    if (row >= e.rows || column >= e.columns) return;
    if (e.bias) sum += widen(e.bias[column]);
    i64 at = row * e.columns + column;
    if (e.pre) e.pre[at] = sum;
    put(e.y + at, activate(sum, e.activation), e.add);
}

// The warps of a block, as a grid over the tile: on 8 warps 2 x 4 of 64 x 32, on 4 warps 2 x 2 of 64 x 64.
constexpr int WARPS = THREADS / WARP;
constexpr int WARP_ROWS = TILE / 2;
constexpr int WARP_COLUMNS = TILE / (WARPS / 2);

template <typename U> struct MatrixUnit {
    static constexpr int M = WARP_ROWS / 16, N = WARP_COLUMNS / 16;
    Tile16 sum[M][N];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int j = 0; j < N; ++j) sum[i][j].clear();
    }
    DEVICE int row0() const { return warp_id() / (WARPS / 2) * WARP_ROWS; }
    DEVICE int column0() const { return warp_id() % (WARPS / 2) * WARP_COLUMNS; }

    DEVICE void multiply(const U* a, const U* b) {
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            Frag16<U> fa[M];
#pragma unroll
            for (int i = 0; i < M; ++i) fa[i].load_a(a + place(row0() + 16 * i, k), STRIDE);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                Frag16<U> fb;
                fb.load_b(b + place(column0() + 16 * j, k), STRIDE);
#pragma unroll
                for (int i = 0; i < M; ++i) mma16<U>(sum[i][j], fa[i], fb);
            }
        }
    }
    // A strip: 16 rows of every warp.
    DEVICE void store_to(const Epilogue& e, i64 row, i64 column, float* smem) {
        float* mine = smem + warp_id() * (16 * WARP_COLUMNS);
#pragma unroll
        for (int i = 0; i < M; ++i) {
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int v = 0; v < Tile16::NUMBERS; ++v)
                    mine[Tile16::row(v) * WARP_COLUMNS + 16 * j + Tile16::column(v)] = sum[i][j].v[v];
            block_sync();
            for (int at = lane(); at < 16 * WARP_COLUMNS; at += WARP)
                finish(e, row + row0() + 16 * i + at / WARP_COLUMNS, column + column0() + at % WARP_COLUMNS, mine[at]);
            block_sync();
        }
    }
};

// A thread's 8 x 8 sums: rows and columns in two runs of four, 64 apart, so that a warp's reads of shared memory do not collide.
struct ScalarUnit {
    float sum[8][8];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[i][j] = 0.0f;
    }
    DEVICE int at(int first, int i) const { return first * 4 + i % 4 + i / 4 * 64; }

    DEVICE void multiply(const T* a, const T* b) {
        int ty = thread() / 16, tx = thread() % 16;
#pragma unroll 4
        for (int k = 0; k < DEPTH; ++k) {
            float fa[8], fb[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                fa[i] = widen(a[place(at(ty, i), k)]);
                fb[i] = widen(b[place(at(tx, i), k)]);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(fa[i], fb[j], sum[i][j]);
        }
    }
    // A strip: the i-th row of every thread.
    DEVICE void store_to(const Epilogue& e, i64 row, i64 column, float* smem) {
        int ty = thread() / 16, tx = thread() % 16;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) smem[ty * TILE + at(tx, j)] = sum[i][j];
            block_sync();
            for (int k = thread(); k < 16 * TILE; k += THREADS)
                finish(e, row + at(k / TILE, i), column + k % TILE, smem[k]);
            block_sync();
        }
    }
};

template <bool MATRIX> struct UnitOf {
    using Type = MatrixUnit<T>;
};
template <> struct UnitOf<false> {
    using Type = ScalarUnit;
};

// The product: stage k + 1 is on its way from memory while stage k is multiplied.
DEVICE void product(const Operand& a, const Operand& b, const Epilogue& e) {
    alignas(16) __shared__ T smem[2 * ROOM];
    static_assert(sizeof(smem) >= 16 * WARPS * WARP_COLUMNS * sizeof(float) && sizeof(smem) >= 16 * TILE * sizeof(float), "a strip");
    T *sa = smem, *sb = smem + ROOM;
    i64 row = (i64)block_y() * TILE, column = (i64)block_x() * TILE;
    typename UnitOf<HAS_MATRIX_UNIT>::Type unit;
    unit.clear();
    Stage next_a, next_b;
    fetch_stage(a, row, 0, next_a);
    fetch_stage(b, column, 0, next_b);
    for (i64 k = 0; k < a.depth; k += DEPTH) {
        keep_stage(a, next_a, sa);
        keep_stage(b, next_b, sb);
        block_sync();
        if (k + DEPTH < a.depth) {
            fetch_stage(a, row, k + DEPTH, next_a);
            fetch_stage(b, column, k + DEPTH, next_b);
        }
        unit.multiply(sa, sb);
        block_sync();
    }
    unit.store_to(e, row, column, (float*)smem);
}

constexpr float ROOT_HALF = 0.70710678118654752f;
constexpr float INNER = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float CUBE = 0.044715f * INNER;
constexpr float DENSITY = 0.39894228040143268f;  // 1 / sqrt(2 pi)

enum { NONE, GELU, GELU_TANH, RELU, SILU };

DEVICE float activate(float z, int activation) {
    switch (activation) {
    case GELU: return z * fmaf(0.5f, erf_f32(z * ROOT_HALF), 0.5f);
    case GELU_TANH: return 0.5f * z * (1.0f + tanh_f32(z * fmaf(CUBE, z * z, INNER)));
    case RELU: return z > 0.0f ? z : (z <= 0.0f ? 0.0f : z);
    case SILU: return z * sigmoid_f32(z);
    default: return z;
    }
}

// The activation's derivative times dy; z is what it was applied to, for RELU what it gave.
DEVICE float derive(float z, float dy, int activation) {
    switch (activation) {
    case GELU: return dy * fmaf(z * DENSITY, exp_f32(-0.5f * (z * z)), fmaf(0.5f, erf_f32(z * ROOT_HALF), 0.5f));
    case GELU_TANH: {
        float square = z * z, t = tanh_f32(z * fmaf(CUBE, square, INNER)), slope = fmaf(3.0f * CUBE, square, INNER);
        return dy * (0.5f * fmaf(z * fmaf(-t, t, 1.0f), slope, 1.0f + t));
    }
    case RELU: return z > 0.0f ? dy : (z <= 0.0f ? 0.0f : z);
    case SILU: {
        float s = sigmoid_f32(z);
        return dy * (s * fmaf(z, 1.0f - s, 1.0f));
    }
    default: return dy;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_fwd(T* y, float* pre, const T* a, const T* b, const T* bias, i64 rows, i64 columns, i64 depth, i64 a_row, i64 a_k,
               i64 b_column, i64 b_k, int activation, int add) {
    product(operand(a, a_row, a_k, rows, depth), operand(b, b_column, b_k, columns, depth),
            Epilogue{y, pre, bias, rows, columns, activation, add});
}

template <int W>
DEVICE void finish_pack(T* y, float* pre, const float* sums, const T* bias, i64 at, i64 columns, int activation) {
    float z[W], b[W];
    load_kept<float, W>(sums + at).unpack(z);
    if (bias) {
        load_kept<T, W>(bias + at % columns).unpack(b);
#pragma unroll
        for (int i = 0; i < W; ++i) z[i] += b[i];
    }
    if (pre) store<float, W>(pre + at, z);
#pragma unroll
    for (int i = 0; i < W; ++i) z[i] = activate(z[i], activation);
    store<T, W>(y + at, z);
}

constexpr int FINISHED = 4;  // numbers of a thread

// y = activation(sums + bias) where a library made the sums, n = rows * columns of them; pre takes sums + bias and may be sums.
extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_finish(T* y, float* pre, const float* sums, const T* bias, i64 n, i64 columns, int activation) {
    i64 at = ((i64)block_x() * THREADS + thread()) * FINISHED;
    bool all_aligned = is_aligned<16>(y) && is_aligned<16>(pre) && is_aligned<16>(sums) && is_aligned<16>(bias);
    if (all_aligned && columns % FINISHED == 0) {
        if (at < n) finish_pack<FINISHED>(y, pre, sums, bias, at, columns, activation);
        return;
    }
    i64 end = least(n, at + FINISHED);
    for (; at < end; ++at) finish_pack<1>(y, pre, sums, bias, at, columns, activation);
}

// dz = dy * activation'(z), rounded as an unfused product would store it; z in f32 where it was saved, else y.
extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_bwd_dz(T* dz, const float* z, const T* y, const T* dy, i64 n, int activation) {
    i64 at = (i64)block_x() * (THREADS * 4) + thread();
#pragma unroll
    for (int i = 0; i < 4; ++i, at += THREADS) {
        if (at < n) dz[at] = narrow<T>(derive(z ? z[at] : widen(y[at]), widen(dy[at]), activation));
    }
}

constexpr int STRIP = 64;            // columns of a block
constexpr int LINES = THREADS / STRIP;  // rows it reads at once

// Column sums, first stage: block (x, y) sums rows [y * length, (y + 1) * length) of 64 columns into part [parts, columns].
extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_bwd_dbias_parts(float* part, const T* dz, i64 rows, i64 columns, i64 length) {
    __shared__ float sums[LINES][STRIP];
    int line = thread() / STRIP, within = thread() % STRIP;
    i64 column = (i64)block_x() * STRIP + within;
    i64 first = block_y() * length, end = least(rows, first + length);
    float sum = 0.0f;
    if (column < columns)
        for (i64 r = first + line; r < end; r += LINES) sum += widen(dz[r * columns + column]);
    sums[line][within] = sum;
    block_sync();
    if (line == 0 && column < columns) {
#pragma unroll
        for (int l = 1; l < LINES; ++l) sum += sums[l][within];
        part[block_y() * columns + column] = sum;
    }
}

// Second stage: the parts in their order.
extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_bwd_dbias(T* dbias, const float* part, i64 parts, i64 columns, int add_dbias) {
    i64 column = (i64)block_x() * THREADS + thread();
    if (column >= columns) return;
    float sum = 0.0f;
    for (i64 p = 0; p < parts; ++p) sum += part[p * columns + column];
    put(dbias + column, sum, add_dbias);
}
