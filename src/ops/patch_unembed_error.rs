//! `patch_unembed_error`: the loss of the field that tokens make, without the field.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::add::Add;
use crate::ops::blocks::wrong_operands;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch::{kept, length};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, Reference, ReferenceGrad, expect_inputs,
};
use crate::ops::patch_unembed::{PRODUCT, PatchUnembed};
use crate::ops::patchify::Patches;
use crate::ops::totals;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut, expect_dtype, expect_shape};

/// Which function of the difference between field and target is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Its square.
    Squared,
    /// Its magnitude.
    Absolute,
}

/// The weighted mean error of what [`PatchUnembed`] makes of tokens: the field in the units of the data exists in no memory, nor does its
/// gradient.
///
/// ```text
/// y as PatchUnembed with bias, mean and std      loss = 1/n · Σ rows[i] · channels[c] · error(y[b, c, i, j] − target[b, c, i, j])
/// ```
///
/// with `error` the square or the magnitude. Weights are used as they are: the mean divides by the number of numbers.
///
/// # Shapes
/// `x [B, h·w, D]`, `weight [P·Q·C, D]`, `bias [P·Q·C]`, `mean [C]`, `std [C]`, `target [B, C, H, W]`, `rows [H]`, `channels [C]`, the last
/// five in f32 → `loss []` in f32 and `patches [B, h·w, P·Q·C]`, the numbers of the field before `std` and `mean`, which backward reads.
/// Only the first three inputs have a gradient.
///
/// # Units
/// `target`, `mean`, `std` have the unit of the data, `loss` that of `error`; weights are dimensionless.
///
/// # Cost
/// With `R = B·h·w`, `F = C·P·Q`: forward `2·R·F·D` matmul and `7·R·F + 1` vector; backward `2·R·F·D` matmul for each of `x` and
/// `weight`, `R·F` vector for `bias`, `5·R·F + 1` vector once; a square is `R·F` more in both; recomputed `3·R·F` vector.
///
/// # Errors
/// As [`PatchUnembed`]; [`Error::Shape`] unless `target` is the field and has a number in it, `rows` and `channels` fit;
/// [`Error::Argument`] if a gradient of another input than the first three is asked for.
///
/// # Source
/// The inverse of Dosovitskiy et al. 2021, section 3.1; weights as in WeatherBench (Rasp et al. 2020), equation 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchUnembedError {
    /// How tokens become a field.
    pub unembed: PatchUnembed,
    /// What is averaged.
    pub difference: Difference,
}

const NAME: &str = "patch_unembed_error";
const INPUTS: [&str; 8] = ["x", "weight", "bias", "mean", "std", "target", "rows", "channels"];
/// Inputs that have a gradient, and those of [`PatchUnembed`].
const PRODUCTS: usize = 3;
const UNEMBEDS: usize = 5;

const SOURCE: Source = crate::source!("patch_unembed_error/patch_unembed_error.cu");
static SUMS: Kernel = Kernel::new(SOURCE, "patch_unembed_error_fwd_sums");
static FWD: Kernel = Kernel::new(SOURCE, "patch_unembed_error_fwd");
static DTOKENS: Kernel = Kernel::new(SOURCE, "patch_unembed_error_bwd_dtokens");

impl Difference {
    fn error<S: Scalar>(self, d: S) -> S {
        match self {
            Difference::Squared => d * d,
            Difference::Absolute if d.to_f64() < 0.0 => -d,
            Difference::Absolute => d,
        }
    }

    fn pull<S: Scalar>(self, d: S) -> S {
        match self {
            Difference::Squared => d + d,
            Difference::Absolute if d.to_f64() > 0.0 => S::of(1.0),
            Difference::Absolute if d.to_f64() < 0.0 => S::of(-1.0),
            Difference::Absolute => d,
        }
    }

    /// Its number in the kernel file.
    fn arg<'a>(self) -> Arg<'a> {
        Arg::I32(i32::from(self == Difference::Absolute))
    }
}

/// The constants of a field, in the order of the kernels' arguments.
struct Field<'s, 'a> {
    target: &'s View<'a>,
    mean: &'s View<'a>,
    std: &'s View<'a>,
    rows: &'s View<'a>,
    channels: &'s View<'a>,
}

impl<'s> Field<'s, '_> {
    fn args(&self) -> [Arg<'s>; 5] {
        [self.target, self.mean, self.std, self.rows, self.channels].map(|v| Arg::In(v))
    }

    /// On the CPU: calls `visit(number of the field, its weight)`.
    fn weighed(&self, mut visit: impl FnMut(usize, f32)) -> Result<()> {
        let (rows, channels) = (self.rows.to_f32()?, self.channels.to_f32()?);
        let &[_, c, height, width] = self.target.spec().shape() else { return Err(wrong_operands(NAME)) };
        for at in 0..self.target.spec().len() {
            let (row, channel) = (at / width % height, at / (width * height) % c);
            visit(at, rows[row] * channels[channel]);
        }
        Ok(())
    }
}

impl PatchUnembedError {
    fn patches(&self, x: &Spec, weight: &Spec) -> (Patches, [usize; 3]) {
        let (patches, _, features) = self.unembed.size(x, weight);
        (patches, [patches.b, patches.grid[0] * patches.grid[1], features])
    }

    /// The field on the CPU.
    fn field(&self, exec: &Exec, tokens: &View<'_>, of: &Field<'_, '_>, patches: Patches) -> Result<Tensor> {
        let mut y = exec.alloc(of.target.spec().clone())?;
        if let Some(mut to) = y.view_mut() {
            self.unembed.field(exec, tokens, Some([of.mean, of.std]), patches, &mut to)?;
        }
        Ok(y)
    }

    fn launch_sums(
        &self,
        gpu: &Gpu,
        loss: &ViewMut<'_>,
        tokens: &View<'_>,
        of: &Field<'_, '_>,
        patches: Patches,
    ) -> Result<()> {
        let (dtype, features, n) = (tokens.spec().dtype(), tokens.spec().shape()[2], of.target.spec().len());
        let Some(tiling) = PatchUnembed::tiling(patches, features, dtype)? else { return Ok(()) };
        let tiles = tiling.launch(NAME)?;
        let count = tiles.blocks() as usize;
        let sums = totals::sums(gpu, count)?;
        let mut args = vec![Arg::Out(&sums), Arg::In(tokens)];
        args.extend(of.args());
        args.extend([Arg::Bytes(bytemuck::bytes_of(&tiling.arg)), self.difference.arg()]);
        SUMS.launch(gpu, dtype, tiles, &mut args)?;
        let args = &mut [Arg::Out(loss), Arg::In(&sums), length(NAME, "tiles", count)?, length(NAME, "elements", n)?];
        FWD.launch(gpu, dtype, Launch::linear(1, totals::THREADS as u32), args)
    }

    /// The gradient of the patches.
    fn dtokens(
        &self,
        exec: &Exec,
        tokens: &View<'_>,
        of: &Field<'_, '_>,
        dloss: &View<'_>,
        patches: Patches,
    ) -> Result<Tensor> {
        let (spec, n) = (tokens.spec(), of.target.spec().len());
        let share = (1.0 / n as f64) as f32;
        if let Some(gpu) = exec.gpu() {
            let dtokens = exec.alloc(spec.clone())?;
            let Some(tiling) = PatchUnembed::tiling(patches, spec.shape()[2], spec.dtype())? else {
                return Ok(dtokens);
            };
            let mut args = vec![Arg::Scratch(&dtokens), Arg::In(tokens)];
            args.extend(of.args());
            args.extend([Arg::In(dloss), Arg::Bytes(bytemuck::bytes_of(&tiling.arg))]);
            args.extend([Arg::F32(share), self.difference.arg()]);
            DTOKENS.launch(gpu, spec.dtype(), tiling.launch(NAME)?, &mut args)?;
            drop(args);
            return Ok(dtokens);
        }
        let mut field = self.field(exec, tokens, of, patches)?;
        let share = share * dloss.to_f32()?.iter().sum::<f32>();
        let target = of.target.to_f32()?;
        if let Some(mut field) = field.view_mut() {
            let y = field.f32()?;
            of.weighed(|at, weight| y[at] = share * weight * self.difference.pull(y[at] - target[at]))?;
        }
        self.unembed.dtokens(exec, &field.view(), Some(of.std), patches, spec.clone())
    }
}

impl Arity<8> for PatchUnembedError {}

impl Operator for PatchUnembedError {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let [x, weight, .., target, rows, channels] = *expect_inputs::<8>(NAME, inputs)?;
        let field = self.unembed.infer(&inputs[..UNEMBEDS])?;
        let Some([b, c, height, width]) = field.y.first().and_then(|y| <[usize; 4]>::try_from(y.shape()).ok()) else {
            return Err(wrong_operands(NAME));
        };
        for (name, of) in INPUTS.iter().zip(inputs).skip(UNEMBEDS) {
            expect_dtype(NAME, name, of, &[Dtype::F32])?;
        }
        expect_shape(NAME, "target", target, &[("B", b), ("C", c), ("H", height), ("W", width)])?;
        expect_shape(NAME, "rows", rows, &[("H", height)])?;
        expect_shape(NAME, "channels", channels, &[("C", c)])?;
        if target.is_empty() {
            return Err(Error::shape(format!(
                "{NAME}: target: expected at least one number, found {:?}",
                target.shape()
            )));
        }
        let (_, patches) = self.patches(x, weight);
        Ok(Outputs { y: vec![Spec::f32([])?, x.with_shape(patches)?], saved: Vec::new() })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let Some(unembeds) = x.get(..UNEMBEDS) else { return OpFlops::default() };
        let numbers = x[5].len() as u128;
        let is_wanted = (0..PRODUCTS).any(|i| wanted.has(i));
        let when = |times: u128| if is_wanted { Flops::vector(times) } else { Flops::ZERO };
        let each = 4 + u128::from(self.difference == Difference::Squared);
        let of = self.unembed.flops(unembeds, wanted);
        OpFlops {
            forward: of.forward + Flops::vector(each * numbers + 1),
            backward: of.backward + when(each * numbers + 1),
            recomputed: when(3 * numbers),
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, weight, bias, mean, std, target, rows, channels], [loss, tokens]) = (io.x, &mut *io.y) else {
            return Err(wrong_operands(NAME));
        };
        let operands = [x.clone(), weight.clone(), bias.clone()];
        PRODUCT.forward(exec, Forward { x: &operands, y: &mut [tokens.reborrow()], saved: &mut [] })?;
        let of = Field { target, mean, std, rows, channels };
        let (patches, _) = self.patches(x.spec(), weight.spec());
        if let Some(gpu) = exec.gpu() {
            return self.launch_sums(gpu, loss, &tokens.as_view(), &of, patches);
        }
        let field = self.field(exec, &tokens.as_view(), &of, patches)?;
        if field.view().is_planned() {
            return Ok(());
        }
        let (y, wanted) = (field.view().to_f32()?, target.to_f32()?);
        let mut total = 0.0_f64;
        of.weighed(|at, weight| total += f64::from(weight) * f64::from(self.difference.error(y[at] - wanted[at])))?;
        loss.f32()?.fill((total / y.len() as f64) as f32);
        Ok(())
    }
}

impl Differentiable for PatchUnembedError {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let mut x = if wanted.is_empty() { Mask::NONE } else { Mask::of([3, 4, 5, 6, 7]) };
        if wanted.has(0) {
            x = x.with(1);
        }
        if wanted.has(1) {
            x = x.with(0);
        }
        Keeps { x, y: if wanted.is_empty() { Mask::NONE } else { Mask::of([1]) } }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([dloss, dpatches], [x, weight, ..]) = (io.dy, io.specs) else { return Err(wrong_operands(NAME)) };
        let (products, others) = io.dx.split_at_mut(PRODUCTS);
        if others.iter().any(GradSlot::is_wanted) {
            return Err(Error::argument(format!(
                "{NAME}: mean, std, target, rows, channels: expected constants, a gradient is asked for"
            )));
        }
        let own = match dloss {
            None => None,
            Some(dloss) => {
                let at = |i: usize| kept(NAME, io.x, i);
                let of = Field { mean: at(3)?, std: at(4)?, target: at(5)?, rows: at(6)?, channels: at(7)? };
                let (patches, _) = self.patches(x, weight);
                Some(self.dtokens(exec, kept(NAME, io.y, 1)?, &of, dloss, patches)?)
            }
        };
        let both;
        let dtokens = match (&own, dpatches) {
            (Some(own), Some(more)) => {
                let mut sum = exec.alloc(more.spec().clone())?;
                if let Some(y) = sum.view_mut() {
                    Add.forward(exec, Forward { x: &[own.view(), more.clone()], y: &mut [y], saved: &mut [] })?;
                }
                both = sum;
                Some(both.view())
            }
            (Some(own), None) => Some(own.view()),
            (None, more) => more.clone(),
        };
        let mut slots: Vec<GradSlot<'_>> = products.iter_mut().map(GradSlot::reborrow).collect();
        let product = Backward {
            specs: &io.specs[..PRODUCTS],
            x: &io.x[..PRODUCTS],
            y: &[None],
            saved: &[],
            dy: &[dtokens],
            dx: &mut slots,
        };
        PRODUCT.backward(exec, product)
    }
}

impl PatchUnembedError {
    /// Calls `visit(channel, number of the field, number of the patches, its row)` for every number.
    fn each(&self, x: &Spec, weight: &Spec, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let (patches, [_, _, features]) = self.patches(x, weight);
        let (height, width) = (patches.grid[0] * patches.patch[0], patches.grid[1] * patches.patch[1]);
        PatchUnembed::each(patches, features, |image, c, token, feature| {
            visit(c, image, token * features + feature, image / width % height);
        });
    }
}

impl Reference for PatchUnembedError {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, weight, bias, mean, std, target, rows, channels], [loss, tokens]) = (io.x, io.y) else { return };
        let (d, features) = (x.spec.shape()[2], weight.spec.shape()[0]);
        let mut total = S::zero();
        self.each(x.spec, weight.spec, |c, image, at, row| {
            let (token, feature) = (at / features, at % features);
            let mut z = S::zero();
            for k in 0..d {
                z = z.mac(x[token * d + k], weight[feature * d + k]);
            }
            tokens[at] = z + bias[feature];
            let y = tokens[at].stored() * std[c] + mean[c];
            total = total + rows[row] * channels[c] * self.difference.error(y - target[image]);
        });
        loss[0] = total / S::count(target.spec.len());
    }
}

impl ReferenceGrad for PatchUnembedError {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let [x, weight, _, mean, std, target, rows, channels] = io.x else { return };
        let ([_, tokens], [dloss, dpatches], [dx, dweight, dbias, ..]) = (io.y, io.dy, io.dx) else { return };
        let (d, features) = (x.spec.shape()[2], weight.spec.shape()[0]);
        let share = dloss[0] / S::count(target.spec.len());
        self.each(x.spec, weight.spec, |c, image, at, row| {
            let (token, feature) = (at / features, at % features);
            let off = tokens[at].stored() * std[c] + mean[c] - target[image];
            let own = share * rows[row] * channels[c] * std[c] * self.difference.pull(off);
            let dz = (own.stored() + dpatches[at]).stored();
            for k in 0..d {
                if let Some(dx) = dx {
                    dx[token * d + k] = dx[token * d + k].mac(dz, weight[feature * d + k]);
                }
                if let Some(dweight) = dweight {
                    dweight[feature * d + k] = dweight[feature * d + k].mac(dz, x[token * d + k]);
                }
            }
            if let Some(dbias) = dbias {
                dbias[feature] = dbias[feature] + dz;
            }
        });
    }
}

/// The room. Its products are those of `matmul`.
pub static ROOM: Room = Room {
    name: NAME,
    about: "the loss of the field that tokens make, without the field",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case([b, c, d]: [usize; 3], grid: [usize; 2], patch: [usize; 2], difference: Difference) -> Case {
    let (features, size) = (c * patch[0] * patch[1], [grid[0] * patch[0], grid[1] * patch[1]]);
    let constant = |input: Input| input.always_f32().constant();
    let positive = || Fill::Uniform(0.5, 2.0);
    let inputs = vec![
        Input::new("x", [b, grid[0] * grid[1], d]),
        Input::new("weight", [features, d]),
        Input::new("bias", [features]),
        constant(Input::new("mean", [c])),
        constant(Input::new("std", [c])).fill(positive()),
        constant(Input::new("target", [b, c, size[0], size[1]])).fill(Fill::Uniform(-4.0, 4.0)),
        constant(Input::new("rows", [size[0]])).fill(positive()),
        constant(Input::new("channels", [c])).fill(positive()),
    ];
    Case::new(PatchUnembedError { unembed: PatchUnembed { grid, patch }, difference }, inputs)
}

fn cases() -> Vec<Case> {
    use Difference::{Absolute, Squared};
    vec![
        case([1, 1, 1], [1, 1], [1, 1], Squared),
        case([2, 3, 5], [2, 3], [2, 5], Squared),
        case([1, 20, 8], [2, 3], [8, 8], Squared),
        case([2, 5, 7], [3, 4], [4, 4], Squared),
        case([1, 69, 4], [3, 2], [2, 2], Squared),
        case([1, 3, 8], [2, 9], [3, 3], Absolute),
        case([2, 4, 8], [2, 4], [8, 8], Absolute),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op =
        PatchUnembedError { unembed: PatchUnembed { grid: [2, 2], patch: [2, 2] }, difference: Difference::Squared };
    let bad = |target: &[usize], rows: usize, error| {
        let shapes: [&[usize]; 8] = [&[1, 4, 3], &[8, 3], &[8], &[2], &[2], target, &[rows], &[2]];
        BadCase::new(op, &shapes, error)
    };
    vec![
        bad(&[1, 2, 4, 5], 4, "target: expected [B=1, C=2, H=4, W=4], found [1, 2, 4, 5]"),
        bad(&[1, 2, 4, 4], 3, "rows: expected [H=4], found [3]"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let case = |c, d, grid| case([2, c, d], grid, [8, 8], Difference::Squared);
    vec![case(20, 192, [8, 16]), case(20, 768, [90, 180]), case(69, 768, [32, 64])]
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);
}
