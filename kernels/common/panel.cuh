// panel: rows of 16-bit numbers in shared memory, copied there without passing through registers where the chip can, and the operands
// of a warp's products out of them, as they lie or turned
// pieces    16 bytes are a piece; piece c of row r lies at place c ^ turn(r), so that eight rows of a column of pieces touch all banks
// operands  a warp's own side has 16 rows of the result; the other side its 16 columns. Own rows stay with their lanes through a chain
//           of products: on NVIDIA the left operand, on AMD the right one. A tile of sums is the own operand of the next product
// matrix    ldmatrix on NVIDIA: four quarters of an operand at once; AMD reads 8 bytes, turned 2 bytes four times
// source    PTX ISA, "Matrix fragments for mma.m16n8k16", "ldmatrix"; AMD matrix instruction calculator, v_mfma_f32_16x16x16

#pragma once
#include "common/copies.cuh"
#include "common/mma.cuh"
#include "common/pack.cuh"

template <typename U> struct Panel {
    U* at;
    int pieces, group;

    // Rows of `width` numbers, a multiple of 16.
    DEVICE Panel(U* at, int width) : at(at), pieces(width / 8), group((int)least(pieces & -pieces, 8)) {}

    DEVICE int turn(int r) const { return r * group / 8 & (group - 1); }
    DEVICE U* piece(int r, int c) const { return at + (r * pieces + (c ^ turn(r))) * 8; }
    // Where number c of row r lies.
    DEVICE U* number(int r, int c) const { return piece(r, c / 8) + c % 8; }
};

// ---- the lanes of a warp ----

// This warp's number, which NVIDIA's compiler is told is the same for all lanes: so branches on what follows from it are one.
DEVICE int warp_number() { return WARP == 32 ? lane_at(warp_id(), 0) : warp_id(); }

DEVICE bool any_lane(bool yes) {
#ifdef ON_NVIDIA
    return __any_sync(0xffffffffu, yes);
#else
    return __builtin_amdgcn_ballot_w64(yes) != 0;
#endif
}

// Own rows that a lane holds numbers of in a tile of sums, and which of them number i belongs to.
#ifdef ON_NVIDIA
constexpr int HELD = 2;
DEVICE constexpr int held(int i) { return i / 2 % 2; }
DEVICE int own(int i) { return Tile16::row(i); }
DEVICE int other(int i) { return Tile16::column(i); }
#else
constexpr int HELD = 1;
DEVICE constexpr int held(int) { return 0; }
DEVICE int own(int i) { return Tile16::column(i); }
DEVICE int other(int i) { return Tile16::row(i); }
#endif
// The row that is held in place h.
DEVICE int held_row(int h) { return own(h * 2 % Tile16::NUMBERS); }

// Over the lanes that hold numbers of the same own row.
DEVICE float own_sum(float v) {
    v += lane_xor(v, WARP == 32 ? 1 : 16);
    return v + lane_xor(v, WARP == 32 ? 2 : 32);
}
DEVICE float own_max(float v) {
    v = larger(v, lane_xor(v, WARP == 32 ? 1 : 16));
    return larger(v, lane_xor(v, WARP == 32 ? 2 : 32));
}

// ---- operands ----

#ifdef ON_NVIDIA
// Four quarters, eight rows each: with ACROSS the second lies beside the first, else below it. r and c are multiples of 16, so a lane's
// own share of the address is the same for all tiles of a panel, but for the bits of c that its turn reaches.
template <bool ACROSS, bool TURNED, typename U> DEVICE void load_quarters(Frag16<U>& f, const Panel<U>& p, int r, int c) {
    int l = lane(), down = ACROSS ? l / 16 * 8 + l % 8 : l % 16, right = ACROSS ? l / 8 % 2 : l / 16, turned = p.group * 16 - 1;
    u32 mine = (down * p.pieces + (right ^ p.turn(down))) * 16;
    u32 at = (u32)__cvta_generic_to_shared(p.at) + r * p.pieces * 16 + (c * 2 & ~turned) + (mine ^ (c * 2 & turned));
    if constexpr (TURNED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
                     : "r"(at)
                     : "memory");
    }
}
#else
// Number `right` of row `down` of the 16 by 16 numbers from row r and column c on, both multiples of 16: what a lane adds for itself is
// the same for all tiles of a panel, but for the bits of c that its turn reaches.
template <typename U> DEVICE const U* number_of(const Panel<U>& p, int r, int c, int down, int right) {
    int turned = p.group * 8 - 1, mine = (down * p.pieces + (right / 8 ^ p.turn(down))) * 8 + right % 8;
    return p.at + r * p.pieces * 8 + (c & ~turned) + (mine ^ (c & turned));
}
template <typename U> DEVICE void load_straight(Frag16<U>& f, const Panel<U>& p, int r, int c) {
    const u32* from = (const u32*)number_of(p, r, c, lane() % 16, lane() / 16 * 4);
    f.word[0] = from[0], f.word[1] = from[1];
}
template <typename U> DEVICE void load_turned(Frag16<U>& f, const Panel<U>& p, int r, int c) {
    u32 number[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) number[k] = number_of(p, r, c, lane() / 16 * 4 + k, lane() % 16)->bits;
    f.word[0] = number[0] | number[1] << 16, f.word[1] = number[2] | number[3] << 16;
}
#endif

// Rows r to r + 15, k the columns from c on.
template <typename U> DEVICE void load_own(Frag16<U>& f, const Panel<U>& p, int r, int c) {
#ifdef ON_NVIDIA
    load_quarters<false, false>(f, p, r, c);
#else
    load_straight(f, p, r, c);
#endif
}
template <typename U> DEVICE void load_other(Frag16<U>& f, const Panel<U>& p, int r, int c) {
#ifdef ON_NVIDIA
    load_quarters<true, false>(f, p, r, c);
#else
    load_straight(f, p, r, c);
#endif
}
// The same of the panel turned: columns c to c + 15, k the rows from r on.
template <typename U> DEVICE void load_own_turned(Frag16<U>& f, const Panel<U>& p, int r, int c) {
#ifdef ON_NVIDIA
    load_quarters<true, true>(f, p, r, c);
#else
    load_turned(f, p, r, c);
#endif
}
template <typename U> DEVICE void load_other_turned(Frag16<U>& f, const Panel<U>& p, int r, int c) {
#ifdef ON_NVIDIA
    load_quarters<false, true>(f, p, r, c);
#else
    load_turned(f, p, r, c);
#endif
}

// A tile of sums, rounded, as the own operand of a product over the other side.
template <typename U> DEVICE void load_sums(Frag16<U>& f, const Tile16& s) {
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS / 2; ++i) f.word[i] = narrow_pair<U>(s.v[2 * i], s.v[2 * i + 1]);
}

// d += own * other^T.
template <typename U> DEVICE void multiply_own(Tile16& d, const Frag16<U>& own, const Frag16<U>& other) {
#ifdef ON_NVIDIA
    mma16<U>(d, own, other);
#else
    mma16<U>(d, other, own);
#endif
}

// A tile of sums, rounded, into rows r to r + 15 of a panel from column c on.
template <typename U> DEVICE void put_tile(const Panel<U>& p, int r, int c, const Tile16& s) {
#ifdef ON_NVIDIA
#pragma unroll
    for (int i = 0; i < 8; i += 2) *(u32*)p.number(r + own(i), c + other(i)) = narrow_pair<U>(s.v[i], s.v[i + 1]);
#else
    Pack<U, 4> pack;
    pack.pack(s.v);
    store<U, 4>(p.number(r + own(0), c + other(0)), pack);
#endif
}
