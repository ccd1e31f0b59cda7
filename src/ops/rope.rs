//! `rope`: rotary position embedding, every pair of numbers turned by an angle that grows with its position.

use std::sync::Arc;

use crate::backend::Exec;
use crate::backend::cpu::threads::{self, Rows, RowsMut};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit};
use crate::backend::gpu::tables::Table;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    RefInput, Reference, ReferenceGrad,
};
use crate::ops::{host, launch};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Remote, Spec, Tensor, View, expect_dtype, expect_shape};

/// Rotary position embedding.
///
/// ```text
/// y[n, first(i)]  = x[n, first(i)]·cos(aₙᵢ) − x[n, second(i)]·sin(aₙᵢ)        aₙᵢ = position(n) · frequency(i)
/// y[n, second(i)] = x[n, second(i)]·cos(aₙᵢ) + x[n, first(i)]·sin(aₙᵢ)        frequency(i) = theta^(−2i/D), then scaled
/// ```
///
/// for the `D/2` pairs `i` of every head. `position(n)` is `start + n`, or what the second input says.
///
/// # Shapes
/// `x [.., N, H, D]` with an even `D`, optionally `positions [N]` or `[.., N]` in i32 → `y` like `x`. Backward reads the
/// positions alone.
///
/// # Units
/// `y` has the unit of `x`; angles are in radians.
///
/// # Cost
/// `3` vector an element of `x` in each direction, and `T·D` special for the sines and cosines of `T` positions (`N`, or as many
/// as the second input has): forward, and recomputed in backward. Angles are made of parameters and integers, in f64, and
/// count nothing.
///
/// # Errors
/// [`Error::Shape`] unless `x` has three axes or more and an even last one, or for other positions; [`Error::Dtype`] unless
/// `x` is f32, bf16 or f16 and positions are i32; [`Error::Argument`] for a theta that is not positive and finite, a scaling
/// that is not sound, positions beyond 2⁵³.
///
/// # Source
/// Su et al. 2021, section 3.2.2 (`Interleaved`); GPT-NeoX and Llama turn halves. The scaling is that of Llama 3.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Which numbers of a head form a pair.
    pub pairs: Pairs,
    /// Base of the frequencies: 10,000 in the paper, 500,000 in Llama 3.
    pub theta: f64,
    /// Position of the first token, where positions are not an input.
    pub start: usize,
    /// Stretches low frequencies for longer texts than a model was first trained on.
    pub scaling: Option<Llama3Scaling>,
}

/// Which two of a head's `D` numbers are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// `i` and `i + D/2`: rotate half.
    Halves,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// Frequencies whose wave is longer than `original_len / low_freq_factor` are divided by `factor`, those shorter than
/// `original_len / high_freq_factor` stay, and between the two they go from one to the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// By how much low frequencies are divided.
    pub factor: f64,
    /// Waves in the original length from which on nothing is divided in full.
    pub low_freq_factor: f64,
    /// Waves in the original length from which on nothing changes.
    pub high_freq_factor: f64,
    /// Tokens that the model was first trained on.
    pub original_len: f64,
}

impl Llama3Scaling {
    fn apply(self, frequency: f64) -> f64 {
        let waves = self.original_len * frequency / std::f64::consts::TAU;
        let share = ((waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0);
        (1.0 - share) * frequency / self.factor + share * frequency
    }

    fn is_sound(self) -> bool {
        let positive = [self.factor, self.low_freq_factor, self.high_freq_factor, self.original_len];
        positive.iter().all(|x| *x > 0.0 && x.is_finite()) && self.low_freq_factor < self.high_freq_factor
    }
}

/// Sizes of one application.
#[derive(Clone, Copy)]
struct Size {
    /// Tokens of all samples.
    tokens: usize,
    heads: usize,
    d: usize,
    /// Positions that there are angles for.
    positions: usize,
}

impl Rope {
    fn size(&self, x: &[&Spec]) -> Size {
        let shape = x[0].shape();
        let [n, heads, d] = [3, 2, 1].map(|back| shape[shape.len() - back]);
        let tokens = shape[..shape.len() - 2].iter().product();
        Size { tokens, heads, d, positions: x.get(1).map_or(n, |p| p.len()) }
    }

    /// The angle of pair `i` at `position`, less whole turns: in f32 a position of some thousands would leave no digits.
    fn angle(&self, position: f64, i: usize, d: usize) -> f64 {
        (position * self.frequency(i, d)).rem_euclid(std::f64::consts::TAU)
    }

    /// The angle from one position to the next.
    fn frequency(&self, i: usize, d: usize) -> f64 {
        let frequency = self.theta.powf(-2.0 * i as f64 / d as f64);
        self.scaling.map_or(frequency, |s| s.apply(frequency))
    }

    fn position<S>(&self, x: &[RefInput<'_, S>], at: usize) -> f64 {
        match x.get(1) {
            Some(positions) => f64::from(positions.ints[at]),
            None => (self.start + at) as f64,
        }
    }

    /// Places of the two numbers of pair `i`.
    fn pair(&self, i: usize, d: usize) -> (usize, usize) {
        match self.pairs {
            Pairs::Halves => (i, i + d / 2),
            Pairs::Interleaved => (2 * i, 2 * i + 1),
        }
    }

    /// Turns `from` into `to`; with `back`, the other way.
    fn turn<S: Scalar>(&self, s: Size, x: &[RefInput<'_, S>], from: &[S], to: &mut [S], back: bool) {
        let half = s.d / 2;
        let angles = (0..s.positions).flat_map(|at| (0..half).map(move |i| (at, i)));
        let angles = angles.map(|(at, i)| S::of(self.angle(self.position(x, at), i, s.d)));
        let table: Vec<(S, S)> = angles.map(|a| (a.cos(), if back { -a.sin() } else { a.sin() })).collect();
        for token in 0..s.tokens {
            for h in 0..s.heads {
                let base = (token * s.heads + h) * s.d;
                for i in 0..half {
                    let (cos, sin) = table[token % s.positions * half + i];
                    let (a, b) = self.pair(i, s.d);
                    to[base + a] = from[base + a] * cos - from[base + b] * sin;
                    to[base + b] = from[base + b] * cos + from[base + a] * sin;
                }
            }
        }
    }

    /// The same in f32, with a table that is rounded once, tokens in parallel.
    fn turn_cpu(&self, s: Size, x: &[RefInput<'_, f32>], from: &[f32], to: &mut [f32], back: bool) {
        if to.is_empty() {
            return;
        }
        let half = s.d / 2;
        let mut table = vec![0.0_f32; s.positions * s.d];
        // About a hundred operations for a sine and a cosine in f64.
        threads::rows(s.positions, 100 * half, RowsMut::new(&mut table, s.d), |first, table| {
            for (at, row) in (first..).zip(table.data.chunks_mut(s.d)) {
                let (cos, sin) = row.split_at_mut(half);
                let position = self.position(x, at);
                for i in 0..half {
                    let (sine, cosine) = self.angle(position, i, s.d).sin_cos();
                    (cos[i], sin[i]) = (cosine as f32, if back { -sine } else { sine } as f32);
                }
            }
        });
        let width = s.heads * s.d;
        threads::rows(s.tokens, 12 * width, (Rows::new(from, width), RowsMut::new(to, width)), |first, (from, to)| {
            let rows = from.data.chunks(width).zip(to.data.chunks_mut(width));
            for (token, (from, to)) in (first..).zip(rows) {
                let (cos, sin) = table[token % s.positions * s.d..][..s.d].split_at(half);
                for (from, to) in from.chunks(s.d).zip(to.chunks_mut(s.d)) {
                    match self.pairs {
                        Pairs::Halves => turn_halves(from, cos, sin, to),
                        Pairs::Interleaved => turn_pairs(from, cos, sin, to),
                    }
                }
            }
        });
    }
}

const SOURCE: Source = crate::source!("rope/rope.cu");
static FWD_TABLE: Kernel = Kernel::new(SOURCE, "rope_fwd_table");
static FWD: Kernel = Kernel::new(SOURCE, "rope_fwd");
static BWD: Kernel = Kernel::new(SOURCE, "rope_bwd_dx");
/// Threads of a block; each turns as many pairs as a pack has numbers.
const THREADS: u32 = 256;
/// Heads of a thread.
const HEADS: usize = 2;

/// Sizes of one application on a device, with the sines and cosines of its angles.
struct Turn {
    size: Size,
    table: Angles,
}

/// Sines and cosines in a device's memory.
enum Angles {
    /// Of positions that follow from the operator: made at the first application.
    Kept(Arc<Table>),
    /// Of positions that are an input, or too many to keep.
    Made(Tensor),
}

impl Angles {
    fn operand(&self) -> &dyn Operand {
        match self {
            Angles::Kept(table) => &**table,
            Angles::Made(table) => table,
        }
    }
}

impl Rope {
    /// The sines and cosines, computed unless they were before.
    fn prepare(&self, gpu: &Gpu, x: &[&Spec], positions: Option<&View<'_>>) -> Result<Turn> {
        let (size, dtype) = (self.size(x), x[0].dtype());
        let spec = Spec::f32([size.positions, size.d])?;
        if positions.is_none() {
            let [start, many] = [self.start, size.positions].map(|n| n as u64);
            let key = self.frequency_key(size.d).into_iter().chain([start, many]).collect();
            let make = |to: &Table| self.fill_table(gpu, dtype, size, None, to);
            if let Some(table) = gpu.table("rope", key, &spec, make)? {
                return Ok(Turn { size, table: Angles::Kept(table) });
            }
        }
        let table = gpu.scratch(spec)?;
        self.fill_table(gpu, dtype, size, positions, &table)?;
        Ok(Turn { size, table: Angles::Made(table) })
    }

    /// What the frequencies of heads of `d` numbers follow from.
    fn frequency_key(&self, d: usize) -> Vec<u64> {
        let scaling = self.scaling.map(|s| [s.factor, s.low_freq_factor, s.high_freq_factor, s.original_len]);
        let numbers = [self.theta].into_iter().chain(scaling.into_iter().flatten());
        numbers.map(f64::to_bits).chain([d as u64]).collect()
    }

    /// Launches what computes sines and cosines into `to`.
    fn fill_table(
        &self,
        gpu: &Gpu,
        dtype: Dtype,
        size: Size,
        positions: Option<&View<'_>>,
        to: &dyn Operand,
    ) -> Result<()> {
        let half = size.d / 2;
        let write = |to: &Table| {
            let numbers: Vec<f64> = (0..half).map(|i| self.frequency(i, size.d)).collect();
            gpu.write(to.address().unwrap_or_default(), bytemuck::cast_slice(&numbers))
        };
        let words = Spec::new(Dtype::I32, [2 * half])?;
        let frequencies = gpu.table("rope frequencies", self.frequency_key(size.d), &words, write)?;
        let Some(frequencies) = frequencies else { return Err(Error::too_large("rope", "D", size.d)) };
        let angles = size.positions * half;
        let mut args = vec![Arg::Out(to), positions.map_or(Arg::Null, |p| Arg::In(p)), Arg::In(&*frequencies)];
        args.extend([launch::length("rope", "start", self.start)?, launch::length("rope", "angles", angles)?]);
        args.push(Arg::I32(launch::short("rope", "D", half)?));
        FWD_TABLE.launch(gpu, dtype, launch::each("rope", "angles", angles)?, &mut args)
    }

    /// The launch over all pairs, and the arguments that both directions share.
    fn arguments<'a>(&self, dtype: Dtype, turn: &'a Turn) -> Result<(Launch, Vec<Arg<'a>>)> {
        let Size { tokens, heads, d, positions } = turn.size;
        // A thread has several heads.
        let pairs = tokens * heads.div_ceil(HEADS) * (d / 2);
        let blocks = launch::blocks("rope", "pairs", pairs.div_ceil(THREADS as usize * launch::wide(dtype)))?;
        let mut args = vec![Arg::In(turn.table.operand()), launch::length("rope", "tokens", tokens)?];
        args.push(launch::length("rope", "positions", positions)?);
        let are_neighbours = i32::from(self.pairs == Pairs::Interleaved);
        args.extend(
            [launch::short("rope", "H", heads)?, launch::short("rope", "D", d / 2)?, are_neighbours].map(Arg::I32),
        );
        Ok((Launch::linear(blocks, THREADS), args))
    }
}

fn turn_halves(from: &[f32], cos: &[f32], sin: &[f32], to: &mut [f32]) {
    let ((a, b), (to_a, to_b)) = (from.split_at(cos.len()), to.split_at_mut(cos.len()));
    let turns = cos.iter().zip(sin);
    for (((&a, &b), (to_a, to_b)), (&cos, &sin)) in a.iter().zip(b).zip(to_a.iter_mut().zip(to_b)).zip(turns) {
        (*to_a, *to_b) = (a * cos - b * sin, b * cos + a * sin);
    }
}

fn turn_pairs(from: &[f32], cos: &[f32], sin: &[f32], to: &mut [f32]) {
    let ((from, _), (to, _)) = (from.as_chunks::<2>(), to.as_chunks_mut::<2>());
    for ((&[a, b], to), (&cos, &sin)) in from.iter().zip(to).zip(cos.iter().zip(sin)) {
        *to = [a * cos - b * sin, b * cos + a * sin];
    }
}

impl Arity<1> for Rope {}
impl Arity<2> for Rope {}

impl Operator for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let (x, positions) = match inputs {
            [x] => (x, None),
            [x, positions] => (x, Some(positions)),
            _ => {
                let found = inputs.len();
                return Err(Error::argument(format!("rope: expected 1 input [x] or 2 [x, positions], found {found}")));
            }
        };
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            return Err(Error::argument(format!("rope: theta: expected a positive number, found {}", self.theta)));
        }
        if let Some(scaling) = self.scaling.filter(|s| !s.is_sound()) {
            return Err(Error::argument(format!(
                "rope: scaling: expected positive numbers and low_freq_factor below high_freq_factor, found {scaling:?}"
            )));
        }
        expect_dtype("rope", "x", x, &Dtype::FLOATS)?;
        if x.rank() < 3 || x.last() == 0 || x.last() % 2 == 1 {
            let found = x.shape();
            return Err(Error::shape(format!("rope: x: expected [.., N, H, D] with D even, found {found:?}")));
        }
        let tokens = &x.shape()[..x.rank() - 2];
        let n = tokens[tokens.len() - 1];
        if self.start.checked_add(n).is_none_or(|end| end as u64 > 1 << 53) {
            return Err(Error::argument(format!("rope: start: expected positions up to 2^53, found {}", self.start)));
        }
        if let Some(positions) = positions {
            expect_dtype("rope", "positions", positions, &[Dtype::I32])?;
            if positions.shape() != tokens {
                expect_shape("rope", "positions", positions, &[("N", n)])?;
            }
        }
        Ok(Outputs::one((*x).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let s = self.size(x);
        let turn = Flops::vector(3 * x[0].len() as u128);
        // Without a token there is no angle either; without a head there still is.
        let table = Flops::special((s.positions * s.d) as u128);
        let (backward, recomputed) = if wanted.has(0) { (turn, table) } else { (Flops::ZERO, Flops::ZERO) };
        OpFlops { forward: turn + table, backward, recomputed }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let Some(gpu) = exec.gpu() else { return host::forward(self, io) };
        let ([x, ..], [y]) = (io.x, io.y) else { return Err(wrong_operands("rope")) };
        let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
        let turn = self.prepare(gpu, &specs, io.x.get(1))?;
        let dtype = x.spec().dtype();
        let (launch, rest) = self.arguments(dtype, &turn)?;
        FWD.launch(gpu, dtype, launch, &mut [Arg::Out(y), Arg::In(x)].into_iter().chain(rest).collect::<Vec<_>>())
    }
}

impl Differentiable for Rope {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps { x: Mask::of([1]), y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let Some(gpu) = exec.gpu() else { return host::backward(self, io) };
        let ([dy], [dx, ..]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands("rope")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
        let turn = self.prepare(gpu, io.specs, io.x.get(1).and_then(Option::as_ref))?;
        let dtype = dy.spec().dtype();
        let (launch, rest) = self.arguments(dtype, &turn)?;
        let mut args = vec![Arg::Out(dx), Arg::In(dy)];
        args.extend(rest.into_iter().chain([Arg::I32(add)]));
        BWD.launch(gpu, dtype, launch, &mut args)
    }
}

fn specs<'a, S>(x: &'a [RefInput<'_, S>]) -> Vec<&'a Spec> {
    x.iter().map(|x| x.spec).collect()
}

impl Reference for Rope {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        self.turn(self.size(&specs(io.x)), io.x, &io.x[0], io.y[0], false);
    }

    fn forward_cpu(&self, io: RefForward<'_, f32>) {
        self.turn_cpu(self.size(&specs(io.x)), io.x, &io.x[0], io.y[0], false);
    }
}

impl ReferenceGrad for Rope {
    /// The inverse of a rotation is the rotation back.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        if let Some(dx) = &mut io.dx[0] {
            self.turn(self.size(&specs(io.x)), io.x, io.dy[0], dx, true);
        }
    }

    fn backward_cpu(&self, io: RefBackward<'_, f32>) {
        if let Some(dx) = &mut io.dx[0] {
            self.turn_cpu(self.size(&specs(io.x)), io.x, io.dy[0], dx, true);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "rope",
    about: "pairs of numbers turned by an angle that grows with their position",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const LLAMA3: Llama3Scaling =
    Llama3Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 8192.0 };

fn cases() -> Vec<Case> {
    let halves = Rope { pairs: Pairs::Halves, theta: 1e4, start: 0, scaling: None };
    let interleaved = Rope { pairs: Pairs::Interleaved, ..halves };
    let llama = Rope { theta: 5e5, start: 9000, scaling: Some(LLAMA3), ..halves };
    let positions = |shape: &[usize], fill| match *shape {
        [b, n] => Input::ints("positions", [b, n], fill),
        _ => Input::ints("positions", [shape[0]], fill),
    };
    let mut cases = vec![
        Case::new(halves, [Input::new("x", [1, 1, 2])]),
        Case::new(interleaved, [Input::new("x", [1, 1, 1, 2])]),
        Case::new(llama, [Input::new("x", [1, 20, 2, 64])]),
        Case::new(halves, [Input::new("x", [2, 5, 3, 6]), positions(&[5], Fill::IntsIn(0, 4000))]),
        Case::new(interleaved, [Input::new("x", [2, 5, 1, 14]), positions(&[2, 5], Fill::IntsIn(-9, 9))]),
        Case::new(halves, [Input::new("x", [2, 0, 3, 6])]),
    ];
    // Heads that are no whole group, and more than one.
    cases.push(Case::new(halves, [Input::new("x", [1, 3, 5, 32])]));
    cases.push(Case::new(interleaved, [Input::new("x", [1, 3, 8, 16])]));
    for d in [14, 16, 18, 32, 34, 128] {
        cases.push(Case::new(halves, [Input::new("x", [1, 7, 2, d])]));
        cases.push(Case::new(interleaved, [Input::new("x", [2, 3, 1, d])]));
    }
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let op = Rope { pairs: Pairs::Halves, theta: 1e4, start: 0, scaling: None };
    let scaling = |s| Rope { scaling: Some(s), ..op };
    let f32 = |shape: &[usize]| Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(op, &[&[2, 5, 3, 7]], "x: expected [.., N, H, D] with D even, found [2, 5, 3, 7]"),
        BadCase::new(op, &[&[5, 6]], "x: expected [.., N, H, D] with D even, found [5, 6]"),
        BadCase::new(op, &[&[5, 6, 0]], "with D even, found [5, 6, 0]"),
        BadCase::new(op, &[&[5, 1, 6], &[5], &[5]], "expected 1 input [x] or 2 [x, positions], found 3"),
        BadCase::new(op, &[&[5, 1, 6], &[5]], "positions: expected i32, found [5] f32"),
        BadCase::of_specs(
            op,
            vec![f32(&[2, 5, 1, 6]), f32(&[5, 2]).with_dtype(Dtype::I32)],
            "positions: expected [N=5], found [5, 2]",
        ),
        BadCase::of_specs(op, vec![f32(&[5, 1, 6]).with_dtype(Dtype::I32)], "x: expected f32 or bf16 or f16"),
        BadCase::new(Rope { theta: 0.0, ..op }, &[&[5, 1, 6]], "theta: expected a positive number, found 0"),
        BadCase::new(Rope { theta: f64::NAN, ..op }, &[&[5, 1, 6]], "theta: expected a positive number"),
        BadCase::new(Rope { start: usize::MAX, ..op }, &[&[5, 1, 6]], "start: expected positions up to 2^53"),
        BadCase::new(scaling(Llama3Scaling { factor: 0.0, ..LLAMA3 }), &[&[5, 1, 6]], "scaling: expected positive"),
        BadCase::new(
            scaling(Llama3Scaling { low_freq_factor: 4.0, ..LLAMA3 }),
            &[&[5, 1, 6]],
            "low_freq_factor below high_freq_factor",
        ),
    ]
}

fn bench_cases() -> Vec<Case> {
    let op = Rope { pairs: Pairs::Halves, theta: 1e6, start: 0, scaling: None };
    vec![
        Case::new(op, [Input::new("x", [1, 1024, 14, 64])]),
        Case::new(Rope { pairs: Pairs::Interleaved, ..op }, [Input::new("x", [1, 1024, 14, 64])]),
        Case::new(op, [Input::new("x", [4, 4096, 32, 128])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial;

    crate::room_tests!(ROOM);

    const OP: Rope = Rope { pairs: Pairs::Halves, theta: 1e4, start: 0, scaling: None };

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_distance_alone() {
        let (q, k) = ([0.3, -1.2, 0.7, 0.1], [1.0, 0.4, -0.6, 2.0]);
        let dot = |m: usize, n: usize| -> f32 {
            let turned = |start, x: &[f32]| trial::forward(&Rope { start, ..OP }, &[(&[1, 1, 4], x)]);
            turned(m, &q).iter().zip(turned(n, &k)).map(|(q, k)| q * k).sum()
        };
        assert!((dot(5, 2) - dot(1005, 1002)).abs() < 1e-5, "{} {}", dot(5, 2), dot(1005, 1002));
        assert!((dot(0, 0) - q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>()).abs() < 1e-6);
    }

    #[test]
    fn the_llama_scaling_leaves_high_frequencies_and_divides_low_ones() {
        let (high, low) = (1.0, 1e-5);
        assert_eq!(LLAMA3.apply(high), high);
        assert_eq!(LLAMA3.apply(low), low / 8.0);
        let between = LLAMA3.apply(std::f64::consts::TAU * 2.5 / 8192.0) / (std::f64::consts::TAU * 2.5 / 8192.0);
        assert!((between - (0.5 / 8.0 + 0.5)).abs() < 1e-12, "{between}");
    }

    #[test]
    fn nan_spoils_its_pair_alone() {
        let y = trial::forward(&Rope { start: 3, ..OP }, &[(&[1, 1, 6], &[1.0, f32::NAN, 2.0, 3.0, 4.0, 5.0])]);
        assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i % 3 == 1)), "{y:?}");
    }
}
