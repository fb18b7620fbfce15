//! Forwards: host addresses and ports, and Unix sockets of the host, that lead to one instance of the network.
//!
//! As text, on the command line and in the yard file:
//!
//! ```text
//! [ADDRESS:]PORTS[:PORTS][/tcp|/udp][/splice|/no-splice][/loopback][/proxy-v1|/proxy-v2]
//! 8081                        127.0.0.1:8081 to the instance's 8081, TCP
//! 8081:80                     127.0.0.1:8081 to the instance's 80
//! 0.0.0.0:8080:80/tcp         every IPv4 address of the host
//! [::1]:5353:53/udp           IPv6 addresses stand in brackets
//! 8000-8010:9000-9010         eleven ports
//! 8081:80/loopback            to port 80 of the instance's own 127.0.0.1, or ::1
//! 8081:80/proxy-v2            its first bytes say who the client is (the PROXY protocol)
//!
//! unix:PATH:PORT[/tcp][/mode=OCTAL][/splice|/no-splice][/loopback]
//! unix:/run/web.sock:80       a Unix socket that is made for it, for its owner alone
//! unix:web.sock:80/mode=666   for everybody who reaches its folder
//! ```

mod host;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use self::host::split_host;
pub use self::host::{HostSide, SocketFile};
use crate::control::{ControlError, ControlErrorKind};
use crate::delivery::{Delivery, DeliveryError};

/// Transport protocol of a forward.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One or more consecutive ports, none of them 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// The ports from `first` to `last`, both included; `None` if reversed or if it has port 0.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first != 0 && first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports: 1 to 65,535.
    #[must_use]
    pub fn count(self) -> u16 {
        (self.last - self.first).saturating_add(1)
    }

    /// Every port, ascending.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// True when a port is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl TryFrom<(u16, u16)> for Ports {
    type Error = ForwardError;

    fn try_from((first, last): (u16, u16)) -> Result<Self, ForwardError> {
        Self::new(first, last).ok_or_else(|| match first {
            0 => ForwardError::Port(first.to_string()),
            _ => ForwardError::Reversed { first, last },
        })
    }
}

impl From<Ports> for (u16, u16) {
    fn from(ports: Ports) -> Self {
        (ports.first, ports.last)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for Ports {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        Self::try_from((first, last))
    }
}

/// A forward from the host to the ports of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Forward {
    /// Transport protocol; that of a socket's clients is TCP.
    pub protocol: Protocol,
    /// Where clients come in.
    pub host: HostSide,
    /// Ports of the instance, as many as the host's, in the same order; one for a socket.
    pub guest_ports: Ports,
    /// How connections are handed over.
    pub delivery: Delivery,
    /// Name of the instance in the network. Not a part of the text form: parsing leaves it empty.
    pub instance: String,
}

impl Forward {
    /// The host addresses with the instance's port that each leads to; none for a socket.
    pub fn pairs(&self) -> impl Iterator<Item = (SocketAddr, u16)> + '_ {
        let ports = match self.host {
            HostSide::Ports(host, ports) => Some((host, ports)),
            HostSide::Socket(_) => None,
        };
        ports.into_iter().flat_map(move |(host, ports)| {
            let host_ports = ports.iter().map(move |port| SocketAddr::new(host, port));
            host_ports.zip(self.guest_ports.iter())
        })
    }

    /// True when both cannot be bound at once: same protocol, a common port, and the same
    /// address or an unspecified one of the family; or the same path.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.host.conflicts(&other.host)
    }

    /// The same with the path of its socket, if it has one, taken from `folder` unless it is absolute.
    #[must_use]
    pub fn within(self, folder: &std::path::Path) -> Self {
        Self { host: self.host.within(folder), ..self }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.host.socket().map(SocketFile::words).unwrap_or_default();
        let Self { protocol, host, guest_ports, delivery, .. } = self;
        write!(f, "{host}:{guest_ports}/{protocol}{words}{delivery}")
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (mut socket, rest) = match text.strip_prefix("unix:") {
            Some(text) => SocketFile::split(text).map(|(file, rest)| (Some(file), rest))?,
            None => (None, text),
        };
        let (rest, words) =
            rest.split_once('/').map_or((rest, None), |(rest, words)| (rest, Some(words)));
        let (mut protocol, mut delivery) = (Protocol::Tcp, Delivery::default());
        for (place, word) in words.into_iter().flat_map(|words| words.split('/')).enumerate() {
            match word {
                "tcp" if place == 0 => {}
                "udp" if place == 0 => protocol = Protocol::Udp,
                word if delivery.read(word) => {}
                word => {
                    let known = socket.as_mut().map(|file| file.read(word)).transpose()?;
                    if known != Some(true) {
                        return Err(ForwardError::Word(word.to_owned()));
                    }
                }
            }
        }
        let (host, guest_ports) = match socket {
            Some(file) => (HostSide::Socket(file), rest.parse()?),
            None => {
                let (host, rest) = split_host(rest)?;
                let (host_ports, guest_ports) = match rest.split_once(':') {
                    Some((host_ports, guest_ports)) => (host_ports.parse()?, guest_ports.parse()?),
                    None => (rest.parse()?, rest.parse()?),
                };
                (HostSide::Ports(host, host_ports), guest_ports)
            }
        };
        let instance = String::new();
        Self { protocol, host, guest_ports, delivery, instance }.checked()
    }
}

/// A [`Forward`] as messages have it, whose parts may not go together.
#[derive(Serialize, Deserialize)]
struct Written {
    protocol: Protocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_ports: Option<Ports>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<SocketFile>,
    guest_ports: Ports,
    #[serde(default, skip_serializing_if = "Delivery::is_default")]
    delivery: Delivery,
    instance: String,
}

impl From<Forward> for Written {
    fn from(forward: Forward) -> Self {
        let Forward { protocol, host, guest_ports, delivery, instance } = forward;
        let (host, host_ports, socket) = match host {
            HostSide::Ports(host, ports) => (Some(host), Some(ports), None),
            HostSide::Socket(file) => (None, None, Some(file)),
        };
        Self { protocol, host, host_ports, socket, guest_ports, delivery, instance }
    }
}

impl TryFrom<Written> for Forward {
    type Error = ForwardError;

    fn try_from(written: Written) -> Result<Self, ForwardError> {
        let Written { protocol, host, host_ports, socket, guest_ports, delivery, instance } =
            written;
        let host = match (host, host_ports, socket) {
            (Some(host), Some(ports), None) => HostSide::Ports(host, ports),
            (None, None, Some(file)) => HostSide::Socket(file),
            _ => return Err(ForwardError::Sides),
        };
        Self { protocol, host, guest_ports, delivery, instance }.checked()
    }
}

impl Forward {
    /// Both ranges must be equally long, and the options be those of the protocol.
    fn checked(self) -> Result<Self, ForwardError> {
        self.delivery.check(self.protocol)?;
        if let HostSide::Socket(file) = &self.host {
            file.check()?;
            match self {
                Self { protocol: Protocol::Udp, .. } => return Err(ForwardError::Datagrams),
                Self { delivery: Delivery { proxy: Some(_), .. }, .. } => {
                    return Err(ForwardError::NoClient);
                }
                _ => {}
            }
        }
        let (host, guest) = (self.host.count(), self.guest_ports.count());
        if host == guest { Ok(self) } else { Err(ForwardError::Lengths { host, guest }) }
    }
}

/// The socket of a forward that begins at one, as it came with the request.
///
/// # Errors
/// `Malformed`: it did not come, or nobody needs it.
pub(crate) fn listener(
    forward: &Forward,
    socket: Option<OwnedFd>,
) -> Result<Option<OwnedFd>, ControlError> {
    if forward.host.socket().is_some() == socket.is_some() {
        return Ok(socket);
    }
    let message =
        format!("the forward {forward} comes with a socket if it begins at one, and without else");
    Err(ControlError { kind: ControlErrorKind::Malformed, message })
}

/// Why the socket of a forward cannot be used.
pub(crate) fn not_adopted(forward: &Forward, error: &io::Error) -> ControlError {
    let kind = match error.kind() {
        io::ErrorKind::InvalidInput => ControlErrorKind::Malformed,
        _ => ControlErrorKind::Failed,
    };
    ControlError { kind, message: format!("cannot listen on the socket of {forward}: {error}") }
}

/// A port: digits only (no sign, no blank), 1 to 65535.
fn port(text: &str) -> Result<u16, ForwardError> {
    let refused = || ForwardError::Port(text.to_owned());
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    text.parse().ok().filter(|port| *port != 0).ok_or_else(refused)
}

/// What is wrong with the text of a forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// Neither digits nor in range.
    #[error("`{0}` is not a port: a port is a number from 1 to 65535")]
    Port(String),
    /// The range ends before it begins.
    #[error("the port range {first}-{last} is reversed: write {last}-{first}")]
    Reversed {
        /// As written.
        first: u16,
        /// As written.
        last: u16,
    },
    /// The two ranges differ in length.
    #[error(
        "{host} host port(s) cannot lead to {guest} instance port(s): both ranges must be equally long"
    )]
    Lengths {
        /// Host ports.
        host: u16,
        /// Instance ports.
        guest: u16,
    },
    /// Not an address.
    #[error("`{0}` is not a host address: expected one like 127.0.0.1, 0.0.0.0 or [::1]")]
    Address(String),
    /// An IPv6 address without brackets.
    #[error("`{0}`: an IPv6 address stands in brackets, as in [::1]:8080:80")]
    Brackets(String),
    /// Neither a protocol nor an option.
    #[error(
        "`{0}` is not a protocol: expected tcp or udp, and after it splice, no-splice, loopback, proxy-v1 or proxy-v2"
    )]
    Word(String),
    /// A Unix socket without path or port.
    #[error(
        "`unix:{0}` is not a forward: expected unix:PATH:PORT, as in unix:/run/web.sock:80/mode=660"
    )]
    Socket(String),
    /// Permissions of a socket.
    #[error("`{0}` are no permissions of a socket: expected octal digits, as in mode=660")]
    Mode(String),
    /// A Unix socket with UDP.
    #[error("a Unix socket takes connections, and no datagrams: leave udp out")]
    Datagrams,
    /// A Unix socket with a header that tells of clients.
    #[error("clients of a Unix socket have no address to tell of: leave proxy-v1 and proxy-v2 out")]
    NoClient,
    /// A message with ports and a socket, or without both.
    #[error("a forward begins either at host and host_ports, or at a socket")]
    Sides,
    /// Options that cannot be.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// Too many or too few parts.
    #[error(
        "`{0}` is not a forward: expected [ADDRESS:]PORTS[:PORTS][/tcp|/udp], as in 0.0.0.0:8080:80/tcp, or unix:PATH:PORT"
    )]
    Shape(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Forward>().map_or_else(|error| format!("error: {error}"), |f| f.to_string())
    }

    #[test]
    fn every_written_form_means_what_it_says() {
        for (text, means) in [
            ("8081", "127.0.0.1:8081:8081/tcp"),
            ("8081:80", "127.0.0.1:8081:80/tcp"),
            ("8081/udp", "127.0.0.1:8081:8081/udp"),
            ("127.0.0.1:8081", "127.0.0.1:8081:8081/tcp"),
            ("127.0.0.1:8081:8080", "127.0.0.1:8081:8080/tcp"),
            ("0.0.0.0:8080:80/tcp", "0.0.0.0:8080:80/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
            ("[::]:8080", "[::]:8080:8080/tcp"),
            ("8000-8010:9000-9010", "127.0.0.1:8000-8010:9000-9010/tcp"),
            ("8000-8010", "127.0.0.1:8000-8010:8000-8010/tcp"),
            ("1-65535", "127.0.0.1:1-65535:1-65535/tcp"),
            ("8081:80/splice", "127.0.0.1:8081:80/tcp/splice"),
            ("8081:80/tcp/no-splice", "127.0.0.1:8081:80/tcp/no-splice"),
            ("[::1]:8081/loopback", "[::1]:8081:8081/tcp/loopback"),
            ("8081:80/proxy-v1", "127.0.0.1:8081:80/tcp/proxy-v1"),
            ("8081:80/tcp/proxy-v2/splice", "127.0.0.1:8081:80/tcp/splice/proxy-v2"),
            ("8081/tcp/loopback/splice", "127.0.0.1:8081:8081/tcp/splice/loopback"),
            ("unix:/run/web.sock:80", "unix:/run/web.sock:80/tcp"),
            ("unix:web.sock:80/mode=660", "unix:web.sock:80/tcp/mode=660"),
            ("unix:a:b/c:80/tcp/no-splice/mode=0666", "unix:a:b/c:80/tcp/mode=666/no-splice"),
            ("unix:/run/web.sock:80/loopback/mode=600", "unix:/run/web.sock:80/tcp/loopback"),
        ] {
            assert_eq!(canonical(text), means, "{text}");
            assert_eq!(canonical(means), means, "the canonical form parses back");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, says) in [
            ("", "`` is not a port"),
            ("0", "`0` is not a port"),
            ("70000", "`70000` is not a port"),
            ("8081:0", "`0` is not a port"),
            ("+80", "`+80` is not a port"),
            ("80 ", "`80 ` is not a port"),
            ("8081:", "`` is not a port"),
            (":80", "`` is not a host address"),
            ("8010-8000", "the port range 8010-8000 is reversed: write 8000-8010"),
            ("8000-8010:9000", "11 host port(s) cannot lead to 1 instance port(s)"),
            ("1-2-3", "`2-3` is not a port"),
            ("localhost:80", "`localhost` is not a host address"),
            ("127.0.0.256:80", "`127.0.0.256` is not a host address"),
            ("80:80:80", "`80` is not a host address"),
            ("::1:8080:80", "an IPv6 address stands in brackets"),
            ("[::1]", "is not a forward"),
            ("[::1]8080", "is not a forward"),
            ("[127.0.0.1]:8080", "`127.0.0.1` is not a host address"),
            ("80/sctp", "`sctp` is not a protocol"),
            ("80/", "`` is not a protocol"),
            ("80/tcp/udp", "`udp` is not a protocol"),
            ("80/udp/splice", "only TCP is spliced"),
            ("80/udp/proxy-v1", "datagrams have no header of the PROXY protocol"),
            ("80/proxy", "expected tcp or udp, and after it splice, no-splice, loopback, proxy-v1"),
            ("80/loopback/no-splice", "is reached by splicing only"),
            ("80/mode=660", "`mode=660` is not a protocol"),
            (
                "unix:/run/web.sock",
                "`unix:/run/web.sock` is not a forward: expected unix:PATH:PORT",
            ),
            ("unix::80", "is not a forward: expected unix:PATH:PORT"),
            ("unix:/run/:80", "is not a forward: expected unix:PATH:PORT"),
            ("unix:/run/..:80", "is not a forward: expected unix:PATH:PORT"),
            ("unix:/run/web.sock:0", "`0` is not a port"),
            ("unix:/run/web.sock:80-81", "1 host port(s) cannot lead to 2 instance port(s)"),
            ("unix:/run/web.sock:80/udp", "takes connections, and no datagrams"),
            ("unix:/run/web.sock:80/proxy-v1", "have no address to tell of"),
            ("unix:/run/web.sock:80/mode=8", "`8` are no permissions of a socket"),
            ("unix:/run/web.sock:80/mode=1777", "`1777` are no permissions of a socket"),
            ("unix:/run/web.sock:80/mode=", "`` are no permissions of a socket"),
            ("1.2.3.4:1:2:3", "is not a forward"),
        ] {
            let error = text.parse::<Forward>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn pairs_run_in_step() {
        let forward: Forward = "0.0.0.0:8000-8002:9000-9002".parse().unwrap();
        let pairs: Vec<_> = forward.pairs().map(|(at, port)| (at.port(), port)).collect();
        assert_eq!(pairs, [(8000, 9000), (8001, 9001), (8002, 9002)]);
        assert_eq!(forward.host.count(), 3);
        let socket: Forward = "unix:/run/web.sock:80".parse().unwrap();
        assert_eq!(socket.pairs().count(), 0);
    }

    #[test]
    fn conflicts_follow_what_the_kernel_would_refuse() {
        let conflict = |a: &str, b: &str| {
            let (a, b): (Forward, Forward) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.conflicts(&b), b.conflicts(&a));
            a.conflicts(&b)
        };
        assert!(conflict("8080", "8000-8090"));
        assert!(conflict("0.0.0.0:8080", "8080:80"));
        assert!(!conflict("8080", "8080/udp"));
        assert!(!conflict("[::1]:8080", "8080"));
        assert!(!conflict("127.0.0.2:8080", "127.0.0.1:8080"));
        assert!(conflict("unix:/run/web.sock:80", "unix:/run/web.sock:81/mode=660"));
        assert!(!conflict("unix:/run/web.sock:80", "unix:/run/www.sock:80"));
        assert!(!conflict("unix:/run/web.sock:80", "80"));
    }

    #[test]
    fn a_message_whose_parts_do_not_go_together_is_refused() {
        let forward: Forward = "8000-8010".parse().unwrap();
        let json = serde_json::to_string(&forward).unwrap();
        assert_eq!(serde_json::from_str::<Forward>(&json).unwrap(), forward);
        assert!(
            serde_json::from_str::<Forward>(&json.replace("[8000,8010]", "[8010,8000]")).is_err()
        );
        let error = |from: &str, to: &str| {
            let message = json.replacen(from, to, 1);
            serde_json::from_str::<Forward>(&message).expect_err(&message).to_string()
        };
        assert!(error("[8000,8010]", "[8000,8000]").contains("both ranges must be equally long"));
        let with = |delivery: &str| format!("\"udp\",\"delivery\":{delivery}");
        assert!(error("\"tcp\"", &with("{\"splice\":true}")).contains("only TCP is spliced"));
        assert!(error("\"tcp\"", &with("{\"proxy\":\"v1\"}")).contains("no header"));
        let socket = "\"socket\":{\"path\":\"/run/web.sock\",\"mode\":432},\"guest_ports\"";
        assert!(error("\"guest_ports\"", socket).contains("or at a socket"));
        let forward: Forward = "unix:/run/web.sock:80/mode=660".parse().unwrap();
        let json = serde_json::to_string(&forward).unwrap();
        assert!(json.contains("\"socket\":{\"path\":\"/run/web.sock\",\"mode\":432}"), "{json}");
        assert_eq!(serde_json::from_str::<Forward>(&json).unwrap(), forward);
        let wrong = json.replace("432", "4096");
        assert!(serde_json::from_str::<Forward>(&wrong).is_err());
    }
}
