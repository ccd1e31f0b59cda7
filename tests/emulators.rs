//! Every room with kernels and every reference case of the project, on four emulated devices: what NVRTC and clang make of the
//! kernels is executed. Not run by themselves: `cargo test --test main -- --ignored emulators::`, which ci/run does.
//!
//! # Which cases
//! Every storage type, on the cases that [`Reach::Small`] takes, in every order of warps and with asynchronous work early
//! and late; reference cases whole. Larger cases are for `perfrun check ROOM --device emu:ARCH`, and take minutes.

use std::path::Path;
use std::time::Instant;

use perfrun::backend::Exec;
use perfrun::ops::ROOMS;
use perfrun::ops::contract::Reach;
use perfrun::tensor::Dtype;
use perfrun::train::verify::{Case, verify};

use crate::verify::all;

mod training;

fn open(device: &str) -> Exec {
    Exec::open(device.parse().unwrap()).unwrap()
}

/// Says how long a part took, for whoever runs with `--nocapture`.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    result
}

fn the_contract_holds_on(device: &str) {
    let exec = open(device);
    let mut failures = Vec::new();
    for room in ROOMS.iter().filter(|r| !r.kernels.is_empty()) {
        let checks = timed(&format!("{device} {}", room.name), || room.check_on(&exec, Reach::Small));
        for check in checks {
            if let Err(lines) = check.verdict {
                failures.extend(lines.lines().map(|line| format!("{}: {}: {line}", room.name, check.name)));
            }
        }
    }
    assert!(failures.is_empty(), "on {device}:\n{}", failures.join("\n"));
}

fn every_case_is_met_on(device: &str) {
    let exec = open(device);
    let mut misses = Vec::new();
    let kinds: [(&str, &[Dtype]); 3] = [
        ("op-", &[Dtype::F32, Dtype::Bf16, Dtype::F16]),
        // Optimisers compute in f32 alone, and models have no bounds in f16.
        ("optimizer-", &[Dtype::F32]),
        ("model-", &[Dtype::F32, Dtype::Bf16]),
    ];
    for (prefix, dtypes) in kinds {
        for file in all(prefix) {
            let case = Case::open(&file).unwrap();
            for &dtype in dtypes {
                let report = timed(&format!("{device} {} {dtype}", name(&file)), || verify(&case, &exec, dtype));
                let wrong = report.tensors.iter().filter(|t| !t.passed);
                misses.extend(report.reasons.iter().map(|why| format!("{} {dtype}: {why}", name(&file))));
                misses.extend(wrong.map(|t| format!("{} {dtype}: {t:?}", name(&file))));
            }
        }
    }
    assert!(misses.is_empty(), "on {device}:\n{}", misses.join("\n"));
}

fn name(file: &Path) -> std::borrow::Cow<'_, str> {
    file.file_stem().unwrap_or_default().to_string_lossy()
}

macro_rules! on {
    ($($contract:ident $cases:ident $device:literal),*) => {$(
        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn $contract() {
            the_contract_holds_on($device);
        }

        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn $cases() {
            every_case_is_met_on($device);
        }
    )*};
}

on!(
    the_contract_holds_on_sm_80 every_case_is_met_on_sm_80 "emu:sm_80",
    the_contract_holds_on_sm_90a every_case_is_met_on_sm_90a "emu:sm_90a",
    the_contract_holds_on_gfx90a every_case_is_met_on_gfx90a "emu:gfx90a",
    the_contract_holds_on_gfx942 every_case_is_met_on_gfx942 "emu:gfx942"
);
