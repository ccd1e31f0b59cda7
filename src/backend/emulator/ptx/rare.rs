//! Steps that are seldom executed, kept out of the loop.

use super::cluster::{Cluster, Run, trouble, trouble_at};
use super::code::Code;
use super::convert::{common, convert, extended};
use super::exec::{Flow, compared};
use super::float::{double_fma, double1, double2, test};
use super::half::{half_fma, half1, half2};
use super::integer::{
    carry, combine, count64, extract64, insert, long2, mad_carry, mad_wide, mad_wide16, shift64, short1, short2,
};
use super::op::{I2, Mode, Op, Row};
use super::syntax::Type;
use super::warp::{Lanes64, Warp, lanes};
use super::window;

/// Arithmetic that few kernels are full of.
#[inline(never)]
pub(super) fn rare(cluster: &mut Cluster, w: &mut Warp, op: &Op, m: u32) -> Run<Flow> {
    let code = cluster.code;
    match *op {
        Op::Count64 { f, d, a } => {
            let out = count64(f, w.d(code, a));
            w.set(d, m, &out);
        }
        Op::Short2 { f, d, a, b } => {
            let out = short2(f, w.r(code, a), w.r(code, b));
            w.set(d, m, &out);
        }
        Op::Short1 { f, d, a } => {
            let out = short1(f, w.r(code, a));
            w.set(d, m, &out);
        }
        Op::Shift64 { f, d, a, b } => {
            let out = shift64(f, w.d(code, a), w.r(code, b));
            w.set64(d, m, &out);
        }
        Op::Mad64 { d, a, b, c } => {
            let product = long2(I2::Mul, w.d(code, a), w.d(code, b));
            let out = long2(I2::Add, &product, w.d(code, c));
            w.set64(d, m, &out);
        }
        Op::MadWide { is_signed, d, a, b, c } => {
            let out = mad_wide(is_signed, w.r(code, a), w.r(code, b), w.d(code, c));
            w.set64(d, m, &out);
        }
        Op::MadWide16 { is_signed, d, a, b, c } => {
            let out = mad_wide16(is_signed, w.r(code, a), w.r(code, b), w.r(code, c));
            w.set(d, m, &out);
        }
        Op::Bfi { d, a, b, c, e } => {
            let [a, b, c, e] = [a, b, c, e].map(|row| *w.r(code, row));
            let out = std::array::from_fn(|l| insert(u64::from(a[l]), u64::from(b[l]), c[l], e[l], 32) as u32);
            w.set(d, m, &out);
        }
        Op::Bfi64 { d, a, b, c, e } => {
            let (a, b, c, e) = (w.d(code, a), w.d(code, b), w.r(code, c), w.r(code, e));
            let out = std::array::from_fn(|l| insert(a[l], b[l], c[l], e[l], 64));
            w.set64(d, m, &out);
        }
        Op::Bfe64 { is_signed, d, a, b, c } => {
            let out = extract64(is_signed, w.d(code, a), w.r(code, b), w.r(code, c));
            w.set64(d, m, &out);
        }
        Op::Carry { is_sub, takes, gives, is_long, d, a, b } => {
            carry(w, code, m, [is_sub, takes, gives, is_long], [d, a, b]);
        }
        Op::MadCarry { is_high, is_signed, takes, gives, d, a, b, c } => {
            mad_carry(w, code, m, [is_high, is_signed, takes, gives], [d, a, b, c]);
        }
        Op::Select64 { d, a, b, p } => {
            let bits = w.p(p);
            let (a, b) = (w.d(code, a), w.d(code, b));
            let out = std::array::from_fn(|l| if bits >> l & 1 != 0 { a[l] } else { b[l] });
            w.set64(d, m, &out);
        }
        Op::Slct64 { is_float, d, a, b, c } => {
            let (a, b, c) = (w.d(code, a), w.d(code, b), w.r(code, c));
            let takes = |c: u32| if is_float { f32::from_bits(c) >= 0.0 } else { c as i32 >= 0 };
            let out = std::array::from_fn(|l| if takes(c[l]) { a[l] } else { b[l] });
            w.set64(d, m, &out);
        }
        Op::Set { n, f, with, gives_float, d, a, b, c } => {
            let bits = combine(with, compared(code, w, n, f, a, b), w.p(c));
            let one = if gives_float { 1f32.to_bits() } else { u32::MAX };
            let out = std::array::from_fn(|l| if bits >> l & 1 != 0 { one } else { 0 });
            w.set(d, m, &out);
        }
        Op::Double1 { f, mode, d, a } => {
            let out = double1(f, mode, w.d(code, a));
            w.set64(d, m, &out);
        }
        Op::Double2 { f, mode, d, a, b } => {
            let out = double2(f, mode, w.d(code, a), w.d(code, b));
            w.set64(d, m, &out);
        }
        Op::DoubleFma { mode, d, a, b, c } => {
            let out = double_fma(mode, w.d(code, a), w.d(code, b), w.d(code, c));
            w.set64(d, m, &out);
        }
        Op::Half1 { n, f, mode, d, a } => {
            let out = half1(n, f, mode, w.r(code, a));
            w.set(d, m, &out);
        }
        Op::Half2 { n, f, mode, d, a, b } => {
            let out = half2(n, f, mode, w.r(code, a), w.r(code, b));
            w.set(d, m, &out);
        }
        Op::HalfFma { n, mode, d, a, b, c } => {
            let out = half_fma(n, mode, w.r(code, a), w.r(code, b), w.r(code, c));
            w.set(d, m, &out);
        }
        Op::Convert { to, from, mode, d, a, b } => converted(code, w, [to, from], mode, [d, a, b], m),
        _ => return seldom(cluster, w, op, m),
    }
    Ok(Flow::Next)
}

/// `cvt`, by the quick way where there is one.
fn converted(code: &Code, w: &mut Warp, [to, from]: [Type; 2], mode: u8, [d, a, b]: [Row; 3], m: u32) {
    let mode = Mode::unpack(mode);
    match (to.bytes() == 8, from.bytes() == 8) {
        (false, true) if !to.is_float() && !from.is_float() && to.bytes() == 4 && !mode.sat => {
            let out = w.d(code, a).map(|x| x as u32);
            return w.set(d, m, &out);
        }
        (true, false) if !to.is_float() && !mode.sat => {
            if let Some(out) = extended(from, w.r(code, a)) {
                return w.set64(d, m, &out);
            }
        }
        (false, false) => {
            if let Some(out) = common(to, from, mode, w.r(code, a), w.r(code, b)) {
                return w.set(d, m, &out);
            }
        }
        _ => {}
    }
    let source = |row: Row, l: usize| if from.bytes() == 8 { w.d(code, row)[l] } else { u64::from(w.r(code, row)[l]) };
    let second = |l: usize| if from.bytes() == 8 { 0 } else { source(b, l) };
    let out: Lanes64 = std::array::from_fn(|l| convert(to, from, mode, source(a, l), second(l)));
    if to.bytes() == 8 { w.set64(d, m, &out) } else { w.set(d, m, &out.map(|v| v as u32)) }
}

/// Moves of parts, special registers, addresses.
fn seldom(cluster: &mut Cluster, w: &mut Warp, op: &Op, m: u32) -> Run<Flow> {
    let code = cluster.code;
    match *op {
        Op::Testp { k, is_double, p, a } => {
            let mut bits = 0;
            for l in 0..32 {
                let holds = if is_double {
                    let x = f64::from_bits(w.d(code, a)[l]);
                    test(k, x, x.is_subnormal())
                } else {
                    let x = f32::from_bits(w.r(code, a)[l]);
                    test(k, f64::from(x), x.is_subnormal())
                };
                bits |= u32::from(holds) << l;
            }
            w.set_p(p, m, bits);
        }
        Op::Pack64 { d, a, b } => {
            let (a, b) = (w.r(code, a), w.r(code, b));
            let out = std::array::from_fn(|l| u64::from(b[l]) << 32 | u64::from(a[l]));
            w.set64(d, m, &out);
        }
        Op::Unpack64 { d, e, a } => {
            let a = *w.d(code, a);
            w.set(d, m, &a.map(|v| v as u32));
            w.set(e, m, &a.map(|v| (v >> 32) as u32));
        }
        Op::Pack32 { d, a, b } => {
            let (a, b) = (w.r(code, a), w.r(code, b));
            let out = std::array::from_fn(|l| b[l] << 16 | (a[l] & 0xffff));
            w.set(d, m, &out);
        }
        Op::Unpack32 { d, e, a } => {
            let a = *w.r(code, a);
            w.set(d, m, &a.map(|v| v & 0xffff));
            w.set(e, m, &a.map(|v| v >> 16));
        }
        Op::Pack16x4 { d, a } => {
            let out = std::array::from_fn(|l| {
                (0..4).fold(0, |word, i| word | u64::from(w.r(code, a[i])[l] & 0xffff) << (16 * i))
            });
            w.set64(d, m, &out);
        }
        Op::Unpack16x4 { d, a } => {
            let a = *w.d(code, a);
            for (i, d) in d.into_iter().enumerate() {
                w.set(d, m, &a.map(|v| (v >> (16 * i)) as u32 & 0xffff));
            }
        }
        Op::Special { which, d } => {
            let out = cluster.special(w, which).map(|v| v as u32);
            w.set(d, m, &out);
        }
        Op::Special64 { which, d } => {
            let out = cluster.special(w, which);
            w.set64(d, m, &out);
        }
        Op::Window { base, is_into, d, a } => return cluster.window(w, base, is_into, [d, a], m),
        Op::IsSpace { base, p, a } => {
            let a = w.d(code, a);
            let bits = (0..32).fold(0, |bits, l| bits | u32::from(window::of(a[l]) == base) << l);
            w.set_p(p, m, bits);
        }
        Op::MapRank { is_long, is_generic, d, a, b } => {
            let rank = *w.r(code, b);
            let map = |at: u64, rank: u32| {
                let low = at & ((1 << window::RANK_SHIFT) - 1);
                let window = if is_generic { window::SHARED } else { 0 };
                window | u64::from(rank.wrapping_add(1)) << window::RANK_SHIFT | low
            };
            let blocks = cluster.blocks.len() as u32;
            if let Some(l) = lanes(m).find(|&l| rank[l] >= blocks) {
                return trouble_at(l, format!("rank {} in a cluster of {blocks}", rank[l]));
            }
            if is_long {
                let a = w.d(code, a);
                let out = std::array::from_fn(|l| map(a[l], rank[l]));
                w.set64(d, m, &out);
            } else {
                let a = w.r(code, a);
                let out = std::array::from_fn(|l| map(u64::from(a[l]), rank[l]) as u32);
                w.set(d, m, &out);
            }
        }
        Op::RankOf { is_long, d, a } => {
            let own = w.block as u32;
            let rank = |at: u64| ((at & 0xffff_ffff) >> window::RANK_SHIFT) as u32;
            let out = std::array::from_fn(|l| {
                let at = if is_long { w.d(code, a)[l] } else { u64::from(w.r(code, a)[l]) };
                if rank(at) == 0 { own } else { rank(at) - 1 }
            });
            w.set(d, m, &out);
        }
        _ => return trouble(format!("{op:?} is not executed")),
    }
    Ok(Flow::Next)
}

impl Cluster<'_> {
    /// `cvta` of a space that has a window.
    fn window(&self, w: &mut Warp, base: u64, is_into: bool, [d, a]: [Row; 2], m: u32) -> Run<Flow> {
        let a = *w.d(self.code, a);
        let mut out = a;
        for l in lanes(m) {
            if is_into {
                if window::of(a[l]) != base {
                    return trouble_at(l, format!("address {:#x} does not lie in this space", a[l]));
                }
                out[l] = a[l] & !(0xff << 56);
            } else {
                out[l] = a[l] & 0xffff_ffff | base;
            }
        }
        w.set64(d, m, &out);
        Ok(Flow::Next)
    }
}
