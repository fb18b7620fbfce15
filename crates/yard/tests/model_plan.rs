//! The steps between two yards, and the addresses that stay meanwhile.

use std::path::Path;

use netyard_yard::address;
use netyard_yard::file;
use netyard_yard::model::Yard;
use netyard_yard::plan::{self, Step};

fn yard(text: &str) -> Yard {
    file::parse(text, Path::new("/srv/hello/yard.toml")).unwrap_or_else(|error| panic!("{error}"))
}

/// Asserts that changing `before` into `after` takes exactly these steps.
#[track_caller]
fn steps(before: &str, after: &str, expected: &[&str]) {
    let current = yard(before);
    let mut wanted = yard(after);
    address::keep(&mut wanted, &current);
    let steps = plan::difference(Some(&current), &wanted);
    let lines: Vec<_> = steps.iter().map(Step::to_string).collect();
    assert_eq!(lines, expected);
}

fn addresses(yard: &Yard) -> Vec<String> {
    yard.instances
        .iter()
        .flat_map(|instance| {
            instance
                .plugs
                .iter()
                .filter_map(|plug| plug.address.get())
                .map(|address| format!("{} {address}", instance.name))
        })
        .collect()
}

const HELLO: &str = r#"
[networks.lan]
[instances.web]
run = ["whoami"]
count = 3
needs = ["db"]
[instances.db]
run = ["db"]
forwards = ["5432"]
[services.web]
instances = "web"
port = 8080
publish = 8080
"#;

#[test]
fn from_nothing_comes_everything_in_the_order_of_need() {
    let lines: Vec<_> = plan::difference(None, &yard(HELLO)).iter().map(Step::to_string).collect();
    assert_eq!(
        lines,
        [
            "+ network lan",
            "+ service web",
            "+ forward 127.0.0.1:5432:5432/tcp of db",
            "+ instance db",
            "+ instance web-1",
            "+ instance web-2",
            "+ instance web-3",
        ]
    );
}

#[test]
fn the_same_yard_takes_no_step() {
    steps(HELLO, HELLO, &[]);
}

#[test]
fn one_more_instance_touches_nobody_else() {
    let more = HELLO.replace("count = 3", "count = 4");
    steps(HELLO, &more, &["~ service web: instances", "+ instance web-4"]);
}

#[test]
fn an_instance_leaves_the_service_before_it_stops() {
    let less = HELLO.replace("count = 3", "count = 2");
    steps(HELLO, &less, &["~ service web: instances", "- instance web-3"]);
}

#[test]
fn a_new_program_restarts_its_instances_and_nothing_else() {
    let other = HELLO.replace("\"whoami\"", "\"whoami\", \"-v\"");
    steps(
        HELLO,
        &other,
        &[
            "~ instance web-1: restart (run)",
            "~ instance web-2: restart (run)",
            "~ instance web-3: restart (run)",
        ],
    );
}

#[test]
fn a_restart_policy_changes_under_a_running_program() {
    let other = HELLO.replace("run = [\"db\"]", "run = [\"db\"]\nrestart = \"always\"");
    steps(HELLO, &other, &["~ instance db: restart policy"]);
}

#[test]
fn a_network_that_changes_takes_its_instances_along() {
    let closed = HELLO.replace("[networks.lan]", "[networks.lan]\nuplink = \"none\"");
    steps(
        HELLO,
        &closed,
        &[
            "~ instance web-3: stop (network)",
            "~ instance web-2: stop (network)",
            "~ instance web-1: stop (network)",
            "~ instance db: stop (network)",
            "~ network lan: uplink",
            "~ service web: network",
            "+ forward 127.0.0.1:5432:5432/tcp of db",
            "~ instance db: start",
            "~ instance web-1: start",
            "~ instance web-2: start",
            "~ instance web-3: start",
        ],
    );
}

#[test]
fn an_mtu_that_is_asked_for_is_not_one_that_happens_to_be_the_same() {
    let text = |mtu: &str| {
        format!("[networks.lan]\nmode = \"bridge\"\n{mtu}\n[instances.a]\nrun = [\"x\"]\n")
    };
    steps(
        &text(""),
        &text("mtu = 1500"),
        &["~ instance a: stop (network)", "~ network lan: mtu", "~ instance a: start"],
    );
}

#[test]
fn a_host_port_is_free_before_another_takes_it() {
    let text = |web: u16, www: u16| {
        format!(
            "[instances.a]\nrun = [\"x\"]\n\
             [services.web]\ninstances = \"a\"\nport = 80\npublish = {web}\n\
             [services.www]\ninstances = \"a\"\nport = 81\npublish = {www}\n"
        )
    };
    steps(
        &text(8080, 8081),
        &text(8081, 8080),
        &[
            "~ service web: unpublish",
            "~ service www: unpublish",
            "~ service web: publish",
            "~ service www: publish",
        ],
    );
    let forward = "[instances.a]\nrun = [\"x\"]\nforwards = [\"8080:80\"]\n";
    let service = "[instances.a]\nrun = [\"x\"]\n[services.web]\ninstances = \"a\"\nport = 80\npublish = 8080\n";
    steps(forward, service, &["- forward 127.0.0.1:8080:80/tcp of a", "+ service web"]);
    steps(service, forward, &["- service web", "+ forward 127.0.0.1:8080:80/tcp of a"]);
}

#[test]
fn a_new_check_or_port_only_tells_the_service() {
    let other = HELLO.replace("port = 8080", "port = 80\ncheck = { http = \"/\" }");
    steps(HELLO, &other, &["~ service web: port, check"]);
}

#[test]
fn new_weights_and_affinity_only_tell_the_service() {
    let other =
        HELLO.replace("port = 8080", "port = 8080\nweights = { web-2 = 3 }\naffinity = \"10m\"");
    steps(HELLO, &other, &["~ service web: weights, affinity"]);
    let same = HELLO.replace("port = 8080", "port = 8080\nweights = { web = 1 }");
    steps(HELLO, &same, &[]);
}

#[test]
fn networks_come_before_what_is_on_them_and_go_after() {
    let back = format!(
        "{}\n[networks.back]\nsubnet = \"10.0.0.0/24\"\n",
        HELLO
            .replace("run = [\"db\"]", "run = [\"db\"]\nnetwork = \"back\"")
            .replace("run = [\"whoami\"]", "run = [\"whoami\"]\nnetwork = [\"lan\", \"back\"]")
    );
    let stops = [
        "~ instance web-3: stop (networks)",
        "~ instance web-2: stop (networks)",
        "~ instance web-1: stop (networks)",
        "~ instance db: stop (networks)",
    ];
    let starts = [
        "+ forward 127.0.0.1:5432:5432/tcp of db",
        "~ instance db: start",
        "~ instance web-1: start",
        "~ instance web-2: start",
        "~ instance web-3: start",
    ];
    let with = |middle: &'static str| {
        let close = ["- forward 127.0.0.1:5432:5432/tcp of db"];
        [&close[..], &stops[..], &[middle], &starts[..]].concat()
    };
    steps(HELLO, &back, &with("+ network back"));
    steps(&back, HELLO, &with("- network back"));
}

#[test]
fn swapped_addresses_are_both_free_before_anybody_starts() {
    let text = |a: u8, b: u8| {
        format!(
            "[instances.a]\nrun = [\"x\"]\naddress = \"192.168.127.{a}\"\n\
             [instances.b]\nrun = [\"x\"]\naddress = \"192.168.127.{b}\"\n\
             [services.web]\ninstances = [\"a\", \"b\"]\nport = 80\n"
        )
    };
    steps(
        &text(9, 10),
        &text(10, 9),
        &[
            "~ service web: addresses",
            "~ instance b: stop (address)",
            "~ instance a: stop (address)",
            "~ instance a: start",
            "~ instance b: start",
        ],
    );
}

#[test]
fn addresses_stay_with_their_instances() {
    let text = |count: u8, rest: &str| {
        format!(
            "[instances.web]\nrun = [\"x\"]\ncount = {count}\n[instances.db]\nrun = [\"x\"]\n{rest}"
        )
    };
    let current = yard(&text(2, ""));
    assert_eq!(
        addresses(&current),
        ["web-1 192.168.127.2", "web-2 192.168.127.3", "db 192.168.127.4"]
    );

    let mut more = yard(&text(3, ""));
    assert_eq!(addresses(&more)[3], "db 192.168.127.5", "when it starts from nothing");
    address::keep(&mut more, &current);
    assert_eq!(addresses(&more)[2..], ["web-3 192.168.127.5", "db 192.168.127.4"]);

    let mut named = yard(&text(2, "[instances.new]\nrun = [\"x\"]\naddress = \"192.168.127.2\"\n"));
    address::keep(&mut named, &current);
    assert_eq!(
        addresses(&named),
        ["web-1 192.168.127.5", "web-2 192.168.127.3", "db 192.168.127.4", "new 192.168.127.2"],
        "a named address moves who had it by chance"
    );

    let mut elsewhere = yard(&format!("[networks.lan]\nsubnet = \"10.0.0.0/24\"\n{}", text(2, "")));
    address::keep(&mut elsewhere, &current);
    assert_eq!(addresses(&elsewhere), ["web-1 10.0.0.2", "web-2 10.0.0.3", "db 10.0.0.4"]);
}
