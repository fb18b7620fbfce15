//! What goes to a guest before the first byte of its client: the header of the PROXY protocol, in which it is told
//! who the client is.
//!
//! It is a part of the guest's stream, and none of the client's: it is kept here until the guest has it, and
//! nothing is said of it to the client. (HAProxy, "The PROXY protocol, versions 1 & 2", section 2.)

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::context::Context;
use crate::delivery::ProxyVersion;
use crate::edge::SocketId;

/// Section 2.2: what version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY_V2: u8 = 0x21;

/// The part of a header that the guest has not acknowledged.
#[derive(Debug)]
pub(super) struct Preamble(Vec<u8>);

impl Preamble {
    /// That of a connection of `client` to the host's address `at`.
    pub(super) fn new(version: ProxyVersion, client: SocketAddr, at: SocketAddr) -> Self {
        let canonical = |it: SocketAddr| SocketAddr::new(it.ip().to_canonical(), it.port());
        let (client, at) = (canonical(client), canonical(at));
        Self(match version {
            ProxyVersion::V1 => v1(client, at).into_bytes(),
            ProxyVersion::V2 => v2(client, at),
        })
    }

    /// What is left of it.
    pub(super) fn left(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The guest has so many more bytes of its stream; how many of them are the client's.
    pub(super) fn acknowledge(&mut self, count: usize) -> usize {
        let own = count.min(self.0.len());
        self.0.drain(..own);
        count - own
    }

    /// Copies of the stream from an offset on: what is left of this, and what `socket` has behind it.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing at that offset, yet; else those of the socket.
    pub(super) fn peek(
        &self,
        cx: &mut Context<'_>,
        socket: SocketId,
        offset: usize,
        into: &mut [u8],
    ) -> io::Result<usize> {
        let own = self.0.get(offset..).unwrap_or_default();
        let count = own.len().min(into.len());
        let (front, rest) = into.split_at_mut(count);
        for (to, from) in front.iter_mut().zip(own) {
            *to = *from;
        }
        if rest.is_empty() {
            return Ok(count);
        }
        match cx.edge.peek(socket, offset.saturating_sub(self.0.len()), rest) {
            Ok(more) => Ok(count + more),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && count > 0 => Ok(count),
            Err(error) => Err(error),
        }
    }
}

/// Section 2.1: one line of text.
fn v1(client: SocketAddr, at: SocketAddr) -> String {
    let family = match (client.ip(), at.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return "PROXY UNKNOWN\r\n".to_owned(),
    };
    format!("PROXY {family} {} {} {} {}\r\n", client.ip(), at.ip(), client.port(), at.port())
}

/// Section 2.2: bytes.
fn v2(client: SocketAddr, at: SocketAddr) -> Vec<u8> {
    let (family, addresses) = match (client.ip(), at.ip()) {
        (IpAddr::V4(client), IpAddr::V4(at)) => (0x11, [client.octets(), at.octets()].concat()),
        (IpAddr::V6(client), IpAddr::V6(at)) => (0x21, [client.octets(), at.octets()].concat()),
        _ => (0x00, Vec::new()),
    };
    let ports = match addresses.is_empty() {
        true => Vec::new(),
        false => [client.port().to_be_bytes(), at.port().to_be_bytes()].concat(),
    };
    let len = u16::try_from(addresses.len() + ports.len()).unwrap_or_default();
    [&SIGNATURE[..], &[PROXY_V2, family], &len.to_be_bytes(), &addresses, &ports].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyVersion, client: &str, at: &str) -> Vec<u8> {
        Preamble::new(version, client.parse().unwrap(), at.parse().unwrap()).left().to_vec()
    }

    #[test]
    fn headers_are_those_of_the_specification() {
        let v1 = |client, at| String::from_utf8(header(ProxyVersion::V1, client, at)).unwrap();
        assert_eq!(
            v1("192.168.0.1:56324", "192.168.0.11:443"),
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
        );
        assert_eq!(
            v1("[fe80::1%3]:1", "[2001:db8::2]:2"),
            "PROXY TCP6 fe80::1 2001:db8::2 1 2\r\n"
        );
        // A listener for both families says so of IPv4.
        assert_eq!(
            v1("[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.2]:2"),
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"
        );
        assert_eq!(v1("10.0.0.1:1", "[::1]:2"), "PROXY UNKNOWN\r\n");
        let v2 = |client, at| header(ProxyVersion::V2, client, at);
        assert_eq!(
            v2("192.168.0.1:256", "192.168.0.11:443"),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\xa8\0\x01\xc0\xa8\0\x0b\x01\0\x01\xbb"
        );
        assert_eq!(
            v2("[2001:db8::1]:1", "[::1]:2"),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
              \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01\0\x02"
        );
        assert_eq!(v2("10.0.0.1:1", "[::1]:2"), b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0");
    }
}
