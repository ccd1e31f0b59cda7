//! What is asked of a compiler, and the keys by which an answer is found again.

use std::fmt;

use super::source::{File, Source, Text};
use crate::backend::gpu::driver::Arch;
use crate::error::{Error, Result};

/// What the compiler is to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// What a driver loads: a cubin, an AMD code object.
    Binary,
    /// NVIDIA's assembly text, which the emulator executes.
    Ptx,
}

/// One compilation: a source for an architecture, with the constants that it is specialised by.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel file.
    pub source: Source,
    /// What it is compiled for.
    pub arch: Arch,
    /// What `#define` lines before the text say: `[("T", "bf16"), ("TILE", "64")]`.
    pub defines: &'a [(&'a str, &'a str)],
    /// What is to be made.
    pub form: Form,
    /// Whether the code tells which line an instruction comes from, for profilers and the emulator's faults.
    pub with_lines: bool,
    /// Whether `arch` is that of a device which this process has open. Only then is hipRTC asked: versions of it end the
    /// process on an architecture that they do not know.
    pub is_own_device: bool,
}

impl<'a> Request<'a> {
    /// Code that a driver loads, without line numbers.
    pub const fn new(source: Source, arch: Arch, defines: &'a [(&'a str, &'a str)]) -> Request<'a> {
        Request { source, arch, defines, form: Form::Binary, with_lines: false, is_own_device: false }
    }

    /// The same as PTX text.
    #[must_use]
    pub const fn ptx(mut self) -> Request<'a> {
        self.form = Form::Ptx;
        self
    }

    /// The same for a device of this process.
    #[must_use]
    pub const fn for_own_device(mut self) -> Request<'a> {
        self.is_own_device = true;
        self
    }

    /// Refuses what no compiler can be asked.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in self.defines {
            let is_name = !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name || value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(Error::argument(format!(
                    "{self}: expected NAME=VALUE without spaces, found {name}={value}"
                )));
            }
        }
        if self.form == Form::Ptx && !self.arch.is_nvidia() {
            return Err(Error::argument(format!("{self}: PTX is made for NVIDIA's architectures only")));
        }
        Ok(())
    }

    /// The kernel file as compilers get it: constants first, then the text, with the line numbers that it has on disk.
    ///
    /// Not as `-D` options: NVRTC puts a header of its own before the text, with templates over a type `T`, and an option
    /// would rewrite them.
    pub(super) fn specialised(&self, kernel: &File) -> File {
        let mut text: String = self.defines.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
        text += &format!("#line 1 \"{}\"\n{}", kernel.path, kernel.text);
        File { path: kernel.path.clone(), text: text.into() }
    }

    /// The key of what is asked, whoever answers: text, headers, constants, architecture and form. Packs are looked up by it.
    pub(super) fn key(&self, text: &Text) -> Key {
        let mut hasher = Hasher::new("perfrun 2026 kernel request");
        for file in std::iter::once(&text.kernel).chain(&text.headers) {
            hasher.field(&file.path);
            hasher.field(&file.text);
        }
        hasher.field("defines");
        let mut defines: Vec<_> = self.defines.to_vec();
        defines.sort_unstable();
        for (name, value) in defines {
            hasher.field(name);
            hasher.field(value);
        }
        hasher.field(&format!("{} {:?} {}", self.arch, self.form, self.with_lines));
        hasher.key()
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.source.file(self.arch).0)?;
        let defines: Vec<String> = self.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !defines.is_empty() {
            write!(f, " ({})", defines.join(", "))?;
        }
        write!(f, " for {}{}", self.arch, if self.form == Form::Ptx { " as PTX" } else { "" })
    }
}

/// Names code by everything that it depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub(super) [u8; 32]);

impl Key {
    /// The key of some bytes.
    pub(super) fn of(bytes: &[u8]) -> Key {
        Key(*blake3::hash(bytes).as_bytes())
    }

    /// The key of what this compiler makes of it with these options.
    pub(super) fn with(&self, compiler: &str, options: &[String]) -> Key {
        let mut hasher = Hasher::new("perfrun 2026 kernel code");
        hasher.bytes(&self.0);
        hasher.field(compiler);
        options.iter().for_each(|o| hasher.field(o));
        hasher.key()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes a list of fields: with their lengths, so that moving a byte from one to the next changes the key.
struct Hasher(blake3::Hasher);

impl Hasher {
    fn new(context: &str) -> Hasher {
        Hasher(blake3::Hasher::new_derive_key(context))
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }

    fn field(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn key(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source::new(&[("k/k.cu", "text")]);

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.to_owned().into() }
    }

    #[test]
    fn the_key_changes_with_whatever_the_code_depends_on() {
        let text = Text { kernel: file("k/k.cu", "text"), headers: vec![file("common/a.cuh", "a")] };
        let request = Request::new(SOURCE, Arch::SM_80, &[("T", "f32"), ("N", "1")]);
        let mut other_text = text.clone();
        other_text.kernel.text = "texts".into();
        let mut other_header = text.clone();
        other_header.headers[0].text = "b".into();
        let mut moved = text.clone();
        moved.headers[0] = file("common/a.cuha", "");
        let mut more = text.clone();
        more.headers.push(file("common/b.cuh", ""));
        let asked = request.key(&text);
        let with = |change: fn(&mut Request<'static>)| {
            let mut request = Request::new(SOURCE, Arch::SM_80, &[("T", "f32"), ("N", "1")]);
            change(&mut request);
            request.key(&text)
        };
        let compiler = |name: &str, options: &[&str]| {
            asked.with(name, &options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        };
        let mut keys = vec![
            asked,
            request.key(&other_text),
            request.key(&other_header),
            request.key(&moved),
            request.key(&more),
            with(|r| r.arch = Arch::SM_90A),
            with(|r| r.form = Form::Ptx),
            with(|r| r.with_lines = true),
            with(|r| r.defines = &[("T", "bf16"), ("N", "1")]),
            with(|r| r.defines = &[("T", "f32")]),
            with(|r| r.defines = &[("T", "f32"), ("N", "11")]),
            compiler("NVRTC 12.9", &["-a", "-b"]),
            compiler("NVRTC 13.0", &["-a", "-b"]),
            compiler("NVRTC 12.9", &["-a"]),
            compiler("NVRTC 12.9", &["-a-b"]),
        ];
        assert_eq!(asked, with(|r| r.defines = &[("N", "1"), ("T", "f32")]), "the order of constants means nothing");
        assert_eq!(asked, with(|r| r.is_own_device = true), "who asks is not part of what is asked");
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn constants_stand_before_the_text_and_do_not_move_its_lines() {
        let file =
            Request::new(SOURCE, Arch::SM_80, &[("T", "f32"), ("N", "1")]).specialised(&file("k/k.cu", "text\n"));
        assert_eq!(file.text, "#define T f32\n#define N 1\n#line 1 \"k/k.cu\"\ntext\n");
    }

    #[test]
    fn constants_that_are_no_single_word_are_refused() {
        for wrong in [("", "1"), ("1T", "f32"), ("T", ""), ("T", "a b"), ("T", "a\0"), ("T=1", "2"), ("-T", "1")] {
            let defines = [wrong];
            assert!(Request::new(SOURCE, Arch::SM_80, &defines).check().is_err(), "{wrong:?}");
        }
        assert!(Request::new(SOURCE, Arch::SM_80, &[("T", "f32")]).check().is_ok());
        let error = Request::new(SOURCE, Arch::GFX90A, &[("T", "f32")]).ptx().check().unwrap_err().to_string();
        assert!(error.starts_with("k/k.cu (T=f32) for gfx90a as PTX: "), "{error}");
    }
}
