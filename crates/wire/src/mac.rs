//! Ethernet hardware addresses.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address; as text and in serde formats `02:00:5e:10:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Every station on the segment.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// True for group addresses, broadcast included.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// True for `ff:ff:ff:ff:ff:ff`.
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// The IPv6 link-local address made of this address (RFC 4291 appendix A, RFC 2464 section 5).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// A locally administered unicast address that is the same for the same text: 46 bits of the
    /// text's FNV-1a hash.
    #[must_use]
    pub fn from_seed(text: &str) -> Self {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = text
            .bytes()
            .fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        // The high bytes of a short text's hash hardly differ; fold them all in.
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        Self([(a ^ g) & 0xfc | 2, b ^ h, c, d, e ^ a, f ^ b])
    }

    /// The group address that carries an IPv4 multicast group (RFC 1112 section 6.4).
    #[must_use]
    pub const fn ipv4_multicast(group: Ipv4Addr) -> Self {
        let [_, b, c, d] = group.octets();
        Self([0x01, 0x00, 0x5e, b & 0x7f, c, d])
    }

    /// The group address that carries an IPv6 multicast group (RFC 2464 section 7).
    #[must_use]
    pub const fn ipv6_multicast(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a hardware address: six pairs of hexadecimal digits with colons between are wanted, like 02:00:5e:10:00:01"
)]
pub struct MacAddrError;

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().ok_or(MacAddrError)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacAddrError);
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| MacAddrError)?;
        }
        if pairs.next().is_some() { Err(MacAddrError) } else { Ok(Self(octets)) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = MacAddr;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a hardware address like 02:00:5e:10:00:01")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<MacAddr, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back() {
        let mac: MacAddr = "02:00:5E:10:00:0f".parse().unwrap();
        assert_eq!(mac, MacAddr([0x02, 0x00, 0x5e, 0x10, 0x00, 0x0f]));
        assert_eq!(mac.to_string(), "02:00:5e:10:00:0f");
    }

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:+1",
            "02:00:5e:10:00:0g",
            "02-00-5e-10-00-01",
            " 02:00:5e:10:00:01",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacAddrError), "{text:?}");
        }
    }

    #[test]
    fn link_local_is_the_modified_eui_64() {
        let mac = MacAddr([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]); // RFC 2464 section 4
        assert_eq!(mac.link_local(), "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn seeds_give_local_unicast_addresses_that_differ() {
        let all: std::collections::BTreeSet<_> =
            (0..1000).map(|n| MacAddr::from_seed(&format!("yard.lan web-{n}"))).collect();
        assert_eq!(all.len(), 1000);
        for mac in all {
            assert!(!mac.is_multicast());
            assert_eq!(mac.0[0] & 2, 2, "{mac} is not locally administered");
        }
        assert_eq!(MacAddr::from_seed("a"), MacAddr::from_seed("a"));
    }

    #[test]
    fn multicast_groups_map_to_their_ethernet_groups() {
        let all_hosts = MacAddr::ipv4_multicast(Ipv4Addr::new(239, 129, 2, 3));
        assert_eq!(all_hosts.to_string(), "01:00:5e:01:02:03");
        let solicited: Ipv6Addr = "ff02::1:ff10:2030".parse().unwrap();
        assert_eq!(MacAddr::ipv6_multicast(solicited).to_string(), "33:33:ff:10:20:30");
        assert!(all_hosts.is_multicast() && !all_hosts.is_broadcast());
        assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
    }
}
