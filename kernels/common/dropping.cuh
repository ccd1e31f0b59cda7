// dropping: dropout of attention's probabilities, each decided by 8 bits of its own, so that one block of Philox serves 16 of them.
// blocks    a head has tiles of 16 queries by 16 keys, a tile 16 blocks: queries 2 a, 2 a + 1, 2 a + 8, 2 a + 9 by keys 2 b, 2 b + 1,
//           2 b + 8, 2 b + 9, as matrix units leave them to two lanes side by side, whichever of both are rows. Block (a, b) of the tile
//           in row r of all heads' tiles and column c is block r * 2^32 + 16 c + 4 a + b of the stream
// bits      bit t of a word's lower and upper half belong to number t of the block: 1 in t is the key beside, 2 the query 8 further, 4 the
//           key 8 further, 8 the query beside, so that a lane of queries has a byte. Words
//           0 to 3 have bits 0 to 3 of the 8 in their lower halves and bits 4 to 7 in their upper ones; dropped is what is below `reach`

#pragma once
#include "common/rng.cuh"

constexpr int ROUNDS = 7;  // of Philox: multiplications are what dropout costs beside the exponentials

struct Dropping {
    i64 seed, stream;
    int reach;  // how many of 256 are dropped
    float scale;

    // Rows of tiles of a head.
    DEVICE static u32 tiles(i64 nq) { return (u32)((nq + 15) / 16); }
    // Which of a block's 16 numbers are kept: all are compared at once, bit by bit from the lowest. `rows` is the tile's row of tiles,
    // `place` what the block's number has besides.
    DEVICE u32 kept_bits(u32 rows, u32 place) const {
        u32 word[4], at_least = ~0u;
        philox<ROUNDS>(word, seed, stream, place, rows);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            // A bit of the number that is set where that of `reach` is not decides; the other way round too; else those below do.
            u32 is_clear = (reach >> i & 1) - 1u, bit = word[i % 4];
            if (i == 4) at_least <<= 16;
            at_least = (at_least & bit) | (is_clear & (at_least | bit));
        }
        return at_least >> 16;
    }
    // The factor of query i and key j of a head whose first row of tiles is `rows`.
    DEVICE float factor(i64 rows, i64 i, i64 j) const {
        if (!reach) return 1.0f;
        int a = (int)(i % 16), b = (int)(j % 16);
        u32 bits = kept_bits((u32)(rows + i / 16), (u32)(j - b) + a % 8 / 2 * 4 + b % 8 / 2);
        return bits >> (b % 2 + a / 8 * 2 + b / 8 * 4 + a % 2 * 8) & 1 ? scale : 0.0f;
    }
};
