//! clang as a child process: makes AMD code objects on machines without AMD's software.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::rtc::Failure;
use super::source::{File, Text};

/// A clang that answers.
#[derive(Debug)]
pub(super) struct Clang {
    program: PathBuf,
    version: String,
}

impl Clang {
    /// The first of `candidates` that tells its version; names without a folder are looked for in `PATH`.
    ///
    /// # Errors
    /// What was tried, with the system's answers.
    pub(super) fn find(candidates: &[PathBuf]) -> Result<Clang, Vec<String>> {
        let mut tried = Vec::new();
        for program in candidates {
            match version(program) {
                Ok(version) => return Ok(Clang { program: program.clone(), version }),
                Err(why) => tried.push(format!("{}: {why}", program.display())),
            }
        }
        Err(tried)
    }

    /// Its own words: "Debian clang version 19.1.7 (3~deb12u1)".
    pub(super) fn name(&self) -> &str {
        &self.version
    }

    pub(super) fn path(&self) -> &Path {
        &self.program
    }

    /// Code and log of one text.
    pub(super) fn compile(&self, text: &Text, options: &[String]) -> Result<(Vec<u8>, String), Failure> {
        // Named from inside the folder, so that neither code nor log depends on where the folder lies.
        let folder = Scratch::new().map_err(Failure::Call)?;
        for file in std::iter::once(&text.kernel).chain(&text.headers) {
            folder.write(file).map_err(Failure::Call)?;
        }
        let call = |e: std::io::Error| Failure::Call(format!("{}: {e}", self.program.display()));
        let output = Command::new(&self.program)
            .args(options)
            .args(["-I", ".", "-o", "code.co", &text.kernel.path])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .map_err(call)?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(Failure::Refused(output.status.to_string(), log));
        }
        let code = fs::read(folder.path().join("code.co")).map_err(call)?;
        Ok((code, log))
    }
}

/// The first line of `--version`, or why there is none.
fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "not found".to_owned(),
        _ => e.to_string(),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().trim();
    if output.status.success() && line.contains("clang version") {
        Ok(line.to_owned())
    } else {
        Err(format!("expected a clang, but --version says `{line}` ({})", output.status))
    }
}

/// A new folder for one process's files, removed with this value.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn new() -> Result<Scratch, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let temporary = std::env::temp_dir();
        // A name that a stranger took, or that a process of the same number left, is passed over.
        for _ in 0..1000 {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = temporary.join(format!("perfrun-compile-{}-{count}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch { path }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(format!("{}: cannot create: {e}", path.display())),
            }
        }
        Err(format!("{}: no name is free for a folder", temporary.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, file: &File) -> Result<(), String> {
        // Paths come from `#include` lines: they must not lead out of the folder.
        let is_inside = Path::new(&file.path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !is_inside {
            return Err(format!("\"{}\": expected a path inside kernels/", file.path));
        }
        let path = self.path.join(&file.path);
        let parent = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, file.text.as_bytes()))
            .map_err(|e| format!("{}: cannot write: {e}", path.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be removed lies where the system cleans up.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_clang_is_told_with_its_answer() {
        let tried = Clang::find(&["/nonexistent/clang".into(), "/bin/echo".into()]).unwrap_err();
        assert_eq!(tried[0], "/nonexistent/clang: not found");
        assert!(tried[1].starts_with("/bin/echo: expected a clang, but --version says `"), "{tried:?}");
    }

    #[test]
    fn a_scratch_folder_is_new_vanishes_and_keeps_files_inside() {
        let (a, b) = (Scratch::new().unwrap(), Scratch::new().unwrap());
        assert_ne!(a.path(), b.path());
        let file = |path: &str| File { path: path.into(), text: "x".into() };
        a.write(&file("common/x.cuh")).unwrap();
        assert_eq!(fs::read_to_string(a.path().join("common/x.cuh")).unwrap(), "x");
        for outside in ["../x", "/tmp/x", "common/../../x"] {
            assert!(a.write(&file(outside)).is_err(), "{outside}");
        }
        let path = a.path().to_path_buf();
        drop(a);
        assert!(!path.exists());
    }
}
