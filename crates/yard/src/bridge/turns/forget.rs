//! What the kernel is to forget of the connections that turns have led.
//!
//! Over UDP a connection is what the kernel tracks as one. Nothing opens it but its first datagram, so a
//! client whose connection was forgotten takes another turn with the next one. Forgotten are those to a
//! program that has ended, those that were never answered to an instance that hangs, those to a service that
//! has gone or has moved, and those of a process before: they would go on for ever. So would those that found
//! nobody, when there is somebody.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::KernelService;
use netyard_link::conntrack::{Conntrack, Entry, Filter};

use super::{Turns, addresses};
use crate::bridge::everywhere::Everywhere;
use crate::bridge::rules::{self, Rules, unspecified};

/// `IPS_SEEN_REPLY` of linux/netfilter/nf_conntrack_common.h.
const SEEN_REPLY: u32 = 1 << 1;

impl Turns {
    /// Has the kernel forget the UDP connections of these turns that lead by where `after` has no
    /// service.
    pub(in crate::bridge) fn forget_moved(
        &self,
        after: &[KernelService],
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        let udp = |service: &&KernelService| service.protocol == Protocol::Udp;
        let now: BTreeSet<SocketAddr> = after.iter().filter(udp).flat_map(fronts).collect();
        let before = self.specs().filter(udp).flat_map(fronts);
        if before.into_iter().all(|front| now.contains(&front)) {
            return Ok(());
        }
        let leads_nowhere = |entry: &Entry| {
            let front = entry.original.destination;
            let any = SocketAddr::new(unspecified(front.ip()), front.port());
            !now.contains(&front) && !now.contains(&any)
        };
        forget(&self.marked_udp(), leads_nowhere, tracked)
    }

    /// By where `after` has an instance for clients over UDP, and there was none.
    pub(in crate::bridge) fn that_come(&self, after: &[KernelService]) -> BTreeSet<SocketAddr> {
        let led = |service: &&KernelService| {
            service.protocol == Protocol::Udp && !service.instances.is_empty()
        };
        let before: BTreeSet<SocketAddr> = self.specs().filter(led).flat_map(fronts).collect();
        let now = after.iter().filter(led).flat_map(fronts);
        now.filter(|front| !before.contains(front)).collect()
    }

    /// Has the kernel forget the UDP connections that have led to an instance and were never answered.
    pub(in crate::bridge) fn forget_unanswered(
        &self,
        (service, instance): (&str, &str),
        rules: &Rules,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        let service = self.services.get(service);
        let Some(member) = service.and_then(|service| service.members.get(instance)) else {
            return Ok(());
        };
        let filter = Filter { protocol: Some(rules::UDP), ..Filter::mark(member.mark) };
        let is_unanswered = |entry: &Entry| {
            entry.status & SEEN_REPLY == 0 && rules.is_of_segment(entry.reply.source.ip())
        };
        forget(&filter, is_unanswered, tracked)
    }

    /// Has the kernel forget all UDP connections with marks of this network that lead to addresses of its
    /// segment.
    pub(in crate::bridge) fn forget_all(
        &self,
        is_inside: impl Fn(IpAddr) -> bool,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        forget(&self.marked_udp(), |entry| is_inside(entry.reply.source.ip()), tracked)
    }

    /// Has the kernel forget the connections to instances with these addresses: they are not there any
    /// more.
    pub(in crate::bridge) fn forget_guests(
        &self,
        addresses: &BTreeSet<IpAddr>,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        self.forget_those(addresses, &self.marked(), tracked)
    }

    /// The same for their UDP connections only: the instances are there, and their programs are not.
    pub(in crate::bridge) fn forget_flows(
        &self,
        addresses: &BTreeSet<IpAddr>,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        self.forget_those(addresses, &self.marked_udp(), tracked)
    }

    fn forget_those(
        &self,
        addresses: &BTreeSet<IpAddr>,
        which: &Filter,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        if self.services.is_empty() {
            return Ok(());
        }
        forget(which, |entry| addresses.contains(&entry.reply.source.ip()), tracked)
    }

    fn marked_udp(&self) -> Filter {
        Filter { protocol: Some(rules::UDP), ..self.marked() }
    }
}

/// Has the kernel forget the UDP connections that led to nobody by fronts where there is an instance now: a
/// client that goes on with its socket would be refused for ever.
pub(in crate::bridge) fn refused(
    come: &BTreeSet<SocketAddr>,
    everywhere: &Everywhere,
    tracked: &mut Conntrack,
) -> netyard_link::Result<()> {
    if come.is_empty() {
        return Ok(());
    }
    let was_refused = |entry: &Entry| {
        let front = entry.original.destination;
        let is_untranslated = entry.reply.source == front;
        // Any address is not ours alone: who is answered there goes on.
        let is_unanswered = entry.status & SEEN_REPLY == 0;
        is_untranslated
            && (come.contains(&front)
                || is_unanswered && everywhere.fronts(front).any(|front| come.contains(&front)))
    };
    forget(&Filter { protocol: Some(rules::UDP), ..Filter::all() }, was_refused, tracked)
}

/// Has the kernel forget those of some connections that are meant.
fn forget(
    among: &Filter,
    is_meant: impl Fn(&Entry) -> bool,
    tracked: &mut Conntrack,
) -> netyard_link::Result<()> {
    let entries = tracked.entries(among)?;
    let mut meant = entries.iter().filter(|entry| is_meant(entry));
    meant.try_for_each(|entry| tracked.remove(entry))
}

/// Where clients of a service send to, as far as the kernel translates it.
fn fronts(spec: &KernelService) -> impl Iterator<Item = SocketAddr> {
    let inside = addresses(spec).map(|address| SocketAddr::new(address, spec.port));
    inside.into_iter().chain(spec.publish)
}
