//! The table over a runtime without a device, tests/golden/fake_hip.c, and over a real one where it is installed.

use std::sync::Arc;

use tempfile::TempDir;

use super::{Hip, NAMES, Runtime};
use crate::backend::gpu::driver::{Driver, Function, Launch, MapType, Param, Stream, Swizzle, TensorMapSpec};
use crate::backend::gpu::image::small;
use crate::backend::gpu::library::compiled;
use crate::error::{Error, Result};

fn runtime(definitions: &[&str]) -> (TempDir, Result<Runtime>) {
    let (dir, library) = compiled("fake_hip.c", definitions);
    (dir, Runtime::open(&[library]))
}

fn device(definitions: &[&str]) -> Hip {
    Hip::open(Arc::new(runtime(definitions).1.unwrap()), 0).unwrap()
}

/// A code object's header for gfx90a.
fn code() -> Vec<u8> {
    small(224, 64, 0x53f)
}

fn function(hip: &Hip, name: &str) -> Function {
    hip.function(hip.load(&code()).unwrap(), name).unwrap()
}

fn params(at: u64, n: i32) -> [Param; 2] {
    [Param::new(at.to_le_bytes()), Param::new(n.to_le_bytes())]
}

#[test]
fn the_architecture_is_read_from_the_struct_of_either_version() {
    assert_eq!(device(&[]).info().arch.to_string(), "gfx90a");
    let six = device(&["-DR0600", "-DVERSION=60200000"]);
    let info = six.info();
    assert_eq!((info.arch.to_string().as_str(), info.driver.as_str(), info.warp), ("gfx942", "HIP 6.2", 64));
    assert_eq!((info.shared_bytes, info.max_shared_bytes, info.processors), (65536, 65536, 110));
    assert!(!info.has_clusters);
}

#[test]
fn a_runtime_that_is_too_old_is_told_with_both_versions() {
    let text = runtime(&["-DVERSION=40300000"]).1.unwrap_err().to_string();
    assert!(text.contains("expected HIP 5.2 or later, found HIP 4.3; install a newer ROCm"), "{text}");
}

#[test]
fn a_runtime_without_devices_opens_and_says_so_for_each() {
    // HIP 5 and HIP 6 say it with different numbers.
    for definitions in [["-DDEVICES=0", "-DINIT=101"], ["-DDEVICES=0", "-DINIT=100"]] {
        let runtime = Arc::new(runtime(&definitions).1.unwrap());
        let text = Hip::open(runtime, 0).unwrap_err().to_string();
        assert!(text.starts_with("hip:0: cannot open: the runtime finds no device here; see rocminfo"), "{text}");
    }
    let two = Arc::new(runtime(&[]).1.unwrap());
    let text = Hip::open(two, 7).unwrap_err().to_string();
    assert_eq!(text, "hip:7: cannot open: this machine has 2 HIP devices, hip:0 to hip:1");
}

#[test]
#[ignore = "needs libamdhip64: see ci/install"]
fn the_installed_hip_runtime_says_that_there_is_no_device() {
    let runtime = Runtime::open(&NAMES).map_err(|e| format!("{e}; ci/install brings it"));
    let runtime = Arc::new(runtime.unwrap());
    if runtime.devices() == 0 {
        let error = Hip::open(runtime, 0).unwrap_err();
        assert!(matches!(error, Error::Device(_)));
        assert!(error.to_string().starts_with("hip:0: cannot open: the runtime finds no device here"), "{error}");
    } else {
        assert!(!Hip::open(runtime, 0).unwrap().info().arch.is_nvidia());
    }
}

#[test]
fn what_is_written_is_read_and_a_kernel_gets_its_arguments() {
    let hip = device(&["-DCOOPERATIVE"]);
    let stream = hip.create_stream().unwrap();
    let at = hip.alloc(16, stream).unwrap();
    hip.fill(at, 0, 16, stream).unwrap();
    hip.write(at, &2.0f32.to_le_bytes(), stream).unwrap();
    hip.copy(at + 4, at, 8, stream).unwrap();
    let add = function(&hip, "add_fwd");
    hip.launch(add, &Launch::grid([4, 3, 2], [64, 2, 1]).with_shared(60_000), &params(at, 3), stream).unwrap();
    assert_eq!(hip.runtime.says("fake_launched"), "4 3 2 block 64 2 1 shared 60000");
    let mut bytes = [0; 16];
    hip.read(&mut bytes, at, stream).unwrap();
    let floats: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(floats, [3.0, 3.0, 1.0, 0.0]);
    hip.launch(add, &Launch::linear(2, 64).cooperative(), &params(at, 1), stream).unwrap();
    assert!(hip.runtime.says("fake_launched").ends_with(" cooperative"));
    hip.free(at, stream).unwrap();
    assert_eq!(hip.memory().unwrap(), (64 << 20, 64 << 20));
}

#[test]
fn what_amd_s_devices_do_not_have_is_refused_in_words() {
    let hip = device(&[]);
    let add = function(&hip, "add_fwd");
    let launch = |launch: Launch| hip.launch(add, &launch, &params(0, 0), Stream::DEFAULT).unwrap_err().to_string();
    assert!(launch(Launch::linear(4, 64).in_clusters([2, 1, 1])).ends_with("(gfx90a) has no clusters of blocks"));
    assert!(launch(Launch::linear(4, 64).cooperative()).contains("cannot hold all blocks of a grid at once"));
    assert!(launch(Launch::linear(1, 64).with_shared(65_000)).contains("expected at most 65536 bytes a block"));
    let spec = TensorMapSpec {
        dtype: MapType::F32,
        address: 0,
        dims: vec![64],
        strides: vec![],
        box_dims: vec![64],
        swizzle: Swizzle::None,
        is_nan_filled: false,
    };
    assert_eq!(hip.tensor_map(&spec).unwrap_err().to_string(), "hip:0: tensor map: AMD's devices have none");
    let text = hip.load(b".version 8.0\n.target sm_80\n").unwrap_err().to_string();
    assert_eq!(text, "hip:0: load: expected code for gfx90a, found PTX text; compile it for this device");
    assert!(hip.load(&small(224, 64, 0x54c)).unwrap_err().to_string().contains("found gfx942"));
}

#[test]
fn memory_that_is_not_there_is_told_with_what_is() {
    let hip = device(&["-DMEMORY=4096"]);
    let error = hip.alloc(1 << 30, Stream::DEFAULT).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory(_)));
    let text = error.to_string();
    assert!(text.starts_with("hip:0: out of memory: asked 1073741824 bytes, free 4096 of 4096"), "{text}");
    hip.alloc(1024, Stream::DEFAULT).unwrap();
}

#[test]
fn failures_name_call_kernel_and_code_and_a_fault_ends_the_device() {
    let hip = device(&[]);
    let run = |name| hip.launch(function(&hip, name), &Launch::linear(1, 64), &params(0, 0), Stream::DEFAULT);
    assert_eq!(
        run("refuse_fwd").unwrap_err().to_string(),
        "hip:0: hipModuleLaunchKernel refuse_fwd: 701 hipErrorLaunchOutOfResources"
    );
    run("fault_fwd").unwrap();
    let first = hip.synchronize(Stream::DEFAULT).unwrap_err().to_string();
    assert!(
        first.starts_with("hip:0: hipStreamSynchronize: 700 hipErrorIllegalAddress (last launch: fault_fwd"),
        "{first}"
    );
    let later = hip.alloc(16, Stream::DEFAULT).unwrap_err().to_string();
    assert!(later.ends_with("; start the process again"), "{later}");
    let mut marked = code();
    marked[15] = 1;
    let text = device(&[]).load(&marked).unwrap_err().to_string();
    assert!(text.ends_with("209 hipErrorNoBinaryForGpu; compile it for gfx90a, which this device is"), "{text}");
}

#[test]
fn recordings_events_peers_and_handles_go_through() {
    for flag in ["-DLAZY=0", "-DLAZY=1"] {
        let hip = device(&[flag]);
        let stream = hip.create_stream().unwrap();
        hip.begin_capture(stream).unwrap();
        assert!(hip.synchronize(stream).is_err());
        let graph = hip.end_capture(stream).unwrap();
        hip.replay(graph, stream).unwrap();
        hip.destroy_graph(graph).unwrap();
        let (from, to) = (hip.create_event().unwrap(), hip.create_event().unwrap());
        hip.record(to, stream).unwrap();
        assert!((hip.elapsed(from, to).unwrap() - 1e-3).abs() < 1e-12);
        assert!(hip.open_peer(1).unwrap() && hip.open_peer(0).unwrap() && hip.open_peer(2).is_err());
        let shared = hip.alloc_shared(16).unwrap();
        assert_eq!(hip.import(&hip.export(shared).unwrap()).unwrap(), shared);
        hip.close(shared).unwrap();
        hip.free(shared, stream).unwrap();
        hip.destroy_stream(stream).unwrap();
        assert!(hip.synchronize(stream).is_err());
    }
}
