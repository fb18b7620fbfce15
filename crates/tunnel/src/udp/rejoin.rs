//! Makes super-packets of their segments again, of those that came.

use netyard_wire::ip::IpPacket;
use netyard_wire::{Offload, Part, VNET_HEADER_LEN, part};

use super::datagram::{Segment, partial_of};
use crate::frame::{MAX_PACKET_LEN, NOTHING_LEFT, Record};

/// Segments of one super-packet in a row, joined. Nothing waits here for what has not come: who reads from
/// the socket flushes when there is no more.
#[derive(Debug, Default)]
pub struct Rejoin {
    /// Room for a virtio-net header, the headers of the super-packet, payloads.
    buffer: Vec<u8>,
    headers_len: usize,
    part: Option<Part>,
    /// The number that comes next.
    next: u16,
}

impl Rejoin {
    /// Appends a segment; false: it does not follow those that are there.
    pub fn append(&mut self, segment: &Segment<'_>) -> bool {
        let Segment { number, is_last, transport, size, headers, payload } = *segment;
        let number = u16::from(number);
        match &mut self.part {
            None => {
                let begun =
                    Part { transport: transport.into(), size, first: number, last: is_last };
                self.part = Some(begun);
                self.headers_len = headers.len();
                self.buffer.clear();
                self.buffer.extend_from_slice(&NOTHING_LEFT);
                self.buffer.extend_from_slice(headers);
            }
            Some(part) => {
                let before = self.buffer.get(VNET_HEADER_LEN..).unwrap_or_default();
                let follows = number == self.next
                    && !part.last
                    && (part.transport, part.size) == (transport.into(), size)
                    && before.get(..self.headers_len) == Some(headers)
                    && self.buffer.len() + payload.len() <= MAX_PACKET_LEN;
                if !follows {
                    return false;
                }
                part.last = is_last;
            }
        }
        self.buffer.extend_from_slice(payload);
        self.next = number + 1;
        true
    }

    /// Hands out the packet that there is, if there is any; `None`: its headers are none.
    pub fn flush(&mut self, deliver: &mut dyn FnMut(Option<&Record<'_>>)) {
        let Some(wanted) = self.part.take() else { return };
        let made = self.buffer.get_mut(VNET_HEADER_LEN..).and_then(|it| part(it, wanted).ok());
        let Some(offload) = made else { return deliver(None) };
        if let Some(header) = self.buffer.first_chunk_mut() {
            *header = offload.encode();
        }
        if let Some((header, bytes)) = self.buffer.split_first_chunk() {
            deliver(Some(&Record { header, bytes, joined: Some(&self.buffer) }));
        }
    }
}

/// Hands out a packet that came in one datagram, with the header it needs.
pub fn with_header(is_partial: bool, bytes: &[u8], deliver: &mut dyn FnMut(Option<&Record<'_>>)) {
    if !is_partial {
        return deliver(Some(&Record { header: &NOTHING_LEFT, bytes, joined: None }));
    }
    let packet = IpPacket::parse_bare(bytes).ok();
    let Some(checksum) = packet.and_then(|packet| partial_of(&packet)) else {
        return deliver(None);
    };
    let header = Offload { checksum, gso: None }.encode();
    deliver(Some(&Record { header: &header, bytes, joined: None }));
}

#[cfg(test)]
mod tests {
    use netyard_wire::tcp::{Flags, Segment as TcpSegment};
    use netyard_wire::udp::Datagram;

    use super::*;
    use crate::packets::{tcp, udp};
    use crate::udp::datagram::{Content, Cut};

    const ENDS: [[&str; 2]; 2] =
        [["10.1.1.3:1000", "10.1.1.5:80"], ["[fd00::3]:1000", "[fd00::5]:80"]];

    /// What comes of a packet, whose datagrams `arrives` lets through: header and bytes.
    fn carry(
        (bytes, offload): &(Vec<u8>, Offload),
        arrives: impl Fn(usize) -> bool,
    ) -> Vec<(Offload, Vec<u8>)> {
        let packet = IpPacket::parse_bare(bytes).unwrap();
        let cut = Cut::of(offload, &packet, 1500).unwrap();
        let (mut rejoin, mut came) = (Rejoin::default(), Vec::new());
        let mut deliver = |record: Option<&Record<'_>>| {
            let record = record.unwrap();
            let (offload, _) = record.packet().unwrap();
            if let Some(joined) = record.joined {
                assert_eq!(joined, [&record.header[..], record.bytes].concat());
            }
            came.push((offload, record.bytes.to_vec()));
        };
        for (number, content) in cut.contents(bytes).enumerate() {
            let mut datagram = Vec::new();
            content.put(&mut datagram);
            let read = Content::parse(&datagram);
            assert_eq!(read, Some(content));
            match content {
                _ if !arrives(number) => {}
                Content::Segment(segment) => {
                    if !rejoin.append(&segment) {
                        rejoin.flush(&mut deliver);
                        assert!(rejoin.append(&segment));
                    }
                }
                Content::Packet { is_partial, bytes } => {
                    with_header(is_partial, bytes, &mut deliver);
                }
                other => panic!("{other:?}"),
            }
        }
        rejoin.flush(&mut deliver);
        rejoin.flush(&mut |_| panic!("nothing is left"));
        came
    }

    #[test]
    fn what_came_whole_is_what_was_sent() {
        for ends in ENDS {
            for packet in [
                tcp(ends, Flags::ACK | Flags::PSH | Flags::CWR, 60_000, 1348),
                tcp(ends, Flags::ACK, 1348, 1348),
                tcp(ends, Flags::ACK, 0, 1348),
                udp(ends, 20_000, 1200),
                udp(ends, 1200, 1200),
                udp(ends, 0, 1200),
            ] {
                let (bytes, offload) = packet.clone();
                assert_eq!(carry(&packet, |_| true), [(offload, bytes)]);
            }
        }
    }

    #[test]
    fn a_hole_costs_no_more_than_what_was_in_it() {
        for ends in ENDS {
            let whole = tcp(ends, Flags::ACK | Flags::FIN | Flags::CWR, 10_500, 1000);
            let headers = usize::from(whole.1.gso.unwrap().header_len);
            let parts = carry(&whole, |number| !matches!(number, 0 | 4 | 6));
            let lens: Vec<_> = parts.iter().map(|(_, bytes)| bytes.len() - headers).collect();
            assert_eq!(lens, [3000, 1000, 3500]);
            let begins = [1000, 5000, 7000];
            for ((offload, bytes), begin) in parts.iter().zip(begins) {
                let packet = IpPacket::parse_bare(bytes).unwrap();
                let segment = TcpSegment::parse(&packet, offload.checksum).unwrap();
                assert_eq!(segment.seq.0, 1 + begin);
                let begin = headers + usize::try_from(begin).unwrap();
                assert_eq!(segment.payload, &whole.0[begin..begin + segment.payload.len()]);
                let is_last = begin == headers + 7000;
                assert_eq!(segment.flags.intersects(Flags::FIN), is_last);
                assert!(!segment.flags.intersects(Flags::CWR), "the first had it");
                assert_eq!(offload.gso.is_some(), segment.payload.len() > 1000);
            }
            let whole = udp(ends, 5000, 1000);
            let parts = carry(&whole, |number| number != 1);
            let lens: Vec<_> = (parts.iter())
                .map(|(offload, bytes)| {
                    let packet = IpPacket::parse_bare(bytes).unwrap();
                    Datagram::parse(&packet, offload.checksum).unwrap().payload.len()
                })
                .collect();
            assert_eq!(lens, [1000, 3000]);
        }
    }

    #[test]
    fn segments_of_two_packets_are_not_mixed() {
        let [one, two] = [1000, 2000].map(|mss| tcp(ENDS[0], Flags::ACK, 6000, mss));
        let mut rejoin = Rejoin::default();
        let [one, two] = [&one, &two].map(|(bytes, offload)| {
            let packet = IpPacket::parse_bare(bytes).unwrap();
            let cut = Cut::of(offload, &packet, 3000).unwrap();
            let contents = cut.contents(bytes).map(|content| match content {
                Content::Segment(segment) => segment,
                other => panic!("{other:?}"),
            });
            contents.collect::<Vec<_>>()
        });
        assert!(rejoin.append(&one[0]));
        assert!(!rejoin.append(&one[2]), "one is missing");
        assert!(!rejoin.append(&two[1]), "of another size");
        assert!(rejoin.append(&one[1]));
        let other = Segment { headers: &[0x45; 20], ..one[2] };
        assert!(!rejoin.append(&other), "other headers");
        rejoin.flush(&mut |record| assert!(record.is_some()));
        assert!(rejoin.append(&other));
        rejoin.flush(&mut |record| assert!(record.is_none(), "those are no headers"));
    }
}
