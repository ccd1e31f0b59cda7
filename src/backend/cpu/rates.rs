//! What this machine reaches: the rates that the floor of a cost is computed from.

use std::sync::OnceLock;
use std::time::Instant;

use super::gemm::{How, Mat, MatMut, matmul};
use super::threads::{Rows, RowsMut, rows};

/// Measured rates of the current pool's threads together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Bytes read and written a second by a copy that no cache holds.
    pub bytes: f64,
    /// Operations a second of a large f32 matrix product.
    pub flops: f64,
}

/// The rates of this machine, measured at the first call (about 0.1 s) and kept.
pub fn rates() -> Rates {
    static RATES: OnceLock<Rates> = OnceLock::new();
    *RATES.get_or_init(|| Rates { bytes: copy_rate(12 << 20), flops: product_rate(768) })
}

/// The best of a few runs of `work`, in `amount` a second.
fn best(amount: f64, runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    let times = (0..runs).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    amount / times.fold(f64::INFINITY, f64::min).max(1e-9)
}

fn copy_rate(values: usize) -> f64 {
    let from = vec![1.0f32; values];
    let mut to = vec![0.0f32; values];
    let rate = best(8.0 * values as f64, 3, || {
        rows(values, 8, (Rows::new(&from, 1), RowsMut::new(&mut to, 1)), |_, (from, to)| {
            to.data.copy_from_slice(from.data);
        });
    });
    std::hint::black_box(&to);
    rate
}

fn product_rate(n: usize) -> f64 {
    let a = vec![0.5f32; n * n];
    let mut c = vec![0.0f32; n * n];
    let rate = best(2.0 * (n as f64).powi(3), 6, || {
        let done = matmul(Mat::new(&a, n, n), Mat::new(&a, n, n), MatMut::new(&mut c, n, n), How::default());
        debug_assert!(done.is_ok(), "square operands match");
    });
    std::hint::black_box(&c);
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive_and_finite() {
        let (bytes, flops) = (copy_rate(1 << 12), product_rate(48));
        assert!(bytes > 0.0 && bytes.is_finite() && flops > 0.0 && flops.is_finite(), "{bytes} {flops}");
    }
}
