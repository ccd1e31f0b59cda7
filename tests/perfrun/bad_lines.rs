//! Command lines that are refused: each with its exit code and what the message must say.

use super::{perfrun, text};

/// The line, the exit code, what standard error must contain.
const LINES: [(&str, i32, &str); 93] = [
    // Commands and flags that are none.
    ("", 2, "Usage: perfrun <COMMAND>"),
    ("frobnicate", 2, "unrecognized subcommand 'frobnicate'"),
    ("trian", 2, "a similar subcommand exists: 'train'"),
    ("-x", 2, "unexpected argument '-x'"),
    ("config", 2, "Usage: perfrun config <COMMAND>"),
    ("config nope", 2, "unrecognized subcommand 'nope'"),
    ("config list extra", 2, "unexpected argument 'extra'"),
    ("config schema extra", 2, "unexpected argument 'extra'"),
    ("config show --config-nam base", 2, "a similar argument exists: '--config-name'"),
    ("data", 2, "Usage: perfrun data <COMMAND>"),
    ("data validate --heders", 2, "a similar argument exists: '--headers'"),
    ("synth", 2, "Usage: perfrun synth <COMMAND>"),
    ("ckpt", 2, "Usage: perfrun ckpt <COMMAND>"),
    ("man extra", 2, "unexpected argument 'extra'"),
    ("doctor --no-such-flag", 2, "unexpected argument '--no-such-flag'"),
    // Configurations.
    ("config list --config missing.yaml", 2, "missing.yaml: cannot read: "),
    ("config list --config .", 2, ".: expected a YAML file, found a folder"),
    ("config validate --config missing.yaml", 2, "missing.yaml: cannot read: "),
    ("config validate --config bad.yaml", 2, "bad.yaml:2: "),
    ("config show --config bad.yaml", 2, "bad.yaml:2: "),
    ("config show --config-name nope", 2, "no configuration \"nope\"; there are base, local"),
    ("config show --config-name locl", 2, "did you mean local?"),
    ("config show --set", 2, "a value is required for '--set <KEY=VALUE>'"),
    ("config show --set embed_dim", 2, "--set embed_dim: expected key=value"),
    ("config show --set embed_dim=", 2, "model.embed_dim: expected a whole number of at least 0, found nothing"),
    ("config show --set embed_dim=abc", 2, "model.embed_dim: expected a whole number of at least 0, found the text"),
    ("config show --set embed_dim=-1", 2, "model.embed_dim: expected a whole number of at least 0, found -1"),
    ("config show --set embed_dim=1.5", 2, "model.embed_dim: expected a whole number"),
    ("config show --set emebd_dim=8", 2, "emebd_dim: unknown key; did you mean embed_dim?"),
    ("config show --set learning_rate=nan", 2, "training.learning_rate: expected a finite number"),
    ("config show --set =3", 2, "expected key=value"),
    ("config show --set num_heads=7", 2, "model.num_heads: expected a divisor of embed_dim 384, found 7"),
    ("config show --set patch_size=0", 2, "patch_size"),
    ("config show --set head=triangle", 2, "model.head: expected bilinear or unpatchify"),
    ("config show --set img_size=[7]", 2, "img_size"),
    ("config show --data", 2, "a value is required for '--data <DIR>'"),
    // Rooms.
    ("check nope", 2, "invalid value 'nope' for '[ROOM]...'"),
    ("check layer_nrm", 2, "a similar value exists: 'layer_norm'"),
    ("check relu nope", 2, "invalid value 'nope'"),
    ("check relu --device cuda:7", 1, "cannot open"),
    ("check relu --device emu:sm_70", 2, "expected sm_80, sm_90a, gfx90a or gfx942 after `emu:`, found sm_70"),
    ("train local --device dry:sm_80", 2, "`dry:sm_80` checks launches and computes nothing; use --device emu:sm_80"),
    ("check relu --device tpu", 2, "device: expected cpu, cuda[:N], hip[:N], emu:ARCH or dry:ARCH, found `tpu`"),
    ("check relu --device plan", 2, "`plan` computes nothing"),
    ("bench nope", 2, "invalid value 'nope'"),
    ("bench relu --case nothing-fits", 2, "no case fits the room, --case and --dtype"),
    ("bench relu --seconds 0", 2, "expected a number above 0, 3600 at most"),
    ("bench relu --seconds -1", 2, "expected a number above 0, 3600 at most"),
    ("bench relu --seconds abc", 2, "expected a number above 0, 3600 at most"),
    ("bench relu --seconds nan", 2, "expected a number above 0, 3600 at most"),
    ("bench relu --dtype f64", 2, "dtype: expected f32, bf16 or f16, found `f64`"),
    ("bench relu --once --record new", 2, "cannot be used with"),
    ("bench relu --record .", 2, "exists already; name a new folder"),
    ("bench relu --device hip:7", 1, "cannot open"),
    // Data.
    ("data validate --data a b", 2, "cannot be used with '[DIR]'"),
    ("data validate --config-name nope", 2, "no configuration \"nope\""),
    ("synth ocean --out x", 2, "unrecognized subcommand 'ocean'"),
    ("synth weather", 2, "--out <DIR>"),
    ("synth weather --out x --height 0", 2, "height: expected at least 1, found 0"),
    ("synth weather --out x --width -3", 2, "invalid value '-3' for '--width <N>'"),
    ("synth weather --out x --gzip=11", 2, "gzip: expected a level of 0 to 9"),
    ("synth weather --out x --shuffle", 2, "--gzip"),
    ("synth weather --out x --steps many", 2, "invalid value 'many' for '--steps <N>'"),
    ("synth weather --out x --height 99999999999999999999", 2, "number too large"),
    ("synth weather --out x --height 4294967296 --width 4294967296", 2, "synthetic weather: "),
    // Checkpoints.
    ("ckpt list", 2, "<DIR>"),
    ("ckpt list missing", 2, "missing: cannot list: "),
    ("ckpt show missing", 2, "missing: expected a checkpoint or a folder of them, found none"),
    ("ckpt show .", 2, ".: expected a checkpoint or a folder of them, found none"),
    ("ckpt verify", 2, "<PATH>..."),
    ("ckpt verify missing", 2, "missing: expected a checkpoint"),
    ("ckpt diff only_one", 2, "<SECOND>"),
    ("ckpt diff missing missing", 2, "missing: expected a checkpoint"),
    ("ckpt export missing", 2, "--out <FILE>"),
    ("ckpt export missing --out x.pt", 2, "missing: expected a checkpoint"),
    ("ckpt import missing.pt", 2, "missing.pt: cannot open: "),
    ("ckpt import bad.yaml", 2, "bad.yaml: expected a zip archive or a pickle"),
    ("ckpt import bad.yaml --rename ab", 2, "expected FROM=TO"),
    // The machine.
    ("doctor missing_folder", 2, "missing_folder: cannot look at: "),
    ("completions", 2, "<SHELL>"),
    ("completions tcsh", 2, "a similar value exists: 'zsh'"),
    ("man --out bad.yaml", 1, "bad.yaml: cannot create: "),
    // Training and planning.
    ("train nope", 2, "no configuration \"nope\""),
    ("--config_name nope", 2, "no configuration \"nope\""),
    ("train base --config-name local", 2, "cannot be used with '--config-name <NAME>'"),
    ("train --precision fp7", 2, "training.precision: expected fp32, bf16 or fp16"),
    ("train --strategy magic", 2, "experiment.strategy: expected single, ddp"),
    ("train --devices -1", 2, "'-1'"),
    ("train --seed x", 2, "invalid value 'x' for '--seed <N>'"),
    ("train --max-checkpoints -3", 2, "'-3'"),
    ("train --flops-budget zero", 2, "invalid value 'zero' for '--flops-budget <FLOPS>'"),
    ("train --config-name local", 2, "data/train: expected a folder of *.h5 files, found nothing there"),
    ("plan --config-name nope", 2, "no configuration \"nope\""),
];

#[test]
fn bad_lines_are_refused_with_their_exit_code_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.yaml"), "mine:\n  emebd_dim: 3\n").unwrap();
    let mut wrong = Vec::new();
    for (line, code, message) in LINES {
        let output = perfrun(dir.path(), line);
        let said = text(&output.stderr);
        if output.status.code() != Some(code) || !said.contains(message) {
            wrong.push(format!("`{line}`: want {code} and `{message}`, got {:?} and\n{said}", output.status.code()));
        }
        if said.contains("panicked") || said.contains("stack backtrace") {
            wrong.push(format!("`{line}`: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_refused_line_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    for line in
        ["synth weather --out x --height 0", "train --config-name local", "ckpt import missing.pt", "bench nope"]
    {
        perfrun(dir.path(), line);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{line}: {left:?}");
    }
}

#[test]
fn all_faults_of_a_line_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = perfrun(dir.path(), "config show --set embed_dim=abc --set nothing=1 --set batch_size=0");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    for part in ["model.embed_dim", "nothing: unknown key", "batch_size"] {
        assert!(said.lines().any(|l| l.starts_with("error: ") && l.contains(part)), "{part}: {said}");
    }
}
