use half::{bf16, f16};

use super::*;
use crate::backend::cpu::dispatch::forced::each_level;
use crate::backend::cpu::threads::in_pool;

/// Values in (−1, 1) that look random and are not symmetric.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 23) as f32 - 0.95
    };
    (0..n).map(|_| next()).collect()
}

/// Σ a b and Σ |a b| of each element, in f64.
fn plain(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<(f64, f64)> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut size) = (0.0, 0.0);
            for k in 0..k {
                sum += a(i, k) * b(k, j);
                size += (a(i, k) * b(k, j)).abs();
            }
            out.push((sum, size));
        }
    }
    out
}

/// Every element within 2·(K+2)·ε·Σ|a b|, the bound of a sum in any order with a rounding for each step.
#[track_caller]
fn close(c: &[f32], want: &[(f64, f64)], k: usize, what: &str) {
    assert_eq!(c.len(), want.len());
    for (i, (&c, &(sum, size))) in c.iter().zip(want).enumerate() {
        let bound = 2.0 * (k + 2) as f64 * f64::from(f32::EPSILON) * size + 1e-30;
        let err = (f64::from(c) - sum).abs();
        assert!(err <= bound, "{what}: element {i}: {c} for {sum}, error {err:e} above {bound:e}");
    }
}

fn bits(c: &[f32]) -> Vec<u32> {
    c.iter().map(|c| c.to_bits()).collect()
}

#[test]
fn products_around_every_tile_edge_are_within_the_bound_of_their_sums() {
    each_level(|level| {
        for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 24, 25] {
            for n in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65] {
                for k in [1, 2, 15, 16, 17, 35] {
                    let (a, b) = (values(m * k, 1), values(k * n, 2));
                    let mut c = vec![f32::NAN; m * n];
                    matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), How::default()).unwrap();
                    let want = plain(m, n, k, |i, l| a[i * k + l].into(), |l, j| b[l * n + j].into());
                    close(&c, &want, k, &format!("{level:?} [{m}, {n}, {k}]"));
                }
            }
        }
    });
}

#[test]
fn every_transposition_and_stride_gives_the_product() {
    let (m, n, k) = (29, 67, 41);
    let (a, b) = (values(3 * m * k, 3), values(3 * k * n, 4));
    let forms = |rows: usize, cols: usize| [(cols, 1), (cols + 5, 1), (1, rows), (1, rows + 3), (2 * cols + 2, 2)];
    each_level(|level| {
        for sa in forms(m, k) {
            for sb in forms(k, n) {
                let mut c = vec![0.5f32; m * (n + 2)];
                let (x, y) = (Mat::strided(&a, (m, k), sa), Mat::strided(&b, (k, n), sb));
                matmul(x, y, MatMut::strided(&mut c, (m, n), n + 2), How::default()).unwrap();
                let want = plain(m, n, k, |i, l| a[i * sa.0 + l * sa.1].into(), |l, j| b[l * sb.0 + j * sb.1].into());
                assert!(c.chunks(n + 2).all(|r| r[n..] == [0.5, 0.5]), "written beside the matrix");
                let c: Vec<f32> = c.chunks(n + 2).flat_map(|r| r[..n].to_vec()).collect();
                close(&c, &want, k, &format!("{level:?} {sa:?} {sb:?}"));
            }
        }
    });
}

#[test]
fn long_sums_are_cut_into_runs_and_added_up() {
    each_level(|level| {
        for k in [255, 256, 257, 513, 1000, 2049, 4100] {
            let (m, n) = (13, 34);
            let (a, b) = (values(m * k, 5), values(k * n, 6));
            let mut c = values(m * n, 7);
            let old = c.clone();
            let how = How { alpha: 0.5, add: true, ..How::default() };
            matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), how).unwrap();
            let mut want = plain(m, n, k, |i, l| a[i * k + l].into(), |l, j| b[l * n + j].into());
            for (w, &old) in want.iter_mut().zip(&old) {
                *w = (0.5 * w.0 + f64::from(old), 0.5 * w.1 + f64::from(old.abs()));
            }
            close(&c, &want, k, &format!("{level:?} K = {k}"));
        }
    });
}

#[test]
fn more_columns_than_a_pass_takes_are_all_computed() {
    let (m, n, k) = (3, 4096 + 37, 9);
    let (a, b) = (values(m * k, 8), values(k * n, 9));
    for rows in [3, 20] {
        let a: Vec<f32> = a.iter().cycle().take(rows * k).copied().collect();
        let mut c = vec![0.0; rows * n];
        matmul(Mat::new(&a, rows, k), Mat::new(&b, k, n), MatMut::new(&mut c, rows, n), How::default()).unwrap();
        let want = plain(rows, n, k, |i, l| a[i * k + l].into(), |l, j| b[l * n + j].into());
        close(&c, &want, k, "wide");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for (m, n, k) in [(200, 330, 300), (5, 1100, 600), (600, 40, 300), (12, 2100, 310)] {
        let (a, b, bias) = (values(m * k, 10), values(n * k, 11), values(n, 12));
        let run = |threads| {
            let (mut c, mut pre) = (values(m * n, 13), vec![0.0; m * n]);
            in_pool(threads, || {
                let pre = Some(MatMut::new(&mut pre, m, n));
                let how = How { alpha: 0.7, add: true, bias: Some(&bias), activation: Activation::Gelu, pre };
                matmul(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), MatMut::new(&mut c, m, n), how).unwrap();
            });
            (bits(&c), bits(&pre))
        };
        let one = run(1);
        for threads in [2, 3, 5] {
            assert!(run(threads) == one, "[{m}, {n}, {k}] on {threads} threads");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() {
    let (n, k) = (70, 530);
    let (a, b) = (values(30 * k, 14), values(k * n, 15));
    each_level(|level| {
        let rows = |m: usize| {
            let mut c = vec![0.0; m * n];
            matmul_here(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), How::default()).unwrap();
            bits(&c)
        };
        let all = rows(30);
        for m in [1, 2, 5, 8, 9, 13] {
            assert!(rows(m) == all[..m * n], "{level:?}, {m} rows");
        }
    });
}

#[test]
fn narrow_inputs_are_multiplied_as_their_exact_values() {
    let (m, n, k) = (14, 35, 50);
    let a: Vec<bf16> = values(m * k, 16).into_iter().map(bf16::from_f32).collect();
    let b: Vec<f16> = values(k * n, 17).into_iter().map(f16::from_f32).collect();
    let (wide_a, wide_b): (Vec<f32>, Vec<f32>) =
        (a.iter().map(|x| x.to_f32()).collect(), b.iter().map(|x| x.to_f32()).collect());
    each_level(|level| {
        let (mut c, mut want) = (vec![0.0; m * n], vec![0.0; m * n]);
        matmul(Mat::new(&a[..], m, k), Mat::new(&b[..], k, n), MatMut::new(&mut c, m, n), How::default()).unwrap();
        matmul(Mat::new(&wide_a, m, k), Mat::new(&wide_b, k, n), MatMut::new(&mut want, m, n), How::default()).unwrap();
        assert_eq!(bits(&c), bits(&want), "{level:?}");
        // The same values, read across: A from columns, B from rows.
        let (at, bt) = (Mat::new(&b[..], k, n).t(), Mat::new(&a[..], m, k).t());
        let mut ct = vec![0.0; m * n];
        matmul(at, bt, MatMut::new(&mut ct, n, m), How::default()).unwrap();
        assert!((0..m).all(|i| (0..n).all(|j| ct[j * m + i] == c[i * n + j])), "{level:?}");
    });
}

#[test]
fn bias_and_activation_follow_the_product_and_the_value_between_is_kept() {
    let (m, n, k) = (13, 600, 20);
    let (a, b, bias) = (values(m * k, 18), values(k * n, 19), values(n, 20));
    use Activation::{Gelu, GeluTanh, None, Relu, Silu};
    for activation in [None, Relu, Silu, Gelu, GeluTanh] {
        let (mut c, mut pre) = (vec![0.0; m * n], vec![0.0; m * n]);
        let how = How { bias: Some(&bias), activation, pre: Some(MatMut::new(&mut pre, m, n)), ..How::default() };
        matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), how).unwrap();
        let mut want = plain(m, n, k, |i, l| a[i * k + l].into(), |l, j| b[l * n + j].into());
        for (i, w) in want.iter_mut().enumerate() {
            let bias = f64::from(bias[i % n]);
            *w = (w.0 + bias, w.1 + bias.abs());
        }
        close(&pre, &want, k, "pre");
        activation.apply(&mut pre);
        assert_eq!(bits(&pre), bits(&c), "{activation:?}");
    }
}

#[test]
fn nothing_to_sum_leaves_zero_and_bias() {
    let none: [f32; 0] = [];
    let (bias, mut c) = ([1.0, -2.0], [f32::NAN; 6]);
    let how = || How { bias: Some(&bias), activation: Activation::Relu, ..How::default() };
    matmul(Mat::new(&none[..], 3, 0), Mat::new(&none[..], 0, 2), MatMut::new(&mut c, 3, 2), how()).unwrap();
    assert_eq!(c, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    let how = How { add: true, ..how() };
    matmul(Mat::new(&none[..], 3, 0), Mat::new(&none[..], 0, 2), MatMut::new(&mut c, 3, 2), how).unwrap();
    assert_eq!(c, [2.0, 0.0, 2.0, 0.0, 2.0, 0.0]);
    let (x, mut empty) = ([1.0f32; 4], [0.0f32; 0]);
    matmul(Mat::new(&none[..], 0, 2), Mat::new(&x[..], 2, 2), MatMut::new(&mut empty, 0, 2), How::default()).unwrap();
    matmul(Mat::new(&x[..], 2, 2), Mat::new(&none[..], 2, 0), MatMut::new(&mut empty, 2, 0), How::default()).unwrap();
}

#[test]
fn what_c_held_is_not_read_unless_it_is_added_to_and_nan_is_not_lost() {
    let (a, b, mut c) = (values(12, 1), values(12, 2), [f32::NAN; 9]);
    matmul(Mat::new(&a, 3, 4), Mat::new(&b, 4, 3), MatMut::new(&mut c, 3, 3), How::default()).unwrap();
    assert!(c.iter().all(|c| c.is_finite()));
    let mut bad = a.clone();
    bad[5] = f32::NAN;
    matmul(Mat::new(&bad, 3, 4), Mat::new(&b, 4, 3), MatMut::new(&mut c, 3, 3), How::default()).unwrap();
    assert!(c[3..6].iter().all(|c| c.is_nan()) && c[..3].iter().chain(&c[6..]).all(|c| c.is_finite()));
}

#[test]
fn a_batch_is_its_products_one_after_the_other() {
    let (batch, m, n, k) = (7, 50, 33, 64);
    let (a, b) = (values(batch * m * k, 21), values(batch * k * n, 22));
    for b_step in [0, k * n] {
        let mut want = vec![0.0; batch * m * n];
        for i in 0..batch {
            let (x, y) = (Mat::new(&a[i * m * k..], m, k), Mat::new(&b[i * b_step..], k, n));
            matmul_here(x, y, MatMut::new(&mut want[i * m * n..], m, n), How { alpha: 0.25, ..How::default() })
                .unwrap();
        }
        for threads in [1, 2, 3] {
            let mut c = vec![0.0; batch * m * n];
            in_pool(threads, || {
                let (x, y) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
                matmul_batch(batch, (x, m * k), (y, b_step), MatMut::new(&mut c, batch * m, n), (0.25, false)).unwrap();
            });
            assert_eq!(bits(&c), bits(&want), "{threads} threads, step {b_step}");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let (x, mut c) = (vec![0.0f32; 12], vec![0.0f32; 12]);
    let say = |a: Mat, b: Mat, rows, cols, how: How, c: &mut [f32]| {
        matmul(a, b, MatMut::new(c, rows, cols), how).unwrap_err().to_string()
    };
    let none = How::default;
    assert_eq!(
        say(Mat::new(&x, 3, 4), Mat::new(&x, 3, 4), 3, 4, none(), &mut c),
        "gemm: b: expected [K=4, N], found [3, 4] (a is [3, 4])"
    );
    assert_eq!(
        say(Mat::new(&x, 3, 4), Mat::new(&x, 4, 3), 3, 4, none(), &mut c),
        "gemm: c: expected [M=3, N=3], found [3, 4]"
    );
    assert_eq!(
        say(Mat::new(&x, 3, 4), Mat::new(&x, 4, 3), 3, 3, How { bias: Some(&[0.0]), ..none() }, &mut c),
        "gemm: bias: expected [N=3], found [1]"
    );
    assert_eq!(
        say(Mat::new(&x, 4, 4), Mat::new(&x, 4, 3), 4, 3, none(), &mut c),
        "gemm: a: expected data for [4, 4] at strides [4, 1], found 12 values"
    );
    let huge = Mat::strided(&x, (usize::MAX, 4), (usize::MAX, 1));
    assert!(say(huge, Mat::new(&x, 4, 3), 3, 3, none(), &mut c).starts_with("gemm: a: expected data"));
    let narrow = MatMut::strided(&mut c, (3, 3), 2);
    let error = matmul(Mat::new(&x, 3, 4), Mat::new(&x, 4, 3), narrow, none()).unwrap_err().to_string();
    assert_eq!(error, "gemm: c: expected a row stride of at least N=3, found 2");
}
