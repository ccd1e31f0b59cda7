//! Rotation keeps what it should, whatever is damaged and whoever dies meanwhile.

use std::path::Path;
use std::sync::Arc;

use perfrun::train::checkpoint::{CheckpointName, CheckpointStore, verify};

use super::disk::{Fault, FaultyDisk, quick_store};
use super::{Dice, Sample};

fn names(dir: &Path) -> Vec<String> {
    let found = CheckpointStore::new(dir, 0).list().unwrap();
    found.iter().map(|f| f.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn good(dir: &Path) -> Vec<u64> {
    let found = CheckpointStore::new(dir, 0).list().unwrap();
    found.iter().filter(|f| f.name.is_rotated()).filter_map(|f| verify(&f.path).ok()).map(|v| v.step).collect()
}

#[test]
fn the_newest_stay_and_best_and_final_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quick_store(dir.path(), 2);
    for (step, name) in [
        (1, "checkpoint_epoch_1"),
        (1, "best_checkpoint"),
        (2, "checkpoint_epoch_2"),
        (3, "checkpoint_step_3"),
        (4, "my_favourite"),
        (10, "checkpoint_epoch_10"),
        (10, "final_checkpoint"),
    ] {
        Sample::new(step).save(&mut store, name).unwrap();
    }
    let expected = ["final_checkpoint", "checkpoint_epoch_10", "my_favourite", "checkpoint_step_3", "best_checkpoint"];
    assert_eq!(names(dir.path()), expected);
    let latest = store.latest().unwrap().checkpoint.unwrap();
    assert!(latest.path().ends_with("final_checkpoint"));
}

#[test]
fn zero_keeps_all_and_rotation_says_what_it_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quick_store(dir.path(), 0);
    for step in 1..=6 {
        let saved = Sample::new(step).save(&mut store, &format!("checkpoint_epoch_{step}")).unwrap();
        assert!(saved.removed.is_empty());
    }
    assert_eq!(good(dir.path()), [6, 5, 4, 3, 2, 1]);
    drop(store);
    let saved = Sample::new(7).save(&mut quick_store(dir.path(), 5), "checkpoint_epoch_7").unwrap();
    assert_eq!(saved.removed, ["checkpoint_epoch_2", "checkpoint_epoch_1"]);
}

#[test]
fn a_run_that_went_back_keeps_what_it_saves() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quick_store(dir.path(), 2);
    for step in [8, 9] {
        Sample::new(step).save(&mut store, &format!("checkpoint_epoch_{step}")).unwrap();
    }
    let saved = Sample::new(3).save(&mut store, "checkpoint_epoch_3").unwrap();
    assert_eq!(saved.removed, ["checkpoint_epoch_8"]);
    assert_eq!(good(dir.path()), [9, 3]);
}

#[test]
fn latest_is_the_newest_that_verifies_and_says_what_it_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quick_store(dir.path(), 0);
    assert!(CheckpointStore::new(dir.path().join("none"), 0).latest().unwrap().checkpoint.is_none());
    for step in 1..=5 {
        Sample::new(step).save(&mut store, &format!("checkpoint_epoch_{step}")).unwrap();
    }
    let path = |n: u64, file: &str| dir.path().join(format!("checkpoint_epoch_{n}")).join(file);
    std::fs::write(path(5, "manifest.json"), "{}").unwrap();
    std::fs::remove_file(path(4, "state.json")).unwrap();
    let mut weights = std::fs::read(path(3, "model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(path(3, "model.safetensors"), weights).unwrap();
    let latest = store.latest().unwrap();
    assert_eq!(latest.checkpoint.unwrap().step(), 2);
    let mut reasons: Vec<_> = latest.rejected.into_iter().map(|r| r.1).collect();
    reasons.sort();
    assert_eq!(reasons.len(), 3);
    assert!(reasons[0].contains("scale: damaged"), "{reasons:?}");
    assert!(reasons[1].ends_with("state.json: missing"), "{reasons:?}");
    assert!(reasons[2].contains("manifest.json: truncated"), "{reasons:?}");
}

#[test]
fn the_last_good_checkpoint_is_never_removed_in_two_hundred_random_histories() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let max = 1 + dice.below(3);
        let mut step = 0;
        for turn in 0..4 {
            let before = good(dir.path());
            step += 1 + dice.below(3) as u64;
            let name = if dice.below(2) == 0 { CheckpointName::Epoch(step) } else { CheckpointName::Step(step) };
            let fault = if dice.below(3) == 0 { Fault::Die { at: dice.below(60) } } else { Fault::None };
            let disk = FaultyDisk::new(fault);
            let mut store = CheckpointStore::on(Arc::new(disk), dir.path(), max);
            let saved = Sample::new(step).save(&mut store, &name.to_string());
            let after = good(dir.path());
            let context = format!("seed {seed}, turn {turn}, max {max}: {before:?} -> {after:?} ({saved:?})");
            assert!(before.is_empty() || after.first() >= before.first(), "{context}");
            if saved.is_ok() && fault == Fault::None {
                assert!(after.contains(&step) && after.len() <= max, "{context}");
            }
            damage(dir.path(), &mut dice);
            // Damage is not rotation's fault; but what is still good must survive the next save.
        }
    }
}

/// Damages one checkpoint, or none.
fn damage(dir: &Path, dice: &mut Dice) {
    let names = names(dir);
    if names.is_empty() || dice.below(2) == 0 {
        return;
    }
    let path = dir.join(&names[dice.below(names.len())]);
    let file = path.join(["manifest.json", "model.safetensors", "state.json", "optimizer.safetensors"][dice.below(4)]);
    match (dice.below(3), std::fs::read(&file)) {
        (_, Err(_)) => {}
        (0, _) => std::fs::remove_file(file).unwrap(),
        (1, Ok(bytes)) => std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap(),
        (_, Ok(mut bytes)) => {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
            std::fs::write(file, bytes).unwrap();
        }
    }
}
