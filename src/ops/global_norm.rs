//! `global_norm`: the length of all gradients together, and what to multiply them by.

use crate::backend::Exec;
use crate::backend::cpu::threads;
use crate::backend::cpu::vector;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::wrong_operands;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch;
use crate::ops::operator::{
    Arity, Factors, Forward, Mask, OpFlops, Operator, Outputs, RefForward, Reference, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Arena, Dtype, Layout, Spec, Tensor, View, ViewMut, expect_dtype};

/// The 2-norm of a flat arena of gradients, without the loss scale; the factor that undoes the loss scale and clips; and
/// whether every number is finite.
///
/// ```text
/// norm   = √(Σ grad²) / loss_scale
/// factor = min(1, max_norm / (norm + 1e-6)) / loss_scale      without max_norm: 1 / loss_scale
/// finite = 1 if no number is infinite or NaN, else 0
/// ```
///
/// Sums are f64 in a fixed order, and squares of finite numbers do not overflow them. An infinite gradient gives norm
/// infinity and factor 0, NaN gives NaN: look at `finite` first. Training calls [`find`](GlobalNorm::find), which waits for
/// nobody.
///
/// # Shapes
/// `grad [..]` → `norm []`, `factor []`, `finite []`, in f32.
///
/// # Units
/// `norm` has the unit of the unscaled gradients; `loss_scale`, `factor` and `finite` are dimensionless.
///
/// # Cost
/// With n numbers: `2n + 1` vector and 1 special; the factor 4 more with `max_norm`, 1 without.
///
/// # Errors
/// [`Error::Dtype`] unless f32, bf16 or f16; [`Error::Argument`] unless `loss_scale` is positive and finite and
/// `max_norm`, if there is one, is positive (infinity only measures).
///
/// # Source
/// Pascanu, Mikolov, Bengio 2013, algorithm 1; 1e-6 as in PyTorch's `clip_grad_norm_`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GlobalNorm {
    /// What the loss was multiplied by before backward; 1 for nothing.
    pub loss_scale: f64,
    /// The norm above which gradients are shortened to it.
    pub max_norm: Option<f64>,
}

/// What [`GlobalNorm::measure`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The norm before clipping, without the loss scale.
    pub norm: f64,
    /// What to multiply the gradients by.
    pub factor: f64,
    /// Whether every number is finite.
    pub finite: bool,
}

/// What [`GlobalNorm::find`] leaves where the gradients lie. On a device nobody has waited for it yet.
#[derive(Debug)]
pub struct Found(Place);

#[derive(Debug)]
enum Place {
    Here(Measured),
    /// Norm, factor and finite.
    There(Arena),
}

impl Found {
    /// The numbers; waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Measured> {
        let found = match &self.0 {
            Place::Here(measured) => return Ok(*measured),
            Place::There(found) => found,
        };
        let numbers = found.flat().to_f32()?;
        let at = |i| found.layout().range(i).and_then(|r| numbers.get(r.start)).copied().unwrap_or(f32::NAN);
        Ok(Measured { norm: at(0).into(), factor: at(1).into(), finite: at(2) == 1.0 })
    }

    /// `finite` stays true only if this number, a loss for instance, is finite, too.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` is one number, [`Error::Dtype`] unless in f32; what the device reports.
    pub fn also(&mut self, exec: &Exec, x: &Tensor) -> Result<()> {
        expect_dtype("global_norm", "x", x.spec(), &[Dtype::F32])?;
        if x.spec().len() != 1 {
            return Err(Error::shape(format!("global_norm: x: expected one number, found {}", x.spec())));
        }
        match (&mut self.0, exec.gpu()) {
            (Place::There(found), Some(gpu)) => {
                let finite = found.view_mut(2).ok_or_else(elsewhere)?;
                ALSO.launch(gpu, Dtype::F32, Launch::linear(1, ONE), &mut [Arg::Out(&finite), Arg::In(x)])?;
            }
            (Place::Here(measured), _) => measured.finite &= x.item()?.is_finite(),
            (Place::There(_), None) => return Err(elsewhere()),
        }
        Ok(())
    }

    /// The numbers, if they are here, else where they lie on the device: factor and finite.
    pub(super) fn here_or_there(&self) -> std::result::Result<Measured, Option<[View<'_>; 2]>> {
        match &self.0 {
            Place::Here(measured) => Ok(*measured),
            Place::There(found) => Err(found.view(1).zip(found.view(2)).map(|(a, b)| [a, b])),
        }
    }
}

/// The numbers of one device are asked for on another.
pub(super) fn elsewhere() -> Error {
    Error::argument("global_norm: expected the device on which the norm was found")
}

/// Added to the norm, so that a norm of 0 divides.
const TINY: f64 = 1e-6;
/// Numbers of a narrow type that are widened at a time.
const BLOCK: usize = 1024;

const SOURCE: Source = crate::source!("global_norm/global_norm.cu");
static PARTIAL: Kernel = Kernel::new(SOURCE, "global_norm_fwd_partial");
static FWD: Kernel = Kernel::new(SOURCE, "global_norm_fwd");
static ALSO: Kernel = Kernel::new(SOURCE, "global_norm_fwd_also");
/// Threads of a kernel in which one works.
const ONE: u32 = 64;
const THREADS: u32 = 256;
/// Packs of a thread that are under way at once.
const PACKS: usize = 4;
/// Most pieces: enough for every device, and few enough for one block to add. The same on all, so that all add alike.
const PIECES: usize = 1024;

impl GlobalNorm {
    /// The norm of `grad` and what follows from it.
    ///
    /// # Errors
    /// As the operator's; [`Error::Argument`] for a planned operand.
    pub fn measure(&self, exec: &Exec, grad: &View<'_>) -> Result<Measured> {
        self.find(exec, grad)?.read()
    }

    /// The same, left where the gradients lie: the update reads it there, and the host when it must know.
    ///
    /// # Errors
    /// As [`measure`](GlobalNorm::measure).
    pub fn find(&self, exec: &Exec, grad: &View<'_>) -> Result<Found> {
        self.find_with(exec, grad, &[])
    }

    /// The same of `grad` and of gradients that are nowhere but in their factors: of products of them, in f32.
    ///
    /// # Errors
    /// As [`measure`](GlobalNorm::measure).
    pub fn find_with(&self, exec: &Exec, grad: &View<'_>, products: &[&Factors]) -> Result<Found> {
        self.infer(&[grad.spec()])?;
        if let Some(gpu) = exec.gpu() {
            return self.find_there(gpu, grad, products);
        }
        let square = match grad.spec().dtype() {
            Dtype::F32 => squares(grad.f32()?, vector::sum_squares),
            Dtype::Bf16 => squares(grad.bf16()?, |x| widened(x, vector::widen_bf16)),
            Dtype::F16 => squares(grad.f16()?, |x| widened(x, vector::widen_f16)),
            Dtype::I32 => return Err(Error::dtype("global_norm: grad: expected a floating-point type, found i32")),
        };
        let square = products.iter().try_fold(square, |sum, of| Ok::<f64, Error>(sum + of.square_here()?))?;
        let norm = square.sqrt() / self.loss_scale;
        let clip = self.max_norm.map_or(1.0, |max| if norm.is_nan() { norm } else { (max / (norm + TINY)).min(1.0) });
        let measured = Measured { norm, factor: clip / self.loss_scale, finite: square.is_finite() };
        Ok(Found(Place::Here(measured)))
    }
}

impl GlobalNorm {
    /// On a device with its own memory: one pass there.
    fn find_there(&self, gpu: &Gpu, grad: &View<'_>, products: &[&Factors]) -> Result<Found> {
        let layout = Layout::new(Dtype::F32, [(); 3].map(|()| [].into()))?;
        let storage = gpu.alloc(layout.len() * layout.dtype().bytes())?;
        let mut found = Arena::from_storage(layout, storage)?;
        self.launch(gpu, grad, products, &mut found.views_mut(&[0, 1, 2])?)?;
        Ok(Found(Place::There(found)))
    }

    /// Sums of pieces and of products, then one block over them.
    fn launch(&self, gpu: &Gpu, grad: &View<'_>, products: &[&Factors], y: &mut [ViewMut<'_>]) -> Result<()> {
        let [norm, factor, finite] = y else { return Err(wrong_operands("global_norm")) };
        let (dtype, n) = (grad.spec().dtype(), grad.spec().len());
        let piece = n.div_ceil(PIECES).next_multiple_of(THREADS as usize * PACKS * launch::wide(dtype));
        let pieces = n.div_ceil(piece.max(1));
        let all = products.iter().fold(pieces, |all, of| all + of.sums());
        // A sum of 8 bytes for every piece, then those of the products.
        let mut sums = gpu.scratch(Spec::f32([all, 2])?)?;
        let mut at = pieces;
        for of in products {
            let mut to = sums.view_mut().ok_or_else(|| wrong_operands("global_norm"))?;
            of.squares_there(gpu, &mut to, at)?;
            at += of.sums();
        }
        let first = Launch::linear(launch::blocks("global_norm", "pieces", pieces)?, THREADS);
        let [n, piece] =
            [launch::length("global_norm", "elements", n)?, launch::length("global_norm", "piece", piece)?];
        PARTIAL.launch(gpu, dtype, first, &mut [Arg::Scratch(&sums), Arg::In(grad), n, piece])?;
        let rule: Vec<u8> =
            [self.loss_scale, self.max_norm.unwrap_or(0.0)].iter().flat_map(|x| x.to_le_bytes()).collect();
        let pieces = Arg::I32(launch::short("global_norm", "pieces", all)?);
        let results = [Arg::Out(norm), Arg::Out(factor), Arg::Out(finite)];
        let mut args: Vec<Arg<'_>> =
            results.into_iter().chain([Arg::Scratch(&sums), pieces, Arg::Bytes(&rule)]).collect();
        FWD.launch(gpu, dtype, Launch::linear(1, THREADS), &mut args)
    }
}

/// The sum of squares, pieces in order. Finite exactly if every number is.
fn squares<T: Sync>(x: &[T], piece: impl Fn(&[T]) -> f64 + Sync) -> f64 {
    threads::reduce(x.len(), 4, |at| piece(&x[at]), |a, b| a + b).unwrap_or(0.0)
}

fn widened<T>(x: &[T], widen: impl Fn(&[T], &mut [f32])) -> f64 {
    let mut room = [0.0; BLOCK];
    let blocks = x.chunks(BLOCK).map(|x| {
        let room = &mut room[..x.len()];
        widen(x, room);
        vector::sum_squares(room)
    });
    blocks.sum()
}

impl Arity<1> for GlobalNorm {}

impl Operator for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [grad] = expect_inputs("global_norm", x)?;
        expect_dtype("global_norm", "grad", grad, &Dtype::FLOATS)?;
        if !(self.loss_scale > 0.0 && self.loss_scale.is_finite()) {
            return Err(Error::argument(format!(
                "global_norm: loss_scale: expected a positive number, found {}",
                self.loss_scale
            )));
        }
        if let Some(max) = self.max_norm.filter(|max| max.is_nan() || *max <= 0.0) {
            return Err(Error::argument(format!("global_norm: max_norm: expected a positive number, found {max}")));
        }
        Ok(Outputs { y: vec![Spec::f32([])?, Spec::f32([])?, Spec::f32([])?], saved: Vec::new() })
    }

    fn flops(&self, x: &[&Spec], _: Mask) -> OpFlops {
        let factor = if self.max_norm.is_some() { 4 } else { 1 };
        let forward = Flops::vector(2 * x[0].len() as u128 + 1 + factor) + Flops::special(1);
        OpFlops { forward, ..OpFlops::default() }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        if let (Some(gpu), [grad]) = (exec.gpu(), io.x) {
            return self.launch(gpu, grad, &[], io.y);
        }
        let ([grad], [norm, factor, finite]) = (io.x, io.y) else { return Ok(()) };
        let m = self.measure(exec, grad)?;
        norm.f32()?.fill(m.norm as f32);
        factor.f32()?.fill(m.factor as f32);
        finite.f32()?.fill(if m.finite { 1.0 } else { 0.0 });
        Ok(())
    }
}

impl Reference for GlobalNorm {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([grad], [norm, factor, finite]) = (io.x, io.y) else { return };
        let scale = S::of(self.loss_scale);
        norm[0] = sum(grad.iter().map(|&g| g * g)).sqrt() / scale;
        factor[0] = match self.max_norm {
            // min(a, b) = −max(−a, −b)
            Some(max) => -((-(S::of(max) / (norm[0] + S::of(TINY)))).max(-S::one())) / scale,
            None => S::one() / scale,
        };
        finite[0] = if grad.iter().all(|g| g.to_f64().is_finite()) { S::one() } else { S::zero() };
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "global_norm",
    about: "the length of all gradients together, and what to multiply them by",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case(loss_scale: f64, max_norm: Option<f64>, n: usize, fill: Fill) -> Case {
    Case::plain(GlobalNorm { loss_scale, max_norm }, [Input::new("grad", [n]).fill(fill)])
}

fn cases() -> Vec<Case> {
    let unit = || Fill::Uniform(-1.0, 1.0);
    vec![
        case(1.0, None, 0, unit()),
        case(1.0, Some(1.0), 0, unit()),
        case(1.0, Some(1.0), 1, unit()),
        case(1.0, Some(0.25), 7, unit()),
        case(1.0, Some(100.0), 8, unit()),
        case(1024.0, Some(1.0), 9, unit()),
        case(1024.0, None, 33, unit()),
        case(1.0, Some(f64::INFINITY), 33, unit()),
        case(1.0, Some(1.0), 4099, unit()),
        case(2.0, Some(1.0), 20_001, unit()),
        case(1.0, Some(1.0), 33, Fill::Values(vec![1.0, f32::INFINITY, 2.0])),
        case(1.0, Some(1.0), 33, Fill::Values(vec![1.0, f32::NAN, 2.0])),
        case(1.0, None, 33, Fill::Values(vec![1.0, f32::NEG_INFINITY, 2.0])),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |loss_scale, max_norm| GlobalNorm { loss_scale, max_norm };
    let i32s = || Spec::new(Dtype::I32, [8]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op(0.0, None), &[&[8]], "loss_scale: expected a positive number, found 0"),
        BadCase::new(op(f64::INFINITY, None), &[&[8]], "loss_scale: expected a positive number, found inf"),
        BadCase::new(op(f64::NAN, None), &[&[8]], "loss_scale: expected a positive number, found NaN"),
        BadCase::new(op(1.0, Some(0.0)), &[&[8]], "max_norm: expected a positive number, found 0"),
        BadCase::new(op(1.0, Some(f64::NAN)), &[&[8]], "max_norm: expected a positive number, found NaN"),
        BadCase::new(op(1.0, None), &[&[8], &[8]], "expected 1 inputs, found 2"),
        BadCase::of_specs(op(1.0, None), i32s(), "grad: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let unit = || Fill::Uniform(-1.0, 1.0);
    let mut all = [1 << 22, 23_832_960].map(|n| case(1.0, Some(1.0), n, unit())).to_vec();
    // Gradients of a transformer of 24 blocks, 1,024 wide, in the type that it is compared in.
    all.push(case(1.0, Some(1.0), 302_309_376, unit()).timed_in(Dtype::F32));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);

    fn measure(op: GlobalNorm, x: &[f32]) -> Measured {
        op.measure(&Exec::cpu(), &View::of_f32(Spec::f32([x.len()]).unwrap(), x).unwrap()).unwrap()
    }

    #[test]
    fn finite_gradients_of_any_size_have_a_finite_norm() {
        let op = GlobalNorm { loss_scale: 1.0, max_norm: Some(1.0) };
        let m = measure(op, &[f32::MAX; 1000]);
        assert!(m.finite && m.norm.is_finite() && m.factor > 0.0, "{m:?}");
        let m = measure(op, &[f32::MIN_POSITIVE; 4]);
        assert_eq!((m.norm as f32, m.factor), (2.0 * f32::MIN_POSITIVE, 1.0));
    }

    #[test]
    fn one_bad_number_among_many_pieces_is_found_wherever_it_is() {
        let n = 200_003;
        let op = GlobalNorm { loss_scale: 8.0, max_norm: Some(1.0) };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, n / 3, n / 2, n - 1] {
                let mut x = vec![1.0; n];
                x[at] = bad;
                let m = measure(op, &x);
                assert!(
                    !m.finite && !m.norm.is_finite() && (m.factor == 0.0 || m.factor.is_nan()),
                    "{bad} at {at}: {m:?}"
                );
            }
        }
    }

    #[test]
    fn the_factor_shortens_to_the_norm_and_undoes_the_scale() {
        let op = GlobalNorm { loss_scale: 4.0, max_norm: Some(2.5) };
        let m = measure(op, &[12.0, 16.0]);
        assert_eq!(m.norm, 5.0);
        assert!((m.factor - 0.125).abs() < 1e-7, "{m:?}");
        assert_eq!(measure(op, &[0.0, 4.0]).factor, 0.25);
    }
}
