//! Which files belong to a split, and their `fields`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::WeatherDataConfig;
use crate::error::{Error, Result};
use crate::io::hdf5::{H5Dataset, H5File};

/// The name of the dataset in every file.
pub const FIELDS: &str = "fields";

/// A part of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is validated on while training.
    Valid,
    /// What a finished model is measured on.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Split; 3] = [Split::Train, Split::Valid, Split::Test];

    /// The folder of its files.
    pub fn folder(self, config: &WeatherDataConfig) -> &Path {
        match self {
            Split::Train => &config.train_data_path,
            Split::Valid => &config.valid_data_path,
            Split::Test => &config.test_data_path,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Valid => "valid",
            Split::Test => "test",
        })
    }
}

/// The files `*.h5` of a folder, sorted by name; hidden files are none.
///
/// # Errors
/// [`Error::Data`] if the folder is missing or holds no such file, saying what it holds instead; [`Error::Io`] if it
/// cannot be listed.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let show = folder.display();
    if !folder.exists() {
        return Err(Error::data(format!("{show}: expected a folder of *.h5 files, found nothing there")));
    }
    if !folder.is_dir() {
        return Err(Error::data(format!("{show}: expected a folder of *.h5 files, found a file")));
    }
    let mut files = Vec::new();
    let mut others = Vec::new();
    for entry in folder.read_dir().map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if path.extension().is_some_and(|e| e == "h5") { files.push(path) } else { others.push(name) }
    }
    if files.is_empty() {
        others.sort();
        others.truncate(3);
        let found = if others.is_empty() { "an empty folder".to_owned() } else { others.join(", ") };
        return Err(Error::data(format!("{show}: expected *.h5 files, found {found}")));
    }
    files.sort();
    Ok(files)
}

/// One file's fields and their shape `[time, channels, latitude, longitude]`.
#[derive(Debug)]
pub(super) struct Fields {
    pub(super) path: PathBuf,
    pub(super) data: H5Dataset,
    pub(super) shape: [usize; 4],
}

impl Fields {
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened; [`Error::Data`] if it has no four-dimensional `fields` of numbers.
    pub(super) fn open(path: &Path) -> Result<Fields> {
        let data = H5File::open(path)?.dataset(FIELDS)?;
        let &[time, channels, height, width] = data.shape() else {
            return Err(Error::data(format!(
                "{}: {FIELDS}: expected the four axes [time, channels, latitude, longitude], found the shape {:?}",
                path.display(),
                data.shape()
            )));
        };
        Ok(Fields { path: path.to_path_buf(), shape: [time, channels, height, width], data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_by_name_and_hidden_ones_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["2011.h5", "2010.h5", ".2012.h5.77.tmp", ".hidden.h5", "readme.txt", "2009.h5"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = list(folder.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["2009.h5", "2010.h5", "2011.h5"]);
    }

    #[test]
    fn a_folder_without_files_says_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let fault = |path: &Path| list(path).unwrap_err().to_string();
        assert!(fault(folder.path()).ends_with("expected *.h5 files, found an empty folder"));
        let file = folder.path().join("2010.nc");
        std::fs::write(&file, b"").unwrap();
        assert!(fault(folder.path()).ends_with("expected *.h5 files, found 2010.nc"));
        assert!(fault(&file).ends_with("expected a folder of *.h5 files, found a file"));
        assert!(fault(&folder.path().join("none")).ends_with("found nothing there"));
    }
}
