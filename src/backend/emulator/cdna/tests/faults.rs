//! Kernels that are wrong on purpose are found, and say where.

use super::{Bench, GFX90A, GFX942, int, numbers};
use crate::backend::emulator::Schedule;
use crate::backend::emulator::cdna::object::CodeObject;
use crate::backend::emulator::schedule::Asynchrony;
use crate::backend::gpu::driver::{Arch, Launch};

/// The code object with word `n` of those that satisfy `is_planted` in `kernel` replaced; `None` if there are not so many.
fn planted(code: &[u8], kernel: &str, n: usize, is_planted: fn(u32) -> bool, by: u32) -> Option<Vec<u8>> {
    let object = CodeObject::read(code).unwrap();
    let symbol = object.symbols().iter().find(|s| s.name == kernel && s.is_function).unwrap();
    let own = &object.image()[symbol.address as usize..][..symbol.size as usize];
    let start = code.windows(own.len()).position(|window| window == own).unwrap();
    let instructions = object.instructions().unwrap();
    let inside = instructions.iter().filter(|i| (symbol.address..symbol.address + symbol.size).contains(&i.address));
    let word = |at: u64| u32::from_le_bytes(object.image()[at as usize..][..4].try_into().unwrap());
    let at = inside.map(|i| i.address).filter(|at| is_planted(word(*at))).nth(n)?;
    let mut out = code.to_vec();
    out[start + (at - symbol.address) as usize..][..4].copy_from_slice(&by.to_le_bytes());
    Some(out)
}

const S_NOP: u32 = 0xbf80_0000;

fn is_wait(word: u32) -> bool {
    word >> 16 == 0xbf8c
}

fn is_barrier(word: u32) -> bool {
    word == 0xbf8a_0000
}

const BOTH: [(Arch, &[u8]); 2] = [(Arch::GFX90A, GFX90A), (Arch::GFX942, GFX942)];

/// Every wait of two kernels, one after the other, becomes a no-operation: late schedules refuse the first use of a
/// register that is not there yet, or find the race of a late store.
#[test]
fn every_missing_wait_is_found_by_late_schedules() {
    let x = numbers(1000, 1);
    for (arch, code) in BOTH {
        for kernel in ["row_sum", "axpy4"] {
            let mut removed = 0;
            while let Some(bad) = planted(code, kernel, removed, is_wait, S_NOP) {
                for schedule in Schedule::ALL {
                    let b = Bench::new(arch, &bad, schedule);
                    let (from, to) = (b.up(&x), b.room::<f32>(1000));
                    let result = match kernel {
                        "row_sum" => b.try_run(kernel, Launch::linear(1, 256), &[&to, &from, &int(1000)]),
                        _ => b.try_run(kernel, Launch::linear(1, 256), &[&to, &from, &from, &int(1000)]),
                    };
                    if schedule.asynchrony == Asynchrony::Late {
                        let fault = result.expect_err(&format!("{arch} {kernel}: wait {removed}"));
                        let what = fault.to_string();
                        let is_told = what.contains("before s_waitcnt") || what.contains("with no barrier between");
                        assert!(is_told, "{arch} {kernel}: wait {removed}: {what}");
                    }
                }
                removed += 1;
            }
            assert!(removed >= 3, "{arch} {kernel}: {removed}");
        }
    }
}

#[test]
fn a_fault_names_register_counter_and_both_instructions() {
    let bad = planted(GFX90A, "axpy4", 0, is_wait, S_NOP).unwrap();
    let b = Bench::new(Arch::GFX90A, &bad, Schedule::ALL[1]);
    let (x, y) = (b.up(&numbers(256, 1)), b.room::<f32>(256));
    let fault = b.try_run("axpy4", Launch::linear(1, 256), &[&y, &x, &x, &int(256)]).unwrap_err();
    assert_eq!((&*fault.kernel, fault.block, fault.lane), ("axpy4", [0, 0, 0], None));
    let what = &fault.what;
    assert!(what.starts_with('s') && what.contains("is used before s_waitcnt lgkmcnt for `s_load_dword"), "{what}");
    assert!(fault.instruction.contains(" at 0x"), "{}", fault.instruction);
}

#[test]
fn a_missing_barrier_is_a_race() {
    let x = numbers(1000, 2);
    Bench::each(|b| {
        let (from, to) = (b.up(&x), b.room::<f32>(128));
        let fault = b.try_run("no_barrier", Launch::linear(1, 128), &[&to, &from]).unwrap_err();
        assert!(fault.what.contains("with no barrier between"), "{fault}");
    });
    for (arch, code) in BOTH {
        let bad = planted(code, "row_sum", 0, is_barrier, S_NOP).unwrap();
        for schedule in Schedule::ALL {
            let b = Bench::new(arch, &bad, schedule);
            let (from, to) = (b.up(&x), b.room::<f32>(1));
            let fault = b.try_run("row_sum", Launch::linear(1, 256), &[&to, &from, &int(1000)]).unwrap_err();
            assert!(fault.what.contains("with no barrier between") && fault.lane == Some(0), "{arch}: {fault}");
        }
    }
}

#[test]
fn a_read_of_one_element_beyond_is_found_in_its_lane() {
    Bench::each(|b| {
        let (x, y) = (b.up(&numbers(50, 3)), b.room::<f32>(50));
        let fault = b.try_run("one_beyond", Launch::linear(1, 64), &[&y, &x, &int(50)]).unwrap_err();
        assert_eq!(fault.lane, Some(49));
        assert!(fault.what.contains("4 bytes at offset 200 of the allocation of 200 bytes"), "{fault}");
    });
}

#[test]
fn a_kernel_for_waves_of_32_gives_wrong_sums() {
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    Bench::each(|b| {
        let (from, to) = (b.up(&x), b.room::<f32>(2));
        b.run("half_wave", Launch::linear(1, 64), &[&to, &from]);
        let found = b.down::<f32>(&to, 2);
        // The lower half is summed; the upper one takes the lower one's numbers from the second step on.
        let right = [x[..32].iter().sum::<f32>(), x[32..].iter().sum::<f32>()];
        assert_eq!(found[0], right[0]);
        assert_ne!(found[1], right[1]);
    });
}

#[test]
fn outputs_that_nobody_writes_stay_poison() {
    Bench::each(|b| {
        let y = b.room::<f32>(64);
        b.run("unwritten", Launch::linear(1, 64), &[&y]);
        let found = b.down::<f32>(&y, 64);
        assert!(found.iter().enumerate().all(|(i, y)| if i % 5 == 0 { y.is_nan() } else { *y == 1.0 }));
    });
}

#[test]
fn a_wave_that_does_not_end_is_stopped() {
    for (arch, code) in BOTH {
        let mut b = Bench::new(arch, code, Schedule::default());
        b.module.set_budget(10_000);
        let y = b.up(&[0i32]);
        let fault = b.try_run("endless", Launch::linear(1, 64), &[&y]).unwrap_err();
        assert!(fault.what.contains("more than 10000 instructions"), "{fault}");
    }
}

#[test]
fn an_instruction_that_is_not_known_is_named_where_it_stands() {
    // The end becomes a word of program control whose code no instruction has.
    let bad = planted(GFX942, "unwritten", 0, |word| word == 0xbf81_0000, 0xbfff_0000).unwrap();
    match super::Module::load(&bad, Arch::GFX942) {
        Err(error) => assert!(error.to_string().contains("0x"), "{error}"),
        Ok(_) => {
            let b = Bench::new(Arch::GFX942, &bad, Schedule::default());
            let y = b.room::<f32>(64);
            let fault = b.try_run("unwritten", Launch::linear(1, 64), &[&y]).unwrap_err();
            assert!(fault.what.contains("unknown") && fault.instruction.contains("0x"), "{fault}");
        }
    }
}

#[test]
fn launches_that_a_kernel_does_not_take_are_refused() {
    let b = Bench::new(Arch::GFX90A, GFX90A, Schedule::default());
    let y = b.room::<f32>(64);
    let refuse = |entry: &str, launch: Launch, params: &[crate::backend::gpu::driver::Param]| {
        b.module.launch(entry, &launch, params, &b.memory, b.schedule).unwrap_err().to_string()
    };
    let one = [y.clone()];
    assert!(refuse("unwritten", Launch::linear(1, 65), &one).contains("expected blocks of 1 to 64 threads"));
    assert!(refuse("unwritten", Launch::linear(0, 64), &one).contains("0 blocks"));
    assert!(refuse("unwritten", Launch::linear(1, 64), &[]).contains("expected 1 arguments, found 0"));
    assert!(refuse("unwritten", Launch::linear(1, 64), &[int(1)]).contains("expected 8 bytes, found 4"));
    assert!(refuse("unwritten", Launch::linear(1, 64).with_shared(70_000), &one).contains("shared memory"));
    assert!(refuse("nothing", Launch::linear(1, 64), &one).contains("found nothing"));
    assert!(super::Module::load(GFX90A, Arch::GFX942).is_err());
    assert!(super::Module::load(&GFX90A[..1000], Arch::GFX90A).is_err());
}

#[test]
fn results_and_faults_do_not_depend_on_threads() {
    let x = numbers(64 * 100, 5);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let b = Bench::new(Arch::GFX942, GFX942, Schedule::ALL[3]);
            let (from, to) = (b.up(&x), b.room::<f32>(64));
            let counters = b.run("row_sum", Launch::linear(64, 256), &[&to, &from, &int(100)]);
            // The second launch reads beyond its input from block 32 on.
            let fault = b.try_run("row_sum", Launch::linear(64, 256), &[&to, &from, &int(200)]).unwrap_err();
            (b.down::<f32>(&to, 32), counters, fault.block)
        })
    };
    let (sums, counters, block) = run(1);
    assert_eq!(run(3), (sums, counters, block));
    assert_eq!(block, [32, 0, 0]);
}
