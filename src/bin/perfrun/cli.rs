//! The commands: everything that the command line accepts starts here.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::outcome::Outcome;
use crate::{
    bench, budget, check, ckpt, compile, config, data, doctor, eval, plan, predict, scale, shell, slurm, synth, train,
    verify,
};

const EXIT_CODES: &str = "Flags may be written with dashes or underscores (--config-name, --config_name).\n\
     Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped by a signal or a budget with a verified checkpoint.";

/// Kernels, exact FLOP counts and the training systems written against them.
#[derive(Debug, Parser)]
#[command(name = "perfrun", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model
    Train(Box<train::TrainArgs>),
    /// Measure a checkpoint: loss and metrics over a split, of every channel or of the brain
    Eval(eval::EvalArgs),
    /// Forecast from a checkpoint: numbers in the units of the files, and maps; of a Sherlock checkpoint, brains and films
    Predict(predict::PredictArgs),
    /// Say what a training step would cost and need, by room; opens no data
    Plan(plan::PlanArgs),
    /// Epochs, hours and nodes from one another, before anything is queued
    Budget(Box<budget::BudgetArgs>),
    /// Scaling experiments: run a sweep, gather its results, fit the laws that they show
    Scale(Box<scale::ScaleArgs>),
    /// Write a job script for Frontier, Perlmutter or another Slurm cluster
    Slurm(Box<slurm::SlurmArgs>),
    /// Prove rooms on this machine: shapes, counted cost, gradients, device against reference
    Check(check::CheckArgs),
    /// Time rooms: seconds, GB/s, GFLOP/s, percent of the floor
    Bench(bench::BenchArgs),
    /// Time rooms and keep what was found: a folder with machine, device, raw lines and a summary
    Record(bench::RecordArgs),
    /// Compile kernels: registers, spills, shared memory, matrix instructions; packs for machines without a compiler
    Compile(compile::CompileArgs),
    /// Run reference cases of other implementations and compare every tensor
    Verify(verify::VerifyArgs),
    /// Look at configurations
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at checkpoints, check them, convert them
    #[command(subcommand)]
    Ckpt(ckpt::CkptCommand),
    /// Look at data sets
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Write synthetic data in a system's own format
    #[command(subcommand)]
    Synth(synth::SynthCommand),
    /// Say what this machine has, what can be used of it, and why not the rest
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write the pages of all commands
    Man(shell::ManArgs),
}

/// The definitions as a tree: what is parsed, and what help, completions and manual pages are made from.
pub(crate) fn command() -> clap::Command {
    // `--devices -1` is a wrong number of devices and not a flag of the name 1.
    fn prepared(command: clap::Command) -> clap::Command {
        command.allow_negative_numbers(true).mut_subcommands(prepared)
    }
    prepared(Cli::command())
}

/// Reads a command line, the program's name first.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match self {
            Command::Train(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Predict(args) => args.run(),
            Command::Plan(args) => args.run(),
            Command::Budget(args) => args.run(),
            Command::Scale(args) => args.run(),
            Command::Slurm(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Record(args) => args.run(),
            Command::Compile(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Config(command) => command.run(),
            Command::Ckpt(command) => command.run(),
            Command::Data(command) => command.run(),
            Command::Synth(command) => command.run(),
            Command::Doctor(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn the_definitions_do_not_contradict_one_another() {
        command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_says_what_it_does() {
        fn silent(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            if command.get_about().is_none() {
                found.push(path.clone());
            }
            let flags = command.get_arguments().filter(|a| a.get_help().is_none() && a.get_id() != "help");
            found.extend(flags.map(|a| format!("{path} {}", a.get_id())));
            command.get_subcommands().filter(|c| c.get_name() != "help").for_each(|c| silent(c, &path, found));
        }
        let mut found = Vec::new();
        silent(&command(), "", &mut found);
        assert!(found.is_empty(), "without help: {found:?}");
    }

    #[test]
    fn every_command_line_of_the_readme_is_taken() {
        let readme = include_str!("../../../README.md");
        let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
        let lines = blocks.flat_map(|(block, _)| block.lines());
        let lines = lines.map(|line| line.replace("cargo run --release -- ", "perfrun "));
        let lines: Vec<String> = lines.filter(|line| line.starts_with("perfrun ")).collect();
        assert!(lines.len() > 20, "the README's blocks were not found");
        for line in lines {
            let words = line.split('#').next().unwrap_or_default().split_whitespace().map(OsString::from);
            if let Err(e) = parse(crate::arguments::normalise(words)) {
                panic!("{line}\n{e}");
            }
        }
    }
}
