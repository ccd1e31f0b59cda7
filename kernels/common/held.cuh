// held: normalised rows and all their gradients in one pass: teams of threads walk many rows, of which one is in registers and the
// next is under way; sums over rows stay in registers until the block is done.
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

// Two sets, used in turn: a warp is at most one barrier ahead.
struct TeamScratch {
    float a[2][HELD_THREADS / WARP];
    float b[2][HELD_THREADS / WARP];
};

struct HeldTeam {
    int lanes;
    int turn;
    TeamScratch* scratch;

    DEVICE int id() const { return thread() & (lanes - 1); }
    DEVICE int index() const { return thread() / lanes; }
    DEVICE int count() const { return HELD_THREADS / lanes; }
    // Over the threads of every team; all threads of the block take part.
    DEVICE void sum2(float& a, float& b) {
#pragma unroll
        for (int m = WARP / 2; m > 0; m /= 2) {
            if (m < lanes) {
                float other_a = lane_xor(a, m), other_b = lane_xor(b, m);
                a += other_a;
                b += other_b;
            }
        }
        if (lanes <= WARP) return;
        int first = warp_id() & ~(lanes / WARP - 1);
        if (lane() == 0) scratch->a[turn][warp_id()] = a, scratch->b[turn][warp_id()] = b;
        block_sync();
        a = scratch->a[turn][first], b = scratch->b[turn][first];
        for (int w = 1; w < lanes / WARP; ++w) a += scratch->a[turn][first + w], b += scratch->b[turn][first + w];
        turn ^= 1;
    }
    DEVICE float sum(float v) {
        float none = 0.0f;
        sum2(v, none);
        return v;
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
    static constexpr bool ARE_HELD = PACKS <= 2;
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

// y = (x - mean) * rstd * gamma + beta; without CENTRED mean and beta are 0, and rstd is of the mean square.
template <bool CENTRED>
DEVICE void normalise_held(
    T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, i64 stretch, int lanes, int c, float eps) {
    constexpr int W = WIDE<T>;
    __shared__ TeamScratch scratch;
    HeldTeam team{lanes, 0, &scratch};
    HeldRows block = held_rows(rows, stretch);
    HeldRow row, next;
    i64 r = block.first + team.index();
    next.load(x + r * c, r < block.end, team, c);
    HeldParameters scale(gamma, team, c), shift(CENTRED ? beta : gamma, team, c);
    // As many turns for every team: they meet at barriers.
    for (i64 base = block.first; base < block.end; base += team.count(), r += team.count()) {
        bool is_row = r < block.end;
        i64 following = r + team.count();
        row = next;
        next.load(x + following * c, following < block.end, team, c);
        float m = 0.0f, s;
        if constexpr (CENTRED) {
            float total = 0.0f, squares = 0.0f;
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
#pragma unroll
                for (int i = 0; i < W; ++i) total += row.pack[p].get(i);
            }
            m = divide(team.sum(total), (float)c);
            row.forget();
            // About the mean, not about 0: a mean far above the spread must not cost the variance.
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
                if (row.column(team, p) < c) {
#pragma unroll
                    for (int i = 0; i < W; ++i) {
                        float d = row.pack[p].get(i) - m;
                        squares = fmaf(d, d, squares);
                    }
                }
            }
            s = inverse_root(divide(team.sum(squares), (float)c) + eps);
        } else {
            // Squares that leave f32 leave 0 behind: then those of numbers 2^80 smaller count, where eps is nothing.
            constexpr float SMALLER = 8.27180613e-25f;
            float squares = 0.0f, small = 0.0f;
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    float v = row.pack[p].get(i), u = mul(v, SMALLER);
                    squares = fmaf(v, v, squares);
                    small = fmaf(u, u, small);
                }
            }
            team.sum2(squares, small);
            s = inverse_root(divide(squares, (float)c) + eps);
            if (s == 0.0f) s = inverse_root(divide(small, (float)c)) * SMALLER;
        }
        if (!is_row) continue;
        row.forget();
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = row.column(team, p);
            if (at < c) {
                float v[W];
                row.pack[p].unpack(v);
                Pack<T, W> g = scale.get(p, at);
                if constexpr (CENTRED) {
                    Pack<T, W> b = shift.get(p, at);
#pragma unroll
                    for (int i = 0; i < W; ++i) v[i] = fmaf((v[i] - m) * s, g.get(i), b.get(i));
                } else {
#pragma unroll
                    for (int i = 0; i < W; ++i) v[i] = v[i] * s * g.get(i);
                }
                store<T, W>(y + r * c + at, v);
            }
        }
        if (team.id() == 0) {
            rstd[r] = s;
            if constexpr (CENTRED) mean[r] = m;
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
        float m = next_m, s = next_s, sum_g = 0.0f, sum_gn = 0.0f;
        fetch(r + team.count());
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = number.column(team, p);
            if (at < c) {
                Pack<T, W> w = weight.get(p, at);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    float d = gradient.pack[p].get(i), g = mul(d, w.get(i)), n = mul(number.pack[p].get(i) - m, s);
                    sum_g += g;
                    sum_gn = fmaf(g, n, sum_gn);
                    add_product(gamma_sum[p][i], d, n);
                    if constexpr (CENTRED) add_to(beta_sum[p][i], d);
                }
            }
        }
        team.sum2(sum_g, sum_gn);
        if (r >= block.end) continue;
        number.forget(), gradient.forget();
        float avg_g = CENTRED ? divide(sum_g, (float)c) : 0.0f, avg_gn = divide(sum_gn, (float)c);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int at = number.column(team, p);
            if (at < c) {
                float v[W];
                Pack<T, W> w = weight.get(p, at);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    // g is rounded before the average is taken away, as the average was: in a row of one they cancel.
                    float g = mul(gradient.pack[p].get(i), w.get(i));
                    v[i] = mul(fmaf(mul(m - number.pack[p].get(i), s), avg_gn, g - avg_g), s);
                }
                put<T, W>(dx + r * c + at, v, add);
            }
        }
    }
    write_block_sums<S>(gamma_sums, gamma_sum, team, c);
    if constexpr (CENTRED) write_block_sums<S>(beta_sums, beta_sum, team, c);
}
