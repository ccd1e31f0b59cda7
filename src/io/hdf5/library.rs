//! Reading through libhdf5, for filters and layouts that the Rust reader does not know.
//!
//! libhdf5 works under one global lock, so threads that read ahead gain little here.

use std::ops::Range;
use std::path::Path;

use hdf5_metno::dataset::Layout;
use hdf5_metno::types::{FloatSize, TypeDescriptor};
use hdf5_metno::{Dataset, Hyperslab, Selection, SliceOrIndex};

use super::{Facts, H5Float, H5Layout};

/// An open dataset; the file is kept open with it.
#[derive(Debug)]
pub(super) struct Data {
    _file: hdf5_metno::File,
    dataset: Dataset,
}

/// libhdf5's stack of messages on one line.
fn line(what: &str, error: hdf5_metno::Error) -> String {
    let text = error.to_string();
    format!("libhdf5 cannot {what}: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
}

pub(super) fn dataset(path: &Path, name: &str) -> Result<(Data, Facts), String> {
    let file = hdf5_metno::File::open(path).map_err(|e| line("open the file", e))?;
    let dataset = file.dataset(name).map_err(|e| line("open the dataset", e))?;
    // A link to another file is followed by the library without being asked.
    if Path::new(&dataset.filename()) != path {
        return Err(format!("it lies in another file, {}, which is not followed", dataset.filename()));
    }
    let dtype = dataset.dtype().and_then(|t| t.to_descriptor()).map_err(|e| line("read the number type", e))?;
    let dtype = match dtype {
        TypeDescriptor::Float(FloatSize::U2) => H5Float::F16,
        TypeDescriptor::Float(FloatSize::U4) => H5Float::F32,
        TypeDescriptor::Float(FloatSize::U8) => H5Float::F64,
        other => return Err(format!("expected floating-point numbers, found {other}")),
    };
    let layout = match dataset.layout() {
        Layout::Contiguous => H5Layout::Contiguous,
        Layout::Compact => H5Layout::Compact,
        Layout::Chunked => {
            let filters = dataset.filters();
            if let Some(missing) = filters.iter().find(|f| !f.decode_enabled()) {
                let id = u16::try_from(missing.id()).unwrap_or(u16::MAX);
                return Err(format!(
                    "unsupported filter {}: libhdf5 finds no plugin for it (set HDF5_PLUGIN_PATH), or rewrite the file \
                     with gzip (h5repack -f GZIP=4)",
                    super::rust::filter_name(id)
                ));
            }
            let filters = filters.iter().map(|f| super::rust::filter_name(u16::try_from(f.id()).unwrap_or(u16::MAX)));
            H5Layout::Chunked { chunk: dataset.chunk().unwrap_or_default(), filters: filters.collect() }
        }
        // The library was built without a name for it where it is too old to know virtual datasets.
        _ => H5Layout::Virtual,
    };
    let facts = Facts { shape: dataset.shape(), dtype, layout };
    Ok((Data { _file: file, dataset }, facts))
}

impl Data {
    /// `ranges` lie inside the shape and `out` is as long as they say.
    pub(super) fn read(&self, facts: &Facts, ranges: &[Range<usize>], out: &mut [f32]) -> Result<(), String> {
        let slices: Vec<SliceOrIndex> = ranges.iter().map(|r| SliceOrIndex::from(r.clone())).collect();
        let selection = Selection::new(Hyperslab::from(slices));
        if facts.dtype == H5Float::F64 {
            let array = self
                .dataset
                .read_slice::<f64, _, ndarray::IxDyn>(selection)
                .map_err(|e| line("read the numbers", e))?;
            for (o, &x) in out.iter_mut().zip(array.iter()) {
                *o = x as f32;
                if o.is_infinite() && x.is_finite() {
                    return Err("an f64 value is too large for f32".to_owned());
                }
            }
            return Ok(());
        }
        let array =
            self.dataset.read_slice::<f32, _, ndarray::IxDyn>(selection).map_err(|e| line("read the numbers", e))?;
        for (o, &x) in out.iter_mut().zip(array.iter()) {
            *o = x;
        }
        Ok(())
    }
}
