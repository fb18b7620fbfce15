//! How a WebSocket is opened: one HTTP/1.1 request and one answer (RFC 6455 section 4).

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Where hubs answer.
pub const PATH: &str = "/ws";

/// The version of what is spoken on the WebSocket.
pub const PROTOCOL: &str = "netyard.v1";

/// The longest request or answer, bytes. Nobody has proved anything yet, so little is kept.
pub const MAX_LEN: usize = 8 * 1024;

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// More fields than proxies add.
const MAX_FIELDS: usize = 64;

/// What came instead of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// It is no HTTP, or too long.
    #[error("malformed HTTP")]
    Malformed,
    /// A request for something else; the status of the answer.
    #[error("a request for something else")]
    Other(u16),
    /// The other end does not speak [`PROTOCOL`].
    #[error("the other end does not speak {PROTOCOL}")]
    Version,
    /// The hub, or what stands before it, answered with this status.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The answer does not prove that the request was understood.
    #[error("an answer that is no WebSocket's")]
    Accept,
}

impl UpgradeError {
    /// What a hub answers to such a request.
    #[must_use]
    pub fn answer(&self) -> String {
        let status = match self {
            Self::Other(404) => "404 Not Found",
            Self::Other(405) => "405 Method Not Allowed\r\nAllow: GET",
            Self::Other(_) => {
                "426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
            }
            _ => "400 Bad Request",
        };
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    }
}

/// A peer's request. `key` is 16 random bytes.
#[must_use]
pub fn request(host: &str, key: &[u8; 16]) -> String {
    format!(
        "GET {PATH} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n",
        STANDARD.encode(key)
    )
}

/// Reads a peer's request: its length and the hub's answer; `None`: it is not all there yet.
///
/// # Errors
/// It is something else.
pub fn accept(bytes: &[u8]) -> Result<Option<(usize, String)>, UpgradeError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let Some(len) = complete(request.parse(bytes), bytes)? else { return Ok(None) };
    if request.method != Some("GET") {
        return Err(UpgradeError::Other(405));
    }
    if request.path.is_none_or(|path| path.split('?').next() != Some(PATH)) {
        return Err(UpgradeError::Other(404));
    }
    let fields = &*request.headers;
    if !has(fields, "connection", "upgrade")
        || !has(fields, "upgrade", "websocket")
        || !has(fields, "sec-websocket-version", "13")
    {
        return Err(UpgradeError::Other(426));
    }
    let key = field(fields, "sec-websocket-key").ok_or(UpgradeError::Malformed)?;
    if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(UpgradeError::Malformed);
    }
    if !has(fields, "sec-websocket-protocol", PROTOCOL) {
        return Err(UpgradeError::Version);
    }
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n",
        proof(key)
    );
    Ok(Some((len, answer)))
}

/// Reads a hub's answer to the request with `key`: its length; `None`: it is not all there yet.
///
/// # Errors
/// It is no hub's.
pub fn accepted(bytes: &[u8], key: &[u8; 16]) -> Result<Option<usize>, UpgradeError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let Some(len) = complete(response.parse(bytes), bytes)? else { return Ok(None) };
    match response.code {
        Some(101) => {}
        Some(status) => return Err(UpgradeError::Status(status)),
        None => return Err(UpgradeError::Malformed),
    }
    if field(response.headers, "sec-websocket-accept") != Some(&proof(&STANDARD.encode(key))) {
        return Err(UpgradeError::Accept);
    }
    match has(response.headers, "sec-websocket-protocol", PROTOCOL) {
        true => Ok(Some(len)),
        false => Err(UpgradeError::Version),
    }
}

fn complete(parsed: httparse::Result<usize>, bytes: &[u8]) -> Result<Option<usize>, UpgradeError> {
    match parsed {
        Ok(httparse::Status::Complete(len)) => Ok(Some(len)),
        Ok(httparse::Status::Partial) if bytes.len() < MAX_LEN => Ok(None),
        _ => Err(UpgradeError::Malformed),
    }
}

fn proof(key: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    STANDARD.encode(hash.finish())
}

fn field<'a>(fields: &'a [httparse::Header<'_>], name: &str) -> Option<&'a str> {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
    str::from_utf8(field.value).ok().map(str::trim)
}

/// Whether a field that is a list has this value.
fn has(fields: &[httparse::Header<'_>], name: &str, value: &str) -> bool {
    let same = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let values = same.filter_map(|field| str::from_utf8(field.value).ok());
    values.flat_map(|list| list.split(',')).any(|item| item.trim().eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_its_answer_fit() {
        let key = [7; 16];
        let request = request("hub:6441", &key);
        for len in 0..request.len() {
            assert_eq!(accept(&request.as_bytes()[..len]), Ok(None));
        }
        let (len, answer) = accept(request.as_bytes()).unwrap().unwrap();
        assert_eq!(len, request.len());
        assert_eq!(accepted(answer.as_bytes(), &key), Ok(Some(answer.len())));
        assert_eq!(accepted(answer.as_bytes(), &[8; 16]), Err(UpgradeError::Accept));
    }

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        // RFC 6455 section 1.3.
        assert_eq!(proof("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_is_no_upgrade_is_answered() {
        let good = request("hub", &[7; 16]);
        let refused = |text: &str| accept(text.as_bytes()).unwrap_err();
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: hub\r\n\r\n"), UpgradeError::Other(404));
        assert_eq!(refused("GET /ws HTTP/1.1\r\nHost: hub\r\n\r\n"), UpgradeError::Other(426));
        assert_eq!(refused(&good.replace("GET", "POST")), UpgradeError::Other(405));
        assert_eq!(refused(&good.replace(PROTOCOL, "chat")), UpgradeError::Version);
        assert_eq!(refused("\x16\x03\x01 what is this\r\n\r\n"), UpgradeError::Malformed);
        assert!(UpgradeError::Other(404).answer().starts_with("HTTP/1.1 404 "));
        assert_eq!(
            accept(&vec![b'G'; MAX_LEN]),
            Err(UpgradeError::Malformed),
            "a request without an end"
        );
    }
}
