//! The systems that configurations are of: what they have in common is asked of [`System`], the rest is told apart here.

use std::time::Duration;

use perfrun::backend::Exec;
use perfrun::data::sherlock::Manifest;
use perfrun::data::sherlock::synthetic::SyntheticSherlock;
use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::train::budget::Clock;
use perfrun::train::config::{LoggingBackend, RunConfig, SherlockRun};
use perfrun::train::log::{MetricsLog, TensorBoard};
use perfrun::train::observer::{Event, Observer, Observers};
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome;
use perfrun::train::stop::Stop;
use perfrun::train::system::System;
use perfrun::train::wandb::Wandb;
use perfrun::train::{sherlock, weather};

use crate::console::Console;
use crate::output::{self, Progress};

/// A configuration.
pub(crate) enum Loaded {
    Weather(Box<RunConfig>),
    Sherlock(Box<SherlockRun>),
}

impl Loaded {
    pub(crate) fn system(&self) -> &dyn System {
        match self {
            Loaded::Weather(config) => config.as_ref(),
            Loaded::Sherlock(run) => run.as_ref(),
        }
    }

    /// Opens its run, which ends, with a checkpoint, before its clock reads `limit`.
    pub(crate) fn open(&self, exec: &Exec, resume: &Resume, limit: Option<Duration>) -> anyhow::Result<Session> {
        let seconds = limit.map(|l| l.as_secs_f64());
        Ok(match self {
            Loaded::Weather(config) => {
                let session = weather::Session::open(config, exec, resume)?;
                Session::Weather(Box::new(match seconds {
                    Some(seconds) => session.within(seconds),
                    None => session,
                }))
            }
            Loaded::Sherlock(run) => {
                let session = sherlock::Session::open(run, exec, resume)?;
                Session::Sherlock(Box::new(match seconds {
                    Some(seconds) => session.within(seconds),
                    None => session,
                }))
            }
        })
    }

    /// Everybody who listens to `session`: the console, the logs, TensorBoard.
    pub(crate) fn observers(&self, session: &Session) -> anyhow::Result<Observers> {
        match (self, session) {
            (Loaded::Sherlock(run), Session::Sherlock(session)) => of_sherlock(run, session),
            (loaded, _) => usual(loaded.system(), loaded.has_tensorboard()),
        }
    }

    fn has_tensorboard(&self) -> bool {
        match self {
            Loaded::Weather(config) => config.training.logging_backend == LoggingBackend::Tensorboard,
            Loaded::Sherlock(run) => run.monitor.use_tensorboard,
        }
    }

    /// Makes the documented synthetic data where there is none, and says so.
    pub(crate) fn synthesise(&self) -> anyhow::Result<()> {
        match self {
            Loaded::Weather(config) => synthetic_weather(config),
            Loaded::Sherlock(run) => synthetic_film(run),
        }
    }
}

/// An opened run.
pub(crate) enum Session {
    Weather(Box<weather::Session>),
    Sherlock(Box<sherlock::Session>),
}

impl Session {
    pub(crate) fn run(
        self,
        stop: &Stop,
        clock: Box<dyn Clock>,
        observer: &mut dyn Observer,
    ) -> anyhow::Result<Outcome> {
        Ok(match self {
            Session::Weather(session) => session.run(stop, clock, observer)?,
            Session::Sherlock(session) => session.run(stop, clock, observer)?.outcome,
        })
    }
}

/// The console, the log and, if asked, TensorBoard in a folder of its own.
pub(crate) fn usual(system: &dyn System, has_tensorboard: bool) -> anyhow::Result<Observers> {
    let (folder, every) = (system.log_folder(), system.training().log_frequency);
    let mut all = Observers::new();
    all.push(Console::new(system.training()));
    all.push(MetricsLog::open(&folder, every)?);
    if has_tensorboard {
        all.push(TensorBoard::create(&folder.join("tensorboard"), every)?);
    }
    all.event(&Event::Notice(&format!("logs go to {}", folder.display())))?;
    Ok(all)
}

/// The same in the original's places, its `training.log`, and what its keys ask for.
fn of_sherlock(run: &SherlockRun, session: &sherlock::Session) -> anyhow::Result<Observers> {
    let (logs, every) = (&run.training.log_dir, run.training.log_frequency);
    let mut all = Observers::new();
    all.push(Console::new(&run.training));
    // A closed pipe must not end a run.
    all.push(sherlock::TrainingLog::open(run, session, |line| drop(output::line(line)))?);
    all.push(MetricsLog::open(logs, every)?);
    if run.monitor.use_tensorboard {
        all.push(TensorBoard::create(logs, every)?);
    }
    if run.monitor.use_wandb {
        let (project, name) = (&run.monitor.wandb_project, &run.experiment.name);
        let wandb = Wandb::create(logs, project, name, &run.kept()?, every)?;
        all.event(&Event::Notice(&format!("send to Weights & Biases: wandb sync {}", wandb.folder().display())))?;
        all.push(wandb);
    }
    if run.monitor.save_pt {
        all.push(sherlock::PtFiles::default());
    }
    Ok(all)
}

fn synthetic_weather(config: &RunConfig) -> anyhow::Result<()> {
    let (data, model) = (&config.data, &config.model);
    if data.train_data_path.exists() {
        eprintln!("notice: --synth: {} is there already and is used as it is", data.train_data_path.display());
        return Ok(());
    }
    let weather = SyntheticWeather {
        height: model.img_size[0],
        width: model.img_size[1],
        channels: model.input_channels.max(model.output_channels),
        ..SyntheticWeather::default()
    };
    eprintln!(
        "notice: --synth: making synthetic years below {} (3 for training, 3 for validation, 3 for tests)",
        data.data_dir.display()
    );
    let mut progress = Progress::new("synth weather");
    let written = weather.write(&data.data_dir, |p| progress.set(p.done, p.total, p.file.display()));
    progress.finish();
    written?;
    Ok(())
}

fn synthetic_film(run: &SherlockRun) -> anyhow::Result<()> {
    let folder = &run.data.data_dir;
    if Manifest::is_in(folder) {
        eprintln!("notice: --synth: {} holds a film already and is used as it is", folder.display());
        return Ok(());
    }
    let s = run.model.sizes();
    let (height, width, mels, text, voxels) = (s.height, s.width, s.mels, s.text, s.voxels);
    let film = SyntheticSherlock { height, width, mels, text, voxels, ..SyntheticSherlock::default() };
    let (trs, subjects, at) = (film.trs, film.subjects, folder.display());
    eprintln!("notice: --synth: making a synthetic film of {trs} TRs and {subjects} brains that see it below {at}");
    let mut progress = Progress::new("synth sherlock");
    let written = film.write(folder, |done, total, file| progress.set(done, total, file.display()));
    progress.finish();
    written?;
    Ok(())
}
