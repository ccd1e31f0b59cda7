//! The experiments of a sweep and what is known of each: a file of its configuration, a file of its result.

use std::io::Write;
use std::path::{Path, PathBuf};

use perfrun::backend::Exec;
use perfrun::error::{Error, Result};
use perfrun::io::atomic::{Existing, write_atomic};
use perfrun::train::config;
use perfrun::train::scaling::{Experiment, RunResult};
use perfrun::train::stop::Stop;
use serde_json::json;

use super::{report, trial};
use crate::outcome::Outcome;
use crate::output;

/// A sweep in its folder.
pub(super) struct Sweep {
    folder: PathBuf,
    experiments: Vec<Experiment>,
    left_out: Vec<String>,
}

/// What is known of an experiment.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// It has its result.
    Done(Box<RunResult>),
    /// It trains what this earlier one trains.
    SameAs(String),
    /// It is for so many nodes: not for this process.
    OnNodes(usize),
    /// It is to be run, or to go on.
    ToRun,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            State::Done(_) => f.write_str("done"),
            State::SameAs(name) => write!(f, "the same run as {name}"),
            State::OnNodes(nodes) => write!(f, "not run here: for {nodes} nodes, and this version trains on one"),
            State::ToRun => f.write_str("to run"),
        }
    }
}

impl Sweep {
    /// Writes the configurations of `experiments` into `folder`.
    pub(super) fn open(folder: &Path, experiments: Vec<Experiment>, left_out: Vec<String>) -> Result<Sweep> {
        let sweep = Sweep { folder: folder.to_path_buf(), experiments, left_out };
        let results = folder.join("results");
        std::fs::create_dir_all(&results).map_err(Error::io("create", &results))?;
        for e in &sweep.experiments {
            // Before anything is overwritten: a result of another configuration stops the sweep.
            sweep.result_of(e)?;
        }
        for e in &sweep.experiments {
            let text = config::yaml(&e.config, e.name(), &e.notes);
            let path = sweep.file_of(e.name());
            if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
                continue;
            }
            write(&path, &text)?;
        }
        Ok(sweep)
    }

    /// The configuration's file of an experiment.
    pub(super) fn file_of(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.yaml"))
    }

    fn result_file(&self, name: &str) -> PathBuf {
        self.folder.join("results").join(format!("{name}.json"))
    }

    /// The result of an experiment, if it has one.
    fn result_of(&self, e: &Experiment) -> Result<Option<RunResult>> {
        let path = self.result_file(e.name());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let at = path.display();
        let result: RunResult =
            serde_json::from_str(&text).map_err(|e| Error::data(format!("{at}: {e}; remove it")))?;
        if result.config_hash != hash(e)? {
            return Err(Error::config(format!(
                "{at}: is of another configuration than this sweep's; choose another --out, or remove it to run it again"
            )));
        }
        Ok(Some(result))
    }

    /// What is known of every experiment, in order.
    pub(super) fn states(&self) -> Result<Vec<(&Experiment, State)>> {
        let mut states = Vec::new();
        for (i, e) in self.experiments.iter().enumerate() {
            let state = match (self.result_of(e)?, self.experiments[..i].iter().find(|first| first.is_same_run(e))) {
                (Some(result), _) => State::Done(Box::new(result)),
                (None, Some(first)) => State::SameAs(first.name().to_owned()),
                (None, None) if e.nodes() > 1 => State::OnNodes(e.nodes()),
                (None, None) => State::ToRun,
            };
            states.push((e, state));
        }
        Ok(states)
    }

    /// The names of the experiments that are to be run.
    pub(super) fn to_run(&self) -> Result<Vec<String>> {
        let states = self.states()?;
        Ok(states.into_iter().filter(|(_, s)| *s == State::ToRun).map(|(e, _)| e.name().to_owned()).collect())
    }

    /// Runs what is to be run, of `only` these if it names any, one after another; `limit` is in seconds from now.
    pub(super) fn run(&self, only: &[String], exec: &Exec, stop: &Stop, limit: Option<f64>) -> anyhow::Result<Outcome> {
        if let Some(unknown) = only.iter().find(|n| self.experiments.iter().all(|e| e.name() != *n)) {
            let names: Vec<&str> = self.experiments.iter().map(Experiment::name).collect();
            let text = format!("only: no experiment `{unknown}`; there are {}", names.join(", "));
            return Err(Error::argument(text).into());
        }
        let start = std::time::Instant::now();
        let mut outcome = Outcome::Done;
        let names = self.to_run()?;
        let chosen: Vec<&Experiment> = self
            .experiments
            .iter()
            .filter(|e| names.iter().any(|n| n == e.name()) && (only.is_empty() || only.iter().any(|n| n == e.name())))
            .collect();
        if let (Some(name), true) = (only.first(), chosen.is_empty()) {
            eprintln!("notice: {name}: nothing to run: --dry-run says why");
        }
        for (i, e) in chosen.iter().enumerate() {
            eprintln!("experiment {} of {}: {}", i + 1, chosen.len(), e.name());
            e.notes.iter().for_each(|n| eprintln!("notice: {n}"));
            let left = limit.map(|l| l - start.elapsed().as_secs_f64());
            match trial::run(e, exec, stop, left, &hash(e)?) {
                Ok(Some(result)) => write(&self.result_file(e.name()), &format!("{:#}\n", json!(result)))?,
                Ok(None) => return Ok(Outcome::Stopped),
                // One model that diverges says nothing about the others.
                Err(error) => {
                    eprint!("{}", crate::outcome::lines(&error.context(e.name().to_owned())));
                    outcome = Outcome::Failed;
                }
            }
        }
        Ok(outcome)
    }

    /// Gathers the results that there are, fits and reports.
    pub(super) fn collect(&self) -> anyhow::Result<()> {
        let mut results: Vec<RunResult> = Vec::new();
        let mut missing = Vec::new();
        for (e, state) in self.states()? {
            let known = |name: &str| results.iter().find(|r| r.name == name).cloned();
            match state {
                State::Done(result) => results.push(*result),
                State::SameAs(first) => match known(&first) {
                    Some(result) => results.push(RunResult {
                        name: e.name().to_owned(),
                        scale: e.scale,
                        factor: e.factor,
                        same_as: Some(result.same_as.unwrap_or(first)),
                        config_hash: hash(e)?,
                        ..result
                    }),
                    None => missing.push(e.name().to_owned()),
                },
                State::OnNodes(_) | State::ToRun => missing.push(e.name().to_owned()),
            }
        }
        let lines: String = results.iter().map(|r| format!("{}\n", json!(r))).collect();
        write(&self.folder.join("results.jsonl"), &lines)?;
        let fits = report::Fits::of(&results);
        write(&self.folder.join("fit.json"), &format!("{:#}\n", json!(fits)))?;
        write(&self.folder.join("report.html"), &report::page(&results, &fits, &missing, &self.left_out))?;
        output::line(report::text(&results, &fits, &missing))?;
        output::line(format!("results, fit and report are in {}", self.folder.display()))?;
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, Existing::Replace, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", path)))
}

/// The hash of what an experiment trains: its name and its folders do not count.
fn hash(e: &Experiment) -> Result<String> {
    let mut config = e.config.clone();
    config.experiment.name = String::new();
    config.experiment.description = String::new();
    config.training.checkpoint_dir = PathBuf::new();
    config.training.log_dir = PathBuf::new();
    let text = serde_json::to_vec(&config).map_err(|e| Error::config(format!("configuration: {e}")))?;
    Ok(blake3::hash(&text).to_hex().to_string())
}
