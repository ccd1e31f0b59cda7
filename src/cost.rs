//! What an operation costs: FLOPs by kind, and bytes.
//!
//! **Definition.** `+ − × ÷ max` count one each; a fused multiply-add counts two. `exp log sqrt tanh erf sin cos` count one
//! *special* each, kept apart. Comparisons, copies, conversions and negation count nothing. `matmul` is what the field
//! compares (2·M·N·K; attention counts exactly the pairs that the mask lets through), so MFU is comparable; the rest is
//! exact too, and kept out of MFU. Bytes: each input read once, each output written once.
//!
//! **Three counts, never mixed.** *Model* FLOPs are the mathematics. *Algorithm* FLOPs add what is recomputed on purpose (a
//! fused attention's backward, checkpoint segments). *Executed* FLOPs are what a kernel ran, tile rounding included.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// Floating-point operations by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Flops {
    /// In matrix products: two for each multiply-add.
    pub matmul: u128,
    /// All other `+ − × ÷ max`.
    pub vector: u128,
    /// Special functions: `exp log sqrt tanh erf sin cos`.
    pub special: u128,
}

impl Flops {
    /// No operation.
    pub const ZERO: Flops = Flops { matmul: 0, vector: 0, special: 0 };

    /// `n` operations in matrix products.
    pub const fn matmul(n: u128) -> Flops {
        Flops { matmul: n, vector: 0, special: 0 }
    }

    /// `n` elementwise operations.
    pub const fn vector(n: u128) -> Flops {
        Flops { matmul: 0, vector: n, special: 0 }
    }

    /// `n` special functions.
    pub const fn special(n: u128) -> Flops {
        Flops { matmul: 0, vector: 0, special: n }
    }

    /// Matrix and elementwise operations together; special functions are not among them.
    pub const fn total(self) -> u128 {
        self.matmul + self.vector
    }
}

impl Add for Flops {
    type Output = Flops;

    fn add(self, o: Flops) -> Flops {
        Flops { matmul: self.matmul + o.matmul, vector: self.vector + o.vector, special: self.special + o.special }
    }
}

impl AddAssign for Flops {
    fn add_assign(&mut self, o: Flops) {
        *self = *self + o;
    }
}

impl Mul<u128> for Flops {
    type Output = Flops;

    fn mul(self, n: u128) -> Flops {
        Flops { matmul: self.matmul * n, vector: self.vector * n, special: self.special * n }
    }
}

impl Sum for Flops {
    fn sum<I: Iterator<Item = Flops>>(iter: I) -> Flops {
        iter.fold(Flops::ZERO, Add::add)
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} matmul + {} vector + {} special", self.matmul, self.vector, self.special)
    }
}

/// FLOPs and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Operations.
    pub flops: Flops,
    /// Bytes read and written: each input once, each output once.
    pub bytes: u128,
}

impl Cost {
    /// Nothing.
    pub const ZERO: Cost = Cost { flops: Flops::ZERO, bytes: 0 };

    /// Operations for each byte moved, matrix and elementwise; infinite where nothing is moved.
    pub fn intensity(self) -> f64 {
        self.flops.total() as f64 / self.bytes as f64
    }

    /// The least time in seconds on a machine of these measured rates: whichever of the matrix products (`matmul_rate`
    /// in FLOP/s) and the traffic (`copy_rate` in bytes/s, reads and writes together) takes longer.
    pub fn floor_seconds(self, matmul_rate: f64, copy_rate: f64) -> f64 {
        (self.flops.matmul as f64 / matmul_rate).max(self.bytes as f64 / copy_rate)
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, o: Cost) -> Cost {
        Cost { flops: self.flops + o.flops, bytes: self.bytes + o.bytes }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, o: Cost) {
        *self = *self + o;
    }
}

impl Mul<u128> for Cost {
    type Output = Cost;

    fn mul(self, n: u128) -> Cost {
        Cost { flops: self.flops * n, bytes: self.bytes * n }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(iter: I) -> Cost {
        iter.fold(Cost::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_slower_of_arithmetic_and_traffic() {
        let cost = Cost { flops: Flops::matmul(100) + Flops::vector(1_000), bytes: 50 };
        assert_eq!(cost.floor_seconds(10.0, 1.0), 50.0);
        assert_eq!(cost.floor_seconds(1.0, 10.0), 100.0);
        assert_eq!(cost.intensity(), 22.0);
    }

    #[test]
    fn sums_keep_the_kinds_apart() {
        let sum: Flops = [Flops::matmul(1), Flops::vector(2), Flops::special(3)].into_iter().sum();
        assert_eq!(sum * 2, Flops { matmul: 2, vector: 4, special: 6 });
        assert_eq!(sum.total(), 3);
    }
}
