//! Code objects of `tests/golden/cdna/run.hip`, executed and compared with plain Rust.

mod arithmetic;
mod faults;
mod matrices;

use bytemuck::Pod;

use super::Module;
use crate::backend::emulator::{Counters, Fault, Memory, Schedule};
use crate::backend::gpu::driver::{Arch, Launch, Param};

const GFX90A: &[u8] = include_bytes!("../../../../../tests/golden/cdna/run.gfx90a.co");
const GFX942: &[u8] = include_bytes!("../../../../../tests/golden/cdna/run.gfx942.co");

/// Memory and a module under one schedule.
struct Bench {
    arch: Arch,
    module: Module,
    memory: Memory,
    schedule: Schedule,
}

impl Bench {
    fn new(arch: Arch, code: &[u8], schedule: Schedule) -> Bench {
        Bench { arch, module: Module::load(code, arch).unwrap(), memory: Memory::new(1 << 26), schedule }
    }

    /// Runs `test` on both targets under every schedule.
    fn each(test: impl Fn(&Bench)) {
        for (arch, code) in [(Arch::GFX90A, GFX90A), (Arch::GFX942, GFX942)] {
            for schedule in Schedule::ALL {
                test(&Bench::new(arch, code, schedule));
            }
        }
    }

    fn up<T: Pod>(&self, values: &[T]) -> Param {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let at = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(at, bytes).unwrap();
        address(at)
    }

    fn room<T: Pod>(&self, n: usize) -> Param {
        address(self.memory.alloc((n * size_of::<T>()) as u64).unwrap())
    }

    fn down<T: Pod>(&self, from: &Param, n: usize) -> Vec<T> {
        let mut out = vec![T::zeroed(); n];
        let at = u64::from_le_bytes(from.bytes().try_into().unwrap());
        self.memory.read(at, bytemuck::cast_slice_mut(&mut out)).unwrap();
        out
    }

    fn try_run(&self, entry: &str, launch: Launch, params: &[&Param]) -> Result<Counters, Fault> {
        let params: Vec<Param> = params.iter().map(|p| (*p).clone()).collect();
        self.module.try_launch(entry, &launch, &params, &self.memory, self.schedule).unwrap()
    }

    fn run(&self, entry: &str, launch: Launch, params: &[&Param]) -> Counters {
        self.try_run(entry, launch, params).unwrap_or_else(|fault| panic!("{} {:?}: {fault}", self.arch, self.schedule))
    }
}

fn address(at: u64) -> Param {
    Param::new(at.to_le_bytes().to_vec())
}

fn int(n: usize) -> Param {
    Param::new((n as i32).to_le_bytes().to_vec())
}

/// Numbers in (-2, 2), repeatable.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (next() - 0.5) * 4.0).collect()
}

/// The same over many binades, with what is special among floats at the start.
fn wild(n: usize, seed: u64) -> Vec<f32> {
    let mut out = numbers(n, seed);
    for (i, x) in out.iter_mut().enumerate() {
        *x *= 2f32.powi((i * 7 % 250) as i32 - 125);
    }
    let special =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-40, -3e-45, 1.0];
    for (x, value) in out.iter_mut().zip(special) {
        *x = value;
    }
    out
}

/// Equal in every bit; any NaN is like another.
fn same(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(f.to_bits() == e.to_bits() || f.is_nan() && e.is_nan(), "at {i}: expected {e:e}, found {f:e}");
    }
}
