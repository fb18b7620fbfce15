//! `nic nat`.

use std::process::ExitCode;

use netyard_nic::Family;
use netyard_nic::nat::live::{self, Options};
use netyard_nic::nat::report::{Evidence, Hairpin};
use netyard_nic::nat::{Confidence, DeltaType, Filtering, Mapping, NatReport, NatType, Rules};
use netyard_yard::error::YardError;

use super::asked::Asked;
use super::flags::{Nat, Rfc};
use super::map;
use crate::output::{Cell, Mood, Output, Table, patiently};

/// Exit code of a test without a verdict.
const INCONCLUSIVE: u8 = 4;

pub(super) fn perform(flags: Nat, out: Output) -> Result<ExitCode, YardError> {
    let explain = flags.explain;
    let family = if flags.ipv6 { Family::Ip6 } else { Family::Ip4 };
    let asked = Asked::certainly(flags.servers, "test the NAT")?;
    let options = Options {
        card: flags.card,
        rules: match flags.rfc {
            Rfc::Modern => Rules::Modern,
            Rfc::Classic => Rules::Classic,
        },
        hairpin: flags.hairpin,
        lifetime: flags.lifetime,
        tcp: flags.tcp,
        portal: flags.portal,
        gateway: !flags.no_gateway,
        ..Options::new(asked, family)
    };
    let report = patiently("asking STUN servers", || super::run(live::test(&options)))?.map_err(
        |error| {
            super::unreachable("test the NAT", error)
                .next("name a server that can be reached with --server, or look at the routes")
        },
    )?;
    out.show(&report, |report, colour| text(report, explain, colour))
        .map_err(|error| YardError::io("print the result", &error))?;
    // Where nobody answers over TCP either it may as well be the servers.
    let is_told = report.kind.is_some() && report.details.inconclusive.is_none();
    Ok(if is_told { ExitCode::SUCCESS } else { ExitCode::from(INCONCLUSIVE) })
}

/// The report for people.
fn text(report: &NatReport, explain: bool, colour: bool) -> String {
    let mut table = Table::default();
    let details = &report.details;
    table.item("NAT", verdict(report));
    if let Some(reason) = &details.inconclusive {
        table.item("because", reason.as_str());
    }
    table.item("mapping", details.mapping.map(Mapping::label));
    table.item("filtering", details.filtering.map(Filtering::label));
    table.item("external", details.external);
    table.item("ports", ports(report));
    if let Some(step) = details.next_destination {
        table.item("destinations", format!("each next one has the port {step:+}"));
    }
    if let Some(hairpin) = details.hairpin {
        table.item(
            "hairpin",
            match hairpin {
                Hairpin::External => "yes, from the external address",
                Hairpin::Internal => "yes, from the internal address",
                Hairpin::No => "no",
            },
        );
    }
    if let Some(life) = life(report) {
        table.item("mappings live", life);
    }
    if details.alg == Some(true) {
        table.item("packets", Cell::new("a box on the way rewrites addresses", Mood::Doubtful));
    }
    if let Some(portmap) = &details.portmap {
        table.item("gateway", map::gateway(portmap));
    }
    match details.layers {
        None => {}
        Some(0) => table.item("layers", "no NAT"),
        Some(1) => table.item("layers", "one NAT"),
        Some(more) => {
            let layers = format!("{more} or more NATs in a row");
            table.item("layers", Cell::new(layers, Mood::Doubtful));
        }
    }
    for (carrier, answers) in [("TCP", details.tcp_stun), ("TLS", details.tls_stun)] {
        if let Some(answers) = answers {
            table.item(carrier, if answers { "answers" } else { "is silent" });
        }
    }
    if let Some(captive) = details.captive_portal {
        let captive = match captive {
            true => {
                Cell::new("the network answers in the place of others: log in first", Mood::Bad)
            }
            false => "none".into(),
        };
        table.item("portal", captive);
    }
    table.item("means", report.advice());
    let mut text = table.render(colour);
    if explain {
        text.push('\n');
        text.push_str(&evidence(&details.evidence, colour));
    }
    text
}

fn verdict(report: &NatReport) -> Cell {
    let Some(kind) = report.kind else { return Cell::new("inconclusive", Mood::Doubtful) };
    let sure = match report.details.confidence {
        Confidence::Proven => "",
        Confidence::Single => ", by one answer",
        Confidence::Assumed => ", assumed",
        Confidence::Unknown => ", not sure",
    };
    let mood = match kind {
        NatType::OpenInternet | NatType::FullCone => Mood::Good,
        NatType::Blocked => Mood::Bad,
        _ => Mood::Plain,
    };
    Cell::new(format!("{} (type {}{sure})", kind.label(), kind.number()), mood)
}

fn ports(report: &NatReport) -> Option<String> {
    let delta = report.delta?;
    let signed = delta.signed.unwrap_or_default();
    Some(match delta.kind {
        DeltaType::NotApplicable => return None,
        DeltaType::Equal => "the local ones".to_owned(),
        DeltaType::Preserving => format!("the local ones {signed:+}"),
        DeltaType::Independent => format!("each new one is the one before {signed:+}"),
        DeltaType::Dependent => format!("{signed:+} for each local one"),
        DeltaType::Random => match report.details.port {
            Some(ports) if ports.parity => {
                format!("random, even where local ones are, {} to {}", ports.min, ports.max)
            }
            Some(ports) => format!("random, {} to {}", ports.min, ports.max),
            None => "random".to_owned(),
        },
    })
}

fn life(report: &NatReport) -> Option<String> {
    let details = &report.details;
    Some(match (details.lifetime_s, details.lifetime_below_s) {
        (None, None) => return None,
        (Some(least), None) => format!("{least} s at least"),
        (None, Some(below)) => format!("less than {below} s"),
        (Some(least), Some(below)) => format!("{least} s at least, less than {below} s"),
    })
}

fn evidence(evidence: &[Evidence], colour: bool) -> String {
    let mut table =
        Table::new(&["STEP", "SERVER", "LOCAL", "SEEN AS", "ANSWERED FROM", "SENT", "RTT"]);
    for item in evidence {
        let rtt = item.rtt_us.map(|rtt| format!("{}.{} ms", rtt / 1000, rtt / 100 % 10));
        let seen = match (&item.mapped, &item.error) {
            (None, Some(error)) => Cell::new(error, Mood::Doubtful),
            (mapped, _) => (*mapped).into(),
        };
        table.row([
            item.step.as_str().into(),
            item.server.to_string().into(),
            item.local.to_string().into(),
            seen,
            item.answered_from.into(),
            item.sent.to_string().into(),
            rtt.into(),
        ]);
    }
    table.render(colour)
}
