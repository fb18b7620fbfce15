//! What comes to an instance: from outside by a host port, and from another instance.
//!
//! Rules of two members may be about a flow between instances: those of who has plugged in the one that begins it
//! (`out`), and those of who has plugged in the other (`in`). Both are asked, and each may refuse. What no rule is
//! about goes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rules::{Asked, Direction, Other, Rule, Rules, Verdict, What};
use super::{Asker, Decision, NO_RULE, Policy, RULE, Tested, count, meaning};

/// Who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comer {
    /// A client outside, with the address that the host sees.
    Outside(IpAddr),
    /// The guest that has this address.
    Guest(IpAddr),
}

/// The rules of a network, and about whom they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    /// Of each member that has any.
    pub(super) rules: BTreeMap<String, Rules>,
    pub(super) guests: HashMap<IpAddr, Arc<Asker>>,
    /// Some rule is about clients outside, or about other instances: else nobody has to be asked.
    about_clients: bool,
    about_instances: bool,
}

/// What decides about somebody who comes: a rule of who begins, and one of whom it goes to, each with the member
/// that has it.
#[derive(Debug, Default)]
struct Judged<'a> {
    by: [Option<(&'a str, &'a Rule)>; 2],
}

impl Judged<'_> {
    fn is_refused(&self) -> bool {
        self.by.iter().flatten().any(|(_, rule)| rule.verdict == Verdict::Deny)
    }

    /// The names that the rules are counted by.
    fn names(&self) -> impl Iterator<Item = (String, Verdict)> {
        let by = self.by.iter().flatten();
        by.map(|(member, rule)| (format!("{member}/{}", rule.name), rule.verdict))
    }
}

impl Book {
    pub(super) fn add_guest(&mut self, guest: &Arc<Asker>) {
        let addresses = guest.addresses.iter();
        self.guests.extend(addresses.map(|address| (*address, Arc::clone(guest))));
    }

    pub(super) fn remove_guest(&mut self, name: &str) {
        self.guests.retain(|_, asker| asker.name != name);
    }

    pub(super) fn set_rules(&mut self, member: &str, rules: &Rules) {
        if *rules == Rules::default() {
            self.rules.remove(member);
        } else {
            self.rules.insert(member.to_owned(), rules.clone());
        }
        self.about_clients = self.rules.values().any(Rules::are_about_clients);
        self.about_instances = self.rules.values().any(Rules::are_about_instances);
    }

    pub(super) fn is_about_entry(&self) -> bool {
        self.about_clients || self.about_instances
    }

    /// Who has come from an address. From inside it is a guest's, or that of a machine beyond the network: a guest
    /// sends from its own address alone. A client outside may have any.
    fn comer(&self, Client { address, from_inside }: Client) -> Comer {
        let address = address.to_canonical();
        match from_inside && self.guests.contains_key(&address) {
            true => Comer::Guest(address),
            false => Comer::Outside(address),
        }
    }

    fn judge(&self, comer: Comer, to: IpAddr, what: What) -> Judged<'_> {
        let mut judged = Judged::default();
        let is_asked = match comer {
            Comer::Outside(_) => self.about_clients,
            Comer::Guest(_) => self.about_instances,
        };
        let Some(target) = self.guests.get(&to).filter(|_| is_asked) else { return judged };
        match comer {
            Comer::Outside(client) => {
                // A socket for both families has IPv4 clients by another spelling.
                let other = Other::Outside(client.to_canonical());
                judged.by[1] = self.deciding(Direction::In, target, other, what);
            }
            Comer::Guest(source) => {
                // Who reaches itself by way of a service is not another instance.
                let source = self.guests.get(&source).filter(|source| source.name != target.name);
                let Some(source) = source else { return judged };
                judged.by[0] = self.deciding(Direction::Out, source, target.as_other(), what);
                if !judged.is_refused() {
                    judged.by[1] = self.deciding(Direction::In, target, source.as_other(), what);
                }
            }
        }
        judged
    }

    fn deciding(
        &self,
        direction: Direction,
        asker: &Asker,
        other: Other<'_>,
        what: What,
    ) -> Option<(&str, &Rule)> {
        let (member, rules) = self.rules.get_key_value(&asker.member)?;
        let asked = Asked { direction, instance: &asker.name, other, what };
        // Names are learned for what leaves.
        Some((member, rules.deciding(&asked, |_| false)?))
    }
}

impl Policy {
    /// Whether any rule is about what goes from one instance to another.
    #[must_use]
    pub fn is_about_instances(&self) -> bool {
        self.book.about_instances
    }

    /// Whether any rule is about who comes, from outside or from another instance.
    #[must_use]
    pub fn is_about_entry(&self) -> bool {
        self.book.is_about_entry()
    }

    /// Decides about a new flow to the guest that has the address `to`.
    pub fn decide_entry(&mut self, comer: Comer, to: IpAddr, what: What) -> bool {
        if !self.book.is_about_entry() {
            return true;
        }
        let judged = self.book.judge(comer, to, what);
        tell(&mut self.counts, &judged, (comer, to, what));
        !judged.is_refused()
    }

    /// The same, without counting it: whether a flow that is open may go on, or would be let in.
    #[must_use]
    pub fn permits_entry(&self, comer: Comer, to: IpAddr, what: What) -> bool {
        !self.book.judge(comer, to, what).is_refused()
    }

    /// What would be decided about a new flow to a port of a guest.
    #[must_use]
    pub fn test_entry(&self, comer: Comer, to: SocketAddr, what: What) -> Tested {
        let judged = self.book.judge(comer, to.ip(), what);
        let refused = judged.is_refused();
        let decision = if refused { Decision::Deny(RULE) } else { Decision::Allow(to) };
        // The last that was asked: it refuses, or nobody does.
        let rule = judged.names().last().map(|(rule, _)| rule);
        let reason = if rule.is_some() { RULE } else { NO_RULE };
        let rule = rule.unwrap_or_else(|| NO_RULE.to_owned());
        Tested { decision, rule, meaning: meaning(reason) }
    }

    /// The same rules for those who let clients in on other threads.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Changes the book, and that at the gate alike: a copy for each guest that comes would be one of all the others.
    /// Without rules about who comes there is nothing to know there.
    pub(super) fn change(&mut self, change: impl Fn(&mut Book)) {
        change(&mut self.book);
        let mut gate = self.gate.lock();
        match &mut gate.book {
            _ if !self.book.is_about_entry() => gate.book = None,
            Some(book) => change(book),
            none => *none = Some(self.book.clone()),
        }
    }

    /// How often rules have decided at the gate.
    pub(super) fn count_gate(&self, counts: &mut BTreeMap<String, u64>) {
        for (rule, count) in &self.gate.lock().counts {
            *counts.entry(rule.clone().into_owned()).or_default() += count;
        }
    }
}

/// Who stands at the gate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// As who takes its connections sees it.
    pub(crate) address: IpAddr,
    /// It has come out of the network, and not by a port of the host.
    pub(crate) from_inside: bool,
}

/// The rules about who comes, for other threads. Clones are the same rules.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<AtGate>>);

#[derive(Debug, Default)]
struct AtGate {
    /// `None`: everybody may come.
    book: Option<Book>,
    counts: super::Counts,
}

impl Gate {
    /// Whether anybody has to be asked.
    pub(crate) fn is_watched(&self) -> bool {
        self.lock().book.is_some()
    }

    /// Decides about a request of a client to a port of an instance.
    pub(crate) fn decide(&self, client: Client, to: IpAddr, what: What) -> bool {
        let mut at_gate = self.lock();
        let AtGate { book, counts } = &mut *at_gate;
        let Some(book) = book else { return true };
        let comer = book.comer(client);
        let judged = book.judge(comer, to, what);
        tell(counts, &judged, (comer, to, what));
        !judged.is_refused()
    }

    /// The same, without counting it.
    pub(crate) fn permits(&self, client: Client, to: IpAddr, what: What) -> bool {
        let at_gate = self.lock();
        let book = at_gate.book.as_ref();
        book.is_none_or(|book| !book.judge(book.comer(client), to, what).is_refused())
    }

    fn lock(&self) -> MutexGuard<'_, AtGate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what was decided, and logs what was refused.
fn tell(counts: &mut super::Counts, judged: &Judged<'_>, (comer, to, what): (Comer, IpAddr, What)) {
    for (rule, verdict) in judged.names() {
        let count = count(counts, rule.clone());
        // As in `decide_out`: the log grows with the logarithm of what clients ask.
        if verdict == Verdict::Deny && count.is_power_of_two() {
            tracing::info!(rule, count, ?comer, %to, ?what, "flow refused by policy");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Protocol::{Icmp, Tcp, Udp};
    use super::super::rules::{Port, Remote};
    use super::*;
    use crate::fake::Bench;

    const WEB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 127, 11));
    const DB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 127, 12));

    fn address6(last: u16) -> IpAddr {
        std::net::Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, last).into()
    }

    fn rule(name: &str, verdict: Verdict, direction: Direction, others: &[&str]) -> Rule {
        Rule {
            name: name.to_owned(),
            verdict,
            direction,
            instances: Vec::new(),
            others: others.iter().map(|it| it.parse::<Remote>().unwrap()).collect(),
            protocol: None,
            ports: Vec::new(),
        }
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        let mut policy = Bench::new().policy;
        policy.add_guest("yard", "web", [WEB, address6(11)]);
        policy.add_guest("other", "db", [DB, address6(12)]);
        policy.set_rules("yard", Rules { list: rules, otherwise: Verdict::Allow });
        policy
    }

    fn client(address: &str) -> Comer {
        Comer::Outside(address.parse().unwrap())
    }

    #[test]
    fn clients_are_judged_by_the_rules_of_who_has_plugged_it_in() {
        let mut near =
            rule("near", Verdict::Allow, Direction::In, &["192.0.2.0/24", "2001:db8::/32"]);
        (near.protocol, near.ports) = (Some(Tcp), vec![80..=80]);
        let mut policy =
            policy(vec![near, rule("rest", Verdict::Deny, Direction::In, &["0.0.0.0/0", "::/0"])]);
        let web = What::to(Tcp, 80);
        assert!(policy.decide_entry(client("192.0.2.1"), WEB, web));
        assert!(policy.decide_entry(client("2001:db8::1"), address6(11), web));
        // The same client by a socket of both families.
        assert!(policy.decide_entry(client("::ffff:192.0.2.1"), WEB, web));
        assert!(!policy.decide_entry(client("::ffff:198.51.100.1"), WEB, web));
        assert!(!policy.decide_entry(client("127.0.0.1"), WEB, web));
        assert!(!policy.decide_entry(client("::1"), address6(11), web));
        assert!(!policy.decide_entry(client("192.0.2.1"), WEB, What::to(Tcp, 81)));
        assert!(!policy.decide_entry(client("192.0.2.1"), WEB, What::to(Udp, 80)));
        // Others have plugged that in.
        assert!(policy.decide_entry(client("198.51.100.1"), DB, web));
        let counts = policy.counts();
        assert_eq!((counts["yard/near"], counts["yard/rest"]), (3, 5));
    }

    #[test]
    fn both_ends_may_refuse_what_goes_from_one_instance_to_another() {
        let mut policy =
            policy(vec![rule("no-db", Verdict::Deny, Direction::Out, &["instance:db"])]);
        let sql = What::to(Tcp, 5432);
        assert!(policy.is_about_instances());
        for (from, to) in [(WEB, DB), (address6(11), address6(12)), (WEB, address6(12))] {
            assert!(!policy.decide_entry(Comer::Guest(from), to, sql), "{from} {to}");
            assert!(policy.decide_entry(Comer::Guest(to), from, sql), "{to} {from}");
        }
        assert_eq!(policy.counts()["yard/no-db"], 3);
        policy.set_rules("yard", Rules::default());
        assert!(!policy.is_about_instances());
        assert!(policy.decide_entry(Comer::Guest(WEB), DB, sql));
        let no_web = rule("no-web", Verdict::Deny, Direction::In, &["instance:*"]);
        policy.set_rules("other", Rules { list: vec![no_web], otherwise: Verdict::Allow });
        let pings = What { protocol: Some(Icmp), port: Port::None };
        assert!(!policy.permits_entry(Comer::Guest(WEB), DB, pings));
        assert!(policy.permits_entry(Comer::Guest(DB), WEB, pings));
        assert!(policy.permits_entry(Comer::Guest(DB), DB, pings), "it is no other instance");
        assert!(policy.permits_entry(client("198.51.100.1"), DB, pings), "that comes from outside");
        let tested = policy.test_entry(Comer::Guest(WEB), SocketAddr::new(DB, 5432), sql);
        assert_eq!((tested.decision, tested.rule), (Decision::Deny(RULE), "other/no-web".into()));
    }

    #[test]
    fn those_at_the_gate_know_what_has_changed() {
        let mut policy = policy(vec![rule("none", Verdict::Deny, Direction::In, &[])]);
        let (gate, web) = (policy.gate(), What::to(Tcp, 80));
        let at = |address, from_inside| Client { address, from_inside };
        let somebody = at("192.0.2.1".parse().unwrap(), false);
        assert!(!gate.decide(somebody, WEB, web));
        assert!(gate.decide(at(DB, true), WEB, web), "a guest is not outside");
        assert!(!gate.decide(at(DB, false), WEB, web), "who has its address may be");
        assert!(!gate.decide(at(somebody.address, true), WEB, web), "it is beyond the network");
        assert!(!policy.decide_entry(Comer::Outside(somebody.address), WEB, web));
        assert_eq!(policy.counts()["yard/none"], 4);
        // A guest is known once, however many there are.
        policy.add_guest("yard", "late", [IpAddr::from([192, 168, 127, 13])]);
        for (address, guest) in &policy.book.guests {
            let same =
                gate.lock().book.as_ref().map(|book| Arc::ptr_eq(&book.guests[address], guest));
            assert_eq!(same, Some(true), "{address}");
        }
        policy.remove_guest("web");
        assert!(gate.decide(somebody, WEB, web));
        policy.add_guest("yard", "web", [WEB]);
        assert!(!gate.decide(somebody, WEB, web));
        policy.set_rules("yard", Rules::default());
        assert!(gate.decide(somebody, WEB, web));
    }
}
