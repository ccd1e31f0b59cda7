//! The command line: help, bad input with its exit code and message, and JSON where `--json` says so.

mod bad_lines;
mod kernels;
mod profile;
mod sherlock;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use perfrun::train::checkpoint::CheckpointStore;
use serde_json::Value;

use crate::checkpoint::Sample;

/// Runs perfrun in `dir` with the words of `line`.
pub(crate) fn perfrun(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
    command.args(line.split_whitespace()).current_dir(dir).stdin(Stdio::null());
    command.env_remove("MAX_CHECKPOINTS").output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a line that must succeed.
fn done(dir: &Path, line: &str) -> String {
    let output = perfrun(dir, line);
    assert_eq!(output.status.code(), Some(0), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn json(dir: &Path, line: &str) -> Value {
    let out = done(dir, line);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{line}: {e}: {out}"))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn every_command_has_help_that_names_its_flags() {
    let dir = folder();
    for line in ["--help", "-h", "help", "help config", "config --help", "config show -h", "train --help", "plan -h"] {
        let out = done(dir.path(), line);
        assert!(out.contains("Usage: perfrun") && out.contains("--help") || line.starts_with("help"), "{line}: {out}");
    }
    assert!(done(dir.path(), "--help").contains("75 stopped"));
    assert!(done(dir.path(), "train --help").contains("--config-name <NAME>"));
    assert_eq!(done(dir.path(), "--version"), format!("perfrun {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn both_spellings_of_a_flag_are_understood_by_every_command() {
    let dir = folder();
    for line in
        ["config show --config-name local", "config show --config_name=local", "config show --config_name local"]
    {
        assert!(done(dir.path(), line).starts_with("local:\n"), "{line}");
    }
    assert!(done(dir.path(), "plan --config_name local").starts_with("configuration   local\n"));
}

#[test]
fn flags_without_a_command_train() {
    let output = perfrun(folder().path(), "--config_name nope");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no configuration \"nope\""), "{}", text(&output.stderr));
}

#[test]
fn configurations_are_listed_shown_and_validated() {
    let dir = folder();
    let list = json(dir.path(), "config list --json");
    let names: Vec<&str> = list.as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert!(names.contains(&"base") && names.contains(&"local"), "{names:?}");
    assert!(done(dir.path(), "config list").lines().count() == names.len());
    let local = json(dir.path(), "config show --config-name local --set batch_size=7 --data elsewhere --json");
    assert_eq!(local["training"]["batch_size"], 7);
    assert_eq!(local["data"]["train_data_path"], "elsewhere/train");
    assert!(json(dir.path(), "config schema")["$defs"]["Configuration"].is_object());
    assert_eq!(done(dir.path(), "config validate"), format!("{} configurations, no faults\n", names.len()));
    assert_eq!(done(dir.path(), "config validate --config-name base"), "base: no faults\n");
}

#[test]
fn what_config_show_prints_is_a_configuration_of_the_same_values() {
    let dir = folder();
    std::fs::write(dir.path().join("shown.yaml"), done(dir.path(), "config show --config-name flops_test")).unwrap();
    let shown = json(dir.path(), "config show --config shown.yaml --config-name flops_test --json");
    assert_eq!(shown, json(dir.path(), "config show --config-name flops_test --json"));
}

#[test]
fn a_checked_room_is_a_line_of_json_for_each_check() {
    let dir = folder();
    let lines = done(dir.path(), "check relu --json");
    let checks: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(checks.len() > 4 && checks.iter().all(|c| c["room"] == "relu" && c["passed"] == true), "{lines}");
    assert!(done(dir.path(), "check relu").ends_with("1 rooms, 0 failed, on cpu\n"));
    assert_eq!(done(dir.path(), "check relu --list"), "relu f32 bf16 f16\n");
    assert_eq!(done(dir.path(), "check relu --list --dtype f16"), "relu f16\n");
    let one = done(dir.path(), "check relu --only device --dtype bf16 --json");
    assert!(one.lines().count() == 1 && one.contains("\"check\":\"device\""), "{one}");
}

#[test]
fn a_bench_names_its_cases_and_leaves_a_record() {
    let dir = folder();
    let cases = done(dir.path(), "bench softmax --list");
    assert!(cases.lines().all(|l| l.starts_with("softmax: ")) && !cases.is_empty(), "{cases}");
    let line = "bench softmax --case [512 --dtype f32 --seconds 0.001 --json --record new/record";
    let lines = done(dir.path(), line);
    let found: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(found.iter().map(|m| &m["pass"]).collect::<Vec<_>>(), ["forward", "backward"]);
    assert!(found.iter().all(|m| m["seconds"]["median"].as_f64() > Some(0.0)), "{lines}");
    let file = |name: &str| std::fs::read_to_string(dir.path().join("new/record").join(name)).unwrap();
    assert_eq!(file("raw.jsonl"), lines);
    assert!(file("README.md").contains("| softmax |"));
    let machine: Value = serde_json::from_str(&file("machine.json")).unwrap();
    assert!(machine["rates"]["matmul_flop_per_s"]["f32"].as_f64() > Some(0.0), "{machine}");
    assert!(machine["device"].is_null(), "{machine}");
    let again = perfrun(dir.path(), line);
    assert_eq!(again.status.code(), Some(2), "a record is not overwritten");
}

#[test]
fn a_bench_answers_requests_one_by_one() {
    let dir = folder();
    let list = done(dir.path(), "bench relu --list");
    let case = list.lines().last().and_then(|l| l.strip_prefix("relu: ")).unwrap();
    let ask = |lines: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
        let pipes = command.args(["bench", "relu", "--requests"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut asked = pipes.stderr(Stdio::piped()).spawn().unwrap();
        asked.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        asked.wait_with_output().unwrap()
    };
    let request = |dtype: &str, pass: &str| {
        let of = serde_json::json!({"room": "relu", "case": case, "dtype": dtype, "pass": pass, "seconds": 0.001});
        format!("{of}\n")
    };
    let answer = ask(&[request("f32", "backward"), request("f32", "forward"), request("bf16", "forward")].concat());
    let text = String::from_utf8(answer.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines[0]["copy_bytes_per_s"].as_f64() > Some(0.0), "{text}");
    let asked: Vec<_> = lines[1..].iter().map(|m| (m["dtype"].as_str(), m["pass"].as_str())).collect();
    assert_eq!(asked, [("f32", "backward"), ("f32", "forward"), ("bf16", "forward")].map(|(d, p)| (Some(d), Some(p))));
    for (lines, why) in [
        (request("f64", "forward"), "line 1 of the requests: dtype: expected f32, bf16 or f16, found f64"),
        (request("f32", "sideways"), "line 1 of the requests"),
        (request("f32", "forward").replace("0.001", "0"), "seconds: expected a number above 0"),
        (request("f32", "forward").replace(case, "x"), "that `perfrun bench --list` has, found forward x of relu"),
    ] {
        let refused = ask(&lines);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && error.contains(why), "{why}: {error}");
    }
}

#[test]
fn synthetic_years_are_sound_and_damage_is_found() {
    let dir = folder();
    let line = "synth weather --out data --height 4 --width 8 --channels 2 --steps 5 --gzip --shuffle";
    assert!(done(dir.path(), line).starts_with("wrote 9 files of 5 steps of [2, 4, 8]"));
    let report = json(dir.path(), "data validate --json");
    assert_eq!(report["files"].as_array().map(Vec::len), Some(9));
    assert_eq!(report["channels"].as_array().map(Vec::len), Some(2));
    assert!(done(dir.path(), "data validate data --headers").ends_with("0 faults, 0 warnings\n"));
    let again = perfrun(dir.path(), line);
    assert_eq!(again.status.code(), Some(2), "what is there is not replaced");
    done(dir.path(), &format!("{line} --overwrite"));
    std::fs::write(dir.path().join("data/valid/weather_2015.h5"), "no HDF5").unwrap();
    let output = perfrun(dir.path(), "data validate --data data");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("fault: data/valid/weather_2015.h5: "), "{}", text(&output.stdout));
}

#[test]
fn doctor_says_what_is_here_and_why_not_the_rest() {
    let dir = folder();
    let found = json(dir.path(), "doctor --json");
    assert!(found["machine"]["threads"].as_u64() > Some(0) && found["copy_bytes_per_s"].as_f64() > Some(0.0));
    for device in found["devices"].as_array().unwrap() {
        assert_eq!(device["usable"] == true, device["reason"].is_null(), "{device}");
    }
    let kinds: Vec<&str> = found["drivers"].as_array().unwrap().iter().map(|d| d["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["cuda", "hip"]);
    assert!(found["folders"][0]["free_bytes"].is_u64());
}

#[test]
fn completions_and_pages_know_the_commands() {
    let dir = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = done(dir.path(), &format!("completions {shell}"));
        assert!(script.contains("config-name") && script.contains("doctor"), "{shell}");
    }
    assert!(done(dir.path(), "man").starts_with(".ie"));
    done(dir.path(), "man --out pages");
    for page in ["perfrun", "perfrun-train", "perfrun-config-show", "perfrun-ckpt-import"] {
        let text = std::fs::read_to_string(dir.path().join(format!("pages/{page}.1"))).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
}

#[test]
fn checkpoints_are_listed_shown_verified_compared_and_converted() {
    let dir = folder();
    let mut store = CheckpointStore::new(dir.path().join("run"), 0);
    Sample::new(1).save(&mut store, "checkpoint_epoch_1").unwrap();
    Sample::new(2).save(&mut store, "checkpoint_epoch_2").unwrap();
    drop(store);
    let list = json(dir.path(), "ckpt list run --verify --json");
    assert_eq!(list["checkpoints"][0]["name"], "checkpoint_epoch_2");
    assert_eq!(json(dir.path(), "ckpt show run --json")["step"], 2);
    assert!(done(dir.path(), "ckpt verify run/checkpoint_epoch_1").contains("every hash matches"));
    assert_eq!(json(dir.path(), "ckpt verify run/checkpoint_epoch_1 --json")["sound"], true);
    done(dir.path(), "ckpt diff run run/checkpoint_epoch_2");
    let differ = perfrun(dir.path(), "ckpt diff run/checkpoint_epoch_1 run/checkpoint_epoch_2 --json");
    assert_eq!(differ.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&differ.stdout).unwrap()["equal"], 0);
    done(dir.path(), "ckpt export run --out w.safetensors");
    // What PyTorch's optimizer needs and the sample has not is named, a line each.
    let export = perfrun(dir.path(), "ckpt export run --out all.pt");
    assert_eq!(export.status.code(), Some(2));
    assert!(text(&export.stderr).contains("config.training.betas: missing"), "{}", text(&export.stderr));
    done(dir.path(), "ckpt export run --out all.pt --weights-only");
    let there = perfrun(dir.path(), "ckpt export run --out all.pt --weights-only");
    assert_eq!(there.status.code(), Some(2), "what is there is not replaced");
    done(dir.path(), "ckpt export run --out all.pt --overwrite --weights_only");
    // The sample is no weather transformer, so every tensor is named.
    let import = perfrun(dir.path(), "ckpt import all.pt --config-name local");
    assert_eq!(import.status.code(), Some(2));
    assert!(text(&import.stderr).lines().count() > 10, "{}", text(&import.stderr));
}

#[test]
fn a_damaged_checkpoint_is_bad_input_and_names_the_tensor() {
    let dir = folder();
    let mut store = CheckpointStore::new(dir.path().join("run"), 0);
    let saved = Sample::new(1).save(&mut store, "checkpoint_epoch_1").unwrap();
    let file = saved.path.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for line in ["ckpt verify run/checkpoint_epoch_1", "ckpt show run/checkpoint_epoch_1", "ckpt list run --verify"] {
        let output = perfrun(dir.path(), line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(all.contains("model.safetensors"), "{line}: {all}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let dir = folder();
    let mut child = Command::new(env!("CARGO_BIN_EXE_perfrun"))
        .args(["config", "schema"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
