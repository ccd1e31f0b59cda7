// sm90: what Hopper adds, in words: barriers with bytes, bulk copies, clusters, named barriers, registers by role.
// needs     compute_90a; NVRTC or nvcc
// waiting   a copy is finished when the barrier that it names completes its phase (loads) or its group is waited for (stores)
// proxies   bulk copies and wgmma see ordinary stores to shared memory only after proxy_fence() by the threads that stored
// source    NVIDIA, Parallel Thread Execution ISA 8.8, sections 9.7.13 and 9.7.9.25

#pragma once
#include "common/device.cuh"

// The address within shared memory, as PTX instructions want it.
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// The first power-of-two boundary at or after p: swizzled tiles start at multiples of 1024.
template <int ALIGN> DEVICE unsigned char* aligned(unsigned char* p) { return p + ((ALIGN - shared_address(p)) & (ALIGN - 1)); }

// ---- barriers in shared memory ----

// Counts arrivals and bytes; its phases alternate between parity 0 and 1. One thread calls init, then all of the block (or cluster) synchronise.
struct alignas(8) Barrier {
    u64 word;

    DEVICE u32 address() const { return shared_address(this); }

    DEVICE void init(u32 arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
    }
    DEVICE void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory"); }
    // Arrives, and makes the phase wait for this many bytes of bulk copies besides.
    DEVICE void arrive_expect(u32 bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
    }
    // Arrives at the same barrier of another block of the cluster.
    DEVICE void arrive_at(u32 rank) {
        asm volatile(
            "{ .reg .b32 there;\n\t"
            "mapa.shared::cluster.u32 there, %0, %1;\n\t"
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there]; }" ::"r"(address()),
            "r"(rank)
            : "memory");
    }
    DEVICE bool is_complete(u32 parity) const {
        u32 yes;
        asm volatile(
            "{ .reg .pred p;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p; }"
            : "=r"(yes)
            : "r"(address()), "r"(parity)
            : "memory");
        return yes != 0;
    }
    // The same without waiting a while for it.
    DEVICE bool is_complete_now(u32 parity) const {
        u32 yes;
        asm volatile(
            "{ .reg .pred p;\n\t"
            "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p; }"
            : "=r"(yes)
            : "r"(address()), "r"(parity)
            : "memory");
        return yes != 0;
    }
    // Until the phase of this parity is complete. Of a fresh barrier, the phase of parity 1 counts as complete.
    DEVICE void wait(u32 parity) const {
        while (!is_complete(parity)) {}
    }
};

// Makes init visible to the other blocks of the cluster and to bulk copies; a synchronisation follows.
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Where a ring of buffers stands: which buffer, and the parity of its phase.
template <int STAGES> struct Ring {
    int stage = 0;
    u32 parity = 0;
    DEVICE void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// ---- bulk copies ----

// What the driver encoded; a kernel takes it as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// Makes ordinary stores to shared memory visible to bulk copies and wgmma.
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// The box at column x, row y to shared memory; elements outside the tensor are filled. One thread calls it.
DEVICE void load_box(void* to, const TensorMap& map, Barrier& barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(barrier.address()), "r"(x), "r"(y)
        : "memory");
}
DEVICE void load_box(void* to, const TensorMap& map, Barrier& barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(barrier.address()), "r"(x), "r"(y), "r"(z)
        : "memory");
}
DEVICE void load_box(void* to, const TensorMap& map, Barrier& barrier, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(barrier.address()), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}
DEVICE void load_box(void* to, const TensorMap& map, Barrier& barrier, int x, int y, int z, int w, int u) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(barrier.address()), "r"(x), "r"(y), "r"(z), "r"(w), "r"(u)
        : "memory");
}
// The same box to the same place in every block of the cluster whose bit is set; each block's barrier gets the bytes.
DEVICE void load_box_to(u16 blocks, void* to, const TensorMap& map, Barrier& barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
        "l"(&map), "r"(barrier.address()), "h"(blocks), "r"(x), "r"(y)
        : "memory");
}
// From shared memory to the box; what lies outside the tensor is dropped.
DEVICE void store_box(const TensorMap& map, const void* from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}
DEVICE void store_box(const TensorMap& map, const void* from, int x, int y, int z, int w) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
DEVICE void store_box(const TensorMap& map, const void* from, int x, int y, int z, int w, int u) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(u)
                 : "memory");
}
// Adds to the box, element by element; the order among blocks is not fixed.
DEVICE void add_box(const TensorMap& map, const void* from, int x, int y) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}

// Plain runs of bytes, multiples of 16 from and to multiples of 16.
DEVICE void load_bytes(void* to, const void* from, u32 bytes, Barrier& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(barrier.address())
                 : "memory");
}
DEVICE void store_bytes(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}
DEVICE void add_floats(float* to, const float* from, u32 bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}

// Closes the thread's group of stores.
DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most N groups still read shared memory: it may be written again.
template <int N> DEVICE void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
// Until at most N groups are unfinished: the others are in global memory.
template <int N> DEVICE void store_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }

// ---- clusters ----

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE u32 cluster_size() {
    u32 blocks;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}
// All threads of the cluster arrive, and see what the others wrote before. No block may end while another reads its memory.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
// A number at the same place in the shared memory of another block.
DEVICE float load_from(u32 rank, const float* p) {
    float v;
    asm volatile(
        "{ .reg .b32 there;\n\t"
        "mapa.shared::cluster.u32 there, %1, %2;\n\t"
        "ld.shared::cluster.f32 %0, [there]; }"
        : "=f"(v)
        : "r"(shared_address(p)), "r"(rank)
        : "memory");
    return v;
}
DEVICE void store_to(u32 rank, float* p, float v) {
    asm volatile(
        "{ .reg .b32 there;\n\t"
        "mapa.shared::cluster.u32 there, %0, %1;\n\t"
        "st.shared::cluster.f32 [there], %2; }" ::"r"(shared_address(p)),
        "r"(rank), "f"(v)
        : "memory");
}

// ---- roles of warps ----

// Barrier `id` (1 to 15; 0 is block_sync's) of `threads` threads, a multiple of the warp: wait for all, or only arrive.
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// The same barrier, and whether any of its threads says yes.
DEVICE bool named_any(int id, int threads, bool yes) {
    u32 any;
    asm volatile(
        "{ .reg .pred p, q;\n\t"
        "setp.ne.u32 p, %1, 0;\n\t"
        "barrier.red.or.pred q, %2, %3, p;\n\t"
        "selp.u32 %0, 1, 0, q; }"
        : "=r"(any)
        : "r"((u32)yes), "r"(id), "r"(threads)
        : "memory");
    return any != 0;
}

// The next number of a counter that all blocks share.
DEVICE int take_number(int* counter) {
    int before;
    asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// The hardware's approximations, which take denormals for 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The same number in all lanes, and the compiler knows it.
DEVICE int uniform(int v) { return __shfl_sync(0xffffffffu, v, 0); }
// The thread's number, read here: what follows from it is not kept in registers from one use to the next.
DEVICE int thread_again() {
    int t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

// Registers a thread from here on, for all four warps of a group: 24 to 256, a multiple of 8.
template <int N> DEVICE void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// True for one lane of the warp.
DEVICE bool elected() {
    u32 yes;
    asm volatile(
        "{ .reg .pred p;\n\t"
        "elect.sync _|p, 0xffffffff;\n\t"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(yes));
    return yes != 0;
}

// The next kernel of the stream may start; and until the kernel before is finished and its writes are seen.
DEVICE void dependents_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ---- matrices to shared memory ----

// Four matrices of 8 by 8 16-bit elements, one register each; lane 8 j + i gives the address of row i of matrix j.
DEVICE void store_matrices(u32 row, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}
DEVICE void store_matrices_transposed(u32 row, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
