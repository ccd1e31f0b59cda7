//! The table over a driver without a device, tests/golden/fake_driver.c: what is said of a driver that cannot be used, and of
//! everything that fails after it has been opened.

use std::sync::Arc;

use tempfile::TempDir;

use super::{Cuda, Runtime};
use crate::backend::gpu::driver::{Driver, Function, Launch, MapType, Param, Stream, Swizzle, TensorMapSpec};
use crate::backend::gpu::library::compiled;
use crate::error::{Error, Result};

const PTX: &[u8] = b".version 8.0\n.target sm_90a\n.entry add_fwd";

fn runtime(definitions: &[&str]) -> (TempDir, Result<Runtime>) {
    let (dir, library) = compiled("fake_driver.c", definitions);
    (dir, Runtime::open(&[library]))
}

fn refused(definitions: &[&str]) -> String {
    let error = runtime(definitions).1.unwrap_err();
    assert!(matches!(error, Error::Device(_)), "{error:?}");
    let text = error.to_string();
    // The library lies in a folder of the test.
    text.replace(text.split(": ").nth(1).unwrap_or_default(), "LIBRARY")
}

fn device(definitions: &[&str]) -> Cuda {
    Cuda::open(Arc::new(runtime(definitions).1.unwrap()), 0).unwrap()
}

fn function(cuda: &Cuda, name: &str) -> Function {
    cuda.function(cuda.load(PTX).unwrap(), name).unwrap()
}

fn address(at: u64) -> Param {
    Param::new(at.to_le_bytes())
}

fn int(n: i32) -> Param {
    Param::new(n.to_le_bytes())
}

#[test]
fn a_driver_that_is_too_old_is_told_with_both_versions() {
    assert_eq!(
        refused(&["-DVERSION=11080"]),
        "cuda: LIBRARY: expected a driver for CUDA 12.0 or later, found one for CUDA 11.8; install a newer NVIDIA driver"
    );
}

#[test]
fn missing_functions_are_all_named() {
    let text = refused(&["-DLACKS"]);
    assert!(text.starts_with("cuda: LIBRARY: lacks cuLaunchKernelEx, cuTensorMapEncodeTiled:"), "{text}");
}

#[test]
fn a_stub_and_a_mismatch_say_what_to_do() {
    assert!(refused(&["-DSTUB"]).contains("this is the toolkit's stub, not a driver; install NVIDIA's driver"));
    let text = refused(&["-DINIT=803"]);
    assert!(text.contains("cuInit: 803 CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), "{text}");
    assert!(text.ends_with("restart the machine"), "{text}");
}

#[test]
fn a_driver_without_devices_opens_and_says_so_for_each() {
    let runtime = Arc::new(runtime(&["-DDEVICES=0"]).1.unwrap());
    assert_eq!(runtime.devices(), 0);
    let text = Cuda::open(runtime, 0).unwrap_err().to_string();
    assert!(text.starts_with("cuda:0: cannot open: the driver finds no device here; see nvidia-smi"), "{text}");
}

#[test]
fn a_device_that_does_not_exist_is_told_with_those_that_do() {
    let runtime = Arc::new(runtime(&[]).1.unwrap());
    let error = Cuda::open(runtime, 7).unwrap_err();
    assert!(matches!(error, Error::Device(_)));
    assert_eq!(error.to_string(), "cuda:7: cannot open: this machine has 2 CUDA devices, cuda:0 to cuda:1");
}

#[test]
fn what_a_device_is_comes_from_the_driver() {
    let cuda = device(&[]);
    let info = cuda.info();
    assert_eq!((info.name.as_str(), info.arch.to_string().as_str(), info.processors), ("Fake 0", "sm_90a", 132));
    assert_eq!((info.max_grid, info.max_block), ([0x7fff_ffff, 65535, 65535], [1024, 1024, 64]));
    assert_eq!((info.shared_bytes, info.max_shared_bytes, info.warp), (49152, 232_448, 32));
    assert!(info.has_clusters && info.is_cooperative && info.driver.starts_with("CUDA 12.8"));
}

#[test]
fn what_is_written_is_read_and_a_kernel_gets_its_arguments() {
    for definitions in [&[][..], &["-DNO_POOLS"]] {
        let cuda = device(definitions);
        let stream = cuda.create_stream().unwrap();
        let at = cuda.alloc(16, stream).unwrap();
        cuda.fill(at, 0, 16, stream).unwrap();
        cuda.write(at, &2.0f32.to_le_bytes(), stream).unwrap();
        cuda.copy(at + 4, at, 8, stream).unwrap();
        let launch = Launch::linear(4, 128).with_shared(100_000).in_clusters([2, 1, 1]).cooperative();
        cuda.launch(function(&cuda, "add_fwd"), &launch, &[address(at), int(3)], stream).unwrap();
        let mut bytes = [0; 16];
        cuda.read(&mut bytes, at, stream).unwrap();
        let floats: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(floats, [3.0, 3.0, 1.0, 0.0]);
        assert_eq!(
            cuda.runtime.says("fake_launched"),
            "4 block 128 shared 100000 opted 100000 cooperative 1 cluster 2"
        );
        cuda.free(at, stream).unwrap();
        assert_eq!(cuda.memory().unwrap(), (64 << 20, 64 << 20));
        cuda.destroy_stream(stream).unwrap();
    }
}

#[test]
fn memory_that_is_not_there_is_told_with_what_is() {
    let cuda = device(&["-DMEMORY=4096"]);
    let kept = cuda.alloc(1024, Stream::DEFAULT).unwrap();
    let error = cuda.alloc(1 << 30, Stream::DEFAULT).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory(_)));
    let text = error.to_string();
    assert!(text.starts_with("cuda:0: out of memory: asked 1073741824 bytes, free 3072 of 4096"), "{text}");
    // Later work is unaffected.
    cuda.write(kept, &[1; 1024], Stream::DEFAULT).unwrap();
    cuda.alloc(1024, Stream::DEFAULT).unwrap();
}

#[test]
fn wrong_arguments_of_a_launch_never_reach_the_driver() {
    let cuda = device(&[]);
    let add = function(&cuda, "add_fwd");
    let launch =
        |params: &[Param], launch: Launch| cuda.launch(add, &launch, params, Stream::DEFAULT).unwrap_err().to_string();
    assert_eq!(
        launch(&[address(0)], Launch::linear(1, 32)),
        "add_fwd: launch: expected 2 arguments of [8, 4] bytes, found 1 of [8]"
    );
    assert!(launch(&[address(0), address(1)], Launch::linear(1, 32)).ends_with("found 2 of [8, 8]"));
    assert!(launch(&[address(0), int(1)], Launch::linear(1, 513)).contains("expected at most 512 threads"));
    assert_eq!(cuda.runtime.says("fake_launched"), "");
}

#[test]
fn a_launch_that_fails_names_call_kernel_and_code_and_later_work_goes_on() {
    let cuda = device(&[]);
    let refuse = function(&cuda, "refuse_fwd");
    let error = cuda.launch(refuse, &Launch::linear(1, 32), &[address(0), int(0)], Stream::DEFAULT).unwrap_err();
    assert!(matches!(error, Error::Driver(_)));
    assert_eq!(
        error.to_string(),
        "cuda:0: cuLaunchKernelEx refuse_fwd: 701 CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch"
    );
    cuda.synchronize(Stream::DEFAULT).unwrap();
    cuda.alloc(16, Stream::DEFAULT).unwrap();
}

#[test]
fn after_a_fault_every_call_says_that_the_context_is_lost_and_what_to_do() {
    let cuda = device(&[]);
    let fault = function(&cuda, "fault_fwd");
    cuda.launch(fault, &Launch::linear(1, 32), &[address(0), int(0)], Stream::DEFAULT).unwrap();
    let first = cuda.synchronize(Stream::DEFAULT).unwrap_err().to_string();
    assert_eq!(
        first,
        "cuda:0: cuStreamSynchronize: 700 CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered (last launch: \
         fault_fwd; KERNEL_SYNC=1 finds the kernel); this process has to be started again"
    );
    for later in [
        cuda.alloc(16, Stream::DEFAULT).map(drop),
        cuda.read(&mut [0; 4], 0, Stream::DEFAULT),
        cuda.launch(fault, &Launch::linear(1, 32), &[address(0), int(0)], Stream::DEFAULT),
        cuda.memory().map(drop),
        cuda.create_stream().map(drop),
    ] {
        let text = later.unwrap_err().to_string();
        assert!(
            text.starts_with("cuda:0: the device cannot be used by this process any more since cuStream"),
            "{text}"
        );
        assert!(text.ends_with("; start the process again"), "{text}");
    }
}

#[test]
fn code_that_does_not_load_is_told_with_the_log() {
    let cuda = device(&[]);
    let load = |code: &[u8]| cuda.load(code).unwrap_err().to_string();
    assert_eq!(
        load(b".version 8.0\n.target sm_90a\nbroken"),
        "cuda:0: cuModuleLoadDataEx: 218 CUDA_ERROR_INVALID_PTX: ptxas: line 3; syntax error"
    );
    let text = load(b".version 8.0\n.target sm_90a\nwrong target");
    assert!(text.ends_with("; compile it for sm_90a, which this device is"), "{text}");
    assert!(load(b"\x7fELF").starts_with("cuda:0: load: the ELF file is cut short"));
    let module = cuda.load(PTX).unwrap();
    let text = cuda.function(module, "sub_fwd").unwrap_err().to_string();
    assert_eq!(text, "cuda:0: the module has no entry point `sub_fwd`");
}

#[test]
fn handles_that_ended_are_refused() {
    let cuda = device(&[]);
    let stream = cuda.create_stream().unwrap();
    let event = cuda.create_event().unwrap();
    let module = cuda.load(PTX).unwrap();
    let add = cuda.function(module, "add_fwd").unwrap();
    assert_eq!(cuda.attributes(add).unwrap().registers, 40);
    cuda.destroy_stream(stream).unwrap();
    cuda.destroy_event(event).unwrap();
    cuda.unload(module).unwrap();
    assert!(cuda.synchronize(stream).unwrap_err().to_string().starts_with("stream: expected one of this device"));
    assert!(cuda.record(event, Stream::DEFAULT).is_err());
    assert!(cuda.attributes(add).unwrap_err().to_string().starts_with("function: expected one"));
    assert!(cuda.destroy_stream(stream).is_err() && cuda.destroy_event(event).is_err() && cuda.unload(module).is_err());
}

#[test]
fn a_recording_takes_launches_and_refuses_what_the_host_waits_for() {
    let cuda = device(&[]);
    let stream = cuda.create_stream().unwrap();
    let at = cuda.alloc(16, stream).unwrap();
    cuda.begin_capture(stream).unwrap();
    cuda.launch(function(&cuda, "add_fwd"), &Launch::linear(1, 32), &[address(at), int(1)], stream).unwrap();
    let text = cuda.read(&mut [0; 4], at, stream).unwrap_err().to_string();
    assert_eq!(text, "cuda:0: read: the stream is being recorded; do it before or after");
    assert!(cuda.write(at, &[0; 4], stream).is_err() && cuda.synchronize(stream).is_err());
    let graph = cuda.end_capture(stream).unwrap();
    cuda.replay(graph, stream).unwrap();
    cuda.destroy_graph(graph).unwrap();
    assert!(cuda.replay(graph, stream).is_err());
}

#[test]
fn events_tell_seconds() {
    let cuda = device(&[]);
    let (from, to) = (cuda.create_event().unwrap(), cuda.create_event().unwrap());
    cuda.record(from, Stream::DEFAULT).unwrap();
    cuda.record(to, Stream::DEFAULT).unwrap();
    cuda.wait(Stream::DEFAULT, to).unwrap();
    // The test's driver says a millisecond for each handle in between.
    assert!((cuda.elapsed(from, to).unwrap() - 1e-3).abs() < 1e-12);
}

#[test]
fn only_memory_that_was_asked_for_it_is_shown_to_other_processes() {
    let cuda = device(&[]);
    let own = cuda.alloc(16, Stream::DEFAULT).unwrap();
    assert!(cuda.export(own).unwrap_err().to_string().starts_with("shared memory: expected one"));
    let shared = cuda.alloc_shared(16).unwrap();
    let handle = cuda.export(shared).unwrap();
    assert_eq!(cuda.import(&handle).unwrap(), shared);
    cuda.close(shared).unwrap();
    cuda.free(shared, Stream::DEFAULT).unwrap();
    assert!(cuda.export(shared).is_err());
}

#[test]
fn peers_are_opened_by_number() {
    let cuda = device(&[]);
    assert!(cuda.open_peer(0).unwrap() && cuda.open_peer(1).unwrap() && cuda.open_peer(1).unwrap());
    assert!(cuda.open_peer(2).unwrap_err().to_string().starts_with("cuda:2: cannot open"));
}

#[test]
fn a_tensor_map_is_encoded_with_the_header_s_numbers() {
    let cuda = device(&[]);
    let mut spec = TensorMapSpec {
        dtype: MapType::Bf16,
        address: 256,
        dims: vec![64, 32],
        strides: vec![128],
        box_dims: vec![64, 8],
        swizzle: Swizzle::B128,
        is_nan_filled: true,
    };
    assert_eq!(cuda.tensor_map(&spec).unwrap()[..3], [9, 3, 1]);
    spec.address = 8;
    assert!(cuda.tensor_map(&spec).is_err());
}
