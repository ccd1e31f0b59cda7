//! Compiled code on the command line: what is said where it cannot be had, and what is done where it can.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{folder, text};

/// Runs perfrun in `dir`, with a cache of its own there and these variables.
fn perfrun(dir: &Path, line: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
    command.args(line.split_whitespace()).current_dir(dir).stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", dir.join("cache")).envs(variables.iter().copied()).output().unwrap()
}

/// Variables by which no compiler is found.
const NOWHERE: [(&str, &str); 3] =
    [("NVRTC_PATH", "/nonexistent"), ("HIPRTC_PATH", "/nonexistent"), ("PERFRUN_CLANG", "/nonexistent/clang")];

#[test]
fn without_a_compiler_one_line_says_what_was_tried_and_what_to_install() {
    let dir = folder();
    for (arch, advice) in [("sm_80", "install NVRTC (named in NVRTC_PATH)"), ("gfx90a", "install clang-19 with lld-19")]
    {
        let output = perfrun(dir.path(), &format!("compile relu --arch {arch} --pack new.pack"), &NOWHERE);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.starts_with(&format!("error: {arch}: no compiler; tried ")) && said.contains(advice), "{said}");
    }
    assert!(!dir.path().join("new.pack").exists());
}

#[test]
fn on_a_device_without_code_every_check_says_so_and_the_next_device_is_unaffected() {
    let dir = folder();
    let output = perfrun(dir.path(), "check relu --small --device emu:sm_80", &NOWHERE);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("relu/relu.cu (T=f32) for sm_80 as PTX: neither code nor a compiler; tried "), "{said}");
    assert!(said.ends_with("1 rooms, 1 failed, on emu:sm_80\n"), "{said}");
    let output = perfrun(dir.path(), "check relu --small", &NOWHERE);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn a_pack_that_is_missing_damaged_or_of_another_version_is_told_by_whoever_needs_it() {
    let dir = folder();
    let pack = dir.path().join("p.pack");
    let path = pack.to_str().unwrap();
    for (content, expected) in [
        (None, "p.pack: cannot open"),
        (
            Some(&b"PERFPACK\x02\0\0\0"[..]),
            "expected a pack of version 1, found version 2; make it again with `perfrun",
        ),
        (Some(b"no pack at all"), "expected a pack of kernels, found another kind of file"),
    ] {
        if let Some(content) = content {
            std::fs::write(&pack, content).unwrap();
        }
        let output = perfrun(dir.path(), "check relu --small --device emu:gfx90a", &[("PERFRUN_PACK", path)]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_cannot_be_compiled_for_is_bad_input() {
    let dir = folder();
    for line in ["compile relu --arch sm_", "compile nothing", "compile relu --arch gfxyz"] {
        let output = perfrun(dir.path(), line, &[]);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", text(&output.stderr));
    }
}

mod with_compilers {
    use super::*;

    fn done(dir: &TempDir, line: &str, variables: &[(&str, &str)]) -> (String, String) {
        let output = perfrun(dir.path(), line, variables);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{line}: {out}{err}");
        (out, err)
    }

    #[test]
    #[ignore = "needs NVRTC and clang-19: see ci/install"]
    fn a_compiled_room_is_a_line_for_each_kernel_and_its_pack_serves_where_no_compiler_is() {
        let dir = folder();
        let (out, err) = done(&dir, "compile relu --arch sm_90a --arch gfx90a --json --pack p.pack", &[]);
        let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        // Two kernels in three types for two architectures.
        assert_eq!(lines.len(), 12, "{out}");
        for line in &lines {
            assert_eq!((&line["room"], &line["from_cache"]), (&"relu".into(), &false.into()), "{line}");
            assert!(line["registers"].as_u64() > Some(0) && line["failures"] == Value::Array(vec![]), "{line}");
        }
        assert!(err.contains("wrote p.pack: 6 codes"), "{err}");
        let (again, _) = done(&dir, "compile relu --arch sm_90a --arch gfx90a --json", &[]);
        assert!(again.lines().all(|l| l.contains("\"from_cache\":true")), "{again}");

        let pack = dir.path().join("p.pack");
        let variables = [&NOWHERE[..], &[("PERFRUN_PACK", pack.to_str().unwrap())]].concat();
        done(&dir, "check relu --small --device emu:gfx90a", &variables);
        let table = done(&dir, "compile relu --arch gfx90a", &[]).0;
        assert!(table.contains("relu/relu.cu") && table.contains("3 codes, "), "{table}");
    }

    #[test]
    #[ignore = "needs clang-19: see ci/install"]
    fn a_damaged_entry_of_the_cache_is_told_once_and_work_goes_on() {
        let dir = folder();
        let line = "check relu --small --device emu:gfx90a";
        assert_eq!(done(&dir, line, &[]).1, "");
        let cache = dir.path().join("cache/perfrun/kernels");
        for entry in std::fs::read_dir(&cache).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        let (out, err) = done(&dir, line, &[]);
        assert!(out.ends_with("1 rooms, 0 failed, on emu:gfx90a\n"), "{out}");
        assert_eq!(err.lines().count(), 3, "{err}");
        let told = |l: &str| l.starts_with("notice: ") && l.ends_with("does not have its hash; it is made again");
        assert!(err.lines().all(told), "{err}");
        assert_eq!(done(&dir, line, &[]).1, "", "said once");
    }
}
