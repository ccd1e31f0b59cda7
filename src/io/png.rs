//! Pictures of red, green and blue bytes.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, Encoder, Limits, Transformations};

use crate::error::{Error, Result};
use crate::io::atomic::{Existing, write_atomic};

/// No picture has longer sides.
const MAX_SIDE: u32 = 1 << 14;

/// A picture, rows from the top, 3 bytes a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Red, green and blue of every pixel.
    pub rgb: Vec<u8>,
}

/// Reads a PNG of any kind; grey becomes three equal colours, 16 bits become 8, transparency is left out.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened; [`Error::Data`] if it is no PNG, is damaged, or has a side above 16,384.
pub fn read(path: &Path) -> Result<Picture> {
    let fault = |fault: String| Error::data(format!("{}: {fault}", path.display()));
    let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !kind.is_file() {
        return Err(fault("expected a PNG file, found a folder, a pipe or a device".to_owned()));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let malformed = |e: png::DecodingError| fault(format!("expected a PNG file: {}", e.to_string().to_lowercase()));
    let mut decoder = Decoder::new_with_limits(BufReader::new(file), Limits { bytes: 1 << 30 });
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(malformed)?;
    let (width, height) = (reader.info().width, reader.info().height);
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(fault(format!("expected at most {MAX_SIDE} pixels each way, found {width} x {height}")));
    }
    let size = reader.output_buffer_size().ok_or_else(|| fault("is too large for this machine".to_owned()))?;
    let mut bytes = vec![0; size];
    let info = reader.next_frame(&mut bytes).map_err(malformed)?;
    let channels = info.color_type.samples();
    let rgb = bytes
        .chunks_exact(channels)
        .flat_map(|pixel| match *pixel {
            [r, g, b, ..] => [r, g, b],
            [grey, ..] => [grey; 3],
            [] => [0; 3],
        })
        .take(width as usize * height as usize * 3)
        .collect();
    Ok(Picture { height: height as usize, width: width as usize, rgb })
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// [`Error::Shape`] if there are more or fewer bytes than pixels; [`Error::Data`] if the file exists and must not be
/// replaced; [`Error::Io`] if the system refuses.
pub fn write(path: &Path, existing: Existing, picture: &Picture) -> Result<()> {
    let bytes = encode(picture).map_err(|e| Error::shape(format!("{}: {e}", path.display())))?;
    write_atomic(path, existing, |file| file.write_all(&bytes).map_err(Error::io("write", path)))
}

/// A picture as the bytes of a PNG.
///
/// # Errors
/// [`Error::Shape`] if there are more or fewer bytes than pixels, or a side is longer than 16,384.
pub fn encode(picture: &Picture) -> Result<Vec<u8>> {
    let (height, width) = (picture.height, picture.width);
    let side = |n: usize| u32::try_from(n).ok().filter(|n| (1..=MAX_SIDE).contains(n));
    let (Some(h), Some(w), true) = (side(height), side(width), height * width * 3 == picture.rgb.len()) else {
        let found = picture.rgb.len();
        return Err(Error::shape(format!(
            "picture: expected 3 x {height} x {width} bytes and sides of 1 to {MAX_SIDE}, found {found} bytes"
        )));
    };
    let mut bytes = Vec::new();
    let refused = |e: png::EncodingError| Error::shape(format!("picture: {e}"));
    let mut encoder = Encoder::new(&mut bytes, w, h);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(refused)?;
    writer.write_image_data(&picture.rgb).map_err(refused)?;
    writer.finish().map_err(refused)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_a_cut_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let picture = Picture { height: 3, width: 5, rgb: (0..45).map(|k| (k * 5) as u8).collect() };
        write(&path, Existing::Refuse, &picture).unwrap();
        assert_eq!(read(&path).unwrap(), picture);
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 20, 50, whole.len() - 20] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("expected a PNG file: ") && error.lines().count() == 1, "{cut}: {error}");
        }
        let bad = Picture { height: 3, width: 4, rgb: vec![0; 35] };
        assert!(write(&path, Existing::Replace, &bad).is_err());
    }

    #[test]
    fn grey_pictures_have_three_equal_colours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.png");
        let mut encoder = Encoder::new(File::create(&path).unwrap(), 2, 1);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Sixteen);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[7, 0, 255, 255]).unwrap();
        writer.finish().unwrap();
        assert_eq!(read(&path).unwrap().rgb, [7, 7, 7, 255, 255, 255]);
    }
}
