//! Writing through the crate `hdf5-writer`, which plans a whole file in memory.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use hdf5_writer::{
    DatasetBuilder, FILTER_DEFLATE, FILTER_SHUFFLE, FilterDescription, Hdf5Builder, Hdf5Writer, WriteOptions,
};

use crate::error::{Error, Result};
use crate::io::atomic::{Existing, write_atomic};

/// How a dataset is to lie in its file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum H5Storage {
    /// One run of bytes, which is read fastest.
    #[default]
    Contiguous,
    /// Blocks of this shape, deflated.
    Gzip {
        /// The lengths of a block's axes.
        chunk: Vec<usize>,
        /// Deflate's level, 0 (stored) to 9 (smallest).
        level: u32,
        /// Whether bytes of equal significance are put together first, which floating-point numbers compress better by.
        shuffle: bool,
    },
}

/// Writes a file with one little-endian f32 dataset, whole or not at all.
///
/// Needs about as much memory as the file has bytes before compression, beside `values`.
///
/// # Errors
/// [`Error::Argument`] if `shape`, `values` and `storage` do not fit one another; [`Error::Data`] if the file exists and
/// must not be replaced; [`Error::Io`] if the system refuses.
pub fn write_f32(
    path: &Path,
    existing: Existing,
    name: &str,
    shape: &[usize],
    values: &[f32],
    storage: &H5Storage,
) -> Result<()> {
    let plan_error = |e: hdf5_writer::Error| Error::argument(format!("{}: {name}: {e}", path.display()));
    let lengths: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    let mut dataset = DatasetBuilder::typed_with_order::<f32>(name, lengths, hdf5_writer::ByteOrder::LittleEndian)
        .data(values)
        .map_err(plan_error)?;
    if let H5Storage::Gzip { chunk, level, shuffle } = storage {
        if *level > 9 {
            return Err(Error::argument(format!("{}: gzip level: expected 0 to 9, found {level}", path.display())));
        }
        dataset = dataset.chunked(chunk.iter().map(|&d| d as u64).collect::<Vec<_>>());
        if *shuffle {
            let client_data = vec![size_of::<f32>() as u32];
            dataset = dataset.filter(FilterDescription { id: FILTER_SHUFFLE, name: None, client_data });
        }
        dataset = dataset.filter(FilterDescription { id: FILTER_DEFLATE, name: None, client_data: vec![*level] });
    }
    let plan = Hdf5Builder::new().dataset(dataset).into_plan().map_err(plan_error)?;
    write_atomic(path, existing, |file: &mut BufWriter<File>| {
        match Hdf5Writer::new(file, WriteOptions::default()).finish(plan) {
            Ok(_) => Ok(()),
            Err(hdf5_writer::Error::Io(e)) => Err(Error::io("write", path)(e)),
            Err(e) => Err(plan_error(e)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::hdf5::{H5File, H5Float, H5Layout};

    fn storages() -> [H5Storage; 3] {
        let chunk = vec![1, 2, 3, 4];
        [
            H5Storage::Contiguous,
            H5Storage::Gzip { chunk: chunk.clone(), level: 4, shuffle: true },
            H5Storage::Gzip { chunk, level: 1, shuffle: false },
        ]
    }

    #[test]
    fn every_storage_reads_back_whole_and_by_hyperslab() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.h5");
        let shape = [3, 2, 5, 7];
        let values: Vec<f32> = (0..210).map(|i| i as f32 * 0.5).collect();
        for storage in storages() {
            write_f32(&path, Existing::Replace, "fields", &shape, &values, &storage).unwrap();
            let fields = H5File::open(&path).unwrap().dataset("fields").unwrap();
            assert_eq!((fields.shape(), fields.dtype()), (shape.as_slice(), H5Float::F32));
            assert_eq!(*fields.layout() == H5Layout::Contiguous, storage == H5Storage::Contiguous);
            assert_eq!(fields.read_all().unwrap(), values, "{storage:?}");
            let mut part = vec![0.0; 2 * 3 * 2];
            fields.read(&[1..3, 1..2, 1..4, 2..4], &mut part).unwrap();
            let expected: Vec<f32> = (1..3)
                .flat_map(|t| (1..4).flat_map(move |y| (2..4).map(move |x| (t * 70 + 35 + y * 7 + x) as f32 * 0.5)))
                .collect();
            assert_eq!(part, expected, "{storage:?}");
        }
    }

    #[test]
    fn ranges_outside_the_dataset_are_refused_in_every_storage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.h5");
        for storage in storages() {
            write_f32(&path, Existing::Replace, "fields", &[2, 2, 3, 4], &[1.0; 48], &storage).unwrap();
            let fields = H5File::open(&path).unwrap().dataset("fields").unwrap();
            let mut out = vec![0.0; 48];
            let error = fields.read(&[0..3, 0..2, 0..3, 0..4], &mut out).unwrap_err().to_string();
            assert!(error.ends_with("axis 0: expected a range within 0..2, found 0..3"), "{error}");
            let error = fields.read(&[0..2, 0..2, 0..3], &mut out).unwrap_err().to_string();
            assert!(error.ends_with("expected a range for each of 4 axes, found 3"), "{error}");
            let error = fields.read(&[0..1, 0..2, 0..3, 0..4], &mut out).unwrap_err().to_string();
            assert!(error.ends_with("expected room for 24 numbers, found 48"), "{error}");
            fields.read(&[1..1, 0..2, 0..3, 0..4], &mut []).unwrap();
        }
    }

    #[test]
    fn a_shape_that_disagrees_with_the_numbers_is_not_written() {
        let write = |storage: &H5Storage| {
            write_f32(Path::new("/nonexistent/a.h5"), Existing::Refuse, "fields", &[2, 3], &[0.0; 5], storage)
        };
        assert!(write(&H5Storage::Contiguous).is_err_and(|e| e.to_string().contains("expected 24 element(s), got 20")));
    }
}
