//! What a step spent, from the command line: the tree, JSON, the page, DeepSpeed's text, other tools' counts.

use std::path::Path;

use serde_json::Value;

use super::{done, folder, json, perfrun, text};

/// A model that trains in no time.
const CONFIG: &str = "t:\n  embed_dim: 16\n  num_layers: 2\n  num_heads: 2\n  img_size: [8, 16]\n  patch_size: 4\n  \
    input_channels: 2\n  output_channels: 2\n  batch_size: 2\n  epochs: 1\n  max_steps: 3\n  warmup_steps: 0\n  \
    precision: fp32\n  head: unpatchify\n";

fn write(dir: &Path, more: &str) {
    std::fs::write(dir.join("c.yaml"), format!("{CONFIG}{more}")).unwrap();
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn a_step_that_is_asked_for_is_profiled_and_written_in_every_form() {
    let dir = folder();
    write(dir.path(), "");
    let line = "--flops_profile=2 --config c.yaml --synth --json --convention deepspeed,palm --html page/p.html";
    let out = done(dir.path(), line);
    let profile: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((profile["step"].as_u64(), profile["micro_batches"].as_u64()), (Some(2), Some(1)));
    assert!(profile["mfu"].as_f64() > Some(0.0) && profile["seconds"].as_f64() > Some(0.0), "{out}");
    let names: Vec<&str> =
        profile["conventions"].as_array().unwrap().iter().filter_map(|c| c["convention"].as_str()).collect();
    assert_eq!(names, ["deepspeed", "palm"]);
    assert_eq!(serde_json::from_str::<Value>(&read(dir.path(), "logs/t/flops_profile.json")).unwrap(), profile);
    assert!(read(dir.path(), "logs/t/flops_profile.txt").contains("Profile Summary at step 2:"));
    let page = read(dir.path(), "page/p.html");
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg") && page.contains(">blocks<"));
    let plan = json(dir.path(), "plan --config c.yaml --json --convention deepspeed,palm,exact,pytorch");
    assert_eq!(plan["model"], profile["model"], "a plan counts what a step does");
    assert_eq!(plan["conventions"][0], profile["conventions"][0]);
}

#[test]
fn the_keys_of_deepspeeds_block_are_obeyed() {
    let dir = folder();
    let block = "  flops_profiler: {enabled: true, profile_step: 1, module_depth: 1, top_modules: 2, detailed: false, output_file: out/ds.txt}\n";
    write(dir.path(), block);
    let output = perfrun(dir.path(), "train --config c.yaml --synth");
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(out.starts_with("step 1 on ") && out.contains("\n  blocks ") && !out.contains("\n    0 "), "{out}");
    assert!(said.contains("--flops-profile=3") && !said.contains("no effect"), "{said}");
    let report = read(dir.path(), "out/ds.txt");
    assert!(report.contains("Top 2 modules") && !report.contains("Detailed Profile"), "{report}");
}

#[test]
fn a_plan_counts_by_the_rules_that_are_asked_for() {
    let dir = folder();
    write(dir.path(), "");
    let out = done(dir.path(), "plan --config c.yaml --convention pytorch,exact --html plan.html");
    let exact = out.lines().find(|l| l.starts_with("exact")).unwrap();
    let pytorch = out.lines().find(|l| l.starts_with("pytorch")).unwrap();
    let count = |l: &str| l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    assert!(count(exact) > count(pytorch), "{out}");
    assert!(out.contains(" everything that is no product is not counted"), "{out}");
    assert!(read(dir.path(), "plan.html").contains("</html>"));
    let wrong = perfrun(dir.path(), "plan --config c.yaml --convention fvcore");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("expected deepspeed, pytorch, palm or exact, found `fvcore`"));
}
