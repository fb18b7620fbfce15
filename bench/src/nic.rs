//! The cards, the external address and the NAT beside aionetiface, in the same labs.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use netyard_link::netns::{Netns, named};
use netyard_nic::lab::{self, Impairment, Kind, Lab, SERVERS};
use netyard_nic::nat::NatType;
use netyard_nic::nat::live::{Options, test};
use netyard_nic::{External, Family, Look, PublicPolicy, card_named, cards};
use netyard_testbed::{Namespace, peer, run};
use serde::{Deserialize, Serialize, Serializer};

use crate::figures::Samples;

/// One way of the path to the servers where addresses are looked up.
const DELAY: Duration = Duration::from_millis(10);
/// Cards that are listed.
const CARDS: usize = 100;
/// What asks the peer, and prints its figures.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/external_address.py");

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// The external address, 20 ms from the servers
    Address,
    /// What the NAT does, next to the servers
    Nat,
    /// A hundred cards with their addresses
    Cards,
}

impl Row {
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "external address, 20 ms",
            Self::Nat => "what the NAT does",
            Self::Cards => "100 cards listed",
        }
    }

    /// Milliseconds that netyard promises not to exceed: a round trip and 50 ms, two seconds, a tenth of one.
    const fn promise(self) -> f64 {
        match self {
            Self::Address => 70.0,
            Self::Nat => 2000.0,
            Self::Cards => 100.0,
        }
    }
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// This project
    Netyard,
    /// From PyPI
    Aionetiface,
}

type Figures = BTreeMap<Row, f64>;

/// All figures of a run, milliseconds.
#[derive(Default)]
pub(crate) struct Report {
    samples: Samples<Row, Contender>,
}

impl Report {
    /// Takes one round. What cannot be taken is told and left out.
    pub(crate) fn round(&mut self) {
        type Take = fn() -> Result<Figures, String>;
        let rows: [(Contender, Take); 2] =
            [(Contender::Netyard, ours), (Contender::Aionetiface, theirs)];
        for (contender, take) in rows {
            match take() {
                Ok(figures) => self.samples.add(contender, figures),
                Err(message) => eprintln!("{contender:?}: {message}"),
            }
        }
    }

    /// For people: medians, netyard's ratio to the peer, and what came of the promise; nothing if there
    /// is no row.
    pub(crate) fn print(&self) {
        if self.samples.is_empty() {
            return;
        }
        println!(
            "{:<27}{:>5}{:>11}{:>13}{:>9}  promise",
            "cards and NAT", "", "netyard", "aionetiface", "ratio"
        );
        for (row, medians) in self.samples.medians() {
            let of = |who: Contender| medians.get(&who).copied();
            let (ours, theirs) = (of(Contender::Netyard), of(Contender::Aionetiface));
            let show = |figure: Option<f64>| figure.map_or("-".into(), |it| format!("{it:.2}"));
            let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
            let verdict = ours.map_or(String::new(), |ours| {
                let kept = if ours <= row.promise() { "kept" } else { "MISSED" };
                format!("{kept}: {ours:.2} (<= {})", row.promise())
            });
            println!(
                "{:<27}{:>5}{:>11}{:>13}{:>9}  {verdict}",
                row.name(),
                "ms",
                show(ours),
                show(theirs),
                show(ratio)
            );
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.samples.serialize(serializer, |_| "ms")
    }
}

/// A machine behind a NAT as home routers are, so far from its servers.
fn behind_a_nat(delay: Duration) -> Result<Lab, String> {
    Lab::up([Kind::Port], Impairment { delay, loss: 0.0 }).map_err(text)
}

/// A namespace with a hundred cards beside loopback, each with an address.
fn many_cards() -> Namespace {
    let namespace = Namespace::new("many");
    for pair in 0..CARDS / 2 {
        let (one, other) = (format!("eth{}", 2 * pair), format!("eth{}", 2 * pair + 1));
        namespace.ip(&["link", "add", &one, "type", "veth", "peer", "name", &other]);
        for (card, last) in [(&one, 1), (&other, 2)] {
            namespace.ip(&["address", "add", &format!("10.9.{pair}.{last}/24"), "dev", card]);
            namespace.ip(&["link", "set", card, "up"]);
        }
    }
    // The peer wants a default card.
    namespace.ip(&["route", "add", "default", "via", "10.9.0.2", "dev", "eth0"]);
    namespace
}

fn ours() -> Result<Figures, String> {
    let server = SERVERS.map(|server| server.to_string()).to_vec();
    let look = Look {
        servers: server.clone(),
        agree: 2,
        gateway: false,
        public: PublicPolicy::treat_as_public(vec!["203.0.113.0/24".parse().map_err(text)?]),
    };
    let far = behind_a_nat(DELAY)?;
    let address = on(far.machine(), async {
        let card = card_named("eth0").map_err(text)?;
        let source = card.source.ip4.ok_or("there is no way out")?;
        let start = Instant::now();
        let seen = look.from(&card, source, false).await;
        let took = milliseconds(start);
        match seen.external {
            External::Known(range) if range.base() == lab::Card::number(0).external => Ok(took),
            other => Err(format!("the external address is {other}")),
        }
    })?;
    let near = behind_a_nat(Duration::ZERO)?;
    let nat = on(near.machine(), async {
        let start = Instant::now();
        let report = test(&Options::new(server, Family::Ip4)).await.map_err(text)?;
        let took = milliseconds(start);
        match report.kind {
            Some(NatType::PortRestricted) => Ok(took),
            other => Err(format!("the NAT is {other:?}")),
        }
    })?;
    let many = many_cards();
    let listed = Netns::open(&named(many.name()).map_err(text)?).map_err(text)?.run(|| {
        let start = Instant::now();
        let count = cards().map(|cards| cards.len());
        (count, milliseconds(start))
    });
    let (count, listed) = listed.map_err(text)?;
    // With loopback, and the tunnels that some kernels make in each namespace.
    match count.map_err(text)? {
        count if count > CARDS => {}
        count => return Err(format!("{count} cards were listed")),
    }
    Ok(BTreeMap::from([(Row::Address, address), (Row::Nat, nat), (Row::Cards, listed)]))
}

fn on<T: Send>(
    machine: &Netns,
    work: impl Future<Output = Result<T, String>> + Send,
) -> Result<T, String> {
    let on_it = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(text)?.block_on(work)
    };
    machine.run(on_it).map_err(text)?
}

/// What the script prints.
#[derive(Deserialize)]
struct Theirs {
    list: f64,
    address: Option<f64>,
    seen: Option<String>,
    nat: Option<f64>,
    #[serde(rename = "type")]
    kind: Option<u8>,
}

fn theirs() -> Result<Figures, String> {
    let mut figures = Figures::new();
    for (row, delay) in [(Row::Address, DELAY), (Row::Nat, Duration::ZERO)] {
        let lab = behind_a_nat(delay)?;
        let mut command = python()?;
        command.arg("eth0").stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = lab.spawn(&mut command).map_err(text)?.wait_with_output().map_err(text)?;
        let said: Theirs = serde_json::from_slice(&done.stdout)
            .map_err(|_| String::from_utf8_lossy(&done.stderr).into_owned())?;
        let external = lab::Card::number(0).external.to_string();
        let is_right = said.seen == Some(external) && said.kind == Some(5);
        match (is_right, if row == Row::Address { said.address } else { said.nat }) {
            (true, Some(figure)) => drop(figures.insert(row, figure)),
            _ => eprintln!("Aionetiface sees {:?}, a NAT of type {:?}", said.seen, said.kind),
        }
    }
    let many = many_cards();
    let mut command = many.command(peer("env"));
    let python = python()?;
    command.arg(format!("HOME={HOME}")).arg(python.get_program()).args(python.get_args());
    let said: Theirs = serde_json::from_str(&run(&mut command)).map_err(text)?;
    figures.insert(Row::Cards, said.list);
    Ok(figures)
}

/// Where the peer keeps what it remembers.
const HOME: &str = "/run/aionetiface";

/// The peer's interpreter, which `bench/deps` has made.
fn python() -> Result<Command, String> {
    let program = std::env::current_exe().map_err(text)?;
    let python: Option<PathBuf> =
        program.ancestors().nth(2).map(|target| target.join("aionetiface/bin/python"));
    let python = python.filter(|python| python.exists()).ok_or("run bench/deps")?;
    fs::create_dir_all(HOME).map_err(text)?;
    let mut command = Command::new(python);
    command.arg(SCRIPT).env("HOME", HOME);
    Ok(command)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn text(error: impl Display) -> String {
    error.to_string()
}
