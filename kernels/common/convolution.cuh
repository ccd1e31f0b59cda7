// convolution: what conv1d and conv2d share: results, gradients of inputs and gradients of weights as one product, whose right operand is
// gathered from an image while it is multiplied.
// product   sum(m, n) = sum over k of left(m, k) * image(n, k): in FORWARD m is an output channel, n an output, k a tap; in INPUT m is an
//           input channel, n an input, k a tap seen from there; in WEIGHT m is an output channel, n a tap, k an output
// launch    CONV_THREADS threads a tile of CONV_TILE x CONV_TILE sums; _thin: a thread a sum, or a block a sum of gradients of weights,
//           where a group has so few rows that tiles would be empty
// padding   what lies outside the image is 0 in a tile; where that may have made a NaN, the sum is taken again of the numbers inside alone
// order     k ascending; gradients of weights and biases in stretches of k, the stretches by common/columns.cuh: same input, same bits

#pragma once
#include "common/columns.cuh"
#include "common/mma.cuh"

constexpr int CONV_THREADS = 128;
constexpr int CONV_TILE = 64;
constexpr int CONV_DEPTH = 16;  // k of one stage

#ifdef ON_NVIDIA
constexpr bool HAS_MATRIX_UNIT = sizeof(T) == 2;
#else
constexpr bool HAS_MATRIX_UNIT = true;
#endif

// Sizes of one application; rows before columns. cin, cout: channels of a group.
struct Window {
    int batch, groups, cin, cout;
    int input[2], kernel[2], output[2], stride[2], padding[2], dilation[2];

    DEVICE int input_plane() const { return input[0] * input[1]; }
    DEVICE int output_plane() const { return output[0] * output[1]; }
    DEVICE int kernel_plane() const { return kernel[0] * kernel[1]; }
};

// The same where rows are known to be one: what follows from it the compiler leaves out.
DEVICE Window one_row(Window w) {
    w.input[0] = w.kernel[0] = w.output[0] = w.stride[0] = w.dilation[0] = 1;
    w.padding[0] = 0;
    return w;
}

// What n, or k, says about a number of the image: the sum of both is its plane, row and column.
struct Spot {
    i64 at;
    int row, column;
};

// The k of a stage: its spot, and what it adds to the place of the left operand; -1 beyond the last.
struct Depth {
    Spot spot;
    i64 left;
};

enum { FORWARD, INPUT, WEIGHT };

template <int PASS> struct Product {
    Window w;
    const T* left;   // [m, k]: m * row numbers on
    const T* image;
    i64 row;

    // Both operands as whole tensors.
    DEVICE Product(const Window& window, const T* whole_left, const T* whole_image, int group) : w(window) {
        i64 x = (i64)group * w.cin * w.input_plane(), y = (i64)group * w.cout * w.output_plane();
        i64 weights = (i64)group * w.cout * w.cin * w.kernel_plane();
        left = whole_left + (PASS == WEIGHT ? y : weights);
        image = whole_image + (PASS == INPUT ? y : x);
        row = PASS == FORWARD ? w.cin * w.kernel_plane() : PASS == INPUT ? w.kernel_plane() : w.output_plane();
    }

    DEVICE int rows() const { return PASS == INPUT ? w.cin : w.cout; }
    DEVICE int columns() const {
        return PASS == WEIGHT ? w.cin * w.kernel_plane() : w.batch * (PASS == FORWARD ? w.output_plane() : w.input_plane());
    }
    DEVICE int depth() const {
        return PASS == WEIGHT ? w.batch * w.output_plane() : (PASS == FORWARD ? w.cin : w.cout) * w.kernel_plane();
    }

    // Place i of [batch, plane]: the first number that its window reads; of an input, the output that reads it with the first tap.
    DEVICE Spot place(int i, i64& left_at) const {
        const int* plane = PASS == INPUT ? w.input : w.output;
        u32 sample = (u32)i / (u32)(plane[0] * plane[1]), at = i - sample * (plane[0] * plane[1]);
        int r = at / (u32)plane[1], c = at - r * plane[1];
        left_at = (i64)sample * w.groups * w.cout * w.output_plane() + at;
        if (PASS == INPUT) return {(i64)sample * w.groups * w.cout * w.output_plane(), r + w.padding[0], c + w.padding[1]};
        i64 first = (i64)sample * w.groups * w.cin * w.input_plane();
        return {first, r * w.stride[0] - w.padding[0], c * w.stride[1] - w.padding[1]};
    }
    // Tap i of [channels, kernel].
    DEVICE Spot tap(int i, i64& left_at) const {
        u32 channel = (u32)i / (u32)w.kernel_plane(), at = i - channel * w.kernel_plane();
        int r = at / (u32)w.kernel[1], c = at - r * w.kernel[1];
        left_at = PASS == INPUT ? (i64)channel * w.cin * w.kernel_plane() + at : i;
        r *= w.dilation[0], c *= w.dilation[1];
        if (PASS == INPUT) return {(i64)channel * w.output_plane(), -r, -c};
        return {(i64)channel * w.input_plane(), r, c};
    }
    DEVICE Spot of_column(int n) const {
        i64 unused;
        return PASS == WEIGHT ? tap(n, unused) : place(n, unused);
    }
    DEVICE Depth of_depth(int k, int end) const {
        if (k >= end) return {{0, -(1 << 30), 0}, -1};
        Depth d;
        d.spot = PASS == WEIGHT ? place(k, d.left) : tap(k, d.left);
        return d;
    }

    // Whether the image has a number there, and where.
    DEVICE bool find(const Spot& a, const Spot& b, i64& at) const {
        int r = a.row + b.row, c = a.column + b.column;
        const int* plane = PASS == INPUT ? w.output : w.input;
        if constexpr (PASS == INPUT) {
            // Outputs are `stride` apart as seen from the inputs.
            if (r < 0 || c < 0) return false;
            if (w.stride[0] != 1 || w.stride[1] != 1) {
                int above = (u32)r / (u32)w.stride[0], before = (u32)c / (u32)w.stride[1];
                if (above * w.stride[0] != r || before * w.stride[1] != c) return false;
                r = above, c = before;
            }
        }
        at = a.at + b.at + (i64)r * plane[1] + c;
        return (u32)r < (u32)plane[0] && (u32)c < (u32)plane[1];
    }

    // Calls f(left, image) for k = first, first + step, .. where the image has a number.
    template <typename F> DEVICE void each_term(int m, int n, int first, int end, int step, F f) const {
        Spot column = of_column(n);
#pragma unroll 1
        for (int k = first; k < end; k += step) {
            Depth d = of_depth(k, end);
            i64 at;
            if (find(column, d.spot, at)) f(widen(left[m * row + d.left]), widen(image[at]));
        }
    }
    // One sum, of the terms alone that exist.
    DEVICE float plain_sum(int m, int n, int begin, int end) const {
        float sum = 0.0f;
        each_term(m, n, begin, end, 1, [&](float a, float b) { sum = fmaf(a, b, sum); });
        return sum;
    }
};

// Shared memory of one operand, as in matmul: for the matrix unit k is fastest, else rows are.
constexpr int CONV_STRIDE = HAS_MATRIX_UNIT ? CONV_DEPTH + 16 / (int)sizeof(T) : CONV_TILE + 4;
constexpr int CONV_ROOM = HAS_MATRIX_UNIT ? CONV_TILE * CONV_STRIDE : CONV_DEPTH * CONV_STRIDE;
DEVICE int conv_at(int row, int k) { return HAS_MATRIX_UNIT ? row * CONV_STRIDE + k : k * CONV_STRIDE + row; }

struct ConvShared {
    union {
        struct {
            alignas(16) T left[CONV_ROOM];
            alignas(16) T right[CONV_ROOM];
        };
        float sum[CONV_TILE * CONV_TILE];
    };
    Depth depth[CONV_DEPTH];
};

// The warps of a block, as a grid over the tile: on 4 warps 2 x 2 of 32 x 32, on 2 warps 2 x 1 of 32 x 64.
constexpr int CONV_WARPS = CONV_THREADS / WARP;
constexpr int WARP_ROWS = CONV_TILE / 2;
constexpr int WARP_COLUMNS = CONV_TILE / (CONV_WARPS / 2);

template <typename U> struct ConvMatrixUnit {
    static constexpr int M = WARP_ROWS / 16, N = WARP_COLUMNS / 16;
    Tile16 sum[M][N];

    DEVICE int row0() const { return warp_id() / (CONV_WARPS / 2) * WARP_ROWS; }
    DEVICE int column0() const { return warp_id() % (CONV_WARPS / 2) * WARP_COLUMNS; }
    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < M * N; ++i) sum[i / N][i % N].clear();
    }
    DEVICE void multiply(const U* a, const U* b) {
        Frag16<U> fa[M];
#pragma unroll
        for (int i = 0; i < M; ++i) fa[i].load_a(a + conv_at(row0() + 16 * i, 0), CONV_STRIDE);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            Frag16<U> fb;
            fb.load_b(b + conv_at(column0() + 16 * j, 0), CONV_STRIDE);
#pragma unroll
            for (int i = 0; i < M; ++i) mma16<U>(sum[i][j], fa[i], fb);
        }
    }
    DEVICE void put_sums(float* to) const {
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int v = 0; v < Tile16::NUMBERS; ++v)
                    to[(row0() + 16 * i + Tile16::row(v)) * CONV_TILE + column0() + 16 * j + Tile16::column(v)] = sum[i][j].v[v];
    }
};

// A thread's 4 x 8 sums: columns in two runs of four, so that a warp's reads of shared memory do not collide.
struct ConvScalarUnit {
    float sum[4][8];

    DEVICE int row(int i) const { return thread() / 8 * 4 + i; }
    DEVICE int column(int j) const { return thread() % 8 * 4 + j % 4 + j / 4 * 32; }
    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 32; ++i) sum[i / 8][i % 8] = 0.0f;
    }
    DEVICE void multiply(const T* a, const T* b) {
#pragma unroll 4
        for (int k = 0; k < CONV_DEPTH; ++k) {
            float fa[4], fb[8];
#pragma unroll
            for (int i = 0; i < 4; ++i) fa[i] = widen(a[conv_at(row(i), k)]);
#pragma unroll
            for (int j = 0; j < 8; ++j) fb[j] = widen(b[conv_at(column(j), k)]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(fa[i], fb[j], sum[i][j]);
        }
    }
    DEVICE void put_sums(float* to) const {
#pragma unroll
        for (int i = 0; i < 32; ++i) to[row(i / 8) * CONV_TILE + column(i % 8)] = sum[i / 8][i % 8];
    }
};

template <bool MATRIX> struct ConvUnit {
    using Type = ConvMatrixUnit<T>;
};
template <> struct ConvUnit<false> {
    using Type = ConvScalarUnit;
};

// Tile (block_y, block_x) over k in [begin, end): calls finish(m, n, sum) for each of its sums.
template <int PASS, typename F> DEVICE void multiply_tile(const Product<PASS>& p, int begin, int end, F finish) {
    __shared__ ConvShared s;
    constexpr int EACH = CONV_TILE * CONV_DEPTH / CONV_THREADS;
    int row0 = block_y() * CONV_TILE, column0 = block_x() * CONV_TILE;
    int rows = p.rows(), columns = p.columns();
    // Neighbouring threads read neighbours: of the left operand along k, of the image along n. Beyond the last row and column the last
    // is taken again: nobody asks for those sums.
    int k_left = thread() % CONV_DEPTH, m_left = thread() / CONV_DEPTH;
    int n_right = thread() % CONV_TILE, k_right = thread() / CONV_TILE;
    Spot column = p.of_column((int)least(column0 + n_right, columns - 1));
    typename ConvUnit<HAS_MATRIX_UNIT>::Type unit;
    unit.clear();
#pragma unroll 1
    for (int k0 = begin; k0 < end; k0 += CONV_DEPTH) {
        if (thread() < CONV_DEPTH) s.depth[thread()] = p.of_depth(k0 + thread(), end);
        block_sync();
        i64 left_at = s.depth[k_left].left;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int m = m_left + i * (CONV_THREADS / CONV_DEPTH);
            T number = narrow<T>(0.0f);
            if (left_at >= 0) number = p.left[least(row0 + m, rows - 1) * p.row + left_at];
            s.left[conv_at(m, k_left)] = number;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int k = k_right + i * (CONV_THREADS / CONV_TILE);
            T number = narrow<T>(0.0f);
            i64 at;
            if (p.find(column, s.depth[k].spot, at)) number = p.image[at];
            s.right[conv_at(n_right, k)] = number;
        }
        block_sync();
        unit.multiply(s.left, s.right);
    }
    block_sync();
    unit.put_sums(s.sum);
    block_sync();
#pragma unroll 1
    for (int i = thread(); i < CONV_TILE * CONV_TILE; i += CONV_THREADS) {
        int m = row0 + i / CONV_TILE, n = column0 + i % CONV_TILE;
        if (m >= rows || n >= columns) continue;
        float sum = s.sum[i];
        finish(m, n, is_nan(sum) ? p.plain_sum(m, n, begin, end) : sum);
    }
}

// Where the results of channel m of a group lie: [batch, groups * channels, plane], n a place of [batch, plane].
DEVICE i64 conv_result(int channels, int groups, int group, int plane, int m, int n) {
    u32 sample = (u32)n / (u32)plane;
    return (((i64)sample * groups + group) * channels + m) * plane + (n - sample * plane);
}

DEVICE float biased(float sum, const T* bias, int channel) { return bias ? sum + widen(bias[channel]) : sum; }

DEVICE void conv_forward(T* y, const T* x, const T* w, const T* bias, const Window& s) {
    int group = block_z();
    Product<FORWARD> p(s, w, x, group);
    multiply_tile(p, 0, p.depth(), [&](int m, int n, float sum) {
        y[conv_result(s.cout, s.groups, group, s.output_plane(), m, n)] = narrow<T>(biased(sum, bias, group * s.cout + m));
    });
}

DEVICE void conv_input(T* dx, const T* w, const T* dy, const Window& s, int add) {
    int group = block_z();
    Product<INPUT> p(s, w, dy, group);
    multiply_tile(p, 0, p.depth(), [&](int m, int n, float sum) {
        put(dx + conv_result(s.cin, s.groups, group, s.input_plane(), m, n), sum, add);
    });
}

// One sum a thread. Number i of [batch, groups, channels, plane].
template <int PASS> DEVICE float thin_sum(const T* left, const T* image, const Window& s, i64 i, int& channel) {
    int channels = PASS == FORWARD ? s.cout : s.cin, plane = PASS == FORWARD ? s.output_plane() : s.input_plane();
    i64 all = quotient(i, plane), sample = quotient(all, s.groups * channels);
    channel = (int)(all - sample * (s.groups * channels));
    int group = (u32)channel / (u32)channels, place = (int)(i - all * plane);
    Product<PASS> p(s, left, image, group);
    return p.plain_sum(channel - group * channels, (int)sample * plane + place, 0, p.depth());
}

DEVICE void conv_forward_thin(T* y, const T* x, const T* w, const T* bias, const Window& s, i64 count) {
    i64 i = (i64)block_x() * CONV_THREADS + thread();
    if (i >= count) return;
    int channel;
    float sum = thin_sum<FORWARD>(w, x, s, i, channel);
    y[i] = narrow<T>(biased(sum, bias, channel));
}

DEVICE void conv_input_thin(T* dx, const T* w, const T* dy, const Window& s, i64 count, int add) {
    i64 i = (i64)block_x() * CONV_THREADS + thread();
    if (i >= count) return;
    int channel;
    put(dx + i, thin_sum<INPUT>(w, dy, s, i, channel), add);
}

// Sums over a stretch of the outputs of all samples: part [stretches, weights].
DEVICE void conv_weight(f32* part, const T* x, const T* dy, const Window& s, int stretch, int stretches) {
    int group = block_z() / stretches, mine = block_z() - group * stretches;
    Product<WEIGHT> p(s, dy, x, group);
    i64 weights = (i64)s.cout * p.columns();
    f32* to = part + ((i64)mine * s.groups + group) * weights;
    int begin = mine * stretch;
    multiply_tile(p, begin, (int)least(p.depth(), (i64)begin + stretch), [&](int m, int n, float sum) { to[(i64)m * p.columns() + n] = sum; });
}

// The sum of all threads' sums, for the first of them.
DEVICE float add_block(Sum sum) {
    __shared__ Sum all[CONV_THREADS];
    all[thread()] = sum;
    for (int half = CONV_THREADS / 2; half > 0; half /= 2) {
        block_sync();
        if (thread() < half) {
            add_to(sum, all[thread() + half]);
            all[thread()] = sum;
        }
    }
    return value_of(sum);
}

// The same where a group is thin: block (weight, stretch).
DEVICE void conv_weight_thin(f32* part, const T* x, const T* dy, const Window& s, int stretch, i64 weights) {
    int taps = s.cin * s.kernel_plane();
    int channel = (int)quotient(block_x(), taps), tap = block_x() - channel * taps, group = channel / s.cout;
    Product<WEIGHT> p(s, dy, x, group);
    int begin = block_y() * stretch, end = (int)least(p.depth(), (i64)begin + stretch);
    Sum sum{0.0f, 0.0f};
    p.each_term(channel - group * s.cout, tap, begin + thread(), end, CONV_THREADS, [&](float a, float b) { add_product(sum, a, b); });
    float all = add_block(sum);
    if (thread() == 0) part[block_y() * weights + block_x()] = all;
}

// Gradients of biases over a stretch: block (channel, stretch), part [stretches, channels].
DEVICE void conv_bias(f32* part, const T* dy, const Window& s, int stretch) {
    int channels = s.groups * s.cout, plane = s.output_plane();
    i64 end = least((i64)s.batch * plane, ((i64)block_y() + 1) * stretch);
    Sum sum{0.0f, 0.0f};
#pragma unroll 4
    for (i64 k = (i64)block_y() * stretch + thread(); k < end; k += CONV_THREADS) {
        u32 sample = (u32)k / (u32)plane;
        add_to(sum, widen(dy[((i64)sample * channels + block_x()) * plane + (k - (i64)sample * plane)]));
    }
    float all = add_block(sum);
    if (thread() == 0) part[(i64)block_y() * channels + block_x()] = all;
}
