//! Who has a host port: the kernel's socket tables, and the descriptors of processes.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::forward::Protocol;

/// A process that has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// The program's name, as the kernel keeps it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`, pid {}", self.name, self.pid)
    }
}

/// Finds the process whose socket stands in the way of binding an address, in this network
/// namespace. `None` if there is none, or we may not see it (another user's).
#[must_use]
pub fn find(protocol: Protocol, at: SocketAddr) -> Option<Holder> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| inodes(&table, protocol, at))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    processes
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| holds(*pid, &sockets))
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Holder { pid, name: name.trim_end().to_owned() }
        })
}

/// True if a process has one of the sockets open.
fn holds(pid: u32, sockets: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.filter_map(Result::ok).any(|descriptor| {
        let link = fs::read_link(descriptor.path()).unwrap_or_default();
        link.to_str().is_some_and(|link| sockets.iter().any(|socket| socket == link))
    })
}

/// The sockets of a table (proc_pid_net(5)) that stand in the way.
fn inodes(table: &str, protocol: Protocol, at: SocketAddr) -> Vec<u64> {
    /// `TCP_LISTEN`: other TCP sockets share the port.
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // sl, local address, remote address, state, queues, timer, retransmits, uid, timeout,
            // inode
            let mut fields = line.split_ascii_whitespace();
            let local = address(fields.nth(1)?)?;
            let state = fields.nth(1)?;
            let inode = fields.nth(5)?.parse().ok()?;
            let counts = protocol == Protocol::Udp || state == LISTEN;
            (counts && conflicts(local, at)).then_some(inode)
        })
        .collect()
}

/// True if two sockets cannot be bound to both addresses: same port, and same address or one that
/// means all.
fn conflicts(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// An address as the tables write it: the words of the address in this machine's byte order, in
/// hexadecimal digits, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(8 * at..8 * (at + 1))?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.as_flattened().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::time::Duration;

    use netyard_testbed::wait_for;

    use super::*;

    /// Far above what a program takes to start.
    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn our_own_ports_are_found() {
        for text in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(text).unwrap();
            let at = listener.local_addr().unwrap();
            is_ours(Protocol::Tcp, at);
            is_ours(Protocol::Tcp, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port()));
            drop(listener);
            wait_for("nobody to be there", SOON, || {
                find(Protocol::Tcp, at).is_none().then_some(())
            });
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        is_ours(Protocol::Udp, socket.local_addr().unwrap());
    }

    /// A program that another test starts has a copy of each socket until it runs, and may be found first.
    fn is_ours(protocol: Protocol, at: SocketAddr) {
        let found = wait_for("ourselves", SOON, || {
            Some(find(protocol, at).unwrap()).filter(|found| found.pid == std::process::id())
        });
        assert!(!found.name.is_empty());
    }

    #[test]
    fn tables_are_read_as_the_kernel_writes_them() {
        let bytes = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
             timeout inode\n\
             \x20  0: {}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        \
             0 4711 1 0 100 0 0 10 0\n\
             \x20  1: {}:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000  1000        \
             0 4712 1\nnonsense\n",
            bytes([127, 0, 0, 1]),
            bytes([127, 0, 0, 1]),
        );
        let found = |text: &str| inodes(&table, Protocol::Tcp, text.parse().unwrap());
        assert_eq!(found("127.0.0.1:8080"), [4711]);
        assert_eq!(found("0.0.0.0:8080"), [4711]);
        assert!(found("127.0.0.2:8080").is_empty());
        assert!(found("127.0.0.1:8081").is_empty());
    }
}
