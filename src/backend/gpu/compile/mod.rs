//! Where code objects come from.
//!
//! Looked for in this order: a pack, made elsewhere by `perfrun compile --pack`; the cache on disk; then a compiler makes
//! it: NVRTC for NVIDIA, hipRTC for an AMD device of this process, clang for any AMD architecture. If none of these is there,
//! one error says what was tried.
//!
//! # What loads where
//! A cubin loads on devices of its own major version whose minor version is not lower: sm_80 on 8.0, 8.6 and 8.9, and not on
//! 9.0. sm_90a loads on 9.0 alone, and only such code has wgmma. So devices of 8.x take their exact architecture from a
//! compiler, or sm_80 from a pack; 9.0 takes sm_90a. An AMD code object for gfx90a loads on every gfx90a, whatever its settings
//! of ECC and XNACK.
//!
//! # Floating point
//! Alike on both vendors: a product and a sum are fused where the text says `fmaf` and nowhere else, so that a result does not
//! depend on which version of which compiler found the pair; division and square root are rounded correctly; subnormal
//! numbers are kept; no other licence is taken.

mod cache;
mod clang;
mod headers;
mod inspect;
mod pack;
mod places;
mod promise;
mod request;
mod resources;
mod rtc;
mod source;

use std::path::Path;
use std::sync::OnceLock;

pub use headers::HEADERS;
pub use inspect::Inspection;
pub use pack::{Pack, PackPlace, PackWriter};
pub use places::Places;
pub use promise::{MatrixPromise, Promise};
pub use request::{Form, Key, Request};
pub use resources::{CountedIn, Matrix, Resources};
pub use source::{File, Source, Text, Texts};

use cache::{Cache, Found};
use clang::Clang;
use inspect::Nvdisasm;
use rtc::{Failure, Made, Rtc, Vendor};

use super::driver::Arch;
use crate::error::{Error, Result};

/// Lines of a compiler's log that an error shows.
const LOG_LINES: usize = 12;

/// Compiled code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The code object, or the assembly text.
    pub bytes: Vec<u8>,
    /// What the compiler said: registers, spills, warnings.
    pub log: String,
    /// What it is.
    pub form: Form,
    /// What it was compiled for. On a device that none of the codes here was made for exactly, another that runs on it.
    pub arch: Arch,
    /// Where it was found.
    pub origin: Origin,
    /// What the user should know although there is code: an entry of the cache was damaged, or could not be written.
    pub warning: Option<String>,
}

/// Where code was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the pack.
    Pack,
    /// In the cache on disk.
    Cache,
    /// Compiled just now.
    Compiler,
}

/// What gives code for kernels; compilers are opened when they are first needed.
#[derive(Debug)]
pub struct Compiler {
    places: Places,
    texts: Texts,
    pack: OnceLock<Result<Option<Pack>, String>>,
    nvrtc: OnceLock<Result<Rtc, Vec<String>>>,
    hiprtc: OnceLock<Result<Rtc, Vec<String>>>,
    clang: OnceLock<Result<Clang, Vec<String>>>,
    nvdisasm: OnceLock<Option<Nvdisasm>>,
}

/// A compiler that fits a request.
enum Tool<'a> {
    Rtc(&'a Rtc),
    Clang(&'a Clang),
}

impl Compiler {
    /// One that looks into `places` only.
    pub fn new(places: Places) -> Compiler {
        let texts = match &places.kernels {
            Some(folder) => Texts::Folder(folder.as_path().into()),
            None => Texts::Embedded(HEADERS),
        };
        Compiler {
            places,
            texts,
            pack: OnceLock::new(),
            nvrtc: OnceLock::new(),
            hiprtc: OnceLock::new(),
            clang: OnceLock::new(),
            nvdisasm: OnceLock::new(),
        }
    }

    /// The one of this process, which looks where its environment says: see [`Places::here`].
    pub fn here() -> &'static Compiler {
        static HERE: OnceLock<Compiler> = OnceLock::new();
        HERE.get_or_init(|| Compiler::new(Places::here()))
    }

    /// Where it looks.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The text that `request` compiles, with its headers.
    ///
    /// # Errors
    /// Those of [`Texts::resolve`].
    pub fn text(&self, request: &Request<'_>) -> Result<Text> {
        self.texts.resolve(&request.source, request.arch)
    }

    /// Code for `request`.
    ///
    /// # Errors
    /// [`Error::Compile`] if a compiler refuses the text, with the first lines of its log, or if neither code nor compiler is
    /// there, with all that was tried; [`Error::Data`] if the pack is damaged or of another version; [`Error::Argument`] if
    /// the request cannot be.
    pub fn code(&self, request: &Request<'_>) -> Result<Code> {
        request.check()?;
        let mut tried = Vec::new();
        if let Some(code) = self.packed(request, &mut tried)? {
            return Ok(code);
        }
        let text = self.text(request)?;
        let tool = self.tool(request.arch, request.is_own_device, &mut tried).map_err(|advice| {
            Error::compile(format!(
                "{request}: neither code nor a compiler; tried {}; install {advice}, or put a pack made by \
                 `perfrun compile --pack` beside the binary",
                tried.join("; ")
            ))
        })?;
        let options = tool.options(request);
        let key = request.key(&text).with(tool.name().as_ref(), &options);
        let mut warning = None;
        let cache = self.places.cache.as_deref().map(Cache::new);
        match cache.as_ref().map_or(Found::Nothing, |c| c.get(&key)) {
            Found::Entry(bytes, log) => return Ok(Code { log, warning, ..code(request, bytes, Origin::Cache) }),
            Found::Damaged(why) => warning = Some(format!("{why}; it is made again")),
            Found::Nothing => {}
        }
        let source = Text { kernel: request.specialised(&text.kernel), headers: text.headers.clone() };
        let made = tool.compile(&source, &options, request).map_err(|f| refusal(request, &tool.name(), f))?;
        // Code that cannot be kept is as good as any.
        if let Some(Err(e)) = cache.as_ref().map(|c| c.put(&key, &made.code, &made.log)) {
            warning = Some(format!("{e}; compiled code is not kept"));
        }
        // The assembly text comes with the binary, and the emulator asks for it: front ends take most of the time.
        if let (Some(cache), Some(ptx)) = (cache, &made.ptx) {
            let as_text = request.ptx();
            let key = as_text.key(&text).with(tool.name().as_ref(), &tool.options(&as_text));
            // Text that is not kept is made again.
            let _ = cache.put(&key, ptx, "");
        }
        Ok(Code { log: made.log, warning, ..code(request, made.code, Origin::Compiler) })
    }

    /// Code from the pack, if there is a pack that has it.
    fn packed(&self, request: &Request<'_>, tried: &mut Vec<String>) -> Result<Option<Code>> {
        let pack = self.pack.get_or_init(|| self.places.pack.open().map_err(|e| e.to_string()));
        let pack = match (pack, &self.places.pack) {
            (Err(why), _) => return Err(Error::data(why.as_str())),
            (Ok(Some(pack)), _) => pack,
            (Ok(None), PackPlace::IfThere(path)) => {
                tried.push(format!("pack {}: no such file", path.display()));
                return Ok(None);
            }
            (Ok(None), _) => return Ok(None),
        };
        for arch in loadable(request.arch) {
            let request = Request { arch, ..*request };
            if let Some((bytes, log)) = pack.get(&request.key(&self.text(&request)?))? {
                return Ok(Some(Code { log, ..code(&request, bytes, Origin::Pack) }));
            }
        }
        tried.push(format!("pack {}: does not hold it, or holds it of another text", pack.path().display()));
        Ok(None)
    }

    /// The compiler for code for `arch`; or what was tried is added to `tried`, and the answer is what to install.
    fn tool(&self, arch: Arch, is_own_device: bool, tried: &mut Vec<String>) -> Result<Tool<'_>, &'static str> {
        if arch.is_nvidia() {
            return match self.nvrtc.get_or_init(|| Rtc::open(Vendor::Nvidia, &self.places.nvrtc)) {
                Ok(rtc) => Ok(Tool::Rtc(rtc)),
                Err(why) => {
                    tried.push(format!("NVRTC: {}", list(why)));
                    Err("NVRTC (named in NVRTC_PATH)")
                }
            };
        }
        if is_own_device {
            match self.hiprtc.get_or_init(|| Rtc::open(Vendor::Amd, &self.places.hiprtc)) {
                Ok(rtc) => return Ok(Tool::Rtc(rtc)),
                Err(why) => tried.push(format!("hipRTC: {}", list(why))),
            }
        } else {
            tried.push("hipRTC: not asked, no device of this process has it".into());
        }
        match self.clang.get_or_init(|| Clang::find(&self.places.clang)) {
            Ok(clang) => Ok(Tool::Clang(clang)),
            Err(why) => {
                tried.push(format!("clang: {}", list(why)));
                Err("clang-19 with lld-19 (named in PERFRUN_CLANG)")
            }
        }
    }

    /// Compiles `request` (or finds it in the cache) and puts it into a pack.
    ///
    /// # Errors
    /// Those of [`code`](Compiler::code).
    pub fn pack(&self, request: &Request<'_>, pack: &mut PackWriter) -> Result<Code> {
        let code = self.code(request)?;
        pack.add(request.key(&self.text(request)?), request.to_string(), code.log.clone(), code.bytes.clone());
        Ok(code)
    }

    /// The disassembler, if it is there.
    fn nvdisasm(&self) -> Option<&Nvdisasm> {
        self.nvdisasm.get_or_init(|| Nvdisasm::find(&self.places.nvdisasm)).as_ref()
    }

    /// What would compile for `arch`: name, version and place; or what was tried.
    ///
    /// # Errors
    /// [`Error::Compile`] if there is nothing.
    pub fn compiler_of(&self, arch: Arch) -> Result<String> {
        let mut tried = Vec::new();
        match self.tool(arch, false, &mut tried) {
            Ok(tool) => Ok(format!("{} ({})", tool.name(), tool.path().display())),
            Err(advice) => {
                Err(Error::compile(format!("{arch}: no compiler; tried {}; install {advice}", tried.join("; "))))
            }
        }
    }
}

fn code(request: &Request<'_>, bytes: Vec<u8>, origin: Origin) -> Code {
    Code { bytes, log: String::new(), form: request.form, arch: request.arch, origin, warning: None }
}

/// Architectures whose code runs on a device of `arch`, the best first.
fn loadable(arch: Arch) -> impl Iterator<Item = Arch> {
    let older = matches!(arch, Arch::Sm { capability: 81..=89, .. }).then_some(Arch::SM_80);
    std::iter::once(arch).chain(older)
}

fn list(tried: &[String]) -> String {
    if tried.is_empty() { "no place to look".into() } else { tried.join(", ") }
}

fn refusal(request: &Request<'_>, compiler: &str, failure: Failure) -> Error {
    match failure {
        Failure::Call(why) => Error::compile(format!("{request}: {compiler} failed: {why}")),
        Failure::Refused(word, log) => {
            let lines = log.lines().filter(|l| !l.trim().is_empty());
            let shown: Vec<&str> = lines.take(LOG_LINES).collect();
            Error::compile(format!("{request}: {compiler} refuses it ({word})\n{}", shown.join("\n")))
        }
    }
}

impl Tool<'_> {
    fn name(&self) -> String {
        match self {
            Tool::Rtc(rtc) => rtc.name(),
            Tool::Clang(clang) => clang.name().to_owned(),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Tool::Rtc(rtc) => rtc.path(),
            Tool::Clang(clang) => clang.path(),
        }
    }

    fn compile(&self, text: &Text, options: &[String], request: &Request<'_>) -> Result<Made, Failure> {
        match self {
            Tool::Rtc(rtc) => rtc.compile(text, options, request.form),
            Tool::Clang(clang) => clang.compile(text, options).map(|(code, log)| Made { code, log, ptx: None }),
        }
    }

    /// Everything on the command line but the files.
    fn options(&self, request: &Request<'_>) -> Vec<String> {
        let arch = request.arch;
        let fixed: &[&str] = match self {
            Tool::Rtc(_) if arch.is_nvidia() => &["-std=c++17", "--fmad=false", "--ptxas-options=-v"],
            Tool::Rtc(_) => &["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno"],
            Tool::Clang(_) => &[
                "-x",
                "hip",
                "--cuda-device-only",
                // A plain ELF, which loaders take; a bundle would need another program to be made.
                "--no-gpu-bundle-output",
                "-nogpuinc",
                "-nogpulib",
                "-O3",
                "-std=c++17",
                "-ffp-contract=off",
                "-fno-math-errno",
                // Else every object has a symbol with a hash of the folder that it was made in.
                "-fuse-cuid=none",
                "-Rpass-analysis=kernel-resource-usage",
            ],
        };
        let target = match (arch, request.form) {
            (Arch::Gfx(_), _) => format!("--offload-arch={arch}"),
            (Arch::Sm { .. }, Form::Binary) => format!("--gpu-architecture={arch}"),
            (Arch::Sm { .. }, Form::Ptx) => {
                format!("--gpu-architecture={}", arch.to_string().replace("sm_", "compute_"))
            }
        };
        let lines = match (request.with_lines, arch.is_nvidia()) {
            (true, true) => Some("-lineinfo"),
            (true, false) => Some("-gline-tables-only"),
            (false, _) => None,
        };
        fixed.iter().copied().map(str::to_owned).chain([target]).chain(lines.map(str::to_owned)).collect()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod with_compilers;
