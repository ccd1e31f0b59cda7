//! The best size for a FLOPs budget: a parabola through the losses of the runs of each budget, over the logarithm of their size.
//!
//! # Source
//! Hoffmann et al. 2022, "Training compute-optimal large language models", section 3.2.

use std::collections::BTreeMap;

use serde::Serialize;

use super::law::Point;
use super::resample::{Interval, indices};

/// The runs of one budget.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parabola {
    /// The budget.
    pub flops: f64,
    /// Its runs.
    pub points: Vec<Point>,
    /// `c0 + c1 x + c2 x^2` of the natural logarithm x of the parameters.
    pub coefficients: [f64; 3],
    /// Parameters at the lowest loss.
    pub parameters: Interval,
    /// The lowest loss.
    pub loss: f64,
    /// Whether the lowest loss lies between the smallest and the largest model: otherwise it is a guess.
    pub is_inside: bool,
}

/// What the budgets say together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IsoFlop {
    /// A parabola for each budget that has one, by rising budget.
    pub parabolas: Vec<Parabola>,
    /// The exponent a of the best parameters, `N ~ C^a`, from two budgets on whose parabolas have their lowest point inside.
    pub exponent: Option<Interval>,
    /// What the runs could not tell.
    pub notes: Vec<String>,
}

/// Samples drawn again for the intervals.
const DRAWS: u64 = 400;

/// Fits the parabolas of runs with their budgets, and the law of their lowest points.
pub fn isoflop(runs: &[(f64, Point)]) -> IsoFlop {
    let mut groups: BTreeMap<u64, Vec<Point>> = BTreeMap::new();
    for (budget, point) in runs.iter().filter(|(b, p)| *b > 0.0 && p.parameters > 0.0 && p.loss.is_finite()) {
        // Positive floats are ordered as their bits are.
        groups.entry(budget.to_bits()).or_default().push(*point);
    }
    let (mut parabolas, mut notes, mut drawn) = (Vec::new(), Vec::new(), Vec::new());
    for (group, (bits, points)) in (0..).zip(groups) {
        let flops = f64::from_bits(bits);
        match parabola(flops, &points, group) {
            Ok((parabola, lowest)) => {
                if parabola.is_inside {
                    drawn.push((flops, parabola.parameters.value, lowest));
                } else {
                    notes.push(format!("{flops:e} FLOPs: the lowest loss lies outside of the sizes that were trained"));
                }
                parabolas.push(parabola);
            }
            Err(why) => notes.push(format!("{flops:e} FLOPs: {why}")),
        }
    }
    let exponent = (drawn.len() >= 2).then(|| {
        let value = slope(drawn.iter().map(|(c, n, _)| (*c, *n)));
        let again =
            (0..DRAWS as usize).map(|i| slope(drawn.iter().map(|(c, n, d)| (*c, d.get(i).copied().unwrap_or(*n)))));
        Interval::of(value, again.collect())
    });
    IsoFlop { parabolas, exponent, notes }
}

/// The parabola of one budget, and the sizes at the lowest point of those of runs drawn again, in every group in its own way.
fn parabola(flops: f64, points: &[Point], group: u64) -> Result<(Parabola, Vec<f64>), String> {
    let mut sizes: Vec<f64> = points.iter().map(|p| p.parameters.ln()).collect();
    sizes.sort_by(f64::total_cmp);
    let (least, most) = (sizes.first().copied().unwrap_or(0.0), sizes.last().copied().unwrap_or(0.0));
    sizes.dedup();
    if sizes.len() < 3 {
        return Err(format!("a parabola needs three sizes, found {}", sizes.len()));
    }
    let of = |p: &Point| (p.parameters.ln(), p.loss);
    let c = squares(points.iter().map(of)).ok_or("the sizes are too near to one another")?;
    let lowest = |c: [f64; 3]| if c[2] > 0.0 { Some(-c[1] / (2.0 * c[2])) } else { None };
    let x = lowest(c).ok_or("the losses bend downwards: more sizes are needed")?;
    let said = |x: f64| c[0] + x * (c[1] + x * c[2]);
    // What the fit leaves is drawn again: with few sizes the runs themselves would often be too few.
    let left: Vec<f64> = points.iter().map(|p| p.loss - said(p.parameters.ln())).collect();
    let draw = |i: u64| {
        let drawn = indices(points.len(), group * DRAWS + i);
        let again = points.iter().zip(drawn).map(|(p, j)| (p.parameters.ln(), said(p.parameters.ln()) + left[j]));
        squares(again).and_then(lowest).map_or(f64::NAN, f64::exp)
    };
    let drawn: Vec<f64> = (0..DRAWS).map(draw).collect();
    let parabola = Parabola {
        flops,
        points: points.to_vec(),
        coefficients: c,
        parameters: Interval::of(x.exp(), drawn.clone()),
        loss: said(x),
        is_inside: least < x && x < most,
    };
    Ok((parabola, drawn))
}

/// The parabola with the least squares, computed about the mean of x.
fn squares(points: impl Iterator<Item = (f64, f64)>) -> Option<[f64; 3]> {
    let points: Vec<(f64, f64)> = points.collect();
    let mean = points.iter().map(|p| p.0).sum::<f64>() / points.len() as f64;
    let mut moments = [0.0; 5];
    let mut sums = [0.0; 3];
    for (x, y) in &points {
        let x = x - mean;
        let mut power = 1.0;
        for k in 0..5 {
            moments[k] += power;
            if k < 3 {
                sums[k] += power * y;
            }
            power *= x;
        }
    }
    let m = |i: usize, j: usize| moments[i + j];
    let determinant = |m: [[f64; 3]; 3]| {
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    };
    let system: [[f64; 3]; 3] = std::array::from_fn(|i| std::array::from_fn(|j| m(i, j)));
    let whole = determinant(system);
    // The scale of a system whose points lie far from one another.
    if !(whole.abs() > 1e-12 * moments[0] * moments[2] * moments[4]) {
        return None;
    }
    let c: [f64; 3] = std::array::from_fn(|k| {
        let mut replaced = system;
        (0..3).for_each(|i| replaced[i][k] = sums[i]);
        determinant(replaced) / whole
    });
    Some([c[0] - mean * (c[1] - mean * c[2]), c[1] - 2.0 * mean * c[2], c[2]])
}

/// The slope of the straight line with the least squares through the logarithms.
fn slope(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let logs: Vec<(f64, f64)> = points.map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = logs.len() as f64;
    let (mx, my) = (logs.iter().map(|p| p.0).sum::<f64>() / n, logs.iter().map(|p| p.1).sum::<f64>() / n);
    let over: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    over / logs.iter().map(|(x, _)| (x - mx).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses with their lowest point at `C^0.49`, and what is added to each.
    fn runs(budgets: &[f64], noise: &[f64]) -> Vec<(f64, Point)> {
        let mut runs = Vec::new();
        for &c in budgets {
            let best = 0.6 * c.powf(0.49);
            for (i, factor) in [0.25, 0.5, 1.0, 2.0, 4.0].into_iter().enumerate() {
                let n = best * factor;
                let loss = 2.0 + 0.03 * f64::ln(factor).powi(2) + noise.get(i).copied().unwrap_or(0.0);
                runs.push((c, Point { parameters: n, tokens: c / n / 6.0, flops: c, loss }));
            }
        }
        runs
    }

    #[test]
    fn the_lowest_points_and_their_exponent_are_found() {
        let found = isoflop(&runs(&[1e15, 1e16, 1e17], &[]));
        assert_eq!((found.parabolas.len(), found.notes.len()), (3, 0));
        for p in &found.parabolas {
            let want = 0.6 * p.flops.powf(0.49);
            assert!((p.parameters.value / want - 1.0).abs() < 1e-6 && p.is_inside, "{p:?}");
            assert!((p.loss - 2.0).abs() < 1e-9, "{p:?}");
        }
        assert!((found.exponent.unwrap().value - 0.49).abs() < 1e-6);
    }

    #[test]
    fn noise_widens_the_intervals() {
        let found = isoflop(&runs(&[1e15, 1e16], &[0.004, -0.006, 0.002, 0.005, -0.005]));
        let a = found.exponent.unwrap();
        assert!(a.low < 0.49 && 0.49 < a.high && a.high - a.low > 0.01, "{a:?}");
        let n = found.parabolas[0].parameters;
        assert!(n.low < n.value && n.value < n.high, "{n:?}");
    }

    #[test]
    fn what_has_no_lowest_point_is_said() {
        let mut all = runs(&[1e15, 1e16], &[]);
        all.iter_mut().for_each(|(c, p)| {
            if *c == 1e15 {
                p.loss = 5.0 - p.loss;
            } else {
                p.loss = 10.0 - p.parameters.ln() + 0.01 * p.parameters.ln().powi(2);
            }
        });
        all.truncate(10);
        let found = isoflop(&all);
        assert!(found.exponent.is_none() && found.notes.len() == 2, "{found:?}");
        assert!(found.notes[0].contains("bend downwards") && found.notes[1].contains("outside"), "{found:?}");
        let few = isoflop(&runs(&[1e15], &[])[..2]);
        assert!(few.notes[0].contains("three sizes, found 2"), "{few:?}");
        assert!(isoflop(&[]).parabolas.is_empty());
    }
}
