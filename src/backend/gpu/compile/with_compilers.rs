//! Compiling end to end. Not run by themselves: `cargo test -- --ignored with_compilers`, which ci/run does.

use std::path::Path;

use super::tests::{DEFINES, TRIAL, places};
use super::*;

const BROKEN: Source = Source::new(&[("trial/broken.cu", "extern \"C\" int broken(int x) { return y; }\n")]);

/// The compilers of this machine, which must have one for each of `archs`.
fn compiler_of(archs: &[Arch], cache: Option<&Path>) -> Compiler {
    let compiler = Compiler::new(places(cache));
    for arch in archs {
        let found = compiler.compiler_of(*arch);
        assert!(found.is_ok(), "{}; ci/install brings it", found.unwrap_err());
    }
    compiler
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn one_text_compiles_for_all_four_targets() {
    let compiler = compiler_of(&Arch::ALL, None);
    for arch in Arch::ALL {
        let code = compiler.code(&Request::new(TRIAL, arch, DEFINES)).unwrap();
        assert_eq!(code.bytes[..4], *b"\x7fELF", "{arch}");
        assert_eq!((code.origin, code.arch, code.warning), (Origin::Compiler, arch, None));
        assert!(code.log.contains("trial_fwd"), "{arch}: {}", code.log);
    }
    for arch in [Arch::SM_80, Arch::SM_90A] {
        let code = compiler.code(&Request::new(TRIAL, arch, DEFINES).ptx()).unwrap();
        let text = String::from_utf8(code.bytes).unwrap();
        assert!(text.contains(".entry trial_fwd") && text.contains(&format!(".target {arch}")), "{text}");
    }
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn the_second_time_is_from_the_cache_and_a_damaged_entry_is_made_again_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let get =
        || compiler_of(&[Arch::GFX90A], Some(folder.path())).code(&Request::new(TRIAL, Arch::GFX90A, DEFINES)).unwrap();
    let first = get();
    assert_eq!(first.origin, Origin::Compiler);
    let second = get();
    assert_eq!(second.origin, Origin::Cache);
    assert_eq!((&first.bytes, &first.log), (&second.bytes, &second.log));

    let entry = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entry).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&entry, bytes).unwrap();
    let third = get();
    assert_eq!((third.origin, third.bytes), (Origin::Compiler, first.bytes), "the same text, the same code");
    assert!(third.warning.is_some_and(|w| w.ends_with("its content does not have its hash; it is made again")));
    assert_eq!(get().warning, None, "said once");
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn the_assembly_text_that_comes_with_a_binary_is_the_one_that_is_made_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (source, arch, defines) in
        [(TRIAL, Arch::SM_80, DEFINES), (TRIAL, Arch::SM_90A, DEFINES), (PRODUCT, Arch::SM_80, &[])]
    {
        let request = Request::new(source, arch, defines);
        let alone = compiler_of(&[arch], None).code(&request.ptx()).unwrap();
        let compiler = compiler_of(&[arch], Some(folder.path()));
        assert_eq!(compiler.code(&request).unwrap().origin, Origin::Compiler);
        let beside = compiler.code(&request.ptx()).unwrap();
        assert_eq!((beside.origin, beside.form), (Origin::Cache, Form::Ptx));
        assert_eq!(beside.bytes, alone.bytes, "{request}");
    }
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let compiler = compiler_of(&[Arch::GFX90A], Some(&file.join("x")));
    let code = compiler.code(&Request::new(TRIAL, Arch::GFX90A, DEFINES)).unwrap();
    assert!(code.warning.is_some_and(|w| w.contains("cannot") || w.contains("Not a directory")));
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn a_refused_text_names_kernel_architecture_and_the_line() {
    let compiler = compiler_of(&Arch::ALL, None);
    for arch in Arch::ALL {
        let error = compiler.code(&Request::new(BROKEN, arch, DEFINES)).unwrap_err();
        assert!(matches!(error, Error::Compile(_)));
        let text = error.to_string();
        assert!(text.starts_with(&format!("trial/broken.cu (T=float, N=64) for {arch}: ")), "{text}");
        assert!(
            text.contains("refuses it") && text.contains("trial/broken.cu") && text.contains("\"y\"")
                || text.contains("'y'"),
            "{text}"
        );
        assert!(text.lines().count() <= LOG_LINES + 1);
    }
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn an_architecture_that_a_compiler_does_not_know_is_an_error() {
    let compiler = compiler_of(&Arch::ALL, None);
    for arch in ["sm_55", "sm_999a", "gfx1fff"] {
        let error = compiler.code(&Request::new(TRIAL, arch.parse().unwrap(), DEFINES)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("trial/trial.cu (T=float, N=64) for {arch}: ")), "{error}");
    }
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn a_pack_needs_no_compiler_and_serves_devices_of_the_same_generation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.pack");
    let mut pack = PackWriter::new();
    let request = Request::new(TRIAL, Arch::SM_80, DEFINES);
    let made = compiler_of(&[Arch::SM_80], None).pack(&request, &mut pack).unwrap();
    pack.write(&path).unwrap();
    assert_eq!(Pack::open(&path).unwrap().names().unwrap(), ["trial/trial.cu (T=float, N=64) for sm_80"]);

    let compiler = Compiler::new(Places { pack: PackPlace::Required(path), ..Places::nowhere() });
    for arch in ["sm_80", "sm_86", "sm_89"] {
        let code = compiler.code(&Request { arch: arch.parse().unwrap(), ..request }).unwrap();
        assert_eq!((code.origin, code.arch), (Origin::Pack, Arch::SM_80));
        assert_eq!((&code.bytes, &code.log), (&made.bytes, &made.log));
    }
    for other in
        [Request { arch: Arch::SM_90A, ..request }, Request { defines: &[("T", "float"), ("N", "32")], ..request }]
    {
        let error = compiler.code(&other).unwrap_err().to_string();
        assert!(error.contains("p.pack: does not hold it"), "{error}");
    }
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn resources_of_every_target_are_told() {
    let compiler = compiler_of(&Arch::ALL, None);
    for arch in Arch::ALL {
        let request = Request::new(TRIAL, arch, DEFINES);
        let found = compiler.resources(&request, &compiler.code(&request).unwrap()).unwrap();
        let [r] = found.as_slice() else { panic!("{arch}: {found:?}") };
        assert_eq!((r.kernel.as_str(), r.shared_bytes, r.spilled_bytes), ("trial_fwd", 256, 0), "{arch}");
        assert!((1..64).contains(&r.registers), "{arch}: {r:?}");
        assert!(r.matrix.counts.is_empty());
    }
}

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn an_architecture_that_is_not_emulated_is_told_by_the_compiler_alone() {
    let compiler = compiler_of(&[Arch::GFX90A], None);
    let request = Request::new(TRIAL, "gfx908".parse().unwrap(), DEFINES);
    let found = compiler.resources(&request, &compiler.code(&request).unwrap()).unwrap();
    assert_eq!((found[0].shared_bytes, found[0].matrix.counted_in), (256, CountedIn::Nothing));
    assert!((1..64).contains(&found[0].registers));
}

/// A kernel with one product of 16 x 8 x 16, by the instruction that sm_80 and all after it have.
const PRODUCT: Source = Source::new(&[(
    "trial/product.cu",
    r#"
extern "C" __global__ void product_fwd(float4* y, const uint4* a, const uint2* b) {
    uint4 x = a[threadIdx.x];
    uint2 z = b[threadIdx.x];
    float4 c = {0, 0, 0, 0};
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w) : "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(z.x), "r"(z.y));
    y[threadIdx.x] = c;
}
extern "C" __global__ void product_bwd(float* y) { y[threadIdx.x] = 1.0f; }
"#,
)]);

#[test]
#[ignore = "needs NVRTC, nvdisasm and clang-19: see ci/install"]
fn matrix_instructions_are_counted_with_and_without_a_disassembler() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request::new(PRODUCT, Arch::SM_80, &[]);
    let with = |nvdisasm: Vec<std::path::PathBuf>| {
        let compiler = Compiler::new(Places { nvdisasm, ..places(Some(folder.path())) });
        let found = compiler.resources(&request, &compiler.code(&request).unwrap()).unwrap();
        let of = |kernel: &str| found.iter().find(|r| r.kernel == kernel).unwrap().matrix.clone();
        assert_eq!((of("product_fwd").count("HMMA"), of("product_bwd").counts.len()), (1, 0));
        of("product_fwd").counted_in
    };
    assert_eq!(with(vec![]), CountedIn::Ptx);
    assert!(Nvdisasm::find(&Places::here().nvdisasm).is_some(), "nvdisasm is missing; ci/install brings it");
    // Made, then found in the cache.
    assert_eq!([with(Places::here().nvdisasm), with(Places::here().nvdisasm)], [CountedIn::Sass; 2]);
}
