//! How the programs of a peer's machine come to ask for the network's names.
//!
//! Where systemd-resolved answers them, it is told that the tunnel's device has a server for the zone; that goes
//! with the device. Elsewhere they ask a resolver of the peer's own, on loopback, which is in `/etc/resolv.conf`
//! as long as the peer runs ([`ResolvConf`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::rc::Rc;

use ipnet::IpNet;
use netyard_link::rtnetlink::LinkIndex;
use netyard_wire::dns::{Query, Rcode, Response, Zone};
use tokio::task;

use super::resolv_conf::{self, ResolvConf};
use super::{PORT, Resolve, Server, Verdict};
use crate::error::{Error, Result};

/// Where systemd-resolved answers.
const RESOLVED: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];
const RESOLVECTL: &str = "resolvectl";

/// Where the first peer of a machine has its resolver; each of the others has the next address.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 41, 1);
const MOST: u8 = 16;

/// Which names are asked of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The network's zone.
    pub(crate) zone: String,
    /// The network's prefixes.
    pub(crate) networks: Vec<IpNet>,
    /// The hub.
    pub(crate) hub: Ipv4Addr,
    /// All names are, and not those of the zone alone.
    pub(crate) everything: bool,
    /// The tunnel's device.
    pub(crate) device: LinkIndex,
}

impl Asked {
    fn zone(&self) -> Zone {
        let subnets = self.networks.iter().map(|net| (net.network(), net.prefix_len()));
        Zone::new(&self.zone, "hub", subnets)
    }

    /// What systemd-resolved shall ask the hub for, in its words.
    fn domains(&self) -> Vec<String> {
        if self.everything {
            return vec!["~.".into()];
        }
        self.zone().tops().map(|top| format!("~{top}")).collect()
    }
}

/// Whom the programs of this machine ask for names.
#[derive(Debug)]
pub(crate) struct Resolver {
    file: ResolvConf,
    asked: Option<Asked>,
    own: Option<Own>,
}

/// A resolver of the peer's own.
#[derive(Debug)]
struct Own {
    address: IpAddr,
    names: Rc<Names>,
    _server: Server,
}

impl Resolver {
    /// Of the peer of this name. Takes back what a killed one has left.
    pub(crate) fn open(owner: &str) -> Result<Self> {
        Ok(Self { file: ResolvConf::open(owner)?, asked: None, own: None })
    }

    /// Has programs ask the hub for these names, on a device of this name, in place of those before.
    pub(crate) fn ask(&mut self, asked: Asked, device: &str) -> Result<()> {
        self.clear()?;
        let is_resolved = |server: &SocketAddr| RESOLVED.iter().any(|it| server.ip() == *it);
        if resolv_conf::servers().iter().all(is_resolved) && has_resolvectl() {
            tell_resolved(&asked, device);
        } else {
            let own = Own::start(&asked)
                .map_err(|error| Error::io("have the network's names asked", &error))?;
            own.names.others.replace(self.file.take(own.address)?);
            self.own = Some(own);
        }
        self.asked = Some(asked);
        Ok(())
    }

    /// Which names programs ask the hub for.
    pub(crate) const fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    /// Whether the hub can be asked at the moment.
    pub(crate) fn set_here(&self, here: bool) {
        if let Some(own) = &self.own {
            own.names.here.set(here);
        }
    }

    /// Makes again what somebody else has undone; whom they name is asked for other names from then on.
    pub(crate) fn hold(&self) -> Result<()> {
        if let Some(own) = &self.own {
            own.names.others.replace(self.file.take(own.address)?);
        }
        Ok(())
    }

    /// Undoes everything; what systemd-resolved knows goes with the device.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.asked = None;
        self.own = None;
        self.file.restore()
    }
}

impl Own {
    fn start(asked: &Asked) -> io::Result<Self> {
        let names = Rc::new(Names {
            zone: asked.zone(),
            hub: (asked.hub, PORT).into(),
            everything: asked.everything,
            others: RefCell::default(),
            here: Cell::new(true),
        });
        let [a, b, c, first] = FIRST.octets();
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for address in (first..first + MOST).map(|d| IpAddr::from([a, b, c, d])) {
            match Server::start([address], &names) {
                Ok(_server) => return Ok(Self { address, names, _server }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// What a peer's own resolver does about questions.
#[derive(Debug)]
struct Names {
    zone: Zone,
    hub: SocketAddr,
    everything: bool,
    /// Whom programs asked before.
    others: RefCell<Vec<SocketAddr>>,
    here: Cell<bool>,
}

impl Resolve for Names {
    fn resolve(&self, query: &Query, _: IpAddr) -> Verdict {
        match self.everything || self.zone.owns(&query.question.name) {
            true if self.here.get() => Verdict::Ask(vec![self.hub]),
            // At once: who looks for the hub itself has an address from before.
            true => Verdict::Answer(Response::to(query, Rcode::ServerFailure)),
            false => Verdict::Ask(self.others.borrow().clone()),
        }
    }
}

fn has_resolvectl() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(RESOLVECTL).is_file())
}

/// Tells systemd-resolved whom to ask, without waiting for it.
fn tell_resolved(asked: &Asked, device: &str) {
    let words =
        |verb: &str, rest: Vec<String>| [vec![verb.to_owned(), device.to_owned()], rest].concat();
    let commands = [
        words("dns", vec![asked.hub.to_string()]),
        words("domain", asked.domains()),
        words("default-route", vec![if asked.everything { "yes" } else { "no" }.to_owned()]),
    ];
    task::spawn_blocking(move || {
        for words in commands {
            let done = Command::new(RESOLVECTL).args(&words).stdin(Stdio::null()).output();
            let said = match done {
                Ok(done) if done.status.success() => continue,
                Ok(done) => String::from_utf8_lossy(&done.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(command = %words.join(" "), said, "systemd-resolved does not know the network's names");
        }
    });
}

#[cfg(test)]
mod tests {
    use netyard_wire::dns::{A, Flags, IN, PTR, Question};

    use super::*;

    #[test]
    fn the_zone_is_asked_of_the_hub_and_the_rest_of_whom_it_was() {
        let asked = Asked {
            zone: "lab.internal".into(),
            networks: vec!["10.1.0.0/20".parse().unwrap(), "fd00:5::/64".parse().unwrap()],
            hub: [10, 1, 0, 1].into(),
            everything: false,
            device: LinkIndex(9),
        };
        let domains =
            ["~lab.internal", "~1.10.in-addr.arpa", "~0.0.0.0.0.0.0.0.5.0.0.0.0.0.d.f.ip6.arpa"];
        assert_eq!(asked.domains(), domains);
        assert_eq!(Asked { everything: true, ..asked.clone() }.domains(), ["~."]);
        let other: SocketAddr = "192.0.2.1:53".parse().unwrap();
        let mut names = Names {
            zone: asked.zone(),
            hub: "10.1.0.1:53".parse().unwrap(),
            everything: false,
            others: RefCell::new(vec![other]),
            here: Cell::new(true),
        };
        let whom = |names: &Names, name: &str, kind| {
            let question = Question { name: name.parse().unwrap(), kind, class: IN };
            let query = Query { id: 1, flags: Flags(0), question, edns: None };
            match names.resolve(&query, [127, 0, 0, 1].into()) {
                Verdict::Ask(servers) => Ok(servers[0]),
                Verdict::Answer(answer) => Err(answer.flags.rcode()),
            }
        };
        assert_eq!(whom(&names, "A.Lab.Internal", A), Ok(names.hub));
        assert_eq!(whom(&names, "1.15.1.10.in-addr.arpa", PTR), Ok(names.hub));
        for outside in ["internal", "lab.internal.example", "1.16.1.10.in-addr.arpa"] {
            assert_eq!(whom(&names, outside, A), Ok(other), "{outside}");
        }
        names.here.set(false);
        assert_eq!(whom(&names, "a.lab.internal", A), Err(Rcode::ServerFailure));
        assert_eq!(whom(&names, "example.net", A), Ok(other));
        names.everything = true;
        assert_eq!(whom(&names, "example.net", A), Err(Rcode::ServerFailure));
        names.here.set(true);
        assert_eq!(whom(&names, "example.net", A), Ok(names.hub));
    }
}
