//! Files in memory.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use crate::call;

/// An empty file in memory, writable and without a name in any folder; it goes with its last
/// descriptor. `name` is what `/proc` shows.
///
/// # Errors
/// Out of descriptors.
pub fn file(name: &CStr) -> io::Result<File> {
    // SAFETY: a C string that outlives the call; the kernel only reads it.
    call::own(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) }).map(File::from)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn it_holds_what_was_written() {
        let mut file = file(c"test").unwrap();
        file.write_all(b"text").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}
