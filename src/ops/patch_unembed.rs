//! `patch_unembed`: tokens through one linear map to patches, put side by side to an image in the units of the data.

use crate::backend::Exec;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::matmul::{Activation, Matmul};
use crate::ops::movement::patches::Tiling;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, Reference, ReferenceGrad,
};
use crate::ops::patchify::{FeatureOrder, Patches, Patchify};
use crate::ops::unpatchify::Unpatchify;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut, expect_dtype, expect_rank, expect_shape};

/// Maps every token to the numbers of a patch, puts the patches side by side, and undoes the normalisation of each channel.
///
/// ```text
/// y[b, c, i·P + p, j·Q + q] = (Σ_d weight[f(p, q, c), d] · x[b, i·w + j, d] + bias[f(p, q, c)]) · std[c] + mean[c]
/// ```
///
/// with features ordered `[row][column][channel]`. The patches are rounded to the type of `weight` before the statistics are applied;
/// they are not kept.
///
/// # Shapes
/// `x [B, h·w, D]`, `weight [P·Q·C, D]`, optionally `bias [P·Q·C]`, and, together or not at all, `mean [C]`, `std [C]` in f32 →
/// `y [B, C, h·P, w·Q]` in f32. `mean` and `std` are constants: they have no gradient.
///
/// # Units
/// `mean`, `std` and `y` have the unit of the data.
///
/// # Cost
/// With `R = B·h·w`, `F = C·P·Q`: forward `2·R·F·D` matmul, `R·F` vector for a bias and `2·R·F` for statistics. Backward `2·R·F·D`
/// matmul for each of `x` and `weight`, `R·F` vector for `bias`, and with statistics `R·F` vector once.
///
/// # Errors
/// [`Error::Shape`] unless `x` has three axes and `h·w` tokens, `weight` is a matrix with its `D` and a multiple of `P·Q` features, and
/// the others match; [`Error::Dtype`] unless `x`, `weight` and `bias` are the same of f32, bf16 and f16, statistics f32;
/// [`Error::Argument`] for another number of inputs, a patch or grid without a side, or if a gradient of a statistic is asked for;
/// [`Error::TooLarge`] if no tile of a patch fits.
///
/// # Source
/// The inverse of Dosovitskiy et al. 2021, section 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchUnembed {
    /// Rows `h` and columns `w` of the grid of patches.
    pub grid: [usize; 2],
    /// Rows `P` and columns `Q` of a patch.
    pub patch: [usize; 2],
}

const NAME: &str = "patch_unembed";
const PRODUCT: Matmul = Matmul { transpose_w: true, activation: Activation::None };
const ORDER: FeatureOrder = FeatureOrder::RowColumnChannel;
/// Work of one number that is scaled, as [`threads`](crate::backend::cpu::threads) counts it.
const WORK: usize = 12;

const SOURCE: Source = crate::source!("patch_unembed/patch_unembed.cu");
static FWD: Kernel = Kernel::new(SOURCE, "patch_unembed_fwd");
static GATHER: Kernel = Kernel::new(SOURCE, "patch_unembed_bwd_gather");

/// The inputs by name.
#[derive(Clone, Copy, Debug)]
struct Named<'s, T> {
    x: &'s T,
    weight: &'s T,
    bias: Option<&'s T>,
    /// Mean and deviation.
    statistics: Option<[&'s T; 2]>,
}

impl<'s, T> Named<'s, T> {
    fn of(inputs: &'s [T]) -> Option<Named<'s, T>> {
        Some(match inputs {
            [x, weight] => Named { x, weight, bias: None, statistics: None },
            [x, weight, bias] => Named { x, weight, bias: Some(bias), statistics: None },
            [x, weight, mean, std] => Named { x, weight, bias: None, statistics: Some([mean, std]) },
            [x, weight, bias, mean, std] => Named { x, weight, bias: Some(bias), statistics: Some([mean, std]) },
            _ => return None,
        })
    }
}

impl PatchUnembed {
    /// Patches, tokens and features of inputs that `infer` has accepted.
    fn size(&self, x: &Spec, weight: &Spec) -> (Patches, usize, usize) {
        let (b, features) = (x.shape().first().map_or(0, |b| *b), weight.shape().first().map_or(0, |f| *f));
        let c = features / self.patch.iter().product::<usize>().max(1);
        let patches = Patches { b, c, grid: self.grid, patch: self.patch, order: ORDER };
        (patches, b * self.grid[0] * self.grid[1], features)
    }

    pub(super) fn tiling(patches: Patches, features: usize, dtype: Dtype) -> Result<Option<Tiling>> {
        let tiling = Tiling::new(patches, dtype);
        if tiling.is_none() && patches.b * patches.grid[0] * patches.grid[1] * features > 0 {
            return Err(Error::too_large(NAME, "P·Q·C", format!("{:?}·{}", patches.patch, patches.c)));
        }
        Ok(tiling)
    }
}

impl Arity<2> for PatchUnembed {}
impl Arity<3> for PatchUnembed {}
impl Arity<4> for PatchUnembed {}
impl Arity<5> for PatchUnembed {}

impl Operator for PatchUnembed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let Some(Named { x, weight, bias, statistics }) = Named::of(inputs) else {
            return Err(Error::argument(format!(
                "{NAME}: expected 2 inputs [x, weight], with [bias], with [mean, std], found {}",
                inputs.len()
            )));
        };
        expect_dtype(NAME, "x", x, &Dtype::FLOATS)?;
        expect_dtype(NAME, "weight", weight, &[x.dtype()])?;
        let &[b, tokens, d] = expect_rank(NAME, "x", x, ["B", "h·w", "D"])?;
        let &[features, wd] = expect_rank(NAME, "weight", weight, ["P·Q·C", "D"])?;
        if wd != d {
            return Err(Error::shape(format!(
                "{NAME}: weight: expected [P·Q·C, D={d}] as x, found {:?}",
                weight.shape()
            )));
        }
        let ([h, w], [p, q]) = (self.grid, self.patch);
        let area = p.checked_mul(q).ok_or_else(|| Error::too_large(NAME, "patch", format!("{:?}", self.patch)))?;
        if h == 0 || w == 0 || area == 0 {
            return Err(Error::argument(format!(
                "{NAME}: grid, patch: expected 1 or more each way, found {:?}, {:?}",
                self.grid, self.patch
            )));
        }
        if h.checked_mul(w) != Some(tokens) {
            return Err(Error::shape(format!("{NAME}: x: expected [B, h·w={h}·{w}, D], found {:?}", x.shape())));
        }
        if features % area != 0 {
            return Err(Error::shape(format!(
                "{NAME}: weight: expected [a multiple of P·Q={area}, D], found {:?}",
                weight.shape()
            )));
        }
        // The patches, which are made on the way, must be addressable, too; the image has as many numbers.
        x.with_shape([b, tokens, features])?;
        let side =
            |n: usize, of: usize| n.checked_mul(of).ok_or_else(|| Error::too_large(NAME, "image", format!("{n}·{of}")));
        let image = Spec::f32([b, features / area, side(h, p)?, side(w, q)?])?;
        if let Some(bias) = bias {
            expect_dtype(NAME, "bias", bias, &[x.dtype()])?;
            expect_shape(NAME, "bias", bias, &[("P·Q·C", features)])?;
        }
        for (name, of) in ["mean", "std"].into_iter().zip(statistics.into_iter().flatten()) {
            expect_dtype(NAME, name, of, &[Dtype::F32])?;
            expect_shape(NAME, name, of, &[("C", image.shape()[1])])?;
        }
        Ok(Outputs::one(image))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let Some(n) = Named::of(x) else { return OpFlops::default() };
        let (_, rows, features) = self.size(n.x, n.weight);
        let numbers = (rows * features) as u128;
        let product = Flops::matmul(2 * numbers * n.weight.shape()[1] as u128);
        let when = |is: bool, times: u128| if is { Flops::vector(times * numbers) } else { Flops::ZERO };
        let has_bias = n.bias.is_some();
        let forward = product + when(has_bias, 1) + when(n.statistics.is_some(), 2);
        let asked = [wanted.has(0), wanted.has(1), has_bias && wanted.has(2)];
        let products: Flops = std::iter::repeat_n(product, asked[..2].iter().filter(|a| **a).count()).sum();
        let scaled = n.statistics.is_some() && asked.contains(&true);
        OpFlops { forward, backward: products + when(asked[2], 1) + when(scaled, 1), recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let (Some(n), [y]) = (Named::of(io.x), io.y) else { return Err(wrong_operands(NAME)) };
        let (patches, _, features) = self.size(n.x.spec(), n.weight.spec());
        let dtype = n.x.spec().dtype();
        let mut tokens = exec.alloc(Spec::new(dtype, [patches.b, self.grid[0] * self.grid[1], features])?)?;
        let operands: Vec<View<'_>> = [Some(n.x), Some(n.weight), n.bias].into_iter().flatten().cloned().collect();
        if let Some(to) = tokens.view_mut() {
            PRODUCT.forward(exec, Forward { x: &operands, y: &mut [to], saved: &mut [] })?;
        }
        if let Some(gpu) = exec.gpu() {
            let Some(tiling) = Self::tiling(patches, features, dtype)? else { return Ok(()) };
            let [mean, std] = constants(n.statistics);
            let arg = Arg::Bytes(bytemuck::bytes_of(&tiling.arg));
            let args = &mut [Arg::Out(y), Arg::Scratch(&tokens), mean, std, arg];
            return FWD.launch(gpu, dtype, tiling.launch(NAME)?, args);
        }
        self.field(exec, &tokens.view(), n.statistics, patches, y)
    }
}

impl PatchUnembed {
    /// On the CPU: patches side by side, in the units of the data.
    fn field(
        &self,
        exec: &Exec,
        tokens: &View<'_>,
        statistics: Option<[&View<'_>; 2]>,
        patches: Patches,
        y: &mut ViewMut<'_>,
    ) -> Result<()> {
        let mut image = exec.alloc(y.spec().with_dtype(tokens.spec().dtype()))?;
        if let Some(to) = image.view_mut() {
            let back = Unpatchify { grid: self.grid, patch: self.patch, order: ORDER };
            back.forward(exec, Forward { x: std::slice::from_ref(tokens), y: &mut [to], saved: &mut [] })?;
        }
        let statistics = numbers(statistics)?;
        let plane = y.spec().shape()[2..].iter().product();
        by_channel(&image.view(), patches, plane, Some(Out::of(y, plane)?), |c, v| match &statistics {
            Some([mean, std]) => v * std[c] + mean[c],
            None => v,
        })
    }
}

/// Mean and deviation as arguments.
fn constants<'a>(statistics: Option<[&'a View<'_>; 2]>) -> [Arg<'a>; 2] {
    statistics.map_or([Arg::Null, Arg::Null], |[mean, std]| [Arg::In(mean), Arg::In(std)])
}

fn numbers(statistics: Option<[&View<'_>; 2]>) -> Result<Option<[Vec<f32>; 2]>> {
    statistics.map(|[mean, std]| Ok([mean.to_f32()?, std.to_f32()?])).transpose()
}

/// On the CPU: every number of an image through a function of its channel.
fn by_channel(
    x: &View<'_>,
    patches: Patches,
    plane: usize,
    to: Option<Out<'_>>,
    f: impl Fn(usize, f32) -> f32 + Sync,
) -> Result<()> {
    let (Some(to), true) = (to, plane > 0) else { return Ok(()) };
    let c = patches.c;
    map(patches.b * c, WORK * plane, [In::new(Floats::of(x)?, plane)], [to], |first, [x], [y]| {
        for (k, (x, y)) in x.chunks(plane).zip(y.chunks_mut(plane)).enumerate() {
            let channel = (first + k) % c;
            y.iter_mut().zip(x).for_each(|(y, x)| *y = f(channel, *x));
        }
    });
    Ok(())
}

impl Differentiable for PatchUnembed {
    fn keeps(&self, wanted: Mask) -> Keeps {
        // The deviation is the last of four or of five inputs: whichever there is.
        let mut x = if wanted.is_empty() { Mask::NONE } else { Mask::of([3, 4]) };
        if wanted.has(0) {
            x = x.with(1);
        }
        if wanted.has(1) {
            x = x.with(0);
        }
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let Some(Some(dy)) = io.dy.first() else { return no_gradient(io.dx) };
        let Some(n) = Named::of(io.specs) else { return Err(wrong_operands(NAME)) };
        let (patches, _, features) = self.size(n.x, n.weight);
        let dtype = n.x.dtype();
        let operands = 2 + usize::from(n.bias.is_some());
        let (products, others) = io.dx.split_at_mut(operands);
        if others.iter().any(GradSlot::is_wanted) {
            return Err(Error::argument(format!("{NAME}: mean, std: expected constants, a gradient is asked for")));
        }
        let std = if n.statistics.is_some() { io.x.last().and_then(Option::as_ref) } else { None };
        let shape = [patches.b, self.grid[0] * self.grid[1], features];
        let dtokens = self.dtokens(exec, dy, std, patches, Spec::new(dtype, shape)?)?;
        let mut slots: Vec<GradSlot<'_>> = products.iter_mut().map(GradSlot::reborrow).collect();
        let product = Backward {
            specs: &io.specs[..operands],
            x: &io.x[..operands],
            y: &[None],
            saved: &[],
            dy: &[Some(dtokens.view())],
            dx: &mut slots,
        };
        PRODUCT.backward(exec, product)
    }
}

impl PatchUnembed {
    /// The gradient of the patches, in their type.
    fn dtokens(
        &self,
        exec: &Exec,
        dy: &View<'_>,
        std: Option<&View<'_>>,
        patches: Patches,
        spec: Spec,
    ) -> Result<Tensor> {
        let (dtype, features) = (spec.dtype(), spec.shape()[2]);
        let mut dtokens = exec.alloc(spec)?;
        if let Some(gpu) = exec.gpu() {
            if let Some(tiling) = Self::tiling(patches, features, dtype)? {
                let std = std.map_or(Arg::Null, |v| Arg::In(v));
                let arg = Arg::Bytes(bytemuck::bytes_of(&tiling.arg));
                let args = &mut [Arg::Scratch(&dtokens), Arg::In(dy), std, arg];
                GATHER.launch(gpu, dtype, tiling.launch(NAME)?, args)?;
            }
            return Ok(dtokens);
        }
        let mut scaled = exec.alloc(dy.spec().with_dtype(dtype))?;
        let std = std.map(|v| v.to_f32()).transpose()?;
        let plane = dy.spec().shape()[2..].iter().product();
        if let Some(mut to) = scaled.view_mut() {
            let to = Out::of(&mut to, plane)?;
            by_channel(dy, patches, plane, Some(to), |c, v| std.as_ref().map_or(v, |std| v * std[c]))?;
        }
        if let Some(to) = dtokens.view_mut() {
            let cut = Patchify { patch: self.patch, order: ORDER };
            cut.forward(exec, Forward { x: &[scaled.view()], y: &mut [to], saved: &mut [] })?;
        }
        Ok(dtokens)
    }

    /// Calls `visit(number of the image, channel, token, feature)` for every number of the image.
    pub(super) fn each(patches: Patches, features: usize, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let plane: usize = patches.grid.iter().chain(&patches.patch).product();
        patches.pairs(&mut |image, at| visit(image, image / plane % patches.c, at / features, at % features));
    }
}

impl Reference for PatchUnembed {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let (Some(n), [y]) = (Named::of(io.x), io.y) else { return };
        let (patches, _, features) = self.size(n.x.spec, n.weight.spec);
        let d = n.weight.spec.shape()[1];
        Self::each(patches, features, |image, c, token, feature| {
            let mut z = S::zero();
            for k in 0..d {
                z = z.mac(n.x[token * d + k], n.weight[feature * d + k]);
            }
            let z = n.bias.map_or(z, |bias| z + bias[feature]).stored();
            y[image] = n.statistics.map_or(z, |[mean, std]| z * std[c] + mean[c]);
        });
    }
}

impl ReferenceGrad for PatchUnembed {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let (Some(n), [dy]) = (Named::of(io.x), io.dy) else { return };
        let (patches, rows, features) = self.size(n.x.spec, n.weight.spec);
        let d = n.weight.spec.shape()[1];
        if io.wanted().is_empty() {
            return;
        }
        let mut slopes = vec![S::zero(); rows * features];
        Self::each(patches, features, |image, c, token, feature| {
            let v = n.statistics.map_or(dy[image], |[_, std]| dy[image] * std[c]);
            slopes[token * features + feature] = v.stored();
        });
        for (i, slope) in slopes.into_iter().enumerate() {
            let (token, feature) = (i / features, i % features);
            if let Some(Some(dx)) = io.dx.first_mut() {
                (0..d).for_each(|k| dx[token * d + k] = dx[token * d + k].mac(slope, n.weight[feature * d + k]));
            }
            if let Some(Some(dweight)) = io.dx.get_mut(1) {
                (0..d).for_each(|k| dweight[feature * d + k] = dweight[feature * d + k].mac(slope, n.x[token * d + k]));
            }
            if let (Some(_), Some(Some(dbias))) = (n.bias, io.dx.get_mut(2)) {
                dbias[feature] = dbias[feature] + slope;
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: NAME,
    about: "tokens to patches to an image in the units of the data",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case([b, c, d]: [usize; 3], grid: [usize; 2], patch: [usize; 2], has_bias: bool, has_statistics: bool) -> Case {
    let features = c * patch[0] * patch[1];
    let mut inputs = vec![Input::new("x", [b, grid[0] * grid[1], d]), Input::new("weight", [features, d])];
    if has_bias {
        inputs.push(Input::new("bias", [features]));
    }
    if has_statistics {
        inputs.push(Input::new("mean", [c]).always_f32().constant());
        inputs.push(Input::new("std", [c]).always_f32().constant().fill(Fill::Uniform(0.5, 2.0)));
    }
    Case::new(PatchUnembed { grid, patch }, inputs)
}

fn cases() -> Vec<Case> {
    vec![
        case([1, 1, 1], [1, 1], [1, 1], false, false),
        case([2, 3, 5], [2, 3], [4, 4], true, true),
        case([1, 2, 7], [3, 2], [2, 5], true, false),
        case([2, 3, 8], [1, 2], [8, 8], false, true),
        case([1, 20, 24], [1, 3], [8, 8], true, true),
        case([1, 5, 3], [3, 4], [1, 1], false, false),
        case([1, 3, 4], [2, 3], [3, 3], true, true),
        case([1, 1, 9], [2, 2], [16, 16], false, true),
        case([1, 16, 6], [2, 10], [2, 2], true, true),
        case([0, 2, 3], [2, 2], [2, 2], true, true),
        // Models' patches: 32 by 32, Prithvi's 2 by 2 of 160 channels, 320 channels.
        case([1, 1, 8], [2, 1], [32, 32], true, true),
        case([1, 160, 8], [2, 3], [2, 2], true, true),
        case([1, 320, 8], [1, 2], [2, 2], false, true),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = PatchUnembed { grid: [2, 3], patch: [2, 2] };
    let bad = |shapes: &[&[usize]], error| BadCase::new(op, shapes, error);
    vec![
        bad(&[&[1, 5, 8], &[12, 8]], "x: expected [B, h·w=2·3, D], found [1, 5, 8]"),
        bad(&[&[1, 6, 8], &[13, 8]], "weight: expected [a multiple of P·Q=4, D], found [13, 8]"),
        bad(&[&[1, 6, 8], &[12, 7]], "weight: expected [P·Q·C, D=8] as x, found [12, 7]"),
        bad(&[&[1, 6, 8], &[12, 8], &[3]], "bias: expected [P·Q·C=12], found [3]"),
        bad(&[&[1, 6, 8], &[12, 8], &[3], &[4]], "std: expected [C=3], found [4]"),
        bad(&[&[6, 8], &[12, 8]], "x: expected 3 axes [B, h·w, D], found [6, 8]"),
        bad(&[&[1, 6, 8]], "expected 2 inputs [x, weight], with [bias], with [mean, std], found 1"),
        BadCase::new(
            PatchUnembed { grid: [0, 3], patch: [2, 2] },
            &[&[1, 0, 8], &[12, 8]],
            "grid, patch: expected 1 or more",
        ),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![
        case([4, 20, 192], [8, 16], [8, 8], true, true),
        case([4, 20, 768], [90, 180], [8, 8], true, true),
        case([4, 20, 384], [45, 90], [16, 16], true, true),
        case([32, 73, 768], [16, 32], [8, 8], true, true),
        case([2, 160, 2560], [180, 288], [2, 2], true, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);

    #[test]
    fn embedding_with_an_identity_and_back_gives_the_image() {
        let exec = Exec::cpu();
        let (c, p, q, h, w) = (3, 2, 4, 3, 5);
        let (features, n) = (c * p * q, c * h * p * w * q);
        let numbers: Vec<f32> = (0..n).map(|i| i as f32).collect();
        // Number (row, column, channel) of a token is number (channel, row, column) of its patch.
        let mut reordered = vec![0.0; features * features];
        for k in 0..features {
            let (channel, row, column) = (k / (p * q), k / q % p, k % q);
            reordered[((row * q + column) * c + channel) * features + k] = 1.0;
        }
        let unit: Vec<f32> =
            (0..features * features).map(|i| f32::from(u8::from(i / features == i % features))).collect();
        let put = |shape: &[usize], v: &[f32]| Tensor::from_f32(shape, v).unwrap();
        let x = put(&[1, c, h * p, w * q], &numbers);
        let (mean, std) = (put(&[c], &[1.0, 2.0, 4.0]), put(&[c], &[0.5, 2.0, 4.0]));
        let (zeros, weight) = (put(&[features], &vec![0.0; features]), put(&[features, c, p, q], &reordered));
        let mut tokens = put(&[1, h * w, features], &vec![f32::NAN; h * w * features]);
        let io = Forward {
            x: &[x.view(), weight.view(), zeros.view(), mean.view(), std.view()],
            y: &mut [tokens.view_mut().unwrap()],
            saved: &mut [],
        };
        crate::ops::patch_embed::PatchEmbed.forward(&exec, io).unwrap();
        let (mut y, unit) = (put(&[1, c, h * p, w * q], &vec![f32::NAN; n]), put(&[features, features], &unit));
        let io = Forward {
            x: &[tokens.view(), unit.view(), mean.view(), std.view()],
            y: &mut [y.view_mut().unwrap()],
            saved: &mut [],
        };
        PatchUnembed { grid: [h, w], patch: [p, q] }.forward(&exec, io).unwrap();
        assert_eq!(y.to_f32().unwrap(), numbers);
    }
}
