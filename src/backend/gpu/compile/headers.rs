//! The headers of `kernels/common/`, embedded.

macro_rules! embed {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $path)))),*]
    };
}

/// Every header that kernels include, by its path inside `kernels/`; `tests/kernels.rs` holds that none is missing.
pub static HEADERS: &[(&str, &str)] = embed![
    "common/adamw.cuh",
    "common/attention.cuh",
    "common/backward.cuh",
    "common/bilinear.cuh",
    "common/bilinear_doubled.cuh",
    "common/bilinear_rows.cuh",
    "common/bilinear_whole.cuh",
    "common/columns.cuh",
    "common/convolution.cuh",
    "common/copies.cuh",
    "common/device.cuh",
    "common/dropping.cuh",
    "common/dtype.cuh",
    "common/elementwise.cuh",
    "common/feed.cuh",
    "common/gelu.cuh",
    "common/groups.cuh",
    "common/heads.cuh",
    "common/held.cuh",
    "common/math.cuh",
    "common/mean_error.cuh",
    "common/mma.cuh",
    "common/movement.cuh",
    "common/outer.cuh",
    "common/pack.cuh",
    "common/panel.cuh",
    "common/patches.cuh",
    "common/reduce.cuh",
    "common/rng.cuh",
    "common/rows.cuh",
    "common/seen.cuh",
    "common/sm90.cuh",
    "common/tiles.cuh",
    "common/totals.cuh",
    "common/wgmma.cuh",
    "common/windows.cuh",
];
