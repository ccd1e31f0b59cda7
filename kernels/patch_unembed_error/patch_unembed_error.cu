// patch_unembed_error: loss = 1/n * sum of rows[h] * channels[c] * error(tokens[b, i*w + j, (p, q, c)] * std[c] + mean[c] - target), and the
//           gradient of the tokens: the field that they make is never written.
// axes      target [B, C, h*P, w*Q]; tokens, dtokens [B, h*w, P*Q*C]; mean, std, channels [C], rows [h*P], loss, dloss [1]
// types     tokens in T of {f32, bf16, f16}; the others f32; errors in f32, sums in f64
// launch    common/patches.cuh: tiles through shared memory; then one block adds the tiles
// paths     as common/patches.cuh; constants of a channel are looked up once a pack
// traffic   fwd reads tokens and target once; bwd the same, and writes dtokens once
// order     a thread's numbers from first to last, threads by halving, tiles in their order: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 64, gfx942 64; no spills
// source    the inverse of Dosovitskiy et al. 2021, section 3.1; weights: Rasp et al. 2020, equation 2

#include "common/patches.cuh"
#include "common/totals.cuh"

// What a number of a token is off by, in the unit of the data.
struct Channel {
    float mean, std, weight;
    DEVICE float off(T v, f32 target) const { return mul(widen(v), std) + mean - target; }
};
struct Channels {
    const f32 *mean, *std, *weight;
    DEVICE Channel of(u32 c) const { return {mean[c], std[c], weight[c]}; }
};

struct ErrorRow {
    Channel of;
    double& total;
    int is_absolute;
    DEVICE T operator()(T v, f32 target) const {
        float d = of.off(v, target);
        total = fused((double)of.weight, (double)(is_absolute ? (d < 0.0f ? -d : d) : mul(d, d)), total);
        return v;
    }
};
struct Errors {
    static constexpr bool WRITES = false;
    Channels of;
    int is_absolute;
    double total;
    DEVICE ErrorRow row(u32 c) { return {of.of(c), total, is_absolute}; }
};

struct PullRow {
    Channel of;
    float share;
    int is_absolute;
    DEVICE T operator()(T v, f32 target) const {
        float d = of.off(v, target), pull = is_absolute ? (d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d) : d + d;
        return narrow<T>(mul(share, pull));
    }
};
struct Pulls {
    static constexpr bool WRITES = true;
    Channels of;
    float share;
    int is_absolute;
    DEVICE PullRow row(u32 c) const {
        Channel channel = of.of(c);
        return {channel, mul(mul(share, channel.weight), channel.std), is_absolute};
    }
};

extern "C" __global__ void __launch_bounds__(PATCH_THREADS, 4) patch_unembed_error_fwd_sums(
    int* sums, const T* tokens, const f32* target, const f32* mean, const f32* std, const f32* rows, const f32* channels, Patches patches,
    int is_absolute) {
    follow();
    extern __shared__ u32 memory[];
    T* room = (T*)memory;
    PatchTile tile(patches);
    take_all_tokens(room, tokens, patches, tile);
    block_sync();
    Errors errors{{mean, std, channels}, is_absolute, 0.0};
    meet_all_rows(room, target, patches, tile, errors);
    double total[1] = {errors.total};
    Team{PATCH_THREADS}.sum(total);
    if (thread() == 0) ((double*)sums)[block_x()] = (double)rows[tile.line] * total[0];
}

extern "C" __global__ void __launch_bounds__(TOTAL_THREADS)
    patch_unembed_error_fwd(f32* loss, const int* sums, i64 tiles, i64 n) {
    follow();
    Team team{TOTAL_THREADS};
    PlainTotal sum{};
    visit(0, tiles, team.id(), TOTAL_THREADS, sum, (const double*)sums);
    team.sum(sum.total);
    if (team.id() == 0) loss[0] = (float)(sum.total[0] / (double)n);
}

extern "C" __global__ void __launch_bounds__(PATCH_THREADS) patch_unembed_error_bwd_dtokens(
    T* dtokens, const T* tokens, const f32* target, const f32* mean, const f32* std, const f32* rows, const f32* channels,
    const f32* dloss, Patches patches, float share, int is_absolute, int add) {
    follow();
    extern __shared__ u32 memory[];
    T* room = (T*)memory;
    PatchTile tile(patches);
    take_all_tokens(room, tokens, patches, tile);
    block_sync();
    Pulls pulls{{mean, std, channels}, mul(mul(share, dloss[0]), rows[tile.line]), is_absolute};
    meet_all_rows(room, target, patches, tile, pulls);
    block_sync();
    leave_all_tokens(dtokens, room, patches, tile, add);
}
