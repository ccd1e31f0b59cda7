//! `wgmma.mma_async`: four warps multiply 64 rows of A, from registers or shared memory, with B from shared memory.
//!
//! The four warps share B and each has 16 rows of A and D, so the model works warp by warp. When the work is done between the
//! instruction and its wait is the matter of whoever calls.

use super::accumulate::{Core, Rule, Vector};
use super::descriptor::Descriptor;
use super::formats::Format;
use super::matrix::{per_register, place_in_a, place_in_d};
use super::mma::{for_each_part, shape};
use super::{Lanes, Misuse, Result, Space, WARP};

/// A form of `wgmma.mma_async`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgmma {
    n: usize,
    k: usize,
    a: Format,
    b: Format,
    d: Format,
    rule: Rule,
}

/// Where A comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The matrix that a descriptor describes.
    Shared(u64),
    /// Four registers of the warp, laid out as the A of `mma.sync` with 16 rows.
    Registers(&'a [Lanes]),
}

/// The operands after the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether D adds to the accumulator: `scale-d`.
    pub is_accumulating: bool,
    /// Whether A is negated: `imm-scale-a` is -1.
    pub is_a_negated: bool,
    /// Whether B is negated: `imm-scale-b` is -1.
    pub is_b_negated: bool,
    /// Whether A lies along M in shared memory: `imm-trans-a` is 1.
    pub is_a_mn_major: bool,
    /// Whether B lies along N in shared memory: `imm-trans-b` is 1.
    pub is_b_mn_major: bool,
}

impl Options {
    /// Adds to the accumulator, nothing negated, both operands K-major.
    pub const PLAIN: Options = Options {
        is_accumulating: true,
        is_a_negated: false,
        is_b_negated: false,
        is_a_mn_major: false,
        is_b_mn_major: false,
    };
}

/// Rows of A and D that a warp has.
const ROWS: usize = 16;
/// Bytes of a row of A or column of B along K, in every form.
const ROW_BYTES: usize = 32;

impl Wgmma {
    /// The form of the modifiers after `wgmma`: `["mma_async", "sync", "aligned", "m64n64k16", "f32", "bf16", "bf16"]`.
    ///
    /// # Errors
    /// If the form is not known here: sparse, integer and single-bit products are not.
    pub fn parse(modifiers: &[&str]) -> Result<Wgmma> {
        let refuse = || Misuse::new(format!("wgmma.{}: this form is not known to the emulator", modifiers.join(".")));
        let rest: Vec<&str> =
            modifiers.iter().copied().filter(|m| !["mma_async", "sync", "aligned"].contains(m)).collect();
        let &[size, d, a, b] = rest.as_slice() else { return Err(refuse()) };
        let (m, n, k) = shape(size).ok_or_else(refuse)?;
        let format = |name| Format::parse(name).ok_or_else(refuse);
        let (d, a, b) = (format(d)?, format(a)?, format(b)?);
        let rule = Rule::new(Core::Hopper, a, b, d, true).map_err(|_| refuse())?;
        let is_shape = m == 64 && n.is_multiple_of(8) && (8..=256).contains(&n) && k * a.bits() == 8 * ROW_BYTES;
        if !is_shape {
            return Err(refuse());
        }
        Ok(Wgmma { n, k, a, b, d, rule })
    }

    /// Columns of B and D.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Registers of D that a lane holds.
    pub fn accumulators(&self) -> usize {
        ROWS * self.n / WARP / per_register(self.d.bits())
    }

    /// Multiplications and additions of one warp's quarter.
    pub fn flops(&self) -> u64 {
        2 * (ROWS * self.n * self.k) as u64
    }

    /// The type of A's elements, for counters.
    pub fn kind(&self) -> &'static str {
        self.a.name()
    }

    /// The part of warp `warp` (0 to 3) of the group: `d` becomes A B, plus `d` where the options say so.
    ///
    /// # Errors
    /// If a descriptor, the options or the number of registers do not fit the form, or `shared` refuses an address.
    pub fn execute(
        &self,
        warp: usize,
        a: Source<'_>,
        b: u64,
        options: Options,
        d: &mut [Lanes],
        shared: &mut dyn Space,
    ) -> Result<()> {
        if d.len() != self.accumulators() || warp >= 4 {
            let (expected, found) = (self.accumulators(), d.len());
            return Err(Misuse::new(format!(
                "wgmma: expected {expected} registers of D, found {found}, of warp {warp}"
            )));
        }
        let columns = self.columns(b, options, shared)?;
        let rows = match a {
            Source::Shared(word) => self.rows(word, warp, options, shared)?,
            Source::Registers(registers) => self.rows_of_registers(registers, options)?,
        };
        self.accumulate(&rows, &columns, options.is_accumulating, d);
        Ok(())
    }

    /// All columns of B: the same for the four warps.
    ///
    /// # Errors
    /// As [`Wgmma::execute`].
    pub fn columns(&self, b: u64, options: Options, shared: &mut dyn Space) -> Result<Vec<Vector>> {
        let mut columns = vec![Vector::unset(self.k); self.n];
        load(Descriptor::decode(b)?, 0, &mut columns, self.b, [options.is_b_mn_major, options.is_b_negated], shared)?;
        Ok(columns)
    }

    /// The warp's rows of A from shared memory.
    ///
    /// # Errors
    /// As [`Wgmma::execute`].
    pub fn rows(&self, a: u64, warp: usize, options: Options, shared: &mut dyn Space) -> Result<Vec<Vector>> {
        let mut rows = vec![Vector::unset(self.k); ROWS];
        let first = warp * ROWS;
        load(Descriptor::decode(a)?, first, &mut rows, self.a, [options.is_a_mn_major, options.is_a_negated], shared)?;
        Ok(rows)
    }

    /// The warp's rows of A from its registers.
    ///
    /// # Errors
    /// If there are not four, or the options call for a transposed A.
    pub fn rows_of_registers(&self, a: &[Lanes], options: Options) -> Result<Vec<Vector>> {
        if a.len() != 4 || options.is_a_mn_major {
            let found = a.len();
            return Err(Misuse::new(format!("wgmma: expected A in 4 registers, along K, found {found} registers")));
        }
        let mut rows = vec![Vector::unset(self.k); ROWS];
        for_each_part(a, self.a.bits(), |lane, register, part, value| {
            let (row, k) = place_in_a(ROWS, per_register(self.a.bits()), lane, register, part);
            rows[row].put(k, value as u32, self.a, options.is_a_negated);
        });
        Ok(rows)
    }

    /// D of one warp from its rows and all columns.
    pub fn accumulate(&self, rows: &[Vector], columns: &[Vector], is_accumulating: bool, d: &mut [Lanes]) {
        let (bits, per) = (self.d.bits(), per_register(self.d.bits()));
        let mask = u64::MAX >> (64 - bits);
        for (register, lanes) in d.iter_mut().enumerate() {
            for (lane, value) in lanes.iter_mut().enumerate() {
                let mut packed = 0;
                for part in 0..per {
                    let (row, column) = place_in_d(per, lane, register, part);
                    let c = if is_accumulating { *value >> (bits * part) & mask } else { 0 };
                    packed |= u64::from(self.rule.dot(&rows[row], &columns[column], c as u32)) << (bits * part);
                }
                *value = packed;
            }
        }
    }
}

/// Reads rows `first` and up of a matrix in shared memory, all of K.
fn load(
    matrix: Descriptor,
    first: usize,
    rows: &mut [Vector],
    format: Format,
    [is_mn_major, is_negated]: [bool; 2],
    shared: &mut dyn Space,
) -> Result<()> {
    let width = format.bits() / 8;
    let in_piece = 16 / width;
    let element = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let mut bytes = [0; 16];
    if !is_mn_major {
        for (i, row) in rows.iter_mut().enumerate() {
            for piece in 0..ROW_BYTES / 16 {
                shared.read(matrix.piece_along_k((first + i) as u64, piece as u64), &mut bytes)?;
                for (k, part) in bytes.chunks_exact(width).enumerate() {
                    row.put(piece * in_piece + k, element(part), format, is_negated);
                }
            }
        }
        return Ok(());
    }
    if width != 2 {
        let name = format.name();
        return Err(Misuse::new(format!("wgmma: {name} must lie along K; only 16-bit elements may be transposed")));
    }
    for (piece, rows) in rows.chunks_exact_mut(in_piece).enumerate() {
        for k in 0..ROW_BYTES / width {
            shared.read(matrix.piece_along_mn((first / in_piece + piece) as u64, k as u64), &mut bytes)?;
            for (row, part) in rows.iter_mut().zip(bytes.chunks_exact(width)) {
                row.put(k, element(part), format, is_negated);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
