//! Anchors: the same text on the same inputs in the emulator and on an H100 or H200, compared bit by bit.
//!
//! `anchor_sm80.cu` and `anchor_sm90.cu` hold one kernel for each kind of instruction, so that a difference has a name; the golden
//! kernels follow with numbers whose every bit depends on how sums are rounded. Each anchor is a test of its own, ignored where
//! there is no such device, and prints a line of the table: name, numbers compared, numbers that differ, largest difference.

mod cases;

use std::collections::BTreeMap;

use cases::{ANCHORS, Anchor};

use super::*;
use crate::backend::gpu::driver::Driver;

/// How an anchor's outputs differ between two devices.
struct Difference {
    numbers: usize,
    differing: usize,
    /// Relative to the larger of one and the emulator's number.
    largest: f64,
    /// The first difference of each instruction of the kernel, or the first of each kind.
    examples: BTreeMap<u64, String>,
}

impl Difference {
    /// Outputs of `anchor` there and here.
    fn between(anchor: &Anchor, real: &[u8], emulated: &[u8]) -> Difference {
        assert_eq!(real.len(), emulated.len());
        let (kind, width) = (anchor.kind, anchor.kind.width());
        let mut found =
            Difference { numbers: real.len() / width, differing: 0, largest: 0.0, examples: BTreeMap::new() };
        for (i, (r, e)) in real.chunks_exact(width).zip(emulated.chunks_exact(width)).enumerate() {
            let (there, here) = (kind.number(r), kind.number(e));
            // Which NaN comes out of double precision, and which fills, is left open: nothing of the library depends on it.
            if r == e || kind.has_loose_nan() && there.is_nan() && here.is_nan() {
                continue;
            }
            let distance = (there - here).abs() / here.abs().max(1.0);
            found.differing += 1;
            // Where one alone is NaN or infinite, nothing is larger.
            found.largest = found.largest.max(if distance.is_nan() { f64::INFINITY } else { distance });
            let word = i * width / 4 % anchor.words.max(1);
            let key = if anchor.words > 0 { word as u64 } else { kind.bits(r) };
            if found.examples.len() < 8 {
                let example = || {
                    format!(
                        "word {word} at {i}: {there:e} ({:#x}) there, {here:e} ({:#x}) here",
                        kind.bits(r),
                        kind.bits(e)
                    )
                };
                found.examples.entry(key).or_insert_with(example);
            }
        }
        found
    }
}

fn emulator() -> Emulator {
    Emulator::new(known::device(Arch::SM_90A, "emu:sm_90a".to_owned()).unwrap(), load_ptx)
}

fn output(anchor: &Anchor, driver: &dyn Driver) -> Result<Vec<u8>> {
    // What was compiled for an A100 runs on the cores of an H100 there, and so here.
    let text = anchor.text.replace(".target sm_80", ".target sm_90a");
    (anchor.run)(&Bench { driver, text: &text, values: scattered })
}

/// Compares one anchor with the first CUDA device and prints its line.
fn compare(name: &str) {
    let anchor = ANCHORS.iter().find(|a| a.name == name).unwrap();
    let driver = open(Device::Cuda(0)).unwrap();
    let real = output(anchor, &*driver).unwrap_or_else(|e| panic!("{name}: {e}"));
    let found = Difference::between(anchor, &real, &output(anchor, &emulator()).unwrap());
    println!("anchor {name:20} {:8} numbers {:8} differ, by {:.3e}", found.numbers, found.differing, found.largest);
    assert!(found.largest <= anchor.allowed, "{name}: {:#?}", found.examples);
}

macro_rules! anchors {
    ($($name:ident)*) => {
        mod on_a_cuda_device {
            $(
                #[test]
                #[ignore = "needs an H100 or H200"]
                fn $name() {
                    super::compare(stringify!($name));
                }
            )*
        }

        #[test]
        fn every_anchor_is_a_test() {
            assert_eq!(ANCHORS.map(|a| a.name), [$(stringify!($name)),*]);
        }
    };
}

anchors! {
    floats approximations words long_words from_floats to_floats doubles halves comparisons bfloats exchanges load_matrices store_rows
    copies mma_bf16_16 mma_f16_16 mma_tf32_8 mma_bf16_8 mma_f16_8 mma_tf32_4 mma_half_16 mma_s8_32
    wgmma_bf16_8 wgmma_bf16_24 wgmma_bf16_64 wgmma_bf16_64_mk wgmma_bf16_64_kn wgmma_bf16_64_mn wgmma_bf16_128 wgmma_bf16_256
    wgmma_f16_16 wgmma_f16_96 wgmma_f16_192 wgmma_registers wgmma_plain wgmma_b32 wgmma_b64
    boxes_plain boxes_b32 boxes_b64 boxes_b128 boxes_narrow boxes_of_words boxes_of_bytes boxes_with_nan boxes_of_1_3_and_5_axes
    boxes_out boxes_added
    gemm_nt gemm_nn gemm_multicast cluster_sum mirror double_and_add move_boxes chain gemm
}

#[test]
fn every_anchor_gives_the_same_bits_under_every_schedule() {
    for anchor in &ANCHORS {
        let mut first = None;
        for schedule in Schedule::ALL {
            let emulator = emulator();
            emulator.set_schedule(schedule);
            let found = output(anchor, &emulator).unwrap_or_else(|e| panic!("{}: {schedule:?}: {e}", anchor.name));
            assert!(!found.is_empty());
            assert_eq!(*first.get_or_insert(found.clone()), found, "{}: {schedule:?}", anchor.name);
        }
    }
}

const WAYS: [&str; 3] = ["box_in_2", "box_out_2", "box_add"];

/// Moves a box of 8 rows of 32 bfloats at column `x` of row `y`.
fn move_box(driver: &dyn Driver, entry: &str, [x, y]: [i32; 2]) -> Result<()> {
    let bench = Bench { driver, text: cases::SM_90, values: scattered };
    let (tensor, raw) = (bench.upload(&[0; 80 * 10])?, bench.upload(&[0; 512])?);
    let map = bench.map(tensor, [10, 40], [8, 32], Swizzle::None)?;
    let params = match entry {
        "box_in_2" => vec![word(raw), map, signed(128), signed(512), signed(x), signed(y)],
        _ => vec![map, word(raw), signed(128), signed(x), signed(y)],
    };
    bench.launch(entry, Launch::linear(1, 128).with_shared(1024 + 512), &params)
}

#[test]
fn a_box_that_starts_where_hardware_does_not_take_it_is_refused() {
    for entry in WAYS {
        for at in [[0, 0], [8, 3], [16, 9], [40, 2], [48, 20]] {
            move_box(&emulator(), entry, at).unwrap();
        }
        for at in [[1, 0], [4, 0], [12, 0], [41, 0]] {
            let fault = move_box(&emulator(), entry, at).unwrap_err().to_string();
            assert!(fault.contains(&format!("found {} elements of 2 bytes", at[0])), "{entry}: {fault}");
        }
        for at in [[-8, 0], [0, -1], [-16, 5]] {
            assert_eq!(move_box(&emulator(), entry, at).is_ok(), entry == "box_in_2", "{entry} {at:?}");
        }
    }
}

/// Where a device refuses, the emulator does, and the other way round. A fault ends the process's use of the device, so each
/// place is a run of its own: `BOX_AT=box_add:-5:0` is the kernel, the column and the row.
#[test]
#[ignore = "needs an H100 or H200, and BOX_AT"]
fn refusals() {
    let asked = std::env::var("BOX_AT").unwrap();
    let [entry, x, y] = *asked.split(':').collect::<Vec<_>>() else { panic!("BOX_AT: expected kernel:x:y") };
    let driver = open(Device::Cuda(0)).unwrap();
    let at = [x, y].map(|x| x.parse().unwrap());
    let (there, here) = (move_box(&*driver, entry, at), move_box(&emulator(), entry, at));
    let word = |result: &Result<()>| if result.is_ok() { "runs" } else { "refused" };
    println!("anchor {entry} at {x} {y}: device {}, emulator {}", word(&there), word(&here));
    assert_eq!(there.is_ok(), here.is_ok());
}
