//! Vendor libraries by file name: which of them the loader would find here. Nothing is opened.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A library of a vendor.
#[derive(Debug, Serialize)]
pub(crate) struct Library {
    /// What it is for.
    pub(crate) about: &'static str,
    /// The names that it goes by.
    pub(crate) names: &'static [&'static str],
    /// Where it lies, all places.
    pub(crate) found: Vec<PathBuf>,
}

const KNOWN: [(&str, &[&str]); 9] = [
    ("cuda driver", &["libcuda.so.1"]),
    ("cuda run-time compiler", &["libnvrtc.so.13", "libnvrtc.so.12"]),
    ("cuda matrix products", &["libcublasLt.so.13", "libcublasLt.so.12"]),
    ("cuda collectives", &["libnccl.so.2"]),
    ("hip runtime", &["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"]),
    ("hip run-time compiler", &["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so.5"]),
    ("hip matrix products", &["libhipblaslt.so.1", "libhipblaslt.so.0"]),
    ("hip collectives", &["librccl.so.1"]),
    ("hdf5", &["libhdf5.so.310", "libhdf5.so.200", "libhdf5.so.103", "libhdf5_serial.so.103"]),
];

/// Every known library with the places where it is.
pub(crate) fn search() -> Vec<Library> {
    let folders = folders();
    let library = |&(about, names): &(&'static str, &'static [&'static str])| {
        let places = folders.iter().flat_map(|f| names.iter().map(|n| f.join(n)));
        // The same file under two folders that are one is told once.
        let found: BTreeSet<PathBuf> = places.filter(|p| p.exists()).filter_map(|p| p.canonicalize().ok()).collect();
        Library { about, names, found: found.into_iter().collect() }
    };
    KNOWN.iter().map(library).collect()
}

/// Where the loader looks, and where the vendors install.
fn folders() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::env::var_os("LD_LIBRARY_PATH").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default();
    all.extend(configured(Path::new("/etc/ld.so.conf"), 0));
    let arch = std::env::consts::ARCH;
    for folder in ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/cuda/lib64", "/opt/rocm/lib"] {
        all.push(folder.into());
    }
    all.push(format!("/usr/lib/{arch}-linux-gnu").into());
    all.retain(|f| f.is_absolute());
    all
}

/// The folders of the loader's configuration, `include` lines followed.
fn configured(file: &Path, depth: usize) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines().map(|l| l.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include ").map(str::trim) {
            // The pattern is always `folder/*.conf`.
            Some(pattern) if depth < 4 => {
                let folder = Path::new(pattern).parent().unwrap_or(Path::new("/etc/ld.so.conf.d"));
                let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
                let files = entries.filter(|p| p.extension().is_some_and(|e| e == "conf"));
                found.extend(files.flat_map(|f| configured(&f, depth + 1)));
            }
            None if line.starts_with('/') => found.push(line.into()),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_followed_and_comments_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        std::fs::write(path("main.conf"), format!("include {}/*.conf\n/a # here\n# /b\n", path("d").display()))
            .unwrap();
        std::fs::write(path("d/x.conf"), "/c\nrelative\n").unwrap();
        std::fs::write(path("d/y.txt"), "/e\n").unwrap();
        assert_eq!(configured(&path("main.conf"), 0), [PathBuf::from("/c"), PathBuf::from("/a")]);
    }

    #[test]
    fn an_include_of_itself_ends() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.conf");
        std::fs::write(&file, format!("include {}/*.conf\n/a\n", dir.path().display())).unwrap();
        assert!(configured(&file, 0).len() < 10);
    }
}
