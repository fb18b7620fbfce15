//! What a yard file says of names: records of a network's own, and whom it asks.

mod model;

use netyard_engine::config::{DnsData, Mdns};

use self::model::{good, refuses};

#[test]
fn names_in_local_are_asked_for_nowhere_everywhere_or_on_cards() {
    let mdns = |value: &str| {
        let yard = good(&format!("[networks.lan]\n{value}\n[instances.a]\nrun = [\"x\"]\n"));
        yard.networks["lan"].mdns.clone()
    };
    for (value, wanted) in [
        ("", Mdns::Off),
        ("mdns = false", Mdns::Off),
        ("mdns = true", Mdns::Everywhere),
        ("mdns = [\"eth0\", \"wlan0\"]", Mdns::Cards(["eth0", "wlan0"].map(str::to_owned).into())),
    ] {
        assert_eq!(mdns(value), wanted, "{value}");
    }
    refuses(
        r#"[networks.lan]
mdns = ["no/card", 1]
[networks.closed]
subnet = "10.2.0.0/24"
uplink = "none"
mdns = true
[networks.br]
subnet = "10.3.0.0/24"
mode = "bridge"
mdns = true
[instances.a]
run = ["x"]
network = "lan"
"#,
        r#"2: networks.lan.mdns: expected a string, found the number 1
           2: networks.lan.mdns: "no/card" is not a name for a link: it must not contain "/", ":" or white space
           6: networks.closed.mdns: would ask outside, where uplink = "none" lets nothing go: leave one out
           10: networks.br.mdns: is for user mode: uplink = "card:NAME" has the link of a card on the bridge itself"#,
    );
}

#[test]
fn a_network_has_records_of_its_own() {
    let yard = good(
        r#"
        [networks.lan.dns]
        zone = "shop.test"

        [networks.lan.dns.records]
        "Printer.shop.test" = "192.168.127.77"
        "api.example" = ["203.0.113.5", "2001:db8::5"]
        "www.shop.test" = { alias = "Web.shop.test" }
        "_ldap._tcp.shop.test" = { srv = "0 100 389 printer.shop.test", ttl = "5m" }
        "shop.test" = { address = "192.168.127.78", txt = ["one", ""] }
        "web.shop.test" = { txt = "an instance", srv = "0 0 0 ." }

        [instances.web]
        run = ["whoami"]
        "#,
    );
    let records = &yard.networks["lan"].dns.records;
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            let data = match &record.data {
                DnsData::Address(address) => address.to_string(),
                DnsData::Alias(target) => format!("alias {target}"),
                DnsData::Srv { priority, weight, port, target } => {
                    format!("srv {priority} {weight} {port} {target}")
                }
                DnsData::Text(text) => format!("txt {text}"),
            };
            format!("{} {} {data}", record.name, record.ttl)
        })
        .collect();
    assert_eq!(
        told,
        [
            "printer.shop.test 60 192.168.127.77",
            "api.example 60 203.0.113.5",
            "api.example 60 2001:db8::5",
            "www.shop.test 60 alias web.shop.test",
            "_ldap._tcp.shop.test 300 srv 0 100 389 printer.shop.test",
            "shop.test 60 192.168.127.78",
            "shop.test 60 txt one",
            "shop.test 60 txt ",
            "web.shop.test 60 srv 0 0 0 .",
            "web.shop.test 60 txt an instance",
        ]
    );
    assert_eq!(yard.networks["lan"].config().dns, yard.networks["lan"].dns);
}

#[test]
fn records_that_cannot_be_are_refused() {
    refuses(
        r#"[networks.lan.dns.records]
"printer" = "192.168.127.77"
"*.lan" = "192.168.127.77"
"7.127.168.192.in-addr.arpa" = { txt = "x" }
"a.lan" = "192.168.127.777"
"b.lan" = []
"c.lan" = { srv = "0 0 ldap printer.lan" }
"d.lan" = { ttl = "1m" }
"e.lan" = { adress = "192.168.127.77" }
"f.lan" = { alias = "web.lan", txt = "x" }
"lan" = { alias = "web.lan" }
"g.lan" = { alias = "example.org" }
"h.lan" = { alias = "i.lan" }
"i.lan" = { alias = "web.lan" }
"J.lan" = "192.168.127.77"
"j.lan" = "192.168.127.78"
"web.lan" = "192.168.127.77"
"gateway.lan" = { alias = "web.lan" }
[instances.web]
run = ["whoami"]"#,
        r#"
        2: networks.lan.dns.records.printer: expected a whole name like "printer.lan", found "printer"
        3: networks.lan.dns.records.*.lan: records are of single names: a `*` stands for nothing here
        4: networks.lan.dns.records.7.127.168.192.in-addr.arpa: names of addresses follow from those addresses, and have no records
        5: networks.lan.dns.records.a.lan: expected an address, a list of addresses, or a table like { alias = "web.lan" }, found the string "192.168.127.777"
        6: networks.lan.dns.records.b.lan: expected an address, a list of addresses, or a table like { alias = "web.lan" }; the list is empty
        7: networks.lan.dns.records.c.lan.srv: expected "PRIORITY WEIGHT PORT NAME", like "0 100 389 ldap.lan", found the string "0 0 ldap printer.lan"
        8: networks.lan.dns.records.d.lan: nothing is said of it: give address, alias, srv or txt
        9: networks.lan.dns.records.e.lan.adress: unknown key; did you mean `address`?
        9: networks.lan.dns.records.e.lan: nothing is said of it: give address, alias, srv or txt
        10: networks.lan.dns.records.f.lan: a name that is an alias has no other records
        11: networks.lan.dns.records.lan: the zone itself cannot be an alias: give it addresses
        12: networks.lan.dns.records.g.lan: example.org is neither in the zone lan nor has it a record here, and aliases of names outside are not followed
        13: networks.lan.dns.records.h.lan: i.lan is an alias itself: name what it stands for
        16: networks.lan.dns.records.j.lan: j.lan is there already, as J.lan
        17: networks.lan.dns.records.web.lan: web.lan is an instance or service, which has its own addresses
        18: networks.lan.dns.records.gateway.lan: "gateway" is a name that every network has for itself
        "#,
    );
}

#[test]
fn records_and_search_lists_are_bounded() {
    // 24 texts of 2,000 bytes with 6 of each name, and what is left of 48 KiB.
    let text = |bytes: usize, left: usize| {
        let long = format!("{:?}", "x".repeat(2_000));
        let texts = vec![long; 24].join(", ");
        let left = format!("{:?}", "\u{1}".repeat(left) + &"x".repeat(bytes));
        let left = left.replace("\\u{1}", "\\u0001");
        format!(
            "[networks.lan.dns.records]\n\"a1.lan\" = {{ txt = [{texts}, {left}] }}\n\
             [instances.web]\nrun = [\"x\"]\n"
        )
    };
    let left = 48 * 1024 - 24 * 2_006 - 6;
    assert_eq!(good(&text(left, 0)).networks["lan"].dns.records.len(), 25);
    good(&text(left - 6, 1));
    refuses(
        &text(left + 1, 0),
        "1: networks.lan.dns.records: the names, targets and texts of all records are 49153 bytes, more than 49152",
    );
    refuses(
        &text(left - 5, 1),
        "1: networks.lan.dns.records: the names, targets and texts of all records are 49153 bytes, more than 49152",
    );
    let search = |len: usize| {
        let long = [60, 60, 60, len].map(|len| "x".repeat(len)).join(".");
        format!(
            "[networks.lan]\ndns = {{ search = [\"{long}\", \"host\", \"lan\"] }}\n[instances.web]\nrun = [\"x\"]\n"
        )
    };
    good(&search(60));
    good(&search(63));
    let two = |len: usize| search(len).replace("\"host\"", "\"x.y\"");
    good(&two(60));
    refuses(
        &two(61),
        "2: networks.lan.dns.search: with the zone lan these domains are too long: at most 255 bytes of all, each with 2 more",
    );
}

#[test]
fn a_network_says_who_is_asked_for_names_of_a_domain() {
    let yard = good(
        r#"
        [networks.lan.dns]
        cache = false
        search = ["Corp.example", "host"]
        split = { "Corp.example" = "10.0.0.53", "." = ["192.0.2.1:5353", "[2001:db8::1]:53", "2001:db8::2"] }

        [instances.web]
        run = ["whoami"]
        "#,
    );
    let dns = &yard.networks["lan"].dns;
    assert!(!dns.cache);
    assert_eq!(dns.search, ["corp.example", "host"]);
    let told: Vec<_> = dns
        .split
        .iter()
        .map(|split| {
            let servers: Vec<_> = split.servers.iter().map(ToString::to_string).collect();
            format!("{} {}", split.domain, servers.join(" "))
        })
        .collect();
    assert_eq!(
        told,
        ["corp.example 10.0.0.53:53", ". 192.0.2.1:5353 [2001:db8::1]:53 [2001:db8::2]:53"]
    );
    refuses(
        r#"[networks.lan.dns.split]
"corp..example" = "10.0.0.53"
"x.lan" = "10.0.0.53"
"a.example" = "10.0.0.53:0"
"b.example" = []
"c.example" = "192.168.127.9"
"d.example" = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]
"e.example" = "10.0.0.1"
"E.example" = "10.0.0.1"
"f.example" = ["[fe80::1%2]:53", "fe80::1"]
[networks.back]
mode = "bridge"
subnet = "192.168.128.0/24"
dns = { cache = "yes", split = { "f.example" = "192.168.128.9" }, search = ["a b"] }
[instances.web]
run = ["whoami"]
network = "lan""#,
        r#"
        2: networks.lan.dns.split.corp..example: expected a domain like "corp.example", or "." for all names, found "corp..example"
        3: networks.lan.dns.split.x.lan: the network itself answers for lan
        4: networks.lan.dns.split.a.example: expected an address, or a list of addresses, like "10.0.0.53" or "[fd00::53]:5353", found the string "10.0.0.53:0"
        5: networks.lan.dns.split.b.example: expected an address, or a list of addresses, like "10.0.0.53" or "[fd00::53]:5353"; the list is empty
        6: networks.lan.dns.split.c.example: 192.168.127.9:53 is in the network itself: in user mode nobody is asked there
        7: networks.lan.dns.split.d.example: at most 4 resolvers are asked for a domain
        9: networks.lan.dns.split.E.example: e.example is there already
        10: networks.lan.dns.split.f.example: fe80::1 is an address of a link: say of which, with the number of its interface as in "[fe80::1%2]:53"
        14: networks.back.dns.cache: expected true or false, found the string "yes"
        14: networks.back.dns.search: expected a domain like "corp.example", or "host" for those that the host searches, found "a b"
        "#,
    );
}
