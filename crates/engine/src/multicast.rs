//! Snooping: which plugs hear which multicast group (RFC 4541).
//!
//! Guests say what they listen to by IGMP and MLD, and what is sent to a group goes to the plugs from which that was said. The
//! gateway is the querier: it asks each plug, in the rhythm of RFC 9776 section 8 and RFC 9777 section 9, so that
//! who stays silent is forgotten. Reports end here: a host that hears of another's may keep its own to itself.
//!
//! What nobody has joined goes to everybody, and so does what is sent to groups by which the link itself works
//! (224.0.0.0/24, ff02::1, and those where neighbours are looked for) and what a plug that nobody has asked yet may have
//! joined. Plugs that are not listed here report nothing: they hear all groups. The table is bounded: a plug
//! that joins more than [`MAX_GROUPS`] hears all groups instead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use netyard_wire::Frame;
use netyard_wire::membership::{self, Membership, QUERY_INTERVAL, ROBUSTNESS};

use crate::context::Context;
use crate::edge::PlugId;

/// RFC 9776 sections 8.2, 8.3 and 8.6: between two questions about everything, for answers to it, and between the
/// first ones, of which there are [`ROBUSTNESS`].
const INTERVAL: Duration = Duration::from_secs(QUERY_INTERVAL as u64);
const RESPONSE: Duration = Duration::from_secs(10);
const STARTUP_INTERVAL: Duration = Duration::from_millis(QUERY_INTERVAL as u64 * 250);

/// RFC 9776 section 8.4: how long a group lasts after it was heard of.
const LASTS: Duration = Duration::from_secs(QUERY_INTERVAL as u64 * ROBUSTNESS as u64 + 10);

/// RFC 9776 sections 8.8 and 8.9: between questions about a group that somebody leaves, and how many.
const LAST_MEMBER_INTERVAL: Duration = Duration::from_secs(1);
const LAST_MEMBER_QUERIES: u8 = ROBUSTNESS;

/// Groups that one plug may listen to.
const MAX_GROUPS: usize = 256;

/// The listeners of a network.
#[derive(Debug)]
pub(crate) struct Snooping {
    plugs: BTreeMap<PlugId, Listener>,
    groups: HashMap<IpAddr, BTreeMap<PlugId, Member>>,
    due: BTreeSet<(Instant, Task)>,
    /// The time, as far as it was told.
    now: Instant,
}

/// What is known of a plug.
#[derive(Debug, Default)]
struct Listener {
    groups: BTreeSet<IpAddr>,
    /// How often it was asked, as far as that counts: the first times.
    asked: u8,
    /// Until when it hears all groups; `None` until it is asked.
    all_until: Option<Instant>,
}

/// A plug that listens to a group.
#[derive(Debug)]
struct Member {
    until: Instant,
    /// Until when there is a host of IGMPv1, which does not say that it leaves (RFC 9776 section 7.3.2).
    first_until: Option<Instant>,
    /// Somebody has left, and it is being asked whether somebody stays: when next, and how many questions are left.
    leaving: Option<(Instant, u8)>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// To ask a plug what it listens to.
    AskAll(PlugId),
    /// To ask a plug whether it still listens to a group.
    Ask(PlugId, IpAddr),
}

impl Snooping {
    pub(crate) fn new(now: Instant) -> Self {
        Self { plugs: BTreeMap::new(), groups: HashMap::new(), due: BTreeSet::new(), now }
    }

    /// A plug is there that reports what it listens to, and will be asked.
    pub(crate) fn add_plug(&mut self, plug: PlugId) {
        self.plugs.insert(plug, Listener::default());
        self.due.insert((self.now, Task::AskAll(plug)));
    }

    pub(crate) fn remove_plug(&mut self, plug: PlugId) {
        let Some(listener) = self.plugs.remove(&plug) else { return };
        for group in listener.groups {
            self.forget(plug, group);
        }
        self.due.retain(|(_, task)| *task != Task::AskAll(plug));
    }

    /// The groups that a plug listens to.
    pub(crate) fn groups(&self, plug: PlugId) -> impl Iterator<Item = IpAddr> {
        self.plugs.get(&plug).into_iter().flat_map(|listener| &listener.groups).copied()
    }

    /// Who hears what is sent to a destination.
    pub(crate) fn audience(&self, now: Instant, destination: IpAddr) -> Audience<'_> {
        let members = match is_snooped(destination) {
            true => self.groups.get(&destination),
            false => None,
        };
        let live = |members: &&BTreeMap<_, Member>| members.values().any(|it| it.until > now);
        Audience { now, plugs: &self.plugs, members: members.filter(live) }
    }

    /// Handles a message of a plug, which ends here.
    ///
    /// # Errors
    /// The name of the drop counter.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        plug: PlugId,
        message: Membership<'_>,
    ) -> Result<(), &'static str> {
        self.now = self.now.max(now);
        match message {
            Membership::Query => return Err("rogue-querier"),
            Membership::Report { group, first } => self.join(plug, group, first)?,
            Membership::Leave(group) => self.leave(plug, group),
            Membership::Records(records) => {
                let mut outcome = Ok(());
                for (group, listens) in records {
                    match listens {
                        true => outcome = outcome.and(self.join(plug, group, false)),
                        false => self.leave(plug, group),
                    }
                }
                return outcome;
            }
        }
        Ok(())
    }

    fn join(&mut self, plug: PlugId, group: IpAddr, first: bool) -> Result<(), &'static str> {
        if !is_snooped(group) {
            return Ok(());
        }
        let until = self.now + LASTS;
        let Some(listener) = self.plugs.get_mut(&plug) else { return Ok(()) };
        if !listener.groups.contains(&group) {
            if listener.groups.len() >= MAX_GROUPS {
                listener.all_until = listener.all_until.map(|at| at.max(until));
                return Err("multicast-groups-full");
            }
            listener.groups.insert(group);
        }
        let members = self.groups.entry(group).or_default();
        let member =
            members.entry(plug).or_insert(Member { until, first_until: None, leaving: None });
        member.until = until;
        if first {
            member.first_until = Some(until);
        }
        if let Some((at, _)) = member.leaving.take() {
            self.due.remove(&(at, Task::Ask(plug, group)));
        }
        Ok(())
    }

    /// Somebody behind a plug leaves; others may stay, and are asked.
    fn leave(&mut self, plug: PlugId, group: IpAddr) {
        let now = self.now;
        let Some(member) = self.groups.get_mut(&group).and_then(|it| it.get_mut(&plug)) else {
            return;
        };
        if member.leaving.is_some() || member.first_until.is_some_and(|until| until > now) {
            return;
        }
        member.leaving = Some((now, LAST_MEMBER_QUERIES));
        member.until =
            member.until.min(now + LAST_MEMBER_INTERVAL * u32::from(LAST_MEMBER_QUERIES));
        self.due.insert((now, Task::Ask(plug, group)));
    }

    /// When [`Snooping::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Asks what is to be asked, and forgets who has not answered.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        self.now = self.now.max(cx.now);
        while self.poll_timeout().is_some_and(|at| at <= cx.now)
            && let Some((_, task)) = self.due.pop_first()
        {
            match task {
                Task::AskAll(plug) => self.ask_all(cx, plug),
                Task::Ask(plug, group) => self.ask(cx, plug, group),
            }
        }
    }

    fn ask_all(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        let now = self.now;
        let Some(listener) = self.plugs.get_mut(&plug) else { return };
        for source in [cx.config.gateway4().into(), cx.config.gateway_link_local().into()] {
            send(cx, plug, source, None, RESPONSE);
        }
        listener.asked = listener.asked.saturating_add(1).min(ROBUSTNESS);
        let again = if listener.asked < ROBUSTNESS { STARTUP_INTERVAL } else { INTERVAL };
        self.due.insert((now + again, Task::AskAll(plug)));
        // A question or an answer may be lost: it has heard all of the first ones then.
        listener.all_until.get_or_insert(now + STARTUP_INTERVAL + RESPONSE);
        let groups = &self.groups;
        let is_over = |group: &IpAddr| {
            let member = groups.get(group).and_then(|members| members.get(&plug));
            member.is_none_or(|member| member.until <= now)
        };
        let over: Vec<IpAddr> = listener.groups.iter().copied().filter(is_over).collect();
        for group in over {
            self.forget(plug, group);
        }
    }

    fn ask(&mut self, cx: &mut Context<'_>, plug: PlugId, group: IpAddr) {
        let Some(member) = self.groups.get_mut(&group).and_then(|it| it.get_mut(&plug)) else {
            return;
        };
        let Some((at, left)) = &mut member.leaving else { return };
        if *left == 0 {
            // Nobody has answered.
            return self.forget(plug, group);
        }
        *left -= 1;
        *at = self.now + LAST_MEMBER_INTERVAL;
        self.due.insert((*at, Task::Ask(plug, group)));
        let source = match group {
            IpAddr::V4(_) => cx.config.gateway4().into(),
            IpAddr::V6(_) => cx.config.gateway_link_local().into(),
        };
        send(cx, plug, source, Some(group), LAST_MEMBER_INTERVAL);
    }

    /// A plug listens to a group no more.
    fn forget(&mut self, plug: PlugId, group: IpAddr) {
        if let Some(listener) = self.plugs.get_mut(&plug) {
            listener.groups.remove(&group);
        }
        let Some(members) = self.groups.get_mut(&group) else { return };
        let leaving = members.remove(&plug).and_then(|member| member.leaving);
        if let Some((at, _)) = leaving {
            self.due.remove(&(at, Task::Ask(plug, group)));
        }
        if members.is_empty() {
            self.groups.remove(&group);
        }
    }
}

/// Those who hear something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Audience<'a> {
    now: Instant,
    plugs: &'a BTreeMap<PlugId, Listener>,
    /// `None`: everybody.
    members: Option<&'a BTreeMap<PlugId, Member>>,
}

impl Audience<'_> {
    pub(crate) fn has(&self, plug: PlugId) -> bool {
        let Some(members) = self.members else { return true };
        let listens = members.get(&plug).is_some_and(|member| member.until > self.now);
        listens
            || self
                .plugs
                .get(&plug)
                .and_then(|listener| listener.all_until)
                .is_none_or(|until| until > self.now)
    }
}

/// Whether what is sent to an address goes to those who have joined it. Groups of the link's own protocols are
/// joined by nobody (RFC 4541 section 2.1.2 (2) and section 3). Solicited-node groups are joined, but who does not say
/// so must be found by its neighbours all the same, and each host has several: they would fill the table.
fn is_snooped(address: IpAddr) -> bool {
    const LINK4: [u8; 3] = [224, 0, 0];
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // RFC 4291 section 2.7.1: ff02::1:ff00:0/104.
    const SOLICITED_NODE: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
    match address {
        IpAddr::V4(address) => address.is_multicast() && !address.octets().starts_with(&LINK4),
        IpAddr::V6(address) => {
            // RFC 9777 section 6: nothing is said of the scopes 0 and 1, reserved and of one interface.
            let scope = address.octets()[1] & 0x0f;
            let is_links = address == ALL_NODES || address.octets().starts_with(&SOLICITED_NODE);
            address.is_multicast() && !is_links && scope > 1
        }
    }
}

/// Asks a plug.
fn send(
    cx: &mut Context<'_>,
    plug: PlugId,
    source: IpAddr,
    group: Option<IpAddr>,
    within: Duration,
) {
    let ours = cx.config.gateway_mac;
    let offload = membership::query_frame(cx.scratch, ours, source, group, within);
    cx.edge.transmit(plug, Frame { bytes: cx.scratch, offload });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn who_joins_and_leaves_all_the_time_fills_nothing() {
        let start = Instant::now();
        let (mut snooping, plug) = (Snooping::new(start), PlugId(1));
        snooping.add_plug(plug);
        let group = Ipv4Addr::new(239, 1, 2, 3).into();
        for n in 0..1_000 {
            let now = start + Duration::from_micros(n);
            let joined = Membership::Report { group, first: false };
            snooping.handle(now, plug, joined).unwrap();
            snooping.handle(now, plug, Membership::Leave(group)).unwrap();
        }
        assert_eq!((snooping.due.len(), snooping.groups.len()), (2, 1));
        snooping.remove_plug(plug);
        assert!(snooping.due.is_empty() && snooping.groups.is_empty());
    }
}
