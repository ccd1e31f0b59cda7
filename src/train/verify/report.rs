//! How far what was computed is from what was expected, and how far it may be.

use serde::Serialize;

use super::{Case, Computed};
use crate::tensor::Dtype;

/// How one tensor compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its key in the file.
    pub name: String,
    /// ‖got − want‖₂ / ‖want‖₂, absolute where ‖want‖₂ = 0; of a gradient that is 0 but for rounding relative to a column of that of its
    /// layer's weight. `None` if nothing could be compared.
    pub err: Option<f64>,
    /// What `err` may be at most.
    pub bound: Option<f64>,
    /// Whether it is.
    pub passed: bool,
    /// Why not, where `err` alone does not tell.
    pub reason: Option<String>,
}

/// How one case compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseReport {
    /// Where it was read from.
    pub file: String,
    /// Its name.
    pub name: String,
    /// `op`, `optimizer`, `model`, or whatever the file says.
    pub kind: String,
    /// The operator or model; empty for an optimiser.
    pub subject: String,
    /// What was computed in.
    pub dtype: String,
    /// Whether every tensor passed, and there was one.
    pub passed: bool,
    /// Why it could not be run; empty if it was.
    pub reasons: Vec<String>,
    /// The tensors, in the order in which they were computed.
    pub tensors: Vec<TensorReport>,
}

/// Several cases in three numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Cases.
    pub cases: usize,
    /// Tensors that were looked at.
    pub tensors: usize,
    /// Tensors that missed, and cases that could not be run.
    pub missed: usize,
}

impl Summary {
    /// Takes note of a case.
    pub fn add(&mut self, case: &CaseReport) {
        self.cases += 1;
        self.tensors += case.tensors.len();
        self.missed += case.missed();
    }
}

impl CaseReport {
    pub(super) fn new(case: &Case, dtype: Dtype) -> CaseReport {
        CaseReport {
            file: case.path().display().to_string(),
            name: case.name().to_owned(),
            kind: case.kind().to_owned(),
            subject: case.subject().to_owned(),
            dtype: dtype.to_string(),
            passed: false,
            reasons: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Tensors that missed, or 1 for a case that missed as a whole.
    pub fn missed(&self) -> usize {
        let tensors = self.tensors.iter().filter(|t| !t.passed).count();
        if self.passed { 0 } else { tensors.max(1) }
    }

    pub(super) fn cannot_run(&mut self, reason: &str) {
        self.passed = false;
        self.reasons.push(reason.to_owned());
    }

    /// Compares all that was computed with all that the file expects.
    pub(super) fn compare(&mut self, case: &Case, computed: &[Computed], dtype: Dtype) {
        for c in computed {
            let bound = bound(case, &c.key, dtype);
            match wanted(case, c) {
                Err(reason) => self.tensors.push(TensorReport::unfit(&c.key, reason)),
                Ok(want) if c.columns.is_empty() => {
                    let pairs = c.values.iter().zip(&want);
                    self.tensors.push(TensorReport::new(c.key.clone(), pairs, bound, beside(case, &c.key)));
                }
                Ok(want) => {
                    for (i, column) in c.columns.iter().enumerate() {
                        let pairs = c.values.iter().zip(&want).skip(i).step_by(c.columns.len());
                        self.tensors.push(TensorReport::new(format!("{} {column}", c.key), pairs, bound, 0.0));
                    }
                }
            }
        }
        for t in case.tensors().map(|t| t.name()).filter(|n| n.starts_with("out.") || n.starts_with("grad.")) {
            if computed.iter().all(|c| c.key != t) {
                self.tensors.push(TensorReport::unfit(t, "the file expects it, and nothing here computes it".into()));
            }
        }
        if self.tensors.is_empty() {
            self.cannot_run("expected a tensor to compare, found none");
        }
        self.passed = self.reasons.is_empty() && self.tensors.iter().all(|t| t.passed);
    }
}

/// The numbers that the file expects.
fn wanted(case: &Case, c: &Computed) -> Result<Vec<f64>, String> {
    let Some(want) = case.get(&c.key) else {
        return Err("expected this tensor in the file, found none".into());
    };
    // A single number is written as [] or as [1].
    let is_scalar = |shape: &[usize]| matches!(shape, [] | [1]);
    if want.shape() != c.shape && !(is_scalar(want.shape()) && is_scalar(&c.shape)) {
        return Err(format!("expected {:?} as the file says, computed {:?}", want.shape(), c.shape));
    }
    Ok(want.to_f64().collect())
}

impl TensorReport {
    fn unfit(name: &str, reason: String) -> TensorReport {
        TensorReport { name: name.to_owned(), err: None, bound: None, passed: false, reason: Some(reason) }
    }

    fn new<'a>(
        name: String,
        pairs: impl Iterator<Item = (&'a f64, &'a f64)>,
        bound: Result<f64, &'static str>,
        beside: f64,
    ) -> TensorReport {
        let (mut difference, mut norm) = (0.0, 0.0);
        for (got, want) in pairs {
            difference += (got - want).powi(2);
            norm += want.powi(2);
        }
        let size = if norm.sqrt() <= beside * RESIDUE { beside } else { norm.sqrt() };
        let err = difference.sqrt() / if size == 0.0 { 1.0 } else { size };
        let reason = match bound {
            Err(why) => Some(why.to_owned()),
            Ok(_) if err.is_nan() => Some("not a number".to_owned()),
            Ok(_) => None,
        };
        let bound = bound.ok();
        TensorReport { name, err: Some(err), passed: bound.is_some_and(|b| err <= b), bound, reason }
    }
}

/// What is left, of a sum in f64 of a million terms that is exactly 0, in the size of the terms: 2²⁰ roundings by 2⁻⁵³.
const RESIDUE: f64 = 1.0 / (1u64 << 33) as f64;

/// Norm of what is summed into a gradient that may be exactly 0, such as that of a bias before a batch norm, which subtracts it again:
/// of a column of the gradient of the weight beside it, in the mean, which is as many sums of the same terms, each times an input.
/// 0 where there is none.
fn beside(case: &Case, key: &str) -> f64 {
    let Some(layer) = key.strip_suffix(".bias").filter(|k| case.kind() == "model" && k.starts_with("grad.")) else {
        return 0.0;
    };
    let of = |key: &str| case.get(key).map(|t| (t.to_f64().map(|x| x * x).sum::<f64>(), t.to_f64().len()));
    match (of(&format!("{layer}.weight")), of(key)) {
        (Some((squares, numbers)), Some((_, sums))) if numbers > 0 => (squares * sums as f64 / numbers as f64).sqrt(),
        _ => 0.0,
    }
}

/// What the error of `key` may be. An operator in a narrow type may err twice as much as the implementation that wrote the
/// case, and a little more.
fn bound(case: &Case, key: &str, dtype: Dtype) -> Result<f64, &'static str> {
    match (case.kind(), dtype) {
        ("model", Dtype::F32) => Ok(1e-4),
        ("model", Dtype::Bf16) => Ok(if key.starts_with("grad.") { 8e-2 } else { 3e-2 }),
        ("model", _) => Err("models have bounds in f32 and bf16, not in this type"),
        (_, Dtype::F32) => Ok(1e-5),
        (_, dtype) => Ok(match case.half_error(dtype, key) {
            Some(err) => 2.0 * err + 1e-3,
            None if dtype == Dtype::Bf16 => 1e-2,
            None => 2e-3,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn err(got: &[f64], want: &[f64]) -> TensorReport {
        TensorReport::new("x".into(), got.iter().zip(want), Ok(1e-5), 0.0)
    }

    #[test]
    fn errors_are_relative_and_absolute_where_nothing_is_expected() {
        assert_eq!(err(&[3.0, 4.0], &[3.0, 4.0]), TensorReport { passed: true, ..err(&[0.0], &[0.0]) });
        assert!((err(&[3.3, 4.4], &[3.0, 4.0]).err.unwrap() - 0.1).abs() < 1e-12);
        assert!((err(&[1e-6, 0.0], &[0.0, 0.0]).err.unwrap() - 1e-6).abs() < 1e-18);
        assert!(err(&[1e-6, 0.0], &[0.0, 0.0]).passed && !err(&[1e-4, 0.0], &[0.0, 0.0]).passed);
    }

    #[test]
    fn what_rounding_leaves_of_zero_is_compared_with_the_weight_beside_it_whatever_the_unit() {
        for unit in [1.0, 1e-9, 1e9] {
            let of = |got: f64, want: f64| {
                TensorReport::new("x".into(), [(&(got * unit), &(want * unit))].into_iter(), Ok(1e-4), 3.0 * unit)
            };
            assert!(of(1e-5, 2e-14).passed && !of(1e-3, 2e-14).passed, "{unit}");
            assert!(!of(1e-5, 2e-9).passed && of(1.00001, 1.0).passed && !of(1.001, 1.0).passed, "{unit}");
        }
    }

    #[test]
    fn nan_and_infinity_pass_nowhere() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for (got, want) in [(nan, 1.0), (1.0, nan), (nan, nan), (inf, inf), (inf, 1.0), (1.0, inf), (nan, 0.0)] {
            assert!(!err(&[got], &[want]).passed, "{got} {want}");
        }
        assert_eq!(err(&[nan], &[1.0]).reason.as_deref(), Some("not a number"));
    }
}
