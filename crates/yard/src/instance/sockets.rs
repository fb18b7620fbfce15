//! What an instance's programs listen on, read from the socket tables of its network namespace.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use netyard_engine::forward::Protocol;

use crate::api::Listening;

/// `TCP_LISTEN` of the kernel's TCP states.
const TCP_LISTEN: &str = "0A";

/// `TCP_CLOSE`, which for UDP means: not connected to one peer.
const UDP_UNCONNECTED: &str = "07";

/// The sockets that listen in the network namespace of a process, in order. A namespace that is
/// gone has none.
pub(crate) fn listening(pid: u32) -> Vec<Listening> {
    let tables = [
        ("tcp", Protocol::Tcp, TCP_LISTEN),
        ("tcp6", Protocol::Tcp, TCP_LISTEN),
        ("udp", Protocol::Udp, UDP_UNCONNECTED),
        ("udp6", Protocol::Udp, UDP_UNCONNECTED),
    ];
    let found: BTreeSet<Listening> = tables
        .into_iter()
        .flat_map(|(name, protocol, state)| {
            let table = read(Path::new(&format!("/proc/{pid}/net/{name}"))).unwrap_or_default();
            in_table(&table, state)
                .map(|address| Listening { protocol, address })
                .collect::<Vec<_>>()
        })
        .collect();
    found.into_iter().collect()
}

/// A socket table. Each read has the kernel walk through every connection of the machine, so there are no
/// more than needed: what a read leaves room for in a page, the least that the kernel fills (seq_file),
/// was not there.
fn read(table: &Path) -> io::Result<String> {
    const PAGE: usize = 4096;
    /// More than the longest line, bytes.
    const LINE: usize = 512;
    let mut table = File::open(table)?;
    let (mut text, mut piece) = (Vec::new(), [0; PAGE]);
    loop {
        let len = table.read(&mut piece)?;
        text.extend_from_slice(piece.get(..len).unwrap_or_default());
        if len < PAGE - LINE {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

/// The wanted ports that the network cannot reach because the program listens on loopback only, in
/// words. With no port wanted, not even one of its `loopback`, any TCP port counts if nothing else is listened on.
pub(crate) fn unreachable(
    listening: &[Listening],
    wanted: &[(Protocol, u16)],
    loopback: &[u16],
) -> Vec<String> {
    let is_local = |it: &&Listening| it.address.ip().to_canonical().is_loopback();
    let mut tcp = listening.iter().filter(|it| it.protocol == Protocol::Tcp);
    let nothing_reachable = tcp.all(|it| is_local(&it));
    listening
        .iter()
        .filter(is_local)
        .filter(|it| !is_reachable(listening, it.protocol, it.address.port()))
        .filter(|it| match (wanted, loopback) {
            ([], []) => it.protocol == Protocol::Tcp && nothing_reachable,
            _ => wanted.contains(&(it.protocol, it.address.port())),
        })
        .map(|it| {
            format!(
                "listens on {} only: the network cannot reach it (let it listen on 0.0.0.0)",
                it.address
            )
        })
        .collect()
}

/// Whether somebody on the network can reach a port.
pub(crate) fn is_reachable(listening: &[Listening], protocol: Protocol, port: u16) -> bool {
    let mut at = listening.iter().filter(|it| (it.protocol, it.address.port()) == (protocol, port));
    at.any(|it| !it.address.ip().to_canonical().is_loopback())
}

/// The local addresses of a table's sockets in that state, ports that are none left out.
///
/// Format: proc(5), `/proc/net/tcp`: number, local address, remote address, state.
fn in_table<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = SocketAddr> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next()?;
        let (_remote, found) = (words.next()?, words.next()?);
        let address = address(local)?;
        (found == state && address.port() != 0).then_some(address)
    })
}

/// `0100007F:1F90`: 32-bit words in the machine's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.as_flattened()).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn tcp(address: &str) -> Listening {
        Listening { protocol: Protocol::Tcp, address: address.parse().unwrap() }
    }

    #[test]
    fn our_own_listeners_are_seen() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let address = listener.local_addr().unwrap();
            let expected = Listening { protocol: Protocol::Tcp, address };
            assert!(listening(std::process::id()).contains(&expected), "{expected}");
        }
    }

    #[test]
    fn more_listeners_than_a_read_takes_are_seen_one_by_one() {
        let listeners: Vec<_> = (0..100).map(|_| TcpListener::bind("[::1]:0").unwrap()).collect();
        let seen = listening(std::process::id());
        for listener in listeners {
            let address = listener.local_addr().unwrap();
            let expected = Listening { protocol: Protocol::Tcp, address };
            assert!(seen.contains(&expected), "{expected}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let table = "header\n 0: 0100007F:1F90 00000000:0000 0A 0\n 1: xyz\n 2: 0:0 0:0 0A\n\
                     3: 0100007F:0000 00000000:0000 0A\n\u{e9}: \u{e9}\u{e9}\u{e9}\u{e9}:1 0 0A";
        let found: Vec<_> = in_table(table, TCP_LISTEN).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].port(), 8080);
    }

    #[test]
    fn a_wanted_port_on_loopback_only_is_a_warning() {
        let wanted = |port| [(Protocol::Tcp, port)];
        let local = tcp("127.0.0.1:8080");
        let warning = &unreachable(&[local], &wanted(8080), &[])[0];
        assert!(warning.starts_with("listens on 127.0.0.1:8080 only"));
        assert_eq!(unreachable(&[local, tcp("0.0.0.0:8080")], &wanted(8080), &[]).len(), 0);
        assert_eq!(unreachable(&[local, tcp("[::]:8080")], &wanted(8080), &[]).len(), 0);
        assert_eq!(unreachable(&[tcp("[::ffff:127.0.0.1]:80")], &wanted(80), &[]).len(), 1);
        assert_eq!(unreachable(&[local], &[], &[]).len(), 1);
        assert_eq!(unreachable(&[local, tcp("0.0.0.0:80")], &[], &[]).len(), 0);
        assert_eq!(unreachable(&[local], &[], &[8080]).len(), 0, "asked for where it is");
        assert_eq!(unreachable(&[local], &[], &[80]).len(), 0, "another one is asked for");
        assert_eq!(unreachable(&[local], &wanted(8080), &[8080]).len(), 1, "asked for twice");
        assert_eq!(
            unreachable(&[local], &wanted(80), &[]).len(),
            0,
            "a port that nobody asked for"
        );
        let udp = Listening { protocol: Protocol::Udp, ..local };
        assert_eq!(unreachable(&[udp, tcp("[::]:8080")], &[(Protocol::Udp, 8080)], &[]).len(), 1);
        assert_eq!(unreachable(&[udp], &wanted(8080), &[]).len(), 0, "another protocol");
        assert_eq!(unreachable(&[udp], &[], &[]).len(), 0, "what a resolver opens");
    }
}
