//! `patch_unembed_error`: the loss of the field that tokens make, without the field.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::host;
use crate::ops::launch::{self, kept, length};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, Reference, ReferenceGrad, expect_inputs,
};
use crate::ops::patch_unembed::PatchUnembed;
use crate::ops::patchify::{FeatureOrder, Patches};
use crate::ops::totals;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, View, ViewMut, expect_dtype, expect_rank, expect_shape};

/// Which function of the difference between field and target is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Its square.
    Squared,
    /// Its magnitude.
    Absolute,
}

/// The weighted mean error of the field that tokens make: in the units of the data the field exists in no memory, nor does its
/// gradient. Tokens are patches as a linear head gives them: the product of [`PatchUnembed`].
///
/// ```text
/// y[b, c, i·P + p, j·Q + q] = tokens[b, i·w + j, (p, q, c)] · std[c] + mean[c]
/// loss = 1/n · Σ rows[i] · channels[c] · error(y[b, c, i, j] − target[b, c, i, j])
/// ```
///
/// with `error` the square or the magnitude. Weights are used as they are: the mean divides by the number of numbers.
///
/// # Shapes
/// `tokens [B, h·w, P·Q·C]`, `mean [C]`, `std [C]`, `target [B, C, h·P, w·Q]`, `rows [h·P]`, `channels [C]`, all but the first in f32 →
/// `loss []` in f32. Only the tokens have a gradient.
///
/// # Units
/// `target`, `mean`, `std` have the unit of the data, `loss` that of `error`; tokens and weights are dimensionless.
///
/// # Cost
/// With n numbers: forward `6·n + 1` vector; backward `4·n + 1` vector; a square is n more in both; recomputed `3·n` vector.
///
/// # Errors
/// [`Error::Shape`] unless `target` is the field and has a number in it, and the others fit; [`Error::Dtype`] unless the tokens are f32,
/// bf16 or f16 and the others f32; [`Error::Argument`] if grid or patch has no side, or a gradient of another input is asked for;
/// [`Error::TooLarge`] if a side cannot be counted.
///
/// # Source
/// The inverse of Dosovitskiy et al. 2021, section 3.1; weights as in WeatherBench (Rasp et al. 2020), equation 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchUnembedError {
    /// Patches down and across.
    pub grid: [usize; 2],
    /// Height and width of a patch.
    pub patch: [usize; 2],
    /// What is averaged.
    pub difference: Difference,
}

const NAME: &str = "patch_unembed_error";

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

impl PatchUnembedError {
    /// The field and its patches.
    fn cut(&self, tokens: &Spec) -> Patches {
        let (b, features) = (tokens.shape()[0], tokens.last());
        let c = features / self.patch.iter().product::<usize>();
        Patches { b, c, grid: self.grid, patch: self.patch, order: FeatureOrder::RowColumnChannel }
    }

    /// Calls `visit(number of the tokens, of the field, channel, row)` for every number.
    fn each(&self, tokens: &Spec, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let features = tokens.last();
        let [height, width] = [0, 1].map(|i| self.grid[i] * self.patch[i]);
        PatchUnembed::each(self.cut(tokens), features, |image, c, token, feature| {
            visit(token * features + feature, image, c, image / width % height);
        });
    }

    fn launch_forward(&self, gpu: &Gpu, x: &[View<'_>], loss: &mut ViewMut<'_>) -> Result<()> {
        let [tokens, mean, std, target, rows, channels] = x else { return Err(wrong_operands(NAME)) };
        let (spec, n) = (tokens.spec(), target.spec().len());
        let Some(tiling) = PatchUnembed::tiling(self.cut(spec), spec.last(), spec.dtype())? else { return Ok(()) };
        let tiles = tiling.launch(NAME)?;
        let count = tiles.blocks() as usize;
        let sums = totals::sums(gpu, count)?;
        let mut args = vec![Arg::Out(&sums)];
        args.extend([tokens, target, mean, std, rows, channels].map(|v| Arg::In(v)));
        args.extend([Arg::Bytes(bytemuck::bytes_of(&tiling.arg)), self.difference.arg()]);
        SUMS.launch(gpu, spec.dtype(), tiles, &mut args)?;
        let args = &mut [Arg::Out(loss), Arg::In(&sums), length(NAME, "tiles", count)?, length(NAME, "elements", n)?];
        FWD.launch(gpu, spec.dtype(), Launch::linear(1, totals::THREADS as u32), args)
    }
}

impl Arity<6> for PatchUnembedError {}

impl Operator for PatchUnembedError {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let [tokens, mean, std, target, rows, channels] = *expect_inputs::<6>(NAME, inputs)?;
        let ([h, w], [p, q]) = (self.grid, self.patch);
        expect_dtype(NAME, "tokens", tokens, &Dtype::FLOATS)?;
        for (name, of) in ["mean", "std", "target", "rows", "channels"].iter().zip(&inputs[1..]) {
            expect_dtype(NAME, name, of, &[Dtype::F32])?;
        }
        if [h, w, p, q].contains(&0) {
            return Err(Error::argument(format!(
                "{NAME}: grid, patch: expected 1 or more each way, found {:?}, {:?}",
                self.grid, self.patch
            )));
        }
        let &[b, c, ..] = expect_rank(NAME, "target", target, ["B", "C", "H", "W"])?;
        let side = |axis: &str, a: usize, b: usize| {
            a.checked_mul(b).ok_or_else(|| Error::too_large(NAME, axis, format!("{a}·{b}")))
        };
        let (height, width, count) = (side("H", h, p)?, side("W", w, q)?, side("h·w", h, w)?);
        let features = side("P·Q·C", side("P·Q", p, q)?, c)?;
        expect_shape(NAME, "target", target, &[("B", b), ("C", c), ("H", height), ("W", width)])?;
        expect_shape(NAME, "tokens", tokens, &[("B", b), ("h·w", count), ("P·Q·C", features)])?;
        for (name, of) in [("mean", mean), ("std", std), ("channels", channels)] {
            expect_shape(NAME, name, of, &[("C", c)])?;
        }
        expect_shape(NAME, "rows", rows, &[("H", height)])?;
        if target.is_empty() {
            return Err(Error::shape(format!(
                "{NAME}: target: expected at least one number, found {:?}",
                target.shape()
            )));
        }
        Ok(Outputs::one(Spec::f32([])?))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let n = x[0].len() as u128;
        let square = u128::from(self.difference == Difference::Squared);
        let when = |times: u128| if wanted.has(0) { Flops::vector(times) } else { Flops::ZERO };
        OpFlops {
            forward: Flops::vector((6 + square) * n + 1),
            backward: when((4 + square) * n + 1),
            recomputed: when(3 * n),
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let [loss] = io.y else { return Err(wrong_operands(NAME)) };
        if let Some(gpu) = exec.gpu() {
            return self.launch_forward(gpu, io.x, loss);
        }
        let spec = io.x[0].spec().clone();
        let x = io.x.iter().map(host::floats).collect::<Result<Vec<_>>>()?;
        let [tokens, mean, std, target, rows, channels] = &x[..] else { return Err(wrong_operands(NAME)) };
        let mut total = 0.0_f64;
        self.each(&spec, |at, image, c, row| {
            let off = tokens[at] * std[c] + mean[c] - target[image];
            total += f64::from(rows[row] * channels[c]) * f64::from(self.difference.error(off));
        });
        loss.f32()?.fill((total / target.len() as f64) as f32);
        Ok(())
    }
}

impl Differentiable for PatchUnembedError {
    fn keeps(&self, wanted: Mask) -> Keeps {
        Keeps { x: if wanted.has(0) { Mask::of([0, 1, 2, 3, 4, 5]) } else { Mask::NONE }, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if io.dx.iter().skip(1).any(GradSlot::is_wanted) {
            return Err(Error::argument(format!(
                "{NAME}: mean, std, target, rows, channels: expected constants, a gradient is asked for"
            )));
        }
        let Some(gpu) = exec.gpu() else { return host::backward(self, io) };
        let [dloss] = io.dy else { return Err(wrong_operands(NAME)) };
        let Some(dloss) = dloss else { return no_gradient(io.dx) };
        let Some((dtokens, add)) = io.dx.first_mut().and_then(launch::slot) else { return Ok(()) };
        let (spec, n) = (io.specs[0], io.specs[3].len());
        let Some(tiling) = PatchUnembed::tiling(self.cut(spec), spec.last(), spec.dtype())? else { return Ok(()) };
        let mut args = vec![Arg::Out(dtokens)];
        for i in [0, 3, 1, 2, 4, 5] {
            args.push(Arg::In(kept(NAME, io.x, i)?));
        }
        args.extend([Arg::In(dloss), Arg::Bytes(bytemuck::bytes_of(&tiling.arg))]);
        args.extend([Arg::F32((1.0 / n as f64) as f32), self.difference.arg(), Arg::I32(add)]);
        DTOKENS.launch(gpu, spec.dtype(), tiling.launch(NAME)?, &mut args)
    }
}

impl Reference for PatchUnembedError {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([tokens, mean, std, target, rows, channels], [loss]) = (io.x, io.y) else { return };
        let mut total = S::zero();
        self.each(tokens.spec, |at, image, c, row| {
            let off = tokens[at] * std[c] + mean[c] - target[image];
            total = total + rows[row] * channels[c] * self.difference.error(off);
        });
        loss[0] = total / S::count(target.spec.len());
    }
}

impl ReferenceGrad for PatchUnembedError {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([tokens, mean, std, target, rows, channels], [dloss], [Some(dtokens), ..]) = (io.x, io.dy, io.dx) else {
            return;
        };
        let share = dloss[0] / S::count(target.spec.len());
        self.each(tokens.spec, |at, image, c, row| {
            let off = tokens[at] * std[c] + mean[c] - target[image];
            dtokens[at] = share * rows[row] * channels[c] * std[c] * self.difference.pull(off);
        });
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: NAME,
    about: "the loss of the field that tokens make, without the field",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case([b, c]: [usize; 2], grid: [usize; 2], patch: [usize; 2], difference: Difference) -> Case {
    let (features, size) = (c * patch[0] * patch[1], [grid[0] * patch[0], grid[1] * patch[1]]);
    let constant = |input: Input| input.always_f32().constant();
    let positive = || Fill::Uniform(0.5, 2.0);
    let inputs = vec![
        Input::new("tokens", [b, grid[0] * grid[1], features]),
        constant(Input::new("mean", [c])),
        constant(Input::new("std", [c])).fill(positive()),
        constant(Input::new("target", [b, c, size[0], size[1]])).fill(Fill::Uniform(-4.0, 4.0)),
        constant(Input::new("rows", [size[0]])).fill(positive()),
        constant(Input::new("channels", [c])).fill(positive()),
    ];
    Case::new(PatchUnembedError { grid, patch, difference }, inputs)
}

fn cases() -> Vec<Case> {
    use Difference::{Absolute, Squared};
    vec![
        case([1, 1], [1, 1], [1, 1], Squared),
        case([2, 3], [2, 3], [2, 5], Squared),
        case([1, 20], [2, 3], [8, 8], Squared),
        case([2, 5], [3, 4], [4, 4], Squared),
        case([1, 69], [3, 2], [2, 2], Squared),
        case([1, 3], [2, 9], [3, 3], Absolute),
        case([2, 4], [2, 4], [8, 8], Absolute),
        // Models' patches: 32 by 32, 2 by 2 of 160 channels, 320 channels.
        case([1, 1], [2, 1], [32, 32], Squared),
        case([1, 160], [2, 3], [2, 2], Squared),
        case([1, 320], [1, 2], [2, 2], Absolute),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let bad = |grid, tokens: &[usize], target: &[usize], rows: usize, error| {
        let op = PatchUnembedError { grid, patch: [2, 2], difference: Difference::Squared };
        let shapes: [&[usize]; 6] = [tokens, &[2], &[2], target, &[rows], &[2]];
        BadCase::new(op, &shapes, error)
    };
    let (tokens, target) = ([1, 4, 8], [1, 2, 4, 4]);
    vec![
        bad([2, 2], &tokens, &[1, 2, 4, 5], 4, "target: expected [B=1, C=2, H=4, W=4], found [1, 2, 4, 5]"),
        bad([2, 2], &[1, 4, 7], &target, 4, "tokens: expected [B=1, h·w=4, P·Q·C=8], found [1, 4, 7]"),
        bad([2, 2], &tokens, &target, 3, "rows: expected [H=4], found [3]"),
        bad([0, 2], &tokens, &target, 4, "grid, patch: expected 1 or more each way, found [0, 2], [2, 2]"),
        bad([2, 2], &[0, 4, 8], &[0, 2, 4, 4], 4, "target: expected at least one number, found [0, 2, 4, 4]"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let case = |c, grid| case([2, c], grid, [8, 8], Difference::Squared);
    vec![case(20, [8, 16]), case(20, [90, 180]), case(69, [32, 64])]
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);
}
