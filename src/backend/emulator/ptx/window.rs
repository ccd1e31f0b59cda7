//! Where the spaces lie among generic addresses.
//!
//! Global memory is below [`SHARED`]. Inside the shared window, and in 32-bit shared addresses, the bits from
//! [`RANK_SHIFT`] on say whose block's memory it is: 0 for one's own, else the rank in the cluster plus one.

pub(super) const GLOBAL: u64 = 0;
pub(super) const SHARED: u64 = 1 << 56;
pub(super) const LOCAL: u64 = 2 << 56;
pub(super) const PARAM: u64 = 3 << 56;
pub(super) const RANK_SHIFT: u32 = 24;

/// The window of a generic address.
#[inline]
pub(super) fn of(address: u64) -> u64 {
    address & (0xff << 56)
}
