//! Bad Sherlock data: each gives lines that name the file or key and what is wrong; none panics, none is trained on.

use std::fs;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use perfrun::data::Dataset;
use perfrun::data::sherlock::config::{All, Subjects};
use perfrun::data::sherlock::import::{Frames, Gap, Import, Mask, Overlap, read_segments, shared_mask};
use perfrun::data::sherlock::{Manifest, Part, Recording, SherlockDataConfig, Sizes};
use perfrun::error::Result;
use perfrun::io::atomic::Existing::Replace;
use perfrun::io::nifti::{self, Geometry, NiftiReader};
use perfrun::io::npy;
use perfrun::io::png::{self, Picture};
use perfrun::io::wav::{self, Sound};

const SIZES: Sizes = Sizes { height: 2, width: 3, mels: 4, text: 5, voxels: 6 };

/// A sound data set of 20 TRs and two subjects.
fn sound_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, shape) in [
        ("video.npy", vec![20, 2, 3, 3]),
        ("audio.npy", vec![20, 4]),
        ("text.npy", vec![20, 5]),
        ("fmri_s1.npy", vec![20, 6]),
        ("fmri_s2.npy", vec![20, 6]),
    ] {
        put(root.path(), name, &shape);
    }
    Manifest::usual(1.5, 1..3, false).write(root.path(), Replace).unwrap();
    root
}

fn counted(shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product()).map(|k: usize| (k * 7 % 31) as f32 / 31.0).collect()
}

fn put(root: &Path, name: &str, shape: &[usize]) {
    npy::write_f32(&root.join(name), Replace, shape, &counted(shape)).unwrap();
}

/// The usual array with one number replaced.
fn spoil(root: &Path, name: &str, shape: &[usize], at: usize, x: f32) {
    let mut numbers = counted(shape);
    numbers[at] = x;
    npy::write_f32(&root.join(name), Replace, shape, &numbers).unwrap();
}

fn cut(path: &Path, bytes: usize) {
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..whole.len() - bytes]).unwrap();
}

fn edit(root: &Path, from: &str, to: &str) {
    let path = root.join("sherlock.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Opens and reads every sample.
fn read_all(config: &SherlockDataConfig) -> Result<()> {
    let recording = Recording::open(config, Some(SIZES))?;
    let part = recording.part(Part::All);
    part.batch(&(0..part.len()).collect::<Vec<_>>()).map(drop)
}

/// What is wrong with the answer to a bad input: `None` if it is an error of bad input that says what is `expected`.
fn complaint(name: &str, answer: Result<()>, expected: &str) -> Option<String> {
    match answer {
        Ok(()) => Some(format!("{name}: was taken")),
        Err(e) if e.is_bad_input() && e.to_string().contains(expected) => None,
        Err(e) => Some(format!("{name}: expected {expected}, found {e}")),
    }
}

fn none_wrong(complaints: &[String]) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

type Break = fn(&Path, &mut SherlockDataConfig);

#[test]
fn every_fault_of_a_data_set_is_an_error_that_names_its_place() {
    let cases: Vec<(&str, Break, &str)> = vec![
        (
            "no folder",
            |_, c| c.data_dir = "/nonexistent".into(),
            "/nonexistent: expected the folder of a data set, found nothing",
        ),
        ("a file", |r, c| c.data_dir = r.join("text.npy"), "expected the folder of a data set, found a file"),
        (
            "no manifest",
            |r, _| fs::remove_file(r.join("sherlock.json")).unwrap(),
            "expected the manifest of a data set, found no",
        ),
        ("half a manifest", |r, _| cut(&r.join("sherlock.json"), 9), "sherlock.json: malformed manifest: "),
        ("another format", |r, _| edit(r, "\"sherlock\"", "\"weather\""), "format: expected sherlock, found weather"),
        ("a later version", |r, _| edit(r, "\"version\": 1", "\"version\": 2"), "version: expected 1, found 2"),
        ("an unknown key", |r, _| edit(r, "\"tr\"", "\"rt\""), "unknown field `rt`"),
        ("no time", |r, _| edit(r, "1.5", "0"), "tr: expected seconds above 0 and at most 16, found 0"),
        (
            "a path outside",
            |r, _| edit(r, "text.npy", "../text.npy"),
            "expected paths below the data set's folder, found ../text.npy",
        ),
        (
            "an absolute path",
            |r, _| edit(r, "text.npy", "/etc/passwd"),
            "expected paths below the data set's folder, found /etc/passwd",
        ),
        (
            "a subject twice",
            |r, _| edit(r, "\"id\": 2", "\"id\": 1"),
            "subjects: expected different numbers from 1, found [1, 1]",
        ),
        ("no video", |r, _| fs::remove_file(r.join("video.npy")).unwrap(), "video.npy: cannot open: No such file"),
        ("no sound", |r, _| fs::remove_file(r.join("audio.npy")).unwrap(), "audio.npy: cannot open: No such file"),
        ("no brain", |r, _| fs::remove_file(r.join("fmri_s2.npy")).unwrap(), "fmri_s2.npy: cannot open: No such file"),
        (
            "channels first",
            |r, _| put(r, "video.npy", &[20, 3, 2, 5]),
            "are the channels first? array.transpose(0, 2, 3, 1)",
        ),
        (
            "flat frames",
            |r, _| put(r, "video.npy", &[20, 18]),
            "video.npy: expected [TRs, rows, columns, 3] with no empty axis, found [20, 18]",
        ),
        (
            "four colours",
            |r, _| put(r, "video.npy", &[20, 2, 3, 4]),
            "expected [TRs, rows, columns, 3] with no empty axis, found [20, 2, 3, 4]",
        ),
        (
            "sound with an axis too many",
            |r, _| put(r, "audio.npy", &[20, 4, 1]),
            "audio.npy: expected [TRs, mels] with at least one column",
        ),
        (
            "no voxels",
            |r, _| put(r, "fmri_s1.npy", &[20, 0]),
            "fmri_s1.npy: expected [TRs, voxels] with at least one column, found [20, 0]",
        ),
        ("other voxels", |r, _| put(r, "fmri_s2.npy", &[20, 7]), "fmri_s2.npy: expected 6 voxels like "),
        (
            "another frame than the model's",
            |r, _| put(r, "video.npy", &[20, 4, 3, 3]),
            "video.npy: expected 2 as video_height says, found 4",
        ),
        (
            "other mels than the model's",
            |r, _| put(r, "audio.npy", &[20, 128]),
            "audio.npy: expected 4 as audio_mels says, found 128; set audio_mels",
        ),
        ("another embedding", |r, _| put(r, "text.npy", &[20, 6]), "text.npy: expected 5 as text_dim says, found 6"),
        (
            "other voxels than the model's",
            |r, _| {
                put(r, "fmri_s1.npy", &[20, 7]);
                put(r, "fmri_s2.npy", &[20, 7]);
            },
            "fmri_s1.npy: expected 6 as n_voxels says, found 7; set n_voxels to what the data have",
        ),
        ("a scan that was cut", |r, _| put(r, "fmri_s2.npy", &[12, 6]), "fmri_s2.npy: expected about 20 TRs like "),
        ("one TR", |r, _| put(r, "text.npy", &[1, 5]), "text.npy: expected at least 2 TRs, found 1"),
        (
            "f64",
            |r, _| npy::write_f64(&r.join("text.npy"), Replace, &[20, 5], &[0.0; 100]).unwrap(),
            "text.npy: expected little-endian numbers of type f2 or f4, which can be mapped",
        ),
        (
            "no array",
            |r, _| fs::write(r.join("text.npy"), b"PK\x03\x04").unwrap(),
            "text.npy: expected an npy file, found no npy signature (a zip archive",
        ),
        ("a pickle", |r, _| fs::write(r.join("text.npy"), b"\x80\x05\x95").unwrap(), "(a pickle, which is never read"),
        (
            "an array cut short",
            |r, _| cut(&r.join("fmri_s1.npy"), 3),
            "fmri_s1.npy: shape [20, 6] of f4 needs 480 bytes of data, found 477",
        ),
        (
            "a voxel without number",
            |r, _| spoil(r, "fmri_s1.npy", &[20, 6], 8, f32::NAN),
            "found 1 voxels with others, first NaN in voxel 2 at TR 1",
        ),
        (
            "a voxel without number at the end",
            |r, _| spoil(r, "fmri_s1.npy", &[20, 6], 117, f32::INFINITY),
            "fmri_s1.npy: TR 19: place 3: expected a finite number, found inf",
        ),
        (
            "sound without number",
            |r, _| spoil(r, "audio.npy", &[20, 4], 9, f32::NAN),
            "audio.npy: expected finite numbers, found NaN at TR 2, place 1",
        ),
        (
            "bytes for colours",
            |r, _| spoil(r, "video.npy", &[20, 2, 3, 3], 20, 255.0),
            "video.npy: expected colours from 0 to 1, found 255 at TR 1, place 2",
        ),
        (
            "sound without number, not convolved",
            |r, c| {
                c.apply_hrf = false;
                spoil(r, "audio.npy", &[20, 4], 9, f32::NAN);
            },
            "audio.npy: TR 2: place 1: expected a finite number, found NaN",
        ),
        (
            "nobody",
            |_, c| c.subjects = Subjects::These(vec![]),
            "subjects: expected all, or different numbers from 1, found []",
        ),
        (
            "somebody else",
            |_, c| c.subjects = Subjects::These(vec![2, 9]),
            "subjects: expected subject 9, found [1, 2]",
        ),
        (
            "all to train on",
            |_, c| c.train_fraction = 1.0,
            "train_fraction: expected a number above 0 and below 1, found 1",
        ),
        ("too little time", |_, c| c.max_trs = Some(1), "max_trs: expected at least 2"),
        (
            "a mask that is missing",
            |r, _| edit(r, "\"tr\": 1.5", "\"mask\": \"mask.nii.gz\", \"tr\": 1.5"),
            "mask.nii.gz: cannot open: No such file",
        ),
        (
            "a mask of other voxels",
            |r, _| {
                edit(r, "\"tr\": 1.5", "\"mask\": \"m.nii\", \"tr\": 1.5");
                scan(&r.join("m.nii"), [2, 2, 2], 1);
            },
            "m.nii: expected 6 voxels that are not 0, one a column of the brains, found 8",
        ),
    ];
    assert!(cases.len() >= 40, "{}", cases.len());
    let mut wrong = Vec::new();
    for (name, spoil, expected) in cases {
        let root = sound_root();
        let mut config = SherlockDataConfig {
            data_dir: root.path().into(),
            subjects: Subjects::All(All::All),
            ..Default::default()
        };
        spoil(root.path(), &mut config);
        wrong.extend(complaint(name, read_all(&config), expected));
    }
    none_wrong(&wrong);
    let root = sound_root();
    read_all(&SherlockDataConfig { data_dir: root.path().into(), ..Default::default() }).unwrap();
}

#[test]
fn faults_of_several_files_are_told_together() {
    let root = sound_root();
    fs::remove_file(root.path().join("audio.npy")).unwrap();
    put(root.path(), "video.npy", &[20, 18]);
    put(root.path(), "fmri_s2.npy", &[20, 7]);
    let config = SherlockDataConfig { data_dir: root.path().into(), train_fraction: 0.0, ..Default::default() };
    let error = read_all(&config).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 4, "{error}");
}

/// A scan whose voxels all change.
fn scan(path: &Path, axes: [usize; 3], volumes: usize) {
    nifti::write(path, Replace, axes, volumes, &Geometry::default(), |t, volume| {
        volume.iter_mut().enumerate().for_each(|(i, x)| *x = ((t * 5 + 1) * (i + 3) % 17) as f32 + 1.0);
        Ok(())
    })
    .unwrap();
}

fn read_scan(path: &Path) -> Result<()> {
    let mut reader = NiftiReader::open(path)?;
    let mut volume = vec![0.0; reader.header().voxels()];
    while reader.next(&mut volume)? {}
    Ok(())
}

#[test]
fn scans_that_cannot_be_read_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.nii");
    scan(&path, [2, 3, 2], 4);
    let whole = fs::read(&path).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let packed = |bytes: &[u8]| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        std::io::Write::write_all(&mut packer, bytes).unwrap();
        packer.finish().unwrap()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "the file ends within the header"),
        ("half a header", whole[..200].to_vec(), "the file ends within the header"),
        ("text", b"not a scan".repeat(60), "expected a NIfTI-1 header, which starts with the number 348"),
        ("NIfTI-2", with(0, &540_i32.to_le_bytes()), "expected NIfTI-1, found NIfTI-2"),
        ("a pair", with(344, b"ni1\0"), "found the header of a pair .hdr and .img"),
        ("ANALYZE", with(344, &[0; 4]), "an ANALYZE file is no NIfTI"),
        ("two axes", with(40, &2_i16.to_le_bytes()), "expected 3 or 4 axes, found 2"),
        (
            "five axes",
            [with(40, &5_i16.to_le_bytes())[..50].to_vec(), 2_i16.to_le_bytes().to_vec(), whole[52..].to_vec()]
                .concat(),
            "expected 3 or 4 axes",
        ),
        ("an empty axis", with(44, &0_i16.to_le_bytes()), "axis 2: expected a length of at least 1, found 0"),
        ("a negative axis", with(42, &(-3_i16).to_le_bytes()), "axis 1: expected a length of at least 1, found -3"),
        (
            "a gigantic volume",
            with(42, &[0xFF, 0x7F, 0xFF, 0x7F, 0xFF, 0x7F]),
            "expected at most 134217728 voxels a volume",
        ),
        (
            "more volumes than the file holds",
            with(48, &900_i16.to_le_bytes()),
            "for 900 volumes of [2, 3, 2], found 544: the file is cut short",
        ),
        ("complex numbers", with(70, &32_i16.to_le_bytes()), "found the data type 32"),
        (
            "an offset in the header",
            with(108, &100.0_f32.to_le_bytes()),
            "vox_offset: expected a whole number from 352, found 100",
        ),
        (
            "an offset that is none",
            with(108, &f32::NAN.to_le_bytes()),
            "vox_offset: expected a whole number from 352, found NaN",
        ),
        (
            "an infinite slope",
            with(112, &f32::INFINITY.to_le_bytes()),
            "scl_slope and scl_inter: expected finite numbers",
        ),
        ("cut short", whole[..whole.len() - 1].to_vec(), "found 543: the file is cut short"),
        (
            "packed and cut short before it was packed",
            packed(&whole[..whole.len() - 1]),
            "the file ends within volume 4 of 4: it is cut short",
        ),
        ("packed and cut short", packed(&whole)[..40].to_vec(), "it is cut short"),
        ("packed bytes that are none", [&packed(&whole)[..10], &[0xFF; 90]].concat(), "is damaged"),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let answer = read_scan(&path);
        let is_one_line = answer.as_ref().err().is_none_or(|e| {
            let e = e.to_string();
            e.starts_with(&format!("{}: ", path.display())) && e.lines().count() == 1
        });
        assert!(is_one_line, "{name}: {answer:?}");
        wrong.extend(complaint(name, answer, expected));
    }
    none_wrong(&wrong);
    scan(&path, [2, 3, 2], 2);
    assert!(Mask::read(&path).unwrap_err().to_string().ends_with("expected a mask of one volume, found 2"));
    let error = shared_mask(&[folder.path().join("none.nii")], |_, _, _| {}).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("none.nii: cannot open"), "{error}");
}

/// What an import needs, all of it right.
fn import(root: &Path) -> Import {
    let picture = Picture { height: 4, width: 6, rgb: vec![128; 72] };
    fs::create_dir_all(root.join("frames")).unwrap();
    for i in 0..6 {
        png::write(&root.join(format!("frames/f{i}.png")), Replace, &picture).unwrap();
    }
    wav::write(&root.join("a.wav"), Replace, &Sound { rate: 8000, samples: vec![0.25; 24_000] }).unwrap();
    npy::write_f32(&root.join("e.npy"), Replace, &[2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).unwrap();
    fs::write(root.join("s.csv"), "start,end\n0,1.5\n1.5,3\n").unwrap();
    scan(&root.join("s1.nii"), [3, 3, 3], 3);
    Import {
        tr: 1.0,
        video: Frames::Pictures(root.join("frames"), 2.0),
        size: [2, 3],
        audio: root.join("a.wav"),
        mels: 8,
        text: root.join("e.npy"),
        segments: Some(root.join("s.csv")),
        rule: (Overlap::Mean, Gap::Forward),
        fmri: vec![root.join("s1.nii")],
        mask: None,
        overwrite: false,
    }
}

#[test]
fn what_cannot_be_imported_is_refused_and_leaves_no_data_set() {
    type Spoil = fn(&Path, &mut Import);
    let cases: Vec<(&str, Spoil, &str)> = vec![
        ("no brain", |_, i| i.fmri.clear(), "fmri: expected at least one brain, found none"),
        ("no time", |_, i| i.tr = 0.0, "tr: expected seconds above 0"),
        ("no bands", |_, i| i.mels = 0, "mels: expected 1 to 4096 bands, found 0"),
        ("no rows", |_, i| i.size = [0, 3], "size: expected 1 to 8192 rows and columns, found 3 x 0"),
        (
            "arrays among scans",
            |r, i| i.fmri.push(r.join("x.npy")),
            "fmri: expected all scans as .nii or .nii.gz, or all as .npy",
        ),
        ("frames that never come", |r, i| i.video = Frames::Pictures(r.join("frames"), 0.1), "at least one a TR"),
        (
            "an empty folder",
            |r, i| i.video = Frames::Pictures(r.join("frames/f0.png").with_file_name("none"), 2.0),
            "cannot list",
        ),
        ("frames made larger", |_, i| i.size = [8, 3], "frames are made smaller, not larger"),
        (
            "raw frames of another size",
            |r, i| i.video = Frames::Rgb24(Some(r.join("a.wav")), [100, 100], 2.0),
            "expected whole frames of 100 x 100 x 3",
        ),
        (
            "frames that are no array",
            |r, i| i.video = Frames::Array(r.join("e.npy")),
            "expected [TRs, rows, columns, 3] with no empty axis, found [2, 3]",
        ),
        ("no sound", |r, i| i.audio = r.join("none.wav"), "none.wav: cannot open"),
        ("a sound that is none", |r, i| i.audio = r.join("s.csv"), "expected a WAV file of PCM or f32"),
        (
            "sound shorter than a TR",
            |r, _| wav::write(&r.join("a.wav"), Replace, &Sound { rate: 8000, samples: vec![0.0; 80] }).unwrap(),
            "expected at least one TR of 1 s, found 0.01 s of sound",
        ),
        (
            "an impossible rate",
            |r, _| wav::write(&r.join("a.wav"), Replace, &Sound { rate: 7, samples: vec![0.0; 80] }).unwrap(),
            "expected 1,000 to 384,000 samples a second, found 7",
        ),
        (
            "fewer embeddings than segments",
            |r, _| fs::write(r.join("s.csv"), "0,1\n1,2\n2,3\n").unwrap(),
            "expected 3 embeddings, one a segment of ",
        ),
        (
            "an embedding without number",
            |r, _| npy::write_f32(&r.join("e.npy"), Replace, &[2, 1], &[0.0, f32::NAN]).unwrap(),
            "expected finite numbers, found another at TR 1, place 0",
        ),
        (
            "segments that run backwards",
            |r, _| fs::write(r.join("s.csv"), "0,1\n3,2\n").unwrap(),
            "line 2: expected start and end in seconds",
        ),
        ("a scan that is cut", |r, _| cut(&r.join("s1.nii"), 9), "the file is cut short"),
        (
            "a mask of another shape",
            |r, i| {
                scan(&r.join("m.nii"), [2, 3, 3], 1);
                i.mask = Some(r.join("m.nii"));
            },
            "s1.nii: expected [2, 3, 3] voxels like the mask, found [3, 3, 3]",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, spoil, expected) in cases {
        let root = tempfile::tempdir().unwrap();
        let mut import = import(root.path());
        spoil(root.path(), &mut import);
        let out = root.path().join("out");
        wrong.extend(complaint(name, import.write(&out, |_, _, _| {}).map(drop), expected));
        assert!(fs::read_dir(&out).map_or(0, Iterator::count) == 0, "{name}: left files");
    }
    none_wrong(&wrong);
    assert!(read_segments(Path::new("/nonexistent.csv")).is_err_and(|e| e.is_bad_input()));
}

#[test]
fn a_right_import_is_read_and_not_overwritten_unasked() {
    let root = tempfile::tempdir().unwrap();
    let mut import = import(root.path());
    let out = root.path().join("out");
    let imported = import.write(&out, |_, _, _| {}).unwrap();
    assert_eq!((imported.brains, imported.stimuli[0].as_slice()), (vec![3], [3, 2, 3, 3].as_slice()));
    let config = SherlockDataConfig { data_dir: out.clone(), ..Default::default() };
    let recording = Recording::open(&config, None).unwrap();
    assert_eq!((recording.trs(), recording.sizes().voxels), (3, imported.voxels));
    let error = import.write(&out, |_, _, _| {}).unwrap_err().to_string();
    assert!(error.ends_with("holds a data set already; choose another folder or ask to overwrite it"), "{error}");
    import.overwrite = true;
    import.write(&out, |_, _, _| {}).unwrap();
}
