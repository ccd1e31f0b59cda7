//! The kernels of `tests/golden/ptx` with their inputs, and what must come out.

mod anchors;
mod tests;

use super::units::samples::Sequence;
use crate::backend::Device;
use crate::backend::emulator::device::Emulator;
use crate::backend::emulator::{Schedule, load_ptx};
use crate::backend::gpu::driver::{Arch, Driver, Launch, MapType, Param, Stream, Swizzle, TensorMapSpec};
use crate::backend::gpu::known;
use crate::backend::gpu::open::open;
use crate::error::Result;

macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ptx/", $name, ".ptx"))
    };
}

const GEMM_90: &str = golden!("gemm_sm90");
const CLUSTER_90: &str = golden!("cluster_sm90");
const ROLES_90: &str = golden!("roles_sm90");
const BULK_90: &str = golden!("bulk_sm90");
const CHAIN_90: &str = golden!("chain_sm90");
const GEMM_80: &str = golden!("gemm_sm80");
const ANCHOR_80: &str = golden!("anchor_sm80");
const ANCHOR_90: &str = golden!("anchor_sm90");

/// A kernel with its inputs, and what must come out.
struct Case {
    arch: Arch,
    text: &'static str,
    run: fn(&Bench<'_>) -> Result<Vec<f32>>,
    expected: Vec<f32>,
}

impl Case {
    /// What the kernel of this text gives under a schedule.
    fn output(&self, text: &str, schedule: Schedule) -> Result<Vec<f32>> {
        let emulator = Emulator::new(known::device(self.arch, format!("emu:{}", self.arch))?, load_ptx);
        emulator.set_schedule(schedule);
        (self.run)(&Bench { driver: &emulator, text, values: numbers })
    }

    fn is_right_under_every_schedule(&self) {
        for schedule in Schedule::ALL {
            let found = self.output(self.text, schedule).unwrap_or_else(|e| panic!("{schedule:?}: {e}"));
            assert_eq!(found.len(), self.expected.len());
            let wrong = found.iter().zip(&self.expected).position(|(f, e)| f != e);
            if let Some(i) = wrong {
                panic!("{schedule:?}: element {i}: expected {}, found {}", self.expected[i], found[i]);
            }
        }
    }

    /// The faults that the schedules report of a changed text, with "wrong numbers" for a result that is not the expected
    /// one; none if every schedule gives the right result.
    fn findings(&self, change: impl Fn(&str) -> String) -> Vec<String> {
        let text = change(self.text);
        assert_ne!(text, self.text, "the change changes nothing");
        let of = |schedule| match self.output(&text, schedule) {
            Ok(found) => (found != self.expected).then(|| "wrong numbers".to_owned()),
            Err(fault) => Some(fault.to_string()),
        };
        Schedule::ALL.into_iter().filter_map(of).collect()
    }
}

/// A device and the text that it runs.
struct Bench<'a> {
    driver: &'a dyn Driver,
    text: &'a str,
    values: fn(u64, usize) -> Vec<f32>,
}

impl Bench<'_> {
    fn upload(&self, bytes: &[u8]) -> Result<u64> {
        let at = self.driver.alloc(bytes.len(), Stream::DEFAULT)?;
        self.driver.write(at, bytes, Stream::DEFAULT)?;
        Ok(at)
    }

    fn download(&self, at: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.driver.read(&mut out, at, Stream::DEFAULT)?;
        Ok(out)
    }

    fn launch(&self, entry: &str, launch: Launch, params: &[Param]) -> Result<()> {
        let module = self.driver.load(self.text.as_bytes())?;
        let function = self.driver.function(module, entry)?;
        self.driver.launch(function, &launch, params, Stream::DEFAULT)?;
        self.driver.synchronize(Stream::DEFAULT)
    }

    /// A tensor map of a row-major matrix of bf16.
    fn map(
        &self,
        address: u64,
        [rows, columns]: [usize; 2],
        [high, wide]: [u32; 2],
        swizzle: Swizzle,
    ) -> Result<Param> {
        let spec = TensorMapSpec {
            dtype: MapType::Bf16,
            address,
            dims: vec![columns as u64, rows as u64],
            strides: vec![2 * columns as u64],
            box_dims: vec![wide, high],
            swizzle,
            is_nan_filled: false,
        };
        Ok(Param::new(self.driver.tensor_map(&spec)?))
    }
}

fn word(x: u64) -> Param {
    Param::new(x.to_le_bytes())
}

fn int(x: usize) -> Param {
    Param::new((x as u32).to_le_bytes())
}

fn signed(x: i32) -> Param {
    Param::new(x.to_le_bytes())
}

/// Small integers: their products and sums are exact in any order.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut sequence = Sequence(seed);
    (0..count).map(|_| sequence.small(2)).collect()
}

/// Numbers of many sizes, so that every bit of a sum depends on how it is rounded.
fn scattered(seed: u64, count: usize) -> Vec<f32> {
    let mut sequence = Sequence(seed);
    let mut number = || sequence.small(1000) / 500.0 * 2f32.powi(sequence.below(9) as i32 - 5);
    (0..count).map(|_| number()).collect()
}

fn bf16(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect()
}

fn f32_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn from_bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

fn from_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The plain product of `[m, k]` and `[k, n]`, or `[n, k]` where `b` is transposed.
fn product(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], is_b_transposed: bool) -> Vec<f32> {
    let at = |x: usize, j: usize| if is_b_transposed { b[j * k + x] } else { b[x * n + j] };
    (0..m * n).map(|i| (0..k).map(|x| a[i / n * k + x] * at(x, i % n)).sum()).collect()
}

fn round(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
}

/// Borders on every side, and more tiles along K than the ring has stages.
const ROLES: [usize; 3] = [200, 72, 264];

fn gemm_with_roles(bench: &Bench<'_>, entry: &str) -> Result<Vec<f32>> {
    let [m, n, k] = ROLES;
    let (a, b) = (bench.upload(&bf16(&(bench.values)(1, m * k)))?, bench.upload(&bf16(&(bench.values)(2, k * n)))?);
    let y = bench.upload(&bf16(&vec![f32::NAN; m * n]))?;
    let b_shape = if entry == "gemm_nt" { [n, k] } else { [k, n] };
    let params = [
        bench.map(a, [m, k], [128, 64], Swizzle::B128)?,
        bench.map(b, b_shape, [64, 64], Swizzle::B128)?,
        bench.map(y, [m, n], [64, 64], Swizzle::B128)?,
        int(k),
    ];
    let grid = [n.div_ceil(64) as u32, m.div_ceil(128) as u32, 1];
    let stages = 3 * (128 + 64) * 128;
    bench.launch(entry, Launch::grid(grid, [384, 1, 1]).with_shared(1024 + stages + 2 * 64 * 128), &params)?;
    Ok(from_bf16(&bench.download(y, 2 * m * n)?))
}

fn roles_nt() -> Case {
    let [m, n, k] = ROLES;
    let expected = round(&product(&numbers(1, m * k), &numbers(2, k * n), ROLES, true));
    Case { arch: Arch::SM_90A, text: GEMM_90, run: |bench| gemm_with_roles(bench, "gemm_nt"), expected }
}

fn roles_nn() -> Case {
    let [m, n, k] = ROLES;
    let expected = round(&product(&numbers(1, m * k), &numbers(2, k * n), ROLES, false));
    Case { arch: Arch::SM_90A, text: GEMM_90, run: |bench| gemm_with_roles(bench, "gemm_nn"), expected }
}

fn multicast() -> Case {
    const SHAPE: [usize; 3] = [128, 64, 320];
    let [m, n, k] = SHAPE;
    let run = |bench: &Bench<'_>| {
        let [m, n, k] = SHAPE;
        let (a, b) = (bench.upload(&bf16(&(bench.values)(3, m * k)))?, bench.upload(&bf16(&(bench.values)(4, k * n)))?);
        let y = bench.upload(&f32_bytes(&vec![f32::NAN; m * n]))?;
        let params = [
            bench.map(a, [m, k], [64, 64], Swizzle::B128)?,
            bench.map(b, [n, k], [32, 64], Swizzle::B128)?,
            word(y),
            int(n),
            int(k),
        ];
        let launch = Launch::grid([(m / 64) as u32, (n / 64) as u32, 1], [128, 1, 1]).with_shared(1024 + 6 * 8192);
        bench.launch("gemm_multicast", launch.in_clusters([2, 1, 1]), &params)?;
        Ok(from_f32(&bench.download(y, 4 * m * n)?))
    };
    let expected = product(&numbers(3, m * k), &numbers(4, k * n), SHAPE, true);
    Case { arch: Arch::SM_90A, text: CLUSTER_90, run, expected }
}

fn cluster_sum() -> Case {
    const PART: usize = 300;
    let run = |bench: &Bench<'_>| {
        let x = bench.upload(&f32_bytes(&(bench.values)(5, 8 * PART)))?;
        let y = bench.upload(&[0xff; 32])?;
        let launch = Launch::linear(8, 128).in_clusters([4, 1, 1]);
        bench.launch("cluster_sum", launch, &[word(y), word(x), int(PART)])?;
        Ok(from_f32(&bench.download(y, 32)?))
    };
    let sums: Vec<f32> = numbers(5, 8 * PART).chunks(4 * PART).map(|part| part.iter().sum()).collect();
    Case { arch: Arch::SM_90A, text: CLUSTER_90, run, expected: (0..8).map(|i| sums[i / 4]).collect() }
}

fn mirror() -> Case {
    const ROUNDS: usize = 7;
    let run = |bench: &Bench<'_>| {
        let x = bench.upload(&f32_bytes(&(bench.values)(6, 2 * ROUNDS * 128)))?;
        let y = bench.upload(&f32_bytes(&vec![f32::NAN; 2 * ROUNDS * 128]))?;
        bench.launch("mirror", Launch::linear(2, 256), &[word(y), word(x), int(ROUNDS)])?;
        Ok(from_f32(&bench.download(y, 4 * 2 * ROUNDS * 128)?))
    };
    let expected = numbers(6, 2 * ROUNDS * 128).chunks(128).flat_map(|row| row.iter().rev().map(|x| 2.0 * x)).collect();
    Case { arch: Arch::SM_90A, text: ROLES_90, run, expected }
}

fn bulk() -> Case {
    let run = |bench: &Bench<'_>| {
        let x = bench.upload(&f32_bytes(&(bench.values)(7, 768)))?;
        let y = bench.upload(&f32_bytes(&[f32::NAN; 768]))?;
        let sum = bench.upload(&f32_bytes(&(bench.values)(8, 768)))?;
        bench.launch("double_and_add", Launch::linear(3, 64), &[word(y), word(sum), word(x)])?;
        let mut both = from_f32(&bench.download(y, 4 * 768)?);
        both.extend(from_f32(&bench.download(sum, 4 * 768)?));
        Ok(both)
    };
    let twice: Vec<f32> = numbers(7, 768).iter().map(|x| 2.0 * x).collect();
    let sums: Vec<f32> = twice.iter().zip(numbers(8, 768)).map(|(x, s)| x + s).collect();
    Case { arch: Arch::SM_90A, text: BULK_90, run, expected: [twice, sums].concat() }
}

/// Where the box of `move_boxes` is taken from, and where it goes: over borders, columns at multiples of 16 bytes; what is written
/// begins inside.
const FROM: [i32; 3] = [24, -3, 1];
const TO: [i32; 2] = [8, 4];

fn boxes() -> Case {
    let run = |bench: &Bench<'_>| {
        let from = bench.upload(&bf16(&(bench.values)(9, 2 * 10 * 40)))?;
        let to = bench.upload(&bf16(&(bench.values)(10, 9 * 32)))?;
        let spec = TensorMapSpec {
            dtype: MapType::Bf16,
            address: from,
            dims: vec![40, 10, 2],
            strides: vec![80, 800],
            box_dims: vec![32, 8, 2],
            swizzle: Swizzle::None,
            is_nan_filled: false,
        };
        let source = Param::new(bench.driver.tensor_map(&spec)?);
        let target = bench.map(to, [9, 32], [8, 32], Swizzle::None)?;
        let [x, y, z, u, v] = [FROM[0], FROM[1], FROM[2], TO[0], TO[1]].map(signed);
        bench.launch("move_boxes", Launch::linear(1, 32), &[source, target, x, y, z, u, v])?;
        Ok(from_bf16(&bench.download(to, 2 * 9 * 32)?))
    };
    let (from, mut expected) = (numbers(9, 2 * 10 * 40), numbers(10, 9 * 32));
    for (plane, row, column) in (0..2).flat_map(|p| (0..8).flat_map(move |r| (0..32).map(move |c| (p, r, c)))) {
        let [x, y, z] = [FROM[0] + column, FROM[1] + row, FROM[2] + plane];
        let [u, v] = [TO[0] + column, TO[1] + row];
        let is_read = (0..40).contains(&x) && (0..10).contains(&y) && (0..2).contains(&z);
        if is_read && (0..32).contains(&u) && (0..9).contains(&v) {
            expected[(v * 32 + u) as usize] += from[((z * 10 + y) * 40 + x) as usize];
        }
    }
    Case { arch: Arch::SM_90A, text: BULK_90, run, expected }
}

fn chain() -> Case {
    const SHAPE: [usize; 3] = [64; 3];
    let run = |bench: &Bench<'_>| {
        let inputs = [11, 12, 13].map(|seed| bench.upload(&bf16(&(bench.values)(seed, 4096))));
        let o = bench.upload(&f32_bytes(&[f32::NAN; 4096]))?;
        let mut params = vec![word(o)];
        for at in inputs {
            params.push(bench.map(at?, [64, 64], [64, 64], Swizzle::B128)?);
        }
        bench.launch("chain", Launch::linear(1, 128).with_shared(1024 + 3 * 8192), &params)?;
        Ok(from_f32(&bench.download(o, 4 * 4096)?))
    };
    let scores = round(&product(&numbers(11, 4096), &numbers(12, 4096), SHAPE, true));
    let expected = product(&scores, &numbers(13, 4096), SHAPE, false);
    Case { arch: Arch::SM_90A, text: CHAIN_90, run, expected }
}

fn gemm_80() -> Case {
    const SHAPE: [usize; 3] = [128, 64, 160];
    let [m, n, k] = SHAPE;
    let run = |bench: &Bench<'_>| {
        let [m, n, k] = SHAPE;
        let (a, b) =
            (bench.upload(&bf16(&(bench.values)(14, m * k)))?, bench.upload(&bf16(&(bench.values)(15, k * n)))?);
        let y = bench.upload(&f32_bytes(&vec![f32::NAN; m * n]))?;
        let launch = Launch::grid([(n / 64) as u32, (m / 64) as u32, 1], [128, 1, 1]);
        bench.launch("gemm", launch, &[word(y), word(a), word(b), int(n), int(k)])?;
        Ok(from_f32(&bench.download(y, 4 * m * n)?))
    };
    let expected = product(&numbers(14, m * k), &numbers(15, k * n), SHAPE, false);
    Case { arch: Arch::SM_80, text: GEMM_80, run, expected }
}
