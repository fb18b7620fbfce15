//! Ethernet II headers.

use crate::{MacAddr, ParseError};

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a provider's VLAN tag (IEEE 802.1ad).
pub const PROVIDER_VLAN: u16 = 0x88a8;

/// The header of an Ethernet II frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// Who shall take the frame.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
}

impl Ethernet {
    /// Splits a frame into its header and payload; the payload still has its padding.
    ///
    /// # Errors
    /// The frame is shorter than a header.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let (&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1], payload) =
            frame.split_first_chunk().ok_or(ParseError::new("ethernet-truncated"))?;
        let header = Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([t0, t1]),
        };
        Ok((header, payload))
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let [d0, d1, d2, d3, d4, d5] = self.destination.0;
        let [s0, s1, s2, s3, s4, s5] = self.source.0;
        let [t0, t1] = self.ethertype.to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }
}

/// Writes the destination into a frame that was built before it was known. A frame shorter than a
/// header stays as it is.
pub fn set_destination(frame: &mut [u8], destination: MacAddr) {
    if let Some(field) = frame.first_chunk_mut() {
        *field = destination.0;
    }
}
