//! Names: a stub resolver over the stack's own UDP and TCP (RFC 1034 section 5.3.1, RFC 7766).
//!
//! A lookup asks for both kinds of addresses at once. It has no clock and no IO: it uses sockets of the
//! stack, hears their events, and lets time pass as everything else does.

mod exchange;
mod hosts;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use netyard_wire::dns::{A, AAAA, Data, Name, Rcode, Response};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use slab::Slab;

use crate::config::Dns;
use crate::{Error, Event, Stack};

use self::exchange::{Exchange, Outcome};
pub(crate) use self::hosts::Hosts;

/// Lookups at a time; each has two sockets.
const MAX_LOOKUPS: usize = 1024;
/// Names whose addresses are remembered.
const MAX_CACHED: usize = 256;
/// How long addresses are remembered at most, whatever their zone says.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// Names that a name may stand for, one after the other.
const MAX_ALIASES: usize = 16;

/// A lookup that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LookupId(usize);

#[derive(Debug)]
pub(crate) struct Resolver {
    settings: Dns,
    /// The configuration names no resolvers: those that the network names are asked.
    learns: bool,
    hosts: Hosts,
    /// By what was looked up, in lower case: until when, and the addresses.
    cache: HashMap<String, (Instant, Vec<IpAddr>)>,
    lookups: Slab<Lookup>,
    /// Whose sockets are whose: the lookup, and which of its questions.
    sockets: HashMap<Event, (usize, usize)>,
    finished: VecDeque<LookupId>,
    rng: StdRng,
}

/// Why a name has no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// There is no such name, or it has no address.
    NoName,
    /// Nobody has answered in time.
    Silence,
    /// The resolvers cannot be reached, or say that they cannot answer.
    Refused,
}

#[derive(Debug)]
struct Lookup {
    text: String,
    /// The name that is being asked for.
    name: Name,
    /// What to ask for when it does not exist.
    others: VecDeque<Name>,
    questions: [Option<Exchange>; 2],
    found: Vec<IpAddr>,
    ttl: Duration,
    failure: Failure,
    result: Option<io::Result<Vec<IpAddr>>>,
}

impl Resolver {
    /// `seed` must be unpredictable: identifications are made of it.
    pub(crate) fn new(settings: Dns, hosts: Hosts, seed: [u8; 32]) -> Self {
        Self {
            learns: settings.resolvers.is_empty(),
            settings,
            hosts,
            cache: HashMap::new(),
            lookups: Slab::new(),
            sockets: HashMap::new(),
            finished: VecDeque::new(),
            rng: StdRng::from_seed(seed),
        }
    }

    /// Begins to look a name up.
    ///
    /// # Errors
    /// `InvalidInput`: no such name can exist; `NotConnected`: no resolver is known; `ENOBUFS`: too
    /// many at a time.
    pub(crate) fn start(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        text: &str,
    ) -> io::Result<LookupId> {
        if self.lookups.len() >= MAX_LOOKUPS {
            return Err(Error::NoBuffers.into());
        }
        let known = self.known(stack, now, text);
        let mut others = if known.is_some() { VecDeque::new() } else { self.candidates(text)? };
        let name = others.pop_front().unwrap_or_else(Name::root);
        if self.learns {
            self.settings.resolvers = stack.resolvers(now);
        }
        if known.is_none() && self.settings.resolvers.is_empty() {
            let message = format!(
                "`{text}` cannot be looked up: neither the configuration nor the network names a \
                 resolver; add `dns ip=ADDRESS` to the configuration"
            );
            return Err(io::Error::new(io::ErrorKind::NotConnected, message));
        }
        let over = known.is_some();
        let place = self.lookups.insert(Lookup {
            text: text.to_owned(),
            name,
            others,
            questions: [None, None],
            found: Vec::new(),
            ttl: MAX_TTL,
            failure: Failure::NoName,
            result: known.map(Ok),
        });
        if over {
            self.finished.push_back(LookupId(place));
        } else {
            self.ask(stack, now, place);
        }
        Ok(LookupId(place))
    }

    /// What is known without asking.
    fn known(&self, stack: &Stack, now: Instant, text: &str) -> Option<Vec<IpAddr>> {
        if let Ok(ip) = text.parse() {
            return Some(vec![ip]);
        }
        let plain = text.strip_suffix('.').unwrap_or(text);
        let lower = plain.to_ascii_lowercase();
        if let Some(found) = self.hosts.get(&lower) {
            return Some(ordered(stack, now, found.to_vec()));
        }
        // RFC 6761 section 6.3: never asked of anybody.
        if lower == "localhost" || lower.ends_with(".localhost") {
            return Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let (until, found) = self.cache.get(&text.to_ascii_lowercase())?;
        (*until > now).then(|| ordered(stack, now, found.clone()))
    }

    /// The names that a text may mean, in the order in which they are asked for.
    fn candidates(&self, text: &str) -> io::Result<VecDeque<Name>> {
        let read = |text: &str| {
            text.parse::<Name>().map_err(|error| {
                let message = format!("`{text}` is no name of a host: {error}");
                io::Error::new(io::ErrorKind::InvalidInput, message)
            })
        };
        if let Some(whole) = text.strip_suffix('.') {
            return Ok(VecDeque::from([read(whole)?]));
        }
        let itself = read(text)?;
        let mut names: VecDeque<Name> = self
            .settings
            .search
            .iter()
            // What gets too long with a domain behind it does not exist there.
            .filter_map(|domain| format!("{text}.{domain}").parse().ok())
            .collect();
        match text.matches('.').count() >= self.settings.ndots {
            true => names.push_front(itself),
            false => names.push_back(itself),
        }
        Ok(names)
    }

    /// Asks for both kinds of addresses of a lookup's name.
    fn ask(&mut self, stack: &mut Stack, now: Instant, place: usize) {
        for (side, kind) in [A, AAAA].into_iter().enumerate() {
            let Some(lookup) = self.lookups.get_mut(place) else { return };
            let exchange = Exchange::new(lookup.name.clone(), kind);
            if let Some(question) = lookup.questions.get_mut(side) {
                *question = Some(exchange);
            }
            self.drive(stack, now, place, side, Exchange::attempt);
        }
    }

    /// Lets one question of a lookup take a step.
    fn drive(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        place: usize,
        side: usize,
        step: impl FnOnce(&mut Exchange, &mut Stack, Instant, &Dns, &mut StdRng) -> Option<Outcome>,
    ) {
        let Some(lookup) = self.lookups.get_mut(place) else { return };
        let Some(Some(question)) = lookup.questions.get_mut(side) else { return };
        let before = question.socket();
        let outcome = step(question, stack, now, &self.settings, &mut self.rng);
        let after = question.socket();
        if before != after {
            if let Some(socket) = before {
                self.sockets.remove(&socket);
            }
            if let Some(socket) = after {
                self.sockets.insert(socket, (place, side));
            }
        }
        let Some(outcome) = outcome else { return };
        if let Some(question) = lookup.questions.get_mut(side) {
            *question = None;
        }
        match outcome {
            Outcome::Answer(response) => lookup.learn(&response),
            Outcome::Silence => lookup.failure = Failure::Silence,
            Outcome::Refused => lookup.failure = Failure::Refused,
        }
        if lookup.questions.iter().all(Option::is_none) {
            self.conclude(stack, now, place);
        }
    }

    /// Both questions of a lookup are over.
    fn conclude(&mut self, stack: &mut Stack, now: Instant, place: usize) {
        let Some(lookup) = self.lookups.get_mut(place) else { return };
        if lookup.found.is_empty()
            && lookup.failure == Failure::NoName
            && let Some(name) = lookup.others.pop_front()
        {
            lookup.name = name;
            return self.ask(stack, now, place);
        }
        let found = std::mem::take(&mut lookup.found);
        lookup.result = Some(if found.is_empty() {
            Err(lookup.error())
        } else {
            if self.cache.len() >= MAX_CACHED {
                self.cache.retain(|_, (until, _)| *until > now);
            }
            // Where one kind of address could not be had, it is asked for again.
            if self.cache.len() < MAX_CACHED && lookup.failure == Failure::NoName {
                let entry = (now + lookup.ttl, found.clone());
                self.cache.insert(lookup.text.to_ascii_lowercase(), entry);
            }
            Ok(ordered(stack, now, found))
        });
        self.finished.push_back(LookupId(place));
    }

    /// Hears an event. False: it is of a socket that is not the resolver's.
    pub(crate) fn handle_event(&mut self, stack: &mut Stack, now: Instant, event: Event) -> bool {
        let Some((place, side)) = self.sockets.get(&event).copied() else { return false };
        self.drive(stack, now, place, side, Exchange::handle);
        true
    }

    /// Lets what is due happen.
    pub(crate) fn handle_timeout(&mut self, stack: &mut Stack, now: Instant) {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let due: Vec<(usize, usize)> = self
            .lookups
            .iter()
            .flat_map(|(place, lookup)| {
                let due = |question: &Option<Exchange>| {
                    question.as_ref().and_then(Exchange::deadline).is_some_and(|due| due <= now)
                };
                let sides = lookup.questions.iter().enumerate();
                sides.filter(move |(_, question)| due(question)).map(move |(side, _)| (place, side))
            })
            .collect();
        for (place, side) in due {
            self.drive(stack, now, place, side, Exchange::attempt);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let questions = self.lookups.iter().flat_map(|(_, lookup)| &lookup.questions);
        questions.flatten().filter_map(Exchange::deadline).min()
    }

    /// The next lookup that has come to an end.
    pub(crate) fn poll_finished(&mut self) -> Option<LookupId> {
        self.finished.pop_front()
    }

    /// What a lookup has come to, once; `None`: it goes on.
    pub(crate) fn take(&mut self, id: LookupId) -> Option<io::Result<Vec<IpAddr>>> {
        let result = self.lookups.get_mut(id.0)?.result.take()?;
        self.lookups.remove(id.0);
        Some(result)
    }

    /// Nobody wants to know any more.
    pub(crate) fn cancel(&mut self, stack: &mut Stack, now: Instant, id: LookupId) {
        let Some(lookup) = self.lookups.try_remove(id.0) else { return };
        for mut question in lookup.questions.into_iter().flatten() {
            if let Some(socket) = question.socket() {
                self.sockets.remove(&socket);
            }
            question.close(stack, now);
        }
    }
}

impl Lookup {
    /// Takes the addresses of an answer, along its aliases.
    fn learn(&mut self, response: &Response) {
        let mut name = &self.name;
        for _ in 0..MAX_ALIASES {
            let alias = response.answers.iter().find_map(|record| match &record.data {
                Data::Cname(alias) if record.name == *name => Some((alias, record.ttl)),
                _ => None,
            });
            let Some((alias, ttl)) = alias else { break };
            self.ttl = self.ttl.min(Duration::from_secs(ttl.into()));
            name = alias;
        }
        for record in response.answers.iter().filter(|record| record.name == *name) {
            let ip = match record.data {
                Data::A(ip) => IpAddr::V4(ip),
                Data::Aaaa(ip) => IpAddr::V6(ip),
                _ => continue,
            };
            self.ttl = self.ttl.min(Duration::from_secs(record.ttl.into()));
            self.found.push(ip);
        }
        debug_assert!(
            matches!(response.flags.rcode(), Rcode::NoError | Rcode::NameError),
            "others are no answers"
        );
    }

    fn error(&self) -> io::Error {
        let text = &self.text;
        let (kind, message) = match self.failure {
            Failure::NoName => {
                (io::ErrorKind::NotFound, format!("`{text}`: there is no such name"))
            }
            Failure::Silence => {
                (io::ErrorKind::TimedOut, format!("`{text}`: no resolver has answered in time"))
            }
            Failure::Refused => (
                io::ErrorKind::HostUnreachable,
                format!("`{text}`: the resolvers cannot be reached, or cannot answer"),
            ),
        };
        io::Error::new(kind, message)
    }
}

/// Addresses in the order in which to try them (RFC 6724, as far as it can differ here): those that
/// can be reached first, of them IPv6 first.
fn ordered(stack: &Stack, now: Instant, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_by_key(|ip| (stack.source(now, *ip).is_none(), ip.is_ipv4()));
    addresses.dedup();
    addresses
}
