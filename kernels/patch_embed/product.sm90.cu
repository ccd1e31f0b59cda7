// patch_embed: the forward product of Hopper for 16-bit types: patches are cut, normalised and rounded on their way into shared memory,
//           so that no matrix of patches is ever written.
// axes      x [B, C, h*P, w*Q] f32; weight [D, C*P*Q] behind a tensor map; bias [D]; mean, std [C] f32, or neither; position [h*w, D], or
//           none; y [B*h*w, D]
// types     T in {bf16, f16}; sums in f32; Q a multiple of 4, P*Q of 16, D of 8
// launch    pairs of blocks, as many as multiprocessors, walk tiles of 128 tokens each by 384 numbers of D; a warpgroup gathers, two
//           multiply, 64 tokens each
// paths     one: what lies outside is zero
// gather    16 bytes of the image at a time, as they are, into a ring of shared memory, five steps ahead, across tiles; who multiplies
//           takes its own operands out, normalises and rounds them in registers while the product before is at work
// weights   each block of a pair loads half of the weight's tile and sends it to both
// matrix    HGMMA on sm_90a
// traffic   x once for 384 numbers of D, weight once for 256 tokens, out of the cache; y once
// floor     the larger of 2 R F D FLOPs and x + y once; shared memory takes 208 KB for 64 features of a tile, 1,664 clocks where the matrix
//           units take 1,536
// order     features ascending, one sum a number: same input, same bits
// budget    sm_90a 168 registers; no spills
// source    Dosovitskiy et al. 2021, section 3.1

#include "common/copies.cuh"
#include "common/math.cuh"
#include "common/wgmma.cuh"

#ifndef COLUMNS
#define COLUMNS 384
#endif

constexpr int TOKENS = 128, GROUPS = 2, DEEP = 32;
constexpr int PAIR = 2;                     // blocks that share weights
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int STAGES = 5;                   // steps on their way
constexpr int HALF = COLUMNS / 2;           // of a product
constexpr u32 NOWHERE = 0xffffffffu;
constexpr int RAW_ROW = DEEP * 4, RAW_BYTES = TOKENS * RAW_ROW, WEIGHT_BYTES = COLUMNS * DEEP * 2;

// What the launcher knows. Lengths in quads, 16 bytes of the image: of a channel, of an image, of a row of the image.
struct Problem {
    u32 plane, image, width;
    u32 p, q, c, across, per;          // of a patch; channels; patches of a row and of an image
    u32 rows, features, d;
    u32 tiles, tiles_across, walkers;  // of pairs of blocks
    u32 area, by_area, by_q;           // p * q; 2^32 over it and over q, rounded up: numbers below 2^16 are divided
};

struct Shared {
    unsigned char weight[STAGES][WEIGHT_BYTES];
    unsigned char raw[STAGES][RAW_BYTES];
    Barrier weight_full[STAGES], raw_full[STAGES], done[STAGES];
};
struct Normal {
    float mean, factor;
};

// Where quad `quad` of a token lies: four neighbouring tokens' pairs of quads fill a row of banks.
DEVICE u32 raw_place(u32 token, u32 quad) { return token * RAW_ROW + ((quad ^ token % 4 * 2) << 4); }

// Arrives as soon as all copies that this thread began are there.
DEVICE void arrive_behind_copies(Barrier& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier.address()) : "memory");
}

// The warpgroup that gathers, which has few registers: what can be computed again is not kept.
struct Gatherer {
    const Problem& s;
    const f32* x;
    Shared& m;
    u32 rank, steps;

    // Where a token of the thread begins in the image, in quads.
    DEVICE u32 spot(u32 tile, u32 k) const {
        u32 row = (tile / s.tiles_across * PAIR + rank) * TOKENS + thread_again() % 128 / 32 * 32 + thread_again() % 32 / 2 + 16 * k;
        if (row >= s.rows) return NOWHERE;
        u32 image = row / s.per, rest = row - image * s.per, i = rest / s.across, j = rest - i * s.across;
        return image * s.image + i * s.p * s.width + j * (s.q / 4);
    }
    DEVICE u32 channel(u32 f) const { return __umulhi(f, s.by_area); }
    // A step's features for two tokens of the thread, every other quad of each. Places of quads differ in bits that no other part of them has.
    DEVICE void fetch(const u32 (&spots)[2], u32 first, unsigned char* raw) const {
        u32 lane = thread_again() % 32, token = thread_again() % 128 / 32 * 32 + lane / 2, place = raw_place(token, lane % 2);
#pragma unroll
        for (int e = 0; e < DEEP / 8; ++e) {
            u32 f = first + e * 8 + lane % 2 * 4, c = channel(f), rest = f - c * s.area, row = __umulhi(rest, s.by_q);
            u32 to = c * s.plane + row * s.width + (rest - row * s.q) / 4;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                bool is_there = f < s.features && spots[k] != NOWHERE;
                copy_bytes<16>((f32*)(raw + (place ^ e << 5) + k * 16 * RAW_ROW), x + (is_there ? (u64)(spots[k] + to) * 4 : 0), is_there);
            }
        }
    }
    DEVICE void send_weights(const TensorMap& weight, u32 tile, u32 first, u32 stage) const {
        if (thread_again() % 128 != 0) return;
        int row = (int)(tile % s.tiles_across * COLUMNS + rank * (COLUMNS / PAIR));
        m.weight_full[stage].arrive_expect(WEIGHT_BYTES);
        load_box_to((1 << PAIR) - 1, m.weight[stage] + rank * (WEIGHT_BYTES / PAIR), weight, m.weight_full[stage], (int)first, row);
    }
    DEVICE void run(const TensorMap& weight) const {
        Ring<STAGES> ring;
        u32 spots[2];
#pragma unroll 1
        for (u32 tile = block_x() / PAIR; tile < s.tiles; tile += s.walkers) {
            spots[0] = spot(tile, 0), spots[1] = spot(tile, 1);
#pragma unroll 1
            for (u32 first = 0; first < steps * DEEP; first += DEEP) {
                // What lay here is multiplied, in both blocks.
                m.done[ring.stage].wait(ring.parity ^ 1);
                send_weights(weight, tile, first, ring.stage);
                fetch(spots, first, m.raw[ring.stage]);
                arrive_behind_copies(m.raw_full[ring.stage]);
                ring.next();
            }
        }
    }
};

// Weights along K in rows of 64 bytes.
DEVICE u64 short_rows(u32 address) {
    return (u64)((address & 0x3ffff) >> 4 | 1 << 16) | (u64)(512 >> 4) << 32 | (u64)Swizzle::B64 << 62;
}

// Of four lanes, each with a word of each of four places: to each lane its place's four words.
DEVICE void turn(u32 (&v)[4]) {
    int lane = thread_again();
    bool odd = lane & 1, high = lane & 2;
    u32 a = lane_xor((int)(odd ? v[0] : v[1]), 1), b = lane_xor((int)(odd ? v[2] : v[3]), 1);
    if (odd) v[0] = a, v[2] = b;
    else v[1] = a, v[3] = b;
    a = lane_xor((int)(high ? v[0] : v[2]), 2), b = lane_xor((int)(high ? v[1] : v[3]), 2);
    if (high) v[0] = a, v[1] = b;
    else v[2] = a, v[3] = b;
}

// A warpgroup that multiplies: 64 tokens by all numbers of the tile.
struct Multiplier {
    const Problem& s;
    Shared& m;
    u32 rank, steps, group;

    DEVICE void tell(int stage) const {
        if (lane() == 0) {
            for (u32 to = 0; to < PAIR; ++to) m.done[stage].arrive_at(to);
        }
    }
    // The left operand of a step, out of what was gathered.
    DEVICE void take(u32 (&patch)[DEEP / 16][4], u32 first, const unsigned char* raw) const {
        const Normal* normals = (const Normal*)(&m + 1);
        u32 token = group * 64 + thread_again() % 128 / 32 * 16 + thread_again() % 32 / 4;
#pragma unroll
        for (int k = 0; k < DEEP / 16; ++k) {
            u32 c = __umulhi(first + 16 * k, s.by_area);
            Normal normal = normals[c < s.c ? c : s.c - 1];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32 quad = 4 * k + i / 2 * 2 + thread_again() % 4 / 2;
                const f32* at = (const f32*)(raw + raw_place(token + i % 2 * 8, quad)) + thread_again() % 2 * 2;
                Pack<f32, 2> v = *(const Pack<f32, 2>*)at;
                patch[k][i] = narrow_pair<T>(mul(v.get(0) - normal.mean, normal.factor), mul(v.get(1) - normal.mean, normal.factor));
            }
        }
    }
    DEVICE void run(T* y, const T* bias, const T* position) const {
        Ring<STAGES> ring;
#pragma unroll 1
        for (u32 tile = block_x() / PAIR; tile < s.tiles; tile += s.walkers) {
            float sums[2][HALF / 2];
            u32 patch[2][DEEP / 16][4];
            m.raw_full[ring.stage].wait(ring.parity);
            take(patch[0], 0, m.raw[ring.stage]);
            int last = 0;
#pragma unroll 1
            for (u32 step = 0; step < steps; step += 2) {
#pragma unroll
                for (int turn = 0; turn < 2; ++turn) {
                    if (step + turn == steps) break;
                    m.weight_full[ring.stage].wait(ring.parity);
                    u32 at = shared_address(m.weight[ring.stage]);
                    pin(sums[0]), pin(sums[1]);
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < DEEP / 16; ++k) {
                        bool adds = step > 0 || turn > 0 || k > 0;
                        multiply<T>(sums[0], patch[turn][k], short_rows(at + 32 * k), adds);
                        multiply<T>(sums[1], patch[turn][k], short_rows(at + 32 * k + HALF * DEEP * 2), adds);
                    }
                    wgmma_commit();
                    wgmma_wait<1>();
                    if (step + turn > 0) tell(last);
                    last = ring.stage;
                    ring.next();
                    if (step + turn + 1 < steps) {
                        m.raw_full[ring.stage].wait(ring.parity);
                        take(patch[turn ^ 1], (step + turn + 1) * DEEP, m.raw[ring.stage]);
                    }
                }
            }
            wgmma_wait<0>();
            pin(sums[0]), pin(sums[1]);
            tell(last);
            if (position) shift(sums, tile, position);
            leave(sums, tile, y, bias);
        }
    }
    DEVICE u32 row(u32 tile, int half) const {
        u32 row = (tile / s.tiles_across * PAIR + rank) * TOKENS + group * 64 + thread_again() % 128 / 32 * 16 + thread_again() % 32 / 4;
        row += half * 8;
        return row < s.rows ? row : NOWHERE;
    }
    DEVICE u32 column(u32 tile) const { return tile % s.tiles_across * COLUMNS + thread_again() % 4 * 2; }
    DEVICE void shift(float (&sums)[2][HALF / 2], u32 tile, const T* position) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 token = row(tile, half), first = column(tile);
            if (token == NOWHERE) continue;
            const T* from = position + (u64)(token % s.per) * s.d + first;
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; ++i) {
                if (first + 8 * i >= s.d) break;
                Pack<T, 2> where = load_once<T, 2>(from + 8 * i);
                float* sum = sums[i / (HALF / 8)] + 4 * (i % (HALF / 8)) + half * 2;
                sum[0] += where.get(0), sum[1] += where.get(1);
            }
        }
    }
    DEVICE void leave(const float (&sums)[2][HALF / 2], u32 tile, T* y, const T* bias) const {
#pragma unroll
        for (int four = 0; four < COLUMNS / 32; ++four) {
            u32 first = column(tile) + 32 * four;
            Pack<T, 2> shift[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                shift[i].word[0] = 0;
                if (first + 8 * i < s.d) shift[i] = load_once<T, 2>(bias + first + 8 * i);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                u32 token = row(tile, half);
                Pack<T, 8> all;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    constexpr int EACH = HALF / 8;
                    const float* sum = sums[(4 * four + i) / EACH] + 4 * ((4 * four + i) % EACH) + half * 2;
                    all.word[i] = narrow_pair<T>(sum[0] + shift[i].get(0), sum[1] + shift[i].get(1));
                }
                turn(all.word);
                u32 at = first + 6 * (thread_again() % 4);
                if (token != NOWHERE && at < s.d) store<T, 8>(y + (u64)token * s.d + at, all);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    patch_embed_fwd_product(T* y, const f32* x, const __grid_constant__ TensorMap weight, const T* bias, const f32* mean, const f32* std,
                            const T* position, const __grid_constant__ Problem s) {
    follow();
    extern __shared__ unsigned char memory[];
    Shared& m = *(Shared*)aligned<1024>(memory);
    Normal* normals = (Normal*)(&m + 1);
    for (u32 c = thread(); c < s.c; c += THREADS) normals[c] = {mean ? mean[c] : 0.0f, std ? divide(1.0f, std[c]) : 1.0f};
    u32 rank = cluster_rank(), steps = (s.features + DEEP - 1) / DEEP;
    if (thread() == 0) {
        for (int i = 0; i < STAGES; ++i) {
            m.weight_full[i].init(1);
            m.raw_full[i].init(128);
            m.done[i].init(4 * GROUPS * PAIR);
        }
        barrier_init_fence();
    }
    cluster_sync();
    u32 group = uniform(thread() / 128);
    if (group == GROUPS) {
        registers_down<24>();
        Gatherer{s, x, m, rank, steps}.run(weight);
    } else {
        registers_up<240>();
        Multiplier{s, m, rank, steps, group}.run(y, bias, position);
    }
    // No block ends while the other may still write to it.
    cluster_sync();
}
