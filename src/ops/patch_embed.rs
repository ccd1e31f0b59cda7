//! `patch_embed`: patches of an image, normalised, through one linear map.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch::{self, kept};
use crate::ops::matmul::{Activation, Matmul};
use crate::ops::movement::patches::Tiling;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, RefInput, Reference, ReferenceGrad,
};
use crate::ops::patchify::{FeatureOrder, Patches, Patchify};
use crate::ops::unpatchify::Unpatchify;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, expect_dtype, expect_rank, expect_shape};

/// Cuts an image into patches that do not overlap, normalises each channel, and maps every patch to a token: a convolution whose
/// stride is its kernel.
///
/// ```text
/// y[b, i·w + j, d] = Σ_{c, p, q} weight[d, c, p, q] · (x[b, c, i·P + p, j·Q + q] − mean[c]) / std[c] + bias[d]
/// ```
///
/// The patches are rounded to the type of `weight` before the product. They are not kept: backward makes them again if the gradient of
/// `weight` is asked for.
///
/// # Shapes
/// `x [B, C, H, W]` in f32, `weight [D, C, P, Q]`, `bias [D]`, and, together or not at all, `mean [C]`, `std [C]` in f32 → `y [B, h·w, D]`
/// with `h = H/P`, `w = W/Q`, tokens row by row. `mean` and `std` are constants: they have no gradient.
///
/// # Units
/// `mean` and `std` have the unit of `x`; `bias` and `y` that of `weight` times that of `x` over that of `std`.
///
/// # Cost
/// With `R = B·h·w`, `F = C·P·Q`: forward `2·R·F·D` matmul and `R·D` vector, with statistics `2·R·F` vector more. Backward `2·R·F·D`
/// matmul for each of `x` and `weight`, `R·D` vector for `bias`, with statistics `R·F` vector more for `x`; recomputed `2·R·F` vector
/// for `weight` with statistics.
///
/// # Errors
/// [`Error::Shape`] unless `x` and `weight` have four axes and the same `C`, `P` and `Q` divide `H` and `W`, and the others match;
/// [`Error::Dtype`] unless `weight` and `bias` are the same of f32, bf16 and f16, `x` and statistics f32; [`Error::Argument`]
/// for another number of inputs or if a gradient of a statistic is asked for; [`Error::TooLarge`] if no tile of a patch fits.
///
/// # Source
/// Dosovitskiy et al. 2021, section 3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchEmbed;

const NAME: &str = "patch_embed";
const PRODUCT: Matmul = Matmul { transpose_w: true, activation: Activation::None };
const ORDER: FeatureOrder = FeatureOrder::ChannelRowColumn;
/// Work of one number that is normalised, as [`threads`](crate::backend::cpu::threads) counts it.
const WORK: usize = 12;

const SOURCE: Source = crate::source!("patch_embed/patch_embed.cu");
static GATHER: Kernel = Kernel::new(SOURCE, "patch_embed_fwd_gather");
static DX: Kernel = Kernel::new(SOURCE, "patch_embed_bwd_dx");

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

impl Arity<3> for PatchEmbed {}
impl Arity<5> for PatchEmbed {}

impl Operator for PatchEmbed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let (x, weight, bias, statistics) = match inputs {
            [x, weight, bias] => (x, weight, bias, None),
            [x, weight, bias, mean, std] => (x, weight, bias, Some([("mean", mean), ("std", std)])),
            _ => {
                return Err(Error::argument(format!(
                    "{NAME}: expected 3 inputs [x, weight, bias] or 5 with [mean, std], found {}",
                    inputs.len()
                )));
            }
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
        for (name, of) in statistics.into_iter().flatten() {
            expect_dtype(NAME, name, of, &[Dtype::F32])?;
            expect_shape(NAME, name, of, &[("C", c)])?;
        }
        // The patches, which are made on the way, must be addressable, too.
        weight.with_shape([b, height / p * (width / q), c * p * q])?;
        Ok(Outputs::one(weight.with_shape([b, height / p * (width / q), d])?))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let s = Size::of(x[0], x[1]);
        let (rows, features, d) = (s.rows as u128, s.features as u128, s.d as u128);
        let (product, numbers) = (Flops::matmul(2 * rows * features * d), rows * features);
        let scaled = |times: u128| if x.len() == 5 { Flops::vector(times * numbers) } else { Flops::ZERO };
        let when = |i: usize, flops: Flops| if wanted.has(i) { flops } else { Flops::ZERO };
        OpFlops {
            forward: product + Flops::vector(rows * d) + scaled(2),
            backward: when(0, product + scaled(1)) + when(1, product) + when(2, Flops::vector(rows * d)),
            recomputed: when(1, scaled(2)),
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, weight, bias, statistics @ ..], [y]) = (io.x, io.y) else { return Err(wrong_operands(NAME)) };
        let s = Size::of(x.spec(), weight.spec());
        let statistics = Statistics { mean: statistics.first(), std: statistics.get(1) };
        let tokens = tokens(exec, x, statistics, s, weight.spec().dtype())?;
        let x = [tokens.view(), weight.reshape(s.matrix())?, bias.clone()];
        let y = y.part(0, [s.rows, s.d])?;
        PRODUCT.forward(exec, Forward { x: &x, y: &mut [y], saved: &mut [] })
    }
}

impl Differentiable for PatchEmbed {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let mut x = Mask::NONE;
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
        let [dx, dweight, dbias, others @ ..] = io.dx else { return Err(wrong_operands(NAME)) };
        if others.iter().any(GradSlot::is_wanted) {
            return Err(Error::argument(format!("{NAME}: mean, std: expected constants, a gradient is asked for")));
        }
        let at = |i: usize| io.x.get(i).and_then(Option::as_ref);
        let statistics = Statistics { mean: at(3), std: at(4) };
        let patches = match dweight {
            GradSlot::Unwanted => None,
            _ => Some(tokens(exec, kept(NAME, io.x, 0)?, statistics, s, dtype)?),
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
            Some(dtokens) => image(exec, &dtokens, statistics.std, s, dx),
            None => Ok(()),
        }
    }
}

/// The normalised patches of `x` in `dtype`.
fn tokens(exec: &Exec, x: &View<'_>, statistics: Statistics<'_, '_>, s: Size, dtype: Dtype) -> Result<Tensor> {
    let mut tokens = exec.alloc(Spec::new(dtype, [s.rows, s.features])?)?;
    if let Some(gpu) = exec.gpu() {
        let Some(tiling) = tiling(s, dtype)? else { return Ok(tokens) };
        let args = &mut [
            Arg::Scratch(&tokens),
            Arg::In(x),
            statistics.mean.map_or(Arg::Null, |v| Arg::In(v)),
            statistics.std.map_or(Arg::Null, |v| Arg::In(v)),
            Arg::Bytes(bytemuck::bytes_of(&tiling.arg)),
        ];
        GATHER.launch(gpu, dtype, tiling.launch(NAME)?, args)?;
        return Ok(tokens);
    }
    let normal;
    let x = if statistics.std.is_none() && x.spec().dtype() == dtype {
        x.clone()
    } else {
        normal = normalised(exec, x, statistics, dtype)?;
        normal.view()
    };
    let cut = Patchify { patch: s.patches.patch, order: ORDER };
    let Patches { b, grid: [h, w], .. } = s.patches;
    if let Some(mut to) = tokens.view_mut() {
        let y = to.part(0, [b, h * w, s.features])?;
        cut.forward(exec, Forward { x: &[x], y: &mut [y], saved: &mut [] })?;
    }
    Ok(tokens)
}

/// On the CPU: every channel less its mean, over its deviation, in `dtype`.
fn normalised(exec: &Exec, x: &View<'_>, statistics: Statistics<'_, '_>, dtype: Dtype) -> Result<Tensor> {
    let [b, c, height, width] = axes(x.spec());
    let plane = height * width;
    let mut y = exec.alloc(x.spec().with_dtype(dtype))?;
    let (Some(mut to), true) = (y.view_mut(), plane > 0) else { return Ok(y) };
    let of = |v: Option<&View<'_>>| v.map(|v| v.to_f32()).transpose();
    let (mean, std) = (of(statistics.mean)?, of(statistics.std)?);
    map(b * c, WORK * plane, [In::new(Floats::of(x)?, plane)], [Out::of(&mut to, plane)?], |first, [x], [y]| {
        for (k, (x, y)) in x.chunks(plane).zip(y.chunks_mut(plane)).enumerate() {
            let channel = (first + k) % c;
            match (&mean, &std) {
                (Some(mean), Some(std)) => {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean[channel]) / std[channel]);
                }
                _ => y.copy_from_slice(x),
            }
        }
    });
    Ok(y)
}

/// The gradient of the image from that of its patches.
fn image(exec: &Exec, dtokens: &Tensor, std: Option<&View<'_>>, s: Size, dx: &mut GradSlot<'_>) -> Result<()> {
    let Patches { b, c, grid: [h, w], patch: [p, q], .. } = s.patches;
    let dtype = dtokens.spec().dtype();
    if let Some(gpu) = exec.gpu() {
        let (Some((dx, add)), Some(tiling)) = (launch::slot(dx), tiling(s, dtype)?) else { return Ok(()) };
        return scatter(gpu, dtokens, std, &tiling, dx, add);
    }
    let (plane, back) = (h * p * w * q, Unpatchify { grid: [h, w], patch: [p, q], order: ORDER });
    let mut whole = exec.alloc(Spec::new(dtype, [b, c, h * p, w * q])?)?;
    if plane == 0 {
        return Ok(());
    }
    if let Some(y) = whole.view_mut() {
        let x = dtokens.view().reshape([b, h * w, s.features])?;
        back.forward(exec, Forward { x: &[x], y: &mut [y], saved: &mut [] })?;
    }
    let std = std.map(|v| v.to_f32()).transpose()?;
    let Some(to) = Out::slot(dx, plane)? else { return Ok(()) };
    map(b * c, WORK * plane, [In::new(Floats::of(&whole.view())?, plane)], [to], |first, [x], [y]| {
        for (k, (x, y)) in x.chunks(plane).zip(y.chunks_mut(plane)).enumerate() {
            let std = std.as_ref().map_or(1.0, |std| std[(first + k) % c]);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x / std);
        }
    });
    Ok(())
}

fn scatter(
    gpu: &Gpu,
    dtokens: &Tensor,
    std: Option<&View<'_>>,
    tiling: &Tiling,
    dx: &mut crate::tensor::ViewMut<'_>,
    add: i32,
) -> Result<()> {
    let dtype = dtokens.spec().dtype();
    let args = &mut [
        Arg::Out(dx),
        Arg::Scratch(dtokens),
        std.map_or(Arg::Null, |v| Arg::In(v)),
        Arg::Bytes(bytemuck::bytes_of(&tiling.arg)),
        Arg::I32(add),
    ];
    DX.launch(gpu, dtype, tiling.launch(NAME)?, args)
}

/// The tiles of the patches; `None` if there is nothing to move.
fn tiling(s: Size, dtype: Dtype) -> Result<Option<Tiling>> {
    let tiling = Tiling::new(s.patches, dtype);
    if tiling.is_none() && s.rows * s.features > 0 {
        return Err(Error::too_large(NAME, "C·P·Q", format!("{}·{:?}", s.patches.c, s.patches.patch)));
    }
    Ok(tiling)
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
            let v = if x.len() == 5 { (v - x[3][c]) / x[4][c] } else { v };
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
        for r in 0..s.rows {
            for d in 0..s.d {
                let mut z = S::zero();
                for f in 0..s.features {
                    z = z.mac(patches[r * s.features + f], weight[d * s.features + f]);
                }
                y[r * s.d + d] = z + bias[d];
            }
        }
    }
}

impl ReferenceGrad for PatchEmbed {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let s = Size::of(io.x[0].spec, io.x[1].spec);
        let ([dy], [dx, dweight, dbias, ..]) = (io.dy, io.dx) else { return };
        if let Some(dx) = dx {
            Self::each(s, |image, c, token, feature| {
                let mut v = S::zero();
                for d in 0..s.d {
                    v = v.mac(dy[token * s.d + d], io.x[1][d * s.features + feature]);
                }
                let v = v.stored();
                dx[image] = if io.x.len() == 5 { v / io.x[4][c] } else { v };
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
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

/// With statistics where asked.
fn case(x: [usize; 4], [d, p, q]: [usize; 3], has_statistics: bool) -> Case {
    let image = Input::new("x", x).always_f32();
    let mut inputs = vec![image, Input::new("weight", [d, x[1], p, q]), Input::new("bias", [d])];
    if has_statistics {
        inputs.push(Input::new("mean", [x[1]]).always_f32().constant());
        inputs.push(Input::new("std", [x[1]]).always_f32().constant().fill(Fill::Uniform(0.5, 2.0)));
    }
    Case::new(PatchEmbed, inputs)
}

fn cases() -> Vec<Case> {
    vec![
        case([1, 1, 1, 1], [1, 1, 1], false),
        case([2, 3, 8, 12], [5, 4, 4], true),
        case([1, 2, 6, 10], [7, 2, 5], true),
        case([2, 3, 8, 16], [8, 8, 8], false),
        case([1, 4, 16, 32], [24, 8, 8], true),
        case([1, 5, 3, 4], [3, 1, 1], false),
        case([1, 3, 6, 9], [4, 3, 3], true),
        case([1, 1, 32, 32], [9, 16, 16], true),
        case([1, 16, 4, 20], [6, 2, 2], true),
        case([0, 2, 4, 4], [3, 2, 2], true),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let bad = |shapes: &[&[usize]], error| BadCase::new(PatchEmbed, shapes, error);
    let narrow = [Spec::new(Dtype::Bf16, [1, 2, 4, 4]), Spec::f32([3, 2, 2, 2]), Spec::f32([3])];
    vec![
        bad(&[&[1, 2, 5, 4], &[3, 2, 2, 2], &[3]], "x: expected H a multiple of 2 and W of 2, found [1, 2, 5, 4]"),
        bad(&[&[1, 2, 4, 4], &[3, 4, 2, 2], &[3]], "weight: expected [D, C=2, P, Q] as x, found [3, 4, 2, 2]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 0, 2], &[3]], "weight: expected a patch of 1 or more each way, found [0, 2]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 2, 2], &[4]], "bias: expected [D=3], found [4]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 2, 2], &[3], &[2], &[3]], "std: expected [C=2], found [3]"),
        bad(&[&[2, 4, 4], &[3, 2, 2, 2], &[3]], "x: expected 4 axes [B, C, H, W], found [2, 4, 4]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 2, 2]], "expected 3 inputs [x, weight, bias] or 5 with [mean, std], found 2"),
        BadCase::of_specs(PatchEmbed, narrow.into_iter().flatten().collect(), "x: expected f32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let case = |x, d, p| case(x, [d, p, p], true);
    vec![
        case([4, 20, 64, 128], 192, 8),
        case([4, 20, 720, 1440], 768, 8),
        case([4, 20, 720, 1440], 384, 16),
        case([32, 73, 128, 256], 768, 8),
        case([2, 160, 360, 576], 2560, 2),
    ]
}

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
