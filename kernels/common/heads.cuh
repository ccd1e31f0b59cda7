// heads: Hopper alone: heads of short sequences, one after the other whole in shared memory: copies into a ring of stages, products of
// slabs of 64 rows, and the way back. For attention's small sequences and windows
// ring      a warp, or two, fetch a head, by boxes or by cp.async, and tell the barrier `full`, every lane of what it wrote itself; every
//           warp that multiplies tells `empty`, also for heads that are not its own: so no phase is ever passed unseen
// racecheck takes a barrier for the order of the lanes that tell it alone: it was told by one for 32 that wrote, and reported them. Where
//           a stage is used again it still reports what a warp's lanes read before one tells `empty`: __syncwarp() orders these
// rows      of D numbers, swizzled over their whole length: what wgmma reads along d and along the tokens. A slab that begins before the
//           last token may read on into the next operand: what comes of those rows is nobody's
// defines   D: 32 or 64, TOKENS: a multiple of 16, at most 192; both before this file

#pragma once
#include "common/copies.cuh"
#include "common/math.cuh"
#include "common/panel.cuh"
#include "common/wgmma.cuh"
#include "common/windows.cuh"

constexpr int SPAN = 2 * D, PIECES = D / 8;          // bytes of a token's row, and runs of 16 bytes
constexpr int PANEL = TOKENS * SPAN;                 // bytes of an operand
constexpr int SLABS = (TOKENS + 63) / 64;            // of 64 rows; the last may have fewer
constexpr int DEPTH = D / 16, STEPS = TOKENS / 16;   // steps of products along d, along tokens
constexpr int SCORES = TOKENS / 2;                   // numbers of a slab that a thread has
constexpr Swizzle TURN = D == 64 ? Swizzle::B128 : Swizzle::B64;
constexpr int MOST_STAGES = 8;
// A place's token and region in a word.
constexpr int TOKEN_BITS = 26, TOKEN_MASK = (1 << TOKEN_BITS) - 1;

// An operand: its first number, what its tokens are apart, tokens of a sample; of heads of queries or of keys.
struct Source {
    const T* at;
    i64 row;
    bool is_keys;
};

// What a stage holds: its head, how many keys are there, whether some places do not see each other.
struct alignas(16) Held {
    int sample, head, keys, is_mixed;
};

// Tensor maps of operands, axes {numbers, heads, tokens of a row, rows, planes of all samples}, for boxes of D numbers of a head.
template <int N> struct Boxes {
    const TensorMap* map[N];
};

struct Shared {
    Source from[4];  // here, not in registers: the loop over them is a loop
    Held held[MOST_STAGES];
    Barrier full[MOST_STAGES], empty[MOST_STAGES];
    // Token and region of each place, -1 where there is none, of each stage.
    DEVICE int* seats(int stage) { return (int*)(this + 1) + stage * TOKENS; }
};
static_assert(sizeof(Shared) == 352);

// Sizes of one application, and this block's part of it.
struct Problem {
    int nq, nk, heads, group, d, all, step, stages, boxes;  // boxes of an operand of a head, 0 where they cannot hold it
    i64 q_tokens, k_tokens;
    const int* lengths;
    const Windows& windows;
};

// Where the first box of a head lies, and bytes of a box; the others, of a window of several planes, are a plane apart.
struct Place {
    int w, h, plane, ends;

    // Of a sequence, or of a window that lies in one piece but for the planes, which may begin again.
    DEVICE bool find(const Problem& p, int sample, const int (&first)[3]) {
        const Windows& of = p.windows;
        w = 0, h = 0, plane = sample, ends = 1 << 30;
        if (p.boxes == 0 || !of.are_there()) return p.boxes > 0;
        w = first[2] + of.shift[2], h = first[1] + of.shift[1], plane = sample * of.grid[0] + first[0] + of.shift[0];
        ends = (sample + 1) * of.grid[0];
        return first[0] >= 0 && first[1] >= 0 && first[2] >= 0 && first[0] + of.size[0] <= of.grid[0] && h + of.size[1] <= of.grid[1] &&
               w + of.size[2] <= of.grid[2];
    }
    DEVICE int plane_of(const Problem& p, int box) const {
        return plane + box >= ends ? plane + box - p.windows.grid[0] : plane + box;
    }
};
DEVICE int box_bytes(const Problem& p) { return (p.windows.are_there() ? p.windows.size[1] * p.windows.size[2] : TOKENS) * SPAN; }

// Where piece c of row r lies, from the start of an operand.
DEVICE int piece_at(int r, int c) { return r * SPAN + (c ^ (D == 64 ? r & 7 : r >> 1 & 3)) * 16; }

// Copies heads of N operands, WARPS warps a head. A head is told to be there when it is: after the next one of the same warps has been
// started, unless that has to wait for a free stage.
template <int N, int WARPS> DEVICE void copy_heads(Shared& s, unsigned char* memory, const Problem& p, const Boxes<N>& boxes) {
    constexpr int ROWS = 32 / PIECES, NEXT = ROWS * WARPS;  // rows of a warp at once, and of all
    constexpr int TIMES = TOKENS / NEXT, BATCH = TIMES % 6 == 0 ? 6 : TIMES % 4 == 0 ? 4 : TIMES;  // copies of a lane; before it looks up more
    static_assert(TOKENS % NEXT == 0 && TIMES % BATCH == 0);
    const int apart = 4 / WARPS, part = warp_id() % WARPS;
    const int own = part * ROWS + lane() / PIECES, c = lane() % PIECES;
    // Of the rows that this warp copies, those whose tokens this lane finds, and where they stand in every window.
    constexpr int SHARE = (TOKENS / WARPS + 31) / 32;
    int spots[SHARE], left = -1;
    auto row_of = [&](int k) { return k / ROWS * NEXT + part * ROWS + k % ROWS; };
    const bool is_cut = p.windows.are_there();
    if (is_cut) {
#pragma unroll
        for (int k = 0; k < SHARE; ++k) spots[k] = p.windows.spot(row_of(lane() + 32 * k));
    }
    // Every lane tells of what it wrote.
    auto tell = [&](int stage) {
        proxy_fence();
        s.full[stage].arrive();
    };
    for (int i = warp_id() / WARPS, n = (int)block_x() + i * p.step; n < p.all; i += apart, n += apart * p.step) {
        int stage = i % p.stages, parity = i / p.stages % 2;
        if (!__all_sync(0xffffffffu, s.empty[stage].is_complete_now(parity ^ 1))) {
            if (left >= 0) copies_wait<0>(), tell(left);
            left = -1;
            s.empty[stage].wait(parity ^ 1);
        }
        int sample = n / p.heads, head = n - sample * p.heads, window = 0;
        int* seats = s.seats(stage);
        bool is_mixed = false;
        int first[3] = {0, 0, 0};
        if (is_cut) {
            int of = sample;
            sample = of / p.windows.all(), window = of - sample * p.windows.all();
            p.windows.corner(first, window);
            is_mixed = p.windows.hides && p.windows.is_mixed(first);
#pragma unroll
            for (int k = 0; k < SHARE; ++k) {
                int r = row_of(lane() + 32 * k), region = 0;
                if (lane() + 32 * k >= TOKENS / WARPS) break;
                int token = r < p.nq ? p.windows.token_at(first, spots[k], region) : -1;
                seats[r] = token < 0 ? -1 : token | region << TOKEN_BITS;
            }
            __syncwarp();
        }
        int keys = p.lengths ? p.lengths[sample] : p.nk;
        if (part == 0 && lane() == 0) s.held[stage] = {sample, head, keys, is_mixed};
        unsigned char* to = memory + stage * N * PANEL;
        Place place;
        if (place.find(p, sample, first)) {
            // The bytes come without this warp.
            if (left >= 0) copies_wait<0>(), tell(left);
            left = -1;
            if (part > 0 || lane() > 0) {
                s.full[stage].arrive();
            } else {
                const int bytes = box_bytes(p);
                s.full[stage].arrive_expect(N * p.boxes * bytes);
#pragma unroll
                for (int k = 0; k < N; ++k)
                    for (int b = 0; b < p.boxes; ++b)
                        load_box(to + k * PANEL + b * bytes, *boxes.map[k], s.full[stage], 0, s.from[k].is_keys ? head / p.group : head,
                                 place.w, place.h, place.plane_of(p, b));
            }
            __syncwarp();
            continue;
        }
#pragma unroll 1
        for (int k = 0; k < N; ++k) {
            const Source of = s.from[k];
            const int count = c * 8 >= p.d ? 0 : of.is_keys ? keys : p.nq;
            const i64 before = sample * (of.is_keys ? p.k_tokens : p.q_tokens) * of.row + (of.is_keys ? head / p.group : head) * p.d + c * 8;
            const unsigned char* at = (const unsigned char*)(of.at + before);
            const u32 row = (u32)of.row * sizeof(T);
            unsigned char* mine = to + k * PANEL;
            if (!is_cut) at += (u64)(u32)own * row;
            const u64 step = (u64)row * NEXT;
#pragma unroll 1
            for (int r0 = own; r0 < TOKENS; r0 += BATCH * NEXT) {
                // All places before all copies: so they wait for shared memory together.
                const unsigned char* from[BATCH];
                bool is_there[BATCH];
#pragma unroll
                for (int u = 0; u < BATCH; ++u) {
                    int r = r0 + u * NEXT, token = is_cut && r < count ? seats[r] : r;
                    is_there[u] = r < count && token >= 0;
                    from[u] = is_cut ? at + (u64)(u32)(token & TOKEN_MASK) * row : at + u * step;
                }
                if (!is_cut) at += BATCH * step;
#pragma unroll
                for (int u = 0; u < BATCH; ++u) copy_piece((T*)(mine + piece_at(r0 + u * NEXT, c)), (const T*)from[u], is_there[u]);
            }
        }
        copies_close();
        if (left >= 0) copies_wait<1>(), tell(left);
        left = stage;
    }
    if (left >= 0) copies_wait<0>(), tell(left);
}

// Descriptors: an operand's rows from `r` on with K along d, and with K along the tokens.
DEVICE u64 along_d(const unsigned char* at, int r) { return matrix(at + r * SPAN, 16, 8 * SPAN, TURN); }
DEVICE u64 along_tokens(const unsigned char* at) { return matrix(at, PANEL, 8 * SPAN, TURN); }
constexpr int TOKEN_STEP = 16 * SPAN >> 4;

// Issues 64 rows' products with all tokens of the other side.
template <int R> DEVICE void issue_scores(float (&x)[R], u64 rows, u64 others) {
    pin(x);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH; ++step) multiply<T>(x, rows + 2 * step, others + 2 * step, step > 0);
    wgmma_commit();
}
// Issues the sums of all tokens' rows, weighted.
template <int N> DEVICE void issue_sums(float (&o)[D / 2], const u32 (&weight)[N][4], u64 others, bool add = false) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < N; ++step) multiply<T, 1>(o, weight[step], others + step * TOKEN_STEP, add || step > 0);
    wgmma_commit();
}

// 64 rows, of which the last slab may have fewer. That one begins before its own by 0 to 3 times 16, head by head: so that each
// warp's scheduler has its turn with what is left over. A warp whose rows are another slab's, or none, is idle.
struct Slab {
    int first;
    bool is_idle;

    DEVICE Slab(int slab, int nq, int turn) : first(slab * 64), is_idle(false) {
        int spare = (first + 64 - nq) / 16;
        if (slab > 0 && spare > 0) first -= (spare == 3 ? turn & 3 : turn % ((spare & 3) + 1)) * 16;
        is_idle = row() < slab * 64 || row() >= nq;
    }
    DEVICE int row() const { return first + warp_id() % 4 * 16; }
    DEVICE int tile() const { return row() / 16; }
};

// A thread's two rows of a slab.
struct Rows {
    int r[2], token[2], region[2];

    DEVICE Rows(Shared& s, const Problem& p, int stage, const Slab& slab) : Rows(s, p, stage, slab.row(), slab.is_idle) {}
    DEVICE Rows(Shared& s, const Problem& p, int stage, int row, bool is_idle = false) {
        bool is_cut = p.windows.are_there();
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            r[h] = row + lane() / 4 + 8 * h;
            int seat = is_idle || r[h] >= p.nq ? -1 : is_cut ? s.seats(stage)[r[h]] : r[h];
            token[h] = seat < 0 ? -1 : is_cut ? seat & TOKEN_MASK : seat, region[h] = seat >> TOKEN_BITS;
        }
    }
};

// What nobody sees becomes `hidden`: keys of other regions, or those behind the last. Scores of keys from c0 on.
template <int R> DEVICE void hide(float (&x)[R], int c0, const Rows& rows, const int* seats, const Held& held, float hidden) {
    const int c = c0 + lane() % 4 * 2;
    if (held.is_mixed) {
        // Places that nobody has are of no row's region.
#pragma unroll
        for (int j = 0; j < R / 4; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                int region = seats[c + 8 * j + e] >> TOKEN_BITS;
                if (region != rows.region[0]) x[4 * j + e] = hidden;
                if (region != rows.region[1]) x[4 * j + 2 + e] = hidden;
            }
    } else if (held.keys < TOKENS) {
        const int left = held.keys - c;
#pragma unroll
        for (int j = 0; j < R / 4; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (8 * j + e >= left) x[4 * j + e] = hidden, x[4 * j + 2 + e] = hidden;
    }
}

DEVICE float quad_sum(float v) {
    v += lane_xor(v, 1);
    return v + lane_xor(v, 2);
}

// Four words of each of four lanes: the n-th lane gets the n-th of all.
DEVICE void trade(u32 (&w)[4]) {
    bool odd = lane() & 1, high = lane() & 2;
    u32 a = lane_xor((int)(odd ? w[0] : w[1]), 1), b = lane_xor((int)(odd ? w[2] : w[3]), 1);
    (odd ? w[0] : w[1]) = a, (odd ? w[2] : w[3]) = b;
    a = lane_xor((int)(high ? w[0] : w[2]), 2), b = lane_xor((int)(high ? w[1] : w[3]), 2);
    (high ? w[0] : w[2]) = a, (high ? w[1] : w[3]) = b;
}

// Sets or adds what is there.
DEVICE void put_pack(T* at, const Pack<T, 8>& pack, bool is_there, int add) {
    if (is_there && add) {
        float v[8];
        pack.unpack(v);
        put<T, 8>(at, v, add);
    } else if (is_there) {
        store<T, 8>(at, pack);
    }
}

// A slab's rows of a result, times a factor for each of a thread's two rows, to their tokens: 64 bytes of a row at once.
DEVICE void store_slab(T* to, i64 row, const float (&o)[D / 2], const Rows& rows, float first, float second, int d, int add) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float factor = h ? second : first;
#pragma unroll
        for (int g = 0; g < D / 32; ++g) {
            Pack<T, 8> pack;
#pragma unroll
            for (int j = 0; j < 4; ++j)
                pack.word[j] = narrow_pair<T>(o[16 * g + 4 * j + 2 * h] * factor, o[16 * g + 4 * j + 2 * h + 1] * factor);
            trade(pack.word);
            int c = 32 * g + lane() % 4 * 8;
            put_pack(to + (i64)rows.token[h] * row + c, pack, rows.token[h] >= 0 && c < d, add);
        }
    }
}

// A warp's 16 rows of a slab, times the same, as a box holds them.
DEVICE void keep_rows(unsigned char* to, const float (&o)[D / 2], float first, float second) {
#pragma unroll
    for (int g = 0; g < D / 8; g += 2) {
        u32 word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float factor = i % 2 ? second : first;
            word[i] = narrow_pair<T>(o[4 * g + 2 * i] * factor, o[4 * g + 2 * i + 1] * factor);
        }
        store_matrices(shared_address(to + piece_at(lane() % 16, g + lane() / 16)), word[0], word[1], word[2], word[3]);
    }
}
// A stage is free once what left from it has been read.
DEVICE void let_go(Shared& s, int stage) {
    if (lane() == 0) {
        store_wait_read<0>();
        s.empty[stage].arrive();
    }
}

template <int N> DEVICE void begin(Shared& s, const Source (&from)[N], int told, int freed) {
    if (thread() == 0) {
        for (int i = 0; i < N; ++i) s.from[i] = from[i];
        for (int i = 0; i < MOST_STAGES; ++i) s.full[i].init(told * 32), s.empty[i].init(freed);
        barrier_init_fence();
    }
}
