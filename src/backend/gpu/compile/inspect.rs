//! Looks into compiled code: what its kernels use.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::cache::{Cache, Found};
use super::clang::Scratch;
use super::promise::Promise;
use super::request::{Form, Key, Request};
use super::resources::{CountedIn, Matrix, Resources, count_ptx, count_sass, of_object, of_ptxas, of_remarks};
use super::{Code, Compiler};
use crate::backend::gpu::driver::Arch;
use crate::error::{Error, Result};

/// Counts of matrix instructions by kernel.
type Counts = BTreeMap<String, BTreeMap<String, u32>>;

/// NVIDIA's disassembler, which is there or not.
#[derive(Debug)]
pub(super) struct Nvdisasm {
    program: PathBuf,
    version: String,
}

impl Nvdisasm {
    pub(super) fn find(candidates: &[PathBuf]) -> Option<Nvdisasm> {
        candidates.iter().find_map(|program| {
            let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.lines().find(|l| l.contains("release"))?.trim().to_owned();
            output.status.success().then(|| Nvdisasm { program: program.clone(), version })
        })
    }

    /// The instructions of a cubin as text.
    fn text(&self, code: &[u8]) -> Result<String, String> {
        let folder = Scratch::new()?;
        let failed = |e: std::io::Error| format!("{}: {e}", self.program.display());
        std::fs::write(folder.path().join("code.cubin"), code).map_err(failed)?;
        // Without its analysis of data flow, which takes longest and is not asked for.
        let output = Command::new(&self.program)
            .args(["-c", "-ndf", "code.cubin"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            let word = log.lines().next().unwrap_or("it says nothing").to_owned();
            return Err(format!("{}: {}: {word}", self.program.display(), output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Code that has been looked into.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// The code.
    pub code: Code,
    /// What each of its kernels uses.
    pub resources: Vec<Resources>,
    /// What it breaks of what its file promises, a line each; [`Promise`].
    pub broken: Vec<String>,
}

impl Compiler {
    /// Compiles `request`, looks into the code and holds it to the promises of its file.
    ///
    /// # Errors
    /// Those of [`code`](Compiler::code) and [`resources`](Compiler::resources).
    pub fn inspect(&self, request: &Request<'_>) -> Result<Inspection> {
        let code = self.code(request)?;
        let resources = self.resources(request, &code)?;
        let dtype = request.defines.iter().find(|(name, _)| *name == "T").map(|(_, dtype)| *dtype);
        let broken = match Promise::read(&self.text(request)?.kernel.text) {
            Ok(promise) => promise.broken(request.arch, dtype, &resources),
            Err(why) => vec![why],
        };
        Ok(Inspection { code, resources, broken })
    }

    /// What each kernel of `code` uses, which was made for `request`.
    ///
    /// Matrix instructions of NVIDIA's code are counted in the machine's instructions if nvdisasm is there, else in PTX.
    ///
    /// # Errors
    /// [`Error::Compile`] if the compiler's log tells nothing, or a tool fails.
    pub fn resources(&self, request: &Request<'_>, code: &Code) -> Result<Vec<Resources>> {
        let nvidia = request.arch.is_nvidia();
        let mut found = match request.arch {
            Arch::GFX90A | Arch::GFX942 => {
                of_object(&code.bytes).map_err(|why| Error::compile(format!("{request}: {why}")))?
            }
            Arch::Gfx(_) => of_remarks(&code.log),
            Arch::Sm { .. } => of_ptxas(&code.log),
        };
        if found.is_empty() || code.form == Form::Ptx {
            return Err(Error::compile(format!("{request}: its compiler's log tells no registers")));
        }
        if nvidia {
            let (mut counts, counted_in) = self.nvidia_matrix(request, code)?;
            for r in &mut found {
                r.matrix = Matrix { counts: counts.remove(&r.kernel).unwrap_or_default(), counted_in };
            }
        }
        Ok(found)
    }

    /// Counts in NVIDIA's code, and what they were made in. Instructions such as `mma.sync` come from the text alone: there is
    /// no other way to write one than inline assembly.
    fn nvidia_matrix(&self, request: &Request<'_>, code: &Code) -> Result<(Counts, CountedIn)> {
        // Most kernels have no such instruction in any file of theirs, and need not be compiled again to be sure.
        let text = self.text(request)?;
        if !std::iter::once(&text.kernel).chain(&text.headers).any(|f| f.text.contains("mma.")) {
            return Ok((Counts::new(), CountedIn::Text));
        }
        let ptx = self.code(&Request { arch: code.arch, ..*request }.ptx())?;
        let counts = count_ptx(&String::from_utf8_lossy(&ptx.bytes));
        // The assembler adds no matrix instruction by itself.
        let Some(nvdisasm) = self.nvdisasm().filter(|_| !counts.is_empty()) else {
            return Ok((counts, CountedIn::Ptx));
        };
        let key = Key::of(&code.bytes).with(&nvdisasm.version, &["counts".to_owned()]);
        let cache = self.places().cache.as_deref().map(Cache::new);
        if let Some(Found::Entry(_, text)) = cache.as_ref().map(|c| c.get(&key))
            && let Ok(counts) = serde_json::from_str(&text)
        {
            return Ok((counts, CountedIn::Sass));
        }
        let text = nvdisasm.text(&code.bytes).map_err(|why| Error::compile(format!("{request}: {why}")))?;
        let counts = count_sass(&text);
        if let (Some(cache), Ok(text)) = (cache, serde_json::to_string(&counts)) {
            // A count that is not kept is made again.
            let _ = cache.put(&key, &[], &text);
        }
        Ok((counts, CountedIn::Sass))
    }
}
