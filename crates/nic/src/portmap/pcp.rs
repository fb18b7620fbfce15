//! Messages of the Port Control Protocol, version 2 (RFC 6887). Numbers are in network order, lifetimes in
//! seconds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Wanted;

/// The port of servers (section 19.1); NAT-PMP's too.
pub const PORT: u16 = 5351;

const VERSION: u8 = 2;
const RESPONSE: u8 = 0x80;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
/// Bytes of the common header (section 7).
const HEADER: usize = 24;
/// Bytes of what MAP has behind it (section 11.1).
const MAP_DATA: usize = 36;

/// Random bytes that make a mapping its client's own (section 11.1).
pub type Nonce = [u8; 12];

/// What a server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It speaks PCP (to ANNOUNCE).
    Here,
    /// A mapping.
    Mapped {
        /// The external port.
        external_port: u16,
        /// The external address.
        external: IpAddr,
        /// Seconds.
        lifetime: u32,
    },
    /// No, by this result code (section 7.4).
    Refused(u8),
}

fn header(opcode: u8, lifetime: u32, client: IpAddr) -> Vec<u8> {
    let mut bytes = vec![VERSION, opcode, 0, 0];
    bytes.extend(lifetime.to_be_bytes());
    bytes.extend(octets(client));
    bytes
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Asks whether somebody is there (section 14.1); `client` is who sends it.
#[must_use]
pub fn announce(client: IpAddr) -> Vec<u8> {
    header(ANNOUNCE, 0, client)
}

/// Asks for a mapping, or with a lifetime of 0 gives it back (sections 11.1 and 15). `external` is the
/// address that would be best.
#[must_use]
pub fn map(client: IpAddr, nonce: Nonce, wanted: &Wanted, external: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = header(MAP, wanted.seconds(), client);
    bytes.extend(nonce);
    bytes.extend([wanted.transport.number(), 0, 0, 0]);
    bytes.extend(wanted.port.to_be_bytes());
    bytes.extend(wanted.external_port.to_be_bytes());
    bytes.extend(octets(external.unwrap_or(Ipv4Addr::UNSPECIFIED).into()));
    bytes
}

/// Reads the answer to [`announce`]; `None`: it is none.
#[must_use]
pub fn read_announce(bytes: &[u8]) -> Option<Answer> {
    let result = read_header(bytes, ANNOUNCE)?;
    Some(if result == 0 { Answer::Here } else { Answer::Refused(result) })
}

/// Reads the answer to [`map`]; `None`: it is none, or another mapping's.
#[must_use]
pub fn read_map(bytes: &[u8], nonce: Nonce, wanted: &Wanted) -> Option<Answer> {
    let result = read_header(bytes, MAP)?;
    let data: &[u8; MAP_DATA] = bytes.get(HEADER..)?.first_chunk()?;
    let (given, rest) = data.split_at_checked(nonce.len())?;
    let [protocol, _, _, _, p0, p1, e0, e1, address @ ..] = rest else { return None };
    let is_ours = given == nonce
        && *protocol == wanted.transport.number()
        && u16::from_be_bytes([*p0, *p1]) == wanted.port;
    if !is_ours {
        return None;
    }
    if result != 0 {
        return Some(Answer::Refused(result));
    }
    let lifetime = u32::from_be_bytes(*bytes.get(4..8)?.first_chunk()?);
    let external = Ipv6Addr::from(*address.first_chunk::<16>()?);
    Some(Answer::Mapped {
        external_port: u16::from_be_bytes([*e0, *e1]),
        external: IpAddr::V6(external).to_canonical(),
        lifetime,
    })
}

/// The result code of a response (section 7.2). One of another version has only the code (section 9).
fn read_header(bytes: &[u8], opcode: u8) -> Option<u8> {
    let [version, operation, _, result, ..] = bytes else { return None };
    let length = bytes.len();
    let is_ours = *version == VERSION && *operation == RESPONSE | opcode;
    (is_ours && length >= HEADER && length.is_multiple_of(4)).then_some(*result)
}

/// What a result code means (section 7.4).
#[must_use]
pub const fn meaning(code: u8) -> &'static str {
    match code {
        1 => "another version is spoken",
        2 => "not authorised",
        3 => "malformed request",
        4 => "mapping is not supported",
        5 | 6 => "an option is not supported",
        7 => "its own network is not there",
        8 => "it has no more room",
        9 => "this transport is not supported",
        10 => "too many mappings already",
        11 => "the external port is not to be had",
        12 => "a NAT stands between it and this machine",
        13 => "too many peers",
        _ => "an unknown error",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Transport;
    use super::*;

    const NONCE: Nonce = [7; 12];

    fn wanted() -> Wanted {
        Wanted {
            transport: Transport::Udp,
            port: 4000,
            external_port: 5000,
            lifetime: Duration::from_secs(600),
        }
    }

    /// The answer of RFC 6887's figures 4 and 10.
    fn answer(result: u8) -> Vec<u8> {
        let mut bytes = vec![2, 0x81, 0, result, 0, 0, 1, 44, 0, 0, 0, 9];
        bytes.extend([0; 12]);
        bytes.extend(NONCE);
        bytes.extend([17, 0, 0, 0, 0x0F, 0xA0, 0x13, 0x89]);
        bytes.extend(Ipv4Addr::new(203, 0, 113, 1).to_ipv6_mapped().octets());
        bytes
    }

    #[test]
    fn requests_are_laid_out_as_the_rfc_has_it() {
        let client: IpAddr = [10, 0, 0, 2].into();
        let bytes = map(client, NONCE, &wanted(), Some(Ipv4Addr::new(1, 3, 3, 7)));
        assert_eq!(bytes.len(), 60);
        assert_eq!(bytes[..8], [2, 1, 0, 0, 0, 0, 2, 88]);
        assert_eq!(bytes[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 2]);
        assert_eq!(bytes[24..36], NONCE);
        assert_eq!(bytes[36..44], [17, 0, 0, 0, 0x0F, 0xA0, 0x13, 0x88]);
        assert_eq!(bytes[54..], [255, 255, 1, 3, 3, 7]);
        assert_eq!(announce(client).len(), 24);
    }

    #[test]
    fn answers_are_read_and_those_of_others_are_not() {
        let mapped = Answer::Mapped {
            external_port: 5001,
            external: [203, 0, 113, 1].into(),
            lifetime: 300,
        };
        assert_eq!(read_map(&answer(0), NONCE, &wanted()), Some(mapped));
        assert_eq!(read_map(&answer(8), NONCE, &wanted()), Some(Answer::Refused(8)));
        assert_eq!(read_map(&answer(0), [8; 12], &wanted()), None, "another client's");
        let tcp = Wanted { transport: Transport::Tcp, ..wanted() };
        assert_eq!(read_map(&answer(0), NONCE, &tcp), None, "another mapping's");
        assert_eq!(read_announce(&answer(0)), None, "another operation's");
        let mut here = answer(0);
        here.truncate(24);
        here[1] = 0x80;
        assert_eq!(read_announce(&here), Some(Answer::Here));
        for length in 0..answer(0).len() {
            assert_eq!(read_map(&answer(0)[..length], NONCE, &wanted()), None, "cut at {length}");
        }
    }
}
