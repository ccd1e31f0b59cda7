use half::{bf16, f16};

use super::*;
use crate::backend::cpu::dispatch::forced::each_level;

type Function = fn(&[f32], &mut [f32]);
type Backward = fn(&[f32], &[f32], &mut [f32], bool);

/// Every `step`-th bit pattern of the whole range, and patterns around the places where a formula changes.
fn samples(step: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..=u32::MAX).step_by(step).map(f32::from_bits).filter(|x| x.is_finite()).collect();
    for edge in [
        0.0f32, 1e-38, 0.3466, 0.3467, 0.5, 0.92, 1.0, 2.0, 4.0, 10.0, 12.0, 14.4, 15.0, 87.3, 88.72, 89.0, 104.0,
        110.0,
    ] {
        for d in -40i32..=40 {
            let x0 = f32::from_bits((edge.to_bits() as i32).saturating_add(d).max(0) as u32);
            x.extend([x0, -x0]);
        }
    }
    // Where most activations lie.
    x.extend((-20_000..=20_000).map(|i| i as f32 * 7.3e-4));
    x
}

/// What a factor of up to 400 makes of the spacing of subnormal numbers.
const SUBNORMAL: f64 = 400.0 * 1.401_298_464_324_817e-45;

/// One unit in the last place of f32 at `x`.
fn ulp(x: f64) -> f64 {
    let e = (x.abs().log2().floor()).clamp(-126.0, 127.0);
    (e - 23.0).exp2()
}

#[track_caller]
fn within(name: &str, bound: f64, x: &[f32], y: &[f32], f: impl Fn(f64) -> (f64, f64)) {
    let mut worst = (0.0, 0.0f32);
    for (&x, &y) in x.iter().zip(y) {
        let (want, size) = f(x.into());
        if want.abs() > f64::from(f32::MAX) {
            assert!(y.is_infinite() || y.abs() > 3.4e38, "{name}({x:e}) = {y:e} for {want:e}");
            continue;
        }
        // Where one factor of a product is subnormal, its absolute error is all that can be bounded.
        let err = ((f64::from(y) - want).abs() - SUBNORMAL).max(0.0) / ulp(size);
        assert!(!y.is_nan(), "{name}({x:e})");
        assert!(err <= bound, "{name}({x:e}) = {y:e} for {want:e}: {err} units");
        if err > worst.0 {
            worst = (err, x);
        }
    }
    println!("{name}: {:.3} units at {:e}", worst.0, worst.1);
}

fn map(f: impl Fn(&[f32], &mut [f32]), x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    f(x, &mut y);
    y
}

fn phi(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

fn logistic(x: f64) -> f64 {
    if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) }
}

/// λ and λα of selu.
const ABOVE: f64 = 1.050_700_987_355_480_5;
const BELOW: f64 = ABOVE * 1.673_263_242_354_377_2;

const INNER: f64 = 1.595_769_121_605_730_8;

fn check_functions(step: usize) {
    let x = samples(step);
    let same = |f: fn(f64) -> f64| move |x: f64| (f(x), f(x));
    each_level(|level| {
        let name = |n: &str| format!("{n} {level:?}");
        within(&name("exp"), 2.0, &x, &map(exp, &x), same(f64::exp));
        within(&name("tanh"), 2.0, &x, &map(tanh, &x), same(f64::tanh));
        within(&name("erf"), 2.0, &x, &map(erf, &x), same(libm::erf));
        within(&name("sigmoid"), 2.5, &x, &map(sigmoid, &x), same(logistic));
        within(&name("silu"), 3.0, &x, &map(silu, &x), same(|x| x * logistic(x)));
        within(&name("selu"), 3.0, &x, &map(selu, &x), same(|x| if x > 0.0 { ABOVE * x } else { BELOW * x.exp_m1() }));
        within(&name("mish"), 5.0, &x, &map(mish, &x), same(|x| x * x.exp().ln_1p().tanh()));
        within(&name("gelu"), 6.0, &x, &map(gelu, &x), same(|x| x * phi(x)));
        within(
            &name("gelu_tanh"),
            6.0,
            &x,
            &map(gelu_tanh, &x),
            same(|x| x * logistic(INNER * (x + 0.044715 * x * x * x))),
        );
        let positive: Vec<f32> = x.iter().copied().filter(|&x| x > 0.0).collect();
        within(&name("ln"), 2.0, &positive, &map(ln, &positive), same(f64::ln));
    });
}

fn check_slopes(step: usize) {
    let x = samples(step);
    let ones = vec![1.0; x.len()];
    let slope = |f: Backward| {
        let mut dx = vec![f32::NAN; x.len()];
        f(&x, &ones, &mut dx, false);
        dx
    };
    let same = |f: fn(f64) -> f64| move |x: f64| (f(x), f(x));
    let larger = |a: f64, b: f64| (a + b, a.abs().max(b.abs()));
    each_level(|level| {
        let name = |n: &str| format!("{n} {level:?}");
        within(&name("sigmoid'"), 4.0, &x, &slope(sigmoid_backward), |x| {
            let y = logistic(x) * logistic(-x);
            (y, y)
        });
        within(&name("silu'"), 6.0, &x, &slope(silu_backward), |x| larger(logistic(x), x * logistic(x) * logistic(-x)));
        within(&name("selu'"), 3.0, &x, &slope(selu_backward), same(|x| if x > 0.0 { ABOVE } else { BELOW * x.exp() }));
        within(&name("mish'"), 6.0, &x, &slope(mish_backward), |x| {
            let t = x.exp().ln_1p().tanh();
            larger(t, x * x.exp().ln_1p().cosh().powi(-2) * logistic(x))
        });
        within(&name("gelu'"), 6.0, &x, &slope(gelu_backward), |x| {
            larger(phi(x), x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt())
        });
        within(&name("gelu_tanh'"), 6.0, &x, &slope(gelu_tanh_backward), |x| {
            let v = INNER * (x + 0.044715 * x * x * x);
            let rest = logistic(-v);
            let second = if rest == 0.0 { 0.0 } else { x * logistic(v) * rest * INNER * (1.0 + 0.134145 * x * x) };
            larger(logistic(v), second)
        });
        within(&name("relu'"), 0.0, &x, &slope(relu_backward), |x| (f64::from(u8::from(x > 0.0)), 1.0));
    });
}

#[test]
fn functions_are_within_their_bounds_over_all_magnitudes() {
    check_functions(150_001);
}

#[test]
fn slopes_are_within_their_bounds_over_all_magnitudes() {
    check_slopes(300_007);
}

#[test]
#[ignore = "seconds: a hundred times as many samples"]
fn functions_and_slopes_are_within_their_bounds_densely() {
    check_functions(1_501);
    check_slopes(1_501);
}

#[test]
fn nan_and_infinity_come_out_as_the_formula_says() {
    let inf = f32::INFINITY;
    let x = [f32::NAN, inf, -inf, 0.0, -0.0];
    let cases: [(&str, Function, [f32; 5]); 11] = [
        ("exp", exp, [f32::NAN, inf, 0.0, 1.0, 1.0]),
        ("ln", ln, [f32::NAN, inf, f32::NAN, -inf, -inf]),
        ("tanh", tanh, [f32::NAN, 1.0, -1.0, 0.0, -0.0]),
        ("erf", erf, [f32::NAN, 1.0, -1.0, 0.0, -0.0]),
        ("sigmoid", sigmoid, [f32::NAN, 1.0, 0.0, 0.5, 0.5]),
        ("silu", silu, [f32::NAN, inf, f32::NAN, 0.0, -0.0]),
        ("selu", selu, [f32::NAN, inf, -1.758_099_3, 0.0, 0.0]),
        ("mish", mish, [f32::NAN, inf, f32::NAN, 0.0, -0.0]),
        ("gelu", gelu, [f32::NAN, inf, f32::NAN, 0.0, -0.0]),
        ("gelu_tanh", gelu_tanh, [f32::NAN, inf, f32::NAN, 0.0, -0.0]),
        ("relu", relu, [f32::NAN, inf, 0.0, 0.0, -0.0]),
    ];
    each_level(|level| {
        for (name, f, want) in cases {
            // Long enough that vector code is taken.
            let long: Vec<f32> = x.iter().copied().cycle().take(200).collect();
            for (i, y) in map(f, &long).into_iter().enumerate() {
                let w = want[i % 5];
                let same = if w.is_nan() { y.is_nan() } else { y.to_bits() == w.to_bits() };
                assert!(same, "{level:?} {name}({}) = {y}, not {w}", x[i % 5]);
            }
        }
        let mut dx = [0.0; 5];
        let slopes: [(Backward, [f32; 5]); 7] = [
            (sigmoid_backward, [f32::NAN, 0.0, 0.0, 0.25, 0.25]),
            (silu_backward, [f32::NAN, 1.0, 0.0, 0.5, 0.5]),
            (selu_backward, [f32::NAN, 1.050_701, 0.0, 1.758_099_3, 1.758_099_3]),
            (mish_backward, [f32::NAN, 1.0, 0.0, 0.6, 0.6]),
            (gelu_backward, [f32::NAN, 1.0, 0.0, 0.5, 0.5]),
            (gelu_tanh_backward, [f32::NAN, 1.0, 0.0, 0.5, 0.5]),
            (relu_backward, [f32::NAN, 1.0, 0.0, 0.0, 0.0]),
        ];
        for (f, want) in slopes {
            f(&x, &[1.0; 5], &mut dx, false);
            for (d, w) in dx.iter().zip(want) {
                assert!((w.is_nan() && d.is_nan()) || (d - w).abs() <= 1e-7, "{level:?} {dx:?}, not {want:?}");
            }
        }
        let before = [3.0f32; 5];
        let mut sum = before;
        gelu_backward(&x, &[2.0; 5], &mut sum, true);
        assert_eq!(sum[1..], [5.0, 3.0, 4.0, 4.0]);
    });
}

#[test]
fn in_place_gives_the_same_bits() {
    let x = samples(10_000_019);
    type InPlace = fn(&mut [f32]);
    let pairs: [(Function, InPlace); 11] = [
        (exp, exp_in_place),
        (ln, ln_in_place),
        (tanh, tanh_in_place),
        (erf, erf_in_place),
        (sigmoid, sigmoid_in_place),
        (silu, silu_in_place),
        (selu, selu_in_place),
        (mish, mish_in_place),
        (gelu, gelu_in_place),
        (gelu_tanh, gelu_tanh_in_place),
        (relu, relu_in_place),
    ];
    for (f, in_place) in pairs {
        let mut y = x.clone();
        in_place(&mut y);
        assert!(y.iter().zip(map(f, &x)).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())));
    }
}

#[test]
fn sums_are_within_the_bound_of_their_blocks() {
    for n in [0, 1, 31, 32, 33, 100, 4095, 4096, 4097, 20_000] {
        let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 10_007) as f32 / 5003.0 - 0.9).collect();
        let y: Vec<f32> = x.iter().rev().map(|x| x * 1.1 + 0.3).collect();
        let wide = |f: &dyn Fn(f64, f64) -> f64| -> (f64, f64) {
            let terms = x.iter().zip(&y).map(|(&x, &y)| f(x.into(), y.into()));
            terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()))
        };
        // A lane adds up at most 128 values, then 5 folds and one rounding.
        let bound = |size: f64| 135.0 * f64::from(f32::EPSILON) * size + 1e-30;
        each_level(|_| {
            let (want, size) = wide(&|x, _| x);
            assert!((f64::from(sum(&x)) - want).abs() <= bound(size), "sum of {n}");
            let (want, size) = wide(&|x, y| x * y);
            assert!((f64::from(dot(&x, &y)) - want).abs() <= bound(size), "dot of {n}");
            let (want, size) = wide(&|x, _| (x - 0.25) * (x - 0.25));
            assert!(
                (f64::from(sum_squared_deviations(&x, 0.25)) - want).abs() <= 2.0 * bound(size),
                "deviations of {n}"
            );
            let (want, size) = wide(&|x, _| x * x);
            assert!((sum_squares(&x) - want).abs() <= 1e-12 * size, "squares of {n}");
            let want = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), want);
        });
    }
}

#[test]
fn a_nan_or_infinity_anywhere_shows_in_maximum_and_squares() {
    each_level(|_| {
        for n in [1, 5, 40, 100] {
            for at in [0, n / 2, n - 1] {
                let mut x = vec![1.5f32; n];
                x[at] = f32::NAN;
                assert!(max(&x).is_nan() && sum_squares(&x).is_nan(), "{n} {at}");
                x[at] = f32::INFINITY;
                assert!(max(&x) == f32::INFINITY && sum_squares(&x) == f64::INFINITY, "{n} {at}");
                x[at] = f32::MAX;
                assert!(sum_squares(&x).is_finite());
            }
        }
    });
}

#[test]
fn softmax_and_its_gradient_match_the_formula() {
    let (rows, width) = (5, 77);
    let x: Vec<f32> = (0..rows * width).map(|i| ((i * 37) % 101) as f32 * 0.4 - 30.0).collect();
    let dy: Vec<f32> = (0..rows * width).map(|i| ((i * 53) % 89) as f32 * 0.02 - 0.7).collect();
    each_level(|_| {
        let mut y = x.clone();
        softmax_rows(&mut y, width);
        let mut dx = vec![1.0; rows * width];
        softmax_rows_backward(&y, &dy, &mut dx, width, true);
        for r in 0..rows {
            let row = r * width..(r + 1) * width;
            let top = x[row.clone()].iter().copied().fold(f32::MIN, f32::max);
            let e: Vec<f64> = x[row.clone()].iter().map(|&x| f64::from(x - top).exp()).collect();
            let total: f64 = e.iter().sum();
            let inner: f64 = row.clone().map(|i| e[i - row.start] / total * f64::from(dy[i])).sum();
            for i in row.clone() {
                let want = e[i - row.start] / total;
                assert!((f64::from(y[i]) - want).abs() <= 8.0 * f64::from(f32::EPSILON) * want, "{i}");
                let slope = want * (f64::from(dy[i]) - inner);
                assert!((f64::from(dx[i]) - 1.0 - slope).abs() <= 4.0 * f64::from(f32::EPSILON), "{i}");
            }
        }
    });
    let mut masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    softmax_rows(&mut masked, 3);
    assert_eq!(masked, [0.0, 1.0, 0.0]);
    let mut none = [f32::NEG_INFINITY; 3];
    softmax_rows(&mut none, 3);
    assert!(none.iter().all(|x| x.is_nan()));
    let mut e = [1.0f32, 2.0];
    assert!((exp_shifted(&mut e, 2.0) - 1.367_879_4).abs() < 1e-6 && e[1] == 1.0);
}

#[test]
fn column_sums_cover_every_strip_and_add_when_told() {
    let (rows, width) = (150, 131);
    let x: Vec<f32> = (0..rows * width).map(|i| ((i * 31) % 64) as f32 - 31.0).collect();
    each_level(|_| {
        for (from, n) in [(0, 131), (64, 67), (3, 5), (100, 31)] {
            let mut out = vec![1.0; n];
            column_sums(&x, width, from, &mut out, true);
            for (j, &out) in out.iter().enumerate() {
                let want: f32 = (0..rows).map(|i| x[i * width + from + j]).sum();
                assert_eq!(out, want + 1.0, "column {}", from + j);
            }
            column_sums(&x, width, from, &mut out, false);
            assert_eq!(out[0], (0..rows).map(|i| x[i * width + from]).sum::<f32>());
        }
    });
}

#[test]
fn conversions_round_as_the_half_crate_does() {
    let mut x = samples(1_000_003);
    x.extend([
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0xff81_2345),
        65519.0,
        65520.0,
    ]);
    x.extend((0..2000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x800)));
    each_level(|_| {
        let (mut b, mut h) = (vec![bf16::ZERO; x.len()], vec![f16::ZERO; x.len()]);
        narrow_bf16(&x, &mut b);
        narrow_f16(&x, &mut h);
        let (mut wide_b, mut wide_h) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        widen_bf16(&b, &mut wide_b);
        widen_f16(&h, &mut wide_h);
        for i in 0..x.len() {
            assert_eq!(b[i].to_bits(), bf16::from_f32(x[i]).to_bits(), "{:e}", x[i]);
            assert!(wide_b[i].to_bits() == b[i].to_f32().to_bits());
            if x[i].is_nan() {
                assert!(h[i].is_nan() && wide_h[i].is_nan() && wide_b[i].is_nan());
            } else {
                assert_eq!(h[i].to_bits(), f16::from_f32_const(x[i]).to_bits(), "{:e}", x[i]);
                assert_eq!(wide_h[i].to_bits(), h[i].to_f32_const().to_bits());
            }
        }
    });
}

#[test]
fn adamw_follows_its_formula_and_has_the_same_bits_at_every_level() {
    let n = 83;
    let make = |a: usize| -> Vec<f32> { (0..n).map(|i| ((i * a) % 61) as f32 / 30.0 - 1.0).collect() };
    let (p0, grads) = (make(17), [make(23), make(29), make(41)]);
    let mut bits: Option<Vec<u32>> = None;
    each_level(|level| {
        let (mut p, mut m, mut v) = (p0.clone(), vec![0.0; n], vec![0.0; n]);
        let (mut wp, mut wm, mut wv): (Vec<f64>, _, _) =
            (p0.iter().map(|&x| x.into()).collect(), vec![0.0f64; n], vec![0.0f64; n]);
        for (t, g) in grads.iter().enumerate() {
            let t = t as i32 + 1;
            adamw(&Adamw::new(t as u64, 1e-3, (0.9, 0.999), 1e-8, 0.01, 0.5), &mut p, g, &mut m, &mut v);
            for i in 0..n {
                let g = 0.5 * f64::from(g[i]);
                wm[i] = 0.9 * wm[i] + 0.1 * g;
                wv[i] = 0.999 * wv[i] + 0.001 * g * g;
                let (mh, vh) = (wm[i] / (1.0 - 0.9f64.powi(t)), wv[i] / (1.0 - 0.999f64.powi(t)));
                wp[i] = wp[i] * (1.0 - 1e-3 * 0.01) - 1e-3 * mh / (vh.sqrt() + 1e-8);
            }
        }
        for i in 0..n {
            assert!(
                (f64::from(p[i]) - wp[i]).abs() <= 4.0 * f64::from(f32::EPSILON) * (wp[i].abs() + 0.1),
                "{level:?} {i}: {} {}",
                p[i],
                wp[i]
            );
            assert!((f64::from(v[i]) - wv[i]).abs() <= 1e-6 * wv[i] && (f64::from(m[i]) - wm[i]).abs() <= 1e-6);
        }
        let now: Vec<u32> = p.iter().map(|x| x.to_bits()).collect();
        assert_eq!(*bits.get_or_insert_with(|| now.clone()), now, "{level:?}");
    });
}
