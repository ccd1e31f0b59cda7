//! What is done to the command line before it is parsed: both spellings of flags, and training without its name.

use std::ffi::OsString;

/// Flags that belong to no command.
const OF_NO_COMMAND: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// Dashes for the underscores of long flags, and `train` in front of flags that no command precedes. Values stay as they
/// are, as does what follows `--`.
pub(crate) fn normalise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut is_flag = true;
    for arg in args {
        let first = out.len() == 1;
        let text = arg.to_str().unwrap_or_default();
        is_flag &= text != "--";
        if first && text.starts_with('-') && is_flag && !OF_NO_COMMAND.contains(&text) {
            out.push("train".into());
        }
        out.push(match text.strip_prefix("--").filter(|_| is_flag) {
            Some(flag) => with_dashes(flag),
            None => arg,
        });
    }
    out
}

fn with_dashes(flag: &str) -> OsString {
    let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
    format!("--{}{value}", name.replace('_', "-")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str) -> String {
        let args = std::iter::once("perfrun").chain(line.split_whitespace()).map(OsString::from);
        let out = normalise(args);
        out[1..].iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn both_spellings_of_a_flag_are_one() {
        assert_eq!(after("config show --config_name base"), "config show --config-name base");
        assert_eq!(after("train --max_checkpoints=3 --set a_b=c_d"), "train --max-checkpoints=3 --set a_b=c_d");
        assert_eq!(after("synth weather --out my_dir -- --a_b"), "synth weather --out my_dir -- --a_b");
        assert_eq!(after("check layer_norm -x_y"), "check layer_norm -x_y");
    }

    #[test]
    fn flags_without_a_command_mean_train() {
        assert_eq!(after("--flops_profile --config_name=base"), "train --flops-profile --config-name=base");
        assert_eq!(after("--help"), "--help");
        assert_eq!(after("-V"), "-V");
        assert_eq!(after("doctor --json"), "doctor --json");
        assert_eq!(after("-- x"), "-- x");
        assert_eq!(after(""), "");
    }
}
