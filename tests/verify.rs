//! Reference cases: every stored one is met, and what is wrong with one is a miss that names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use perfrun::backend::Exec;
use perfrun::io::safetensors;
use perfrun::io::{StoredDtype, TensorView};
use perfrun::tensor::Dtype;
use perfrun::train::verify::{Case, CaseReport, Summary, verify};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases")
}

/// The files of the stored cases whose names start so.
pub(crate) fn all(prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    let of_kind = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    found.retain(|p| p.extension().is_some_and(|e| e == "safetensors") && of_kind(p));
    found.sort();
    found
}

/// A case that can be changed before it is run.
struct Draft {
    header: Value,
    tensors: Vec<(String, StoredDtype, Vec<usize>, Vec<u8>)>,
}

impl Draft {
    fn of(name: &str) -> Draft {
        let file = safetensors::SafetensorsFile::open(&folder().join(format!("{name}.safetensors"))).unwrap();
        let owned = |t: TensorView<'_>| (t.name().to_owned(), t.dtype(), t.shape().to_vec(), t.bytes().to_vec());
        Draft {
            header: serde_json::from_str(&file.metadata()["case"]).unwrap(),
            tensors: file.tensors().map(owned).collect(),
        }
    }

    fn change(mut self, f: impl FnOnce(&mut Draft)) -> Draft {
        f(&mut self);
        self
    }

    /// Replaces the number at `i` of tensor `key`.
    fn put(self, key: &str, i: usize, value: f32) -> Draft {
        self.change(|d| {
            let tensor = d.tensors.iter_mut().find(|t| t.0 == key).unwrap();
            tensor.3[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes());
        })
    }

    fn number(&self, key: &str, i: usize) -> f32 {
        let tensor = self.tensors.iter().find(|t| t.0 == key).unwrap();
        f32::from_le_bytes(tensor.3[4 * i..4 * i + 4].try_into().unwrap())
    }

    fn without(self, key: &str) -> Draft {
        self.change(|d| {
            let before = d.tensors.len();
            d.tensors.retain(|t| t.0 != key);
            assert_eq!(d.tensors.len(), before - 1, "{key}");
        })
    }

    fn attr(self, key: &str, value: Value) -> Draft {
        self.change(|d| d.header["attrs"][key] = value)
    }

    fn bytes(&self) -> Vec<u8> {
        let views: Vec<TensorView<'_>> =
            self.tensors.iter().map(|(n, d, s, b)| TensorView::new(n, *d, s, b).unwrap()).collect();
        let mut out = Vec::new();
        let metadata = BTreeMap::from([("case".to_owned(), self.header.to_string())]);
        safetensors::write(&mut out, Path::new("draft"), &views, &metadata).unwrap();
        out
    }

    fn run(&self, dtype: Dtype) -> CaseReport {
        verify(&Case::from_bytes(Path::new("draft"), self.bytes()).unwrap(), &Exec::cpu(), dtype)
    }

    /// Expects a miss of which only `key` is at fault, and gives its reason.
    fn misses_at(&self, key: &str) -> String {
        let report = self.run(Dtype::F32);
        let missed: Vec<&str> = report.tensors.iter().filter(|t| !t.passed).map(|t| t.name.as_str()).collect();
        assert_eq!((missed, report.passed, report.missed()), (vec![key], false, 1), "{report:?}");
        report.tensors.iter().find(|t| t.name == key).unwrap().reason.clone().unwrap_or_default()
    }

    /// Expects a case that cannot be run, for one reason that holds `part`.
    fn cannot_run(&self, part: &str) {
        let report = self.run(Dtype::F32);
        assert!(!report.passed && report.missed() == 1, "{report:?}");
        assert!(report.reasons.len() == 1 && report.reasons[0].contains(part), "expected {part}: {:?}", report.reasons);
    }
}

fn assert_met(prefix: &str, dtype: Dtype, at_least: usize) {
    let (files, mut summary) = (all(prefix), Summary::default());
    for file in &files {
        let report = verify(&Case::open(file).unwrap(), &Exec::cpu(), dtype);
        summary.add(&report);
        let missed: Vec<_> = report.tensors.iter().filter(|t| !t.passed).collect();
        assert!(report.passed, "{}: {:?} {missed:?}", report.file, report.reasons);
    }
    assert!(summary.cases >= at_least && summary.tensors > 2 * summary.cases && summary.missed == 0, "{summary:?}");
}

#[test]
fn every_operator_case_is_met_in_f32() {
    assert_met("op-", Dtype::F32, 20);
}

#[test]
fn every_operator_case_is_met_in_bf16() {
    assert_met("op-", Dtype::Bf16, 20);
}

#[test]
fn every_operator_case_is_met_in_f16() {
    assert_met("op-", Dtype::F16, 20);
}

#[test]
fn every_optimizer_case_is_met_whatever_the_type() {
    assert_met("optimizer-", Dtype::F32, 2);
    let report = verify(&Case::open(&all("optimizer-")[0]).unwrap(), &Exec::cpu(), Dtype::Bf16);
    assert_eq!((report.passed, report.dtype.as_str()), (true, "f32"));
}

#[test]
fn every_model_case_is_met_in_f32_and_bf16() {
    assert_met("model-", Dtype::F32, 2);
    assert_met("model-", Dtype::Bf16, 2);
}

#[test]
fn models_have_no_bounds_in_f16_and_that_is_a_miss() {
    let report = Draft::of("model-weather_vit_bilinear").run(Dtype::F16);
    assert!(!report.passed && report.reasons[0].contains("f32 and bf16, found f16"), "{report:?}");
}

#[test]
fn a_wrong_number_is_a_miss_of_its_tensor_only() {
    for (case, key) in [
        ("op-gelu", "out.y"),
        ("op-gelu", "grad.x"),
        ("op-attention_bias", "grad.bias"),
        ("op-cross_entropy", "grad.logits"),
        ("optimizer-adamw", "out.exp_avg_sq.1"),
        ("model-weather_vit_bilinear", "out.loss"),
        ("model-weather_vit_bilinear", "grad.blocks.0.attn.qkv.bias"),
        ("model-weather_vit_bilinear", "out.train_losses"),
    ] {
        let draft = Draft::of(case);
        let wrong = draft.number(key, 0) * 1.01 + 1e-3;
        assert_eq!(draft.put(key, 0, wrong).misses_at(key), "", "{case}");
    }
}

#[test]
fn every_column_of_the_log_counts_however_large_the_scale_is() {
    for (column, name) in ["scale", "norm", "skipped"].into_iter().enumerate() {
        let draft = Draft::of("optimizer-adamw_clip_scaler");
        let wrong = draft.number("out.log", 3 + column) + 1e-3 * draft.number("out.log", 3 + column).abs().max(1.0);
        draft.put("out.log", 3 + column, wrong).misses_at(&format!("out.log {name}"));
    }
}

#[test]
fn nan_and_infinity_are_misses_on_either_side() {
    assert_eq!(Draft::of("op-gelu").put("out.y", 7, f32::NAN).misses_at("out.y"), "not a number");
    assert_eq!(Draft::of("op-gelu").put("grad.x", 7, f32::INFINITY).misses_at("grad.x"), "not a number");
    let report = Draft::of("op-layernorm_odd").put("in.x", 0, f32::NAN).run(Dtype::F32);
    assert!(report.tensors.iter().all(|t| t.passed == (t.name == "grad.bias")), "{report:?}");
}

#[test]
fn a_missing_tensor_is_a_miss() {
    let reason = Draft::of("op-gelu").without("out.y").misses_at("out.y");
    assert_eq!(reason, "expected this tensor in the file, found none");
    Draft::of("op-attention_bias").without("grad.bias").misses_at("grad.bias");
    Draft::of("model-weather_vit_bilinear").without("grad.pos_embed").misses_at("grad.pos_embed");
    Draft::of("op-gelu").without("in.x").cannot_run("in.x: expected a tensor of this name, found none");
    Draft::of("op-gelu").without("gradout.y").cannot_run("gradout.y: expected a tensor of this name");
    Draft::of("optimizer-adamw").without("in.grad.3.1").cannot_run("in.grad.3.1: expected a tensor");
    let model = Draft::of("model-weather_vit_bilinear").without("weight.head.bias");
    model.cannot_run("weight.head.bias: expected [2], found nothing of that name");
}

#[test]
fn a_tensor_that_nothing_computes_is_a_miss() {
    let extra = |key: &str| {
        Draft::of("op-gelu").change(|d| d.tensors.push((key.to_owned(), StoredDtype::F32, vec![1], vec![0; 4])))
    };
    assert!(extra("out.z").misses_at("out.z").contains("nothing here computes it"));
    extra("grad.w").misses_at("grad.w");
    assert!(extra("note").run(Dtype::F32).passed, "other keys are nobody's");
}

#[test]
fn a_tensor_of_another_shape_or_type_is_a_miss() {
    let reshaped = Draft::of("op-gelu").change(|d| {
        d.tensors.iter_mut().filter(|t| t.0 == "out.y").for_each(|t| t.2.reverse());
    });
    assert_eq!(reshaped.misses_at("out.y"), "expected [65, 13] as the file says, computed [13, 65]");
    Draft::of("op-gelu")
        .attr("rows", json!(12))
        .cannot_run("in.x: expected F32 [12, 65] as attrs say, found F32 [13, 65]");
    let integers = Draft::of("op-gelu").change(|d| d.tensors.iter_mut().for_each(|t| t.1 = StoredDtype::I32));
    integers.cannot_run("in.x: expected F32 [13, 65] as attrs say, found I32");
}

#[test]
fn what_is_unknown_is_a_miss_with_its_name() {
    Draft::of("op-gelu").attr("op", json!("fft")).cannot_run("unknown variant `fft`, expected one of `attention`");
    Draft::of("op-gelu").attr("act", json!("mish")).cannot_run("unknown variant `mish`");
    Draft::of("op-gelu").attr("window", json!(3)).cannot_run("unknown field `window`");
    Draft::of("op-gelu").change(|d| d.header["format"] = json!(2)).cannot_run("format: expected 1, found 2");
    Draft::of("op-gelu").change(|d| d.header["format"] = json!("1")).cannot_run("format: expected 1, found \\\"1\\\"");
    Draft::of("op-gelu")
        .change(|d| d.header["kind"] = json!("dataset"))
        .cannot_run("kind: expected op, optimizer or model");
    Draft::of("op-conv1d").attr("dims", json!(3)).cannot_run("dims of 1 or 2 with a size each, found 3 and [31]");
    let model = Draft::of("model-weather_vit_bilinear");
    model.attr("model", json!("oracle")).cannot_run("model: expected weather_vit or sherlock, found `oracle`");
}

#[test]
fn sizes_that_no_file_justifies_are_a_miss_before_anything_is_allocated() {
    let vit = || Draft::of("model-weather_vit_bilinear");
    vit().attr("num_layers", json!(1_000_000)).cannot_run("num_layers: expected at most the");
    let report = vit().attr("embed_dim", json!(1 << 20)).run(Dtype::F32);
    assert!(!report.passed && report.reasons.iter().all(|r| r.contains("expected")), "{report:?}");
    Draft::of("optimizer-adamw").attr("shapes", json!([[1_u64 << 40]])).cannot_run("in.param.0: expected F32");
    Draft::of("op-gelu").attr("rows", json!(1_u64 << 62)).cannot_run("in.x: expected F32");
    Draft::of("optimizer-adamw").attr("steps", json!(1_u64 << 40)).cannot_run("in.grad.5.0: expected a tensor");
}

#[test]
fn a_gradient_that_overflows_without_a_loss_scale_is_a_miss() {
    let draft = Draft::of("optimizer-adamw").put("in.grad.1.2", 5, f32::INFINITY);
    draft.cannot_run("step 1: gradients are not finite, and no loss scale skips them");
}

#[test]
fn a_file_without_a_case_is_unreadable() {
    let at = Path::new("x.safetensors");
    let message = |bytes: Vec<u8>| Case::from_bytes(at, bytes).map(drop).unwrap_err();
    let mut plain = Vec::new();
    safetensors::write(&mut plain, at, &[], &BTreeMap::new()).unwrap();
    assert!(message(plain).to_string().contains("expected an entry `case` in __metadata__"));
    assert!(message(Draft::of("op-gelu").change(|d| d.header = json!([1])).bytes()).is_bad_input());
    assert!(message(b"not safetensors".to_vec()).is_bad_input());
    assert!(Case::open(&folder().join("nothing.safetensors")).unwrap_err().is_bad_input());
}

#[test]
fn a_half_error_that_is_unknown_has_the_bound_of_none() {
    let draft = Draft::of("op-gelu").change(|d| d.header["half_error"]["bfloat16"] = Value::Null);
    let report = draft.run(Dtype::Bf16);
    assert!(report.tensors.iter().all(|t| t.bound == Some(1e-2)), "{report:?}");
    let report = Draft::of("op-gelu").change(|d| d.header["half_error"] = json!({})).run(Dtype::F16);
    assert!(report.tensors.iter().all(|t| t.bound == Some(2e-3)), "{report:?}");
    let known = Draft::of("op-gelu").run(Dtype::Bf16);
    assert!(known.tensors.iter().all(|t| t.bound.is_some_and(|b| b > 1e-3 && b < 1e-2)), "{known:?}");
}

#[test]
fn the_exit_code_tells_misses_from_files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let good = folder().join("op-gelu.safetensors");
    let (wrong, torn, gone) = (dir.path().join("wrong"), dir.path().join("torn"), dir.path().join("gone"));
    std::fs::write(&wrong, Draft::of("op-gelu").put("out.y", 0, 9.0).bytes()).unwrap();
    std::fs::write(&torn, b"torn").unwrap();
    let run = |files: &[&PathBuf]| {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_perfrun")).arg("verify").args(files).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, text, _) = run(&[&good]);
    assert!(code == Some(0) && text.ends_with("1 cases, 2 tensors, 0 missed\n"), "{text}");
    let (code, text, _) = run(&[&good, &wrong]);
    assert!(code == Some(1) && text.ends_with("2 cases, 4 tensors, 1 missed\n") && text.contains("MISSED"), "{text}");
    let (code, text, errors) = run(&[&torn, &wrong, &gone]);
    assert!(code == Some(2) && text.ends_with("1 cases, 2 tensors, 1 missed\n"), "{text}");
    assert!(errors.contains("torn") && errors.contains("gone: cannot"), "{errors}");
    let json =
        std::process::Command::new(env!("CARGO_BIN_EXE_perfrun")).args(["verify", "--json"]).arg(&wrong).output();
    let found: Value = serde_json::from_slice(&json.unwrap().stdout).unwrap();
    assert_eq!((&found["summary"]["missed"], &found["cases"][0]["tensors"][0]["passed"]), (&json!(1), &json!(false)));
}
