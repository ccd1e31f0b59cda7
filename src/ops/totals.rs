//! How sums in f64 are laid over threads: the launches of `kernels/common/totals.cuh`, whose numbers these are.

use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Variant};
use crate::error::Result;
use crate::ops::launch::{blocks, length, short, wide};
use crate::tensor::{Dtype, Spec, Tensor};

/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Packs that a thread of a team adds at least, where there are so many: as many are under way at once.
const PACKS: usize = 4;
/// Sums of an earlier stage that a thread adds before they are worth more blocks.
const AGAIN: usize = 64;
/// Rows that a thread adds at least along an axis, where there are so many.
const ROWS: usize = 8;
/// Threads side by side along the axis behind a long one that is summed, at least: enough for whole cache lines.
const SIDE: usize = 32;
/// The same for sums of an earlier stage, of which there are a few hundred: more threads add them, so two stages are enough.
const SIDE_AGAIN: usize = 8;

/// What is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Numbers {
    /// Numbers of a tensor (or of several, the widest of this type).
    Of(Dtype),
    /// Sums in f64 of an earlier stage.
    Sums,
}

/// Memory for `n` sums in f64 between two launches.
pub(super) fn sums(gpu: &Gpu, n: usize) -> Result<Tensor> {
    gpu.scratch(Spec::new(Dtype::I32, [n, 2])?)
}

/// Blocks that keep the device busy.
fn worth(gpu: &Gpu) -> usize {
    gpu.driver().info().processors as usize * 8
}

/// Stretches of rows, each summed by a team of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowTeams {
    rows: usize,
    n: usize,
    stretch: usize,
    stretches: usize,
    lanes: usize,
}

impl RowTeams {
    /// Over `rows` rows of `n` numbers.
    pub(super) fn new(gpu: &Gpu, numbers: Numbers, rows: usize, n: usize) -> RowTeams {
        RowTeams::over(worth(gpu), gpu.warp() as usize, numbers, rows, n)
    }

    fn over(blocks: usize, warp: usize, numbers: Numbers, rows: usize, n: usize) -> RowTeams {
        // A team within a warp for short rows, a block or several for long ones.
        let (each, short, least) = match numbers {
            Numbers::Of(dtype) => (PACKS * wide(dtype), 4 * PACKS * wide(dtype), THREADS * PACKS * wide(dtype)),
            Numbers::Sums => (PACKS, 2 * PACKS, THREADS * AGAIN),
        };
        if n <= warp * short {
            let lanes = n.div_ceil(each).max(1).next_power_of_two().min(warp);
            return RowTeams { rows, n, stretch: n, stretches: 1, lanes };
        }
        let stretches = blocks.div_ceil(rows.max(1)).clamp(1, n.div_ceil(least));
        // Stretches of aligned rows are aligned.
        let stretch = n.div_ceil(stretches).next_multiple_of(16);
        RowTeams { rows, n, stretch, stretches: n.div_ceil(stretch), lanes: THREADS }
    }

    /// How many sums there are.
    pub(super) fn items(&self) -> usize {
        self.rows * self.stretches
    }

    /// Stretches of a row.
    pub(super) fn stretches(&self) -> usize {
        self.stretches
    }

    /// Threads of a team, as an argument.
    pub(super) fn lanes<'a>(&self, op: &str) -> Result<Arg<'a>> {
        Ok(Arg::I32(short(op, "lanes", self.lanes)?))
    }

    /// A team for every item.
    pub(super) fn launch(&self, op: &str) -> Result<Launch> {
        let each = THREADS / self.lanes;
        Ok(Launch::linear(blocks(op, "rows", self.items().div_ceil(each))?, THREADS as u32))
    }

    /// The lengths: rows, n, stretch, stretches, lanes.
    pub(super) fn args<'a>(&self, op: &str) -> Result<[Arg<'a>; 5]> {
        let [rows, n, stretch, stretches] =
            [("rows", self.rows), ("numbers", self.n), ("numbers", self.stretch), ("stretches", self.stretches)]
                .map(|(axis, n)| length(op, axis, n));
        Ok([rows?, n?, stretch?, stretches?, self.lanes(op)?])
    }
}

/// Sums along the middle one of three axes, by stretches of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct AxisTeams {
    axes: [usize; 3],
    stretch: usize,
    stretches: usize,
    lanes: usize,
    tiles: usize,
}

impl AxisTeams {
    fn over(blocks: usize, numbers: Numbers, axes: [usize; 3]) -> AxisTeams {
        let [outer, n, inner] = axes;
        let columns = outer * inner;
        let (pack, least) = match numbers {
            Numbers::Of(dtype) => (wide(dtype), SIDE),
            Numbers::Sums => (2, SIDE_AGAIN),
        };
        let side = (THREADS / (n / ROWS).max(1)).next_power_of_two().clamp(least, THREADS);
        let lanes = columns.div_ceil(pack).max(1).next_power_of_two().min(side);
        let tiles = columns.div_ceil(lanes * pack);
        let most = n.div_ceil(THREADS / lanes * ROWS).max(1);
        let stretch = n.div_ceil(blocks.div_ceil(tiles.max(1)).clamp(1, most)).max(1);
        AxisTeams { axes, stretch, stretches: n.div_ceil(stretch), lanes, tiles }
    }

    fn launch(&self, op: &str) -> Result<Launch> {
        Ok(Launch::linear(blocks(op, "tiles", self.tiles.saturating_mul(self.stretches))?, THREADS as u32))
    }

    fn args<'a>(&self, op: &str) -> Result<Vec<Arg<'a>>> {
        let lengths = self.axes.into_iter().chain([self.stretch, self.stretches]);
        let mut args = lengths.map(|n| length(op, "elements", n)).collect::<Result<Vec<_>>>()?;
        args.push(Arg::I32(short(op, "lanes", self.lanes)?));
        Ok(args)
    }
}

/// One launch on the way from a tensor to its sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    /// Along the last axis.
    Rows(RowTeams),
    /// Along one with others behind it.
    Axis(AxisTeams),
}

impl Pass {
    /// How many sums it leaves.
    fn len(&self) -> usize {
        match self {
            Pass::Rows(teams) => teams.items(),
            Pass::Axis(teams) => teams.axes[0] * teams.stretches * teams.axes[2],
        }
    }
}

/// Neighbouring axes of one fate: their common length, and whether they are kept.
pub(super) type Dim = (usize, bool);

/// The kernels of sums over some axes: of a tensor's numbers, and again of sums of an earlier stage.
#[derive(Clone, Copy, Debug)]
pub(super) struct SumKernels {
    pub(super) rows: &'static Kernel,
    pub(super) axis: &'static Kernel,
    pub(super) rows_again: &'static Kernel,
    pub(super) axis_again: &'static Kernel,
}

/// The passes over numbers with axes `dims`: the innermost axis that is summed first, its stretches until one is left.
fn passes(blocks: usize, warp: usize, mut numbers: Numbers, dims: &[Dim]) -> Vec<Pass> {
    let (mut dims, mut passes) = (dims.to_vec(), Vec::new());
    if dims.iter().all(|d| d.1) {
        // Nothing is summed: every number is a sum of one.
        dims.push((1, false));
    }
    while let Some(at) = dims.iter().rposition(|d| !d.1) {
        let product = |d: &[Dim]| d.iter().map(|d| d.0).product::<usize>();
        let [outer, n, inner] = [product(&dims[..at]), dims[at].0, product(&dims[at + 1..])];
        let (pass, stretches) = if inner == 1 {
            let teams = RowTeams::over(blocks, warp, numbers, outer, n);
            (Pass::Rows(teams), teams.stretches)
        } else {
            let teams = AxisTeams::over(blocks, numbers, [outer, n, inner]);
            (Pass::Axis(teams), teams.stretches)
        };
        passes.push(pass);
        numbers = Numbers::Sums;
        if stretches > 1 {
            dims[at].0 = stretches;
        } else {
            dims.remove(at);
        }
    }
    passes
}

/// Sums `x`, which has axes `dims` and a number, into `y`. The kernels' arguments: y or null, sums or null, x, lengths, `tail`.
#[allow(clippy::too_many_arguments, reason = "a launch has as many")]
pub(super) fn reduce<'a>(
    gpu: &Gpu,
    op: &str,
    kernels: SumKernels,
    variant: &Variant,
    numbers: Numbers,
    (y, x): (&dyn Operand, &dyn Operand),
    dims: &[Dim],
    tail: impl Fn() -> Result<Vec<Arg<'a>>>,
) -> Result<()> {
    let passes = passes(worth(gpu), gpu.warp() as usize, numbers, dims);
    let mut earlier: Option<Tensor> = None;
    for (i, pass) in passes.iter().enumerate() {
        let left = if i + 1 < passes.len() { Some(sums(gpu, pass.len())?) } else { None };
        let from: &dyn Operand = earlier.as_ref().map_or(x, |t| t);
        let mut args = match &left {
            Some(sums) => vec![Arg::Null, Arg::Out(sums), Arg::In(from)],
            None => vec![Arg::Out(y), Arg::Null, Arg::In(from)],
        };
        let is_first = i == 0;
        let (kernel, launch) = match pass {
            Pass::Rows(teams) => {
                args.extend(teams.args(op)?);
                (if is_first { kernels.rows } else { kernels.rows_again }, teams.launch(op)?)
            }
            Pass::Axis(teams) => {
                args.extend(teams.args(op)?);
                (if is_first { kernels.axis } else { kernels.axis_again }, teams.launch(op)?)
            }
        };
        args.extend(tail()?);
        kernel.launch_as(gpu, variant, launch, &mut args)?;
        drop(args);
        earlier = left;
    }
    Ok(())
}

/// The widest of two types.
pub(super) fn widest(a: Dtype, b: Dtype) -> Dtype {
    if a.bytes() >= b.bytes() { a } else { b }
}

/// Specialisations for a prediction in `T` and a target in `TARGET`; one 16-bit type against the other is compiled when met.
pub(super) const PAIRS: &[&[(&str, Dtype)]] = {
    use Dtype::{Bf16, F16, F32};
    &[
        &[("T", F32), ("TARGET", F32)],
        &[("T", F32), ("TARGET", Bf16)],
        &[("T", F32), ("TARGET", F16)],
        &[("T", Bf16), ("TARGET", F32)],
        &[("T", Bf16), ("TARGET", Bf16)],
        &[("T", F16), ("TARGET", F32)],
        &[("T", F16), ("TARGET", F16)],
    ]
};

/// The axes of sums of the stretches of `rows` rows that have `weights` weights in turn: one sum for each weight.
pub(super) fn of_rows(rows: usize, weights: usize, stretches: usize) -> Vec<Dim> {
    let dims = [(rows / weights.max(1), false), (weights, true), (stretches, false)];
    dims.into_iter().filter(|d| d.0 > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [Numbers; 3] = [Numbers::Of(Dtype::F32), Numbers::Of(Dtype::Bf16), Numbers::Sums];

    #[test]
    fn stretches_cover_every_number_once_and_none_is_empty() {
        for numbers in TYPES {
            for n in [1, 2, 7, 31, 512, 513, 4096, 4097, 16_385, 100_003, 40_000_000] {
                for rows in [1, 3, 130, 100_000] {
                    let t = RowTeams::over(1056, 32, numbers, rows, n);
                    assert!(t.stretches * t.stretch >= n && (t.stretches - 1) * t.stretch < n, "{t:?}");
                    assert!(t.lanes.is_power_of_two() && (t.lanes <= 32 || t.lanes == THREADS), "{t:?}");
                    assert!(t.stretches == 1 || t.lanes == THREADS, "{t:?}");
                }
                for (outer, inner) in [(1, 2), (1, 384), (20, 3), (1, 1 << 20)] {
                    let t = AxisTeams::over(1056, numbers, [outer, n, inner]);
                    assert!(t.stretches * t.stretch >= n && (t.stretches - 1) * t.stretch < n, "{t:?}");
                    assert!(t.lanes.is_power_of_two() && t.lanes <= THREADS, "{t:?}");
                }
            }
        }
    }

    #[test]
    fn long_rows_and_columns_keep_the_device_busy() {
        let f32s = Numbers::Of(Dtype::F32);
        assert!(RowTeams::over(1056, 32, f32s, 1, 1 << 24).items() > 1000);
        assert!(RowTeams::over(1056, 32, f32s, 128, 151_936).items() > 1000);
        let t = AxisTeams::over(1056, f32s, [1, 1 << 20, 8]);
        assert!(t.tiles * t.stretches > 1000, "{t:?}");
    }

    #[test]
    fn passes_end_and_leave_the_sums_that_are_kept() {
        for dims in [&[][..], &[(5, true)], &[(1 << 24, false)], &[(40, false), (3, true), (70_000, false), (2, true)]]
        {
            let kept: usize = dims.iter().filter(|d| d.1).map(|d| d.0).product();
            for numbers in TYPES {
                let found = passes(1056, 64, numbers, dims);
                assert!(found.len() < 8 && found.last().is_some_and(|p| p.len() == kept), "{dims:?}: {found:?}");
            }
        }
    }
}
