//! The mean frame of every TR, from pictures or from the raw bytes of a pipe.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::png;

/// Frames a second, and seconds a TR.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clock {
    /// Frames a second.
    pub fps: f64,
    /// Seconds a TR.
    pub tr: f64,
}

impl Clock {
    /// The first frame of a TR: ⌊TR·tr·fps⌋.
    fn frame(self, tr: usize) -> usize {
        (tr as f64 * self.tr * self.fps) as usize
    }

    pub(super) fn check(self) -> Result<()> {
        let has_frames = self.fps > 0.0 && self.fps <= 1000.0 && self.tr > 0.0 && self.tr * self.fps >= 1.0;
        if !has_frames {
            return Err(Error::argument(format!(
                "video: expected 0 to 1000 frames a second and at least one a TR, found {} frames a second and TRs of {} s",
                self.fps, self.tr
            )));
        }
        Ok(())
    }
}

/// Frames that are averaged as they come: only sums are kept.
pub(super) struct FrameMeans {
    clock: Clock,
    // Rows and columns of what is kept.
    size: [usize; 2],
    seen: usize,
    sums: Vec<u32>,
    out: Vec<f32>,
}

impl FrameMeans {
    pub(super) fn new(clock: Clock, size: [usize; 2]) -> FrameMeans {
        let [height, width] = size;
        FrameMeans { clock, size, seen: 0, sums: vec![0; height * width * 3], out: Vec::new() }
    }

    /// Adds the next frame: rows of red, green and blue bytes.
    pub(super) fn push(&mut self, rgb: &[u8], height: usize, width: usize) -> Result<()> {
        let small = shrink(rgb, [height, width], self.size)?;
        self.sums.iter_mut().zip(&small).for_each(|(sum, &x)| *sum += u32::from(x));
        self.seen += 1;
        let tr = self.out.len() / self.sums.len().max(1);
        let (from, to) = (self.clock.frame(tr), self.clock.frame(tr + 1));
        if self.seen == to {
            let count = f64::from((to - from) as u32) * 255.0;
            self.out.extend(self.sums.iter().map(|&sum| (f64::from(sum) / count) as f32));
            self.sums.fill(0);
        }
        Ok(())
    }

    /// The mean frames `[TRs, H, W, 3]`, 0 to 1; a last TR that is not full is left out.
    pub(super) fn finish(self) -> Vec<f32> {
        self.out
    }
}

/// Means of the area of the old pixels under each new one, rounded to whole numbers, ties to even.
fn shrink(rgb: &[u8], from: [usize; 2], to: [usize; 2]) -> Result<Vec<u8>> {
    let ([height, width], [rows, columns]) = (from, to);
    if rgb.len() != height * width * 3 {
        return Err(Error::data(format!(
            "video: expected a frame of {height} x {width} x 3 bytes, found {}",
            rgb.len()
        )));
    }
    if from == to {
        return Ok(rgb.to_vec());
    }
    if rows > height || columns > width || rows == 0 || columns == 0 {
        return Err(Error::data(format!(
            "video: expected frames of at least {rows} rows and {columns} columns, found {height} x {width}; frames are \
             made smaller, not larger"
        )));
    }
    let (down, across) = (overlaps(height, rows), overlaps(width, columns));
    let mut out = Vec::with_capacity(rows * columns * 3);
    for vertical in &down {
        for horizontal in &across {
            let mut sums = [0.0_f64; 3];
            for &(y, wy) in vertical {
                for &(x, wx) in horizontal {
                    let pixel = rgb.get((y * width + x) * 3..).unwrap_or_default();
                    sums.iter_mut().zip(pixel).for_each(|(sum, &b)| *sum += wy * wx * f64::from(b));
                }
            }
            let area = (height * width) as f64 / (rows * columns) as f64;
            // The sum of exact shares may be a hair off a tie.
            out.extend(sums.map(|sum| ((sum / area * 1e9).round() / 1e9).round_ties_even() as u8));
        }
    }
    Ok(out)
}

/// For every new pixel, the old ones that it covers and how much of each.
fn overlaps(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    let covered = |i: usize| {
        let (start, end) = (i as f64 * scale, (i + 1) as f64 * scale);
        let share = move |j: usize| (end.min((j + 1) as f64) - start.max(j as f64)).max(0.0);
        let old = start as usize..(end.ceil() as usize).min(from);
        old.map(|j| (j, share(j))).filter(|(_, w)| *w > 1e-9).collect()
    };
    (0..to).map(covered).collect()
}

/// The mean frames of a folder of PNG files, in the order of their names.
pub(super) fn from_pictures(folder: &Path, clock: Clock, size: [usize; 2]) -> Result<Vec<f32>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in folder.read_dir().map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let is_hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) && !is_hidden {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::data(format!("{}: expected frames as *.png, found none", folder.display())));
    }
    files.sort();
    let mut means = FrameMeans::new(clock, size);
    let mut first: Option<[usize; 2]> = None;
    for file in &files {
        let picture = png::read(file)?;
        let [height, width] = *first.get_or_insert([picture.height, picture.width]);
        if (picture.height, picture.width) != (height, width) {
            return Err(Error::data(format!(
                "{}: expected {height} x {width} pixels like the frames before, found {} x {}",
                file.display(),
                picture.height,
                picture.width
            )));
        }
        means.push(&picture.rgb, height, width)?;
    }
    Ok(means.finish())
}

/// The mean frames of raw bytes, `frame` = [rows, columns], 3 bytes a pixel: what `ffmpeg -f rawvideo -pix_fmt rgb24` writes.
pub(super) fn from_bytes(
    source: &mut dyn Read,
    label: &str,
    frame: [usize; 2],
    clock: Clock,
    size: [usize; 2],
) -> Result<Vec<f32>> {
    let [height, width] = frame;
    let bytes = height.checked_mul(width).and_then(|n| n.checked_mul(3)).filter(|n| (1..1 << 28).contains(n));
    let Some(bytes) = bytes else {
        return Err(Error::argument(format!(
            "video: expected a frame of 1 to 89 million pixels, found {width} x {height}"
        )));
    };
    let mut buffer = vec![0_u8; bytes];
    let mut means = FrameMeans::new(clock, size);
    loop {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
            match source.read(rest) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", label)(e)),
            }
        }
        match filled {
            0 => return Ok(means.finish()),
            n if n == bytes => means.push(&buffer, height, width)?,
            n => {
                return Err(Error::data(format!(
                    "{label}: expected whole frames of {width} x {height} x 3 = {bytes} bytes, found {n} bytes at the end: \
                     is the size of a frame right, and the format rgb24?"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_boxes_are_their_rounded_means_and_others_are_shared_by_area() {
        // 4 rows, 2 columns to 2 x 1: boxes of four pixels; 2.5 goes to the even 2.
        let rgb: Vec<u8> = [1_u8, 4, 4, 1, 10, 20, 30, 41].iter().flat_map(|&x| [x, x, 255 - x]).collect();
        assert_eq!(shrink(&rgb, [4, 2], [2, 1]).unwrap(), [2, 2, 252, 25, 25, 230]);
        // 3 columns to 2: each new one is one and a half old ones.
        let rgb: Vec<u8> = [30_u8, 60, 90].iter().flat_map(|&x| [x; 3]).collect();
        assert_eq!(shrink(&rgb, [1, 3], [1, 2]).unwrap(), [40, 40, 40, 80, 80, 80]);
        let error = shrink(&rgb, [1, 3], [2, 3]).unwrap_err().to_string();
        assert!(error.contains("found 1 x 3"), "{error}");
    }

    #[test]
    fn trs_are_the_means_of_their_frames_and_a_part_of_one_is_left_out() {
        // 2.5 frames a TR: 2, then 3.
        let clock = Clock { fps: 25.0, tr: 0.1 };
        let bytes: Vec<u8> = (0..13).flat_map(|t| [t * 10, 0, 255]).collect();
        let means = from_bytes(&mut bytes.as_slice(), "pipe", [1, 1], clock, [1, 1]).unwrap();
        let red: Vec<f32> = means.iter().step_by(3).map(|x| x * 255.0).collect();
        for (found, expected) in red.iter().zip([5.0, 30.0, 55.0, 80.0, 105.0]) {
            approx::assert_abs_diff_eq!(*found, expected, epsilon = 1e-4);
        }
        assert_eq!((red.len(), means[2]), (5, 1.0));
        let error = from_bytes(&mut &bytes[..35], "pipe", [1, 1], clock, [1, 1]).unwrap_err().to_string();
        assert!(error.contains("found 2 bytes at the end"), "{error}");
        // The published film: 37 or 38 frames.
        let clock = Clock { fps: 25.0, tr: 1.5 };
        assert_eq!((0..4).map(|i| clock.frame(i + 1) - clock.frame(i)).collect::<Vec<_>>(), [37, 38, 37, 38]);
        assert!(Clock { fps: 0.5, tr: 1.5 }.check().is_err() && Clock { fps: f64::NAN, tr: 1.5 }.check().is_err());
    }

    #[test]
    fn pictures_are_read_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [("f2.png", 30), ("f1.png", 10), (".hidden.png", 9)] {
            let picture = png::Picture { height: 1, width: 1, rgb: vec![value; 3] };
            png::write(&folder.path().join(name), crate::io::atomic::Existing::Refuse, &picture).unwrap();
        }
        let clock = Clock { fps: 1.0, tr: 1.0 };
        let means = from_pictures(folder.path(), clock, [1, 1]).unwrap();
        assert_eq!(means, [10.0 / 255.0, 10.0 / 255.0, 10.0 / 255.0, 30.0 / 255.0, 30.0 / 255.0, 30.0 / 255.0]);
        let picture = png::Picture { height: 2, width: 1, rgb: vec![0; 6] };
        png::write(&folder.path().join("f3.png"), crate::io::atomic::Existing::Refuse, &picture).unwrap();
        let error = from_pictures(folder.path(), clock, [1, 1]).unwrap_err().to_string();
        assert!(error.ends_with("f3.png: expected 1 x 1 pixels like the frames before, found 2 x 1"), "{error}");
    }
}
