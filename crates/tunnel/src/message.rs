//! Control messages: JSON in text frames, `{"v":1,"t":"connect","b":{..}}`.
//!
//! A peer says `connect`, the hub answers `connected` or `reject`. From then on data flows, and either may
//! say `bye`. Unknown fields are ignored; a message that is not known is `None` here and answered with
//! `unsupported`, so that newer ends can try.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::text;

/// The version of the messages.
pub const VERSION: u16 = 1;

/// The longest message, bytes.
pub const MAX_LEN: usize = 64 * 1024;

/// The longest name of a node, bytes.
pub const MAX_NAME: usize = 63;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", content = "b", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Message {
    /// A peer logs in.
    Connect(Connect),
    /// The hub lets it in.
    Connected(Connected),
    /// The hub does not.
    Reject(Reject),
    /// The hub says what is new of other peers.
    News(News),
    /// A peer says which names there are behind it.
    Names(Names),
    /// The sender goes, and why.
    Bye(Bye),
    /// The sender does not know a message of this type.
    Unsupported(Unsupported),
}

/// A peer logs in: a known node by the proof of its key alone, a new one with a token beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The node's public key (Ed25519).
    #[serde(with = "text::serde")]
    pub node: [u8; 32],
    /// The node's signature of what only this connection has; see [`crate::identity`].
    #[serde(with = "text::serde")]
    pub proof: [u8; 64],
    /// What it calls itself.
    pub name: String,
    /// The token it was given; only needed the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Credential>,
    /// What is behind it, for the hub's administrator to accept; `/0`: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// The peer that shall lead what it sends to the outside; `None`: the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
    /// Whether it wants to know the names of others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names: bool,
    /// What goes by UDP, either way, if that gets through.
    #[serde(default)]
    pub by_udp: ByUdp,
    /// Which network of the hub; `None`: its main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// A random number of this run of the program: who moves has the one it had, another machine with the same key
    /// has not.
    #[serde(default)]
    pub run: u64,
    /// The program and its version.
    #[serde(default)]
    pub agent: String,
    /// Its clock, milliseconds of Unix time.
    #[serde(default)]
    pub clock_ms: u64,
}

/// What goes by UDP beside the WebSocket, if that gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByUdp {
    /// What is not TCP.
    NotTcp,
    /// Every packet.
    Everything,
    /// Nothing does, or something that this version does not know.
    #[default]
    #[serde(other)]
    Nothing,
}

/// A token with its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Which token.
    #[serde(with = "text::serde")]
    pub id: [u8; 6],
    /// Its secret.
    #[serde(with = "text::serde")]
    pub secret: [u8; 16],
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({}, ..)", text::encode(&self.id))
    }
}

/// What a peer needs to know to be on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// The name under which the hub knows the node.
    pub name: String,
    /// How often this node has logged in; a login ends those before it.
    pub epoch: u64,
    /// The network.
    pub network: Ipv4Net,
    /// The node's address.
    pub address: Ipv4Addr,
    /// The far end of its link, the next hop to the network; `None`: the link itself leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub far: Option<Ipv4Addr>,
    /// The hub's address.
    pub hub: Ipv4Addr,
    /// The network's IPv6 prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network6: Option<Ipv6Net>,
    /// The node's IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// What the hub answers by DNS at its address; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// What there is to know of other peers.
    #[serde(default)]
    pub news: News,
    /// The largest packet, bytes.
    pub mtu: u32,
    /// How many packets wait in the kernel for the tunnel.
    pub queue_length: u32,
    /// The hub's clock, milliseconds of Unix time.
    pub clock_ms: u64,
    /// The number of this lane in datagrams; `None`: nothing goes by UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<u32>,
}

/// What a hub answers by DNS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// The zone of the network's names.
    pub zone: String,
    /// Whether it finds out about all other names, too.
    #[serde(default)]
    pub everything: bool,
}

/// What a peer may know of others, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct News {
    /// What is behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// What is behind itself and was accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<IpNet>,
    /// Their names and the hub's; only for who has asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Name>,
}

/// What is behind a peer, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names {
    /// Their names, without a zone: each is one label.
    pub names: Vec<Name>,
}

impl Names {
    /// How many there may be.
    pub const MOST: usize = 1024;

    /// As many as may be and as a message has room for.
    #[must_use]
    pub fn fit(mut self) -> Self {
        self.names.truncate(Self::MOST);
        while serde_json::to_vec(&self).map_or(0, |bytes| bytes.len()) > News::ROOM {
            self.names.truncate(self.names.len() * 3 / 4);
        }
        self
    }
}

/// A machine's name, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The machine's name; from a hub with the network's zone.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl News {
    /// Room for it in a message, bytes: what is beside it needs less than the rest.
    const ROOM: usize = MAX_LEN - 8 * 1024;

    /// As much of it as a message has room for; names are left out first.
    #[must_use]
    pub fn fit(mut self) -> Self {
        while serde_json::to_vec(&self).map_or(0, |bytes| bytes.len()) > Self::ROOM {
            let list = (self.names.len(), self.subnets.len());
            self.names.truncate(list.0 * 3 / 4);
            if list.0 == 0 {
                self.subnets.truncate(list.1 * 3 / 4);
            }
        }
        self
    }
}

/// Why a peer is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// What programs look at.
    pub code: RejectCode,
    /// What people read.
    pub message: String,
    /// The hub's clock, milliseconds of Unix time; 0: it does not say.
    #[serde(default)]
    pub clock_ms: u64,
}

/// Why a peer is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RejectCode {
    /// There is no such token, or its secret is another.
    BadToken,
    /// The token's time is over.
    Expired,
    /// The token has been used as often as it may be.
    Used,
    /// The token or the node was revoked.
    Revoked,
    /// The node is not known, and brought no token.
    Unknown,
    /// The signature is not that of the node's key for this connection.
    BadProof,
    /// Every address is in use.
    NoAddress,
    /// The hub cannot look it up at the moment.
    Busy,
    /// The peer that it has chosen as its exit is none.
    NoExit,
    /// The message makes no sense.
    Malformed,
    /// A reason that this version does not know.
    #[serde(other)]
    Other,
}

impl RejectCode {
    /// Whether trying again can help.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Busy | Self::NoAddress | Self::Other)
    }
}

/// The sender goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub reason: ByeReason,
}

/// Why somebody goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ByeReason {
    /// It stops.
    Stop,
    /// The same node has logged in again.
    Replaced,
    /// The node was revoked.
    Revoked,
    /// The node has another address, which it is told when it logs in again.
    Readdressed,
    /// A reason that this version does not know.
    #[serde(other)]
    Other,
}

/// The sender does not know a message of this type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A text that is no control message at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is too long, not JSON, or not an envelope.
    #[error("a control message that is none: {0}")]
    Malformed(String),
    /// It is of another version.
    #[error("a control message of version {0}, not {VERSION}")]
    Version(u16),
}

/// What every message is in.
#[derive(Deserialize)]
struct Envelope {
    v: u16,
    t: String,
}

#[derive(Serialize)]
struct Outgoing<'a> {
    v: u16,
    #[serde(flatten)]
    message: &'a Message,
}

impl Message {
    /// Reads a text frame; a type that is not known is returned as its name.
    ///
    /// # Errors
    /// It is no control message of this version.
    pub fn parse(text: &[u8]) -> Result<Result<Self, String>, MessageError> {
        let malformed = |error: serde_json::Error| MessageError::Malformed(error.to_string());
        if text.len() > MAX_LEN {
            return Err(MessageError::Malformed(format!("{} bytes", text.len())));
        }
        let envelope: Envelope = serde_json::from_slice(text).map_err(malformed)?;
        if envelope.v != VERSION {
            return Err(MessageError::Version(envelope.v));
        }
        match envelope.t.as_str() {
            "connect" | "connected" | "reject" | "news" | "names" | "bye" | "unsupported" => {
                serde_json::from_slice(text).map(Ok).map_err(malformed)
            }
            _ => Ok(Err(envelope.t)),
        }
    }

    /// The text frame.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and addresses: nothing in them can fail.
        serde_json::to_vec(&Outgoing { v: VERSION, message: self }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_and_look_as_documented() {
        let bye = Message::Bye(Bye { reason: ByeReason::Replaced });
        assert_eq!(bye.to_bytes(), br#"{"v":1,"t":"bye","b":{"reason":"replaced"}}"#);
        let connect = Message::Connect(Connect {
            node: [1; 32],
            proof: [2; 64],
            name: "laptop".into(),
            token: Some(Credential { id: [3; 6], secret: [4; 16] }),
            subnets: vec!["192.168.7.0/24".parse().unwrap()],
            exit: Some("office".into()),
            names: true,
            by_udp: ByUdp::NotTcp,
            network: Some("lab".into()),
            run: u64::MAX,
            agent: "netyard".into(),
            clock_ms: 5,
        });
        for message in [bye, connect] {
            assert_eq!(Message::parse(&message.to_bytes()), Ok(Ok(message)));
        }
    }

    #[test]
    fn news_never_outgrow_a_message() {
        let name =
            |n: u32| Name { name: format!("{n:0>100}"), addresses: vec![[10, 0, 0, 1].into()] };
        let subnet = |n: u32| IpNet::new(Ipv6Addr::from(u128::from(n) << 64).into(), 64).unwrap();
        for (names, subnets) in [(1000, 10), (0, 9000), (3000, 9000)] {
            let news = News {
                names: (0..names).map(name).collect(),
                subnets: (0..subnets).map(subnet).collect(),
                accepted: (0..64).map(subnet).collect(),
            };
            let behind = Message::Names(Names { names: news.names.clone() }.fit());
            assert_eq!(Message::parse(&behind.to_bytes()), Ok(Ok(behind)), "{names} names");
            let fit = Message::News(news.fit());
            assert!(Message::parse(&fit.to_bytes()).is_ok(), "{names} names, {subnets} subnets");
        }
    }

    #[test]
    fn what_is_newer_is_not_an_error() {
        let parse = |text: &str| Message::parse(text.as_bytes());
        assert_eq!(parse(r#"{"v":1,"t":"drain","b":{}}"#), Ok(Err("drain".into())));
        let bye = Message::Bye(Bye { reason: ByeReason::Other });
        assert_eq!(parse(r#"{"v":1,"t":"bye","b":{"reason":"lunch","x":1},"id":4}"#), Ok(Ok(bye)));
        assert_eq!(parse(r#"{"v":2,"t":"bye","b":{}}"#), Err(MessageError::Version(2)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in ["", "{}", "[1]", r#"{"v":1}"#, r#"{"v":1,"t":"bye"}"#, "\u{0}", "{\"v\":1,"] {
            assert!(Message::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let short = r#"{"v":1,"t":"connect","b":{"node":"AAAA","proof":"","name":""}}"#;
        assert!(Message::parse(short.as_bytes()).is_err());
        assert!(Message::parse(&vec![b' '; MAX_LEN + 1]).is_err());
    }

    #[test]
    fn secrets_are_not_printed() {
        let credential = Credential { id: [3; 6], secret: [4; 16] };
        assert!(!format!("{credential:?}").contains("4, 4"));
    }
}
