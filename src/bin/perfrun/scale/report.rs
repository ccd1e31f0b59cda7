//! What a sweep says: a table, the fits, and both as a page with plots.

use perfrun::io::page::{Axis, Cell, Column, Entry, Page, Plot, Point as Dot, Series, Table};
use perfrun::train::scaling::{Interval, IsoFlop, Law, Point, RunResult, Scale, fit, isoflop};
use serde::Serialize;

use crate::units::{flops, seconds, three_digits};

/// The fits to the results of a sweep.
#[derive(Debug, Serialize)]
pub(super) struct Fits {
    /// The law, or why there is none.
    law: Result<Law, String>,
    /// Parabolas of equal FLOPs.
    isoflop: IsoFlop,
}

impl Fits {
    /// Of the runs that differ in parameters and data alone, each once.
    pub(super) fn of(results: &[RunResult]) -> Fits {
        let point = |r: &RunResult| Point {
            parameters: r.parameters as f64,
            tokens: r.tokens,
            flops: r.flops,
            loss: r.final_loss,
        };
        let mut roots: Vec<&str> = Vec::new();
        let mut chosen: Vec<&RunResult> = Vec::new();
        for r in results.iter().filter(|r| r.scale.is_of_the_law()) {
            let root = r.same_as.as_deref().unwrap_or(&r.name);
            if !roots.contains(&root) {
                roots.push(root);
                chosen.push(r);
            }
        }
        let budgeted: Vec<(f64, Point)> = chosen.iter().filter_map(|r| Some((r.flops_budget?, point(r)))).collect();
        let points: Vec<Point> = chosen.iter().map(|r| point(r)).collect();
        Fits { law: fit(&points), isoflop: isoflop(&budgeted) }
    }

    /// What they say, a line each.
    fn lines(&self) -> Vec<String> {
        let range = |i: &Interval| format!("{:.4} ({:.4} to {:.4})", i.value, i.low, i.high);
        let mut lines = Vec::new();
        match &self.law {
            Err(why) => lines.push(format!("no law: {why}")),
            Ok(law) => {
                lines.push(format!(
                    "{law}, from {} runs, off by {:.2} % in the mean",
                    law.points,
                    100.0 * law.residual
                ));
                lines.push(format!("E {}", range(&law.floor)));
                for (term, names) in [(&law.parameters, ["alpha", "A"]), (&law.tokens, ["beta", "B"])] {
                    let Some(t) = term else { continue };
                    lines.push(format!("{} {}, {} {:.4}", names[0], range(&t.exponent), names[1], t.factor.value));
                }
                if let Some((a, b)) = law.best_exponents() {
                    lines.push(format!("best for C FLOPs: parameters ~ C^{a:.3}, tokens ~ C^{b:.3}"));
                }
                lines.extend(law.notes.iter().cloned());
            }
        }
        for p in &self.isoflop.parabolas {
            let n = &p.parameters;
            lines.push(format!(
                "{}FLOPs: lowest loss {:.4} at {} parameters ({} to {})",
                flops(p.flops),
                p.loss,
                flops(n.value),
                flops(n.low),
                flops(n.high)
            ));
        }
        if let Some(a) = &self.isoflop.exponent {
            lines.push(format!("best parameters ~ C^a of the parabolas, a {}", range(a)));
        }
        lines.extend(self.isoflop.notes.iter().cloned());
        lines
    }
}

/// The names of the columns, and whether they are numbers.
const COLUMNS: [(&str, bool); 9] = [
    ("experiment", false),
    ("parameters", true),
    ("tokens", true),
    ("model FLOPs", true),
    ("loss", true),
    ("steps", true),
    ("time", true),
    ("MFU", true),
    ("energy", true),
];

/// What a row shows: the texts, and the numbers behind them.
fn row(r: &RunResult) -> Vec<(String, f64)> {
    let name = match &r.same_as {
        Some(first) => format!("{} = {first}", r.name),
        None => r.name.clone(),
    };
    let or_nothing =
        |x: Option<f64>, text: &dyn Fn(f64) -> String| (x.map_or_else(String::new, text), x.unwrap_or(f64::NAN));
    vec![
        (name, f64::NAN),
        (flops(r.parameters as f64), r.parameters as f64),
        (flops(r.tokens), r.tokens),
        (flops(r.flops), r.flops),
        (format!("{:.4}", r.final_loss), r.final_loss),
        (r.steps.to_string(), r.steps as f64),
        (seconds(r.step_seconds), r.step_seconds),
        or_nothing(r.mfu, &|m| format!("{:.1} %", 100.0 * m)),
        or_nothing(r.energy_joules, &|j| format!("{} J", three_digits(j))),
    ]
}

/// For a terminal.
pub(super) fn text(results: &[RunResult], fits: &Fits, missing: &[String]) -> String {
    let rows: Vec<Vec<(String, f64)>> = results.iter().map(row).collect();
    let width = |c: usize| rows.iter().map(|r| r[c].0.chars().count()).chain([COLUMNS[c].0.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cell = |(c, text): (usize, &str)| {
            if COLUMNS[c].1 { format!("  {text:>0$}", widths[c]) } else { format!("{text:<0$}", widths[c]) }
        };
        cells.into_iter().enumerate().map(cell).collect::<String>().trim_end().to_owned()
    };
    let mut lines = vec![line(COLUMNS.iter().map(|c| c.0).collect())];
    lines.extend(rows.iter().map(|r| line(r.iter().map(|c| c.0.as_str()).collect())));
    lines.push(String::new());
    lines.extend(fits.lines());
    if !missing.is_empty() {
        lines.push(format!("without a result: {}", missing.join(", ")));
    }
    lines.join("\n")
}

/// As a page.
pub(super) fn page(results: &[RunResult], fits: &Fits, missing: &[String], left_out: &[String]) -> String {
    let mut page = Page::new("Scaling experiments");
    let total: f64 = results.iter().filter(|r| r.same_as.is_none()).map(|r| r.flops).sum();
    page.facts(&[
        ("experiments", results.len().to_string()),
        ("without a result", missing.len().to_string()),
        ("model FLOPs together", flops(total)),
        ("law", fits.law.as_ref().map_or_else(|_| "none".to_owned(), Law::to_string)),
    ]);
    fits.lines().iter().for_each(|l| page.paragraph(l));
    page.heading("Runs");
    let columns: Vec<Column> = COLUMNS
        .iter()
        .map(|(name, is_number)| if *is_number { Column::number(name) } else { Column::text(name) })
        .collect();
    let mut table = Table::new(columns);
    for r in results {
        let cell =
            |(text, value): (String, f64)| if value.is_nan() { Cell::text(text) } else { Cell::number(value, text) };
        table.push(Entry::new(row(r).into_iter().map(cell).collect::<Vec<_>>()));
    }
    page.table(&table);
    page.heading("Loss");
    page.plot(&losses(results, fits, "parameters", |r| r.parameters as f64));
    page.plot(&losses(results, fits, "model FLOPs", |r| r.flops));
    if let Ok(law) = &fits.law {
        page.plot(&agreement(results, law));
    }
    if !fits.isoflop.parabolas.is_empty() {
        page.heading("Equal FLOPs");
        page.plot(&parabolas(&fits.isoflop));
    }
    for (title, lines) in [("Left out", left_out), ("Without a result", missing)] {
        if !lines.is_empty() {
            page.heading(title);
            lines.iter().for_each(|l| page.paragraph(l));
        }
    }
    page.finish()
}

/// The losses of every type over a size, and where parameters are the size, what the law says at the tokens of the middle run.
fn losses(results: &[RunResult], fits: &Fits, name: &str, size: fn(&RunResult) -> f64) -> Plot {
    let mut plot = Plot::new(&format!("Loss by {name}"), Axis::log(name), Axis::linear("validation loss"));
    for scale in Scale::ALL {
        let of: Vec<&RunResult> = results.iter().filter(|r| r.scale == scale).collect();
        if !of.is_empty() {
            let dots =
                of.iter().map(|r| Dot::new(size(r), r.final_loss).labelled(format!("{}: {:.4}", r.name, r.final_loss)));
            plot.push(Series::points(scale.name(), dots.collect()));
        }
    }
    let mut tokens: Vec<f64> = results.iter().map(|r| r.tokens).collect();
    tokens.sort_by(f64::total_cmp);
    if let (Ok(law), Some(middle), true) = (&fits.law, tokens.get(tokens.len() / 2), name == "parameters") {
        let sizes = results.iter().map(size);
        let (least, most) = sizes.fold((f64::INFINITY, 0.0_f64), |(l, m), s| (l.min(s), m.max(s)));
        let at = |i: i32| least * (most / least).powf(f64::from(i) / 60.0);
        let curve = (0..=60).map(at).map(|n| Dot::new(n, law.loss(n, *middle))).collect();
        plot.push(Series::curve("law", curve).dashed());
    }
    plot
}

/// What was measured over what the law says.
fn agreement(results: &[RunResult], law: &Law) -> Plot {
    let of = results.iter().filter(|r| r.scale.is_of_the_law() && r.same_as.is_none());
    let dots: Vec<(f64, Dot)> = of
        .map(|r| {
            let said = law.loss(r.parameters as f64, r.tokens);
            (said, Dot::new(said, r.final_loss).labelled(format!("{}: {:.4}, law {said:.4}", r.name, r.final_loss)))
        })
        .collect();
    let (least, most) = dots.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), d| (l.min(d.0), m.max(d.0)));
    let equal = vec![Dot::new(least, least), Dot::new(most, most)];
    Plot::new("What was measured over what the law says", Axis::linear("law"), Axis::linear("validation loss"))
        .with(Series::points("runs", dots.into_iter().map(|d| d.1).collect()))
        .with(Series::curve("equal", equal).dashed())
}

/// The runs of each budget with their parabola.
fn parabolas(isoflop: &IsoFlop) -> Plot {
    let mut plot =
        Plot::new("Loss by parameters at equal FLOPs", Axis::log("parameters"), Axis::linear("validation loss"));
    for p in &isoflop.parabolas {
        let dots = p.points.iter().map(|r| Dot::new(r.parameters, r.loss));
        plot.push(Series::points(&format!("{}FLOPs", flops(p.flops)), dots.collect()));
        let ends = p.points.iter().map(|r| r.parameters.ln());
        let (least, most) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), x| (l.min(x), m.max(x)));
        let [c0, c1, c2] = p.coefficients;
        let curve = (0..=40).map(|i| {
            let x = least + (most - least) * f64::from(i) / 40.0;
            Dot::new(x.exp(), c0 + x * (c1 + x * c2))
        });
        plot.push(Series::curve("parabola", curve.collect()).dashed());
    }
    plot
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(scale: Scale, factor: f64, parameters: u64, tokens: f64, budget: Option<f64>) -> RunResult {
        RunResult {
            name: format!("{scale}_scale_{factor:?}"),
            scale,
            factor,
            flops_budget: budget,
            same_as: None,
            parameters,
            tokens,
            samples: 10,
            steps: 5,
            flops: 6.0 * parameters as f64 * tokens,
            final_loss: 1.0 + 20.0 / (parameters as f64).powf(0.3) + 30.0 / tokens.powf(0.4),
            step_seconds: 2.0,
            mfu: Some(0.25),
            energy_joules: None,
            outcome: "finished".into(),
            config_hash: String::new(),
        }
    }

    #[test]
    fn a_report_holds_every_run_once_in_the_fit_and_all_in_the_table() {
        let mut results = Vec::new();
        for (i, n) in [1000, 2000, 4000, 8000].into_iter().enumerate() {
            for d in [1e4, 4e4, 1.6e5] {
                results.push(result(Scale::Model, i as f64 + d, n, d, None));
            }
        }
        let again = RunResult { scale: Scale::Batch, same_as: Some(results[0].name.clone()), ..results[0].clone() };
        results.push(RunResult { name: "batch_scale_1.0".into(), ..again });
        results.push(result(Scale::Precision, 2.0, 5, 5.0, None));
        let fits = Fits::of(&results);
        let law = fits.law.as_ref().unwrap();
        assert_eq!(law.points, 12);
        assert!((law.parameters.unwrap().exponent.value - 0.3).abs() < 0.01, "{law}");
        let shown = text(&results, &fits, &["model_scale_9.0".into()]);
        assert!(shown.contains("batch_scale_1.0 = model_scale_10000.0") && shown.contains("25.0 %"), "{shown}");
        assert!(shown.ends_with("without a result: model_scale_9.0"), "{shown}");
        let html = page(&results, &fits, &[], &["sequence_scale_0.5: no".into()]);
        assert_eq!(html.matches("<svg").count(), 3);
        assert!(html.contains("sequence_scale_0.5: no"));
    }

    #[test]
    fn a_sweep_without_results_has_a_report_that_says_so() {
        let fits = Fits::of(&[]);
        assert!(text(&[], &fits, &["x".into()]).contains("no law: "));
        assert!(page(&[], &fits, &["x".into()], &[]).contains("no law: "));
    }
}
