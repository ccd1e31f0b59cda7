// seen: who sees whom in attention. A query sees a range of keys, neither of whose ends goes back from one query to the next; so a tile
// of queries sees a range, and those who see a key are one. All masks are this: lengths, causal ones, sliding windows, packed sequences
// formula   keys i - before up to and without i + after, of the first `length`
// table     where there is one: two numbers for each query, the first key and the end, then two for each key: who sees it

#pragma once
#include "common/device.cuh"

template <typename I> struct Seen {
    I nq, nk, length, before, after;
    const int* table;

    static DEVICE I clamp(I n, I most) { return n < 0 ? 0 : n < most ? n : most; }

    // The first key that query i sees, and the end of those that it sees; of none both are the same.
    DEVICE I first(I i) const { return table ? table[2 * clamp(i, nq - 1)] : clamp(i - before, length); }
    DEVICE I end(I i) const { return table ? table[2 * clamp(i, nq - 1) + 1] : clamp(i + after, length); }
    DEVICE bool sees(I i, I j) const { return first(i) <= j && j < end(i); }
    // The first query whose keys end behind key j, and the end of those whose keys begin at j or before.
    DEVICE I first_query(I j) const {
        if (j >= length) return nq;
        return table ? table[2 * (nq + j)] : clamp(j - after + 1, nq);
    }
    DEVICE I end_query(I j) const {
        if (j >= length) return nq;
        return table ? table[2 * (nq + j) + 1] : clamp(j + before + 1, nq);
    }
    // Whether key j is the only one that query i, which sees it, sees.
    DEVICE bool is_alone(I i) const { return end(i) - first(i) == 1; }
};
