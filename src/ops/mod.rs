//! Operators: one file (or folder) a room, each with its documentation, shapes, cost, reference, gradient, CPU path, cases
//! and tests, in that order.

pub mod compare;
pub mod contract;
pub mod host;
pub mod operator;

pub mod adamw;
pub mod attention;
pub mod global_norm;
pub mod layer_norm;
pub mod matmul;
pub mod movement;
pub mod patchify;
pub mod permute;
pub mod relative_l2;
pub mod resize_bilinear;
pub mod unpatchify;

pub use contract::Room;

/// Every room, in alphabetical order.
pub static ROOMS: &[&Room] = &[
    &adamw::ROOM,
    &attention::ROOM,
    &global_norm::ROOM,
    &layer_norm::ROOM,
    &matmul::ROOM,
    &patchify::ROOM,
    &permute::ROOM,
    &relative_l2::ROOM,
    &resize_bilinear::ROOM,
    &unpatchify::ROOM,
];

/// The room of this name.
pub fn room(name: &str) -> Option<&'static Room> {
    ROOMS.iter().copied().find(|r| r.name == name)
}
