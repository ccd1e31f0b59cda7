//! PyTorch files that are wrong in one way each, byte by byte.

use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// An archive of stored entries.
pub(crate) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// An archive with this pickle and a storage of 24 bytes.
fn pickled(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24]), ("a/version", b"3\n")])
}

fn text(t: &str) -> Vec<u8> {
    [b"X", &(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat()
}

fn int(n: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &n.to_le_bytes()].concat()
}

/// A persistent id of a storage.
fn storage(class: &str, key: &str, numel: i64) -> Vec<u8> {
    let class = format!("c{class}\n").replace('.', "\n");
    [b"(".as_slice(), &text("storage"), class.as_bytes(), &text(key), &text("cpu"), &int(numel), b"tQ"].concat()
}

fn tuple(numbers: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), numbers.iter().flat_map(|n| int(*n)).collect(), b"t".to_vec()].concat()
}

/// A tensor over a storage.
fn tensor(storage: &[u8], offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let hooks = b"\x89ccollections\nOrderedDict\n)RtR";
    let call = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    [call.as_slice(), storage, &int(offset), &tuple(shape), &tuple(strides), hooks].concat()
}

/// The pickle of `{"w": value}`.
fn dict(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}(".as_slice(), &text("w"), value, b"u."].concat()
}

/// The pickle of a state dict of one tensor of six floats.
pub(crate) fn sound_pickle() -> Vec<u8> {
    dict(&tensor(&storage("torch.FloatStorage", "0", 6), 0, &[2, 3], &[3, 1]))
}

/// A file with one tensor over a storage of six floats.
fn tensor_file(storage: &[u8], offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    pickled(&dict(&tensor(storage, offset, shape, strides)))
}

/// The pickle of a call of `module.name` with one text.
fn call(module: &str, name: &str, argument: &str) -> Vec<u8> {
    [format!("\u{80}\u{2}c{module}\n{name}\n").chars().map(|c| c as u8).collect(), text(argument), b"\x85R.".to_vec()]
        .concat()
}

/// A sound tensor with calls beside it, as a checkpoint with a configuration object has them.
pub(crate) fn beside_weights(marker: &Path) -> Vec<u8> {
    let inner = |pickle: Vec<u8>| pickle[2..pickle.len() - 1].to_vec();
    let entries = [
        text("config"),
        inner(call("posix", "system", &format!("touch {}", marker.display()))),
        text("path"),
        inner(call("pathlib", "PosixPath", "/tmp")),
        text("scores"),
        [b"](".to_vec(), inner(call("numpy.core.multiarray", "scalar", "x")), b"e".to_vec()].concat(),
    ];
    let rest = sound_pickle();
    pickled(&[b"\x80\x02}(".as_slice(), &entries.concat(), &rest[4..]].concat())
}

/// Replaces a number of two bytes at `offset` behind every occurrence of `signature`.
fn patched(mut bytes: Vec<u8>, signature: &[u8; 4], offset: usize, value: u16) -> Vec<u8> {
    let found: Vec<_> = (0..bytes.len() - 4).filter(|&i| bytes[i..i + 4] == *signature).collect();
    for at in found {
        bytes[at + offset..at + offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";

type Case = (&'static str, Vec<u8>, &'static str);

/// Every case: what it is, the file, and what the message must say.
pub(crate) fn cases(marker: &Path) -> Vec<Case> {
    let mut all = calls(marker);
    all.extend(machine());
    all.extend(tensors());
    all.extend(containers());
    all
}

/// Pickles that would run something.
fn calls(marker: &Path) -> Vec<Case> {
    let touch = format!("touch {}", marker.display());
    let python = format!("open({:?}, 'w')", marker.display().to_string());
    let refused = "Expected a dictionary at the root of the PyTorch file, found ";
    let stack_global =
        [b"\x80\x04".to_vec(), text("os"), text("system"), b"\x93".to_vec(), text(&touch), b"\x85R.".to_vec()];
    let new =
        |op: &[u8]| [b"\x80\x02csubprocess\nPopen\n".to_vec(), text(&touch), b"\x85".to_vec(), op.to_vec()].concat();
    let inst = [b"\x80\x02(".to_vec(), text(&touch), b"ios\nsystem\n.".to_vec()].concat();
    let obj = [b"\x80\x02(cos\nsystem\n".to_vec(), text(&touch), b"o.".to_vec()].concat();
    let reduce_tensor =
        dict(&[b"cevil\nTensor\n(".to_vec(), storage("torch.FloatStorage", "0", 6), b"tR".to_vec()].concat());
    let build = [b"\x80\x02cevil\nThing\n)\x81}(".to_vec(), text("x"), text(&touch), b"ub.".to_vec()].concat();
    vec![
        ("os.system", pickled(&call("os", "system", &touch)), "found os.system"),
        ("posix.system", pickled(&call("posix", "system", &touch)), "found posix.system"),
        ("eval", pickled(&call("builtins", "eval", &python)), "found builtins.eval"),
        ("exec", pickled(&call("builtins", "exec", &python)), "found builtins.exec"),
        ("__import__", pickled(&call("__builtin__", "__import__", "os")), refused),
        ("runpy", pickled(&call("runpy", "_run_code", &python)), refused),
        ("subprocess", pickled(&call("subprocess", "check_output", &touch)), refused),
        ("getattr", pickled(&call("builtins", "getattr", "x")), "found builtins.getattr"),
        ("torch.load", pickled(&call("torch.serialization", "load", "/etc/passwd")), refused),
        ("stack global", pickled(&stack_global.concat()), "found os.system"),
        ("newobj", pickled(&new(b"\x81.")), "found subprocess.Popen"),
        ("newobj_ex", pickled(&new(b"}\x92.")), "found subprocess.Popen"),
        ("inst", pickled(&inst), "makes an object of a class, which torch.save never does in this way"),
        ("obj", pickled(&obj), "makes an object of a class, which torch.save never does in this way"),
        ("build", pickled(&build), "found evil.Thing"),
        ("a call with a storage", pickled(&reduce_tensor), "unsupported Python type 'evil.Tensor'"),
        ("a bare pickle", call("os", "system", &touch), "found os.system"),
        ("name with an escape", pickled(&call("\\u001b", "x\u{1b}[31m", "")), refused),
    ]
}

/// Pickles that the stack machine cannot or must not run.
fn machine() -> Vec<Case> {
    let of = |pickle: &[u8]| pickled(&[b"\x80\x02", pickle].concat());
    let justify = "makes more objects than the file's size can justify";
    let doubling =
        [b"]".to_vec(), b"q\x01(h\x01h\x01h\x01h\x01h\x01h\x01h\x01h\x01h\x01h\x01t".repeat(12), b".".to_vec()]
            .concat();
    let dup = [b"]".to_vec(), b"2\x86".repeat(60), b".".to_vec()].concat();
    let long = [text(&"x".repeat(60_000)), b"q\x01".to_vec(), b"h\x01".repeat(2000), b".".to_vec()].concat();
    let deep = [b"]".repeat(100_000), b"a".repeat(99_999), b".".to_vec()].concat();
    let tuples = [b")".to_vec(), b"\x85".repeat(100_000), b".".to_vec()].concat();
    vec![
        ("extension 1", of(b"\x82\x01."), "opcode 0x82 needs a program beside the file"),
        ("extension 2", of(b"\x83\x01\0."), "opcode 0x83 needs a program beside the file"),
        ("extension 4", of(b"\x84\x01\0\0\0."), "opcode 0x84 needs a program beside the file"),
        ("buffer", of(b"\x97."), "opcode 0x97 needs a program beside the file"),
        ("no opcode", of(b"\xff."), "a/data.pkl: pickle, byte 2: 0xff is no opcode"),
        ("empty pickle", pickled(b""), "pickle, byte 0: ends without a stop: truncated"),
        ("no stop", of(b"}"), "pickle, byte 3: ends without a stop: truncated"),
        ("nothing to give", of(b"."), "byte 2: takes from an empty stack"),
        ("text of 4 GiB", of(b"X\xff\xff\xff\xff."), "byte 2: asks for 4294967295 bytes, 1 are left"),
        (
            "bytes of 8 EiB",
            of(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."),
            "asks for 9223372036854775807 bytes, 1 are left",
        ),
        ("integer of 2 GiB", of(b"\x8b\0\0\0\x80."), "asks for 2147483648 bytes"),
        ("line without an end", of(b"cos"), "a line without an end"),
        ("memo that is not there", of(b"h\x07."), "memo 7 was never set"),
        ("memo of text", of(b"gx\n."), "expected a number"),
        ("memo bomb", of(&doubling), justify),
        ("dup bomb", of(&dup), justify),
        ("text copied 2000 times", of(&long), justify),
        ("100000 lists in lists", of(&deep), "pickle nesting exceeds 1000 levels"),
        ("100000 tuples in tuples", of(&tuples), "pickle nesting exceeds 1000 levels"),
        ("append to nothing", of(b"Na."), "takes from an empty stack"),
        ("append to a dict", of(b"}Na."), "unexpected pickle opcode Append"),
        ("item into a tuple", of(b")K\x01K\x02s."), "unexpected pickle opcode SetItem"),
        ("item into a tensor", of(b"NK\x01K\x02s."), "unexpected pickle opcode SetItem"),
        ("tuple without a mark", of(b"Nt."), "there is no mark"),
        ("odd dict", of(b"}(K\x01u."), "dict items must come in key/value pairs"),
        ("list as a key", of(b"}(]K\x01u."), "dict key must be a str or int, got list"),
        ("bytes after the stop", of(b"}.garbage"), "7 bytes follow the pickle"),
        ("protocol 9", pickled(b"\x80\x09}."), "pickle protocol version: 9"),
        ("text that is not UTF-8", of(b"X\x01\0\0\0\xff."), "Invalid UTF-8"),
        ("a list at the root", of(b"]."), "Expected a dictionary at the root of the PyTorch file, found list"),
        ("None at the root", of(b"N."), "found None"),
    ]
}

/// Tensors that do not fit their storages.
fn tensors() -> Vec<Case> {
    let floats = storage("torch.FloatStorage", "0", 6);
    let float_file = |offset, shape: &[i64], strides: &[i64]| tensor_file(&floats, offset, shape, strides);
    let on = |class: &str, key: &str, numel| tensor_file(&storage(class, key, numel), 0, &[1], &[1]);
    let pid = |pickle: &[u8]| pickled(&dict(&[pickle, b"Q"].concat()));
    let wrong_tag =
        [b"(".to_vec(), text("file"), text("/etc/passwd"), text("0"), text("cpu"), int(1), b"t".to_vec()].concat();
    let sparse =
        [b"ctorch._utils\n_rebuild_sparse_tensor\n(".to_vec(), tensor(&floats, 0, &[6], &[1]), b"tR".to_vec()].concat();
    vec![
        ("missing storage", on("torch.FloatStorage", "7", 6), "evil.pt: w: "),
        ("path as a storage key", on("torch.FloatStorage", "../../../etc/passwd", 6), "not found in archive"),
        (
            "storage longer than its entry",
            tensor_file(&storage("torch.FloatStorage", "0", 60), 0, &[60], &[1]),
            "only 6 are available",
        ),
        ("storage a little longer", tensor_file(&storage("torch.FloatStorage", "0", 8), 0, &[8], &[1]), "evil.pt: w: "),
        ("2^62 elements", on("torch.DoubleStorage", "0", 1 << 62), "byte length overflows usize"),
        ("negative elements", on("torch.FloatStorage", "0", -1), "storage element count must be non-negative, got -1"),
        ("view beyond", float_file(4, &[3], &[1]), "invalid data in pickle file"),
        ("negative offset", float_file(-1, &[1], &[1]), "storage offset must be non-negative, got -1"),
        ("negative axis", float_file(0, &[-1], &[1]), "shape must be non-negative, got -1"),
        ("negative stride", float_file(5, &[2], &[-1]), "stride must be non-negative, got -1"),
        ("shape overflows", float_file(0, &[1 << 40, 1 << 40], &[0, 0]), "overflows usize"),
        ("stride overflows", float_file(0, &[3], &[i64::MAX]), "needs 18446744073709551615 elements"),
        ("strides of another rank", float_file(0, &[2, 3], &[1]), "stride rank 1 does not match shape rank 2"),
        (
            "one element two billion times",
            float_file(0, &[2_000_000_000], &[0]),
            "w: 8000000000 bytes are more than the file's",
        ),
        ("64 GiB by stride 0", float_file(0, &[1 << 34], &[0]), "pickle: "),
        ("quantised", on("torch.QInt8Storage", "0", 6), "unsupported Python type 'torch.QInt8Storage'"),
        ("complex", on("torch.ComplexFloatStorage", "0", 3), "unsupported Python type"),
        ("sparse", pickled(&dict(&sparse)), "unsupported Python type 'torch._utils._rebuild_sparse_tensor'"),
        ("persistent id is text", pid(&text("0")), "persistent id must be a tuple, got str"),
        ("persistent id of another kind", pid(&wrong_tag), "persistent id tag must be 'storage'"),
        ("persistent id of two", pid(&tuple(&[1, 2])), "storage persistent id has 2 fields"),
        ("storages without an archive", sound_pickle(), "tensors can only be loaded from a PyTorch checkpoint file"),
    ]
}

/// Archives and other containers that are wrong.
fn containers() -> Vec<Case> {
    let sound = pickled(&sound_pickle());
    let with =
        |name: &str, bytes: &[u8]| archive(&[("a/data.pkl", &sound_pickle()), ("a/data/0", &[0; 24]), (name, bytes)]);
    let both = |offset: usize, value| patched(patched(sound.clone(), LOCAL, offset, value), CENTRAL, offset + 2, value);
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let mut flipped = sound.clone();
    let at = sound.windows(24).position(|w| w == [0; 24]).unwrap();
    flipped[at + 5] ^= 1;
    let doubled = String::from_utf8_lossy(b"a/data/1").into_owned();
    let mut twice = archive(&[("a/data.pkl", &sound_pickle()), ("a/data/0", &[0; 24]), (&doubled, &[1; 24])]);
    let names: Vec<_> = (0..twice.len() - 8).filter(|&i| &twice[i..i + 8] == b"a/data/1").collect();
    names.iter().for_each(|&i| twice[i + 7] = b'0');
    let legacy = |version: u16, little: u8| {
        let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M".to_vec();
        let info =
            [b".\x80\x02}(".to_vec(), text("little_endian"), vec![little], b"u.\x80\x02}.\x80\x02].".to_vec()].concat();
        [head, version.to_le_bytes().to_vec(), info].concat()
    };
    let old = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pt/legacy.pt")).unwrap();
    vec![
        ("empty file", vec![], "expected a zip archive or a pickle, as torch.save writes them"),
        ("text", b"hello".to_vec(), "expected a zip archive or a pickle"),
        ("safetensors", [&128u64.to_le_bytes()[..], b"{", &[b' '; 200]].concat(), "expected a zip archive or a pickle"),
        ("tar", tar, "a tar archive of PyTorch before 0.1.10: load it with PyTorch and save it again"),
        ("zip of nothing else", archive(&[("readme", b"hi")]), "expected an archive with data.pkl"),
        ("zip cut in half", sound[..sound.len() / 2].to_vec(), "zip: "),
        ("zip without its end", sound[..sound.len() - 22].to_vec(), "zip: "),
        ("compressed", both(8, 8), "is compressed, which torch.save never does"),
        ("encrypted", both(6, 1), "is encrypted"),
        ("sizes beyond the file", patched(sound.clone(), CENTRAL, 22, 0xffff), "zip"),
        ("lengths that differ", patched(sound.clone(), CENTRAL, 20, 7), "is compressed"),
        ("name twice", twice, "twice"),
        ("TorchScript", with("a/constants.pkl", b"\x80\x02)."), "a TorchScript archive: export its state_dict"),
        ("big-endian", with("a/byteorder", b"big"), "Big-endian PyTorch files are not supported"),
        ("unknown byte order", with("a/byteorder", b"middle"), "Unrecognized byteorder entry 'middle'"),
        ("flipped bit in a storage", flipped, "Invalid checksum"),
        ("legacy version 1002", legacy(1002, 0x88), "Unsupported legacy protocol version Int(1002), expected 1001"),
        ("legacy big-endian", legacy(1001, 0x89), "Big-endian PyTorch files are not supported"),
        ("legacy without storages", old[..old.len() - 100].to_vec(), "extends beyond the end of the file"),
        ("legacy cut in its pickle", old[..200].to_vec(), "pickle, byte"),
    ]
}
