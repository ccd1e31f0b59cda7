//! What this machine is: processor, caches, memory. Facts that the system tells; rates are measured elsewhere.

use std::path::Path;

use serde::Serialize;

use crate::backend::memory;

/// A cache that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is nearest to the core.
    pub level: u32,
    /// Its size.
    pub bytes: usize,
}

/// This machine, as far as the system tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's own name, if it has one.
    pub processor: Option<String>,
    /// Architecture, as the compiler names it.
    pub architecture: &'static str,
    /// Threads that this process may run at once.
    pub threads: usize,
    /// Instruction sets beyond the architecture's first, of those that this program can make use of.
    pub features: Vec<&'static str>,
    /// Data caches of the first core.
    pub caches: Vec<Cache>,
    /// Bytes of memory.
    pub memory_bytes: Option<usize>,
    /// Bytes of memory that can be taken without swapping.
    pub available_bytes: Option<usize>,
}

/// What a cache is taken to be where the system does not tell: larger than most, so that rotation still defeats it.
const UNKNOWN_CACHE_BYTES: usize = 64 << 20;

impl Machine {
    /// Asks the system.
    pub fn here() -> Machine {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Machine {
            processor: field(&cpuinfo, "model name").map(str::to_owned),
            architecture: std::env::consts::ARCH,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: features(),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            memory_bytes: memory::total_bytes(),
            available_bytes: memory::available_bytes(),
        }
    }

    /// Size of the largest cache.
    pub fn last_level_cache_bytes(&self) -> usize {
        self.caches.iter().map(|c| c.bytes).max().unwrap_or(UNKNOWN_CACHE_BYTES)
    }
}

/// The value of `name : value` lines, the first.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|l| l.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    known.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// Reads `index*/{level,type,size}`.
fn caches(folder: &Path) -> Vec<Cache> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let holds_data = matches!(read("type").trim(), "Data" | "Unified");
        if let (true, Ok(level), Some(bytes)) = (holds_data, read("level").trim().parse(), size(read("size").trim())) {
            found.push(Cache { level, bytes });
        }
    }
    found.sort_by_key(|c| (c.level, c.bytes));
    found
}

/// `32K`, `1M` or plain bytes.
fn size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'K') => (&text[..at], 1 << 10),
        (at, 'M') => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_read_as_the_system_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        for (i, (level, kind, size)) in
            [("3", "Unified", "32768K"), ("1", "Data", "32K"), ("1", "Instruction", "64K"), ("x", "Data", "1K")]
                .into_iter()
                .enumerate()
        {
            let folder = dir.path().join(format!("index{i}"));
            std::fs::create_dir(&folder).unwrap();
            for (name, value) in [("level", level), ("type", kind), ("size", size)] {
                std::fs::write(folder.join(name), format!("{value}\n")).unwrap();
            }
        }
        let want = [Cache { level: 1, bytes: 32 << 10 }, Cache { level: 3, bytes: 32 << 20 }];
        assert_eq!(caches(dir.path()), want);
        assert_eq!(caches(&dir.path().join("missing")), []);
    }

    #[test]
    fn sizes_and_fields_are_read() {
        assert_eq!(size("1M"), Some(1 << 20));
        assert_eq!(size("512"), Some(512));
        assert_eq!(size("K"), None);
        assert_eq!(field("a\t: 1\nmodel name\t: Some CPU\nmodel name : x", "model name"), Some("Some CPU"));
    }

    #[test]
    fn a_machine_has_a_thread_and_a_cache_to_defeat() {
        let machine = Machine::here();
        assert!(machine.threads > 0 && machine.last_level_cache_bytes() > 0);
    }
}
