//! What passes an interface, as a file in pcapng.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use netyard_wire::pcapng::{self, Link, Packet, Way};
use netyard_wire::{Features, Frame, Offload, ethernet, fit};

use crate::sniffer::Direction;

/// A file of one interface.
#[derive(Debug)]
pub struct Capture<W> {
    out: W,
    /// Packets have no Ethernet header.
    raw: bool,
    scratch: Vec<u8>,
}

impl<W: Write> Capture<W> {
    /// Begins a file; `raw`: the Ethernet headers of frames say nothing, and are left out.
    ///
    /// # Errors
    /// What the writer says.
    pub fn new(mut out: W, raw: bool) -> io::Result<Self> {
        out.write_all(&pcapng::section())?;
        let link = if raw { Link::Ip } else { Link::Ethernet };
        out.write_all(&pcapng::interface(link, ""))?;
        out.flush()?;
        Ok(Self { out, raw, scratch: Vec::new() })
    }

    /// Writes a frame, its checksum completed; where that cannot be, as it is. What is cut later is written whole,
    /// as it passes here.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(
        &mut self,
        at: SystemTime,
        direction: Direction,
        frame: Frame<'_>,
    ) -> io::Result<()> {
        let whole = Frame { offload: Offload { gso: None, ..frame.offload }, ..frame };
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let way = match direction {
            Direction::In => Way::In,
            Direction::Out => Way::Out,
        };
        let skip = if self.raw { ethernet::HEADER_LEN } else { 0 };
        let mut written = Ok(());
        let mut write = |frame: Frame<'_>| {
            let bytes = frame.bytes.get(skip..).unwrap_or_default();
            let packet = Packet { interface: 0, nanoseconds, way, missed: 0, bytes };
            written = self.out.write_all(&pcapng::packet(&packet));
        };
        if fit(whole, Features::NONE, &mut self.scratch, &mut write).is_err() {
            write(frame);
        }
        written?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use netyard_wire::Checksum;

    #[test]
    fn packets_follow_their_interface() {
        for (raw, skip) in [(false, 0), (true, 14)] {
            let mut file = Vec::new();
            let mut capture = Capture::new(&mut file, raw).unwrap();
            let at = UNIX_EPOCH + Duration::from_nanos(0x1_0000_0002);
            let frame = Frame { bytes: &[9; 40], offload: Offload::default() };
            capture.write(at, Direction::Out, frame).unwrap();
            let packet = Packet {
                interface: 0,
                nanoseconds: 0x1_0000_0002,
                way: Way::Out,
                missed: 0,
                bytes: &[9; 40][skip..],
            };
            assert!(file.ends_with(&pcapng::packet(&packet)));
            assert!(file.starts_with(&pcapng::section()));
        }
    }

    #[test]
    fn a_frame_whose_checksum_cannot_be_completed_is_written_as_it_is() {
        let mut file = Vec::new();
        let checksum = Checksum::Partial { start: 60_000, offset: 60_000 };
        let offload = Offload { checksum, gso: None };
        let frame = Frame { bytes: &[9; 40], offload };
        Capture::new(&mut file, false).unwrap().write(UNIX_EPOCH, Direction::In, frame).unwrap();
        assert!(file.windows(40).any(|bytes| bytes == [9; 40]));
    }
}
