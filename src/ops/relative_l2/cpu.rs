//! The CPU path: sums in f64, rows of a sample side by side.

use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::threads::reduce;
use crate::error::Result;
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, map_flat, no_gradient, sum_flat, wrong_operands};
use crate::ops::operator::{Backward, Forward, GradSlot};
use crate::ops::relative_l2::Sizes;
use crate::tensor::View;

/// Sums in f64: neither rounding nor overflow of the squares.
pub(super) fn forward(io: Forward<'_>) -> Result<()> {
    let ([p, y, weight @ ..], [loss], [error, length]) = (io.x, io.y, io.saved) else {
        return Err(wrong_operands("relative_l2"));
    };
    let sizes = Sizes::of(p.spec(), weight.first().map(View::spec));
    let weight = weight.first().map(View::f32).transpose()?;
    let (p, y) = (Floats::of(p)?, Floats::of(y)?);
    let mut total = 0.0;
    for (i, (error, length)) in error.f32()?.iter_mut().zip(length.f32()?).enumerate() {
        let sample = [p, y].map(|x| x.part(sizes.sample(i)));
        let [e, l] = match weight {
            None => sum_flat(sizes.n(), TOUCH, sample, |[p, y]| squares(p, y)),
            Some(weight) => lines(sizes, sample, |r, [e, l]| {
                let weight = f64::from(weight[r % sizes.weights]);
                [weight * e, weight * l]
            }),
        }
        .map(f64::sqrt);
        (*error, *length) = (e as f32, l as f32);
        total += e / l;
    }
    loss.f32()?.fill((total / sizes.b as f64) as f32);
    Ok(())
}

/// The sum over the rows of a sample of what `f` makes of a row's Σ (p − y)² and Σ y².
fn lines(sizes: Sizes, sample: [Floats<'_>; 2], f: impl Fn(usize, [f64; 2]) -> [f64; 2] + Sync) -> [f64; 2] {
    let add = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
    let piece = |at: std::ops::Range<usize>| {
        let all = at.start * sizes.width..at.end * sizes.width;
        let [mut p, mut y] = sample.map(|x| In::new(x.part(all.clone()), sizes.width));
        at.map(|r| f(r, squares(p.next(1), y.next(1)))).fold([0.0; 2], add)
    };
    reduce(sizes.rows, TOUCH * sizes.width, piece, add).unwrap_or([0.0; 2])
}

pub(super) fn backward(io: Backward<'_>) -> Result<()> {
    let ([p, y, weight @ ..], [error, length], [dloss], [dp, dy, dweight @ ..]) = (io.x, io.saved, io.dy, &mut *io.dx)
    else {
        return Err(wrong_operands("relative_l2"));
    };
    let Some(dloss) = dloss else { return no_gradient(io.dx) };
    let dloss: f64 = dloss.f32()?.iter().map(|&d| f64::from(d)).sum();
    let sizes = Sizes::of(io.specs[0], io.specs.get(2).copied());
    let (p, y) = (Floats::kept(Some(p))?, Floats::kept(Some(y))?);
    let weight = Floats::kept(weight.first())?.widened();
    let (mut dp, mut dy) = (Out::slot(dp, sizes.width)?, Out::slot(dy, sizes.width)?);
    let scales = error.f32()?.iter().zip(length.f32()?).map(|(&e, &l)| {
        let (e, l) = (f64::from(e), f64::from(l));
        let s = if e == 0.0 { 0.0 } else { dloss / (e * l * sizes.b as f64) };
        (s, s * (e / l) * (e / l))
    });
    let scales: Vec<(f64, f64)> = scales.collect();
    for (i, &(s, t)) in scales.iter().enumerate() {
        let (s, t) = (s as f32, t as f32);
        let sample = [p, y].map(|x| x.part(sizes.sample(i)));
        if let Some(dp) = &mut dp {
            pull(sizes, &weight, sample, dp.front(sizes.n()), |w, p, y, d| pull_p(w * s, p, y, d));
        }
        if let Some(dy) = &mut dy {
            pull(sizes, &weight, sample, dy.front(sizes.n()), |w, p, y, d| pull_y(w * s, w * t, p, y, d));
        }
    }
    match dweight {
        [slot @ (GradSlot::Set(_) | GradSlot::Add(_))] => weight_gradient(sizes, [p, y], &scales, slot),
        _ => Ok(()),
    }
}

/// Calls `f` with a weight and what it holds for: a row of a sample, or stretches of all numbers and 1.
fn pull(
    sizes: Sizes,
    weight: &[f32],
    sample: [Floats<'_>; 2],
    to: Out<'_>,
    f: impl Fn(f32, &[f32], &[f32], &mut [f32]) + Sync,
) {
    let (n, width) = (sizes.n(), sizes.width);
    if weight.is_empty() {
        return map_flat(n, 2 * TOUCH, sample, [to], |_, [p, y], [d]| f(1.0, p, y, d));
    }
    map(sizes.rows, 2 * TOUCH * width, sample.map(|x| In::new(x, width)), [to], |first, [p, y], [d]| {
        let rows = d.chunks_mut(width).zip(p.chunks(width).zip(y.chunks(width)));
        for (r, (d, (p, y))) in rows.enumerate() {
            f(weight[(first + r) % weight.len()], p, y, d);
        }
    });
}

/// The gradient of a weight: Σ (s·(p − y)² − t·y²)/2 over its rows, in f64.
fn weight_gradient(
    sizes: Sizes,
    [p, y]: [Floats<'_>; 2],
    scales: &[(f64, f64)],
    slot: &mut GradSlot<'_>,
) -> Result<()> {
    let Some(to) = Out::slot(slot, 1)? else { return Ok(()) };
    let (width, all) = (sizes.width, sizes.b * sizes.rows);
    map(sizes.weights, 2 * TOUCH * width * (all / sizes.weights), [], [to], |first, [], [to]| {
        for (h, to) in to.iter_mut().enumerate() {
            let of_row = |r: usize| {
                let [mut p, mut y] = [p, y].map(|x| In::new(x.part(r * width..(r + 1) * width), width));
                let ([e, l], (s, t)) = (squares(p.next(1), y.next(1)), scales[r / sizes.rows]);
                0.5 * (s * e - t * l)
            };
            *to = (first + h..all).step_by(sizes.weights).map(of_row).sum::<f64>() as f32;
        }
    });
    Ok(())
}

wide! {
    /// Σ (p − y)² and Σ y², in eight interleaved sums each.
    fn squares<F>(p: &[f32], y: &[f32]) -> [f64; 2] {
        const LANES: usize = 8;
        let (mut e, mut l) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        let (p8, p_rest) = p.as_chunks::<LANES>();
        let (y8, y_rest) = y.as_chunks::<LANES>();
        for (p, y) in p8.iter().zip(y8) {
            for k in 0..LANES {
                let (p, y) = (f64::from(p[k]), f64::from(y[k]));
                e[k] += (p - y) * (p - y);
                l[k] += y * y;
            }
        }
        for (k, (&p, &y)) in p_rest.iter().zip(y_rest).enumerate() {
            let (p, y) = (f64::from(p), f64::from(y));
            e[k] += (p - y) * (p - y);
            l[k] += y * y;
        }
        [e.iter().sum(), l.iter().sum()]
    }

    /// `d = s·(p − y)`.
    fn pull_p<F>(s: f32, p: &[f32], y: &[f32], d: &mut [f32]) {
        for (d, (&p, &y)) in d.iter_mut().zip(p.iter().zip(y)) {
            *d = s * (p - y);
        }
    }

    /// `d = −(s·(p − y) + t·y)`.
    fn pull_y<F>(s: f32, t: f32, p: &[f32], y: &[f32], d: &mut [f32]) {
        for (d, (&p, &y)) in d.iter_mut().zip(p.iter().zip(y)) {
            *d = -(s * (p - y) + t * y);
        }
    }
}
