//! Name servers of a machine, as resolv.conf(5) says them.

use std::net::{SocketAddr, SocketAddrV6};

use crate::netlink::{Protocol, Socket};

/// Resolvers that are used at most.
const MOST: usize = 8;

/// The port of DNS servers.
const PORT: u16 = 53;

/// The name servers of the text of such a file; lines that cannot be understood are passed over, and
/// without any the machine's own is meant.
#[must_use]
pub fn servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(server)
        .take(MOST)
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from(([127, 0, 0, 1], PORT)));
    }
    servers
}

/// An address, with the scope of a link-local one as a number or an interface's name.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let scope = scope.parse().ok().or_else(|| interface_number(scope))?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

fn interface_number(name: &str) -> Option<u32> {
    Socket::open(Protocol::Route).ok()?.link_index(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_order() {
        let text = "# nameserver 192.0.2.9\nsearch lan\nnameserver 192.0.2.1 # first\n\
                    nameserver\t2001:db8::1\nnameserver fe80::1%3\nnameserver nonsense\nnameserver\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%../x\nnameserver 192.0.2.1%1\n";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53", "[fe80::1%1]:53"]
                .map(|text| text.parse().unwrap())
                .into();
        assert_eq!(servers(text), expected);
    }

    #[test]
    fn without_name_servers_it_is_this_machine() {
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(servers(&"nameserver 192.0.2.1\n".repeat(20)).len(), MOST);
    }
}
