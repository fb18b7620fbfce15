//! Socket addresses as the kernel lays them out, written and read as plain bytes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Size of `struct sockaddr_in6`, the bigger of the two.
pub(crate) const ROOM: usize = 28;

/// Size of `struct sockaddr_in`.
const V4_SIZE: usize = 16;

/// An encoded `struct sockaddr_in` or `struct sockaddr_in6`.
pub(crate) struct Encoded {
    bytes: [u8; ROOM],
    len: usize,
}

impl Encoded {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The address family of an address.
pub(crate) fn family(address: SocketAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// Writes an address: family in host order, port in network order, then what the family has.
pub(crate) fn encode(address: SocketAddr) -> Encoded {
    let family = u16::try_from(family(address)).unwrap_or_default().to_ne_bytes();
    let port = address.port().to_be_bytes();
    let mut bytes = [0; ROOM];
    let mut write = |fields: &[&[u8]]| {
        for (byte, value) in bytes.iter_mut().zip(fields.iter().copied().flatten()) {
            *byte = *value;
        }
    };
    let len = match address {
        SocketAddr::V4(v4) => {
            write(&[&family, &port, &v4.ip().octets()]);
            V4_SIZE
        }
        SocketAddr::V6(v6) => {
            let (flow, scope) = (v6.flowinfo().to_be_bytes(), v6.scope_id().to_ne_bytes());
            write(&[&family, &port, &flow, &v6.ip().octets(), &scope]);
            ROOM
        }
    };
    Encoded { bytes, len }
}

/// Reads an address; `None` for another family, or bytes that are too few.
pub(crate) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    match libc::c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(*rest.first_chunk::<4>()?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let (flow, rest) = rest.split_first_chunk()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let scope = rest.first_chunk()?;
            let (flow, scope) = (u32::from_be_bytes(*flow), u32::from_ne_bytes(*scope));
            Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(decode(encode(address).as_bytes()), Some(address));
        }
    }

    #[test]
    fn short_or_foreign_addresses_are_none() {
        let whole = encode("[::1]:1".parse().unwrap());
        assert_eq!(decode(&whole.as_bytes()[..20]), None);
        assert_eq!(decode(&[1, 0, b'/']), None);
        assert_eq!(decode(&[]), None);
    }
}
