//! The law of scaling: `L = E + A / N^alpha + B / D^beta` of the loss L, N parameters and D tokens.
//!
//! # Source
//! Hoffmann et al. 2022, "Training compute-optimal large language models", section 3.3: the form, and its fit, which minimises
//! the Huber loss (delta 1e-3) between the logarithms of what was measured and of what the law says, from many starts.

use std::fmt;

use serde::Serialize;

use super::minimise::minimum;
use super::resample::{Interval, indices};

/// One trained model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Trainable numbers.
    pub parameters: f64,
    /// Tokens seen in training.
    pub tokens: f64,
    /// Model FLOPs of its training.
    pub flops: f64,
    /// Its loss at the end.
    pub loss: f64,
}

/// One term of a law, `factor / x^exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Term {
    /// A or B.
    pub factor: Interval,
    /// alpha or beta.
    pub exponent: Interval,
}

/// A fitted law.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Law {
    /// E: what no model of this kind gets below.
    pub floor: Interval,
    /// A and alpha, of parameters; none if they hardly differ between the points.
    pub parameters: Option<Term>,
    /// B and beta, of tokens; none if they hardly differ between the points.
    pub tokens: Option<Term>,
    /// Points that it was fitted to.
    pub points: usize,
    /// Root of the mean squared difference of the logarithms.
    pub residual: f64,
    /// What the points could not tell.
    pub notes: Vec<String>,
}

/// Where the Huber loss turns from squares to lengths.
const DELTA: f64 = 1e-3;
/// Samples drawn again for the intervals.
const DRAWS: u64 = 200;
/// Where the fit starts: logarithms of each term over the mean loss, and the exponents.
static HEIGHTS: [f64; 5] = [-0.05, -0.3, -1.0, -3.0, -6.0];
static EXPONENTS: [f64; 4] = [0.05, 0.2, 0.5, 1.0];
/// Starts that are followed to their end, of all that are tried.
const FOLLOWED: usize = 24;

impl Law {
    /// The loss that it says for a model.
    pub fn loss(&self, parameters: f64, tokens: f64) -> f64 {
        let term = |t: &Option<Term>, x: f64| t.map_or(0.0, |t| t.factor.value * x.powf(-t.exponent.value));
        self.floor.value + term(&self.parameters, parameters) + term(&self.tokens, tokens)
    }

    /// The exponents a and b of the best parameters `N ~ C^a` and tokens `D ~ C^b` of a FLOPs budget C, if FLOPs grow as
    /// `N D`.
    pub fn best_exponents(&self) -> Option<(f64, f64)> {
        let (alpha, beta) = (self.parameters?.exponent.value, self.tokens?.exponent.value);
        Some((beta / (alpha + beta), alpha / (alpha + beta)))
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L = {:.4}", self.floor.value)?;
        for (term, name) in [(&self.parameters, "N"), (&self.tokens, "D")] {
            if let Some(t) = term {
                write!(f, " + {:.4} / {name}^{:.4}", t.factor.value, t.exponent.value)?;
            }
        }
        Ok(())
    }
}

/// Logarithms, the sizes' about their means: so that factors and exponents hardly depend on one another.
struct Logs {
    points: Vec<[f64; 3]>,
    centre: [f64; 2],
    /// Whether the terms of parameters and tokens are part of the law.
    has: [bool; 2],
}

/// e, a, b, alpha, beta: logarithms of the floor and of the terms at the mean sizes, and the exponents.
type Unknowns = [f64; 5];

/// Fits the law. A term whose size takes fewer than three values, or values within a factor of two, is left out.
///
/// # Errors
/// In words, what is missing to a fit: more points than unknowns, losses above zero, a size that differs.
pub fn fit(points: &[Point]) -> Result<Law, String> {
    let usable = |p: &&Point| [p.parameters, p.tokens, p.loss].iter().all(|x| x.is_finite() && *x > 0.0);
    let mut points: Vec<Point> = points.iter().filter(usable).copied().collect();
    let mut notes = Vec::new();
    let sizes: [fn(&Point) -> f64; 2] = [|p| p.parameters, |p| p.tokens];
    let has: [bool; 2] = std::array::from_fn(|i| is_spread(points.iter().map(sizes[i])));
    for ((is_there, name), size) in has.iter().zip(["parameters", "tokens"]).zip(sizes) {
        if !is_there {
            let all = points.len();
            points = alike(points, size);
            notes.push(format!(
                "{name} take too few values, or values too near to one another, to tell what they do; left out: {} runs \
                 that differ in them",
                all - points.len()
            ));
        }
    }
    let unknowns = 1 + 2 * has.iter().filter(|h| **h).count();
    if unknowns == 1 {
        return Err(
            "a law needs runs of three sizes, or of three amounts of data, that differ by a factor of two".into()
        );
    }
    if points.len() <= unknowns {
        return Err(format!("a law of {unknowns} unknowns needs more than {unknowns} runs, found {}", points.len()));
    }
    let mean = |f: &dyn Fn(&Point) -> f64| points.iter().map(|p| f(p).ln()).sum::<f64>() / points.len() as f64;
    let centre = [mean(&|p| p.parameters), mean(&|p| p.tokens)];
    let log = |p: &Point| [p.parameters.ln() - centre[0], p.tokens.ln() - centre[1], p.loss.ln()];
    let logs = Logs { points: points.iter().map(log).collect(), centre, has };
    let best = logs.best();
    let drawn: Vec<Unknowns> = (0..DRAWS)
        .map(|draw| {
            let again: Vec<_> = indices(logs.points.len(), draw).into_iter().map(|i| logs.points[i]).collect();
            minimum(best, |x, g| logs.value_of(&again, x, g)).0
        })
        .collect();
    Ok(logs.law(&best, &drawn, notes))
}

fn is_spread(sizes: impl Iterator<Item = f64>) -> bool {
    let mut sizes: Vec<f64> = sizes.collect();
    sizes.sort_by(f64::total_cmp);
    let ratio = sizes.last().copied().unwrap_or(1.0) / sizes.first().copied().unwrap_or(1.0);
    sizes.dedup_by(|a, b| (*a / *b - 1.0).abs() < 0.02);
    sizes.len() >= 3 && ratio >= 2.0
}

/// The points of the commonest size.
fn alike(points: Vec<Point>, size: fn(&Point) -> f64) -> Vec<Point> {
    let is_near = |a: &Point, b: &Point| (size(a) / size(b) - 1.0).abs() < 0.02;
    let near = |p: &Point| points.iter().filter(|o| is_near(o, p)).count();
    let Some(common) = points.iter().copied().rev().max_by_key(near) else { return points };
    points.into_iter().filter(|p| is_near(p, &common)).collect()
}

impl Logs {
    /// The fit from the best of many starts.
    fn best(&self) -> Unknowns {
        let mean = self.points.iter().map(|p| p[2]).sum::<f64>() / self.points.len() as f64;
        let mut starts = Vec::new();
        let of = |i: usize, all: &'static [f64]| if self.has[i] { all } else { &all[..1] };
        for e in HEIGHTS {
            for &a in of(0, &HEIGHTS) {
                for &b in of(1, &HEIGHTS) {
                    for &alpha in of(0, &EXPONENTS) {
                        for &beta in of(1, &EXPONENTS) {
                            let x = [mean + e, mean + a, mean + b, alpha, beta];
                            starts.push((self.value(&x, &mut [0.0; 5]), x));
                        }
                    }
                }
            }
        }
        starts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let ends = starts.iter().take(FOLLOWED).map(|(_, x)| minimum(*x, |x, g| self.value(x, g)));
        ends.min_by(|a, b| a.1.total_cmp(&b.1)).map_or([0.0; 5], |(x, _)| x)
    }

    fn value(&self, x: &Unknowns, gradient: &mut Unknowns) -> f64 {
        self.value_of(&self.points, x, gradient)
    }

    /// The Huber loss over `points` in units of delta squared, and its gradient.
    fn value_of(&self, points: &[[f64; 3]], x: &Unknowns, gradient: &mut Unknowns) -> f64 {
        *gradient = [0.0; 5];
        let mut sum = 0.0;
        for [n, d, loss] in points {
            let term = |i: usize, log: f64| if self.has[i] { log } else { f64::NEG_INFINITY };
            let terms = [x[0], term(0, x[1] - x[3] * n), term(1, x[2] - x[4] * d)];
            let largest = terms.iter().fold(f64::NEG_INFINITY, |m, t| m.max(*t));
            let exps = terms.map(|t| (t - largest).exp());
            let total: f64 = exps.iter().sum();
            let off = (largest + total.ln() - loss) / DELTA;
            let (value, slope) =
                if off.abs() <= 1.0 { (0.5 * off * off, off) } else { (off.abs() - 0.5, off.signum()) };
            sum += value;
            let [we, wa, wb] = exps.map(|e| slope * e / total / DELTA);
            for (g, part) in gradient.iter_mut().zip([we, wa, wb, -wa * n, -wb * d]) {
                *g += part;
            }
        }
        sum
    }

    fn law(&self, best: &Unknowns, drawn: &[Unknowns], mut notes: Vec<String>) -> Law {
        let interval = |f: &dyn Fn(&Unknowns) -> f64| Interval::of(f(best), drawn.iter().map(f).collect());
        let term = |i: usize| {
            let factor = move |x: &Unknowns, centre: f64| (x[1 + i] + x[3 + i] * centre).exp();
            self.has[i]
                .then(|| Term { factor: interval(&|x| factor(x, self.centre[i])), exponent: interval(&|x| x[3 + i]) })
        };
        let (parameters, tokens) = (term(0), term(1));
        for (t, name) in [(&parameters, "alpha"), (&tokens, "beta")] {
            if t.is_some_and(|t| t.exponent.low <= 0.0) {
                notes.push(format!("the interval of {name} holds 0: these runs do not show that the loss falls"));
            }
        }
        let mut law = Law {
            floor: interval(&|x| x[0].exp()),
            parameters,
            tokens,
            points: self.points.len(),
            residual: 0.0,
            notes,
        };
        let squares = self.points.iter().map(|[n, d, loss]| {
            let said = law.loss((n + self.centre[0]).exp(), (d + self.centre[1]).exp());
            (said.ln() - loss).powi(2)
        });
        law.residual = (squares.sum::<f64>() / self.points.len() as f64).sqrt();
        law
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// Models of Chinchilla's sizes under the law that Besiroglu et al. 2024 (arXiv 2404.10102) fitted to its runs, with noise.
    fn chinchilla(noise: f64) -> Vec<Point> {
        let stream = Stream::new(11, 5);
        let mut points = Vec::new();
        for n in [4.4e7, 1.2e8, 4.2e8, 1.1e9, 2.9e9, 7e9, 1.6e10] {
            for d in [1e9, 4e9, 1.6e10, 6.4e10, 2.5e11] {
                let exact = 1.8172 + 482.01 / f64::powf(n, 0.3478) + 2085.43 / f64::powf(d, 0.3658);
                let off = noise * f64::from(stream.signed(points.len() as u64));
                points.push(Point { parameters: n, tokens: d, flops: 6.0 * n * d, loss: exact * (1.0 + off) });
            }
        }
        points
    }

    #[test]
    fn the_law_behind_exact_losses_is_found() {
        let law = fit(&chinchilla(0.0)).unwrap();
        let (n, d) = (law.parameters.unwrap(), law.tokens.unwrap());
        assert!((law.floor.value - 1.8172).abs() < 1e-3, "{law}");
        assert!((n.exponent.value - 0.3478).abs() < 1e-3 && (d.exponent.value - 0.3658).abs() < 1e-3, "{law}");
        assert!((n.factor.value / 482.01 - 1.0).abs() < 0.02 && (d.factor.value / 2085.43 - 1.0).abs() < 0.02, "{law}");
        let (a, b) = law.best_exponents().unwrap();
        assert!((a - 0.5126).abs() < 1e-3 && (a + b - 1.0).abs() < 1e-12, "{a} {b}");
        assert!(law.residual < 1e-4 && law.notes.is_empty(), "{law:?}");
    }

    #[test]
    fn with_noise_the_intervals_hold_the_law() {
        let law = fit(&chinchilla(0.01)).unwrap();
        let holds = |i: Interval, x: f64| i.low < x && x < i.high && i.low < i.value && i.value < i.high;
        assert!(holds(law.floor, 1.8172), "{law:?}");
        assert!(holds(law.parameters.unwrap().exponent, 0.3478), "{law:?}");
        assert!(holds(law.tokens.unwrap().exponent, 0.3658), "{law:?}");
        assert!(law.residual < 0.01, "{}", law.residual);
    }

    #[test]
    fn a_size_that_does_not_differ_has_no_term_and_none_at_all_no_law() {
        let mut points = chinchilla(0.0);
        points.iter_mut().for_each(|p| {
            p.tokens = 1e9;
            p.loss = 2.0 + 100.0 / p.parameters.powf(0.3);
        });
        let law = fit(&points).unwrap();
        assert!(law.tokens.is_none() && law.notes.len() == 1 && law.notes[0].starts_with("tokens"), "{law:?}");
        let other = Point { tokens: 2e9, loss: 9.0, ..points[3] };
        let with_other = fit(&[&[other], points.as_slice()].concat()).unwrap();
        assert_eq!(
            (with_other.points, with_other.floor),
            (law.points, law.floor),
            "one run with other tokens says nothing"
        );
        assert!((law.floor.value - 2.0).abs() < 1e-3 && (law.parameters.unwrap().exponent.value - 0.3).abs() < 1e-3);
        points.iter_mut().for_each(|p| p.parameters = 1e6);
        assert!(fit(&points).unwrap_err().contains("three sizes"));
        assert!(fit(&chinchilla(0.0)[..3]).unwrap_err().contains("more than 3 runs"));
        let broken = Point { loss: f64::NAN, ..points[0] };
        assert!(fit(&[broken; 9]).is_err() && fit(&[]).is_err());
    }
}
