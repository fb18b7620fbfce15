//! A yard behind a NAT: by which card it leaves, as whom it is seen, and what leads to its forwards.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::process::Command;

use netyard_testbed::{binary, isolate, output, run};
use serde_json::Value;

const YARD: &str = r#"
[networks.lan]

[networks.closed]
subnet = "10.77.0.0/24"
uplink = "none"

[instances.web]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
network = ["lan", "closed"]
forwards = ["0.0.0.0:8081:8080", "127.0.0.1:8082:8080"]
"#;

/// Runs a command until it says something like this, whatever that says exactly.
const HEARD: &str = r#"
heard() {
    pattern=$1; shift
    for tries in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        if said=$("$@") && echo "$said" | grep -q "$pattern"; then break; fi
    done
    echo "$said"
}
"#;

/// Runs a shell script in a lab, in a folder of its own; `netyard` is `$0` there, and `$PUBLIC` makes the
/// lab's addresses public ones. A gateway is asked for less than a second: `heard PATTERN COMMAND...` does that until
/// it was heard, on a machine that is busy.
fn in_lab(kinds: &[&str], script: &str) -> String {
    let folder = "/tmp/behind";
    fs::create_dir_all(folder).unwrap();
    fs::write(format!("{folder}/yard.toml"), YARD).unwrap();
    let netyard = binary("netyard");
    let script = format!("{HEARD}\nset -e; PUBLIC='--treat-as-public 203.0.113.0/24'\n{script}");
    let mut command = Command::new(&netyard);
    command.args(["nic", "lab", "up"]).args(kinds).args(["--", "sh", "-c", &script]).arg(&netyard);
    run(command.current_dir(folder))
}

fn json(text: &str) -> Vec<Value> {
    let documents = serde_json::Deserializer::from_str(text).into_iter();
    documents.map(|document| document.unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
}

#[test]
fn a_yard_tells_by_which_card_it_leaves_and_asks_only_when_told() {
    isolate(|| {
        let said = in_lab(
            &["port"],
            "$0 up -d --wait >/dev/null
             $0 inspect --json
             heard 'layers.: *[0-9]' $0 inspect lan --json --external $PUBLIC
             $0 forward ls --json
             $0 forward ls --json --external $PUBLIC
             $0 down >/dev/null",
        );
        let said = json(&said);
        let [quiet, asked, forwards, reached] = &said[..] else { panic!("{said:?}") };

        let networks = quiet["networks"].as_array().unwrap();
        let of = |name: &str| networks.iter().find(|it| it["name"] == name).unwrap();
        assert_eq!(of("closed")["leaves"], Value::Array(Vec::new()), "it is closed");
        let leaves = &of("lan")["leaves"];
        assert_eq!(
            (&leaves[0]["card"], &leaves[0]["source"]),
            (&"eth0".into(), &"10.0.0.2".into())
        );
        assert_eq!(leaves[0]["gateway"], "10.0.0.1");
        assert_eq!(leaves[1]["source"], "2001:db8:a::2");
        assert!(leaves[0].get("seen").is_none(), "nobody was asked: {leaves}");

        let seen = &asked["network"]["leaves"][0]["seen"];
        assert_eq!((&seen["external"], &seen["nat"]["type"]), (&"203.0.113.1".into(), &5.into()));
        assert_eq!(seen["nat"]["layers"], 1, "the gateway has the address that servers see");

        assert_eq!(forwards[0]["addresses"], Value::from(vec!["10.0.0.2"]));
        assert!(forwards[0].get("external").is_none(), "nobody was asked: {forwards}");
        let outer = &reached[0]["external"];
        assert_eq!(outer[0]["address"], "203.0.113.1");
        assert_eq!((&outer[0]["direct"], &outer[0]["near"]), (&false.into(), &"10.0.0.2".into()));
        assert_eq!(outer.as_array().unwrap().len(), 1, "one card, one NAT: {outer}");
        assert_eq!(reached[1]["external"], Value::Array(Vec::new()), "loopback only");
    });
}

#[test]
fn people_see_the_way_out_and_the_address_to_be_reached_under() {
    isolate(|| {
        let said = in_lab(
            &["open", "sym"],
            "$0 up -d --wait >/dev/null
             $0 inspect lan --external --server 198.51.100.1 $PUBLIC --treat-as-public 10.0.0.0/24
             $0 forward ls --external $PUBLIC --treat-as-public 10.0.0.0/24
             $0 down >/dev/null",
        );
        for line in [
            "leaves by  eth0 from 10.0.0.2 via 10.0.0.1 (IPv4)",
            "seen as    10.0.0.2, open, no NAT (type 1)",
            // The second card has a NAT.
            "10.0.0.2, 203.0.113.2 if its NAT forwards to 10.0.1.2",
        ] {
            assert!(said.contains(line), "{line} is not in:\n{said}");
        }
    });
}

#[test]
fn without_servers_it_is_said_how_to_name_some() {
    isolate(|| {
        let netyard = binary("netyard");
        fs::write("/tmp/yard.toml", YARD).unwrap();
        run(Command::new(&netyard).args(["up", "-d", "--wait"]).current_dir("/tmp"));
        for verb in [&["inspect", "--external"][..], &["forward", "ls", "--external"]] {
            let said = output(Command::new(&netyard).args(verb).env_remove("NETYARD_STUN"));
            let error = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(2), "{error}");
            assert!(error.contains("--server, --config or NETYARD_STUN"), "{error}");
        }
    });
}

#[test]
fn the_external_address_is_watched_and_follows_the_default_card() {
    isolate(|| {
        let said = in_lab(
            &["port", "sym"],
            "wait_for() {
                 tries=0
                 until grep -q \"$1\" watched; do
                     tries=$((tries + 1))
                     if [ $tries -gt 600 ]; then echo \"no $1 in a minute\" >&2; exit 1; fi
                     sleep 0.1
                 done
             }
             $0 nic watch --external -4 --json $PUBLIC >watched &
             watch=$!
             trap 'kill $watch' EXIT
             wait_for '\"now\":5'
             ip route del default dev eth0
             wait_for '203.0.113.2'
             cat watched",
        );
        let changes = json(&said);
        assert!(changes.iter().all(|change| change["weight"] == "major"), "{said}");
        let all: Vec<_> =
            changes.iter().flat_map(|change| change["events"].as_array().unwrap()).collect();
        let of = |name: &str| -> Vec<_> { all.iter().filter(|it| it["event"] == name).collect() };
        let external = of("external-changed");
        assert_eq!(external[0]["was"], Value::Null, "{said}");
        for pair in external.windows(2) {
            assert_eq!(pair[0]["now"], pair[1]["was"], "{said}");
        }
        // On a machine that is busy a look may hear nobody, and the next one does.
        let mut known: Vec<_> = external.iter().filter_map(|it| it["now"].as_str()).collect();
        known.retain(|address| address.starts_with("203.0.113."));
        known.dedup();
        assert_eq!(known, ["203.0.113.1", "203.0.113.2"], "{said}");
        assert!(of("nat-changed").iter().any(|it| it["now"] == 5), "{said}");
    });
}

#[test]
fn two_nats_in_a_row_are_told_from_one() {
    isolate(|| {
        for (kind, layers) in
            [("port", "layers     one NAT"), ("cgnat", "layers     2 or more NATs")]
        {
            let asked = "heard 'layers.*NATs\\?' $0 nic nat; heard NAT-PMP $0 nic map";
            let said = in_lab(&[kind], asked);
            assert!(said.contains(layers), "{kind}: {said}");
            assert!(said.contains("speaks    NAT-PMP"), "{said}");
        }
    });
}

#[test]
fn two_cards_behind_two_nats_show_what_is_true_there() {
    isolate(|| {
        for (card, near, external, number, mapping) in [
            ("eth0", "10.0.0.2", "203.0.113.1", 5, "endpoint-independent"),
            ("eth1", "10.0.1.2", "203.0.113.2", 6, "address-and-port-dependent"),
        ] {
            let said = in_lab(
                &["port", "sym"],
                &format!(
                    "$0 nic show {card} --nat --json $PUBLIC
                     $0 nic show {card} --json
                     $0 nic routes {card} -4 --json --external $PUBLIC
                     heard '\"external\": *\"[0-9.]*\"' $0 nic nat --card {card} --json
                     $0 nic nat --card {card} --json --no-gateway
                     $0 nic stun 198.51.100.1 --via {near} --json"
                ),
            );
            let said = json(&said);
            let [show, quiet, routes, nat, alone, stun] = &said[..] else { panic!("{said:?}") };
            assert_eq!((&show["name"], &quiet["name"]), (&card.into(), &card.into()));
            assert_eq!(show["nat"]["type"], number, "{show}");
            assert_eq!(quiet["nat"], Value::Null, "it was not tested");
            for rp in [&show["rp"], &routes["rp"]] {
                let route = &rp["2"][0];
                assert!(route["nic_ips"].to_string().contains(near), "{card}: {route}");
                assert!(route["ext_ips"].to_string().contains(external), "{card}: {route}");
            }
            assert!(!quiet["rp"].to_string().contains(external), "nobody was asked: {quiet}");
            assert_eq!(routes["addresses"]["2"], "1");
            assert_eq!((&nat["type"], &nat["mapping"]), (&number.into(), &mapping.into()));
            assert!(nat["external"].as_str().unwrap().starts_with(external), "{nat}");
            assert_eq!(nat["portmap"]["external"], external, "its own gateway: {nat}");
            assert_eq!((&alone["type"], &alone["portmap"]), (&number.into(), &Value::Null));
            let mapped = stun[0]["mapped"].as_str().unwrap();
            assert!(mapped.starts_with(external), "by the card that has the address: {stun}");
        }
    });
}
