//! Sound from WAV files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use hound::{SampleFormat, WavReader};

use crate::error::{Error, Result};

/// A sound with its channels averaged.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Samples a second.
    pub rate: u32,
    /// Samples, full scale is 1.
    pub samples: Vec<f32>,
}

/// Reads integers of 8 to 32 bits or f32, any number of channels.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened; [`Error::Data`] if it is no such WAV file, is cut short or holds numbers that
/// are not finite.
pub fn read(path: &Path) -> Result<Sound> {
    let fault = |fault: String| Error::data(format!("{}: {fault}", path.display()));
    let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !kind.is_file() {
        return Err(fault("expected a WAV file, found a folder, a pipe or a device".to_owned()));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let malformed = |e: hound::Error| {
        let e = e.to_string();
        fault(format!("expected a WAV file of PCM or f32, found none that can be read ({})", e.to_lowercase()))
    };
    let mut reader = WavReader::new(BufReader::with_capacity(1 << 18, file)).map_err(malformed)?;
    let spec = reader.spec();
    let channels = usize::from(spec.channels);
    if channels == 0 || spec.sample_rate == 0 {
        return Err(fault("expected at least one channel and one sample a second, found none".to_owned()));
    }
    let expected = reader.duration() as usize;
    // A header may promise any length; the file's own is what can be there.
    let bytes = u64::from(reader.len()) * u64::from(spec.bits_per_sample.div_ceil(8));
    if bytes > kind.len() {
        return Err(fault(format!(
            "expected {bytes} bytes of samples, found a file of {}: it is cut short",
            kind.len()
        )));
    }
    let scale = 1.0 / f64::from(1_u32 << (u32::from(spec.bits_per_sample).clamp(1, 32) - 1));
    let ends =
        |e: hound::Error| fault(format!("cannot read its samples: {}: it is cut short", e.to_string().to_lowercase()));
    let mut samples = Vec::with_capacity(expected);
    let (mut sum, mut left) = (0.0_f64, channels);
    let mut push = |x: f64| {
        sum += x;
        left -= 1;
        if left == 0 {
            samples.push((sum / channels as f64) as f32);
            (sum, left) = (0.0, channels);
        }
    };
    match spec.sample_format {
        SampleFormat::Int => {
            for sample in reader.samples::<i32>() {
                push(f64::from(sample.map_err(ends)?) * scale);
            }
        }
        SampleFormat::Float => {
            for sample in reader.samples::<f32>() {
                push(f64::from(sample.map_err(ends)?));
            }
        }
    }
    if samples.len() != expected {
        return Err(fault(format!("expected {expected} samples, found {}: it is cut short", samples.len())));
    }
    if let Some(at) = samples.iter().position(|x| !x.is_finite()) {
        return Err(fault(format!("expected finite samples, found another at sample {at}")));
    }
    Ok(Sound { rate: spec.sample_rate, samples })
}

/// Writes samples as f32, one channel, whole or not at all.
///
/// # Errors
/// [`Error::Data`] if the file exists and must not be replaced; [`Error::Io`] if the system refuses.
pub fn write(path: &Path, existing: crate::io::atomic::Existing, sound: &Sound) -> Result<()> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: sound.rate,
        bits_per_sample: 32,
        sample_format: SampleFormat::Float,
    };
    crate::io::atomic::write_atomic(path, existing, |file| {
        let refused = |e: hound::Error| Error::io("write", path)(std::io::Error::other(e));
        let mut writer = hound::WavWriter::new(file, spec).map_err(refused)?;
        for &x in &sound.samples {
            writer.write_sample(x).map_err(refused)?;
        }
        writer.finalize().map_err(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::atomic::Existing;

    #[test]
    fn channels_are_averaged_and_full_scale_is_1() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        for (bits, full) in [(8_u16, 128_i32), (16, 1 << 15), (24, 1 << 23)] {
            let spec = hound::WavSpec {
                channels: 2,
                sample_rate: 8000,
                bits_per_sample: bits,
                sample_format: SampleFormat::Int,
            };
            let mut writer = hound::WavWriter::create(&path, spec).unwrap();
            for x in [full / 2, full / 4, -full, -full, 0, full / 2] {
                writer.write_sample(x).unwrap();
            }
            writer.finalize().unwrap();
            let sound = read(&path).unwrap();
            assert_eq!((sound.rate, sound.samples.as_slice()), (8000, [0.375, -1.0, 0.25].as_slice()), "{bits} bits");
        }
        let sound = Sound { rate: 22_050, samples: vec![0.5, -0.25] };
        write(&path, Existing::Replace, &sound).unwrap();
        assert_eq!(read(&path).unwrap(), sound);
    }

    #[test]
    fn what_is_no_sound_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        write(&path, Existing::Replace, &Sound { rate: 8000, samples: vec![0.0; 100] }).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for (bytes, part) in [
            (whole[..whole.len() - 9].to_vec(), "cut short"),
            (b"RIFF".to_vec(), "found none that can be read"),
            (b"ID3\x04 this is an mp3 and no wav at all, so nothing".to_vec(), "found none that can be read"),
            (Vec::new(), "found none that can be read"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        }
        write(&path, Existing::Replace, &Sound { rate: 8000, samples: vec![0.0, f32::NAN] }).unwrap();
        assert!(read(&path).unwrap_err().to_string().ends_with("found another at sample 1"));
    }
}
