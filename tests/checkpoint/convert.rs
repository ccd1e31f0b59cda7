//! Exports and imports: files of PyTorch are read, PyTorch reads ours (`tests/golden/pt/check_pt.py`), names are mapped.

use std::path::{Path, PathBuf};

use perfrun::io::atomic::Existing;
use perfrun::io::pt::{self, Key, OwnedTensor, PtFile, Value};
use perfrun::io::safetensors::SafetensorsFile;
use perfrun::io::{StoredDtype, TensorView};
use perfrun::train::checkpoint::{Checkpoint, Contents, ImportOptions, diff, export, import, list, resolve, show};
use serde_json::json;

use super::Sample;
use super::disk::quick_store;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pt").join(name)
}

fn torch_name(dtype: StoredDtype) -> &'static str {
    match dtype {
        StoredDtype::F64 => "float64",
        StoredDtype::F32 => "float32",
        StoredDtype::F16 => "float16",
        StoredDtype::Bf16 => "bfloat16",
        StoredDtype::I64 => "int64",
        StoredDtype::I32 => "int32",
        StoredDtype::I16 => "int16",
        StoredDtype::I8 => "int8",
        StoredDtype::U8 => "uint8",
        StoredDtype::Bool => "bool",
        other => panic!("{other}"),
    }
}

fn matches(tensor: &OwnedTensor, expected: &serde_json::Value) -> bool {
    let values: Vec<f64> = tensor.view().unwrap().to_f64().collect();
    expected["dtype"] == torch_name(tensor.dtype)
        && expected["shape"] == json!(tensor.shape)
        && expected["values"] == json!(values)
}

#[test]
fn every_tensor_that_torch_wrote_is_read_number_for_number() {
    let text = std::fs::read_to_string(golden("expected.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(expected.len(), 5);
    for (file, tensors) in &expected {
        let pt = PtFile::open(&golden(file)).unwrap();
        assert_eq!(pt.tensors().len(), tensors.as_object().unwrap().len(), "{file}");
        assert!(pt.foreign().is_empty(), "{file}: {:?}", pt.foreign());
        for (name, expected) in tensors.as_object().unwrap() {
            let tensor = pt.read(name).unwrap();
            assert!(matches(&tensor, expected), "{file}: {name}: expected {expected}, found {tensor:?}");
        }
    }
}

#[test]
fn plain_values_beside_the_tensors_are_read() {
    let pt = PtFile::open(&golden("named.pt")).unwrap();
    assert_eq!(pt.keys(), ["config", "epoch", "global_step", "model_state_dict", "optimizer_state_dict"]);
    assert_eq!(pt.value(&["epoch"]), Some(json!(3)));
    let config = json!({"best": "inf", "name": "base", "training": {"devices": [0, 1], "learning_rate": 0.001}});
    assert_eq!(pt.value(&["config"]), Some(config));
    assert_eq!(pt.value(&["optimizer_state_dict", "param_groups", "0", "betas"]), Some(json!([0.9, 0.999])));
    assert_eq!(pt.value(&["epoch", "more"]), None);
}

#[test]
fn the_weights_are_found_under_the_usual_keys_and_others_must_be_named() {
    let key = |file: &str, asked| PtFile::open(&golden(file)).unwrap().weights_key(asked);
    assert_eq!(key("named.pt", None).unwrap().as_deref(), Some("model_state_dict"));
    assert_eq!(key("wrapped.pt", None).unwrap().as_deref(), Some("state_dict"));
    assert_eq!(key("kinds.pt", None).unwrap(), None);
    let error = key("named.pt", Some("ema")).unwrap_err().to_string();
    assert!(error.contains("expected tensors under \"ema\", found none; the file's keys are config, epoch"), "{error}");
}

const BLOCK: [(&str, &[usize]); 4] =
    [("proj.weight", &[2, 3]), ("proj.bias", &[2]), ("norm.weight", &[2]), ("norm.bias", &[2])];

fn block() -> Vec<(String, Vec<usize>)> {
    BLOCK.map(|(n, s)| (n.to_string(), s.to_vec())).to_vec()
}

#[test]
fn weights_and_moments_of_torch_become_a_checkpoint_of_ours() {
    let expected = block();
    for file in ["named.pt", "counted.pt"] {
        let options = ImportOptions { expected: Some(&expected), ..ImportOptions::default() };
        let imported = import(&golden(file), &options).unwrap();
        assert_eq!((imported.step, imported.epoch), (Some(2), Some(3)));
        let names: Vec<_> = imported.weights.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, BLOCK.map(|b| b.0));
        let dir = tempfile::tempdir().unwrap();
        let saved = imported.save(&mut quick_store(dir.path(), 0), "imported", &json!({})).unwrap();
        let checkpoint = Checkpoint::open(saved.path).unwrap();
        let pt = PtFile::open(&golden(file)).unwrap();
        for (i, (name, _)) in BLOCK.iter().enumerate() {
            for kind in ["exp_avg", "exp_avg_sq"] {
                let theirs = pt.read(&format!("optimizer_state_dict.state.{i}.{kind}")).unwrap();
                let ours = checkpoint.optimizer().get(&format!("{name}.{kind}")).unwrap();
                assert_eq!((ours.shape(), ours.bytes()), (&*theirs.shape, &*theirs.bytes));
            }
        }
    }
}

#[test]
fn without_a_global_step_the_parameters_say_how_many_there_were() {
    let expected = block();
    let options = ImportOptions { expected: Some(&expected), ..ImportOptions::default() };
    let imported = import(&golden("stepless.pt"), &options).unwrap();
    assert_eq!((imported.step, imported.epoch, imported.optimizer.len()), (Some(2), Some(3), 8));
    let error = import(&golden("uneven.pt"), &options).unwrap_err().to_string();
    let want = "uneven.pt: optimizer_state_dict.state: expected one number of steps for all parameters, found 2 to 3; \
                import with --weights-only";
    assert!(error.ends_with(want), "{error}");
    let weights_only = ImportOptions { weights_only: true, ..options };
    assert_eq!(import(&golden("uneven.pt"), &weights_only).unwrap().step, None);
}

#[test]
fn counted_moments_need_the_model_and_named_ones_do_not() {
    let error = import(&golden("counted.pt"), &ImportOptions::default()).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "its states are counted, not named: name the model (--config-name), or import with --weights-only"
        )
    );
    let weights_only = ImportOptions { weights_only: true, ..ImportOptions::default() };
    assert!(import(&golden("counted.pt"), &weights_only).unwrap().optimizer.is_empty());
    assert_eq!(import(&golden("named.pt"), &ImportOptions::default()).unwrap().optimizer.len(), 8);
}

#[test]
fn wrappers_are_removed_and_told_and_renames_are_applied() {
    let expected = block();
    let options = ImportOptions { expected: Some(&expected), ..ImportOptions::default() };
    let imported = import(&golden("wrapped.pt"), &options).unwrap();
    let notes = ["weights: taken from \"state_dict\"", "names: \"module.\" removed from their beginnings"];
    assert_eq!(imported.notes, notes);
    let rename = [("module.proj".to_string(), "head".to_string()), ("module.".to_string(), String::new())];
    let options = ImportOptions { rename: &rename, ..ImportOptions::default() };
    let mut names: Vec<_> =
        import(&golden("wrapped.pt"), &options).unwrap().weights.into_iter().map(|t| t.name).collect();
    names.sort();
    assert_eq!(names, ["head.bias", "head.weight", "norm.bias", "norm.weight"]);
    let rename =
        [("module.proj.weight".to_string(), "x".to_string()), ("module.proj.bias".to_string(), "x".to_string())];
    let error =
        import(&golden("wrapped.pt"), &ImportOptions { rename: &rename, ..ImportOptions::default() }).unwrap_err();
    assert!(error.to_string().ends_with("x: two tensors get this name"), "{error}");
}

#[test]
fn every_name_that_does_not_fit_is_listed() {
    let mut expected = block();
    expected[0].1 = vec![3, 3];
    expected.push(("head.weight".into(), vec![1]));
    expected.remove(1);
    let options = ImportOptions { expected: Some(&expected), weights_only: true, ..ImportOptions::default() };
    let error = import(&golden("named.pt"), &options).unwrap_err().to_string();
    let ends = ["proj.weight: expected [3, 3], found [2, 3]", "head.weight: expected [1], found nothing of that name"];
    assert!(ends.iter().all(|end| error.contains(end)), "{error}");
    assert!(error.contains("proj.bias: expected no tensor of that name, found [2]"), "{error}");
    assert_eq!(error.lines().count(), 3, "{error}");
}

/// A checkpoint with the configuration that an export needs.
fn exportable(dir: &Path) -> PathBuf {
    let mut sample = Sample::new(5);
    sample.state["config"] =
        json!({"training": {"learning_rate": 1e-4, "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}});
    sample.state["progress"] = json!({"updates": 5});
    sample.state["position"] = json!({"epoch": 0});
    sample.save(&mut quick_store(dir, 0), "final_checkpoint").unwrap().path
}

fn write_exports(dir: &Path) {
    let path = exportable(dir);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (name, contents) in [
        ("weights.pt", Contents::Weights),
        ("everything.pt", Contents::Everything),
        ("w.safetensors", Contents::Weights),
    ] {
        export(&checkpoint, &dir.join(name), contents, Existing::Replace).unwrap();
    }
    let zeros = [0; 8];
    let tensor = |(d, name): (StoredDtype, &'static str)| {
        (name.to_string(), Value::Tensor(TensorView::new(name, d, &[1], &zeros[..d.size()]).unwrap()))
    };
    let kinds = StoredDtype::NAMES.into_iter().filter(|(_, n)| !["U64", "U32", "U16"].contains(n)).map(tensor);
    let root = Value::Dict(vec![
        ("none".into(), Value::None),
        ("yes".into(), Value::Bool(true)),
        ("large".into(), Value::Int(1 << 40)),
        ("nan".into(), Value::Float(f64::NAN)),
        (
            "tuple".into(),
            Value::Tuple(vec![Value::Int(1), Value::Text("a".into()), Value::List(vec![Value::Float(-2.5)])]),
        ),
        (
            "counted".into(),
            Value::Dict(
                [(0, "zero"), (300, "many"), (-1, "less")].map(|(k, v)| (Key::Int(k), Value::Text(v.into()))).into(),
            ),
        ),
        ("tensors".into(), Value::Ordered(kinds.collect())),
    ]);
    let path = dir.join("kinds.pt");
    pt::write(std::fs::File::create(&path).unwrap(), &path, &root).unwrap();
}

#[test]
#[ignore = "writes the files that tests/golden/pt/check_pt.py loads with PyTorch"]
fn exports_for_torch() {
    let dir = PathBuf::from(std::env::var_os("PERFRUN_TEST_EXPORTS").unwrap());
    std::fs::create_dir_all(&dir).unwrap();
    write_exports(&dir);
}

#[test]
fn what_is_exported_comes_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    write_exports(dir.path());
    let original = Checkpoint::open(dir.path().join("final_checkpoint")).unwrap();
    for name in ["everything.pt", "weights.pt", "w.safetensors"] {
        let imported = import(&dir.path().join(name), &ImportOptions::default()).unwrap();
        assert_eq!(imported.weights.len(), 4, "{name}");
        assert_eq!(imported.optimizer.len(), if name == "everything.pt" { 8 } else { 0 });
        for tensor in &imported.weights {
            assert_eq!(original.weights().get(&tensor.name), Some(tensor.view().unwrap()), "{name}");
        }
        for tensor in &imported.optimizer {
            assert_eq!(original.optimizer().get(&tensor.name), Some(tensor.view().unwrap()), "{name}");
        }
    }
    let kinds = PtFile::open(&dir.path().join("kinds.pt")).unwrap();
    assert_eq!(kinds.value(&["tuple"]), Some(json!([1, "a", [-2.5]])));
    assert_eq!(kinds.value(&["counted"]), Some(json!({"-1": "less", "0": "zero", "300": "many"})));
    assert_eq!(SafetensorsFile::open(&dir.path().join("w.safetensors")).unwrap().metadata()["format"], "pt");
}

#[test]
fn an_export_needs_a_known_ending_and_replaces_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(exportable(dir.path())).unwrap();
    let to = |name: &str, existing| export(&checkpoint, &dir.path().join(name), Contents::Everything, existing);
    let error = to("x.onnx", Existing::Refuse).unwrap_err().to_string();
    assert!(error.ends_with("x.onnx: expected a name that ends in .safetensors, .pt, .pth or .ckpt"), "{error}");
    to("x.pt", Existing::Refuse).unwrap();
    assert!(to("x.pt", Existing::Refuse).unwrap_err().to_string().contains("exists already"));
    to("x.pt", Existing::Replace).unwrap();
    let plain = Sample::new(1).save(&mut quick_store(dir.path(), 0), "best_checkpoint").unwrap();
    let plain = Checkpoint::open(plain.path).unwrap();
    let error =
        export(&plain, &dir.path().join("y.pt"), Contents::Everything, Existing::Refuse).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 4, "{error}");
    assert!(error.contains("config.training.learning_rate: missing; export the weights alone"), "{error}");
    assert!(!dir.path().join("y.pt").exists());
}

#[test]
fn a_diff_names_every_tensor_and_the_largest_distance() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quick_store(dir.path(), 0);
    let a = Sample::new(1).save(&mut store, "a").unwrap().path;
    let same = Sample::new(1).save(&mut store, "b").unwrap().path;
    assert!(diff(&a, &same).unwrap().is_equal());
    let mut other = Sample::new(1);
    other.tensors[0].2[4 * 7..4 * 8].copy_from_slice(&100.0f32.to_le_bytes());
    other.tensors[2].2[0..4].copy_from_slice(&f32::NAN.to_le_bytes());
    other.tensors[3].0 = "scales".into();
    other.state["epoch"] = json!(4);
    let b = other.save(&mut store, "c").unwrap().path;
    let report = diff(&a, &b).unwrap();
    let text = report.to_string();
    assert!(!report.is_equal());
    for line in [
        "model.safetensors: pos_embed: differs by up to 9.25e1 (element 7); 1 of 48 elements differ",
        "model.safetensors: norm.norm.bias: differs by up to inf (element 0); 1 of 8 elements differ",
        "model.safetensors: scale: only in the first",
        "optimizer.safetensors: scales.exp_avg: only in the second",
        "state.json: epoch: 0 in the first, 4 in the second",
        "3 tensors are the same, 12 differ; 1 entries of state.json differ",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

#[test]
fn list_and_show_say_what_is_there_and_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quick_store(dir.path(), 0);
    assert_eq!(list(dir.path(), false).unwrap().to_string(), format!("{}: no checkpoints", dir.path().display()));
    for (step, name) in [(3, "checkpoint_epoch_1"), (6, "checkpoint_epoch_2")] {
        Sample::new(step).save(&mut store, name).unwrap();
    }
    let weights = dir.path().join("checkpoint_epoch_2/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    std::fs::write(&weights, bytes).unwrap();
    assert!(list(dir.path(), false).unwrap().is_sound());
    let listed = list(dir.path(), true).unwrap();
    assert!(!listed.is_sound());
    let lines: Vec<_> = listed.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with("checkpoint_epoch_2          6") && lines[1].contains("scale: damaged"), "{lines:?}");
    assert!(lines[2].starts_with("checkpoint_epoch_1          3") && lines[2].ends_with("verified"), "{lines:?}");
    let (path, passed) = resolve(dir.path()).unwrap();
    assert!(path.ends_with("checkpoint_epoch_1") && passed.len() == 1);
    assert_eq!(resolve(&path).unwrap().0, path);
    let shown = show(&path).unwrap();
    assert_eq!(shown.parameters, 48 + 192 + 8 + 1);
    assert!(shown.to_string().contains("model.safetensors: blocks.0.attn.qkv.weight: F32 [24, 8]"));
    assert!(
        resolve(&dir.path().join("none"))
            .unwrap_err()
            .to_string()
            .contains("expected a checkpoint or a folder of them")
    );
}
