//! `perfrun config`, and the flags by which every command chooses a configuration.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use perfrun::error::Result;
use perfrun::train::config::{self, ConfigSource, RunConfig, SherlockRun};
use serde_json::json;

use crate::outcome::Outcome;
use crate::output;
use crate::system::Loaded;

/// Which configurations there are.
#[derive(Debug, Clone, Args)]
pub(crate) struct SourceArgs {
    /// YAML file with configurations; without it, those that are predefined in the binary
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Which configuration, and what differs from it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Name of the configuration; without it, the only one of the file, or base
    #[arg(long, value_name = "NAME")]
    pub(crate) config_name: Option<String>,
    /// Give a key another value; may be repeated, the last one counts
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Folder of the data set, as --set data_dir=DIR
    #[arg(long, value_name = "DIR", alias = "data-dir")]
    pub(crate) data: Option<PathBuf>,
}

/// The same, with the name as a plain argument too.
#[derive(Debug, Clone, Args)]
pub(crate) struct NamedConfigArgs {
    /// Name of the configuration; the same as --config-name
    #[arg(value_name = "NAME", conflicts_with = "config_name")]
    name: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl NamedConfigArgs {
    /// The configuration that is meant.
    pub(crate) fn config(&self) -> ConfigArgs {
        let mut config = self.config.clone();
        config.config_name = config.config_name.or_else(|| self.name.clone());
        config
    }
}

impl SourceArgs {
    fn source(&self) -> ConfigSource {
        self.config.clone().map_or(ConfigSource::Embedded, ConfigSource::File)
    }
}

impl ConfigArgs {
    /// The overrides, flags with a name of their own included.
    fn all_overrides(&self) -> Vec<String> {
        // A JSON string is a YAML string, whatever the path holds.
        let data = self.data.as_ref().map(|d| format!("data_dir={}", json!(d.to_string_lossy())));
        self.overrides.iter().cloned().chain(data).collect()
    }

    /// The effective configuration of whichever system it is, `more` overriding the flags of this group; what it means
    /// otherwise than one may expect is said on standard error.
    pub(crate) fn load(&self, more: &[String]) -> Result<Loaded> {
        Ok(match self.is_sherlock() {
            true => Loaded::Sherlock(Box::new(self.load_sherlock(more)?)),
            false => Loaded::Weather(Box::new(self.load_weather(more)?)),
        })
    }

    /// The same where only the weather transformer is meant.
    pub(crate) fn load_weather(&self, more: &[String]) -> Result<RunConfig> {
        let overrides = [self.all_overrides(), more.to_vec()].concat();
        let name = self.config_name.as_deref();
        let config = RunConfig::load(&self.source.source(), name, &overrides, &config::environment)?;
        notices(&config.notices);
        Ok(config)
    }

    /// Whether the configuration is one of the Sherlock autoencoder.
    fn is_sherlock(&self) -> bool {
        SherlockRun::is_meant(&self.source.source(), self.config_name.as_deref())
    }

    fn load_sherlock(&self, more: &[String]) -> Result<SherlockRun> {
        let overrides = [self.all_overrides(), more.to_vec()].concat();
        let run = SherlockRun::load(&self.source.source(), self.config_name.as_deref(), &overrides)?;
        notices(&run.notices);
        Ok(run)
    }
}

fn notices(lines: &[String]) {
    for line in lines {
        eprintln!("notice: {line}");
    }
}

/// What can be asked about configurations.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Names and descriptions of the configurations
    List(ListArgs),
    /// The effective configuration, every key with where its value comes from
    Show(ShowArgs),
    /// List every fault of a configuration, or of all configurations of a file
    Validate(NamedConfigArgs),
    /// The JSON schema of a configuration
    Schema,
}

/// Flags of `perfrun config list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// A JSON array of names and descriptions
    #[arg(long)]
    json: bool,
}

/// Flags of `perfrun config show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    config: NamedConfigArgs,
    /// One JSON object of the values
    #[arg(long)]
    json: bool,
}

impl ConfigCommand {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match self {
            ConfigCommand::List(args) => args.run(),
            ConfigCommand::Show(args) => args.run(),
            ConfigCommand::Validate(args) => validate(&args.config()),
            ConfigCommand::Schema => {
                output::pretty_json(&config::schema())?;
                Ok(Outcome::Done)
            }
        }
    }
}

impl ListArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let source = self.source.source();
        let mut found = config::list_of(&source)?;
        if source == ConfigSource::Embedded {
            found.extend(SherlockRun::list()?);
        }
        if self.json {
            let entry = |(name, description)| json!({ "name": name, "description": description });
            output::pretty_json(&found.into_iter().map(entry).collect::<Vec<_>>())?;
            return Ok(Outcome::Done);
        }
        let width = found.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, description) in found {
            output::line(format!("{name:<width$}  {description}").trim_end())?;
        }
        Ok(Outcome::Done)
    }
}

impl ShowArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        match (self.config.config().load(&[])?, self.json) {
            (Loaded::Weather(config), true) => output::pretty_json(&config)?,
            (Loaded::Weather(config), false) => output::line(config::show(&config).trim_end())?,
            (Loaded::Sherlock(run), true) => output::pretty_json(&run)?,
            (Loaded::Sherlock(run), false) => output::line(run.yaml()?.trim_end())?,
        }
        Ok(Outcome::Done)
    }
}

fn validate(args: &ConfigArgs) -> anyhow::Result<Outcome> {
    if args.is_sherlock() {
        let name = args.load_sherlock(&[])?.experiment.name;
        output::line(format!("{name}: no faults"))?;
        return Ok(Outcome::Done);
    }
    let (source, name) = (args.source.source(), args.config_name.as_deref());
    let mut found = config::validate(&source, name, &args.all_overrides(), &config::environment)?;
    if source == ConfigSource::Embedded && name.is_none() {
        // Their own tests hold that they load.
        found.names.extend(SherlockRun::list()?.into_iter().map(|(name, _)| name));
    }
    notices(&found.notices);
    for fault in found.faults.lines() {
        eprintln!("error: {fault}");
    }
    let faults = found.faults.len();
    output::line(match (faults, found.names.as_slice()) {
        (0, [only]) => format!("{only}: no faults"),
        (0, names) => format!("{} configurations, no faults", names.len()),
        (n, _) => format!("{n} fault{}", if n == 1 { "" } else { "s" }),
    })?;
    Ok(if faults == 0 { Outcome::Done } else { Outcome::BadInput })
}
