//! A NAT of any behaviour, as a core without IO: addresses in, addresses out.
//!
//! It translates what is known of a UDP packet, its two ends; who moves packets asks it for each. Labs put
//! it behind a TUN device, tests into virtual time.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::kind::{Filtering, Mapping};

/// Destinations that one mapping remembers, most. When there are more, the filter forgets all.
const MAX_CONTACTS: usize = 1024;

/// How a NAT picks the port of a new mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The local port, or the next one that is free.
    Preserve,
    /// The local port and so much, or the next one that is free.
    Shift(u16),
    /// The port before and so much; negative steps go down.
    Sequential(i16),
    /// Any free one.
    Random,
    /// Any free one that is even or odd as the local port is.
    Parity,
}

/// What a NAT does with packets from inside to one of its own mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hairpinning {
    /// They are dropped.
    Drop,
    /// They come in with the sender's external address (RFC 4787, REQ-9).
    External,
    /// They come in with the sender's internal address.
    Internal,
}

/// What a NAT does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// How external addresses are chosen. With none the NAT is a firewall.
    pub mapping: Mapping,
    /// Who may send to them.
    pub filtering: Filtering,
    /// Which port a new one gets.
    pub allocation: Allocation,
    /// The ports there are.
    pub ports: RangeInclusive<u16>,
    /// How long a mapping stays without packets from inside (RFC 4787, REQ-5 and REQ-6).
    pub life: Duration,
    /// What happens to packets from inside to an external address.
    pub hairpin: Hairpinning,
}

impl Behaviour {
    /// One that keeps ports where it can, and mappings for five minutes.
    pub const fn new(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> Self {
        Self {
            mapping,
            filtering,
            allocation,
            ports: 1024..=65535,
            life: Duration::from_secs(300),
            hairpin: Hairpinning::Drop,
        }
    }
}

/// What has a mapping of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    source: SocketAddr,
    address: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Debug)]
struct Mapped {
    flow: Flow,
    contacts: BTreeSet<SocketAddr>,
    expires: Instant,
}

/// A NAT.
#[derive(Debug)]
pub struct Nat {
    behaviour: Behaviour,
    external: IpAddr,
    flows: HashMap<Flow, SocketAddr>,
    mappings: HashMap<SocketAddr, Mapped>,
    last: u16,
    rng: SmallRng,
}

/// A packet's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who sends it.
    pub source: SocketAddr,
    /// Who is to get it.
    pub destination: SocketAddr,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes out.
    Out(Ends),
    /// It goes in.
    In(Ends),
    /// It is dropped.
    Dropped,
}

impl Nat {
    /// A NAT with one external address.
    pub fn new(behaviour: Behaviour, external: IpAddr, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let last = rng.random_range(behaviour.ports.clone());
        Self { behaviour, external, flows: HashMap::new(), mappings: HashMap::new(), last, rng }
    }

    /// Takes a packet from inside.
    pub fn handle_outbound(&mut self, now: Instant, ends: Ends) -> Fate {
        let Some(external) = self.map(now, ends) else { return Fate::Dropped };
        let is_ours = |address: SocketAddr| self.mappings.contains_key(&address);
        if ends.destination.ip() != self.external && !is_ours(ends.destination) {
            return Fate::Out(Ends { source: external, ..ends });
        }
        let source = match self.behaviour.hairpin {
            Hairpinning::Drop => return Fate::Dropped,
            Hairpinning::External => external,
            Hairpinning::Internal => ends.source,
        };
        // The filter looks at the external address, which is what the receiver may have sent to.
        match self.admit(now, Ends { source: external, destination: ends.destination }) {
            Some(destination) => Fate::In(Ends { source, destination }),
            None => Fate::Dropped,
        }
    }

    /// Takes a packet from outside.
    pub fn handle_inbound(&mut self, now: Instant, ends: Ends) -> Fate {
        match self.admit(now, ends) {
            Some(destination) => Fate::In(Ends { destination, ..ends }),
            None => Fate::Dropped,
        }
    }

    /// The external address of a flow from inside, made if it is not there.
    fn map(&mut self, now: Instant, ends: Ends) -> Option<SocketAddr> {
        let flow = self.flow(ends);
        let known = self.flows.get(&flow).copied().filter(|external| {
            self.mappings.get(external).is_some_and(|mapped| mapped.expires > now)
        });
        let external = match known {
            Some(external) => external,
            None => self.make(now, flow)?,
        };
        let mapped = self.mappings.get_mut(&external)?;
        mapped.expires = now + self.behaviour.life;
        if mapped.contacts.len() == MAX_CONTACTS {
            mapped.contacts.clear();
        }
        mapped.contacts.insert(ends.destination);
        Some(external)
    }

    fn flow(&self, Ends { source, destination }: Ends) -> Flow {
        let (address, port) = match self.behaviour.mapping {
            Mapping::None | Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(destination.ip()), None),
            Mapping::AddressAndPortDependent => (Some(destination.ip()), Some(destination.port())),
        };
        Flow { source, address, port }
    }

    fn make(&mut self, now: Instant, flow: Flow) -> Option<SocketAddr> {
        let external = if self.behaviour.mapping == Mapping::None {
            flow.source
        } else {
            SocketAddr::new(self.external, self.allocate(now, flow.source.port())?)
        };
        if let Some(old) = self.mappings.remove(&external) {
            self.flows.remove(&old.flow);
        }
        let contacts = BTreeSet::new();
        self.mappings.insert(external, Mapped { flow, contacts, expires: now });
        self.flows.insert(flow, external);
        Some(external)
    }

    /// A free port for a new mapping; `None` if there is none.
    fn allocate(&mut self, now: Instant, local: u16) -> Option<u16> {
        let (low, high) = (*self.behaviour.ports.start(), *self.behaviour.ports.end());
        let count = i32::from(high) - i32::from(low) + 1;
        let nth =
            |number: i32| u16::try_from(i32::from(low) + number.rem_euclid(count)).unwrap_or(low);
        let place = |port: u16| i32::from(port) - i32::from(low);
        let (first, step) = match self.behaviour.allocation {
            Allocation::Preserve => (place(local), 1),
            Allocation::Shift(by) => (place(local) + i32::from(by), 1),
            Allocation::Sequential(by) => (place(self.last) + i32::from(by), i32::from(by)),
            Allocation::Random => (self.rng.random_range(0..count), 1),
            Allocation::Parity => {
                let any = self.rng.random_range(0..count);
                let odd = (i32::from(nth(any)) ^ i32::from(local)) & 1;
                (any + odd, 2)
            }
        };
        let external = self.external;
        let is_free = |port: &u16| {
            let there = self.mappings.get(&SocketAddr::new(external, *port));
            there.is_none_or(|mapped| mapped.expires <= now)
        };
        let port = (0..count).map(|number| nth(first + number * step)).find(is_free)?;
        self.last = port;
        Some(port)
    }

    /// The inner end of a mapping, if the filter lets the packet in.
    fn admit(&self, now: Instant, Ends { source, destination }: Ends) -> Option<SocketAddr> {
        let mapped = self.mappings.get(&destination).filter(|mapped| mapped.expires > now)?;
        let admitted = match self.behaviour.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                mapped.contacts.iter().any(|contact| contact.ip() == source.ip())
            }
            Filtering::AddressAndPortDependent => mapped.contacts.contains(&source),
        };
        admitted.then_some(mapped.flow.source)
    }
}
