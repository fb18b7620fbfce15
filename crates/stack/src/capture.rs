//! What passes an interface, as a file in pcapng (draft-ietf-opsawg-pcapng).

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use netyard_wire::{Features, Frame, Offload, ethernet, fit};

use crate::sniffer::Direction;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// How the byte order is told.
const ORDER: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET and LINKTYPE_RAW.
const ETHERNET: u16 = 1;
const RAW: u16 = 101;
/// Options: none follow; resolution of timestamps; flags of a packet.
const END: u16 = 0;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
/// Timestamps are nanoseconds: ten to the minus ninth.
const NANOSECONDS: [u8; 4] = [9, 0, 0, 0];

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
        // Section: byte order, version 1.0, length unknown.
        let version = [1, 0, 0, 0].as_slice();
        out.write_all(&block(SECTION, &[&ORDER.to_le_bytes(), version, &[0xff; 8]]))?;
        let link = if raw { RAW } else { ETHERNET };
        let resolution = option(RESOLUTION, 1, NANOSECONDS);
        let end = END.to_le_bytes();
        let parts: [&[u8]; 6] = [&link.to_le_bytes(), &[0; 2], &[0; 4], &resolution, &end, &[0; 2]];
        out.write_all(&block(INTERFACE, &parts))?;
        out.flush()?;
        Ok(Self { out, raw, scratch: Vec::new() })
    }

    /// Writes a frame, its checksum completed. What is cut later is written whole, as it passes here.
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
        let (out, raw) = (&mut self.out, self.raw);
        let mut written = Ok(());
        let completed = fit(whole, Features::NONE, &mut self.scratch, &mut |frame| {
            let skip = if raw { ethernet::HEADER_LEN } else { 0 };
            let bytes = frame.bytes.get(skip..).unwrap_or_default();
            written = out.write_all(&packet(at, direction, bytes));
        });
        completed.map_err(io::Error::other)?;
        written?;
        self.out.flush()
    }
}

fn packet(at: SystemTime, direction: Direction, bytes: &[u8]) -> Vec<u8> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
    let [a, b, c, d, e, f, g, h] = nanoseconds;
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let padding = [0; 3];
    let padding = padding.get(..bytes.len().next_multiple_of(4) - bytes.len()).unwrap_or_default();
    let way = match direction {
        Direction::In => 1,
        Direction::Out => 2,
    };
    let flags = option(FLAGS, 4, [way, 0, 0, 0]);
    let end = END.to_le_bytes();
    // Interface 0, the upper half of the time first.
    let (high, low) = ([e, f, g, h], [a, b, c, d]);
    let parts: [&[u8]; 10] =
        [&[0; 4], &high, &low, &len, &len, bytes, padding, &flags, &end, &[0; 2]];
    block(PACKET, &parts)
}

/// An option with a value of up to four bytes.
fn option(code: u16, len: u16, value: [u8; 4]) -> [u8; 8] {
    let ([c0, c1], [l0, l1], [a, b, c, d]) = (code.to_le_bytes(), len.to_le_bytes(), value);
    [c0, c1, l0, l1, a, b, c, d]
}

/// A block: kind, length, body, length once more.
fn block(kind: u32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let len = u32::try_from(body.len().saturating_add(12)).unwrap_or(u32::MAX).to_le_bytes();
    [&kind.to_le_bytes(), &len, body.as_slice(), &len].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_file_is_right_to_the_byte() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, false).unwrap();
        let at = UNIX_EPOCH + Duration::from_nanos(0x1_0000_0002);
        let frame = Frame { bytes: &[9; 14], offload: Offload::default() };
        capture.write(at, Direction::Out, frame).unwrap();
        let section = [
            10, 13, 13, 10, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255,
            255, 255, 255, 255, 28, 0, 0, 0,
        ];
        let interface =
            [1, 0, 0, 0, 32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let packet = [
            &[6, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0][..],
            &[14, 0, 0, 0, 14, 0, 0, 0],
            &[9; 14],
            &[0, 0, 2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0],
        ];
        let wanted = [&section[..], &interface, &[32, 0, 0, 0], &packet.concat()].concat();
        assert_eq!(file, wanted);
    }
}
