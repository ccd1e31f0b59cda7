//! Bad HDF5 and npy files: each gives one line that names the file and what is wrong; none panics.

use std::fs;
use std::path::Path;

use perfrun::io::hdf5::H5File;
use perfrun::io::npy;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

fn hdf5(name: &str) -> Vec<u8> {
    golden(&format!("hdf5/{name}.h5"))
}

/// Opens, finds `fields` and reads all of it.
fn read_hdf5(path: &Path) -> Result<Vec<f32>, String> {
    let fields = H5File::open(path).and_then(|f| f.dataset("fields")).map_err(|e| e.to_string())?;
    fields.read_all().map_err(|e| e.to_string())
}

/// Expects of every case an error of one line that names the file first and says `expected` further on.
fn assert_errors(cases: Vec<(&str, Vec<u8>, &str)>, read: impl Fn(&Path) -> Result<(), String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad");
    let mut wrong = Vec::new();
    for (name, bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        match read(&path) {
            Ok(()) => wrong.push(format!("{name}: was read")),
            Err(e) => {
                let start = format!("{}: ", path.display());
                if !(e.starts_with(&start) && e.lines().count() == 1 && e.contains(expected) && e.len() < 500) {
                    wrong.push(format!("{name}: expected {expected}, found {e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `bytes` with the only occurrence of `old` replaced.
fn patch(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    let places: Vec<usize> = (0..bytes.len() - old.len()).filter(|&i| bytes[i..].starts_with(old)).collect();
    let [place] = places[..] else { panic!("expected one occurrence, found {places:?}") };
    bytes[place..place + new.len()].copy_from_slice(new);
    bytes
}

/// The golden file with other axes in its data space.
fn with_axes(name: &str, lengths: [u64; 4]) -> Vec<u8> {
    // A data space holds the lengths now and at most.
    let twice = |n: [u64; 4]| n.iter().chain(&n).flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    patch(hdf5(name), &twice([3, 2, 4, 6]), &twice(lengths))
}

/// The golden file with other lengths of a chunk.
fn with_chunk(lengths: [u32; 5]) -> Vec<u8> {
    let bytes = |n: [u32; 5]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    patch(hdf5("gzip"), &bytes([1, 2, 4, 6, 4]), &bytes(lengths))
}

/// The contiguous golden file with another byte in the description of IEEE f32, from its bit offset on.
fn with_float(place: usize) -> Vec<u8> {
    let ieee = [0, 0, 32, 0, 23, 8, 0, 23, 127, 0, 0, 0];
    let mut new = ieee;
    new[place] = 77;
    patch(hdf5("contiguous"), &ieee, &new)
}

fn cut(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.truncate(length);
    bytes
}

fn set(mut bytes: Vec<u8>, place: usize, value: u8) -> Vec<u8> {
    bytes[place] = value;
    bytes
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

const SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";

#[test]
fn hdf5_files_that_hold_something_else_say_what() {
    let cases = vec![
        ("integers", hdf5("integers"), "fields: expected floating-point numbers, found i32 integers"),
        ("booleans", hdf5("booleans"), "fields: expected floating-point numbers, found an enumeration"),
        ("complex", hdf5("complex"), "fields: expected floating-point numbers, found compound records"),
        ("strings", hdf5("strings"), "fields: expected floating-point numbers, found strings"),
        ("scale-offset integers", hdf5("scale_offset"), "expected floating-point numbers, found i32 integers"),
        ("bfloat16", hdf5("bfloat16"), "expected IEEE f32 or f64, found another floating-point type of 2 bytes"),
        ("f64 past f32", hdf5("f64_too_large"), "fields: an f64 value is too large for f32"),
        ("other names", hdf5("other_name"), "fields: no such dataset; the file has field, lat, more/"),
        ("a group", hdf5("group"), "fields: expected a dataset, found a group"),
        ("no dataset", hdf5("empty"), "fields: no such dataset, nor any other"),
        ("null space", hdf5("null"), "fields: its data space is null: it holds no numbers"),
        ("link to a file", hdf5("external_link"), "links to other files or to nothing are not followed"),
        ("link loop", hdf5("soft_link_loop"), "links to other files or to nothing are not followed"),
        ("link to nothing", hdf5("dangling_link"), "links to other files or to nothing are not followed"),
        ("data elsewhere", hdf5("external_data"), "fields: its numbers lie in another file, which is not followed"),
        ("never written", hdf5("huge_unwritten"), "but the file has 1400: even compressed they cannot be in it"),
        ("nothing", vec![], "expected an HDF5 file, found no HDF5 signature (the file is empty)"),
        ("text", b"fields".to_vec(), "expected an HDF5 file, found no HDF5 signature"),
        ("zip", b"PK\x03\x04aaaaaaaaaaaa".to_vec(), "found no HDF5 signature (this is a zip archive)"),
        ("netcdf", b"CDF\x01aaaaaaaaaaaa".to_vec(), "(this is NetCDF-3: convert it with nccopy -k nc4)"),
        ("grib", b"GRIBaaaaaaaaaaaa".to_vec(), "(this is GRIB: convert it first)"),
        ("gzip", b"\x1f\x8b\x08aaaaaaaaaaaa".to_vec(), "(this is gzip: unpack it first)"),
        ("npy", golden("npy/f4.npy"), "found no HDF5 signature (this is npy)"),
    ];
    assert_errors(cases, |path| read_hdf5(path).map(drop));
}

#[test]
fn damaged_hdf5_files_say_where() {
    let plain = || hdf5("contiguous");
    let (no_offset, version) = ("unsupported size of offsets", "unsupported superblock version");
    let end = "past the end of the file";
    let cases = vec![
        ("signature only", SIGNATURE.to_vec(), "expected 1 bytes at byte 8, found 0: the file is cut short"),
        ("zeros after it", join(&[SIGNATURE, &[0; 100]]), no_offset),
        ("ones after it", join(&[SIGNATURE, &[255; 100]]), version),
        ("superblock 4", set(plain(), 8, 4), version),
        ("superblock 255", set(plain(), 8, 255), version),
        ("offsets of 0 bytes", set(plain(), 13, 0), no_offset),
        ("offsets of 3 bytes", set(plain(), 13, 3), no_offset),
        ("offsets of 16 bytes", set(plain(), 13, 16), no_offset),
        ("lengths of 3 bytes", set(plain(), 14, 3), "unsupported size of lengths"),
        ("cut in the superblock", cut(plain(), 24), "expected 8 bytes at byte 24, found 0"),
        ("cut before the root", cut(plain(), 96), "expected 4 bytes at byte 96, found 0"),
        ("cut in the group", cut(plain(), 200), "the file is cut short or damaged"),
        ("cut in the header", cut(plain(), 1000), "the file is cut short or damaged"),
        ("cut before the numbers", cut(plain(), 2048), "start at byte 2048, which runs past the end of the file"),
        ("cut in the numbers", cut(plain(), 2500), end),
        ("last byte missing", cut(plain(), 2623), end),
        ("root elsewhere", set(plain(), 71, 255), "fields: "),
        ("latest, cut 1", cut(hdf5("latest_gzip_shuffle"), 48), "the file is cut short or damaged"),
        ("latest, cut 2", cut(hdf5("latest_gzip_shuffle"), 1000), "the file is cut short or damaged"),
        ("latest, cut 3", cut(hdf5("latest_gzip_shuffle"), 2448), "the file is cut short or damaged"),
        ("latest, flipped", set(hdf5("latest_contiguous"), 20, 77), "checksum mismatch"),
        ("latest, header flipped", set(hdf5("latest_contiguous"), 70, 77), "checksum mismatch"),
        ("gzip, cut 1", cut(hdf5("gzip"), 2000), "the file is cut short or damaged"),
        ("gzip, cut 2", cut(hdf5("gzip"), 5385), "the file is cut short or damaged"),
        ("gzip, chunk flipped", set(hdf5("gzip"), 5100, 0xFF), "malformed HDF5: "),
        ("shuffle, chunk flipped", set(hdf5("gzip_shuffle"), 5420, 0xFF), "malformed HDF5: "),
        ("fletcher, sum flipped", set(hdf5("gzip_shuffle_fletcher"), 5334, 0xFF), "malformed HDF5: "),
    ];
    assert_errors(cases, |path| read_hdf5(path).map(drop));
}

#[test]
fn hdf5_shapes_and_types_that_cannot_be_are_refused_before_memory_is_asked_for() {
    let (says, address) = ("but the file says 576", "has more bytes than the machine can address");
    let compressed = "even compressed they cannot be in it (were all chunks written?)";
    let float = "fields: expected IEEE f32 or f64, found another floating-point type of 4 bytes";
    let cases = vec![
        ("more steps", with_axes("contiguous", [5, 2, 4, 6]), says),
        ("fewer columns", with_axes("contiguous", [3, 2, 4, 5]), says),
        ("no steps", with_axes("contiguous", [0, 2, 4, 6]), says),
        ("2^40 steps", with_axes("contiguous", [1 << 40, 2, 4, 6]), says),
        ("2^64 - 1 steps", with_axes("contiguous", [u64::MAX, 2, 4, 6]), address),
        ("2^80 numbers", with_axes("contiguous", [1 << 20; 4]), address),
        ("2^64 numbers", with_axes("contiguous", [1 << 16; 4]), address),
        ("gzip, 2^40 steps", with_axes("gzip", [1 << 40, 2, 4, 6]), compressed),
        ("gzip, 2^50 columns", with_axes("gzip", [3, 2, 4, 1 << 50]), compressed),
        ("gzip, 2^64 - 1 steps", with_axes("gzip", [u64::MAX, 2, 4, 6]), address),
        ("gzip, 2^80 numbers", with_axes("gzip", [1 << 20; 4]), address),
        ("chunk of no steps", with_chunk([0, 2, 4, 6, 4]), "malformed HDF5: "),
        ("chunk of 2^32 - 1 steps", with_chunk([u32::MAX, 2, 4, 6, 4]), "malformed HDF5: "),
        ("chunk of 2^28 columns", with_chunk([1, 2, 4, 1 << 28, 4]), "malformed HDF5: resource limit: "),
        ("chunk of 2^62 numbers", with_chunk([1 << 31, 1 << 31, 4, 6, 4]), "malformed HDF5: "),
        ("chunk of twice the steps", with_chunk([2, 2, 4, 6, 4]), "malformed HDF5: "),
        ("bit offset", with_float(0), float),
        ("precision", with_float(2), float),
        ("exponent place", with_float(4), float),
        ("exponent bits", with_float(5), float),
        ("mantissa place", with_float(6), float),
        ("mantissa bits", with_float(7), float),
        ("bias", with_float(8), float),
    ];
    assert_errors(cases, |path| read_hdf5(path).map(drop));
}

/// An npy file of this version, header and data.
fn npy_file(version: [u8; 2], header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u32).to_le_bytes();
    let length = if version[0] == 1 { &length[..2] } else { &length[..] };
    join(&[b"\x93NUMPY", &version, length, header.as_bytes(), data])
}

/// A header of version 1 with these three values, and 24 bytes of data.
fn described(descr: &str, fortran: &str, shape: &str) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    npy_file([1, 0], &header, &[0; 24])
}

fn read_npy(path: &Path) -> Result<(), String> {
    npy::read(path).map(drop).map_err(|e| e.to_string())
}

#[test]
fn npy_files_of_other_types_say_which() {
    let numbers = "expected numbers of type f4 or f8, found ";
    let pickled = "found Python objects: they are pickled, and never read";
    let bad_type = "malformed npy header: invalid type string";
    let cases = vec![
        ("i4", golden("npy/i4.npy"), "found <i4: convert with array.astype('f4')"),
        ("bool", golden("npy/bool.npy"), "found |b1: "),
        ("c8", golden("npy/c8.npy"), "found <c8: "),
        ("f16", golden("npy/f16_bytes.npy"), "found <f16: "),
        ("strings", golden("npy/strings.npy"), "found <U3: "),
        ("dates", golden("npy/dates.npy"), "found <M8[D]: "),
        ("record", golden("npy/record.npy"), "found a structured type [('mean', '<f4')"),
        ("objects", golden("npy/objects.npy"), pickled),
        ("npz", golden("npy/archive.npz"), "(a zip archive: .npz is not read, save one array with numpy.save)"),
        ("i8", described("'<i8'", "False", "(3,)"), numbers),
        ("u4", described("'>u4'", "False", "(6,)"), numbers),
        ("V4", described("'|V4'", "False", "(6,)"), numbers),
        ("O", described("'|O'", "False", "(6,)"), pickled),
        ("one field", described("[('a', '<f4')]", "False", "(6,)"), "found a structured type"),
        ("f3", described("'<f3'", "False", "(2, 3)"), bad_type),
        ("f0", described("'<f0'", "False", "(2, 3)"), bad_type),
        ("no byte order", described("'f4'", "False", "(2, 3)"), bad_type),
        ("byte order |", described("'|f4'", "False", "(2, 3)"), bad_type),
        ("unknown letter", described("'<q4'", "False", "(2, 3)"), bad_type),
        ("empty type", described("''", "False", "(2, 3)"), bad_type),
        ("type too large", described("'<f99999999999999999999'", "False", "(2, 3)"), bad_type),
        ("number as type", described("4", "False", "(2, 3)"), "malformed npy header: must be string or list"),
        ("bytes as type", described("b'<f4'", "False", "(2, 3)"), "malformed npy header: must be string or list"),
    ];
    assert_errors(cases, read_npy);
}

#[test]
fn npy_shapes_that_do_not_fit_the_file_are_refused() {
    let f4 = |shape: &str| described("'<f4'", "False", shape);
    let (integer, list) = ("dimension must be an integer", "shape must be list or tuple");
    let cases = vec![
        ("larger", f4("(2, 4)"), "shape [2, 4] of f4 needs 32 bytes of data, found 24: the file is cut short"),
        ("smaller", f4("(2, 2)"), "needs 16 bytes of data, found 24"),
        ("scalar", f4("()"), "needs 4 bytes of data, found 24"),
        ("nothing", f4("(0, 6)"), "needs 0 bytes of data, found 24"),
        ("f8", described("'<f8'", "False", "(2, 3)"), "needs 48 bytes of data, found 24"),
        ("f2", described("'<f2'", "False", "(2, 3)"), "needs 12 bytes of data, found 24"),
        ("2^41", f4("(2, 3, 99999999999)"), "needs 2399999999976 bytes of data, found 24"),
        ("2^64", f4("(4294967296, 4294967296)"), "npy header: the shape has more elements than the 24 bytes"),
        ("2^64 in one", f4("(18446744073709551616,)"), "npy header: a number in it does not fit 64 bits"),
        ("0 and 2^65", f4("(0, 9223372036854775808, 4)"), "npy header: the shape has more elements"),
        ("negative", f4("(-2, -3)"), "dimension cannot be negative"),
        ("float", f4("(2.0, 3)"), integer),
        ("string", f4("('2', 3)"), integer),
        ("bool", f4("(True, 6)"), integer),
        ("no tuple", f4("6"), list),
        ("none", f4("None"), list),
        ("order as number", described("'<f4'", "0", "(2, 3)"), "'fortran_order' value is not a bool"),
        ("order as string", described("'<f4'", "'False'", "(2, 3)"), "'fortran_order' value is not a bool"),
    ];
    assert_errors(cases, read_npy);
}

#[test]
fn npy_headers_that_are_no_description_are_refused_and_never_run() {
    let text = |header: &str| npy_file([1, 0], header, &[0; 24]);
    let (python, missing) = ("could not parse Python expression: syntax error", "dict is missing key");
    let version = "npy version: expected 1.0, 2.0 or 3.0, found ";
    let f4 = || golden("npy/f4.npy");
    let call = "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), 'x': __import__('os')}";
    let cases = vec![
        ("empty header", text(""), python),
        ("brace", text("{"), python),
        ("call", text(call), python),
        ("unclosed", described("'<f4'", "False", "(2, 3"), python),
        ("product", described("'<f4'", "False", "2*3"), python),
        ("trailing", text("{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} x"), python),
        ("not ASCII", text("é"), python),
        ("minus signs", text(&"-".repeat(9000)), python),
        ("many strings", text(&"'a'".repeat(3000)), python),
        ("list", text("[]"), "expected a python dict literal"),
        ("none", text("None"), "expected a python dict literal"),
        ("no keys", text("{}"), missing),
        ("no order", text("{'descr': '<f4', 'shape': (6,)}"), missing),
        ("no shape", text("{'descr': '<f4', 'fortran_order': False}"), missing),
        ("number as key", text("{1: 2}"), "key is not string"),
        ("brackets", text(&"[".repeat(9000)), "brackets are nested deeper than in any array description"),
        ("not UTF-8", join(&[b"\x93NUMPY\x01\x00\x04\x00", &[0xFF; 4], &[0; 24]]), "could not parse utf-8"),
        ("version 0.0", npy_file([0, 0], "{}", &[]), version),
        ("version 1.1", npy_file([1, 1], "{}", &[]), "found 1.1"),
        ("version 4.0", npy_file([4, 0], "{}", &[]), version),
        ("4 GiB of header", join(&[b"\x93NUMPY\x02\x00", &[0xFF; 4], &[b' '; 100]]), "expected at most 10000 bytes"),
        ("header past the end", join(&[b"\x93NUMPY\x01\x00\x00\x10", &[b' '; 100]]), "expected 4096 bytes, found 100"),
        ("nothing", vec![], "found no npy signature (the file is empty)"),
        ("text", b"1.0 2.0".to_vec(), "expected an npy file, found no npy signature"),
        ("pickle", b"\x80\x04K\x01.".to_vec(), "(a pickle, which is never read: save with numpy.save)"),
        ("cut in the signature", cut(f4(), 5), "found no npy signature"),
        ("cut in the version", cut(f4(), 7), "npy header: expected at least 12 bytes, found 7"),
        ("cut in the length", cut(f4(), 9), "npy header: expected at least 12 bytes, found 9"),
        ("cut in the header", cut(f4(), 100), "npy header: expected 118 bytes, found 90: the file is cut short"),
        ("cut in the data", cut(f4(), 151), "needs 24 bytes of data, found 23"),
    ];
    assert_errors(cases, read_npy);
}

/// The files that mutations start from: every index, filter and layout.
const SEEDS: [&str; 12] = [
    "contiguous",
    "latest_contiguous",
    "v108_chunked",
    "chunked",
    "gzip",
    "gzip_shuffle_fletcher",
    "latest_gzip_shuffle",
    "latest_single_chunk",
    "latest_growing",
    "latest_growing_twice",
    "szip",
    "compact",
];

fn config() -> ProptestConfig {
    // The same inputs in every run; more with PROPTEST_CASES.
    ProptestConfig { rng_seed: RngSeed::Fixed(20), failure_persistence: None, ..ProptestConfig::default() }
}

/// `bytes` with some of them replaced, and perhaps cut.
fn mutate(mut bytes: Vec<u8>, changes: &[(usize, u8)], keep: Option<usize>) -> Vec<u8> {
    for &(place, value) in changes {
        let length = bytes.len();
        bytes[place % length] = value;
    }
    let length = keep.map_or(bytes.len(), |k| k % (bytes.len() + 1));
    cut(bytes, length)
}

/// Mostly values that lengths, counts and addresses are broken by.
fn value() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0_u8), Just(1), Just(0x7F), Just(0x80), Just(0xFF), any::<u8>()]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_mutation_of_an_hdf5_file_panics(
        seed in 0..SEEDS.len(),
        changes in prop::collection::vec((any::<usize>(), value()), 1..6),
        keep in prop::option::weighted(0.2, any::<usize>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mutated.h5");
        fs::write(&path, mutate(hdf5(SEEDS[seed]), &changes, keep)).unwrap();
        if let Err(e) = read_hdf5(&path) {
            prop_assert!(e.lines().count() == 1 && e.contains("mutated.h5: "), "{e}");
        }
    }

    #[test]
    fn no_mutation_of_an_npy_file_panics(
        changes in prop::collection::vec((any::<usize>(), value()), 0..6),
        keep in prop::option::weighted(0.2, any::<usize>()),
    ) {
        let bytes = mutate(golden("npy/f8_fortran_3d.npy"), &changes, keep);
        if let Err(e) = npy::parse(&bytes) {
            prop_assert_eq!(e.lines().count(), 1, "{}", e);
        }
    }

    #[test]
    fn no_bytes_after_a_signature_panic(bytes in prop::collection::vec(value(), 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("random.h5");
        fs::write(&path, join(&[SIGNATURE, &bytes])).unwrap();
        prop_assert!(read_hdf5(&path).is_err());
        prop_assert!(npy::parse(&join(&[b"\x93NUMPY\x01\x00", &bytes])).is_err());
    }
}
