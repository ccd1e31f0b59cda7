//! The text of DeepSpeed's flops profiler: its lines, its counts, the times of this run.
//!
//! # Source
//! deepspeedai/DeepSpeed, `deepspeed/profiling/flops_profiler/profiler.py`: keys, widths, order and number format.

use std::collections::BTreeMap;

use super::conventions::{Counted, rule};
use super::{Node, Pass, StepProfile};
use crate::train::config::FlopsProfilerConfig;

/// What the summary says besides the counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Samples of a micro-batch.
    pub batch_size: usize,
    /// Wall time of the step in seconds.
    pub step_seconds: f64,
}

/// One module with DeepSpeed's counts.
struct Counts<'p, 'n> {
    node: &'n Node<'p>,
    counted: Counted,
    seconds: f64,
}

/// The report, as the keys of the configuration ask for it.
pub fn text(profile: &StepProfile, config: &FlopsProfilerConfig, run: Run) -> String {
    let tree = profile.tree();
    let mut all = Vec::new();
    collect(profile, &tree, &mut all);
    let mut out = String::from("\n-------------------------- DeepSpeed Flops Profiler --------------------------\n");
    out += &format!("Profile Summary at step {}:\n", profile.step);
    out += NOTATIONS;
    out += &summary(profile, config, run, &all);
    out += "\n----------------------------- Aggregated Profile per GPU -----------------------------\n";
    out += &aggregated(config, &all);
    if config.detailed {
        out += "\n------------------------------ Detailed Profile per GPU ------------------------------\n";
        out += DETAILED;
        if let Some(total) = all.first() {
            detailed(config, &tree, total, &all, 0, &mut out);
        }
    }
    out + "------------------------------------------------------------------------------\n"
}

/// What the words of the summary mean.
const NOTATIONS: &str = "Notations:\n\
    data parallel size (dp_size), model parallel size (mp_size),\n\
    number of parameters (params), multiply-adds (MACs),\n\
    floating-point operations (flops) and those of a second (FLOPS),\n\
    fwd latency (forward passes), bwd latency (backward passes),\n\
    step (update of the weights), iter latency (all of them)\n\n";

/// How the tree is read.
const DETAILED: &str = "Each module: its parameters, its multiply-adds, the time of its forward passes, with their share of the \
    model's, and its FLOPS.\n1. Counts are by DeepSpeed's rules: what they leave out counts nothing here; `--convention exact` counts all.\n\
    2. Times are the device's own, of forward passes alone.\n3. A module's numbers include its children's.\n";

/// Every module, each before its children.
fn collect<'p, 'n>(profile: &StepProfile, node: &'n Node<'p>, all: &mut Vec<Counts<'p, 'n>>) {
    let inside = |module: &str| {
        node.path.is_empty() || module.strip_prefix(node.path).is_some_and(|r| r.is_empty() || r.starts_with('.'))
    };
    let mut counted = Counted::default();
    for part in profile.uses.iter().filter(|u| inside(&u.module)).map(rule) {
        counted.macs += part.macs;
        counted.flops += part.flops;
    }
    all.push(Counts { node, counted, seconds: node.sum.forward_seconds });
    node.children.iter().for_each(|child| collect(profile, child, all));
}

fn line(key: &str, value: &str) -> String {
    format!("{key:<70}  {value:<8}\n")
}

fn summary(profile: &StepProfile, config: &FlopsProfilerConfig, run: Run, all: &[Counts<'_, '_>]) -> String {
    let Some(total) = all.first() else { return String::new() };
    // DeepSpeed looks at one micro-batch.
    let passes = profile.micro_batches.max(1) as u128;
    let (macs, flops) = ((total.counted.macs / passes) as f64, (total.counted.flops / passes) as f64);
    let of_pass = |pass| {
        profile.rows.iter().filter(|r| r.pass == pass).map(|r| r.seconds).sum::<f64>()
            / profile.micro_batches.max(1) as f64
    };
    let forward = of_pass(Pass::Forward);
    let backward = of_pass(Pass::Backward) + of_pass(Pass::Recompute);
    let update = of_pass(Pass::Optimiser) * profile.micro_batches as f64;
    let rate = |flops: f64, seconds: f64| scaled(if seconds > 0.0 { flops / seconds } else { 0.0 }, "") + "FLOPS";
    let params = parameters(profile.parameters);
    let back = 2.0 + config.recompute_fwd_factor;
    let mut out = String::new();
    out += &line("world size:", "1");
    out += &line("data parallel size:", "1");
    out += &line("model parallel size:", "1");
    out += &line("batch size per GPU:", &run.batch_size.to_string());
    out += &line("params per GPU:", &params);
    out += &line("params of model = params per GPU * mp_size:", &params);
    out += &line("fwd MACs per GPU:", &(scaled(macs, "") + "MACs"));
    out += &line("fwd flops per GPU:", scaled(flops, "").trim_end());
    out += &line("fwd flops of model = fwd flops per GPU * mp_size:", scaled(flops, "").trim_end());
    out += &line("fwd latency:", &duration(forward));
    out += &line("fwd FLOPS per GPU = fwd flops per GPU / fwd latency:", &rate(flops, forward));
    out += &line("bwd latency:", &duration(backward));
    out += &line("bwd FLOPS per GPU = 2 * fwd flops per GPU / bwd latency:", &rate(back * flops, backward));
    out += &line(
        "fwd+bwd FLOPS per GPU = 3 * fwd flops per GPU / (fwd+bwd latency):",
        &rate((1.0 + back) * flops, forward + backward),
    );
    out += &line("step latency:", &duration(update));
    let iteration = forward + backward + update;
    out += &line("iter latency:", &duration(iteration));
    out += &line("FLOPS per GPU = 3 * fwd flops per GPU / iter latency:", &rate((1.0 + back) * flops, iteration));
    let samples = (run.batch_size * profile.micro_batches) as f64;
    let a_second = if run.step_seconds > 0.0 { samples / run.step_seconds } else { 0.0 };
    out + &line("samples/second:", &format!("{a_second:.2}"))
}

/// The largest classes of modules at every depth but the deepest.
fn aggregated(config: &FlopsProfilerConfig, all: &[Counts<'_, '_>]) -> String {
    let deepest = all.iter().map(|c| c.node.depth).max().unwrap_or(0);
    let depths = usize::try_from(config.module_depth).map_or(deepest, |d| d.min(deepest + 1));
    let top = config.top_modules;
    let mut out = format!("Top {top} modules in terms of params, MACs or fwd latency at different model depths:\n");
    for depth in 0..depths {
        let mut classes: BTreeMap<&str, [f64; 3]> = BTreeMap::new();
        for c in all.iter().filter(|c| c.node.depth == depth) {
            let sums = classes.entry(c.node.class).or_default();
            let added = [c.node.parameters as f64, c.counted.macs as f64, c.seconds];
            sums.iter_mut().zip(added).for_each(|(sum, x)| *sum += x);
        }
        let largest = |which: usize, show: &dyn Fn(f64) -> String| {
            let mut order: Vec<(&str, f64)> = classes.iter().map(|(class, sums)| (*class, sums[which])).collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1));
            let shown: Vec<String> = order.iter().take(top).map(|(c, v)| format!("'{c}': '{}'", show(*v))).collect();
            format!("{{{}}}", shown.join(", "))
        };
        out += &format!("depth {depth}:\n");
        out += &format!("    params      - {}\n", largest(0, &|v| parameters(v as u64)));
        out += &format!("    MACs        - {}\n", largest(1, &|v| scaled(v, "") + "MACs"));
        out += &format!("    fwd latency - {}\n", largest(2, &duration));
    }
    out
}

fn detailed(
    config: &FlopsProfilerConfig,
    node: &Node<'_>,
    total: &Counts<'_, '_>,
    all: &[Counts<'_, '_>],
    indent: usize,
    out: &mut String,
) {
    let Some(counts) = all.iter().find(|c| c.node.path == node.path) else { return };
    let pad = "  ".repeat(indent);
    let share = |part: f64, whole: f64| rounded(if whole > 0.0 { 100.0 * part / whole } else { 0.0 });
    let name = if node.path.is_empty() { String::new() } else { format!("({}): ", node.name) };
    let rate = if counts.seconds > 0.0 { counts.counted.flops as f64 / counts.seconds } else { 0.0 };
    *out += &format!(
        "{pad}{name}{}(\n{pad}  {} = {}% Params, {} = {}% MACs, {} = {}% latency, {}FLOPS\n",
        node.class,
        parameters(node.parameters),
        share(node.parameters as f64, total.node.parameters as f64),
        scaled(counts.counted.macs as f64, "") + "MACs",
        share(counts.counted.macs as f64, total.counted.macs as f64),
        duration(counts.seconds),
        share(counts.seconds, total.seconds),
        scaled(rate, ""),
    );
    let is_shown = usize::try_from(config.module_depth).map_or(true, |d| node.depth < d);
    if is_shown {
        node.children.iter().for_each(|child| detailed(config, child, total, all, indent + 1, out));
    }
    *out += &format!("{pad})\n");
}

/// Two places, without zeros at the end.
fn rounded(x: f64) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `93.7 K`, `384 `, `1.2 m`: a number, a space, the unit.
fn scaled(x: f64, suffix: &str) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"), (1.0, ""), (1e-3, "m")];
    let (size, unit) = units.into_iter().find(|(size, _)| x >= *size).unwrap_or((1e-6, "u"));
    format!("{} {unit}{suffix}", rounded(x / size))
}

fn parameters(n: u64) -> String {
    scaled(n as f64, "").replace('G', "B").trim_end().to_owned()
}

fn duration(seconds: f64) -> String {
    scaled(seconds, "s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_form_of_the_original() {
        assert_eq!(parameters(7984), "7.98 K");
        assert_eq!(scaled(93_696.0, "") + "MACs", "93.7 KMACs");
        assert_eq!(scaled(194_305.0, "").trim_end(), "194.31 K");
        assert_eq!((parameters(1_500_000_000), parameters(784)), ("1.5 B".into(), "784".into()));
        assert_eq!((duration(0.0123), duration(2.5e-5)), ("12.3 ms".into(), "25 us".into()));
        assert_eq!(scaled(384.0, "") + "MACs", "384 MACs");
        assert_eq!(rounded(41.078), "41.08");
    }

    #[test]
    fn a_line_is_a_key_of_seventy_and_a_value() {
        assert_eq!(line("fwd latency:", "1 ms").len(), 70 + 2 + 8 + 1);
    }
}
