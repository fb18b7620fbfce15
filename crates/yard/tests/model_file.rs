//! What a yard file means, and what its mistakes say.

mod model;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use netyard_engine::config::{Bridge, Dhcp, Mode, Uplink};
use netyard_engine::control::{Link, Shape};
use netyard_engine::delivery::ProxyVersion;
use netyard_engine::forward::Protocol;
use netyard_yard::error::ErrorKind;
use netyard_yard::file;
use netyard_yard::model::{Address, Check, JoinSource, Need, Probe, Restart, Yard};

use self::model::{PATH, good, mistakes, refuses};

/// Every address of a yard as `instance address`.
fn addresses(yard: &Yard) -> Vec<String> {
    yard.instances
        .iter()
        .flat_map(|instance| {
            instance.plugs.iter().map(|plug| {
                let address = plug.address.get().map_or("-".to_owned(), |it| it.to_string());
                format!("{} {address}", instance.name)
            })
        })
        .collect()
}

#[test]
fn the_shipped_example_is_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hello/yard.toml");
    let yard = file::load(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(yard.name, "hello");
    assert_eq!(
        addresses(&yard),
        ["web-1 192.168.127.2", "web-2 192.168.127.3", "web-3 192.168.127.4"]
    );
    let web = yard.service("web").expect("service web");
    assert_eq!(web.instances, ["web-1", "web-2", "web-3"]);
    assert_eq!(web.publish, Some("127.0.0.1:8080".parse().unwrap()));
    assert_eq!(web.check.probe, Probe::Http { path: "/".to_owned() });
}

#[test]
fn a_folder_means_the_yard_file_in_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hello");
    let yard = file::load(&folder).unwrap_or_else(|error| panic!("{error}"));
    assert!(yard.path.is_absolute() && yard.path.ends_with("examples/hello/yard.toml"));
}

#[test]
fn everything_but_the_program_has_a_default() {
    let yard = good(
        "[instances.web]\nrun = [\"whoami\"]\n[services.www]\ninstances = \"web\"\nport = 80\n",
    );
    assert_eq!(yard.name, "hello", "the name of the folder");
    let network = &yard.networks["lan"];
    assert_eq!(network.global, "hello.lan");
    assert_eq!(network.subnet.to_string(), "192.168.127.0/24");
    assert_eq!((network.zone.as_str(), &network.uplink, network.mtu), ("lan", &Uplink::Nat, 1500));
    assert!(network.host.is_empty());
    assert_eq!(network.dhcp, Some(Dhcp::default()));
    let [web] = yard.instances.as_slice() else { panic!("one instance") };
    assert_eq!((web.name.as_str(), web.restart), ("web", Restart::OnFailure));
    assert_eq!(web.cwd, Path::new("/srv/hello"));
    assert_eq!(web.plugs[0].address, Address::Planned(Ipv4Addr::new(192, 168, 127, 2)));
    assert_eq!(web.plugs[0].link, Link::default());
    let [www] = yard.services.as_slice() else { panic!("one service") };
    assert_eq!((www.network.as_str(), www.publish), ("lan", None));
    assert_eq!(
        www.check,
        Check {
            probe: Probe::Tcp,
            port: None,
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 2
        }
    );
}

#[test]
fn every_key_is_understood() {
    let yard = good(
        r#"
        name = "shop"

        [networks.front]
        mode = "user"
        subnet = "10.1.0.0/24"
        subnet6 = "fd12:3456:789a:1::/64"
        dns = { zone = "shop.test" }
        dhcp = { lease = "1h" }
        uplink = "none"
        host = ["127.0.0.1:5432", "[::1]:5432"]
        mtu = 9000
        snooping = false
        hub = { join = "file:hub.join", name = "office", state = "/srv/keys" }

        [networks.back]
        subnet = "10.2.0.0/24"
        dhcp = false

        [instances.web]
        kind = "process"
        run = ["whoami", "-p", "80"]
        count = 2
        network = ["front", { name = "back", link = { delay = "20ms", loss = 0.01, up = { rate = "10mbit" }, down = { delay = "5ms", packets = 100 } } }]
        env = { RUST_LOG = "info" }
        restart = "always"
        cwd = "/"
        needs = ["db", "mail-2"]

        [instances.db]
        run = ["db"]
        network = "back"
        address = "10.2.0.3"
        mac = "02:00:5e:10:00:01"
        forwards = ["5432", "0.0.0.0:5353:53/udp"]
        restart = "no"

        [instances.mail]
        run = ["mail"]
        count = 2
        network = "back"

        [services.web]
        instances = ["web-2", "web-1"]
        port = 80
        publish = 8080
        policy = "round-robin"
        check = { http = "/health", every = "500ms", timeout = "100ms", rise = 2, fall = 3 }

        [services.post]
        instances = ["mail", "web-1"]
        network = "back"
        port = 25
        publish = "[::1]:2525"
        weights = { mail = 3, web-1 = 5 }
        affinity = "10m"
        check = { tcp = true }
        "#,
    );
    let front = yard.networks["front"].config();
    assert_eq!((front.name.as_str(), front.zone.as_str()), ("shop.front", "shop.test"));
    assert_eq!((front.mtu, front.uplink, front.host.len()), (9000, Uplink::None, 2));
    assert_eq!(front.subnet6.to_string(), "fd12:3456:789a:1::/64");
    assert_eq!(front.dhcp, Some(Dhcp { lease: Duration::from_secs(3_600), range: None }));
    assert_eq!(yard.networks["back"].config().dhcp, None);

    let web = yard.instance("web-2").expect("web-2");
    assert_eq!((web.group.as_str(), web.restart), ("web", Restart::Always));
    assert_eq!(web.env["RUST_LOG"], "info");
    assert_eq!(web.cwd, Path::new("/"));
    let needs = ["db", "mail-2"].map(|name| Need::Instance(name.to_owned()));
    assert_eq!(web.needs, needs);
    assert_eq!(
        web.plugs[1].link,
        Link {
            up: Shape {
                delay: Duration::from_millis(20),
                loss: 0.01,
                rate: Some(10_000_000),
                packets: None,
            },
            down: Shape {
                delay: Duration::from_millis(5),
                loss: 0.01,
                rate: None,
                packets: Some(100),
            },
        }
    );
    assert_eq!(
        addresses(&yard),
        [
            "web-1 10.1.0.2",
            "web-1 10.2.0.2",
            "web-2 10.1.0.3",
            "web-2 10.2.0.4",
            "db 10.2.0.3",
            "mail-1 10.2.0.5",
            "mail-2 10.2.0.6",
        ],
        "named addresses first, then the order of the file"
    );
    let db = yard.instance("db").expect("db");
    let forwards: Vec<_> = db.forwards.iter().map(|it| format!("{it} {}", it.instance)).collect();
    assert_eq!(forwards, ["127.0.0.1:5432:5432/tcp db", "0.0.0.0:5353:53/udp db"]);

    let web = yard.service("web").expect("service web");
    assert_eq!((web.network.as_str(), web.instances.len()), ("front", 2));
    assert_eq!(web.instances[0], "web-2", "turns follow the list");
    assert_eq!(web.publish, Some("127.0.0.1:8080".parse().unwrap()));
    assert_eq!((web.check.rise, web.check.fall), (2, 3));
    let post = yard.service("post").expect("service post");
    assert_eq!(post.instances, ["mail-1", "mail-2", "web-1"]);
    assert_eq!(post.check.probe, Probe::Tcp);
    assert_eq!((web.affinity, web.weight("web-1")), (None, 1));
    assert_eq!(post.affinity, Some(Duration::from_secs(600)));
    assert_eq!(["mail-1", "mail-2", "web-1"].map(|it| post.weight(it)), [3, 3, 5]);
}

#[test]
fn a_service_over_udp_is_checked_without_being_asked() {
    let service = |keys: &str| {
        let yard = good(&format!(
            "[instances.dns]\nrun = [\"named\"]\n[services.names]\ninstances = \"dns\"\n{keys}\n"
        ));
        yard.services[0].clone()
    };
    let names = service("port = 53\nprotocol = \"udp\"");
    assert_eq!((names.protocol, names.check.probe), (Protocol::Udp, Probe::Bound));
    let often = service("port = 53\nprotocol = \"udp\"\ncheck = { every = \"100ms\" }");
    assert_eq!((often.check.probe, often.check.port), (Probe::Bound, None));
    let check = "check = { http = \"/health\", port = 8080 }";
    let asked = service(&format!("port = 53\nprotocol = \"udp\"\n{check}"));
    assert_eq!(asked.check.probe, Probe::Http { path: "/health".to_owned() });
    assert_eq!(asked.check.port, Some(8080));
    // The same for TCP, whose own port is tried unless another is named.
    let pages = service("port = 80\ncheck = { port = 8080 }");
    assert_eq!((pages.protocol, pages.check.probe), (Protocol::Tcp, Probe::Tcp));
    assert_eq!(pages.check.port, Some(8080));
}

#[test]
fn what_makes_no_sense_over_udp_is_refused() {
    let service = |keys: &str| {
        format!(
            "[instances.dns]\nrun = [\"named\"]\n[services.names]\ninstances = \"dns\"\n\
             port = 53\nprotocol = \"udp\"\n{keys}\n"
        )
    };
    for (keys, says) in [
        ("policy = \"per-request\"", "requests are HTTP over TCP"),
        ("check = { tcp = true }", "on which TCP port its instances are tried"),
        ("check = { http = \"/\" }", "on which TCP port its instances are tried"),
        ("check = { port = 8080 }", "says where to try, and not what"),
        ("check = { udp = true }", "udp"),
    ] {
        let said = mistakes(&service(keys));
        assert!(said.contains(says) && said.contains("services.names"), "{keys}: {said}");
    }
    let said = mistakes(&service("").replace("\"udp\"", "\"sctp\""));
    assert!(["sctp", "tcp", "udp"].iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn services_of_two_protocols_may_have_one_port() {
    let yard = |second: &str| {
        format!(
            "[instances.dns]\nrun = [\"named\"]\n\
             [services.names]\ninstances = \"dns\"\nport = 53\npublish = 5353\n\
             [services.names-udp]\ninstances = \"dns\"\nport = 53\npublish = 5353\n{second}\n"
        )
    };
    assert_eq!(good(&yard("protocol = \"udp\"")).services.len(), 2);
    assert!(mistakes(&yard("")).contains("127.0.0.1:5353"));
}

#[test]
fn weights_and_affinity_that_cannot_be_are_refused() {
    refuses(
        r#"
[instances.web]
run = ["x"]
count = 2
[instances.big]
run = ["x"]
[instances.many]
run = ["x"]
count = 101
[services.web]
instances = "web"
port = 80
weights = { web = 0, web-1 = 2, big = 2, bigg = 2 }
affinity = "100ms"
[services.twice]
instances = "web"
port = 80
weights = { web = 2, web-1 = 3 }
affinity = 10
[services.many]
instances = "many"
port = 80
weights = { many = 100 }
"#,
        r#"13: services.web.weights.web: expected a whole number from 1 to 100, found the number 0
           13: services.web.weights.big: big is not one of the instances of this service
           13: services.web.weights.bigg: there is no instance "bigg"; did you mean `big`?
           14: services.web.affinity: expected a duration like "20ms" or "2s", from 1s to 7days, found the string "100ms"
           18: services.twice.weights.web-1: instance web-1 has a weight already
           19: services.twice.affinity: expected a duration like "20ms" or "2s", from 1s to 7days, found the number 10
           20: services.many: its weights add up to 10100, more than 10000: write smaller ones of the same proportion"#,
    );
}

#[test]
fn what_is_spliced_can_be_said_and_what_cannot_be_is_refused() {
    let yard = good(
        r#"
[instances.web]
run = ["x"]
forwards = ["8081:80/loopback", "8082/splice", "8083/tcp/no-splice", "8084/splice/proxy-v2"]
[services.web]
instances = "web"
port = 80
publish = 8080
splice = false
"#,
    );
    let [web] = yard.instances.as_slice() else { panic!("{yard:?}") };
    let texts: Vec<_> = web.forwards.iter().map(ToString::to_string).collect();
    assert_eq!(texts[0], "127.0.0.1:8081:80/tcp/loopback");
    let spliced: Vec<_> = web.forwards.iter().map(|it| it.delivery.splice).collect();
    assert_eq!(spliced, [None, Some(true), Some(false), Some(true)]);
    assert_eq!(web.forwards[3].delivery.proxy, Some(ProxyVersion::V2));
    assert_eq!(yard.services[0].delivery.splice, Some(false));
    refuses(
        r#"
[networks.lan]
[networks.br]
mode = "bridge"
subnet = "10.9.0.0/24"
[instances.slow]
run = ["x"]
network = "lan"
link = { delay = "1ms" }
forwards = ["8081/splice"]
[instances.far]
run = ["x"]
network = "br"
forwards = ["8082:80/loopback", "8085/proxy-v1"]
[instances.vm]
run = ["x"]
network = "lan"
kind = "vm"
[services.vm]
instances = "vm"
port = 80
publish = 8083
splice = true
[services.hidden]
instances = "vm"
port = 81
splice = true
[services.names]
instances = "vm"
port = 53
protocol = "udp"
publish = 5353
splice = true
"#,
        r#"10: instances.slow.forwards: the link of slow is shaped, and splicing takes a program in user mode, with a link that is not shaped
           14: instances.far.forwards: networks on bridges put no PROXY header before connections, whose clients an instance sees there: leave it out, or take mode = "user"
           14: instances.far.forwards: network br is on a bridge, and splicing takes a program in user mode, with a link that is not shaped
           23: services.vm.splice: vm is no process, and splicing takes a program in user mode, with a link that is not shaped
           27: services.hidden.splice: is about connections to the host port, and there is no `publish`
           27: services.hidden.splice: vm is no process, and splicing takes a program in user mode, with a link that is not shaped
           33: services.names.splice: only TCP is spliced: leave it out, or write tcp
           33: services.names.splice: vm is no process, and splicing takes a program in user mode, with a link that is not shaped"#,
    );
}

#[test]
fn a_name_of_both_kinds_in_needs_means_the_service() {
    let yard = good(
        "[instances.web]\nrun = [\"x\"]\n[instances.test]\nrun = [\"x\"]\nneeds = [\"web\"]\n\
         [services.web]\ninstances = \"web\"\nport = 80\n",
    );
    let test = yard.instance("test").expect("test");
    assert_eq!(test.needs, [Need::Service("web".to_owned())]);
}

#[test]
fn the_derived_prefixes_are_unique_local_and_stay() {
    let yard = |name: &str| good(&format!("name = \"{name}\"\n[instances.a]\nrun = [\"x\"]\n"));
    let prefix = |name| yard(name).networks["lan"].subnet6;
    assert_eq!(prefix("hello"), prefix("hello"));
    assert_ne!(prefix("hello"), prefix("hellp"));
    assert_eq!(prefix("hello").to_string(), "fd55:d55:f70d:e2ed::/64");
    let config = yard("hello").networks["lan"].config();
    assert_eq!(config.gateway6().segments()[7], 1);
    assert!(!config.gateway_mac.is_multicast());
}

#[test]
fn mistyped_keys_name_the_nearest() {
    refuses(
        r#"nam = "x"
[instances.web]
run = ["x"]
cuont = 3
image = "nginx"
[service.web]
port = 80
"#,
        "1: nam: unknown key; did you mean `name`?
         4: instances.web.cuont: unknown key; did you mean `count`?
         5: instances.web.image: unknown key; known are run, kind, memory, cpus, kernel, initrd, drive, count, network, address, mac, link, env, cwd, restart, needs, forwards, rules, tap, socket, vhost-user, owner
         6: service: unknown key; did you mean `services`?",
    );
}

#[test]
fn wrong_types_say_what_was_expected() {
    refuses(
        r#"name = 5
[networks.lan]
subnet = true
dns = "lan"
host = "127.0.0.1:80"
mtu = "big"
[instances.web]
run = "netyard-whoami -p 8080"
count = "3"
env = { RUST_LOG = 1 }
network = 1
link = 2001-01-01
[services.web]
instances = 1
port = "80"
check = "tcp"
"#,
        r#"1: name: expected a string, found the number 5
           3: networks.lan.subnet: expected an IPv4 prefix like "192.168.127.0/24", found true
           4: networks.lan.dns: expected a table, found the string "lan"
           5: networks.lan.host: expected a list of strings, found the string "127.0.0.1:80"
           6: networks.lan.mtu: expected a whole number from 1280 to 65520, found the string "big"
           8: instances.web.run: expected a list of strings like ["program", "argument"], found the string "netyard-whoami -p 8080"
           9: instances.web.count: expected a whole number from 1 to 1000, found the string "3"
           10: instances.web.env.RUST_LOG: expected a string, found the number 1
           11: instances.web.network: expected the name of a network, or a list of them, found the number 1
           14: services.web.instances: expected the name of an instance, or a list of them, found the number 1
           15: services.web.port: expected a whole number from 1 to 65535, found the string "80"
           16: services.web.check: expected a table, found the string "tcp""#,
    );
}

#[test]
fn networks_on_bridges_have_keys_of_their_own() {
    let yard = good(
        r#"
[networks.lan]
mode = "bridge"
bridge = "br1"
subnet = "192.168.1.0/24"
gateway = "192.168.1.10"
isolate = false
uplink = "routed"
mtu = 1400
[networks.wire]
mode = "bridge"
subnet = "10.9.0.0/24"
uplink = "card:eth1"
[networks.user]
subnet = "10.8.0.0/24"
gateway = "10.8.0.77"
[instances.red]
run = ["x"]
network = [{ name = "lan", tap = "tap0", mac = "02:00:00:00:00:01" }, "wire", "user"]
[instances.blue]
run = ["x"]
network = "lan"
count = 10
"#,
    );
    let lan = yard.networks["lan"].config();
    let bridge = Bridge { name: Some("br1".into()), isolate: false, mtu: Some(1400) };
    assert_eq!((lan.mode.clone(), lan.uplink.clone()), (Mode::Bridge(bridge), Uplink::Routed));
    assert_eq!(lan.gateway4(), Ipv4Addr::new(192, 168, 1, 10));
    let wire = &yard.networks["wire"];
    assert_eq!((&wire.uplink, wire.dhcp), (&Uplink::Card("eth1".into()), None));
    assert_eq!(wire.mode, Mode::Bridge(Bridge::default()));
    let red = &yard.instance("red").unwrap().plugs[0];
    assert_eq!(red.tap.as_deref(), Some("tap0"));
    // The first address is free where the gateway has another, and the gateway's is not given out.
    let addresses: Vec<_> = (yard.instances.iter())
        .map(|instance| instance.plugs[0].address.get().unwrap().octets()[3])
        .collect();
    assert_eq!(addresses, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]);
    assert_eq!(yard.instance("red").unwrap().plugs[2].address.get().unwrap().octets()[3], 1);
}

#[test]
fn a_network_says_how_it_joins_a_hub_and_no_secret() {
    let yard = good(
        r#"
        name = "shop"
        [networks.lan]
        hub = { join = "env:JOIN" }
        [instances.a]
        run = ["x"]
        "#,
    );
    let hub = yard.networks["lan"].hub.clone().unwrap();
    assert_eq!((hub.join, hub.state), (JoinSource::Env("JOIN".into()), None));
    assert_eq!(hub.name, "shop");
    refuses(
        r#"
[networks.a]
subnet = "10.1.0.0/24"
hub = { join = "netyard://abc.def@hub:6441?ca=sha256:x" }
[networks.b]
subnet = "10.2.0.0/24"
hub = { name = "b.c", joint = "file:x" }
[networks.c]
subnet = "10.3.0.0/24"
hub = { join = "file:x", name = "b.c" }
[instances.a]
run = ["x"]
network = ["a", "b", "c"]
"#,
        r#"4: networks.a.hub.join: expected "file:PATH" or "env:VARIABLE": a join string is a secret
           7: networks.b.hub.joint: unknown key; did you mean `join`?
           7: networks.b.hub: join is missing: where the join string is, like "file:hub.join"
           10: networks.c.hub.name: expected a name of a-z, 0-9 and `-`, which is not at its ends; found "b.c""#,
    );
}

#[test]
fn keys_of_bridges_are_held_against_each_other() {
    refuses(
        r#"
[networks.user]
subnet = "10.1.0.0/24"
bridge = "br1"
isolate = true
uplink = "card:eth0"
[networks.a]
mode = "bridge"
subnet = "10.2.0.0/24"
bridge = "a-name-that-is-too-long"
gateway = "10.3.0.1"
uplink = "cart:eth0"
[networks.b]
mode = "bridge"
subnet = "10.4.0.0/24"
gateway = "10.4.0.254"
uplink = "card:eth0"
dhcp = true
[networks.c]
mode = "bridged"
subnet = "10.5.0.0/24"
gateway = "10.5.0.0"
[instances.one]
run = ["x"]
network = [{ name = "user", tap = "tap0" }, { name = "a", link = { delay = "1ms" } }]
[instances.two]
run = ["x"]
network = "a"
tap = "tap 1"
count = 2
"#,
        r#"4: networks.user.bridge: `bridge` needs mode = "bridge"
           5: networks.user.isolate: `isolate` needs mode = "bridge"
           6: networks.user.uplink: uplink = "card:eth0" needs mode = "bridge"
           10: networks.a.bridge: "a-name-that-is-too-long" is not a name for a link: it must not be longer than 15 bytes
           11: networks.a.gateway: 10.3.0.1 is not in 10.2.0.0/24
           12: networks.a.uplink: expected "nat", "routed", "none" or "card:NAME", found the string "cart:eth0"
           16: networks.b.gateway: 10.4.0.254 is that of host.b: take another
           18: networks.b.dhcp: the network of a card has DHCP of its own: leave it out
           20: networks.c.mode: expected "user" or "bridge", found "bridged"; did you mean "bridge"?
           22: networks.c.gateway: 10.5.0.0 is the first or last of 10.5.0.0/24, which no host can have
           25: instances.one.network.tap: a name for the host's end needs a network with mode = "bridge"
           25: instances.one.network.link: shaping a link needs a network with mode = "user"
           29: instances.two.tap: "tap 1" is not a name for a link: it must not contain "/", ":" or white space"#,
    );
}

#[test]
fn prefixes_must_be_fit_for_a_network() {
    refuses(
        r#"[networks.a]
subnet = "10.0.0.1/24"
subnet6 = "fd00::/48"
[networks.b]
subnet = "10.0.0.0/30"
subnet6 = "fe80::/64"
[networks.c]
subnet = "127.0.0.0/8"
subnet6 = "fd00::1/64"
[instances.web]
run = ["x"]
network = "a"
"#,
        r#"2: networks.a.subnet: expected a prefix without host bits: write "10.0.0.0/24"
           3: networks.a.subnet6: expected a /64, found /48
           5: networks.b.subnet: expected a prefix from /8 to /29, found "10.0.0.0/30"
           6: networks.b.subnet6: expected a unique local or global prefix; fe80::/64 has another use
           8: networks.c.subnet: expected a prefix for hosts, like "192.168.127.0/24"; 127.0.0.0/8 has another use
           9: networks.c.subnet6: expected a prefix without host bits: write "fd00::/64""#,
    );
}

#[test]
fn networks_of_one_yard_do_not_overlap() {
    refuses(
        r#"[networks.lan]
[networks.back]
[networks.wide]
subnet = "10.0.0.0/8"
subnet6 = "fd00::/64"
[networks.inner]
subnet = "10.9.0.0/24"
subnet6 = "fd00::/64"
[instances.web]
run = ["x"]
network = "lan"
"#,
        "2: networks.back: network back has 192.168.127.0/24, which overlaps with 192.168.127.0/24 of network lan: give it a subnet of its own
         7: networks.inner.subnet: network inner has 10.9.0.0/24, which overlaps with 10.0.0.0/8 of network wide: give it a subnet of its own
         8: networks.inner.subnet6: network inner has fd00::/64, and so has network wide",
    );
}

#[test]
fn a_subnet_must_have_room_for_everybody() {
    let text = |count: u8| {
        format!(
            "[networks.lan]\nsubnet = \"10.0.0.0/29\"\n[instances.web]\nrun = [\"x\"]\n\
             count = {count}\n[services.web]\ninstances = \"web\"\nport = 80\n"
        )
    };
    assert_eq!(
        addresses(&good(&text(3))),
        ["web-1 10.0.0.2", "web-2 10.0.0.3", "web-3 10.0.0.4"],
        "the service has 10.0.0.5, the host 10.0.0.6"
    );
    refuses(
        &text(4),
        "2: networks.lan.subnet: 10.0.0.0/29 has 6 addresses, 2 for gateway and host, 1 for a service, 3 for instances; network lan has 4 instances: take a /28",
    );
}

#[test]
fn named_addresses_are_free_ones_of_the_network() {
    let mut text = String::new();
    for (name, address) in [
        ("gateway-s", "192.168.127.1"),
        ("host-s", "192.168.127.254"),
        ("last", "192.168.127.255"),
        ("outside", "192.168.128.5"),
        ("service-s", "192.168.127.253"),
        ("good", "192.168.127.252"),
        ("again", "192.168.127.252"),
    ] {
        text += &format!("[instances.{name}]\nrun = [\"x\"]\naddress = \"{address}\"\n");
    }
    text += "[services.web]\ninstances = \"good\"\nport = 80\n";
    refuses(
        &text,
        "3: instances.gateway-s.address: 192.168.127.1 is the gateway's: take another of network lan
         6: instances.host-s.address: 192.168.127.254 is that of host.lan: take another of network lan
         9: instances.last.address: 192.168.127.255 is the first or last of 192.168.127.0/24, which no instance can have: take another of network lan
         12: instances.outside.address: 192.168.128.5 is not in 192.168.127.0/24: take another of network lan
         15: instances.service-s.address: 192.168.127.253 is kept for the network's services, which have the highest addresses: take another of network lan
         21: instances.again.address: another instance of network lan has 192.168.127.252 too",
    );
}

#[test]
fn several_instances_cannot_share_what_is_one() {
    refuses(
        r#"[instances.web]
run = ["x"]
count = 2
address = "192.168.127.9"
mac = "02:00:00:00:00:01"
forwards = ["8080"]
[instances.a]
run = ["x"]
mac = "01:00:00:00:00:01"
[instances.b]
run = ["x"]
mac = "02:00:00:00:00:01"
"#,
        "4: instances.web.address: several instances cannot share it: leave `count` out, or let netyard choose the addresses
         5: instances.web.mac: several instances cannot share it: leave `count` out, or let netyard choose the hardware addresses
         6: instances.web.forwards: several instances cannot share it: leave `count` out, or publish a service over them
         9: instances.a.mac: expected the address of one card (second digit even); found 01:00:00:00:00:01
         12: instances.b.mac: network lan has 02:00:00:00:00:01 already",
    );
}

#[test]
fn names_are_dns_labels_and_unique() {
    refuses(
        r#"name = "Bad Name"
[instances.Web_1]
run = ["x"]
[instances.web]
run = ["x"]
count = 2
[instances.web-1]
run = ["x"]
[instances.host]
run = ["x"]
[services.web-2]
instances = "web-1"
port = 80
[services.gateway]
instances = "web"
port = 80
"#,
        r#"1: name: expected a name of a-z, 0-9 and `-`, which is not at its ends; found "Bad Name"
           2: instances.Web_1: expected a name of a-z, 0-9 and `-`, which is not at its ends; found "Web_1"
           7: instances.web-1: instance web-1 is there twice: instances.web makes one too
           9: instances.host: "host" is a name that every network has for itself
           11: services.web-2: its name is that of instance web-2, which is not one of its instances
           14: services.gateway: "gateway" is a name that every network has for itself"#,
    );
    let long = "a".repeat(33);
    refuses(
        &format!("name = \"{long}\"\n[instances.a]\nrun = [\"x\"]\n"),
        &format!("1: name: expected a name of at most 32 letters; \"{long}\" has 33"),
    );
}

#[test]
fn a_folder_that_gives_no_name_asks_for_one() {
    let text = "[instances.a]\nrun = [\"x\"]\n";
    let error = file::parse(text, Path::new("/srv/---/yard.toml")).expect_err("no name");
    assert_eq!(
        error.problems[0].message,
        "the folder's name \"---\" cannot be the yard's name (a-z, 0-9 and `-`, at most 32): \
         write name = \"...\" at the top of the file"
    );
    let yard = file::parse(text, Path::new("/srv/My Shop/yard.toml")).expect("a fit name");
    assert_eq!(yard.name, "my-shop");
}

#[test]
fn names_that_mean_nothing_are_found() {
    refuses(
        r#"[networks.lan]
[networks.back]
subnet = "10.0.0.0/24"
[instances.web]
run = ["x"]
network = "bakc"
[instances.db]
run = ["x"]
[instances.mail]
run = ["x"]
network = ["lan", "lan"]
needs = ["wbe", "nothing"]
[services.post]
instances = ["mial", "mail", "mail"]
port = 80
network = "back"
"#,
        r#"6: instances.web.network: there is no network "bakc"; did you mean `back`?
           7: instances.db: has no `network`, and there are several: lan, back
           11: instances.mail.network: network lan is in the list twice
           12: instances.mail.needs: there is no instance or service "wbe"; did you mean `web`?
           12: instances.mail.needs: there is no instance or service "nothing"; known are db, mail, post, web
           14: services.post.instances: there is no instance "mial"; did you mean `mail`?
           14: services.post.instances: instance mail is in the list twice
           16: services.post.network: instance mail has no plug on a network "back""#,
    );
}

#[test]
fn circles_are_spelled_out() {
    refuses(
        "[instances.a]\nrun = [\"x\"]\nneeds = [\"b\"]\n[instances.b]\nrun = [\"x\"]\n\
         needs = [\"c\"]\n[instances.c]\nrun = [\"x\"]\nneeds = [\"a\"]\n",
        "3: instances.a.needs: instances wait in a circle: a needs b, b needs c, c needs a",
    );
    refuses(
        "[instances.a]\nrun = [\"x\"]\ncount = 2\nneeds = [\"web\"]\n[services.web]\n\
         instances = \"a\"\nport = 80\n",
        "4: instances.a.needs: instances wait in a circle: a-1 needs service web with a-1",
    );
}

#[test]
fn a_socket_leads_to_one_place() {
    let yard =
        good("[instances.a]\nrun = [\"x\"]\nforwards = [\"unix:./run/../web.sock:80/mode=666\"]\n");
    let [forward] = yard.instances[0].forwards.as_slice() else { panic!("{yard:?}") };
    let file = forward.host.socket().unwrap();
    assert_eq!((file.path.to_str(), file.mode), (Some("/srv/hello/run/../web.sock"), 0o666));
    refuses(
        r#"[instances.a]
run = ["x"]
forwards = ["unix:web.sock:80", "unix:./web.sock:81/loopback", "unix:web.sock", "unix:x:80/udp"]
"#,
        r#"3: instances.a.forwards: `unix:web.sock` is not a forward: expected unix:PATH:PORT, as in unix:/run/web.sock:80/mode=660
           3: instances.a.forwards: a Unix socket takes connections, and no datagrams: leave udp out
           3: instances.a.forwards: instance a wants the socket /srv/hello/web.sock, and instance a has /srv/hello/web.sock"#,
    );
}

#[test]
fn a_host_port_leads_to_one_place() {
    refuses(
        r#"[instances.a]
run = ["x"]
forwards = ["8010-8000", "9000-9010", "9005/udp", "0.0.0.0:9005", "70000", "[::1]:9005"]
[services.web]
instances = "a"
port = 80
publish = 9001
[services.www]
instances = "a"
port = 80
publish = "localhost:80"
"#,
        r#"3: instances.a.forwards: the port range 8010-8000 is reversed: write 8000-8010
           3: instances.a.forwards: `70000` is not a port: a port is a number from 1 to 65535
           3: instances.a.forwards: instance a wants host port 0.0.0.0:9005/tcp, and instance a has 127.0.0.1:9000-9010/tcp
           7: services.web.publish: service web wants host port 127.0.0.1:9001/tcp, and instance a has 127.0.0.1:9000-9010/tcp
           11: services.www.publish: expected a host address and port like "127.0.0.1:8080", found the string "localhost:80""#,
    );
}

#[test]
fn dhcp_is_on_off_or_has_a_lease() {
    let dhcp = |value: &str| {
        let yard = good(&format!("[networks.lan]\ndhcp = {value}\n[instances.a]\nrun = [\"x\"]\n"));
        yard.networks["lan"].dhcp
    };
    assert_eq!(dhcp("true"), Some(Dhcp::default()));
    assert_eq!(dhcp("{}"), Some(Dhcp::default()));
    assert_eq!(dhcp("false"), None);
    refuses(
        r#"[networks.a]
subnet = "10.1.0.0/24"
dhcp = "yes"
[networks.b]
subnet = "10.2.0.0/24"
dhcp = { leese = "1h", range = ["10.2.0.100", "10.2.0.200"] }
[networks.c]
subnet = "10.3.0.0/24"
dhcp = { lease = "5s" }
[instances.x]
run = ["x"]
network = ["a", "b", "c"]
"#,
        r#"3: networks.a.dhcp: expected true, false or a table like { lease = "12h" }, found the string "yes"
           6: networks.b.dhcp.leese: unknown key; did you mean `lease`?
           6: networks.b.dhcp.range: expected the first and the last address, like "192.168.127.100-192.168.127.200", found a list
           9: networks.c.dhcp.lease: expected a duration like "20ms" or "2s", from 2m to 30days, found the string "5s""#,
    );
}

#[test]
fn a_range_is_set_aside_for_clients_without_a_plug() {
    let yard = good(
        r#"
[networks.lan]
mode = "bridge"
subnet = "10.1.0.0/28"
dhcp = { range = "10.1.0.2 - 10.1.0.8", lease = "1h" }
[instances.web]
run = ["x"]
count = 3
[instances.printer]
run = ["x"]
network = [{ name = "lan", address = "10.1.0.5" }]
[services.web]
instances = "web"
port = 80
"#,
    );
    let range = yard.networks["lan"].config().dhcp.and_then(|dhcp| dhcp.range).unwrap();
    assert_eq!((range.to_string().as_str(), range.count()), ("10.1.0.2-10.1.0.8", 7));
    assert_eq!(
        addresses(&yard),
        ["web-1 10.1.0.9", "web-2 10.1.0.10", "web-3 10.1.0.11", "printer 10.1.0.5"]
    );
    let of = |range: &str, more: &str| {
        format!(
            "[networks.lan]\nsubnet = \"10.1.0.0/16\"\ndhcp = {{ range = \"{range}\" }}\n{more}\n\
             [instances.x]\nrun = [\"x\"]\n"
        )
    };
    refuses(
        &of("10.1.0.100-10.1.0.200", ""),
        r#"3: networks.lan.dhcp.range: it needs mode = "bridge": in user mode every client has a plug, and every plug its planned address"#,
    );
    for (range, why) in [
        (
            "10.1.0.100",
            r#"expected the first and the last address, like "192.168.127.100-192.168.127.200", found the string "10.1.0.100""#,
        ),
        ("10.1.0.200-10.1.0.100", r#"the range is reversed: write "10.1.0.100-10.1.0.200""#),
        ("10.1.0.0-10.1.0.9", "10.1.0.0 is no address that a host of 10.1.0.0/16 can have"),
        ("10.1.9.0-10.2.0.1", "10.2.0.1 is no address that a host of 10.1.0.0/16 can have"),
        ("10.1.0.1-10.1.0.9", "10.1.0.1 is the gateway's or that of host.lan: leave it out"),
        ("10.1.1.0-10.1.17.0", "the range has 4097 addresses, more than 4096: make it shorter"),
    ] {
        let text = of(range, "mode = \"bridge\"");
        refuses(&text, &format!("3: networks.lan.dhcp.range: {why}"));
    }
    refuses(
        r#"[networks.lan]
mode = "bridge"
subnet = "10.1.0.0/28"
dhcp = { range = "10.1.0.2-10.1.0.8" }
[instances.web]
run = ["x"]
count = 6
"#,
        "3: networks.lan.subnet: 10.1.0.0/28 has 14 addresses, 2 for gateway and host, 7 for DHCP, \
         5 for instances; network lan has 6 instances: take a /27",
    );
}

#[test]
fn values_out_of_range_are_refused() {
    refuses(
        r#"[networks.lan]
mtu = 100
host = ["localhost:5432", "127.0.0.1:0", "127.0.0.1:80", "127.0.0.2:80"]
dns = { zone = "Lan." }
uplink = "internet"
[instances.web]
run = [""]
count = 0
restart = "allways"
cwd = "/nowhere/at/all"
link = { delay = "-2s", loss = 1.5, rate = "10mbps" }
[instances.b]
run = []
link = { loss = nan, packets = 0, up = { burst = 1 } }
[services.web]
instances = []
port = 0
check = { http = "health", tcp = true, every = "often", timeout = "0s", rise = 0 }
"#,
        r#"2: networks.lan.mtu: expected a whole number from 1280 to 65520, found the number 100
           3: networks.lan.host: expected address and port of a service of the host, like "127.0.0.1:5432"; found "localhost:5432"
           3: networks.lan.host: expected address and port of a service of the host, like "127.0.0.1:5432"; found "127.0.0.1:0"
           3: networks.lan.host: port 80 of the host alias leads to another IPv4 address already
           4: networks.lan.dns.zone: expected a name of a-z, 0-9 and `-`, which is not at its ends; found "Lan"
           4: networks.lan.dns.zone: expected a name of a-z, 0-9 and `-`, which is not at its ends; found ""
           5: networks.lan.uplink: expected "nat", "routed", "none" or "card:NAME", found the string "internet"
           7: instances.web.run: expected a list of strings like ["program", "argument"], found no program
           8: instances.web.count: expected a whole number from 1 to 1000, found the number 0
           9: instances.web.restart: expected "no", "on-failure" or "always", found "allways"; did you mean "always"?
           10: instances.web.cwd: expected a folder; there is none at /nowhere/at/all
           11: instances.web.link.delay: expected a duration like "20ms" or "2s", from 0s to 1m, found the string "-2s"
           11: instances.web.link.loss: expected a share from 0 to 1, like 0.01, found the number 1.5
           11: instances.web.link.rate: expected a rate like "10mbit" (bit, kbit, mbit or gbit per second), found the string "10mbps"
           13: instances.b.run: expected a list of strings like ["program", "argument"], found no program
           14: instances.b.link.loss: expected a share from 0 to 1, like 0.01, found the number nan
           14: instances.b.link.packets: expected a whole number from 1 to 4294967295, found the number 0
           14: instances.b.link.up.burst: unknown key; known are delay, loss, rate, packets
           16: services.web.instances: expected the name of an instance, or a list of them, found an empty list
           17: services.web.port: expected a whole number from 1 to 65535, found the number 0
           18: services.web.check.every: expected a duration like "20ms" or "2s", from 10ms to 1h, found the string "often"
           18: services.web.check.timeout: expected a duration like "20ms" or "2s", from 10ms to 1h, found the string "0s"
           18: services.web.check.rise: expected a whole number from 1 to 100, found the number 0
           18: services.web.check.tcp: a check is either `tcp` or `http`
           18: services.web.check.http: expected a path like "/" or "/health?full=1", without blanks, found the string "health""#,
    );
}

#[test]
fn several_plugs_say_which_one_they_mean() {
    refuses(
        r#"[networks.lan]
[networks.back]
subnet = "10.0.0.0/24"
[instances.web]
run = ["x"]
network = ["lan", { address = "10.0.0.9" }, { name = "back", lnk = 1 }]
address = "10.0.0.9"
[services.web]
instances = "web"
[services.www]
port = 80
"#,
        r#"6: instances.web.network: has no `name`: write which network, name = "lan"
           6: instances.web.network.lnk: unknown key; did you mean `link`?
           7: instances.web.address: does not say of which plug: write it beside the network, as in network = [{ name = "lan", address = .. }]
           8: services.web: has no `port`: write on which its instances listen
           10: services.www: has no `instances`: write which answer for it"#,
    );
}

#[test]
fn a_service_is_on_a_network_of_all_its_instances() {
    refuses(
        r#"[networks.lan]
[networks.back]
subnet = "10.0.0.0/24"
[instances.a]
run = ["x"]
network = "lan"
[instances.b]
run = ["x"]
network = "back"
[services.web]
instances = ["a", "b"]
port = 80
"#,
        "10: services.web: its instances have no network in common: a is not on that of the others",
    );
}

#[test]
fn text_that_is_no_toml_names_the_line() {
    refuses(
        "[instances.web]\nrun = [\"x\"\ncount = 3\n",
        "3: missing comma between array elements, expected `,`",
    );
    refuses("[instances.a]\nrun = [\"x\"]\nrun = [\"y\"]\n", "3: duplicate key");
    refuses(
        "",
        "there is nothing to run: write [instances.NAME] with run = [\"program\", \"argument\"]",
    );
}

#[test]
fn the_whole_error_reads_well() {
    let error = file::parse("[instances.web]\nrn = [\"x\"]\n", Path::new(PATH)).expect_err("wrong");
    assert_eq!((error.kind, error.exit_code()), (ErrorKind::Input, 2));
    assert_eq!(
        error.to_string(),
        "cannot read the yard file /srv/hello/yard.toml: 2 mistakes\n  \
         /srv/hello/yard.toml:1: instances.web: has no `run`: write run = [\"program\", \"argument\"]\n  \
         /srv/hello/yard.toml:2: instances.web.rn: unknown key; did you mean `run`?\n\
         next: correct it; docs/guide/yard-file.md describes every key"
    );
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("yard.toml");
    let error = file::load(&missing).expect_err("missing");
    assert_eq!(error.kind, ErrorKind::Unknown);
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(error.next.is_some_and(|next| next.contains("netyard up")));

    std::fs::write(&missing, b"name = \"\xff\"").expect("written");
    let error = file::load(folder.path()).expect_err("not text");
    assert_eq!(error.found, "byte 8 is not UTF-8 text");

    let large = std::fs::File::create(&missing).expect("created");
    large.set_len(2 << 20).expect("grown");
    let error = file::load(&missing).expect_err("too large");
    assert_eq!(error.found, "it has 2097152 bytes, more than 1048576");
}
