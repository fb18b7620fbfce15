//! DHCPv4 (RFC 2131): the fixed part, and options as numbered strings of bytes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::write_names;
use crate::dns::Name;
use crate::{MacAddr, ParseError};

/// UDP port of servers.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

/// The shortest message that every client takes: that of BOOTP (RFC 1542 section 2.1), bytes.
pub const MIN_LEN: usize = 300;

const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Hardware type of Ethernet (RFC 1700).
const ETHERNET: u8 = 1;
/// The one flag that has a meaning: answers are to be broadcast (RFC 2131 section 2).
const BROADCAST: u8 = 0x80;

const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const END: u8 = 255;

/// Option codes (RFC 2132 unless another is named).
pub mod option {
    /// Netmask: an address.
    pub const SUBNET_MASK: u8 = 1;
    /// Addresses of routers.
    pub const ROUTER: u8 = 3;
    /// Addresses of resolvers.
    pub const DNS: u8 = 6;
    /// The client's name, without domain.
    pub const HOST_NAME: u8 = 12;
    /// The domain that the client is in.
    pub const DOMAIN_NAME: u8 = 15;
    /// Largest packet on the link, 16 bits.
    pub const MTU: u8 = 26;
    /// Broadcast address of the subnet.
    pub const BROADCAST: u8 = 28;
    /// Addresses of time servers.
    pub const NTP: u8 = 42;
    /// The address that the client wants.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// How long the address is lent, seconds, 32 bits.
    pub const LEASE_TIME: u8 = 51;
    /// The kind of message, one byte.
    pub const MESSAGE_TYPE: u8 = 53;
    /// The server's address.
    pub const SERVER: u8 = 54;
    /// Codes of the options that the client wants.
    pub const PARAMETERS: u8 = 55;
    /// Text for people, with a NAK or a DECLINE.
    pub const MESSAGE: u8 = 56;
    /// Longest message that the client takes, with IP and UDP headers, bytes, 16 bits.
    pub const MAX_SIZE: u8 = 57;
    /// When to renew (T1), seconds, 32 bits.
    pub const RENEWAL: u8 = 58;
    /// When to ask any server (T2), seconds, 32 bits.
    pub const REBINDING: u8 = 59;
    /// What the client calls itself among clients.
    pub const CLIENT: u8 = 61;
    /// The client takes an ACK at once (RFC 4039), empty.
    pub const RAPID_COMMIT: u8 = 80;
    /// Domains to look short names up in (RFC 3397).
    pub const SEARCH: u8 = 119;
    /// Routes (RFC 3442).
    pub const ROUTES: u8 = 121;
}

/// Who is speaking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A client.
    Request,
    /// A server.
    Reply,
}

/// The kind of message (RFC 2132 section 9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Is there a server?
    Discover,
    /// Here is an address.
    Offer,
    /// I want this address.
    Request,
    /// Somebody else uses this address.
    Decline,
    /// It is yours.
    Ack,
    /// It cannot be yours.
    Nak,
    /// I need it no more.
    Release,
    /// I have an address; tell me the rest.
    Inform,
}

impl MessageType {
    const ALL: [Self; 8] = [
        Self::Discover,
        Self::Offer,
        Self::Request,
        Self::Decline,
        Self::Ack,
        Self::Nak,
        Self::Release,
        Self::Inform,
    ];

    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        let place = Self::ALL.iter().zip(1u8..).find(|(kind, _)| **kind == self);
        place.map_or(0, |(_, code)| code)
    }

    /// The kind with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// A message of a client with an Ethernet address, or to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who is speaking.
    pub operation: Operation,
    /// Transaction: chosen by the client, repeated by the server.
    pub xid: u32,
    /// How long the client has been trying, seconds.
    pub secs: u16,
    /// The client cannot take unicast before it has its address.
    pub broadcast: bool,
    /// The client's address, if it has and uses one.
    pub ciaddr: Ipv4Addr,
    /// The address that the client gets.
    pub yiaddr: Ipv4Addr,
    /// Server of the next step of a boot over the network.
    pub siaddr: Ipv4Addr,
    /// The relay that passed the message on.
    pub giaddr: Ipv4Addr,
    /// The client's hardware address.
    pub chaddr: MacAddr,
    /// Everything else.
    pub options: Options,
}

impl Message {
    /// Parses the payload of a UDP datagram.
    ///
    /// # Errors
    /// It is too short; it is not of or for an Ethernet device; it is plain BOOTP (RFC 951) without
    /// options; an option ends past the message.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let truncated = ParseError::new("dhcp-truncated");
        let (&[op, htype, hlen, _hops, x0, x1, x2, x3, s0, s1, flags, _], rest) =
            bytes.split_first_chunk().ok_or(truncated)?;
        let (ciaddr, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        let (yiaddr, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        let (siaddr, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        let (giaddr, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        let (chaddr, rest) = rest.split_first_chunk::<16>().ok_or(truncated)?;
        let (sname, rest) = rest.split_first_chunk::<64>().ok_or(truncated)?;
        let (file, rest) = rest.split_first_chunk::<128>().ok_or(truncated)?;
        let operation = match op {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(ParseError::new("dhcp-operation")),
        };
        let (&mac, _) = chaddr.split_first_chunk::<6>().ok_or(truncated)?;
        if (htype, usize::from(hlen)) != (ETHERNET, mac.len()) {
            return Err(ParseError::new("dhcp-hardware"));
        }
        let options = match rest.split_first_chunk() {
            Some((&MAGIC, options)) => Options::parse(options, sname, file)?,
            _ => return Err(ParseError::new("dhcp-magic")),
        };
        Ok(Self {
            operation,
            xid: u32::from_be_bytes([x0, x1, x2, x3]),
            secs: u16::from_be_bytes([s0, s1]),
            broadcast: flags & BROADCAST != 0,
            ciaddr: Ipv4Addr::from(*ciaddr),
            yiaddr: Ipv4Addr::from(*yiaddr),
            siaddr: Ipv4Addr::from(*siaddr),
            giaddr: Ipv4Addr::from(*giaddr),
            chaddr: MacAddr(mac),
            options,
        })
    }

    /// The message as the payload of a UDP datagram, at least [`MIN_LEN`] bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let op = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let mut out = Vec::with_capacity(MIN_LEN);
        out.extend_from_slice(&[op, ETHERNET, 6, 0]);
        out.extend_from_slice(&self.xid.to_be_bytes());
        out.extend_from_slice(&self.secs.to_be_bytes());
        out.extend_from_slice(&[if self.broadcast { BROADCAST } else { 0 }, 0]);
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            out.extend_from_slice(&address.octets());
        }
        out.extend_from_slice(&self.chaddr.0);
        // The rest of the hardware address, the server's name and the file's: unused.
        out.extend_from_slice(&[0; 10 + 64 + 128]);
        out.extend_from_slice(&MAGIC);
        self.options.emit(&mut out);
        if out.len() < MIN_LEN {
            out.resize(MIN_LEN, PAD);
        }
        out
    }

    /// How long [`Message::emit`] makes it, bytes.
    #[must_use]
    pub fn emitted_len(&self) -> usize {
        (HEADER_LEN.saturating_add(self.options.emitted_len())).max(MIN_LEN)
    }
}

/// The fixed part with the magic number, bytes.
const HEADER_LEN: usize = 240;

/// Options by code. One that came in several pieces is whole here (RFC 3396).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    by_code: BTreeMap<u8, Vec<u8>>,
}

impl Options {
    fn parse(bytes: &[u8], sname: &[u8], file: &[u8]) -> Result<Self, ParseError> {
        let mut options = Self::default();
        options.add(bytes)?;
        // RFC 2132 section 9.3, in the order of RFC 3396 section 5.
        match options.by_code.remove(&OVERLOAD).as_deref() {
            Some([1]) => options.add(file)?,
            Some([2]) => options.add(sname)?,
            Some([3]) => {
                options.add(file)?;
                options.add(sname)?;
            }
            _ => return Ok(options),
        }
        options.by_code.remove(&OVERLOAD);
        Ok(options)
    }

    /// Adds the options of one field, up to the end mark or the end of the field.
    fn add(&mut self, mut bytes: &[u8]) -> Result<(), ParseError> {
        loop {
            match bytes {
                [] | [END, ..] => return Ok(()),
                [PAD, rest @ ..] => bytes = rest,
                [code, len, rest @ ..] => {
                    let (data, rest) = rest
                        .split_at_checked(usize::from(*len))
                        .ok_or(ParseError::new("dhcp-option"))?;
                    self.by_code.entry(*code).or_default().extend_from_slice(data);
                    bytes = rest;
                }
                [_] => return Err(ParseError::new("dhcp-option")),
            }
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        // The kind first, as everybody does: some clients look for it there.
        let (first, others): (Vec<_>, Vec<_>) =
            self.by_code.iter().partition(|(code, _)| **code == option::MESSAGE_TYPE);
        for (code, data) in first.into_iter().chain(others) {
            let mut rest = data.as_slice();
            loop {
                let (piece, behind) = rest.split_at_checked(PIECE_LEN).unwrap_or((rest, &[]));
                out.extend_from_slice(&[*code, u8::try_from(piece.len()).unwrap_or(u8::MAX)]);
                out.extend_from_slice(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
        }
        out.push(END);
    }

    fn emitted_len(&self) -> usize {
        let one = |data: &Vec<u8>| {
            let pieces = data.len().div_ceil(PIECE_LEN).max(1);
            data.len().saturating_add(pieces.saturating_mul(2))
        };
        self.by_code.values().map(one).fold(1, usize::saturating_add)
    }

    /// The option's bytes, if it is there.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.by_code.get(&code).map(Vec::as_slice)
    }

    /// The kind of message; `None` if it is not told, or not known.
    #[must_use]
    pub fn kind(&self) -> Option<MessageType> {
        match self.get(option::MESSAGE_TYPE)? {
            [code] => MessageType::from_code(*code),
            _ => None,
        }
    }

    /// An option that is one address.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.get(code)?).ok().map(Ipv4Addr::from)
    }

    /// An option that is a number of 16 bits.
    #[must_use]
    pub fn number16(&self, code: u8) -> Option<u16> {
        self.get(code)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// An option that is a number of 32 bits.
    #[must_use]
    pub fn number32(&self, code: u8) -> Option<u32> {
        self.get(code)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Sets an option. Those that are the format's own (padding, overload, end) are left out.
    pub fn set(&mut self, code: u8, data: impl Into<Vec<u8>>) {
        if !matches!(code, PAD | OVERLOAD | END) {
            self.by_code.insert(code, data.into());
        }
    }

    /// Takes an option out.
    pub fn remove(&mut self, code: u8) {
        self.by_code.remove(&code);
    }
}

/// The bytes of an option that is a list of addresses.
#[must_use]
pub fn addresses_option(addresses: &[Ipv4Addr]) -> Vec<u8> {
    addresses.iter().flat_map(Ipv4Addr::octets).collect()
}

/// The bytes of an option that is a list of names.
#[must_use]
pub fn names_option(names: &[Name]) -> Vec<u8> {
    let mut data = Vec::new();
    write_names(names, &mut data);
    data
}

/// The bytes of an option that is a list of routes (RFC 3442).
#[must_use]
pub fn routes_option(routes: &[Route]) -> Vec<u8> {
    let mut data = Vec::new();
    for route in routes {
        let len = route.prefix_len.min(32);
        let octets = route.destination.octets();
        data.push(len);
        data.extend_from_slice(octets.get(..usize::from(len.div_ceil(8))).unwrap_or_default());
        data.extend_from_slice(&route.router.octets());
    }
    data
}

/// Longer options go in several pieces (RFC 3396), bytes.
const PIECE_LEN: usize = 255;

/// A route for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where it leads; bits behind the prefix are zero.
    pub destination: Ipv4Addr,
    /// How many bits of it count, at most 32.
    pub prefix_len: u8,
    /// The next hop.
    pub router: Ipv4Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let mut options = Options::default();
        options.set(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
        options.set(option::RAPID_COMMIT, []);
        options.set(option::HOST_NAME, *b"one");
        Message {
            operation: Operation::Request,
            xid: 0x0102_0304,
            secs: 7,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::new(10, 0, 0, 2),
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::new(10, 0, 0, 9),
            chaddr: MacAddr([2, 0, 0, 0, 0, 1]),
            options,
        }
    }

    #[test]
    fn a_message_is_right_to_the_byte() {
        let bytes = message().emit();
        assert_eq!(bytes.len(), MIN_LEN);
        assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 7, 0x80, 0]);
        assert_eq!(bytes[12..28], [0, 0, 0, 0, 10, 0, 0, 2, 0, 0, 0, 0, 10, 0, 0, 9]);
        assert_eq!(bytes[28..34], [2, 0, 0, 0, 0, 1]);
        assert!(bytes[34..236].iter().all(|byte| *byte == 0));
        assert_eq!(
            bytes[236..252],
            [99, 130, 83, 99, 53, 1, 1, 12, 3, b'o', b'n', b'e', 80, 0, 255, 0]
        );
        assert_eq!(Message::parse(&bytes), Ok(message()));
        assert_eq!(message().emitted_len(), MIN_LEN);
    }

    #[test]
    fn long_options_go_in_pieces_and_come_back_whole() {
        let mut long = message();
        long.options.set(224, vec![9; 600]);
        long.options.set(225, vec![8; 255]);
        let bytes = long.emit();
        assert_eq!(long.emitted_len(), bytes.len());
        assert_eq!(Message::parse(&bytes), Ok(long));
    }

    #[test]
    fn options_in_the_fields_of_names_are_found() {
        let mut bytes = message().emit();
        bytes.truncate(HEADER_LEN);
        bytes.extend_from_slice(&[0, 52, 1, 3, 12, 1, b'a', 255]);
        // The file's field, then the server's name.
        bytes[108..112].copy_from_slice(&[12, 1, b'b', 255]);
        bytes[44..51].copy_from_slice(&[12, 1, b'c', 53, 1, 1, 255]);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.options.get(option::HOST_NAME), Some(&b"abc"[..]));
        assert_eq!(message.options.kind(), Some(MessageType::Discover));
        assert_eq!(message.options.get(OVERLOAD), None);
    }

    #[test]
    fn values_of_another_length_are_no_values() {
        let mut options = Options::default();
        options.set(option::LEASE_TIME, [0, 1]);
        options.set(option::SERVER, [1, 2, 3]);
        options.set(option::MESSAGE_TYPE, [9]);
        assert_eq!(options.number32(option::LEASE_TIME), None);
        assert_eq!(options.number16(option::LEASE_TIME), Some(1));
        assert_eq!(options.address(option::SERVER), None);
        assert_eq!(options.kind(), None);
    }

    #[test]
    fn routes_have_as_many_bytes_as_they_need() {
        let router = Ipv4Addr::new(10, 0, 0, 1);
        let route = |destination, prefix_len| Route { destination, prefix_len, router };
        let routes = [route(Ipv4Addr::UNSPECIFIED, 0), route(Ipv4Addr::new(172, 16, 0, 0), 12)];
        assert_eq!(routes_option(&routes), [0, 10, 0, 0, 1, 12, 172, 16, 10, 0, 0, 1]);
    }

    #[test]
    fn lies_are_refused() {
        let good = message().emit();
        let reason = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Message::parse(&bytes).unwrap_err().reason()
        };
        assert_eq!(reason(&|bytes| bytes.truncate(235)), "dhcp-truncated");
        assert_eq!(reason(&|bytes| bytes.truncate(239)), "dhcp-magic");
        assert_eq!(reason(&|bytes| bytes[0] = 3), "dhcp-operation");
        assert_eq!(reason(&|bytes| bytes[1] = 6), "dhcp-hardware");
        assert_eq!(reason(&|bytes| bytes[2] = 17), "dhcp-hardware");
        assert_eq!(reason(&|bytes| bytes[236] = 0), "dhcp-magic");
        assert_eq!(reason(&|bytes| bytes[241] = 255), "dhcp-option");
        assert_eq!(reason(&|bytes| bytes.truncate(241)), "dhcp-option");
    }
}
