// held: normalised rows and all their gradients in one pass: teams of threads walk many rows, which they hold in registers. Forward
// short rows go several at once; backward the next row is under way, and sums over rows stay in registers until the block is done.
// teams     `lanes` threads, a power of two up to HELD_THREADS; a thread has PACKS packs of W numbers of a row, `lanes` packs apart
// launch    HELD_THREADS threads, HELD_THREADS / lanes teams; a block has `stretch` rows, a multiple of its teams
// building  PACKS is given as -DPACKS=1, 2, 3 or 4, for 16-bit types also 6
// needs     C a multiple of W, C <= lanes * PACKS * W, everything aligned to 16 bytes: the launcher sees to it
// traffic   forward reads x, writes y; backward reads x and dy once, writes dx and C sums for each block
// order     a thread adds its packs from first to last, a team by halving, warps from first to last; sums over rows: a team its rows
//           from first to last, then the teams, then the blocks (columns.cuh): same input, same bits

#pragma once
#include "common/columns.cuh"

#ifndef PACKS
#define PACKS 3
#endif

constexpr int HELD_THREADS = 256;

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

    DEVICE int id() const { return thread() & (lanes - 1); }
    DEVICE int index() const { return thread() / lanes; }
    DEVICE int count() const { return HELD_THREADS / lanes; }
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

// Parameters, which every row needs: in registers where there are few, else from the caches.
struct HeldParameters {
    static constexpr int W = WIDE<T>;
    static constexpr bool ARE_HELD = PACKS == 1;
    const T* from;
    Pack<T, W> pack[ARE_HELD ? PACKS : 1];

    DEVICE HeldParameters(const T* from, const HeldTeam& team, int c) : from(from) {
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

// The rows of a block.
struct HeldRows {
    i64 first;
    i64 end;
};
DEVICE HeldRows held_rows(i64 rows, i64 stretch) {
    i64 first = (i64)block_x() * stretch;
    return HeldRows{first, least(rows, first + stretch)};
}

// (x - mean) * rstd: where 16 bits are kept, and the mean of numbers of 11 bits is at most 2^11 spreads away, with one rounding less.
struct Standard {
    float m, s, shift;
    DEVICE Standard(float m, float s) : m(m), s(s), shift(-mul(m, s)) {}
    DEVICE float of(float x) const { return sizeof(T) == 2 ? fmaf(x, s, shift) : mul(x - m, s); }
};

// Rows of a team that are normalised at once: short ones are many, so that enough is under way.
constexpr int ROWS_AT_ONCE = PACKS == 1 ? 4 : PACKS == 2 ? 2 : 1;

// Means and 1 / deviations of rows, or 1 / root mean squares without CENTRED.
template <bool CENTRED>
DEVICE void statistics(
    float (&m)[ROWS_AT_ONCE], float (&s)[ROWS_AT_ONCE], HeldRow (&row)[ROWS_AT_ONCE], HeldTeam& team, int c, float eps) {
    constexpr int W = WIDE<T>, R = ROWS_AT_ONCE;
    if constexpr (CENTRED) {
        float total[R] = {}, squares[R] = {};
#pragma unroll
        for (int i = 0; i < R * PACKS * W; ++i) total[i / (PACKS * W)] += row[i / (PACKS * W)].pack[i / W % PACKS].get(i % W);
        team.sums(total);
#pragma unroll
        for (int k = 0; k < R; ++k) {
            m[k] = divide(total[k], (float)c);
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
        for (int k = 0; k < R; ++k) s[k] = inverse_root(divide(squares[k], (float)c) + eps);
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
            s[k] = inverse_root(divide(squares[k], (float)c) + eps);
            if (s[k] == 0.0f) s[k] = inverse_root(divide(squares[R + k], (float)c)) * SMALLER;
            m[k] = 0.0f;
        }
    }
}

// y = (x - mean) * rstd * gamma + beta; without CENTRED mean and beta are 0, and rstd is of the mean square.
template <bool CENTRED>
DEVICE void normalise_held(
    T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, i64 stretch, int lanes, int c, float eps) {
    constexpr int W = WIDE<T>, R = ROWS_AT_ONCE;
    __shared__ TeamScratch scratch;
    HeldTeam team{lanes, 0, &scratch};
    HeldRows block = held_rows(rows, stretch);
    i64 r = block.first + team.index();
    HeldParameters scale(gamma, team, c), shift(CENTRED ? beta : gamma, team, c);
    // As many turns for every team: they meet at barriers.
    for (i64 base = block.first; base < block.end; base += R * team.count(), r += R * team.count()) {
        HeldRow row[R];
        float m[R], s[R];
#pragma unroll
        for (int k = 0; k < R; ++k) {
            i64 at = r + k * team.count();
            row[k].load(x + at * c, at < block.end, team, c);
        }
        statistics<CENTRED>(m, s, row, team, c, eps);
#pragma unroll
        for (int k = 0; k < R; ++k) {
            i64 here = r + k * team.count();
            if (here >= block.end) continue;
            row[k].forget();
            Standard standard(m[k], s[k]);
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
                int at = HeldRow::column(team, p);
                if (at < c) {
                    float v[W];
                    Pack<T, W> g = scale.get(p, at);
                    if constexpr (CENTRED) {
                        Pack<T, W> b = shift.get(p, at);
#pragma unroll
                        for (int i = 0; i < W; ++i) v[i] = fmaf(standard.of(row[k].pack[p].get(i)), g.get(i), b.get(i));
                    } else {
#pragma unroll
                        for (int i = 0; i < W; ++i) v[i] = row[k].pack[p].get(i) * s[k] * g.get(i);
                    }
                    store<T, W>(y + here * c + at, v);
                }
            }
            if (team.id() == 0) {
                rstd[here] = s[k];
                if constexpr (CENTRED) mean[here] = m[k];
            }
        }
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

// With n = (x - mean) * rstd and g = dy * gamma: dx = rstd * (g - avg(g) - n * avg(g * n)); without CENTRED mean and avg(g) are 0.
// Sums over the rows of each block: of dy * n to gamma_sums, of dy to beta_sums.
template <bool CENTRED>
DEVICE void gradients_held(
    T* dx, float* gamma_sums, float* beta_sums, const T* x, const T* gamma, const float* mean, const float* rstd, const T* dy, i64 rows,
    i64 stretch, int lanes, int c, int add) {
    constexpr int W = WIDE<T>;
    using S = typename RowSum<T>::Type;
    __shared__ TeamScratch scratch;
    HeldTeam team{lanes, 0, &scratch};
    HeldRows block = held_rows(rows, stretch);
    HeldRow number, gradient, next_number, next_gradient;
    float next_m = 0.0f, next_s = 0.0f;
    S gamma_sum[PACKS][W], beta_sum[CENTRED ? PACKS : 1][W];
#pragma unroll
    for (int i = 0; i < PACKS * W; ++i) {
        gamma_sum[i / W][i % W] = S{};
        if constexpr (CENTRED) beta_sum[i / W][i % W] = S{};
    }
    auto fetch = [&](i64 r) {
        bool is_row = r < block.end;
        next_number.load(x + r * c, is_row, team, c);
        next_gradient.load(dy + r * c, is_row, team, c);
        next_s = is_row ? rstd[r] : 0.0f;
        if constexpr (CENTRED) next_m = is_row ? mean[r] : 0.0f;
    };
    i64 r = block.first + team.index();
    fetch(r);
    HeldParameters weight(gamma, team, c);
    for (i64 base = block.first; base < block.end; base += team.count(), r += team.count()) {
        number = next_number, gradient = next_gradient;
        Standard standard(next_m, next_s);
        float sums[2] = {0.0f, 0.0f};
        fetch(r + team.count());
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = number.column(team, p);
            if (at < c) {
                Pack<T, W> w = weight.get(p, at);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    float d = gradient.pack[p].get(i), g = mul(d, w.get(i)), n = standard.of(number.pack[p].get(i));
                    if constexpr (CENTRED) sums[0] += g;
                    sums[1] = fmaf(g, n, sums[1]);
                    add_product(gamma_sum[p][i], d, n);
                    if constexpr (CENTRED) add_to(beta_sum[p][i], d);
                }
            }
        }
        team.sums(sums);
        if (r >= block.end) continue;
        number.forget(), gradient.forget();
        float avg_g = CENTRED ? divide(sums[0], (float)c) : 0.0f, avg_gn = divide(sums[1], (float)c);
        // rstd * (g - avg(g) - n * avg(g * n)) as g * rstd + x * slope + level.
        float slope = -mul(mul(standard.s, standard.s), avg_gn), level = -fmaf(standard.m, slope, mul(standard.s, avg_g));
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = number.column(team, p);
            if (at < c) {
                float v[W];
                Pack<T, W> w = weight.get(p, at);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    // g is rounded before the average is taken away, as the average was: in a row of one they cancel.
                    float g = mul(gradient.pack[p].get(i), w.get(i)), x_i = number.pack[p].get(i);
                    if constexpr (sizeof(T) == 2) {
                        v[i] = fmaf(g, standard.s, fmaf(x_i, slope, level));
                    } else {
                        v[i] = mul(fmaf(-standard.of(x_i), avg_gn, g - avg_g), standard.s);
                    }
                }
                if (add) {
                    put<T, W>(dx + r * c + at, v, 1);
                } else {
                    store<T, W>(dx + r * c + at, v);
                }
            }
        }
    }
    write_block_sums<S>(gamma_sums, gamma_sum, team, c);
    if constexpr (CENTRED) write_block_sums<S>(beta_sums, beta_sum, team, c);
}
