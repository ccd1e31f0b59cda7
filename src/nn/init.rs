//! What parameters hold before the first step: a pure function of the run's seed and the parameter's name, so that adding
//! a layer does not change the others.

use crate::rng::Stream;

/// Distribution of a parameter's first values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal with mean 0, drawn again beyond ±`cut` (an absolute value, not a multiple of `std`).
    TruncatedNormal {
        /// Standard deviation before truncation.
        std: f64,
        /// Largest absolute value.
        cut: f64,
    },
    /// Uniform in [−`bound`, `bound`).
    Uniform {
        /// Largest absolute value.
        bound: f64,
    },
}

/// Elements are drawn again at most this often; the chance of needing it at ±100 standard deviations is nil, and at ±1
/// one in 10¹⁵.
const REDRAWS: u64 = 32;

impl Init {
    /// Writes the values of the parameter `name` under `seed`.
    pub fn fill(self, seed: u64, name: &str, values: &mut [f32]) {
        let parts: Vec<u64> = std::iter::once(0x1217).chain(name.bytes().map(u64::from)).collect();
        let stream = Stream::of(seed, &parts);
        for (i, v) in (0_u64..).zip(values) {
            *v = match self {
                Init::Zeros => 0.0,
                Init::Ones => 1.0,
                Init::Normal { std } => (std * stream.normal(i)) as f32,
                Init::TruncatedNormal { std, cut } => {
                    let draws = (0..REDRAWS).map(|k| std * stream.normal(i * REDRAWS + k));
                    draws.into_iter().find(|x| x.abs() <= cut).unwrap_or(0.0) as f32
                }
                Init::Uniform { bound } => (bound * f64::from(stream.signed(i))) as f32,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let draw = |seed, name| {
            let mut v = [0.0; 8];
            Init::Normal { std: 1.0 }.fill(seed, name, &mut v);
            v
        };
        assert_eq!(draw(1, "a.weight"), draw(1, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(1, "b.weight"));
        assert_ne!(draw(1, "a.weight"), draw(2, "a.weight"));
    }

    #[test]
    fn a_truncated_normal_has_its_bound_and_its_spread() {
        let mut v = vec![0.0; 10_000];
        Init::TruncatedNormal { std: 1.0, cut: 2.0 }.fill(3, "w", &mut v);
        assert!(v.iter().all(|x| x.abs() <= 2.0));
        let var = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64;
        // Variance of a normal cut at two standard deviations is 0.774; standard error 0.008.
        assert!((var - 0.774).abs() < 0.04, "{var}");
    }
}
