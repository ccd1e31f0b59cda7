//! The one error type. Variants are by what the caller can do about it, not by where it happened.
//!
//! Messages are lower case, one line a fault, the operator and input first, axes by name, expected before found:
//!
//! ```text
//! layer_norm: gamma: expected [C=768], found [512] (x is [8, 2048, 768] bf16)
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what can be done about it. Payloads are boxed, so that a `Result` stays small.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An input has the wrong shape. Give the operator the shape that it expects.
    Shape(Box<str>),
    /// An input has the wrong number type.
    Dtype(Box<str>),
    /// A parameter of an operator or function is outside what it can be.
    Argument(Box<str>),
    /// A length does not fit the integer that must hold it.
    TooLarge(Box<str>),
    /// A device cannot be opened: which library, which names were tried, the loader's words.
    Device(Box<str>),
    /// A call of an open device's driver failed: the call, the driver's code and name, the kernel if it was a launch.
    Driver(Box<str>),
    /// A kernel did not compile, or no compiler was found for it: kernel, architecture, log.
    Compile(Box<str>),
    /// An allocation failed: what was asked and what is in use.
    OutOfMemory(Box<str>),
    /// Faults of a configuration, all of them.
    Config(Faults),
    /// Faults of a data set or of a file of data.
    Data(Faults),
    /// Faults of a checkpoint or of a weights file.
    Checkpoint(Faults),
    /// A number is infinite or NaN where it must not be: step and tensor.
    NonFinite(Box<str>),
    /// The operating system refused a file operation.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as a verb: "read", "rename".
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A list of faults that were found together: one line each, most telling first.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Faults {
    lines: Vec<Box<str>>,
}

impl Faults {
    /// No fault yet.
    pub fn new() -> Faults {
        Faults::default()
    }

    /// Adds one fault; the text says where, what was expected, what was found and how to mend it.
    pub fn push(&mut self, fault: impl Into<String>) {
        self.lines.push(fault.into().into());
    }

    /// Takes over the faults of an error of any variant: its list, or its one line.
    pub fn absorb(&mut self, error: Error) {
        match error {
            Error::Config(f) | Error::Data(f) | Error::Checkpoint(f) => self.lines.extend(f.lines),
            other => self.push(other.to_string()),
        }
    }

    /// The faults, a line each.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = &str> {
        self.lines.iter().map(|l| &**l)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// `Ok(())` if there is none, else the error that `wrap` makes of them: `faults.into_result(Error::Config)?`.
    ///
    /// # Errors
    /// `wrap(self)` if there is a fault.
    pub fn into_result(self, wrap: fn(Faults) -> Error) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(wrap(self)) }
    }
}

impl From<String> for Faults {
    fn from(line: String) -> Faults {
        Faults { lines: vec![line.into()] }
    }
}

impl From<&str> for Faults {
    fn from(line: &str) -> Faults {
        Faults { lines: vec![line.into()] }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.lines.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(line)?;
        }
        Ok(())
    }
}

impl Error {
    /// An [`Error::Shape`] with its one line.
    pub fn shape(line: impl Into<String>) -> Error {
        Error::Shape(line.into().into())
    }

    /// An [`Error::Dtype`] with its one line.
    pub fn dtype(line: impl Into<String>) -> Error {
        Error::Dtype(line.into().into())
    }

    /// An [`Error::Argument`] with its one line.
    pub fn argument(line: impl Into<String>) -> Error {
        Error::Argument(line.into().into())
    }

    /// An [`Error::TooLarge`]: `axis` of `op` has length `len`, which does not fit.
    pub fn too_large(op: &str, axis: &str, len: impl fmt::Display) -> Error {
        Error::TooLarge(format!("{op}: {axis}: length {len} is too large for the integer that must hold it").into())
    }

    /// An [`Error::Device`] with its one line.
    pub fn device(line: impl Into<String>) -> Error {
        Error::Device(line.into().into())
    }

    /// An [`Error::Driver`] with its one line.
    pub fn driver(line: impl Into<String>) -> Error {
        Error::Driver(line.into().into())
    }

    /// An [`Error::Compile`] with its text.
    pub fn compile(text: impl Into<String>) -> Error {
        Error::Compile(text.into().into())
    }

    /// An [`Error::OutOfMemory`] with its one line.
    pub fn out_of_memory(line: impl Into<String>) -> Error {
        Error::OutOfMemory(line.into().into())
    }

    /// An [`Error::NonFinite`] with its one line.
    pub fn non_finite(line: impl Into<String>) -> Error {
        Error::NonFinite(line.into().into())
    }

    /// An [`Error::Config`] with one fault.
    pub fn config(line: impl Into<String>) -> Error {
        Error::Config(line.into().into())
    }

    /// An [`Error::Data`] with one fault.
    pub fn data(line: impl Into<String>) -> Error {
        Error::Data(line.into().into())
    }

    /// An [`Error::Checkpoint`] with one fault.
    pub fn checkpoint(line: impl Into<String>) -> Error {
        Error::Checkpoint(line.into().into())
    }

    /// An [`Error::Io`]: `what` (a verb) failed on `path`. For `map_err(Error::io("read", path))`.
    pub fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, what, source }
    }

    /// Whether the input (a configuration, data, a checkpoint, an argument) is at fault rather than the machine:
    /// the binary then exits with 2 instead of 1.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Error::Config(_)
                | Error::Data(_)
                | Error::Checkpoint(_)
                | Error::Argument(_)
                | Error::Shape(_)
                | Error::Dtype(_)
        ) || matches!(self, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape(l)
            | Error::Dtype(l)
            | Error::Argument(l)
            | Error::TooLarge(l)
            | Error::Device(l)
            | Error::Driver(l)
            | Error::Compile(l)
            | Error::OutOfMemory(l)
            | Error::NonFinite(l) => f.write_str(l),
            Error::Config(faults) | Error::Data(faults) | Error::Checkpoint(faults) => faults.fmt(f),
            Error::Io { path, what, source } => {
                write!(f, "{}: cannot {what}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_no_larger_than_a_path_and_three_words() {
        assert!(size_of::<Error>() <= 56, "{}", size_of::<Error>());
    }

    #[test]
    fn faults_are_a_line_each_and_absorb_one_another() {
        let mut faults = Faults::from("a: expected 1, found 2");
        faults.absorb(Error::config("b: unknown"));
        faults.absorb(Error::shape("c: wrong"));
        assert_eq!(faults.len(), 3);
        assert_eq!(Error::Config(faults).to_string(), "a: expected 1, found 2\nb: unknown\nc: wrong");
        assert!(Faults::new().into_result(Error::Config).is_ok());
    }

    #[test]
    fn a_missing_file_is_bad_input_and_a_full_disk_is_not() {
        let missing = std::fs::File::open("/nonexistent/file").map_err(Error::io("open", "/nonexistent/file"));
        assert!(
            missing
                .is_err_and(|e| { e.is_bad_input() && e.to_string().starts_with("/nonexistent/file: cannot open: ") })
        );
        let full = Error::Io { path: "x".into(), what: "write", source: std::io::ErrorKind::StorageFull.into() };
        assert!(!full.is_bad_input());
    }
}
