//! Compiling where there is no compiler: what is said, and what goes on without one.

use std::path::Path;

use super::*;

/// One text for every vendor, without a header of its own.
pub(super) const TRIAL: Source = Source::new(&[("trial/trial.cu", include_str!("trial.cu"))]);

pub(super) const DEFINES: &[(&str, &str)] = &[("T", "float"), ("N", "64")];

/// The compilers of this machine, and nothing else of it.
pub(super) fn places(cache: Option<&Path>) -> Places {
    Places { pack: PackPlace::None, cache: cache.map(Path::to_path_buf), kernels: None, ..Places::here() }
}

#[test]
fn without_a_compiler_one_error_lists_what_was_tried() {
    let places = Places {
        pack: PackPlace::IfThere("/nonexistent/perfrun.pack".into()),
        nvrtc: vec!["libnvrtc-of-nobody.so.1".into(), "/nonexistent/libnvrtc.so.12".into(), "/bin/sh".into()],
        hiprtc: vec!["/nonexistent/libhiprtc.so.7".into()],
        clang: vec!["/nonexistent/clang".into(), "clang-of-nobody".into()],
        ..Places::nowhere()
    };
    let compiler = Compiler::new(places);
    let error = |request: &Request<'_>| {
        let error = compiler.code(request).unwrap_err();
        assert!(matches!(error, Error::Compile(_)));
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let has = |text: &str, all: &[&str]| all.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
    let text = error(&Request::new(TRIAL, Arch::SM_90A, DEFINES));
    has(
        &text,
        &[
            "trial/trial.cu (T=float, N=64) for sm_90a: neither code nor a compiler; tried ",
            "pack /nonexistent/perfrun.pack: no such file",
            "libnvrtc-of-nobody.so.1: no such file",
            "/nonexistent/libnvrtc.so.12: no such file",
            "/bin/sh: ",
            "NVRTC_PATH",
        ],
    );
    assert!(!text.contains("clang"), "{text}");
    let text = error(&Request::new(TRIAL, Arch::GFX942, DEFINES));
    has(
        &text,
        &[
            "hipRTC: not asked, no device of this process has it",
            "/nonexistent/clang: not found",
            "clang-of-nobody: not found",
            "PERFRUN_CLANG",
        ],
    );
    let text = error(&Request::new(TRIAL, Arch::GFX942, DEFINES).for_own_device());
    has(&text, &["hipRTC: /nonexistent/libhiprtc.so.7: no such file", "clang: "]);
    let text = compiler.compiler_of(Arch::SM_80).unwrap_err().to_string();
    has(&text, &["sm_80: no compiler; tried NVRTC: libnvrtc-of-nobody.so.1: no such file, ", "; install NVRTC"]);
    let bare = Compiler::new(Places::nowhere());
    has(&bare.code(&Request::new(TRIAL, Arch::SM_80, DEFINES)).unwrap_err().to_string(), &["NVRTC: no place to look"]);
}

#[test]
fn a_library_that_is_no_compiler_is_told() {
    let places = Places { nvrtc: vec!["libc.so.6".into()], ..Places::nowhere() };
    let error = Compiler::new(places).compiler_of(Arch::SM_80).unwrap_err().to_string();
    assert!(error.contains("libc.so.6: has no nvrtcCreateProgram"), "{error}");
}

#[test]
fn a_pack_of_another_kind_stops_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.pack");
    std::fs::write(&path, b"PERFPACK\x02\0\0\0").unwrap();
    let compiler = Compiler::new(Places { pack: PackPlace::IfThere(path), ..places(None) });
    for _ in 0..2 {
        let error = compiler.code(&Request::new(TRIAL, Arch::SM_80, DEFINES)).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("found version 2"), "{error}");
    }
}
