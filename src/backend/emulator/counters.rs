//! What a launch executed: instructions, matrix FLOPs, bytes. Sums of integers, so the order of blocks does not matter.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Serialize, Serializer};

/// What kind of work an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Integer and bit arithmetic, comparison, selection, moves.
    Integer,
    /// Float arithmetic of a lane.
    Float,
    /// Approximate reciprocals, exponentials and the like: the special function unit.
    Special,
    /// Conversions between number types.
    Convert,
    /// Global, local and constant memory.
    Memory,
    /// Shared memory.
    Shared,
    /// Matrix units.
    Matrix,
    /// Asynchronous copies.
    Async,
    /// Data between the lanes of a warp: shuffles, votes, reductions.
    Lanes,
    /// Barriers, waits and fences.
    Sync,
    /// Branches and exits.
    Control,
    /// Integer arithmetic and comparison of a warp as a whole, beside its lanes: AMD's scalar unit.
    Scalar,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 12] = [
        Class::Integer,
        Class::Float,
        Class::Special,
        Class::Convert,
        Class::Memory,
        Class::Shared,
        Class::Matrix,
        Class::Async,
        Class::Lanes,
        Class::Sync,
        Class::Control,
        Class::Scalar,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Float => "float",
            Class::Special => "special",
            Class::Convert => "convert",
            Class::Memory => "memory",
            Class::Shared => "shared",
            Class::Matrix => "matrix",
            Class::Async => "async",
            Class::Lanes => "lanes",
            Class::Sync => "sync",
            Class::Control => "control",
            Class::Scalar => "scalar",
        }
    }
}

/// Bytes that lanes asked for, by space; what caches and coalescing make of them is not modelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Read.
    pub loaded: u64,
    /// Written.
    pub stored: u64,
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        self.loaded += other.loaded;
        self.stored += other.stored;
    }
}

/// What a launch executed, summed over its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Instructions of warps (one for all lanes), indexed by [`Class`].
    #[serde(serialize_with = "by_class")]
    pub instructions: [u64; Class::ALL.len()],
    /// FLOPs of matrix units by input type and, for the names to be found in a report, `bf16` or `e4m3`: 2 for a
    /// multiply and add.
    pub matrix_flops: BTreeMap<&'static str, u64>,
    /// FLOPs of float arithmetic by active lanes: 2 for a fused multiply and add, 1 for the rest.
    pub lane_flops: u64,
    /// Global memory.
    pub global: Bytes,
    /// Shared memory.
    pub shared: Bytes,
    /// Local memory: spills and arrays of a thread.
    pub local: Bytes,
    /// Passes over the banks of shared memory beyond the fewest that the width of the access needs.
    pub bank_conflicts: u64,
    /// Barriers that a block passed.
    pub barriers: u64,
}

/// Counts under the names of their classes.
fn by_class<S: Serializer>(counts: &[u64; Class::ALL.len()], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(Class::ALL.iter().map(|class| (class.name(), counts[*class as usize])))
}

impl Counters {
    /// Counts `n` instructions of `class`.
    pub fn count(&mut self, class: Class, n: u64) {
        self.instructions[class as usize] += n;
    }

    /// Adds FLOPs of the matrix unit on inputs of type `kind`.
    pub fn count_matrix(&mut self, kind: &'static str, flops: u64) {
        *self.matrix_flops.entry(kind).or_default() += flops;
    }

    /// All instructions.
    pub fn total(&self) -> u64 {
        self.instructions.iter().sum()
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        for (a, b) in self.instructions.iter_mut().zip(other.instructions) {
            *a += b;
        }
        for (kind, flops) in &other.matrix_flops {
            self.count_matrix(kind, *flops);
        }
        self.lane_flops += other.lane_flops;
        self.global += other.global;
        self.shared += other.shared;
        self.local += other.local;
        self.bank_conflicts += other.bank_conflicts;
        self.barriers += other.barriers;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_field_by_field() {
        let mut a = Counters { lane_flops: 1, bank_conflicts: 2, ..Counters::default() };
        a.count(Class::Matrix, 3);
        a.count_matrix("bf16", 4096);
        let mut b = a.clone();
        b.count_matrix("f16", 1);
        b += &a;
        assert_eq!((b.lane_flops, b.bank_conflicts, b.total()), (2, 4, 6));
        assert_eq!(b.matrix_flops, BTreeMap::from([("bf16", 8192), ("f16", 1)]));
    }

    #[test]
    fn counters_are_written_under_their_names() {
        let mut counters = Counters { global: Bytes { loaded: 8, stored: 4 }, ..Counters::default() };
        counters.count(Class::Lanes, 3);
        counters.count_matrix("f16", 64);
        let json = serde_json::to_value(&counters).unwrap();
        assert_eq!((&json["instructions"]["lanes"], &json["instructions"]["float"]), (&3.into(), &0.into()));
        assert_eq!((&json["matrix_flops"]["f16"], &json["global"]["stored"]), (&64.into(), &4.into()));
    }

    #[test]
    fn classes_index_their_own_place() {
        for (i, class) in Class::ALL.iter().enumerate() {
            assert_eq!(*class as usize, i, "{}", class.name());
        }
    }
}
