//! Join strings: everything that a new peer must be told, in one word.
//!
//! ```text
//! netyard://TOKEN.SECRET@HOST:PORT[/NETWORK]?ca=sha256:PIN
//! ```
//!
//! `TOKEN` names the token at the hub, `SECRET` proves that one was given it; the hub keeps only a hash of
//! the secret. `PIN` is the SHA-256 of the certificate of the hub's own authority: a peer trusts no other.
//! All three are base64url. `NETWORK` is one of the hub's networks; without it its main one. `HOST` is a name, an IPv4 address, or an IPv6 address in brackets.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::identity::Pin;
use crate::text;

const SCHEME: &str = "netyard://";

/// The longest name of a network, bytes.
const MAX_NETWORK: usize = 32;

/// Which token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub [u8; 6]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        text::decode(text)
            .map(Self)
            .ok_or(JoinError("the token's name is not base64url of 6 bytes"))
    }
}

/// What proves a token: 128 bits that nobody can guess. It is never printed but in join strings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A join string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The token.
    pub token: TokenId,
    /// Its proof.
    pub secret: Secret,
    /// The hub.
    pub hub: Endpoint,
    /// Which of its networks; `None`: the main one.
    pub network: Option<String>,
    /// The hub's authority.
    pub pin: Pin,
}

/// Where a hub listens, as others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// A text that is no join string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}; a join string is netyard://TOKEN.SECRET@HOST:PORT[/NETWORK]?ca=sha256:PIN")]
pub struct JoinError(&'static str);

impl FromStr for Join {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let rest = text.trim().strip_prefix(SCHEME).ok_or(JoinError("it begins otherwise"))?;
        let (credentials, rest) = rest.split_once('@').ok_or(JoinError("it has no @"))?;
        let (token, secret) =
            credentials.split_once('.').ok_or(JoinError("it has no dot before the @"))?;
        let (hub, pin) =
            rest.split_once("?ca=sha256:").ok_or(JoinError("it has no ?ca=sha256:"))?;
        let (hub, network) = match hub.split_once('/') {
            Some((hub, network)) if is_network(network) => (hub, Some(network.to_owned())),
            Some(_) => {
                return Err(JoinError("its network is not of lower-case letters, digits and -"));
            }
            None => (hub, None),
        };
        let secret = text::decode(secret)
            .ok_or(JoinError("its secret is not base64url of 16 bytes; was it cut off?"))?;
        let pin = text::decode(pin)
            .ok_or(JoinError("its pin is not base64url of 32 bytes; was it cut off?"))?;
        Ok(Self {
            token: token.parse()?,
            secret: Secret(secret),
            hub: hub.parse()?,
            network,
            pin: Pin(pin),
        })
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = text::encode(&self.secret.0);
        let network = self.network.as_ref().map_or(String::new(), |name| format!("/{name}"));
        write!(f, "{SCHEME}{}.{secret}@{}{network}?ca=sha256:{}", self.token, self.hub, self.pin)
    }
}

/// Whether a text can be the name of a hub's network: up to 32 lower-case letters, digits and `-`.
#[must_use]
pub fn is_network(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NETWORK).contains(&name.len()) && name.bytes().all(plain)
}

impl FromStr for Endpoint {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let (host, port) = text.rsplit_once(':').ok_or(JoinError("its hub has no port"))?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or(JoinError("its hub's port is not a number from 1 to 65535"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => v6,
            Some(_) => return Err(JoinError("what its hub has in brackets is no IPv6 address")),
            None => host,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        let name = !host.contains(':') || host.parse::<Ipv6Addr>().is_ok();
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) || !name {
            return Err(JoinError("its hub is neither a name nor an address"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(host: &str) -> Join {
        Join {
            token: TokenId([1; 6]),
            secret: Secret([0xfe; 16]),
            hub: Endpoint { host: host.into(), port: 6441 },
            network: None,
            pin: Pin([3; 32]),
        }
    }

    #[test]
    fn reads_what_it_writes() {
        for host in ["192.0.2.1", "hub.example.net", "2001:db8::1"] {
            let text = join(host).to_string();
            assert_eq!(text.parse(), Ok(join(host)), "{text}");
            assert_eq!(format!(" {text}\n").parse(), Ok(join(host)), "pasted with white space");
        }
        assert!(join("2001:db8::1").to_string().contains("@[2001:db8::1]:6441?"));
        let office = Join { network: Some("office-2".into()), ..join("192.0.2.1") };
        assert!(office.to_string().contains(":6441/office-2?ca="));
        assert_eq!(office.to_string().parse(), Ok(office));
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused_with_the_reason() {
        let text = join("192.0.2.1").to_string();
        for len in 0..text.len() {
            assert!(text[..len].parse::<Join>().is_err(), "{}", &text[..len]);
        }
        let reason = |text: String| text.parse::<Join>().unwrap_err().to_string();
        assert!(reason(text.replace("netyard", "https")).contains("begins otherwise"));
        assert!(reason(text.replace(":6441", ":0")).contains("port"));
        assert!(reason(text.replace("192.0.2.1", "a b")).contains("neither a name"));
        for network in ["", "a/b", "Office", "../x"] {
            let text = text.replace(":6441", &format!(":6441/{network}"));
            assert!(reason(text).contains("its network"), "{network}");
        }
        assert!(reason(text[..text.len() - 1].into()).contains("cut off"));
    }

    #[test]
    fn the_secret_is_not_printed() {
        let shown = format!("{:?}", join("192.0.2.1"));
        assert!(!shown.contains("254") && !shown.contains(&text::encode(&[0xfe; 16])), "{shown}");
    }
}
