//! The machines: a hub with a peer or two around it, who reach the hub alone.

use std::io;
use std::process::Command;

use crate::link::{Impairment, Link};
use netyard_testbed::{Namespace, peer, run};

/// The hub's address on the outer network.
pub(super) const HUB: &str = "192.0.2.1";

/// A hub and its peers, in namespaces.
pub(super) struct Stage {
    pub(super) hub: Namespace,
    pub(super) peers: Vec<Namespace>,
    _links: Vec<Link>,
}

impl Stage {
    /// Peers on links as they are said, or on pairs of veth.
    pub(super) fn new(peers: u8, impairment: Option<Impairment>) -> io::Result<Self> {
        let hub = Namespace::new("hub");
        run(hub.command(peer("sysctl")).args(["-q", "-w", "net.ipv4.ip_forward=1"]));
        hub.ip(&["address", "add", &format!("{HUB}/32"), "dev", "lo"]);
        let (mut namespaces, mut links) = (Vec::new(), Vec::new());
        for number in 1..=peers {
            let name = format!("p{number}");
            let namespace = Namespace::new(&name);
            let near = format!("to-{name}");
            let far = format!("of-{name}");
            match impairment {
                None => ip(&["link", "add", &near, "type", "veth", "peer", "name", &far]),
                Some(impairment) => links.push(Link::new([&near, &far], impairment)?),
            }
            ip(&["link", "set", &near, "netns", "hub"]);
            ip(&["link", "set", &far, "netns", &name, "name", "eth0"]);
            hub.ip(&["address", "add", &format!("198.51.{number}.1/24"), "dev", &near]);
            hub.ip(&["link", "set", &near, "up", "txqueuelen", "2000"]);
            namespace.ip(&["address", "add", &format!("198.51.{number}.10/24"), "dev", "eth0"]);
            namespace.ip(&["link", "set", "eth0", "up", "txqueuelen", "2000"]);
            namespace.ip(&["route", "add", HUB, "via", &format!("198.51.{number}.1")]);
            namespaces.push(namespace);
        }
        Ok(Self { hub, peers: namespaces, _links: links })
    }

    /// The hub, then the peers.
    pub(super) fn all(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::once(&self.hub).chain(&self.peers)
    }
}

/// Runs `ip` here.
fn ip(arguments: &[&str]) {
    run(Command::new(peer("ip")).args(arguments));
}
