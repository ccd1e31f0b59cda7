//! Every kernel file, compiled for every target and held to what its header block promises. Not run by themselves: `cargo
//! test -- --ignored with_compilers`, which ci/run does.

use std::collections::BTreeSet;

use perfrun::backend::gpu::KERNELS;
use perfrun::backend::gpu::compile::{Compiler, PackPlace, Places, Request, Source};
use perfrun::backend::gpu::driver::Arch;
use perfrun::backend::gpu::kernel::{Unit, Variant};
use perfrun::ops::ROOMS;
use rayon::prelude::*;

use super::on_disk;
use crate::source::{files, read};

/// The compilers of this machine, which must have one for `arch`, and the cache, but no pack: what is tested is the text.
fn compiler(arch: Arch) -> Compiler {
    let compiler = Compiler::new(Places { pack: PackPlace::None, ..Places::here() });
    let found = compiler.compiler_of(arch);
    assert!(found.is_ok(), "{}; ci/install brings it", found.unwrap_err());
    compiler
}

/// Every source with its specialisations: what the rooms list, and the files that no room lists yet, by storage type.
fn units() -> Vec<(Source, Vec<Variant>)> {
    let mut all: Vec<(Source, Vec<Variant>)> = Vec::new();
    for unit in ROOMS.iter().flat_map(|r| r.kernels).chain(KERNELS) {
        all.push((unit.source, unit.variants().collect()));
    }
    let listed: BTreeSet<&str> = all.iter().flat_map(|(s, _)| s.files()).map(|f| f.0).collect();
    for path in on_disk().iter().filter(|p| !listed.contains(p.as_str())) {
        // Read while the test runs, so the text has to live as long as it does.
        let path: &'static str = path.clone().leak();
        let text: &'static str = read(&format!("kernels/{path}")).leak();
        let source = Source::new(vec![(path, text)].leak());
        all.push((source, Unit::floats(source).variants().collect()));
    }
    all
}

/// Has a process of its own compile everything for `arch` first: NVRTC does one file at a time in a process, and the tests
/// of two architectures run side by side. What it finds wrong, the test finds again in the cache.
fn fill_cache(arch: Arch) {
    if arch.is_nvidia() {
        let mut perfrun = std::process::Command::new(env!("CARGO_BIN_EXE_perfrun"));
        drop(perfrun.args(["compile", "--json", "--arch", &arch.to_string()]).output());
    }
}

/// What is wrong with the code of every kernel for `arch`.
fn faults(arch: Arch) -> Vec<String> {
    let compiler = compiler(arch);
    fill_cache(arch);
    let one = |(source, variant): (Source, Variant)| -> Vec<String> {
        let defines = variant.defines();
        let defines: Vec<(&str, &str)> = defines.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let request = Request::new(source, arch, &defines);
        if source.file(arch).0.is_empty() {
            // A sibling that no room lists, for other architectures.
            return Vec::new();
        }
        match compiler.inspect(&request) {
            Ok(inspection) => inspection.broken.iter().map(|b| format!("{request}: {b}")).collect(),
            Err(e) => vec![e.to_string()],
        }
    };
    let jobs: Vec<(Source, Variant)> =
        units().into_iter().flat_map(|(s, v)| v.into_iter().map(move |v| (s, v))).collect();
    jobs.into_par_iter().flat_map_iter(one).collect()
}

fn every_kernel_keeps_its_promises_on(arch: Arch) {
    let faults = faults(arch);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn every_kernel_keeps_its_promises_on_sm_80() {
    every_kernel_keeps_its_promises_on(Arch::SM_80);
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn every_kernel_keeps_its_promises_on_sm_90a() {
    every_kernel_keeps_its_promises_on(Arch::SM_90A);
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn every_kernel_keeps_its_promises_on_gfx90a() {
    every_kernel_keeps_its_promises_on(Arch::GFX90A);
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn every_kernel_keeps_its_promises_on_gfx942() {
    every_kernel_keeps_its_promises_on(Arch::GFX942);
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn the_kernels_that_the_emulator_is_tested_with_compile() {
    let compiler = compiler(Arch::SM_90A);
    for path in files("tests/golden/ptx", &[".cu"]) {
        let arch = if path.ends_with("_sm90.cu") { Arch::SM_90A } else { Arch::SM_80 };
        let text: &'static str = read(&path).leak();
        let source = Source::new(vec![(&*path.clone().leak(), text)].leak());
        let code = compiler.code(&Request::new(source, arch, &[]));
        assert!(code.is_ok(), "{path}: {:?}", code.err());
    }
}
