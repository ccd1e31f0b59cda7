use super::*;
use crate::ops::operator::op_cost;
use crate::tensor::{Tensor, View};

crate::room_tests!(ROOM);

fn run(op: Matmul, x: &[&Tensor]) -> Vec<f32> {
    let specs: Vec<&Spec> = x.iter().map(|x| x.spec()).collect();
    let out = op.infer(&specs).unwrap();
    let mut y: Vec<Tensor> = out.y.into_iter().map(Tensor::zeros).collect();
    let mut saved: Vec<Tensor> = out.saved.into_iter().map(Tensor::zeros).collect();
    let views: Vec<View<'_>> = x.iter().map(|x| x.view()).collect();
    let mut ys: Vec<_> = y.iter_mut().filter_map(Tensor::view_mut).collect();
    let mut kept: Vec<_> = saved.iter_mut().filter_map(Tensor::view_mut).collect();
    op.forward(&Exec::cpu(), Forward { x: &views, y: &mut ys, saved: &mut kept }).unwrap();
    y[0].to_f32().unwrap()
}

#[test]
fn nan_and_infinities_reach_the_rows_that_they_belong_to() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for activation in [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
        let x = Tensor::from_f32([3, 2], &[nan, 0.0, inf, 0.0, 1.0, 2.0]).unwrap();
        let w = Tensor::from_f32([2, 1], &[1.0, 1.0]).unwrap();
        let y = run(Matmul { transpose_w: false, activation }, &[&x, &w]);
        assert!(y[0].is_nan() && y[1] == inf && y[2].is_finite(), "{activation:?}: {y:?}");
    }
}

#[test]
fn without_columns_or_depth_the_result_is_empty_or_the_bias() {
    let op = Matmul { transpose_w: true, activation: Activation::None };
    let bias = Tensor::from_f32([2], &[1.0, -2.0]).unwrap();
    let y = run(op, &[&Tensor::from_f32([2, 0], &[]).unwrap(), &Tensor::from_f32([2, 0], &[]).unwrap(), &bias]);
    assert_eq!(y, [1.0, -2.0, 1.0, -2.0]);
    let y = run(op, &[&Tensor::zeros(Spec::f32([2, 3]).unwrap()), &Tensor::from_f32([0, 3], &[]).unwrap()]);
    assert!(y.is_empty());
}

#[test]
fn a_linear_layer_costs_what_the_textbook_says() {
    let op = Matmul { transpose_w: true, activation: Activation::None };
    let (x, w, b) = (Spec::f32([4, 4050, 384]).unwrap(), Spec::f32([1536, 384]).unwrap(), Spec::f32([1536]).unwrap());
    let cost = op_cost(&op, &[&x, &w, &b], Mask::ALL).unwrap();
    assert_eq!(cost.forward.flops.matmul, 2 * 4 * 4050 * 384 * 1536);
    assert_eq!(cost.backward.flops.matmul, 2 * cost.forward.flops.matmul);
    assert_eq!(cost.recomputed, Flops::ZERO);
}

#[test]
fn only_what_backward_reads_is_kept() {
    let of = |activation| Matmul { transpose_w: true, activation };
    assert_eq!(of(Activation::None).keeps(Mask::of([0])), Keeps { x: Mask::of([1]), y: Mask::NONE });
    assert_eq!(of(Activation::Gelu).keeps(Mask::of([1])), Keeps { x: Mask::of([0]), y: Mask::NONE });
    assert_eq!(of(Activation::Relu).keeps(Mask::of([2])), Keeps { x: Mask::NONE, y: Mask::of([0]) });
}
