//! Shared libraries that are opened when the program runs, and tables of their functions.
//!
//! The program is built without any vendor's toolkit and starts without any vendor's library; what is missing is told in one
//! error when it is asked for.
#![allow(
    unsafe_code,
    reason = "a library's initialisers run when it is opened; a symbol has the type that its header says"
)]

use std::fmt;
use std::mem::ManuallyDrop;

use crate::error::{Error, Result};

/// An open shared library. It is never closed: drivers keep threads that run in their own code until the process ends.
pub(crate) struct Library {
    inner: ManuallyDrop<libloading::Library>,
    name: String,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").field(&self.name).finish()
    }
}

/// How an error ends that `perfrun doctor` explains; it does not say so of itself.
pub(crate) const SEE_DOCTOR: &str = "; `perfrun doctor` lists what this machine has";

impl Library {
    /// Opens the first of `names` that the loader finds; `who` starts the error, which lists every name and the loader's words.
    ///
    /// # Errors
    /// [`Error::Device`] if none can be opened.
    pub(crate) fn open<S: AsRef<str>>(who: &str, names: &[S]) -> Result<Library> {
        let mut refused = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            match Library::open_one(name) {
                Ok(library) => return Ok(library),
                Err(why) => refused.push((name, why)),
            }
        }
        let all = || refused.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let text = match refused.first() {
            None => "no library of it is known here".to_owned(),
            Some((_, first)) if refused.iter().all(|(_, why)| why == first) => format!("tried {}: {first}", all()),
            Some(_) => {
                // A file that is there but does not open is the one to mend: each gets its own words.
                let each: Vec<String> = refused.iter().map(|(name, why)| format!("{name} ({why})")).collect();
                format!("tried {}", each.join(", "))
            }
        };
        Err(Error::device(format!("{who}: cannot open: {text}{SEE_DOCTOR}")))
    }

    /// Opens the library of this name or path, or says why not in the loader's words.
    pub(crate) fn open_one(name: &str) -> Result<Library, String> {
        // SAFETY: the names are those of vendors' libraries, whose initialisers are meant to run at any time.
        match unsafe { libloading::Library::new(name) } {
            Ok(inner) => Ok(Library { inner: ManuallyDrop::new(inner), name: name.to_owned() }),
            Err(e) => Err(words(name, &e.to_string())),
        }
    }

    /// The name under which it was found.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The function of this name, or its name added to `missing`.
    ///
    /// # Safety
    /// `F` is a function pointer of the type that the library's header gives to `name`.
    pub(crate) unsafe fn symbol<F: Copy>(&self, name: &str, missing: &mut Vec<String>) -> Option<F> {
        // SAFETY: the caller gives the type of the header; the library stays open for good.
        match unsafe { self.inner.get::<F>(name.as_bytes()) } {
            Ok(symbol) => Some(*symbol),
            Err(_) => {
                missing.push(name.to_owned());
                None
            }
        }
    }

    /// That functions are missing, all of them.
    pub(crate) fn lacks(&self, who: &str, missing: &[String]) -> Error {
        let all = missing.join(", ");
        Error::device(format!("{who}: {}: lacks {all}: this version is too old or too new for perfrun", self.name))
    }
}

#[cfg(test)]
impl Library {
    /// What `symbol`, a function of a test's library that returns a C string, says.
    pub(crate) fn says(&self, symbol: &str) -> String {
        // SAFETY: a test calls it for such a function; the string is static.
        unsafe {
            let say =
                self.symbol::<unsafe extern "C" fn() -> *const std::ffi::c_char>(symbol, &mut Vec::new()).unwrap();
            std::ffi::CStr::from_ptr(say()).to_str().unwrap().to_owned()
        }
    }
}

/// The C file `name` of tests/golden with these definitions as a library of its own, whose state nobody shares.
#[cfg(test)]
pub(crate) fn compiled(name: &str, definitions: &[&str]) -> (tempfile::TempDir, String) {
    let source = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("libfake.so").to_str().unwrap().to_owned();
    let mut cc = std::process::Command::new("cc");
    let done = cc.args(["-shared", "-fPIC", "-o", &library]).args(definitions).arg(&source).output().unwrap();
    assert!(done.status.success(), "cc {source}: {}", String::from_utf8_lossy(&done.stderr));
    (dir, library)
}

/// The loader's words without the name that it repeats, and its commonest sentence in short.
fn words(name: &str, text: &str) -> String {
    let text = text.strip_prefix(name).and_then(|t| t.strip_prefix(": ")).unwrap_or(text);
    if text.ends_with("No such file or directory") && !text.contains(".so") {
        return "no such file".to_owned();
    }
    text.replace('\n', " ")
}

/// A table of functions of one library: `name: fn(arguments) -> result`, with `as "symbol"` where the header maps the name to
/// a versioned symbol. `load` fills it, naming every missing symbol at once; those under `optional` may be missing.
macro_rules! table {
    ($(#[$meta:meta])* $vis:vis struct $table:ident {
        $($name:ident $(as $symbol:literal)?: fn($($arg:ty),* $(,)?) -> $ret:ty,)*
    } $(optional { $($opt:ident $(as $opt_symbol:literal)?: fn($($opt_arg:ty),* $(,)?) -> $opt_ret:ty,)* })?) => {
        $(#[$meta])*
        #[allow(non_snake_case, reason = "the vendor's names, so that they can be looked up")]
        #[derive(Debug)]
        $vis struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> $ret,)*
            $($(pub(super) $opt: Option<unsafe extern "C" fn($($opt_arg),*) -> $opt_ret>,)*)?
        }

        impl $table {
            #[allow(non_snake_case, unused_mut, unused_variables, reason = "the vendor's names")]
            $vis fn load(who: &str, library: &$crate::backend::gpu::library::Library) -> $crate::error::Result<$table> {
                let mut missing = Vec::new();
                // SAFETY: the types of this table are those of the vendor's headers.
                $(let $name = unsafe {
                    library.symbol::<unsafe extern "C" fn($($arg),*) -> $ret>(
                        $crate::backend::gpu::library::either!($name $($symbol)?), &mut missing)
                };)*
                let mut absent = Vec::<String>::new();
                // SAFETY: as above.
                $($(let $opt = unsafe {
                    library.symbol::<unsafe extern "C" fn($($opt_arg),*) -> $opt_ret>(
                        $crate::backend::gpu::library::either!($opt $($opt_symbol)?), &mut absent)
                };)*)?
                match ($($name,)*) {
                    ($(Some($name),)*) => Ok($table { $($name,)* $($($opt,)*)? }),
                    _ => Err(library.lacks(who, &missing)),
                }
            }
        }
    };
}
pub(crate) use table;

/// The symbol that a table names, or else the field's own name.
macro_rules! either {
    ($name:ident) => {
        stringify!($name)
    };
    ($name:ident $symbol:literal) => {
        $symbol
    };
}
pub(crate) use either;

#[cfg(test)]
mod tests {
    use super::*;

    table! {
        /// Functions of the C library that everybody has, and one that nobody has.
        struct Good {
            absolute as "abs": fn(i32) -> i32,
            labs: fn(i64) -> i64,
        }
        optional {
            perfrun_has_no_such_function: fn() -> i32,
        }
    }

    table! {
        #[allow(dead_code, reason = "it is never filled")]
        struct Bad {
            abs: fn(i32) -> i32,
            perfrun_lacks_this: fn() -> i32,
            other as "perfrun_lacks_that": fn() -> i32,
        }
    }

    const LIBC: &[&str] = &["libperfrun_nowhere.so", "libc.so.6"];

    #[test]
    fn the_first_name_that_the_loader_finds_is_opened() {
        let library = Library::open("c", LIBC).unwrap();
        assert_eq!(library.name(), "libc.so.6");
        let table = Good::load("c", &library).unwrap();
        // SAFETY: abs and labs of the C library.
        assert_eq!(unsafe { ((table.absolute)(-3), (table.labs)(-4)) }, (3, 4));
        assert!(table.perfrun_has_no_such_function.is_none());
    }

    #[test]
    fn an_absent_library_is_one_error_with_every_name() {
        let error = Library::open("x", &["libperfrun_a.so", "libperfrun_b.so"]).unwrap_err();
        assert!(matches!(error, Error::Device(_)));
        let text = error.to_string();
        assert!(text.starts_with("x: cannot open: tried libperfrun_a.so, libperfrun_b.so: no such file"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_library_is_told_in_the_loader_s_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libfake.so");
        std::fs::write(&file, "text").unwrap();
        let name = file.to_str().unwrap();
        let text = Library::open("x", &["libperfrun_a.so", name]).unwrap_err().to_string();
        assert!(text.contains("libperfrun_a.so (no such file)") && text.contains("file too short"), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn every_missing_function_is_named_at_once() {
        let text = Bad::load("c", &Library::open("c", LIBC).unwrap()).unwrap_err().to_string();
        assert!(text.starts_with("c: libc.so.6: lacks perfrun_lacks_this, perfrun_lacks_that"), "{text}");
    }
}
