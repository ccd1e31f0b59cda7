//! Windows of a grid of tokens: who sees whom, without rolling, padding or cutting anything.

use crate::error::{Error, Result};

/// Attention inside windows of a grid of tokens, as in Swin transformers in two or three dimensions and in Aurora's: the grid is
/// rolled back by `shift`, centred in whole windows, and cut. Tokens stay where they lie; no rolled, padded or cut tensor and no
/// mask exists.
///
/// A token sees the tokens of its window. What fills a window up is no token: nothing sees it. Where an axis is shifted, tokens
/// that were not neighbours before do not see each other: on the rolled axis of `R` tokens those before `R − size`, those before
/// `R − shift` and the others are three regions; of a `closed` axis the last two are one. Numbers of tokens that share a window
/// but not a region must be finite where one of them is.
///
/// ```
/// use perfrun::ops::attention::Windows;
/// // Every second block of a stage: 4 levels, 45 latitudes, 90 longitudes whose ends meet.
/// let windows = Windows::of([4, 45, 90], [2, 6, 12], true).closed(2);
/// assert_eq!((windows.shift, windows.tokens()), ([1, 3, 6], 144));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Windows {
    /// Tokens of a sample along each axis, the last one fastest; `[1, H, W]` for images.
    pub grid: [usize; 3],
    /// Tokens of a window along each axis.
    pub size: [usize; 3],
    /// Tokens that the grid is rolled back by along each axis, fewer than `size`.
    pub shift: [usize; 3],
    /// Axes whose ends meet, as longitudes do.
    pub closed: [bool; 3],
}

/// An axis of a grid: its tokens, those of a window, the shift, whether its ends meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    grid: usize,
    size: usize,
    shift: usize,
    is_closed: bool,
}

impl Axis {
    /// Windows side by side, and places that are no token before the first one.
    fn windows(self) -> usize {
        self.grid.div_ceil(self.size)
    }

    fn front(self) -> usize {
        (self.windows() * self.size - self.grid) / 2
    }

    /// Token and region at place `at` of window `w`.
    fn token(self, w: usize, at: usize) -> Option<(usize, usize)> {
        let rolled = (w * self.size + at).checked_sub(self.front()).filter(|&r| r < self.grid)?;
        Some(((rolled + self.shift) % self.grid, self.region(rolled)))
    }

    fn region(self, rolled: usize) -> usize {
        if self.shift == 0 || rolled + self.size < self.grid {
            0
        } else if rolled + self.shift < self.grid || self.is_closed {
            1
        } else {
            2
        }
    }

    /// Pairs of tokens of the same window and region.
    fn pairs(self) -> u128 {
        let of_window = |w: usize| {
            let mut counts = [0_u128; 3];
            (0..self.size).filter_map(|at| self.token(w, at)).for_each(|(_, region)| counts[region] += 1);
            counts.iter().map(|n| n * n).sum::<u128>()
        };
        (0..self.windows()).map(of_window).sum()
    }

    /// Whether all places of all windows are tokens of one region.
    fn is_plain(self) -> bool {
        self.shift == 0 && self.grid.is_multiple_of(self.size)
    }
}

impl Windows {
    /// Windows of `size` tokens, cut from the grid as it lies or, with `is_shifted`, rolled by half a window; an axis that is not
    /// longer than a window is one window and is not rolled. No axis is closed.
    pub fn of(grid: [usize; 3], size: [usize; 3], is_shifted: bool) -> Windows {
        let is_long = |i: usize| grid[i] > size[i];
        let shift = |i: usize| if is_shifted && is_long(i) { size[i] / 2 } else { 0 };
        let axes = [0, 1, 2];
        Windows {
            grid,
            size: axes.map(|i| if is_long(i) { size[i] } else { grid[i] }),
            shift: axes.map(shift),
            closed: [false; 3],
        }
    }

    /// The same where the ends of axis `axis` meet.
    #[must_use]
    pub fn closed(mut self, axis: usize) -> Windows {
        self.closed.iter_mut().skip(axis).take(1).for_each(|closed| *closed = true);
        self
    }

    /// Places of a window.
    pub fn tokens(&self) -> usize {
        self.size.iter().product()
    }

    /// Windows of a sample.
    pub fn count(&self) -> usize {
        self.axes().map(Axis::windows).iter().product()
    }

    fn axes(&self) -> [Axis; 3] {
        [0, 1, 2].map(|i| Axis {
            grid: self.grid[i],
            size: self.size[i],
            shift: self.shift[i],
            is_closed: self.closed[i],
        })
    }

    /// Whether this cuts samples of `tokens` tokens.
    pub(super) fn check(&self, tokens: usize) -> Result<()> {
        let Windows { grid, size, shift, .. } = self;
        let all = grid.iter().try_fold(1_usize, |n, &g| n.checked_mul(g));
        if all != Some(tokens) {
            return Err(Error::argument(format!(
                "attention: windows: grid: expected a product of N={tokens} tokens, found {grid:?}"
            )));
        }
        if (0..3).any(|i| size[i] == 0 || size[i] > grid[i].max(1)) {
            return Err(Error::argument(format!(
                "attention: windows: size: expected 1 to {grid:?} along each axis, found {size:?}; Windows::of fits them"
            )));
        }
        if (0..3).any(|i| shift[i] >= size[i]) {
            return Err(Error::argument(format!(
                "attention: windows: shift: expected less than size {size:?} along each axis, found {shift:?}"
            )));
        }
        Ok(())
    }

    /// Pairs of tokens of a sample that see each other.
    pub(super) fn pairs(&self) -> u128 {
        self.axes().map(Axis::pairs).iter().product()
    }

    /// Whether every token sees all places of its window.
    pub(super) fn is_plain(&self) -> bool {
        self.axes().iter().all(|axis| axis.is_plain())
    }

    /// Token and region at place `at` of window `window`, both counted row by row.
    pub(super) fn token(&self, window: usize, at: usize) -> Option<(usize, usize)> {
        let (mut window, mut at, mut stride) = (window, at, 1);
        let (mut token, mut region) = (0, 0);
        for axis in self.axes().iter().rev() {
            let (here, of) = axis.token(window % axis.windows(), at % axis.size)?;
            (window, at) = (window / axis.windows(), at / axis.size);
            token += here * stride;
            region = region * 3 + of;
            stride *= axis.grid;
        }
        Some((token, region))
    }

    /// The tokens that see each other, as lists of token and place in the window: what a list's tokens see is the list.
    pub(super) fn groups(&self) -> Vec<Vec<(usize, usize)>> {
        let mut all = Vec::new();
        for window in 0..self.count() {
            let mut regions: Vec<Vec<(usize, usize)>> = vec![Vec::new(); 27];
            for at in 0..self.tokens() {
                if let Some((token, region)) = self.token(window, at) {
                    regions[region].push((token, at));
                }
            }
            all.extend(regions.into_iter().filter(|r| !r.is_empty()));
        }
        all
    }

    /// As `Windows` of kernels/common/windows.cuh: of each axis tokens, tokens of a window, shift, places before the first token,
    /// windows, whether it is closed; then whether every token sees all of its window.
    pub(super) fn bytes(windows: Option<&Windows>) -> Vec<u8> {
        let axes = windows.map(Windows::axes);
        let each = |f: fn(Axis) -> usize| axes.map_or([0; 3], |axes| axes.map(f));
        let fields: [fn(Axis) -> usize; 6] =
            [|a| a.grid, |a| a.size, |a| a.shift, Axis::front, Axis::windows, |a| usize::from(a.is_closed)];
        let is_plain = windows.is_none_or(Windows::is_plain);
        let numbers = fields.into_iter().flat_map(each).chain([usize::from(!is_plain)]);
        numbers.flat_map(|n| i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masked pairs of Aurora's windows, padding among them, as its own code counts them.
    #[test]
    fn hidden_pairs_are_those_of_aurora() {
        let cases = [
            ([4, 4, 8], [2, 2, 3], 1016),
            ([4, 2, 4], [2, 2, 3], 368),
            ([4, 1, 2], [2, 2, 3], 8),
            ([4, 180, 360], [2, 6, 12], 9_797_760),
            ([4, 45, 90], [2, 6, 12], 1_185_624),
        ];
        for (grid, size, hidden) in cases {
            let windows = Windows::of(grid, size, true).closed(2);
            let n = windows.tokens() as u128;
            let padding: u128 = (0..windows.count())
                .map(|w| (0..windows.tokens()).filter(|&at| windows.token(w, at).is_none()).count() as u128)
                .map(|pads| pads * pads)
                .sum();
            let all = windows.count() as u128 * n * n;
            assert_eq!(all - windows.pairs() - padding, hidden, "{grid:?}");
        }
    }

    #[test]
    fn every_token_is_in_one_group() {
        for windows in [
            Windows::of([1, 5, 7], [1, 3, 4], true),
            Windows::of([4, 3, 5], [2, 2, 3], false),
            Windows::of([3, 6, 4], [2, 6, 2], true).closed(2),
        ] {
            let groups = windows.groups();
            let mut tokens: Vec<usize> = groups.iter().flatten().map(|t| t.0).collect();
            tokens.sort_unstable();
            assert!(tokens.iter().copied().eq(0..windows.grid.iter().product()), "{windows:?}");
            assert_eq!(groups.iter().map(|g| (g.len() * g.len()) as u128).sum::<u128>(), windows.pairs());
        }
    }
}
