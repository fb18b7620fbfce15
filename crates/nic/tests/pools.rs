//! Route pools: a route for each external address, without making them all.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod script;

use netyard_nic::{CardId, Family, Interface, IpRange, PublicPolicy, Route, RoutePool, Unknown};

fn range(text: &str) -> IpRange {
    text.parse().unwrap()
}

fn eth0() -> CardId {
    CardId { name: "eth0".into(), index: Some(2) }
}

fn direct(block: &str) -> Route {
    Route::direct(eth0(), range(block), &[])
}

fn translated(near: &[&str], far: &str) -> Route {
    let near = near.iter().map(|text| range(text)).collect();
    Route::translated(eth0(), range(far).family(), near, range(far))
}

/// Two blocks and a host: 2, 65024 and 1 addresses.
fn pool() -> RoutePool {
    RoutePool::new([
        direct("8.0.0.4/30"),
        translated(&["10.0.0.7", "10.0.0.8"], "9.9.0.0/16"),
        translated(&["192.168.0.20"], "1.3.3.7"),
    ])
}

fn shown(route: Option<Route>) -> Option<String> {
    route.map(|route| route.to_string())
}

#[test]
fn c2_a_pool_counts_and_indexes_every_external_address() {
    let pool = pool();
    assert_eq!(pool.len(), 2 + 65024 + 1);
    for (index, expected) in [
        (0, "[8.0.0.5] -> [8.0.0.5]"),
        (1, "[8.0.0.6] -> [8.0.0.6]"),
        (2, "[10.0.0.7, 10.0.0.8] -> [9.9.0.1]"),
        (65025, "[10.0.0.7, 10.0.0.8] -> [9.9.255.254]"),
        (65026, "[192.168.0.20] -> [1.3.3.7]"),
        (-1, "[192.168.0.20] -> [1.3.3.7]"),
        (-2, "[10.0.0.7, 10.0.0.8] -> [9.9.255.254]"),
        (-65027, "[8.0.0.5] -> [8.0.0.5]"),
    ] {
        assert_eq!(shown(pool.get(index)).as_deref(), Some(expected), "{index}");
    }
    for outside in [65027, -65028, i128::MAX, i128::MIN] {
        assert_eq!(pool.get(outside), None, "{outside}");
    }
    assert_eq!(RoutePool::default().get(0), None);
}

#[test]
fn c2_iteration_is_indexing() {
    let pool = pool();
    let all: Vec<_> = pool.iter().collect();
    assert_eq!(all.len() as u128, pool.len());
    for index in [0, 1, 2, 3, 300, 65025, 65026] {
        assert_eq!(Some(all[index].clone()), pool.at(index as u128), "{index}");
    }
    let mut back: Vec<_> = pool.iter().rev().collect();
    back.reverse();
    assert!(all == back);
    let across: Vec<_> = pool.slice(1..3).map(|route| route.ext().unwrap().to_string()).collect();
    assert_eq!(across, ["8.0.0.6", "9.9.0.1"]);
    assert_eq!(pool.slice(65026..).count(), 1);
    assert_eq!(pool.slice(65027..).count(), 0);
}

#[test]
fn c2_addresses_are_handed_out_one_after_the_other() {
    let mut pool = RoutePool::new([direct("8.0.0.4/30"), translated(&["10.0.0.7"], "1.3.3.7")]);
    let handed: Vec<_> = std::iter::from_fn(|| pool.pop()).map(|it| it.ext().unwrap()).collect();
    assert_eq!(handed, [range("8.0.0.5"), range("8.0.0.6"), range("1.3.3.7")].map(|it| it.base()));
    assert_eq!(pool.pop(), None);
}

#[test]
fn c2_pools_of_any_size_count_in_128_bits() {
    let pool = RoutePool::new([direct("2020:deed:deed::/64"), direct("2020:deed:beef::1")]);
    assert_eq!(pool.len(), u128::from(u64::MAX) + 1);
    let last_of_block = pool.at(u128::from(u64::MAX) - 1).unwrap();
    assert_eq!(last_of_block.to_string(), {
        let last = "2020:deed:deed:0:ffff:ffff:ffff:ffff";
        format!("[{last}] -> [{last}]")
    });
    assert_eq!(pool.get(-1).unwrap().ext(), Some(range("2020:deed:beef::1").base()));
    let everything = RoutePool::new([direct("::/0"), direct("2020:deed:beef::/64")]);
    assert_eq!(everything.len(), u128::MAX, "more than fits is as much as fits");
}

#[test]
fn c2_the_near_side_follows_where_it_is_the_far_side() {
    let link_local = [range("fe80::1%2")];
    let block = Route::direct(eth0(), range("2020:deed:deed::/64"), &link_local);
    let one = RoutePool::new([block]).get(6).unwrap();
    assert_eq!(one.to_string(), "[fe80::1%2] -> [2020:deed:deed::7]");
    assert_eq!(one.bind_address(), range("2020:deed:deed::7").base(), "IPv6 binds the far side");
    let pool = pool();
    assert_eq!(pool.get(1).unwrap().bind_address(), range("8.0.0.6").base());
    assert_eq!(pool.get(300).unwrap().bind_address(), range("10.0.0.7").base());
}

#[test]
fn c4_routes_to_one_external_address_become_one_with_all_addresses_of_the_card() {
    let pool = RoutePool::new([
        translated(&["192.168.0.20"], "1.3.3.7"),
        translated(&["193.168.0.0/16"], "1.3.3.7"),
        direct("8.8.0.0/16"),
        translated(&["7.7.7.7", "192.168.0.20/24"], "1.3.3.7"),
    ]);
    let shown: Vec<_> = pool.routes().iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["[192.168.0.20, 193.168.0.0/16, 7.7.7.7] -> [1.3.3.7]", "[8.8.0.0/16] -> [8.8.0.0/16]"]
    );
}

#[test]
fn what_is_not_known_has_no_number_but_is_listed() {
    let unknown =
        Route::unknown(eth0(), Family::Ip4, vec![range("192.168.0.20")], Unknown::NotAsked);
    let pool = RoutePool::new([unknown.clone(), direct("8.0.0.4/30")]);
    assert_eq!((pool.len(), pool.routes().len()), (2, 2));
    assert_eq!(pool.get(0).unwrap().ext(), Some(range("8.0.0.5").base()));
    assert_eq!(unknown.to_string(), "[192.168.0.20] -> unknown: not asked");
    assert_eq!(unknown.bind_address(), range("192.168.0.20").base(), "it leads to its neighbours");
    assert!(!unknown.same_ext(&unknown), "unknown addresses are not the same");
}

#[test]
fn routes_are_found_by_external_address_and_alternatives_avoid_it() {
    let pool = pool();
    let far = pool.find(range("9.9.3.0").base()).unwrap();
    assert_eq!(far.nic(), range("10.0.0.7").base());
    assert!(pool.find(range("9.8.0.1").base()).is_none());
    let others: Vec<_> = pool.alternatives(far, 9).iter().map(|it| it.ext().unwrap()).collect();
    assert_eq!(others, [range("8.0.0.5").base(), range("1.3.3.7").base()]);
    assert_eq!(pool.alternatives(&pool.get(300).unwrap(), 1).len(), 1);
}

#[test]
fn pools_are_made_of_chosen_addresses() {
    let card = script::card("eth0", &["192.168.0.20", "192.168.0.21", "8.8.0.0/16", "2020::1"]);
    let servers = script::Script::default()
        .sees("192.168.0.20", "1.3.3.7")
        .sees("8.8.0.1", "8.8.0.1")
        .sees("2020::1", "2020::1");
    let nic = script::now(Interface::load(card, PublicPolicy::default(), 2, &servers));
    let ip = |text: &str| text.parse().unwrap();
    let chosen = [ip("8.8.3.7"), ip("192.168.0.21"), ip("2020::1"), ip("8.8.3.8")];
    let pools = RoutePool::from_ips(&nic, &chosen).unwrap();
    let shown = |family| -> Vec<String> {
        pools.get(family).routes().iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        shown(Family::Ip4),
        ["[8.8.3.7] -> [8.8.3.7]", "[192.168.0.21] -> [1.3.3.7]", "[8.8.3.8] -> [8.8.3.8]",]
    );
    assert_eq!(pools.get(Family::Ip4).len(), 3);
    assert_eq!(shown(Family::Ip6), ["[2020::1] -> [2020::1]"]);
    assert_eq!(pools.get(Family::Ip4).routes()[0].bind().address(), "8.8.3.7:0".parse().unwrap());
    let error = RoutePool::from_ips(&nic, &[ip("192.168.0.22")]).unwrap_err();
    assert_eq!(error.to_string(), "192.168.0.22 is not an address of a route of eth0");
}
