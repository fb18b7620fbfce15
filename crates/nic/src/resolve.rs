//! Names, asked of a card's own resolvers, through that card.
//!
//! A card's resolvers are those that systemd-resolved or systemd-networkd know for it; where they know none,
//! those of `/etc/resolv.conf`. `/etc/hosts` is read first. Resolvers are asked one after the other over UDP,
//! each from a port of its own with an identification that nobody can guess, and over TCP where the answer
//! was truncated. An answer counts only from the resolver that was asked, to the question that was asked
//! (RFC 5452 section 9).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::time::Duration;

use netyard_wire::dns::{self, Data, Edns, Flags, Name, Query, Question, Rcode, Response};
use socket2::Type;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use crate::Family;
use crate::bind::{Bind, BindError};

/// How long a resolver may be silent before the next one is asked.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often each one is asked: one datagram may get lost.
const ROUNDS: usize = 2;
/// Resolvers that are asked; more only prolong the wait.
const MAX_SERVERS: usize = 4;
/// The port of DNS.
const PORT: u16 = 53;
/// The longest answer over UDP that is asked for, bytes: it fits every path without fragments.
const UDP_SIZE: u16 = 1232;
/// Answers to one question that are none: then somebody is guessing.
const MAX_STRAYS: usize = 64;
/// Names that stand for names, in a row.
const MAX_ALIASES: usize = 16;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// It is no name.
    #[error("{name:?} is no name: {reason}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: dns::NameError,
    },
    /// There is no such name, or it has no address of the family.
    #[error("{name} has no {family} address, says {server}")]
    NotFound {
        /// The name.
        name: String,
        /// The family.
        family: Family,
        /// The resolver.
        server: SocketAddr,
    },
    /// Nobody is there to be asked.
    #[error(
        "no resolver is known to ask for {name}; look at /etc/resolv.conf, or give the address"
    )]
    NoServer {
        /// The name.
        name: String,
    },
    /// Nobody is there to be asked through the card: a resolver on this machine asks by whichever card it likes.
    #[error(
        "{name} is not asked for: {server} is on this machine, and does not ask by {card} alone; give the \
         address, or tell systemd-resolved the resolvers of {card}"
    )]
    OnlyLocal {
        /// The name.
        name: String,
        /// The card that questions have to leave by.
        card: String,
        /// The resolver.
        server: SocketAddr,
    },
    /// Nobody answered.
    #[error("no resolver answered about {name}{}: {reason}", by(.card))]
    NoAnswer {
        /// The name.
        name: String,
        /// The card that they were asked through.
        card: Option<String>,
        /// What the last of them gave.
        reason: String,
    },
}

fn by(card: &Option<String>) -> String {
    card.as_ref().map(|card| format!(" through {card}")).unwrap_or_default()
}

/// The resolvers of a card, best first; without a card those of the system.
#[must_use]
pub fn resolvers(card: Option<u32>) -> Vec<SocketAddr> {
    resolvers_below(Path::new("/"), card)
}

fn resolvers_below(root: &Path, card: Option<u32>) -> Vec<SocketAddr> {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    if let Some(index) = card {
        for (file, key) in [
            (format!("run/systemd/resolve/netif/{index}"), "SERVERS="),
            (format!("run/systemd/netif/links/{index}"), "DNS="),
        ] {
            let text = read(&file);
            let listed = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            let found = servers(listed.split_whitespace());
            if !found.is_empty() {
                return found;
            }
        }
    }
    let named = |text: &str| {
        servers(text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|word| *word == "nameserver").and(words.next())
        }))
    };
    let found = named(&read("etc/resolv.conf"));
    // A stub on loopback asks through whichever card it likes; behind it are these.
    if found.iter().all(|server| server.ip().is_loopback()) {
        let behind = named(&read("run/systemd/resolve/resolv.conf"));
        if !behind.is_empty() {
            return behind;
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:53`, `[2001:db8::1]:53`, `fe80::1%2`, each with `#name` behind it.
fn servers<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<SocketAddr> {
    let one = |text: &str| {
        let text = text.split_once('#').map_or(text, |(address, _)| address);
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(address);
        }
        let (address, scope) = match text.split_once('%') {
            Some((address, scope)) => (address, scope.parse().ok()?),
            None => (text, 0),
        };
        Some(match address.parse().ok()? {
            IpAddr::V4(address) => SocketAddr::new(address.into(), PORT),
            IpAddr::V6(address) => SocketAddrV6::new(address, PORT, 0, scope).into(),
        })
    };
    texts.filter_map(one).take(MAX_SERVERS).collect()
}

/// The addresses of a name, or the address that it is already.
pub(crate) async fn lookup(
    host: &str,
    family: Family,
    via: &Bind,
    servers: Option<&[SocketAddr]>,
) -> Result<Vec<IpAddr>, DnsError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let known = known(host, family, &fs::read_to_string("/etc/hosts").unwrap_or_default());
    if !known.is_empty() {
        return Ok(known);
    }
    let card = via.card();
    let servers = match servers {
        Some(servers) => servers.to_vec(),
        None => {
            let all = resolvers(card.and_then(|card| card.index));
            match card {
                None => all,
                Some(card) => beyond(host, card.name.as_ref(), all)?,
            }
        }
    };
    let name: Name =
        host.parse().map_err(|reason| DnsError::Name { name: host.to_owned(), reason })?;
    let kind = match family {
        Family::Ip4 => dns::A,
        Family::Ip6 => dns::AAAA,
    };
    let question = Question { name, kind, class: dns::IN };
    let mut reason = None;
    for server in std::iter::repeat_n(&servers, ROUNDS).flatten() {
        match ask(*server, &question, via).await {
            Ok(response) => {
                let found = addresses(&response, &question);
                if !found.is_empty() {
                    return Ok(found);
                }
                let (name, server) = (host.to_owned(), *server);
                return Err(DnsError::NotFound { name, family, server });
            }
            Err(error) => reason = Some(format!("{}: {error}", server.ip())),
        }
    }
    let name = host.to_owned();
    let card = card.map(|card| card.name.to_string());
    Err(match reason {
        Some(reason) => DnsError::NoAnswer { name, card, reason },
        None => DnsError::NoServer { name },
    })
}

/// Those resolvers that can be asked by a card.
fn beyond(name: &str, card: &str, all: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, DnsError> {
    let local = all.first().copied();
    let beyond: Vec<_> = all.into_iter().filter(|server| !server.ip().is_loopback()).collect();
    match local {
        Some(server) if beyond.is_empty() => {
            Err(DnsError::OnlyLocal { name: name.to_owned(), card: card.to_owned(), server })
        }
        _ => Ok(beyond),
    }
}

/// What is known without asking: `localhost` (RFC 6761 section 6.3), and what the file says.
fn known(host: &str, family: Family, file: &str) -> Vec<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.eq_ignore_ascii_case("localhost") {
        return vec![match family {
            Family::Ip4 => Ipv4Addr::LOCALHOST.into(),
            Family::Ip6 => Ipv6Addr::LOCALHOST.into(),
        }];
    }
    file.lines()
        .filter_map(|line| {
            let line = line.split_once('#').map_or(line, |(line, _)| line);
            let mut words = line.split_whitespace();
            let address: IpAddr = words.next()?.parse().ok()?;
            let named = words.any(|name| name.eq_ignore_ascii_case(host));
            (named && Family::of(address) == family).then_some(address)
        })
        .collect()
}

/// The addresses in an answer, of the name that was asked for or the last one that it stands for.
fn addresses(response: &Response, question: &Question) -> Vec<IpAddr> {
    let mut name = &question.name;
    for _ in 0..MAX_ALIASES {
        let alias = response.answers.iter().find_map(|record| match &record.data {
            Data::Cname(target) if record.name == *name => Some(target),
            _ => None,
        });
        match alias {
            Some(target) => name = target,
            None => break,
        }
    }
    let of_name = response.answers.iter().filter(|record| record.name == *name);
    of_name
        .filter_map(|record| match record.data {
            Data::A(address) if question.kind == dns::A => Some(address.into()),
            Data::Aaaa(address) if question.kind == dns::AAAA => Some(address.into()),
            _ => None,
        })
        .collect()
}

/// Asks one resolver. Anything but an answer that settles the question is an error.
async fn ask(server: SocketAddr, question: &Question, via: &Bind) -> io::Result<Response> {
    let query = Query {
        id: rand::random(),
        flags: Flags::RECURSION_DESIRED,
        question: question.clone(),
        edns: Some(Edns { udp_size: UDP_SIZE }),
    };
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "silent");
    let mut response = timeout(PATIENCE, over_udp(server, &query, via)).await.map_err(silent)??;
    if response.flags.contains(Flags::TRUNCATED) {
        response = timeout(PATIENCE, over_tcp(server, &query, via)).await.map_err(silent)??;
    }
    match response.flags.rcode() {
        Rcode::NoError | Rcode::NameError => Ok(response),
        other => Err(io::Error::other(format!("refuses to say ({other:?})"))),
    }
}

/// What to bind a question to, and where to send it.
fn towards(server: SocketAddr, via: &Bind) -> Result<(Bind, SocketAddr), BindError> {
    let via = via.clone().port(0);
    if via.family() == Family::of(server.ip()) {
        return via.towards(server);
    }
    // By the same card, from whichever address of the other family it has.
    let pin = if via.card().is_some() { crate::Pin::Always } else { crate::Pin::Auto };
    via.ip(Family::of(server.ip()).unspecified()).pin(pin).towards(server)
}

async fn over_udp(server: SocketAddr, query: &Query, via: &Bind) -> io::Result<Response> {
    let (bind, server) = towards(server, via).map_err(io::Error::other)?;
    let bound = bind.socket(Type::DGRAM).map_err(io::Error::other)?;
    let socket = UdpSocket::from_std(bound.socket.into())?;
    // Datagrams of others are not seen.
    socket.connect(server).await?;
    socket.send(&query.emit()).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..MAX_STRAYS {
        let length = socket.recv(&mut buffer).await?;
        if let Some(response) = answer(buffer.get(..length).unwrap_or_default(), query) {
            return Ok(response);
        }
    }
    Err(io::Error::other("answers what was not asked"))
}

async fn over_tcp(server: SocketAddr, query: &Query, via: &Bind) -> io::Result<Response> {
    let (bind, server) = towards(server, via).map_err(io::Error::other)?;
    let bound = bind.socket(Type::STREAM).map_err(io::Error::other)?;
    let mut stream = TcpSocket::from_std_stream(bound.socket.into()).connect(server).await?;
    let message = query.emit();
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &message].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    answer(&buffer, query).ok_or_else(|| io::Error::other("answers what was not asked"))
}

/// The answer to the query, if it is one.
fn answer(message: &[u8], query: &Query) -> Option<Response> {
    Response::parse(message).ok().filter(|response| response.answers(query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_resolvers_of_its_own() {
        let root = std::env::temp_dir().join(format!("netyard-resolvers-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let of = |card| -> Vec<String> {
            resolvers_below(&root, card).iter().map(ToString::to_string).collect()
        };
        assert!(of(Some(2)).is_empty());
        write("etc/resolv.conf", "# nameserver 10.0.0.9\nnameserver 127.0.0.53\noptions edns0\n");
        assert_eq!(of(Some(2)), ["127.0.0.53:53"]);
        write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\nnameserver fe80::1%3\n");
        assert_eq!(of(Some(2)), ["192.0.2.1:53", "[fe80::1%3]:53"]);
        write("run/systemd/netif/links/2", "ADMIN_STATE=configured\nDNS=192.0.2.2 2001:db8::2\n");
        assert_eq!(of(Some(2)), ["192.0.2.2:53", "[2001:db8::2]:53"]);
        write("run/systemd/resolve/netif/2", "LLMNR=yes\nSERVERS=192.0.2.3:5353#dns.test\n");
        assert_eq!(of(Some(2)), ["192.0.2.3:5353"]);
        assert_eq!(of(Some(4)), ["192.0.2.1:53", "[fe80::1%3]:53"], "another card");
        assert_eq!(of(None), ["192.0.2.1:53", "[fe80::1%3]:53"]);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn resolvers_on_this_machine_are_not_asked_for_a_card() {
        let servers = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let beyond = |texts| beyond("a.test", "eth1", servers(texts));
        assert_eq!(beyond(&["127.0.0.1:53", "192.0.2.1:53"]).unwrap(), servers(&["192.0.2.1:53"]));
        assert!(beyond(&[]).unwrap().is_empty());
        let error = beyond(&["127.0.0.53:53", "[::1]:53"]).unwrap_err().to_string();
        assert!(error.contains("127.0.0.53:53") && error.contains("eth1"), "{error}");
    }

    #[test]
    fn some_names_are_known() {
        let file = "127.0.0.1 localhost\n192.0.2.1 One one.test # two.test\n2001:db8::1 one.test\n";
        let known = |name, family| -> Vec<String> {
            known(name, family, file).iter().map(ToString::to_string).collect()
        };
        assert_eq!(known("ONE.test.", Family::Ip4), ["192.0.2.1"]);
        assert_eq!(known("one.test", Family::Ip6), ["2001:db8::1"]);
        assert!(known("two.test", Family::Ip4).is_empty());
        assert_eq!(known("localhost", Family::Ip6), ["::1"]);
        assert_eq!(known("a.localhost", Family::Ip4), ["127.0.0.1"]);
    }

    #[test]
    fn aliases_are_followed_and_strangers_are_not_believed() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let question = Question { name: name("a.test"), kind: dns::A, class: dns::IN };
        let query = Query { id: 1, flags: Flags::RECURSION_DESIRED, question, edns: None };
        let mut response = Response::to(&query, Rcode::NoError);
        let record = |of: &str, data| dns::Record { name: name(of), ttl: 1, data };
        response.answers = vec![
            record("b.test", Data::A([192, 0, 2, 2].into())),
            record("a.test", Data::Cname(name("b.test"))),
            record("evil.test", Data::A([192, 0, 2, 66].into())),
        ];
        let found = addresses(&response, &query.question);
        assert_eq!(found, [IpAddr::from([192, 0, 2, 2])]);
        response.answers.push(record("b.test", Data::Cname(name("a.test"))));
        assert!(addresses(&response, &query.question).len() <= 1, "a circle ends");
    }
}
