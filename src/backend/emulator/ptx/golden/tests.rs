//! Goldens are right under every schedule, and with a fault planted in their text found under one.

use super::*;

/// The text without the lines that contain `what`.
fn without(what: &'static str) -> impl Fn(&str) -> String {
    move |text| text.lines().filter(|line| !line.contains(what)).flat_map(|line| [line, "\n"]).collect()
}

/// The text with `from` replaced by `to` wherever it stands.
fn with(from: &'static str, to: &'static str) -> impl Fn(&str) -> String {
    move |text| text.replace(from, to)
}

/// The text with the `n`-th line that contains `from` changed: there `from` becomes `to`.
fn with_at(n: usize, from: &'static str, to: &'static str) -> impl Fn(&str) -> String {
    move |text| {
        let mut seen = 0;
        let line = |line: &str| {
            seen += usize::from(line.contains(from));
            let is_it = line.contains(from) && seen == n + 1;
            if is_it { line.replace(from, to) + "\n" } else { line.to_owned() + "\n" }
        };
        text.lines().map(line).collect()
    }
}

#[test]
fn a_product_with_roles_rings_and_borders_is_right_under_every_schedule() {
    roles_nt().is_right_under_every_schedule();
}

#[test]
fn a_product_whose_columns_lie_along_n_is_right_under_every_schedule() {
    roles_nn().is_right_under_every_schedule();
}

#[test]
fn a_product_over_a_cluster_with_multicast_is_right_under_every_schedule() {
    multicast().is_right_under_every_schedule();
}

#[test]
fn blocks_of_a_cluster_read_and_write_one_anothers_shared_memory() {
    cluster_sum().is_right_under_every_schedule();
}

#[test]
fn named_barriers_hand_buffers_from_role_to_role() {
    mirror().is_right_under_every_schedule();
}

#[test]
fn runs_of_bytes_and_boxes_are_copied_and_added() {
    bulk().is_right_under_every_schedule();
    boxes().is_right_under_every_schedule();
}

#[test]
fn a_product_stays_in_registers_for_the_next_one() {
    chain().is_right_under_every_schedule();
}

#[test]
fn a_product_with_mma_sync_is_right_under_every_schedule() {
    gemm_80().is_right_under_every_schedule();
}

#[test]
fn products_are_counted_and_tiles_meet_no_bank_twice() {
    let count = |case: &Case| {
        let emulator = Emulator::new(known::device(case.arch, "emu".to_owned()).unwrap(), load_ptx);
        (case.run)(&Bench { driver: &emulator, text: case.text, values: numbers }).unwrap();
        let counters = emulator.take_counters();
        (counters.matrix_flops.get("bf16").copied(), counters.bank_conflicts, counters.global.loaded)
    };
    // Whole tiles are multiplied: 2 by 2 of 128 by 64, K in five steps of 64, and what is loaded lies inside the tensors.
    let [m, n, k] = ROLES;
    let loaded = 2 * (2 * m * k + 2 * n * k) as u64;
    assert_eq!(count(&roles_nt()), (Some(2 * 256 * 128 * 320), 0, loaded));
    assert_eq!(count(&gemm_80()), (Some(2 * 128 * 64 * 160), 0, 2 * 2 * (2 * 64 * 160)));
}

/// That at least one schedule reports each change, and that one of the reports contains the words.
fn found(case: &Case, change: impl Fn(&str) -> String, words: &str) {
    let findings = case.findings(change);
    assert!(findings.iter().any(|f| f.contains(words)), "expected `{words}` among {findings:#?}");
}

#[test]
fn a_missing_arrive_leaves_the_producer_waiting() {
    found(&roles_nt(), without("mbarrier.arrive.shared::cta.b64"), "mbarrier");
}

#[test]
fn a_missing_wait_for_the_copies_is_found() {
    // The consumers' wait always answers yes.
    let never_waits = with("mbarrier.try_wait.parity.shared::cta.b64 p, [%r6]", "setp.eq.u32 p, 0, 0; // [%r6]");
    let findings = roles_nt().findings(never_waits);
    assert!(!findings.is_empty());
}

#[test]
fn a_missing_expectation_of_bytes_is_found() {
    let only_arrives = |text: &str| {
        let line = |line: &str| {
            let arrives = line.replace("mbarrier.arrive.expect_tx.shared::cta.b64", "mbarrier.arrive.shared::cta.b64");
            if arrives == line { line.to_owned() } else { arrives[..arrives.rfind(',').unwrap()].to_owned() + ";" }
        };
        text.lines().flat_map(|l| [line(l), "\n".to_owned()]).collect()
    };
    assert!(!roles_nt().findings(only_arrives).is_empty());
    assert!(!bulk().findings(only_arrives).is_empty());
}

#[test]
fn an_expectation_of_too_many_bytes_hangs_and_says_so() {
    found(&bulk(), with("mov.u32 	%r16, 1024;", "mov.u32 	%r16, 1040;"), "mbarrier");
}

#[test]
fn a_missing_wait_for_the_products_is_found() {
    assert!(!roles_nt().findings(without("wgmma.wait_group")).is_empty());
    assert!(!chain().findings(without("wgmma.wait_group")).is_empty());
}

#[test]
fn a_missing_wait_for_the_stores_is_found() {
    assert!(!roles_nt().findings(without("bar.sync %r98, %r99")).is_empty());
}

#[test]
fn a_store_that_nobody_waits_for_is_found() {
    found(&bulk(), without("cp.async.bulk.wait_group"), "nothing waits for it");
    found(&roles_nt(), without("cp.async.bulk.wait_group"), "nothing waits for it");
}

#[test]
fn bytes_that_are_no_tensor_map_are_a_fault_that_says_where() {
    let emulator = Emulator::new(known::device(Arch::SM_90A, "emu".to_owned()).unwrap(), load_ptx);
    let bench = Bench { driver: &emulator, text: BULK_90, values: numbers };
    let map = || Param::new([0u8; 128]);
    let params = [map(), map(), signed(0), signed(0), signed(0), signed(0), signed(0)];
    let fault = bench.launch("move_boxes", Launch::linear(1, 32), &params).unwrap_err().to_string();
    assert!(fault.starts_with("move_boxes: block (0, 0, 0), warp 0, lane 0: `cp.async.bulk.tensor.3d"), "{fault}");
    assert!(fault.contains("are not what the driver encoded"), "{fault}");
    // The device goes on.
    assert_eq!((boxes().run)(&bench).unwrap(), boxes().expected);
}

#[test]
fn a_missing_barrier_of_the_cluster_is_found() {
    // In cluster_sum: before blocks are written to, before what they were written is read, before they may end.
    for n in [2, 3, 4] {
        let change = |text: &str| {
            let text = with_at(n, "barrier.cluster.arrive.release.aligned;", "")(text);
            with_at(n, "barrier.cluster.wait.acquire.aligned;", "")(&text)
        };
        assert!(!cluster_sum().findings(change).is_empty(), "{n}");
    }
}

#[test]
fn a_missing_arrive_at_a_named_barrier_hangs_and_says_so() {
    found(&mirror(), without("bar.arrive"), "deadlock");
}

#[test]
fn a_missing_wait_or_barrier_between_copy_and_mma_is_found() {
    assert!(!gemm_80().findings(without("cp.async.wait_group")).is_empty());
    assert!(!gemm_80().findings(without("bar.sync")).is_empty());
}

#[test]
fn a_missing_proxy_fence_is_out_of_reach() {
    // Stated, so that nobody believes otherwise: only hardware shows it.
    assert!(roles_nt().findings(without("fence.proxy.async")).is_empty());
}

#[test]
#[ignore = "needs an H100 or H200"]
fn every_golden_kernel_is_right_on_a_cuda_device() {
    let driver = open(Device::Cuda(0)).unwrap();
    let cases = [roles_nt(), roles_nn(), multicast(), cluster_sum(), mirror(), bulk(), boxes(), chain(), gemm_80()];
    for (i, case) in cases.into_iter().enumerate() {
        let bench = Bench { driver: &*driver, text: case.text, values: numbers };
        assert_eq!((case.run)(&bench).unwrap(), case.expected, "case {i}");
    }
}
