//! What a validation finds.

use serde::Serialize;

/// Loss and metrics over a set of samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss over samples.
    pub loss: f64,
    /// Samples.
    pub samples: usize,
    /// Metrics by name, in the order in which they should be shown.
    pub metrics: Vec<(String, f64)>,
}

impl Evaluation {
    /// The metric of this name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }
}
