//! What the waves of a workgroup share: LDS, the memory they see, counters; and the address map.

use super::lds::Lds;
use super::program::Program;
use crate::backend::emulator::counters::Counters;
use crate::backend::emulator::memory::View;

/// High word of the window through which flat addresses reach LDS; above every allocation.
pub(super) const SHARED_WINDOW: u32 = 0x0100_0000;
/// High word of the window through which flat addresses reach private memory.
pub(super) const PRIVATE_WINDOW: u32 = 0x0200_0000;
/// Where the code object lies.
pub(super) const IMAGE: u64 = 0x7d00_0000_0000;
/// Where the arguments of a launch lie.
pub(super) const ARGUMENTS: u64 = 0x7e00_0000_0000;
/// Where the packet of a launch lies.
pub(super) const PACKET: u64 = 0x7e80_0000_0000;
/// Where buffer descriptors of private memory point: every wave finds its own memory there.
pub(super) const SCRATCH: u64 = 0x7c00_0000_0000;

/// What the waves of a workgroup share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) program: &'a Program,
    /// Bytes of arguments.
    pub(super) arguments: &'a [u8],
    /// The packet of the launch.
    pub(super) packet: &'a [u8],
    pub(super) view: View,
    pub(super) lds: Lds,
    pub(super) counters: Counters,
    /// Whether results of memory come as late as the waits allow.
    pub(super) is_late: bool,
    /// Index of the instruction that is executed.
    pub(super) at: usize,
}

impl Shared<'_> {
    /// Bytes of the constant ranges that a launch adds to memory: code, arguments, packet.
    pub(super) fn constant(&self, address: u64, bytes: usize) -> Option<&[u8]> {
        let inside = |base: u64, range: &'_ [u8]| {
            let offset = usize::try_from(address.checked_sub(base)?).ok()?;
            (offset < range.len() && range.len() - offset >= bytes).then_some(offset..offset + bytes)
        };
        if let Some(at) = inside(ARGUMENTS, self.arguments) {
            return self.arguments.get(at);
        }
        if let Some(at) = inside(IMAGE, &self.program.image) {
            return self.program.image.get(at);
        }
        inside(PACKET, self.packet).and_then(|at| self.packet.get(at))
    }
}
