//! The virtio-serial port to the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use netyard_vminit::PORT;

/// How long the host may take to tell the port's name: it needs a few messages for that.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Opens the port once it is there.
pub(crate) fn find() -> io::Result<File> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match named(Path::new("/sys/class/virtio-ports"))? {
            // The node may come a moment after the name.
            Some(device) => match OpenOptions::new().read(true).write(true).open(&device) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            },
            None if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
            None => {}
        }
        thread::sleep(PAUSE);
    }
}

/// The device of the port that has our name.
fn named(folder: &Path) -> io::Result<Option<std::path::PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = "the kernel has no driver for it (virtio_console)";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        entries => entries?,
    };
    for entry in entries.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}
