//! Runs the texts of an operator on a case: in f64 with counting, in f32 with rounding, in f32 as the CPU does.

use std::fmt;

use crate::cost::Flops;
use crate::error::Result;
use crate::ops::contract::Case;
use crate::ops::operator::{
    Differentiable, Mask, Operator, Outputs, RefBackward, RefForward, RefInput, Reference, ReferenceGrad,
};
use crate::rng::Stream;
use crate::scalar::{Counted, Rounded, Scalar, counted, round_to, rounding_to};
use crate::tensor::{Dtype, Spec};

/// An operator with its texts at the number types that the contract needs, behind one pointer: so the contract is compiled
/// once and not once an operator.
pub trait Subject: Send + Sync + 'static {
    /// The operator.
    fn operator(&self) -> &dyn Operator;
    /// The operator, if it has a gradient.
    fn differentiable(&self) -> Option<&dyn Differentiable>;
    /// Forward in f64, counted.
    fn forward_counted(&self, io: RefForward<'_, Counted>);
    /// Forward in f32, rounded where stored.
    fn forward_rounded(&self, io: RefForward<'_, Rounded>);
    /// Backward in f64, counted.
    fn backward_counted(&self, io: RefBackward<'_, Counted>);
    /// Backward in f32, rounded where stored.
    fn backward_rounded(&self, io: RefBackward<'_, Rounded>);
}

impl fmt::Debug for dyn Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operator().fmt(f)
    }
}

/// An operator without a gradient.
pub(crate) struct Plain<O>(pub O);
/// An operator with a gradient.
pub(crate) struct Grad<O>(pub O);

impl<O: Reference> Subject for Plain<O> {
    fn operator(&self) -> &dyn Operator {
        &self.0
    }
    fn differentiable(&self) -> Option<&dyn Differentiable> {
        None
    }
    fn forward_counted(&self, io: RefForward<'_, Counted>) {
        self.0.forward_ref(io);
    }
    fn forward_rounded(&self, io: RefForward<'_, Rounded>) {
        self.0.forward_ref(io);
    }
    fn backward_counted(&self, _: RefBackward<'_, Counted>) {}
    fn backward_rounded(&self, _: RefBackward<'_, Rounded>) {}
}

impl<O: ReferenceGrad> Subject for Grad<O> {
    fn operator(&self) -> &dyn Operator {
        &self.0
    }
    fn differentiable(&self) -> Option<&dyn Differentiable> {
        Some(&self.0)
    }
    fn forward_counted(&self, io: RefForward<'_, Counted>) {
        self.0.forward_ref(io);
    }
    fn forward_rounded(&self, io: RefForward<'_, Rounded>) {
        self.0.forward_ref(io);
    }
    fn backward_counted(&self, io: RefBackward<'_, Counted>) {
        self.0.backward_ref(io);
    }
    fn backward_rounded(&self, io: RefBackward<'_, Rounded>) {
        self.0.backward_ref(io);
    }
}

/// The numbers of one draw of a case, in one storage type: what every path is given.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Storage type.
    pub dtype: Dtype,
    /// Specs of the inputs.
    pub specs: Vec<Spec>,
    /// Results and what is saved.
    pub out: Outputs,
    /// Inputs, exactly representable in their type; empty for integers.
    pub x: Vec<Vec<f64>>,
    /// Integer inputs; empty for the others.
    pub ints: Vec<Vec<i32>>,
    /// Gradients of the results, exactly representable in their type.
    pub dy: Vec<Vec<f64>>,
}

/// What a text made of a draw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub y: Vec<Vec<f64>>,
    pub saved: Vec<Vec<f64>>,
    /// Empty where not wanted.
    pub dx: Vec<Vec<f64>>,
    pub forward: Flops,
    pub backward: Flops,
}

impl Draw {
    /// Draw `number` of `case` in `dtype`.
    ///
    /// # Errors
    /// Whatever [`Operator::infer`] rejects.
    pub fn new(case: &Case, dtype: Dtype, number: u64) -> Result<Draw> {
        let specs = case.specs(dtype);
        let out = case.operator().infer(&specs.iter().collect::<Vec<_>>())?;
        let widen = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<f64>>();
        let x = case.x.iter().enumerate().map(|(i, input)| widen(input.numbers(dtype, number, i))).collect();
        let ints = case.x.iter().enumerate().map(|(i, input)| input.integers(number, i)).collect();
        let gradient = |(i, s): (usize, &Spec)| {
            let stream = Stream::of(0xd1, &[number, i as u64]);
            widen((0..s.len() as u64).map(|k| round_to(s.dtype(), stream.signed(k))).collect())
        };
        let dy = out.y.iter().enumerate().map(gradient).collect();
        Ok(Draw { dtype, specs, out, x, ints, dy })
    }

    /// Forward and backward in f64, counted.
    pub(crate) fn exact(&self, subject: &dyn Subject, wanted: Mask) -> Run {
        self.run::<Counted>(subject, wanted, &|io| counted(|| subject.forward_counted(io)).1, &|io| {
            counted(|| subject.backward_counted(io)).1
        })
    }

    /// Forward and backward in f32, rounded to the storage type where stored; results rounded too.
    pub(crate) fn base(&self, subject: &dyn Subject, wanted: Mask) -> Run {
        let mut run = rounding_to(self.dtype, || {
            self.run::<Rounded>(
                subject,
                wanted,
                &|io| {
                    subject.forward_rounded(io);
                    Flops::ZERO
                },
                &|io| {
                    subject.backward_rounded(io);
                    Flops::ZERO
                },
            )
        });
        let round = |v: &mut Vec<f64>, to: Dtype| v.iter_mut().for_each(|x| *x = f64::from(round_to(to, *x as f32)));
        run.y.iter_mut().zip(&self.out.y).for_each(|(v, s)| round(v, s.dtype()));
        run.dx.iter_mut().zip(&self.specs).for_each(|(v, s)| round(v, s.dtype()));
        run
    }

    /// Only the results in f64, for other numbers than the draw's own.
    pub(crate) fn exact_results(&self, subject: &dyn Subject, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let x: Vec<Vec<Counted>> = x.iter().map(|v| v.iter().map(|&x| Counted(x)).collect()).collect();
        let (y, _, _) = self.forward::<Counted>(&x, &|io| {
            subject.forward_counted(io);
            Flops::ZERO
        });
        y.iter().map(|v| v.iter().map(|x| x.0).collect()).collect()
    }

    fn inputs<'s, S>(&'s self, x: &'s [Vec<S>]) -> Vec<RefInput<'s, S>> {
        let pairs = x.iter().zip(&self.ints).zip(&self.specs);
        pairs.map(|((v, ints), spec)| RefInput { spec, v, ints }).collect()
    }

    fn forward<S: Scalar>(
        &self,
        x: &[Vec<S>],
        text: &dyn Fn(RefForward<'_, S>) -> Flops,
    ) -> (Vec<Vec<S>>, Vec<Vec<S>>, Flops) {
        let zeros = |specs: &[Spec]| specs.iter().map(|s| vec![S::zero(); s.len()]).collect::<Vec<_>>();
        let (mut y, mut saved) = (zeros(&self.out.y), zeros(&self.out.saved));
        let flops = {
            let mut y: Vec<&mut [S]> = y.iter_mut().map(Vec::as_mut_slice).collect();
            let mut saved: Vec<&mut [S]> = saved.iter_mut().map(Vec::as_mut_slice).collect();
            text(RefForward { x: &self.inputs(x), y: &mut y, saved: &mut saved })
        };
        (y, saved, flops)
    }

    fn run<S: Scalar>(
        &self,
        subject: &dyn Subject,
        wanted: Mask,
        forward: &dyn Fn(RefForward<'_, S>) -> Flops,
        backward: &dyn Fn(RefBackward<'_, S>) -> Flops,
    ) -> Run {
        let number = |v: &Vec<f64>| v.iter().map(|&x| S::of(x)).collect::<Vec<S>>();
        let value = |v: &Vec<S>| v.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let mut x: Vec<Vec<S>> = self.x.iter().map(number).collect();
        let (mut y, saved, forward) = self.forward(&x, forward);
        let mut run = Run {
            y: y.iter().map(value).collect(),
            saved: saved.iter().map(value).collect(),
            forward,
            ..Run::default()
        };
        let Some(op) = subject.differentiable().filter(|_| !wanted.is_empty()) else { return run };
        // What backward says it does not read is taken away, so that a wrong `keeps` cannot pass.
        let keeps = op.keeps(wanted);
        x.iter_mut().enumerate().filter(|(i, _)| !keeps.x.has(*i)).for_each(|(_, v)| v.clear());
        for (i, v) in y.iter_mut().enumerate() {
            // A kept result is read as it was stored.
            v.iter_mut().for_each(|x| *x = x.stored());
            if !keeps.y.has(i) {
                v.clear();
            }
        }
        let dy: Vec<Vec<S>> = self.dy.iter().map(number).collect();
        let gradient = |(i, s): (usize, &Spec)| if wanted.has(i) { vec![S::zero(); s.len()] } else { Vec::new() };
        let mut dx: Vec<Vec<S>> = self.specs.iter().enumerate().map(gradient).collect();
        {
            let y: Vec<&[S]> = y.iter().map(Vec::as_slice).collect();
            let saved: Vec<&[S]> = saved.iter().map(Vec::as_slice).collect();
            let dy: Vec<&[S]> = dy.iter().map(Vec::as_slice).collect();
            let slot = |(i, v)| if wanted.has(i) { Some(Vec::as_mut_slice(v)) } else { None };
            let mut dx: Vec<Option<&mut [S]>> = dx.iter_mut().enumerate().map(slot).collect();
            run.backward = backward(RefBackward { x: &self.inputs(&x), y: &y, saved: &saved, dy: &dy, dx: &mut dx });
        }
        run.dx = dx.iter().map(value).collect();
        run
    }
}
