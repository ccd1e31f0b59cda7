//! `mma.sync`: products of fragments in the registers of one warp.

use super::accumulate::{Core, Rule, Vector};
use super::formats::Format;
use super::matrix::{per_register, place_in_a, place_in_b, place_in_d};
use super::{Lanes, Misuse, Result, WARP};

/// Type of the elements of A or B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A float format.
    Float(Format),
    /// IEEE double precision.
    F64,
    /// Signed bytes.
    S8,
    /// Unsigned bytes.
    U8,
}

impl Element {
    /// The element of a type's name.
    pub fn parse(name: &str) -> Option<Element> {
        Some(match name {
            "f64" => Element::F64,
            "s8" => Element::S8,
            "u8" => Element::U8,
            _ => Element::Float(Format::parse(name).filter(|f| *f != Format::F32)?),
        })
    }

    /// Its name in PTX.
    pub fn name(self) -> &'static str {
        match self {
            Element::Float(format) => format.name(),
            Element::F64 => "f64",
            Element::S8 => "s8",
            Element::U8 => "u8",
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> usize {
        match self {
            Element::Float(format) => format.bits(),
            Element::F64 => 64,
            Element::S8 | Element::U8 => 8,
        }
    }

    /// The integer in the low byte, for integer elements.
    pub(crate) fn integer(self, bits: u32) -> i32 {
        if self == Element::S8 { i32::from(bits as u8 as i8) } else { i32::from(bits as u8) }
    }
}

/// A form of `mma.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {
    m: usize,
    k: usize,
    a: Element,
    b: Element,
    /// Name of the accumulator's type: `f32`, `f16`, `s32` or `f64`.
    d: &'static str,
    is_saturating: bool,
}

/// Columns of B: the same in every form.
const N: usize = 8;

impl Mma {
    /// The form of the modifiers after `mma`: `["sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"]`.
    ///
    /// # Errors
    /// If the form is not known here: sparse, block-scaled, sub-byte and single-bit products are not.
    pub fn parse(modifiers: &[&str]) -> Result<Mma> {
        let refuse = || Misuse::new(format!("mma.{}: this form is not known to the emulator", modifiers.join(".")));
        let mut rest = modifiers.iter().copied().filter(|m| !["sync", "aligned", "row", "col"].contains(m));
        let (m, n, k) = rest.next().and_then(shape).ok_or_else(refuse)?;
        let rest: Vec<&str> = rest.collect();
        let (is_saturating, types) = match rest.split_first() {
            Some((&"satfinite", types)) => (true, types),
            _ => (false, rest.as_slice()),
        };
        let &[d, a, b, c] = types else { return Err(refuse()) };
        let (a, b) = (Element::parse(a).ok_or_else(refuse)?, Element::parse(b).ok_or_else(refuse)?);
        let d = ["f32", "f16", "s32", "f64"].into_iter().find(|name| *name == d && d == c).ok_or_else(refuse)?;
        let is_row_col = modifiers.contains(&"row") && modifiers.contains(&"col");
        // What A holds in a row, in bits, tells the shapes of each type.
        let is_shape = match a {
            Element::F64 => (m == 8 && k == 4) || (m == 16 && [4, 8, 16].contains(&k)),
            Element::S8 | Element::U8 => (m == 8 && k == 16) || (m == 16 && [16, 32].contains(&k)),
            Element::Float(format) => m == 16 && [128, 256].contains(&(k * format.bits())),
        };
        let is_typed = match (a, b) {
            (Element::F64, Element::F64) => d == "f64",
            (Element::S8 | Element::U8, Element::S8 | Element::U8) => d == "s32",
            (Element::Float(x), Element::Float(y)) => {
                let d = Format::parse(d).ok_or_else(refuse)?;
                Rule::new(Core::Hopper, x, y, d, false).is_ok()
            }
            _ => false,
        };
        if n != N || !is_row_col || !is_shape || !is_typed || (is_saturating && d != "s32") {
            return Err(refuse());
        }
        Ok(Mma { m, k, a, b, d, is_saturating })
    }

    /// Registers of A, B and C (and D) that a lane holds.
    pub fn registers(&self) -> [usize; 3] {
        let count = |elements: usize, bits| elements / WARP / per_register(bits);
        [
            count(self.m * self.k, self.a.bits()),
            count(N * self.k, self.b.bits()),
            count(self.m * N, self.accumulator_bits()),
        ]
    }

    /// Multiplications and additions of one instruction.
    pub fn flops(&self) -> u64 {
        2 * (self.m * N * self.k) as u64
    }

    /// The type of A's elements, for counters.
    pub fn kind(&self) -> &'static str {
        self.a.name()
    }

    /// D = A B + C, from and to the registers of a warp.
    ///
    /// # Errors
    /// If the number of registers is not that of the form, or the core has no such product.
    pub fn execute(&self, core: Core, a: &[Lanes], b: &[Lanes], c: &[Lanes]) -> Result<Vec<Lanes>> {
        let (expected, found) = (self.registers(), [a.len(), b.len(), c.len()]);
        if expected != found {
            return Err(Misuse::new(format!("mma: expected {expected:?} registers of A, B and C, found {found:?}")));
        }
        if let (Element::Float(x), Element::Float(y)) = (self.a, self.b) {
            let rule = Rule::new(core, x, y, if self.d == "f16" { Format::F16 } else { Format::F32 }, false)?;
            let (mut rows, mut columns) = ([Vector::unset(self.k); 16], [Vector::unset(self.k); N]);
            self.each_of_a(a, |row, k, bits| rows[row].put(k, bits as u32, x, false));
            self.each_of_b(b, |k, column, bits| columns[column].put(k, bits as u32, y, false));
            return Ok(self.each(c, |row, column, c| u64::from(rule.dot(&rows[row], &columns[column], c as u32))));
        }
        let (mut rows, mut columns) = (vec![vec![0; self.k]; self.m], vec![vec![0; self.k]; N]);
        self.each_of_a(a, |row, k, bits| rows[row][k] = bits);
        self.each_of_b(b, |k, column, bits| columns[column][k] = bits);
        match self.a {
            Element::F64 => Ok(self.each(c, |row, column, c| {
                // A chain of fused operations in the order of k, each rounded to nearest (arXiv:2511.10909, table 3).
                let pairs = rows[row].iter().zip(&columns[column]);
                pairs.fold(f64::from_bits(c), |c, (a, b)| f64::from_bits(*a).mul_add(f64::from_bits(*b), c)).to_bits()
            })),
            _ => Ok(self.each(c, |row, column, c| {
                let pairs = rows[row].iter().zip(&columns[column]);
                let products = pairs.map(|(a, b)| i64::from(self.a.integer(*a as u32) * self.b.integer(*b as u32)));
                let sum = i64::from(c as u32 as i32) + products.sum::<i64>();
                let sum = if self.is_saturating { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { sum };
                u64::from(sum as u32)
            })),
        }
    }

    fn accumulator_bits(&self) -> usize {
        match self.d {
            "f64" => 64,
            "f16" => 16,
            _ => 32,
        }
    }

    /// Calls `f(row, k, bits)` for every element of A.
    fn each_of_a(&self, a: &[Lanes], mut f: impl FnMut(usize, usize, u64)) {
        let per = per_register(self.a.bits());
        for_each_part(a, self.a.bits(), |lane, register, part, value| {
            let (row, k) = place_in_a(self.m, per, lane, register, part);
            f(row, k, value);
        });
    }

    /// Calls `f(k, column, bits)` for every element of B.
    fn each_of_b(&self, b: &[Lanes], mut f: impl FnMut(usize, usize, u64)) {
        let per = per_register(self.b.bits());
        for_each_part(b, self.b.bits(), |lane, register, part, value| {
            let (k, column) = place_in_b(per, lane, register, part);
            f(k, column, value);
        });
    }

    /// Replaces every element of the accumulator by `f(row, column, element)`.
    fn each(&self, c: &[Lanes], mut f: impl FnMut(usize, usize, u64) -> u64) -> Vec<Lanes> {
        let bits = self.accumulator_bits();
        let per = per_register(bits);
        let mut d = vec![[0; WARP]; c.len()];
        for_each_part(c, bits, |lane, register, part, value| {
            let (row, column) = place_in_d(per, lane, register, part);
            d[register][lane] |= f(row, column, value) << (bits * part);
        });
        d
    }
}

/// Calls `f(lane, register, part, bits)` for every element of a fragment.
pub(crate) fn for_each_part(registers: &[Lanes], bits: usize, mut f: impl FnMut(usize, usize, usize, u64)) {
    let mask = u64::MAX >> (64 - bits);
    for (register, lanes) in registers.iter().enumerate() {
        for (lane, value) in lanes.iter().enumerate() {
            for part in 0..per_register(bits) {
                f(lane, register, part, value >> (bits * part) & mask);
            }
        }
    }
}

/// M, N and K of a shape's name: `m16n8k16`.
pub(crate) fn shape(name: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = name.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::formats::{Rounding, narrow, widen};
    use super::super::samples::Sequence;
    use super::*;

    fn parse(text: &str) -> Result<Mma> {
        Mma::parse(&text.split('.').collect::<Vec<_>>())
    }

    /// Bits of a small integer in an element's type.
    fn encode(x: f32, element: Element) -> u64 {
        match element {
            Element::Float(format) => u64::from(narrow(f64::from(x), format, Rounding::Nearest, false, false)),
            Element::F64 => f64::from(x).to_bits(),
            Element::S8 | Element::U8 => u64::from(x as i32 as u8),
        }
    }

    fn decode(bits: u64, d: &str) -> f64 {
        match d {
            "f32" => f64::from(f32::from_bits(bits as u32)),
            "f16" => f64::from(widen(bits as u32, Format::F16)),
            "s32" => f64::from(bits as u32 as i32),
            _ => f64::from_bits(bits),
        }
    }

    /// Packs a matrix whose element at `(i, j)` is `at(i, j)` by the lists of the manual, written out by hand for each width.
    fn pack_a(m: usize, k: usize, bits: usize, at: impl Fn(usize, usize) -> u64) -> Vec<Lanes> {
        let mut out = Vec::new();
        let wide = 128 / bits.min(32);
        for half_k in 0..k.div_ceil(wide) {
            for half_m in 0..m / 8 {
                out.push(std::array::from_fn(|lane| {
                    let per = if bits == 64 { 1 } else { 32 / bits };
                    (0..per).map(|p| at(lane / 4 + 8 * half_m, half_k * wide + lane % 4 * per + p) << (bits * p)).sum()
                }));
            }
        }
        out
    }

    #[test]
    fn products_of_integers_equal_plain_ones_in_every_form() {
        let mut numbers = Sequence(7);
        let forms = [
            "m16n8k16.row.col.f32.bf16.bf16.f32",
            "m16n8k16.row.col.f32.f16.f16.f32",
            "m16n8k16.row.col.f16.f16.f16.f16",
            "m16n8k8.row.col.f32.bf16.bf16.f32",
            "m16n8k8.row.col.f32.f16.f16.f32",
            "m16n8k8.row.col.f16.f16.f16.f16",
            "m16n8k4.row.col.f32.tf32.tf32.f32",
            "m16n8k8.row.col.f32.tf32.tf32.f32",
            "m16n8k32.row.col.f32.e4m3.e5m2.f32",
            "m16n8k32.row.col.f16.e4m3.e4m3.f16",
            "m16n8k16.row.col.satfinite.s32.s8.u8.s32",
            "m16n8k32.row.col.s32.u8.s8.s32",
            "m8n8k16.row.col.s32.s8.s8.s32",
            "m8n8k4.row.col.f64.f64.f64.f64",
            "m16n8k8.row.col.f64.f64.f64.f64",
            "m16n8k16.row.col.f64.f64.f64.f64",
        ];
        for form in forms {
            let mma = parse(&format!("sync.aligned.{form}")).unwrap();
            let unsigned = |e: Element, x: f32| if e == Element::U8 { x.abs() } else { x };
            let a: Vec<Vec<f32>> =
                (0..mma.m).map(|_| (0..mma.k).map(|_| unsigned(mma.a, numbers.small(4))).collect()).collect();
            let b: Vec<Vec<f32>> =
                (0..mma.k).map(|_| (0..8).map(|_| unsigned(mma.b, numbers.small(4))).collect()).collect();
            let c: Vec<Vec<f32>> = (0..mma.m).map(|_| (0..8).map(|_| numbers.small(50)).collect()).collect();
            let fragment_a = pack_a(mma.m, mma.k, mma.a.bits(), |i, k| encode(a[i][k], mma.a));
            // B is packed as the rows of its transpose.
            let fragment_b = pack_a(8, mma.k, mma.b.bits(), |j, k| encode(b[k][j], mma.b));
            let encode_c = |x: f32| match mma.d {
                "f32" => u64::from(x.to_bits()),
                "f16" => encode(x, Element::Float(Format::F16)),
                "s32" => u64::from(x as i32 as u32),
                _ => f64::from(x).to_bits(),
            };
            let (per, bits) = (per_register(mma.accumulator_bits()), mma.accumulator_bits());
            let place = |lane: usize, e: usize| (lane / 4 + 8 * (e / 2), lane % 4 * 2 + e % 2);
            let fragment_c: Vec<Lanes> = (0..mma.registers()[2])
                .map(|r| {
                    std::array::from_fn(|lane| {
                        let element = |p| place(lane, r * per + p);
                        (0..per).map(|p| encode_c(c[element(p).0][element(p).1]) << (bits * p)).sum()
                    })
                })
                .collect();
            let d = mma.execute(Core::Hopper, &fragment_a, &fragment_b, &fragment_c).unwrap();
            for lane in 0..WARP {
                for e in 0..d.len() * per {
                    let (i, j) = place(lane, e);
                    let expected = (0..mma.k).map(|k| a[i][k] * b[k][j]).sum::<f32>() + c[i][j];
                    let bits = d[e / per][lane] >> (bits * (e % per)) & (u64::MAX >> (64 - bits));
                    assert_eq!(decode(bits, mma.d), f64::from(expected), "{form} ({i}, {j})");
                }
            }
            assert_eq!(mma.flops(), 2 * (mma.m * 8 * mma.k) as u64);
        }
    }

    #[test]
    fn integer_sums_saturate_only_where_asked() {
        let run = |form: &str| {
            let mma = parse(form).unwrap();
            let ones = [u64::from(0x7f7f_7f7fu32); WARP];
            let c = [u64::from(i32::MAX as u32); WARP];
            mma.execute(Core::Ampere, &[ones; 2], &[ones], &[c; 4]).unwrap()[0][0] as u32 as i32
        };
        assert_eq!(run("m16n8k16.row.col.satfinite.s32.s8.s8.s32"), i32::MAX);
        assert_eq!(run("m16n8k16.row.col.s32.s8.s8.s32"), i32::MAX.wrapping_add(16 * 127 * 127));
    }

    #[test]
    fn forms_that_do_not_exist_are_refused_by_name() {
        for wrong in [
            "sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
            "sync.aligned.m16n8k16.row.row.f32.f16.f16.f32",
            "sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
            "sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
            "sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
            "sync.aligned.m16n8k64.row.col.s32.s4.s4.s32",
            "sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
            "sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32",
            "sync.aligned",
        ] {
            let words = parse(wrong).unwrap_err();
            assert!(words.words().starts_with(&format!("mma.{wrong}: ")), "{words}");
        }
        let mma = parse("sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32").unwrap();
        let words = mma.execute(Core::Ampere, &[[0; WARP]; 4], &[[0; WARP]; 2], &[[0; WARP]; 4]).unwrap_err();
        assert!(words.words().contains("Ampere has no product"));
        let words = mma.execute(Core::Hopper, &[[0; WARP]; 3], &[[0; WARP]; 2], &[[0; WARP]; 4]).unwrap_err();
        assert!(words.words().contains("expected [4, 2, 4]"), "{words}");
    }
}
