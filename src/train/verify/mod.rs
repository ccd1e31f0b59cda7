//! Reference cases: what another implementation computed in float64, computed here and compared tensor by tensor.
//!
//! A case is a safetensors file whose `__metadata__` has an entry `case`, a JSON text with `format` (1), `kind` (`op`,
//! `optimizer`, `model`), `name`, `attrs` (what is run, and its parameters) and for operators `half_error` (the relative
//! 2-norm error that a good implementation shows in a narrow type). Tensors: `in.X`, `weight.NAME`, `gradout.Y` are read,
//! `out.Y`, `grad.X` are compared.
//!
//! A case that cannot be run is a miss that says why, never a skip; so is a tensor that the file expects and nothing
//! computes, and the other way round. NaN passes nowhere.

mod attention;
mod case;
mod convolution;
mod models;
mod ops;
mod optimizer;
mod report;
mod sherlock;

pub use case::Case;
pub use report::{CaseReport, Summary, TensorReport};

use crate::backend::Exec;
use crate::error::{Error, Faults, Result};
use crate::tensor::{Dtype, View};

/// What was computed for one tensor of a case.
#[derive(Debug)]
struct Computed {
    /// The key under which the case has the expected numbers.
    key: String,
    shape: Vec<usize>,
    values: Vec<f64>,
    /// Names of the columns if each of them is compared on its own: then one large column hides no other.
    columns: &'static [&'static str],
}

impl Computed {
    fn new(key: impl Into<String>, shape: &[usize], values: Vec<f64>) -> Computed {
        Computed { key: key.into(), shape: shape.to_vec(), values, columns: &[] }
    }

    fn of(key: impl Into<String>, view: &View<'_>) -> Result<Computed> {
        let values = view.to_f32()?.into_iter().map(f64::from).collect();
        Ok(Computed::new(key, view.spec().shape(), values))
    }
}

/// Runs `case` on the device and compares every tensor.
///
/// `dtype` is what operators and models compute in; optimisers compute in f32 whatever it is, and their report says so.
pub fn verify(case: &Case, exec: &Exec, dtype: Dtype) -> CaseReport {
    let dtype = if case.kind() == "optimizer" { Dtype::F32 } else { dtype };
    let mut report = CaseReport::new(case, dtype);
    match compute(case, exec, dtype) {
        Ok(computed) => report.compare(case, &computed, dtype),
        Err(e) => {
            let mut faults = Faults::new();
            faults.absorb(e);
            faults.lines().for_each(|line| report.cannot_run(line));
        }
    }
    report
}

fn compute(case: &Case, exec: &Exec, dtype: Dtype) -> Result<Vec<Computed>> {
    case.check_format()?;
    match case.kind() {
        "op" => ops::run(case, exec, dtype),
        "optimizer" => optimizer::run(case, exec),
        "model" => models::run(case, exec, dtype),
        kind => Err(Error::argument(format!("kind: expected op, optimizer or model, found `{kind}`"))),
    }
}
