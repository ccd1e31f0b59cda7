//! Operators: one file (or folder) a room, each with its documentation, shapes, cost, reference, gradient, CPU path, cases
//! and tests, in that order.

mod blocks;
mod broadcast;
pub mod compare;
pub mod contract;
mod convolution;
pub mod elementwise;
pub mod host;
mod keep;
mod launch;
mod norm;
pub mod operator;
mod totals;
#[cfg(test)]
mod trial;

pub mod absolute_error;
pub mod adamw;
pub mod adamw_product;
pub mod add;
pub mod add_norm;
pub mod attention;
pub mod batch_norm;
pub mod bias_gelu;
pub mod cast;
pub mod concat;
pub mod conv1d;
pub mod conv2d;
pub mod cross_entropy;
pub mod drop_path;
pub mod dropout;
pub mod gelu;
pub mod global_norm;
pub mod group_norm;
pub mod layer_norm;
pub mod linear_cross_entropy;
pub mod matmul;
mod mean_error;
pub mod mish;
pub mod modulate;
pub mod movement;
pub mod mul;
pub mod pad;
pub mod patch_embed;
pub mod patch_embed_history;
pub mod patch_unembed;
pub mod patch_unembed_error;
pub mod patchify;
pub mod permute;
pub mod reduce;
pub mod relative_l2;
pub mod relu;
pub mod resize_bilinear;
pub mod resize_tokens;
pub mod rms_norm;
pub mod roll;
pub mod rope;
pub mod scale;
pub mod selu;
pub mod sigmoid;
pub mod silu;
pub mod slice;
pub mod softmax;
pub mod squared_error;
pub mod swiglu;
pub mod unpatchify;

pub use contract::Room;

/// Every room, in alphabetical order.
pub static ROOMS: &[&Room] = &[
    &absolute_error::ROOM,
    &adamw::ROOM,
    &adamw_product::ROOM,
    &add::ROOM,
    &add_norm::ROOM,
    &attention::ROOM,
    &batch_norm::ROOM,
    &bias_gelu::ROOM,
    &cast::ROOM,
    &concat::ROOM,
    &conv1d::ROOM,
    &conv2d::ROOM,
    &cross_entropy::ROOM,
    &drop_path::ROOM,
    &dropout::ROOM,
    &gelu::ROOM,
    &global_norm::ROOM,
    &group_norm::ROOM,
    &layer_norm::ROOM,
    &linear_cross_entropy::ROOM,
    &matmul::ROOM,
    &mish::ROOM,
    &modulate::ROOM,
    &mul::ROOM,
    &pad::ROOM,
    &patch_embed::ROOM,
    &patch_embed_history::ROOM,
    &patch_unembed::ROOM,
    &patch_unembed_error::ROOM,
    &patchify::ROOM,
    &permute::ROOM,
    &reduce::ROOM,
    &relative_l2::ROOM,
    &relu::ROOM,
    &resize_bilinear::ROOM,
    &resize_tokens::ROOM,
    &rms_norm::ROOM,
    &roll::ROOM,
    &rope::ROOM,
    &scale::ROOM,
    &selu::ROOM,
    &sigmoid::ROOM,
    &silu::ROOM,
    &slice::ROOM,
    &softmax::ROOM,
    &squared_error::ROOM,
    &swiglu::ROOM,
    &unpatchify::ROOM,
];

/// The room of this name.
pub fn room(name: &str) -> Option<&'static Room> {
    ROOMS.iter().copied().find(|r| r.name == name)
}
