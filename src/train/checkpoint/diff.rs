//! The differences of two checkpoints, tensor by tensor.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{Checkpoint, OPTIMIZER, STATE, WEIGHTS};
use crate::error::Result;
use crate::io::TensorView;
use crate::io::safetensors::SafetensorsFile;
use crate::io::stored::printable;

/// How a tensor of one checkpoint differs from that of the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// Only the first has it.
    OnlyInFirst,
    /// Only the second has it.
    OnlyInSecond,
    /// Type or shape, as text.
    Kind {
        /// In the first.
        first: String,
        /// In the second.
        second: String,
    },
    /// Numbers.
    Values {
        /// The largest absolute difference; infinite if a NaN stands against a number.
        max_abs: f64,
        /// The element where it is, counted row-major.
        at: usize,
        /// How many elements differ in any bit.
        differing: usize,
        /// How many there are.
        of: usize,
    },
}

/// What two checkpoints differ in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffReport {
    /// The first one's folder.
    pub first: PathBuf,
    /// The second one's folder.
    pub second: PathBuf,
    /// How many tensors are the same, bit for bit.
    pub equal: usize,
    /// File, tensor, difference.
    pub tensors: Vec<(String, String, Difference)>,
    /// Keys of `state.json` that differ, with both values.
    pub state: Vec<(String, Value, Value)>,
}

impl DiffReport {
    /// Whether there is no difference.
    pub fn is_equal(&self) -> bool {
        self.tensors.is_empty() && self.state.is_empty()
    }
}

/// Compares two checkpoints, both verified first.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn diff(first: &Path, second: &Path) -> Result<DiffReport> {
    let (a, b) = (Checkpoint::open(first)?, Checkpoint::open(second)?);
    let mut report =
        DiffReport { first: first.into(), second: second.into(), equal: 0, tensors: Vec::new(), state: Vec::new() };
    for (file, a, b) in [(WEIGHTS, a.weights(), b.weights()), (OPTIMIZER, a.optimizer(), b.optimizer())] {
        tensors(file, a, b, &mut report);
    }
    json("", a.state(), b.state(), &mut report.state);
    Ok(report)
}

fn tensors(file: &str, a: &SafetensorsFile, b: &SafetensorsFile, report: &mut DiffReport) {
    let only_in_b = b.tensors().filter(|t| a.get(t.name()).is_none());
    for tensor in a.tensors().chain(only_in_b) {
        let difference = match (a.get(tensor.name()), b.get(tensor.name())) {
            (Some(x), Some(y)) => compare(x, y),
            (Some(_), None) => Some(Difference::OnlyInFirst),
            _ => Some(Difference::OnlyInSecond),
        };
        match difference {
            None => report.equal += 1,
            Some(d) => report.tensors.push((file.into(), tensor.name().into(), d)),
        }
    }
}

fn compare(a: TensorView<'_>, b: TensorView<'_>) -> Option<Difference> {
    if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
        let kind = |t: TensorView<'_>| format!("{} {:?}", t.dtype(), t.shape());
        return Some(Difference::Kind { first: kind(a), second: kind(b) });
    }
    if a.bytes() == b.bytes() {
        return None;
    }
    let size = a.dtype().size();
    let bits = a.bytes().chunks_exact(size).zip(b.bytes().chunks_exact(size));
    let (mut max_abs, mut at, mut differing) = (0.0, 0, 0);
    for (i, ((x, y), (xs, ys))) in a.to_f64().zip(b.to_f64()).zip(bits).enumerate() {
        if xs == ys {
            continue;
        }
        let distance = if (x - y).is_nan() { f64::INFINITY } else { (x - y).abs() };
        if differing == 0 || distance > max_abs {
            (max_abs, at) = (distance, i);
        }
        differing += 1;
    }
    Some(Difference::Values { max_abs, at, differing, of: a.len() })
}

fn json(at: &str, a: &Value, b: &Value, out: &mut Vec<(String, Value, Value)>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                json(&at, x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null), out);
            }
        }
        _ if a == b => {}
        _ => out.push((at.into(), a.clone(), b.clone())),
    }
}

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} and {}", self.first.display(), self.second.display())?;
        for (file, name, difference) in &self.tensors {
            write!(f, "{file}: {}: ", printable(name))?;
            match difference {
                Difference::OnlyInFirst => writeln!(f, "only in the first")?,
                Difference::OnlyInSecond => writeln!(f, "only in the second")?,
                Difference::Kind { first, second } => writeln!(f, "{first} in the first, {second} in the second")?,
                Difference::Values { max_abs, at, differing, of } => {
                    writeln!(f, "differs by up to {max_abs:e} (element {at}); {differing} of {of} elements differ")?;
                }
            }
        }
        for (key, a, b) in &self.state {
            writeln!(f, "{STATE}: {key}: {a} in the first, {b} in the second")?;
        }
        write!(f, "{} tensors are the same, {} differ; ", self.equal, self.tensors.len())?;
        write!(f, "{} entries of {STATE} differ", self.state.len())
    }
}
