//! What a run writes down: one JSON line an event, and TensorBoard's event file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::train::observer::{Event, Observer};

/// `metrics.jsonl`: one object a line, appended to when a run goes on. What a line is about is its `event`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    every: u64,
}

impl MetricsLog {
    /// Opens or makes `folder/metrics.jsonl`; steps are written every `every`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: &Path, every: u64) -> Result<MetricsLog> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join("metrics.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(MetricsLog { path, file, every: every.max(1) })
    }
}

/// Seconds since 1970.
fn wall_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A number as JSON, which has no NaN and no infinity: those become text.
fn number(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { json!(x.to_string()) }
}

impl Observer for MetricsLog {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let line = match event {
            Event::Started { shape, done } => json!({
                "event": "start", "name": shape.name, "parameters": shape.parameters, "samples": shape.samples,
                "samples_per_step": shape.samples_per_step, "steps_per_epoch": shape.steps_per_epoch,
                "total_steps": shape.total_steps, "steps_done": done, "perfrun": env!("CARGO_PKG_VERSION"),
            }),
            Event::Notice(text) => json!({"event": "notice", "text": text}),
            Event::Step { report, noted, epoch, spent, .. }
                if report.step.is_multiple_of(self.every) || report.is_skipped =>
            {
                let (model, algorithm) = (report.cost.model(), report.cost.algorithm());
                let mut line = json!({
                    "event": "step", "step": report.step, "epoch": epoch, "loss": number(report.loss),
                    "grad_norm": number(report.grad_norm), "learning_rate": report.learning_rate,
                    "loss_scale": report.loss_scale, "skipped": report.is_skipped, "seconds": report.seconds,
                    "model_flops": model.flops.total() as f64, "matmul_flops": model.flops.matmul as f64,
                    "algorithm_flops": algorithm.flops.total() as f64, "spent_flops": spent.flops as f64,
                    "spent_samples": spent.samples,
                });
                for (name, value) in *noted {
                    line[*name] = number(*value);
                }
                line
            }
            Event::Validated { step, epoch, evaluation, is_best } => {
                let mut line = json!({
                    "event": "validation", "step": step, "epoch": epoch, "loss": number(evaluation.loss),
                    "samples": evaluation.samples, "best": is_best,
                });
                for (name, value) in &evaluation.metrics {
                    line[name] = number(*value);
                }
                line
            }
            Event::Saved { step, path } => json!({"event": "checkpoint", "step": step, "path": path}),
            Event::Ended { outcome, spent } => json!({
                "event": "end", "outcome": outcome.to_string(), "spent_flops": spent.flops as f64,
                "spent_samples": spent.samples,
            }),
            Event::Step { .. } | Event::Profiled { .. } | Event::Validating { .. } | Event::EpochEnded { .. } => {
                return Ok(());
            }
        };
        let mut line = line;
        line["time"] = json!(wall_seconds());
        // One write a line, so that a kill cannot leave half of one behind a whole one.
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))
    }
}

/// TensorBoard's event file: `train/loss` and others by step, `val/*` by validation.
///
/// # Source
/// TensorFlow, `core/util/event.proto` and `core/lib/io/record_writer.h`: a record is a length, its masked CRC-32C, a
/// protocol buffer, its masked CRC-32C.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    every: u64,
}

impl TensorBoard {
    /// Makes a new event file in `folder`; steps are written every `every`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path, every: u64) -> Result<TensorBoard> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let seconds = wall_seconds();
        let host = rustix::system::uname().nodename().to_string_lossy().replace(['/', ' '], "_");
        let name = format!("events.out.tfevents.{:010}.{host}.{}.0", seconds as u64, std::process::id());
        let path = folder.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("create", &path))?;
        let mut board = TensorBoard { path, file, every: every.max(1) };
        let mut event = Vec::new();
        double(&mut event, 1, seconds);
        bytes(&mut event, 3, b"brain.Event:2");
        board.record(&event)?;
        Ok(board)
    }

    fn scalars<'a>(&mut self, step: u64, scalars: impl IntoIterator<Item = (String, f64)> + 'a) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, tag.as_bytes());
            key(&mut entry, 2, 5);
            entry.extend((value as f32).to_le_bytes());
            bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        double(&mut event, 1, wall_seconds());
        key(&mut event, 2, 0);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io("write", &self.path))
    }
}

impl Observer for TensorBoard {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step { report, noted, epoch, spent, .. } if report.step.is_multiple_of(self.every) => {
                let scalars = [
                    ("train/loss", report.loss),
                    ("train/learning_rate", report.learning_rate),
                    ("train/grad_norm", report.grad_norm),
                    ("train/loss_scale", report.loss_scale),
                    ("train/epoch", *epoch as f64),
                    ("train/seconds", report.seconds),
                    ("train/spent_flops", spent.flops as f64),
                ];
                let noted = noted.iter().map(|(name, v)| (format!("train/{name}"), *v));
                let all: Vec<_> = scalars.map(|(tag, v)| (tag.to_owned(), v)).into_iter().chain(noted).collect();
                self.scalars(report.step, all)
            }
            Event::Validated { step, evaluation, .. } => {
                let loss = std::iter::once(("val/loss".to_owned(), evaluation.loss));
                let all: Vec<_> =
                    loss.chain(evaluation.metrics.iter().map(|(n, v)| (format!("val/{n}"), *v))).collect();
                self.scalars(*step, all)
            }
            Event::Ended { .. } => self.file.sync_data().map_err(Error::io("sync", &self.path)),
            _ => Ok(()),
        }
    }
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

pub(super) fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

pub(super) fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn double(out: &mut Vec<u8>, field: u64, x: f64) {
    key(out, field, 1);
    out.extend(x.to_le_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, field: u64, data: &[u8]) {
    key(out, field, 2);
    varint(out, data.len() as u64);
    out.extend(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::evaluation::Evaluation;

    fn validated(observer: &mut dyn Observer, loss: f64) {
        let evaluation = Evaluation { loss, samples: 3, metrics: vec![("rmse".into(), 0.5)] };
        observer.event(&Event::Validated { step: 7, epoch: 1, evaluation: &evaluation, is_best: true }).unwrap();
    }

    #[test]
    fn a_run_that_goes_on_appends_and_every_line_is_an_object() {
        let dir = tempfile::tempdir().unwrap();
        for loss in [0.25, f64::NAN] {
            validated(&mut MetricsLog::open(dir.path(), 1).unwrap(), loss);
        }
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(
            (&lines[0]["loss"], &lines[0]["rmse"], &lines[1]["loss"]),
            (&json!(0.25), &json!(0.5), &json!("NaN"))
        );
    }

    #[test]
    fn the_event_file_is_records_with_their_checksums() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(dir.path(), 1).unwrap();
        validated(&mut board, 0.25);
        let data = std::fs::read(&board.path).unwrap();
        let (mut at, mut records) = (0, Vec::new());
        while at < data.len() {
            let n = u64::from_le_bytes(data[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(data[at + 8..at + 12], masked_crc(&data[at..at + 8]).to_le_bytes());
            let body = &data[at + 12..at + 12 + n];
            assert_eq!(data[at + 12 + n..at + 16 + n], masked_crc(body).to_le_bytes());
            records.push(body.to_vec());
            at += 16 + n;
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        let has = |needle: &[u8]| records[1].windows(needle.len()).any(|w| w == needle);
        assert!(has(b"val/loss\x15\x00\x00\x80\x3e") && has(b"val/rmse\x15\x00\x00\x00\x3f"));
        // The checksum of the CRC catalogue's nine digits, masked.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
