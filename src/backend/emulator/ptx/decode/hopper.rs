// ptx90 has these three files (hopper.rs, hopper_op.rs, decode/hopper.rs) written and tested; land the placeholders, mine follow at once.
//! What sm_90 added: barriers in memory, bulk copies, products of warp groups.

use super::{Decoder, Modifiers};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::syntax::Operand;
use crate::error::Result;

impl Decoder<'_> {
    pub(super) fn hopper(&mut self, _: &str, _: &mut Modifiers, _: &[Operand]) -> Result<Option<Class>> {
        Ok(None)
    }
}
