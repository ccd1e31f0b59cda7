//! Sherlock data sets: what is aligned, convolved, normalised, shuffled and refused.

use std::path::Path;

use perfrun::data::sherlock::config::{HrfAlignment, Mode, Reconstruct, Subjects};
use perfrun::data::sherlock::hrf::{Response, glover};
use perfrun::data::sherlock::{Manifest, Part, Recording, SherlockDataConfig, Sizes};
use perfrun::data::{Dataset, Prefetch, Shuffle};
use perfrun::io::atomic::Existing::Replace;
use perfrun::io::npy;

const TRS: usize = 30;
const SIZES: Sizes = Sizes { height: 2, width: 3, mels: 4, text: 5, voxels: 6 };

/// Every number of every array is another one, and frames stay in [0, 1].
fn value(array: usize, tr: usize, place: usize) -> f32 {
    ((array * 7 + tr * 29 + place * 3) % 101) as f32 / 128.0
}

fn numbers(array: usize, trs: usize, width: usize) -> Vec<f32> {
    (0..trs * width).map(|k| value(array, k / width, k % width)).collect()
}

/// Three subjects, 30 TRs of all but the sound, which has two more.
fn root() -> (tempfile::TempDir, SherlockDataConfig) {
    let root = tempfile::tempdir().unwrap();
    let put = |name: &str, shape: &[usize], numbers: &[f32]| {
        npy::write_f32(&root.path().join(name), Replace, shape, numbers).unwrap();
    };
    put("video.npy", &[TRS, 2, 3, 3], &numbers(0, TRS, 18));
    put("audio.npy", &[TRS + 2, 4], &numbers(1, TRS + 2, 4));
    put("text.npy", &[TRS, 5], &numbers(2, TRS, 5));
    for subject in 1..4 {
        put(&format!("fmri_s{subject}.npy"), &[TRS + 1, 6], &numbers(10 + subject, TRS + 1, 6));
    }
    Manifest::usual(1.5, 1..4, false).write(root.path(), Replace).unwrap();
    let config = SherlockDataConfig { data_dir: root.path().into(), ..Default::default() };
    (root, config)
}

fn open(config: &SherlockDataConfig) -> std::sync::Arc<Recording> {
    Recording::open(config, Some(SIZES)).unwrap()
}

fn plain(root: &Path) -> SherlockDataConfig {
    SherlockDataConfig { data_dir: root.into(), apply_hrf: false, normalize_fmri: false, ..Default::default() }
}

#[test]
fn the_first_four_fifths_train_and_the_rest_validates_each_subject_in_turn() {
    let (_root, config) = root();
    let recording = open(&config);
    assert_eq!((recording.trs(), recording.train_trs(), recording.sizes()), (30, 24, SIZES));
    let (train, validation) = (recording.part(Part::Train), recording.part(Part::Validation));
    assert_eq!((train.len(), validation.len(), recording.part(Part::All).len()), (72, 18, 90));
    assert_eq!((train.place(0).unwrap(), train.place(25).unwrap()), ((Some(1), 0), (Some(2), 1)));
    assert_eq!(validation.place(17).unwrap(), (Some(3), 29));
    assert!(validation.place(18).is_err_and(|e| e.to_string() == "sample: expected an index below 18, found 18"));
    // The published data: 920 TRs of 17 subjects.
    assert_eq!(((0.8 * 920.0) as usize * 17, 920 - (0.8 * 920.0) as usize), (12_512, 184));
}

#[test]
fn frames_come_channels_first_and_brains_cut_to_the_common_time() {
    let (root, _) = root();
    let recording = open(&plain(root.path()));
    let batch = recording.part(Part::All).batch(&[31, 4]).unwrap();
    assert_eq!(batch.input.video.shape(), [2, 3, 2, 3]);
    let video = batch.input.video.to_f32().unwrap();
    for (sample, tr) in [(0, 1), (1, 4)] {
        for (channel, y, x) in [(0, 0, 0), (1, 0, 2), (2, 1, 1), (0, 1, 2)] {
            let found = video[sample * 18 + channel * 6 + y * 3 + x];
            assert_eq!(found, value(0, tr, (y * 3 + x) * 3 + channel), "{channel} {y} {x}");
        }
    }
    let fmri = batch.fmri.to_f32().unwrap();
    assert_eq!((fmri[3], fmri[6 + 5]), (value(12, 1, 3), value(11, 4, 5)));
    assert!(batch.target.video.shares_with(&batch.input.video));
}

#[test]
fn a_longer_stimulus_is_resampled_on_the_line_between_its_rows() {
    let (root, _) = root();
    let recording = open(&plain(root.path()));
    let audio = recording.part(Part::All).batch(&[10, 0, 29]).unwrap().input.audio.to_f32().unwrap();
    let at = 10.0 * 31.0 / 29.0;
    let (low, share) = (at as usize, at - (at as usize) as f64);
    let expected = f64::from(value(1, low, 2)) * (1.0 - share) + f64::from(value(1, low + 1, 2)) * share;
    approx::assert_abs_diff_eq!(f64::from(audio[2]), expected, epsilon = 1e-6);
    assert_eq!((audio[4], audio[8]), (value(1, 0, 0), value(1, 31, 0)));
}

#[test]
fn the_encoder_reads_the_convolved_stimulus_and_the_decoder_is_compared_with_the_stimulus() {
    let (_root, config) = root();
    let tr = 20;
    let batch = open(&config).part(Part::All).batch(&[tr]).unwrap();
    let h = glover(1.5);
    let text = |lead: usize| -> f64 {
        let taps = h.iter().enumerate().filter(|(j, _)| (*j..TRS + j).contains(&(tr + lead)));
        taps.map(|(j, h)| h * f64::from(value(2, tr + lead - j, 3))).sum()
    };
    let found = |stimulus: &perfrun::data::sherlock::Stimulus| f64::from(stimulus.text.to_f32().unwrap()[3]);
    approx::assert_abs_diff_eq!(found(&batch.input), text(0), epsilon = 1e-5);
    assert_eq!(found(&batch.target), f64::from(value(2, tr, 3)));
    let original =
        SherlockDataConfig { hrf_alignment: HrfAlignment::Centered, reconstruct: Reconstruct::Input, ..config };
    let batch = open(&original).part(Part::All).batch(&[tr]).unwrap();
    approx::assert_abs_diff_eq!(found(&batch.input), text(10), epsilon = 1e-5);
    assert!(batch.target.text.shares_with(&batch.input.text));
    assert_eq!(Response::new(1.5, HrfAlignment::Causal).len(), 21);
}

#[test]
fn voxels_are_z_scored_by_the_time_that_is_trained_on() {
    let (_root, config) = root();
    let recording = open(&config);
    let mean_and_std = |part: Part| {
        let part = recording.part(part);
        let all: Vec<usize> = (0..part.len() / 3).collect();
        let fmri = part.batch(&all).unwrap().fmri.to_f32().unwrap();
        let column: Vec<f64> = fmri.iter().skip(2).step_by(6).map(|&x| f64::from(x)).collect();
        let mean = column.iter().sum::<f64>() / column.len() as f64;
        (mean, (column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / column.len() as f64).sqrt())
    };
    let (mean, std) = mean_and_std(Part::Train);
    approx::assert_abs_diff_eq!(mean, 0.0, epsilon = 1e-6);
    approx::assert_abs_diff_eq!(std, 1.0, epsilon = 1e-5);
    assert!((mean_and_std(Part::Validation).0).abs() > 0.01, "time that is not trained on is not looked at");
    assert!(recording.statistics(3).is_some() && recording.statistics(4).is_none());
}

#[test]
fn the_mean_of_all_subjects_is_one_sample_a_tr() {
    let (root, _) = root();
    let config = SherlockDataConfig { mode: Mode::CrossSubject, ..plain(root.path()) };
    let part = open(&config).part(Part::Validation);
    assert_eq!((part.len(), part.place(1).unwrap()), (6, (None, 25)));
    let fmri = part.batch(&[1]).unwrap().fmri.to_f32().unwrap();
    let mean = (value(11, 25, 4) + value(12, 25, 4) + value(13, 25, 4)) / 3.0;
    approx::assert_abs_diff_eq!(fmri[4], mean, epsilon = 1e-6);
}

#[test]
fn subjects_and_time_can_be_chosen() {
    let (_root, config) = root();
    let two = SherlockDataConfig { subjects: Subjects::These(vec![3, 1]), max_trs: Some(10), ..config };
    let recording = open(&two);
    assert_eq!((recording.subjects(), recording.trs(), recording.train_trs()), (vec![1, 3], 10, 8));
    let batch = recording.part(Part::Train).batch(&[]).unwrap();
    assert_eq!(batch.fmri.shape(), [0, 6]);
}

#[test]
fn batches_do_not_depend_on_threads() {
    let (_root, config) = root();
    let part = std::sync::Arc::new(open(&config).part(Part::Train));
    let order = Some((Shuffle::like_torch(0), 0));
    let read = |workers| {
        let batches = perfrun::data::Batches::new(part.len(), 7, true, order).unwrap();
        let all = Prefetch::new(part.clone(), batches, 0, workers).unwrap();
        all.map(|b| b.map(|b| (b.fmri.to_f32().unwrap(), b.input.video.to_f32().unwrap())).unwrap()).collect::<Vec<_>>()
    };
    let alone = read(0);
    assert_eq!((alone.len(), &alone), (10, &read(3)));
}
