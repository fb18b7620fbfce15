//! Names of servers as people write them.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// STUN's port, over UDP and TCP (RFC 8489, section 18.6).
pub const PORT: u16 = 3478;
/// STUN's port over TLS.
pub const TLS_PORT: u16 = 5349;

/// The word that stands for [`PUBLIC_SERVERS`].
pub const PUBLIC: &str = "public";

/// Public servers, for those who ask for them. They have one address each: the external address and the
/// mapping can be had from them, but not who may send in.
pub const PUBLIC_SERVERS: [&str; 3] =
    ["stun.cloudflare.com", "stun.l.google.com:19302", "stun.nextcloud.com"];

/// The servers with [`PUBLIC`] replaced by those that it stands for.
pub fn spelled_out(servers: impl IntoIterator<Item = String>) -> Vec<String> {
    let spelled = |server: String| match server == PUBLIC {
        true => PUBLIC_SERVERS.map(str::to_owned).to_vec(),
        false => vec![server],
    };
    servers.into_iter().flat_map(spelled).collect()
}

/// The host and the port of `HOST`, `HOST:PORT`, `[IPV6]:PORT`, or `stun:` before any of them (RFC 7064).
pub fn split(server: &str, default: u16) -> (&str, u16) {
    let server =
        server.strip_prefix("stuns:").or_else(|| server.strip_prefix("stun:")).unwrap_or(server);
    if let Some((host, rest)) = server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = rest.strip_prefix(':').and_then(|port| port.parse().ok());
        return (host, port.unwrap_or(default));
    }
    match server.rsplit_once(':') {
        // More than one colon without brackets is an IPv6 address.
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => (server, default),
        },
        _ => (server, default),
    }
}

/// The address of a server: its first one, of the family that is wanted if one is.
///
/// # Errors
/// The name is not known, or has no address of the family.
pub async fn resolve(server: &str, want_ip4: Option<bool>, default: u16) -> io::Result<SocketAddr> {
    let (host, port) = split(server, default);
    let fits = |address: &SocketAddr| want_ip4.is_none_or(|ip4| ip4 == address.is_ipv4());
    let family = match want_ip4 {
        Some(true) => "IPv4 ",
        Some(false) => "IPv6 ",
        None => "",
    };
    let none = || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no {family}address"));
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, port)).filter(fits).ok_or_else(none);
    }
    let mut found = tokio::net::lookup_host((host, port)).await?;
    found.find(fits).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_servers_are_meant_by_their_word_only() {
        let named = ["a.test", "public", "public.test"].map(str::to_owned);
        let [one, two, three] = PUBLIC_SERVERS;
        assert_eq!(spelled_out(named), ["a.test", one, two, three, "public.test"]);
        assert!(spelled_out([]).is_empty());
    }

    #[test]
    fn servers_are_split_as_people_write_them() {
        for (text, expected) in [
            ("stun.example.org", ("stun.example.org", 3478)),
            ("stun.example.org:19302", ("stun.example.org", 19302)),
            ("stun:stun.example.org", ("stun.example.org", 3478)),
            ("192.0.2.1:53", ("192.0.2.1", 53)),
            ("2001:db8::1", ("2001:db8::1", 3478)),
            ("[2001:db8::1]", ("2001:db8::1", 3478)),
            ("[2001:db8::1]:443", ("2001:db8::1", 443)),
            ("host:name", ("host:name", 3478)),
        ] {
            assert_eq!(split(text, PORT), expected, "{text}");
        }
    }
}
