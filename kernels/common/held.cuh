// held: normalised rows and all their gradients in one pass: teams of threads hold rows in registers. Forward a team has its rows at
// once; backward it walks many, those that follow are under way, and sums over rows stay in registers until the block is done.
// teams     `lanes` threads, a power of two up to HELD_THREADS; a thread has PACKS packs of W numbers of a row, `lanes` packs apart
// launch    backward HELD_THREADS threads, HELD_THREADS / lanes teams, on NVIDIA with TURNS * 2 * PACKS packs a thread of shared memory;
//           forward one team, or as many as FEW_THREADS have: small blocks end apart, and the next ones begin
// building  PACKS is given as -DPACKS=1, 2, 3 or 4, for 16-bit types also 6
// needs     C a multiple of W, C <= lanes * PACKS * W, everything aligned to 16 bytes: the launcher sees to it
// traffic   forward reads x, writes y; backward reads x and dy once, writes dx and C sums for each block
// measured  H200, 2026-11-22, bf16, layer_norm, of the copy rate, forward / backward with its second stage: 768 columns 90 / 84 %,
//           1024 87 / 85, 4096 86 / 80, 128 90 / 91, 12288 90 / 84 (a plain copy of 1024's size 94 %); forward with blocks of 256 threads
//           90, 86, 85, 88, 90; before kernels began early 3 to 5 % less; with fewer rows under way at once 4 to 12 % less
// order     a thread adds its packs from first to last, a team by halving, warps from first to last; sums over rows: a team its rows
//           from first to last, then the teams, then the blocks (columns.cuh): same input, same bits

#pragma once
#include "common/columns.cuh"
#include "common/copies.cuh"

#ifndef PACKS
#define PACKS 3
#endif

constexpr int HELD_THREADS = 256;
constexpr int FEW_THREADS = 64;

// Sums that a team makes at once, at most.
constexpr int MOST_SUMS = 8;

// Two sets, used in turn: a warp is at most one barrier ahead.
struct TeamScratch {
    float sum[2][MOST_SUMS][HELD_THREADS / WARP];
};

struct HeldTeam {
    int lanes;
    int turn;
    TeamScratch* scratch;
    int threads = HELD_THREADS;

    DEVICE int id() const { return thread() & (lanes - 1); }
    DEVICE int index() const { return thread() / lanes; }
    DEVICE int count() const { return threads / lanes; }
    // Over the threads of every team; all threads of the block take part.
    template <int N> DEVICE void sums(float (&v)[N]) {
#pragma unroll
        for (int m = WARP / 2; m > 0; m /= 2) {
            if (m < lanes) {
                float other[N];
#pragma unroll
                for (int i = 0; i < N; ++i) other[i] = lane_xor(v[i], m);
#pragma unroll
                for (int i = 0; i < N; ++i) v[i] += other[i];
            }
        }
        if (lanes <= WARP) return;
        int first = warp_id() & ~(lanes / WARP - 1);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (lane() == 0) scratch->sum[turn][i][warp_id()] = v[i];
        }
        block_sync();
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = scratch->sum[turn][i][first];
#pragma unroll 1
        for (int w = 1; w < lanes / WARP; ++w) {
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] += scratch->sum[turn][i][first + w];
        }
        turn ^= 1;
    }
};

// The packs of one row that a thread has; zeros where the row has none, and where there is no row.
struct HeldRow {
    static constexpr int W = WIDE<T>;
    Pack<T, W> pack[PACKS];

    DEVICE static int column(const HeldTeam& team, int p) { return (team.id() + p * team.lanes) * W; }
    DEVICE void load(const T* from, bool is_there, const HeldTeam& team, int c) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = column(team, p);
#pragma unroll
            for (int i = 0; i < Pack<T, W>::WORDS; ++i) pack[p].word[i] = 0;
            if (is_there && at < c) load_words_once(pack[p].word, from + at);
        }
    }
    DEVICE void add(const HeldRow& other) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            float v[W];
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = pack[p].get(i) + other.pack[p].get(i);
            pack[p].pack(v);
        }
    }
    DEVICE void write(T* to, const HeldTeam& team, int c) const {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            if (column(team, p) < c) store<T, W>(to + column(team, p), pack[p]);
        }
    }
    // To the compiler these are other numbers from here on: what it made of them before is made again and not kept in registers.
    DEVICE void forget() {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
#pragma unroll
            for (int i = 0; i < Pack<T, W>::WORDS; ++i) {
#ifdef ON_NVIDIA
                asm volatile("" : "+r"(pack[p].word[i]));
#else
                asm volatile("" : "+v"(pack[p].word[i]));
#endif
            }
        }
    }
};

// Scales, which every row needs: in registers, but on AMD, where rows under way take them, only if there are few.
struct HeldScales {
    static constexpr int W = WIDE<T>;
    static constexpr bool ARE_HELD = WARP == 32 || PACKS == 1;
    const T* from;
    Pack<T, W> pack[ARE_HELD ? PACKS : 1];

    DEVICE HeldScales(const T* from, const HeldTeam& team, int c) : from(from) {
        if constexpr (ARE_HELD) {
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
                int at = HeldRow::column(team, p);
                if (at < c) pack[p] = load_kept<T, W>(from + at);
            }
        }
    }
    DEVICE Pack<T, W> get(int p, int at) const {
        if constexpr (ARE_HELD) return pack[p];
        return load_kept<T, W>(from + at);
    }
};

// (x - mean) * rstd: where 16 bits are kept, and the mean of numbers of 11 bits is at most 2^11 spreads away, with one rounding less.
struct Standard {
    float m, s, shift;
    DEVICE Standard(float m, float s) : m(m), s(s), shift(-mul(m, s)) {}
    DEVICE float of(float x) const { return sizeof(T) == 2 ? fmaf(x, s, shift) : mul(x - m, s); }
};

// Rows of a team that are normalised at once: short ones are many, so that enough is under way.
constexpr int ROWS_AT_ONCE = PACKS == 1 ? 4 : PACKS == 2 ? 2 : 1;

// A sum over a row of which `share` is 1 / c: a product where 16 bits are kept.
DEVICE float average(float sum, float share, int c) { return sizeof(T) == 2 ? mul(sum, share) : divide(sum, (float)c); }
// 1 / sqrt(x), for 16 bits the hardware's and one step of Newton's: 1 unit.
DEVICE float inverse_deviation(float x) {
    if constexpr (sizeof(T) == 2) {
        float y = inverse_root_near(x), z = fmaf(0.5f * y, fmaf(-mul(x, y), y, 1.0f), y);
        return y > 0.0f ? z : y;
    }
    return inverse_root(x);
}

// Means and 1 / deviations of rows, or 1 / root mean squares without CENTRED.
template <bool CENTRED>
DEVICE void statistics(
    float (&m)[ROWS_AT_ONCE], float (&s)[ROWS_AT_ONCE], HeldRow (&row)[ROWS_AT_ONCE], HeldTeam& team, int c, float eps) {
    constexpr int W = WIDE<T>, R = ROWS_AT_ONCE;
    float share = divide(1.0f, (float)c);
    if constexpr (CENTRED) {
        float total[R] = {}, squares[R] = {};
#pragma unroll
        for (int i = 0; i < R * PACKS * W; ++i) total[i / (PACKS * W)] += row[i / (PACKS * W)].pack[i / W % PACKS].get(i % W);
        team.sums(total);
#pragma unroll
        for (int k = 0; k < R; ++k) {
            m[k] = average(total[k], share, c);
            row[k].forget();
        }
        // About the mean, not about 0: a mean far above the spread must not cost the variance.
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            if (HeldRow::column(team, p) < c) {
#pragma unroll
                for (int i = 0; i < R * W; ++i) {
                    float d = row[i / W].pack[p].get(i % W) - m[i / W];
                    squares[i / W] = fmaf(d, d, squares[i / W]);
                }
            }
        }
        team.sums(squares);
#pragma unroll
        for (int k = 0; k < R; ++k) s[k] = inverse_deviation(average(squares[k], share, c) + eps);
    } else {
        // Squares that leave f32 leave 0 behind: then those of numbers 2^80 smaller count, where eps is nothing.
        constexpr float SMALLER = 8.27180613e-25f;
        float squares[2 * R] = {};
#pragma unroll
        for (int i = 0; i < R * PACKS * W; ++i) {
            int k = i / (PACKS * W);
            float v = row[k].pack[i / W % PACKS].get(i % W), u = mul(v, SMALLER);
            squares[k] = fmaf(v, v, squares[k]);
            squares[R + k] = fmaf(u, u, squares[R + k]);
        }
        team.sums(squares);
#pragma unroll
        for (int k = 0; k < R; ++k) {
            s[k] = inverse_deviation(average(squares[k], share, c) + eps);
            if (s[k] == 0.0f) s[k] = inverse_root(divide(squares[R + k], (float)c)) * SMALLER;
            m[k] = 0.0f;
        }
    }
}

// y = (x - mean) * rstd * gamma + beta; without CENTRED mean and beta are 0, and rstd is of the mean square. A team has its rows at once.
// With ADDS x is first added to `residual`, and the rounded sum, which is what is normalised, goes to `sum`.
template <bool CENTRED, bool ADDS>
DEVICE void normalise_held(
    T* y, T* sum, float* mean, float* rstd, const T* x, const T* residual, const T* gamma, const T* beta, i64 rows, int lanes, int c,
    float eps) {
    constexpr int W = WIDE<T>, R = ROWS_AT_ONCE;
    __shared__ TeamScratch scratch;
    HeldTeam team{lanes, 0, &scratch, lanes < FEW_THREADS ? FEW_THREADS : lanes};
    i64 first = (i64)block_x() * (R * team.count()) + team.index(), left = rows - first;
    int apart = team.count() * c;
    x += first * c, y += first * c;
    HeldRow row[R];
    float m[R], s[R];
#pragma unroll
    for (int k = 0; k < R; ++k) row[k].load(x + k * apart, k * team.count() < left, team, c);
    if constexpr (ADDS) {
        residual += first * c, sum += first * c;
        HeldRow other[R];
#pragma unroll
        for (int k = 0; k < R; ++k) other[k].load(residual + k * apart, k * team.count() < left, team, c);
#pragma unroll
        for (int k = 0; k < R; ++k) {
            row[k].add(other[k]);
            if (k * team.count() < left) row[k].write(sum + k * apart, team, c);
        }
    }
    statistics<CENTRED>(m, s, row, team, c, eps);
#pragma unroll
    for (int k = 0; k < R; ++k) row[k].forget();
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        int at = HeldRow::column(team, p);
        if (at >= c) break;
        Pack<T, W> g = load_kept<T, W>(gamma + at), b = load_kept<T, W>((CENTRED ? beta : gamma) + at);
#pragma unroll
        for (int k = 0; k < R; ++k) {
            Standard standard(m[k], s[k]);
            float v[W];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float x_i = row[k].pack[p].get(i);
                v[i] = CENTRED ? fmaf(standard.of(x_i), g.get(i), b.get(i)) : x_i * s[k] * g.get(i);
            }
            if (k * team.count() < left) store_once<T, W>(y + k * apart + at, v);
        }
    }
#pragma unroll
    for (int k = 0; k < R; ++k) {
        int here = k * team.count();
        if (here >= left || team.id() != 0) continue;
        rstd[first + here] = s[k];
        if constexpr (CENTRED) mean[first + here] = m[k];
    }
}

// The sums of a thread's columns over the rows of its team, added over the teams of the block: sums[block][column].
template <typename S>
DEVICE void write_block_sums(float* sums, const S (&sum)[PACKS][WIDE<T>], const HeldTeam& team, int c) {
    constexpr int W = WIDE<T>;
    // A line longer by 4: threads that read neighbouring columns reach different banks.
    __shared__ S shared[W][HELD_THREADS + 4];
    float* to = sums + (i64)block_x() * c;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        block_sync();
#pragma unroll
        for (int i = 0; i < W; ++i) shared[i][thread()] = sum[p][i];
        block_sync();
        int first = p * team.lanes * W;
        for (int j = thread(); j < team.lanes * W; j += HELD_THREADS) {
            if (first + j >= c) break;
            S all = shared[j % W][j / W];
            for (int k = 1; k < team.count(); ++k) add_to(all, shared[j % W][j / W + k * team.lanes]);
            to[first + j] = value_of(all);
        }
    }
}

#ifdef ON_NVIDIA
extern __shared__ uint4 held_memory[];
#endif

// The rows of x and dy that a team asks for one after the other: those that follow are under way, in shared memory, where every thread
// copies and reads its own packs, or, where copies are loads, in registers.
template <int TENSORS> struct RowsAhead {
    static constexpr int W = WIDE<T>;
    static constexpr int TURNS = PACKS == 1 ? 3 : 2;
    const T* from[TENSORS];
    const HeldTeam& team;
    i64 rows;
    int c;
#ifdef ON_NVIDIA
    T* ring;
    int into, out;

    DEVICE RowsAhead(const T* (&tensors)[TENSORS], const HeldTeam& team, i64 rows, int c)
        : team(team), rows(rows), c(c), ring((T*)held_memory), into(0), out(0) {
#pragma unroll
        for (int t = 0; t < TENSORS; ++t) from[t] = tensors[t];
    }
    DEVICE T* place(int turn, int t, int p) const {
        return ring + (((turn * TENSORS + t) * PACKS + p) * HELD_THREADS + thread()) * W;
    }
    DEVICE void fetch(i64 r) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = HeldRow::column(team, p);
            bool is_there = r < rows && at < c;
#pragma unroll
            for (int t = 0; t < TENSORS; ++t) copy_bytes<16>(place(into, t, p), from[t] + r * c + at, is_there);
        }
        copies_close();
        into = into + 1 == TURNS ? 0 : into + 1;
    }
    DEVICE void start(i64 r, i64 step) {
#pragma unroll
        for (int k = 0; k < TURNS - 1; ++k) fetch(r + k * step);
    }
    // Row r is there from here on.
    DEVICE void turn(i64 r, i64 step) {
        fetch(r + (TURNS - 1) * step);
        copies_wait<TURNS - 1>();
    }
    // Pack p of tensor t.
    DEVICE Pack<T, W> get(int t, int p) const { return load_kept<T, W>(place(out, t, p)); }
    DEVICE void again() {}
    DEVICE void leave() { out = out + 1 == TURNS ? 0 : out + 1; }
#else
    // The first two, which are read twice; the others are read when they are asked for.
    HeldRow here[2], next[2];
    i64 row;

    DEVICE RowsAhead(const T* (&tensors)[TENSORS], const HeldTeam& team, i64 rows, int c) : team(team), rows(rows), c(c) {
#pragma unroll
        for (int t = 0; t < TENSORS; ++t) from[t] = tensors[t];
    }
    DEVICE void start(i64 r, i64) {
        next[0].load(from[0] + r * c, r < rows, team, c), next[1].load(from[1] + r * c, r < rows, team, c);
    }
    DEVICE void turn(i64 r, i64 step) {
        row = r, here[0] = next[0], here[1] = next[1];
        start(r + step, step);
    }
    DEVICE Pack<T, W> get(int t, int p) const {
        if (t < 2) return here[t].pack[p];
        return load_once<T, W>(from[t] + row * c + HeldRow::column(team, p));
    }
    DEVICE void again() { here[0].forget(), here[1].forget(); }
    DEVICE void leave() {}
#endif
};

// With n = (x - mean) * rstd and g = dy * gamma: dx = rstd * (g - avg(g) - n * avg(g * n)); without CENTRED mean and avg(g) are 0.
// Sums over the rows of each block: of dy * n to gamma_sums, of dy to beta_sums. All blocks together take `step` rows at once.
// With ADDS x is a sum whose own gradient is `dsum`: dx gets that, too, and `dresidual` the same.
template <bool CENTRED, bool ADDS>
DEVICE void gradients_held(
    T* dx, T* dresidual, float* gamma_sums, float* beta_sums, const T* x, const T* gamma, const float* mean, const float* rstd,
    const T* dy, const T* dsum, i64 rows, i64 step, int lanes, int c, int add, int add_residual) {
    constexpr int W = WIDE<T>;
    using S = typename RowSum<T>::Type;
    __shared__ TeamScratch scratch;
    HeldTeam team{lanes, 0, &scratch};
    S gamma_sum[PACKS][W], beta_sum[CENTRED ? PACKS : 1][W];
#pragma unroll
    for (int i = 0; i < PACKS * W; ++i) {
        gamma_sum[i / W][i % W] = S{};
        if constexpr (CENTRED) beta_sum[i / W][i % W] = S{};
    }
    float share = divide(1.0f, (float)c), next_m = 0.0f, next_s = 0.0f;
    auto fetch_statistics = [&](i64 r) {
        next_s = r < rows ? rstd[r] : 0.0f;
        if constexpr (CENTRED) next_m = r < rows ? mean[r] : 0.0f;
    };
    i64 base = (i64)block_x() * team.count(), r = base + team.index();
    const T* tensors[2 + ADDS] = {x, dy};
    if constexpr (ADDS) tensors[2] = dsum;
    RowsAhead<2 + ADDS> ahead(tensors, team, rows, c);
    ahead.start(r, step);
    fetch_statistics(r);
    HeldScales scale(gamma, team, c);
    // As many turns for every team: they meet at barriers.
    for (; base < rows; base += step, r += step) {
        Standard standard(next_m, next_s);
        float sums[2] = {0.0f, 0.0f};
        ahead.turn(r, step);
        fetch_statistics(r + step);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = HeldRow::column(team, p);
            if (at < c) {
                Pack<T, W> w = scale.get(p, at), number = ahead.get(0, p), gradient = ahead.get(1, p);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    float d = gradient.get(i), g = mul(d, w.get(i)), n = standard.of(number.get(i));
                    if constexpr (CENTRED) sums[0] += g;
                    sums[1] = fmaf(g, n, sums[1]);
                    add_product(gamma_sum[p][i], d, n);
                    if constexpr (CENTRED) add_to(beta_sum[p][i], d);
                }
            }
        }
        team.sums(sums);
        ahead.again();
        float avg_g = CENTRED ? average(sums[0], share, c) : 0.0f, avg_gn = average(sums[1], share, c);
        // rstd * (g - avg(g) - n * avg(g * n)) as g * rstd + x * slope + level.
        float slope = -mul(mul(standard.s, standard.s), avg_gn), level = -fmaf(standard.m, slope, mul(standard.s, avg_g));
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = HeldRow::column(team, p);
            if (r < rows && at < c) {
                float v[W];
                Pack<T, W> w = scale.get(p, at), number = ahead.get(0, p), gradient = ahead.get(1, p);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    // g is rounded before the average is taken away, as the average was: in a row of one they cancel.
                    float g = mul(gradient.get(i), w.get(i)), x_i = number.get(i);
                    if constexpr (sizeof(T) == 2) {
                        v[i] = fmaf(g, standard.s, fmaf(x_i, slope, level));
                    } else {
                        v[i] = mul(fmaf(-standard.of(x_i), avg_gn, g - avg_g), standard.s);
                    }
                }
                if constexpr (ADDS) {
                    Pack<T, W> other = ahead.get(2, p);
                    float twice[W];
#pragma unroll
                    for (int i = 0; i < W; ++i) v[i] += other.get(i), twice[i] = v[i];
                    put<T, W>(dresidual + r * c + at, twice, add_residual);
                }
                if (add) {
                    put<T, W>(dx + r * c + at, v, 1);
                } else {
                    store<T, W>(dx + r * c + at, v);
                }
            }
        }
        ahead.leave();
    }
    write_block_sums<S>(gamma_sums, gamma_sum, team, c);
    if constexpr (CENTRED) write_block_sums<S>(beta_sums, beta_sum, team, c);
}
