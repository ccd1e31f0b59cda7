//! `resize_tokens`: tokens of a grid as images on another grid, each number between its four neighbours.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit, Variant};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::launch;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::ops::resize_bilinear::launch::{Plan, numbers};
use crate::ops::resize_bilinear::{Planes, ResizeBilinear};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype, expect_rank};

/// Bilinear interpolation of a grid of tokens, each number of a token a channel: [`ResizeBilinear`] of the tokens as images, which are
/// never written.
///
/// ```text
/// y[b, c, i, j] = Σ_s Σ_t rows[i, s] · columns[j, t] · x[b, s·w + t, c]      rows and columns as ResizeBilinear
/// ```
///
/// First along columns, then along rows, in f32; the gradient gathers in a fixed order and is rounded to the type of `x` once.
///
/// # Shapes
/// `x [B, h·w, C]` with `grid = [h, w]`, tokens row by row → `y [B, C, H, W]` in f32 with `size = [H, W]`.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// forward `3·B·C·W·(h + H)` vector, backward `4·B·C·W·(h + H)` vector.
///
/// # Errors
/// [`Error::Shape`] unless `x` has three axes and `h·w` tokens; [`Error::Argument`] if `grid` or `size` has a 0; [`Error::Dtype`] unless
/// f32, bf16 or f16; [`Error::TooLarge`] if the image cannot be addressed.
///
/// # Source
/// PyTorch's `interpolate(mode="bilinear", antialias=False)`, as its documentation defines `align_corners`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeTokens {
    /// Rows `h` and columns `w` of tokens.
    pub grid: [usize; 2],
    /// Rows `H` and columns `W` of the result.
    pub size: [usize; 2],
    /// Whether the outermost numbers stay at the outermost places.
    pub align_corners: bool,
}

const NAME: &str = "resize_tokens";
const SOURCE: Source = crate::source!("resize_tokens/resize_tokens.cu");
static FWD: Kernel = Kernel::new(SOURCE, "resize_tokens_fwd");
static BWD_DX: Kernel = Kernel::new(SOURCE, "resize_tokens_bwd_dx");
static BWD_DX_ANY: Kernel = Kernel::new(SOURCE, "resize_tokens_bwd_dx_any");

/// Columns of the image that a lane has, forward: neighbours where 16 bytes are stored at once.
const LANE: usize = 4;

impl ResizeTokens {
    fn resize(&self) -> ResizeBilinear {
        ResizeBilinear { size: self.size, align_corners: self.align_corners }
    }

    fn planes(&self) -> Planes {
        self.resize().planes(self.grid)
    }

    /// Samples and channels of tokens that `infer` accepts.
    fn counts(x: &Spec) -> [usize; 2] {
        let [b, _, c] = *x.shape() else { unreachable!("infer has seen three axes") };
        [b, c]
    }

    /// The numbers of a plane of tokens and of the image.
    fn areas(&self) -> [usize; 2] {
        [self.grid, self.size].map(|[h, w]| h * w)
    }
}

/// `to[k·c + channel] = from[channel·n + k]` for each sample of `c` channels of `n` numbers.
fn turn<V: Copy>(from: &[V], [n, c]: [usize; 2], to: &mut [V]) {
    for (from, to) in from.chunks_exact((n * c).max(1)).zip(to.chunks_exact_mut((n * c).max(1))) {
        for (k, to) in to.chunks_exact_mut(c).enumerate() {
            to.iter_mut().enumerate().for_each(|(channel, to)| *to = from[channel * n + k]);
        }
    }
}

impl Arity<1> for ResizeTokens {}

impl Operator for ResizeTokens {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs(NAME, x)?;
        expect_dtype(NAME, "x", x, &Dtype::FLOATS)?;
        let &[b, tokens, c] = expect_rank(NAME, "x", x, ["B", "h·w", "C"])?;
        let ([h, w], [to_h, to_w]) = (self.grid, self.size);
        if h == 0 || w == 0 || to_h == 0 || to_w == 0 {
            return Err(Error::argument(format!(
                "{NAME}: grid, size: expected 1 or more each way, found {:?}, {:?}",
                self.grid, self.size
            )));
        }
        if h.checked_mul(w) != Some(tokens) {
            return Err(Error::shape(format!("{NAME}: x: expected [B, h·w={h}·{w}, C], found {:?}", x.shape())));
        }
        let y = Spec::new(Dtype::F32, [b, c, to_h, to_w]);
        Ok(Outputs::one(y.map_err(|_| Error::too_large(NAME, "size", format!("{:?}", self.size)))?))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let [b, c] = ResizeTokens::counts(x[0]);
        let ([h, _], [to_h, to_w]) = (self.grid, self.size);
        let lines = b as u128 * c as u128 * to_w as u128 * (h as u128 + to_h as u128);
        OpFlops {
            forward: Flops::vector(3 * lines),
            backward: Flops::vector(if wanted.has(0) { 4 * lines } else { 0 }),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands(NAME)) };
        let [b, c] = ResizeTokens::counts(x.spec());
        if let Some(gpu) = exec.gpu() {
            let plan = self.plan(gpu, b * c)?;
            let is_wide = self.size[1].is_multiple_of(LANE) && y.address().is_some_and(|at| at % 16 == 0);
            let cut = plan.cut_forward(LANE);
            let mut args = vec![Arg::Out(y), Arg::In(x)];
            args.extend(args_of(&plan, c)?);
            args.extend(numbers([if is_wide { LANE } else { 1 }])?.into_iter().chain(cut.forward_args()?));
            return FWD.launch_as(gpu, &variant(x.spec()), plan.launch(cut)?, &mut args);
        }
        let (planes, [n, m], x) = (self.planes(), self.areas(), x.to_f32()?);
        let mut images = vec![0.0; x.len()];
        turn(&x, [c, n], &mut images);
        let (x, y) = (In::new(Floats::F32(&images), n), Out::of(y, m)?);
        map(b * c, TOUCH * m, [x], [y], |_, [x], [y]| planes.forward(x, y));
        Ok(())
    }
}

impl Differentiable for ResizeTokens {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([x], [dy], [dx]) = (io.specs, io.dy, &mut *io.dx) else { return Err(wrong_operands(NAME)) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let [b, c] = ResizeTokens::counts(x);
        if let Some(gpu) = exec.gpu() {
            let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
            let plan = self.plan(gpu, b * c)?;
            let mut args = vec![Arg::Out(dx), Arg::In(dy)];
            args.extend(args_of(&plan, c)?);
            let Some(cut) = plan.cut_backward(launch::wide(Dtype::F32)) else {
                args.push(Arg::I32(add));
                return BWD_DX_ANY.launch_as(gpu, &variant(x), plan.launch_numbers()?, &mut args);
            };
            args.extend(cut.backward_args()?.into_iter().chain([Arg::I32(add)]));
            return BWD_DX.launch_as(gpu, &variant(x), plan.launch(cut)?, &mut args);
        }
        let Some(to) = Out::slot(dx, c)? else { return Ok(()) };
        let (sent, [n, m]) = (self.planes().sent(), self.areas());
        let (mut images, mut tokens) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (dy, dimages) = (In::new(Floats::of(dy)?, m), Out::f32(&mut images, n));
        map(b * c, 2 * TOUCH * m, [dy], [dimages], |_, [dy], [dx]| sent.backward(dy, dx));
        turn(&images, [n, c], &mut tokens);
        map(b * n, TOUCH * c, [In::new(Floats::F32(&tokens), c)], [to], |_, [from], [to]| to.copy_from_slice(from));
        Ok(())
    }
}

impl ResizeTokens {
    fn plan<'a>(&self, gpu: &'a Gpu, planes: usize) -> Result<Plan<'a>> {
        Plan::new(NAME, &self.resize(), gpu, planes, self.grid)
    }
}

fn variant(x: &Spec) -> Variant {
    Variant::of(Dtype::F32).with_type("TOKEN", x.dtype())
}

/// Planes, channels, sizes, and whether corners are aligned.
fn args_of<'v>(plan: &Plan<'_>, c: usize) -> Result<Vec<Arg<'v>>> {
    let [planes, sizes @ ..] = plan.args()?;
    Ok([planes, launch::c(NAME, c)?].into_iter().chain(sizes).collect())
}

impl Reference for ResizeTokens {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        let ([_, c], [n, m]) = (ResizeTokens::counts(x.spec), self.areas());
        let mut images = vec![S::zero(); x.len()];
        turn(x, [c, n], &mut images);
        for (x, y) in images.chunks_exact(n).zip(y.chunks_exact_mut(m)) {
            self.planes().forward_ref(x, y);
        }
    }
}

impl ReferenceGrad for ResizeTokens {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x], [dy], [Some(dx)]) = (io.x, io.dy, io.dx) else { return };
        let ([_, c], [n, m]) = (ResizeTokens::counts(x.spec), self.areas());
        let mut images = vec![S::zero(); dx.len()];
        for (dy, dx) in dy.chunks_exact(m).zip(images.chunks_exact_mut(n)) {
            self.planes().backward_ref(dy, dx);
        }
        turn(&images, [n, c], dx);
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: NAME,
    about: "tokens of a grid as images on another grid, each number between its four neighbours",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit {
        types: &[
            &[("T", Dtype::F32), ("TOKEN", Dtype::F32)],
            &[("T", Dtype::F32), ("TOKEN", Dtype::Bf16)],
            &[("T", Dtype::F32), ("TOKEN", Dtype::F16)],
        ],
        ..Unit::floats(SOURCE)
    }],
    cases,
    bad_cases,
    bench_cases,
};

fn case([b, c]: [usize; 2], grid: [usize; 2], size: [usize; 2], align_corners: bool) -> Case {
    Case::new(ResizeTokens { grid, size, align_corners }, [Input::new("x", [b, grid[0] * grid[1], c])])
}

fn cases() -> Vec<Case> {
    let shapes = [
        ([1, 1], [1, 1], [1, 1]),
        ([2, 3], [1, 1], [3, 5]),
        ([2, 3], [5, 7], [1, 1]),
        ([2, 5], [5, 7], [5, 7]),
        ([1, 2], [4, 3], [13, 17]),
        ([3, 1], [17, 13], [5, 6]),
        ([0, 3], [2, 2], [4, 4]),
        ([2, 0], [2, 2], [4, 4]),
        // A model's patches of 8 by 8 and of 4 by 4; a width that no store of 16 bytes divides.
        ([2, 20], [4, 8], [32, 64]),
        ([1, 3], [3, 6], [12, 24]),
        ([1, 73], [2, 3], [16, 25]),
        // Several tiles and chunks, and one token that goes to more columns than a tile has.
        ([1, 2], [9, 70], [36, 560]),
        ([1, 3], [33, 300], [16, 151]),
        ([1, 2], [2, 2], [3, 1301]),
    ];
    shapes.iter().flat_map(|&(x, grid, size)| [case(x, grid, size, false), case(x, grid, size, true)]).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = |grid, size| ResizeTokens { grid, size, align_corners: false };
    let i32s = || Spec::new(Dtype::I32, [1, 6, 4]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op([2, 3], [4, 4]), &[&[6, 8]], "x: expected 3 axes [B, h·w, C], found [6, 8]"),
        BadCase::new(op([2, 3], [4, 4]), &[&[1, 5, 8]], "x: expected [B, h·w=2·3, C], found [1, 5, 8]"),
        BadCase::new(
            op([2, 0], [4, 4]),
            &[&[1, 0, 8]],
            "grid, size: expected 1 or more each way, found [2, 0], [4, 4]",
        ),
        BadCase::new(op([2, 3], [4, 0]), &[&[1, 6, 8]], "grid, size: expected 1 or more each way"),
        BadCase::new(op([usize::MAX, 2], [4, 4]), &[&[1, 6, 8]], "x: expected [B, h·w="),
        BadCase::new(op([1, 1], [usize::MAX, 2]), &[&[1, 1, 1]], "size: length"),
        BadCase::new(op([2, 3], [4, 4]), &[], "expected 1 inputs, found 0"),
        BadCase::of_specs(op([2, 3], [4, 4]), i32s(), "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![
        case([4, 20], [8, 16], [64, 128], false),
        case([32, 20], [16, 32], [128, 256], false),
        case([1, 20], [45, 90], [360, 720], false),
        case([4, 20], [90, 180], [720, 1440], false),
        case([16, 73], [64, 128], [128, 256], false),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn tokens_give_what_their_images_give_bit_for_bit() {
        let (b, c, grid, size) = (2, 3, [4, 5], [9, 12]);
        let n = grid[0] * grid[1];
        let x: Vec<f32> = (0..b * n * c).map(|i| ((i * 37 % 101) as f32).sin()).collect();
        let mut images = vec![0.0; x.len()];
        turn(&x, [c, n], &mut images);
        for align_corners in [false, true] {
            let (tokens, resize) = (ResizeTokens { grid, size, align_corners }, ResizeBilinear { size, align_corners });
            let y = forward(&tokens, &[(&[b, n, c], &x)]);
            assert_eq!(y, forward(&resize, &[(&[b, c, grid[0], grid[1]], &images)]));
            let dx = backward(&tokens, &[(&[b, n, c], &x)], Some(&y)).remove(0);
            let dimages = backward(&resize, &[(&[b, c, grid[0], grid[1]], &images)], Some(&y)).remove(0);
            let mut want = vec![0.0; dx.len()];
            turn(&dimages, [n, c], &mut want);
            assert_eq!(dx, want);
        }
    }
}
