//! Two numbers at once: halves of a register, or pairs of registers in single precision.

use super::half::settle16;
use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::float::{Exact, f16_to_f32, flush16, flush32, fma16, max32, min32, settle32};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Source, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Lanes, Wave};

/// Both results of 16-bit integer instructions.
macro_rules! short2 {
    (|$a:ident, $b:ident, $c:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b, c) = (w.lanes(m.src[0]), w.lanes(m.src[1]), w.lanes(m.src[2]));
            let part = |l: usize, sel: u8| {
                let ($a, $b, $c) = (pick(a[l], sel), pick(b[l], sel >> 1), pick(c[l], sel >> 2));
                let result: u16 = $body;
                u32::from(result)
            };
            let out: Lanes = std::array::from_fn(|l| part(l, m.op_sel) | part(l, m.op_sel_hi) << 16);
            w.put(m.dst, &out);
            Ok(())
        }
        run as Handler
    }};
}

fn pick(x: u32, sel: u8) -> u16 {
    (x >> (16 * (sel & 1))) as u16
}

/// Both results of half-precision instructions.
macro_rules! half2 {
    (|$a:ident, $b:ident, $c:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let low = halves(w, m, m.op_sel, m.neg);
            let high = halves(w, m, m.op_sel_hi, m.abs);
            let round = w.mode.round64;
            let part = |[a, b, c]: &[[f32; LANES]; 3], l: usize| {
                let ($a, $b, $c) = (a[l], b[l], c[l]);
                let value: Exact = $body;
                let mut bits = settle16(value, round, [a[l], b[l], c[l]]);
                if m.clamp {
                    bits = clamped(bits);
                }
                if w.mode.flush_out64 { u32::from(flush16(bits as u16)) } else { bits }
            };
            let out: Lanes = std::array::from_fn(|l| part(&low, l) | part(&high, l) << 16);
            w.put(m.dst, &out);
            Ok(())
        }
        run as Handler
    }};
}

fn clamped(bits: u32) -> u32 {
    let x = f16_to_f32(bits as u16);
    if x > 1.0 {
        0x3c00
    } else if x > 0.0 {
        bits
    } else {
        0
    }
}

/// The halves of three sources that one result takes.
fn halves(w: &Wave, m: &Micro, sel: u8, neg: u8) -> [[f32; LANES]; 3] {
    std::array::from_fn(|i| {
        let flip = u16::from(neg >> i & 1) << 15;
        w.lanes(m.src[i]).map(|x| {
            let bits = pick(x, sel >> i) ^ flip;
            f16_to_f32(if w.mode.flush_in64 { flush16(bits) } else { bits })
        })
    })
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    short(op).or_else(|| float(op))
}

fn short(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_pk_mad_i16 | Op::v_pk_mad_u16 => short2!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Op::v_pk_mul_lo_u16 => short2!(|a, b, _c| a.wrapping_mul(b)),
        Op::v_pk_add_i16 | Op::v_pk_add_u16 => short2!(|a, b, _c| a.wrapping_add(b)),
        Op::v_pk_sub_i16 | Op::v_pk_sub_u16 => short2!(|a, b, _c| a.wrapping_sub(b)),
        Op::v_pk_lshlrev_b16 => short2!(|a, b, _c| b << (a & 15)),
        Op::v_pk_lshrrev_b16 => short2!(|a, b, _c| b >> (a & 15)),
        Op::v_pk_ashrrev_i16 => short2!(|a, b, _c| (b as i16 >> (a & 15)) as u16),
        Op::v_pk_max_i16 => short2!(|a, b, _c| (a as i16).max(b as i16) as u16),
        Op::v_pk_min_i16 => short2!(|a, b, _c| (a as i16).min(b as i16) as u16),
        Op::v_pk_max_u16 => short2!(|a, b, _c| a.max(b)),
        Op::v_pk_min_u16 => short2!(|a, b, _c| a.min(b)),
        _ => return None,
    })
}

fn float(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_pk_fma_f16 => half2!(|a, b, c| fma16(a, b, c)),
        Op::v_pk_add_f16 => half2!(|a, b, _c| Exact::of(f64::from(a) + f64::from(b))),
        Op::v_pk_mul_f16 => half2!(|a, b, _c| Exact::of(f64::from(a) * f64::from(b))),
        Op::v_pk_min_f16 => half2!(|a, b, _c| Exact::of(f64::from(min32(a, b)))),
        Op::v_pk_max_f16 => half2!(|a, b, _c| Exact::of(f64::from(max32(a, b)))),
        Op::v_pk_fmac_f16 => accumulate_halves,
        Op::v_fma_mix_f32 => mix::<0>,
        Op::v_fma_mixlo_f16 => mix::<1>,
        Op::v_fma_mixhi_f16 => mix::<2>,
        Op::v_dot2_f32_f16 => dot2,
        Op::v_pk_fma_f32 => singles2::<0>,
        Op::v_pk_mul_f32 => singles2::<1>,
        Op::v_pk_add_f32 => singles2::<2>,
        Op::v_pk_mov_b32 => move2,
        _ => return None,
    })
}

fn accumulate_halves(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.lanes(m.src[0]), w.lanes(m.src[1]), w.v[usize::from(m.dst)]);
    let round = w.mode.round64;
    let part = |l: usize, s: u32| {
        let [a, b, c] = [a[l], b[l], c[l]].map(|x| f16_to_f32((x >> s) as u16));
        settle16(fma16(a, b, c), round, [a, b, c]) << s
    };
    let out: Lanes = std::array::from_fn(|l| part(l, 0) | part(l, 16));
    w.put(m.dst, &out);
    Ok(())
}

/// A fused multiply and add of sources that are single or half precision each: `op_sel_hi` says half, `op_sel` which.
fn mix<const KIND: u8>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let source = |i: usize| -> [f32; LANES] {
        let raw = w.lanes(m.src[i]);
        let is_half = m.op_sel_hi >> i & 1 == 1;
        let mut x = if is_half {
            raw.map(|x| f16_to_f32(pick(x, m.op_sel >> i)))
        } else if w.mode.flush_in32 {
            raw.map(|x| f32::from_bits(flush32(x)))
        } else {
            raw.map(f32::from_bits)
        };
        // The field that flips high halves elsewhere takes magnitudes here.
        if m.abs >> i & 1 == 1 {
            x = x.map(f32::abs);
        }
        if m.neg >> i & 1 == 1 {
            x = x.map(|x| -x);
        }
        x
    };
    let [a, b, c] = std::array::from_fn(source);
    let exact = |l: usize| Exact::sum(f64::from(a[l]) * f64::from(b[l]), f64::from(c[l]));
    if KIND == 0 {
        let mut out: Lanes = std::array::from_fn(|l| settle32(exact(l).to_f32(w.mode.round32), [a[l], b[l], c[l]]));
        w.put_singles(m, &mut out);
        return Ok(());
    }
    let mut out: Lanes = std::array::from_fn(|l| {
        // Rounded to half precision at once.
        settle16(exact(l), w.mode.round64, [a[l], b[l], c[l]])
    });
    if m.clamp {
        out = out.map(clamped);
    }
    let old = w.v[usize::from(m.dst)];
    let merged: Lanes = std::array::from_fn(|l| match KIND {
        1 => old[l] & 0xffff_0000 | out[l],
        _ => old[l] & 0xffff | out[l] << 16,
    });
    w.put(m.dst, &merged);
    Ok(())
}

/// `a.x b.x + a.y b.y + c`, each product added with one rounding to single precision.
fn dot2(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let low = halves(w, m, m.op_sel, m.neg);
    let high = halves(w, m, m.op_sel_hi, m.abs);
    let c = w.lanes(m.src[2]).map(f32::from_bits);
    let mut out: Lanes = std::array::from_fn(|l| {
        let first = low[0][l].mul_add(low[1][l], c[l]);
        settle32(high[0][l].mul_add(high[1][l], first), [low[0][l], low[1][l], c[l]])
    });
    w.put_singles(m, &mut out);
    Ok(())
}

/// The low or the high register of a pair.
fn of_pair(w: &Wave, source: Source, is_high: bool) -> Lanes {
    match source {
        Source::Vector(r) => w.v[usize::from(r) + usize::from(is_high)],
        Source::Scalar(r) => [w.s[(usize::from(r) + usize::from(is_high)) & 127]; LANES],
        other => w.lanes(other),
    }
}

fn singles2<const KIND: u8>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let mut results = [[0; LANES]; 2];
    for (part, out) in results.iter_mut().enumerate() {
        let (sel, neg) = if part == 0 { (m.op_sel, m.neg) } else { (m.op_sel_hi, m.abs) };
        let source = |i: usize| -> [f32; LANES] {
            let flip = u32::from(neg >> i & 1) << 31;
            let x = of_pair(w, m.src[i], sel >> i & 1 == 1);
            let flushes = w.mode.flush_in32;
            x.map(|x| f32::from_bits(if flushes { flush32(x ^ flip) } else { x ^ flip }))
        };
        let (a, b) = (source(0), source(1));
        if KIND == 0 {
            let c = source(2);
            for l in 0..LANES {
                out[l] = settle32(a[l].mul_add(b[l], c[l]), [a[l], b[l], c[l]]);
            }
        } else {
            for l in 0..LANES {
                let result = if KIND == 1 { a[l] * b[l] } else { a[l] + b[l] };
                out[l] = settle32(result, [a[l], b[l], 0.0]);
            }
        }
        if w.mode.flush_out32 {
            *out = out.map(flush32);
        }
    }
    w.put(m.dst, &results[0]);
    w.put(m.dst + 1, &results[1]);
    Ok(())
}

/// The low register from the first source, the high one from the second; op_sel says which of each pair.
fn move2(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let low = of_pair(w, m.src[0], m.op_sel & 1 == 1);
    let high = of_pair(w, m.src[1], m.op_sel >> 1 & 1 == 1);
    w.put(m.dst, &low);
    w.put(m.dst + 1, &high);
    Ok(())
}
