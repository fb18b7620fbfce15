//! Changes of the cards of a network namespace, told by the kernel.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::process::Command;
use std::time::Duration;

use netyard_nic::watch::{Change, Event, Monitor, Weight};
use netyard_nic::{AddressClass, AddressState, Card, CardAddress, Family, cards};
use netyard_testbed::{Outside, isolate, peer, run, wait_for};

/// Far above what it takes.
const SOON: Duration = Duration::from_secs(20);

fn ip(arguments: &str) {
    run(Command::new(peer("ip")).args(arguments.split(' ')));
}

/// Waits until no address is on its way to be ready.
fn settled() {
    wait_for("addresses that are ready", SOON, || {
        let all = cards().unwrap();
        let mut addresses = all.iter().flat_map(|card| &card.addresses);
        let ready = addresses.all(|address| address.state == AddressState::Ready);
        // The kernel gives it a link-local one when it is up.
        let is_local = |it: &CardAddress| it.class() == AddressClass::LinkLocal;
        let local = |card: &Card| card.name != "uplink" || card.addresses.iter().any(is_local);
        (ready && all.iter().all(local)).then_some(())
    });
}

fn watching(body: impl AsyncFnOnce(&mut Monitor)) {
    settled();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut monitor = Monitor::open().unwrap();
        body(&mut monitor).await;
    });
}

async fn next(monitor: &mut Monitor) -> Change {
    tokio::time::timeout(SOON, monitor.changed()).await.unwrap().unwrap()
}

fn defaults(change: &Change) -> Vec<(Family, Option<&str>)> {
    let name = |event| match event {
        &Event::DefaultChanged { family, ref now, .. } => {
            Some((family, now.as_ref().map(|way| way.card.as_str())))
        }
        _ => None,
    };
    change.events.iter().filter_map(name).collect()
}

#[test]
fn c22_an_address_that_comes_and_goes_is_told_once() {
    isolate(|| {
        let _outside = Outside::new();
        watching(async |monitor| {
            ip("address add 198.51.100.77/24 dev uplink");
            let came = next(monitor).await;
            let line =
                |change: &Change| change.events.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(line(&came), ["uplink has 198.51.100.77"]);
            assert_eq!(came.weight, Weight::Major, "the card has a default route");
            let known = monitor.cards().iter().find(|card| card.name == "uplink").unwrap();
            assert!(known.addresses.iter().any(|it| it.range.to_string() == "198.51.100.77"));
            ip("address del 198.51.100.77/24 dev uplink");
            assert_eq!(line(&next(monitor).await), ["uplink has 198.51.100.77 no longer"]);
            // Cards that lead nowhere do not matter to the outside.
            ip("link add spare type veth peer name spare-far");
            let came = next(monitor).await;
            assert_eq!(line(&came), ["spare-far came", "spare came"]);
            assert_eq!(came.weight, Weight::Minor);
        });
    });
}

#[test]
fn c22_another_default_is_one_major_change() {
    isolate(|| {
        let outside = Outside::new();
        ip("link add second type veth peer name second-far netns outside");
        outside.namespace().ip(&["link", "set", "second-far", "up"]);
        outside.namespace().ip(&["address", "add", "10.1.0.1/24", "dev", "second-far"]);
        for step in ["addrgenmode none dev second", "up dev second"] {
            ip(&format!("link set {step}"));
        }
        ip("address add 10.1.0.7/24 dev second");
        watching(async |monitor| {
            ip("route replace default via 10.1.0.1");
            let switched = next(monitor).await;
            assert_eq!(switched.weight, Weight::Major);
            assert_eq!(defaults(&switched), [(Family::Ip4, Some("second"))]);
            assert_eq!(switched.events.len(), 1, "{switched:?}");
            ip("link set second down");
            let cut = next(monitor).await;
            assert_eq!(cut.weight, Weight::Major);
            assert_eq!(defaults(&cut), [(Family::Ip4, None)]);
            assert!(cut.events.iter().any(|it| it.to_string() == "second is down"), "{cut:?}");
            ip("link del uplink");
            let gone = next(monitor).await;
            assert_eq!(defaults(&gone), [(Family::Ip6, None)]);
            assert!(gone.events.contains(&Event::CardRemoved { card: "uplink".into() }));
        });
    });
}
