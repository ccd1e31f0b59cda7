//! The command line of perfrun.
//!
//! One file a family of commands; `cli` lists them. Exit codes: 0 done, 1 failed, 2 bad input (a command line, a
//! configuration, data, a checkpoint), 75 stopped by a signal or a budget with a checkpoint that verifies.

mod arguments;
mod bench;
mod budget;
mod check;
mod ckpt;
mod cli;
mod compile;
mod config;
mod console;
mod data;
mod device;
mod doctor;
mod eval;
mod forecaster;
mod import;
mod outcome;
mod output;
mod pace;
mod plan;
mod predict;
mod profile;
mod reconstruct;
mod record;
mod requests;
mod scale;
mod shell;
mod slurm;
mod synth;
mod system;
mod train;
mod units;
mod verify;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args = arguments::normalise(std::env::args_os());
    match cli::parse(args) {
        Ok(cli) => outcome::exit_code(cli.command.run()),
        Err(e) => {
            // Help that nobody reads any more (`perfrun --help | head`) is no failure.
            let _ = e.print();
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
        }
    }
}
