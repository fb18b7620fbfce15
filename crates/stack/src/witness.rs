//! Who is told of what passes an interface.

use std::fmt;
use std::io::{self, Write};
use std::time::SystemTime;

use netyard_wire::Frame;

use crate::capture::Capture;
use crate::sniffer::{self, Detail, Direction};

/// Where what is to be read by people goes, and where what is to be kept.
pub(crate) type Output = Box<dyn Write + Send>;

/// Lines and a file, each where it was asked for. Packets pass whatever becomes of them.
#[derive(Default)]
pub(crate) struct Witness {
    lines: Option<Lines>,
    record: Option<Record>,
}

/// A line for each packet.
struct Lines {
    /// What the configuration calls the interface.
    nic: u32,
    detail: Detail,
    out: Output,
}

/// A file of what passes.
struct Record {
    name: String,
    capture: Capture<Output>,
    /// Where it is told that no more can be written.
    complaints: Output,
}

impl Witness {
    /// Tells a line for each packet of the interface that the configuration calls `nic`.
    pub(crate) fn tell(&mut self, nic: u32, detail: Detail, out: Output) {
        self.lines = Some(Lines { nic, detail, out });
    }

    /// Writes each packet to `file`, which is called `name`; `raw`: without Ethernet headers.
    ///
    /// # Errors
    /// Nothing can be written to it.
    pub(crate) fn record(
        &mut self,
        name: String,
        file: Output,
        raw: bool,
        complaints: Output,
    ) -> io::Result<()> {
        let capture = Capture::new(file, raw)?;
        self.record = Some(Record { name, capture, complaints });
        Ok(())
    }

    /// A frame passes. A file that takes no more ends there, and that is told once.
    pub(crate) fn see(&mut self, direction: Direction, frame: Frame<'_>) {
        if self.lines.is_none() && self.record.is_none() {
            return;
        }
        let now = SystemTime::now();
        if let Some(Lines { nic, detail, out }) = &mut self.lines {
            // Whoever reads the lines may go.
            let _ = writeln!(out, "{}", sniffer::line(now, *nic, direction, frame, *detail));
        }
        let Some(record) = &mut self.record else { return };
        if let Err(error) = record.capture.write(now, direction, frame) {
            let Record { name, complaints, .. } = record;
            // Whoever reads the lines may go.
            let _ = writeln!(
                complaints,
                "netyard-stack: the capture {name} ends here, the network goes on: {error}"
            );
            self.record = None;
        }
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines.as_ref().map(|lines| lines.nic);
        let record = self.record.as_ref().map(|record| &record.name);
        f.debug_struct("Witness").field("lines", &lines).field("record", &record).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    use netyard_wire::Offload;

    /// Takes so many bytes, and keeps them.
    #[derive(Clone, Default)]
    struct Disk {
        room: usize,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Disk {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.written.lock().unwrap();
            if written.len() + bytes.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            written.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_that_takes_no_more_ends_and_packets_pass() {
        let disk = |room| Disk { room, ..Disk::default() };
        let (file, told, lines) = (disk(1000), disk(10_000), disk(10_000));
        let mut witness = Witness::default();
        witness.tell(1, Detail::Usual, Box::new(lines.clone()));
        let (out, complaints) = (Box::new(file.clone()), Box::new(told.clone()));
        witness.record("trace.pcapng".to_owned(), out, false, complaints).unwrap();
        for _ in 0..20 {
            witness.see(Direction::In, Frame { bytes: &[9; 100], offload: Offload::default() });
        }
        assert!((500..=1000).contains(&file.written.lock().unwrap().len()));
        assert_eq!(told.text().lines().count(), 1, "{}", told.text());
        assert!(told.text().contains("trace.pcapng ends here"), "{}", told.text());
        assert_eq!(lines.text().lines().count(), 20);
    }

    #[test]
    fn a_file_that_takes_nothing_is_told_at_once() {
        let (file, told) = (Box::new(Disk::default()), Box::new(Disk::default()));
        assert!(Witness::default().record("x".to_owned(), file, false, told).is_err());
    }
}
