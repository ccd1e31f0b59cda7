//! What every room must satisfy, as plain functions over its cases: tests call them through [`room_tests!`], `perfrun
//! check` calls them on a machine without a compiler.
//!
//! [`room_tests!`]: crate::room_tests

pub mod bench;
mod cases;
mod device;
mod oracle;
mod prove;
pub mod rates;
mod room;

pub use cases::{BadCase, Case, Fill, Input};
pub use device::{Reach, accumulate, cases_on, device, repeatable};
pub use oracle::{Draw, Subject};
pub use prove::{cost_is_counted, gradient_rule, shapes};
pub use room::{CHECKS, Check, Prove, Room, Verdict};

/// The contract as tests of one room: `room_tests!(ROOM)` inside the room's `mod tests`.
#[macro_export]
macro_rules! room_tests {
    ($room:expr) => {
        #[test]
        fn shapes() -> Result<(), String> {
            $crate::ops::contract::shapes(&$room)
        }

        #[test]
        fn cost_is_counted() -> Result<(), String> {
            $crate::ops::contract::cost_is_counted(&$room)
        }

        #[test]
        fn gradient_rule() -> Result<(), String> {
            $crate::ops::contract::gradient_rule(&$room)
        }

        #[test]
        fn cpu_backend() -> Result<(), String> {
            $crate::ops::contract::device(&$room, &$crate::backend::Exec::cpu(), $crate::ops::contract::Reach::Whole)
        }

        #[test]
        fn repeatable() -> Result<(), String> {
            $crate::ops::contract::repeatable(
                &$room,
                &$crate::backend::Exec::cpu(),
                $crate::ops::contract::Reach::Whole,
            )
        }

        #[test]
        fn accumulate() -> Result<(), String> {
            $crate::ops::contract::accumulate(
                &$room,
                &$crate::backend::Exec::cpu(),
                $crate::ops::contract::Reach::Whole,
            )
        }
    };
}
