//! The whole table on a device of this machine. Not run by itself: `cargo test -- --ignored on_a_cuda_device`.

use std::process::Command;
use std::sync::Arc;

use perfrun::backend::Device;
use perfrun::backend::gpu::driver::{Driver, Launch, MapType, Param, Stream, Swizzle, TensorMapSpec};
use perfrun::backend::gpu::open::open;
use perfrun::error::Error;

const PTX: &str = include_str!("add.ptx");

fn cuda() -> Arc<dyn Driver> {
    open(Device::Cuda(0)).unwrap()
}

fn params(at: u64, n: u32) -> [Param; 2] {
    [Param::new(at.to_le_bytes()), Param::new(n.to_le_bytes())]
}

/// `n` floats of the device.
fn floats(driver: &dyn Driver, at: u64, n: usize, stream: Stream) -> Vec<f32> {
    let mut bytes = vec![0; 4 * n];
    driver.read(&mut bytes, at, stream).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn memory_is_written_copied_filled_and_read_on_a_cuda_device() {
    let driver = cuda();
    let stream = driver.create_stream().unwrap();
    let (total, all) = driver.memory().unwrap();
    assert!(total <= all && all <= driver.info().memory_bytes);
    // More than what a driver stages at once.
    let bytes: Vec<u8> = (0..10_000_001u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let (a, b) = (driver.alloc(bytes.len(), stream).unwrap(), driver.alloc(bytes.len(), stream).unwrap());
    assert!(a % 256 == 0 && b % 256 == 0);
    driver.write(a, &bytes, stream).unwrap();
    driver.copy(b, a, bytes.len(), stream).unwrap();
    driver.fill(b, 9, 3, stream).unwrap();
    let mut back = vec![0; bytes.len()];
    driver.read(&mut back, b, stream).unwrap();
    assert_eq!(back[..3], [9; 3]);
    assert!(back[3..] == bytes[3..]);
    driver.free(a, stream).unwrap();
    driver.free(b, stream).unwrap();
    driver.trim().unwrap();
    driver.destroy_stream(stream).unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn too_much_memory_is_refused_and_later_work_is_unaffected_on_a_cuda_device() {
    let driver = cuda();
    let error = driver.alloc(1 << 50, Stream::DEFAULT).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    assert!(error.to_string().contains("asked 1125899906842624 bytes, free "), "{error}");
    let at = driver.alloc(4, Stream::DEFAULT).unwrap();
    driver.write(at, &1f32.to_le_bytes(), Stream::DEFAULT).unwrap();
    assert_eq!(floats(&*driver, at, 1, Stream::DEFAULT), [1.0]);
    driver.free(at, Stream::DEFAULT).unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn kernels_are_launched_recorded_and_timed_on_a_cuda_device() {
    let driver = cuda();
    let stream = driver.create_stream().unwrap();
    let module = driver.load(PTX.as_bytes()).unwrap();
    let add = driver.function(module, "add_fwd").unwrap();
    assert!(driver.attributes(add).unwrap().registers > 0);
    let n = 100_000u32;
    let at = driver.alloc(4 * n as usize, stream).unwrap();
    driver.fill(at, 0, 4 * n as usize, stream).unwrap();
    let linear = Launch::linear(n.div_ceil(256), 256);
    let (from, to) = (driver.create_event().unwrap(), driver.create_event().unwrap());
    driver.record(from, stream).unwrap();
    driver.launch(add, &linear, &params(at, n), stream).unwrap();
    driver.record(to, stream).unwrap();
    let seconds = driver.elapsed(from, to).unwrap();
    assert!(seconds > 0.0, "{seconds}");

    driver.begin_capture(stream).unwrap();
    for _ in 0..3 {
        driver.launch(add, &linear, &params(at, n), stream).unwrap();
    }
    assert!(driver.synchronize(stream).unwrap_err().to_string().contains("being recorded"));
    let graph = driver.end_capture(stream).unwrap();
    driver.replay(graph, stream).unwrap();
    driver.replay(graph, stream).unwrap();
    assert!(floats(&*driver, at, n as usize, stream).iter().all(|v| *v == 7.0));
    driver.destroy_graph(graph).unwrap();

    // Another stream waits for an event of the first.
    let other = driver.create_stream().unwrap();
    driver.record(to, stream).unwrap();
    driver.wait(other, to).unwrap();
    let many = Launch::linear(1_000_000, 256).cooperative();
    assert!(driver.launch(add, &many, &params(at, 1), other).unwrap_err().to_string().contains("COOPERATIVE_LAUNCH"));
    driver.launch(add, &Launch::linear(2, 64).cooperative(), &params(at, 1), other).unwrap();
    assert_eq!(floats(&*driver, at, 2, other), [8.0, 7.0]);
    if driver.info().has_clusters {
        driver.launch(add, &Launch::linear(8, 64).in_clusters([4, 1, 1]), &params(at, 1), other).unwrap();
        driver.launch(add, &Launch::linear(16, 64).in_clusters([16, 1, 1]), &params(at, 1), other).unwrap();
        assert_eq!(floats(&*driver, at, 2, other), [10.0, 7.0]);
    }
    driver.unload(module).unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_block_gets_all_the_shared_memory_there_is_on_a_cuda_device() {
    let driver = cuda();
    let module = driver.load(PTX.as_bytes()).unwrap();
    let shared = driver.function(module, "shared_fwd").unwrap();
    let at = driver.alloc(4, Stream::DEFAULT).unwrap();
    for bytes in [1024, driver.info().shared_bytes, driver.info().max_shared_bytes] {
        let launch = Launch::linear(1, 1).with_shared(bytes);
        driver.launch(shared, &launch, &params(at, bytes), Stream::DEFAULT).unwrap();
        let mut back = [0; 4];
        driver.read(&mut back, at, Stream::DEFAULT).unwrap();
        assert_eq!(u32::from_le_bytes(back), bytes);
    }
    let too_much = Launch::linear(1, 1).with_shared(driver.info().max_shared_bytes + 1);
    let error = driver.launch(shared, &too_much, &params(at, 8), Stream::DEFAULT).unwrap_err();
    assert!(error.to_string().starts_with("shared_fwd: launch: shared memory"), "{error}");
    let error = driver.launch(shared, &Launch::linear(1, 1), &params(at, 8)[..1], Stream::DEFAULT).unwrap_err();
    assert!(error.to_string().contains("expected 2 arguments of [8, 4] bytes"), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn maps_handles_and_threads_work_on_a_cuda_device() {
    let driver = cuda();
    let at = driver.alloc_shared(1 << 20).unwrap();
    assert_ne!(driver.export(at).unwrap(), [0; 64]);
    assert!(driver.open_peer(0).unwrap());
    assert!(driver.open_peer(99).is_err());
    let spec = TensorMapSpec {
        dtype: MapType::Bf16,
        address: at,
        dims: vec![128, 64],
        strides: vec![256],
        box_dims: vec![64, 64],
        swizzle: Swizzle::B128,
        is_nan_filled: false,
    };
    if driver.info().has_clusters {
        assert_ne!(driver.tensor_map(&spec).unwrap(), [0; 128]);
    }
    let module = driver.load(PTX.as_bytes()).unwrap();
    let add = driver.function(module, "add_fwd").unwrap();
    driver.fill(at, 0, 4 * 64, Stream::DEFAULT).unwrap();
    driver.synchronize(Stream::DEFAULT).unwrap();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let driver = &driver;
            scope.spawn(move || {
                let stream = driver.create_stream().unwrap();
                for _ in 0..100 {
                    driver.launch(add, &Launch::linear(1, 32), &params(at + 4 * i, 1), stream).unwrap();
                }
                driver.synchronize(stream).unwrap();
                driver.destroy_stream(stream).unwrap();
            });
        }
    });
    assert_eq!(floats(&*driver, at, 9, Stream::DEFAULT), [100., 100., 100., 100., 100., 100., 100., 100., 0.]);
    driver.free(at, Stream::DEFAULT).unwrap();
}

/// The driver refuses a process after a fault, so the fault has a process of its own.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_fault_is_told_and_the_process_lives_on_a_cuda_device() {
    if std::env::var_os("PERFRUN_TEST_FAULT").is_none() {
        let name = "backends::device::a_fault_is_told_and_the_process_lives_on_a_cuda_device";
        let mut test = Command::new(std::env::current_exe().unwrap());
        let done = test.args(["--ignored", "--exact", name]).env("PERFRUN_TEST_FAULT", "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    let driver = cuda();
    let module = driver.load(PTX.as_bytes()).unwrap();
    let fault = driver.function(module, "fault_fwd").unwrap();
    driver.launch(fault, &Launch::linear(1, 1), &params(0, 0), Stream::DEFAULT).unwrap();
    let text = driver.synchronize(Stream::DEFAULT).unwrap_err().to_string();
    assert!(text.starts_with("cuda:0: cuStreamSynchronize: 700 CUDA_ERROR_ILLEGAL_ADDRESS"), "{text}");
    assert!(text.contains("fault_fwd"), "{text}");
    let later = driver.alloc(4, Stream::DEFAULT).unwrap_err().to_string();
    assert!(later.contains("cannot be used by this process any more"), "{later}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn code_for_another_architecture_does_not_load_on_a_cuda_device() {
    let driver = cuda();
    let error = driver.load(b".version 8.0\n.target sm_80\nnonsense\n").unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_INVALID_PTX") && error.contains("nonsense"), "{error}");
}
