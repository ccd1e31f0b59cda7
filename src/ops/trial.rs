//! Runs one operator on the CPU over f32 numbers, for the edge cases of rooms.

use crate::backend::Exec;
use crate::ops::operator::{Backward, Differentiable, Forward, GradSlot, Operator};
use crate::tensor::{Spec, Tensor, View};

/// An input: shape and numbers.
pub(crate) type Numbers<'a> = (&'a [usize], &'a [f32]);

fn load(x: &[Numbers<'_>]) -> Vec<Tensor> {
    x.iter().map(|(shape, v)| Tensor::from_f32(*shape, v).unwrap()).collect()
}

fn run(op: &dyn Operator, x: &[Tensor]) -> (Vec<Tensor>, Vec<Tensor>) {
    let specs: Vec<&Spec> = x.iter().map(Tensor::spec).collect();
    let out = op.infer(&specs).unwrap();
    let mut y: Vec<Tensor> = out.y.into_iter().map(Tensor::zeros).collect();
    let mut saved: Vec<Tensor> = out.saved.into_iter().map(Tensor::zeros).collect();
    let views: Vec<View<'_>> = x.iter().map(Tensor::view).collect();
    {
        let mut to: Vec<_> = y.iter_mut().map(|t| t.view_mut().unwrap()).collect();
        let mut save: Vec<_> = saved.iter_mut().map(|t| t.view_mut().unwrap()).collect();
        op.forward(&Exec::cpu(), Forward { x: &views, y: &mut to, saved: &mut save }).unwrap();
    }
    (y, saved)
}

/// The first result.
pub(crate) fn forward(op: &dyn Operator, x: &[Numbers<'_>]) -> Vec<f32> {
    run(op, &load(x)).0[0].to_f32().unwrap()
}

/// The gradients of all inputs for this gradient of the first result; `None` for none.
pub(crate) fn backward(op: &dyn Differentiable, x: &[Numbers<'_>], dy: Option<&[f32]>) -> Vec<Vec<f32>> {
    let x = load(x);
    let (y, saved) = run(op, &x);
    let dy = dy.map(|v| Tensor::from_f32(y[0].shape(), v).unwrap());
    let mut dx: Vec<Tensor> =
        x.iter().map(|t| Tensor::from_f32(t.shape(), &vec![f32::NAN; t.spec().len()]).unwrap()).collect();
    {
        let mut slots: Vec<_> = dx.iter_mut().map(|t| GradSlot::Set(t.view_mut().unwrap())).collect();
        let io = Backward {
            specs: &x.iter().map(Tensor::spec).collect::<Vec<_>>(),
            x: &x.iter().map(|t| Some(t.view())).collect::<Vec<_>>(),
            y: &y.iter().map(|t| Some(t.view())).collect::<Vec<_>>(),
            saved: &saved.iter().map(Tensor::view).collect::<Vec<_>>(),
            dy: &(0..y.len()).map(|i| dy.as_ref().filter(|_| i == 0).map(Tensor::view)).collect::<Vec<_>>(),
            dx: &mut slots,
        };
        op.backward(&Exec::cpu(), io).unwrap();
    }
    dx.iter().map(|t| t.to_f32().unwrap()).collect()
}
