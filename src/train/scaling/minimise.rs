//! The minimum of a smooth function of a few variables: BFGS with backtracking.
//!
//! # Source
//! Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 6.1; the first step's scale is their (6.20).

/// Steps at most: of five variables a few hundred are many.
const STEPS: usize = 500;

/// The minimum that lies downhill of `x`, and its value. `f` gives the value at a point and writes the gradient.
pub(super) fn minimum<const N: usize>(mut x: [f64; N], f: impl Fn(&[f64; N], &mut [f64; N]) -> f64) -> ([f64; N], f64) {
    let mut gradient = [0.0; N];
    let mut value = f(&x, &mut gradient);
    let mut inverse = identity(1.0);
    let mut is_first = true;
    for _ in 0..STEPS {
        if !(norm(&gradient) > 1e-10 * (1.0 + value.abs())) {
            break;
        }
        let mut direction = product(&inverse, &gradient).map(|d| -d);
        if !(dot(&direction, &gradient) < 0.0) {
            // Rounding has spoilt the curvature: begin anew from the slope.
            inverse = identity(1.0);
            direction = gradient.map(|g| -g);
        }
        let slope = dot(&direction, &gradient);
        let mut step = if is_first { 1.0_f64.min(1.0 / norm(&gradient)) } else { 1.0 };
        let (mut next, mut next_gradient) = (x, gradient);
        let mut next_value = f64::INFINITY;
        while step > 1e-16 {
            next = std::array::from_fn(|i| x[i] + step * direction[i]);
            next_value = f(&next, &mut next_gradient);
            if next_value <= value + 1e-4 * step * slope {
                break;
            }
            step *= 0.5;
        }
        if !(next_value < value) {
            break;
        }
        let s: [f64; N] = std::array::from_fn(|i| next[i] - x[i]);
        let y: [f64; N] = std::array::from_fn(|i| next_gradient[i] - gradient[i]);
        let curvature = dot(&s, &y);
        if curvature > 1e-14 * norm(&s) * norm(&y) {
            if is_first {
                inverse = identity(curvature / dot(&y, &y));
            }
            update(&mut inverse, &s, &y, curvature);
        }
        is_first = false;
        (x, gradient, value) = (next, next_gradient, next_value);
    }
    (x, value)
}

/// The inverse Hessian after a step `s` that changed the gradient by `y`.
fn update<const N: usize>(inverse: &mut [[f64; N]; N], s: &[f64; N], y: &[f64; N], curvature: f64) {
    let hy = product(inverse, y);
    let scale = (1.0 + dot(y, &hy) / curvature) / curvature;
    for i in 0..N {
        for j in 0..N {
            inverse[i][j] += scale * s[i] * s[j] - (hy[i] * s[j] + s[i] * hy[j]) / curvature;
        }
    }
}

fn identity<const N: usize>(scale: f64) -> [[f64; N]; N] {
    std::array::from_fn(|i| std::array::from_fn(|j| if i == j { scale } else { 0.0 }))
}

fn product<const N: usize>(m: &[[f64; N]; N], v: &[f64; N]) -> [f64; N] {
    std::array::from_fn(|i| dot(&m[i], v))
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn norm<const N: usize>(v: &[f64; N]) -> f64 {
    dot(v, v).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottom_of_rosenbrocks_valley_is_found() {
        let (x, value) = minimum([-1.2, 1.0], |x, g| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            *g = [-2.0 * a - 400.0 * x[0] * b, 200.0 * b];
            a * a + 100.0 * b * b
        });
        assert!(value < 1e-16 && (x[0] - 1.0).abs() < 1e-7 && (x[1] - 1.0).abs() < 1e-7, "{x:?} {value}");
    }

    #[test]
    fn a_function_without_a_minimum_or_with_nan_ends() {
        let (_, value) = minimum([0.0], |x, g| {
            *g = [1.0];
            x[0]
        });
        assert!(value < 0.0);
        let (x, _) = minimum([3.0], |_, g| {
            *g = [f64::NAN];
            f64::NAN
        });
        assert_eq!(x, [3.0]);
    }
}
