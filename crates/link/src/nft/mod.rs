//! nftables over netlink: build a ruleset, commit it in one transaction, read it back.
//!
//! A [`Table`] holds [`Chain`]s, [`Set`]s and [`Rule`]s. They are values; a [`Batch`] says what to
//! add, change and remove, and [`Nftables::commit`] does all of it or nothing.
//!
//! A rule reads from left to right, as in nft(8):
//!
//! ```
//! use netyard_link::nft::{Chain, Hook, Priority, Rule, Selector, Set, Table, Type};
//!
//! let table = Table::inet("demo");
//! let published = Set::map(&table, "published", [Type::Protocol, Type::Port], [Type::Ipv4, Type::Port]);
//! let chain = Chain::base(&table, "prerouting", Hook::NatPrerouting, Priority::DNAT);
//! // fib daddr type local dnat ip to meta l4proto . th dport map @published
//! let rule = Rule::new(&chain)
//!     .is(Selector::FibDestinationType, netyard_link::nft::LOCAL)
//!     .load([Selector::L4Protocol, Selector::DestinationPort])
//!     .map(&published)
//!     .dnat_loaded();
//! assert!(rule.check().is_ok());
//! ```
//!
//! # Ownership
//!
//! A table made with [`Table::owned`] belongs to the socket of the [`Nftables`] that made it: nobody
//! else can change it, and `nft flush ruleset` passes it over. The kernel removes such a table when
//! the socket closes, so the flag is only ever used together with `persist`, which keeps the table
//! (Linux 6.9); an orphan is adopted by making it again with both flags. Elsewhere tables are
//! ordinary ones.

mod batch;
mod decode;
mod expression;
mod rule;
mod set;
mod state;
pub mod trace;
mod value;
mod watch;
mod words;

use netyard_sys::netlink::Protocol;
use serde::{Deserialize, Serialize};

pub use batch::Batch;
pub use rule::{Limit, Reject, Rule};
pub use set::{Data, Datum, Element, Set, Verdict};
pub use state::{ChainState, Counter, ElementState, RuleState, SetState, TableState};
pub use value::{CtState, LOCAL, Selector, Target, Type, Value};
pub use watch::{Event, Watch};

use crate::attribute::Message;
use crate::connection::Connection;
use crate::error::{Error, Result, errno};
use crate::netns::Netns;

/// `NFNL_SUBSYS_NFTABLES`, in the high byte of a message's kind.
const SUBSYSTEM: u16 = 10;

/// How often a transaction is begun again when somebody else's came between.
const ATTEMPTS: usize = 32;

/// Room for one transaction, bytes: about 100,000 elements.
const ROOM: usize = 16 << 20;

/// Which packets a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// ARP.
    Arp,
    /// Frames that a bridge forwards.
    Bridge,
    /// Frames of one link, before everything else.
    Netdev,
}

impl Family {
    /// `NFPROTO_*`.
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            _ => return None,
        })
    }

    /// The word that nft(8) uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
    pub(crate) comment: Option<String>,
    pub(crate) owned: bool,
}

impl Table {
    /// One of this family.
    #[must_use]
    pub fn new(family: Family, name: &str) -> Self {
        Self { family, name: name.to_owned(), comment: None, owned: false }
    }

    /// One for IPv4 and IPv6.
    #[must_use]
    pub fn inet(name: &str) -> Self {
        Self::new(Family::Inet, name)
    }

    /// A text beside its name, up to 127 bytes: whose it is.
    #[must_use]
    pub fn comment(mut self, text: &str) -> Self {
        self.comment = Some(text.to_owned());
        self
    }

    /// Owned by the socket that makes it, and persistent. Only where
    /// [`crate::Features::table_owner`] says so.
    #[must_use]
    pub fn owned(mut self, owned: bool) -> Self {
        self.owned = owned;
        self
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.family.as_str(), self.name)
    }
}

/// Where a base chain sees packets, and what it may do with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hook {
    /// Everything that arrives, before routing.
    Prerouting,
    /// What is for this machine.
    Input,
    /// What goes through this machine.
    Forward,
    /// What this machine sends.
    Output,
    /// What leaves, after routing.
    Postrouting,
    /// Arriving connections: change their destination.
    NatPrerouting,
    /// This machine's connections: change their destination.
    NatOutput,
    /// Connections to this machine: change their source.
    NatInput,
    /// Leaving connections: change their source.
    NatPostrouting,
    /// Sent packets, to be routed again if their mark changes.
    RouteOutput,
}

impl Hook {
    /// Hook number (`NF_INET_*`, the same for bridges) and chain type.
    const fn parts(self) -> (u32, &'static str) {
        match self {
            Self::Prerouting => (0, "filter"),
            Self::Input => (1, "filter"),
            Self::Forward => (2, "filter"),
            Self::Output => (3, "filter"),
            Self::Postrouting => (4, "filter"),
            Self::NatPrerouting => (0, "nat"),
            Self::NatInput => (1, "nat"),
            Self::NatOutput => (3, "nat"),
            Self::NatPostrouting => (4, "nat"),
            Self::RouteOutput => (3, "route"),
        }
    }
}

/// The order of base chains at one hook: the lowest sees packets first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub i32);

impl Priority {
    /// Before connection tracking.
    pub const RAW: Self = Self(-300);
    /// Changes of packets before routing.
    pub const MANGLE: Self = Self(-150);
    /// Changes of destinations.
    pub const DNAT: Self = Self(-100);
    /// Filtering.
    pub const FILTER: Self = Self(0);
    /// Changes of sources.
    pub const SNAT: Self = Self(100);
    /// Filtering of frames that a bridge forwards.
    pub const BRIDGE_FILTER: Self = Self(-200);
}

/// What a base chain does with packets that its rules say nothing about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// They go on.
    Accept,
    /// They go no further.
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    hook: Hook,
    priority: Priority,
    policy: Policy,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    table: Table,
    name: String,
    base: Option<Base>,
}

impl Chain {
    /// One that others jump to.
    #[must_use]
    pub fn regular(table: &Table, name: &str) -> Self {
        Self { table: table.clone(), name: name.to_owned(), base: None }
    }

    /// One that packets enter by themselves; they go on when no rule decides.
    #[must_use]
    pub fn base(table: &Table, name: &str, hook: Hook, priority: Priority) -> Self {
        let base = Some(Base { hook, priority, policy: Policy::Accept });
        Self { base, ..Self::regular(table, name) }
    }

    /// What a base chain does when no rule decides.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        if let Some(base) = &mut self.base {
            base.policy = policy;
        }
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }
}

/// A conversation with the kernel about the ruleset of one network namespace.
#[derive(Debug)]
pub struct Nftables {
    connection: Connection,
}

impl Nftables {
    /// About the calling thread's namespace.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> Result<Self> {
        Self::new(None)
    }

    /// About another namespace; the calling thread stays where it is.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        Self::new(Some(netns))
    }

    fn new(netns: Option<&Netns>) -> Result<Self> {
        let connection = Connection::open(Protocol::Netfilter, netns)?;
        let failed = |error| Error::io("make room for transactions", error);
        connection.socket().set_send_room(ROOM).map_err(failed)?;
        connection.socket().set_receive_room(ROOM).map_err(failed)?;
        Ok(Self { connection })
    }

    /// The number by which the kernel knows this socket: the owner of tables that it made.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.connection.socket().port()
    }

    /// Does all that the batch says, or nothing.
    ///
    /// # Errors
    /// The first thing that the kernel refused.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        self.send(batch, None)
    }

    /// Builds a batch from what is there and commits it, if nobody has changed the ruleset
    /// meanwhile; otherwise builds it again.
    ///
    /// # Errors
    /// As [`Nftables::commit`]; [`Error::Busy`]: others keep changing it.
    pub fn transact(&mut self, mut build: impl FnMut(&mut Self) -> Result<Batch>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            let batch = build(self)?;
            match self.send(&batch, Some(generation)) {
                Err(error) if error.errno() == Some(errno::ERESTART) => {}
                result => return result,
            }
        }
        Err(Error::Busy { what: "the nftables ruleset", action: "changed", attempts: ATTEMPTS })
    }

    fn send(&mut self, batch: &Batch, generation: Option<u32>) -> Result<()> {
        let encoded = batch.encode(generation, || self.connection.number())?;
        self.connection.send_bytes(&encoded.bytes, &|| batch.describe())?;
        // The kernel has acted; the acknowledgements wait.
        let operation = |number| encoded.operation(batch, number);
        let answers = self.connection.acknowledgements(operation)?;
        let mut acknowledged = false;
        for (number, outcome) in answers {
            outcome?;
            acknowledged |= number == encoded.last;
        }
        if acknowledged || batch.is_empty() {
            return Ok(());
        }
        Err(Error::Malformed { operation: batch.describe() })
    }

    /// The number of the ruleset's present state: it changes with every transaction of anybody.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn generation(&mut self) -> Result<u32> {
        const GETGEN: u8 = 16;
        const NFTA_GEN_ID: u16 = 1;
        let operation = || "ask for the ruleset's generation".to_owned();
        let answer = self.connection.get(message(GETGEN, 0, 0), operation, |answer| {
            answer.split::<4>()?.1.find(NFTA_GEN_ID)?.be32()
        })?;
        answer.ok_or_else(|| Error::Malformed { operation: operation() })
    }
}

/// A request about nf_tables: the header and `struct nfgenmsg` (family, version, 16 bits unused).
fn message(kind: u8, family: u8, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | u16::from(kind), flags).fixed(&[family, 0, 0, 0])
}
