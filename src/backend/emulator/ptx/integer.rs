//! Integer arithmetic over the lanes of a warp.

use super::code::Code;
use super::op::{Combine, Compare, I1, I2, I3, Logic, Row};
use super::warp::{Lanes32, Lanes64, Warp};

#[inline(always)]
fn map1(a: &Lanes32, f: impl Fn(u32) -> u32) -> Lanes32 {
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l]);
    }
    out
}

#[inline(always)]
fn map2(a: &Lanes32, b: &Lanes32, f: impl Fn(u32, u32) -> u32) -> Lanes32 {
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l], b[l]);
    }
    out
}

#[inline(always)]
fn map3(a: &Lanes32, b: &Lanes32, c: &Lanes32, f: impl Fn(u32, u32, u32) -> u32) -> Lanes32 {
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l], b[l], c[l]);
    }
    out
}

#[inline(always)]
fn map64(a: &Lanes64, b: &Lanes64, f: impl Fn(u64, u64) -> u64) -> Lanes64 {
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l], b[l]);
    }
    out
}

const fn s(x: u32) -> i32 {
    x as i32
}

/// A function of two 32-bit numbers on all lanes. Division by zero gives all ones, as the hardware's routine does.
pub(super) fn int2(f: I2, a: &Lanes32, b: &Lanes32) -> Lanes32 {
    let low24 = |x: u32| x & 0xff_ffff;
    let low24s = |x: u32| i64::from(s(x << 8) >> 8);
    match f {
        I2::Add => map2(a, b, u32::wrapping_add),
        I2::Sub => map2(a, b, u32::wrapping_sub),
        I2::Mul => map2(a, b, u32::wrapping_mul),
        I2::MulHiS => map2(a, b, |a, b| ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32),
        I2::MulHiU => map2(a, b, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        I2::DivS => map2(a, b, |a, b| if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 }),
        I2::DivU => map2(a, b, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        I2::RemS => map2(a, b, |a, b| if b == 0 { u32::MAX } else { s(a).wrapping_rem(s(b)) as u32 }),
        I2::RemU => map2(a, b, |a, b| a.checked_rem(b).unwrap_or(u32::MAX)),
        I2::MinS => map2(a, b, |a, b| s(a).min(s(b)) as u32),
        I2::MinU => map2(a, b, u32::min),
        I2::MaxS => map2(a, b, |a, b| s(a).max(s(b)) as u32),
        I2::MaxU => map2(a, b, u32::max),
        I2::And => map2(a, b, |a, b| a & b),
        I2::Or => map2(a, b, |a, b| a | b),
        I2::Xor => map2(a, b, |a, b| a ^ b),
        I2::Shl => map2(a, b, |a, b| if b > 31 { 0 } else { a << b }),
        I2::ShrU => map2(a, b, |a, b| if b > 31 { 0 } else { a >> b }),
        I2::ShrS => map2(a, b, |a, b| (s(a) >> b.min(31)) as u32),
        I2::AddSat => map2(a, b, |a, b| s(a).saturating_add(s(b)) as u32),
        I2::SubSat => map2(a, b, |a, b| s(a).saturating_sub(s(b)) as u32),
        I2::Mul24U => map2(a, b, |a, b| low24(a).wrapping_mul(low24(b))),
        I2::Mul24S => map2(a, b, |a, b| (low24s(a) * low24s(b)) as u32),
        I2::Mul24HiU => map2(a, b, |a, b| ((u64::from(low24(a)) * u64::from(low24(b))) >> 16) as u32),
        I2::Mul24HiS => map2(a, b, |a, b| ((low24s(a) * low24s(b)) >> 16) as u32),
    }
}

/// A function of two 16-bit numbers, which registers hold zero-extended.
pub(super) fn short2(f: I2, a: &Lanes32, b: &Lanes32) -> Lanes32 {
    use I2::{AddSat, DivS, MaxS, MinS, MulHiS, MulHiU, RemS, Shl, ShrS, ShrU, SubSat};
    let wide = |x: u32| i32::from(x as i16);
    let low = |x: i32| x as u32 & 0xffff;
    match f {
        MulHiS => map2(a, b, |a, b| low((wide(a) * wide(b)) >> 16)),
        MulHiU => map2(a, b, |a, b| (a & 0xffff).wrapping_mul(b & 0xffff) >> 16),
        Shl => map2(a, b, |a, b| if b > 15 { 0 } else { (a << b) & 0xffff }),
        ShrU => map2(a, b, |a, b| if b > 15 { 0 } else { (a & 0xffff) >> b }),
        ShrS => map2(a, b, |a, b| low(wide(a) >> b.min(15))),
        AddSat => map2(a, b, |a, b| low((wide(a) + wide(b)).clamp(-0x8000, 0x7fff))),
        SubSat => map2(a, b, |a, b| low((wide(a) - wide(b)).clamp(-0x8000, 0x7fff))),
        DivS | RemS | MinS | MaxS => {
            let signed = |x: &Lanes32| map1(x, |x| wide(x) as u32);
            map1(&int2(f, &signed(a), &signed(b)), |x| x & 0xffff)
        }
        _ => map1(&int2(f, &map1(a, |x| x & 0xffff), &map1(b, |x| x & 0xffff)), |x| x & 0xffff),
    }
}

/// A function of two 64-bit numbers.
pub(super) fn long2(f: I2, a: &Lanes64, b: &Lanes64) -> Lanes64 {
    let s = |x: u64| x as i64;
    match f {
        I2::Add => map64(a, b, u64::wrapping_add),
        I2::Sub => map64(a, b, u64::wrapping_sub),
        I2::Mul | I2::Mul24S | I2::Mul24U | I2::Mul24HiS | I2::Mul24HiU => map64(a, b, u64::wrapping_mul),
        I2::MulHiS => map64(a, b, |a, b| ((i128::from(s(a)) * i128::from(s(b))) >> 64) as u64),
        I2::MulHiU => map64(a, b, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        I2::DivS => map64(a, b, |a, b| if b == 0 { u64::MAX } else { s(a).wrapping_div(s(b)) as u64 }),
        I2::DivU => map64(a, b, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        I2::RemS => map64(a, b, |a, b| if b == 0 { a } else { s(a).wrapping_rem(s(b)) as u64 }),
        I2::RemU => map64(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
        I2::MinS => map64(a, b, |a, b| s(a).min(s(b)) as u64),
        I2::MinU => map64(a, b, u64::min),
        I2::MaxS => map64(a, b, |a, b| s(a).max(s(b)) as u64),
        I2::MaxU => map64(a, b, u64::max),
        I2::And => map64(a, b, |a, b| a & b),
        I2::Or => map64(a, b, |a, b| a | b),
        I2::Xor => map64(a, b, |a, b| a ^ b),
        I2::AddSat => map64(a, b, |a, b| s(a).saturating_add(s(b)) as u64),
        I2::SubSat => map64(a, b, |a, b| s(a).saturating_sub(s(b)) as u64),
        I2::Shl => map64(a, b, |a, b| if b > 63 { 0 } else { a << b }),
        I2::ShrU => map64(a, b, |a, b| if b > 63 { 0 } else { a >> b }),
        I2::ShrS => map64(a, b, |a, b| (s(a) >> b.min(63)) as u64),
    }
}

/// A shift of 64-bit numbers by 32-bit ones.
pub(super) fn shift64(f: I2, a: &Lanes64, b: &Lanes32) -> Lanes64 {
    let mut by = [0; 32];
    for l in 0..32 {
        by[l] = u64::from(b[l]);
    }
    long2(f, a, &by)
}

/// A function of one 32-bit number.
pub(super) fn int1(f: I1, a: &Lanes32) -> Lanes32 {
    match f {
        I1::Mov => *a,
        I1::Neg => map1(a, u32::wrapping_neg),
        I1::Abs => map1(a, |a| s(a).wrapping_abs() as u32),
        I1::Not => map1(a, |a| !a),
        I1::Cnot => map1(a, |a| u32::from(a == 0)),
        I1::Brev => map1(a, u32::reverse_bits),
        I1::Clz => map1(a, u32::leading_zeros),
        I1::Popc => map1(a, u32::count_ones),
        I1::FindU | I1::FindShiftU => map1(a, |a| find(u64::from(a), 32, f == I1::FindShiftU)),
        I1::FindS | I1::FindShiftS => {
            map1(a, |a| find(u64::from(if s(a) < 0 { !a } else { a }), 32, f == I1::FindShiftS))
        }
    }
}

/// The highest set bit, or by how much to shift it up to the top; all ones if there is none.
fn find(a: u64, width: u32, is_shift: bool) -> u32 {
    match (a, is_shift) {
        (0, _) => u32::MAX,
        (_, false) => 63 - a.leading_zeros(),
        (_, true) => width + a.leading_zeros() - 64,
    }
}

/// A function of one 16-bit number.
pub(super) fn short1(f: I1, a: &Lanes32) -> Lanes32 {
    match f {
        I1::Abs => map1(a, |a| u32::from((a as i16).unsigned_abs())),
        I1::Cnot => map1(a, |a| u32::from(a & 0xffff == 0)),
        _ => map1(&int1(f, a), |x| x & 0xffff),
    }
}

/// A function of one 64-bit number to another.
pub(super) fn long1(f: I1, a: &Lanes64) -> Lanes64 {
    match f {
        I1::Neg => a.map(u64::wrapping_neg),
        I1::Abs => a.map(|a| (a as i64).wrapping_abs() as u64),
        I1::Not => a.map(|a| !a),
        I1::Cnot => a.map(|a| u64::from(a == 0)),
        I1::Brev => a.map(u64::reverse_bits),
        _ => *a,
    }
}

/// A count over the bits of a 64-bit number.
pub(super) fn count64(f: I1, a: &Lanes64) -> Lanes32 {
    let magnitude = |a: u64| if (a as i64) < 0 { !a } else { a };
    match f {
        I1::Clz => a.map(u64::leading_zeros),
        I1::FindU | I1::FindShiftU => a.map(|a| find(a, 64, f == I1::FindShiftU)),
        I1::FindS | I1::FindShiftS => a.map(|a| find(magnitude(a), 64, f == I1::FindShiftS)),
        _ => a.map(u64::count_ones),
    }
}

/// A function of three 32-bit numbers.
pub(super) fn int3(f: I3, k: u8, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    let sum = |x: &Lanes32| map2(x, c, u32::wrapping_add);
    match f {
        I3::Mad => map3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        I3::MadHiS => sum(&int2(I2::MulHiS, a, b)),
        I3::MadHiU => sum(&int2(I2::MulHiU, a, b)),
        I3::Mad24S => sum(&int2(I2::Mul24S, a, b)),
        I3::Mad24U => sum(&int2(I2::Mul24U, a, b)),
        I3::Mad24HiS => sum(&int2(I2::Mul24HiS, a, b)),
        I3::Mad24HiU => sum(&int2(I2::Mul24HiU, a, b)),
        I3::SadS => map3(a, b, c, |a, b, c| s(a).abs_diff(s(b)).wrapping_add(c)),
        I3::SadU => map3(a, b, c, |a, b, c| a.abs_diff(b).wrapping_add(c)),
        I3::BfeU => map3(a, b, c, |a, b, c| extract(u64::from(a), b, c, 32, false) as u32),
        I3::BfeS => map3(a, b, c, |a, b, c| extract(u64::from(a), b, c, 32, true) as u32),
        I3::Lop3 => lop3(k, a, b, c),
        I3::Prmt => map3(a, b, c, |a, b, c| permute(k, a, b, c)),
        // The double word `b:a` shifted; the high or the low half of it.
        I3::ShfLeftWrap | I3::ShfLeftClamp => map3(a, b, c, |a, b, c| {
            let n = if f == I3::ShfLeftWrap { c & 31 } else { c.min(32) };
            ((u64::from(b) << 32 | u64::from(a)) << n >> 32) as u32
        }),
        I3::ShfRightWrap | I3::ShfRightClamp => map3(a, b, c, |a, b, c| {
            let n = if f == I3::ShfRightWrap { c & 31 } else { c.min(32) };
            ((u64::from(b) << 32 | u64::from(a)) >> n) as u32
        }),
        I3::Dp4a => map3(a, b, c, |a, b, c| dot4(k, a, b, c)),
        I3::Dp2a => map3(a, b, c, |a, b, c| dot2(k, a, b, c)),
        I3::SlctS => map3(a, b, c, |a, b, c| if s(c) >= 0 { a } else { b }),
        I3::SlctF => map3(a, b, c, |a, b, c| if f32::from_bits(c) >= 0.0 { a } else { b }),
    }
}

/// `len` bits from `at` on, zero- or sign-extended: the sign is that of the field's top bit, or of the number's if it ends before.
fn extract(a: u64, at: u32, len: u32, width: u32, is_signed: bool) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let top = (at + len - 1).min(width - 1);
    let sign = is_signed && a >> top & 1 == 1;
    let field = if at >= width { 0 } else { a >> at };
    let kept = if at >= width { 0 } else { (width - at).min(len) };
    let mask = if kept >= 64 { u64::MAX } else { (1 << kept) - 1 };
    if sign { field & mask | !mask } else { field & mask }
}

fn lop3(k: u8, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    let mut out = [0; 32];
    for (bit, [x, y, z]) in (0..8).map(|i| (i, [i >> 2 & 1, i >> 1 & 1, i & 1])) {
        if k >> bit & 1 == 1 {
            let pick = |v: u32, one: i32| if one == 1 { v } else { !v };
            for l in 0..32 {
                out[l] |= pick(a[l], x) & pick(b[l], y) & pick(c[l], z);
            }
        }
    }
    out
}

/// Bytes of `b:a` chosen by the nibbles of `c`, or by one of the fixed patterns.
fn permute(k: u8, a: u32, b: u32, c: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let n = c & 3;
    let choice: [u32; 4] = match k {
        0 => std::array::from_fn(|i| c >> (4 * i) & 15),
        1 => std::array::from_fn(|i| n + i as u32),
        2 => std::array::from_fn(|i| (n + 8 - i as u32) & 7),
        3 => [n; 4],
        4 => std::array::from_fn(|i| n.max(i as u32)),
        5 => std::array::from_fn(|i| n.min(i as u32)),
        _ => [2 * (n & 1), 2 * (n & 1) + 1, 2 * (n & 1), 2 * (n & 1) + 1],
    };
    u32::from_le_bytes(choice.map(|sel| {
        let byte = bytes[(sel & 7) as usize];
        if sel & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
    }))
}

fn byte(word: u32, i: usize, is_signed: bool) -> i32 {
    let byte = word.to_le_bytes()[i];
    if is_signed { i32::from(byte as i8) } else { i32::from(byte) }
}

fn dot4(k: u8, a: u32, b: u32, c: u32) -> u32 {
    (0..4).fold(c, |sum, i| sum.wrapping_add((byte(a, i, k & 1 != 0) * byte(b, i, k & 2 != 0)) as u32))
}

fn dot2(k: u8, a: u32, b: u32, c: u32) -> u32 {
    let half = |i: usize| {
        let bits = (a >> (16 * i)) as u16;
        if k & 1 != 0 { i32::from(bits as i16) } else { i32::from(bits) }
    };
    let first = if k & 4 != 0 { 2 } else { 0 };
    (0..2).fold(c, |sum, i| sum.wrapping_add(half(i).wrapping_mul(byte(b, first + i, k & 2 != 0)) as u32))
}

/// Inserts the low `len` bits of `a` into `b` from bit `at` on.
pub(super) fn insert(a: u64, b: u64, at: u32, len: u32, width: u32) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    if at >= width || len == 0 {
        return b;
    }
    let mask = (if len >= 64 { u64::MAX } else { (1 << len) - 1 }) << at;
    (b & !mask) | ((a << at) & mask)
}

/// `bfe` of 64-bit numbers.
pub(super) fn extract64(is_signed: bool, a: &Lanes64, b: &Lanes32, c: &Lanes32) -> Lanes64 {
    std::array::from_fn(|l| extract(a[l], b[l], c[l], 64, is_signed))
}

/// The full product of 32-bit numbers plus a 64-bit one.
pub(super) fn mad_wide(is_signed: bool, a: &Lanes32, b: &Lanes32, c: &Lanes64) -> Lanes64 {
    let mut out = [0; 32];
    if is_signed {
        for l in 0..32 {
            out[l] = ((i64::from(s(a[l])) * i64::from(s(b[l]))) as u64).wrapping_add(c[l]);
        }
    } else {
        for l in 0..32 {
            out[l] = (u64::from(a[l]) * u64::from(b[l])).wrapping_add(c[l]);
        }
    }
    out
}

/// The full product of 16-bit numbers plus a 32-bit one.
pub(super) fn mad_wide16(is_signed: bool, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    map3(a, b, c, |a, b, c| {
        let product = if is_signed {
            (i32::from(a as i16) * i32::from(b as i16)) as u32
        } else {
            (a & 0xffff).wrapping_mul(b & 0xffff)
        };
        product.wrapping_add(c)
    })
}

/// The lanes where the comparison holds; unordered comparisons of integers are the ordered ones.
#[inline(always)]
pub(super) fn compare<T: PartialOrd + Copy>(f: Compare, a: &[T; 32], b: &[T; 32]) -> u32 {
    #[inline(always)]
    fn bits<T: Copy>(a: &[T; 32], b: &[T; 32], holds: impl Fn(T, T) -> bool) -> u32 {
        let mut out = 0;
        for l in 0..32 {
            out |= u32::from(holds(a[l], b[l])) << l;
        }
        out
    }
    #[allow(clippy::double_comparisons, reason = "`!=` is true for NaN, these are not")]
    match f {
        Compare::Eq => bits(a, b, |a, b| a == b),
        // `ne` of floats is ordered: false for NaN.
        Compare::Ne => bits(a, b, |a, b| a < b || a > b),
        Compare::Lt => bits(a, b, |a, b| a < b),
        Compare::Le => bits(a, b, |a, b| a <= b),
        Compare::Gt => bits(a, b, |a, b| a > b),
        Compare::Ge => bits(a, b, |a, b| a >= b),
        Compare::Equ => bits(a, b, |a, b| !(a < b || a > b)),
        Compare::Neu => bits(a, b, |a, b| a != b),
        Compare::Ltu => bits(a, b, |a, b| !(a >= b)),
        Compare::Leu => bits(a, b, |a, b| !(a > b)),
        Compare::Gtu => bits(a, b, |a, b| !(a <= b)),
        Compare::Geu => bits(a, b, |a, b| !(a < b)),
        Compare::Num => bits(a, b, |a, b| a.partial_cmp(&b).is_some()),
        Compare::Nan => bits(a, b, |a, b| a.partial_cmp(&b).is_none()),
    }
}

/// The result of a comparison with that of another predicate.
pub(super) fn combine(with: Combine, value: u32, other: u32) -> u32 {
    match with {
        Combine::None => value,
        Combine::And => value & other,
        Combine::Or => value | other,
        Combine::Xor => value ^ other,
    }
}

/// A function of predicates.
pub(super) fn logic(f: Logic, a: u32, b: u32) -> u32 {
    match f {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
        Logic::Mov => a,
        Logic::Not => !a,
    }
}

/// Sum or difference with carry; subtraction borrows.
pub(super) fn carry(w: &mut Warp, code: &Code, mask: u32, flags: [bool; 4], rows: [Row; 3]) {
    let ([is_sub, takes, gives, is_long], [d, a, b]) = (flags, rows);
    let (mut out32, mut out64, mut carries) = ([0; 32], [0; 32], 0);
    let width = if is_long { 64 } else { 32 };
    for l in 0..32 {
        let (x, y) = if is_long {
            (u128::from(w.d(code, a)[l]), u128::from(w.d(code, b)[l]))
        } else {
            (u128::from(w.r(code, a)[l]), u128::from(w.r(code, b)[l]))
        };
        let taken = u128::from(takes && w.carry >> l & 1 == 1);
        let result = if is_sub { x.wrapping_sub(y).wrapping_sub(taken) } else { x + y + taken };
        (out32[l], out64[l]) = (result as u32, result as u64);
        carries |= ((result >> width & 1) as u32) << l;
    }
    if gives {
        w.carry = (w.carry & !mask) | (carries & mask);
    }
    if is_long { w.set64(d, mask, &out64) } else { w.set(d, mask, &out32) }
}

/// `a·b + c` with carry, low or high half of the product.
pub(super) fn mad_carry(w: &mut Warp, code: &Code, mask: u32, flags: [bool; 4], rows: [Row; 4]) {
    let ([is_high, is_signed, takes, gives], [d, a, b, c]) = (flags, rows);
    let (mut out, mut carries) = ([0; 32], 0);
    let half = match (is_high, is_signed) {
        (false, _) => I2::Mul,
        (true, true) => I2::MulHiS,
        (true, false) => I2::MulHiU,
    };
    let product = int2(half, w.r(code, a), w.r(code, b));
    for l in 0..32 {
        let taken = u64::from(takes && w.carry >> l & 1 == 1);
        let sum = u64::from(product[l]) + u64::from(w.r(code, c)[l]) + taken;
        out[l] = sum as u32;
        carries |= ((sum >> 32) as u32 & 1) << l;
    }
    if gives {
        w.carry = (w.carry & !mask) | (carries & mask);
    }
    w.set(d, mask, &out);
}
