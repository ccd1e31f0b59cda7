//! What the original writes: a header and a line an epoch, on the console and in `training.log`; and `.pt` files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::backend::Exec;
use crate::error::{Error, Result};
use crate::io::atomic::Existing;
use crate::train::checkpoint::{Checkpoint, Contents, export};
use crate::train::config::{Precision, SherlockRun};
use crate::train::observer::{Event, Observer};
use crate::train::run::{EpochRecord, Outcome, RunShape};
use crate::train::sherlock::Session;

/// Header, epoch lines and the end, in the original's words.
pub struct TrainingLog {
    path: PathBuf,
    file: File,
    header: [String; 3],
    rest: [String; 5],
    say: Box<dyn FnMut(&str)>,
    best: Option<f64>,
    epochs: u64,
}

impl std::fmt::Debug for TrainingLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrainingLog({})", self.path.display())
    }
}

impl TrainingLog {
    /// Appends to `training.log` in the run's `log_dir`; `say` gets every line too.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(run: &SherlockRun, session: &Session, say: impl FnMut(&str) + 'static) -> Result<TrainingLog> {
        let folder = &run.training.log_dir;
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join("training.log");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        let [train, valid] = session.samples();
        let t = &run.training;
        let exec: &Exec = session.trainer().exec();
        let header =
            [format!("Device: {}", exec.device()), "Distributed: False".to_owned(), "World size: 1".to_owned()];
        let mixed = if t.precision == Precision::Fp32 { "False" } else { "True" };
        let rest = [
            format!("Train samples: {train}\nVal samples: {valid}"),
            format!("Batch size: {}", t.batch_size),
            format!("Learning rate: {}", t.learning_rate),
            format!("Number of epochs: {}", t.epochs),
            format!("Mixed precision: {mixed}"),
        ];
        Ok(TrainingLog {
            path,
            file,
            header,
            rest,
            say: Box::new(say),
            best: session.best_val_loss(),
            epochs: session.epochs(),
        })
    }

    fn line(&mut self, text: &str) -> Result<()> {
        (self.say)(text);
        // One write, so that a kill leaves no half of it before a whole one.
        self.file.write_all(format!("{text}\n").as_bytes()).map_err(Error::io("write", &self.path))
    }

    fn head(&mut self, shape: &RunShape) -> Result<()> {
        let bar = "=".repeat(80);
        let parameters = format!("Model parameters: {}", with_commas(shape.parameters));
        let [header, rest] = [self.header.join("\n"), self.rest.join("\n")];
        self.line(&format!("{bar}\nStarting training\n{bar}\n{header}\n{parameters}\n{rest}\n{bar}\n"))
    }
}

impl Observer for TrainingLog {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Started { shape, .. } => self.head(shape),
            Event::EpochEnded { record, shape } => {
                self.epochs = record.epoch;
                let loss = record.val.as_ref().and_then(|val| val.get("loss")).copied();
                if let Some(loss) = loss {
                    self.best = Some(self.best.map_or(loss, |best| best.min(loss)));
                }
                self.line(&epoch_line(record, shape.epochs))
            }
            Event::Saved { path, .. } => self.line(&format!("Saved checkpoint: {}", path.display())),
            Event::Ended { outcome, .. } => {
                let end = match outcome {
                    Outcome::Finished => "Training complete!".to_owned(),
                    Outcome::EarlyStopped => format!(
                        "Early stopping after {} epochs: validation loss does not improve\nTraining complete!",
                        self.epochs
                    ),
                    other => format!("Training {other}"),
                };
                let best = self.best.map_or(String::new(), |best| format!("\nBest validation loss: {best:.6}"));
                self.line(&format!("{end}{best}"))
            }
            _ => Ok(()),
        }
    }
}

/// `Epoch 1/100 | Train Loss: 15.3421 | Val Loss: 12.4567 | fMRI Corr: 0.2345 | LR: 1.00e-04`
fn epoch_line(record: &EpochRecord, epochs: u64) -> String {
    let train = |name: &str| record.train.get(name).copied();
    let loss = train("total_loss").or_else(|| train("loss")).unwrap_or(f64::NAN);
    let mut line = format!("Epoch {}/{epochs} | Train Loss: {loss:.4}", record.epoch);
    if let Some(val) = &record.val {
        let get = |name: &str| val.get(name).copied().unwrap_or(f64::NAN);
        line += &format!(" | Val Loss: {:.4} | fMRI Corr: {:.4}", get("loss"), get("fmri_correlation"));
    }
    line + &format!(" | LR: {}", scientific(train("lr").unwrap_or(0.0)))
}

/// Two decimals and an exponent of two digits, as C prints it.
fn scientific(x: f64) -> String {
    let text = format!("{x:.2e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = exponent.strip_prefix('-').map_or(("+", exponent), |digits| ("-", digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn with_commas(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Writes every checkpoint as the original's `.pt` too, beside its folder, and removes those whose folder is gone.
#[derive(Debug, Default)]
pub struct PtFiles {
    written: Vec<(PathBuf, PathBuf)>,
}

impl PtFiles {
    /// The file of the checkpoint in `folder`.
    pub fn path(folder: &Path) -> PathBuf {
        folder.with_extension("pt")
    }
}

impl Observer for PtFiles {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let Event::Saved { path, .. } = event else { return Ok(()) };
        let file = PtFiles::path(path);
        export(&Checkpoint::open(path)?, &file, Contents::Everything, Existing::Replace)?;
        self.written.retain(|(folder, _)| folder != path);
        self.written.push((path.to_path_buf(), file));
        for (_, file) in self.written.extract_if(.., |(folder, _)| !folder.exists()) {
            std::fs::remove_file(&file).map_err(Error::io("remove", &file))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_the_line_that_the_document_shows() {
        let numbers = |list: &[(&str, f64)]| list.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        let mut record = EpochRecord {
            epoch: 1,
            train: numbers(&[("total_loss", 15.34214), ("lr", 1e-4)]),
            val: Some(numbers(&[("loss", 12.4567), ("fmri_correlation", 0.2345)])),
        };
        let want = "Epoch 1/100 | Train Loss: 15.3421 | Val Loss: 12.4567 | fMRI Corr: 0.2345 | LR: 1.00e-04";
        assert_eq!(epoch_line(&record, 100), want);
        record.val = None;
        assert_eq!(epoch_line(&record, 100), "Epoch 1/100 | Train Loss: 15.3421 | LR: 1.00e-04");
    }

    #[test]
    fn numbers_are_written_as_the_original_writes_them() {
        assert_eq!(with_commas(1_974_067_762), "1,974,067,762");
        assert_eq!((with_commas(7), with_commas(1000)), ("7".to_owned(), "1,000".to_owned()));
        assert_eq!(
            (scientific(2.8e-5), scientific(1.5), scientific(0.0)),
            ("2.80e-05".into(), "1.50e+00".into(), "0.00e+00".into())
        );
    }
}
