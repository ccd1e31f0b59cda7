//! Damage after the fact: every flipped bit, cut and swapped block is found, and what it hit is named.

use std::path::Path;

use perfrun::io::safetensors::SafetensorsFile;
use perfrun::train::checkpoint::{Checkpoint, verify};

use super::disk::quick_store;
use super::{Dice, Sample};

const FILES: [&str; 4] = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"];

/// A checkpoint, and for every file of it what a message about damage at a byte must say.
struct Target {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    files: Vec<(std::path::PathBuf, Vec<u8>)>,
}

impl Target {
    fn new() -> Target {
        let dir = tempfile::tempdir().unwrap();
        let saved = Sample::new(9).save(&mut quick_store(dir.path(), 0), "checkpoint_epoch_1").unwrap();
        let files = FILES.map(|f| (saved.path.join(f), std::fs::read(saved.path.join(f)).unwrap()));
        verify(&saved.path).unwrap();
        Target { _dir: dir, path: saved.path, files: files.to_vec() }
    }

    /// The tensor in which byte `at` of a file lies, or `header`; nothing for files without tensors.
    fn owner(path: &Path, bytes: &[u8], at: usize) -> String {
        if path.extension().is_some_and(|e| e == "json") {
            return "damaged".into();
        }
        let file = SafetensorsFile::from_bytes(path, bytes.to_vec()).unwrap();
        let owner = file.tensors().find(|t| file.range(t.name()).unwrap().contains(&at));
        format!("{}: damaged", owner.map_or("header", |t| t.name()))
    }

    /// Writes `bytes` over a file; both ways of reading must refuse and say `expected`; then restores it.
    fn refused(&self, file: usize, bytes: &[u8], expected: &str) {
        let (path, original) = &self.files[file];
        assert_ne!(bytes, original);
        std::fs::write(path, bytes).unwrap();
        let verified = verify(&self.path).expect_err("verify found nothing").to_string();
        let opened = Checkpoint::open(&self.path).expect_err("open found nothing").to_string();
        std::fs::write(path, original).unwrap();
        assert_eq!(verified, opened);
        let line = format!("{}: {expected}", path.display());
        assert!(verified.starts_with(&line) && verified.lines().count() == 1, "expected {line}\nfound {verified}");
    }
}

#[test]
fn a_thousand_flipped_bits_are_all_found_and_the_tensor_is_named() {
    let target = Target::new();
    let total: usize = target.files.iter().map(|f| f.1.len()).sum();
    let mut dice = Dice::new(1);
    let mut hit = [0; 4];
    for _ in 0..1000 {
        let mut at = dice.below(total);
        let file = target
            .files
            .iter()
            .position(|f| {
                at < f.1.len() || {
                    at -= f.1.len();
                    false
                }
            })
            .unwrap();
        hit[file] += 1;
        let (path, original) = &target.files[file];
        let mut bytes = original.clone();
        bytes[at] ^= 1 << dice.below(8);
        target.refused(file, &bytes, &Target::owner(path, original, at));
    }
    assert!(hit.iter().all(|&n| n > 3), "{hit:?}");
    Checkpoint::open(&target.path).unwrap();
}

#[test]
fn every_cut_and_every_added_byte_is_found() {
    let target = Target::new();
    for (file, (path, original)) in target.files.iter().enumerate() {
        for part in 0..16 {
            let cut = &original[..original.len() * part / 16];
            std::fs::write(path, cut).unwrap();
            let error = verify(&target.path).unwrap_err().to_string();
            assert!(Checkpoint::open(&target.path).is_err());
            let named = ["cut off", "truncated", "bytes, found", "does not match"].iter().any(|w| error.contains(w));
            assert!(named && error.starts_with(&path.display().to_string()), "{error}");
        }
        let longer = [original.as_slice(), b"\n"].concat();
        std::fs::write(path, &longer).unwrap();
        assert!(verify(&target.path).is_err() && Checkpoint::open(&target.path).is_err(), "file {file}");
        std::fs::write(path, original).unwrap();
    }
}

#[test]
fn a_cut_file_names_every_tensor_that_is_gone() {
    let target = Target::new();
    let (path, original) = &target.files[0];
    let half = SafetensorsFile::open(path).unwrap().range("blocks.0.attn.qkv.weight").unwrap().start + 4;
    std::fs::write(path, &original[..half]).unwrap();
    let error = verify(&target.path).unwrap_err().to_string();
    for name in ["blocks.0.attn.qkv.weight", "norm.norm.bias", "scale"] {
        assert!(error.contains(&format!("{name}: expected ")), "{error}");
    }
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn zeroed_and_exchanged_blocks_and_exchanged_files_are_found() {
    let target = Target::new();
    let (path, original) = &target.files[1];
    let data = SafetensorsFile::open(path).unwrap().range("pos_embed.exp_avg").unwrap().start;
    let mut dice = Dice::new(4);
    for round in 0..50 {
        let mut bytes = original.clone();
        let (a, b) = (data + dice.below(bytes.len() - data - 64), data + dice.below(bytes.len() - data - 64));
        if round % 2 == 0 {
            bytes[a..a + 64].fill(0);
        } else {
            bytes.copy_within(a..a + 64, b);
        }
        if bytes == *original {
            continue;
        }
        std::fs::write(path, &bytes).unwrap();
        assert!(verify(&target.path).unwrap_err().to_string().contains(": damaged: expected hash"), "round {round}");
    }
    std::fs::write(path, original).unwrap();
    std::fs::write(&target.files[0].0, original).unwrap();
    assert!(Checkpoint::open(&target.path).is_err(), "the optimizer's file in the place of the weights'");
}

#[test]
fn a_missing_file_is_named_and_nothing_else_is_lost() {
    let target = Target::new();
    for (path, original) in &target.files {
        std::fs::remove_file(path).unwrap();
        let error = Checkpoint::open(&target.path).unwrap_err().to_string();
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(error.contains(&*name) && error.lines().count() == 1, "{error}");
        std::fs::write(path, original).unwrap();
    }
    let none = Checkpoint::open(target.path.join("nothing")).unwrap_err().to_string();
    assert!(none.ends_with("nothing: expected a checkpoint, found no manifest.json in it"), "{none}");
}
