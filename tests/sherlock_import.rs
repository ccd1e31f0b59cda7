//! Synthetic films are sound, what is wrong with others is listed, and predictions become files that other tools read.

use std::path::Path;
use std::sync::Arc;

use perfrun::data::Dataset;
use perfrun::data::sherlock::import::Mask;
use perfrun::data::sherlock::prediction::{Prediction, write_map};
use perfrun::data::sherlock::synthetic::SyntheticSherlock;
use perfrun::data::sherlock::validate::validate;
use perfrun::data::sherlock::{Manifest, Part, Recording, SherlockDataConfig};
use perfrun::io::atomic::Existing::{Refuse, Replace};
use perfrun::io::nifti::{self, Geometry, NiftiReader};
use perfrun::io::{npy, png};

fn film() -> SyntheticSherlock {
    SyntheticSherlock { height: 4, width: 6, mels: 8, text: 5, voxels: 7, trs: 100, ..Default::default() }
}

fn at(root: &Path) -> SherlockDataConfig {
    SherlockDataConfig { data_dir: root.into(), ..Default::default() }
}

fn open(root: &Path) -> Arc<Recording> {
    Recording::open(&at(root), None).unwrap()
}

#[test]
fn a_synthetic_film_has_no_fault_in_either_number_type() {
    for half in [false, true] {
        let root = tempfile::tempdir().unwrap();
        SyntheticSherlock { half, ..film() }.write(root.path(), |_, _, _| {}).unwrap();
        let report = validate(&at(root.path()), true, |_, _, _| {});
        assert!(report.faults.is_empty() && report.warnings.is_empty(), "{report:#?}");
        assert_eq!((report.trs, report.arrays.len()), (Some([100, 80]), 5));
        let [video, audio] = [&report.arrays[0].numbers, &report.arrays[1].numbers];
        assert!(video.min >= 0.0 && video.max <= 1.0 && video.std() > 0.05, "{video:?}");
        assert!(audio.min >= -80.0 && audio.max <= 0.0 && (audio.mean + 40.0).abs() < 10.0, "{audio:?}");
        assert_eq!((report.arrays[4].what.as_str(), report.arrays[4].numbers.count), ("subject 2", 700));
        let headers = validate(&at(root.path()), false, |_, _, _| {});
        assert!(headers.faults.is_empty() && headers.arrays.iter().all(|a| a.numbers.count == 0));
        let recording = open(root.path());
        assert_eq!(recording.part(Part::Train).len(), 160);
    }
}

#[test]
fn what_is_wrong_with_the_numbers_is_listed_with_its_place() {
    let root = tempfile::tempdir().unwrap();
    film().write(root.path(), |_, _, _| {}).unwrap();
    let put = |name: &str, shape: &[usize], fill: &dyn Fn(usize) -> f32| {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(fill).collect();
        npy::write_f32(&root.path().join(name), Replace, shape, &numbers).unwrap();
    };
    put("video.npy", &[104, 4, 6, 3], &|k| (k % 256) as f32);
    put("audio.npy", &[100, 8], &|k| if k == 17 { f32::NAN } else { k as f32 });
    put("text.npy", &[100, 5], &|k| 100.0 + k as f32);
    put("fmri_s2.npy", &[101, 7], &|k| if k % 7 == 3 { 5.0 } else { (k * k % 97) as f32 });
    let report = validate(&at(root.path()), true, |_, _, _| {});
    let expect = |lines: Vec<&str>, parts: &[&str]| {
        assert_eq!(lines.len(), parts.len(), "{lines:#?}");
        lines.iter().zip(parts).for_each(|(line, part)| assert!(line.contains(part), "expected {part}, found {line}"));
    };
    let faults = [
        "video.npy: expected colours from 0 to 1, found 0 to 255; divide bytes by 255",
        "audio.npy: expected finite numbers, found 1 that are not, first NaN at TR 2, place 1",
    ];
    expect(report.faults.lines().collect(), &faults);
    let warnings = [
        "audio.npy: expected dB below the loudest, 0 at most, found up to 799",
        "text.npy: expected embeddings of length about 1, found about ",
        "fmri_s2.npy: 1 of 7 columns never change",
        "video.npy: 104 TRs will be squeezed to the 100 that all have",
        "fmri_s2.npy: 101 TRs will be cut to the 100 that all have",
    ];
    expect(report.warnings.iter().map(String::as_str).collect(), &warnings);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["arrays"][4]["constant_columns"], 1);
}

/// Adds a mask of 7 of 3 x 3 x 1 voxels.
fn add_mask(root: &Path) {
    nifti::write(&root.join("mask.nii.gz"), Replace, [3, 3, 1], 1, &Geometry::default(), |_, volume| {
        volume.iter_mut().enumerate().for_each(|(i, x)| *x = f32::from(u8::from(i != 0 && i != 4)));
        Ok(())
    })
    .unwrap();
    Manifest::usual(1.5, 1..3, true).write(root, Replace).unwrap();
}

/// The truth of some TRs, as a model without fault would give it.
fn perfect(recording: &Arc<Recording>, trs: std::ops::Range<usize>) -> Prediction {
    let batch = recording.part(Part::All).batch(&trs.clone().collect::<Vec<_>>()).unwrap();
    let numbers = |tensor: &perfrun::tensor::Tensor| tensor.to_f32().unwrap();
    Prediction {
        trs: trs.collect(),
        fmri: numbers(&batch.fmri),
        video: numbers(&batch.target.video),
        audio: numbers(&batch.target.audio),
        text: numbers(&batch.target.text),
    }
}

#[test]
fn predictions_are_arrays_frames_and_volumes_in_the_head() {
    let root = tempfile::tempdir().unwrap();
    film().write(root.path(), |_, _, _| {}).unwrap();
    add_mask(root.path());
    let recording = open(root.path());
    let prediction = perfect(&recording, 90..93);
    let out = root.path().join("out");
    let written = prediction.write(&recording, &out, Refuse, Some(1)).unwrap();
    assert_eq!(written.len(), 4 + 3);
    let fmri = npy::read(out.join("fmri.npy")).unwrap();
    assert_eq!(fmri.shape, [3, 7]);
    // In the units of the first subject's scanner: what its file holds.
    let scans = npy::read(root.path().join("fmri_s1.npy")).unwrap().into_f32();
    let fmri = fmri.into_f32();
    fmri.iter().zip(&scans[90 * 7..]).for_each(|(a, b)| approx::assert_relative_eq!(*a, *b, max_relative = 1e-5));
    let mut reader = NiftiReader::open(out.join("fmri.nii.gz")).unwrap();
    assert_eq!((reader.header().axes, reader.header().volumes, reader.header().geometry.steps[4]), ([3, 3, 1], 3, 1.5));
    let mut volume = vec![0.0; 9];
    reader.next(&mut volume).unwrap();
    // Columns run with z fastest, then y: the second voxel of x = 0 comes first, volumes with x fastest.
    let mask = Mask::read(&root.path().join("mask.nii.gz")).unwrap();
    assert_eq!(
        (mask.voxels(), volume[0], volume[4], volume[3], volume[6], volume[1]),
        (7, 0.0, 0.0, fmri[0], fmri[1], fmri[2])
    );
    let frame = png::read(&out.join("video/tr00091.png")).unwrap();
    let video = npy::read(root.path().join("video.npy")).unwrap().into_f32();
    let stored = &video[91 * 72..92 * 72];
    assert!(
        frame.rgb.iter().zip(stored).all(|(&b, &x)| (f32::from(b) - x * 255.0).abs() <= 0.5),
        "rows of pixels again"
    );
    assert!(prediction.write(&recording, &out, Refuse, None).unwrap_err().to_string().contains("exists already"));
    let error = prediction.write(&recording, &out, Replace, Some(9)).unwrap_err().to_string();
    assert_eq!(error, "subject: expected one of [1, 2] of a recording that is normalised, found 9");
    let short = Prediction { trs: vec![1], ..prediction };
    assert!(
        short.write(&recording, &out, Replace, None).unwrap_err().to_string().contains("fmri: expected 1 TRs of 7")
    );
}

#[test]
fn the_map_of_correlations_is_one_where_the_prediction_is_the_brain() {
    let root = tempfile::tempdir().unwrap();
    film().write(root.path(), |_, _, _| {}).unwrap();
    add_mask(root.path());
    let recording = open(root.path());
    let mut prediction = perfect(&recording, 0..100);
    prediction.fmri.iter_mut().skip(2).step_by(7).for_each(|x| *x = -3.0 * *x + 1.0);
    prediction.fmri.iter_mut().skip(5).step_by(7).for_each(|x| *x = 4.0);
    let map = prediction.voxel_correlation(&recording, Some(1)).unwrap();
    for (voxel, expected) in [1.0, 1.0, -1.0, 1.0, 1.0, 0.0, 1.0].into_iter().enumerate() {
        approx::assert_abs_diff_eq!(map[voxel], expected, epsilon = 1e-6);
    }
    let other = prediction.voxel_correlation(&recording, Some(2)).unwrap();
    assert!(other[0] > 0.2 && other[0] < 0.8, "two brains share the answer but not the noise: {}", other[0]);
    let written = write_map(&recording, &root.path().join("out"), "correlation", Refuse, &map).unwrap();
    assert_eq!(written.len(), 2);
    assert!(write_map(&recording, root.path(), "x", Refuse, &map[1..]).is_err());
    assert!(prediction.voxel_correlation(&recording, Some(7)).is_err());
}
