// ptx90 has these three files (hopper.rs, hopper_op.rs, decode/hopper.rs) written and tested; land the placeholders, mine follow at once.
//! Execution of what sm_90 added: barriers in memory, bulk copies, products of warp groups.

use super::cluster::{Cluster, Run, Trouble, trouble};
use super::exec::Flow;
use super::warp::Warp;

impl Cluster<'_> {
    /// Executes an instruction of sm_90.
    pub(super) fn hopper(&mut self, _: &mut Warp, _: usize, _: u32, _: u32, _: u32) -> Run<Flow> {
        trouble("not executed")
    }

    /// Does one piece of late work, when no warp can run; whether there was any.
    pub(super) fn finish_one(&mut self) -> Result<bool, (usize, u32, Box<Trouble>)> {
        Ok(false)
    }

    /// Whether the phase of this parity of an mbarrier is over.
    pub(super) fn is_phase_over(&self, _: u32, _: u32, _: bool) -> bool {
        false
    }
}
