//! Archives of the cpio kind that the kernel unpacks as its first file system: "newc", described in
//! the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// File types of `st_mode`.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Everything starts at a multiple of this, bytes.
const ALIGNMENT: usize = 4;

/// An archive that grows.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    /// What is in it: folders and files.
    paths: BTreeSet<PathBuf>,
    /// The last inode number.
    inode: u32,
}

/// Why something cannot be put into an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CpioError {
    /// The path is not absolute, or not plain.
    #[error("its path cannot be in an archive")]
    Path,
    /// 4 GiB and more.
    #[error("it is too large for an archive")]
    Size,
}

impl Archive {
    /// Adds a folder and those that it is in, once.
    pub(super) fn folder(&mut self, path: &Path) -> Result<(), CpioError> {
        let name = relative(path)?;
        let mut folder = PathBuf::new();
        for part in name.components() {
            folder.push(part);
            if self.paths.insert(folder.clone()) {
                self.entry(folder.as_os_str(), FOLDER | 0o755, 2, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file, and the folders that it is in, once. `mode` is its permissions.
    pub(super) fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), CpioError> {
        let name = relative(path)?;
        if let Some(folder) = path.parent() {
            self.folder(folder)?;
        }
        if !self.paths.insert(name.to_owned()) {
            return Ok(());
        }
        self.entry(name.as_os_str(), FILE | (mode & 0o7777), 1, bytes)
    }

    /// The archive, to its end.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, CpioError> {
        self.inode = 0;
        self.entry(OsStr::new(TRAILER), 0, 1, &[])?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        name: &OsStr,
        mode: u32,
        links: u32,
        bytes: &[u8],
    ) -> Result<(), CpioError> {
        let size = u32::try_from(bytes.len()).map_err(|_| CpioError::Size)?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| CpioError::Path)?;
        self.inode += 1;
        // Inode, mode, user, group, links, time, size, device of the file and the one that it
        // stands for (major and minor each), size of the name with its NUL, checksum.
        let numbers = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08X}").bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(bytes);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// The path as it stands in an archive: without the first `/`.
fn relative(path: &Path) -> Result<&Path, CpioError> {
    let name = path.strip_prefix("/").map_err(|_| CpioError::Path)?;
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(name) } else { Err(CpioError::Path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and bytes of each entry, read independently of how they were written.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let number = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size) = (number(1), usize::try_from(number(6)).unwrap());
            let name_size = usize::try_from(number(11)).unwrap();
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn files_come_after_their_folders_which_come_once() {
        let mut archive = Archive::default();
        archive.file(Path::new("/init"), 0o755, b"#!").unwrap();
        archive.file(Path::new("/usr/lib/a.so"), 0o644, b"12345").unwrap();
        archive.file(Path::new("/usr/lib/b.so"), 0o644, b"").unwrap();
        archive.folder(Path::new("/usr/bin")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let entries = entries(&bytes);
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        let expected =
            ["init", "usr", "usr/lib", "usr/lib/a.so", "usr/lib/b.so", "usr/bin", TRAILER];
        assert_eq!(names, expected);
        assert_eq!((entries[0].1, entries[0].2.as_slice()), (0o100_755, b"#!".as_slice()));
        assert_eq!((entries[1].1, entries[3].1), (0o040_755, 0o100_644));
        assert_eq!(entries[3].2, b"12345");
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["relative", "/a/../b", ""] {
            let mut archive = Archive::default();
            assert_eq!(archive.file(Path::new(path), 0o644, b""), Err(CpioError::Path), "{path}");
        }
    }
}
