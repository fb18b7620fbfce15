//! `nic list`, `show`, `routes` and `watch`.

use std::process::ExitCode;
use std::time::SystemTime;

use netyard_nic::nat::NatReport;
use netyard_nic::nat::live::{self, Options};
use netyard_nic::watch::NatMonitor;
use netyard_nic::{Card, Family, InOrder, Interface, NicError, card_named, cards, default_card};
use netyard_yard::error::{ErrorKind, YardError};
use serde_json::{Value, json};

use super::asked::Asked;
use super::flags::{List, Routes, Show, Watch};
use super::view;
use crate::output::{self, Output, patiently};

pub(super) fn list(flags: &List, out: Output) -> Result<ExitCode, YardError> {
    let mut all = cards().map_err(|error| failed("list the cards", &error))?;
    if !flags.all {
        all.retain(Card::is_usable);
    }
    let json = all.iter().map(Card::to_listed_json).collect();
    print(out, &json, |colour| view::cards(&all, flags.all, colour))
}

pub(super) fn show(flags: Show, out: Output) -> Result<ExitCode, YardError> {
    let asked = Asked::of(flags.ask, flags.nat.then_some("test the NAT"))?;
    let mut interface = load(flags.card.as_deref(), &asked)?;
    if flags.nat {
        interface = test(interface, asked, !flags.no_gateway)?;
    } else if flags.assume {
        interface = interface.with_nat(Some(NatReport::assumed()));
    }
    if flags.seed {
        let text = format!("{}\n", interface.to_seed());
        output::write(text.as_bytes()).map_err(unprinted)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(out, &interface.to_json(), |colour| view::interface(&interface, colour))
}

pub(super) fn routes(flags: Routes, out: Output) -> Result<ExitCode, YardError> {
    let interface = load(
        flags.card.as_deref(),
        &Asked::of(flags.ask, None)?.verifying_last(flags.verify_last),
    )?;
    let wanted = |family: &Family| match family {
        Family::Ip4 => !flags.ip6,
        Family::Ip6 => !flags.ip4,
    };
    let families: Vec<_> = Family::BOTH.into_iter().filter(wanted).collect();
    let mut json = json!({ "name": interface.name(), "rp": {}, "addresses": {} });
    let whole = interface.to_json();
    for (key, family) in [("2", Family::Ip4), ("23", Family::Ip6)] {
        if families.contains(&family) {
            json["rp"][key] = whole["rp"][key].clone();
            // As text: there may be more than a number in JSON can be trusted to hold.
            json["addresses"][key] = interface.rp(family).len().to_string().into();
            if let Some(expand) = flags.expand {
                let first = interface.rp(family).iter().take(expand);
                let pair = |it: netyard_nic::Route| json!({ "nic": it.nic(), "ext": it.ext() });
                json["expanded"][key] = first.map(pair).collect();
            }
        }
    }
    print(out, &json, |colour| {
        let text = |family| view::routes(&interface, family, flags.expand, colour);
        families.into_iter().map(text).collect::<Vec<_>>().join("\n")
    })
}

/// A card with its routes, as the servers see them if there are any to be asked.
fn load(card: Option<&str>, asked: &Asked) -> Result<Interface, YardError> {
    let wanted = format!("look at the card {}", card.unwrap_or("that is the default one"));
    let failed = |error| failed(&wanted, &error);
    let card = match card {
        Some(Interface::DEFAULT) if asked.nobody() => {
            return Interface::default_lite().map_err(failed);
        }
        Some(Interface::DEFAULT) | None => default_card(),
        Some(name) => card_named(name),
    };
    let card = card.map_err(failed)?;
    if asked.nobody() {
        return Ok(Interface::unasked(card));
    }
    patiently("asking STUN servers", || super::run(asked.load(card)))
}

/// The interface with what a test says of the NAT in front of it.
fn test(interface: Interface, asked: Asked, gateway: bool) -> Result<Interface, YardError> {
    const WANTED: &str = "test the NAT";
    let family = interface.supported().next().unwrap_or(Family::Ip4);
    let card = Some(interface.name().to_owned());
    let address = interface.route(Some(family)).ok().map(|route| route.bind_address());
    let options = Options { card, address, gateway, ..Options::new(asked.servers, family) };
    let report = patiently("testing the NAT", || super::run(live::test(&options)))?;
    let report = report.map_err(|error| super::unreachable(WANTED, error))?;
    Ok(interface.with_nat(Some(report)))
}

pub(super) fn watch(flags: Watch, out: Output) -> Result<ExitCode, YardError> {
    let asked = Asked::of(flags.ask, None)?;
    let families: &[Family] = match (flags.ip4, flags.ip6) {
        _ if asked.nobody() => &[],
        (true, _) => &[Family::Ip4],
        (_, true) => &[Family::Ip6],
        _ => &Family::BOTH,
    };
    let failed = |error| failed("watch the cards", &error);
    super::run(async {
        let mut monitor =
            NatMonitor::open(asked.look(false), families, flags.every).map_err(failed)?;
        loop {
            let change = monitor.changed().await.map_err(failed)?;
            let at = humantime::format_rfc3339_seconds(SystemTime::now());
            let text = if out.is_json() {
                let mut line = json!(change);
                line["at"] = at.to_string().into();
                format!("{line}\n")
            } else {
                let line = |event| format!("{at} {} {event}\n", change.weight);
                change.events.iter().map(line).collect()
            };
            output::write(text.as_bytes()).map_err(unprinted)?;
        }
    })?
}

/// Prints the value as JSON, or the text.
fn print(
    out: Output,
    value: &Value,
    text: impl FnOnce(bool) -> String,
) -> Result<ExitCode, YardError> {
    out.show(&InOrder(value), |_, colour| text(colour)).map_err(unprinted)?;
    Ok(ExitCode::SUCCESS)
}

fn unprinted(error: std::io::Error) -> YardError {
    YardError::io("print the result", &error)
}

/// The error of the command.
pub(super) fn failed(wanted: &str, error: &NicError) -> YardError {
    let (kind, next) = match error {
        NicError::NotFound { .. } => {
            (ErrorKind::Unknown, Some("`netyard nic list --all` shows them"))
        }
        NicError::NoDefault { .. } => (ErrorKind::Unknown, None),
        NicError::Kernel(netyard_link::Error::NotPermitted { .. }) => {
            (ErrorKind::NotPermitted, None)
        }
        _ => (ErrorKind::System, None),
    };
    let failed = YardError::new(kind, wanted, error.to_string());
    match next {
        Some(next) => failed.next(next),
        None => failed,
    }
}
