//! `patch_embed`: patches of an image, normalised, through one linear map.

mod cases;
mod launch;
mod passes;

use crate::backend::Exec;
use crate::backend::gpu::kernel::Arg;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::add::Add;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::contract::Room;
use crate::ops::launch::kept;
use crate::ops::matmul::{Activation, Matmul};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, RefInput, Reference, ReferenceGrad,
};
use crate::ops::patchify::{FeatureOrder, Patches};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut, expect_dtype, expect_rank, expect_shape};

/// Cuts an image into patches that do not overlap, normalises each channel, and maps every patch to a token: a convolution whose
/// stride is its kernel.
///
/// ```text
/// y[b, i·w + j, d] = Σ_{c, p, q} weight[d, c, p, q] · (x[b, c, i·P + p, j·Q + q] − mean[c]) / std[c] + bias[d] + position[i·w + j, d]
/// ```
///
/// The patches are rounded to the type of `weight` before the product. They are not kept: backward makes them again if the gradient of
/// `weight` is asked for.
///
/// # Shapes
/// `x [B, C, H, W]` in f32, `weight [D, C, P, Q]`, `bias [D]`, and, together or not at all, `mean [C]`, `std [C]` in f32, and, if wanted,
/// `position [h·w, D]` as the last → `y [B, h·w, D]` with `h = H/P`, `w = W/Q`, tokens row by row. `mean` and `std` are constants: they
/// have no gradient.
///
/// # Units
/// `mean` and `std` have the unit of `x`; `bias`, `position` and `y` that of `weight` times that of `x` over that of `std`.
///
/// # Cost
/// With `R = B·h·w`, `F = C·P·Q`: forward `2·R·F·D` matmul and `R·D` vector, with statistics `2·R·F` vector more, with positions `R·D`.
/// Backward `2·R·F·D` matmul for each of `x` and `weight`, `R·D` vector for `bias`, with statistics `R·F` vector more for `x`, for
/// `position` `(R − h·w)·D` vector; recomputed `2·R·F` vector for `weight` with statistics.
///
/// # Errors
/// [`Error::Shape`] unless `x` and `weight` have four axes and the same `C`, `P` and `Q` divide `H` and `W`, and the others match;
/// [`Error::Dtype`] unless `weight`, `bias` and `position` are the same of f32, bf16 and f16, `x` and statistics f32; [`Error::Argument`]
/// for another number of inputs or if a gradient of a statistic is asked for; [`Error::TooLarge`] if no tile of a patch fits.
///
/// # Source
/// Dosovitskiy et al. 2021, section 3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchEmbed;

const NAME: &str = "patch_embed";
const PRODUCT: Matmul = Matmul { transpose_w: true, activation: Activation::None };
const ORDER: FeatureOrder = FeatureOrder::ChannelRowColumn;
/// What the lengths of the inputs make.
#[derive(Clone, Copy, Debug)]
struct Size {
    patches: Patches,
    /// Tokens, numbers of each patch, numbers of each token.
    rows: usize,
    features: usize,
    d: usize,
}

impl Size {
    /// Of inputs that `infer` has accepted.
    fn of(x: &Spec, weight: &Spec) -> Size {
        let ([b, c, height, width], [d, _, p, q]) = (axes(x), axes(weight));
        let grid = [height / p.max(1), width / q.max(1)];
        let patches = Patches { b, c, grid, patch: [p, q], order: ORDER };
        Size { patches, rows: b * grid[0] * grid[1], features: c * p * q, d }
    }

    /// The shape of the weight as a matrix.
    fn matrix(&self) -> [usize; 2] {
        [self.d, self.features]
    }
}

fn axes(x: &Spec) -> [usize; 4] {
    x.shape().try_into().unwrap_or_default()
}

/// The constants of each channel.
#[derive(Clone, Copy, Debug)]
struct Statistics<'s, 'a> {
    mean: Option<&'s View<'a>>,
    std: Option<&'s View<'a>>,
}

impl<'s> Statistics<'s, '_> {
    /// As arguments of a launch.
    fn args(&self) -> [Arg<'s>; 2] {
        [self.mean, self.std].map(|v| v.map_or(Arg::Null, |v| Arg::In(v)))
    }
}

/// Where mean and position lie among this many inputs.
fn places(inputs: usize) -> Option<(Option<usize>, Option<usize>)> {
    Some(match inputs {
        3 => (None, None),
        4 => (None, Some(3)),
        5 => (Some(3), None),
        6 => (Some(3), Some(5)),
        _ => return None,
    })
}

impl Arity<3> for PatchEmbed {}
impl Arity<4> for PatchEmbed {}
impl Arity<5> for PatchEmbed {}
impl Arity<6> for PatchEmbed {}

impl Operator for PatchEmbed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let (Some((mean, position)), [x, weight, bias, ..]) = (places(inputs.len()), inputs) else {
            return Err(Error::argument(format!(
                "{NAME}: expected 3 inputs [x, weight, bias], with [mean, std], with [position], found {}",
                inputs.len()
            )));
        };
        expect_dtype(NAME, "weight", weight, &Dtype::FLOATS)?;
        expect_dtype(NAME, "x", x, &[Dtype::F32])?;
        expect_dtype(NAME, "bias", bias, &[weight.dtype()])?;
        let &[b, c, height, width] = expect_rank(NAME, "x", x, ["B", "C", "H", "W"])?;
        let &[d, wc, p, q] = expect_rank(NAME, "weight", weight, ["D", "C", "P", "Q"])?;
        if p == 0 || q == 0 {
            return Err(Error::shape(format!(
                "{NAME}: weight: expected a patch of 1 or more each way, found [{p}, {q}]"
            )));
        }
        if wc != c {
            return Err(Error::shape(format!(
                "{NAME}: weight: expected [D, C={c}, P, Q] as x, found {:?}",
                weight.shape()
            )));
        }
        if height % p != 0 || width % q != 0 {
            return Err(Error::shape(format!(
                "{NAME}: x: expected H a multiple of {p} and W of {q}, found {:?}",
                x.shape()
            )));
        }
        expect_shape(NAME, "bias", bias, &[("D", d)])?;
        for (name, of) in ["mean", "std"].into_iter().zip(mean.map_or(&[][..], |at| &inputs[at..])) {
            expect_dtype(NAME, name, of, &[Dtype::F32])?;
            expect_shape(NAME, name, of, &[("C", c)])?;
        }
        let tokens = height / p * (width / q);
        if let Some(at) = position {
            expect_dtype(NAME, "position", inputs[at], &[weight.dtype()])?;
            expect_shape(NAME, "position", inputs[at], &[("h·w", tokens), ("D", d)])?;
        }
        // The patches, which are made on the way, must be addressable, too.
        weight.with_shape([b, tokens, c * p * q])?;
        Ok(Outputs::one(weight.with_shape([b, tokens, d])?))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let s = Size::of(x[0], x[1]);
        let (rows, features, d) = (s.rows as u128, s.features as u128, s.d as u128);
        let (product, numbers) = (Flops::matmul(2 * rows * features * d), rows * features);
        let (mean, position) = places(x.len()).unwrap_or_default();
        let scaled = |times: u128| if mean.is_some() { Flops::vector(times * numbers) } else { Flops::ZERO };
        let when = |i: usize, flops: Flops| if wanted.has(i) { flops } else { Flops::ZERO };
        let shifted = Flops::vector(rows * d);
        let repeated = Flops::vector((rows - rows / (s.patches.b as u128).max(1)) * d);
        OpFlops {
            forward: product + shifted + scaled(2) + position.map_or(Flops::ZERO, |_| shifted),
            backward: when(0, product + scaled(1))
                + when(1, product)
                + when(2, shifted)
                + position.map_or(Flops::ZERO, |at| when(at, repeated)),
            recomputed: when(1, scaled(2)),
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let (Some((mean, position)), [x, weight, bias, ..], [y]) = (places(io.x.len()), io.x, io.y) else {
            return Err(wrong_operands(NAME));
        };
        let s = Size::of(x.spec(), weight.spec());
        let statistics =
            Statistics { mean: mean.and_then(|at| io.x.get(at)), std: mean.and_then(|at| io.x.get(at + 1)) };
        let position = position.and_then(|at| io.x.get(at));
        let dtype = weight.spec().dtype();
        let tokens = passes::tokens(exec, x, statistics, s, dtype)?;
        let x = [tokens.view(), weight.reshape(s.matrix())?, bias.clone()];
        let product = |mut y: ViewMut<'_>| {
            let y = y.part(0, [s.rows, s.d])?;
            PRODUCT.forward(exec, Forward { x: &x, y: &mut [y], saved: &mut [] })
        };
        let Some(position) = position else { return product(y.reborrow()) };
        let mut unshifted = exec.alloc(y.spec().clone())?;
        if let Some(to) = unshifted.view_mut() {
            product(to)?;
        }
        Add.forward(exec, Forward { x: &[unshifted.view(), position.clone()], y: &mut [y.reborrow()], saved: &mut [] })
    }
}

impl Differentiable for PatchEmbed {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let mut x = Mask::NONE;
        // Statistics are inputs 3 and 4 where there are any; a position, which nothing reads, may be kept in their place.
        if wanted.has(0) {
            x = x.with(1).with(4);
        }
        if wanted.has(1) {
            x = x.with(0).with(3).with(4);
        }
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let Some(Some(dy)) = io.dy.first() else { return no_gradient(io.dx) };
        let s = Size::of(io.specs[0], io.specs[1]);
        let dtype = io.specs[1].dtype();
        let (Some((mean, position)), [dx, dweight, dbias, others @ ..]) = (places(io.specs.len()), io.dx) else {
            return Err(wrong_operands(NAME));
        };
        let at = |i: usize| io.x.get(i).and_then(Option::as_ref);
        let statistics = Statistics { mean: mean.and_then(at), std: mean.and_then(|mean| at(mean + 1)) };
        let (constants, positions) = others.split_at_mut(if mean.is_some() { 2 } else { 0 });
        if constants.iter().any(GradSlot::is_wanted) {
            return Err(Error::argument(format!("{NAME}: mean, std: expected constants, a gradient is asked for")));
        }
        if let (Some(at), [dposition]) = (position, positions) {
            let shape = &Spec::new(dtype, [s.patches.b, s.rows / s.patches.b.max(1), s.d])?;
            let repeated = Backward {
                specs: &[shape, io.specs[at]],
                x: &[None, None],
                y: &[None],
                saved: &[],
                dy: &[Some(dy.clone())],
                dx: &mut [GradSlot::Unwanted, dposition.reborrow()],
            };
            Add.backward(exec, repeated)?;
        }
        let patches = match dweight {
            GradSlot::Unwanted => None,
            _ => Some(passes::tokens(exec, kept(NAME, io.x, 0)?, statistics, s, dtype)?),
        };
        let mut dtokens = match dx {
            GradSlot::Unwanted => None,
            _ => Some(exec.alloc(Spec::new(dtype, [s.rows, s.features])?)?),
        };
        let weight = at(1).map(|w| w.reshape(s.matrix())).transpose()?;
        let specs = [&Spec::new(dtype, [s.rows, s.features])?, &Spec::new(dtype, s.matrix())?, io.specs[2]];
        let (matrix, bias) = (dweight.part(0, s.matrix())?, dbias.reborrow());
        let to = dtokens.as_mut().and_then(Tensor::view_mut).map_or(GradSlot::Unwanted, GradSlot::Set);
        let product = Backward {
            specs: &specs,
            x: &[patches.as_ref().map(Tensor::view), weight, None],
            y: &[None],
            saved: &[],
            dy: &[Some(dy.part(0, [s.rows, s.d])?)],
            dx: &mut [to, matrix, bias],
        };
        PRODUCT.backward(exec, product)?;
        match dtokens {
            Some(dtokens) => passes::image(exec, &dtokens, statistics.std, s, dx),
            None => Ok(()),
        }
    }
}

impl PatchEmbed {
    /// Calls `visit(number of the image, channel, token, feature)` for every number of the image.
    fn each(s: Size, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let plane: usize = s.patches.grid.iter().chain(&s.patches.patch).product();
        s.patches.pairs(&mut |image, at| visit(image, image / plane % s.patches.c, at / s.features, at % s.features));
    }

    /// The normalised patches, stored as an unfused pass stores them.
    fn patches<S: Scalar>(x: &[RefInput<'_, S>], s: Size) -> Vec<S> {
        let mut patches = vec![S::zero(); s.rows * s.features];
        Self::each(s, |image, c, token, feature| {
            let v = x[0][image];
            let v = if x.len() > 4 { (v - x[3][c]) / x[4][c] } else { v };
            patches[token * s.features + feature] = v.stored();
        });
        patches
    }
}

impl Reference for PatchEmbed {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let [y] = io.y else { return };
        let s = Size::of(io.x[0].spec, io.x[1].spec);
        let (patches, weight, bias) = (Self::patches(io.x, s), io.x[1], io.x[2]);
        let (position, per) = (places(io.x.len()).and_then(|(_, at)| at), s.rows / s.patches.b.max(1));
        for r in 0..s.rows {
            for d in 0..s.d {
                let mut z = S::zero();
                for f in 0..s.features {
                    z = z.mac(patches[r * s.features + f], weight[d * s.features + f]);
                }
                z = z + bias[d];
                y[r * s.d + d] = position.map_or(z, |at| z + io.x[at][r % per * s.d + d]);
            }
        }
    }
}

impl ReferenceGrad for PatchEmbed {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let s = Size::of(io.x[0].spec, io.x[1].spec);
        let ([dy], [dx, dweight, dbias, others @ ..]) = (io.dy, io.dx) else { return };
        let per = s.rows / s.patches.b.max(1);
        if let (Some((_, Some(at))), Some(Some(dposition))) = (places(io.x.len()), others.last_mut()) {
            debug_assert_eq!(at, io.x.len() - 1);
            let (first, others) = dy.split_at(dposition.len().min(dy.len()));
            dposition[..first.len()].copy_from_slice(first);
            others.iter().enumerate().for_each(|(i, &dy)| dposition[i % (per * s.d)] = dposition[i % (per * s.d)] + dy);
        }
        if let Some(dx) = dx {
            Self::each(s, |image, c, token, feature| {
                let mut v = S::zero();
                for d in 0..s.d {
                    v = v.mac(dy[token * s.d + d], io.x[1][d * s.features + feature]);
                }
                let v = v.stored();
                dx[image] = if io.x.len() > 4 { v / io.x[4][c] } else { v };
            });
        }
        if let Some(dweight) = dweight {
            let patches = Self::patches(io.x, s);
            for r in 0..s.rows {
                for d in 0..s.d {
                    for f in 0..s.features {
                        let at = d * s.features + f;
                        dweight[at] = dweight[at].mac(dy[r * s.d + d], patches[r * s.features + f]);
                    }
                }
            }
        }
        if let Some(dbias) = dbias {
            for r in 0..s.rows {
                (0..s.d).for_each(|d| dbias[d] = dbias[d] + dy[r * s.d + d]);
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: NAME,
    about: "patches of an image, normalised, through one linear map",
    dtypes: &Dtype::FLOATS,
    kernels: launch::KERNELS,
    cases: cases::cases,
    bad_cases: cases::bad_cases,
    bench_cases: cases::bench_cases,
};

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);

    #[test]
    fn a_statistic_has_no_gradient_and_says_so() {
        let exec = Exec::cpu();
        let one = |shape: &[usize]| Tensor::from_f32(shape, &vec![1.0; shape.iter().product()]).unwrap();
        let x = [one(&[1, 1, 1, 1]), one(&[1, 1, 1, 1]), one(&[1]), one(&[1]), one(&[1])];
        let (dy, mut dmean) = (one(&[1, 1, 1]), one(&[1]));
        let specs: Vec<&Spec> = x.iter().map(Tensor::spec).collect();
        let slot = GradSlot::Set(dmean.view_mut().unwrap());
        let io = Backward {
            specs: &specs,
            x: &x.iter().map(|x| Some(x.view())).collect::<Vec<_>>(),
            y: &[None],
            saved: &[],
            dy: &[Some(dy.view())],
            dx: &mut [GradSlot::Unwanted, GradSlot::Unwanted, GradSlot::Unwanted, slot, GradSlot::Unwanted],
        };
        let e = PatchEmbed.backward(&exec, io).unwrap_err().to_string();
        assert_eq!(e, "patch_embed: mean, std: expected constants, a gradient is asked for");
    }
}
