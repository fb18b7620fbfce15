//! An HTTP proxy on the way to the hub: CONNECT (RFC 9110 section 9.3.6), with a name and a password if it
//! wants to know who asks (Basic, RFC 7617).
//!
//! Behind the proxy's answer the connection is the hub's. The proxy sees TLS and nothing of it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::join::Endpoint;

const SCHEME: &str = "http://";
/// The port of a proxy whose URL names none (RFC 9110 section 4.2.1).
const PORT: u16 = 80;
/// The longest answer, bytes, and the most fields in it.
const MAX_LEN: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// A proxy: `http://[USER:PASSWORD@]HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    endpoint: Endpoint,
    /// Name and password as they are sent.
    credentials: Option<String>,
}

/// A text that names no proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}; a proxy is http://[USER:PASSWORD@]HOST[:PORT], where %40 stands for @ and so on")]
pub struct NoProxy(&'static str);

/// Why a proxy does not lead to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyError {
    /// It wants to know who asks, or does not know who that is.
    #[error("the proxy wants a name and a password, or others than were given (407)")]
    Credentials,
    /// It said something else.
    #[error("the proxy does not connect to the hub: it answered {0}")]
    Status(u16),
    /// It is none.
    #[error("what answers as the proxy speaks no HTTP")]
    Malformed,
}

impl FromStr for Proxy {
    type Err = NoProxy;

    fn from_str(text: &str) -> Result<Self, NoProxy> {
        let rest = text.trim().strip_prefix(SCHEME).ok_or(NoProxy("it begins otherwise"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, host) = match rest.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, rest),
        };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let host = if has_port { host.to_owned() } else { format!("{host}:{PORT}") };
        let endpoint = host.parse().map_err(|_| NoProxy("its host or port is none"))?;
        let credentials = credentials.map(|credentials| {
            let (name, password) =
                credentials.split_once(':').ok_or(NoProxy("its user has no password"))?;
            let wrong = NoProxy("its user or password has a % without two digits");
            let mut both = decode(name).ok_or(wrong)?;
            // RFC 7617 section 2: the first colon ends the name.
            if both.contains(&b':') {
                return Err(NoProxy("its user has a colon"));
            }
            both.push(b':');
            both.extend(decode(password).ok_or(wrong)?);
            Ok(STANDARD.encode(both))
        });
        Ok(Self { endpoint, credentials: credentials.transpose()? })
    }
}

/// Bytes of a text in which % and two hexadecimal digits stand for a byte (RFC 3986 section 2.1).
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_number)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Some(bytes)
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.endpoint)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Proxy {
    /// Where it listens.
    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Has the proxy at the other end of `stream` connect it to the hub.
    pub(crate) async fn connect(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        hub: &Endpoint,
    ) -> std::io::Result<Result<(), ProxyError>> {
        stream.write_all(self.request(hub).as_bytes()).await?;
        let mut bytes = Vec::new();
        loop {
            let mut piece = [0; 1024];
            let len = stream.read(&mut piece).await?;
            bytes.extend_from_slice(piece.get(..len).unwrap_or_default());
            match answer(&bytes) {
                Some(answered) => return Ok(answered),
                None if len == 0 => return Ok(Err(ProxyError::Malformed)),
                None => {}
            }
        }
    }

    fn request(&self, hub: &Endpoint) -> String {
        let who = match &self.credentials {
            Some(credentials) => format!("Proxy-Authorization: Basic {credentials}\r\n"),
            None => String::new(),
        };
        format!("CONNECT {hub} HTTP/1.1\r\nHost: {hub}\r\n{who}\r\n")
    }
}

/// What a proxy answered; `None`: it is not all there yet.
fn answer(bytes: &[u8]) -> Option<Result<(), ProxyError>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_LEN => return None,
        _ => return Some(Err(ProxyError::Malformed)),
    };
    Some(match response.code {
        // Whoever connects speaks first in TLS: what is behind the answer is not the hub's.
        Some(200..300) if len == bytes.len() => Ok(()),
        Some(407) => Err(ProxyError::Credentials),
        Some(status @ (..200 | 300..)) => Err(ProxyError::Status(status)),
        _ => Err(ProxyError::Malformed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_asked() {
        let hub: Endpoint = "hub.example:6441".parse().unwrap();
        let plain: Proxy = "http://proxy".parse().unwrap();
        assert_eq!(plain.to_string(), "http://proxy:80");
        assert_eq!(
            plain.request(&hub),
            "CONNECT hub.example:6441 HTTP/1.1\r\nHost: hub.example:6441\r\n\r\n"
        );
        // RFC 7617 section 2.
        let known: Proxy = "http://Aladdin:open%20sesame@[2001:db8::1]:3128/".parse().unwrap();
        assert_eq!(known.endpoint().to_string(), "[2001:db8::1]:3128");
        assert!(
            known
                .request(&hub)
                .contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n")
        );
        assert!(!format!("{known:?} {known}").contains("QWxh"), "secrets are not printed");
        let v6: Proxy = "http://[2001:db8::1]".parse().unwrap();
        assert_eq!(v6.endpoint().port, 80);
        for wrong in [
            "proxy:80",
            "https://proxy",
            "http://",
            "http://a@b",
            "http://a:%4@b",
            "http://a%3ab:c@d",
        ] {
            assert!(wrong.parse::<Proxy>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_heard_to_their_end() {
        let good = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\n";
        for len in 0..good.len() {
            assert_eq!(answer(&good[..len]), None);
        }
        assert_eq!(answer(good), Some(Ok(())));
        assert_eq!(answer(&[&good[..], b"x"].concat()), Some(Err(ProxyError::Malformed)));
        let status = |text: &str| answer(format!("HTTP/1.0 {text}\r\n\r\n").as_bytes());
        assert_eq!(status("407 Who are you"), Some(Err(ProxyError::Credentials)));
        assert_eq!(status("403 Forbidden"), Some(Err(ProxyError::Status(403))));
        assert_eq!(answer(b"\x16\x03\x01"), Some(Err(ProxyError::Malformed)));
        assert_eq!(answer(&vec![b'H'; MAX_LEN]), Some(Err(ProxyError::Malformed)));
    }
}
