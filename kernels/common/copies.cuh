// copies: from global to shared memory without passing through registers where the chip can, so that much may be under way.
// groups    what a thread copied up to copies_close() is a group; a thread sees its own copies after copies_wait, others' after a barrier
// AMD       loads and stores: finished when the call returns

#pragma once
#include "common/pack.cuh"

// 4, 8 or 16 bytes, or zeros.
template <int BYTES, typename U> DEVICE void copy_bytes(U* to, const U* from, bool is_there) {
#ifdef ON_NVIDIA
    // With no bytes to read the address is not looked at.
    u32 at = (u32)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(is_there ? 16 : 0) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(at), "l"(from), "r"(is_there ? BYTES : 0), "n"(BYTES)
                     : "memory");
    }
#else
    constexpr int W = BYTES / (int)sizeof(U);
    Pack<U, W> pack;
#pragma unroll
    for (int i = 0; i < Pack<U, W>::WORDS; ++i) pack.word[i] = 0;
    if (is_there) pack = load_kept<U, W>(from);
    store<U, W>(to, pack);
#endif
}
// A piece of a panel.
template <typename U> DEVICE void copy_piece(U* to, const U* from, bool is_there) { copy_bytes<16>(to, from, is_there); }

DEVICE void copies_close() {
#ifdef ON_NVIDIA
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last LEFT groups are there.
template <int LEFT> DEVICE void copies_wait() {
#ifdef ON_NVIDIA
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
DEVICE void copies_end() {
    copies_close();
    copies_wait<0>();
}
