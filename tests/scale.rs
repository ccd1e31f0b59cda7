//! Sweeps as a user starts them: to the fit, broken off and taken up again, as jobs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use perfrun::data::weather::synthetic::SyntheticWeather;
use serde_json::Value;

use crate::perfrun::{perfrun, text};

const TINY: &str = "
tiny:
  embed_dim: 8
  num_layers: 2
  num_heads: 2
  img_size: [8, 16]
  patch_size: 4
  input_channels: 2
  output_channels: 2
  batch_size: 4
  epochs: 2
  learning_rate: 1.0e-3
  warmup_steps: 3
  precision: fp32
  num_workers: 0
  log_frequency: 1
  logging_backend: none
";

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let small = SyntheticWeather { height: 8, width: 16, channels: 2, steps: 24, ..SyntheticWeather::default() };
    small.write(&dir.path().join("data"), |_| {}).unwrap();
    std::fs::write(dir.path().join("tiny.yaml"), TINY).unwrap();
    dir
}

fn run(dir: &Path, line: &str) -> (Option<i32>, String, String) {
    let output = perfrun(dir, line);
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn results(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("experiments/results.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Experiments that a run of perfrun scale trained.
fn trained(stderr: &str) -> Vec<String> {
    let names =
        stderr.lines().filter_map(|l| l.strip_prefix("experiment ")?.split_once(": ").map(|(_, n)| n.to_owned()));
    names.collect()
}

const SWEEP: &str = "scale --base_config tiny.yaml --scale_types embedding data --scale_factors 0.5 1.0 2.0 4.0";

#[test]
fn a_sweep_runs_to_its_fit_and_the_second_time_does_nothing() {
    let dir = folder();
    let (code, out, err) = run(dir.path(), SWEEP);
    assert_eq!(code, Some(0), "{err}");
    // Four widths and half of the data: the other amounts of data are the base itself.
    assert_eq!(trained(&err).len(), 5, "{err}");
    let results = results(dir.path());
    assert_eq!(results.len(), 8);
    for r in &results {
        assert!(r["final_loss"].as_f64() > Some(0.0) && r["flops"].as_f64() > Some(0.0), "{r}");
        assert!(r["mfu"].as_f64() > Some(0.0) && r["steps"].as_u64() > Some(2), "{r}");
        let name = r["name"].as_str().unwrap();
        let shown = run(dir.path(), &format!("config show --config experiments/{name}.yaml --json"));
        assert_eq!(shown.0, Some(0), "{}", shown.2);
        let config: Value = serde_json::from_str(&shown.1).unwrap();
        assert_eq!(config["experiment"]["name"], name);
    }
    let same = results.iter().find(|r| r["name"] == "data_scale_2.0").unwrap();
    assert_eq!(same["same_as"], "embedding_scale_1.0");
    let half = results.iter().find(|r| r["name"] == "data_scale_0.5").unwrap();
    assert!(half["tokens"].as_f64() < same["tokens"].as_f64(), "{half}");
    assert!(out.contains("embedding_scale_4.0") && out.contains("L = "), "{out}");
    let fit: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("experiments/fit.json")).unwrap()).unwrap();
    assert!(fit["law"]["Ok"]["parameters"]["exponent"]["value"].is_number(), "{fit}");
    let html = std::fs::read_to_string(dir.path().join("experiments/report.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("embedding_scale_4.0"));
    let before = std::fs::read(dir.path().join("experiments/results.jsonl")).unwrap();
    let (code, _, err) = run(dir.path(), SWEEP);
    assert_eq!((code, trained(&err).len()), (Some(0), 0), "{err}");
    assert_eq!(std::fs::read(dir.path().join("experiments/results.jsonl")).unwrap(), before);
    let (code, _, err) = run(dir.path(), &format!("{SWEEP} --set seed=5"));
    assert!(code == Some(2) && err.contains("another configuration"), "{err}");
}

#[test]
fn a_sweep_that_is_killed_does_the_rest_only_and_ends_with_the_same_losses() {
    let (whole, broken) = (folder(), folder());
    assert_eq!(run(whole.path(), SWEEP).0, Some(0));
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
    command.args(SWEEP.split_whitespace()).current_dir(broken.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // In the middle of the third.
    let mut lines = lines.map_while(Result::ok).skip_while(|l| !l.starts_with("experiment 3"));
    assert!(lines.by_ref().any(|l| l.starts_with("step 3/")));
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, _, err) = run(broken.path(), SWEEP);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(trained(&err), ["embedding_scale_2.0", "embedding_scale_4.0", "data_scale_0.5"]);
    let losses =
        |dir: &Path| results(dir).iter().map(|r| (r["name"].clone(), r["final_loss"].clone())).collect::<Vec<_>>();
    assert_eq!(losses(broken.path()), losses(whole.path()));
}

#[test]
fn budgets_give_parabolas_and_schedules_that_end_with_them() {
    let dir = folder();
    let line = "scale --base_config tiny.yaml --scale_types embedding --scale_factors 0.5 1 2 --flops_budgets 2e8 4e8";
    let (code, out, err) = run(dir.path(), line);
    assert_eq!(code, Some(0), "{err}");
    let results = results(dir.path());
    assert_eq!(results.len(), 6);
    for r in &results {
        let (spent, budget) = (r["flops"].as_f64().unwrap(), r["flops_budget"].as_f64().unwrap());
        let step = spent / r["steps"].as_f64().unwrap();
        assert!(spent <= budget && spent + step > budget && r["outcome"] == "finished", "{r}");
    }
    assert!(out.contains("200 MFLOPs: "), "{out}");
}

#[test]
fn what_cannot_be_scaled_is_said_and_the_rest_runs() {
    let dir = folder();
    let line = "scale --base_config tiny.yaml --scale_types sequence node precision --scale_factors 0.5 1 --dry-run";
    let (code, out, err) = run(dir.path(), line);
    assert_eq!(code, Some(0), "{err}");
    for why in ["sequence_scale_0.5: sequence_length: 1 x 0.5 is less than 1", "node_scale_0.5", "expected 0 for fp32"]
    {
        assert!(err.contains(why), "{why}: {err}");
    }
    assert!(
        out.contains("precision_scale_1.0.yaml to run") && out.contains("node_scale_1.0.yaml the same run as"),
        "{out}"
    );
    assert!(!dir.path().join("experiments/checkpoints").exists());
    let (code, _, err) = run(dir.path(), "scale --base_config tiny.yaml --scale_types modl");
    assert!(code == Some(2) && err.contains("expected one of model, embedding"), "{err}");
    // The grid of the files cannot be doubled: that experiment fails, the other has its result.
    let line = "scale --base_config tiny.yaml --scale_types resolution --scale_factors 2 1 --set epochs=1";
    let (code, out, err) = run(dir.path(), line);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("error: resolution_scale_2.0: ") && out.contains("resolution_scale_1.0 "), "{out}{err}");
}

#[test]
fn every_type_and_factor_writes_its_file_and_those_of_several_nodes_print_their_job() {
    let dir = folder();
    let types = "model embedding sequence resolution batch data precision node";
    let line = format!(
        "scale --base_config tiny.yaml --scale_types {types} --scale_factors 0 1 2 4 --dry-run --site frontier"
    );
    let (code, out, err) = run(dir.path(), &format!("{line} --time 01:00"));
    assert_eq!(code, Some(0), "{err}");
    for scale in types.split(' ') {
        for factor in ["0.0", "1.0", "2.0", "4.0"] {
            let name = format!("{scale}_scale_{factor}");
            // A factor of 0 is fp32 and nothing else, and there are three number types.
            let is_one = match scale {
                "precision" => factor != "4.0",
                _ => factor != "0.0",
            };
            assert_eq!(dir.path().join(format!("experiments/{name}.yaml")).exists(), is_one, "{name}: {err}");
            assert_eq!(err.contains(&format!("notice: left out: {name}: ")), !is_one, "{name}: {err}");
        }
    }
    let jobs: Vec<&str> = out.lines().filter_map(|l| l.strip_prefix("perfrun ")).collect();
    assert_eq!(jobs.len(), 2, "{out}");
    assert!(out.contains("node_scale_4.0.yaml not run here: for 4 nodes"), "{out}");
    for (job, nodes) in jobs.into_iter().zip([2, 4]) {
        let (code, _, err) = run(dir.path(), job);
        assert!(code == Some(0) && err.contains("this version trains on one"), "{job}: {err}");
        let script = std::fs::read_to_string(dir.path().join(format!("node_scale_{nodes}.0.sh"))).unwrap();
        for wanted in [
            &format!("#SBATCH --nodes={nodes}\n"),
            "#SBATCH --time=01:00:00\n",
            &format!("train --device hip --devices 8 --num-nodes {nodes} "),
            &format!("--config experiments/node_scale_{nodes}.0.yaml --config-name node_scale_{nodes}.0"),
        ] {
            assert!(script.contains(wanted), "{wanted}: {script}");
        }
    }
    let (code, out, err) = run(dir.path(), "scale --base_config tiny.yaml --scale_types node --scale_factors 2");
    assert!(code == Some(0) && trained(&err).is_empty() && err.contains("node_scale_2.0: not run here"), "{err}");
    assert!(out.contains("without a result: node_scale_2.0"), "{out}");
}

#[test]
fn a_job_array_runs_an_experiment_a_job_and_collects() {
    let dir = folder();
    let program = env!("CARGO_BIN_EXE_perfrun");
    let line = format!("{SWEEP} --set epochs=1 --job-array array.sh --program {program} --time 00:30");
    let (code, _, err) = run(dir.path(), &line);
    assert_eq!(code, Some(0), "{err}");
    let script = std::fs::read_to_string(dir.path().join("array.sh")).unwrap();
    assert!(script.contains("#SBATCH --array=0-4") && script.contains("#SBATCH --ntasks-per-node=1"), "{script}");
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    crate::slurm::install(&bin);
    for task in 0..5 {
        let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut job = Command::new("bash");
        job.arg("array.sh")
            .current_dir(dir.path())
            .env("PATH", search)
            .env("SIM", dir.path())
            .env("TMPDIR", dir.path());
        job.env("SLURM_JOB_ID", "5").env("SLURM_JOB_NUM_NODES", "1").env("SLURM_ARRAY_TASK_ID", task.to_string());
        let output = job.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(trained(&text(&output.stderr)).len(), 1, "{}", text(&output.stderr));
    }
    assert_eq!(results(dir.path()).len(), 8, "the last job has all of them");
}
