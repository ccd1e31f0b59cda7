//! Cases of a room: an operator with its parameters, the shapes of its inputs, and what numbers they hold.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::contract::oracle::{Grad, Plain, Subject};
use crate::ops::operator::{Mask, Operator, Reference, ReferenceGrad};
use crate::rng::Stream;
use crate::scalar::round_to;
use crate::tensor::{Dtype, Spec, Tensor};

/// What numbers an input holds. Seeds are fixed, so every run sees the same.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Uniform in [lo, hi).
    Uniform(f32, f32),
    /// Normal, of mean 0 and variance 1: how much power a chip draws, and so its clock, depends on the numbers.
    Normal,
    /// Exactly these, repeated to the length of the input.
    Values(Vec<f32>),
    /// Exactly these integers, for an i32 input.
    Ints(Vec<i32>),
    /// Uniform integers in [lo, hi), for an i32 input.
    IntsIn(i32, i32),
}

/// One input of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name in messages, as in the room's documentation.
    pub name: &'static str,
    /// Shape and number type; f32 stands for the storage type that is tested.
    pub spec: Spec,
    /// Its numbers.
    pub fill: Fill,
    /// Whether its type is that of `spec` whatever the storage type of the others.
    pub is_fixed: bool,
    /// Whether it has a gradient.
    pub wanted: bool,
}

/// Most numbers of a tensor that are drawn: only what is timed has more, and repeats them.
const MOST_DRAWN: usize = 1 << 22;

/// `n` numbers, `of(i)` being number i.
pub(super) fn drawn(n: usize, of: impl Fn(u64) -> f32) -> Vec<f32> {
    let mut all = Vec::with_capacity(n);
    all.extend((0..n.min(MOST_DRAWN) as u64).map(of));
    while all.len() < n {
        all.extend_from_within(..(n - all.len()).min(MOST_DRAWN));
    }
    all
}

impl Input {
    /// Uniform in [−1, 1), in the storage type that is tested, differentiated.
    pub fn new<const N: usize>(name: &'static str, shape: [usize; N]) -> Input {
        let spec = Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
        Input { name, spec, fill: Fill::Uniform(-1.0, 1.0), is_fixed: false, wanted: true }
    }

    /// Integers, which have no gradient.
    pub fn ints<const N: usize>(name: &'static str, shape: [usize; N], fill: Fill) -> Input {
        let spec = Spec::new(Dtype::I32, shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
        Input { name, spec, fill, is_fixed: true, wanted: false }
    }

    /// The same with other numbers.
    #[must_use]
    pub fn fill(mut self, fill: Fill) -> Input {
        self.fill = fill;
        self
    }

    /// The same, f32 whatever the storage type of the others.
    #[must_use]
    pub fn always_f32(self) -> Input {
        self.always(Dtype::F32)
    }

    /// The same, in this type whatever the storage type of the others.
    #[must_use]
    pub fn always(mut self, dtype: Dtype) -> Input {
        self.spec = self.spec.with_dtype(dtype);
        self.is_fixed = true;
        self
    }

    /// The same, without a gradient.
    #[must_use]
    pub fn constant(mut self) -> Input {
        self.wanted = false;
        self
    }

    /// Its spec when the storage type `dtype` is tested.
    pub fn spec_in(&self, dtype: Dtype) -> Spec {
        if self.is_fixed || self.spec.dtype() == Dtype::I32 { self.spec.clone() } else { self.spec.with_dtype(dtype) }
    }

    /// Its numbers, rounded to `spec_in(dtype)`, as draw `draw` of input `position`.
    pub fn numbers(&self, dtype: Dtype, draw: u64, position: usize) -> Vec<f32> {
        let stream = Stream::of(0x5eed, &[draw, position as u64, self.spec.len() as u64]);
        let (n, to) = (self.spec.len(), self.spec_in(dtype).dtype());
        match &self.fill {
            Fill::Uniform(lo, hi) => drawn(n, |i| round_to(to, lo + (hi - lo) * stream.uniform(i))),
            Fill::Normal => drawn(n, |i| round_to(to, stream.normal(i) as f32)),
            Fill::Values(v) => v.iter().map(|x| round_to(to, *x)).cycle().take(n).collect(),
            Fill::Ints(_) | Fill::IntsIn(..) => Vec::new(),
        }
    }

    /// Its integers, for an i32 input.
    pub fn integers(&self, draw: u64, position: usize) -> Vec<i32> {
        let stream = Stream::of(0x1d5, &[draw, position as u64]);
        let n = self.spec.len();
        match &self.fill {
            Fill::Ints(v) => v.iter().copied().cycle().take(n).collect(),
            Fill::IntsIn(lo, hi) => {
                let width = hi.abs_diff(*lo);
                (0..n as u64).map(|i| lo.wrapping_add(stream.below(i, u64::from(width)) as i32)).collect()
            }
            Fill::Uniform(..) | Fill::Normal | Fill::Values(_) => Vec::new(),
        }
    }

    /// The input as a tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] if an i32 input has no integer fill.
    pub fn tensor(&self, dtype: Dtype, draw: u64, position: usize) -> Result<Tensor> {
        let spec = self.spec_in(dtype);
        if spec.dtype() == Dtype::I32 {
            return Tensor::from_bytes(spec, bytemuck::cast_slice(&self.integers(draw, position)));
        }
        Tensor::from_f32_as(spec, &self.numbers(dtype, draw, position))
    }
}

/// An operator with its parameters and the inputs to test it on.
#[derive(Clone, Debug)]
pub struct Case {
    /// Shown in messages: the parameters and shapes that make the case.
    pub label: String,
    /// The operator and its texts.
    pub subject: Arc<dyn Subject>,
    /// Inputs, in the operator's order.
    pub x: Vec<Input>,
    /// The only storage type that it is timed in; `None` is each of the room's.
    pub timed_in: Option<Dtype>,
    /// Whether its numbers make kernels compute tiles again, so that they execute more than launches can state.
    pub takes_tiles_again: bool,
}

impl Case {
    /// A case of an operator with a gradient.
    pub fn new<O: ReferenceGrad>(op: O, x: impl Into<Vec<Input>>) -> Case {
        Case::of(Arc::new(Grad(op)), x.into())
    }

    /// A case of an operator without a gradient.
    pub fn plain<O: Reference>(op: O, x: impl Into<Vec<Input>>) -> Case {
        Case::of(Arc::new(Plain(op)), x.into())
    }

    fn of(subject: Arc<dyn Subject>, x: Vec<Input>) -> Case {
        let shapes: Vec<String> = x.iter().map(|i| format!("{} {:?}", i.name, i.spec.shape())).collect();
        let label = format!("{:?}: {}", subject.operator(), shapes.join(", "));
        Case { label, subject, x, timed_in: None, takes_tiles_again: false }
    }

    /// The same, of numbers that make kernels compute tiles again.
    #[must_use]
    pub fn that_takes_tiles_again(mut self) -> Case {
        self.takes_tiles_again = true;
        self
    }

    /// The same, timed in one storage type alone: for shapes that another library is compared at in this type.
    #[must_use]
    pub fn timed_in(mut self, dtype: Dtype) -> Case {
        self.timed_in = Some(dtype);
        self
    }

    /// The operator.
    pub fn operator(&self) -> &dyn Operator {
        self.subject.operator()
    }

    /// The inputs that have a gradient, if the operator has one.
    pub fn wanted(&self) -> Mask {
        if self.subject.differentiable().is_none() {
            return Mask::NONE;
        }
        self.x.iter().enumerate().filter(|(_, i)| i.wanted).fold(Mask::NONE, |m, (i, _)| m.with(i))
    }

    /// The specs of the inputs when the storage type `dtype` is tested.
    pub fn specs(&self, dtype: Dtype) -> Vec<Spec> {
        self.x.iter().map(|i| i.spec_in(dtype)).collect()
    }
}

/// Inputs that the operator must refuse, and words that the refusal must contain.
#[derive(Clone, Debug)]
pub struct BadCase {
    /// The operator.
    pub op: Arc<dyn Operator>,
    /// Its inputs.
    pub x: Vec<Spec>,
    /// What the message must contain.
    pub error: &'static str,
}

impl BadCase {
    /// `op` on f32 inputs of these shapes is refused with a message that contains `error`.
    pub fn new<O: Operator>(op: O, shapes: &[&[usize]], error: &'static str) -> BadCase {
        let specs = shapes.iter().map(|&s| Spec::f32(s)).collect::<Result<Vec<_>, Error>>();
        BadCase { op: Arc::new(op), x: specs.unwrap_or_else(|e| unreachable!("case shapes are small: {e}")), error }
    }

    /// `op` on inputs of these specs is refused with a message that contains `error`.
    pub fn of_specs<O: Operator>(op: O, x: Vec<Spec>, error: &'static str) -> BadCase {
        BadCase { op: Arc::new(op), x, error }
    }
}
