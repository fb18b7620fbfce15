//! What a yard file says of rules: what leaves, what comes in, and what goes from one instance to another.

mod model;

use netyard_engine::policy::rules::{Direction, Verdict};
use netyard_yard::model::Yard;
use netyard_yard::plan;

use self::model::{good, refuses};

#[test]
fn rules_say_what_instances_may_reach() {
    let yard = good(
        "[networks.lan]\negress = \"deny\"\nrules = [\n  { allow = [\"*.example.org\", \"203.0.113.0/24\"], \
         protocol = \"tcp\", ports = [443, \"8000-8010\"], from = \"web\" },\n  \
         { deny = \"*\", ports = 25, name = \"mail\" },\n]\n\n\
         [instances.web]\nrun = [\"a\"]\ncount = 2\n",
    );
    let rules = &yard.networks["lan"].rules;
    assert_eq!(rules.otherwise, Verdict::Deny);
    let [first, mail] = &rules.list[..] else { panic!("{rules:?}") };
    assert_eq!((first.name.as_str(), first.verdict), ("rule-1", Verdict::Allow));
    assert_eq!(first.instances, ["web-1", "web-2"]);
    assert_eq!((first.others.len(), first.ports.len()), (2, 2));
    assert_eq!((mail.name.as_str(), mail.verdict), ("mail", Verdict::Deny));
    assert_eq!((mail.others.len(), mail.ports.as_slice()), (0, &[25..=25][..]));
    refuses(
        "[networks.lan]\nrules = [\n{ ports = [1] },\n{ allow = \"*\", deny = \"*\" },\n{ allow = \"10.1.1.1/8\" },\n\
         { deny = \"a b\", from = \"wb\" },\n{ allow = \"*\", ports = [\"9-8\"] },\n\
         { allow = \"*\", ports = [] },\n{ allow = \"*\", protocol = \"icmp\", ports = [1] },\n]\n[instances.web]\nrun = [\"a\"]\n",
        "3: networks.lan.rules: a rule has either `allow` or `deny`
         4: networks.lan.rules: a rule has either `allow` or `deny`
         5: networks.lan.rules.allow: expected a prefix without host bits: write \"10.0.0.0/8\"; found \"10.1.1.1/8\"
         6: networks.lan.rules.deny: expected a prefix like \"203.0.113.0/24\", an address, a name like \"example.org\", all names below one like \"*.example.org\", or \"instance:NAME\"; found \"a b\"
         6: networks.lan.rules.from: there is no instance \"wb\"; did you mean `web`?
         7: networks.lan.rules.ports: expected a list of ports and ranges like [80, \"8000-8010\"], found the string \"9-8\"
         8: networks.lan.rules.ports: expected a list of ports and ranges like [80, \"8000-8010\"], found an empty list
         9: networks.lan.rules.ports: pings have no ports: leave them out",
    );
    refuses(
        "[networks.lan]\nmode = \"bridge\"\negress = \"deny\"\n[instances.web]\nrun = [\"a\"]\n",
        "3: networks.lan.egress: `egress` needs mode = \"user\": what goes by a bridge is for the host's firewall",
    );
}

/// The rules of `lan` as `NAME: WAY INSTANCES / OTHERS`.
fn told(yard: &Yard) -> Vec<String> {
    let list = &yard.networks["lan"].rules.list;
    let way = |direction| if direction == Direction::Out { "out" } else { "in" };
    let all = |words: Vec<String>| if words.is_empty() { "*".to_owned() } else { words.join(" ") };
    list.iter()
        .map(|rule| {
            let others = rule.others.iter().map(ToString::to_string).collect();
            let (instances, others) = (all(rule.instances.clone()), all(others));
            format!("{}: {} {instances} / {others}", rule.name, way(rule.direction))
        })
        .collect()
}

#[test]
fn rules_say_who_may_come_and_who_reaches_whom() {
    let yard = good(
        r#"
        [networks.lan]
        rules = [
            { allow = "instance:db", from = "web", ports = [5432] },
            { deny = ["instance:*", "10.0.0.0/8"] },
            { allow = ["192.0.2.0/24", "::1"], direction = "in", to = ["db", "web-2"], name = "near" },
            { deny = "*", direction = "in" },
            { deny = "instance:web", direction = "in", to = "db" },
            { deny = "instance:192.168.127.64/26" },
        ]
        [instances.web]
        run = ["w"]
        count = 2
        [instances.db]
        run = ["d"]
        "#,
    );
    let expected = [
        "rule-1: out web-1 web-2 / instance:db",
        "rule-2: out * / instance:* 10.0.0.0/8",
        "near: in db web-2 / 192.0.2.0/24 ::1",
        "rule-4: in * / *",
        "rule-5: in db / instance:web-1 instance:web-2",
        "rule-6: out * / instance:192.168.127.64/26",
    ];
    assert_eq!(told(&yard), expected);
    assert_eq!(yard.networks["lan"].rules.otherwise, Verdict::Allow);
}

#[test]
fn rules_of_an_instance_stand_before_those_of_its_network() {
    let yard = good(
        r#"
        [networks.lan]
        rules = [{ deny = "instance:*", name = "apart" }]
        [networks.other]
        subnet = "192.168.128.0/24"
        [instances.db]
        run = ["d"]
        network = "lan"
        rules = [
            { allow = "instance:web", direction = "in", ports = [5432] },
            { deny = "instance:*", direction = "in", name = "closed" },
        ]
        [instances.web]
        run = ["w"]
        count = 2
        network = "lan"
        rules = [{ allow = "instance:db" }]
        [instances.far]
        run = ["f"]
        network = "other"
        rules = [{ deny = "*" }]
        "#,
    );
    let expected = [
        "db.rule-1: in db / instance:web-1 instance:web-2",
        "db.closed: in db / instance:*",
        "web.rule-1: out web-1 web-2 / instance:db",
        "apart: out * / instance:*",
    ];
    assert_eq!(told(&yard), expected);
    let [far] = &yard.networks["other"].rules.list[..] else { panic!("{:?}", yard.networks) };
    assert_eq!(
        (far.name.as_str(), far.instances.as_slice()),
        ("far.rule-1", &["far".to_owned()][..])
    );
}

#[test]
fn other_rules_of_an_instance_are_rules_of_its_network() {
    let yard = |rules: &str| {
        good(&format!("[networks.lan]\n[instances.web]\nrun = [\"w\"]\nrules = [{rules}]\n"))
    };
    let steps = plan::difference(
        Some(&yard(r#"{ deny = "*", direction = "in" }"#)),
        &yard(r#"{ deny = "*" }"#),
    );
    let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["~ network lan: rules"], "the instance runs on");
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    refuses(
        r#"[networks.lan]
rules = [
    { allow = "*", direction = "up" },
    { allow = "example.org", direction = "in" },
    { allow = "*", to = "web" },
    { allow = "*", direction = "in", from = "web" },
    { allow = ["*", "instance:web"] },
    { allow = "instance:wb" },
    { deny = "instance:" },
]
[networks.lab]
mode = "bridge"
subnet = "192.168.128.0/24"
rules = [{ deny = "*", direction = "in" }]
[instances.web]
run = ["w"]
network = "lan"
rules = [{ deny = "instance:*", from = "web" }, { deny = "*", name = "a.b" }]
[instances.bridged]
run = ["b"]
network = "lab"
rules = [{ deny = "*" }]
"#,
        r#"3: networks.lan.rules.direction: expected "out" or "in", found "up"
           4: networks.lan.rules.allow: who comes has no name: write addresses of clients, or "instance:NAME"
           5: networks.lan.rules.to: where it may go stands in `allow` or `deny`; `to` is for direction = "in"
           6: networks.lan.rules.from: who may come stands in `allow` or `deny`; `from` is for direction = "out"
           7: networks.lan.rules.allow: "*" is everything outside: write a rule of its own about instances
           8: networks.lan.rules.allow: there is no instance "wb"; did you mean `web`?
           9: networks.lan.rules.deny: expected the name of an instance like "instance:web", addresses of some like "instance:192.168.127.64/26", or all with "instance:*"; found "instance:"
           14: networks.lab.rules: `rules` needs mode = "user": what goes by a bridge is for the host's firewall
           18: instances.web.rules.from: a rule of an instance is about that instance: leave it out
           18: instances.web.rules.name: expected a name of a-z, 0-9 and `-`, which is not at its ends; found "a.b"
           22: instances.bridged.rules: `rules` needs networks with mode = "user", and lab is a bridge: what goes by it is for the host's firewall"#,
    );
}
