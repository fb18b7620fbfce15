//! Answering: Binding requests of RFC 8489, with the behaviour discovery of RFC 5780 and for classic
//! clients that of RFC 3489.
//!
//! The server keeps nothing between requests. It has one endpoint, or four: two addresses with the same
//! two ports each, which is what behaviour discovery takes.

use std::net::{IpAddr, SocketAddr};

use super::ask::SOFTWARE;
use super::attribute::Kind;
use super::message::{Builder, Class, Malformed, Message, Method};

/// Attributes that a request may have and that are understood.
const UNDERSTOOD: [Kind; 6] = [
    Kind::CHANGE_REQUEST,
    Kind::RESPONSE_PORT,
    Kind::PADDING,
    // A server that asks for no password takes what comes with one (RFC 8489, section 9).
    Kind::USERNAME,
    Kind::MESSAGE_INTEGRITY,
    Kind::MESSAGE_INTEGRITY_SHA256,
];

/// A second address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alternate {
    primary: SocketAddr,
    secondary: SocketAddr,
}

/// What a server knows: its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    alternate: Option<Alternate>,
}

/// Addresses or ports that make no server of four endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoints {
    /// The two addresses, or the two ports, are one.
    #[error("behaviour discovery takes two addresses and two ports that differ, not {0} and {1}")]
    Same(SocketAddr, SocketAddr),
    /// One address is IPv4, the other IPv6.
    #[error("{0} and {1} are of two families: each family takes two addresses of its own")]
    Families(IpAddr, IpAddr),
    /// An address is that of no card.
    #[error("{0} stands for any address: name the two addresses that clients reach")]
    Unspecified(IpAddr),
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// From which of the server's endpoints.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// Its payload.
    pub bytes: Vec<u8>,
}

impl Server {
    /// A server that tells addresses and refuses the rest with error 420.
    pub const fn single() -> Self {
        Self { alternate: None }
    }

    /// A server of four endpoints: both addresses with both ports.
    ///
    /// # Errors
    /// The two do not differ in address and port, or are not of one family.
    pub fn full(primary: SocketAddr, secondary: SocketAddr) -> Result<Self, BadEndpoints> {
        let (first, second) = (primary.ip(), secondary.ip());
        for address in [first, second] {
            if address.is_unspecified() {
                return Err(BadEndpoints::Unspecified(address));
            }
        }
        if first.is_ipv4() != second.is_ipv4() {
            return Err(BadEndpoints::Families(first, second));
        }
        if first == second || primary.port() == secondary.port() {
            return Err(BadEndpoints::Same(primary, secondary));
        }
        Ok(Self { alternate: Some(Alternate { primary, secondary }) })
    }

    /// The endpoints to listen on; none for a server that was not given two.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.alternate.map_or_else(Vec::new, |Alternate { primary, secondary }| {
            vec![
                primary,
                SocketAddr::new(primary.ip(), secondary.port()),
                SocketAddr::new(secondary.ip(), primary.port()),
                secondary,
            ]
        })
    }

    /// Answers a datagram that arrived at `local`. `None`: it is no request.
    pub fn handle_datagram(
        &self,
        local: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Option<Response> {
        let request = request(bytes)?;
        match self.change(local, &request) {
            Ok((origin, port)) => {
                let to = SocketAddr::new(from.ip(), port.unwrap_or(from.port()));
                Some(Response {
                    from: origin,
                    to,
                    bytes: self.success(&request, local, origin, from),
                })
            }
            Err(bytes) => Some(Response { from: local, to: from, bytes }),
        }
    }

    /// Answers a message of a stream. What changes where answers come from or go to has no meaning
    /// there, and is refused.
    pub fn handle_message(
        &self,
        local: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let request = request(bytes)?;
        let unknown = unknown(&request, |kind| {
            UNDERSTOOD.contains(&kind)
                && kind != Kind::CHANGE_REQUEST
                && kind != Kind::RESPONSE_PORT
        });
        if unknown.is_empty() {
            return Some(self.success(&request, local, local, from));
        }
        Some(refusal(&request, &unknown))
    }

    /// Where the answer comes from, and the port it goes to if that is named; or the error that the
    /// request has earned.
    fn change(
        &self,
        local: SocketAddr,
        request: &Message<'_>,
    ) -> Result<(SocketAddr, Option<u16>), Vec<u8>> {
        // RFC 5780, section 6.1: a server without a second address knows none of these.
        let unknown = unknown(request, |kind| {
            UNDERSTOOD.contains(&kind)
                && (self.alternate.is_some()
                    || ![Kind::CHANGE_REQUEST, Kind::RESPONSE_PORT, Kind::PADDING].contains(&kind))
        });
        if !unknown.is_empty() && !request.id().is_classic() {
            return Err(refusal(request, &unknown));
        }
        let bad = |_: Malformed| {
            Builder::new(Class::Error, Method::BINDING, request.id())
                .error_code(400, "Bad Request")
                .finish()
        };
        let change = request.change().map_err(bad)?.unwrap_or_default();
        let port = request.response_port().map_err(bad)?;
        // RFC 5780, section 7.6: the two must not come together.
        if port.is_some() && request.value(Kind::PADDING).is_some() {
            return Err(bad(Malformed::Value(Kind::PADDING)));
        }
        let Some(Alternate { primary, secondary }) = self.alternate else {
            // A classic request to change is answered from where it arrived, which the client sees.
            return Ok((local, None));
        };
        let other = |is_first| if is_first { secondary } else { primary };
        let mut origin = local;
        if change.address {
            origin.set_ip(other(local.ip() == primary.ip()).ip());
        }
        if change.port {
            origin.set_port(other(local.port() == primary.port()).port());
        }
        Ok((origin, port))
    }

    /// The answer to `request`, which arrived at `local` and is answered from `origin`.
    fn success(
        &self,
        request: &Message<'_>,
        local: SocketAddr,
        origin: SocketAddr,
        from: SocketAddr,
    ) -> Vec<u8> {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let answer = Builder::new(Class::Success, Method::BINDING, request.id());
        // RFC 5780, section 7.4, and RFC 3489: where a change of both would be answered from.
        let other = self.alternate.map(|Alternate { primary, secondary }| {
            let ip = if local.ip() == primary.ip() { secondary.ip() } else { primary.ip() };
            let second_port = local.port() == primary.port();
            SocketAddr::new(ip, if second_port { secondary.port() } else { primary.port() })
        });
        if request.id().is_classic() {
            let answer =
                answer.address(Kind::MAPPED_ADDRESS, from).address(Kind::SOURCE_ADDRESS, origin);
            return match other {
                Some(other) => answer.address(Kind::CHANGED_ADDRESS, other).finish(),
                None => answer.finish(),
            };
        }
        let mut answer = answer.xor_mapped(from).address(Kind::MAPPED_ADDRESS, from);
        if !origin.ip().is_unspecified() {
            answer = answer.address(Kind::RESPONSE_ORIGIN, origin);
        }
        if let Some(other) = other {
            answer = answer.address(Kind::OTHER_ADDRESS, other);
        }
        // RFC 5780, section 7.6: as much as the client sent, so that nobody else gets more.
        if let Some(padding) = request.value(Kind::PADDING) {
            answer = answer.attribute(Kind::PADDING, &vec![0; padding.len()]);
        }
        answer.software(SOFTWARE).finish_with_fingerprint()
    }
}

/// Reads a Binding request.
fn request(bytes: &[u8]) -> Option<Message<'_>> {
    let message = Message::parse(bytes).ok()?;
    (message.class() == Class::Request && message.method() == Method::BINDING).then_some(message)
}

/// Required attributes that are not understood.
fn unknown(request: &Message<'_>, understood: impl Fn(Kind) -> bool) -> Vec<Kind> {
    let kinds = request.attributes().map(|attribute| attribute.kind);
    kinds.filter(|kind| kind.is_required() && !understood(*kind)).collect()
}

fn refusal(request: &Message<'_>, unknown: &[Kind]) -> Vec<u8> {
    Builder::new(Class::Error, Method::BINDING, request.id())
        .error_code(420, "Unknown Attribute")
        .unknown_attributes(unknown)
        .software(SOFTWARE)
        .finish_with_fingerprint()
}
