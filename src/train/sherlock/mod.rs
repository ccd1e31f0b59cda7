//! Runs of the Sherlock autoencoder: what a configuration opens, trains and validates, and what it writes down.

mod evaluate;
mod session;
#[cfg(test)]
mod tests;
mod training_log;

pub use evaluate::{Brains, evaluate};
pub use session::{History, Session, plan};
pub use training_log::{PtFiles, TrainingLog};
