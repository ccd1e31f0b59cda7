//! The CPU path. The tokens of a sample are cut into units that fit into the cache: a unit's sums and its squares about its
//! own mean are taken in one visit, and merged afterwards (Chan, Golub, LeVeque 1979), so memory is read twice, not thrice.

use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::vector;
use crate::error::Result;
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, no_gradient, sum_rows, wrong_operands};
use crate::ops::group_norm::{Axes, GroupNorm};
use crate::ops::norm::unit_rows;
use crate::ops::operator::{Backward, Forward};

/// How the tokens of a batch are cut.
#[derive(Clone, Copy)]
struct Units {
    axes: Axes,
    /// Tokens of a unit; the last one of a sample may have fewer.
    tokens: usize,
    /// Units of a sample.
    each: usize,
}

impl Units {
    fn of(axes: Axes) -> Units {
        // A small sample is one unit, so that all samples are cut at once.
        let tokens = if axes.n * axes.c <= 32 * 1024 { axes.n } else { unit_rows(axes.c).min(axes.n) };
        Units { axes, tokens, each: axes.n.div_ceil(tokens) }
    }

    /// Numbers of a unit.
    fn width(self) -> usize {
        self.tokens * self.axes.c
    }

    /// Numbers of a sample.
    fn sample(self) -> usize {
        self.axes.n * self.axes.c
    }

    /// All units, over all samples.
    fn all(self) -> usize {
        self.each * self.axes.b
    }

    /// Rounds of equal units without a short one in between: all samples at once, or one sample each. Gives for each the
    /// first unit, how many units, and its numbers.
    fn rounds(self) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
        let (rounds, units, numbers) = if self.each == 1 {
            (1, self.axes.b, self.axes.b * self.sample())
        } else {
            (self.axes.b, self.each, self.sample())
        };
        (0..rounds).map(move |r| (r * units, units, r * numbers..(r + 1) * numbers))
    }

    /// Tokens of unit `unit`.
    fn tokens_of(self, unit: usize) -> usize {
        self.tokens.min(self.axes.n - unit % self.each * self.tokens)
    }
}

/// Each value repeated for the channels of its group.
fn by_channel(axes: Axes, by_group: impl Iterator<Item = f32>) -> Vec<f32> {
    by_group.flat_map(|v| std::iter::repeat_n(v, axes.wide())).collect()
}

wide! {
    /// `squares = squares + (x − mean)²`.
    fn add_squares<F>(x: &[f32], mean: &[f32], squares: &mut [f32]) {
        for ((s, &x), &m) in squares.iter_mut().zip(x).zip(mean) {
            *s = F::fma(x - m, x - m, *s);
        }
    }

    /// `y = (x − mean) · a + beta`.
    fn normalise<F>(x: &[f32], mean: &[f32], a: &[f32], beta: &[f32], y: &mut [f32]) {
        for ((((y, &x), &m), &a), &b) in y.iter_mut().zip(x).zip(mean).zip(a).zip(beta) {
            *y = F::fma(x - m, a, b);
        }
    }

    /// `sums = sums + dy · (x − mean) · rstd`.
    fn add_products<F>(x: &[f32], dy: &[f32], mean: &[f32], rstd: &[f32], sums: &mut [f32]) {
        for ((((s, &x), &dy), &m), &r) in sums.iter_mut().zip(x).zip(dy).zip(mean).zip(rstd) {
            *s = F::fma(dy, (x - m) * r, *s);
        }
    }

    /// `dx = (dy · gamma − average − (x − mean) · slope) · rstd`.
    fn gradient<F>(x: &[f32], dy: &[f32], gamma: &[f32], terms: &Terms, dx: &mut [f32]) {
        let coefficients = terms.average.iter().zip(&terms.slope).zip(&terms.mean).zip(&terms.rstd);
        let numbers = dx.iter_mut().zip(x).zip(dy).zip(gamma);
        for ((((dx, &x), &dy), &g), (((&average, &slope), &m), &rstd)) in numbers.zip(coefficients) {
            // dy · g is rounded before the average is taken away, as the average was: in a group of one they cancel.
            *dx = F::fma(-(x - m), slope, dy * g - average) * rstd;
        }
    }
}

/// Forward.
pub(super) fn forward(op: &GroupNorm, io: Forward<'_>) -> Result<()> {
    let ([x, gamma, beta], [y], [mean, rstd]) = (io.x, io.y, io.saved) else {
        return Err(wrong_operands("group_norm"));
    };
    let units = Units::of(op.axes(x.spec()));
    let (axes, x) = (units.axes, Floats::of(x)?);
    let (gamma, beta) = (Floats::of(gamma)?.widened(), Floats::of(beta)?.widened());
    let (mean, rstd) = (mean.f32()?, rstd.f32()?);
    statistics(op, units, x, (mean, rstd));
    let by_sample: Vec<(Vec<f32>, Vec<f32>)> = (0..axes.b)
        .map(|b| {
            let groups = b * axes.groups..(b + 1) * axes.groups;
            let mut a = by_channel(axes, rstd[groups.clone()].iter().copied());
            vector::mul_in_place(&gamma, &mut a);
            (by_channel(axes, mean[groups].iter().copied()), a)
        })
        .collect();
    let (c, width) = (axes.c, units.width());
    let mut y = Out::of(y, width)?;
    for (first, n, numbers) in units.rounds() {
        let (x, y) = (In::new(x.part(numbers.clone()), width), y.front(numbers.len()));
        map(n, 2 * TOUCH * width, [x], [y], |unit, [x], [y]| {
            for (i, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
                let (mean, a) = &by_sample[(first + unit + i) / units.each];
                x.chunks(c).zip(y.chunks_mut(c)).for_each(|(x, y)| normalise(x, mean, a, &beta, y));
            }
        });
    }
    Ok(())
}

/// Mean and rstd of every group of every sample.
fn statistics(op: &GroupNorm, units: Units, x: Floats<'_>, (mean, rstd): (&mut [f32], &mut [f32])) {
    let (axes, width) = (units.axes, units.width());
    let (g, c) = (axes.groups, axes.c);
    let (mut means, mut squares) = (vec![0.0; units.all() * g], vec![0.0; units.all() * g]);
    for (first, n, numbers) in units.rounds() {
        let part = first * g..(first + n) * g;
        let to = [Out::f32(&mut means[part.clone()], g), Out::f32(&mut squares[part], g)];
        map(n, 2 * TOUCH * width, [In::new(x.part(numbers), width)], to, |_, [x], [means, squares]| {
            let mut sums = vec![0.0; c];
            for ((x, means), squares) in x.chunks(width).zip(means.chunks_mut(g)).zip(squares.chunks_mut(g)) {
                let count = (x.len() / c * axes.wide()) as f32;
                vector::column_sums(x, c, 0, &mut sums, false);
                means.iter_mut().zip(sums.chunks(axes.wide())).for_each(|(m, s)| *m = vector::sum(s) / count);
                let by_channel = by_channel(axes, means.iter().copied());
                sums.fill(0.0);
                x.chunks(c).for_each(|x| add_squares(x, &by_channel, &mut sums));
                squares.iter_mut().zip(sums.chunks(axes.wide())).for_each(|(q, s)| *q = vector::sum(s));
            }
        });
    }
    let count = axes.count() as f64;
    for (i, (mean, rstd)) in mean.iter_mut().zip(rstd).enumerate() {
        let (sample, group) = (i / g, i % g);
        let parts = || {
            (sample * units.each..(sample + 1) * units.each).map(|u| {
                let n = (units.tokens_of(u) * axes.wide()) as f64;
                (n, f64::from(means[u * g + group]), f64::from(squares[u * g + group]))
            })
        };
        let m = parts().map(|(n, m, _)| n * m).sum::<f64>() / count;
        let variance = parts().map(|(n, part, q)| q + n * (part - m) * (part - m)).sum::<f64>() / count;
        *mean = m as f32;
        *rstd = (1.0 / (variance + f64::from(op.eps)).sqrt()) as f32;
    }
}

/// What `dx` is made of, by channel of one sample.
struct Terms {
    /// Average of h over the group.
    average: Vec<f32>,
    /// Average of h·n over the group, times rstd.
    slope: Vec<f32>,
    mean: Vec<f32>,
    rstd: Vec<f32>,
}

/// Backward.
pub(super) fn backward(op: &GroupNorm, io: Backward<'_>) -> Result<()> {
    let ([dy], [x, ..], [mean, rstd], [dx, dgamma, dbeta]) = (io.dy, io.specs, io.saved, &mut *io.dx) else {
        return Err(wrong_operands("group_norm"));
    };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let units = Units::of(op.axes(x));
    let (axes, width, dy) = (units.axes, units.width(), Floats::of(dy)?);
    let x = Floats::kept(io.x.first())?;
    let (mean, rstd) = (mean.f32()?, rstd.f32()?);
    let [dx, dgamma, dbeta] = [Out::slot(dx, width)?, Out::slot(dgamma, 1)?, Out::slot(dbeta, 1)?];
    if dx.is_none() && dgamma.is_none() {
        // Only the shift: neither x nor the statistics matter.
        if let Some(dbeta) = dbeta {
            sum_rows([dy], (axes.b * axes.n, axes.c), dbeta, |[dy], to| vector::add_in_place(dy, to));
        }
        return Ok(());
    }
    let (products, sums) = sample_sums(units, (x, dy), (mean, rstd));
    if let Some(mut dx) = dx {
        let gamma = Floats::kept(io.x.get(1))?.widened();
        let terms: Vec<Terms> = (0..axes.b).map(|b| terms(axes, b, &gamma, (mean, rstd), (&products, &sums))).collect();
        for (first, n, numbers) in units.rounds() {
            let x = [In::new(x.part(numbers.clone()), width), In::new(dy.part(numbers.clone()), width)];
            map(n, 3 * TOUCH * width, x, [dx.front(numbers.len())], |unit, [x, dy], [dx]| {
                let parts = x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width));
                for (i, ((x, dy), dx)) in parts.enumerate() {
                    let terms = &terms[(first + unit + i) / units.each];
                    let tokens = x.chunks(axes.c).zip(dy.chunks(axes.c)).zip(dx.chunks_mut(axes.c));
                    tokens.for_each(|((x, dy), dx)| gradient(x, dy, &gamma, terms, dx));
                }
            });
        }
    }
    for (to, by_sample) in [(dgamma, &products), (dbeta, &sums)] {
        if let Some(to) = to {
            sum_rows([Floats::F32(by_sample)], (axes.b, axes.c), to, |[s], to| vector::add_in_place(s, to));
        }
    }
    Ok(())
}

/// By sample and channel: Σ dy · n and Σ dy over tokens.
fn sample_sums(
    units: Units,
    (x, dy): (Floats<'_>, Floats<'_>),
    (mean, rstd): (&[f32], &[f32]),
) -> (Vec<f32>, Vec<f32>) {
    let (axes, width) = (units.axes, units.width());
    let (g, c) = (axes.groups, axes.c);
    let (mut products, mut sums) = (vec![0.0; units.all() * c], vec![0.0; units.all() * c]);
    for (first, n, numbers) in units.rounds() {
        let part = first * c..(first + n) * c;
        let to = [Out::f32(&mut products[part.clone()], c), Out::f32(&mut sums[part], c)];
        let x = [In::new(x.part(numbers.clone()), width), In::new(dy.part(numbers), width)];
        map(n, 2 * TOUCH * width, x, to, |unit, [x, dy], [products, sums]| {
            let parts = x.chunks(width).zip(dy.chunks(width));
            for (i, (x, dy)) in parts.enumerate() {
                let sample = (first + unit + i) / units.each;
                let groups = sample * g..(sample + 1) * g;
                let mean = by_channel(axes, mean[groups.clone()].iter().copied());
                let rstd = by_channel(axes, rstd[groups].iter().copied());
                let (products, sums) = (&mut products[i * c..(i + 1) * c], &mut sums[i * c..(i + 1) * c]);
                products.fill(0.0);
                x.chunks(c).zip(dy.chunks(c)).for_each(|(x, dy)| add_products(x, dy, &mean, &rstd, products));
                vector::column_sums(dy, c, 0, sums, false);
            }
        });
    }
    if units.each == 1 {
        return (products, sums);
    }
    let by_sample = |by_unit: &[f32]| {
        let mut all = vec![0.0; axes.b * c];
        for (to, units) in all.chunks_mut(c).zip(by_unit.chunks(units.each * c)) {
            vector::column_sums(units, c, 0, to, false);
        }
        all
    };
    (by_sample(&products), by_sample(&sums))
}

/// The coefficients of sample `b`, with h = dy·gamma and n = (x − mean)·rstd: dx = rstd·(h − avg(h) − n·avg(h·n)).
fn terms(
    axes: Axes,
    b: usize,
    gamma: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    (products, sums): (&[f32], &[f32]),
) -> Terms {
    let channels = b * axes.c..(b + 1) * axes.c;
    let groups = b * axes.groups..(b + 1) * axes.groups;
    let (mean, rstd) = (&mean[groups.clone()], &rstd[groups]);
    let average = |of: &[f32]| -> Vec<f32> {
        let group = |(g, s): (&[f32], &[f32])| vector::dot(g, s) / axes.count() as f32;
        gamma.chunks(axes.wide()).zip(of[channels.clone()].chunks(axes.wide())).map(group).collect()
    };
    let slopes = average(products).into_iter().zip(rstd).map(|(avg, r)| avg * r);
    Terms {
        average: by_channel(axes, average(sums).into_iter()),
        slope: by_channel(axes, slopes),
        mean: by_channel(axes, mean.iter().copied()),
        rstd: by_channel(axes, rstd.iter().copied()),
    }
}
