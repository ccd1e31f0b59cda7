//! Files that strangers wrote: each fault has its message, nothing is executed, nothing panics.

use std::path::Path;

use perfrun::io::pt::PtFile;
use perfrun::io::safetensors::SafetensorsFile;
use proptest::prelude::*;

use super::evil;

/// A safetensors file of a header and `data` bytes.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// A header of one tensor.
fn entry(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

/// A header of several f32 tensors with their ranges.
fn ranges(entries: &[(&str, u64, u64)]) -> String {
    let line = |&(name, begin, end): &(&str, u64, u64)| {
        format!(
            r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{begin},{end}]}}"#,
            end.saturating_sub(begin) / 4
        )
    };
    format!("{{{}}}", entries.iter().map(line).collect::<Vec<_>>().join(","))
}

fn bad_safetensors() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let of = |header: &str, data| safetensors(header, data);
    let one = |dtype, shape, offsets, data| safetensors(&entry(dtype, shape, offsets), data);
    let declared = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let deep = format!(r#"{{"__metadata__":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let utf8 = [&10u64.to_le_bytes()[..], b"{\"\xff\xfe\":1  }"].concat();
    vec![
        ("empty", vec![], "expected at least 8 bytes of safetensors, found 0"),
        ("seven bytes", vec![0; 7], "expected at least 8 bytes of safetensors, found 7"),
        ("header of 2^64-1", declared(u64::MAX), "header of at most 100000000 bytes, found 18446744073709551615"),
        ("header of 100000001", declared(100_000_001), "header of at most 100000000 bytes, found 100000001"),
        ("header beyond the end", declared(3), "header of 3 bytes ends beyond the file's 10 bytes: truncated"),
        ("no header", declared(0), "expected the header to start with `{`"),
        ("space first", of(" {}", 0), "expected the header to start with `{`"),
        ("array", of("[]", 0), "expected the header to start with `{`"),
        ("a zip", b"PK\x03\x04\x14\0\0\0\0\0\0\0".to_vec(), "header of at most 100000000 bytes"),
        ("a pickle", b"\x80\x02}q\0.\0\0\0".to_vec(), "header of at most 100000000 bytes"),
        ("not UTF-8", utf8, "header is not UTF-8 at byte 10"),
        ("unclosed", of("{", 0), "header: EOF while parsing an object"),
        ("garbage after", of("{}x", 0), "header: trailing characters"),
        ("nested 5000 deep", of(&deep, 0), "header: __metadata__: invalid type: sequence"),
        (
            "metadata of numbers",
            of(r#"{"__metadata__":{"a":1}}"#, 0),
            "__metadata__: invalid type: integer `1`, expected a string",
        ),
        ("metadata twice", of(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "__metadata__ appears 2 times"),
        ("a number for a tensor", of(r#"{"w":3}"#, 0), "header: w: invalid type: integer `3`"),
        ("name twice", of(&ranges(&[("w", 0, 4), ("w", 4, 8)]), 8), "w: name appears twice"),
        ("name twice, same range", of(&ranges(&[("w", 0, 4), ("w", 0, 4)]), 4), "w: name appears twice"),
        ("unknown type", one("F33", "[1]", "[0,4]", 4), "w: type \"F33\" is not supported"),
        ("half bytes", one("F4", "[2]", "[0,1]", 1), "w: type \"F4\" is not supported"),
        (
            "type is a number",
            of(r#"{"w":{"dtype":1,"shape":[],"data_offsets":[0,4]}}"#, 4),
            "w: invalid type: integer `1`",
        ),
        ("negative axis", one("F32", "[-1]", "[0,4]", 4), "w: invalid value: integer `-1`"),
        ("fractional axis", one("F32", "[1.5]", "[0,4]", 4), "w: invalid type: floating point `1.5`"),
        ("shape is text", one("F32", "\"1\"", "[0,4]", 4), "w: invalid type: string"),
        ("axis above 2^64", one("F32", "[18446744073709551616]", "[0,4]", 4), "w: invalid type: floating point"),
        ("shape overflows", one("U8", "[4294967296,4294967296]", "[0,0]", 0), "more bytes than an integer holds"),
        ("bytes overflow", one("F64", "[4611686018427387904]", "[0,0]", 0), "more bytes than an integer holds"),
        ("range reversed", one("F32", "[1]", "[4,0]", 4), "w: range 4..0 ends before it begins"),
        (
            "range beyond the end",
            one("F32", "[2]", "[0,8]", 7),
            "w: range 0..8 ends beyond the 7 bytes of data: truncated?",
        ),
        ("range too short", one("F32", "[2]", "[0,4]", 4), "w: expected 8 bytes for F32 [2], found 4"),
        ("range too long", one("F32", "[]", "[0,8]", 8), "w: expected 4 bytes for F32 [], found 8"),
        ("range of one number", one("F32", "[1]", "[0]", 4), "w: invalid length 1"),
        ("range of three numbers", one("F32", "[1]", "[0,4,8]", 4), "header: w: "),
        ("range in text", one("F32", "[1]", "[\"0\",\"4\"]", 4), "w: invalid type: string \"0\""),
        ("no range", of(r#"{"w":{"dtype":"F32","shape":[1]}}"#, 4), "w: missing field `data_offsets`"),
        ("no type", of(r#"{"w":{"shape":[1],"data_offsets":[0,4]}}"#, 4), "w: missing field `dtype`"),
        ("no shape", of(r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#, 4), "w: missing field `shape`"),
        (
            "hole at the start",
            of(&ranges(&[("w", 4, 8)]), 8),
            "w: range 4..8 leaves a hole before it: expected it to begin at 0",
        ),
        ("hole between", of(&ranges(&[("a", 0, 4), ("b", 8, 12)]), 12), "b: range 8..12 leaves a hole before it"),
        ("overlap", of(&ranges(&[("a", 0, 8), ("b", 4, 12)]), 12), "b: range 4..12 overlaps another tensor"),
        (
            "trailing bytes",
            of(&ranges(&[("a", 0, 4)]), 9),
            "expected 4 bytes of data, found 9: trailing bytes belong to no tensor",
        ),
        ("bytes without tensors", of("{}", 5), "expected 0 bytes of data, found 5"),
        ("control characters", of(r#"{"a\u001b[31m\n":3}"#, 0), r"header: a\u{1b}[31m\n: invalid type"),
        ("sums that wrap", of(&wrapping(), 0), "t8: range 18446744073709551608"),
        ("forty faults", of(&many_faults(), 0), "and 20 faults more"),
    ]
}

/// Nine tensors of 2^61-1 bytes and one behind them, whose ends add up to more than 2^64.
fn wrapping() -> String {
    let size = (1u64 << 61) - 1;
    let line = |i: u64| {
        let (begin, end) = (i.saturating_mul(size), i.saturating_mul(size).saturating_add(size));
        format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
    };
    format!("{{{}}}", (0..9).map(line).collect::<Vec<_>>().join(","))
}

fn many_faults() -> String {
    let line = |i| format!(r#""t{i}":{{"dtype":"X","shape":[],"data_offsets":[0,0]}}"#);
    format!("{{{}}}", (0..40).map(line).collect::<Vec<_>>().join(","))
}

#[test]
fn every_fault_of_a_safetensors_file_has_its_message() {
    let cases = bad_safetensors();
    assert!(cases.len() >= 45);
    for (case, bytes, expected) in cases {
        let error = SafetensorsFile::from_bytes(Path::new("f"), bytes).expect_err(case);
        let text = error.to_string();
        assert!(error.is_bad_input() && text.contains(expected), "{case}: expected {expected:?}, found {text:?}");
        assert!(text.lines().all(|l| l.starts_with("f: ")) && text.lines().count() <= 21, "{case}: {text}");
        assert!(!text.contains('\u{1b}'), "{case}");
    }
}

#[test]
fn unusual_but_sound_safetensors_are_read() {
    for (header, data) in [
        ("{}".to_string(), 0),
        (r#"{"__metadata__":null}   "#.to_string(), 0),
        (ranges(&[("b", 4, 8), ("a", 0, 4)]), 8),
        (entry("F32", "[0,7]", "[0,0]"), 0),
        (entry("BOOL", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1),
        (ranges(&[("../../etc/passwd", 0, 4)]), 4),
    ] {
        SafetensorsFile::from_bytes(Path::new("f"), safetensors(&header, data)).expect(&header);
    }
}

#[test]
fn every_truncation_of_a_safetensors_file_is_refused() {
    let whole = safetensors(&ranges(&[("a", 0, 4), ("b", 4, 12)]), 12);
    for cut in 0..whole.len() {
        assert!(SafetensorsFile::from_bytes(Path::new("f"), whole[..cut].to_vec()).is_err(), "{cut}");
    }
}

#[test]
fn a_hundred_thousand_tensors_are_read_in_one_pass() {
    let names: Vec<String> = (0..100_000).map(|i| format!("t{i}")).collect();
    let entries: Vec<_> = names.iter().enumerate().map(|(i, n)| (n.as_str(), 4 * i as u64, 4 * i as u64 + 4)).collect();
    let file = SafetensorsFile::from_bytes(Path::new("f"), safetensors(&ranges(&entries), 400_000)).unwrap();
    assert_eq!(file.len(), 100_000);
    assert_eq!(file.get("t99999").unwrap().len(), 1);
}

/// Opens a PyTorch file and reads every tensor; the first error as text.
fn read_all(path: &Path) -> Result<usize, String> {
    let file = PtFile::open(path).map_err(|e| e.to_string())?;
    let names: Vec<String> = file.tensors().map(|t| t.0.to_string()).collect();
    for name in &names {
        file.read(name).map_err(|e| e.to_string())?;
    }
    Ok(names.len())
}

#[test]
fn every_fault_of_a_pt_file_has_its_message_and_nothing_is_executed() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("executed");
    let cases = evil::cases(&marker);
    assert!(cases.len() >= 60, "{}", cases.len());
    let path = dir.path().join("evil.pt");
    let mut wrong = Vec::new();
    for (case, bytes, expected) in cases {
        std::fs::write(&path, bytes).unwrap();
        assert!(!marker.exists(), "{case}: was executed");
        match read_all(&path) {
            Ok(_) => wrong.push(format!("{case}: was accepted")),
            Err(text) => {
                let one_line = text.starts_with(&path.display().to_string()) && !text.contains(['\u{1b}', '\n']);
                if !one_line || !text.contains(expected) {
                    wrong.push(format!("{case}: expected {expected:?}, found {text:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn calls_beside_the_weights_are_left_out_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("executed");
    let path = dir.path().join("mixed.pt");
    std::fs::write(&path, evil::beside_weights(&marker)).unwrap();
    assert_eq!(read_all(&path), Ok(1));
    let foreign = PtFile::open(&path).unwrap().foreign();
    let expected =
        [("config", "posix.system"), ("path", "pathlib.PosixPath"), ("scores.0", "numpy.core.multiarray.scalar")];
    assert_eq!(foreign, expected.map(|(a, b)| (a.to_string(), b.to_string())));
    assert!(!marker.exists());
}

#[test]
fn folders_and_missing_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = PtFile::open(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("expected a file, found a folder"), "{error}");
    let error = PtFile::open(&dir.path().join("none.pt")).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("none.pt: cannot open"), "{error}");
}

/// A file with a few bytes changed, and perhaps its end missing.
fn damaged(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = original.len();
    let changes = prop::collection::vec((0..len, any::<u8>()), 1..6);
    (changes, prop::option::weighted(0.3, 0..len)).prop_map(move |(changes, cut)| {
        let mut bytes = original.clone();
        changes.into_iter().for_each(|(at, to)| bytes[at] = to);
        bytes.truncate(cut.unwrap_or(len));
        bytes
    })
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pt").join(name)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_pt_files_are_read_or_refused(
        bytes in prop_oneof![damaged(golden("kinds.pt")), damaged(golden("legacy.pt")), damaged(golden("named.pt"))]
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pt");
        std::fs::write(&path, bytes).unwrap();
        let _ = read_all(&path);
    }

    #[test]
    fn damaged_pickles_are_read_or_refused(pickle in damaged(evil::sound_pickle())) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pt");
        std::fs::write(&path, evil::archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 24])])).unwrap();
        let _ = read_all(&path);
    }

    #[test]
    fn safetensors_that_we_accept_others_accept(
        bytes in damaged(safetensors(&ranges(&[("a", 0, 4), ("b", 4, 12), ("c", 12, 12)]), 12))
    ) {
        if let Ok(file) = SafetensorsFile::from_bytes(Path::new("f"), bytes.clone()) {
            let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(theirs.len(), file.len());
            for tensor in file.tensors() {
                let other = theirs.tensor(tensor.name()).unwrap();
                prop_assert_eq!(other.data(), tensor.bytes());
                prop_assert_eq!(other.shape(), tensor.shape());
            }
        }
    }

    #[test]
    fn any_bytes_are_a_file_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SafetensorsFile::from_bytes(Path::new("f"), bytes);
    }
}
