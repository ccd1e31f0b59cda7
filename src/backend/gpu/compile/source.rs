//! The text of kernels: embedded in the binary, or read from a folder while they are being written.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use crate::backend::gpu::driver::Arch;
use crate::error::{Error, Result};

/// Embeds a kernel file and its siblings, by their paths inside `kernels/`, the plain file first:
/// `source!("matmul/matmul.cu", "matmul/matmul.sm90.cu")`.
#[macro_export]
macro_rules! source {
    ($($path:literal),+ $(,)?) => {
        $crate::backend::gpu::compile::Source::new(&[
            $(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $path)))),+
        ])
    };
}

/// A kernel file, and its siblings for particular architectures: paths inside `kernels/` with their texts.
///
/// The plain file comes first. A sibling `matmul.sm90.cu` or `matmul.gfx90a.hip` replaces it on the devices that its suffix
/// fits; the highest that fits is taken.
#[derive(Clone, Copy)]
pub struct Source {
    files: &'static [(&'static str, &'static str)],
}

impl Source {
    /// A source of these files; [`source!`](crate::source) is how they get into the binary.
    pub const fn new(files: &'static [(&'static str, &'static str)]) -> Source {
        Source { files }
    }

    /// The plain file: its path names the source.
    pub fn path(&self) -> &'static str {
        self.files.first().map_or("", |f| f.0)
    }

    /// Every file, the plain one first.
    pub fn files(&self) -> &'static [(&'static str, &'static str)] {
        self.files
    }

    /// The file that devices of `arch` take.
    pub fn file(&self, arch: Arch) -> (&'static str, &'static str) {
        let best = self.files.iter().filter_map(|f| Some((rank(f.0, arch)?, *f))).max_by_key(|(rank, _)| *rank);
        best.map_or(("", ""), |(_, file)| file)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files.iter().map(|file| file.0)).finish()
    }
}

/// How well the file of this name fits `arch`: `None` if not at all, 0 for a plain file.
///
/// What Hopper and later have beyond their predecessors no successor keeps (the "a" of sm_90a), so such a sibling is for its
/// own generation; and the matrix instructions of CDNA (gfx9) do not exist on other AMD families.
fn rank(path: &str, arch: Arch) -> Option<u32> {
    let name = path.rsplit('/').next()?;
    let Some(suffix) = name.split('.').nth(1).filter(|_| name.split('.').count() == 3) else {
        return Some(0);
    };
    match arch {
        Arch::Sm { capability, .. } => {
            let needs = suffix.strip_prefix("sm")?.parse().ok()?;
            (if needs >= 90 { capability == needs } else { capability >= needs }).then_some(needs)
        }
        Arch::Gfx(number) => {
            let needs = u32::from_str_radix(suffix.strip_prefix("gfx")?, 16).ok()?;
            (needs >> 8 == number >> 8 && needs <= number).then_some(needs)
        }
    }
}

/// A file of kernel text, by its path inside `kernels/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path inside `kernels/`, as an `#include` writes it.
    pub path: String,
    /// What is in it.
    pub text: Cow<'static, str>,
}

/// A kernel file with every header that it includes, directly or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The kernel file.
    pub kernel: File,
    /// Its headers, in the order in which they are met.
    pub headers: Vec<File>,
}

/// Where texts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Texts {
    /// From the binary; headers from this list of paths and texts.
    Embedded(&'static [(&'static str, &'static str)]),
    /// From a folder that looks like `kernels/`: edit, run again, no build.
    Folder(Box<Path>),
}

impl Texts {
    /// The text that devices of `arch` take, with its headers.
    ///
    /// # Errors
    /// [`Error::Compile`] if a header is not there, with the file that includes it; [`Error::Io`] if the folder cannot be read.
    pub fn resolve(&self, source: &Source, arch: Arch) -> Result<Text> {
        let kernel = self.kernel(source, arch)?;
        let mut headers: Vec<File> = Vec::new();
        let mut open = includes(&kernel);
        // Also what stands in a branch that the preprocessor skips: the key may know more than was used, never less.
        while let Some((from, name)) = open.pop() {
            if !headers.iter().any(|h| h.path == name) {
                let header = self.header(&name).map_err(|why| {
                    Error::compile(format!(
                        "{from}: includes \"{name}\": {why}; headers are named from kernels/, as \"common/device.cuh\""
                    ))
                })?;
                open.extend(includes(&header));
                headers.push(header);
            }
        }
        Ok(Text { kernel, headers })
    }

    fn kernel(&self, source: &Source, arch: Arch) -> Result<File> {
        let (path, text) = source.file(arch);
        match self {
            Texts::Embedded(_) => Ok(File { path: path.into(), text: text.into() }),
            Texts::Folder(folder) => {
                let file = folder.join(path);
                let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
                Ok(File { path: path.into(), text: text.into() })
            }
        }
    }

    fn header(&self, name: &str) -> Result<File, String> {
        let text: Cow<'static, str> = match self {
            Texts::Embedded(headers) => {
                let found = headers.iter().find(|(path, _)| *path == name);
                found.ok_or("no header of this name is embedded")?.1.into()
            }
            Texts::Folder(folder) => {
                let file = folder.join(name);
                std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?.into()
            }
        };
        Ok(File { path: name.into(), text })
    }
}

/// The names in `#include "…"` lines, each with the file that says it. Names in angle brackets are the compiler's own.
fn includes(file: &File) -> Vec<(String, String)> {
    let name = |line: &str| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        Some(rest.trim_start().strip_prefix('"')?.split('"').next()?.to_owned())
    };
    let mut names: Vec<_> = file.text.lines().filter_map(name).map(|n| (file.path.clone(), n)).collect();
    // They are taken from the end.
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source::new(&[
        ("m/m.cu", "plain"),
        ("m/m.sm90.cu", "sm90"),
        ("m/m.sm80.cu", "sm80"),
        ("m/m.gfx90a.hip", "gfx90a"),
        ("m/m.gfx942.hip", "gfx942"),
    ]);

    #[test]
    fn the_highest_sibling_that_a_device_satisfies_is_taken() {
        let taken = |arch: &str| SOURCE.file(arch.parse().unwrap()).1;
        assert_eq!(taken("sm_75"), "plain");
        assert_eq!(taken("sm_80"), "sm80");
        assert_eq!(taken("sm_86"), "sm80");
        assert_eq!(taken("sm_90a"), "sm90");
        assert_eq!(taken("sm_100a"), "sm80", "wgmma exists on 9.0 alone");
        assert_eq!(taken("gfx908"), "plain");
        assert_eq!(taken("gfx90a"), "gfx90a");
        assert_eq!(taken("gfx942"), "gfx942");
        assert_eq!(taken("gfx950"), "gfx942");
        assert_eq!(taken("gfx1100"), "plain", "RDNA has no matrix instructions of CDNA");
    }

    #[test]
    fn a_rung_of_a_ladder_is_a_plain_file() {
        let rung = Source::new(&[("m/ladder/1_naive.cu", "rung")]);
        assert_eq!(rung.file(Arch::SM_90A), ("m/ladder/1_naive.cu", "rung"));
    }

    #[test]
    fn headers_are_found_through_headers_and_once_each() {
        const HEADERS: &[(&str, &str)] = &[
            ("common/a.cuh", "#pragma once\n#include \"common/b.cuh\"\n"),
            ("common/b.cuh", "#include \"common/a.cuh\"\n# include  \"common/c.cuh\" // why\n"),
            ("common/c.cuh", "#include <cstdint>\n"),
            ("common/unused.cuh", ""),
        ];
        let source = Source::new(&[("k/k.cu", "#include \"common/a.cuh\"\n  #include \"common/c.cuh\"\n")]);
        let text = Texts::Embedded(HEADERS).resolve(&source, Arch::SM_80).unwrap();
        let names: Vec<&str> = text.headers.iter().map(|h| h.path.as_str()).collect();
        assert_eq!(names, ["common/a.cuh", "common/b.cuh", "common/c.cuh"]);
    }

    #[test]
    fn a_missing_header_names_itself_and_who_wants_it() {
        let source = Source::new(&[("k/k.cu", "#include \"device.cuh\"")]);
        let error = Texts::Embedded(&[]).resolve(&source, Arch::SM_80).unwrap_err().to_string();
        assert!(error.starts_with("k/k.cu: includes \"device.cuh\": no header of this name is embedded"), "{error}");
    }

    #[test]
    fn a_folder_replaces_what_is_embedded() {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [("m/m.sm90.cu", "#include \"common/x.cuh\"\nedited"), ("common/x.cuh", "x")] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let texts = Texts::Folder(folder.path().into());
        let text = texts.resolve(&SOURCE, Arch::SM_90A).unwrap();
        assert!(text.kernel.text.ends_with("edited") && text.headers[0].text == "x");
        let error = texts.resolve(&SOURCE, Arch::SM_80).unwrap_err().to_string();
        assert!(error.contains("m/m.sm80.cu: cannot read"), "{error}");
    }
}
