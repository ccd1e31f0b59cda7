//! Whole kernels of `kernels/` with one thing removed or wrong: `perfrun check` on an emulated device finds each and says where.
//!
//! | fault | found | as |
//! |---|---|---|
//! | a removed barrier of the block | here, on all four targets | a race, with the other warp |
//! | a read one element beyond a tensor | here, on all four | the offset in the allocation |
//! | an output that is not written | here, on all four | NaN in the result |
//! | a shuffle that half of the warp does not reach | here, on sm_80 and sm_90a | divergent |
//! | a removed `s_waitcnt` | here, on gfx90a and gfx942 | the register, the load and the counter |
//! | the assumption that a wave has 32 lanes | here: right on sm_80, wrong numbers on gfx90a and gfx942 | the element |
//! | a removed `cp.async` wait, a missing arrive at an mbarrier, a missing expectation of bytes, a store or product that nobody waits for, a missing barrier of a cluster | `src/backend/emulator/ptx/golden/tests.rs`, in the kernels of `tests/golden/ptx` | |
//! | every single `s_waitcnt` of two kernels | `src/backend/emulator/cdna/tests/faults.rs` | |
//! | a removed proxy fence | nowhere: only hardware shows it (`a_missing_proxy_fence_is_out_of_reach`) | |
//!
//! Needs NVRTC and clang, which `ci/install` brings. Not run by themselves: `cargo test -- --ignored with_compilers`, which ci/run does.

use std::path::Path;
use std::process::{Command, Stdio};

use perfrun::backend::gpu::driver::Arch;
use tempfile::TempDir;

use crate::perfrun::text;
use crate::source::{files, read};

/// `kernels/` with one text in one file replaced.
fn planted(file: &str, from: &str, to: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for path in files("kernels", &[".cu", ".cuh", ".hip"]) {
        let inside = path.trim_start_matches("kernels/");
        let mut body = read(&path);
        if inside == file {
            assert_eq!(body.matches(from).count(), 1, "{file}: `{from}`");
            body = body.replace(from, to);
        }
        let target = folder.path().join(inside);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, body).unwrap();
    }
    folder
}

/// What `perfrun check softmax` says with a variable of the environment set; the exit code and all lines.
fn check(arch: Arch, variable: &str, value: &Path) -> (Option<i32>, String) {
    let mut perfrun = Command::new(env!("CARGO_BIN_EXE_perfrun"));
    perfrun.args(["check", "softmax", "--device", &format!("emu:{arch}")]).env(variable, value);
    let output = perfrun.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// That the fault is found on each of the devices, in these words.
fn is_found(archs: &[Arch], variable: &str, value: &Path, words: &str) {
    std::thread::scope(|scope| {
        for &arch in archs {
            scope.spawn(move || {
                let (code, said) = check(arch, variable, value);
                assert!(code == Some(1) && said.contains(words), "{arch}: expected `{words}`, found {said}");
            });
        }
    });
}

const NVIDIA: [Arch; 2] = [Arch::SM_80, Arch::SM_90A];
const AMD: [Arch; 2] = [Arch::GFX90A, Arch::GFX942];

/// A clang whose code does not wait for loads. It calls itself by another name, so that its code is not taken for clang's.
const CARELESS: &str = r#"#!/bin/sh
set -e
if [ "$1" = --version ]; then clang-19 --version | sed '1s/$/ without waits/'; exit; fi
clang-19 "$@" -S
sed '/s_waitcnt vmcnt(0)$/d' code.co > bare.s
target=$(sed -n 's/.*\.amdgcn_target "\(.*\)".*/\1/p' bare.s)
clang-19 -x assembler -target amdgcn-amd-amdhsa -mcpu="${target##*--}" bare.s -o code.co
"#;

mod with_compilers {
    use super::*;

    #[test]
    #[ignore = "needs NVRTC and clang"]
    fn a_removed_barrier_of_the_block_is_found() {
        let of_sum =
            "    v = s.a[0];\n#pragma unroll\n    for (int w = 1; w < BlockScratch<THREADS>::WARPS; ++w) v += s.a[w];";
        let from = format!("    block_sync();\n{of_sum}");
        let kernels = planted("common/reduce.cuh", &from, of_sum);
        is_found(&NVIDIA, "KERNEL_DIR", kernels.path(), "race on shared memory");
        is_found(&AMD, "KERNEL_DIR", kernels.path(), "with no barrier between");
    }

    #[test]
    #[ignore = "needs NVRTC and clang"]
    fn a_read_one_element_beyond_is_found() {
        let loop_to = |end: &str| format!("for (i64 at = (i64)id * W; at {end} c; at += SIZE * W)");
        let kernels = planted("common/rows.cuh", &loop_to("<"), &loop_to("<="));
        is_found(&Arch::ALL, "KERNEL_DIR", kernels.path(), "4 bytes at offset 4 of the allocation of 4 bytes");
    }

    #[test]
    #[ignore = "needs NVRTC and clang"]
    fn an_output_that_is_not_written_is_found() {
        let store = "store<T, W>(y + at, v);";
        let kernels = planted("softmax/softmax.cu", store, &format!("if (at > 0) {store}"));
        is_found(&Arch::ALL, "KERNEL_DIR", kernels.path(), "y: at [0, 0]: got NaN");
    }

    #[test]
    #[ignore = "needs NVRTC and clang"]
    fn a_shuffle_that_half_of_the_warp_does_not_reach_is_found() {
        let head = "DEVICE float warp_sum(float v) {";
        let kernels = planted("common/reduce.cuh", head, &format!("{head}\n    if (lane() >= WARP / 2) return v;"));
        is_found(&NVIDIA, "KERNEL_DIR", kernels.path(), "divergent");
    }

    #[test]
    #[ignore = "needs NVRTC and clang"]
    fn a_kernel_for_waves_of_32_lanes_is_right_on_nvidia_and_found_on_amd() {
        let sum = |from: &str| format!("for (int m = {from}; m > 0; m /= 2) v += lane_xor(v, m);");
        let kernels = planted("common/reduce.cuh", &sum("WARP / 2"), &sum("16"));
        let (code, said) = check(Arch::SM_80, "KERNEL_DIR", kernels.path());
        assert!(code == Some(0) && said.contains("6 of 6 checks passed"), "{said}");
        is_found(&AMD, "KERNEL_DIR", kernels.path(), "device: Softmax: x [2, 33]: f32: y: at [0, 0]: got ");
    }

    #[test]
    #[ignore = "needs NVRTC and clang"]
    #[cfg(unix)]
    fn a_removed_wait_for_loads_is_found() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let clang = folder.path().join("clang");
        std::fs::write(&clang, CARELESS).unwrap();
        std::fs::set_permissions(&clang, std::fs::Permissions::from_mode(0o755)).unwrap();
        is_found(&AMD, "PERFRUN_CLANG", &clang, "is used before s_waitcnt vmcnt for `global_load_dword");
    }

    /// What an emulated device counts is in the answer: a row's forward reads and writes each number once.
    #[test]
    #[ignore = "needs NVRTC and clang"]
    fn an_emulated_device_says_what_it_executed() {
        let mut perfrun = Command::new(env!("CARGO_BIN_EXE_perfrun"));
        let output = perfrun.args(["check", "softmax", "--json", "--device", "emu:gfx90a"]).output().unwrap();
        let said = text(&output.stdout);
        let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let executed = &last["executed"];
        for path in
            ["/instructions/float", "/instructions/special", "/instructions/lanes", "/instructions/sync", "/lane_flops"]
        {
            assert!(executed.pointer(path).and_then(serde_json::Value::as_u64) > Some(0), "{path}: {said}");
        }
        let [loaded, stored] =
            ["/global/loaded", "/global/stored"].map(|p| executed.pointer(p).unwrap().as_u64().unwrap());
        assert!(loaded > stored && stored > 0, "{executed}");
    }
}
