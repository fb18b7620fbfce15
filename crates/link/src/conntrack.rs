//! Connections that the kernel tracks, over ctnetlink: list, count, remove.
//!
//! A translation (NAT) is decided for the first packet of a connection and kept here. Whoever takes
//! a rule or an element away must remove the connections that it made, or they go on as before: UDP
//! above all, which never says that it ends.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netyard_sys::netlink::Protocol;

use crate::attribute::{Answer, Attributes, Message};
use crate::connection::Connection;
use crate::error::{Error, Result, gone_is_done};
use crate::netns::Netns;

/// `NFNL_SUBSYS_CTNETLINK`, in the high byte of a message's kind.
const SUBSYSTEM: u16 = 1;
// enum cntl_msg_types
const GET: u16 = 1;
const DELETE: u16 = 2;

// linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

// enum tcp_conntrack of linux/netfilter/nf_conntrack_tcp.h: between these both ends have agreed to the
// connection, and not both of them have closed it.
const TCP_SYN_RECV: u8 = 2;
const TCP_LAST_ACK: u8 = 6;
/// `IPS_OFFLOAD`: packets pass the tracking by, which does not tell the state then.
const OFFLOADED: u32 = 1 << 14;

/// IPPROTO_TCP
const TCP: u8 = 6;

/// One direction of a connection. Ports are 0 where the protocol has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Transport protocol (6: TCP, 17: UDP).
    pub protocol: u8,
    /// Who sends.
    pub source: SocketAddr,
    /// Who receives.
    pub destination: SocketAddr,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As its first packet was, before translation.
    pub original: Tuple,
    /// As answers are, before they are translated back: its source is the translated destination.
    pub reply: Tuple,
    /// `IPS_*` of linux/netfilter/nf_conntrack_common.h.
    pub status: u32,
    /// Its mark.
    pub mark: u32,
    /// Its zone.
    pub zone: u16,
    /// How long it stays if nothing more comes; `None` for one that is on its way out.
    pub expires: Option<Duration>,
    /// A TCP connection that can carry data: the first packet was answered, and at least one end has
    /// not closed its side. False for other protocols.
    pub open: bool,
    id: u32,
    raw_original: Vec<u8>,
}

/// Which connections. What is `None` does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Of the mark's bits that the second number has, exactly those of the first.
    pub mark: Option<(u32, u32)>,
    /// Zone.
    pub zone: Option<u16>,
    /// Transport protocol.
    pub protocol: Option<u8>,
    /// Where it was going before translation.
    pub original_destination: Option<IpAddr>,
    /// The port it was going to before translation.
    pub original_port: Option<u16>,
    /// Where it goes in truth: the translated destination.
    pub destination: Option<IpAddr>,
}

impl Filter {
    /// Every connection.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Those with this mark.
    #[must_use]
    pub fn mark(mark: u32) -> Self {
        Self { mark: Some((mark, u32::MAX)), ..Self::default() }
    }

    /// Those that went to this address, protocol and port before translation.
    #[must_use]
    pub fn to(protocol: u8, destination: SocketAddr) -> Self {
        Self {
            protocol: Some(protocol),
            original_destination: Some(destination.ip()),
            original_port: Some(destination.port()),
            ..Self::default()
        }
    }

    /// Whether a connection is one of them.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        fn is<T: PartialEq>(wanted: Option<T>, is: T) -> bool {
            wanted.is_none_or(|wanted| wanted == is)
        }
        self.mark.is_none_or(|(mark, mask)| entry.mark & mask == mark & mask)
            && is(self.zone, entry.zone)
            && is(self.protocol, entry.original.protocol)
            && is(self.original_destination, entry.original.destination.ip())
            && is(self.original_port, entry.original.destination.port())
            && is(self.destination, entry.reply.source.ip())
    }
}

/// A conversation with the kernel about the connections of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    connection: Connection,
}

impl Conntrack {
    /// About the calling thread's namespace.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> Result<Self> {
        Ok(Self { connection: Connection::open(Protocol::Netfilter, None)? })
    }

    /// About another namespace; the calling thread stays where it is.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        Ok(Self { connection: Connection::open(Protocol::Netfilter, Some(netns))? })
    }

    /// The connections that match.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn entries(&mut self, filter: &Filter) -> Result<Vec<Entry>> {
        self.dump(filter, Some)
    }

    /// How many connections match.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn count(&mut self, filter: &Filter) -> Result<usize> {
        Ok(self.dump(filter, |_| Some(()))?.len())
    }

    fn dump<T>(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(Entry) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut request = message(GET);
        // The kernel passes over connections with other marks by itself.
        if let Some((mark, mask)) = filter.mark {
            request.put_be32(CTA_MARK, mark & mask).put_be32(CTA_MARK_MASK, mask);
        }
        self.connection.dump(
            &request,
            || "list the connections".into(),
            |answer| Entry::read(answer).filter(|entry| filter.matches(entry)).and_then(&mut take),
        )
    }

    /// Removes exactly this connection; one that is gone already is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove(&mut self, entry: &Entry) -> Result<()> {
        let family = if entry.original.source.is_ipv4() { 2 } else { 10 };
        let mut request = Message::new(SUBSYSTEM << 8 | DELETE, 0).fixed(&[family, 0, 0, 0]);
        request.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.raw(&entry.raw_original);
        });
        request.put_be32(CTA_ID, entry.id);
        if entry.zone != 0 {
            request.put_be16(CTA_ZONE, entry.zone);
        }
        let tuple = &entry.original;
        let operation = || format!("forget {} -> {}", tuple.source, tuple.destination);
        gone_is_done(self.connection.request(request, operation))
    }

    /// Removes the connections that match; returns how many there were. A filter that matches
    /// everything is refused: other people's connections are not ours to cut.
    ///
    /// # Errors
    /// [`Error::Invalid`] for [`Filter::all`]; what the kernel said.
    pub fn remove_matching(&mut self, filter: &Filter) -> Result<usize> {
        if *filter == Filter::all() {
            return Err(Error::Invalid("every connection is more than ours".into()));
        }
        let entries = self.entries(filter)?;
        for entry in &entries {
            self.remove(entry)?;
        }
        Ok(entries.len())
    }
}

/// A request about both families: the header and `struct nfgenmsg`.
fn message(kind: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, 0).fixed(&[0; 4])
}

impl Entry {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        let (_, attributes) = answer.split::<4>()?;
        let original = attributes.find(CTA_TUPLE_ORIG)?;
        let number = |kind| attributes.find(kind).and_then(|value| value.be32());
        let state = attributes.find(CTA_PROTOINFO).and_then(|info| {
            let tcp = info.nested().find(CTA_PROTOINFO_TCP)?;
            tcp.nested().find(CTA_PROTOINFO_TCP_STATE)?.u8()
        });
        let status = number(CTA_STATUS).unwrap_or(0);
        let tuple = Tuple::read(original.nested())?;
        let open = match state {
            Some(state) => (TCP_SYN_RECV..=TCP_LAST_ACK).contains(&state),
            None => tuple.protocol == TCP && status & OFFLOADED != 0,
        };
        Some(Self {
            original: tuple,
            reply: Tuple::read(attributes.find(CTA_TUPLE_REPLY)?.nested())?,
            status,
            mark: number(CTA_MARK).unwrap_or(0),
            zone: attributes.find(CTA_ZONE).and_then(|zone| zone.be16()).unwrap_or(0),
            expires: number(CTA_TIMEOUT).map(|seconds| Duration::from_secs(seconds.into())),
            open,
            id: number(CTA_ID)?,
            raw_original: original.0.to_vec(),
        })
    }
}

impl Tuple {
    fn read(tuple: Attributes<'_>) -> Option<Self> {
        let ip = tuple.find(CTA_TUPLE_IP)?.nested();
        let protocol = tuple.find(CTA_TUPLE_PROTO)?.nested();
        let either = |v4, v6| ip.find(v4).or_else(|| ip.find(v6))?.address();
        let port = |kind| protocol.find(kind).and_then(|port| port.be16()).unwrap_or(0);
        Some(Self {
            protocol: protocol.find(CTA_PROTO_NUM)?.u8()?,
            source: SocketAddr::new(
                either(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
                port(CTA_PROTO_SRC_PORT),
            ),
            destination: SocketAddr::new(
                either(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
                port(CTA_PROTO_DST_PORT),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mark: u32, destination: &str, translated: &str) -> Entry {
        let source = "192.0.2.1:4000".parse().unwrap();
        let destination: SocketAddr = destination.parse().unwrap();
        let original = Tuple { protocol: 17, source, destination };
        let reply =
            Tuple { protocol: 17, source: translated.parse().unwrap(), destination: source };
        let (status, zone, expires, id, raw_original) = (0, 0, None, 1, Vec::new());
        Entry { original, reply, status, mark, zone, expires, open: false, id, raw_original }
    }

    #[test]
    fn filters_match_what_they_name() {
        let entry = entry(0x17, "203.0.113.1:53", "10.0.0.2:5353");
        assert!(Filter::all().matches(&entry));
        assert!(Filter::mark(0x17).matches(&entry) && !Filter::mark(0x7).matches(&entry));
        assert!(Filter { mark: Some((0x10, 0xf0)), ..Filter::all() }.matches(&entry));
        assert!(Filter::to(17, "203.0.113.1:53".parse().unwrap()).matches(&entry));
        assert!(!Filter::to(6, "203.0.113.1:53".parse().unwrap()).matches(&entry));
        assert!(!Filter::to(17, "203.0.113.1:54".parse().unwrap()).matches(&entry));
        let to =
            |address: &str| Filter { destination: Some(address.parse().unwrap()), ..Filter::all() };
        assert!(to("10.0.0.2").matches(&entry) && !to("203.0.113.1").matches(&entry));
    }
}
