//! Routes as servers see them, with servers that say what the test wants.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod script;

use std::net::IpAddr;

use netyard_nic::{
    AddressClass, AddressState, Card, Confidence, Discovery, External, Family, Interface, IpRange,
    PerFamily, PublicPolicy, RoutePool, Unknown, discover,
};
use script::{Script, card, now};

fn routes(card: &Card, script: &Script) -> PerFamily<RoutePool> {
    now(discover(card, PublicPolicy::default(), 2, script))
}

fn shown(pool: &RoutePool) -> Vec<String> {
    pool.routes().iter().map(ToString::to_string).collect()
}

/// A range as the printed examples write it.
fn as_printed(range: &IpRange) -> String {
    let count = range.count();
    let (ip, prefix) = (range.base(), range.prefix());
    match AddressClass::of(ip) {
        _ if ip.is_ipv4() => format!("{ip}/{prefix} ({count})"),
        AddressClass::LinkLocal => format!("{} (link-local) ({count})", hextets(range)),
        _ => format!("{} (global scope) ({count})", hextets(range)),
    }
}

/// `2020:DEED:BEEF::0000/128`: capitals, and the last group in full.
fn hextets(range: &IpRange) -> String {
    let text = range.base().to_string().to_uppercase();
    let last = if text.ends_with("::") { "0000" } else { "" };
    format!("{text}{last}/{}", range.prefix())
}

/// The parts of a printed example: addresses on the card, external ones, routes.
fn printed(text: &str) -> [Vec<String>; 3] {
    let mut parts = [const { Vec::new() }; 3];
    let mut part = 0;
    for line in text.lines() {
        match line.to_ascii_uppercase().as_str() {
            "NIC IPS:" => part = 0,
            "EXT IPS:" => part = 1,
            "ROUTES:" => part = 2,
            _ if line.starts_with("    ") => parts[part].push(line.trim().to_owned()),
            _ => assert!(line.is_empty() || line.starts_with("---"), "{line}"),
        }
    }
    parts
}

/// True if `text` is `pattern`, in which `...` stands for any characters.
fn abbreviates(pattern: &str, text: &str) -> bool {
    match pattern.split_once("...") {
        Some((head, tail)) => text.starts_with(head) && text.ends_with(tail),
        None => text == pattern,
    }
}

#[test]
fn c3_the_printed_ipv4_example_comes_out_as_printed() {
    let [near, far, lines] = printed(include_str!("data/routes-ip4.txt"));
    let ranges: Vec<_> = near.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let card = card("eth0", &ranges);
    let listed: Vec<_> = card.addresses.iter().map(|it| as_printed(&it.range)).collect();
    assert_eq!(listed, near);
    let script = Script::default()
        .sees("192.168.0.20", "1.3.3.7")
        .sees("193.168.0.1", "1.3.3.7")
        .sees("7.7.7.7", "1.3.3.7")
        .sees("8.8.0.1", "8.8.0.1");
    let pools = routes(&card, &script);
    let pool = &pools.ip4;
    let external: Vec<_> =
        pool.routes().iter().map(|it| as_printed(it.ext_ips().unwrap())).collect();
    assert_eq!(external, far);
    assert_eq!(pool.routes().len(), lines.len());
    for (line, route) in lines.iter().zip(pool.routes()) {
        // The example leaves out digits and the lengths of prefixes.
        let (near, far) = line.split_once(" -> ").unwrap();
        let bare = |range: &IpRange| range.base().to_string();
        let patterns = near.trim_matches(['[', ']']).split(", ");
        let names: Vec<_> = route.nic_ips().iter().map(bare).collect();
        assert_eq!(patterns.clone().count(), names.len(), "{line}: {route}");
        for (pattern, name) in patterns.zip(&names) {
            assert!(abbreviates(pattern, name), "{pattern} is not {name}");
        }
        assert_eq!(far, format!("[{}]", bare(route.ext_ips().unwrap())));
    }
    assert_eq!(pool.len(), 65025);
    assert_eq!(
        shown(pool),
        ["[192.168.0.20, 193.168.0.0/16, 7.7.7.7] -> [1.3.3.7]", "[8.8.0.0/16] -> [8.8.0.0/16]"]
    );
    assert!(pool.routes()[1].is_direct() && !pool.routes()[0].is_direct());
    let asked = ["192.168.0.20", "193.168.0.1", "7.7.7.7", "8.8.0.1"];
    assert_eq!(script.asked(), asked, "a block is asked for by its first address");
}

#[test]
fn c3_the_printed_ipv6_example_comes_out_as_printed() {
    let [near, far, lines] = printed(include_str!("data/routes-ip6.txt"));
    let ranges: Vec<_> = near.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let card = card("eth0", &ranges);
    let listed: Vec<_> = card.addresses.iter().map(|it| as_printed(&it.range)).collect();
    assert_eq!(listed, near);
    let script = Script::default()
        .sees("2020:deed:beef::", "2020:deed:beef::")
        .sees("2020:deed:deed::1", "2020:deed:deed::1");
    let pools = routes(&card, &script);
    let pool = &pools.ip6;
    let external: Vec<_> =
        pool.routes().iter().map(|it| as_printed(it.ext_ips().unwrap())).collect();
    assert_eq!(external, far);
    let printed: Vec<_> = pool
        .routes()
        .iter()
        .map(|route| {
            let near: Vec<_> = route.nic_ips().iter().map(hextets).collect();
            format!("[{}] -> [{}]", near.join(", "), hextets(route.ext_ips().unwrap()))
        })
        .collect();
    assert_eq!(printed, lines);
    for route in pool.routes() {
        assert_eq!(route.link_locals().len(), 1);
        assert_eq!(route.bind_address(), route.ext().unwrap(), "IPv6 servers use the far side");
    }
}

#[test]
fn c4_public_addresses_that_are_misused_are_like_private_ones() {
    let card = card("eth0", &["7.7.7.7/24", "10.0.0.9/8"]);
    let script = Script::default().sees("7.7.7.7", "1.3.3.7").sees("10.0.0.9", "1.3.3.7");
    let pools = routes(&card, &script);
    assert_eq!(shown(&pools.ip4), ["[10.0.0.9, 7.7.7.7] -> [1.3.3.7]"]);
    let other = Script::default().sees("7.7.7.7", "2.2.2.2").sees("10.0.0.9", "1.3.3.7");
    let lines = shown(&routes(&card, &other).ip4);
    assert_eq!(lines, ["[10.0.0.9] -> [1.3.3.7]", "[7.7.7.7] -> [2.2.2.2]"], "by external address");
}

#[test]
fn c4_a_block_that_is_seen_otherwise_is_no_direct_route() {
    let card = card("eth0", &["8.8.0.0/16", "2020:deed:deed::/64"]);
    let script =
        Script::default().sees("8.8.0.1", "1.3.3.7").sees("2020:deed:deed::1", "2020:feed::9");
    let pools = routes(&card, &script);
    assert_eq!(shown(&pools.ip4), ["[8.8.0.0/16] -> [1.3.3.7]"]);
    assert_eq!(shown(&pools.ip6), ["[2020:deed:deed::/64] -> [2020:feed::9]"]);
    assert_eq!(pools.ip6.routes()[0].bind_address().to_string(), "2020:deed:deed::1");
}

#[test]
fn c4_without_answers_routes_are_there_and_unknown() {
    let card = card("eth0", &["192.168.0.20/24", "8.8.0.0/16", "fd00::5/64", "fe80::1/64"]);
    let pools = routes(&card, &Script::default());
    assert_eq!(
        shown(&pools.ip4),
        [
            "[192.168.0.20] -> unknown: no server answered",
            "[8.8.0.0/16] -> unknown: no server answered"
        ]
    );
    assert_eq!(shown(&pools.ip6), ["[fd00::5] -> unknown: no server answered"]);
    assert_eq!(pools.ip4.len(), 0);
    let nobody = Interface::unasked(card);
    assert_eq!(shown(nobody.rp(Family::Ip6)), ["[fd00::5] -> unknown: not asked"]);
    assert_eq!(nobody.route(None).unwrap().nic().to_string(), "192.168.0.20");
}

#[test]
fn c4_servers_that_disagree_are_outvoted_or_nobody_is_believed() {
    let card = card("eth0", &["192.168.0.20/24"]);
    let known = |script: &Script| routes(&card, script).ip4.routes()[0].clone();
    let two_to_one = known(
        &Script::default()
            .say("192.168.0.20", &[Some("1.1.1.1"), Some("9.9.9.9"), Some("1.1.1.1")]),
    );
    assert_eq!(two_to_one.ext().unwrap().to_string(), "1.1.1.1");
    assert_eq!(two_to_one.confidence(), Some(Confidence::Proven));
    assert_eq!(two_to_one.evidence().len(), 3, "the minority is kept");
    let all_differ = known(
        &Script::default()
            .say("192.168.0.20", &[Some("1.1.1.1"), Some("2.2.2.2"), Some("3.3.3.3")]),
    );
    assert_eq!(all_differ.external(), &External::Unknown(Unknown::Disagreement));
    let alone = known(&Script::default().say("192.168.0.20", &[None, Some("1.1.1.1"), None]));
    assert_eq!((alone.ext().map(|it| it.to_string()), alone.confidence()), {
        (Some("1.1.1.1".to_owned()), Some(Confidence::Single))
    });
}

#[test]
fn addresses_that_are_not_public_are_no_external_addresses_unless_the_user_says_so() {
    let card = card("eth0", &["10.0.0.2/24"]);
    let script = Script::default().sees("10.0.0.2", "203.0.113.1");
    let seen: IpAddr = "203.0.113.1".parse().unwrap();
    let pools = routes(&card, &script);
    assert_eq!(pools.ip4.routes()[0].external(), &External::Unknown(Unknown::NotPublic(seen)));
    let policy = PublicPolicy::treat_as_public(vec!["203.0.113.0/24".parse().unwrap()]);
    let pools = now(discover(&card, policy, 2, &script));
    assert_eq!(shown(&pools.ip4), ["[10.0.0.2] -> [203.0.113.1]"]);
}

#[test]
fn only_addresses_that_are_ready_are_used_and_stable_ones_first() {
    let mut card =
        card("eth0", &["2020::1/64", "2020::2/64", "2020::3/64", "2020::4/64", "2020::5/64"]);
    card.addresses[0].temporary = true;
    card.addresses[1].state = AddressState::Deprecated;
    card.addresses[2].state = AddressState::Tentative;
    card.addresses[3].state = AddressState::Duplicate;
    let script = Script::default();
    let _ = routes(&card, &script);
    assert_eq!(script.asked(), ["2020::5", "2020::1"]);
}

#[test]
fn the_route_that_the_kernel_takes_is_the_first() {
    let mut card = card("eth0", &["10.0.0.9/8", "9.9.9.9/24", "7.7.7.7/24"]);
    card.source.ip4 = Some("9.9.9.9".parse().unwrap());
    let script = Script::default()
        .sees("10.0.0.9", "1.3.3.7")
        .sees("9.9.9.9", "9.9.9.9")
        .sees("7.7.7.7", "7.7.7.7");
    let lines = shown(&routes(&card, &script).ip4);
    assert_eq!(
        lines,
        ["[9.9.9.9] -> [9.9.9.9]", "[10.0.0.9] -> [1.3.3.7]", "[7.7.7.7] -> [7.7.7.7]"]
    );
}

#[test]
fn unique_local_addresses_are_asked_for_where_nothing_else_is_there() {
    let alone = card("eth0", &["fd00::5/64", "fe80::1/64"]);
    let script = Script::default().sees("fd00::5", "2020::9");
    let pools = routes(&alone, &script);
    assert_eq!(shown(&pools.ip6), ["[fd00::5] -> [2020::9]"]);
    assert_eq!(pools.ip6.routes()[0].link_locals().len(), 1);
    let both = card("eth0", &["fd00::5/64", "2020::1/64"]);
    let script = Script::default().sees("2020::1", "2020::1");
    let lines = shown(&routes(&both, &script).ip6);
    assert_eq!(lines, ["[2020::1] -> [2020::1]", "[fd00::5] -> unknown: not asked"]);
    assert_eq!(script.asked(), ["2020::1"]);
}

#[test]
fn a_block_whose_last_address_is_seen_otherwise_is_not_taken_whole() {
    let card = card("eth0", &["8.8.0.0/16"]);
    let verified = |script: &Script| {
        let discovery = Discovery::new(&card, PublicPolicy::default()).verifying_last();
        now(discovery.ask(2, script)).ip4
    };
    let both = Script::default().sees("8.8.0.1", "8.8.0.1").sees("8.8.255.254", "8.8.255.254");
    let whole = verified(&both);
    assert_eq!(shown(&whole), ["[8.8.0.0/16] -> [8.8.0.0/16]"]);
    assert_eq!(both.asked(), ["8.8.0.1", "8.8.255.254"]);

    let half = Script::default().sees("8.8.0.1", "8.8.0.1").sees("8.8.255.254", "1.3.3.7");
    let pool = verified(&half);
    let [first, rest] = pool.routes() else { panic!("{pool:?}") };
    assert_eq!((first.ext(), first.is_direct()), (Some("8.8.0.1".parse().unwrap()), true));
    assert_eq!(rest.external(), &External::Unknown(Unknown::LastDiffers));
    assert_eq!(rest.evidence().len(), 3, "what servers saw of the last address");
    assert_eq!(pool.len(), 1, "one address is known");

    // Where the first one is translated, nothing is said about the last one.
    let translated = Script::default().sees("8.8.0.1", "1.3.3.7");
    assert_eq!(shown(&verified(&translated)), ["[8.8.0.0/16] -> [1.3.3.7]"]);
    // Unless it is wanted the last one is not asked about.
    let unasked = Script::default().sees("8.8.0.1", "8.8.0.1");
    assert_eq!(shown(&routes(&card, &unasked).ip4), ["[8.8.0.0/16] -> [8.8.0.0/16]"]);
    assert_eq!(unasked.asked(), ["8.8.0.1"]);
}
