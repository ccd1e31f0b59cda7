//! How well predicted brains correlate with measured ones, voxel by voxel over time: what a user of such a model looks at
//! first, as numbers and as a page.

use crate::data::sherlock::Recording;
use crate::data::sherlock::import::Mask;
use crate::data::sherlock::prediction::Prediction;
use crate::error::Result;
use crate::io::page::{Axis, Cell, Column, Entry, Page, Plot, Point, Series, Table};
use crate::io::png::Picture;

/// Width of a bar of the histogram, of few voxels and of many.
const BINS: [f64; 2] = [0.1, 0.02];
/// Voxels from which there are many.
const MANY: usize = 1000;
/// Voxels that the page lists.
const LISTED: usize = 20;
/// Slices of the map, at most, and how many lie side by side.
const SLICES: usize = 24;
const ACROSS: usize = 8;
/// Colours of −1, 0 and 1, ends and middle of ColorBrewer's `RdBu`; and of what is outside the mask.
const COLOURS: [[f64; 3]; 3] = [[33.0, 102.0, 172.0], [247.0, 247.0, 247.0], [178.0, 24.0, 43.0]];
const OUTSIDE: [u8; 3] = [128, 128, 128];

/// The correlations of one brain's voxels.
#[derive(Debug, Clone, PartialEq)]
pub struct BrainMap {
    /// Whose brain.
    pub whom: String,
    /// Of each voxel, over the TRs of the prediction; 0 where nothing varies.
    pub voxels: Vec<f64>,
}

impl BrainMap {
    /// Mean over voxels; 0 if there are none.
    pub fn mean(&self) -> f64 {
        self.voxels.iter().sum::<f64>() / self.voxels.len().max(1) as f64
    }

    /// The voxel in the middle of all; 0 if there are none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.voxels.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// The best voxel's; 0 if there are none.
    pub fn best(&self) -> f64 {
        self.voxels.iter().copied().max_by(f64::total_cmp).unwrap_or_default()
    }

    /// Part of the voxels whose correlation is above `r`.
    pub fn above(&self, r: f64) -> f64 {
        self.voxels.iter().filter(|v| **v > r).count() as f64 / self.voxels.len().max(1) as f64
    }
}

/// A prediction beside the brains that it is of.
#[derive(Debug)]
pub struct Correlations {
    /// The one that was asked for, then, if that was the mean of all subjects, each of them.
    pub maps: Vec<BrainMap>,
    trs: usize,
    mask: Option<Mask>,
}

impl Correlations {
    /// Of `subject`, or of the mean of all and of each.
    ///
    /// # Errors
    /// As [`Prediction::voxel_correlation`]; [`Error::Data`](crate::error::Error::Data) if the recording's mask cannot be read.
    pub fn of(prediction: &Prediction, recording: &Recording, subject: Option<usize>) -> Result<Correlations> {
        let map = |whom: String, of| -> Result<BrainMap> {
            Ok(BrainMap { whom, voxels: prediction.voxel_correlation(recording, of)? })
        };
        let mut maps = Vec::new();
        match subject {
            Some(id) => maps.push(map(format!("subject {id}"), Some(id))?),
            None => {
                maps.push(map("the mean of all subjects".to_owned(), None)?);
                for id in recording.subjects() {
                    maps.push(map(format!("subject {id}"), Some(id))?);
                }
            }
        }
        let mask = recording.mask().map(|path| Mask::read(&path)).transpose()?;
        Ok(Correlations { maps, trs: prediction.trs.len(), mask })
    }

    /// What two in a hundred voxels exceed whose prediction is noise of no memory: `2/√TRs`.
    pub fn chance(&self) -> f64 {
        2.0 / (self.trs.max(1) as f64).sqrt()
    }

    /// One HTML file that needs no network: the histogram, the map in the head if there is a mask, brains, best voxels.
    ///
    /// # Errors
    /// None but for a mask without extent.
    pub fn page(&self, title: &str, facts: &[(&str, String)]) -> Result<String> {
        let mut page = Page::new(title);
        let Some(shown) = self.maps.first() else { return Ok(page.finish()) };
        let number = |x: f64| format!("{x:.4}");
        let own = [
            ("brain", shown.whom.clone()),
            ("voxels", shown.voxels.len().to_string()),
            ("TRs", self.trs.to_string()),
            ("mean correlation", number(shown.mean())),
            ("median", number(shown.median())),
            ("best voxel", number(shown.best())),
        ];
        page.facts(&own.iter().chain(facts).cloned().collect::<Vec<_>>());
        page.paragraph(&format!(
            "Of each voxel, the correlation over time of what the model predicts from the film with what was measured. \
             Predictions that are noise without memory exceed {:.3} (2/√TRs) in two voxels of a hundred; those that are slow, as \
             brains are, exceed it more often.",
            self.chance()
        ));
        page.plot(&histogram(shown));
        if let Some(mask) = &self.mask {
            let most = shown.voxels.iter().fold(0.0_f64, |m, r| m.max(r.abs()));
            page.heading("In the head");
            page.picture(
                &format!(
                    "Slices along z from below, x to the right, y upwards: blue is {:.3}, white 0, red {most:.3}; grey lies \
                     outside the mask.",
                    -most
                ),
                &slices(mask, &shown.voxels, most),
            )?;
        }
        page.heading("Brains");
        page.table(&self.brains());
        page.heading("Best voxels");
        page.table(&best(shown, self.mask.as_ref()));
        Ok(page.finish())
    }

    fn brains(&self) -> Table {
        let columns = ["mean", "median", "best", "part above chance"].map(Column::number);
        let mut table = Table::new([vec![Column::text("brain")], columns.to_vec()].concat());
        let chance = self.chance();
        for map in &self.maps {
            let number = |x: f64| Cell::number(x, format!("{x:.4}"));
            let part = map.above(chance);
            let part = Cell::number(part, format!("{:.1} %", 100.0 * part)).with_bar(part);
            let cells = [number(map.mean()), number(map.median()), number(map.best()), part];
            table.push(Entry::new([vec![Cell::text(map.whom.clone())], cells.to_vec()].concat()));
        }
        table
    }
}

/// How many voxels correlate how much, as the outline of bars.
fn histogram(map: &BrainMap) -> Plot {
    let [few, many] = BINS;
    let width = if map.voxels.len() < MANY { few } else { many };
    let bars = (2.0 / width).round() as usize;
    let mut counts = vec![0.0_f64; bars];
    for r in &map.voxels {
        let bar = ((r + 1.0) / width) as usize;
        if let Some(count) = counts.get_mut(bar.min(bars - 1)) {
            *count += 1.0;
        }
    }
    let first = counts.iter().position(|c| *c > 0.0).unwrap_or(0);
    let end = counts.iter().rposition(|c| *c > 0.0).map_or(0, |last| last + 1);
    let edge = |bar: usize| bar as f64 * width - 1.0;
    let mut points = vec![Point::new(edge(first), 0.0)];
    for (bar, &count) in counts.iter().enumerate().take(end).skip(first) {
        points.extend([Point::new(edge(bar), count), Point::new(edge(bar + 1), count)]);
    }
    points.push(Point::new(edge(end), 0.0));
    Plot::new("Voxels by their correlation", Axis::linear("correlation over time"), Axis::linear("voxels"))
        .with(Series::curve(&map.whom, points))
        .with(Series::curve("mean", vec![Point::new(map.mean(), 0.0), Point::new(map.mean(), most(&counts))]).dashed())
}

fn most(counts: &[f64]) -> f64 {
    counts.iter().fold(0.0, |m, c| f64::max(m, *c))
}

/// The voxels that are predicted best, with their column and their place in the head.
fn best(map: &BrainMap, mask: Option<&Mask>) -> Table {
    let mut table = Table::new(["column", "x", "y", "z", "correlation"].map(Column::number));
    let mut order: Vec<(usize, f64)> = map.voxels.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (column, r) in order.into_iter().take(LISTED) {
        let whole = |n: usize| Cell::number(n as f64, n.to_string());
        let place = mask.and_then(|m| m.place(column));
        let [x, y, z] = place.map_or([Cell::none(), Cell::none(), Cell::none()], |place| place.map(whole));
        table.push(Entry::new([whole(column), x, y, z, Cell::number(r, format!("{r:.4}")).with_bar(r)]));
    }
    table
}

/// The slices that hold voxels, or as many of them evenly, in rows; colours reach from `-most` to `most`.
fn slices(mask: &Mask, voxels: &[f64], most: f64) -> Picture {
    let [nx, ny, nz] = mask.axes;
    let mut held: Vec<usize> = (0..voxels.len()).filter_map(|c| mask.place(c).map(|[_, _, z]| z)).collect();
    held.sort_unstable();
    held.dedup();
    let shown = held.len().min(SLICES);
    let slices: Vec<usize> = (0..shown).filter_map(|i| held.get(i * held.len() / shown).copied()).collect();
    let mut tile_of = vec![None; nz];
    for (tile, &z) in slices.iter().enumerate() {
        tile_of[z] = Some(tile);
    }
    let (across, down) = (shown.clamp(1, ACROSS), shown.div_ceil(ACROSS).max(1));
    let (height, width) = (down * ny, across * nx);
    let mut rgb = OUTSIDE.repeat(height * width);
    for (column, &r) in voxels.iter().enumerate() {
        let Some([x, y, z]) = mask.place(column) else { continue };
        let Some(tile) = tile_of[z] else { continue };
        let (row, col) = (tile / ACROSS * ny + ny - 1 - y, tile % ACROSS * nx + x);
        let at = 3 * (row * width + col);
        rgb[at..at + 3].copy_from_slice(&colour(if most > 0.0 { r / most } else { 0.0 }));
    }
    Picture { height, width, rgb }
}

/// The colour of a number from −1 to 1.
fn colour(x: f64) -> [u8; 3] {
    let [low, middle, high] = COLOURS;
    let (end, share) = if x < 0.0 { (low, -x) } else { (high, x) };
    let share = share.clamp(0.0, 1.0);
    [0, 1, 2].map(|i| (middle[i] + share * (end[i] - middle[i])).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(voxels: &[f64]) -> BrainMap {
        BrainMap { whom: "subject 1".into(), voxels: voxels.to_vec() }
    }

    #[test]
    fn a_brain_is_summed_up_by_its_mean_middle_and_best_voxel() {
        let brain = map(&[0.5, -0.1, 0.2, 0.0]);
        assert!((brain.mean() - 0.15).abs() < 1e-12);
        assert_eq!((brain.median(), brain.best(), brain.above(0.1)), (0.2, 0.5, 0.5));
        let nobody = map(&[]);
        assert_eq!((nobody.mean(), nobody.median(), nobody.best(), nobody.above(0.1)), (0.0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn a_page_lists_the_best_voxel_first_and_holds_no_number_that_is_none() {
        for voxels in [vec![0.25, -1.0, 0.875, 1.0], vec![0.0; 3], vec![]] {
            let page = Correlations { maps: vec![map(&voxels)], trs: 100, mask: None };
            let html = page.page("<brains>", &[("lesion", "units 1, 2".into())]).unwrap();
            assert!(html.contains("&lt;brains&gt;") && html.contains("units 1, 2") && html.contains("0.200 (2/√TRs)"));
            assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
            if voxels.len() == 4 {
                let best = html.split("Best voxels").nth(1).unwrap();
                assert!(best.find("1.0000").unwrap() < best.find("0.8750").unwrap());
            }
        }
    }

    #[test]
    fn colours_are_white_at_nothing_and_full_at_the_ends() {
        assert_eq!((colour(0.0), colour(-1.0), colour(7.0)), ([247; 3], [33, 102, 172], [178, 24, 43]));
    }
}
