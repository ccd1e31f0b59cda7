//! Runs one operator over f32 numbers, on the CPU or on another device, for the edge cases of rooms.

use crate::backend::Exec;
use crate::ops::operator::{Backward, Differentiable, Forward, GradSlot, Operator};
use crate::tensor::{Spec, Tensor, View};

/// A device of this name.
pub(crate) fn device(name: &str) -> Exec {
    Exec::open(name.parse().unwrap()).unwrap()
}

/// An input: shape and numbers.
pub(crate) type Numbers<'a> = (&'a [usize], &'a [f32]);

fn load(exec: &Exec, x: &[Numbers<'_>]) -> Vec<Tensor> {
    x.iter().map(|(shape, v)| exec.import(&Tensor::from_f32(*shape, v).unwrap()).unwrap()).collect()
}

fn run(exec: &Exec, op: &dyn Operator, x: &[Tensor]) -> (Vec<Tensor>, Vec<Tensor>) {
    let specs: Vec<&Spec> = x.iter().map(Tensor::spec).collect();
    let out = op.infer(&specs).unwrap();
    let zeros = |spec: Spec| exec.import(&Tensor::zeros(spec)).unwrap();
    let mut y: Vec<Tensor> = out.y.into_iter().map(zeros).collect();
    let mut saved: Vec<Tensor> = out.saved.into_iter().map(zeros).collect();
    let views: Vec<View<'_>> = x.iter().map(Tensor::view).collect();
    {
        let mut to: Vec<_> = y.iter_mut().map(|t| t.view_mut().unwrap()).collect();
        let mut save: Vec<_> = saved.iter_mut().map(|t| t.view_mut().unwrap()).collect();
        op.forward(exec, Forward { x: &views, y: &mut to, saved: &mut save }).unwrap();
    }
    (y, saved)
}

/// The first result.
pub(crate) fn forward(op: &dyn Operator, x: &[Numbers<'_>]) -> Vec<f32> {
    forward_on(&Exec::cpu(), op, x)
}

/// The first result on a device.
pub(crate) fn forward_on(exec: &Exec, op: &dyn Operator, x: &[Numbers<'_>]) -> Vec<f32> {
    run(exec, op, &load(exec, x)).0[0].to_f32().unwrap()
}

/// The gradients of all inputs for this gradient of the first result; `None` for none.
pub(crate) fn backward(op: &dyn Differentiable, x: &[Numbers<'_>], dy: Option<&[f32]>) -> Vec<Vec<f32>> {
    backward_on(&Exec::cpu(), op, x, dy)
}

/// The same on a device.
pub(crate) fn backward_on(
    exec: &Exec,
    op: &dyn Differentiable,
    x: &[Numbers<'_>],
    dy: Option<&[f32]>,
) -> Vec<Vec<f32>> {
    let x = load(exec, x);
    let (y, saved) = run(exec, op, &x);
    let dy = dy.map(|v| load(exec, &[(y[0].shape(), v)]).remove(0));
    let nan = |t: &Tensor| load(exec, &[(t.shape(), &vec![f32::NAN; t.spec().len()])]).remove(0);
    let mut dx: Vec<Tensor> = x.iter().map(nan).collect();
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
        op.backward(exec, io).unwrap();
    }
    dx.iter().map(|t| t.to_f32().unwrap()).collect()
}
