use super::*;
use crate::cost::Cost;
use crate::ops::cast::Cast;
use crate::ops::global_norm::GlobalNorm;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::matmul::Matmul;
use crate::ops::operator::{Factors, Operator};
use crate::rng::Stream;
use crate::tensor::Layout;

const NORM: LayerNorm = LayerNorm { eps: 1e-5 };

fn random(shape: &[usize], id: u64) -> Tensor {
    let spec = Spec::f32(shape).unwrap();
    let v: Vec<f32> = (0..spec.len() as u64).map(|i| Stream::new(3, id).signed(i)).collect();
    Tensor::from_f32(shape, &v).unwrap()
}

fn params() -> Arena {
    let layout = Layout::new(Dtype::F32, [[6].into(), [6].into()] as [Box<[usize]>; 2]).unwrap();
    let mut arena = Arena::zeros(layout);
    for i in 0..2 {
        let from = random(&[6], 10 + i as u64);
        arena.view_mut(i).unwrap().bytes().unwrap().copy_from_slice(from.bytes());
    }
    arena
}

/// Three norms one after the other with the same parameters, the middle one in a segment if asked.
fn chain(tape: &mut Tape<'_>, x: Var, segment: bool) -> Result<Var> {
    let (gamma, beta) = (tape.param(Param(0))?, tape.param(Param(1))?);
    let x = tape.apply(NORM, [x, gamma, beta])?;
    let body = |tape: &mut Tape<'_>| {
        let x = tape.reshape(x, [2, 2, 6])?;
        let x = tape.apply(NORM, [x, gamma, beta])?;
        let x = tape.reshape(x, [4, 6])?;
        tape.apply(NORM, [x, gamma, beta])
    };
    if segment { tape.checkpoint(body) } else { body(tape) }
}

fn gradients(segment: bool) -> (Vec<f32>, Vec<f32>, StepCost) {
    let (exec, params) = (Exec::cpu(), params());
    let mut tape = Tape::with_params(&exec, &params);
    let x = tape.variable(&random(&[4, 6], 1)).unwrap();
    let y = chain(&mut tape, x, segment).unwrap();
    let mut grads = Grads::new(&exec, params.layout()).unwrap();
    let seed = random(&[4, 6], 2);
    let dx = tape.backward_from(vec![(y, seed)], Some(&mut grads), &[x]).unwrap();
    let flat = grads.settled(&exec).unwrap().flat().f32().unwrap().to_vec();
    (dx[0].as_ref().unwrap().to_f32().unwrap(), flat, tape.cost())
}

#[test]
fn a_segment_changes_no_bit_and_costs_its_forward_again() {
    let (dx, dw, cost) = gradients(false);
    let (dx2, dw2, cost2) = gradients(true);
    assert_eq!((dx, dw), (dx2, dw2));
    assert_eq!(cost.rerun, Cost::ZERO);
    assert_eq!(cost2.model(), cost.model());
    assert_eq!(cost2.rerun.flops * 3, cost.forward.flops * 2);
    assert_eq!(cost2.algorithm().flops, cost.model().flops + cost2.rerun.flops);
}

#[test]
fn a_plan_has_the_cost_and_the_memory_of_the_run() {
    let run = |exec: &Exec, params: &Arena| {
        let mut tape = Tape::with_params(exec, params);
        let x = tape.variable(&random(&[4, 6], 1)).unwrap();
        let y = chain(&mut tape, x, true).unwrap();
        let mut grads = Grads::new(exec, params.layout()).unwrap();
        let seed = exec.alloc(Spec::f32([4, 6]).unwrap()).unwrap();
        tape.backward_from(vec![(y, seed)], Some(&mut grads), &[]).unwrap();
        tape.cost()
    };
    let (cpu, plan) = (Exec::cpu(), Exec::plan());
    let planned = Arena::planned(params().layout().clone());
    assert_eq!(run(&cpu, &params()), run(&plan, &planned));
    assert!(plan.memory().peak >= cpu.memory().peak, "the plan also counts what the caller gives");
}

#[test]
fn gradients_of_several_passes_add_up_until_they_are_cleared() {
    let (exec, params) = (Exec::cpu(), params());
    let mut grads = Grads::new(&exec, params.layout()).unwrap();
    let pass = |grads: &mut Grads| {
        let mut tape = Tape::with_params(&exec, &params);
        let x = tape.input(&random(&[4, 6], 1)).unwrap();
        let y = chain(&mut tape, x, false).unwrap();
        tape.backward_from(vec![(y, random(&[4, 6], 2))], Some(grads), &[]).unwrap();
    };
    pass(&mut grads);
    let once = grads.get(Param(0)).unwrap().to_f32().unwrap();
    pass(&mut grads);
    let twice = grads.get(Param(0)).unwrap().to_f32().unwrap();
    for (a, b) in once.iter().zip(&twice) {
        assert!((b - 2.0 * a).abs() <= 1e-5 * a.abs().max(1.0), "{b} is not twice {a}");
    }
    grads.clear();
    assert!(grads.get(Param(0)).is_none());
    pass(&mut grads);
    assert_eq!(grads.get(Param(0)).unwrap().to_f32().unwrap(), once);
}

#[test]
fn an_input_that_stands_twice_gets_both_contributions() {
    let exec = Exec::cpu();
    let mut tape = Tape::new(&exec);
    let x = tape.variable(&random(&[1, 6], 1)).unwrap();
    let g = tape.variable(&random(&[6], 2)).unwrap();
    let y = tape.apply(NORM, [x, g, g]).unwrap();
    let both = tape.backward_from(vec![(y, random(&[1, 6], 3))], None, &[g]).unwrap();
    let mut tape = Tape::new(&exec);
    let x = tape.variable(&random(&[1, 6], 1)).unwrap();
    let (g, b) = (tape.variable(&random(&[6], 2)).unwrap(), tape.variable(&random(&[6], 2)).unwrap());
    let y = tape.apply(NORM, [x, g, b]).unwrap();
    let apart = tape.backward_from(vec![(y, random(&[1, 6], 3))], None, &[g, b]).unwrap();
    let sum: Vec<f32> = {
        let (g, b) = (apart[0].as_ref().unwrap().to_f32().unwrap(), apart[1].as_ref().unwrap().to_f32().unwrap());
        g.iter().zip(&b).map(|(g, b)| g + b).collect()
    };
    assert_eq!(both[0].as_ref().unwrap().to_f32().unwrap(), sum);
}

#[test]
fn inference_keeps_nothing_and_refuses_a_backward_pass() {
    let (exec, params) = (Exec::cpu(), params());
    let mut tape = Tape::with_params(&exec, &params).inference();
    let x = tape.input(&random(&[4, 6], 1)).unwrap();
    let y = chain(&mut tape, x, true).unwrap();
    assert!(tape.nodes.is_empty());
    assert_eq!(exec.memory().now, 2 * 4 * 6 * 4, "the first norm and the result");
    let e = tape.backward_from(vec![(y, random(&[4, 6], 2))], None, &[]).unwrap_err();
    assert!(e.to_string().contains("inference"), "{e}");
}

#[test]
fn freed_and_foreign_values_are_named_errors() {
    let (exec, params) = (Exec::cpu(), params());
    let mut tape = Tape::with_params(&exec, &params);
    let x = tape.input(&random(&[4, 6], 1)).unwrap();
    let mut inner = None;
    let y = tape
        .checkpoint(|tape| {
            let (g, b) = (tape.param(Param(0))?, tape.param(Param(1))?);
            let a = tape.apply(NORM, [x, g, b])?;
            inner = Some(a);
            tape.apply(NORM, [a, g, b])
        })
        .unwrap();
    assert!(tape.value(inner.unwrap()).unwrap_err().to_string().contains("has been freed"));
    assert!(tape.value(y).is_ok());
    assert!(tape.value(Var(1000)).unwrap_err().to_string().contains("another tape"));
    assert!(tape.param(Param(9)).is_err());
    let mut grads = Grads::new(&exec, params.layout()).unwrap();
    assert!(tape.backward(y, 1.0, &mut grads).unwrap_err().to_string().contains("expected one number"));
}

#[test]
fn costs_are_listed_by_module() {
    let (exec, params) = (Exec::cpu(), params());
    let mut tape = Tape::with_params(&exec, &params).watched(0..usize::MAX, 0).unwrap();
    let x = tape.input(&random(&[4, 6], 1)).unwrap();
    let y = tape
        .in_module("blocks.0", |tape| {
            let y = chain(tape, x, false)?;
            tape.in_module("mlp", |tape| chain(tape, y, false))
        })
        .unwrap();
    tape.backward_from(vec![(y, random(&[4, 6], 2))], None, &[]).unwrap();
    let rows: Vec<(&str, u64)> = tape.profile().rows().iter().map(|r| (r.module.as_str(), r.calls)).collect();
    assert_eq!(rows, [("blocks.0", 2), ("blocks.0", 1), ("blocks.0.mlp", 2), ("blocks.0.mlp", 1)]);
    assert_eq!(tape.cost().forward.flops.special, 24);
    let mut profile = tape.into_profile();
    assert!(profile.rows().iter().all(|r| r.seen(RowPass::Forward).seconds == 0.0), "times are read by settle");
    profile.settle().unwrap();
    for row in profile.rows() {
        assert_eq!(row.unmasked.model().flops, row.cost.model().flops, "a norm knows no mask");
        let [forward, backward, rerun] = row.seen;
        assert!(forward.seconds > 0.0 && backward.seconds > 0.0 && rerun == Seen::default(), "{row:?}");
        assert!(forward.peak_bytes >= forward.live_bytes && forward.live_bytes >= 4 * 6 * 4, "{forward:?}");
    }
    assert!(profile.peak_bytes() >= profile.rows()[0].seen[0].peak_bytes);
    assert_eq!(profile.laps(), 1 + 6 + 1 + 6, "an input, six operators, a seed, and back");
}

/// Parameters in bf16 twice over, in a segment and outside of it: the gradients, and how often something was rounded.
fn rounded(params: &Arena, shadow: Option<&Arena>) -> (Vec<f32>, u64, StepCost) {
    let exec = Exec::cpu();
    let mut tape = Tape::with_params(&exec, params);
    if let Some(shadow) = shadow {
        tape = tape.with_shadow(shadow).unwrap();
    }
    let x = tape.input(&random(&[4, 6], 1)).unwrap();
    let body = |tape: &mut Tape<'_>, x: Var| {
        let [g, b] = [Param(0), Param(1)].map(|p| {
            let p = tape.param(p).unwrap();
            let narrow = tape.apply_or_recall(Cast { to: Dtype::Bf16 }, p).unwrap();
            tape.apply_or_recall(Cast { to: Dtype::F32 }, narrow).unwrap()
        });
        tape.apply(NORM, [x, g, b])
    };
    let x = tape.checkpoint(|tape| body(tape, x)).unwrap();
    let x = body(&mut tape, x).unwrap();
    let mut grads = Grads::new(&exec, params.layout()).unwrap();
    tape.backward_from(vec![(x, random(&[4, 6], 2))], Some(&mut grads), &[]).unwrap();
    let casts = tape.profile().rows().iter().filter(|r| r.op == "cast" && r.result.dtype() == Dtype::Bf16);
    let calls = casts.map(|r| r.calls).sum();
    (grads.settled(&exec).unwrap().flat().to_f32().unwrap(), calls, tape.cost())
}

#[test]
fn what_a_shadow_holds_is_not_computed_and_changes_no_bit() {
    let params = params();
    let mut shadow = Arena::zeros(params.layout().beside(Dtype::Bf16).unwrap());
    let cast = Cast { to: Dtype::Bf16 };
    cast.forward(&Exec::cpu(), Forward { x: &[params.flat()], y: &mut [shadow.flat_mut()], saved: &mut [] }).unwrap();
    let (want, casts, without) = rounded(&params, None);
    let (got, recalled, with) = rounded(&params, Some(&shadow));
    assert_eq!(got, want);
    assert_eq!((casts, recalled), (4, 0));
    assert_eq!(with.backward, without.backward, "gradients are widened either way");
    // Four times twelve numbers of 4 and 2 bytes in all, and half of it again.
    assert_eq!(without.forward.bytes - with.forward.bytes, 2 * 12 * 6);
    assert_eq!(without.rerun.bytes - with.rerun.bytes, 12 * 6);
}

#[test]
fn a_shadow_of_other_parameters_is_refused() {
    let (exec, params) = (Exec::cpu(), params());
    let other = Arena::zeros(Layout::new(Dtype::Bf16, [[6].into()] as [Box<[usize]>; 1]).unwrap());
    assert!(Tape::with_params(&exec, &params).with_shadow(&other).is_err());
    assert!(Tape::new(&exec).with_shadow(&other).is_err());
}

/// A vector, the weight of a product, and another vector, none of whose lengths is a multiple of anything.
fn weights() -> Arena {
    let layout = Layout::new(Dtype::F32, [[6].into(), [5, 6].into(), [5].into()] as [Box<[usize]>; 3]).unwrap();
    let mut arena = Arena::zeros(layout);
    for (i, shape) in [&[6][..], &[5, 6], &[5]].into_iter().enumerate() {
        arena.view_mut(i).unwrap().bytes().unwrap().copy_from_slice(random(shape, 20 + i as u64).bytes());
    }
    arena
}

/// A norm with the first and last number of parameters, then the product, `times` times, whose gradients go to `grads`.
fn products(params: &Arena, times: usize, grads: &mut Grads) -> Result<()> {
    let mut tape = Tape::with_params(&Exec::cpu(), params);
    let x = tape.input(&random(&[4, 6], 1))?;
    let (gamma, weight, bias) = (tape.param(Param(0))?, tape.param(Param(1))?, tape.param(Param(2))?);
    let x = tape.apply(NORM, [x, gamma, gamma])?;
    let op = Matmul { transpose_w: true, ..Matmul::default() };
    let seeds = (0..times).map(|i| Ok((tape.apply(op, [x, weight, bias])?, random(&[4, 5], 30 + i as u64))));
    let seeds = seeds.collect::<Result<Vec<_>>>()?;
    tape.backward_from(seeds, Some(grads), &[]).map(drop)
}

#[test]
fn a_weight_has_the_factors_of_its_gradient_where_these_are_kept_and_all_else_its_gradient() {
    let (exec, params) = (Exec::cpu(), weights());
    let mut whole = Grads::new(&exec, params.layout()).unwrap();
    products(&params, 1, &mut whole).unwrap();
    let mut grads = Grads::with_factors(&exec, params.layout(), |i| i == 1).unwrap();
    products(&params, 1, &mut grads).unwrap();
    for i in [0, 2] {
        assert_eq!(grads.get(Param(i)).unwrap().to_f32().unwrap(), whole.get(Param(i)).unwrap().to_f32().unwrap());
    }
    assert!(grads.get(Param(1)).is_none() && grads.factors(Param(0)).is_none());
    let factors = grads.factors(Param(1)).unwrap();
    let (dy, x) = (factors.dy.to_f32().unwrap(), factors.x.to_f32().unwrap());
    for (at, want) in whole.get(Param(1)).unwrap().to_f32().unwrap().iter().enumerate() {
        let got: f32 = (0..4).map(|r| dy[r * 5 + at / 6] * x[r * 6 + at % 6]).sum();
        assert!((got - want).abs() <= 1e-5, "{at}: {got} {want}");
    }
    let norm = GlobalNorm { loss_scale: 2.0, max_norm: Some(0.5) };
    let want = norm.measure(&exec, &whole.settled(&exec).unwrap().flat()).unwrap();
    grads.settled(&exec).unwrap();
    let found = norm.find_with(&exec, &grads.arena().flat(), &grads.all_factors()).unwrap().read().unwrap();
    assert!((found.norm / want.norm - 1.0).abs() < 1e-6 && found.finite, "{found:?} {want:?}");
    assert!(grads.arena().bytes() < whole.arena().bytes());
}

#[test]
fn the_parts_of_an_update_are_all_parameters_and_their_gradients_in_order() {
    let (exec, params) = (Exec::cpu(), weights());
    for factored in [&[1][..], &[0, 1, 2], &[], &[0, 2]] {
        let mut grads = Grads::with_factors(&exec, params.layout(), |i| factored.contains(&i)).unwrap();
        grads.factors.iter_mut().zip(0..).filter(|(_, i)| factored.contains(i)).for_each(|(f, _)| {
            *f = Some(Factors { dy: random(&[1, 5], 1), x: random(&[1, 6], 2) });
        });
        let (mut end, mut stored) = (0, 0);
        for part in grads.parts() {
            let params = match &part {
                Part::Flat { params, grads } => {
                    assert_eq!((params.len(), grads.start), (grads.len(), stored), "{part:?}");
                    stored = grads.end;
                    params
                }
                Part::Product { params, .. } => params,
            };
            assert!((end..end + 64).contains(&params.start), "{part:?} after {end}");
            end = params.end;
        }
        assert!(params.layout().len() - end < 64 && stored == grads.arena().layout().len(), "{factored:?}");
    }
}

#[test]
fn a_weight_of_two_products_has_no_factors() {
    let (exec, params) = (Exec::cpu(), weights());
    let mut grads = Grads::with_factors(&exec, params.layout(), |i| i == 1).unwrap();
    let e = products(&params, 2, &mut grads).unwrap_err().to_string();
    assert!(e.contains("parameter 1: expected the weight of one product a step"), "{e}");
    grads.clear();
    products(&params, 1, &mut grads).unwrap();
    let mut vector = Grads::with_factors(&exec, params.layout(), |i| i == 0).unwrap();
    assert!(products(&params, 1, &mut vector).unwrap_err().to_string().contains("found it in layer_norm"));
}
