//! What an address is for, and which addresses count as public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// What an address is for, by the registries of special addresses (RFC 6890 and its successors).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AddressClass {
    /// Anybody's: reachable from everywhere, as far as its number says.
    Global,
    /// Private IPv4 networks (RFC 1918).
    Private,
    /// Between a provider and its customers (RFC 6598): `100.64.0.0/10`.
    Shared,
    /// Private IPv6 networks (RFC 4193): `fc00::/7`.
    UniqueLocal,
    /// One link (RFC 3927, RFC 4291): `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// This machine.
    Loopback,
    /// Texts (RFC 5737, RFC 3849, RFC 9637).
    Documentation,
    /// Measurements (RFC 2544, RFC 5180).
    Benchmark,
    /// Groups.
    Multicast,
    /// No address at all: `0.0.0.0/8`, `::`.
    Unspecified,
    /// Put aside: for translation, for protocols, for the future, for nothing.
    Reserved,
}

impl AddressClass {
    /// The class of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(_) => Self::Reserved,
                None => of_v6(address),
            },
        }
    }
}

fn of_v4(address: Ipv4Addr) -> AddressClass {
    const TABLE: [(Ipv4Addr, u8, AddressClass); 14] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8, AddressClass::Unspecified),
        (Ipv4Addr::new(10, 0, 0, 0), 8, AddressClass::Private),
        (Ipv4Addr::new(172, 16, 0, 0), 12, AddressClass::Private),
        (Ipv4Addr::new(192, 168, 0, 0), 16, AddressClass::Private),
        (Ipv4Addr::new(100, 64, 0, 0), 10, AddressClass::Shared),
        (Ipv4Addr::new(127, 0, 0, 0), 8, AddressClass::Loopback),
        (Ipv4Addr::new(169, 254, 0, 0), 16, AddressClass::LinkLocal),
        (Ipv4Addr::new(192, 0, 0, 0), 24, AddressClass::Reserved),
        (Ipv4Addr::new(192, 0, 2, 0), 24, AddressClass::Documentation),
        (Ipv4Addr::new(198, 51, 100, 0), 24, AddressClass::Documentation),
        (Ipv4Addr::new(203, 0, 113, 0), 24, AddressClass::Documentation),
        (Ipv4Addr::new(198, 18, 0, 0), 15, AddressClass::Benchmark),
        (Ipv4Addr::new(224, 0, 0, 0), 4, AddressClass::Multicast),
        (Ipv4Addr::new(240, 0, 0, 0), 4, AddressClass::Reserved),
    ];
    let is_in = |(net, len, _): &&(Ipv4Addr, u8, AddressClass)| {
        Ipv4Net::new_assert(*net, *len).contains(&address)
    };
    TABLE.iter().find(is_in).map_or(AddressClass::Global, |(_, _, class)| *class)
}

fn of_v6(address: Ipv6Addr) -> AddressClass {
    let net = |a: u16, b: u16, len| Ipv6Net::new_assert([a, b, 0, 0, 0, 0, 0, 0].into(), len);
    let within = |a, b, len| net(a, b, len).contains(&address);
    if address.is_unspecified() {
        AddressClass::Unspecified
    } else if address.is_loopback() {
        AddressClass::Loopback
    } else if within(0xfe80, 0, 10) {
        AddressClass::LinkLocal
    } else if within(0xfc00, 0, 7) {
        AddressClass::UniqueLocal
    } else if within(0xff00, 0, 8) {
        AddressClass::Multicast
    } else if within(0x2001, 0xdb8, 32) || within(0x3fff, 0, 20) {
        AddressClass::Documentation
    } else if within(0x2001, 2, 48) {
        AddressClass::Benchmark
    } else if within(0x2000, 0, 3) && !within(0x2001, 0, 23) && !within(0x2002, 0, 16) {
        AddressClass::Global
    } else {
        AddressClass::Reserved
    }
}

/// Which addresses count as public: those of [`AddressClass::Global`], and those that the user says.
///
/// Laboratories are made of addresses for documentation and measurements; there, the user names them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicPolicy {
    also: Vec<IpNet>,
}

impl PublicPolicy {
    /// The policy by which the addresses of these prefixes are public too.
    #[must_use]
    pub fn treat_as_public(prefixes: Vec<IpNet>) -> Self {
        Self { also: prefixes }
    }

    /// True if others can know this machine by the address.
    #[must_use]
    pub fn is_public(&self, address: IpAddr) -> bool {
        AddressClass::of(address) == AddressClass::Global
            || self.also.iter().any(|prefix| prefix.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(address: &str) -> AddressClass {
        AddressClass::of(address.parse().unwrap())
    }

    #[test]
    fn addresses_are_known_by_their_registries() {
        use AddressClass::*;
        for (address, expected) in [
            ("8.8.8.8", Global),
            ("193.168.0.1", Global),
            ("192.168.0.20", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Global),
            ("100.64.0.1", Shared),
            ("100.128.0.1", Global),
            ("169.254.1.1", LinkLocal),
            ("127.1.2.3", Loopback),
            ("0.0.0.0", Unspecified),
            ("198.19.0.1", Benchmark),
            ("203.0.113.9", Documentation),
            ("239.1.1.1", Multicast),
            ("255.255.255.255", Reserved),
            ("2020:deed:beef::", Global),
            ("2a00:1450::1", Global),
            ("2001:db8::1", Documentation),
            ("3fff::1", Documentation),
            ("2001::1", Reserved),
            ("2002:c000:204::1", Reserved),
            ("64:ff9b::1", Reserved),
            ("::ffff:8.8.8.8", Reserved),
            ("fe80::1", LinkLocal),
            ("fd00::1", UniqueLocal),
            ("fc00::1", UniqueLocal),
            ("ff02::1", Multicast),
            ("::1", Loopback),
            ("::", Unspecified),
        ] {
            assert_eq!(class(address), expected, "{address}");
        }
    }

    #[test]
    fn what_the_user_names_is_public_too() {
        let address = "198.18.0.7".parse().unwrap();
        assert!(!PublicPolicy::default().is_public(address));
        let policy = PublicPolicy::treat_as_public(vec!["198.18.0.0/15".parse().unwrap()]);
        assert!(policy.is_public(address));
        assert!(!policy.is_public("192.168.0.1".parse().unwrap()));
    }
}
