//! Runs of the Sherlock autoencoder: what a configuration opens, trains and validates, and what it writes down.

mod correlation;
mod evaluate;
mod predict;
mod session;
#[cfg(test)]
mod tests;
mod training_log;

pub use correlation::{BrainMap, Correlations};
pub use evaluate::{Brains, evaluate};
pub use predict::{Predictor, predict};
pub use session::{History, Session};
pub use training_log::{PtFiles, TrainingLog};
