//! What passes an interface, as text: a line for each packet.
//!
//! A frame is read once into a summary, what it is with its fields, and that is
//! written as the program wants it: for people, in three lengths, or as JSON.

mod summary;

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netyard_wire::Frame;

use self::summary::{Ends, Summary, Value};

/// Which way a frame goes, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It was received.
    In,
    /// It is sent.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// How much is told of each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// What it is, its ends, and how long its payload is.
    Brief,
    /// What matters of the rest, too: numbers and options of TCP.
    Usual,
    /// Everything: the time in seconds since 1970, hardware addresses, IP identification, hop limit,
    /// checksum.
    Full,
    /// Everything, as an object of JSON.
    Json,
}

/// What a frame is: protocol, ends, and what matters of the rest. Checksums are not looked at. A frame
/// that is cut into several later says so by `gso`.
#[must_use]
pub fn describe(frame: Frame<'_>) -> String {
    text(&Summary::of(frame), Detail::Usual)
}

/// A line about a frame that passed the interface `nic`.
#[must_use]
pub fn line(
    at: SystemTime,
    nic: u32,
    direction: Direction,
    frame: Frame<'_>,
    detail: Detail,
) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let summary = Summary::of(frame);
    match detail {
        Detail::Json => json(since, nic, direction, &summary),
        Detail::Full => {
            let time = format!("{}.{:06}", since.as_secs(), since.subsec_micros());
            format!("{time} nic {nic} {direction:<3} {}", text(&summary, detail))
        }
        Detail::Brief | Detail::Usual => {
            format!("nic {nic} {direction:<3} {}", text(&summary, detail))
        }
    }
}

fn text(summary: &Summary, detail: Detail) -> String {
    let Summary { protocol, ends, what, fields, .. } = summary;
    let mut line = (*protocol).to_owned();
    // Writing to a string does not fail.
    let _ = match ends {
        Some(Ends { source, destination }) if *protocol == "arp" => {
            write!(line, " {source} {what} {destination}")
        }
        Some(Ends { source, destination }) => write!(line, " {source} > {destination}"),
        None => Ok(()),
    };
    if *protocol != "arp" && !what.is_empty() {
        let _ = write!(line, " {what}");
    }
    for field in fields.iter().filter(|field| field.detail <= detail) {
        let _ = match &field.value {
            Value::Number(number) => write!(line, " {}={number}", field.key),
            Value::Hexadecimal(number) => write!(line, " {}={number:#06x}", field.key),
            Value::Text(text) => write!(line, " {}={text}", field.key),
            Value::Set => write!(line, " {}", field.key),
        };
    }
    line
}

/// Nothing in it needs to be escaped: names are ours, and texts are addresses and numbers.
fn json(since: Duration, nic: u32, direction: Direction, summary: &Summary) -> String {
    let Summary { protocol, ends, what, fields } = summary;
    let (seconds, microseconds) = (since.as_secs(), since.subsec_micros());
    let mut line = format!(
        "{{\"time\":{seconds}.{microseconds:06},\"nic\":{nic},\"direction\":\"{direction}\",\
         \"protocol\":\"{protocol}\""
    );
    if let Some(Ends { source, destination }) = ends {
        let _ = write!(line, ",\"source\":\"{source}\",\"destination\":\"{destination}\"");
    }
    if !what.is_empty() {
        let _ = write!(line, ",\"what\":\"{what}\"");
    }
    for field in fields {
        let _ = match &field.value {
            Value::Number(number) => write!(line, ",\"{}\":{number}", field.key),
            Value::Hexadecimal(number) => write!(line, ",\"{}\":{number}", field.key),
            Value::Text(text) => write!(line, ",\"{}\":\"{text}\"", field.key),
            Value::Set => write!(line, ",\"{}\":true", field.key),
        };
    }
    line.push('}');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use netyard_wire::arp::{Arp, Operation};
    use netyard_wire::build::{self, TcpFrame};
    use netyard_wire::ethernet;
    use netyard_wire::icmp::Icmp;
    use netyard_wire::tcp::{Flags, TcpOptions};
    use netyard_wire::{MacAddr, Offload, SeqNumber};
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn told(bytes: &[u8], offload: Offload) -> String {
        describe(Frame { bytes, offload })
    }

    #[test]
    fn packets_are_told_with_what_matters() {
        let mut bytes = Vec::new();
        let segment = TcpFrame {
            source_mac: MAC,
            destination_mac: MAC,
            source: "10.0.0.1:5000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            seq: SeqNumber(1),
            ack: SeqNumber(2),
            flags: Flags::SYN | Flags::ACK,
            window: 1000,
            options: TcpOptions {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some((5, 6)),
                ..TcpOptions::default()
            },
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        bytes.resize(segment.header_len(), 0);
        let offload = segment.emit(&mut bytes, 1460);
        let wanted = "tcp 10.0.0.1:5000 > 10.0.0.2:80 SYN|ACK seq=1 ack=2 win=1000 len=0 mss=1460 \
                      ws=7 sackok ts=5/6";
        assert_eq!(told(&bytes, offload), wanted);
        let options = TcpOptions {
            sack: [Some((SeqNumber(7), SeqNumber(9))), None, None, None],
            ..TcpOptions::default()
        };
        let segment = TcpFrame { flags: Flags::ACK, options, ..segment };
        bytes.clear();
        bytes.resize(segment.header_len() + 4000, 0);
        let offload = segment.emit(&mut bytes, 1448);
        let wanted = "tcp 10.0.0.1:5000 > 10.0.0.2:80 ACK seq=1 ack=2 win=1000 len=4000 sack=7-9 \
                      gso=1448";
        assert_eq!(told(&bytes, offload), wanted);

        let (from, to) = ("[fd00::1]:1".parse().unwrap(), "[fd00::2]:53".parse().unwrap());
        let offload = build::udp_frame(&mut bytes, MAC, MAC, from, to, 64, b"hello");
        assert_eq!(told(&bytes, offload), "udp [fd00::1]:1 > [fd00::2]:53 len=5");
        let ask = Icmp::EchoRequest { id: 3, seq: 4, data: b"xy" };
        let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let offload = build::icmp_frame(&mut bytes, MAC, MAC, from, to, 64, &ask);
        let wanted = "icmp 10.0.0.1 > 10.0.0.2 echo request id=3 seq=4 len=2";
        assert_eq!(told(&bytes, offload), wanted);
        let arp = Arp {
            operation: Operation::Request,
            sender_mac: MAC,
            sender_ip: "10.0.0.1".parse().unwrap(),
            target_mac: MAC,
            target_ip: "10.0.0.2".parse().unwrap(),
        };
        let offload = build::arp_frame(&mut bytes, MAC, MacAddr::BROADCAST, &arp);
        assert_eq!(told(&bytes, offload), "arp 10.0.0.1 asks for 10.0.0.2");
        assert_eq!(told(&bytes[..20], offload), "malformed arp-truncated");
    }

    #[test]
    fn programs_and_people_are_told_as_much_as_they_want() {
        let mut bytes = Vec::new();
        let (from, to) = ("10.0.0.1:5000".parse().unwrap(), "10.0.0.2:53".parse().unwrap());
        let other = MacAddr([2, 0, 0, 0, 0, 2]);
        let offload = build::udp_frame(&mut bytes, MAC, other, from, to, 64, b"hello");
        let at = UNIX_EPOCH + Duration::from_nanos(5_000_000_000 + 7_500);
        let told = |detail| line(at, 3, Direction::In, Frame { bytes: &bytes, offload }, detail);
        let usual = "nic 3 in  udp 10.0.0.1:5000 > 10.0.0.2:53 len=5";
        assert_eq!(told(Detail::Brief), usual);
        assert_eq!(told(Detail::Usual), usual);
        assert_eq!(
            told(Detail::Full),
            "5.000007 nic 3 in  udp 10.0.0.1:5000 > 10.0.0.2:53 len=5 ipid=0x0000 hops=64 \
             unsummed from=02:00:00:00:00:01 to=02:00:00:00:00:02"
        );
        assert_eq!(
            told(Detail::Json),
            "{\"time\":5.000007,\"nic\":3,\"direction\":\"in\",\"protocol\":\"udp\",\
             \"source\":\"10.0.0.1:5000\",\"destination\":\"10.0.0.2:53\",\"len\":5,\"ipid\":0,\
             \"hops\":64,\"unsummed\":true,\"from\":\"02:00:00:00:00:01\",\
             \"to\":\"02:00:00:00:00:02\"}"
        );
        let ask = Icmp::EchoRequest { id: 3, seq: 4, data: b"xy" };
        let (from, to) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let offload = build::icmp_frame(&mut bytes, MAC, other, from, to, 9, &ask);
        let told = line(at, 1, Direction::Out, Frame { bytes: &bytes, offload }, Detail::Full);
        let wanted =
            "nic 1 out icmp6 fd00::1 > fd00::2 echo request id=3 seq=4 len=2 hops=9 sum=0x";
        assert!(told.contains(wanted), "{told}");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..4) {
            if let (Some(field), 1..) = (bytes.get_mut(12..14), kind) {
                let kinds = [ethernet::ARP, ethernet::IPV4, ethernet::IPV6];
                field.copy_from_slice(&kinds[kind as usize - 1].to_be_bytes());
            }
            let frame = Frame { bytes: &bytes, offload: Offload::default() };
            prop_assert!(!describe(frame).is_empty());
            let told = line(UNIX_EPOCH, 1, Direction::In, frame, Detail::Json);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok(), "{}", told);
        }
    }
}
