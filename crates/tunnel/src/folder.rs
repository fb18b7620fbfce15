//! Folders and files that nobody else may read.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{Error, Result};

/// Makes a folder that only we can enter.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|error| Error::io(format!("make the folder {}", path.display()), &error))
}

/// Writes a file that only we can read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    let failed = |error: io::Error| Error::io(format!("write {}", path.display()), &error);
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)
}
