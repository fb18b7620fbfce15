//! Name servers and search list of a machine, as resolv.conf(5) says them.

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

/// The domains that short names are looked up in, of the text of such a file: the last line that says so counts.
/// Words that are no domain of letters, digits, `-` and `_` are left out.
#[must_use]
pub fn search(text: &str) -> Vec<String> {
    let mut lists = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let most = match words.next()? {
            "search" => usize::MAX,
            "domain" => 1,
            _ => return None,
        };
        Some(words.take(most).filter_map(domain).collect())
    });
    lists.next_back().unwrap_or_default()
}

fn domain(word: &str) -> Option<String> {
    let word = word.strip_suffix('.').unwrap_or(word);
    let label = |label: &str| {
        let letter = |letter: u8| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_');
        (1..64).contains(&label.len()) && label.bytes().all(letter)
    };
    (word.len() < 254 && word.split('.').all(label)).then(|| word.to_ascii_lowercase())
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
    fn the_last_search_list_counts() {
        let text = "domain old.example\nsearch Corp.example lab.corp.example. . a;b x..y\noptions ndots:1\n";
        assert_eq!(search(text), ["corp.example", "lab.corp.example"]);
        assert_eq!(search("search a b\ndomain c d\n"), ["c"]);
        assert_eq!(search("nameserver 192.0.2.1\n#search a\n"), [""; 0]);
    }

    #[test]
    fn without_name_servers_it_is_this_machine() {
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(servers(&"nameserver 192.0.2.1\n".repeat(20)).len(), MOST);
    }
}
