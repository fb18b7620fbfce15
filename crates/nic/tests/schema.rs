//! Interfaces as JSON: what older programs wrote is read, and nothing is lost.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod script;

use netyard_nic::nat::{DeltaType, NatReport, NatType};
use netyard_nic::{
    Agreement, Family, InOrder, Interface, Prober as _, PublicPolicy, SCHEMA, SchemaError, discover,
};
use proptest::prelude::*;
use script::{Script, card, now};
use serde_json::{Value, json};

const SAMPLE: &str = include_str!("data/interface.txt");

fn round(interface: &Interface) -> Interface {
    let text = serde_json::to_string(&InOrder(&interface.to_json())).unwrap();
    Interface::parse(&text).unwrap()
}

fn shown(interface: &Interface, family: Family) -> Vec<String> {
    interface.rp(family).routes().iter().map(ToString::to_string).collect()
}

#[test]
fn c5_the_printed_sample_is_read_and_printed_byte_for_byte() {
    let sample = Interface::parse(SAMPLE).unwrap();
    assert_eq!(sample.name(), "Intel(R) Wi-Fi 6 AX200 160MHz");
    assert_eq!(shown(&sample, Family::Ip4), ["[192.168.21.21] -> [1.3.3.7]"]);
    assert!(sample.rp(Family::Ip6).routes().is_empty());
    let nat = sample.nat().unwrap();
    assert_eq!(nat.kind, Some(NatType::PortRestricted));
    assert_eq!(nat.delta.map(|delta| (delta.kind, delta.value)), Some((DeltaType::Random, 0)));
    assert_eq!(format!("{}\n", sample.to_seed()), SAMPLE);
    assert_eq!(round(&sample), sample);
}

#[test]
fn c5_both_generations_of_the_older_programs_load() {
    let generation = |range: fn(&str, u8, Value) -> Value| {
        json!({
            "netiface_index": 3,
            "name": "eth0",
            "nic_no": 0,
            "id": "{A-B}",
            "mac": "02:00:00:00:00:01",
            "is_default": {"2": true, "10": false},
            "nat": {
                "type": 6, "nat_info": "symetric",
                "delta": {"type": 4, "value": 10}, "delta_info": "independent delta"
            },
            "rp": {
                "2": [{
                    "af": 2,
                    "nic_ips": [range("192.168.0.20", 32, json!(1))],
                    "ext_ips": [range("8.8.0.0", 16, json!(65535))],
                    "link_local_ips": []
                }],
                "10": [{
                    "af": 10,
                    "nic_ips": [range("2020:deed:deed::", 64, json!(u64::MAX))],
                    "ext_ips": [range("2020:deed:deed::", 64, json!(u64::MAX))],
                    "link_local_ips": [range("fe80::1", 128, json!(1))]
                }]
            }
        })
    };
    for range in [
        |ip: &str, prefix: u8, _: Value| json!({"ip": ip, "cidr": prefix, "af": if ip.contains(':') { 10 } else { 2 }}),
        |ip: &str, prefix: u8, _: Value| json!({"ip": ip, "host_limit": prefix, "subnet": 16}),
        |ip: &str, _: u8, hosts: Value| json!({"ip": ip, "host_limit": hosts}),
    ] {
        let file = generation(range);
        let read = Interface::from_json(&file).unwrap();
        assert_eq!(shown(&read, Family::Ip4), ["[192.168.0.20] -> [8.8.0.0/16]"], "{file}");
        let v6 = "[2020:deed:deed::/64] -> [2020:deed:deed::/64]";
        assert_eq!(shown(&read, Family::Ip6), [v6], "{file}");
        assert!(read.rp(Family::Ip6).routes()[0].is_direct());
        assert_eq!(read.card().index, Some(3));
        assert_eq!(read.card().mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!((read.is_default(Family::Ip4), read.is_default(Family::Ip6)), {
            (Some(true), Some(false))
        });
        assert_eq!(read.nat().unwrap().kind, Some(NatType::Symmetric));
        let written = read.to_json();
        assert_eq!(written["rp"]["23"][0]["ext_ips"][0]["cidr"], 64);
        assert_eq!((&written["nic_no"], &written["id"]), (&json!(0), &json!("{A-B}")), "kept");
        assert_eq!(round(&read), read);
    }
}

#[test]
fn c5_families_of_any_system_are_read_and_written_alike() {
    for key in ["10", "23", "24", "28", "30", "ip6", "IPv6"] {
        let file = json!({"name": "x", "rp": {key: [{
            "af": key.parse::<u8>().map_or(json!(key), |number| json!(number)),
            "nic_ips": [{"ip": "fe80::1%4"}],
            "ext_ips": [{"ip": "2020::1", "cidr": 128, "af": 30}],
        }]}});
        let read = Interface::from_json(&file).unwrap();
        assert_eq!(shown(&read, Family::Ip6), ["[fe80::1%4] -> [2020::1]"], "{key}");
        assert_eq!(read.to_json()["rp"]["23"][0]["af"], 23);
        assert!(read.nat().is_none() && read.to_json()["nat"].is_null(), "never tested");
    }
}

#[test]
fn c5_fields_that_are_not_known_stay_where_they_were() {
    let file = json!({
        "name": "eth0", "nat": {"type": 5, "delta": {"type": 6, "value": 0, "d": 1}, "n": [1]},
        "rp": {"10": [{
            "nic_ips": [{"ip": "2020::1", "color": "blue"}],
            "ext_ips": [{"ip": "2020::1", "cidr": 128}], "weight": 3
        }], "2": []},
        "vendor": {"deep": true}, "is_default": {"10": true}
    });
    let read = Interface::from_json(&file).unwrap();
    let written = read.to_json();
    assert_eq!(written["vendor"]["deep"], true);
    assert_eq!(written["nat"]["n"], json!([1]));
    assert_eq!(written["nat"]["delta"]["d"], 1);
    assert_eq!(written["rp"]["23"][0]["weight"], 3);
    assert_eq!(written["rp"]["23"][0]["nic_ips"][0]["color"], "blue");
    assert!(written["rp"].get("10").is_none() && written["is_default"].get("10").is_none());
    assert_eq!(round(&read), read);
    assert_eq!(round(&read).to_json(), written);
}

#[test]
fn c5_names_types_and_routes_come_first() {
    let text =
        serde_json::to_string(&InOrder(&Interface::parse(SAMPLE).unwrap().to_json())).unwrap();
    let place = |key: &str| text.find(&format!("\"{key}\":")).unwrap();
    let keys = ["name", "nat", "rp", "schema", "addrs", "gateways"];
    assert!(keys.iter().map(|key| place(key)).is_sorted(), "{text}");
    assert!(text.contains(r#"{"ip":"1.3.3.7","cidr":32,"af":2}"#), "{text}");
}

#[test]
fn c5_what_cannot_be_read_says_where_and_why() {
    for (file, words) in [
        (json!([]), "/: wanted an object"),
        (json!({"rp": {}}), "wanted a name"),
        (json!({"name": "x", "schema": "nic/2"}), "\"nic/2\""),
        (json!({"name": "x", "rp": {"7": []}}), "/rp: wanted the number or name of a family"),
        (json!({"name": "x", "rp": {"2": {}}}), "/rp/2: wanted a list"),
        (
            json!({"name": "x", "rp": {"2": [{"nic_ips": [{"ip": "1.2.3"}]}]}}),
            "/rp/2/0/nic_ips/0/ip",
        ),
        (json!({"name": "x", "rp": {"2": [{"nic_ips": [{"ip": "::1"}]}]}}), "route's family"),
        (
            json!({"name": "x", "rp": {"2": [{"nic_ips": [{"ip": "1.2.3.4", "cidr": 33}]}]}}),
            "prefix",
        ),
        (json!({"name": "x", "rp": {"2": [{"af": 23, "nic_ips": []}]}}), "/rp/2/0/af"),
        (json!({"name": "x", "nat": {"type": 9}}), "/nat: wanted a NAT record"),
    ] {
        let error = Interface::from_json(&file).unwrap_err().to_string();
        assert!(error.contains(words), "{file}: {error}");
    }
    assert!(matches!(Interface::parse("{"), Err(SchemaError::Json(_))));
}

#[test]
fn c5_what_was_found_is_the_same_when_read_again() {
    let mut eth0 = card("eth0", &["192.168.0.20/24", "8.8.0.0/16", "2020:deed::/64", "fe80::1/64"]);
    eth0.source.ip4 = Some("192.168.0.20".parse().unwrap());
    eth0.default.ip6 = Some(false);
    eth0.addresses[2].preferred = Some(300);
    let script = Script::default()
        .say("192.168.0.20", &[Some("1.3.3.7"), None, Some("1.3.3.7")])
        .sees("8.8.0.1", "8.8.0.1");
    let rp = now(discover(&eth0, PublicPolicy::default(), 2, &script));
    let found = Interface::new(eth0, rp).with_nat(Some(NatReport::assumed()));
    assert_eq!(found.to_json()["schema"], SCHEMA);
    assert_eq!(round(&found), found);
    let probe = netyard_nic::Probe { card: None, from: "8.8.0.1".parse().unwrap() };
    assert!(now(script.probe(probe, Agreement::new(2))).is_settled());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop_oneof!["[a-z]{0,4}", Just("1.2.3.4".to_owned()), Just("2020::".to_owned())]
            .prop_map(Value::from),
    ];
    let key = prop_oneof![
        "[a-z]{1,3}",
        Just("2".to_owned()),
        Just("10".to_owned()),
        Just("23".to_owned()),
        Just("ip".to_owned()),
        Just("cidr".to_owned()),
        Just("host_limit".to_owned()),
        Just("nic_ips".to_owned()),
        Just("ext_ips".to_owned()),
        Just("rp".to_owned()),
        Just("nat".to_owned()),
        Just("type".to_owned()),
        Just("addrs".to_owned()),
    ];
    leaf.prop_recursive(6, 64, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_file() -> impl Strategy<Value = Value> {
    let prefixed = |ip: Value, prefix: u8| json!({"ip": ip, "cidr": prefix});
    let v4 = (any::<u32>(), 0_u8..=32)
        .prop_map(move |(ip, len)| prefixed(json!(std::net::Ipv4Addr::from(ip)), len));
    let v6 = (any::<u128>(), 0_u8..=128)
        .prop_map(move |(ip, len)| prefixed(json!(std::net::Ipv6Addr::from(ip)), len));
    fn routes(range: impl Strategy<Value = Value> + Clone) -> impl Strategy<Value = Value> {
        let list = |range| prop::collection::vec(range, 0..3);
        let route = (list(range.clone()), list(range), any_json())
            .prop_map(|(near, far, more)| json!({"nic_ips": near, "ext_ips": far, "more": more}));
        prop::collection::vec(route, 0..4).prop_map(Value::from)
    }
    let v4 = Strategy::boxed(v4);
    let v6 = Strategy::boxed(v6);
    (routes(v4), routes(v6), any_json(), 1_u8..=7).prop_map(|(ip4, ip6, more, nat)| {
        json!({"name": "eth0", "nat": {"type": nat}, "rp": {"2": ip4, "30": ip6}, "more": more})
    })
}

proptest! {
    #[test]
    fn c5_from_to_is_the_same(file in any_file()) {
        let read = Interface::from_json(&file).unwrap();
        prop_assert_eq!(&round(&read), &read);
        prop_assert_eq!(round(&read).to_json(), read.to_json());
        prop_assert_eq!(&read.to_json()["more"], &file["more"]);
    }

    #[test]
    fn any_json_is_read_or_refused(file in any_json()) {
        if let Ok(read) = Interface::from_json(&json!({"name": "x", "rp": file, "addrs": file})) {
            prop_assert_eq!(round(&read), read);
        }
        let _ = Interface::from_json(&file);
    }
}
