//! Matrix instructions: D = A B + C over the 64 lanes, whatever EXEC says.
//!
//! Every product is exact and is added in single precision, rounded to nearest, `k` rising from C on; hardware adds several
//! products at a time in an order that is not documented, so results agree with it within that rounding. On gfx90a,
//! subnormal inputs in half precision and bfloat16, and subnormal results of such products, count as zero; gfx942 keeps
//! them ("Numerical accuracy" in PyTorch's notes, "MI200" in AMD's documentation of data types).

use super::decode::{Instruction, Target};
use super::float::{f16_to_f32, flush32};
use super::matrix::{Element, Place, Shape};
use super::micro::{Micro, Source, Step, Trap};
use super::shared::Shared;
use super::wave::{LANES, Lanes, Wave, Wide};

/// A key of [`Micro::flags`]: subnormals count as zero.
const FLUSHES: u16 = 1;

/// A matrix operand of up to `N` elements a lane, converted: by element, then lane.
type Elements<T, const N: usize> = [[T; LANES]; N];

/// Checks that an instruction can be executed.
pub(super) fn prepare(i: &Instruction, m: &mut Micro) -> Result<(), String> {
    let shape = Shape::of(i.op).ok_or("unknown instruction")?;
    let modifiers = &i.modifiers;
    if shape.element != Element::F64
        && let Some(why) = shape.refuse_sharing(modifiers.cbsz, modifiers.abid)
    {
        return Err(why);
    }
    let is_half = matches!(shape.element, Element::F16 | Element::Bf16);
    m.flags = if is_half && i.target == Target::Gfx90a { FLUSHES } else { 0 };
    Ok(())
}

/// A product of matrices.
pub(super) fn run(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let Some((i, shape)) = sh.program.instruction(sh.at).and_then(|i| Some((i, Shape::of(i.op)?))) else {
        return Err(Trap::new("unknown instruction"));
    };
    sh.counters.count_matrix(shape.element.name(), shape.flops());
    // By rows and by registers of D.
    match (shape.element, shape.side, shape.own_outputs()) {
        (Element::F64, 16, _) => doubles::<16>(w, m, i, shape),
        (Element::F64, ..) => doubles::<4>(w, m, i, shape),
        (Element::I8, 32, 32) => integers::<32, 32>(w, m, i, shape),
        (Element::I8, 32, _) => integers::<32, 16>(w, m, i, shape),
        (Element::I8, 16, 16) => integers::<16, 16>(w, m, i, shape),
        (Element::I8, 16, _) => integers::<16, 4>(w, m, i, shape),
        (Element::I8, ..) => integers::<4, 4>(w, m, i, shape),
        (_, 32, 32) => singles::<32, 32>(w, m, i, shape),
        (_, 32, _) => singles::<32, 16>(w, m, i, shape),
        (_, 16, 16) => singles::<16, 16>(w, m, i, shape),
        (_, 16, _) => singles::<16, 4>(w, m, i, shape),
        (..) => singles::<4, 4>(w, m, i, shape),
    }
    Ok(())
}

/// `D = A B + C` with rows of `SIDE`; elements of a row lie in lanes one after another, those of A as those of B.
fn product<T: Copy, const SIDE: usize, const N: usize>(
    (i, shape): (&Instruction, Shape),
    a: &Elements<T, N>,
    b: &Elements<T, N>,
    d: &mut [[T; LANES]],
    add: impl Fn(T, T, T) -> T,
) {
    for block in 0..shape.blocks {
        let of_a = match shape.element {
            Element::F64 => block,
            _ => Shape::shared_block(block, i.modifiers.cbsz, i.modifiers.abid) % shape.blocks,
        };
        let places: [Place; SIDE] = std::array::from_fn(|row| shape.output(block, row, 0));
        for k in 0..shape.depth {
            let (x, y) = (shape.input(of_a, 0, k), shape.input(block, 0, k));
            let (left, right) = (&a[x.element][x.lane..x.lane + SIDE], &b[y.element][y.lane..y.lane + SIDE]);
            for row in 0..SIDE {
                let (factor, out) = (left[row], places[row]);
                let Some(sums) = d[out.element].get_mut(out.lane..out.lane + SIDE) else { continue };
                for column in 0..SIDE {
                    sums[column] = add(factor, right[column], sums[column]);
                }
            }
        }
    }
}

/// Register `i` of an operand; a constant stands for every register.
fn register(w: &Wave, source: Source, i: usize) -> Lanes {
    match source {
        Source::Vector(r) => w.v[usize::from(r) + i],
        other => w.lanes(other),
    }
}

/// The operand whose lanes an instruction permutes, before it is converted.
fn permuted(i: &Instruction, lanes: Lanes, is_b: bool) -> Lanes {
    if !is_b || i.modifiers.blgp == 0 {
        return lanes;
    }
    std::array::from_fn(|l| lanes[Shape::permuted_lane(l, i.modifiers.blgp) % LANES])
}

fn singles<const SIDE: usize, const OUT: usize>(w: &mut Wave, m: &Micro, i: &Instruction, shape: Shape) {
    let flushes = m.flags & FLUSHES != 0;
    let per = 32 / shape.element.bits().min(32);
    let (mut a, mut b) = ([[0.0; LANES]; 8], [[0.0; LANES]; 8]);
    for (source, to) in [(0, &mut a), (1, &mut b)] {
        for (at, to) in to.iter_mut().enumerate().take(shape.own_depth()) {
            let raw = permuted(i, register(w, m.src[source], at / per), source == 1);
            let shift = 16 * (at % per);
            for l in 0..LANES {
                to[l] = widen(shape.element, raw[l] >> shift, flushes);
            }
        }
    }
    let mut d = [[0.0; LANES]; OUT];
    for (at, to) in d.iter_mut().enumerate() {
        let from = register(w, m.src[2], at);
        for l in 0..LANES {
            to[l] = f32::from_bits(from[l]);
        }
    }
    if shape.element == Element::F32 {
        product::<_, SIDE, 8>((i, shape), &a, &b, &mut d, |a, b, c| a.mul_add(b, c));
    } else {
        // Products of two halves are exact in single precision, so that a plain sum is a fused one.
        product::<_, SIDE, 8>((i, shape), &a, &b, &mut d, |a, b, c| a * b + c);
    }
    for (at, from) in d.iter().enumerate() {
        let to = &mut w.v[usize::from(m.dst) + at];
        for l in 0..LANES {
            let bits = from[l].to_bits();
            to[l] = if flushes { flush32(bits) } else { bits };
        }
    }
}

/// The low bits of a register as a single.
#[inline(always)]
fn widen(element: Element, raw: u32, flushes: bool) -> f32 {
    let half = raw & 0xffff;
    let zero = |exponent: u32| if flushes && half & exponent == 0 { half & 0x8000 } else { half };
    match element {
        Element::F16 => f16_to_f32(zero(0x7c00) as u16),
        Element::Bf16 => f32::from_bits(zero(0x7f80) << 16),
        _ => f32::from_bits(raw),
    }
}

fn integers<const SIDE: usize, const OUT: usize>(w: &mut Wave, m: &Micro, i: &Instruction, shape: Shape) {
    let (mut a, mut b) = ([[0; LANES]; 8], [[0; LANES]; 8]);
    for (source, to) in [(0, &mut a), (1, &mut b)] {
        for (at, to) in to.iter_mut().enumerate().take(shape.own_depth()) {
            let raw = permuted(i, register(w, m.src[source], at / 4), source == 1);
            *to = raw.map(|raw| i32::from((raw >> (8 * (at % 4))) as i8));
        }
    }
    let mut d: [[i32; LANES]; OUT] = std::array::from_fn(|at| register(w, m.src[2], at).map(|x| x as i32));
    product::<_, SIDE, 8>((i, shape), &a, &b, &mut d, |a, b, c| c.wrapping_add(a * b));
    for (at, from) in d.iter().enumerate() {
        w.v[usize::from(m.dst) + at] = from.map(|x| x as u32);
    }
}

/// Double precision; where `blgp` would be there are the signs of A, B and C.
fn doubles<const SIDE: usize>(w: &mut Wave, m: &Micro, i: &Instruction, shape: Shape) {
    let flip = |at: u8| u64::from(i.modifiers.blgp >> at & 1) << 63;
    let load = |source: usize, at: usize, flip: u64| -> [f64; LANES] {
        let wide: Wide = match m.src[source] {
            Source::Vector(r) => w.wide(Source::Vector(r + 2 * at as u16)),
            other => w.wide(other),
        };
        wide.map(|x| f64::from_bits(x ^ flip))
    };
    let (a, b) = ([load(0, 0, flip(0))], [load(1, 0, flip(1))]);
    let count = shape.own_outputs();
    let mut d: Elements<f64, 32> =
        std::array::from_fn(|at| if at < count { load(2, at, flip(2)) } else { [0.0; LANES] });
    product::<_, SIDE, 1>((i, shape), &a, &b, &mut d, |a, b, c| a.mul_add(b, c));
    for (at, value) in d.iter().enumerate().take(count) {
        let (low, high) = (value.map(|x| x.to_bits() as u32), value.map(|x| (x.to_bits() >> 32) as u32));
        w.put_where(m.dst + 2 * at as u16, &low, u64::MAX);
        w.put_where(m.dst + 2 * at as u16 + 1, &high, u64::MAX);
    }
}
