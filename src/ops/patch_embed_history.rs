//! `patch_embed_history`: patches of several variables over several times, each variable with a weight of its own, to one token.

use crate::backend::Exec;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::concat::Concat;
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::operator::{
    AnyArity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, Reference, ReferenceGrad,
};
use crate::ops::patch_embed::PatchEmbed;
use crate::ops::slice::Slice;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, expect_dtype, expect_rank, expect_shape};

/// [`PatchEmbed`] of variables with a history: a convolution over time and space whose stride is its kernel, the weight of every variable
/// a parameter of its own.
///
/// ```text
/// y[b, i·w + j, d] = Σ_{v, t, p, q} weight_v[d, 0, t, p, q] · x[b, v, t, i·P + p, j·Q + q] + bias[d]
/// ```
///
/// A weight may know more times than `x` has: the first of them are used, and the gradient of the others is zero. The weights are put
/// side by side before the product, which is that of [`PatchEmbed`].
///
/// # Shapes
/// `x [B, V, T, H, W]` in f32, `bias [D]`, and `V` weights `[D, 1, Tₘ, P, Q]` with `Tₘ ≥ T` → `y [B, h·w, D]` with `h = H/P`, `w = W/Q`,
/// tokens row by row.
///
/// # Units
/// `bias` and `y` have the unit of `weight` times that of `x`.
///
/// # Cost
/// That of [`PatchEmbed`] with `C = V·T` without statistics; backward, each weight has its share of the product.
///
/// # Errors
/// [`Error::Shape`] unless `x` has five axes, there is a weight for each variable, all alike and of `T` times at least, `P` and `Q`
/// divide `H` and `W`, and `bias` fits; [`Error::Dtype`] and [`Error::TooLarge`] as [`PatchEmbed`]; [`Error::Argument`] without a weight
/// or with more than 30.
///
/// # Source
/// Bodnar et al. 2024, supplementary section B.1: patches of a variable's history, summed over variables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchEmbedHistory;

const NAME: &str = "patch_embed_history";
/// As many weights as a set of inputs can name beside `x` and `bias`.
const MOST: usize = 30;
/// The inputs before the weights.
const OTHERS: usize = 2;

/// The operands of the one product: the image with variables and times as channels, the weights side by side.
struct Folded {
    image: Spec,
    weight: Spec,
    /// Numbers of a variable's weight for one number of a token: those that are used, and all.
    used: usize,
    all: usize,
}

impl Folded {
    /// Of inputs that `infer` has accepted.
    fn of(x: &Spec, weight: &Spec) -> Result<Folded> {
        let ([b, v, t, height, width], [d, _, times, p, q]) = (axes(x), axes(weight));
        Ok(Folded {
            image: x.with_shape([b, v * t, height, width])?,
            weight: weight.with_shape([d, v * t, p, q])?,
            used: t * p * q,
            all: times * p * q,
        })
    }

    fn d(&self) -> usize {
        self.weight.shape()[0]
    }

    /// The part of a variable's weight that is used.
    fn slice(&self) -> Slice {
        Slice { axis: 1, start: 0, len: self.used }
    }

    /// The weights side by side.
    fn pack(&self, exec: &Exec, weights: &[&View<'_>]) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(weights.len());
        for weight in weights {
            let mut part = exec.alloc(self.weight.with_shape([self.d(), self.used])?)?;
            if let Some(to) = part.view_mut() {
                let x = weight.reshape([self.d(), self.all])?;
                self.slice().forward(exec, Forward { x: &[x], y: &mut [to], saved: &mut [] })?;
            }
            parts.push(part);
        }
        let mut packed = exec.alloc(self.weight.clone())?;
        let parts: Vec<View<'_>> = parts.iter().map(Tensor::view).collect();
        if let Some(mut to) = packed.view_mut() {
            let y = to.part(0, [self.d(), self.used * parts.len()])?;
            Concat { axis: 1 }.forward(exec, Forward { x: &parts, y: &mut [y], saved: &mut [] })?;
        }
        Ok(packed)
    }

    /// The gradients of the variables' weights from that of the weights side by side.
    fn unpack(&self, exec: &Exec, packed: &Tensor, slots: &mut [GradSlot<'_>]) -> Result<()> {
        let row = self.weight.with_shape([self.d(), self.all])?;
        let packed = packed.view().reshape([self.d(), self.used * slots.len()])?;
        for (v, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_wanted()) {
            let mut part = exec.alloc(self.weight.with_shape([self.d(), self.used])?)?;
            if let Some(to) = part.view_mut() {
                let own = Slice { axis: 1, start: v * self.used, len: self.used };
                own.forward(exec, Forward { x: std::slice::from_ref(&packed), y: &mut [to], saved: &mut [] })?;
            }
            let back = Backward {
                specs: &[&row],
                x: &[None],
                y: &[None],
                saved: &[],
                dy: &[Some(part.view())],
                dx: &mut [slot.part(0, [self.d(), self.all])?],
            };
            self.slice().backward(exec, back)?;
        }
        Ok(())
    }
}

fn axes(x: &Spec) -> [usize; 5] {
    x.shape().try_into().unwrap_or_default()
}

impl AnyArity for PatchEmbedHistory {}

impl Operator for PatchEmbedHistory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let Some(([x, bias], [first, ..])) =
            inputs.split_first_chunk::<OTHERS>().filter(|(_, weights)| weights.len() <= MOST)
        else {
            return Err(Error::argument(format!(
                "{NAME}: expected 3 to {} inputs [x, bias, weights..], found {}",
                OTHERS + MOST,
                inputs.len()
            )));
        };
        let weights = &inputs[OTHERS..];
        expect_dtype(NAME, "weight0", first, &Dtype::FLOATS)?;
        let &[_, v, t, height, width] = expect_rank(NAME, "x", x, ["B", "V", "T", "H", "W"])?;
        let &[d, one, times, p, q] = expect_rank(NAME, "weight0", first, ["D", "1", "T", "P", "Q"])?;
        if v != weights.len() {
            return Err(Error::shape(format!(
                "{NAME}: x: expected as many variables as weights, {}, found {:?}",
                weights.len(),
                x.shape()
            )));
        }
        if one != 1 || times < t {
            return Err(Error::shape(format!(
                "{NAME}: weight0: expected [D, 1, {t} times or more, P, Q], found {:?}",
                first.shape()
            )));
        }
        for (k, weight) in weights.iter().enumerate() {
            let name = format!("weight{k}");
            expect_dtype(NAME, &name, weight, &[first.dtype()])?;
            expect_shape(NAME, &name, weight, &[("D", d), ("1", 1), ("T", times), ("P", p), ("Q", q)])?;
        }
        if p == 0 || q == 0 {
            return Err(Error::shape(format!(
                "{NAME}: weight0: expected a patch of 1 or more each way, found [{p}, {q}]"
            )));
        }
        if height % p != 0 || width % q != 0 {
            return Err(Error::shape(format!(
                "{NAME}: x: expected H a multiple of {p} and W of {q}, found {:?}",
                x.shape()
            )));
        }
        expect_dtype(NAME, "x", x, &[Dtype::F32])?;
        expect_dtype(NAME, "bias", bias, &[first.dtype()])?;
        expect_shape(NAME, "bias", bias, &[("D", d)])?;
        let folded = Folded::of(x, first)?;
        PatchEmbed.infer(&[&folded.image, &folded.weight, bias])
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let [image, bias, weight, ..] = x else { return OpFlops::default() };
        let Ok(folded) = Folded::of(image, weight) else { return OpFlops::default() };
        let mut mask = if wanted.has(0) { Mask::of([0]) } else { Mask::NONE };
        if wanted.has(1) {
            mask = mask.with(2);
        }
        let of = PatchEmbed.flops(&[&folded.image, &folded.weight, bias], mask);
        let (numbers, all) = (image.len() as u128, axes(image)[1].max(1) as u128);
        let weights = (OTHERS..x.len()).filter(|&i| wanted.has(i)).count() as u128;
        OpFlops { backward: of.backward + Flops::matmul(2 * numbers / all * folded.d() as u128 * weights), ..of }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, bias, weights @ ..], [y]) = (io.x, io.y) else { return Err(wrong_operands(NAME)) };
        let Some(first) = weights.first() else { return Err(wrong_operands(NAME)) };
        let folded = Folded::of(x.spec(), first.spec())?;
        let packed = folded.pack(exec, &weights.iter().collect::<Vec<_>>())?;
        let x = [x.reshape(folded.image.shape())?, packed.view(), bias.clone()];
        PatchEmbed.forward(exec, Forward { x: &x, y: &mut [y.reborrow()], saved: &mut [] })
    }
}

impl Differentiable for PatchEmbedHistory {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let mut weights = OTHERS..OTHERS + MOST;
        let mut x = if wanted.has(0) { weights.clone().fold(Mask::NONE, Mask::with) } else { Mask::NONE };
        if weights.any(|i| wanted.has(i)) {
            x = x.with(0);
        }
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let Some(Some(dy)) = io.dy.first() else { return no_gradient(io.dx) };
        let ([x, bias, weight, ..], [dx, dbias, dweights @ ..]) = (io.specs, io.dx) else {
            return Err(wrong_operands(NAME));
        };
        let folded = Folded::of(x, weight)?;
        let image = match io.x.first() {
            Some(Some(x)) => Some(x.reshape(folded.image.shape())?),
            _ => None,
        };
        let packed = if dx.is_wanted() {
            let weights: Option<Vec<&View<'_>>> = io.x[OTHERS..].iter().map(Option::as_ref).collect();
            Some(folded.pack(exec, &weights.ok_or_else(|| wrong_operands(NAME))?)?)
        } else {
            None
        };
        let is_wanted = dweights.iter().any(GradSlot::is_wanted);
        let mut dpacked = if is_wanted { Some(exec.alloc(folded.weight.clone())?) } else { None };
        let to = dpacked.as_mut().and_then(Tensor::view_mut).map_or(GradSlot::Unwanted, GradSlot::Set);
        let product = Backward {
            specs: &[&folded.image, &folded.weight, bias],
            x: &[image, packed.as_ref().map(Tensor::view), None],
            y: &[None],
            saved: &[],
            dy: &[Some(dy.clone())],
            dx: &mut [dx.part(0, folded.image.shape())?, to, dbias.reborrow()],
        };
        PatchEmbed.backward(exec, product)?;
        match dpacked {
            Some(dpacked) => folded.unpack(exec, &dpacked, dweights),
            None => Ok(()),
        }
    }
}

impl PatchEmbedHistory {
    /// Calls `visit(number of x, token, variable, number of its weight for one number of the token)` for every number of `x`.
    fn each(x: &Spec, weight: &Spec, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let ([b, v, t, height, width], [_, _, _, p, q]) = (axes(x), axes(weight));
        let mut at = 0;
        for b in 0..b {
            for v in 0..v {
                for t in 0..t {
                    for row in 0..height {
                        for column in 0..width {
                            let token = (b * (height / p) + row / p) * (width / q) + column / q;
                            visit(at, token, v, (t * p + row % p) * q + column % q);
                            at += 1;
                        }
                    }
                }
            }
        }
    }
}

impl Reference for PatchEmbedHistory {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, bias, weights @ ..], [y]) = (io.x, io.y) else { return };
        let Some(first) = weights.first() else { return };
        let [d, _, times, p, q] = axes(first.spec);
        let all = times * p * q;
        Self::each(x.spec, first.spec, |at, token, v, k| {
            for n in 0..d {
                y[token * d + n] = y[token * d + n].mac(x[at].stored(), weights[v][n * all + k]);
            }
        });
        y.iter_mut().enumerate().for_each(|(i, y)| *y = *y + bias[i % d]);
    }
}

impl ReferenceGrad for PatchEmbedHistory {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, _, weights @ ..], [dy], [dx, dbias, dweights @ ..]) = (io.x, io.dy, io.dx) else { return };
        let Some(first) = weights.first() else { return };
        let [d, _, times, p, q] = axes(first.spec);
        let all = times * p * q;
        Self::each(x.spec, first.spec, |at, token, v, k| {
            let dy = &dy[token * d..][..d];
            if let Some(dx) = dx {
                let mut sum = S::zero();
                (0..d).for_each(|n| sum = sum.mac(dy[n], weights[v][n * all + k]));
                dx[at] = sum.stored();
            }
            if let Some(dweight) = &mut dweights[v] {
                let x = x[at].stored();
                (0..d).for_each(|n| dweight[n * all + k] = dweight[n * all + k].mac(dy[n], x));
            }
        });
        if let Some(dbias) = dbias {
            (0..dy.len()).for_each(|i| dbias[i % d] = dbias[i % d] + dy[i]);
        }
    }
}

/// The room. Its kernels are those of `patch_embed`, `matmul`, `slice` and `concat`.
pub static ROOM: Room = Room {
    name: NAME,
    about: "patches of several variables over several times, each with its own weight, to one token",
    dtypes: &Dtype::FLOATS,
    kernels: &[],
    cases,
    bad_cases,
    bench_cases,
};

const NAMES: [&str; 8] = ["weight0", "weight1", "weight2", "weight3", "weight4", "weight5", "weight6", "weight7"];

fn case(x: [usize; 5], [d, times, p, q]: [usize; 4]) -> Case {
    let mut inputs = vec![Input::new("x", x).always_f32(), Input::new("bias", [d])];
    inputs.extend(NAMES[..x[1]].iter().map(|name| Input::new(name, [d, 1, times, p, q])));
    Case::new(PatchEmbedHistory, inputs)
}

fn cases() -> Vec<Case> {
    vec![
        case([1, 1, 1, 1, 1], [1, 1, 1, 1]),
        case([2, 3, 2, 6, 10], [5, 2, 2, 5]),
        case([1, 2, 1, 8, 12], [8, 2, 4, 4]),
        case([2, 7, 2, 8, 8], [16, 2, 4, 4]),
        case([1, 5, 2, 10, 20], [24, 2, 10, 10]),
        case([1, 4, 3, 3, 3], [7, 4, 3, 3]),
        case([0, 2, 2, 4, 4], [3, 2, 2, 2]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let bad = |shapes: &[&[usize]], error| BadCase::new(PatchEmbedHistory, shapes, error);
    vec![
        bad(&[&[1, 2, 1, 4, 4], &[3]], "expected 3 to 32 inputs [x, bias, weights..], found 2"),
        bad(
            &[&[1, 2, 1, 4, 4], &[3], &[3, 1, 1, 2, 2]],
            "x: expected as many variables as weights, 1, found [1, 2, 1, 4, 4]",
        ),
        bad(
            &[&[1, 1, 2, 4, 4], &[3], &[3, 1, 1, 2, 2]],
            "weight0: expected [D, 1, 2 times or more, P, Q], found [3, 1, 1, 2, 2]",
        ),
        bad(
            &[&[1, 2, 1, 4, 4], &[3], &[3, 1, 1, 2, 2], &[3, 1, 2, 2, 2]],
            "weight1: expected [D=3, 1=1, T=1, P=2, Q=2], found [3, 1, 2, 2, 2]",
        ),
        bad(
            &[&[1, 1, 1, 5, 4], &[3], &[3, 1, 1, 2, 2]],
            "x: expected H a multiple of 2 and W of 2, found [1, 1, 1, 5, 4]",
        ),
        bad(&[&[1, 1, 4, 4], &[3], &[3, 1, 1, 2, 2]], "x: expected 5 axes [B, V, T, H, W], found [1, 1, 4, 4]"),
    ]
}

/// Aurora's surface variables and its levels at a quarter of a degree, patches of 4.
fn bench_cases() -> Vec<Case> {
    vec![case([1, 7, 2, 720, 1440], [512, 2, 4, 4]), case([13, 5, 2, 720, 1440], [512, 2, 4, 4])]
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);
}
