//! What parameters hold before the first step: a pure function of the run's seed and the parameter's name, so that adding
//! a layer does not change the others.

use rayon::prelude::*;

use crate::rng::{Stream, philox_lanes, unit};

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

/// Numbers that one thread draws at a time; a multiple of what [`uniforms`] draws at once.
const CHUNK: usize = 1 << 14;

impl Init {
    /// PyTorch's default for a map whose results are sums of `fan_in` products: uniform below `1/√fan_in`, weight and bias
    /// alike.
    pub fn fan_in(fan_in: usize) -> Init {
        Init::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt() }
    }

    /// Kaiming's normal for a map to `fan_out` numbers before a ReLU: standard deviation `√(2/fan_out)`.
    pub fn fan_out(fan_out: usize) -> Init {
        Init::Normal { std: (2.0 / fan_out.max(1) as f64).sqrt() }
    }

    /// Writes the values from element `first` on, a multiple of 16,384, of the parameter `name` under `seed`.
    pub fn fill(self, seed: u64, name: &str, first: usize, values: &mut [f32]) {
        let parts: Vec<u64> = std::iter::once(0x1217).chain(name.bytes().map(u64::from)).collect();
        let stream = Stream::of(seed, &parts);
        let chunks = values.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(c, values)| self.draw(stream, (first + c * CHUNK) as u64, values));
    }

    /// The elements of `stream` from `first` on.
    fn draw(self, stream: Stream, first: u64, values: &mut [f32]) {
        match self {
            Init::Zeros => values.fill(0.0),
            Init::Ones => values.fill(1.0),
            Init::Normal { std } => {
                (first..).zip(values).for_each(|(i, v)| *v = (std * stream.normal(i)) as f32);
            }
            Init::TruncatedNormal { std, cut } => {
                for (i, v) in (first..).zip(values) {
                    let draws = (0..REDRAWS).map(|k| std * stream.normal(i * REDRAWS + k));
                    *v = draws.into_iter().find(|x| x.abs() <= cut).unwrap_or(0.0) as f32;
                }
            }
            Init::Uniform { bound } => uniforms(stream, first, bound, values),
        }
    }
}

/// `bound` times [`Stream::signed`] of the elements from `first` on, a multiple of 4: four of each block of random bits, and
/// eight blocks at once.
fn uniforms(stream: Stream, first: u64, bound: f64, values: &mut [f32]) {
    const BLOCKS: usize = 8;
    for (group, values) in (first / 4..).step_by(BLOCKS).zip(values.chunks_mut(4 * BLOCKS)) {
        let words = philox_lanes::<BLOCKS>(stream.seed, stream.id, group);
        for (i, v) in values.iter_mut().enumerate() {
            *v = (bound * f64::from(2.0 * unit(words[i % 4][i / 4]) - 1.0)) as f32;
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
            Init::Normal { std: 1.0 }.fill(seed, name, 0, &mut v);
            v
        };
        assert_eq!(draw(1, "a.weight"), draw(1, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(1, "b.weight"));
        assert_ne!(draw(1, "a.weight"), draw(2, "a.weight"));
    }

    #[test]
    fn a_truncated_normal_has_its_bound_and_its_spread() {
        let mut v = vec![0.0; 10_000];
        Init::TruncatedNormal { std: 1.0, cut: 2.0 }.fill(3, "w", 0, &mut v);
        assert!(v.iter().all(|x| x.abs() <= 2.0));
        let var = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64;
        // Variance of a normal cut at two standard deviations is 0.774; standard error 0.008.
        assert!((var - 0.774).abs() < 0.04, "{var}");
    }

    #[test]
    fn a_parameter_that_is_drawn_in_pieces_has_the_values_of_its_stream() {
        let parts: Vec<u64> = [0x1217].into_iter().chain("w".bytes().map(u64::from)).collect();
        let stream = Stream::of(5, &parts);
        let mut whole = vec![0.0; CHUNK + 37];
        let init = Init::Uniform { bound: 0.25 };
        init.fill(5, "w", 0, &mut whole);
        for i in [0, 1, 4, 31, 32, CHUNK - 1, CHUNK, CHUNK + 36] {
            assert_eq!(whole[i], (0.25 * f64::from(stream.signed(i as u64))) as f32, "{i}");
        }
        let mut rest = vec![0.0; 37];
        init.fill(5, "w", CHUNK, &mut rest);
        assert_eq!(rest, whole[CHUNK..]);
    }

    #[test]
    fn published_spreads_are_those_of_the_fans() {
        assert_eq!(Init::fan_in(16), Init::Uniform { bound: 0.25 });
        let Init::Normal { std } = Init::fan_out(8000) else { panic!("not normal") };
        assert!((std - 0.01581).abs() < 1e-5, "{std}");
    }
}
