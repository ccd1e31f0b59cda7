//! Cases of the room.

use std::sync::Arc;

use super::{AdamW, MomentStorage};
use crate::ops::contract::{BadCase, Case, Fill, Input};
use crate::tensor::{Dtype, Spec};

pub(super) fn op(step: u64) -> AdamW {
    AdamW {
        lr: 1e-3,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        step,
        gradient_factor: 1.0,
        undecayed: Arc::new([]),
        moments: MomentStorage::F32,
        shadow: None,
    }
}

/// With moments in bf16 and parameters in `shadow` too.
fn narrow(step: u64, shadow: Option<Dtype>) -> AdamW {
    AdamW { moments: MomentStorage::Bf16Stochastic { seed: 0x5ee_d0f1_2345_6789 }, shadow, ..op(step) }
}

fn case(op: AdamW, n: usize) -> Case {
    let x = [
        Input::new("param", [n]).always_f32(),
        Input::new("grad", [n]),
        Input::new("m", [n]).always(op.moments.dtype()),
        Input::new("v", [n]).always(op.moments.dtype()).fill(Fill::Uniform(0.0, 1.0)),
    ];
    Case::plain(op, x)
}

pub(super) fn cases() -> Vec<Case> {
    let fresh = |n: usize| {
        let zeros = || Fill::Values(vec![0.0]);
        let x = [
            Input::new("param", [n]).always_f32(),
            Input::new("grad", [n]),
            Input::new("m", [n]).always_f32().fill(zeros()),
            Input::new("v", [n]).always_f32().fill(zeros()),
        ];
        Case::plain(op(1), x)
    };
    let scaled = AdamW { gradient_factor: 1.0 / 65536.0, lr: 0.5, weight_decay: 0.3, ..op(3) };
    let partly = AdamW { undecayed: [2..5, 5..6, 9..9, 30..37].into(), ..op(7) };
    vec![
        case(op(1), 0),
        case(op(1), 1),
        fresh(7),
        fresh(33),
        case(op(1000), 31),
        case(op(u64::MAX), 32),
        case(AdamW { weight_decay: 0.0, ..op(2) }, 63),
        case(AdamW { betas: [0.0, 0.0], ..op(2) }, 9),
        case(AdamW { lr: 0.0, ..op(2) }, 9),
        case(scaled, 65),
        case(partly, 37),
        case(AdamW { undecayed: [0..1, 2047..2049, 2050..2051, 4096..4099].into(), ..op(7) }, 4101),
        case(AdamW { undecayed: std::iter::once(0..4000).collect(), ..op(5) }, 4099),
        case(AdamW { shadow: Some(Dtype::Bf16), ..op(1) }, 1),
        case(AdamW { shadow: Some(Dtype::F16), ..op(2) }, 2051),
        case(narrow(u64::MAX - 1, None), 4101),
        case(narrow(1 << 33, Some(Dtype::Bf16)), 67),
        case(AdamW { undecayed: std::iter::once(3..2049).collect(), ..narrow(3, Some(Dtype::F16)) }, 2053),
    ]
}

pub(super) fn bad_cases() -> Vec<BadCase> {
    let shapes: &[&[usize]] = &[&[8], &[8], &[8], &[8]];
    let bad = |op, error| BadCase::new(op, shapes, error);
    let bf16_param = [Spec::new(Dtype::Bf16, [8]), Spec::f32([8]), Spec::f32([8]), Spec::f32([8])];
    vec![
        BadCase::new(op(1), &[&[8], &[9], &[8], &[8]], "grad: expected [8] like param, found [9]"),
        BadCase::new(op(1), &[&[8], &[8], &[8], &[2, 4]], "v: expected [8] like param, found [2, 4]"),
        BadCase::new(op(1), &[&[8], &[8], &[8]], "expected 4 inputs, found 3"),
        BadCase::of_specs(op(1), bf16_param.into_iter().flatten().collect(), "param: expected f32, found [8] bf16"),
        bad(narrow(1, None), "m: expected bf16, found [8] f32"),
        bad(AdamW { shadow: Some(Dtype::F32), ..op(1) }, "shadow: expected bf16 or f16, found [8] f32"),
        bad(AdamW { lr: -1.0, ..op(1) }, "lr: expected a number of 0 or more, found -1.0"),
        bad(AdamW { lr: f64::NAN, ..op(1) }, "lr: expected a number of 0 or more, found NaN"),
        bad(AdamW { betas: [0.9, 1.0], ..op(1) }, "betas: expected two numbers from 0 to below 1, found [0.9, 1.0]"),
        bad(AdamW { eps: 0.0, ..op(1) }, "eps: expected a positive number, found 0.0"),
        bad(AdamW { weight_decay: f64::INFINITY, ..op(1) }, "weight_decay: expected a number of 0 or more, found inf"),
        bad(op(0), "step: expected 1 or more, found 0"),
        bad(AdamW { gradient_factor: f64::NAN, ..op(1) }, "gradient_factor: expected a finite number, found NaN"),
        bad(
            AdamW { undecayed: [3..5, 4..6].into(), ..op(1) },
            "undecayed: expected ascending ranges within 8 elements",
        ),
        bad(AdamW { undecayed: std::iter::once(7..9).collect(), ..op(1) }, "undecayed: expected ascending ranges"),
    ]
}

pub(super) fn bench_cases() -> Vec<Case> {
    // The last: a transformer of 24 blocks, 1,024 wide, in the type that it is compared in; as it trains in bf16.
    let large = |op: AdamW| case(op, 302_309_376).timed_in(Dtype::F32);
    vec![
        case(op(10), 1 << 22),
        case(op(10), 23_832_960),
        large(op(10)),
        large(AdamW { shadow: Some(Dtype::Bf16), ..op(10) }),
        large(narrow(10, Some(Dtype::Bf16))),
    ]
}
