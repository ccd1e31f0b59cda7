//! Kernels without matrices: the results are those of Rust, bit for bit.

use half::{bf16, f16};

use super::{Bench, int, numbers, same, wild};
use crate::backend::gpu::driver::Launch;

const N: usize = 500;

fn over(n: usize) -> Launch {
    Launch::linear(n.div_ceil(256) as u32, 256)
}

/// The order of additions of `row_sum`: threads, then lanes in a butterfly, then waves.
fn butterfly(row: &[f32]) -> f32 {
    let mut sums = vec![0f32; 256];
    for (i, x) in row.iter().enumerate() {
        sums[i % 256] += x;
    }
    let waves = sums.chunks(64).map(|wave| {
        let mut lanes = wave.to_vec();
        for mask in [32, 16, 8, 4, 2, 1] {
            lanes = (0..64).map(|l| lanes[l] + lanes[l ^ mask]).collect();
        }
        lanes[0]
    });
    waves.reduce(|a, b| a + b).unwrap()
}

#[test]
fn sums_over_lanes_and_waves_have_the_order_of_the_text() {
    let x = numbers(3 * 1000, 1);
    let expected: Vec<f32> = x.chunks(1000).map(butterfly).collect();
    Bench::each(|b| {
        let (from, to) = (b.up(&x), b.room::<f32>(3));
        let counters = b.run("row_sum", Launch::linear(3, 256), &[&to, &from, &int(1000)]);
        same(&b.down(&to, 3), &expected);
        assert_eq!((counters.barriers, counters.bank_conflicts), (3, 0));
        // 4 bytes of each number, and scalar loads of the arguments in each of 12 waves.
        assert!(counters.global.loaded >= 12_000 && counters.global.loaded < 12_000 + 12 * 64, "{counters:?}");
        assert_eq!((counters.global.stored, counters.shared.stored), (12, 48));
    });
}

#[test]
fn packs_of_four_are_multiplied_and_added_with_two_roundings() {
    let (x, z) = (wild(4 * N, 2), numbers(4 * N, 3));
    let expected: Vec<f32> = x.iter().zip(&z).map(|(x, z)| x * z + x).collect();
    Bench::each(|b| {
        let (x, z, y) = (b.up(&x), b.up(&z), b.room::<f32>(4 * N));
        let counters = b.run("axpy4", over(N), &[&y, &x, &z, &int(4 * N)]);
        same(&b.down(&y, 4 * N), &expected);
        assert_eq!(counters.lane_flops, 8 * N as u64);
    });
}

#[test]
fn numbers_are_rounded_to_sixteen_bits_and_back() {
    let x = wild(N, 4);
    let (as_bf16, as_f16): (Vec<bf16>, Vec<f16>) = x.iter().map(|x| (bf16::from_f32(*x), f16::from_f32(*x))).unzip();
    Bench::each(|b| {
        let (from, y, z) = (b.up(&x), b.room::<u16>(N), b.room::<u16>(N));
        b.run("narrow", over(N), &[&y, &z, &from, &int(N)]);
        let wide = |bits: Vec<u16>, to: fn(u16) -> f32| bits.into_iter().map(to).collect::<Vec<f32>>();
        let (found_bf16, found_f16) = (b.down::<u16>(&y, N), b.down::<u16>(&z, N));
        same(
            &wide(found_bf16, |x| bf16::from_bits(x).to_f32()),
            &as_bf16.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        );
        same(&wide(found_f16, |x| f16::from_bits(x).to_f32()), &as_f16.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        let sum = b.room::<f32>(N);
        b.run("widen", over(N), &[&sum, &y, &z, &int(N)]);
        let expected: Vec<f32> = as_bf16.iter().zip(&as_f16).map(|(a, b)| a.to_f32() + b.to_f32()).collect();
        same(&b.down(&sum, N), &expected);
    });
}

#[test]
fn half_precision_rounds_after_every_operation_and_once_when_fused() {
    let round = |x: f64| f16::from_f64(x).to_f64();
    let of = |seed| -> Vec<f16> { numbers(N, seed).into_iter().map(f16::from_f32).collect() };
    let (x, z) = (of(5), of(6));
    let plain = |a: f64, b: f64| round(round(round(a * b) + round(a / b)) - a.max(b));
    let pairs = || x.iter().zip(&z).map(|(a, b)| (a.to_f64(), b.to_f64()));
    // Products of halves are exact in doubles, and so are these sums: |x| < 2.
    let expected: Vec<f32> =
        pairs().map(|(a, b)| plain(a, b) as f32).chain(pairs().map(|(a, b)| round(a * b + b) as f32)).collect();
    Bench::each(|b| {
        let (x, z, y) = (b.up(&x), b.up(&z), b.room::<u16>(2 * N));
        b.run("halves", over(N), &[&y, &x, &z, &int(N)]);
        let found: Vec<f32> = b.down::<u16>(&y, 2 * N).into_iter().map(|x| f16::from_bits(x).to_f32()).collect();
        same(&found, &expected);
    });
}

#[test]
fn atomics_of_shared_and_global_memory_count() {
    let x: Vec<i32> = (0..N as i32).map(|i| i * i % 1013).collect();
    let mut expected = vec![0; 32];
    for part in x.chunks(256) {
        for value in 0..16 {
            let n = part.iter().filter(|x| **x & 15 == value as i32).count() as i32;
            expected[value] += n;
            expected[16 + value] = expected[16 + value].max(n);
        }
    }
    Bench::each(|b| {
        let (from, count, sum) = (b.up(&x), b.up(&[0i32; 32]), b.up(&[0f32; 16]));
        b.run("histogram", over(N), &[&count, &sum, &from, &int(N)]);
        assert_eq!(b.down::<i32>(&count, 32), expected);
        same(&b.down(&sum, 16), &expected[..16].iter().map(|n| *n as f32).collect::<Vec<_>>());
    });
}

#[test]
fn integers_are_divided_exactly() {
    let a: Vec<i32> = (0..N as i32).map(|i| i.wrapping_mul(0x2545_f491) >> (i % 31)).collect();
    let b: Vec<i32> = (0..N as i32).map(|i| (i * 31 % 97 + 1) * [1, -1, 100_003, -65537][i as usize % 4]).collect();
    let pairs: Vec<(i32, i32)> = a.iter().copied().zip(b.iter().copied()).collect();
    let expected = (
        pairs.iter().map(|(a, b)| a.wrapping_div(*b)).collect::<Vec<_>>(),
        pairs.iter().map(|(a, b)| *a as u32 % *b as u32).collect::<Vec<_>>(),
        pairs
            .iter()
            .map(|(a, b)| u64::from(*a as u32).wrapping_mul(0x1_2345_6789) / u64::from(*b as u32))
            .collect::<Vec<_>>(),
    );
    Bench::each(|bench| {
        let (q, r, l) = (bench.room::<i32>(N), bench.room::<u32>(N), bench.room::<u64>(N));
        bench.run("divide", over(N), &[&q, &r, &l, &bench.up(&a), &bench.up(&b), &int(N)]);
        assert_eq!(bench.down::<i32>(&q, N), expected.0);
        assert_eq!(bench.down::<u32>(&r, N), expected.1);
        assert_eq!(bench.down::<u64>(&l, N), expected.2);
    });
}

#[test]
fn division_and_roots_are_exact_and_functions_within_two_units() {
    let (x, mut z) = (wild(N, 7), wild(N, 8));
    z.rotate_left(3);
    let exact: [fn(f32, f32) -> f32; 5] =
        [|x, _| 1.0 / x, |x, _| x.sqrt(), |x, z| x / z, |x, _| x.floor(), |x, _| x.round()];
    let near: [fn(f64) -> f64; 3] =
        [f64::exp, f64::ln, |x| (f64::from((x - x.floor()) as f32) * std::f64::consts::TAU).sin()];
    Bench::each(|b| {
        let y = b.room::<f32>(8 * N);
        b.run("functions", over(N), &[&y, &b.up(&x), &b.up(&z), &int(N)]);
        let found = b.down::<f32>(&y, 8 * N);
        for (k, function) in exact.iter().enumerate() {
            let expected: Vec<f32> = x.iter().zip(&z).map(|(x, z)| function(*x, *z)).collect();
            same(&found[k * N..][..N], &expected);
        }
        for (k, function) in near.iter().enumerate() {
            for (x, found) in x.iter().zip(&found[(5 + k) * N..]) {
                let expected = function(f64::from(*x));
                // Beside zero the sine's error is that of 2 pi; infinities have no sine.
                if (k == 2 && (expected.abs() < 1e-3 || !x.is_finite())) || (k < 2 && expected.abs() < 1e-37) {
                    continue;
                }
                let near = expected as f32;
                let unit = f64::from(near.abs().next_up() - near.abs());
                let is_near = (f64::from(*found) - expected).abs() <= 2.0 * unit || f64::from(*found) == expected;
                assert!(
                    is_near || near == *found || expected.is_nan() && found.is_nan(),
                    "{k}: {x:e}: expected {expected:e}, found {found:e}"
                );
            }
        }
    });
}

#[test]
fn double_precision_is_exact() {
    let x: Vec<f64> = wild(N, 9).into_iter().map(|x| f64::from(if x.is_finite() { x } else { 3.0 }) * 1.1).collect();
    let functions: [fn(f64) -> f64; 4] =
        [|x| x * x + 3.0, |x| 1.0 / x, f64::sqrt, |x| f64::from(x as i32) + f64::from(x as f32)];
    Bench::each(|b| {
        let y = b.room::<f64>(4 * N);
        b.run("doubles", over(N), &[&y, &b.up(&x), &int(N)]);
        let found = b.down::<f64>(&y, 4 * N);
        for (k, function) in functions.iter().enumerate() {
            for (x, found) in x.iter().zip(&found[k * N..]) {
                let expected = function(*x);
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "{k}: {x:e}: {found:e}"
                );
            }
        }
    });
}

#[test]
fn private_memory_and_calls_work() {
    let x: Vec<i32> = (0..64).map(|i| i * 37 % 11).collect();
    let private = |thread: i32| {
        let mut a: Vec<i32> = x[..32].iter().map(|x| x * thread).collect();
        (0..20).fold(0, |s, i| {
            let s = s + a[(x[i as usize] & 31) as usize];
            a[(s >> 3 & 31) as usize] ^= i;
            s
        })
    };
    fn fibonacci(n: i32) -> i32 {
        if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
    }
    Bench::each(|b| {
        let (from, y) = (b.up(&x), b.room::<i32>(64));
        let counters = b.run("private_array", Launch::linear(1, 64), &[&y, &from, &int(20)]);
        assert_eq!(b.down::<i32>(&y, 64), (0..64).map(private).collect::<Vec<_>>());
        assert!(counters.local.stored > 0 && counters.local.loaded > 0);
        b.run("recursive", Launch::linear(1, 64), &[&y, &from]);
        assert_eq!(b.down::<i32>(&y, 64), x.iter().map(|x| fibonacci(*x)).collect::<Vec<_>>());
    });
}

#[test]
fn threads_know_their_place_along_three_axes() {
    let (grid, block) = ([2, 3, 2], [4, 5, 3]);
    let mut expected = Vec::new();
    for (bz, by, bx) in triples([2, 3, 2]) {
        for (z, y, x) in triples([3, 5, 4]) {
            expected.push(x | y << 4 | z << 8 | bx << 12 | by << 16 | bz << 20);
        }
    }
    Bench::each(|b| {
        let y = b.room::<u32>(expected.len());
        b.run("places", Launch::grid(grid, block), &[&y]);
        assert_eq!(b.down::<u32>(&y, expected.len()), expected);
    });
}

fn triples([a, b, c]: [u32; 3]) -> impl Iterator<Item = (u32, u32, u32)> {
    (0..a * b * c).map(move |n| (n / (b * c), n / c % b, n % c))
}

#[test]
fn data_goes_from_lane_to_lane() {
    let x: Vec<i32> = (0..64).map(|i| i * 3 + 7).collect();
    let rules: [fn(usize) -> Option<usize>; 6] = [
        |l| (l % 16 > 0).then(|| l - 1),
        |l| Some(l & !7 | (7 - l % 8)),
        |l| Some(l ^ 1),
        |l| Some(63 - l),
        |_| None,
        |l| Some(l & !3 | (3 - l % 4)),
    ];
    let mut expected: Vec<i32> =
        rules.iter().flat_map(|rule| (0..64).map(|l| rule(l).map_or(-1, |from| x[from]))).collect();
    expected[4 * 64..5 * 64].fill(x[17] + x[0]);
    Bench::each(|b| {
        let (from, y) = (b.up(&x), b.room::<i32>(6 * 64));
        b.run("lanes", Launch::linear(1, 64), &[&y, &from]);
        assert_eq!(b.down::<i32>(&y, 6 * 64), expected);
    });
}

#[test]
fn bytes_and_halves_of_shared_memory_are_reached_by_every_kind_of_address() {
    let x: Vec<u32> = (0..128).map(|i| i * 0x0102_0305).collect();
    let byte = |i: usize| x[i] >> 8 & 0xff;
    let word = |i: usize| byte(4 * i) | byte(4 * i + 1) << 8 | byte(4 * i + 2) << 16 | byte(4 * i + 3) << 24;
    let first = (0..128).map(|i| byte(127 - i) | (x[127 - i] >> 16) << 8);
    let expected: Vec<u32> = first.chain((0..128).map(|i| word(i / 4) ^ x[i])).collect();
    Bench::each(|b| {
        let (from, y) = (b.up(&x), b.room::<u32>(256));
        b.run("bytes", Launch::linear(1, 128).with_shared(128 + 256), &[&y, &from]);
        assert_eq!(b.down::<u32>(&y, 256), expected);
    });
}
