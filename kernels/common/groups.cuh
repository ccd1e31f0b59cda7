// groups: moments and sums over the outer and inner places of a middle axis: x [Z, O, G, I], one result for each (z, g). The channels of
// batch_norm are G with O = batch, I = space; the groups of group_norm are G with O = tokens, I = channels of a group.
// stages    a block takes a piece of GROUP_PIECE<T> numbers of one (z, g); a warp then merges the pieces of a (z, g)
// launch    GROUP_THREADS threads; grid [Z * G * pieces], then [Z * G / warps of a block]
// paths     16-byte packs when W divides I, else single numbers
// traffic   every number is read once: a piece stays in registers for its mean, summed in f64, and its squares about that mean
// sizes     O * I below 2^31
// order     pieces and lanes in a fixed order: same input, same bits
// source    merging of moments: Chan, Golub, LeVeque 1979

#pragma once
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/totals.cuh"

constexpr int GROUP_THREADS = 256;
constexpr int GROUP_PACKS = 4;
template <typename U> constexpr int GROUP_PIECE = GROUP_THREADS * GROUP_PACKS * WIDE<U>;

// Where the numbers of one group lie, and which of them belong to this block.
struct Piece {
    i64 base;
    i64 step;  // from one outer place to the next
    u32 inner;
    u32 begin;
    u32 end;
    u32 group;
};

// Block (cell, piece) of tensors of `outer` * `groups` * `inner` numbers a z; a cell is a (z, g).
template <typename U> DEVICE Piece piece_of(int outer, int groups, int inner, int pieces) {
    u32 cell = block_x() / (u32)pieces, z = cell / (u32)groups, group = cell - z * groups, count = (u32)outer * inner;
    u32 begin = (block_x() - cell * pieces) * GROUP_PIECE<U>, rest = count - begin;
    i64 step = (i64)groups * inner;
    u32 end = begin + (rest < GROUP_PIECE<U> ? rest : GROUP_PIECE<U>);
    return Piece{z * outer * step + (i64)group * inner, step, (u32)inner, begin, end, group};
}

// The place of number e of the group.
DEVICE i64 place(const Piece& p, u32 e) {
    u32 o = e / p.inner;
    return p.base + o * p.step + (e - o * p.inner);
}

// A piece in registers.
template <typename U> struct HeldPiece {
    static constexpr int W = WIDE<U>;
    Pack<U, W> pack[GROUP_PACKS];
    u32 first;
    u32 end;
    bool is_wide;

    DEVICE HeldPiece(const U* x, const Piece& p, bool may_be_wide) : end(p.end) {
        is_wide = may_be_wide && p.inner % W == 0;
        first = p.begin + (is_wide ? thread() * W : thread());
#pragma unroll
        for (int k = 0; k < GROUP_PACKS; ++k) {
#pragma unroll
            for (int i = 0; i < Pack<U, W>::WORDS; ++i) pack[k].word[i] = 0;
        }
        if (is_wide) {
#pragma unroll
            for (int k = 0; k < GROUP_PACKS; ++k) {
                u32 e = first + k * GROUP_THREADS * W;
                if (e < end) load_words_once(pack[k].word, x + place(p, e));
            }
            return;
        }
#pragma unroll
        for (int k = 0; k < GROUP_PACKS; ++k) {
            float v[W];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                u32 e = first + (k * W + i) * GROUP_THREADS;
                v[i] = e < end ? widen(x[place(p, e)]) : 0.0f;
            }
            pack[k].pack(v);
        }
    }
    // Number i of pack k; 0 where there is none.
    DEVICE float get(int k, int i) const { return pack[k].get(i); }
    // Whether it is one.
    DEVICE bool has(int k, int i) const {
        return first + (is_wide ? k * GROUP_THREADS * W : (k * W + i) * GROUP_THREADS) < end;
    }
};

// Mean and squares about it of this block's piece.
template <typename U>
DEVICE void piece_moments(float* means, float* squares, const U* x, int outer, int groups, int inner, int pieces) {
    __shared__ BlockScratch<GROUP_THREADS> scratch;
    Piece p = piece_of<U>(outer, groups, inner, pieces);
    HeldPiece<U> held(x, p, is_aligned<16>(x));
    // In f64: the mean of numbers that nearly cancel keeps its digits. Few numbers of 11 bits lose none in f32, and conversions are slow.
    double total[1] = {0.0};
    float square = 0.0f;
#pragma unroll
    for (int k = 0; k < GROUP_PACKS; ++k) {
        if constexpr (sizeof(U) == 2) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WIDE<U>; ++i) sum += held.get(k, i);
            total[0] += (double)sum;
        } else {
#pragma unroll
            for (int i = 0; i < WIDE<U>; ++i) total[0] += (double)held.get(k, i);
        }
    }
    Team{GROUP_THREADS}.sum(total);
    float mean = (float)(total[0] / (double)(p.end - p.begin));
#pragma unroll
    for (int k = 0; k < GROUP_PACKS; ++k) {
#pragma unroll
        for (int i = 0; i < WIDE<U>; ++i) {
            float d = held.has(k, i) ? held.get(k, i) - mean : 0.0f;
            square = fmaf(d, d, square);
        }
    }
    square = block_sum(square, scratch);
    if (thread() == 0) means[block_x()] = mean, squares[block_x()] = square;
}

// A warp's cell in the second stage; cells may be fewer than warps.
DEVICE i64 cell_of_warp() { return (i64)block_x() * (GROUP_THREADS / WARP) + warp_id(); }

// Mean and variance of a cell of `count` numbers from its pieces of `piece` numbers, on every lane.
DEVICE void merge_moments(float& mean, float& variance, const float* means, const float* squares, int pieces, int piece, int count) {
    float origin = means[0], shift = 0.0f, square = 0.0f;
    for (int k = lane(); k < pieces; k += WARP) {
        shift = fmaf((float)least(piece, count - k * piece), means[k] - origin, shift);
    }
    mean = origin + divide(warp_sum(shift), (float)count);
    for (int k = lane(); k < pieces; k += WARP) {
        float n = (float)least(piece, count - k * piece), d = means[k] - mean;
        square += fmaf(mul(n, d), d, squares[k]);
    }
    variance = divide(warp_sum(square), (float)count);
}

// The sum of a cell's pieces, on every lane.
DEVICE float merge_sums(const float* sums, int pieces) {
    float total = 0.0f;
    for (int k = lane(); k < pieces; k += WARP) total += sums[k];
    return warp_sum(total);
}
