//! `perfrun completions` and `perfrun man`: from the same definitions as the command line itself.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use perfrun::error::Error;

use crate::cli;
use crate::outcome::Outcome;

/// Flags of `perfrun completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell to complete for
    shell: Shell,
}

impl CompletionsArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut cli::command(), "perfrun", &mut text);
        std::io::stdout().lock().write_all(&text)?;
        Ok(Outcome::Done)
    }
}

/// Flags of `perfrun man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write perfrun.1 and a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl ManArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let mut command = cli::command();
        command.build();
        match self.out {
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page)?;
                std::io::stdout().lock().write_all(&page)?;
            }
            Some(folder) => {
                std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
                pages(&folder, &command)?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// Writes the page of `command` and of those below it, as `perfrun-config-show.1`.
fn pages(folder: &Path, command: &clap::Command) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).render(&mut page)?;
    std::fs::write(&path, page).map_err(Error::io("write", &path))?;
    let below = command.get_subcommands().filter(|c| c.get_name() != "help");
    below.into_iter().try_for_each(|c| pages(folder, c))
}
