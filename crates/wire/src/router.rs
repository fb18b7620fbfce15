//! Router advertisements (RFC 4861 section 4.2) as a router sends them, with resolvers and domains
//! (RFC 8106). What a host needs of one is read by [`crate::icmp`].

use std::net::Ipv6Addr;

use crate::MacAddr;
use crate::dhcp::write_names;
use crate::dns::Name;
use crate::icmp::Prefix;

const KIND: u8 = 134;
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;

const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_DNS: u8 = 25;
const OPTION_SEARCH: u8 = 31;

/// Options are measured in these, bytes.
const UNIT: usize = 8;

/// What a router tells of itself and of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// Hop limit that hosts shall use; 0 is "not told".
    pub hop_limit: u8,
    /// Hosts get their addresses by DHCPv6.
    pub managed: bool,
    /// Hosts get the rest by DHCPv6.
    pub other: bool,
    /// How long the router may be a default router, seconds; 0 is "it is none".
    pub lifetime: u16,
    /// Hardware address of the router.
    pub source_mac: Option<MacAddr>,
    /// MTU of the link, bytes.
    pub mtu: Option<u32>,
    /// Prefixes of the link.
    pub prefixes: Vec<Prefix>,
    /// Addresses of resolvers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to look short names up in.
    pub search: Vec<Name>,
    /// How long resolvers and domains may be used, seconds.
    pub dns_lifetime: u32,
}

impl RouterAdvertisement {
    /// Appends the ICMPv6 message to `out`, its checksum zero. Resolvers and domains that do not
    /// fit their option (127 and about 2000 bytes) are left out.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.managed, MANAGED) | flag(self.other, OTHER);
        let [l0, l1] = self.lifetime.to_be_bytes();
        out.extend_from_slice(&[KIND, 0, 0, 0, self.hop_limit, flags, l0, l1]);
        // Reachable time and retransmission timer: not told.
        out.extend_from_slice(&[0; 8]);
        if let Some(MacAddr(mac)) = self.source_mac {
            option(OPTION_SOURCE_MAC, &mac, out);
        }
        if let Some(mtu) = self.mtu {
            let [a, b, c, d] = mtu.to_be_bytes();
            option(OPTION_MTU, &[0, 0, a, b, c, d], out);
        }
        for prefix in &self.prefixes {
            let flags = flag(prefix.on_link, 0x80) | flag(prefix.autonomous, 0x40);
            let mut data = vec![prefix.len, flags];
            data.extend_from_slice(&prefix.valid.to_be_bytes());
            data.extend_from_slice(&prefix.preferred.to_be_bytes());
            data.extend_from_slice(&[0; 4]);
            data.extend_from_slice(&prefix.address.octets());
            option(OPTION_PREFIX, &data, out);
        }
        let mut head = vec![0, 0];
        head.extend_from_slice(&self.dns_lifetime.to_be_bytes());
        if !self.dns.is_empty() {
            let addresses = self.dns.iter().flat_map(Ipv6Addr::octets);
            let data: Vec<u8> = head.iter().copied().chain(addresses).collect();
            option(OPTION_DNS, &data, out);
        }
        if !self.search.is_empty() {
            write_names(&self.search, &mut head);
            option(OPTION_SEARCH, &head, out);
        }
    }
}

/// Appends an option, filled up with zeros; nothing if it is too long.
fn option(kind: u8, data: &[u8], out: &mut Vec<u8>) {
    let len = data.len().saturating_add(2).next_multiple_of(UNIT);
    let Some(units) = len.checked_div(UNIT).and_then(|units| u8::try_from(units).ok()) else {
        return;
    };
    let end = out.len().saturating_add(len);
    out.extend_from_slice(&[kind, units]);
    out.extend_from_slice(data);
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_is_right_to_the_byte() {
        let mut out = Vec::new();
        RouterAdvertisement {
            hop_limit: 64,
            managed: true,
            other: true,
            lifetime: 1800,
            source_mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: Some(1500),
            prefixes: vec![Prefix {
                address: "fd00::".parse().unwrap(),
                len: 64,
                on_link: true,
                autonomous: false,
                valid: 7200,
                preferred: 3600,
            }],
            dns: vec!["fd00::1".parse().unwrap()],
            search: vec!["lan".parse().unwrap()],
            dns_lifetime: 1200,
        }
        .emit(&mut out);
        let zero = [0; 14];
        let wanted: Vec<u8> = [
            &[134, 0, 0, 0, 64, 0xc0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 1, 2, 0, 0, 0, 0, 1],
            &[5, 1, 0, 0, 0, 0, 5, 0xdc],
            &[3, 4, 64, 0x80, 0, 0, 0x1c, 0x20, 0, 0, 0x0e, 0x10, 0, 0, 0, 0],
            &[0xfd, 0],
            &zero,
            &[25, 3, 0, 0, 0, 0, 4, 0xb0, 0xfd, 0],
            &zero[..13],
            &[1],
            &[31, 2, 0, 0, 0, 0, 4, 0xb0, 3, b'l', b'a', b'n', 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(out, wanted);
    }

    #[test]
    fn what_is_too_long_for_an_option_is_left_out() {
        let mut out = Vec::new();
        let advertisement = RouterAdvertisement {
            hop_limit: 0,
            managed: false,
            other: false,
            lifetime: 0,
            source_mac: None,
            mtu: None,
            prefixes: Vec::new(),
            dns: vec![Ipv6Addr::LOCALHOST; 128],
            search: Vec::new(),
            dns_lifetime: 0,
        };
        advertisement.emit(&mut out);
        assert_eq!(out.len(), 16);
        RouterAdvertisement { dns: vec![Ipv6Addr::LOCALHOST; 127], ..advertisement }.emit(&mut out);
        assert_eq!(out.len(), 32 + 8 + 127 * 16);
    }
}
