//! Double-precision arithmetic in pairs of registers.

use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::float::{flush64, frexp64, ldexp64, max64, min64, settle64};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Wave, Wide};

/// A function of doubles, rounded to nearest.
macro_rules! double {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.doubles(m, 0);
            let mut out: Wide = [0; LANES];
            for l in 0..LANES {
                let $a: f64 = a[l];
                out[l] = settle64($body, [a[l], 0.0, 0.0]);
            }
            w.put_doubles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
    (|$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.doubles(m, 0), w.doubles(m, 1));
            let mut out: Wide = [0; LANES];
            for l in 0..LANES {
                let ($a, $b): (f64, f64) = (a[l], b[l]);
                out[l] = settle64($body, [a[l], b[l], 0.0]);
            }
            w.put_doubles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_add_f64 => double!(|a, b| a + b),
        Op::v_mul_f64 => double!(|a, b| a * b),
        Op::v_min_f64 => double!(|a, b| min64(a, b)),
        Op::v_max_f64 => double!(|a, b| max64(a, b)),
        Op::v_fma_f64 => fused::<false>,
        Op::v_fmac_f64 => fused::<true>,
        Op::v_floor_f64 => double!(|a| a.floor()),
        Op::v_ceil_f64 => double!(|a| a.ceil()),
        Op::v_trunc_f64 => double!(|a| a.trunc()),
        Op::v_rndne_f64 => double!(|a| a.round_ties_even()),
        Op::v_fract_f64 => double!(|a| (a - a.floor()).min(1.0 - f64::EPSILON / 2.0)),
        Op::v_frexp_mant_f64 => double!(|a| frexp64(a).0),
        Op::v_frexp_exp_i32_f64 => frexp_exponent,
        Op::v_ldexp_f64 => ldexp,
        _ => return None,
    })
}

fn fused<const ACCUMULATES: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.doubles(m, 0), w.doubles(m, 1));
    let c = if ACCUMULATES {
        let old = w.wide(super::super::micro::Source::Vector(m.dst));
        old.map(|x| f64::from_bits(if w.mode.flush_in64 { flush64(x) } else { x }))
    } else {
        w.doubles(m, 2)
    };
    let mut out: Wide = [0; LANES];
    for l in 0..LANES {
        out[l] = settle64(a[l].mul_add(b[l], c[l]), [a[l], b[l], c[l]]);
    }
    w.put_doubles(m, &mut out);
    Ok(())
}

fn frexp_exponent(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let out = w.doubles(m, 0).map(|a| frexp64(a).1 as u32);
    w.put32(m, &out);
    Ok(())
}

fn ldexp(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, e) = (w.doubles(m, 0), w.bits(m, 1));
    let mut out: Wide = std::array::from_fn(|l| settle64(ldexp64(a[l], e[l] as i32), [a[l], 0.0, 0.0]));
    w.put_doubles(m, &mut out);
    Ok(())
}
