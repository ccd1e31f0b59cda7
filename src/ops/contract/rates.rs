//! What a device reaches: the rates that floors are computed from, measured.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::backend::Exec;
use crate::backend::cpu;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::vendor::{BlasLt, Number, Operands, Product, WORKSPACE_BYTES};
use crate::error::Result;
use crate::ops::contract::bench::{Bench, Effort, Pass};
use crate::ops::contract::{Case, Input};
use crate::ops::matmul::{self, Matmul};
use crate::tensor::{Dtype, Spec, Tensor};

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
        let by = match gpu.products() {
            Ok(library) => library.name().to_owned(),
            Err(why) => format!("the matmul of this program ({why})"),
        };
        let rate = |&dtype: &Dtype| Ok((dtype.to_string(), product_rate(exec, gpu, dtype, n)?));
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

/// Of the vendor's library where it is there: the best that the device is known to do.
fn product_rate(exec: &Exec, gpu: &Gpu, dtype: Dtype, n: usize) -> Result<f64> {
    let inputs = [Input::new("x", [n, n]), Input::new("w", [n, n])];
    let case = Case::new(Matmul::default(), inputs);
    if let Ok(library) = gpu.products() {
        let x = exec.import(&case.x[0].tensor(dtype, 0, 0)?)?;
        let w = exec.import(&case.x[1].tensor(dtype, 0, 1)?)?;
        return library_rate(gpu, library, dtype, [&x, &w], n);
    }
    let mut bench = Bench::prepare(&matmul::ROOM, &case, dtype, exec, 0)?;
    let effort = Effort { warm_up_seconds: 0.0, seconds: 0.02, least_runs: 2, most_runs: 100 };
    let seconds = bench.measure(Pass::Forward, effort, 1.0, 1.0)?.seconds.p10;
    Ok(2.0 * (n as f64).powi(3) / seconds.max(1e-9))
}

fn library_rate(gpu: &Gpu, library: &BlasLt, dtype: Dtype, [x, w]: [&Tensor; 2], n: usize) -> Result<f64> {
    let y = gpu.scratch(Spec::new(dtype, [n, n])?)?;
    let workspace = gpu.scratch(Spec::f32([WORKSPACE_BYTES / 4])?)?;
    let at = |t: &Tensor| t.address().unwrap_or(0);
    let side = n as u64;
    let product = Product {
        m: side,
        n: side,
        k: side,
        is_a_transposed: false,
        is_b_transposed: false,
        number: Number::of(dtype),
        batch: 1,
        strides: [0; 3],
        has_bias: false,
        accumulates: false,
    };
    let operands = Operands {
        y: at(&y),
        a: at(x),
        b: at(w),
        bias: 0,
        workspace: at(&workspace),
        workspace_bytes: WORKSPACE_BYTES,
    };
    let mut best = f64::INFINITY;
    for way in 0..library.ways(&product, &operands)? {
        let times = gpu.time(5, &mut || library.matmul(&product, &operands, way, gpu.stream()))?;
        best = times.into_iter().fold(best, f64::min);
    }
    Ok(2.0 * (n as f64).powi(3) / best.max(1e-9))
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
