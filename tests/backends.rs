//! Drivers: what the program says where there is none or one that cannot be used, and the whole table on a device where there is
//! one.

mod device;

use std::path::Path;
use std::process::{Command, Output};

use perfrun::backend::Exec;
use perfrun::error::Error;
use perfrun::tensor::{Spec, Tensor};
use serde_json::Value;
use tempfile::TempDir;

use crate::perfrun::text;

/// A folder with tests/golden/`source`, built with these definitions, under the name `library`.
fn with_library(source: &str, library: &str, definitions: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = format!("{}/tests/golden/{source}", env!("CARGO_MANIFEST_DIR"));
    let mut cc = Command::new("cc");
    let done = cc.args(["-shared", "-fPIC", "-o"]).arg(dir.path().join(library)).args(definitions).arg(from).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    dir
}

/// Runs perfrun where the loader looks into `libraries` first.
fn perfrun(libraries: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
    command.args(line.split_whitespace()).current_dir(libraries).env("LD_LIBRARY_PATH", libraries).output().unwrap()
}

/// The one line that a refused command says, with its exit code.
fn refused(libraries: &Path, line: &str) -> (Option<i32>, String) {
    let output = perfrun(libraries, line);
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{line}: {said}");
    (output.status.code(), said)
}

#[test]
fn a_driver_that_cannot_be_used_is_one_plain_line() {
    for (definitions, expected) in [
        (&["-DVERSION=11040"][..], "expected a driver for CUDA 12.0 or later, found one for CUDA 11.4"),
        (&["-DDEVICES=0"], "cuda:0: cannot open: the driver finds no device here; see nvidia-smi"),
        (&["-DLACKS"], "libcuda.so.1: lacks cuLaunchKernelEx, cuTensorMapEncodeTiled"),
        (&["-DSTUB"], "this is the toolkit's stub, not a driver"),
        (&["-DINIT=803"], "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    ] {
        let dir = with_library("fake_driver.c", "libcuda.so.1", definitions);
        let (code, said) = refused(dir.path(), "check relu --device cuda");
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let dir = with_library("fake_hip.c", "libamdhip64.so.7", &["-DDEVICES=0"]);
    let (code, said) = refused(dir.path(), "check relu --device hip:1");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("hip:1: cannot open: the runtime finds no device here"), "{said}");
}

#[test]
fn a_device_that_does_not_exist_is_told_with_those_that_do() {
    let dir = with_library("fake_driver.c", "libcuda.so.1", &[]);
    for line in ["train --config-name local --device cuda:9", "verify x.safetensors --device cuda:2"] {
        let (code, said) = refused(dir.path(), line);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("cannot open: this machine has 2 CUDA devices, cuda:0 to cuda:1"), "{said}");
    }
}

#[test]
fn more_memory_than_a_device_has_is_refused_with_what_is_free_and_later_work_goes_on() {
    for name in ["emu:sm_90a", "emu:gfx90a", "dry:sm_80"] {
        let exec = Exec::open(name.parse().unwrap()).unwrap();
        let kept = exec.alloc(Spec::f32([1 << 10]).unwrap()).unwrap();
        let error = exec.alloc(Spec::f32([1 << 40]).unwrap()).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
        let text = error.to_string();
        for part in ["asked 4398046511104 bytes", "free", ", in use ", ", high-water mark "] {
            assert!(text.contains(part), "{name}: {part}: {text}");
        }
        let numbers = Tensor::from_f32([3], &[1.0, 2.0, 3.0]).unwrap();
        let copy = exec.import(&numbers).unwrap();
        assert_eq!((kept.spec().len(), copy.address().is_some()), (1 << 10, true));
    }
}

#[test]
fn names_that_are_no_device_are_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cuda:", "cuda:-1", "cuda:one", "hip:99999999999", "dry:sm_70", "dry", "gpu"] {
        let (code, said) = refused(dir.path(), &format!("check relu --device {name}"));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("expected"), "{said}");
    }
}

#[test]
fn a_library_that_is_no_library_is_told_in_the_loader_s_words() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["libcuda.so.1", "libcuda.so"] {
        std::fs::write(dir.path().join(name), "not a library").unwrap();
    }
    let (code, said) = refused(dir.path(), "check relu --device cuda");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cuda: cannot open: tried libcuda.so.1") && said.contains("file too short"), "{said}");
}

#[test]
fn doctor_shows_the_devices_of_a_driver_with_their_limits() {
    let dir = with_library("fake_driver.c", "libcuda.so.1", &[]);
    let output = perfrun(dir.path(), "doctor --json");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cuda = &found["drivers"][0];
    assert_eq!((&cuda["library"], &cuda["reason"]), (&"libcuda.so.1".into(), &Value::Null));
    assert!(cuda["version"].as_str().unwrap().starts_with("CUDA 12.8"), "{cuda}");
    let second = &cuda["devices"][1];
    assert_eq!(
        (&second["name"], &second["model"], &second["arch"]),
        (&"cuda:1".into(), &"Fake 1".into(), &"sm_90a".into())
    );
    assert_eq!((&second["processors"], &second["max_shared_bytes"]), (&132.into(), &232_448.into()));
    let usable = found["devices"].as_array().unwrap().iter().find(|d| d["name"] == "cuda:1").unwrap();
    assert_eq!(usable["usable"], true, "{usable}");
    let shown = text(&perfrun(dir.path(), "doctor").stdout);
    assert!(shown.contains("cuda:0     Fake 0 (sm_90a), 132 processors, 64.0 MiB memory, 227 KiB shared"), "{shown}");
}
