//! DHCP messages: [`v4`] (RFC 2131, RFC 2132) and [`v6`] (RFC 8415), payloads of UDP.
//!
//! Reading is total and knows both roles; what is not understood is left out (IPv6) or kept as
//! bytes (IPv4). Nothing nests deeper than an address in an association.

pub mod v4;
pub mod v6;

use crate::dns::Name;

/// Appends names one behind the other, uncompressed (RFC 8415 section 10; RFC 3397 section 2 allows
/// it).
pub(crate) fn write_names(names: &[Name], out: &mut Vec<u8>) {
    for name in names {
        out.extend_from_slice(name.as_wire());
    }
}

/// Reads names that fill `bytes`; `None` if they do not, or one is compressed.
pub(crate) fn read_names(mut bytes: &[u8]) -> Option<Vec<Name>> {
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let (name, rest) = Name::split_plain(bytes)?;
        names.push(name);
        bytes = rest;
    }
    Some(names)
}
