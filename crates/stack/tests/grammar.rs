//! The text of configurations: what is taken, what is refused and how that is said.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use netyard_stack::config::{Config, Detail, Nic, Source};
use proptest::prelude::*;

const SEED: &str = "verbose; nic id=1 ether=fe:e1:ba:d0:33:33 mtu=1500 dev=tap0 sniff=true; ip nic=1 \
    addr=192.168.1.100/24; route nic=1 ipnet=0.0.0.0/0 gw=192.168.1.1; dns ip=8.8.8.8";

fn parse(text: &str) -> Config {
    let parsed = Config::parse(text).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    assert_eq!(parsed.warnings, [], "{text}");
    parsed.config
}

#[test]
fn the_text_of_the_original_means_what_it_meant() {
    let nic = Nic {
        sniff: Some(Detail::Usual),
        ..Nic::new(1, Source::Name("tap0".into()))
            .mac("fe:e1:ba:d0:33:33".parse().unwrap())
            .mtu(1500)
            .address("192.168.1.100/24".parse().unwrap())
    };
    let built = Config { verbose: true, ..Config::default() }
        .nic(nic)
        .route(1, "0.0.0.0/0".parse().unwrap(), "192.168.1.1".parse().ok())
        .resolver("8.8.8.8:53".parse().unwrap());
    assert_eq!(parse(SEED), built);
}

#[test]
fn what_is_printed_reads_back() {
    for text in [
        SEED,
        "nic id=7 fd=3 pcap=/tmp/x.pcapng; ip nic=7 addr=10.0.0.1/8 addr=fd00::1/64; \
         route nic=7 ipnet=fd01::/16 gw=fd00::2; dns ip=[fd00::9]:5353 ip=1.1.1.1 ip=fe80::1%1",
        "nic id=1 ether=02-00-00-00-00-01 dev=tap1; ip nic=1 addr=slaac addr=dhcp; \
         tcp cc=reno rmem=65536 wmem=1000000 rto_min=50",
        "nic id=1 ether=02:00:00:00:00:01 dev=unix:/run/plug.sock",
        "nic id=1 dev=tun0 sniff=brief offload=off; nic id=2 dev=tun1 sniff=full offload=auto; \
         nic id=3 dev=tun2 sniff=json queues=1",
        "",
    ] {
        let config = parse(text);
        assert_eq!(parse(&config.to_string()), config, "{config}");
    }
}

#[test]
fn every_generation_of_the_original_is_taken() {
    // A plain address stands for itself, an empty gateway for "on the link", and devices may have
    // their path; empty statements and blanks, at which the original broke down, are nothing.
    let config = parse(
        " ;; nic id=2 ether=0200.0000.0002 mtu=1400 dev=/dev/tap0 ;\n\
         ip nic=2 addr=10.0.0.2 addr=fd00::2;route  nic=2 ipnet=10.9.9.9/8 gw=; \t; ",
    );
    assert_eq!(config.nics[0].device, Source::Name("tap0".into()));
    let nets = ["10.0.0.2/32", "fd00::2/128"].map(|net| net.parse().unwrap());
    assert_eq!(config.nics[0].addresses, nets);
    assert_eq!(config.routes[0].prefix, "10.0.0.0/8".parse().unwrap());
    assert_eq!(config.routes[0].gateway, None);
    let config = parse("nic id=1 ether=02:00:00:00:00:01 dev=unix:plugs/web.sock");
    assert_eq!(config.nics[0].device, Source::Socket("plugs/web.sock".into()));
    // 0 is "not given".
    let config = parse("nic id=1 mtu=0 fd=0 dev=tun0");
    assert_eq!((config.nics[0].mtu, config.nics[0].mac), (None, None));
}

#[test]
fn what_looks_like_a_mistake_is_taken_with_a_warning() {
    let parsed = Config::parse("nic id=1 id=2x dev=tap0").unwrap();
    assert_eq!(parsed.config.nics[0].id, 2);
    let warnings: Vec<String> = parsed.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "statement 1 (`nic`), key `id`, column 10: given twice; the last one counts",
            "statement 1 (`nic`), key `id`, column 10: `x` behind the number does not count",
        ]
    );
    let parsed = Config::parse("verbose please").unwrap();
    assert!(parsed.config.verbose);
    let wanted = "statement 1 (`verbose`), key `please`, column 9: `verbose` has no keys";
    assert!(parsed.warnings[0].to_string().starts_with(wanted), "{}", parsed.warnings[0]);
}

#[test]
fn every_error_says_statement_key_and_column() {
    let nic = "nic id=1 dev=t; ";
    let table = [
        ("nik id=1", "statement 1 (`nik`), column 1: unknown keyword; known are verbose, nic"),
        ("nic dev=t", "statement 1 (`nic`), column 1: an interface needs an `id`"),
        ("nic id=0 dev=t", "key `id`, column 5: an id is not 0"),
        ("nic id=x dev=t", "key `id`, column 5: a number below 16777215 is wanted, found `x`"),
        ("nic id=16777215 dev=t", "key `id`, column 5: a number below"),
        ("nic id=1 dev=t; nic id=1 dev=u", "statement 2 (`nic`), key `id`, column 21: there is an"),
        ("nic id=1 ether=fe:e1 dev=t", "key `ether`, column 10: six pairs of hexadecimal digits"),
        (
            "nic id=1 ether=02:00:5e:10:00:00:00:01 dev=t",
            "key `ether`, column 10: six pairs of hexadecimal digits are wanted, like \
             fe:e1:ba:d0:33:33, found 8 bytes",
        ),
        (
            "nic id=1 ether=02:00:00:00:00:01 ether=02:00:00:00:00:01 dev=t",
            "key `ether`, column 34: given twice",
        ),
        ("nic id=1 mtu=x dev=t", "key `mtu`, column 10: a number"),
        ("nic id=1 mtu=67 dev=t", "key `mtu`, column 10: an MTU is at least 68"),
        ("nic id=1", "column 1: a device is needed"),
        ("nic id=1 fd=3 dev=t", "column 1: either `fd` or `dev`, not both"),
        ("nic id=1 dev=", "key `dev`, column 10: a device has a name"),
        ("nic id=1 dev=unix:", "key `dev`, column 10: a path is wanted"),
        ("nic id=1 dev=unix:/x", "column 1: a socket carries Ethernet"),
        ("nic id=1 dev=unixgram:/x", "key `dev`, column 10: a device has a name"),
        ("nic id=1 dev=t sniff=yes", "key `sniff`, column 16: `true`, `false`, `brief`, `full`"),
        ("nic id=1 dev=t pcap=", "key `pcap`, column 16: a file is wanted"),
        ("nic id=1 dev=t offload=on", "key `offload`, column 16: `auto` or `off` is wanted"),
        ("nic id=1 dev=t queues=2", "key `queues`, column 16: one thread has the stack"),
        ("nic id=1 dev=t queues=x", "key `queues`, column 16: a number below"),
        ("nic id=1 dev=t gw=x", "key `gw`, column 16: unknown key; `nic` has id, ether"),
        ("ip nic=1 addr=10.0.0.1/8", "key `nic`, column 4: no interface 1 was defined before"),
        ("{} ip addr=10.0.0.1/8", "column 18: the interface is missing"),
        ("{} ip nic=1", "statement 2 (`ip`), column 18: an address is missing"),
        ("{} ip nic=1 addr=10.0.0/8", "key `addr`, column 27: an address is wanted"),
        ("{} ip nic=1 addr=slaac", "column 18: `slaac` and `dhcp` want Ethernet"),
        ("{} ip nic=1 addr=auto", "column 18: `slaac` and `dhcp` want Ethernet"),
        ("{} route nic=1", "column 18: the prefix is missing"),
        (
            "{} route nic=1 ipnet=10.0.0.1",
            "key `ipnet`, column 30: a prefix (10.0.0.0/8) is wanted",
        ),
        ("{} route nic=1 ipnet=10.0.0.0/8 gw=x", "key `gw`, column 47: an address is wanted"),
        ("{} route nic=1 ipnet=::/0 gw=10.0.0.1", "column 18: the gateway and the prefix are of"),
        ("dns ip=resolver", "key `ip`, column 5: an address is wanted, or ADDRESS:PORT"),
        ("dns ip=1.1.1.1 zone=x", "key `zone`, column 16: unknown key; `dns` has ip"),
        ("tcp cc=bbr", "key `cc`, column 5: `cubic` or `newreno` is wanted, found `bbr`"),
    ];
    for (text, wanted) in table {
        let text = text.replace("{}", nic);
        let errors = Config::parse(&text).unwrap_err();
        assert!(errors.to_string().contains(wanted), "{text}\n{errors}");
        assert_eq!(errors.0.len(), 1, "{text}\n{errors}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let errors = Config::parse("nic id=x mtu=y; ip nic=2; tcp cc=z").unwrap_err();
    assert_eq!(errors.0.iter().map(|note| note.statement).collect::<Vec<_>>(), [1, 1, 2, 2, 3]);
}

proptest! {
    #[test]
    fn no_text_does_harm(text in "[a-z0-9=;:/. \t\u{e4}]{0,80}|((nic|ip|route|dns|tcp) [a-z]{2,5}=[0-9a-f:./]{0,12}[; ]){0,6}") {
        if let Ok(parsed) = Config::parse(&text) {
            let printed = parsed.config.to_string();
            prop_assert_eq!(&Config::parse(&printed).unwrap().config, &parsed.config, "{}", printed);
        }
    }
}
