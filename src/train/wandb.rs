//! An offline run for Weights & Biases: what `wandb sync FOLDER` sends, written without its client.
//!
//! # Source
//! The client's `.wandb` container (LevelDB's log with its own checksum) and its protocol buffers, `wandb_internal.proto`,
//! version 0.19.0.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::train::log::{bytes, key, varint};
use crate::train::observer::{Event, Observer};

/// A block of the container; no piece of a record crosses its end.
const BLOCK: usize = 32 * 1024;
/// Checksum, length and kind of a piece.
const HEAD: usize = 7;

/// Writes an offline run: its configuration, a point every `every` steps, each validation, a summary and how it ended.
#[derive(Debug)]
pub struct Wandb {
    path: PathBuf,
    file: File,
    /// Bytes written so far.
    at: usize,
    records: u64,
    began: f64,
    every: u64,
    summary: Vec<(String, f64)>,
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl Wandb {
    /// Makes `wandb/offline-run-DATE-ID` in `folder` for a run of this name and configuration.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path, project: &str, name: &str, config: &Value, every: u64) -> Result<Wandb> {
        let began = now();
        let stream = Stream::of(began.to_bits(), &[u64::from(std::process::id())]);
        const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let letter = |i| LETTERS.get(stream.below(i, LETTERS.len() as u64) as usize).copied().map_or('a', char::from);
        let id: String = (0..8).map(letter).collect();
        let folder = folder.join("wandb").join(format!("offline-run-{}-{id}", date(began as u64)));
        for inner in ["files", "logs", "tmp"] {
            let inner = folder.join(inner);
            std::fs::create_dir_all(&inner).map_err(Error::io("create", &inner))?;
        }
        let path = folder.join(format!("run-{id}.wandb"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path).map_err(Error::io("create", &path))?;
        let mut run = Wandb { path, file, at: 0, records: 0, began, every: every.max(1), summary: Vec::new() };
        run.write(b":W&B\xe1\xbe\x00")?;
        let mut version = Vec::new();
        bytes(&mut version, 1, b"0.19.0");
        bytes(&mut version, 2, b"0.9.0");
        run.record(21, &nested(1, &version))?;
        run.record(17, &begun(&id, project, name, config, began))?;
        Ok(run)
    }

    /// The folder that `wandb sync` takes.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.at += data.len();
        self.file.write_all(data).map_err(Error::io("write", &self.path))
    }

    /// One record: its number, and `body` under `field`; cut where a block ends.
    fn record(&mut self, field: u64, body: &[u8]) -> Result<()> {
        self.records += 1;
        let mut record = Vec::with_capacity(body.len() + 16);
        key(&mut record, 1, 0);
        varint(&mut record, self.records);
        bytes(&mut record, field, body);
        let (mut rest, mut is_first) = (record.as_slice(), true);
        let mut out = Vec::new();
        let mut at = self.at;
        loop {
            let left = BLOCK - at % BLOCK;
            if left < HEAD {
                out.resize(out.len() + left, 0);
                at += left;
                continue;
            }
            let (piece, more) = rest.split_at(rest.len().min(left - HEAD));
            let kind: u8 = match (is_first, more.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            let checked: Vec<u8> = std::iter::once(kind).chain(piece.iter().copied()).collect();
            out.extend(crc32(&checked).to_le_bytes());
            out.extend((piece.len() as u16).to_le_bytes());
            out.extend(&checked);
            at += HEAD + piece.len();
            (rest, is_first) = (more, false);
            if rest.is_empty() {
                return self.write(&out);
            }
        }
    }

    fn history(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let clock = now();
        let own = [("_step", step as f64), ("_runtime", clock - self.began), ("_timestamp", clock)];
        let mut body = Vec::new();
        for (name, value) in own.iter().map(|(n, v)| (*n, *v)).chain(values.iter().map(|(n, v)| (n.as_str(), *v))) {
            bytes(&mut body, 1, &item(name, &number(value)));
        }
        let mut count = Vec::new();
        key(&mut count, 1, 0);
        varint(&mut count, step);
        bytes(&mut body, 2, &count);
        for (name, value) in values {
            match self.summary.iter_mut().find(|(n, _)| n == name) {
                Some((_, old)) => *old = *value,
                None => self.summary.push((name.clone(), *value)),
            }
        }
        self.record(2, &body)
    }

    fn end(&mut self, is_done: bool) -> Result<()> {
        let mut body = Vec::new();
        for (name, value) in &self.summary {
            bytes(&mut body, 1, &item(name, &number(*value)));
        }
        self.record(3, &body)?;
        let mut exit = Vec::new();
        key(&mut exit, 1, 0);
        varint(&mut exit, u64::from(!is_done));
        key(&mut exit, 2, 0);
        varint(&mut exit, (now() - self.began) as u64);
        self.record(18, &exit)?;
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

impl Observer for Wandb {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step { report, noted, epoch, .. } if report.step.is_multiple_of(self.every) => {
                let own = [
                    ("train_loss", report.loss),
                    ("learning_rate", report.learning_rate),
                    ("grad_norm", report.grad_norm),
                    ("loss_scale", report.loss_scale),
                    ("epoch", *epoch as f64),
                ];
                let noted = noted.iter().map(|(name, v)| (format!("train/{name}"), *v));
                let all: Vec<_> = own.map(|(name, v)| (name.to_owned(), v)).into_iter().chain(noted).collect();
                self.history(report.step, &all)
            }
            Event::Validated { step, evaluation, .. } => {
                let loss = std::iter::once(("val_loss".to_owned(), evaluation.loss));
                let all: Vec<_> =
                    loss.chain(evaluation.metrics.iter().map(|(n, v)| (format!("val/{n}"), *v))).collect();
                self.history(*step, &all)
            }
            Event::Ended { outcome, .. } => self.end(!outcome.is_resumable()),
            _ => Ok(()),
        }
    }
}

/// The record of a run that begins.
fn begun(id: &str, project: &str, name: &str, config: &Value, began: f64) -> Vec<u8> {
    let mut updates = Vec::new();
    for (section, keys) in config.as_object().into_iter().flatten() {
        bytes(&mut updates, 1, &item(section, keys));
    }
    let mut body = Vec::new();
    bytes(&mut body, 1, id.as_bytes());
    bytes(&mut body, 3, project.as_bytes());
    bytes(&mut body, 4, &updates);
    bytes(&mut body, 8, name.as_bytes());
    let mut time = Vec::new();
    key(&mut time, 1, 0);
    varint(&mut time, began as u64);
    bytes(&mut body, 17, &time);
    body
}

fn nested(field: u64, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, field, inner);
    out
}

/// A name with its value as JSON.
fn item(name: &str, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 16, value.to_string().as_bytes());
    out
}

/// JSON has no NaN: the client writes such numbers as text.
fn number(x: f64) -> Value {
    if x.is_finite() {
        return json!(x);
    }
    json!(if x.is_nan() {
        "NaN"
    } else if x > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    })
}

/// `20231114_221320` of seconds since 1970, in UTC.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`: eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}_{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// CRC-32 as in zlib.
fn crc32(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::evaluation::Evaluation;

    /// Records of a container, their pieces checked and put together.
    fn records(data: &[u8]) -> Vec<Vec<u8>> {
        let (mut at, mut out, mut record) = (7, Vec::new(), Vec::new());
        while at < data.len() {
            let left = BLOCK - at % BLOCK;
            if left < HEAD {
                at += left;
                continue;
            }
            let n = usize::from(u16::from_le_bytes(data[at + 4..at + 6].try_into().unwrap()));
            let piece = &data[at + 6..at + HEAD + n];
            assert_eq!(data[at..at + 4], crc32(piece).to_le_bytes());
            record.extend(&piece[1..]);
            if [1, 4].contains(&piece[0]) {
                out.push(std::mem::take(&mut record));
            }
            at += HEAD + n;
        }
        out
    }

    #[test]
    fn a_run_begins_with_the_bytes_that_the_client_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let run = Wandb::create(dir.path(), "p", "r", &json!({"training": {"epochs": 3}}), 1).unwrap();
        let data = std::fs::read(&run.path).unwrap();
        let hex: String = data.iter().take(36).map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "3a572642e1be009e76ebdf1600010801aa01110a0f0a06302e31392e301205302e392e30");
        let found = records(&data);
        let has = |needle: &[u8]| found[1].windows(needle.len()).any(|w| w == needle);
        assert!(found.len() == 2 && has(b"training\x82\x01\x0c{\"epochs\":3}"));
    }

    #[test]
    fn records_of_every_length_come_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Wandb::create(dir.path(), "p", "r", &json!({}), 1).unwrap();
        let long: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        for n in [0, 1, 32_600, 32_761, 5, 32_740, 100_000, 3] {
            run.record(2, &long[..n]).unwrap();
        }
        let evaluation = Evaluation { loss: f64::NAN, samples: 1, metrics: vec![("fmri_r2".into(), 0.5)] };
        run.event(&Event::Validated { step: 3, epoch: 1, evaluation: &evaluation, is_best: true }).unwrap();
        run.end(true).unwrap();
        let found = records(&std::fs::read(&run.path).unwrap());
        assert_eq!(found.len(), 13);
        assert!(found[8].ends_with(&long) && found[8].len() > 100_000);
        let has = |needle: &[u8]| found[10].windows(needle.len()).any(|w| w == needle);
        assert!(has(b"val_loss\x82\x01\x05\"NaN\"") && has(b"val/fmri_r2\x82\x01\x030.5"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(1_700_000_000), "20231114_221320");
        assert_eq!((date(0), date(951_782_400)), ("19700101_000000".to_owned(), "20000229_000000".to_owned()));
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
