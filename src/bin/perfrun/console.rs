//! What a person sees of a run: bars on a terminal, plain lines in a file.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use perfrun::error::Result;
use perfrun::train::config::TrainingConfig;
use perfrun::train::observer::{Event, Observer};
use perfrun::train::run::RunShape;

use crate::units::{duration, flops};

/// Shows a run.
pub(crate) struct Console {
    bars: MultiProgress,
    steps: ProgressBar,
    validation: Option<ProgressBar>,
    plain: bool,
    every: u64,
    flops_budget: Option<f64>,
    seconds_budget: Option<f64>,
    total: u64,
}

impl Console {
    /// For a run of this configuration.
    pub(crate) fn new(config: &TrainingConfig) -> Console {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bars = MultiProgress::with_draw_target(target);
        Console {
            steps: ProgressBar::hidden(),
            bars,
            validation: None,
            plain,
            every: config.log_frequency.max(1),
            flops_budget: config.flops_budget,
            seconds_budget: config.time_budget_hours.map(|h| 3600.0 * h),
            total: 0,
        }
    }

    fn say(&self, line: &str) {
        if self.plain {
            eprintln!("{line}");
        } else {
            // Without a bar to print above, the line would be lost.
            let _ = self.bars.println(line);
        }
    }

    fn start(&mut self, shape: &RunShape, done: u64) {
        self.total = shape.total_steps;
        self.say(&format!(
            "{}: {} parameters, {} samples, {} steps an epoch of {} samples, {} steps in {} epochs",
            shape.name,
            shape.parameters,
            shape.samples,
            shape.steps_per_epoch,
            shape.samples_per_step,
            shape.total_steps,
            shape.epochs
        ));
        let template = "train {bar:30} step {pos}/{len}, {elapsed} {wide_msg}";
        self.steps = self.bars.add(bar(template, shape.total_steps));
        self.steps.set_position(done);
        self.steps.reset_eta();
        if !self.plain {
            self.steps.enable_steady_tick(Duration::from_millis(200));
        }
    }
}

/// Metrics that the line of a validation shows, where they are found.
const SAID: [(&str, &str); 4] = [
    ("weighted_rmse", "weighted RMSE"),
    ("acc", "ACC"),
    ("fmri_correlation", "fMRI correlation"),
    ("fmri_voxel_correlation", "by voxel over time"),
];

fn bar(template: &str, len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}

impl Observer for Console {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Started { shape, done } => self.start(shape, *done),
            Event::Notice(text) => self.say(&format!("notice: {text}")),
            Event::Step { report, epoch, spent, left, .. } => {
                let mut message = format!(
                    "epoch {} loss {:.4} norm {:.3} lr {:.2e}",
                    epoch + 1,
                    report.loss,
                    report.grad_norm,
                    report.learning_rate
                );
                if let Some(budget) = self.flops_budget {
                    message += &format!(", {} of {} FLOPs", flops(spent.flops as f64), flops(budget));
                }
                if let (Some(budget), Some(seconds)) = (self.seconds_budget, spent.seconds) {
                    message += &format!(", {:.0} of {budget:.0} s", seconds);
                }
                message += &format!(", {} steps left in about {}", left.steps, duration(left.seconds));
                if report.is_skipped {
                    self.say(&format!(
                        "step {}: gradients overflow at loss scale {}: update skipped",
                        report.step, report.loss_scale
                    ));
                }
                if self.plain && (report.step.is_multiple_of(self.every) || report.step == self.total) {
                    eprintln!("step {}/{} {message} ({:.1} ms)", report.step, self.total, 1e3 * report.seconds);
                }
                self.steps.set_message(message);
                self.steps.set_position(report.step);
            }
            // Who was asked for the profile shows it.
            Event::Profiled { .. } | Event::EpochEnded { .. } => {}
            Event::Validating { done, total } => {
                let bars = &self.bars;
                let bar =
                    self.validation.get_or_insert_with(|| bars.add(bar("valid {bar:30} {pos}/{len}", *total as u64)));
                bar.set_position(*done as u64);
            }
            Event::Validated { step, epoch, evaluation, is_best } => {
                if let Some(bar) = self.validation.take() {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
                let mut line = format!("epoch {epoch}, step {step}: validation loss {:.4}", evaluation.loss);
                for (name, said) in SAID {
                    if let Some(value) = evaluation.get(name) {
                        line += &format!(", {said} {value:.4}");
                    }
                }
                if let Some(ratio) = evaluation.get("ratio_to_persistence") {
                    line += &format!(", {ratio:.3} of persistence's error");
                }
                self.say(&format!("{line}{}", if *is_best { " (best)" } else { "" }));
            }
            Event::Saved { path, .. } => self.say(&format!("saved {}", path.display())),
            Event::Ended { outcome, spent } => {
                self.steps.finish_and_clear();
                self.say(&format!(
                    "{outcome} after {} samples, {} model FLOPs",
                    spent.samples,
                    flops(spent.flops as f64)
                ));
            }
        }
        Ok(())
    }
}
