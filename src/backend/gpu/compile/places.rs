//! Where code, compilers and texts are looked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::pack::PackPlace;

/// The file beside the binary that holds compiled code.
const PACK: &str = "perfrun.pack";

/// Where to look for everything that compiling needs. Lists are tried in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Code that was compiled elsewhere.
    pub pack: PackPlace,
    /// Code that was compiled here before; without it nothing is kept.
    pub cache: Option<PathBuf>,
    /// A folder like `kernels/`, read instead of the texts in the binary.
    pub kernels: Option<PathBuf>,
    /// NVIDIA's compiler: paths of the library, or names for the loader.
    pub nvrtc: Vec<PathBuf>,
    /// AMD's compiler, the same.
    pub hiprtc: Vec<PathBuf>,
    /// clang: paths, or names for `PATH`.
    pub clang: Vec<PathBuf>,
    /// NVIDIA's disassembler, the same.
    pub nvdisasm: Vec<PathBuf>,
}

impl Places {
    /// Nothing anywhere: what a test fills in by itself.
    pub const fn nowhere() -> Places {
        Places {
            pack: PackPlace::None,
            cache: None,
            kernels: None,
            nvrtc: Vec::new(),
            hiprtc: Vec::new(),
            clang: Vec::new(),
            nvdisasm: Vec::new(),
        }
    }

    /// What this process's environment says, and the usual places:
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `PERFRUN_PACK` | the pack, instead of `perfrun.pack` beside the binary |
    /// | `XDG_CACHE_HOME` | holds `perfrun/kernels`; else `~/.cache` does |
    /// | `KERNEL_DIR` | texts of kernels, instead of those in the binary |
    /// | `NVRTC_PATH`, `HIPRTC_PATH`, `PERFRUN_CLANG` | this compiler and no other: a file, or a folder that holds it |
    /// | `CUDA_HOME`, `CUDA_PATH`, `ROCM_PATH` | the vendors' installations |
    /// | `VIRTUAL_ENV` | a Python environment with NVIDIA's wheels |
    pub fn here() -> Places {
        Places::new(|name| std::env::var_os(name).filter(|v| !v.is_empty()), std::env::current_exe().ok().as_deref())
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>, exe: Option<&Path>) -> Places {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let beside = exe.and_then(Path::parent);
        let pack = match (path("PERFRUN_PACK"), beside) {
            (Some(pack), _) => PackPlace::Required(pack),
            (None, Some(folder)) => PackPlace::IfThere(folder.join(PACK)),
            (None, None) => PackPlace::None,
        };
        // A relative XDG_CACHE_HOME is to be ignored, says its specification.
        let cache =
            path("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| path("HOME").map(|h| h.join(".cache")));
        let cuda: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|n| path(n)).collect();
        let cuda = [cuda, vec!["/usr/local/cuda".into()]].concat();
        let rocm: Vec<PathBuf> = path("ROCM_PATH").into_iter().chain(["/opt/rocm".into()]).collect();
        let wheels = wheels(path("VIRTUAL_ENV"), beside);

        let mut nvrtc = chosen(path("NVRTC_PATH"), &NVRTC);
        if nvrtc.is_empty() {
            nvrtc.extend(NVRTC.map(PathBuf::from));
            let folders = cuda.iter().map(|c| c.join("lib64"));
            let wheels = wheels.iter().flat_map(|w| ["cuda_nvrtc/lib", "cu13/lib", "cu12/lib"].map(|l| w.join(l)));
            nvrtc.extend(folders.chain(wheels).flat_map(|f| existing(&f, &NVRTC)));
        }
        let mut hiprtc = chosen(path("HIPRTC_PATH"), &HIPRTC);
        if hiprtc.is_empty() {
            hiprtc.extend(HIPRTC.map(PathBuf::from));
            hiprtc.extend(rocm.iter().flat_map(|r| existing(&r.join("lib"), &HIPRTC)));
        }
        let mut clang = chosen(path("PERFRUN_CLANG"), &CLANG);
        if clang.is_empty() {
            clang.extend(CLANG.map(PathBuf::from));
            clang.extend(rocm.iter().map(|r| r.join("llvm/bin/clang")));
        }
        let mut nvdisasm = vec![PathBuf::from("nvdisasm")];
        let folders = cuda.iter().chain(&wheels).flat_map(|c| [c.join("bin"), c.join("cu13/bin")]);
        nvdisasm.extend(folders.flat_map(|f| existing(&f, &["nvdisasm"])));
        Places {
            pack,
            cache: cache.map(|c| c.join("perfrun/kernels")),
            kernels: path("KERNEL_DIR"),
            nvrtc,
            hiprtc,
            clang,
            nvdisasm,
        }
    }
}

const NVRTC: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// Before ROCm 6 the compiler was part of the runtime.
const HIPRTC: [&str; 5] = ["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so.5", "libamdhip64.so.5", "libhiprtc.so"];
const CLANG: [&str; 1] = ["clang-19"];

/// What a variable names: a file, or the files of these names in a folder.
fn chosen(path: Option<PathBuf>, names: &[&str]) -> Vec<PathBuf> {
    match path {
        Some(folder) if folder.is_dir() => names.iter().map(|n| folder.join(n)).collect(),
        Some(file) => vec![file],
        None => vec![],
    }
}

/// The files of these names that are in `folder`: a list of what was tried is to be short.
fn existing(folder: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|n| folder.join(n)).filter(|p| p.exists()).collect()
}

/// Folders `nvidia` of Python environments: the user's, and the one that `ci/install` makes in `tools` beside the build.
fn wheels(environment: Option<PathBuf>, beside: Option<&Path>) -> Vec<PathBuf> {
    // target/debug/perfrun, target/debug/deps/main-…: the folder is at most three levels up.
    let tools = beside.into_iter().flat_map(|b| b.ancestors().take(3)).map(|a| a.join("tools"));
    let libraries = environment.into_iter().chain(tools).map(|e| e.join("lib"));
    let pythons = libraries.flat_map(|lib| {
        let entries = std::fs::read_dir(lib).into_iter().flatten().flatten().map(|e| e.path());
        let mut pythons: Vec<PathBuf> =
            entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3"))).collect();
        pythons.sort();
        pythons
    });
    pythons.map(|p| p.join("site-packages/nvidia")).filter(|p| p.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(variables: &[(&str, &Path)], exe: &str) -> Places {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Places::new(get, Some(Path::new(exe)))
    }

    #[test]
    fn without_variables_the_loader_is_asked_first_and_nothing_must_be_there() {
        let found = places(&[("HOME", Path::new("/home/a"))], "/x/perfrun");
        assert_eq!(found.pack, PackPlace::IfThere("/x/perfrun.pack".into()));
        assert_eq!(found.cache, Some("/home/a/.cache/perfrun/kernels".into()));
        assert_eq!(found.nvrtc[..3], NVRTC.map(PathBuf::from));
        assert_eq!(found.clang[0], Path::new("clang-19"));
        assert_eq!(found.kernels, None);
    }

    #[test]
    fn what_a_variable_names_is_taken_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libmine.so");
        let (pack, cache) = (folder.path().join("a.pack"), folder.path().join("c"));
        let found = places(
            &[
                ("PERFRUN_PACK", &pack),
                ("XDG_CACHE_HOME", &cache),
                ("NVRTC_PATH", &file),
                ("HIPRTC_PATH", folder.path()),
                ("PERFRUN_CLANG", &file),
                ("KERNEL_DIR", Path::new("kernels")),
            ],
            "/x/perfrun",
        );
        assert_eq!(found.pack, PackPlace::Required(pack));
        assert_eq!(found.cache, Some(cache.join("perfrun/kernels")));
        assert_eq!((found.nvrtc, found.clang), (vec![file.clone()], vec![file]));
        assert_eq!(found.hiprtc, HIPRTC.map(|n| folder.path().join(n)));
        assert_eq!(found.kernels, Some("kernels".into()));
        assert_eq!(places(&[("XDG_CACHE_HOME", Path::new("relative"))], "/x/perfrun").cache, None);
    }

    #[test]
    fn wheels_are_found_in_the_environment_and_beside_the_build() {
        let folder = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"").unwrap();
            path
        };
        let twelve = make("env/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        let thirteen = make("target/tools/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
        let nvdisasm = make("target/tools/lib/python3.12/site-packages/nvidia/cu13/bin/nvdisasm");
        let exe = folder.path().join("target/debug/deps/main-1234");
        let found = places(&[("VIRTUAL_ENV", &folder.path().join("env"))], &exe.to_string_lossy());
        let inside: Vec<&PathBuf> = found.nvrtc.iter().filter(|p| p.starts_with(folder.path())).collect();
        assert_eq!(inside, [&twelve, &thirteen]);
        assert!(found.nvdisasm.contains(&nvdisasm));
    }
}
