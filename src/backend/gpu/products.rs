//! Who computes a matrix product on this device: the library of its vendor or the kernel of this one. Both are measured once for
//! each shape, and the choice is remembered on disk, so that later runs give the same bits.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Gpu;
use super::compile::Places;
use super::driver::{Driver, Event};
use super::vendor::BlasLt;
use crate::error::{Error, Result};

/// The variable that takes the choice away: `kernel`, `library`, or `measure` as without it.
const VARIABLE: &str = "MATMUL";

/// Ways of the library that are measured: it puts what it thinks best first, and is seldom wrong by more.
const WAYS: usize = 3;
/// Measurements of a way, of which the least counts: everything else that happens only adds.
const REPEATS: usize = 3;

/// A way is taken instead of one before it in the list if it needs less than this part of its time: noise decides nothing.
const CLEARLY: f64 = 0.97;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the kernel of the room.
    Kernel,
    /// By the vendor's library, in this one of the ways that it offers.
    Library(usize),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Kernel => f.write_str("kernel"),
            Way::Library(way) => write!(f, "library:{way}"),
        }
    }
}

impl FromStr for Way {
    type Err = ();

    fn from_str(s: &str) -> Result<Way, ()> {
        match s.strip_prefix("library:") {
            Some(way) => way.parse().map(Way::Library).map_err(drop),
            None if s == "kernel" => Ok(Way::Kernel),
            None => Err(()),
        }
    }
}

/// Who may compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Measure,
    Kernel,
    Library,
}

impl Policy {
    fn parse(value: Option<&str>) -> Result<Policy> {
        match value {
            None | Some("" | "measure") => Ok(Policy::Measure),
            Some("kernel") => Ok(Policy::Kernel),
            Some("library") => Ok(Policy::Library),
            Some(other) => {
                Err(Error::argument(format!("{VARIABLE}: expected `kernel`, `library` or `measure`, found `{other}`")))
            }
        }
    }
}

/// The choices of one device.
#[derive(Debug)]
pub(crate) struct Products {
    library: Option<BlasLt>,
    policy: Policy,
    chosen: Mutex<HashMap<String, Way>>,
    /// Where choices are remembered, if anywhere.
    file: Option<PathBuf>,
}

impl Products {
    /// The choices for `driver`'s device, with the library of its vendor where that is to be had and wanted.
    ///
    /// # Errors
    /// [`Error::Argument`] if [`VARIABLE`] has another value; the library's own if it was asked for and cannot be opened.
    pub(crate) fn open(gpu: &Gpu, driver: Arc<dyn Driver>) -> Result<Products> {
        let policy = Policy::parse(std::env::var(VARIABLE).ok().as_deref())?;
        let kernels = Products { library: None, policy, chosen: Mutex::default(), file: None };
        if policy == Policy::Kernel || !gpu.is_real() {
            return Ok(kernels);
        }
        let library = match BlasLt::open(Arc::clone(&driver)) {
            Ok(library) => library,
            Err(e) if policy == Policy::Library => return Err(e),
            Err(e) => {
                gpu.notice(format!("matmul: all products by its own kernel: {e}"));
                return Ok(kernels);
            }
        };
        let file = Places::here().cache.map(|folder| folder.join(file_name(&*driver, &library)));
        let (chosen, bad) = file.as_deref().map_or_else(Default::default, remembered);
        if let Some(why) = bad {
            gpu.notice(why);
        }
        if policy == Policy::Measure {
            gpu.notice(format!(
                "matmul: {} computes where it measures faster ({VARIABLE}=kernel or library decides otherwise){}",
                library.library(),
                file.as_ref().map(|f| format!("; choices are in {}", f.display())).unwrap_or_default()
            ));
        }
        Ok(Products { library: Some(library), policy, chosen: Mutex::new(chosen), file })
    }

    /// The vendor's library, if products may go to it.
    pub(crate) fn library(&self) -> Option<&BlasLt> {
        self.library.as_ref()
    }

    fn chosen(&self) -> MutexGuard<'_, HashMap<String, Way>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the product named `shape` is computed, of which the library offers `ways`. `run` computes it in a way that is to be
    /// measured; what it writes is not used.
    ///
    /// # Errors
    /// What the kernel's way or the device's clock reports.
    pub(crate) fn way(&self, gpu: &Gpu, shape: &str, ways: usize, run: impl FnMut(Way) -> Result<()>) -> Result<Way> {
        match self.policy {
            Policy::Library if ways == 0 => {
                gpu.notice(format!(
                    "matmul: {VARIABLE}=library, but it has no way for {shape}: the kernel computes it"
                ));
                return Ok(Way::Kernel);
            }
            _ if ways == 0 => return Ok(Way::Kernel),
            Policy::Kernel => return Ok(Way::Kernel),
            Policy::Library => return Ok(Way::Library(0)),
            Policy::Measure => {}
        }
        let known = self.chosen().get(shape).copied();
        if let Some(way) = known.filter(|way| !matches!(way, Way::Library(i) if *i >= ways)) {
            return Ok(way);
        }
        let (way, line) = fastest(gpu, ways.min(WAYS), run)?;
        self.chosen().insert(shape.to_owned(), way);
        if let Some(file) = &self.file
            && let Err(e) = remember(file, &format!("{way}\t{line}\t{shape}\n"))
        {
            gpu.notice(format!("matmul: the choice is not remembered: {e}"));
        }
        Ok(way)
    }
}

/// The fastest way, and the microseconds of the kernel and of the library's best.
fn fastest(gpu: &Gpu, ways: usize, mut run: impl FnMut(Way) -> Result<()>) -> Result<(Way, String)> {
    let clock = Clock::new(gpu)?;
    let kernel = clock.seconds(|| run(Way::Kernel))?;
    let mut best = (Way::Kernel, kernel);
    let mut library = f64::INFINITY;
    for way in (0..ways).map(Way::Library) {
        // What the library offers and then refuses is one way less, and the kernel is always there.
        match clock.seconds(|| run(way)) {
            Ok(seconds) => {
                library = library.min(seconds);
                if seconds < best.1 * CLEARLY {
                    best = (way, seconds);
                }
            }
            Err(Error::Driver(why)) => gpu.notice(format!("matmul: {way} was offered and refused: {why}")),
            Err(e) => return Err(e),
        }
    }
    Ok((best.0, format!("{:.1}\t{:.1}", kernel * 1e6, library * 1e6)))
}

/// Two events of the device's stream.
struct Clock<'a> {
    gpu: &'a Gpu,
    from: Event,
    to: Event,
}

impl<'a> Clock<'a> {
    fn new(gpu: &'a Gpu) -> Result<Clock<'a>> {
        let driver = gpu.driver();
        Ok(Clock { gpu, from: driver.create_event()?, to: driver.create_event()? })
    }

    /// The least of several measurements after one that is not counted: it loads code.
    fn seconds(&self, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
        let driver = self.gpu.driver();
        run()?;
        let mut least = f64::INFINITY;
        for _ in 0..REPEATS {
            driver.record(self.from, self.gpu.stream())?;
            run()?;
            driver.record(self.to, self.gpu.stream())?;
            least = least.min(driver.elapsed(self.from, self.to)?);
        }
        Ok(least)
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        // After a fault events cannot be ended either, and the fault is what is reported.
        drop(self.gpu.driver().destroy_event(self.from));
        drop(self.gpu.driver().destroy_event(self.to));
    }
}

/// A file for each device, driver, library and version of the kernels: any of them may change what is fastest.
fn file_name(driver: &dyn Driver, library: &BlasLt) -> String {
    let info = driver.info();
    let version = library.version();
    let of = format!("{}, {}, {} {version}, {}", info.name, info.driver, library.library(), env!("CARGO_PKG_VERSION"));
    format!("products-{}.tsv", &blake3::hash(of.as_bytes()).to_hex()[..16])
}

/// The choices in `file`, and what is wrong with it. The first line of a shape counts: whoever came second used it too.
fn remembered(file: &Path) -> (HashMap<String, Way>, Option<String>) {
    let mut chosen = HashMap::new();
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return (chosen, None),
        Err(e) => return (chosen, Some(format!("{}: {e}; products are measured anew", file.display()))),
    };
    let mut bad = None;
    for (i, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        match (fields[..].first().map(|way| way.parse::<Way>()), fields.len()) {
            (Some(Ok(way)), 4) => {
                chosen.entry(fields[3].to_owned()).or_insert(way);
            }
            _ => {
                let line = i + 1;
                bad.get_or_insert_with(|| {
                    format!(
                        "{}: line {line}: expected a choice, two times and a shape; it is measured anew",
                        file.display()
                    )
                });
            }
        }
    }
    (chosen, bad)
}

/// Adds a line in one write, so that processes can share the file.
fn remember(file: &Path, line: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let mut to = OpenOptions::new().append(true).create(true).open(file).map_err(Error::io("open", file))?;
    to.write_all(line.as_bytes()).map_err(Error::io("write", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_come_back_as_they_were_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/products.tsv");
        assert_eq!(remembered(&file), (HashMap::new(), None));
        remember(&file, "library:2\t20.0\t10.0\tbf16 64x64x64 nt\n").unwrap();
        remember(&file, "kernel\t1.0\t2.0\tf32 1x1x1 nn\n").unwrap();
        // A second process measured it too, with another result.
        remember(&file, "kernel\t9.0\t10.0\tbf16 64x64x64 nt\n").unwrap();
        let (chosen, bad) = remembered(&file);
        assert_eq!(bad, None);
        assert_eq!(chosen.len(), 2);
        assert_eq!(chosen["bf16 64x64x64 nt"], Way::Library(2));
        assert_eq!(chosen["f32 1x1x1 nn"], Way::Kernel);
    }

    #[test]
    fn a_damaged_line_is_told_and_the_others_hold() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("products.tsv");
        for bad in ["library:x\t1\t2\ta", "kernel\t1\ta", "", "library\t1\t2\ta", "\u{0}"] {
            fs::write(&file, format!("kernel\t1\t2\tgood\n{bad}\n")).unwrap();
            let (chosen, why) = remembered(&file);
            assert_eq!(chosen.len(), 1, "{bad:?}");
            assert!(why.unwrap().contains("products.tsv: line 2: expected a choice"), "{bad:?}");
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        let (chosen, why) = remembered(&file);
        assert!(chosen.is_empty() && why.unwrap().contains("measured anew"));
    }

    #[test]
    fn the_variable_says_who_computes() {
        assert_eq!(Policy::parse(None).unwrap(), Policy::Measure);
        assert_eq!(Policy::parse(Some("kernel")).unwrap(), Policy::Kernel);
        assert_eq!(Policy::parse(Some("library")).unwrap(), Policy::Library);
        let e = Policy::parse(Some("cublas")).unwrap_err().to_string();
        assert!(e.contains("MATMUL: expected `kernel`, `library` or `measure`, found `cublas`"), "{e}");
    }
}
