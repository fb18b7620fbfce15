//! Names of servers as people write them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use crate::discover::all;
use crate::resolve::{DnsError, lookup};
use crate::{Bind, CardId, Family, Pin};

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

/// How long the name of a server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// What stands before servers that are to be asked over TLS (RFC 7064).
const TLS: &str = "stuns:";

/// The host and the port of `HOST`, `HOST:PORT`, `[IPV6]:PORT`, or `stun:` before any of them (RFC 7064).
pub fn split(server: &str, default: u16) -> (&str, u16) {
    let server =
        server.strip_prefix(TLS).or_else(|| server.strip_prefix("stun:")).unwrap_or(server);
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
    if server.starts_with(TLS) && default != TLS_PORT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{server} is to be asked over TLS, which `netyard nic stun --proto tls` does"),
        ));
    }
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
    let mut found = timeout(PATIENCE, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| late(host))??;
    found.find(fits).ok_or_else(none)
}

/// The addresses of servers of one family, all looked for at once: with a card by its own resolvers and
/// through it, as long as it knows any.
pub(crate) async fn resolve_all(
    servers: &[String],
    family: Family,
    card: Option<&CardId>,
) -> Vec<io::Result<SocketAddr>> {
    all(servers.iter().map(|server| resolve_by(server, family, card))).await
}

async fn resolve_by(server: &str, family: Family, card: Option<&CardId>) -> io::Result<SocketAddr> {
    let by_system = resolve(server, Some(family == Family::Ip4), PORT);
    let (host, port) = split(server, PORT);
    let Some(card) = card.filter(|_| host.parse::<IpAddr>().is_err() && !server.starts_with(TLS))
    else {
        return by_system.await;
    };
    let via = Bind::on(card.clone(), family.unspecified()).pin(Pin::Always);
    let found =
        timeout(PATIENCE, lookup(host, family, &via, None)).await.map_err(|_| late(host))?;
    match found {
        Ok(found) => {
            let none = || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            let first = found.first().ok_or_else(none)?;
            Ok(SocketAddr::new(*first, port))
        }
        Err(
            error @ (DnsError::Name { .. } | DnsError::NotFound { .. } | DnsError::NoAnswer { .. }),
        ) => Err(io::Error::other(error)),
        Err(_) => by_system.await,
    }
}

fn late(host: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("nobody told the address of {host} in {} s", PATIENCE.as_secs()),
    )
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

    #[tokio::test]
    async fn who_is_to_be_asked_over_tls_is_not_asked_without() {
        let server = "stuns:192.0.2.1:443";
        let refused = resolve(server, None, PORT).await.unwrap_err();
        assert!(refused.to_string().contains("--proto tls"), "{refused}");
        let found = resolve(server, None, TLS_PORT).await.unwrap();
        assert_eq!(found, ([192, 0, 2, 1], 443).into());
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
