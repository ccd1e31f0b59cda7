//! Kernels of `tests/golden/ptx`, compiled once, against their mathematics.

use super::{Grid, Module};
use crate::backend::emulator::schedule::{Asynchrony, Order};
use crate::backend::emulator::{Counters, Memory, Schedule};

const BASIC: &str = include_str!("../../../../tests/golden/ptx/basic_sm80.ptx");

/// A device with arrays on it.
struct Bench {
    memory: Memory,
    module: Module,
}

impl Bench {
    fn new(text: &str) -> Bench {
        Bench { memory: Memory::new(1 << 30), module: Module::parse(text).unwrap() }
    }

    fn put<T: Bytes>(&self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
        let at = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(at, &bytes).unwrap();
        at
    }

    fn room<T: Bytes>(&self, count: usize) -> u64 {
        self.memory.alloc((count * size_of::<T>()) as u64).unwrap()
    }

    fn get<T: Bytes>(&self, at: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.memory.read(at, &mut bytes).unwrap();
        bytes.chunks(size_of::<T>()).map(T::of).collect()
    }

    fn run(&self, grid: &Grid, params: &[Vec<u8>], schedule: Schedule) -> Result<Counters, String> {
        self.module.launch(grid, params, &self.memory, schedule).map_err(|e| e.to_string())
    }
}

trait Bytes: Copy {
    fn bytes(&self) -> Vec<u8>;
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! bytes {
    ($($t:ty)*) => {$(
        impl Bytes for $t {
            fn bytes(&self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn of(bytes: &[u8]) -> $t {
                <$t>::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
bytes!(f32 f64 u8 u16 u32 i32 u64 i64);

macro_rules! params {
    ($($x:expr),* $(,)?) => { &[$(Bytes::bytes(&$x)),*] };
}

/// Numbers in [-1, 1), the same at every run.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| draw()).collect()
}

#[test]
fn a_loop_over_the_grid_reaches_every_number() {
    let bench = Bench::new(BASIC);
    let x = noise(1000, 1);
    let (at, y) = (bench.put(&x), bench.room::<f32>(1000));
    for schedule in Schedule::ALL {
        let grid = Grid::new("axpb", [3, 1, 1], [96, 1, 1]);
        let counters = bench.run(&grid, params![y, at, 1.5f32, 0.25f32, 1000i32], schedule).unwrap();
        let expected: Vec<f32> = x.iter().map(|x| x.mul_add(1.5, 0.25)).collect();
        assert_eq!(bench.get::<f32>(y, 1000), expected);
        assert_eq!((counters.lane_flops, counters.global.loaded, counters.global.stored), (2000, 4000, 4000));
    }
}

#[test]
fn sums_of_blocks_are_the_same_in_every_schedule() {
    let bench = Bench::new(BASIC);
    let x: Vec<f32> = (0..5000).map(|i| (i % 7) as f32 - 3.0).collect();
    let (at, y) = (bench.put(&x), bench.room::<f32>(4));
    for schedule in Schedule::ALL {
        let counters =
            bench.run(&Grid::new("block_sum", [4, 1, 1], [256, 1, 1]), params![y, at, 5000i32], schedule).unwrap();
        assert_eq!(bench.get::<f32>(y, 4).iter().sum::<f32>(), x.iter().sum::<f32>());
        assert_eq!((counters.barriers, counters.bank_conflicts), (4, 0));
    }
}

#[test]
fn lanes_that_part_meet_again() {
    let bench = Bench::new(BASIC);
    let start: Vec<u32> = (1..=100).collect();
    let (at, y) = (bench.put(&start), bench.room::<u32>(100));
    bench.run(&Grid::new("collatz", [2, 1, 1], [64, 1, 1]), params![y, at, 100i32], Schedule::default()).unwrap();
    let count = |mut x: u32| {
        let mut n = 0;
        while x != 1 {
            x = if x % 2 == 1 { 3 * x + 1 } else { x / 2 };
            n += 1;
        }
        n
    };
    assert_eq!(bench.get::<u32>(y, 100), start.iter().map(|x| count(*x)).collect::<Vec<u32>>());
}

#[test]
fn a_tile_is_transposed_through_shared_memory() {
    let bench = Bench::new(BASIC);
    let (rows, cols) = (70usize, 45usize);
    let x: Vec<u16> = (0..rows * cols).map(|i| i as u16).collect();
    let (at, y) = (bench.put(&x), bench.room::<u16>(rows * cols));
    for schedule in Schedule::ALL {
        let grid = Grid::new("transpose", [2, 3, 1], [32, 8, 1]);
        bench.run(&grid, params![y, at, rows as i32, cols as i32], schedule).unwrap();
        let found = bench.get::<u16>(y, rows * cols);
        assert!((0..rows).all(|r| (0..cols).all(|c| found[c * rows + r] == x[r * cols + c])));
    }
}

#[test]
fn integers_agree_with_the_host() {
    let bench = Bench::new(BASIC);
    let mut x: Vec<i64> = vec![0, 0, 1, -1, i64::MAX, 3, -7, 2, 1 << 40, -(1 << 33), -1, 0];
    x.extend(noise(200, 3).iter().map(|v| (*v as f64 * 2f64.powi(62)) as i64));
    x.extend(noise(200, 4).iter().map(|v| (*v as f64 * 1e4) as i64));
    let n = x.len() / 2;
    let (at, y) = (bench.put(&x), bench.room::<i64>(n));
    bench.run(&Grid::new("integers", [4, 1, 1], [64, 1, 1]), params![y, at, n as i32], Schedule::default()).unwrap();
    let found = bench.get::<i64>(y, n);
    for (i, pair) in x.chunks(2).enumerate() {
        assert_eq!(found[i], integers(pair[0], pair[1]), "{pair:?}");
    }
}

/// The kernel `integers` for one pair.
fn integers(a: i64, b: i64) -> i64 {
    let (s, t) = (a as i32, b as i32);
    let (us, ut) = (s as u32, t as u32);
    let table = [3, 1, 4, 1, 5, 9, 2, 6];
    let ffs = |x: u32| if x == 0 { 0 } else { x.trailing_zeros() + 1 };
    let bytes = (u64::from(ut) << 32 | u64::from(us)).to_le_bytes();
    let permuted = u32::from_le_bytes([bytes[0], bytes[4], bytes[1], bytes[5]]);
    let shifted = ((u64::from(ut) << 32 | u64::from(us)) << (ut & 31) >> 32) as u32;
    let dot = (0..4).fold(5i32, |sum, i| {
        sum.wrapping_add(i32::from(s.to_le_bytes()[i] as i8) * i32::from(t.to_le_bytes()[i] as i8))
    });
    let high = ((i64::from(s) * i64::from(t)) >> 32) as u32;
    let seven =
        ((table[(s & 7) as usize] + (s / 7) * 3 + t % 13) as u32).wrapping_add(us / 10).wrapping_add(dot as u32);
    let v = [
        if b == 0 { 0 } else { a.wrapping_div(b) },
        if b == 0 { 0 } else { a.wrapping_rem(b) },
        // One unsigned term makes the sum unsigned.
        i64::from(
            high.wrapping_add(us.count_ones() + ut.leading_zeros())
                .wrapping_add(us.reverse_bits())
                .wrapping_add(ffs(ut)),
        ),
        i64::from(a.count_ones() + b.leading_zeros())
            .wrapping_add(((u128::from(a as u64) * u128::from(b as u64)) >> 64) as i64),
        i64::from(i32::from(s as i16) * i32::from(t as i16) + i32::from(s as i8) + i32::from(t as u8)),
        i64::from(shifted.wrapping_add(permuted).wrapping_add(s.abs_diff(t).wrapping_add(7))),
        (a >> (b & 63))
            .wrapping_add(a << (s & 63))
            .wrapping_add(((a as u64) >> (t & 63)) as i64)
            .wrapping_add(a.min(b))
            .wrapping_add(i64::from(s.max(t))),
        i64::from(seven),
    ];
    (0..8).fold(0i64, |sum, k| sum.wrapping_mul(31).wrapping_add(v[((k + s) & 7) as usize]))
}

#[test]
fn floats_round_as_the_instructions_say() {
    let bench = Bench::new(BASIC);
    let x = noise(64, 9);
    let (at, y, z) = (bench.put(&x), bench.room::<f32>(512), bench.room::<f64>(64));
    bench.run(&Grid::new("roundings", [1, 1, 1], [32, 1, 1]), params![y, z, at, 32i32], Schedule::default()).unwrap();
    let (y, z) = (bench.get::<f32>(y, 512), bench.get::<f64>(z, 64));
    for i in 0..32 {
        let (a, b) = (x[2 * i], x[2 * i + 1]);
        let o = &y[16 * i..16 * i + 16];
        let exact = f64::from(a) + f64::from(b);
        assert!(f64::from(o[0]) <= exact && exact <= f64::from(o[1]) && o[0].next_up() >= o[1]);
        assert!(f64::from(o[2]).abs() <= exact.abs() && (o[2] == o[0] || o[2] == o[1]));
        assert!(f64::from(o[3]) >= f64::from(a) * f64::from(b));
        assert!(f64::from(o[4]) <= f64::from(a) * f64::from(b) + f64::from(a) && o[4].next_up() >= a.mul_add(b, a));
        let expected =
            [a / b, a.abs().sqrt(), 1.0 / b, a.round_ties_even(), b.trunc(), a.floor(), a.min(b), a.copysign(b)];
        assert_eq!(o[5..13], expected, "{a} {b}");
        assert_eq!(o[13..], [a.trunc() + 0.0, (b * 1e9).abs() as u64 as f32, a.clamp(0.0, 1.0)], "{a} {b}");
        let (a, b) = (f64::from(a), f64::from(b));
        assert_eq!(z[2 * i..2 * i + 2], [a / b + b.abs().sqrt(), a.mul_add(b, 1e-3f64) - a.trunc()]);
    }
}

#[test]
fn atomics_count_every_number_once() {
    let bench = Bench::new(BASIC);
    let x: Vec<u8> = (0..3000u32).map(|i| (i * i % 251) as u8).collect();
    let at = bench.put(&x);
    for schedule in Schedule::ALL {
        let y = bench.put(&[0u32; 256]);
        bench.run(&Grid::new("histogram", [3, 1, 1], [128, 1, 1]), params![y, at, 3000i32], schedule).unwrap();
        let mut expected = vec![0u32; 256];
        x.iter().for_each(|v| expected[usize::from(*v)] += 1);
        assert_eq!(bench.get::<u32>(y, 256), expected);
    }
}

#[test]
fn lanes_exchange_what_the_host_computes() {
    let bench = Bench::new(BASIC);
    let x: Vec<u32> = (0..32u32).map(|i| i * 5 % 13).collect();
    let (at, y) = (bench.put(&x), bench.room::<u32>(256));
    bench.run(&Grid::new("lanes", [1, 1, 1], [32, 1, 1]), params![y, at], Schedule::default()).unwrap();
    let found = bench.get::<u32>(y, 256);
    let ballot = (0..32).fold(0, |b, l| b | (x[l] & 1) << l);
    for l in 0..32 {
        let same = (0..32).fold(0, |b, k| b | u32::from(x[k] & 3 == x[l] & 3) << k);
        let expected = [
            ballot,
            2 * u32::from(x.contains(&7)) + 1,
            if l % 8 >= 3 { x[l - 3] } else { x[l] },
            if l % 16 < 15 { x[l + 1] } else { x[l] },
            x[l / 8 * 8 + 5],
            same,
            x.iter().sum(),
            x[l ^ if l < 16 { 1 } else { 2 }],
        ];
        assert_eq!(found[8 * l..8 * l + 8], expected, "lane {l}");
    }
}

#[test]
fn a_divergent_shuffle_is_a_fault() {
    let bench = Bench::new(BASIC);
    let (at, y) = (bench.put(&[1f32; 32]), bench.room::<f32>(32));
    let fault = bench
        .run(&Grid::new("divergent_shuffle", [1, 1, 1], [32, 1, 1]), params![y, at], Schedule::default())
        .unwrap_err();
    assert!(
        fault.contains("divergent_shuffle") && fault.contains("shfl.sync") && fault.contains("divergent"),
        "{fault}"
    );
}

#[test]
fn one_number_too_many_is_out_of_bounds() {
    let bench = Bench::new(BASIC);
    let (at, y) = (bench.put(&[1f32; 64]), bench.room::<f32>(64));
    let grid = Grid::new("axpb", [1, 1, 1], [32, 1, 1]);
    let fault = bench.run(&grid, params![y, at, 1f32, 0f32, 65i32], Schedule::default()).unwrap_err();
    assert!(fault.starts_with("axpb: block (0, 0, 0), warp 0, lane 0: `ld.global.f32"), "{fault}");
    assert!(fault.contains("4 bytes at offset 256 of the allocation of 256 bytes"), "{fault}");
}

#[test]
fn a_removed_barrier_is_a_race() {
    // The kernel without its barrier is the kernel with it, but for one line.
    let without = BASIC.replacen("\tbar.sync \t0;\n", "", 1);
    let bench = Bench::new(&without);
    let (at, y) = (bench.put(&[1f32; 1024]), bench.room::<f32>(4));
    let kernel = "block_sum";
    for order in [Order::Forward, Order::Reverse, Order::Shuffled(3)] {
        let schedule = Schedule { order, asynchrony: Asynchrony::Early };
        let fault =
            bench.run(&Grid::new(kernel, [1, 1, 1], [256, 1, 1]), params![y, at, 1024i32], schedule).unwrap_err();
        assert!(fault.contains("race on shared memory"), "{fault}");
    }
}

#[test]
fn unwritten_output_is_poison() {
    let bench = Bench::new(BASIC);
    let (at, y) = (bench.put(&[1f32; 64]), bench.room::<f32>(64));
    let grid = Grid::new("axpb", [1, 1, 1], [32, 1, 1]);
    bench.run(&grid, params![y, at, 1f32, 0f32, 63i32], Schedule::default()).unwrap();
    let found = bench.get::<f32>(y, 64);
    assert!(found[..63].iter().all(|v| *v == 1.0) && found[63].is_nan());
}

const GEMM: &str = include_str!("../../../../tests/golden/ptx/gemm_sm80.ptx");

/// The product of two matrices of small whole numbers, exact in every order; or the fault.
fn gemm(text: &str, schedule: Schedule) -> Result<Counters, String> {
    let (m, n, k) = (64usize, 128usize, 160usize);
    let bench = Bench::new(text);
    let number = |i: usize, j: usize| ((i * 7 + j * 3) % 9) as f32 - 4.0;
    let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
    let a: Vec<u16> = (0..m * k).map(|i| bf16(number(i / k, i % k))).collect();
    let b: Vec<u16> = (0..k * n).map(|i| bf16(number(i / n + 5, i % n))).collect();
    let (a, b, y) = (bench.put(&a), bench.put(&b), bench.room::<f32>(m * n));
    let grid = Grid::new("gemm", [2, 1, 1], [128, 1, 1]);
    let counters = bench.run(&grid, params![y, a, b, n as i32, k as i32], schedule)?;
    let found = bench.get::<f32>(y, m * n);
    for i in 0..m {
        for j in 0..n {
            let expected: f32 = (0..k).map(|p| number(i, p) * number(p + 5, j)).sum();
            assert_eq!(found[i * n + j], expected, "{i} {j}");
        }
    }
    Ok(counters)
}

#[test]
fn a_product_through_tensor_cores_is_exact_and_counted() {
    for schedule in Schedule::ALL {
        let counters = gemm(GEMM, schedule).unwrap();
        assert_eq!(counters.matrix_flops["bf16"], 2 * 64 * 128 * 160);
        assert_eq!(counters.bank_conflicts, 0);
    }
}

#[test]
fn a_removed_wait_for_copies_is_found_early_and_late() {
    let without = GEMM.replace("cp.async.wait_group 1;", "");
    assert_ne!(without, GEMM);
    for schedule in Schedule::ALL {
        let fault = gemm(&without, schedule).unwrap_err();
        assert!(fault.contains("race on shared memory") && fault.contains("asynchronous work"), "{fault}");
    }
}

#[test]
fn threads_do_not_change_results() {
    let bench = Bench::new(BASIC);
    let x = noise(20_000, 5);
    let (at, y) = (bench.put(&x), bench.room::<f32>(40));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let schedule = Schedule { order: Order::Shuffled(7), asynchrony: Asynchrony::Late };
        let grid = Grid::new("block_sum", [40, 1, 1], [128, 1, 1]);
        let counters = pool.install(|| bench.run(&grid, params![y, at, 20_000i32], schedule)).unwrap();
        (counters, bench.get::<u32>(y, 40))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn an_endless_loop_and_an_unknown_instruction_are_named() {
    let text = |body: &str| {
        format!(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry f() {{ .reg .b32 %r<4>; {body} }}")
    };
    let bench = Bench::new(&text("L: add.u32 %r1, %r1, 1; bra L;"));
    let grid = Grid { budget: Some(10_000), ..Grid::new("f", [1, 1, 1], [32, 1, 1]) };
    assert!(bench.run(&grid, &[], Schedule::default()).unwrap_err().contains("endless loop"));
    let refused = |body: &str| Module::parse(&text(body)).unwrap_err().to_string();
    let line = refused("frobnicate.b32 %r1, %r2;");
    assert_eq!(line, "ptx: f: line 4: `frobnicate.b32 %r1, %r2`: the instruction frobnicate is not emulated");
    assert!(refused("add.wild.u32 %r1, %r2, 1;").ends_with("the modifier .wild is not emulated here"));
    assert!(refused("add.u32 %r1, %x, 1;").contains("the register %x is not declared"));
    assert!(refused("bra nowhere;").contains("expected a label"));
    assert!(refused("add.u32 %r1, %r2").contains("expected `,` or `;`"));
}

#[test]
fn a_launch_that_does_not_fit_is_refused_before_it_runs() {
    let bench = Bench::new(BASIC);
    let line = |grid: &Grid, params: &[Vec<u8>]| bench.run(grid, params, Schedule::default()).unwrap_err();
    let grid = Grid::new("lanes", [1, 1, 1], [32, 1, 1]);
    assert_eq!(line(&grid, params![1u64]), "lanes: expected 2 arguments, found 1");
    assert_eq!(line(&grid, params![1u64, 1u32]), "lanes: argument 1: expected 8 bytes, found 4");
    assert!(line(&Grid { block: [2048, 1, 1], ..grid.clone() }, params![1u64, 1u64]).contains("1024 threads"));
    assert!(line(&Grid { entry: "nothing", ..grid }, &[]).starts_with("nothing: no such entry point; there are axpb"));
}

#[test]
fn a_barrier_that_some_warps_never_reach_is_a_deadlock() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry f() {
        .reg .b32 %r<4>; .reg .pred %p<2>; mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32;
        @%p1 bar.sync 1, 96; bar.sync 0; ret; }";
    let bench = Bench::new(text);
    let fault = bench.run(&Grid::new("f", [1, 1, 1], [64, 1, 1]), &[], Schedule::default()).unwrap_err();
    assert!(
        fault.contains("deadlock: warp 0 at barrier 1, 32 of 96 threads have arrived; warp 1 at barrier 0"),
        "{fault}"
    );
}
