//! How connections that come in by a host port are handed to an instance, where the network moves its own packets.
//!
//! *By frames*: the gateway speaks TCP with the instance, which sees its client's address, or the gateway's for
//! clients of this machine. *By splicing*: the client's stream is joined to a socket inside the instance's network
//! namespace, and the kernel moves the bytes; the instance sees its own address. Either way the first bytes of a
//! connection can tell the instance who the client is: the PROXY protocol.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::forward::Protocol;

/// How connections that come in by a host port are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Delivery {
    /// Whether they are spliced where they can be. `None`: those of clients on this machine's loopback, whose
    /// address means nothing to an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splice: Option<bool>,
    /// Whether they go to the instance's own loopback address, on which its program may listen alone. All of
    /// them are spliced: nothing else leads there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub loopback: bool,
    /// Whether the first bytes that an instance gets say who the client is, and in which form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyVersion>,
}

/// A form of the PROXY protocol's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
}

impl Delivery {
    /// What a word of a forward's text says; false if it is none.
    pub(crate) fn read(&mut self, word: &str) -> bool {
        match word {
            "splice" => self.splice = Some(true),
            "no-splice" => self.splice = Some(false),
            "loopback" => self.loopback = true,
            "proxy-v1" => self.proxy = Some(ProxyVersion::V1),
            "proxy-v2" => self.proxy = Some(ProxyVersion::V2),
            _ => return false,
        }
        true
    }

    /// True if nothing special is wanted.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it for a port of that protocol.
    ///
    /// # Errors
    /// [`DeliveryError`].
    pub fn check(self, protocol: Protocol) -> Result<(), DeliveryError> {
        match (self, protocol) {
            (Self { loopback: true, splice: Some(false), .. }, _) => {
                Err(DeliveryError::OnlySpliced)
            }
            (delivery, Protocol::Udp) if delivery.proxy.is_some() => Err(DeliveryError::NoHeader),
            (delivery, Protocol::Udp) if !delivery.is_default() => Err(DeliveryError::Datagrams),
            _ => Ok(()),
        }
    }

    /// True if something is wanted that only splicing can do.
    #[must_use]
    pub fn wants_splice(self) -> bool {
        self.loopback || self.splice == Some(true)
    }

    /// What is wrong with it on a bridge, where the kernel leads connections.
    ///
    /// # Errors
    /// [`DeliveryError`].
    pub fn check_bridge(self) -> Result<(), DeliveryError> {
        match self {
            it if it.wants_splice() => Err(DeliveryError::BridgeSplice),
            Self { proxy: Some(_), .. } => Err(DeliveryError::BridgeHeader),
            _ => Ok(()),
        }
    }

    /// Whether a connection of `client` is to be spliced.
    #[must_use]
    pub fn splices(self, client: IpAddr) -> bool {
        self.loopback || self.splice.unwrap_or_else(|| client.to_canonical().is_loopback())
    }
}

/// As the end of a forward's text.
impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.splice {
            Some(true) => f.write_str("/splice")?,
            Some(false) => f.write_str("/no-splice")?,
            None => {}
        }
        f.write_str(if self.loopback { "/loopback" } else { "" })?;
        f.write_str(match self.proxy {
            Some(ProxyVersion::V1) => "/proxy-v1",
            Some(ProxyVersion::V2) => "/proxy-v2",
            None => "",
        })
    }
}

/// What is wrong with a [`Delivery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// An instance's loopback without splicing.
    #[error(
        "the instance's loopback is reached by splicing only: leave out that nothing is spliced"
    )]
    OnlySpliced,
    /// Datagrams.
    #[error("only TCP is spliced: leave it out, or write tcp")]
    Datagrams,
    /// Datagrams.
    #[error("datagrams have no header of the PROXY protocol: leave it out, or write tcp")]
    NoHeader,
    /// Splicing on a bridge.
    #[error("networks on bridges splice no connections: take mode = \"user\"")]
    BridgeSplice,
    /// A header on a bridge.
    #[error(
        "networks on bridges put no PROXY header before connections, whose clients an instance sees there: \
         leave it out, or take mode = \"user\""
    )]
    BridgeHeader,
}

/// For serde.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_of_this_machine_are_spliced_unless_asked() {
        let spliced = |delivery: Delivery, client: &str| delivery.splices(client.parse().unwrap());
        let default = Delivery::default();
        assert!(spliced(default, "127.0.0.1"));
        assert!(spliced(default, "::1"));
        assert!(!spliced(default, "192.0.2.1"));
        assert!(!spliced(Delivery { splice: Some(false), ..default }, "127.0.0.1"));
        assert!(spliced(Delivery { splice: Some(true), ..default }, "192.0.2.1"));
        assert!(spliced(Delivery { loopback: true, ..default }, "192.0.2.1"));
    }
}
