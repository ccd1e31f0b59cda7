//! Vector arithmetic: how operands of 64 lanes are read and results written; the instructions are in the modules below.
//!
//! Every instruction computes all lanes and writes those that are on: the functions are pure, and loops over whole
//! registers become vector code of the host.

mod bits;
mod compare;
mod convert;
mod cross;
mod double;
mod half;
mod integer;
mod packed;
mod shuffle;
mod single;
mod special;

use super::decode::Op;
use super::float::{f16_to_f32, flush16, flush32, flush64};
use super::micro::{Handler, Micro, Shuffle, Source};
use super::wave::{LANES, Lanes, Mode, Wave, Wide};

/// The function of a vector instruction, if it is one.
pub(super) fn handler(op: Op) -> Option<Handler> {
    None.or_else(|| integer::handler(op))
        .or_else(|| bits::handler(op))
        .or_else(|| single::handler(op))
        .or_else(|| special::handler(op))
        .or_else(|| half::handler(op))
        .or_else(|| double::handler(op))
        .or_else(|| packed::handler(op))
        .or_else(|| convert::handler(op))
        .or_else(|| cross::handler(op))
}

pub(super) use compare::handler as compare_handler;

const SIGN: u32 = 0x8000_0000;

/// Reading operands and writing results with the modifiers of the instruction.
impl Wave {
    /// Source `i` as bits, without modifiers of sign.
    #[inline]
    pub(super) fn bits(&self, m: &Micro, i: usize) -> Lanes {
        let raw = self.lanes(m.src[i]);
        match m.shuffle {
            Shuffle::None => raw,
            _ => shuffle::source(self, m, i, &raw),
        }
    }

    /// Source `i` in single precision.
    #[inline]
    pub(super) fn singles(&self, m: &Micro, i: usize) -> [f32; LANES] {
        if let (Source::Vector(r), Shuffle::None, 0, false) = (m.src[i], m.shuffle, m.abs | m.neg, self.mode.flush_in32)
        {
            return bytemuck::cast(self.v[usize::from(r)]);
        }
        let mut x = self.bits(m, i);
        sign(&mut x, m, i, SIGN);
        if self.mode.flush_in32 {
            x = x.map(flush32);
        }
        x.map(f32::from_bits)
    }

    /// Source `i` as the low half, or the high one where op_sel says so.
    #[inline]
    pub(super) fn halves(&self, m: &Micro, i: usize) -> Lanes {
        let mut x = self.bits(m, i);
        if m.op_sel >> i & 1 == 1 && !matches!(m.src[i], super::micro::Source::Constant(_)) {
            x = x.map(|x| x >> 16);
        }
        x.map(|x| x & 0xffff)
    }

    /// Source `i` in half precision, widened.
    #[inline]
    pub(super) fn halves_f32(&self, m: &Micro, i: usize) -> [f32; LANES] {
        let mut x = self.halves(m, i);
        sign(&mut x, m, i, 0x8000);
        if self.mode.flush_in64 {
            x = x.map(|x| u32::from(flush16(x as u16)));
        }
        x.map(|x| f16_to_f32(x as u16))
    }

    /// Source `i` in double precision.
    #[inline]
    pub(super) fn doubles(&self, m: &Micro, i: usize) -> [f64; LANES] {
        let mut x = self.wide(m.src[i]);
        if m.abs >> i & 1 == 1 {
            x = x.map(|x| x & !(1 << 63));
        }
        if m.neg >> i & 1 == 1 {
            x = x.map(|x| x ^ 1 << 63);
        }
        if self.mode.flush_in64 {
            x = x.map(flush64);
        }
        x.map(f64::from_bits)
    }

    /// Writes 32-bit results.
    #[inline]
    pub(super) fn put32(&mut self, m: &Micro, out: &Lanes) {
        match m.shuffle {
            Shuffle::None => self.put(m.dst, out),
            _ => shuffle::put(self, m, out),
        }
    }

    /// Writes single-precision results: output modifier, flush, clamp.
    #[inline]
    pub(super) fn put_singles(&mut self, m: &Micro, out: &mut Lanes) {
        if m.omod != 0 || m.clamp || self.mode.flush_out32 {
            finish32(m, &self.mode, out);
        }
        self.put32(m, out);
    }

    /// Writes double-precision results.
    #[inline]
    pub(super) fn put_doubles(&mut self, m: &Micro, out: &mut Wide) {
        if m.omod != 0 || m.clamp || self.mode.flush_out64 {
            finish64(m, &self.mode, out);
        }
        self.put_wide(m.dst, out);
    }

    /// Writes half-precision results; `keeps` leaves the other half of the register as it is.
    #[inline]
    pub(super) fn put_halves(&mut self, m: &Micro, out: &mut Lanes, keeps: bool) {
        if m.omod != 0 || m.clamp || self.mode.flush_out64 {
            finish16(m, &self.mode, out);
        }
        self.put16(m, out, keeps);
    }

    /// Writes 16-bit results to the low half, or to the high one where op_sel says so; the other half of the register is
    /// zeroed, or kept where the high half is written or the instruction `keeps` it.
    pub(super) fn put16(&mut self, m: &Micro, out: &Lanes, keeps: bool) {
        if m.op_sel & 8 != 0 {
            let old = self.v[usize::from(m.dst)];
            let merged: Lanes = std::array::from_fn(|l| old[l] & 0xffff | out[l] << 16);
            self.put32(m, &merged);
        } else if keeps && matches!(m.shuffle, Shuffle::None) {
            let old = self.v[usize::from(m.dst)];
            let merged: Lanes = std::array::from_fn(|l| old[l] & 0xffff_0000 | out[l] & 0xffff);
            self.put32(m, &merged);
        } else {
            self.put32(m, &out.map(|x| x & 0xffff));
        }
    }
}

/// Clears and flips the sign of a source.
#[inline]
fn sign(x: &mut Lanes, m: &Micro, i: usize, sign: u32) {
    if m.abs >> i & 1 == 1 {
        x.iter_mut().for_each(|x| *x &= !sign);
    }
    if m.neg >> i & 1 == 1 {
        x.iter_mut().for_each(|x| *x ^= sign);
    }
}

fn omod(m: &Micro) -> f32 {
    [1.0, 2.0, 4.0, 0.5][usize::from(m.omod & 3)]
}

#[cold]
fn finish32(m: &Micro, mode: &Mode, out: &mut Lanes) {
    let factor = omod(m);
    for x in out.iter_mut() {
        let mut y = f32::from_bits(*x);
        if m.omod != 0 {
            // The output modifier works without subnormals.
            y = f32::from_bits(flush32((y * factor).to_bits()));
        }
        if m.clamp {
            y = if y.is_nan() && mode.clamps_nan { 0.0 } else { clamp(y) };
        }
        *x = if mode.flush_out32 { flush32(y.to_bits()) } else { y.to_bits() };
    }
}

/// Into [0, 1]; minus zero becomes plus zero.
#[allow(clippy::manual_clamp, reason = "it would keep minus zero")]
fn clamp(y: f32) -> f32 {
    if y <= 0.0 {
        0.0
    } else if y > 1.0 {
        1.0
    } else {
        y
    }
}

#[cold]
fn finish16(m: &Micro, mode: &Mode, out: &mut Lanes) {
    for x in out.iter_mut() {
        let mut y = f16_to_f32(*x as u16);
        if m.omod != 0 {
            y *= omod(m);
        }
        if m.clamp {
            y = if y.is_nan() && mode.clamps_nan { 0.0 } else { clamp(y) };
        }
        if m.omod != 0 || m.clamp {
            *x = u32::from(super::float::f32_to_f16(y));
        }
        if mode.flush_out64 {
            *x = u32::from(flush16(*x as u16));
        }
    }
}

#[cold]
fn finish64(m: &Micro, mode: &Mode, out: &mut Wide) {
    for x in out.iter_mut() {
        let mut y = f64::from_bits(*x);
        if m.omod != 0 {
            y *= f64::from(omod(m));
        }
        if m.clamp {
            y = if y.is_nan() && mode.clamps_nan || y <= 0.0 { 0.0 } else { y.min(1.0) };
        }
        *x = if mode.flush_out64 { flush64(y.to_bits()) } else { y.to_bits() };
    }
}

/// Handlers of 32-bit integer instructions with one, two and three sources.
macro_rules! integer {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.bits(m, 0);
            let mut out = [0; LANES];
            for l in 0..LANES {
                let $a: u32 = a[l];
                out[l] = $body;
            }
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
    (|$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.bits(m, 0), w.bits(m, 1));
            let mut out = [0; LANES];
            for l in 0..LANES {
                let ($a, $b): (u32, u32) = (a[l], b[l]);
                out[l] = $body;
            }
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
    (|$a:ident, $b:ident, $c:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b, c) = (w.bits(m, 0), w.bits(m, 1), w.bits(m, 2));
            let mut out = [0; LANES];
            for l in 0..LANES {
                let ($a, $b, $c): (u32, u32, u32) = (a[l], b[l], c[l]);
                out[l] = $body;
            }
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
}
use integer as int;
