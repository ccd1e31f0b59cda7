//! The scalar formulae: branch-free, so that a loop over them becomes vector code.
//!
//! Bounds of error are the largest found against f64 over all bit patterns tried by the tests, in units in the last place.
//! Coefficients are minimax fits made for these intervals, with the leading terms exact.

use crate::backend::cpu::dispatch::Arith;

const LN2: f32 = std::f32::consts::LN_2;
/// ln 2 less [`LN2`].
const LN2_LOW: f32 = -1.904_654_3e-9;
/// Adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// 1/√(2π).
const DENSITY: f32 = 0.398_942_3;

#[inline(always)]
fn horner<F: Arith, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut y = c[N - 1];
    for &c in c[..N - 1].iter().rev() {
        y = F::fma(y, x, c);
    }
    y
}

/// x as n·ln 2 + r with |r| ≤ ln 2 / 2.
#[inline(always)]
fn reduce<F: Arith>(x: f32) -> (i32, f32) {
    let t = F::fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = F::fma(n, -LN2_LOW, F::fma(n, -LN2, x));
    ((t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32), r)
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// eˣ, subnormal results included.
#[inline(always)]
pub(crate) fn exp<F: Arith>(x: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (n, r) = reduce::<F>(x);
    let q = horner::<F, 5>(r, [0.499_999_97, 0.166_665_45, 0.041_667_46, 0.008_366_432, 0.001_386_843_5]);
    let p = F::fma(r * r, q, r) + 1.0;
    // In two factors, because 2ⁿ alone may not be a normal number.
    let half = n >> 1;
    p * power(half) * power(n.wrapping_sub(half))
}

/// eˣ − 1 for x ≤ 0, where nothing cancels near 0.
#[inline(always)]
fn exp_less_one<F: Arith>(x: f32) -> f32 {
    // Below −30 it is −1.
    let x = if x < -30.0 { -30.0 } else { x };
    let (n, r) = reduce::<F>(x);
    let q = horner::<F, 5>(r, [0.499_999_97, 0.166_665_45, 0.041_667_46, 0.008_366_432, 0.001_386_843_5]);
    let scale = power(n);
    F::fma(scale, F::fma(r * r, q, r), scale - 1.0)
}

/// tanh x.
#[inline(always)]
pub(super) fn tanh<F: Arith>(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let p = horner::<F, 5>(s, [-0.333_333_13, 0.133_324_37, -0.053_835_757, 0.021_000_376, -0.006_169_614]);
    // The sign is set again because −0 + 0 is 0.
    let near = F::fma(x * s, p, x).copysign(x);
    // Beyond 10 it is 1.
    let a = if a > 10.0 { 10.0 } else { a };
    let z = exp::<F>(-2.0 * a);
    let far = ((1.0 - z) / (1.0 + z)).copysign(x);
    if a < 0.55 { near } else { far }
}

/// (e^(−a²/2), that times the tail of the normal distribution beyond a ≥ 0): the second is Φ(−a).
#[inline(always)]
fn tail<F: Arith>(a: f32) -> (f32, f32) {
    let a = if a > 15.0 { 15.0 } else { a };
    let square = a * a;
    let low = F::fma(a, a, -square);
    let e = exp::<F>(-0.5 * square);
    let e = F::fma(e, -0.5 * low, e);
    // e^(a²/2) Φ(−a) as w P(w − 1) for w = 1/(1 + ca); P(0) = ½ exactly, so that nothing cancels near 0.
    let d = 0.296_875 * a;
    let w = 1.0 / (1.0 + d);
    let p = horner::<F, 9>(
        -d * w,
        [
            0.843_805_4,
            0.648_943_5,
            0.103_921_47,
            -0.140_991_76,
            -0.028_776_078,
            0.018_293_75,
            -0.059_887_67,
            -0.069_185_026,
            -0.020_445_319,
        ],
    );
    let p = F::fma(-d * w, p, 0.5);
    (e, e * (w * p))
}

/// erf x.
#[inline(always)]
pub(super) fn erf<F: Arith>(x: f32) -> f32 {
    let a = x.abs();
    let s = a * a;
    let p = horner::<F, 7>(
        s,
        [0.128_379_17, -0.376_126_3, 0.112_836_26, -0.026_855_74, 0.005_192_460_5, -0.000_805_080_4, 0.000_080_027_75],
    );
    let near = F::fma(p, x, x);
    let far = F::fma(-2.0, tail::<F>(a * std::f32::consts::SQRT_2).1, 1.0).copysign(x);
    if a < 0.92 { near } else { far }
}

/// Natural logarithm; subnormal arguments included.
#[inline(always)]
pub(super) fn ln<F: Arith>(x: f32) -> f32 {
    let small = x < f32::MIN_POSITIVE;
    let scaled = if small { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    // The exponent for a mantissa in [√½, √2).
    let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(e << 23) as u32) - 1.0;
    let e = e as f32 - if small { 23.0 } else { 0.0 };
    let p = horner::<F, 9>(
        f,
        [
            0.333_333_13,
            -0.250_000_1,
            0.200_020_72,
            -0.166_679_9,
            0.142_203_63,
            -0.124_062_076,
            0.118_834_704,
            -0.116_701_92,
            0.067_495_56,
        ],
    );
    let s = f * f;
    let y = F::fma(f * s, p, -0.5 * s);
    let y = F::fma(e, LN2, f + F::fma(e, LN2_LOW, y));
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x < 0.0 { f32::NAN } else { y };
    // Infinity and NaN are their own logarithms.
    if x < f32::INFINITY { y } else { x }
}

/// (σ(x), 1 − σ(x)) where e^(−|x|) is known.
#[inline(always)]
fn logistic(x: f32, z: f32) -> (f32, f32) {
    let r = 1.0 + z;
    let (large, small) = (1.0 / r, z / r);
    if x < 0.0 { (small, large) } else { (large, small) }
}

/// 1 / (1 + e^(−x)).
#[inline(always)]
pub(super) fn sigmoid<F: Arith>(x: f32) -> f32 {
    let z = exp::<F>(-x.abs());
    (if x < 0.0 { z } else { 1.0 }) / (1.0 + z)
}

/// The derivative of [`sigmoid`].
#[inline(always)]
pub(super) fn sigmoid_slope<F: Arith>(x: f32) -> f32 {
    let (s, t) = logistic(x, exp::<F>(-x.abs()));
    s * t
}

/// x σ(x).
#[inline(always)]
pub(super) fn silu<F: Arith>(x: f32) -> f32 {
    x * sigmoid::<F>(x)
}

/// The derivative of [`silu`].
#[inline(always)]
pub(super) fn silu_slope<F: Arith>(x: f32) -> f32 {
    let (s, t) = logistic(x, exp::<F>(-x.abs()));
    F::fma(limit(x, 110.0) * s, t, s)
}

/// λ and λα of [`selu`].
const SELU_ABOVE: f32 = 1.050_701;
const SELU_BELOW: f32 = 1.758_099_3;

/// λx above 0, λα(eˣ − 1) below.
#[inline(always)]
pub(super) fn selu<F: Arith>(x: f32) -> f32 {
    let below = SELU_BELOW * exp_less_one::<F>(if x > 0.0 { 0.0 } else { x });
    if x > 0.0 { SELU_ABOVE * x } else { below }
}

/// The derivative of [`selu`]; at 0 that of the lower half.
#[inline(always)]
pub(super) fn selu_slope<F: Arith>(x: f32) -> f32 {
    let below = SELU_BELOW * exp::<F>(if x > 0.0 { 0.0 } else { x });
    if x > 0.0 { SELU_ABOVE } else { below }
}

/// (e, n, n + 2) with e = eˣ and n = e(e + 2): tanh(ln(1 + e)) = n / (n + 2), which loses nothing in the left tail.
#[inline(always)]
fn soft<F: Arith>(x: f32) -> (f32, f32, f32) {
    // Beyond 30 the quotient is 1.
    let e = exp::<F>(if x > 30.0 { 30.0 } else { x });
    let n = e * (e + 2.0);
    (e, n, n + 2.0)
}

/// x tanh(ln(1 + eˣ)).
#[inline(always)]
pub(super) fn mish<F: Arith>(x: f32) -> f32 {
    let (_, n, d) = soft::<F>(x);
    x * (n / d)
}

/// The derivative of [`mish`]: n/d + 4x·e(e + 1)/d² in the numbers of [`soft`].
#[inline(always)]
pub(super) fn mish_slope<F: Arith>(x: f32) -> f32 {
    let (e, n, d) = soft::<F>(x);
    let second = limit(x, 110.0) * (4.0 * e * (e + 1.0) / d);
    (n + second) / d
}

/// x Φ(x).
#[inline(always)]
pub(super) fn gelu<F: Arith>(x: f32) -> f32 {
    let q = tail::<F>(x.abs()).1;
    x * if x < 0.0 { q } else { 1.0 - q }
}

/// The derivative of [`gelu`].
#[inline(always)]
pub(super) fn gelu_slope<F: Arith>(x: f32) -> f32 {
    let (e, q) = tail::<F>(x.abs());
    F::fma(limit(x, 15.0) * e, DENSITY, if x < 0.0 { q } else { 1.0 - q })
}

/// 2√(2/π) and its part that f32 cannot hold, and both times 0.044715.
const INNER: f32 = 1.595_769_2;
const INNER_LOW: f32 = (1.595_769_121_605_730_8_f64 - INNER as f64) as f32;
const CUBE: f32 = 0.071_354_816;
const CUBE_LOW: f32 = (1.595_769_121_605_730_8_f64 * 0.044_715 - CUBE as f64) as f32;

/// e^(−|v|) for v = 2√(2/π)(x + 0.044715x³), with v to twice the precision: its error would be the result's, times v.
#[inline(always)]
fn inner<F: Arith>(x: f32) -> f32 {
    let a = limit(x.abs(), 12.0);
    let h = a * a;
    let h_low = F::fma(a, a, -h);
    let cube = CUBE * h;
    let w = cube + INNER;
    // What the two roundings lost (Knuth's sum of two), and the lower parts.
    let part = w - cube;
    let lost = F::fma(CUBE, h, -cube) + ((cube - (w - part)) + (INNER - part));
    let w_low = lost + F::fma(CUBE, h_low, F::fma(CUBE_LOW, h, INNER_LOW));
    let v = a * w;
    let v_low = F::fma(a, w, -v) + a * w_low;
    let z = exp::<F>(-v);
    F::fma(z, -v_low, z)
}

/// x (1 + tanh(√(2/π)(x + 0.044715x³))) / 2.
#[inline(always)]
pub(super) fn gelu_tanh<F: Arith>(x: f32) -> f32 {
    let z = inner::<F>(x);
    x * ((if x < 0.0 { z } else { 1.0 }) / (1.0 + z))
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
pub(super) fn gelu_tanh_slope<F: Arith>(x: f32) -> f32 {
    let (s, t) = logistic(x, inner::<F>(x));
    let x = limit(x, 12.0);
    let slope = F::fma(3.0 * CUBE, x * x, INNER);
    F::fma(x * slope * s, t, s)
}

/// max(x, 0), NaN stays.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "one form for all functions")]
pub(super) fn relu<F: Arith>(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// 1 for x > 0, else 0; NaN stays.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "one form for all functions")]
pub(super) fn relu_slope<F: Arith>(x: f32) -> f32 {
    let y = if x > 0.0 { 1.0 } else { 0.0 };
    if x.is_nan() { x } else { y }
}

/// x within ±`bound`; NaN stays.
#[inline(always)]
fn limit(x: f32, bound: f32) -> f32 {
    let x = if x > bound { bound } else { x };
    if x < -bound { -bound } else { x }
}
