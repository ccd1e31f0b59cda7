//! The weather transformer's runs: what a configuration opens, trains, validates and forecasts.

mod forecast;
mod foreign;
mod metrics;
mod plot;
mod session;

pub use forecast::{Forecast, ForecastFormat, ForecastStep, Forecaster};
pub use foreign::Foreign;
pub use metrics::Scores;
pub use session::{Session, evaluate, grid_of};
