use super::*;
use crate::ops::operator::{GradSlot, op_cost};
use crate::tensor::{Tensor, View};

crate::room_tests!(ROOM);

/// Result and the gradients of all inputs for a gradient of ones.
pub(super) fn run(op: &Attention, x: &[Tensor]) -> (Vec<f32>, Vec<Vec<f32>>) {
    run_on(&Exec::cpu(), op, x)
}

/// The same on any device.
fn run_on(exec: &Exec, op: &Attention, x: &[Tensor]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let x: Vec<Tensor> = x.iter().map(|x| exec.import(x).unwrap()).collect();
    let specs: Vec<&Spec> = x.iter().map(|x| x.spec()).collect();
    let out = op.infer(&specs).unwrap();
    let zeros = |s: &Spec| exec.import(&Tensor::zeros(s.clone())).unwrap();
    let (mut y, mut lse) = (zeros(&out.y[0]), zeros(&out.saved[0]));
    let views: Vec<View<'_>> = x.iter().map(Tensor::view).collect();
    let io = Forward { x: &views, y: &mut [y.view_mut().unwrap()], saved: &mut [lse.view_mut().unwrap()] };
    op.forward(exec, io).unwrap();
    let ones = Tensor::from_f32_as(out.y[0].clone(), &vec![1.0; out.y[0].len()]).unwrap();
    let ones = exec.import(&ones).unwrap();
    let mut dx: Vec<Tensor> = specs.iter().map(|s| zeros(s)).collect();
    {
        let mut slots: Vec<GradSlot<'_>> = dx.iter_mut().map(|d| GradSlot::Set(d.view_mut().unwrap())).collect();
        let io = Backward {
            specs: &specs,
            x: &views.iter().cloned().map(Some).collect::<Vec<_>>(),
            y: &[Some(y.view())],
            saved: &[lse.view()],
            dy: &[Some(ones.view())],
            dx: &mut slots,
        };
        op.backward(exec, io).unwrap();
    }
    (y.to_f32().unwrap(), dx.iter().map(|d| d.to_f32().unwrap()).collect())
}

/// Numbers that differ, without a pattern that attention could hide.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let v: Vec<f32> = (0..n as u64).map(|i| Stream::new(seed, 1).signed(i)).collect();
    Tensor::from_f32(shape, &v).unwrap()
}

#[test]
fn what_the_mask_hides_may_be_nan_or_infinite() {
    let op = Attention { causal: Causal::TopLeft, key_lengths: Some([30].into()), ..Attention::full(1) };
    let clean = [numbers(&[1, 40, 1, 8], 1), numbers(&[1, 40, 1, 8], 2), numbers(&[1, 40, 1, 8], 3)];
    let (y, dx) = run(&op, &clean);
    for bad in [f32::NAN, f32::INFINITY] {
        // Key 20 is hidden from queries 0 to 19, key 35 from all.
        let spoil = |x: &Tensor| {
            let mut v = x.to_f32().unwrap();
            v[20 * 8 + 3] = bad;
            v[35 * 8 + 1] = bad;
            Tensor::from_f32(x.shape(), &v).unwrap()
        };
        let dirty = [clean[0].clone(), spoil(&clean[1]), spoil(&clean[2])];
        let (y2, dx2) = run(&op, &dirty);
        assert_eq!(y[..20 * 8], y2[..20 * 8], "{bad}");
        assert_eq!(dx[0][..20 * 8], dx2[0][..20 * 8], "{bad}");
        assert!(y2[20 * 8..].iter().any(|v| v.is_nan()), "what is visible is seen");
        assert!(dx2[1][30 * 8..].iter().chain(&dx2[2][30 * 8..]).all(|&v| v == 0.0), "hidden from all");
    }
}

#[test]
fn a_query_that_is_nan_spoils_only_the_keys_that_it_sees() {
    let op = Attention { causal: Causal::TopLeft, ..Attention::full(1) };
    let (k, v) = (numbers(&[1, 40, 1, 8], 2), numbers(&[1, 40, 1, 8], 3));
    let mut q = numbers(&[1, 40, 1, 8], 1).to_f32().unwrap();
    q[10 * 8] = f32::NAN;
    let (y, dx) = run(&op, &[Tensor::from_f32([1, 40, 1, 8], &q).unwrap(), k, v]);
    for i in 0..40 {
        assert_eq!(y[i * 8..][..8].iter().all(|v| v.is_nan()), i == 10, "row {i}");
        assert_eq!(dx[1][i * 8..][..8].iter().any(|v| v.is_nan()), i <= 10, "dk {i}");
        assert_eq!(dx[2][i * 8..][..8].iter().any(|v| v.is_nan()), i <= 10, "dv {i}");
    }
}

#[test]
fn huge_scores_neither_overflow_nor_vanish() {
    let q = Tensor::from_f32([1, 1, 1, 1], &[1e18]).unwrap();
    let k = Tensor::from_f32([1, 3, 1, 1], &[1e18, -1e18, 1e18]).unwrap();
    let v = Tensor::from_f32([1, 3, 1, 1], &[1.0, 5.0, 3.0]).unwrap();
    let (y, dx) = run(&Attention::full(1), &[q, k, v]);
    assert_eq!(y, [2.0]);
    // ln 2 is lost in a log-sum-exp of 1e36, so the probabilities of backward are 1, not ½; they are not infinite.
    assert!(dx.iter().flatten().all(|v| v.is_finite()) && dx[2][1] == 0.0, "{dx:?}");
}

#[test]
fn keys_of_bias_minus_infinity_do_not_count() {
    let inf = f32::INFINITY;
    let (q, k) = (numbers(&[1, 2, 1, 3], 1), numbers(&[1, 2, 1, 3], 2));
    let v = Tensor::from_f32([1, 2, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let bias = Tensor::from_f32([1, 2, 2], &[-inf, 0.0, -inf, -inf]).unwrap();
    let (y, dx) = run(&Attention::full(1), &[q, k, v, bias]);
    assert_eq!(y, [4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
    assert_eq!(dx[2], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    assert!(dx.iter().flatten().all(|v| v.is_finite()), "{dx:?}");
}

#[test]
fn packed_and_separate_inputs_give_the_same_bits() {
    let (b, n, h, d) = (2, 37, 3, 5);
    let qkv = numbers(&[b, n, 3, h, d], 9);
    let all = qkv.to_f32().unwrap();
    let part = |i: usize| {
        let v: Vec<f32> = all.chunks(h * d).skip(i).step_by(3).flatten().copied().collect();
        Tensor::from_f32([b, n, h, d], &v).unwrap()
    };
    let op = Attention { causal: Causal::TopLeft, ..Attention::full(h) };
    let (y1, dx1) = run(&op, std::slice::from_ref(&qkv));
    let (y3, dx3) = run(&op, &[part(0), part(1), part(2)]);
    assert_eq!(y1, y3);
    for (i, dx) in dx3.iter().enumerate() {
        let of_packed: Vec<f32> = dx1[0].chunks(h * d).skip(i).step_by(3).flatten().copied().collect();
        assert_eq!(&of_packed, dx, "{i}");
    }
}

#[test]
fn dropout_keeps_the_share_that_it_says_and_the_mean() {
    let (n, p) = (200, 0.25);
    let op = Attention { dropout: Some(ProbabilityDropout { p, stream: Stream::new(1, 2) }), ..Attention::full(1) };
    // Equal scores: every probability is 1/n, and y is the share that is kept over 1 − p.
    let zeros = Tensor::from_f32([1, n, 1, 1], &vec![0.0; n]).unwrap();
    let ones = Tensor::from_f32([1, n, 1, 1], &vec![1.0; n]).unwrap();
    let (y, _) = run(&op, &[zeros.clone(), zeros, ones]);
    let kept = y.iter().map(|y| f64::from(y * (1.0 - p))).sum::<f64>() / n as f64;
    // Standard error of the share over 40,000 draws: 0.0022.
    assert!((kept - 0.75).abs() < 0.011, "{kept}");
    assert!(y.iter().any(|&v| v != y[0]), "rows draw their own numbers");
}

#[test]
fn causal_cost_counts_the_visible_pairs_alone() {
    let spec = Spec::f32([1, 1024, 3, 8, 64]).unwrap();
    let op = Attention { causal: Causal::TopLeft, ..Attention::full(8) };
    let pairs = 8 * 1024 * 1025 / 2;
    let cost = op_cost(&op, &[&spec], Mask::ALL).unwrap();
    assert_eq!(cost.forward.flops.matmul, 4 * 64 * pairs);
    assert_eq!(cost.backward.flops.matmul, 8 * 64 * pairs);
    assert_eq!(cost.recomputed.matmul, 2 * 64 * pairs);
}

#[test]
fn sequences_longer_than_every_tensor_are_refused_and_no_overflow() {
    let op = Attention { sequences: Some(Sequences::of(&[usize::MAX, 2])), ..Attention::full(1) };
    let spec = Spec::f32([1, 5, 1, 8]).unwrap();
    let error = op.infer(&[&spec, &spec, &spec]).err().unwrap().to_string();
    assert!(error.contains("sequences: queries: expected 0 to Nq=5"), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_thousand_runs_give_the_same_bits_on_a_cuda_device() {
    let exec = crate::ops::trial::device("cuda:0");
    let (full, causal) = (Attention::full(2), Attention { causal: Causal::TopLeft, ..Attention::full(2) });
    let dropout = Some(ProbabilityDropout { p: 0.2, stream: Stream::new(7, 9) });
    let cases = [
        (full.clone(), [1, 640, 2, 64], None),
        (full.clone(), [2, 144, 2, 64], None),
        (Attention { dropout, ..full.clone() }, [1, 300, 2, 48], None),
        (full, [1, 385, 2, 128], Some([2, 385, 385])),
        (causal, [1, 513, 2, 128], None),
    ];
    for (op, shape, bias) in cases {
        let halves = |seed| {
            let x = numbers(&shape, seed);
            Tensor::from_f32_as(x.spec().with_dtype(Dtype::Bf16), &x.to_f32().unwrap()).unwrap()
        };
        let mut x = vec![halves(1), halves(2), halves(3)];
        x.extend(bias.map(|shape: [usize; 3]| numbers(&shape, 4)));
        let bits = |(y, dx): (Vec<f32>, Vec<Vec<f32>>)| -> Vec<u32> {
            y.iter().chain(dx.iter().flatten()).map(|v| v.to_bits()).collect()
        };
        let first = bits(run_on(&exec, &op, &x));
        for again in 1..1000 {
            assert!(bits(run_on(&exec, &op, &x)) == first, "{op:?}: run {again}");
        }
    }
}

#[test]
#[ignore = "compiles 62 kernels: minutes"]
fn hoppers_kernels_take_every_head_size_from_16_to_256_in_steps_of_8() {
    for d in (16..=256).step_by(8) {
        let halves = |shape: &[usize], seed| {
            let x = numbers(shape, seed);
            Tensor::from_f32_as(x.spec().with_dtype(Dtype::Bf16), &x.to_f32().unwrap()).unwrap()
        };
        let x = [halves(&[1, 70, 2, d], 1), halves(&[1, 200, 1, d], 2), halves(&[1, 200, 1, d], 3)];
        let op = Attention { causal: Causal::BottomRight, ..Attention::full(2) };
        let exec = Exec::open("emu:sm_90a".parse().unwrap()).unwrap();
        let (y, dx) = run_on(&exec, &op, &x);
        assert_eq!(exec.take_notices(), Vec::<String>::new(), "{d}");
        let plain: Vec<Tensor> =
            x.iter().map(|x| Tensor::from_f32(x.spec().shape(), &x.to_f32().unwrap()).unwrap()).collect();
        let (wanted, wanted_dx) = run(&op, &plain);
        for (found, wanted) in std::iter::once((&y, &wanted)).chain(dx.iter().zip(&wanted_dx)) {
            let largest = wanted.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let error = found.iter().zip(wanted).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(error <= 0.02 * largest, "{d}: {error} of {largest}");
        }
    }
}

#[test]
fn packed_sequences_are_attention_of_each_apart() {
    let lengths = [5, 1, 0, 37];
    let n = lengths.iter().sum();
    let [q, k, v] = [1, 2, 3].map(|seed| numbers(&[1, n, 2, 8], seed));
    for causal in [Causal::None, Causal::TopLeft, Causal::BottomRight] {
        let sliding = Some(SlidingWindow { left: 9, right: 3 });
        let alone = Attention { causal, sliding, ..Attention::full(2) };
        let op = Attention { sequences: Some(Sequences::of(&lengths)), ..alone.clone() };
        let (y, dx) = run(&op, &[q.clone(), k.clone(), v.clone()]);
        let mut at = 0;
        for n in lengths.into_iter().filter(|&n| n > 0) {
            let part = |x: &Tensor| Tensor::from_f32([1, n, 2, 8], &x.to_f32().unwrap()[at * 16..][..n * 16]).unwrap();
            let (y_alone, dx_alone) = run(&alone, &[part(&q), part(&k), part(&v)]);
            let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-5);
            assert!(!differ(&y[at * 16..][..n * 16], &y_alone), "{causal:?} {at}");
            for (dx, alone) in dx.iter().zip(&dx_alone) {
                assert!(!differ(&dx[at * 16..][..n * 16], alone), "{causal:?} {at}");
            }
            at += n;
        }
    }
}

#[test]
fn a_sliding_window_hides_numbers_that_are_not_finite() {
    let op = Attention { sliding: Some(SlidingWindow { left: 2, right: 1 }), ..Attention::full(1) };
    let clean = [1, 2, 3].map(|seed| numbers(&[1, 40, 1, 8], seed));
    let (y, _) = run(&op, &clean);
    let mut v = clean[2].to_f32().unwrap();
    v[20 * 8] = f32::NAN;
    let (y2, dx2) = run(&op, &[clean[0].clone(), clean[1].clone(), Tensor::from_f32([1, 40, 1, 8], &v).unwrap()]);
    for i in 0..40 {
        let sees = (19..=22).contains(&i);
        assert_eq!(y2[i * 8].is_nan(), sees, "row {i}");
        assert_eq!(dx2[0][i * 8..][..8].iter().any(|v| v.is_nan()), sees, "dq {i}");
        assert!(sees || y[i * 8..][..8] == y2[i * 8..][..8], "row {i}");
    }
}

#[test]
fn cost_counts_the_pairs_of_windows_and_sequences() {
    let spec = Spec::f32([1, 100, 3, 2, 8]).unwrap();
    let pairs = |op: Attention| op_cost(&op, &[&spec], Mask::NONE).unwrap().forward.flops.matmul / (4 * 8 * 2);
    let sliding = Some(SlidingWindow { left: 3, right: 1 });
    // Five keys each, fewer at the first three queries and the last.
    assert_eq!(pairs(Attention { sliding, ..Attention::full(2) }), 500 - 6 - 1);
    let sequences = Some(Sequences::of(&[30, 70]));
    assert_eq!(pairs(Attention { sequences: sequences.clone(), ..Attention::full(2) }), 30 * 30 + 70 * 70);
    let both = Attention { sequences, causal: Causal::TopLeft, sliding, ..Attention::full(2) };
    assert_eq!(pairs(both), 2 * (1 + 2 + 3) + (27 + 67) * 4);
}

#[test]
fn what_a_device_leaves_to_the_general_kernel_is_told_once() {
    let tensor = |d: usize| Tensor::zeros(Spec::new(Dtype::Bf16, [1, 300, 2, d]).unwrap());
    let told = |device: &str, op: &Attention, d: usize| {
        let exec = Exec::open(device.parse().unwrap()).unwrap();
        run_on(&exec, op, &[tensor(d), tensor(d), tensor(d)]);
        let first = exec.take_notices();
        run_on(&exec, op, &[tensor(d), tensor(d), tensor(d)]);
        assert_eq!(exec.take_notices(), Vec::<String>::new());
        first
    };
    let line = |what: &str, arch: &str| {
        vec![format!("attention: {what}: computed by the general kernel, those made for {arch} do not take it")]
    };
    let slides = Attention { sliding: Some(SlidingWindow { left: 7, right: 0 }), ..Attention::full(2) };
    for arch in ["sm_80", "sm_90a", "gfx942"] {
        let device = format!("dry:{arch}");
        assert_eq!(told(&device, &Attention::full(2), 64), Vec::<String>::new());
        assert_eq!(told(&device, &Attention::full(2), 12), line("head sizes that are no multiple of 8", arch));
        assert_eq!(told(&device, &Attention::full(2), 512), line("head sizes above what they hold", arch));
        assert_eq!(told(&device, &slides, 64), Vec::<String>::new());
    }
}
