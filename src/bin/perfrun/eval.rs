//! `perfrun eval`: the metrics of a checkpoint.

use std::sync::Arc;

use clap::Args;
use perfrun::error::Error;
use perfrun::train::evaluation::Evaluation;
use serde_json::{Map, json};

use crate::forecaster::ForecasterArgs;
use crate::outcome::Outcome;
use crate::output::{self, Progress};
use crate::reconstruct::part_of;

/// Flags of `perfrun eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    source: ForecasterArgs,
    /// Samples at a time; without it, as many as in training
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// One JSON object with every metric
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        if self.batch_size == Some(0) {
            return Err(Error::argument("batch-size: expected 1 or more, found 0").into());
        }
        let mut progress = Progress::new("eval");
        let mut tell = |done, total| progress.set(done, total, "samples");
        let (path, step, evaluation, shown) = match self.source.open_sherlock()? {
            Some(predictor) => {
                let data = predictor.recording()?.part(part_of(self.source.split));
                let evaluation = predictor.evaluate(data, self.batch_size, &mut tell)?;
                (predictor.path().to_owned(), predictor.step(), evaluation, None)
            }
            None => {
                let forecaster = self.source.open()?;
                let data = Arc::new(forecaster.dataset(self.source.split)?);
                let evaluation = forecaster.evaluate(&data, self.batch_size, &mut tell)?;
                let shown = (data.grid().output_channels, data.statistics().is_some());
                (forecaster.path().to_owned(), forecaster.step(), evaluation, Some(shown))
            }
        };
        progress.finish();
        if self.json {
            let metrics: Map<_, _> = evaluation.metrics.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
            output::pretty_json(&json!({
                "checkpoint": path,
                "step": step,
                "split": self.source.split.to_string(),
                "samples": evaluation.samples,
                "loss": evaluation.loss,
                "metrics": metrics,
            }))?;
            return Ok(Outcome::Done);
        }
        output::line(format!(
            "{} after step {step}, {}: {} samples, loss {:.6}",
            path.display(),
            self.source.split,
            evaluation.samples,
            evaluation.loss
        ))?;
        match shown {
            Some((channels, has_units)) => print(&evaluation, channels, has_units)?,
            None => {
                evaluation.metrics.iter().try_for_each(|(name, x)| output::line(format!("{name:<24} {x:>13.6}")))?
            }
        }
        Ok(Outcome::Done)
    }
}

/// What is shown of every channel.
const COLUMNS: [&str; 5] = ["rmse", "weighted_rmse", "mae", "mse", "acc"];

fn print(evaluation: &Evaluation, channels: usize, has_units: bool) -> std::io::Result<()> {
    let number = |name: &str| evaluation.get(name).map_or_else(|| "-".to_owned(), |v| format!("{v:.5e}"));
    let row = |label: &str, name: &dyn Fn(&str) -> String| {
        let cells: String = COLUMNS.iter().map(|c| format!(" {:>13}", number(&name(c)))).collect();
        output::line(format!("{label:>8}{cells}"))
    };
    let heading = |what: &str| {
        let cells: String = COLUMNS.iter().map(|c| format!(" {c:>13}")).collect();
        output::line(format!("\n{what}\n{:>8}{cells}", "channel"))
    };
    heading("normalised")?;
    row("all", &|column| column.to_owned())?;
    for c in 0..channels {
        row(&c.to_string(), &|column| format!("{column}_ch{c}"))?;
    }
    if has_units {
        heading("in the units of the files")?;
        for c in 0..channels {
            row(&c.to_string(), &|column| format!("physical/{column}_ch{c}"))?;
        }
    }
    if let (Some(still), Some(ratio)) =
        (evaluation.get("persistence_weighted_rmse"), evaluation.get("ratio_to_persistence"))
    {
        output::line(format!("\npersistence: weighted_rmse {still:.5e}; the forecast has {ratio:.4} of it"))?;
    }
    Ok(())
}
