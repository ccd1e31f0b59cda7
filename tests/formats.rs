//! Files written by h5py and NumPy (`tests/golden/*/make_*.py`) are read right, through every engine.

// Clippy knows tests by their attribute; here everything is a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::io::atomic::Existing::Refuse;
use perfrun::io::hdf5::{Engine, H5File, H5Float, H5Layout, H5Storage, write_f32};
use perfrun::io::npy;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn hdf5(name: &str) -> PathBuf {
    golden("hdf5").join(format!("{name}.h5"))
}

/// What `make_hdf5.py` puts at element `k`.
fn element(k: usize) -> f32 {
    k as f32 / 8.0 - 9.0
}

const SHAPE: [usize; 4] = [3, 2, 4, 6];

/// Every readable file, its number type and whether its layout is chunked.
const READABLE: [(&str, H5Float, bool); 21] = [
    ("contiguous", H5Float::F32, false),
    ("latest_contiguous", H5Float::F32, false),
    ("v108_chunked", H5Float::F32, true),
    ("chunked", H5Float::F32, true),
    ("gzip", H5Float::F32, true),
    ("gzip_shuffle", H5Float::F32, true),
    ("gzip_shuffle_fletcher", H5Float::F32, true),
    ("latest_gzip_shuffle", H5Float::F32, true),
    ("latest_single_chunk", H5Float::F32, true),
    ("latest_growing", H5Float::F32, true),
    ("latest_growing_twice", H5Float::F32, true),
    ("big_endian", H5Float::F32, false),
    ("big_endian_gzip", H5Float::F32, true),
    ("f64", H5Float::F64, false),
    ("f64_big_endian_gzip", H5Float::F64, true),
    ("f16", H5Float::F16, false),
    ("f16_gzip", H5Float::F16, true),
    ("user_block", H5Float::F32, false),
    ("compact", H5Float::F32, false),
    ("in_group", H5Float::F32, false),
    ("szip", H5Float::F32, true),
];

#[test]
fn every_layout_that_h5py_writes_is_read_whole_and_by_hyperslab() {
    for (name, dtype, chunked) in READABLE {
        let fields = H5File::open(hdf5(name)).unwrap().dataset("fields").unwrap();
        assert_eq!((fields.shape(), fields.dtype()), (SHAPE.as_slice(), dtype), "{name}");
        assert_eq!(matches!(fields.layout(), H5Layout::Chunked { .. }), chunked, "{name}: {}", fields.layout());
        assert_eq!(fields.engine(), Engine::Rust);
        let expected: Vec<f32> = (0..144).map(element).collect();
        assert_eq!(fields.read_all().unwrap(), expected, "{name}");
        let mut slab = vec![f32::NAN; 2 * 2 * 3];
        fields.read(&[1..3, 1..2, 1..3, 2..5], &mut slab).unwrap();
        let places = (1..3).flat_map(|t| (1..3).flat_map(move |y| (2..5).map(move |x| ((t * 2 + 1) * 4 + y) * 6 + x)));
        assert_eq!(slab, places.map(element).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_dataset_inside_a_group_is_found_by_its_path() {
    let file = H5File::open(hdf5("in_group")).unwrap();
    assert_eq!(file.dataset("era5/fields").unwrap().shape(), SHAPE);
    assert_eq!(file.dataset("/era5/fields").unwrap().read_all().unwrap()[143], element(143));
}

#[test]
fn chunks_that_were_never_written_are_the_fill_value() {
    let fields = H5File::open(hdf5("unwritten_chunks")).unwrap().dataset("fields").unwrap();
    let all = fields.read_all().unwrap();
    assert_eq!(all[..48], (0..48).map(element).collect::<Vec<_>>());
    assert!(all[48..].iter().all(|x| x.is_nan()));
}

#[test]
fn no_steps_are_no_numbers() {
    let fields = H5File::open(hdf5("zero_steps")).unwrap().dataset("fields").unwrap();
    assert_eq!((fields.shape(), fields.read_all().unwrap()), ([0, 2, 4, 6].as_slice(), vec![]));
}

#[cfg(feature = "hdf5")]
#[test]
fn libhdf5_reads_the_same_numbers_and_what_the_rust_reader_cannot() {
    for (name, dtype, _) in READABLE {
        let file = H5File::open_with(hdf5(name), Engine::Library).unwrap();
        let fields = match file.dataset("fields") {
            // An older library than the file's writer may say so; it must not give other numbers.
            Err(e) => {
                assert!(name.starts_with("latest") || name == "szip", "{name}: {e}");
                continue;
            }
            Ok(f) => f,
        };
        assert_eq!((fields.dtype(), fields.engine()), (dtype, Engine::Library), "{name}");
        assert_eq!(fields.read_all().unwrap(), (0..144).map(element).collect::<Vec<_>>(), "{name}");
        let mut slab = vec![0.0; 3];
        fields.read(&[2..3, 1..2, 3..4, 0..3], &mut slab).unwrap();
        assert_eq!(slab, [138, 139, 140].map(element), "{name}");
    }
    let lzf = H5File::open(hdf5("lzf")).unwrap().dataset("fields").unwrap();
    assert_eq!(
        (lzf.engine(), lzf.layout().to_string().as_str()),
        (Engine::Library, "chunks of [1, 2, 4, 6] with lzf (32000)")
    );
    assert_eq!(lzf.read_all().unwrap()[143], element(143));
}

#[cfg(not(feature = "hdf5"))]
#[test]
fn what_needs_libhdf5_names_the_cargo_feature() {
    for (name, why) in [("lzf", "unsupported filter lzf (32000)"), ("virtual", "a virtual dataset is not supported")] {
        let error = H5File::open(hdf5(name)).unwrap().dataset("fields").unwrap_err().to_string();
        let expected =
            format!("{name}.h5: fields: {why}; rebuild with the cargo feature `hdf5` to read it through libhdf5");
        assert!(error.contains(&expected), "{error}");
    }
    let error = H5File::open_with(hdf5("gzip"), Engine::Library).unwrap_err().to_string();
    assert!(error.ends_with("rebuild it with the cargo feature `hdf5`"), "{error}");
}

#[test]
fn every_npy_of_floating_point_numbers_is_read() {
    for name in ["f4", "f8", "f2", "f4_big_endian", "f8_big_endian", "f4_fortran", "f4_version_2", "f4_version_3"] {
        let array = npy::read(golden("npy").join(format!("{name}.npy"))).unwrap();
        assert_eq!(array.shape, [2, 3], "{name}");
        assert_eq!(array.dtype.to_string(), name[..2], "{name}");
        assert_eq!(array.to_f64(), [-1.0, -0.875, -0.75, -0.625, -0.5, -0.375], "{name}");
    }
    let cube = npy::read(golden("npy/f8_fortran_3d.npy")).unwrap();
    assert_eq!(cube.to_f64(), (0..24).map(|k| f64::from(k) / 8.0 - 1.0).collect::<Vec<_>>());
    let scalar = npy::read(golden("npy/scalar.npy")).unwrap();
    assert_eq!((scalar.shape.len(), scalar.to_f64()), (0, vec![2.5]));
    assert_eq!(npy::read(golden("npy/no_rows.npy")).unwrap().shape, [0, 3]);
    assert_eq!(npy::read(golden("npy/one.npy")).unwrap().into_f32(), [2.5]);
}

#[test]
fn a_written_npy_differs_from_numpys_only_in_a_comma_of_the_shape() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f4.npy");
    let values: Vec<f32> = (0..6).map(|k| k as f32 / 8.0 - 1.0).collect();
    npy::write_f32(&path, Refuse, &[2, 3], &values).unwrap();
    assert_eq!(npy::read(&path).unwrap().into_f32(), values);
    let (ours, theirs) = (std::fs::read(&path).unwrap(), std::fs::read(golden("npy/f4.npy")).unwrap());
    // Signature, version and header length; the dictionary; the numbers.
    assert_eq!((&ours[..10], &ours[128..]), (&theirs[..10], &theirs[128..]));
    let dictionary = |bytes: &[u8]| String::from_utf8(bytes[10..128].to_vec()).unwrap();
    assert_eq!(dictionary(&ours).replace("3, ), ", "3), ").trim_end(), dictionary(&theirs).trim_end());
}

/// Runs a script with h5py and gives what it prints. `PYTHON` chooses the interpreter.
fn python(script: &str, argument: &Path) -> String {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python).arg("-c").arg(script).arg(argument).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs h5py"]
fn h5py_and_numpy_read_what_is_written_here() {
    let root = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..144).map(element).collect();
    let chunk = vec![1, 2, 4, 6];
    for (name, storage) in [
        ("contiguous", H5Storage::Contiguous),
        ("gzip", H5Storage::Gzip { chunk: chunk.clone(), level: 4, shuffle: false }),
        ("shuffle", H5Storage::Gzip { chunk, level: 9, shuffle: true }),
        ("ragged", H5Storage::Gzip { chunk: vec![2, 2, 3, 4], level: 1, shuffle: true }),
    ] {
        write_f32(&root.path().join(format!("{name}.h5")), Refuse, "fields", &SHAPE, &values, &storage).unwrap();
    }
    npy::write_f32(&root.path().join("a.npy"), Refuse, &[2, 72], &values).unwrap();
    let script = "
import sys, pathlib, h5py, numpy as np
root = pathlib.Path(sys.argv[1])
expected = (np.arange(144, dtype='f4') / 8 - 9).reshape(3, 2, 4, 6)
for path in sorted(root.glob('*.h5')):
    with h5py.File(path) as f:
        d = f['fields']
        assert d.dtype == np.dtype('<f4') and (d[...] == expected).all() and (d[1:3, 1, 1:3] == expected[1:3, 1, 1:3]).all()
        print(path.stem, d.chunks, d.compression, d.compression_opts, d.shuffle)
a = np.load(root / 'a.npy')
assert a.dtype == np.dtype('<f4') and a.flags.c_contiguous and (a == expected.reshape(2, 72)).all()
";
    let expected = "contiguous None None None False\ngzip (1, 2, 4, 6) gzip 4 False\nragged (2, 2, 3, 4) gzip 1 True\nshuffle \
                    (1, 2, 4, 6) gzip 9 True\n";
    assert_eq!(python(script, root.path()), expected);
}

#[test]
#[ignore = "needs h5py"]
fn h5py_reads_the_synthetic_years_and_finds_the_documented_formula() {
    let root = tempfile::tempdir().unwrap();
    let years = SyntheticWeather { height: 16, width: 32, channels: 4, gzip: Some(4), ..Default::default() };
    years.write(root.path(), |_| {}).unwrap();
    let script = "
import sys, pathlib, h5py, numpy as np
root = pathlib.Path(sys.argv[1])
T, C, H, W = 50, 4, 16, 32
x, y = np.meshgrid(np.linspace(0, 2 * np.pi, W), np.linspace(0, 2 * np.pi, H))
c = 2 * np.pi * np.arange(C) / C
t = 2 * np.pi * np.arange(T) / T
clean = np.stack([np.stack([np.sin(x + p) * np.cos(y + p) * np.sin(q + p) for p in c]) for q in t])
files = sorted(root.glob('*/*.h5'))
noise = []
for path in files:
    with h5py.File(path) as f:
        noise.append(f['fields'][...] - clean)
noise = np.stack(noise)
assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 0.1) < 1e-3
assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.02
with h5py.File(root / 'train/weather_2010.h5') as f:
    first = f['fields'][...].astype('f8')
for name, own in ('means', first.mean((0, 2, 3))), ('stds', first.std((0, 2, 3))):
    saved = np.load(root / f'stats/global_{name}.npy')
    assert saved.shape == (1, C) and saved.dtype == np.dtype('<f4') and np.allclose(saved[0], own, rtol=1e-5, atol=1e-7)
print(*(p.relative_to(root) for p in files))
";
    let expected = "test/weather_2018.h5 test/weather_2019.h5 test/weather_2020.h5 train/weather_2010.h5 train/weather_2011.h5 \
                    train/weather_2012.h5 valid/weather_2015.h5 valid/weather_2016.h5 valid/weather_2017.h5\n";
    assert_eq!(python(script, root.path()), expected);
}
