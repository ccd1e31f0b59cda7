// ptx90 has these three files (hopper.rs, hopper_op.rs, decode/hopper.rs) written and tested; land the placeholders, mine follow at once.
//! Operands of what sm_90 added.

/// An instruction of sm_90.
#[derive(Clone, Debug)]
pub(super) enum Hopper {}
