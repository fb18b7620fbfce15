//! The names of a hub's network, as its DNS answers them.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netyard_wire::dns::{Query, Rcode, Response, Table, Zone};

use crate::dns::{Resolve, Verdict, resolv_conf};
use crate::message::{Dns, Name};

/// The hub's own name in the zone.
pub(super) const HUB: &str = "hub";

/// What a hub's DNS does about questions.
#[derive(Debug)]
pub(super) struct Names {
    text: String,
    zone: Zone,
    table: RefCell<Table>,
    networks: Vec<IpNet>,
    own: Vec<IpAddr>,
    /// Questions about other names are passed on to the resolvers of the hub's machine.
    everything: bool,
}

impl Names {
    /// Of a network with these prefixes, in which the hub has these addresses.
    pub(super) fn new(
        zone: &str,
        networks: Vec<IpNet>,
        own: Vec<IpAddr>,
        everything: bool,
    ) -> Self {
        let subnets = networks.iter().map(|net| (net.network(), net.prefix_len()));
        Self {
            text: zone.to_owned(),
            zone: Zone::new(zone, HUB, subnets),
            table: RefCell::default(),
            networks,
            own,
            everything,
        }
    }

    /// What peers are told of it.
    pub(super) fn told(&self) -> Dns {
        Dns { zone: self.text.clone(), everything: self.everything }
    }

    /// These are the names from now on, each with the zone.
    pub(super) fn set(&self, names: &[Name]) {
        let names = names.iter().map(|Name { name, addresses }| (name.as_str(), &addresses[..]));
        self.table.replace(Table::new(&self.text, names));
    }
}

impl Resolve for Names {
    fn resolve(&self, query: &Query, from: IpAddr) -> Verdict {
        if let Some(answer) = self.zone.answer(query, &*self.table.borrow()) {
            return Verdict::Answer(answer);
        }
        // Not for strangers, who may have a way here.
        if !self.everything || !self.networks.iter().any(|net| net.contains(&from)) {
            return Verdict::Answer(Response::to(query, Rcode::Refused));
        }
        let is_other = |server: &SocketAddr| !self.own.contains(&server.ip());
        Verdict::Ask(resolv_conf::servers().into_iter().filter(is_other).collect())
    }
}

#[cfg(test)]
mod tests {
    use netyard_wire::dns::{A, AAAA, Data, Flags, IN, PTR, Question};

    use super::*;

    fn ask(names: &Names, name: &str, kind: u16, from: &str) -> Result<Response, Vec<SocketAddr>> {
        let question = Question { name: name.parse().unwrap(), kind, class: IN };
        let query = Query { id: 1, flags: Flags(0), question, edns: None };
        match names.resolve(&query, from.parse().unwrap()) {
            Verdict::Answer(answer) => Ok(answer),
            Verdict::Ask(servers) => Err(servers),
        }
    }

    fn names(everything: bool) -> Names {
        let networks = vec!["10.1.1.0/24".parse().unwrap(), "fd00:5::/64".parse().unwrap()];
        let own = vec!["10.1.1.1".parse().unwrap()];
        let names = Names::new("lab.internal", networks, own, everything);
        let name = |name: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            Name { name: format!("{name}.lab.internal"), addresses }
        };
        names.set(&[
            name("hub", &["10.1.1.1", "fd00:5::1"]),
            name("Laptop", &["10.1.1.3", "fd00:5::3"]),
            name("db.east", &["10.1.1.5"]),
        ]);
        names
    }

    #[test]
    fn machines_have_names_and_addresses_have_machines() {
        let names = names(false);
        let answers = |name: &str, kind| {
            let answer = ask(&names, name, kind, "10.1.1.3").unwrap();
            assert!(answer.flags.contains(Flags::AUTHORITATIVE));
            let data = answer.answers.into_iter().map(|record| record.data).collect::<Vec<_>>();
            (answer.flags.rcode(), data)
        };
        let some = |data| (Rcode::NoError, vec![data]);
        assert_eq!(answers("laptop.LAB.internal", A), some(Data::A([10, 1, 1, 3].into())));
        assert_eq!(
            answers("laptop.lab.internal", AAAA),
            some(Data::Aaaa("fd00:5::3".parse().unwrap()))
        );
        let back = "laptop.lab.internal".parse().unwrap();
        assert_eq!(answers("3.1.1.10.in-addr.arpa", PTR), some(Data::Ptr(back)));
        let empty =
            |name: &str, kind, rcode| assert_eq!(answers(name, kind), (rcode, vec![]), "{name}");
        empty("db.east.lab.internal", AAAA, Rcode::NoError);
        empty("east.lab.internal", A, Rcode::NoError);
        empty("lab.internal", A, Rcode::NoError);
        empty("west.lab.internal", A, Rcode::NameError);
        empty("9.1.1.10.in-addr.arpa", PTR, Rcode::NameError);
    }

    #[test]
    fn other_names_are_passed_on_for_the_network_alone_and_if_the_hub_does_that() {
        let rcode =
            |names: &Names, from| ask(names, "example.net", A, from).map(|it| it.flags.rcode());
        assert_eq!(rcode(&names(false), "10.1.1.3"), Ok(Rcode::Refused));
        assert_eq!(rcode(&names(true), "192.0.2.7"), Ok(Rcode::Refused));
        assert!(rcode(&names(true), "10.1.1.3").is_err());
    }
}
