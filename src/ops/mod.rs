//! Operators: one file (or folder) a room, each with its documentation, shapes, cost, reference, gradient, CPU path, cases
//! and tests, in that order.

pub mod compare;
pub mod contract;
pub mod host;
pub mod operator;

pub mod layer_norm;

pub use contract::Room;

/// Every room, in alphabetical order.
pub static ROOMS: &[&Room] = &[&layer_norm::ROOM];

/// The room of this name.
pub fn room(name: &str) -> Option<&'static Room> {
    ROOMS.iter().copied().find(|r| r.name == name)
}
