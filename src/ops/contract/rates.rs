//! What a device reaches: the rates that floors are computed from, measured.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::backend::Exec;
use crate::backend::cpu;
use crate::error::Result;
use crate::ops::contract::bench::{Bench, Effort, Pass};
use crate::ops::contract::{Case, Input};
use crate::ops::matmul::{self, Matmul};
use crate::tensor::Dtype;

/// Measured rates of a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes read and written a second by a copy that no cache holds.
    pub copy_bytes_per_s: f64,
    /// Operations a second of a large matrix product, by storage type.
    pub matmul_flop_per_s: BTreeMap<String, f64>,
    /// What computed the product.
    pub matmul_by: String,
}

/// Rows and columns of the square product, and bytes of the copy, on hardware and where it is emulated.
const REAL: (usize, usize) = (8192, 1 << 30);
const EMULATED: (usize, usize) = (32, 1 << 16);

impl Rates {
    /// Measures those of `exec` for `dtypes`; on the CPU they are those of f32 for every type, since it computes in f32.
    ///
    /// # Errors
    /// What the device reports.
    pub fn measure(exec: &Exec, dtypes: &[Dtype]) -> Result<Rates> {
        let Some(gpu) = exec.gpu() else {
            let rates = cpu::rates::rates();
            return Ok(Rates {
                copy_bytes_per_s: rates.bytes,
                matmul_flop_per_s: dtypes.iter().map(|d| (d.to_string(), rates.flops)).collect(),
                matmul_by: "the CPU's own product, in f32".into(),
            });
        };
        let (n, copied) = if exec.is_emulated() { EMULATED } else { REAL };
        let by = match gpu.products()?.library() {
            Some(library) => format!("the faster of {} and matmul's own kernel", library.library()),
            None => "matmul's own kernel".into(),
        };
        let rate = |&dtype: &Dtype| Ok((dtype.to_string(), product_rate(exec, dtype, n)?));
        Ok(Rates {
            copy_bytes_per_s: gpu.copy_rate(copied)?,
            matmul_flop_per_s: dtypes.iter().map(rate).collect::<Result<_>>()?,
            matmul_by: by,
        })
    }

    /// Operations a second of a product of `dtype`; none if it was not measured.
    pub fn flops(&self, dtype: Dtype) -> f64 {
        self.matmul_flop_per_s.get(&dtype.to_string()).copied().unwrap_or(f64::INFINITY)
    }
}

fn product_rate(exec: &Exec, dtype: Dtype, n: usize) -> Result<f64> {
    let case = Case::new(Matmul::default(), [Input::new("x", [n, n]).constant(), Input::new("w", [n, n]).constant()]);
    let mut bench = Bench::prepare(&matmul::ROOM, &case, dtype, exec, 0)?;
    let effort = Effort { warm_up_seconds: 0.0, seconds: 0.02, least_runs: 2, most_runs: 100 };
    let seconds = bench.measure(Pass::Forward, effort, 1.0, 1.0)?.seconds.p10;
    Ok(2.0 * (n as f64).powi(3) / seconds.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_one_rate_for_every_type() {
        let rates = Rates::measure(&Exec::cpu(), &[Dtype::F32, Dtype::Bf16]).unwrap();
        assert!(rates.copy_bytes_per_s > 0.0 && rates.flops(Dtype::F32) > 0.0);
        assert_eq!(rates.flops(Dtype::F32), rates.flops(Dtype::Bf16));
        assert_eq!(rates.flops(Dtype::F16), f64::INFINITY, "was not asked for");
    }
}
