//! A profile as one HTML file: what the step spent, the roofline, the tree of modules, other tools' counts.

use super::conventions::Convention;
use super::{Node, Pass, StepProfile, Sum};
use crate::io::page::{Axis, Cell, Column, Entry, Page, Plot, Point, Series, Table};

impl StepProfile {
    /// The page; it needs nothing but itself.
    pub fn page(&self, title: &str) -> String {
        let mut page = Page::new(title);
        page.facts(&self.facts());
        if let Some(plot) = self.roofline() {
            page.heading("Roofline");
            page.paragraph(
                "Each point is a room in one kind of pass: FLOPs as the algorithm states them over bytes moved once, and over the \
                 device's time; its area is its share of the step. The lines are what this device was measured to reach. Points \
                 far below both wait for something else: the host, latency, or bytes that move more than once.",
            );
            page.plot(&plot);
        }
        page.heading("Rooms");
        page.table(&self.room_table());
        page.heading("Modules");
        page.paragraph("A click on a name folds it, a click on a heading sorts. A module includes what is below it.");
        page.table(&self.module_table());
        page.heading("Other tools");
        page.paragraph("The same step by other rules: forward and backward, without norm and update.");
        page.table(&self.convention_table());
        page.finish()
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let totals = self.totals();
        let mut facts = vec![
            ("device", self.device.clone()),
            ("products in", self.dtype.clone()),
            ("parameters", short(self.parameters as f64)),
            ("model FLOPs", short(totals.model.total() as f64)),
            ("with what is recomputed", short(totals.algorithm.total() as f64)),
            ("special functions", short(totals.model.special as f64)),
            ("memory at most", with_unit(self.peak_bytes as f64, "B")),
        ];
        if let Some(executed) = totals.executed {
            facts.push(("executed, matrix units", short(executed.matmul as f64)));
        }
        if let Some(seconds) = self.seconds {
            facts.push(("step", time(seconds)));
            facts.push(("copies and sums between", time(self.between_seconds)));
        }
        let per_cent = |x: Option<f64>| x.map(|x| format!("{:.1} %", 100.0 * x));
        let both = |[measured, promised]: [Option<f64>; 2]| match (per_cent(measured), per_cent(promised)) {
            (Some(m), Some(p)) => Some(format!("{m} of measured, {p} of datasheet")),
            (m, p) => m.map(|m| format!("{m} of measured")).or(p),
        };
        facts.extend(both(self.mfu()).map(|v| ("MFU", v)));
        facts.extend(both(self.hfu()).map(|v| ("HFU", v)));
        if let Some(peaks) = &self.peaks {
            facts.push(("products, measured", with_unit(peaks.matmul_flop_per_s, "FLOP/s")));
            facts.push(("copies, measured", with_unit(peaks.copy_bytes_per_s, "B/s")));
            if let Some(sheet) = peaks.datasheet {
                facts
                    .push(("datasheet, dense", format!("{}: {}", sheet.device, with_unit(sheet.flop_per_s, "FLOP/s"))));
            }
        }
        facts
    }

    /// Rooms under the two roofs; `None` without times.
    fn roofline(&self) -> Option<Plot> {
        let (peaks, step) = (self.peaks.as_ref()?, self.seconds.filter(|s| *s > 0.0)?);
        let mut plot = Plot::new("FLOP/s over intensity", Axis::log("FLOPs for each byte"), Axis::log("FLOP/s"));
        let mut ends = [0.1f64, 100.0];
        for pass in [Pass::Forward, Pass::Backward, Pass::Recompute, Pass::Optimiser] {
            let mut points = Vec::new();
            for (label, of, _, sum) in self.by_room().into_iter().filter(|(_, of, ..)| *of == pass) {
                let Some(x) = sum.intensity().filter(|x| *x > 0.0 && sum.seconds > 0.0) else { continue };
                ends = [ends[0].min(x), ends[1].max(x)];
                let share = sum.seconds / step;
                let said =
                    format!("{label}, {}: {} ({:.1} % of the step)", of.name(), time(sum.seconds), 100.0 * share);
                let rate = sum.algorithm.total() as f64 / sum.seconds;
                points.push(Point::new(x, rate).weighing(share).labelled(said));
            }
            if !points.is_empty() {
                plot.push(Series::points(pass.name(), points));
            }
        }
        let (matmul, copy) = (peaks.matmul_flop_per_s, peaks.copy_bytes_per_s);
        let ridge = matmul / copy;
        let [low, high] = [ends[0] / 2.0, (2.0 * ends[1]).max(2.0 * ridge)];
        plot.push(Series::curve("copies, measured", vec![Point::new(low, low * copy), Point::new(ridge, matmul)]));
        plot.push(Series::curve("products, measured", vec![Point::new(ridge, matmul), Point::new(high, matmul)]));
        if let Some(sheet) = peaks.datasheet {
            let ridge = sheet.flop_per_s / sheet.bytes_per_s;
            let roof = [(low, low * sheet.bytes_per_s), (ridge, sheet.flop_per_s), (high, sheet.flop_per_s)];
            plot.push(Series::curve("datasheet", roof.map(|(x, y)| Point::new(x, y)).to_vec()).dashed());
        }
        Some(plot)
    }

    fn room_table(&self) -> Table {
        let mut table = Table::new(columns("room"));
        for (label, pass, calls, sum) in self.by_room() {
            table.push(self.entry(&label, pass.name(), Some(calls), &sum));
        }
        table
    }

    fn module_table(&self) -> Table {
        let mut table = Table::new(columns("module"));
        self.grow(&self.tree(), &mut table);
        table
    }

    fn grow(&self, node: &Node<'_>, table: &mut Table) {
        let name = if node.path.is_empty() { node.class } else { node.name };
        let entry = self.entry(name, "", None, &node.sum).at_depth(node.depth);
        // A numbered block is like its neighbours: a reader opens the one that matters.
        table.push(if node.depth >= 2 { entry.folded() } else { entry });
        for row in &node.rows {
            let label = format!("{} {}", row.label(), row.result);
            let sum = Sum::over(self, [*row]);
            table.push(self.entry(&label, row.pass.name(), Some(row.calls), &sum).at_depth(node.depth + 1));
        }
        node.children.iter().for_each(|child| self.grow(child, table));
    }

    fn entry(&self, name: &str, pass: &str, calls: Option<u64>, sum: &Sum) -> Entry {
        let count = |n: u128| Cell::number(n as f64, short(n as f64));
        let maybe =
            |x: Option<f64>, show: &dyn Fn(f64) -> String| x.map_or_else(Cell::none, |x| Cell::number(x, show(x)));
        let step = self.seconds.filter(|s| *s > 0.0);
        let share = step.map(|step| sum.seconds / step);
        let timed = step.map(|_| sum.seconds);
        Entry::new([
            Cell::text(name),
            Cell::text(pass),
            maybe(calls.map(|c| c as f64), &|c| c.to_string()),
            count(sum.model.total()),
            count(sum.algorithm.total()),
            maybe(sum.executed.map(|e| e.matmul as f64), &short),
            count(sum.model.special),
            Cell::number(sum.bytes as f64, with_unit(sum.bytes as f64, "B")),
            maybe(sum.intensity(), &|x| format!("{x:.1}")),
            maybe(timed, &time),
            maybe(share, &|s| format!("{:.1} %", 100.0 * s)).with_bar(share.unwrap_or(0.0)),
            maybe(sum.percent_of_floor(), &|p| format!("{p:.0} %")),
            Cell::number(sum.peak_bytes as f64, with_unit(sum.peak_bytes as f64, "B")),
        ])
    }

    fn convention_table(&self) -> Table {
        let columns =
            [Column::text("count"), Column::number("FLOPs"), Column::number("above exact"), Column::text("why")];
        let mut table = Table::new(columns);
        let counts = Convention::ALL.into_iter().filter_map(|c| self.count(c).ok());
        for count in counts {
            let of = |flops: f64| Cell::number(flops, format!("{flops:.0}"));
            let above: i128 = count.differences.iter().map(|d| d.flops).sum();
            table.push(Entry::new([
                Cell::text(count.convention.name()),
                of(count.flops as f64),
                of(above as f64),
                Cell::none(),
            ]));
            for d in &count.differences {
                table.push(
                    Entry::new([Cell::none(), Cell::none(), of(d.flops as f64), Cell::text(d.reason)]).at_depth(1),
                );
            }
        }
        table
    }
}

fn columns(first: &str) -> Vec<Column> {
    let numbers = [
        "calls",
        "model",
        "algorithm",
        "executed",
        "special",
        "bytes",
        "FLOP/B",
        "time",
        "of step",
        "of floor",
        "memory",
    ];
    let mut all = vec![Column::text(first), Column::text("pass")];
    all.extend(numbers.map(Column::number));
    all
}

/// Three digits and a unit of a thousand.
fn short(x: f64) -> String {
    with_unit(x, "")
}

fn with_unit(x: f64, name: &str) -> String {
    let units = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut value = x;
    let mut power = 0;
    while value.abs() >= 999.5 && power + 1 < units.len() {
        value /= 1000.0;
        power += 1;
    }
    let places = if power == 0 || value.abs() >= 99.95 { 0 } else { 1 + usize::from(value.abs() < 9.995) };
    let unit = units.get(power).copied().unwrap_or_default();
    format!("{value:.places$} {unit}{name}").trim_end().to_owned()
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}
