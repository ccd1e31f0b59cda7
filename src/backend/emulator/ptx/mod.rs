//! Devices of NVIDIA, executed from the PTX text that the compiler prints.

pub mod units;
