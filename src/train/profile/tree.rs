//! The rows of a profile as the tree of modules that they ran in.

use super::{Pass, PassRow, StepProfile};
use crate::cost::Flops;

/// Sums over some rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// The mathematics.
    pub model: Flops,
    /// With what is recomputed on purpose.
    pub algorithm: Flops,
    /// What ran on matrix units; `None` if some of it was not counted.
    pub executed: Option<Flops>,
    /// Each input read once, each output written once.
    pub bytes: u128,
    /// Time of the device.
    pub seconds: f64,
    /// Of forward passes alone.
    pub forward_seconds: f64,
    /// The least time; 0 if the device's rates are not known.
    pub floor_seconds: f64,
    /// Bytes in use on the device at most.
    pub peak_bytes: usize,
}

impl Sum {
    /// Over `rows` of `profile`.
    pub fn over<'r>(profile: &StepProfile, rows: impl IntoIterator<Item = &'r PassRow>) -> Sum {
        let mut sum = Sum { executed: Some(Flops::ZERO), ..Sum::default() };
        let mut has_passes = false;
        for row in rows {
            sum.model += row.model;
            sum.algorithm += row.algorithm;
            // Norm and update have no products.
            if row.pass != Pass::Optimiser {
                has_passes = true;
                sum.executed = sum.executed.zip(row.executed).map(|(a, b)| a + b);
            }
            sum.bytes += row.bytes;
            sum.seconds += row.seconds;
            if row.pass == Pass::Forward {
                sum.forward_seconds += row.seconds;
            }
            sum.floor_seconds += profile.floor(row.cost()).unwrap_or(0.0);
            sum.peak_bytes = sum.peak_bytes.max(row.peak_bytes);
        }
        sum.executed = sum.executed.filter(|_| has_passes);
        sum
    }

    /// FLOPs for each byte; `None` where nothing is moved.
    pub fn intensity(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.algorithm.total() as f64 / self.bytes as f64)
    }

    /// Floor over time, in per cent.
    pub fn percent_of_floor(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.floor_seconds > 0.0).then(|| 100.0 * self.floor_seconds / self.seconds)
    }
}

/// A module with what is in it.
#[derive(Clone, Debug)]
pub struct Node<'p> {
    /// Dotted path, empty for the model.
    pub path: &'p str,
    /// The last part of it.
    pub name: &'p str,
    /// What kind of layer it is.
    pub class: &'static str,
    /// Trainable numbers.
    pub parameters: u64,
    /// Modules above it.
    pub depth: usize,
    /// Over everything in it and below.
    pub sum: Sum,
    /// What ran in it and in none of its children.
    pub rows: Vec<&'p PassRow>,
    /// The modules in it.
    pub children: Vec<Node<'p>>,
}

impl StepProfile {
    /// The model with all of its modules; what runs in none (the optimiser) is the model's own.
    pub fn tree(&self) -> Node<'_> {
        self.node("", 0)
    }

    fn node<'p>(&'p self, path: &'p str, depth: usize) -> Node<'p> {
        let is_child = |p: &str| match path {
            "" => !p.is_empty() && !p.contains('.'),
            _ => p.strip_prefix(path).and_then(|r| r.strip_prefix('.')).is_some_and(|r| !r.contains('.')),
        };
        let known = self.modules.iter().find(|m| m.path == path);
        let children: Vec<Node<'p>> =
            self.modules.iter().filter(|m| is_child(&m.path)).map(|m| self.node(&m.path, depth + 1)).collect();
        let inside = |row: &&PassRow| {
            path.is_empty() || row.module.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('.'))
        };
        Node {
            path,
            name: path.rsplit('.').next().unwrap_or_default(),
            class: known.map_or("Module", |m| m.class),
            parameters: known.map_or(0, |m| m.parameters),
            depth,
            sum: Sum::over(self, self.rows.iter().filter(inside)),
            rows: self.rows.iter().filter(|r| r.module == path).collect(),
            children,
        }
    }

    /// Sums by room, use and pass over all modules, the longest first, without times the most FLOPs first.
    pub fn by_room(&self) -> Vec<(String, Pass, u64, Sum)> {
        let mut groups: Vec<(String, Pass, Vec<&PassRow>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(label, pass, _)| *pass == row.pass && *label == row.label()) {
                Some((.., rows)) => rows.push(row),
                None => groups.push((row.label(), row.pass, vec![row])),
            }
        }
        let mut sums: Vec<(String, Pass, u64, Sum)> = groups
            .into_iter()
            .map(|(label, pass, rows)| {
                let calls = rows.iter().map(|r| r.calls).sum();
                (label, pass, calls, Sum::over(self, rows))
            })
            .collect();
        let key = |s: &Sum| (s.seconds, s.algorithm.total() as f64);
        sums.sort_by(|(.., a), (.., b)| key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal));
        sums
    }
}
