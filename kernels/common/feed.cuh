// feed: tiles of rows on their way into shared memory while a block computes with the tile before; the rows that a warp keeps
// places    NVIDIA copies asynchronously into one of two places; AMD loads into registers, and stores them when the place is free
// turned    operands whose k are rows: ldmatrix turns what it reads; AMD turns on the way in, and keeps a row for each column
// order     a lane of AMD reads 16 bytes, operands of two products at once: their k are 4 and 4 of 8 neighbours, on both sides alike; of
//           rows that are turned 16 keys and the next 16 lie in turns of four, so that sums of two tiles stay operands as they are
// source    AMD matrix instruction calculator, v_mfma_f32_16x16x16; PTX ISA, "ldmatrix"

#pragma once
#include "common/math.cuh"
#include "common/panel.cuh"

#ifdef ON_NVIDIA
constexpr int PLACES = 2;
#else
constexpr int PLACES = 1;
#endif

// Vectors of one head: the r-th starts at at + r * row, `count` of them are there, with d numbers each.
template <typename U> struct Vectors {
    const U* at;
    i64 row;
    int count, d;

    // Those from r on.
    DEVICE Vectors from(int r) const { return {at + r * row, row, count - r, d}; }
};

// A number of which the compiler does not know that it is the same in every round: what follows from it is computed again, and takes no
// registers between.
DEVICE u32 anew(u32 x) {
#ifdef ON_NVIDIA
    asm volatile("" : "+r"(x));
#else
    asm volatile("" : "+v"(x));
#endif
    return x;
}
DEVICE i64 anew(i64 x) {
#ifdef ON_NVIDIA
    asm volatile("" : "+l"(x));
#else
    asm volatile("" : "+s"(x));
#endif
    return x;
}

#ifdef ON_AMD
// Operands of two products from 16 bytes.
template <typename U> DEVICE void split_pair(Frag16<U> (&f)[2], const Pack<U, 8>& p) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f[i / 2].word[i % 2] = p.word[i];
}
#endif

// The other side of two products: rows r to r + 15, k the 32 columns from c on.
template <typename U> DEVICE void load_other_pair(Frag16<U> (&f)[2], const Panel<U>& p, int r, int c) {
#ifdef ON_NVIDIA
    load_other(f[0], p, r, c);
    load_other(f[1], p, r, c + 16);
#else
    // A lane's own share of the place is the same for all tiles, but for the bits of c that its turn reaches.
    u32 down = thread() % 16, turned = p.group * 8 - 1, mine = (down * p.pieces + (thread() / 16 % 4 ^ p.turn(down))) * 8;
    split_pair(f, load_kept<U, 8>(p.at + r * p.pieces * 8 + (c & ~turned) + (mine ^ (c & turned))));
#endif
}

// Tiles of ROWS vectors of WIDTH numbers, a multiple of 32, of one tensor or of two next to each other; what is not there is 0. As they lie
// (STRAIGHT), turned, or both.
template <typename U, int ROWS, int WIDTH, int THREADS, bool STRAIGHT, bool TURNED, int TENSORS = 1> struct Feed {
    static constexpr int PIECES = WIDTH / 8, TILE = ROWS * WIDTH;
#ifdef ON_NVIDIA
    static constexpr int NUMBERS = TILE;  // of a tensor's place

    DEVICE void begin(U* to, const Vectors<U>& v, const Vectors<U>& second) {
        begin(to, v);
        begin(to + NUMBERS, second);
    }
    DEVICE void begin(U* to, const Vectors<U>& v) {
        Panel<U> panel(to, WIDTH);
        constexpr int SIDE = PIECES % 8 == 0 ? 8 : 4, DOWN = THREADS / SIDE;
        // A thread stays in every SIDE-th column: neighbours write next to each other, without a conflict of banks.
        u32 t = anew(thread());
        int first = t % SIDE, r = t / SIDE;
        const U* mine = v.at + r * v.row + first * 8;
#pragma unroll
        for (int i = 0; i < (ROWS + DOWN - 1) / DOWN; ++i, r += DOWN, mine += DOWN * v.row) {
            if (ROWS % DOWN != 0 && r >= ROWS) break;
#pragma unroll
            for (int c = 0; c < PIECES; c += SIDE) {
                bool is_there = r < v.count && (first + c) * 8 < v.d;
                copy_piece(panel.piece(r, first + c), is_there ? mine + c * 8 : v.at, is_there);
            }
        }
    }
    DEVICE void end(U*) const {}
    // Rows r to r + 31 turned: columns c to c + 15, k the rows.
    DEVICE static void load_turned(Frag16<U> (&f)[2], U* at, int r, int c) {
        load_other_turned(f[0], Panel<U>(at, WIDTH), r, c);
        load_other_turned(f[1], Panel<U>(at, WIDTH), r + 16, c);
    }
#else
    static constexpr int NUMBERS = TILE * (STRAIGHT + TURNED);
    static constexpr int PACKS = TURNED ? 4 : 1, ALL = TILE / 8 / PACKS, SHARES = (TENSORS * ALL + THREADS - 1) / THREADS;
    // Neighbouring lanes have neighbouring pieces of a row, as many as are stored without a conflict of banks.
    static constexpr int SIDE = STRAIGHT && PIECES % 8 == 0 ? 8 : 4;
    Pack<U, 8> pack[SHARES][PACKS];

    // A share is a pack, of rows that are turned four below each other: its first row and its piece.
    DEVICE static void place(u32 share, u32& r, u32& c) {
        if constexpr (TURNED) {
            u32 rest = share / SIDE, high = rest / (ROWS / 16);
            r = rest % (ROWS / 16) * 16 + high % 4 * 4, c = high / 4 * SIDE + share % SIDE;
        } else {
            r = share / PIECES, c = share % PIECES;
        }
    }
    // Whether the i-th share of this thread is of the second tensor: where whole warps have one or the other, the same for a warp.
    DEVICE static bool is_second(int i, u32 share) {
        if (TENSORS == 1) return false;
        return ALL % WARP == 0 ? warp_number() + i * (THREADS / WARP) >= ALL / WARP : share >= ALL;
    }
    DEVICE static bool has(u32 share) { return SHARES * THREADS == TENSORS * ALL || share < TENSORS * ALL; }

    DEVICE void begin(U* to, const Vectors<U>& v) { begin(to, v, v); }
    DEVICE void begin(U*, const Vectors<U>& v, const Vectors<U>& second) {
#pragma unroll
        for (int i = 0; i < SHARES; ++i) {
            u32 share = anew(thread()) + i * THREADS, r, c;
            const bool other = is_second(i, share);
            place(other ? share - ALL : share, r, c);
            i64 row = other ? second.row : v.row;
            int count = has(share) && c * 8 < (u32)v.d ? (other ? second.count : v.count) - (int)r : 0;
            const U* from = (other ? second.at : v.at) + r * row + c * 8;
#pragma unroll
            for (int k = 0; k < PACKS; ++k) {
#pragma unroll
                for (int w = 0; w < 4; ++w) pack[i][k].word[w] = 0;
                if (k < count) pack[i][k] = load_kept<U, 8>(from + k * row);
            }
        }
    }
    DEVICE void end(U* to) const {
#pragma unroll
        for (int i = 0; i < SHARES; ++i) {
            u32 share = anew(thread()) + i * THREADS, r, c;
            if (!has(share)) continue;
            const bool other = is_second(i, share);
            place(other ? share - ALL : share, r, c);
            U* mine = other ? to + NUMBERS : to;
            if constexpr (STRAIGHT) {
#pragma unroll
                for (int k = 0; k < PACKS; ++k) store<U, 8>(Panel<U>(mine, WIDTH).piece(r + k, c), pack[i][k]);
            }
            if constexpr (TURNED) {
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    Pack<U, 4> four;
#pragma unroll
                    for (int w = 0; w < 2; ++w) {
                        u32 a = pack[i][2 * w].word[n / 2], b = pack[i][2 * w + 1].word[n / 2];
                        four.word[w] = __builtin_amdgcn_perm(b, a, n % 2 ? 0x07060302u : 0x05040100u);
                    }
                    store<U, 4>(mine + (STRAIGHT ? TILE : 0) + turned(c * 8 + n, r), four);
                }
            }
        }
    }
    // Where the four numbers lie that rows r to r + 3 have in column c.
    static constexpr int GROUP = ROWS / 8 < 8 ? ROWS / 8 : 8;
    DEVICE static u32 turned(u32 c, u32 r) {
        u32 piece = r / 32 * 4 + r % 16 / 4, turn = (c * GROUP / 8 ^ c / 8) & (GROUP - 1);
        return c * ROWS + (piece ^ turn) * 8 + r % 32 / 16 * 4;
    }
    DEVICE static void load_turned(Frag16<U> (&f)[2], const U* at, int r, int c) {
        u32 mine = turned(thread() % 16, thread() / 16 % 4 * 4), others = ((c * GROUP / 8 ^ c / 8) & (GROUP - 1) ^ r / 32 * 4) * 8;
        split_pair(f, load_kept<U, 8>(at + (STRAIGHT ? TILE : 0) + c * ROWS + (mine ^ others)));
    }
#endif
    DEVICE static void load_straight(Frag16<U> (&f)[2], U* at, int r, int c) { load_other_pair(f, Panel<U>(at, WIDTH), r, c); }
};

// The R tiles of 16 rows that a warp multiplies with everything: in registers where these suffice. On AMD they come there straight from
// memory, on NVIDIA through shared memory: NUMBERS for all rows of a block.
template <typename U, int R, int WIDTH, int THREADS, bool HOLDS> struct Own {
    static constexpr int ROWS = R * 16 * (THREADS / WARP), TILES = WIDTH / 16;
    static constexpr int NUMBERS = WARP == 32 ? ROWS * WIDTH : 0;
    static constexpr bool IS_HELD = HOLDS || WARP == 64;
    Frag16<U> f[IS_HELD ? R : 1][IS_HELD ? TILES : 1];

    // `v` are the block's rows.
    DEVICE void begin(U* to, const Vectors<U>& v) {
#ifdef ON_NVIDIA
        Feed<U, ROWS, WIDTH, THREADS, true, false> feed;
        feed.begin(to, v);
#else
#pragma unroll
        for (int m = 0; m < R; ++m) {
            int r = (warp_number() * R + m) * 16 + lane() % 16;
#pragma unroll
            for (int c = 0; c < TILES; c += 2) {
                int at = c * 16 + lane() / 16 * 8;
                Pack<U, 8> pack;
#pragma unroll
                for (int w = 0; w < 4; ++w) pack.word[w] = 0;
                if (r < v.count && at < v.d) pack = load_kept<U, 8>(v.at + r * v.row + at);
                Frag16<U> two[2];
                split_pair(two, pack);
                f[m][c] = two[0], f[m][c + 1] = two[1];
            }
        }
#endif
    }
    // When what was begun has arrived.
    DEVICE void end(U* from) {
#ifdef ON_NVIDIA
        if constexpr (HOLDS) {
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int c = 0; c < TILES; ++c) load_own(f[m][c], Panel<U>(from, WIDTH), (warp_number() * R + m) * 16, c * 16);
        }
#endif
    }
    // The own side of two products: columns from 16 c on.
    DEVICE void load(Frag16<U> (&two)[2], U* from, int m, int c) const {
        if constexpr (IS_HELD) {
            two[0] = f[m][c], two[1] = f[m][c + 1];
        } else {
            load_own(two[0], Panel<U>(from, WIDTH), (warp_number() * R + m) * 16, c * 16);
            load_own(two[1], Panel<U>(from, WIDTH), (warp_number() * R + m) * 16, c * 16 + 16);
        }
    }
};

// NaN with zeros below: the only one that load_rounded keeps.
DEVICE float with_plain_nan(float x) { return is_nan(x) ? float_of(0x7fc00000u) : x; }

// A tile of sums as an operand: as load_sums, but on AMD, whose compiler has no conversion, ties away from zero.
template <typename U> DEVICE void load_rounded(Frag16<U>& f, const Tile16& s);
template <> DEVICE void load_rounded<f16>(Frag16<f16>& f, const Tile16& s) { load_sums(f, s); }
template <> DEVICE void load_rounded<bf16>(Frag16<bf16>& f, const Tile16& s) {
#ifdef ON_NVIDIA
    load_sums(f, s);
#else
#pragma unroll
    for (int i = 0; i < 2; ++i)
        f.word[i] = __builtin_amdgcn_perm(bits_of(s.v[2 * i + 1]) + 0x8000u, bits_of(s.v[2 * i]) + 0x8000u, 0x07060302u);
#endif
}
