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

/// Whether a server is to be asked over TLS, and not otherwise.
pub fn is_tls(server: &str) -> bool {
    server.starts_with(TLS)
}

/// A server whose address is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// As the user wrote it.
    pub(crate) name: String,
    /// Its host: what it has to prove over TLS.
    pub(crate) host: String,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// It is asked over TLS only.
    pub(crate) tls: bool,
}

impl Found {
    /// The same on another port.
    pub(crate) fn on_port(&self, port: u16) -> Self {
        Self { address: SocketAddr::new(self.address.ip(), port), ..self.clone() }
    }
}

/// The address of a server, of the first of these families that it has one of: with a card by the card's own
/// resolvers and through it, as long as it knows any, else by the system's. `default` is the port where
/// none is named.
///
/// # Errors
/// The name is not known, or has no address of these families.
pub(crate) async fn find(
    server: &str,
    families: &[Family],
    default: u16,
    card: Option<&CardId>,
) -> io::Result<SocketAddr> {
    let (host, port) = split(server, default);
    if let Ok(address) = host.parse::<IpAddr>() {
        let fits = families.contains(&Family::of(address));
        let found = fits.then(|| SocketAddr::new(address, port));
        return found.ok_or_else(|| no_address(host, families));
    }
    for family in families {
        let asked = async {
            match card {
                Some(card) => by_card(host, *family, card).await,
                None => by_system(host, *family).await,
            }
        };
        if let Some(address) = timeout(PATIENCE, asked).await.map_err(|_| late(host))?? {
            return Ok(SocketAddr::new(address, port));
        }
    }
    Err(no_address(host, families))
}

/// The addresses of servers of one family, all looked for at once, each by what [`find`] says; and why others have
/// none.
pub(crate) async fn find_all<'a>(
    servers: &'a [String],
    family: Family,
    card: Option<&CardId>,
) -> (Vec<Found>, Vec<(&'a str, io::Error)>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    let looked = servers.iter().map(|server| async move {
        let default = if is_tls(server) { TLS_PORT } else { PORT };
        find(server, &[family], default, card).await
    });
    for (server, found) in servers.iter().zip(all(looked).await) {
        match found {
            Ok(address) => known.push(Found {
                name: server.clone(),
                host: split(server, PORT).0.to_owned(),
                address,
                tls: is_tls(server),
            }),
            Err(error) => unknown.push((server.as_str(), error)),
        }
    }
    (known, unknown)
}

async fn by_card(host: &str, family: Family, card: &CardId) -> io::Result<Option<IpAddr>> {
    let via = Bind::on(card.clone(), family.unspecified()).pin(Pin::Always);
    match lookup(host, family, &via, None).await {
        Ok(found) => Ok(found.into_iter().find(|address| Family::of(*address) == family)),
        Err(DnsError::NotFound { .. }) => Ok(None),
        Err(error @ (DnsError::Name { .. } | DnsError::NoAnswer { .. })) => {
            Err(io::Error::other(error))
        }
        Err(_) => by_system(host, family).await,
    }
}

async fn by_system(host: &str, family: Family) -> io::Result<Option<IpAddr>> {
    let mut found = tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip());
    Ok(found.find(|address| Family::of(*address) == family))
}

fn no_address(host: &str, families: &[Family]) -> io::Error {
    let family = match families {
        [family] => format!("{family} "),
        _ => String::new(),
    };
    io::Error::new(io::ErrorKind::NotFound, format!("{host} has no {family}address"))
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
    async fn who_is_to_be_asked_over_tls_has_its_port_and_says_so() {
        let servers = ["stuns:192.0.2.1", "stuns:192.0.2.1:443", "192.0.2.1", "2001:db8::1"];
        let servers = servers.map(str::to_owned);
        let (found, unknown) = find_all(&servers, Family::Ip4, None).await;
        let found: Vec<_> = found.iter().map(|it| (it.address.port(), it.tls)).collect();
        assert_eq!(found, [(TLS_PORT, true), (443, true), (PORT, false)]);
        let [(server, error)] = &unknown[..] else { panic!("{unknown:?}") };
        assert_eq!(*server, servers[3]);
        assert_eq!(error.to_string(), "2001:db8::1 has no IPv4 address");
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
