//! Embeddings of segments of the film as embeddings of TRs.

use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Faults, Result};
use crate::io::bytes::read_file;

/// What a TR gets that several segments cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Their mean.
    Mean,
    /// The one that comes first in the table.
    First,
    /// The one that comes last.
    Last,
    /// The greatest number of each place.
    Max,
}

/// What a TR gets that no segment covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// What the TR before has; zeros before the first segment.
    Forward,
    /// Zeros.
    Zero,
    /// What lies between its neighbours; before the first segment that one's, after the last that one's.
    Interpolate,
}

impl FromStr for Overlap {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Overlap, String> {
        match text {
            "mean" => Ok(Overlap::Mean),
            "first" => Ok(Overlap::First),
            "last" => Ok(Overlap::Last),
            "max" => Ok(Overlap::Max),
            _ => Err(format!("expected mean, first, last or max, found {text}")),
        }
    }
}

impl FromStr for Gap {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Gap, String> {
        match text {
            "forward" => Ok(Gap::Forward),
            "zero" => Ok(Gap::Zero),
            "interpolate" => Ok(Gap::Interpolate),
            _ => Err(format!("expected forward, zero or interpolate, found {text}")),
        }
    }
}

/// Start and end of every segment in seconds, from a table of two columns: `start,end`, with or without a line of names.
///
/// # Errors
/// [`Error::Data`] with every line that is no pair of numbers, or whose end does not come after its start.
pub fn read_segments(path: &Path) -> Result<Vec<[f64; 2]>> {
    let show = path.display();
    let bytes = read_file(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Error::data(format!("{show}: expected a table as text, found bytes that are no UTF-8")))?;
    let mut faults = Faults::new();
    let mut segments = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let cells: Vec<&str> = line.split([',', ';', '\t']).map(str::trim).collect();
        let numbers: Vec<Option<f64>> = cells.iter().take(2).map(|c| c.trim_matches('"').parse().ok()).collect();
        match *numbers.as_slice() {
            [Some(start), Some(end)] if start >= 0.0 && end > start && end < 1e7 => segments.push([start, end]),
            [None, None] if i == 0 => {}
            _ => faults.push(format!(
                "{show}: line {}: expected start and end in seconds, the end after the start, found {}",
                i + 1,
                line.chars().take(60).collect::<String>()
            )),
        }
        if faults.len() >= 20 {
            break;
        }
    }
    if segments.is_empty() && faults.is_empty() {
        faults.push(format!("{show}: expected at least one segment, found none"));
    }
    faults.into_result(Error::Data)?;
    Ok(segments)
}

/// The embedding of every TR, `[trs, dim]`: a segment covers the TRs ⌊start/tr⌋ to ⌈end/tr⌉ − 1.
pub(super) fn by_tr(
    segments: &[[f64; 2]],
    embeddings: &[f32],
    dim: usize,
    (trs, tr): (usize, f64),
    (overlap, gap): (Overlap, Gap),
) -> Vec<f32> {
    let mut covering: Vec<Vec<usize>> = vec![Vec::new(); trs];
    for (i, [start, end]) in segments.iter().enumerate() {
        let (from, to) = ((start / tr) as usize, (end / tr).ceil() as usize);
        covering.iter_mut().take(to).skip(from).for_each(|list| list.push(i));
    }
    let of = |i: usize| embeddings.chunks_exact(dim.max(1)).nth(i).unwrap_or_default();
    let mut out = vec![0.0_f32; trs * dim];
    for (row, list) in out.chunks_exact_mut(dim.max(1)).zip(&covering) {
        let chosen: &[usize] = match (overlap, list.as_slice()) {
            (Overlap::First, [first, ..]) => std::slice::from_ref(first),
            (Overlap::Last, [.., last]) => std::slice::from_ref(last),
            (_, all) => all,
        };
        join(row, chosen.iter().map(|&i| of(i)), overlap);
    }
    let known: Vec<usize> = (0..trs).filter(|&t| covering.get(t).is_some_and(|l| !l.is_empty())).collect();
    for t in (0..trs).filter(|t| known.binary_search(t).is_err()) {
        fill(&mut out, dim, t, &known, gap);
    }
    out
}

fn join<'a>(row: &mut [f32], chosen: impl ExactSizeIterator<Item = &'a [f32]>, overlap: Overlap) {
    let count = chosen.len().max(1) as f64;
    let mut sums = vec![0.0_f64; row.len()];
    for (n, embedding) in chosen.enumerate() {
        for (sum, &x) in sums.iter_mut().zip(embedding) {
            let x = f64::from(x);
            *sum = match overlap {
                Overlap::Max if n > 0 => sum.max(x),
                Overlap::Max => x,
                Overlap::Mean | Overlap::First | Overlap::Last => *sum + x / count,
            };
        }
    }
    row.iter_mut().zip(&sums).for_each(|(x, sum)| *x = *sum as f32);
}

/// Fills TR `t`, which no segment covers; `known` are those that one covers.
fn fill(out: &mut [f32], dim: usize, t: usize, known: &[usize], gap: Gap) {
    let after = known.partition_point(|&k| k < t);
    let before = after.checked_sub(1).and_then(|i| known.get(i)).copied();
    let next = known.get(after).copied();
    let row = |at: usize| out.get(at * dim..(at + 1) * dim).unwrap_or_default();
    let numbers: Vec<f32> = match (gap, before, next) {
        (Gap::Zero, _, _) | (_, None, None) | (Gap::Forward, None, _) => return,
        (Gap::Forward, Some(from), _) | (Gap::Interpolate, Some(from), None) | (Gap::Interpolate, None, Some(from)) => {
            row(from).to_vec()
        }
        (Gap::Interpolate, Some(from), Some(to)) => {
            let share = (t - from) as f32 / (to - from) as f32;
            row(from).iter().zip(row(to)).map(|(a, b)| a + (b - a) * share).collect()
        }
    };
    out.iter_mut().skip(t * dim).zip(numbers).for_each(|(x, y)| *x = y);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: [[f64; 2]; 3] = [[1.5, 4.0], [3.0, 4.5], [9.0, 10.0]];
    const EMBEDDINGS: [f32; 6] = [1.0, 10.0, 3.0, 0.0, 5.0, 8.0];

    fn column(place: usize, overlap: Overlap, gap: Gap) -> Vec<f32> {
        let all = by_tr(&SEGMENTS, &EMBEDDINGS, 2, (8, 1.5), (overlap, gap));
        all.into_iter().skip(place).step_by(2).collect()
    }

    #[test]
    fn segments_cover_every_tr_that_they_touch() {
        // Segments cover the TRs 1 and 2, 2, and 6.
        assert_eq!(column(0, Overlap::Mean, Gap::Forward), [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 5.0, 5.0]);
        assert_eq!(column(1, Overlap::First, Gap::Zero), [0.0, 10.0, 10.0, 0.0, 0.0, 0.0, 8.0, 0.0]);
        assert_eq!(column(1, Overlap::Last, Gap::Zero)[2], 0.0);
        assert_eq!(column(1, Overlap::Max, Gap::Zero)[2], 10.0);
        assert_eq!(column(0, Overlap::Mean, Gap::Interpolate), [1.0, 1.0, 2.0, 2.75, 3.5, 4.25, 5.0, 5.0]);
        assert!(by_tr(&[], &[], 2, (3, 1.5), (Overlap::Mean, Gap::Interpolate)).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn tables_have_a_line_of_names_or_none_and_bad_lines_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.csv");
        std::fs::write(&path, "Start Time (s),End Time (s),Scene\n0, 1.5,\"a\"\n\n1.5;3;b\n").unwrap();
        assert_eq!(read_segments(&path).unwrap(), [[0.0, 1.5], [1.5, 3.0]]);
        std::fs::write(&path, "0,1\n5,3\nx,y\n-1,2\n3\nnan,4\n").unwrap();
        let error = read_segments(&path).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 5, "{error}");
        assert!(error.contains("line 2: expected start and end in seconds, the end after the start, found 5,3"));
        std::fs::write(&path, "start,end\n").unwrap();
        assert!(read_segments(&path).unwrap_err().to_string().ends_with("expected at least one segment, found none"));
    }
}
