//! NVRTC and hipRTC: compilers as libraries, opened at run time. Their interfaces differ in the names only.

// Foreign functions are called here and nowhere else in this module.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::os::unix::{self, RTLD_GLOBAL, RTLD_NOW};

use super::request::Form;
use super::source::Text;
use crate::backend::gpu::library::Library;

/// Whose library it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    Nvidia,
    Amd,
}

impl Vendor {
    pub(super) fn name(self) -> &'static str {
        match self {
            Vendor::Nvidia => "NVRTC",
            Vendor::Amd => "hipRTC",
        }
    }

    /// Symbols: what starts every name, and the function names that are not alike.
    fn symbols(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Vendor::Nvidia => ("nvrtc", "GetCUBINSize", "GetCUBIN"),
            Vendor::Amd => ("hiprtc", "GetCodeSize", "GetCode"),
        }
    }
}

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// An open library.
#[derive(Debug)]
pub(super) struct Rtc {
    vendor: Vendor,
    path: PathBuf,
    version: (c_int, c_int),
    create: Create,
    destroy: Destroy,
    compile: Compile,
    log: (Size, Get),
    code: (Size, Get),
    /// Only NVIDIA's has an assembly text.
    ptx: Option<(Size, Get)>,
    error_string: ErrorString,
}

/// What a compiler made.
#[derive(Debug)]
pub(super) struct Made {
    /// What was asked for.
    pub(super) code: Vec<u8>,
    /// What the compiler said.
    pub(super) log: String,
    /// The assembly text, where it was made on the way to a binary.
    pub(super) ptx: Option<Vec<u8>>,
}

/// Why there is no code.
#[derive(Debug)]
pub(super) enum Failure {
    /// The compiler refuses the text: its word for it, its log.
    Refused(String, String),
    /// A call failed that has nothing to do with the text.
    Call(String),
}

impl Rtc {
    /// Opens the first library of `candidates` that can be; names without a folder are left to the loader.
    ///
    /// # Errors
    /// What was tried, with the loader's answers.
    pub(super) fn open(vendor: Vendor, candidates: &[PathBuf]) -> Result<Rtc, Vec<String>> {
        let mut tried = Vec::new();
        for path in candidates {
            match Rtc::open_one(vendor, path) {
                Ok(rtc) => return Ok(rtc),
                Err(why) => tried.push(format!("{}: {why}", path.display())),
            }
        }
        Err(tried)
    }

    fn open_one(vendor: Vendor, path: &Path) -> Result<Rtc, String> {
        let in_folder = path.parent().is_some_and(|p| !p.as_os_str().is_empty());
        if in_folder && !path.exists() {
            return Err("no such file".into());
        }
        if in_folder {
            open_builtins(path);
        }
        let library = Library::open_one(&path.to_string_lossy())?;
        let (start, code_size, code) = vendor.symbols();
        let name = |end: &str| format!("{start}{end}");
        // SAFETY: each symbol is read with the type that nvrtc.h and hiprtc.h declare for it; both headers have had these
        // declarations since the first version that has the symbol.
        let (rtc, version) = unsafe {
            let rtc = Rtc {
                vendor,
                path: path.to_path_buf(),
                version: (0, 0),
                create: symbol::<Create>(&library, &name("CreateProgram"))?,
                destroy: symbol::<Destroy>(&library, &name("DestroyProgram"))?,
                compile: symbol::<Compile>(&library, &name("CompileProgram"))?,
                log: (symbol(&library, &name("GetProgramLogSize"))?, symbol(&library, &name("GetProgramLog"))?),
                code: (symbol(&library, &name(code_size))?, symbol(&library, &name(code))?),
                ptx: match vendor {
                    Vendor::Nvidia => {
                        Some((symbol(&library, &name("GetPTXSize"))?, symbol(&library, &name("GetPTX"))?))
                    }
                    Vendor::Amd => None,
                },
                error_string: symbol::<ErrorString>(&library, &name("GetErrorString"))?,
            };
            (rtc, symbol::<Version>(&library, &name("Version"))?)
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two integers to write to, alive during the call.
        let status = unsafe { version(&raw mut major, &raw mut minor) };
        if status != 0 {
            return Err(format!("{}: {}", name("Version"), rtc.word(status)));
        }
        Ok(Rtc { version: (major, minor), ..rtc })
    }

    /// Name and version: "NVRTC 12.9".
    pub(super) fn name(&self) -> String {
        format!("{} {}.{}", self.vendor.name(), self.version.0, self.version.1)
    }

    /// Where it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The library's word for a status.
    fn word(&self, status: c_int) -> String {
        // SAFETY: the function takes any integer and returns a constant string of the library, or null.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("error {status}");
        }
        // SAFETY: not null, ends with a zero, and lives as long as the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn check(&self, call: &str, status: c_int) -> Result<(), Failure> {
        if status == 0 {
            return Ok(());
        }
        Err(Failure::Call(format!("{}{call}: {} ({status})", self.vendor.symbols().0, self.word(status))))
    }

    /// Compiles one text.
    pub(super) fn compile(&self, text: &Text, options: &[String], form: Form) -> Result<Made, Failure> {
        let owned = |texts: Vec<&str>| -> Result<Vec<CString>, Failure> {
            let zero = |_| Failure::Call("a text or an option contains a zero byte".into());
            texts.into_iter().map(|t| CString::new(t).map_err(zero)).collect()
        };
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        let count = |n: usize| c_int::try_from(n).map_err(|_| Failure::Call(format!("{n} headers or options")));
        let kernel = owned(vec![&text.kernel.text, &text.kernel.path])?;
        let headers = owned(text.headers.iter().map(|h| &*h.text).collect())?;
        let names = owned(text.headers.iter().map(|h| h.path.as_str()).collect())?;
        let options = owned(options.iter().map(String::as_str).collect())?;
        let (headers_at, names_at, options_at) = (pointers(&headers), pointers(&names), pointers(&options));

        let mut program = Created { rtc: self, program: ptr::null_mut() };
        let [kernel_text, kernel_path] = kernel.as_slice() else {
            return Err(Failure::Call("a kernel is a text and a path".into()));
        };
        // SAFETY: all pointers are to zero-terminated strings, or to arrays of as many of them as the count says, and live
        // until the call returns; the library copies them. It writes a handle to `program`.
        let status = unsafe {
            (self.create)(
                &raw mut program.program,
                kernel_text.as_ptr(),
                kernel_path.as_ptr(),
                count(headers.len())?,
                headers_at.as_ptr(),
                names_at.as_ptr(),
            )
        };
        self.check("CreateProgram", status)?;
        // SAFETY: a program that was created above; as many options as the count says, alive during the call.
        let status = unsafe { (self.compile)(program.program, count(options.len())?, options_at.as_ptr()) };
        let log = String::from_utf8_lossy(&program.read("GetProgramLog", self.log)?).into_owned();
        if status != 0 {
            return Err(Failure::Refused(self.word(status), log));
        }
        let ptx = self.ptx.map(|functions| program.read("GetPTX", functions)).transpose()?;
        Ok(match (form, ptx) {
            (Form::Ptx, Some(code)) => Made { code, log, ptx: None },
            (_, ptx) => Made { code: program.read_bytes(self.vendor.symbols().2, self.code)?, log, ptx },
        })
    }
}

/// A program of the library, destroyed when it goes out of scope.
struct Created<'a> {
    rtc: &'a Rtc,
    program: Program,
}

impl Created<'_> {
    fn read_bytes(&self, call: &str, (size, get): (Size, Get)) -> Result<Vec<u8>, Failure> {
        let mut len = 0;
        // SAFETY: a live program, and a number to write to.
        self.rtc.check(call, unsafe { size(self.program, &raw mut len) })?;
        let mut bytes = vec![0u8; len];
        if len > 0 {
            // SAFETY: a live program, and as many bytes as the library just said that it writes.
            self.rtc.check(call, unsafe { get(self.program, bytes.as_mut_ptr().cast()) })?;
        }
        Ok(bytes)
    }

    /// The same for texts: without the zero at the end.
    fn read(&self, call: &str, functions: (Size, Get)) -> Result<Vec<u8>, Failure> {
        let mut bytes = self.read_bytes(call, functions)?;
        bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
        Ok(bytes)
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was created, nobody else holds it, and it is not used after this.
            unsafe { (self.rtc.destroy)(&raw mut self.program) };
        }
    }
}

/// A function of `library`, which stays open for good.
///
/// # Safety
/// The symbol must be a function of type `T`.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the type is the caller's word.
    unsafe { library.symbol(name, &mut Vec::new()) }.ok_or_else(|| format!("has no {name}"))
}

/// The compiler's built-in functions lie in a second library, which version 13 does not find by itself; opened before, by its
/// full path, it is found.
fn open_builtins(path: &Path) {
    let folder = path.parent().unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // Without the loader's word for it: if it is needed and does not open, the compiler itself says so.
    for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so.")) {
        // SAFETY: a data library of the vendor beside the one that the user chose; it has no initialisers of consequence.
        if let Ok(library) = unsafe { unix::Library::open(Some(entry.path()), RTLD_NOW | RTLD_GLOBAL) } {
            // It stays open as long as the process lives, as a library that the loader found would.
            std::mem::forget(library);
        }
    }
}
