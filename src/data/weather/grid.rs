//! The regular latitude-longitude grid: rows from the north pole to the south pole.
//!
//! # Units
//! Latitudes are degrees north; weights have mean 1.
//!
//! # Source
//! FourCastNet, `utils/weighted_acc_rmse.py`: the definition that weather transformers are compared by.

use std::f64::consts::PI;

/// The value of π in the original's latitude weights; they differ from exact ones by less than 6e-6.
#[expect(clippy::approx_constant, reason = "the original's rounding is the point")]
pub const DOCUMENTED_PI: f64 = 3.1416;

/// Degrees north of row `row` of `rows`: the first row is the north pole, the last the south pole.
///
/// A grid of one row has no extent, its row lies at the equator.
pub fn latitude(row: usize, rows: usize) -> f64 {
    if rows < 2 { 0.0 } else { 90.0 - row as f64 * 180.0 / (rows - 1) as f64 }
}

/// Area weights of `rows` rows: the cosine of the latitude, scaled to mean 1.
pub fn latitude_weights(rows: usize) -> Vec<f64> {
    weights(rows, PI)
}

/// [`latitude_weights`] as the original computes them, with π = 3.1416: the poles come out slightly negative.
pub fn latitude_weights_as_documented(rows: usize) -> Vec<f64> {
    weights(rows, DOCUMENTED_PI)
}

fn weights(rows: usize, pi: f64) -> Vec<f64> {
    let cosines: Vec<f64> = (0..rows).map(|j| (pi / 180.0 * latitude(j, rows)).cos()).collect();
    let sum: f64 = cosines.iter().sum();
    cosines.into_iter().map(|c| rows as f64 * c / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_run_from_pole_to_pole() {
        assert_eq!((latitude(0, 721), latitude(360, 721), latitude(720, 721)), (90.0, 0.0, -90.0));
        assert_eq!(latitude(1, 721), 89.75);
        assert_eq!(latitude(0, 1), 0.0);
    }

    #[test]
    fn weights_have_mean_one_and_are_symmetric() {
        for rows in [1, 2, 3, 32, 64, 721] {
            let w = latitude_weights(rows);
            approx::assert_relative_eq!(w.iter().sum::<f64>() / rows as f64, 1.0, max_relative = 1e-12);
            for j in 0..rows {
                approx::assert_abs_diff_eq!(w[j], w[rows - 1 - j], epsilon = 1e-12);
            }
        }
    }

    #[test]
    fn the_documented_weights_are_negative_at_the_poles_and_close_elsewhere() {
        let (exact, documented) = (latitude_weights(64), latitude_weights_as_documented(64));
        assert!(documented[0] < 0.0 && exact[0] > 0.0 && exact[0] < 1e-15);
        for (e, d) in exact.iter().zip(&documented) {
            approx::assert_abs_diff_eq!(e, d, epsilon = 6e-6);
        }
    }
}
