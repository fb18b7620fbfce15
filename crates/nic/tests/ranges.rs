//! Ranges of addresses: how many, which, in which order.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::net::IpAddr;

use netyard_nic::{Family, IpRange};
use proptest::prelude::*;

fn range(text: &str) -> IpRange {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn c1_blocks_count_their_usable_addresses() {
    for (text, count) in [
        ("10.0.0.0/16", 65024),
        ("10.0.0.0/24", 254),
        ("10.0.0.0/25", 126),
        ("10.0.0.128/25", 126),
        ("10.0.0.4/30", 2),
        ("10.0.0.4/31", 2),
        ("10.0.0.4/32", 1),
        ("0.0.0.0/0", 254 << 24),
        ("2020:deed:deed::/64", (1 << 64) - 1),
        ("2020:deed:deed::/127", 2),
        ("2020:deed:deed::1/128", 1),
        ("::/0", u128::MAX),
    ] {
        assert_eq!(range(text).len(), count, "{text}");
    }
    assert_eq!(range("10.0.0.0/16").total(), 65536);
    assert_eq!(range("::/0").total(), u128::MAX);
    assert_eq!(format!("{:#}", range("8.8.0.0/16")), "8.8.0.0/16 (65024 IPs)");
    assert_eq!(range("2020:deed:deed::/64").count().to_string(), "a lot of IPs");
    assert_eq!(range("192.168.0.20").count().to_string(), "1 IP");
}

#[test]
fn c1_indexes_skip_what_is_not_usable_and_go_round() {
    let block = range("8.8.0.0/16");
    for (index, address) in [
        (0, "8.8.0.1"),
        (253, "8.8.0.254"),
        (254, "8.8.1.1"),
        (65023, "8.8.255.254"),
        (65024, "8.8.0.1"),
        (-1, "8.8.255.254"),
        (-65024, "8.8.0.1"),
        (-65025, "8.8.255.254"),
    ] {
        assert_eq!(block.get(index), ip(address), "{index}");
    }
    assert_eq!(range("10.0.0.128/25").get(-1), ip("10.0.0.254"));
    assert_eq!(range("10.0.0.4/31").get(1), ip("10.0.0.5"));
    let host = range("7.7.7.7");
    assert!([0, 1, -1, 15, i128::MAX, i128::MIN].iter().all(|at| host.get(*at) == ip("7.7.7.7")));
    let all = range("::/0");
    assert_eq!((all.get(0), all.get(-1)), (ip("::1"), IpAddr::from([0xff; 16])));
    assert_eq!(all.at(u128::MAX - 1), IpAddr::from([0xff; 16]));
}

#[test]
fn c1_iteration_is_lazy_from_both_ends_and_in_slices() {
    let block = range("2020:deed:deed::/64");
    let mut both = block.iter();
    assert_eq!(both.next(), Some(ip("2020:deed:deed::1")));
    assert_eq!(both.next_back(), Some(ip("2020:deed:deed::ffff:ffff:ffff:ffff")));
    assert_eq!(both.nth(1_000_000), Some(ip("2020:deed:deed::f:4242")));
    let small = range("10.0.0.4/30");
    assert_eq!(small.iter().collect::<Vec<_>>(), [ip("10.0.0.5"), ip("10.0.0.6")]);
    assert_eq!(small.iter().rev().collect::<Vec<_>>(), [ip("10.0.0.6"), ip("10.0.0.5")]);
    let slice: Vec<_> = range("8.8.0.0/16").slice(252..256).collect();
    assert_eq!(slice, [ip("8.8.0.253"), ip("8.8.0.254"), ip("8.8.1.1"), ip("8.8.1.2")]);
    assert_eq!(small.slice(1..9).count(), 1, "a slice ends where the range ends");
    let (from, to) = (9, 4);
    assert_eq!(small.slice(from..to).count(), 0);
}

#[test]
fn c1_overlap_is_not_equality() {
    let (block, inside, beside) = (range("8.8.0.0/16"), range("8.8.3.0/24"), range("8.9.0.0/16"));
    assert!(block.overlaps(&inside) && inside.overlaps(&block) && !block.overlaps(&beside));
    assert_ne!(block, inside);
    assert!(!block.same(&inside));
    let known = range("192.168.0.20/24");
    assert!(known.is_host() && known.same(&range("192.168.0.20")));
    assert_ne!(known, range("192.168.0.20"), "one knows its subnet");
    assert!(!range("::/0").overlaps(&range("0.0.0.0/0")), "families do not mix");
}

#[test]
fn ranges_are_read_as_people_write_them() {
    let known = range("192.168.0.20/24");
    assert_eq!((known.prefix(), known.subnet()), (32, Some(24)));
    assert_eq!(range("10.1.0.0/255.255.0.0"), range("10.1.0.0/16"));
    assert_eq!(range("fe80::1%2").scope(), Some(2));
    assert_eq!(range("fe80::1%2").to_string(), "fe80::1%2");
    assert_eq!(range("10.0.0.7/32").subnet(), None);
    for wrong in ["", "10.0.0", "10.0.0.1/33", "10.0.0.0/255.0.255.0", "fe80::1%eth0", "::/129"] {
        let error = wrong.parse::<IpRange>().unwrap_err().to_string();
        assert!(error.contains(&format!("{wrong:?}")), "{error}");
    }
}

fn any_range() -> impl Strategy<Value = IpRange> {
    let v4 = (any::<u32>(), 0_u8..=32).prop_map(|(bits, len)| (IpAddr::V4(bits.into()), len));
    let v6 = (any::<u128>(), 0_u8..=128).prop_map(|(bits, len)| (IpAddr::V6(bits.into()), len));
    prop_oneof![v4, v6]
        .prop_map(|(ip, len)| IpRange::block(ipnet::IpNet::new(ip, len).unwrap().trunc()))
}

proptest! {
    #[test]
    fn an_index_and_its_address_belong_together(range in any_range(), index: u128, at: i128) {
        let address = range.at(index);
        prop_assert!(range.contains(address));
        prop_assert_eq!(range.position(address), Some(index % range.len()));
        prop_assert!(range.contains(range.get(at)));
        prop_assert_eq!(range.family(), Family::of(address));
    }

    #[test]
    fn every_usable_address_is_listed_once(bits: u32, len in 18_u8..=32) {
        let net = ipnet::IpNet::new(IpAddr::V4(bits.into()), len).unwrap().trunc();
        let range = IpRange::block(net);
        let listed: Vec<_> = range.iter().collect();
        let mut back: Vec<_> = range.iter().rev().collect();
        back.reverse();
        prop_assert_eq!(&listed, &back);
        prop_assert_eq!(listed.len() as u128, range.len());
        prop_assert!(listed.is_sorted_by(|a, b| a < b));
        let by_number: Vec<_> = (0..range.len()).map(|index| range.at(index)).collect();
        prop_assert_eq!(listed, by_number);
    }

    #[test]
    fn what_is_printed_is_read_again(range in any_range()) {
        let again: IpRange = range.to_string().parse().unwrap();
        prop_assert!(again.same(&range));
    }

    #[test]
    fn any_text_is_read_or_refused(text: String) {
        let _ = text.parse::<IpRange>();
    }
}
