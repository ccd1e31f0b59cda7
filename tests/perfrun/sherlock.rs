//! The autoencoder as its users type it: data made, imported and looked at, training, prediction, and what is refused.

use std::path::Path;

use perfrun::io::atomic::Existing::Replace;
use perfrun::io::nifti::{self, Geometry, NiftiReader};
use perfrun::io::npy;
use perfrun::io::png::{self, Picture};
use perfrun::io::wav::{self, Sound};
use serde_json::Value;

use super::{done, folder, json, perfrun, text};

/// The film of `sherlock-tiny`'s sizes, 80 TRs of it.
const FILM: &str = "synth sherlock --out film --height 18 --width 32 --mels 16 --text 20 --voxels 50 --trs 80";
/// A run of some steps on it, without a second to wait for.
const TRAIN: &str =
    "train sherlock-tiny --data film --set num_epochs=2 --set save_every=1 --set num_workers=0 --set log_frequency=1";

/// What a laboratory has of a film of four TRs, under the names of the README.
fn laboratory(dir: &Path) {
    std::fs::create_dir(dir.join("frames")).unwrap();
    for i in 0..150_usize {
        let rgb = (0..18 * 32 * 3).map(|k| ((k * 7 + i * 13) % 256) as u8).collect();
        png::write(&dir.join(format!("frames/f{i:04}.png")), Replace, &Picture { height: 18, width: 32, rgb }).unwrap();
    }
    let samples = (0..48_000).map(|k| (k as f32 * 0.05).sin() * 0.3).collect();
    wav::write(&dir.join("film.wav"), Replace, &Sound { rate: 8000, samples }).unwrap();
    let embeddings: Vec<f32> = (0..60).map(|k| ((k * 11 % 17) as f32 - 8.0) / 20.0).collect();
    npy::write_f32(&dir.join("embeddings.npy"), Replace, &[3, 20], &embeddings).unwrap();
    std::fs::write(dir.join("segments.csv"), "start,end\n0,2\n2,4.5\n4.5,6\n").unwrap();
    let volumes = |name: &str, n: usize, value: &dyn Fn(usize, usize) -> f32| {
        nifti::write(&dir.join(name), Replace, [5, 5, 3], n, &Geometry::default(), |t, volume| {
            volume.iter_mut().enumerate().for_each(|(i, x)| *x = value(t, i));
            Ok(())
        })
        .unwrap();
    };
    for (subject, name) in ["sub-1.nii.gz", "sub-2.nii.gz"].iter().enumerate() {
        volumes(name, 4, &|t, i| 100.0 + ((t * 31 + i * 7 + subject * 3) % 23) as f32);
    }
    volumes("mask.nii.gz", 1, &|_, i| f32::from(u8::from(i < 50)));
}

/// The block of commands below a heading of the README.
fn readme(heading: &str) -> Vec<String> {
    let readme = include_str!("../../README.md");
    let section = readme.split_once(&format!("\n## {heading}\n")).expect("the README has this heading").1;
    let block = section.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    block.lines().map(|line| line.split('#').next().unwrap().trim().to_owned()).collect()
}

#[test]
fn the_readme_s_commands_for_films_and_brains_do_what_it_says() {
    let dir = folder();
    laboratory(dir.path());
    let lines = readme("Films and brains");
    assert!(lines.len() >= 7, "{lines:?}");
    for line in lines {
        let words = line.strip_prefix("perfrun ").expect("a command of this program");
        // A run of its whole length is not what this test is about.
        let shorter = if words.starts_with("train ") { " --set max_steps=4 --set num_workers=0" } else { "" };
        done(dir.path(), &format!("{words}{shorter}"));
    }
    for file in ["fmri.npy", "fmri.nii.gz", "audio.npy", "voxel_correlation.nii.gz", "voxel_correlation.html"] {
        assert!(dir.path().join("prediction").join(file).exists(), "{file}");
    }
}

#[test]
fn a_film_is_made_looked_at_learned_and_predicted() {
    let dir = folder();
    let at = dir.path();
    let said = done(at, FILM);
    assert!(said.contains("wrote 80 TRs of [18, 32, 3] frames") && said.contains("by least squares"), "{said}");
    let report = json(at, "data validate film --json");
    assert_eq!((report["arrays"].as_array().unwrap().len(), &report["trs"]), (5, &serde_json::json!([80, 64])));
    let table = done(at, "data validate film");
    for what in ["mean", "not finite", "video", "audio", "text", "subject 2", "64 to train on, 16 to validate on"] {
        assert!(table.contains(what), "{what}: {table}");
    }
    let train = format!("{TRAIN} --set use_wandb=true --set save_pt=true");
    let printed = done(at, &train);
    for line in HEADER {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert!(printed.contains("Epoch 2/2 | Train Loss: ") && printed.contains(" | fMRI Corr: "), "{printed}");
    assert_eq!(printed, std::fs::read_to_string(at.join("logs/training.log")).unwrap(), "the log is the console");
    for name in ["checkpoint_epoch_1", "checkpoint_epoch_2", "best_checkpoint", "final_checkpoint"] {
        done(at, &format!("ckpt verify checkpoints/{name}"));
        assert!(at.join(format!("checkpoints/{name}.pt")).is_file(), "{name}.pt");
    }
    assert!(std::fs::read_to_string(at.join("logs/metrics.jsonl")).unwrap().contains("\"fmri_loss\""));
    let events = std::fs::read_dir(at.join("logs")).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    assert_eq!(events.filter(|name| name.contains("tfevents")).count(), 1);
    assert_eq!(std::fs::read_dir(at.join("logs/wandb")).unwrap().count(), 1);
    let measured = json(at, "eval --checkpoint checkpoints/best_checkpoint --json");
    assert!(measured["metrics"]["fmri_voxel_correlation"].is_number() && measured["samples"] == 32, "{measured}");
    predicted(at);
}

/// What the original prints before the first epoch.
const HEADER: [&str; 10] = [
    "Starting training\n",
    "\nDevice: cpu\n",
    "\nDistributed: False\n",
    "\nWorld size: 1\n",
    "\nModel parameters: ",
    "\nTrain samples: 128\n",
    "\nVal samples: 32\n",
    "\nBatch size: 16\n",
    "\nLearning rate: 0.001\n",
    "\nNumber of epochs: 2\nMixed precision: False\n",
];

/// Predictions of `checkpoints/best_checkpoint`, whole and lesioned.
fn predicted(at: &Path) {
    let whole = json(at, "predict --checkpoint checkpoints/best_checkpoint --out whole --json");
    let brains: Vec<&str> = whole["brains"].as_array().unwrap().iter().map(|b| b["whom"].as_str().unwrap()).collect();
    assert_eq!(brains, ["the mean of all subjects", "subject 1", "subject 2"]);
    assert_eq!((&whole["trs"], &whole["voxels"]), (&serde_json::json!([64, 80]), &Value::from(50)));
    let rows = |folder: &str, name: &str| npy::read(at.join(folder).join(name)).unwrap();
    assert_eq!((rows("whole", "fmri.npy").shape, rows("whole", "audio.npy").shape), (vec![16, 50], vec![16, 16]));
    assert_eq!(rows("whole", "voxel_correlation.npy").shape, [50]);
    let frame = png::read(&at.join("whole/video/tr00079.png")).unwrap();
    assert_eq!((frame.height, frame.width), (18, 32));
    let page = std::fs::read_to_string(at.join("whole/voxel_correlation.html")).unwrap();
    assert!(page.contains("Best voxels") && page.contains("<svg") && !page.contains("In the head"));
    let again = perfrun(at, "predict --checkpoint checkpoints/best_checkpoint --out whole");
    assert_eq!(again.status.code(), Some(2), "what is there is not replaced");
    done(at, "predict --checkpoint checkpoints/best_checkpoint --out lesioned --lesion 0,1,2,3,4,5,6,7");
    assert_ne!(rows("whole", "fmri.npy").into_f32(), rows("lesioned", "fmri.npy").into_f32());
    assert!(std::fs::read_to_string(at.join("lesioned/voxel_correlation.html")).unwrap().contains("units 0, 1, 2"));
}

#[test]
fn scans_sound_frames_and_embeddings_become_a_data_set_and_a_prediction_a_volume_in_the_head() {
    let dir = folder();
    let at = dir.path();
    laboratory(at);
    let import = "data import --out lab --video frames --audio film.wav --text embeddings.npy --segments segments.csv \
                  --fmri sub-1.nii.gz --fmri sub-2.nii.gz --mask mask.nii.gz --size 32x18 --mels 16";
    let said = done(at, import);
    assert!(said.contains("video  [4, 18, 32, 3]") && said.contains("brains of 50 voxels, TRs [4, 4]"), "{said}");
    assert_eq!(perfrun(at, import).status.code(), Some(2), "a data set that is there is not replaced");
    done(at, &format!("{import} --overwrite"));
    done(at, "train sherlock-tiny --data lab --set batch_size=2 --set num_epochs=1 --set num_workers=0");
    let said = done(at, "predict --checkpoint checkpoints --split train --subject 2 --out out");
    assert!(said.starts_with("TRs 0 to 2: correlation over time of 50 voxels") && said.contains("subject 2"), "{said}");
    let scan = NiftiReader::open(at.join("out/fmri.nii.gz")).unwrap();
    assert_eq!((scan.header().axes, scan.header().volumes), ([5, 5, 3], 3));
    assert_eq!(NiftiReader::open(at.join("out/voxel_correlation.nii.gz")).unwrap().header().volumes, 1);
    assert!(std::fs::read_to_string(at.join("out/voxel_correlation.html")).unwrap().contains("data:image/png"));
}

/// Multiply-adds of the published model for a sample: convolutions by their result and kernel, then every linear map.
fn published_products() -> u64 {
    let video = [(32, 45 * 80, 27), (64, 23 * 40, 32 * 9), (128, 12 * 20, 64 * 9), (256, 6 * 10, 128 * 9)];
    let audio = [(32, 64, 3), (64, 32, 32 * 3), (128, 16, 64 * 3)];
    let linear = [
        (15_360, 1024),
        (2048, 256),
        (1024, 512),
        (512, 256),
        (1536, 1536),
        (1536, 4096),
        (4096, 8000),
        (8000, 16_384),
        (16_384, 85_810),
        (8000, 2048),
        (2048, 4096),
        (4096, 8192),
        (8192, 8192),
        (8192, 4096),
        (8192, 2048),
        (2048, 1024),
        (8192, 2048),
        (2048, 2048),
        (4096, 43_200),
        (1024, 128),
        (2048, 1024),
    ];
    let convolutions = video.iter().chain(&audio).map(|(channels, places, taps)| channels * places * taps);
    convolutions.chain(linear.iter().map(|(from, to)| from * to)).sum()
}

#[test]
fn a_run_is_planned_budgeted_and_tried_without_a_step_and_a_step_is_profiled() {
    let dir = folder();
    let at = dir.path();
    let rates = "--matmul-rate 1e12 --copy-rate 1e11";
    let plan = json(at, &format!("plan sherlock --json {rates}"));
    assert_eq!((&plan["configuration"], &plan["batch_size"]), (&Value::from("sherlock"), &Value::from(64)));
    let said = done(at, &format!("plan sherlock {rates} --convention pytorch"));
    for part in ["parameters      1974067762", "a frame of 90 x 160, 128 mel bands", "forward 4.05 G a sample"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Convolutions as PyTorch counts them, padding too: 2,029,440,000 and some multiply-adds a sample.
    let forward = said.lines().find(|l| l.starts_with("pytorch ")).and_then(|l| l.split(' ').rev().nth(1)).unwrap();
    assert_eq!(forward.parse::<u64>().unwrap() / 128, published_products(), "{said}");
    done(at, FILM);
    let tried = done(at, &format!("{TRAIN} --dry-run"));
    assert!(tried.contains("configuration   sherlock-tiny") && tried.contains("conv2d"), "{tried}");
    assert!(!at.join("checkpoints").exists() && !at.join("logs").exists());
    done(at, &format!("{TRAIN} --flops-profile=2 --logging-backend none --run-name x"));
    let profile: Value = serde_json::from_slice(&std::fs::read(at.join("logs/flops_profile.json")).unwrap()).unwrap();
    assert_eq!(profile["step"], 2);
    let planned = json(at, &format!("plan sherlock-tiny --json {rates}"));
    assert_eq!(planned["model"], profile["model"], "a plan counts what a step does");
    assert!(at.join("logs/flops_profile.html").exists() && at.join("logs/flops_profile.txt").exists());
    // 128 samples are 8 steps of 16: from the log of this run, and where there is none from the rates.
    let budget = "budget time-to-epochs --hours 1 --config-name sherlock-tiny --json";
    let logged = json(at, &format!("{budget} --data film"));
    let of = |part: &str| planned["model"][part].as_u64().unwrap();
    assert_eq!(logged["flops_per_epoch"].as_f64().unwrap(), (8 * (of("matmul") + of("vector"))) as f64);
    assert!(logged["basis"].as_str().unwrap().starts_with("measured, the median of 15 steps"), "{logged}");
    let missing = perfrun(at, &format!("{budget} --data nowhere"));
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("expected --samples N, or a data set to count them in"));
}

#[test]
fn what_cannot_be_done_with_a_film_is_refused_with_its_reason() {
    let dir = folder();
    let at = dir.path();
    laboratory(at);
    done(at, FILM);
    done(at, &format!("{TRAIN} --set max_steps=2"));
    let cut = std::fs::read(at.join("sub-1.nii.gz")).unwrap();
    std::fs::write(at.join("cut.nii.gz"), &cut[..cut.len() / 2]).unwrap();
    let import = "data import --out lab --video frames --audio film.wav --text embeddings.npy --segments segments.csv";
    let predict = "predict --checkpoint checkpoints/best_checkpoint";
    for (line, expected) in [
        ("synth sherlock".to_owned(), "--out <DIR>"),
        ("synth sherlock --out f --features 2".into(), "features: expected"),
        ("synth sherlock --out film".into(), "exists already"),
        ("data validate none".into(), "none"),
        (import.into(), "--fmri <FILE>"),
        (format!("{import} --fmri cut.nii.gz --size 32x18 --mels 16"), "cut.nii.gz: "),
        (format!("{import} --fmri sub-1.nii.gz"), "frames are made smaller, not larger"),
        (format!("{import} --fmri sub-1.nii.gz --size 32"), "expected columns x rows as 160x90, found `32`"),
        ("train sherlock-tiny --data none".into(), "none: expected the folder of a data set, found nothing"),
        (format!("{TRAIN} --set n_voxels=51"), "fmri_s1.npy: expected 51 as n_voxels says, found 50; set n_voxels"),
        (format!("{TRAIN} --devices 8"), "num_gpus: expected 1, found 8; this version runs on one"),
        (format!("{TRAIN} --set batch_size=1"), "batch_size: expected 2 or more, found 1"),
        (TRAIN.into(), "holds checkpoints of an earlier run"),
        (format!("{predict} --lesion 3,32"), "lesion: expected units below 32, found 32"),
        (format!("{predict} --lesion x"), "invalid value 'x'"),
        (format!("{predict} --subject 9"), "subject: expected one of [1, 2], found 9"),
        (format!("{predict} --out segments.csv"), "segments.csv: expected a folder to write into, found a file"),
        (format!("{predict} --data none"), "none: expected the folder of a data set, found nothing"),
        ("scale --base-config-name sherlock".into(), "no configuration \"sherlock\""),
    ] {
        let output = perfrun(at, &line);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains(expected), "{line}: expected {expected}, found {said}");
    }
    // Faults of the numbers are told by `data validate`, all of them, and none is trained on.
    npy::write_f32(&at.join("film/text.npy"), Replace, &[80, 20], &[f32::NAN; 1600]).unwrap();
    let output = perfrun(at, "data validate film");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("fault: ") && text(&output.stdout).contains("first NaN at TR 0"));
}

#[test]
fn the_flags_of_a_film_are_explained() {
    let dir = folder();
    for (line, words) in [
        ("synth sherlock --help", &["--snr <X>", "--subjects <N>", "--half"][..]),
        ("data import --help", &["--video <PATH>", "ffmpeg", "--segments <FILE>", "--mask <FILE>"]),
        ("data validate --help", &["sherlock.json", "--headers"]),
        ("predict --help", &["--lesion <UNITS>", "--subject <N>", "voxel_correlation.html"]),
    ] {
        let said = done(dir.path(), line);
        words.iter().for_each(|word| assert!(said.contains(word), "{line}: {word}: {said}"));
    }
}
