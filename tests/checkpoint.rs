//! Checkpoints: what a save promises when processes die, disks fail and bits flip.

mod bad_inputs;
mod convert;
mod disk;
mod evil;
mod flips;
mod kills;
mod rotation;
mod system_calls;

use std::path::Path;

use perfrun::io::{StoredDtype, TensorView};
use perfrun::train::checkpoint::{Checkpoint, CheckpointStore, SaveRequest, Saved};
use serde_json::{Value, json};

/// Owned tensors and state of one step; every step has other numbers.
pub(crate) struct Sample {
    pub(crate) step: u64,
    pub(crate) tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    pub(crate) state: Value,
}

impl Sample {
    pub(crate) fn new(step: u64) -> Sample {
        let shapes: [(&str, &[usize]); 4] = [
            ("pos_embed", &[1, 6, 8]),
            ("blocks.0.attn.qkv.weight", &[24, 8]),
            ("norm.norm.bias", &[8]),
            ("scale", &[]),
        ];
        let tensors = shapes
            .iter()
            .enumerate()
            .map(|(i, (name, shape))| {
                let len = shape.iter().product::<usize>();
                let value = |j: usize| (step as f32 + 1.0) * (i as f32 + 0.25) + j as f32;
                ((*name).to_string(), shape.to_vec(), (0..len).flat_map(|j| value(j).to_le_bytes()).collect())
            })
            .collect();
        Sample {
            step,
            tensors,
            state: json!({"step": step, "epoch": step / 10, "rng": {"seed": 7, "counter": step * 1000}}),
        }
    }

    pub(crate) fn names(&self) -> Vec<(String, String)> {
        self.tensors.iter().map(|(n, ..)| (format!("{n}.exp_avg"), format!("{n}.exp_avg_sq"))).collect()
    }

    pub(crate) fn save(&self, store: &mut CheckpointStore, name: &str) -> perfrun::error::Result<Saved> {
        let names = self.names();
        let view = |name, shape, bytes| TensorView::new(name, StoredDtype::F32, shape, bytes).unwrap();
        let weights = self.tensors.iter().map(|(n, s, b)| view(n, s, b)).collect();
        let optimizer = self.tensors.iter().zip(&names).flat_map(|((_, s, b), (m, v))| [view(m, s, b), view(v, s, b)]);
        store.save(name, &SaveRequest { step: self.step, weights, optimizer: optimizer.collect(), state: &self.state })
    }

    /// Whether the checkpoint is this sample, number for number.
    pub(crate) fn is(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.step() == self.step
            && checkpoint.state() == &self.state
            && checkpoint.weights().len() == self.tensors.len()
            && checkpoint.optimizer().len() == 2 * self.tensors.len()
            && self.tensors.iter().zip(self.names()).all(|((n, s, b), (m, v))| {
                [checkpoint.weights().get(n), checkpoint.optimizer().get(&m), checkpoint.optimizer().get(&v)]
                    .iter()
                    .all(|t| t.is_some_and(|t| t.shape() == s && t.bytes() == b))
            })
    }
}

/// Every file under `dir` with its bytes, sorted.
pub(crate) fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_saved_checkpoint_reads_back_number_for_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = CheckpointStore::new(dir.path().join("a/b"), 3);
    let saved = Sample::new(5).save(&mut store, "checkpoint_epoch_1").unwrap();
    assert_eq!(saved.path, dir.path().join("a/b/checkpoint_epoch_1"));
    assert_eq!((saved.removed.len(), saved.warnings.len()), (0, 0));
    assert!(Sample::new(5).is(&Checkpoint::open(&saved.path).unwrap()));
    assert!(!Sample::new(6).is(&Checkpoint::open(&saved.path).unwrap()));
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = |dir: &Path| {
        let saved = Sample::new(3).save(&mut CheckpointStore::new(dir, 0), "best_checkpoint").unwrap();
        files(&saved.path).into_iter().map(|f| f.1).collect::<Vec<_>>()
    };
    assert_eq!(bytes(a.path()), bytes(b.path()));
}

#[test]
fn the_order_of_the_parameters_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let saved = Sample::new(0).save(&mut CheckpointStore::new(dir.path(), 0), "final_checkpoint").unwrap();
    let checkpoint = Checkpoint::open(saved.path).unwrap();
    let order: Vec<_> = checkpoint.weights().tensors().map(|t| t.name().to_string()).collect();
    assert_eq!(order, ["pos_embed", "blocks.0.attn.qkv.weight", "norm.norm.bias", "scale"]);
}

#[test]
fn missing_unexpected_and_misshaped_parameters_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let saved = Sample::new(0).save(&mut CheckpointStore::new(dir.path(), 0), "final_checkpoint").unwrap();
    let checkpoint = Checkpoint::open(saved.path).unwrap();
    let right: [(&str, &[usize]); 4] =
        [("pos_embed", &[1, 6, 8]), ("blocks.0.attn.qkv.weight", &[24, 8]), ("norm.norm.bias", &[8]), ("scale", &[])];
    checkpoint.check_weights(right).unwrap();
    let wrong: [(&str, &[usize]); 4] =
        [("pos_embed", &[1, 6, 9]), ("blocks.0.attn.qkv.weight", &[24, 8]), ("head.weight", &[4]), ("scale", &[])];
    let error = checkpoint.check_weights(wrong).unwrap_err().to_string();
    let lines: Vec<_> = error.lines().map(|l| l.split(": ").skip(1).collect::<Vec<_>>().join(": ")).collect();
    assert_eq!(
        lines,
        [
            "pos_embed: expected [1, 6, 9], found [1, 6, 8]",
            "head.weight: expected [4], found nothing of that name",
            "norm.norm.bias: expected no tensor of that name, found [8]",
        ]
    );
}

/// Random numbers that are the same in every run (xorshift).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n as u64) as usize
    }
}
