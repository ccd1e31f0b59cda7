// patch_unembed: y[b, c, i*P + p, j*Q + q] = tokens[b, i*w + j, (p, q, c)] * std[c] + mean[c], the last pass of the head; and back.
// axes      y, dy [B, C, h*P, w*Q]; tokens, dtokens [B, h*w, P*Q*C]; mean, std [C] f32, or neither
// types     tokens in T of {f32, bf16, f16}; y in f32
// launch    common/patches.cuh: tiles through shared memory; products are those of the room matmul
// paths     as common/patches.cuh; statistics are looked up once a pack
// traffic   reads tokens once, writes y once; back likewise
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 64, gfx942 64; no spills
// source    the inverse of Dosovitskiy et al. 2021, section 3.1

#include "common/math.cuh"
#include "common/patches.cuh"

struct ScaledRow {
    float mean, std;
    bool is_plain;
    DEVICE f32 operator()(T v) const { return is_plain ? widen(v) : mul(widen(v), std) + mean; }
};
struct Scaled {
    const f32 *mean, *std;
    DEVICE ScaledRow row(u32 c) const { return {mean ? mean[c] : 0.0f, std ? std[c] : 1.0f, std == nullptr}; }
};

struct SlopeRow {
    float std;
    DEVICE T operator()(f32 v) const { return narrow<T>(mul(v, std)); }
};
struct Slope {
    const f32* std;
    DEVICE SlopeRow row(u32 c) const { return {std ? std[c] : 1.0f}; }
};

extern "C" __global__ void __launch_bounds__(PATCH_THREADS)
    patch_unembed_fwd(f32* y, const T* tokens, const f32* mean, const f32* std, Patches patches) {
    follow();
    extern __shared__ u32 memory[];
    tokens_to_image(y, tokens, patches, 0, (T*)memory, Scaled{mean, std});
}

extern "C" __global__ void __launch_bounds__(PATCH_THREADS)
    patch_unembed_bwd_gather(T* dtokens, const f32* dy, const f32* std, Patches patches) {
    follow();
    extern __shared__ u32 memory[];
    image_to_tokens(dtokens, dy, patches, 0, (T*)memory, Slope{std});
}
