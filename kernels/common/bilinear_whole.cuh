// bilinear_whole: resize_bilinear where the columns grow 2, 4 or 8 times or shrink to half, pixels being areas: which columns take part,
// and with what weights, is known when this is compiled; rows are of any number.
// lanes     a lane has N columns of y forward, of dy backward, neighbours or runs of them, which it moves 16 bytes at a time
// halo      backward growing columns give to the columns of x of neighbouring lanes, too: tiles overlap by two lanes
// order     forward every number alone; backward rows, then columns, both ascending: same input, same bits

#pragma once
#include "common/bilinear.cuh"
#include "common/copies.cuh"

// The weight of the right one of the two columns between which column i of y lies.
template <int UP> DEVICE constexpr float right_weight(int i) { return (float)(2 * ((i + UP / 2) % UP) + 1) / (float)(2 * UP); }

// ---- forward ----

// Columns of y that grow UP times.
template <int UP> struct Grown {
    static constexpr int N = WIDE<T>;
    // A lane's own columns of x; where N is less than UP it has none, and all N lie between the same two.
    static constexpr bool HAS_OWN = N >= UP;
    static constexpr int OWN = HAS_OWN ? N / UP : 1, INPUTS = HAS_OWN ? OWN + 2 : 2;
    struct Row {
        Pack<T, OWN> own;
        T left, right;
    };
    int first, left, own, right;
    bool is_there;
    bool is_second;  // the second half of the columns that grow out of one

    DEVICE Grown(int tile, int w, int to_w) : first((tile * WARP + lane()) * N), is_there(first < to_w) {
        int o = is_there ? first : 0;
        own = o / UP;
        left = HAS_OWN ? own - 1 : (o + UP / 2) / UP - 1;
        right = HAS_OWN ? own + OWN : left + 1;
        left = left < 0 ? 0 : left, right = right < w ? right : w - 1;
        is_second = o / N % 2 == 1;
    }
    DEVICE void load(Row& r, const T* row) const {
        if constexpr (HAS_OWN) r.own = load_kept<T, OWN>(row + own);
        r.left = row[left], r.right = row[right];
    }
    DEVICE void blend(float (&v)[N], const Row& r) const {
        float x[INPUTS];
        x[0] = widen(r.left), x[INPUTS - 1] = widen(r.right);
        if constexpr (HAS_OWN) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) x[i + 1] = r.own.get(i);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            int k = HAS_OWN ? (i + UP / 2) / UP : 0;
            float share = !HAS_OWN && is_second ? right_weight<UP>(N + i) : right_weight<UP>(i);
            v[i] = fmaf(share, x[k + 1], mul(1.0f - share, x[k]));
        }
    }
    DEVICE void write(T* row, const float (&v)[N]) const {
        if (is_there) store_once<T, N>(row + first, v);
    }
};

// Columns of y in the middle of two of x: of each run of WIDE<T> columns of x, half as many of y.
struct Halved {
    static constexpr int W = WIDE<T>, EACH = W / 2, N = W, RUNS = N / EACH;
    struct Row {
        Pack<T, W> run[RUNS];
    };
    int first, to_w;

    DEVICE Halved(int tile, int, int to_w) : first(tile * WARP * N + lane() * EACH), to_w(to_w) {}
    DEVICE int column(int k) const { return first + k * WARP * EACH; }
    DEVICE void load(Row& r, const T* row) const {
#pragma unroll
        for (int k = 0; k < RUNS; ++k) r.run[k] = load_once<T, W>(row + (column(k) < to_w ? 2 * column(k) : 0));
    }
    DEVICE void blend(float (&v)[N], const Row& r) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            int j = i % EACH * 2;
            v[i] = fmaf(0.5f, r.run[i / EACH].get(j + 1), mul(0.5f, r.run[i / EACH].get(j)));
        }
    }
    DEVICE void write(T* row, const float (&v)[N]) const {
#pragma unroll
        for (int k = 0; k < RUNS; ++k) {
            float some[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i) some[i] = v[k * EACH + i];
            if (column(k) < to_w) store<T, EACH>(row + column(k), some);
        }
    }
};

// Where rows lie: a warp works out WARP of them at once, one a lane.
struct alignas(16) RowTap {
    float at_low, at_high;
    int low;
};
struct RowTaps {
    RowTap row[WARP];
    template <bool ARE_JOINED> DEVICE void fill(const Axis& a, int first) {
        Place place(a, first + lane() < a.outputs ? first + lane() : 0);
        Tap t = ARE_JOINED ? joined_tap_at(a, place) : tap_at(a, place);
        warp_sync();
        row[lane()] = {t.at_low, t.at_high, t.low};
        warp_sync();
    }
};

// Rows of y of a warp: from `begin` to `end`, the first at `to`.
struct Down {
    int begin, end;
    T* to;
    const T* x;
    int w, to_w, last;
    DEVICE Down(T* y, const T* x, const Part& part, const Axis& rows, int w, int to_w, int chunk)
        : begin(part.chunk * chunk), end((int)least(rows.outputs, begin + chunk)),
          to(y + (part.plane * rows.outputs + begin) * to_w), x(x + part.plane * rows.inputs * w), w(w), to_w(to_w), last(rows.inputs - 1) {}
    DEVICE const T* row(int i) const { return x + (i64)(i < last ? i : last) * w; }
};

template <int N> DEVICE void between(float (&v)[N], const RowTap& t, const float (&above)[N], const float (&below)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf(t.at_high, below[i], mul(t.at_low, above[i]));
}

// Many rows of y lie between the same two of x, and the next one of x is under way.
template <int UP> DEVICE void walk_grown(RowTaps& taps, Down down, const Grown<UP>& columns, const Axis& rows) {
    constexpr int N = Grown<UP>::N;
    typename Grown<UP>::Row next;
    float above[N], below[N];
    int low = -2;
    for (int first = down.begin; first < down.end; first += WARP) {
        taps.template fill<false>(rows, first);
        int many = (int)least(WARP, down.end - first);
        for (int k = 0; k < many; ++k, down.to += down.to_w) {
            RowTap t = taps.row[k];
            if (t.low != low) {
                if (t.low == low + 1) {
#pragma unroll
                    for (int i = 0; i < N; ++i) above[i] = below[i];
                } else {
                    columns.load(next, down.row(t.low));
                    columns.blend(above, next);
                    columns.load(next, down.row(t.low + 1));
                }
                columns.blend(below, next);
                low = t.low;
                columns.load(next, down.row(low + 2));
            }
            float v[N];
            between(v, t, above, below);
            columns.write(down.to, v);
        }
    }
}

// The two rows of x of each row of y, those of the next row of y under way.
DEVICE void walk_halved(RowTaps& taps, Down down, const Halved& columns, const Axis& rows) {
    constexpr int N = Halved::N;
    Halved::Row above[2], below[2];
    for (int first = down.begin; first < down.end; first += WARP) {
        taps.fill<false>(rows, first);
        int many = (int)least(WARP, down.end - first);
        auto fetch = [&](int half, int k) {
            if (k >= many) return;
            int low = taps.row[k].low;
            columns.load(above[half], down.row(low)), columns.load(below[half], down.row(low + 1));
        };
        fetch(0, 0), fetch(1, 1);
        for (int k = 0; k < many; k += 2) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (k + half >= many) break;
                float high[N], low[N], v[N];
                columns.blend(high, above[half]), columns.blend(low, below[half]);
                fetch(half, k + half + 2);
                between(v, taps.row[k + half], high, low);
                columns.write(down.to, v);
                down.to += down.to_w;
            }
        }
    }
}

// ---- backward ----

// Columns of dy that grew UP times out of those of dx.
template <int UP> struct Shares {
    static constexpr int N = 8, OWN = N / UP, W = WIDE<T>, LOADS = N / W;
    int tile_first, to_w, first;
    bool is_mine, is_first, is_last;

    // Lanes 0 and WARP - 1 are the neighbours of those that write, but at the borders of the plane.
    DEVICE Shares(int tile, int, int to_w) : tile_first(tile * (WARP - 2) * N), to_w(to_w), first(tile_first + lane() * N) {
        is_first = first == 0, is_last = first == to_w - N;
        is_mine = first < to_w && (lane() > 0 || is_first) && (lane() < WARP - 1 || is_last);
    }
    // Copied side by side, read as the lane's own.
    DEVICE int column(int p) const { return tile_first + (p * WARP + lane()) * W; }
    DEVICE static int place(int p) { return lane() * LOADS + p; }
    DEVICE void write(T* row, const float (&sum)[N], int add) const {
        // Of the column left of the own, of the own, and of the one right of them.
        float share[OWN + 2] = {};
#pragma unroll
        for (int i = 0; i < N; ++i) {
            int k = (i + UP / 2) / UP;
            float right = right_weight<UP>(i);
            share[k] = fmaf(1.0f - right, sum[i], share[k]);
            share[k + 1] = fmaf(right, sum[i], share[k + 1]);
        }
        float from_left = lane_at(share[OWN + 1], (lane() + WARP - 1) % WARP), from_right = lane_at(share[0], (lane() + 1) % WARP);
        float v[OWN];
#pragma unroll
        for (int i = 0; i < OWN; ++i) v[i] = share[i + 1];
        v[0] += is_first ? share[0] : from_left;
        v[OWN - 1] += is_last ? share[OWN + 1] : from_right;
        if (is_mine) put<T, OWN>(row + first / UP, v, add);
    }
};

// Columns of dy in the middle of two of dx.
struct Doubled {
    static constexpr int EACH = WIDE<T> / 2, N = 8, W = EACH, LOADS = N / EACH;
    int first, to_w;

    DEVICE Doubled(int tile, int, int to_w) : first(tile * WARP * N + lane() * EACH), to_w(to_w) {}
    DEVICE int column(int k) const { return first + k * WARP * EACH; }
    DEVICE static int place(int p) { return p * WARP + lane(); }
    DEVICE void write(T* row, const float (&sum)[N], int add) const {
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
            float v[2 * EACH];
#pragma unroll
            for (int i = 0; i < 2 * EACH; ++i) v[i] = mul(0.5f, sum[k * EACH + i / 2]);
            if (column(k) < to_w) put<T, 2 * EACH>(row + 2 * column(k), v, add);
        }
    }
};

// Rows of dy under way, in shared memory.
constexpr int ROWS_AHEAD = 4;
constexpr int LANE_BYTES = 8 * (int)sizeof(T);

struct Gathering {
    RowTaps taps;
    alignas(16) unsigned char lanes[ROWS_AHEAD][LANE_BYTES * WARP];
    template <int W> DEVICE T* pack(int i, int place) { return (T*)lanes[i % ROWS_AHEAD] + place * W; }
};

template <typename C>
DEVICE void gather_whole(
    Gathering& g, T* dx, const T* dy, const Part& part, const Axis& rows, int w, int to_w, int chunk, int add) {
    constexpr int N = C::N, W = C::W, LOADS = C::LOADS;
    C columns(part.tile, w, to_w);
    int begin = part.chunk * chunk, past = (int)least(rows.inputs, begin + chunk);
    int start = first_from(rows, begin - 1), end = first_from(rows, past), a = begin - 1;
    const T* from = dy + (part.plane * rows.outputs + start) * to_w;
    T* to = dx + (part.plane * rows.inputs + a) * w;
    auto fetch = [&](int i) {
#pragma unroll
        for (int p = 0; p < LOADS; ++p) {
            int j = columns.column(p);
            copy_bytes<W * (int)sizeof(T)>(g.template pack<W>(i, p * WARP + lane()), from + j, i < end && j < to_w);
        }
        copies_close();
        from += to_w;
    };
#pragma unroll
    for (int i = 0; i < ROWS_AHEAD - 1; ++i) fetch(start + i);
    float here[N] = {}, below[N] = {};
    auto finish = [&](int until) {
#pragma unroll 1
        for (; a < until; ++a, to += w) {
            if (a >= begin) columns.write(to, here, add);
#pragma unroll
            for (int k = 0; k < N; ++k) here[k] = below[k], below[k] = 0.0f;
        }
    };
#pragma unroll 1
    for (int i = start; i < end; ++i) {
        if ((i - start) % WARP == 0) g.taps.template fill<true>(rows, i);
        warp_sync();
        fetch(i + ROWS_AHEAD - 1);
        RowTap t = g.taps.row[(i - start) % WARP];
        if (a < t.low) finish(t.low);
        copies_wait<ROWS_AHEAD - 1>();
        warp_sync();
#pragma unroll
        for (int p = 0; p < LOADS; ++p) {
            Pack<T, W> pack = load_kept<T, W>(g.template pack<W>(i, C::place(p)));
#pragma unroll
            for (int k = 0; k < W; ++k) {
                float d = pack.get(k);
                here[p * W + k] = fmaf(t.at_low, d, here[p * W + k]);
                below[p * W + k] = fmaf(t.at_high, d, below[p * W + k]);
            }
        }
    }
    finish(past);
}
