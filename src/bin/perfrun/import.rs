//! `perfrun data import`: a Sherlock data set from what a laboratory has.

use std::path::PathBuf;

use clap::Args;
use perfrun::data::sherlock::import::{Frames, Gap, Import, Overlap};
use perfrun::error::Error;

use crate::outcome::Outcome;
use crate::output::{self, Progress};

/// Flags of `perfrun data import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seconds from one volume of the scanner to the next
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    tr: f64,
    /// A folder of *.png frames, mean frames as .npy [TRs, rows, columns, 3], raw rgb24 bytes in any other file, or - for
    /// standard input: ffmpeg -i film -f rawvideo -pix_fmt rgb24 -
    #[arg(long, value_name = "PATH")]
    video: PathBuf,
    /// Frames a second
    #[arg(long, value_name = "N", default_value_t = 25.0)]
    fps: f64,
    /// Size of a raw frame
    #[arg(long, value_name = "WxH", default_value = "640x360", value_parser = size)]
    frame_size: [usize; 2],
    /// Size of the frames that are kept
    #[arg(long, value_name = "WxH", default_value = "160x90", value_parser = size)]
    size: [usize; 2],
    /// The sound: .wav, or .npy [TRs, mels] of dB
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    /// Mel bands
    #[arg(long, value_name = "N", default_value_t = 128)]
    mels: usize,
    /// Embeddings .npy, one row a segment; one row a TR without --segments
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Start and end of every segment in seconds, .csv
    #[arg(long, value_name = "FILE")]
    segments: Option<PathBuf>,
    /// What a TR gets that several segments cover: mean, first, last or max
    #[arg(long, value_name = "RULE", default_value = "mean")]
    overlap: Overlap,
    /// What a TR gets that no segment covers: forward, zero or interpolate
    #[arg(long, value_name = "RULE", default_value = "forward")]
    gap: Gap,
    /// A brain: .nii, .nii.gz, or .npy [TRs, voxels]; once a subject, in their order
    #[arg(long, value_name = "FILE", required = true)]
    fmri: Vec<PathBuf>,
    /// The voxels to keep, as one NIfTI volume; without it, those that change in half the subjects
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Replace a data set that is there
    #[arg(long)]
    overwrite: bool,
}

/// `WxH` as rows and columns.
fn size(text: &str) -> Result<[usize; 2], Error> {
    let parsed = text.split_once('x').and_then(|(w, h)| Some([h.parse().ok()?, w.parse().ok()?]));
    parsed.ok_or_else(|| Error::argument(format!("expected columns x rows as 160x90, found `{text}`")))
}

impl ImportArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let video = if self.video.as_os_str() == "-" {
            Frames::Rgb24(None, self.frame_size, self.fps)
        } else if self.video.extension().is_some_and(|e| e == "npy") {
            Frames::Array(self.video)
        } else if self.video.is_dir() {
            Frames::Pictures(self.video, self.fps)
        } else {
            Frames::Rgb24(Some(self.video), self.frame_size, self.fps)
        };
        let import = Import {
            tr: self.tr,
            video,
            size: self.size,
            audio: self.audio,
            mels: self.mels,
            text: self.text,
            segments: self.segments,
            rule: (self.overlap, self.gap),
            fmri: self.fmri,
            mask: self.mask,
            overwrite: self.overwrite,
        };
        let mut progress = Progress::new("data import");
        let result = import.write(&self.out, |done, total, file| progress.set(done, total, file.display()));
        progress.finish();
        let imported = result?;
        for (what, shape) in ["video", "audio", "text"].iter().zip(&imported.stimuli) {
            output::line(format!("{what:<6} {shape:?}"))?;
        }
        output::line(format!("brains of {} voxels, TRs {:?}", imported.voxels, imported.brains))?;
        output::line(format!("wrote {}; `perfrun data validate` says what it holds", self.out.display()))?;
        Ok(Outcome::Done)
    }
}
