//! `load_interfaces`: several cards at once, each with the external address and the NAT that are its own.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod stage;

use std::time::Duration;

use netyard_nic::lab::{Card, Impairment, Kind, Lab, SERVERS};
use netyard_nic::nat::NatType;
use netyard_nic::stun::StunProber;
use netyard_nic::{
    External, Family, LoadOptions, NicError, PublicPolicy, Unknown, load_interfaces,
};
use netyard_testbed::isolate;

use self::stage::{LIMIT, within};

/// A machine with a card for each kind; the servers to ask, and how.
fn lab(kinds: &[Kind]) -> (Lab, LoadOptions, StunProber) {
    let lab = Lab::up(kinds.iter().copied(), Impairment::default()).unwrap();
    let servers = vec![SERVERS[0].to_string()];
    let options = LoadOptions {
        policy: PublicPolicy::treat_as_public(vec!["203.0.113.0/24".parse().unwrap()]),
        nat_servers: servers.clone(),
        within: LIMIT,
        ..LoadOptions::default()
    };
    (lab, options, StunProber { servers })
}

#[test]
fn c16_cards_are_loaded_together_each_with_its_own_nat() {
    isolate(|| {
        let (lab, options, prober) = lab(&[Kind::Port, Kind::Symmetric]);
        let names = ["eth0", "eth9", "eth1"];
        // Twice: the second run of a process is like the first (C23).
        for _ in 0..2 {
            let loaded = within(lab.machine(), load_interfaces(&names, &options, &prober));
            let [(_, one), (missing, none), (_, two)] = loaded.try_into().unwrap();
            assert_eq!(missing, "eth9");
            assert!(matches!(none, Err(NicError::NotFound { .. })), "{none:?}");
            for (interface, number, kind) in
                [(one, 0, NatType::PortRestricted), (two, 1, NatType::Symmetric)]
            {
                let interface = interface.unwrap();
                let route = interface.route(Some(Family::Ip4)).unwrap();
                assert_eq!(route.ext(), Some(Card::number(number).external), "{route}");
                assert_eq!(interface.nat().unwrap().kind, Some(kind));
            }
        }
    });
}

#[test]
fn c20_a_card_that_hears_nobody_harms_no_other() {
    isolate(|| {
        let (lab, options, prober) = lab(&[Kind::Blocked]);
        let impatient = LoadOptions { within: Duration::from_millis(200), ..options };
        let loaded = within(lab.machine(), load_interfaces(&["eth0"], &impatient, &prober));
        let interface = loaded[0].1.as_ref().unwrap();
        let route = interface.route(Some(Family::Ip4)).unwrap();
        let [address, _] = Card::number(0).addresses;
        assert_eq!(route.bind_address(), address, "it leads to neighbours all the same");
        assert_eq!(route.external(), &External::Unknown(Unknown::NoAnswer));
        assert_eq!(interface.nat(), None, "there was no time to test it");
        // Nobody is there: over TCP and TLS servers are asked in time, too.
        let servers = vec!["203.0.113.77".to_owned()];
        let patient =
            LoadOptions { nat_servers: Vec::new(), within: LIMIT, ..LoadOptions::default() };
        let nowhere = StunProber { servers };
        let loaded = within(lab.machine(), load_interfaces(&["eth0"], &patient, &nowhere));
        let route = loaded[0].1.as_ref().unwrap().route(Some(Family::Ip4)).unwrap();
        assert_eq!(route.external(), &External::Unknown(Unknown::NoAnswer));
        let asked: Vec<_> = route.evidence().iter().map(|answer| &*answer.server).collect();
        assert!(asked.ends_with(&["203.0.113.77/tcp", "203.0.113.77/tls"]), "{asked:?}");
        let known = LoadOptions { nat_servers: Vec::new(), ..impatient };
        let nobody = StunProber { servers: Vec::new() };
        let loaded = within(lab.machine(), load_interfaces(&["eth0"], &known, &nobody));
        let route = loaded[0].1.as_ref().unwrap().route(Some(Family::Ip4)).unwrap();
        assert_eq!(route.ext(), None, "nobody was asked");
    });
}
