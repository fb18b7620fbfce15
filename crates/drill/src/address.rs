//! Socket addresses as bytes (`struct sockaddr_in`, `struct sockaddr_in6`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::c_int;

use crate::errno::Errno;

/// # Errors
/// `EINVAL`: too short; `EAFNOSUPPORT`: neither IPv4 nor IPv6.
pub(crate) fn parse(bytes: &[u8]) -> Result<SocketAddr, Errno> {
    let family = u16::from_ne_bytes(field(bytes, 0)?);
    let port = u16::from_be_bytes(field(bytes, 2)?);
    match c_int::from(family) {
        libc::AF_INET => Ok(SocketAddr::new(Ipv4Addr::from(field::<4>(bytes, 4)?).into(), port)),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(field::<16>(bytes, 8)?);
            let scope = u32::from_ne_bytes(field(bytes, 24)?);
            Ok(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => Err(Errno(libc::EAFNOSUPPORT)),
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Errno> {
    let field = bytes.get(at..at + N).and_then(|field| field.try_into().ok());
    field.ok_or(Errno(libc::EINVAL))
}

pub(crate) fn emit(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // Families are small numbers.
    let mut bytes = (family as u16).to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => {
            bytes.extend(address.ip().octets());
            // Nothing is in the rest of `struct sockaddr_in`.
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend(address.flowinfo().to_ne_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_what_they_are() {
        for (text, len) in
            [("192.0.2.1:8080", 16), ("[2001:db8::1]:443", 28), ("[fe80::1%2]:443", 28)]
        {
            let address = text.parse();
            let bytes = address.clone().map(emit).unwrap_or_default();
            assert_eq!(bytes.len(), len);
            assert_eq!(parse(&bytes).ok(), address.ok());
            assert_eq!(parse(&bytes[..7]), Err(Errno(libc::EINVAL)));
        }
        assert_eq!(parse(&[0; 16]), Err(Errno(libc::EAFNOSUPPORT)));
    }
}
