//! What a tensor core makes of a row, a column and an accumulator: the one place that holds its arithmetic.
//!
//! Products are exact. They and the accumulator are aligned to the largest of their exponents and cut off (towards zero)
//! a fixed number of bits below it; the sum of what is left is exact and is rounded once. Where the inner length exceeds what
//! the core takes at a time, its result is the accumulator of the next piece. What is too large becomes infinity, also where
//! the rounding is towards zero; subnormal numbers count on both sides.
//!
//! | core | inputs | accumulator | at a time | bits kept | result |
//! |---|---|---|---|---|---|
//! | Ampere | tf32 | f32 | 4 | 24 | towards zero |
//! | Ampere | f16, bf16 | f32 | 8 | 24 | towards zero |
//! | Ampere | f16 | f16 | 8 | 24 | to nearest even |
//! | Hopper | tf32 | f32 | 8 | 25 | towards zero |
//! | Hopper | f16, bf16 | f32 | 16 | 25 | towards zero |
//! | Hopper | f16 | f16 | 16 | 25 | to nearest even |
//! | Hopper | e4m3, e5m2 | f32 | 32 | 13 | towards zero, to 13 bits of fraction |
//! | Hopper | e4m3, e5m2 | f16 | 32 | 13 | to nearest even |
//!
//! Source: Xie, Wang, Yang, Yang, MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix Cores, arXiv:2511.10909,
//! tables 3, 4 and 8 (found equal bit by bit to the hardware there); in agreement with Khattak and Mikaitis, Accurate Models of NVIDIA Tensor
//! Cores, arXiv:2512.07004, and Fasi, Higham, Mikaitis, Pranesh, Numerical Behavior of NVIDIA Tensor Cores, PeerJ Computer Science 7:e330.

use super::formats::{Format, Rounding, narrow, widen};
use super::{Misuse, Result};
use std::ops::Range;

/// A generation of tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Core {
    /// sm_80.
    Ampere,
    /// sm_90.
    Hopper,
}

/// The arithmetic of one kind of instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    input: [Format; 2],
    accumulator: Format,
    /// Products that are summed at once.
    at_a_time: usize,
    /// Bits below the largest exponent that alignment keeps.
    kept: i32,
    /// The exponent that a product or accumulator of zero counts as.
    zero_exponent: i32,
    /// Bits of an f32 result that are cleared.
    cleared: u32,
}

impl Rule {
    /// The arithmetic on inputs of the formats `a` and `b` with an accumulator of format `d`; `is_group` for `wgmma`.
    ///
    /// # Errors
    /// If the core has no such instruction.
    pub fn new(core: Core, a: Format, b: Format, d: Format, is_group: bool) -> Result<Rule> {
        let is_eight_bit = a.bits() == 8 && b.bits() == 8;
        let is_known = match (a, b, d) {
            (Format::F32, ..) | (_, Format::F32, _) => false,
            (Format::F16, Format::F16, Format::F16) => true,
            (_, _, Format::F16) => is_eight_bit && core == Core::Hopper,
            (_, _, Format::F32) => (a == b || is_eight_bit) && (!is_eight_bit || core == Core::Hopper),
            _ => false,
        };
        if !is_known {
            let (a, b, d) = (a.name(), b.name(), d.name());
            return Err(Misuse::new(format!("the matrix unit of {core:?} has no product of {a} and {b} into {d}")));
        }
        let (kept, bits_at_a_time) = match core {
            Core::Ampere => (24, 128),
            Core::Hopper => (25, 256),
        };
        let is_narrow = d == Format::F16 && !is_group && !is_eight_bit;
        Ok(Rule {
            input: [a, b],
            accumulator: d,
            at_a_time: bits_at_a_time / a.bits(),
            kept: if is_eight_bit { 13 } else { kept },
            zero_exponent: if is_narrow { 3 - kept } else { -108 - kept },
            cleared: if is_eight_bit && d == Format::F32 { 10 } else { 0 },
        })
    }

    /// The accumulator's bits after `c + a[0] b[0] + a[1] b[1] + ...`; `c` in the accumulator's format. The vectors have the
    /// same length, a multiple of 4.
    pub fn dot(&self, a: &Vector, b: &Vector, c: u32) -> u32 {
        if a.has_special || b.has_special || !widen(c, self.accumulator).is_finite() {
            return self.special(a, b, c);
        }
        let mut sum = c;
        for start in (0..a.len).step_by(self.at_a_time) {
            sum = self.fused(a, b, start..(start + self.at_a_time).min(a.len), sum);
            if !widen(sum, self.accumulator).is_finite() {
                break;
            }
        }
        sum
    }

    /// One piece: aligned, cut off, summed, rounded.
    fn fused(&self, a: &Vector, b: &Vector, piece: Range<usize>, c: u32) -> u32 {
        let addend = f64::from(widen(c, self.accumulator));
        let mut largest = exponent(c, self.accumulator);
        for (x, y) in a.exponents[piece.clone()].iter().zip(&b.exponents[piece.clone()]) {
            largest = largest.max(x + y);
        }
        let zeros = (a.zeros | b.zeros) >> piece.start & (u32::MAX >> (MOST - piece.len()));
        if addend == 0.0 || zeros != 0 {
            largest = largest.max(self.zero_exponent);
        }
        let unit = power_of_two(largest - self.kept);
        // All but the last bits of the addition are exact, so casting it to an integer of units is too.
        let sum = ((addend * power_of_two(self.kept - largest)) as i64) as f64 * unit;
        // Emulated kernels spend their time in this loop: no branch and no integer. Added to `round` a number loses what is below
        // one unit, to the nearest; half a unit less a little, which no product is as close to the next multiple as, makes that
        // a cut. The sum has units up to 2^33, so it is exact.
        let (half, round) = (unit * (0.5 - f64::EPSILON * (1 << 28) as f64), unit * 1.5 * (1i64 << 52) as f64);
        let (a, _) = a.values[piece.clone()].as_chunks::<4>();
        let (b, _) = b.values[piece].as_chunks::<4>();
        // Four sums, so that none waits for the one before; all are exact.
        let mut sums = [sum, 0.0, 0.0, 0.0];
        for (x, y) in a.iter().zip(b) {
            for i in 0..4 {
                let product = x[i] * y[i];
                sums[i] += (((product.abs() - half) + round) - round).copysign(product);
            }
        }
        self.round(sums[0] + sums[1] + (sums[2] + sums[3]))
    }

    /// An exact sum in the accumulator's format.
    fn round(&self, sum: f64) -> u32 {
        if sum == 0.0 {
            return 0;
        }
        if self.accumulator == Format::F16 {
            return narrow(sum, Format::F16, Rounding::Nearest, false, false);
        }
        let nearest = sum as f32;
        if nearest.is_infinite() {
            // Between the largest number and 2^128 the cut decides, which stays below.
            let is_past = sum.abs() >= power_of_two(128);
            return if is_past { nearest.to_bits() } else { nearest.to_bits() - 1 };
        }
        let is_above = f64::from(nearest).abs() > sum.abs();
        (nearest.to_bits() - u32::from(is_above)) >> self.cleared << self.cleared
    }

    /// What infinities and NaN give: as in IEEE arithmetic, NaN in its one form.
    fn special(&self, a: &Vector, b: &Vector, c: u32) -> u32 {
        let products = a.values[..a.len].iter().zip(&b.values).map(|(a, b)| a * b);
        // Finite products cannot overflow here, so only what is infinite or NaN from the start counts.
        let all = products.chain([f64::from(widen(c, self.accumulator))]).filter(|x| !x.is_finite());
        let sum: f64 = all.sum();
        narrow(sum, self.accumulator, Rounding::Nearest, false, false)
    }
}

/// 2 to the `exponent`, which is far from the ends of f64.
#[inline]
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The exponent that alignment sees: that of the number, for subnormal numbers the least one, for zero one that no product has.
#[inline]
fn exponent(bits: u32, format: Format) -> i32 {
    let (fraction, width) = match format {
        Format::Tf32 => (23, 32),
        other => (other.fraction(), other.bits()),
    };
    let magnitude = bits & (u32::MAX >> (33 - width));
    if magnitude == 0 { -2000 } else { ((magnitude >> fraction) as i32).max(1) - format.bias() }
}

/// The most elements of a row: eight-bit floats fill 32 bytes.
const MOST: usize = 32;

/// A row of A or a column of B, taken apart once for all the products that it is in.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    values: [f64; MOST],
    exponents: [i32; MOST],
    len: usize,
    /// A bit for each element that is zero.
    zeros: u32,
    /// Whether an element is infinite or NaN.
    has_special: bool,
}

impl Vector {
    /// A vector of `len` elements, at most 32, all to be [`put`](Vector::put).
    pub fn unset(len: usize) -> Vector {
        Vector { values: [0.0; MOST], exponents: [0; MOST], len: len.min(MOST), zeros: 0, has_special: false }
    }

    /// Sets element `index`, once, to the number in these bits, negated where `is_negated`.
    #[inline]
    pub fn put(&mut self, index: usize, bits: u32, format: Format, is_negated: bool) {
        let value = f64::from(widen(bits, format));
        let index = index % MOST;
        self.zeros |= u32::from(value == 0.0) << index;
        self.has_special |= !value.is_finite();
        self.values[index] = if is_negated { -value } else { value };
        let unused = if format == Format::Tf32 { 0x1fff } else { 0 };
        self.exponents[index] = exponent(bits & !unused, format);
    }

    /// The elements in these bits, at most 32; negated where `is_negated`.
    pub fn new(bits: impl IntoIterator<Item = u32>, format: Format, is_negated: bool) -> Vector {
        let mut all = Vector::unset(MOST);
        let mut len = 0;
        for bits in bits.into_iter().take(MOST) {
            all.put(len, bits, format, is_negated);
            len += 1;
        }
        Vector { len, ..all }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sequence;
    use super::*;

    fn bits(x: f64, format: Format) -> u32 {
        narrow(x, format, Rounding::Nearest, false, false)
    }

    fn dot(core: Core, input: Format, output: Format, a: &[f64], b: &[f64], c: f64) -> f32 {
        let rule = Rule::new(core, input, input, output, core == Core::Hopper).unwrap();
        let vector = |x: &[f64]| Vector::new(x.iter().map(|x| bits(*x, input)), input, false);
        widen(rule.dot(&vector(a), &vector(b), bits(c, output)), output)
    }

    #[test]
    fn the_published_example_comes_out_as_on_each_core() {
        // MMA-Sim, equation 10 and table 8: 2^23 - 2^23 - 0.5 - 0.25 - 0.125.
        let mut a = vec![0.0; 32];
        let mut b = vec![0.0; 32];
        a[..4].copy_from_slice(&[-8192.0, -0.5, -0.25, -0.125]);
        b[..4].copy_from_slice(&[1024.0, 1.0, 1.0, 1.0]);
        let run = |core, input, k: usize| dot(core, input, Format::F32, &a[..k], &b[..k], 8388608.0);
        assert_eq!(run(Core::Ampere, Format::F16, 16), -0.5);
        assert_eq!(run(Core::Ampere, Format::Bf16, 16), -0.5);
        assert_eq!(run(Core::Ampere, Format::Tf32, 8), -0.5);
        assert_eq!(run(Core::Hopper, Format::F16, 16), -0.75);
        assert_eq!(run(Core::Hopper, Format::E5m2, 32), 0.0);
    }

    /// The same by its definition, in f64 and with powers of two: an independent way to the same numbers.
    fn plain(a: &[f64], b: &[f64], c: f64, kept: i32, at_a_time: usize) -> f64 {
        let log2 = |x: f64| if x == 0.0 { -133 } else { (x.abs().to_bits() >> 52) as i32 - 1023 };
        let mut sum = c;
        for (a, b) in a.chunks(at_a_time).zip(b.chunks(at_a_time)) {
            let exponents = a.iter().zip(b).map(|(a, b)| if a * b == 0.0 { -133 } else { log2(*a) + log2(*b) });
            let largest = exponents.chain([log2(sum)]).max().unwrap();
            let unit = 2f64.powi(largest - kept);
            let terms = a.iter().zip(b).map(|(a, b)| a * b).chain([sum]);
            let exact: f64 = terms.map(|x| (x / unit).trunc()).sum::<f64>() * unit;
            let nearest = exact as f32;
            let is_above = f64::from(nearest).abs() > exact.abs();
            sum = f64::from(if is_above { f32::from_bits(nearest.to_bits() - 1) } else { nearest });
        }
        sum
    }

    #[test]
    fn random_dots_agree_with_the_definition_in_f64() {
        let mut numbers = Sequence(5);
        for round in 0..3000 {
            let input = [Format::Bf16, Format::F16, Format::Tf32][round % 3];
            let (core, kept, width) = if round % 2 == 0 { (Core::Ampere, 24, 128) } else { (Core::Hopper, 25, 256) };
            let mut number = || {
                let scale = 2f64.powi(numbers.below(14) as i32 - 7);
                let x = (numbers.below(4001) as f64 - 2000.0) / 1000.0 * scale;
                f64::from(widen(bits(x, input), input))
            };
            let a: Vec<f64> = (0..16).map(|_| number()).collect();
            let b: Vec<f64> = (0..16).map(|_| number()).collect();
            let c = f64::from((number() * 1.234) as f32);
            let expected = plain(&a, &b, c, kept, width / input.bits());
            assert_eq!(f64::from(dot(core, input, Format::F32, &a, &b, c)), expected, "{core:?} {input:?}");
        }
    }

    #[test]
    fn sums_of_small_integers_are_exact_in_every_format() {
        let mut numbers = Sequence(6);
        for input in [Format::F16, Format::Bf16, Format::Tf32, Format::E4m3, Format::E5m2] {
            for output in [Format::F32, Format::F16] {
                if output == Format::F16 && matches!(input, Format::Bf16 | Format::Tf32) {
                    continue;
                }
                for _ in 0..200 {
                    let mut list = || -> Vec<f64> { (0..32).map(|_| f64::from(numbers.small(3))).collect() };
                    let (a, b) = (list(), list());
                    let c = f64::from(numbers.small(100));
                    let expected = a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>() + c;
                    assert_eq!(f64::from(dot(Core::Hopper, input, output, &a, &b, c)), expected);
                }
            }
        }
    }

    #[test]
    fn infinities_and_nan_are_as_in_ieee_arithmetic() {
        let run = |a: [f64; 4], b: [f64; 4], c| dot(Core::Hopper, Format::F16, Format::F32, &a, &b, c);
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        assert_eq!(run([inf, 1.0, 0.0, 0.0], [1.0; 4], 5.0), f32::INFINITY);
        assert_eq!(run([-inf, 1.0, 0.0, 0.0], [1.0; 4], 5.0), f32::NEG_INFINITY);
        assert!(run([inf, -inf, 0.0, 0.0], [1.0; 4], 0.0).is_nan());
        assert!(run([inf, 0.0, 0.0, 0.0], [0.0; 4], 0.0).is_nan());
        assert!(run([inf, 0.0, 0.0, 0.0], [1.0; 4], -inf).is_nan());
        assert!(run([1.0; 4], [1.0; 4], nan).is_nan());
        assert_eq!(run([1.0; 4], [1.0; 4], -inf), f32::NEG_INFINITY);
        // Finite inputs whose sum is past the range of the accumulator.
        let half = dot(Core::Hopper, Format::F16, Format::F16, &[60000.0; 4], &[1.0; 4], 0.0);
        assert_eq!(half, f32::INFINITY);
        let single = dot(Core::Ampere, Format::Bf16, Format::F32, &[3e38; 8], &[1.0; 8], 0.0);
        assert_eq!(single, f32::INFINITY);
        let rule = Rule::new(Core::Hopper, Format::F16, Format::F16, Format::F32, true).unwrap();
        let one = Vector::new([0x7e01; 4], Format::F16, false);
        assert_eq!(rule.dot(&one, &one, 0), 0x7fff_ffff);
    }

    #[test]
    fn subnormal_numbers_count() {
        let tiny = f64::from(half::f16::from_bits(1).to_f32());
        assert_eq!(
            f64::from(dot(Core::Ampere, Format::F16, Format::F32, &[tiny; 8], &[tiny; 8], 0.0)),
            8.0 * tiny * tiny
        );
        let least = f64::from(f32::from_bits(1));
        assert_eq!(f64::from(dot(Core::Hopper, Format::Bf16, Format::F32, &[0.0; 8], &[0.0; 8], least)), least);
    }

    #[test]
    fn what_a_core_does_not_have_is_refused() {
        let new = |core, a, b, d| Rule::new(core, a, b, d, false);
        assert!(new(Core::Ampere, Format::E4m3, Format::E4m3, Format::F32).is_err());
        assert!(new(Core::Hopper, Format::E4m3, Format::E5m2, Format::F32).is_ok());
        assert!(new(Core::Hopper, Format::F16, Format::Bf16, Format::F32).is_err());
        let words = new(Core::Hopper, Format::Bf16, Format::Bf16, Format::F16).unwrap_err();
        assert!(words.words().contains("Hopper has no product of bf16 and bf16 into f16"));
    }
}
