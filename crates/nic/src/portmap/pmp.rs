//! Messages of NAT-PMP (RFC 6886). Numbers are in network order, lifetimes in seconds.

use std::net::Ipv4Addr;

use super::{Transport, Wanted};

/// The port of gateways (section 3.1); PCP's too.
pub const PORT: u16 = super::pcp::PORT;

const VERSION: u8 = 0;
const RESPONSE: u8 = 0x80;
const ADDRESS: u8 = 0;

const fn opcode(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => 1,
        Transport::Tcp => 2,
    }
}

/// What a gateway said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its external address.
    Address(Ipv4Addr),
    /// A mapping.
    Mapped {
        /// The external port.
        external_port: u16,
        /// Seconds.
        lifetime: u32,
    },
    /// No, by this result code (section 3.5).
    Refused(u16),
}

/// Asks for the external address (section 3.2).
#[must_use]
pub const fn address() -> [u8; 2] {
    [VERSION, ADDRESS]
}

/// Asks for a mapping (section 3.3), or with a lifetime of 0 gives it back (section 3.4).
#[must_use]
pub fn map(wanted: &Wanted) -> Vec<u8> {
    let lifetime = wanted.seconds();
    let external = if lifetime == 0 { 0 } else { wanted.external_port };
    let mut bytes = vec![VERSION, opcode(wanted.transport), 0, 0];
    bytes.extend(wanted.port.to_be_bytes());
    bytes.extend(external.to_be_bytes());
    bytes.extend(lifetime.to_be_bytes());
    bytes
}

/// What a gateway answers that tells its external address and maps nothing; `None`: nothing, to what is no
/// request.
#[must_use]
pub fn answer(request: &[u8], external: Ipv4Addr) -> Option<Vec<u8>> {
    const UNSUPPORTED_OPCODE: u8 = 5;
    let [VERSION, opcode, ..] = request else { return None };
    let result = if *opcode == ADDRESS { 0 } else { UNSUPPORTED_OPCODE };
    let mut bytes = vec![VERSION, RESPONSE | opcode, 0, result, 0, 0, 0, 0];
    bytes.extend(external.octets());
    Some(bytes)
}

/// Reads the answer to [`address`]; `None`: it is none.
#[must_use]
pub fn read_address(bytes: &[u8]) -> Option<Answer> {
    let result = read_header(bytes, ADDRESS)?;
    if result != 0 {
        return Some(Answer::Refused(result));
    }
    let address: [u8; 4] = *bytes.get(8..)?.first_chunk()?;
    Some(Answer::Address(address.into()))
}

/// Reads the answer to [`map`]; `None`: it is none, or another mapping's.
#[must_use]
pub fn read_map(bytes: &[u8], wanted: &Wanted) -> Option<Answer> {
    let result = read_header(bytes, opcode(wanted.transport))?;
    if result != 0 {
        return Some(Answer::Refused(result));
    }
    let [p0, p1, e0, e1, lifetime @ ..] = bytes.get(8..)? else { return None };
    if u16::from_be_bytes([*p0, *p1]) != wanted.port {
        return None;
    }
    Some(Answer::Mapped {
        external_port: u16::from_be_bytes([*e0, *e1]),
        lifetime: u32::from_be_bytes(*lifetime.first_chunk()?),
    })
}

/// The result code of a response.
fn read_header(bytes: &[u8], opcode: u8) -> Option<u16> {
    let [version, operation, r0, r1, ..] = bytes else { return None };
    // Eight bytes are all that an error has.
    let is_ours = *version == VERSION && *operation == RESPONSE | opcode && bytes.len() >= 8;
    is_ours.then(|| u16::from_be_bytes([*r0, *r1]))
}

/// What a result code means (section 3.5).
#[must_use]
pub const fn meaning(code: u16) -> &'static str {
    match code {
        1 => "another version is spoken",
        2 => "not authorised",
        3 => "its own network is not there",
        4 => "it has no more room",
        5 => "mapping is not supported",
        _ => "an unknown error",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn wanted(seconds: u64) -> Wanted {
        Wanted {
            transport: Transport::Tcp,
            port: 4000,
            external_port: 5000,
            lifetime: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn requests_are_laid_out_as_the_rfc_has_it() {
        assert_eq!(map(&wanted(600)), [0, 2, 0, 0, 0x0F, 0xA0, 0x13, 0x88, 0, 0, 2, 88]);
        let back = map(&wanted(0));
        assert_eq!(back[6..], [0; 6], "the external port of what is given back is 0");
    }

    #[test]
    fn answers_are_read_and_those_of_others_are_not() {
        let address = [0, 0x80, 0, 0, 0, 0, 0, 9, 203, 0, 113, 1];
        assert_eq!(read_address(&address), Some(Answer::Address([203, 0, 113, 1].into())));
        let refused = [0, 0x80, 0, 3, 0, 0, 0, 9];
        assert_eq!(read_address(&refused), Some(Answer::Refused(3)));
        let mapped = [0, 0x82, 0, 0, 0, 0, 0, 9, 0x0F, 0xA0, 0x13, 0x89, 0, 0, 1, 44];
        let expected = Answer::Mapped { external_port: 5001, lifetime: 300 };
        assert_eq!(read_map(&mapped, &wanted(600)), Some(expected));
        assert_eq!(read_map(&mapped, &Wanted { port: 4001, ..wanted(600) }), None);
        assert_eq!(read_address(&mapped), None);
        let external = [203, 0, 113, 1].into();
        let told = answer(&super::address(), external).unwrap();
        assert_eq!(read_address(&told), Some(Answer::Address(external)));
        let refused = answer(&map(&wanted(600)), external).unwrap();
        assert_eq!(read_map(&refused, &wanted(600)), Some(Answer::Refused(5)));
        for length in 0..mapped.len() {
            assert_eq!(read_map(&mapped[..length], &wanted(600)), None, "cut at {length}");
        }
    }
}
