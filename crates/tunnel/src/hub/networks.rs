//! The networks of a hub, which never mix.
//!
//! They share the port where lanes come in, and the machine. Each has its database, its device and its relay, and
//! a relay knows the peers of its own network alone. What is left is the machine's kernel, which might carry a packet
//! from one device to another: so each relay refuses what comes from the addresses of another network or goes to
//! them ([`Relay::set_foreign`](crate::relay::Relay::set_foreign)). Those are its prefixes, and the subnets behind its
//! peers that the kernel leads to its device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ipnet::IpNet;

use super::network::Network;
use super::wanted::{MAIN, NetworkOptions};
use crate::error::{Blame, Error, Result};

/// The networks, by name.
#[derive(Debug, Default)]
pub(super) struct Networks(RefCell<BTreeMap<String, Rc<Network>>>);

impl Networks {
    /// The one of this name; without a name the main one.
    pub(super) fn find(&self, name: Option<&str>) -> Option<Rc<Network>> {
        let networks = self.0.borrow();
        networks.get(name.unwrap_or(MAIN)).filter(|network| !network.is_closing()).map(Rc::clone)
    }

    /// All of them, the main one first.
    pub(super) fn all(&self) -> Vec<Rc<Network>> {
        let networks = self.0.borrow();
        let others = networks.iter().filter(|(name, _)| *name != MAIN).map(|(_, network)| network);
        networks.get(MAIN).into_iter().chain(others).map(Rc::clone).collect()
    }

    /// Makes room for one beside those that are there: from now on they keep away from its prefixes.
    ///
    /// # Errors
    /// [`Blame::Input`]: it cannot be. [`Blame::Conflict`]: another one has its name, or a part of its prefixes.
    pub(super) fn make_room(&self, options: &NetworkOptions) -> Result<()> {
        let wanted = || format!("have the network {}", options.name);
        let prefixes = options.plan()?.prefixes();
        let networks = self.0.borrow();
        if networks.contains_key(&options.name) {
            return Err(Error::new(Blame::Conflict, wanted(), "there is one of that name"));
        }
        for other in networks.values() {
            let theirs = other.plan.prefixes();
            if let Some(prefix) = prefixes.iter().find(|prefix| meets(prefix, &theirs)) {
                let found = format!("{prefix} overlaps with the network {}", other.options.name);
                return Err(Error::new(Blame::Conflict, wanted(), found)
                    .next("choose prefixes that no other network has"));
            }
        }
        for other in networks.values() {
            other.relay.borrow_mut().add_foreign(&prefixes);
        }
        Ok(())
    }

    /// One more, from now on.
    ///
    /// # Errors
    /// The kernel cannot lead what is behind peers.
    pub(super) fn insert(&self, network: Rc<Network>) -> Result<()> {
        self.0.borrow_mut().insert(network.options.name.clone(), network);
        self.keep_apart()
    }

    /// Takes one out that is closed.
    ///
    /// # Errors
    /// The kernel cannot lead what is behind peers of the others.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.0.borrow_mut().remove(name);
        self.keep_apart()
    }

    /// Has the kernel lead what is behind peers to their networks, and each relay know what is of the others. A subnet
    /// that overlaps with another network, or with what is behind its peers, is led for the first of them alone:
    /// this machine could not tell them apart. Within its own network it is reached all the same.
    ///
    /// # Errors
    /// The kernel cannot.
    pub(super) fn keep_apart(&self) -> Result<()> {
        let networks = self.all();
        let mut all_led: Vec<Vec<IpNet>> = Vec::new();
        for network in &networks {
            let others = networks.iter().filter(|other| !Rc::ptr_eq(other, network));
            let taken: Vec<IpNet> = others
                .flat_map(|other| other.plan.prefixes())
                .chain(all_led.iter().flatten().copied())
                .collect();
            let (led, lost): (Vec<_>, Vec<_>) =
                network.behind_peers().into_iter().partition(|subnet| !meets(subnet, &taken));
            for subnet in lost {
                let network = &network.options.name;
                tracing::warn!(network, %subnet, "it overlaps with another network: this machine does not reach it");
            }
            all_led.push(led);
        }
        let each = || networks.iter().zip(&all_led);
        // Nobody gets a subnet before another has given it back.
        let mut result = each().try_for_each(|(network, led)| network.lead_only(led));
        result = result.and(each().try_for_each(|(network, led)| network.lead_to(led)));
        for network in &networks {
            let others = each().filter(|(other, _)| !Rc::ptr_eq(other, network));
            let foreign =
                others.flat_map(|(other, led)| [&other.plan.prefixes()[..], led].concat());
            network.relay.borrow_mut().set_foreign(foreign.collect());
        }
        result
    }
}

/// Whether a prefix has an address that one of the others has.
fn meets(prefix: &IpNet, others: &[IpNet]) -> bool {
    others.iter().any(|other| other.contains(prefix) || prefix.contains(other))
}
