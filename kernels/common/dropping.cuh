// dropping: dropout of attention's probabilities. Key j of row r (of all rows of all heads) has number r * 4 ceil(nk / 4) + j of a stream,
// so that one block of Philox is four neighbouring keys of a row.

#pragma once
#include "common/rng.cuh"

struct Dropping {
    i64 seed, stream;
    int reach;
    float scale;

    // Blocks of a row.
    DEVICE static i64 blocks(i64 nk) { return (nk + 3) / 4; }
    DEVICE float factor(i64 row, i64 nk, i64 j) const {
        return reach ? kept(drawn_bits(seed, stream, row * (blocks(nk) * 4) + j), reach, scale) : 1.0f;
    }
    // Which of a block's four numbers are kept, the first in the lowest bit.
    DEVICE u32 kept_bits(i64 block) const {
        u32 word[4], least = (u32)reach << 8, bits = 0;
        philox(word, seed, stream, block);
#pragma unroll
        for (int i = 3; i >= 0; --i) bits = 2 * bits + (word[i] >= least);
        return bits;
    }
};
