//! Products of matrices on the matrix unit: `k` rising, each product exact, each sum rounded.

use half::{bf16, f16};

use super::{Bench, int, numbers, same};
use crate::backend::gpu::driver::{Arch, Launch};

/// `a b^T` with rows of `k`.
fn product(a: &[f32], b: &[f32], k: usize, add: fn(f32, f32, f32) -> f32) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).fold(0.0, |sum, (x, y)| add(sum, *x, *y));
    a.chunks(k).flat_map(|x| b.chunks(k).map(|y| dot(x, y)).collect::<Vec<_>>()).collect()
}

#[test]
fn blocks_of_32_by_32_in_bfloat16() {
    let (m, n, k) = (64, 128, 64);
    let of = |n, seed| -> Vec<bf16> { numbers(n, seed).into_iter().map(bf16::from_f32).collect() };
    let (x, y) = (of(m * k, 1), of(n * k, 2));
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let expected = product(&wide(&x), &wide(&y), k, |sum, x, y| sum + x * y);
    Bench::each(|b| {
        let c = b.room::<f32>(m * n);
        let launch = Launch::grid([2, 1, 1], [256, 1, 1]);
        let counters = b.run("matmul32", launch, &[&b.up(&x), &b.up(&y), &c, &int(m), &int(n), &int(k)]);
        same(&b.down(&c, m * n), &expected);
        assert_eq!(counters.matrix_flops["bf16"], (2 * m * n * k) as u64);
        assert_eq!(counters.barriers, 2 * 2 * 2);
    });
}

#[test]
fn blocks_of_16_by_16_in_three_types() {
    let k = 32;
    let raw = |seed| numbers(16 * k, seed);
    let bfloat: Vec<Vec<bf16>> = [3, 4].map(|s| raw(s).into_iter().map(bf16::from_f32).collect()).into();
    let half: Vec<Vec<f16>> = [5, 6].map(|s| raw(s).into_iter().map(f16::from_f32).collect()).into();
    let single = [raw(7), raw(8)];
    let plain = |sum: f32, x: f32, y: f32| sum + x * y;
    let wide_b: Vec<Vec<f32>> = bfloat.iter().map(|v| v.iter().map(|x| x.to_f32()).collect()).collect();
    let wide_h: Vec<Vec<f32>> = half.iter().map(|v| v.iter().map(|x| x.to_f32()).collect()).collect();
    Bench::each(|b| {
        let out = [(); 3].map(|()| b.room::<f32>(256));
        let inputs = [b.up(&bfloat[0]), b.up(&bfloat[1]), b.up(&half[0]), b.up(&half[1])];
        let singles = [b.up(&single[0]), b.up(&single[1])];
        let k_param = int(k);
        let params: Vec<_> = out.iter().chain(&inputs).chain(&singles).chain([&k_param]).collect();
        let counters = b.run("matmul16", Launch::linear(1, 64), &params);
        same(&b.down(&out[0], 256), &product(&wide_b[0], &wide_b[1], k, plain));
        same(&b.down(&out[1], 256), &product(&wide_h[0], &wide_h[1], k, plain));
        same(&b.down(&out[2], 256), &product(&single[0], &single[1], k, |sum, x, y| x.mul_add(y, sum)));
        for kind in ["bf16", "f16", "f32"] {
            assert_eq!(counters.matrix_flops[kind], (2 * 256 * k) as u64);
        }
    });
}

/// A half-precision subnormal times two: zero on MI200, the number on MI300.
#[test]
fn subnormal_inputs_count_as_zero_on_gfx90a_alone() {
    let k = 16;
    let small = f16::from_bits(3);
    let (x, y) = (vec![small; 16 * k], vec![f16::from_f32(2.0); 16 * k]);
    let zeros = vec![0u16; 16 * k];
    let zeros32 = vec![0f32; 16 * k];
    Bench::each(|b| {
        let out = [(); 3].map(|()| b.room::<f32>(256));
        let (zero, zero32) = (b.up(&zeros), b.up(&zeros32));
        let k_param = int(k);
        let params = [&out[0], &out[1], &out[2], &zero, &zero, &b.up(&x), &b.up(&y), &zero32, &zero32, &k_param];
        b.run("matmul16", Launch::linear(1, 64), &params);
        let expected = if b.arch == Arch::GFX90A { 0.0 } else { small.to_f32() * 2.0 * k as f32 };
        same(&b.down(&out[1], 256), &[expected; 256]);
    });
}
