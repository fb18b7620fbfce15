//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use crate::{MacAddr, ParseError, ethernet};

/// Length of a packet, bytes.
pub const LEN: usize = 28;

const ETHERNET: u16 = 1;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP packet wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arp {
    /// What it wants.
    pub operation: Operation,
    /// Hardware address of the sender.
    pub sender_mac: MacAddr,
    /// IPv4 address of the sender; unspecified in a probe (RFC 5227 section 1.1).
    pub sender_ip: Ipv4Addr,
    /// Hardware address of the target; meaningless in a request.
    pub target_mac: MacAddr,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Parses the payload of an Ethernet frame, which may be padded.
    ///
    /// # Errors
    /// Too short; not about IPv4 over Ethernet; neither request nor reply.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let truncated = ParseError::new("arp-truncated");
        let (&[h0, h1, p0, p1, hardware_len, protocol_len, o0, o1], rest) =
            bytes.split_first_chunk().ok_or(truncated)?;
        if u16::from_be_bytes([h0, h1]) != ETHERNET || hardware_len != 6 {
            return Err(ParseError::new("arp-hardware"));
        }
        if u16::from_be_bytes([p0, p1]) != ethernet::IPV4 || protocol_len != 4 {
            return Err(ParseError::new("arp-protocol"));
        }
        let operation = match u16::from_be_bytes([o0, o1]) {
            REQUEST => Operation::Request,
            REPLY => Operation::Reply,
            _ => return Err(ParseError::new("arp-operation")),
        };
        let (sender_mac, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (sender_ip, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        let (target_mac, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (target_ip, _) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        Ok(Self {
            operation,
            sender_mac: MacAddr(*sender_mac),
            sender_ip: Ipv4Addr::from(*sender_ip),
            target_mac: MacAddr(*target_mac),
            target_ip: Ipv4Addr::from(*target_ip),
        })
    }

    /// The packet's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let [h0, h1] = ETHERNET.to_be_bytes();
        let [p0, p1] = ethernet::IPV4.to_be_bytes();
        let [o0, o1] = match self.operation {
            Operation::Request => REQUEST,
            Operation::Reply => REPLY,
        }
        .to_be_bytes();
        let [sm0, sm1, sm2, sm3, sm4, sm5] = self.sender_mac.0;
        let [si0, si1, si2, si3] = self.sender_ip.octets();
        let [tm0, tm1, tm2, tm3, tm4, tm5] = self.target_mac.0;
        let [ti0, ti1, ti2, ti3] = self.target_ip.octets();
        [
            h0, h1, p0, p1, 6, 4, o0, o1, // formats and operation
            sm0, sm1, sm2, sm3, sm4, sm5, si0, si1, si2, si3, // sender
            tm0, tm1, tm2, tm3, tm4, tm5, ti0, ti1, ti2, ti3, // target
        ]
    }
}
