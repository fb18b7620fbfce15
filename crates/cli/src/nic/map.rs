//! `nic map`: what the gateway speaks, and a port that it lets in.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use netyard_nic::portmap::live::Mapper;
use netyard_nic::portmap::{Granted, Portmap, PortmapError, Protocol, Wanted};
use netyard_yard::error::{ErrorKind, YardError};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::flags::Map;
use crate::output::{self, Output, Table, patiently};

/// A mapping that cannot be renewed is tried again after so long, or earlier if it is shorter.
const AGAIN: Duration = Duration::from_secs(30);

pub(super) fn perform(flags: &Map, out: Output) -> Result<ExitCode, YardError> {
    let open = Mapper::open(flags.card.as_deref(), None);
    let mapper = patiently("asking the gateway", || super::run(open))?
        .map_err(|error| failed("ask the gateway", &error))?;
    let Some((port, transport)) = flags.port else {
        out.show(mapper.portmap(), text)
            .map_err(|error| YardError::io("print the result", &error))?;
        return Ok(ExitCode::SUCCESS);
    };
    let wanted = Wanted {
        transport,
        port,
        external_port: flags.external_port.unwrap_or(port),
        lifetime: flags.lifetime,
    };
    super::run(hold(&mapper, wanted, out))?
}

/// Has the port mapped until a signal comes.
async fn hold(mapper: &Mapper, wanted: Wanted, out: Output) -> Result<ExitCode, YardError> {
    let to = format!("have port {}/{} let in", wanted.port, wanted.transport);
    let listen = |kind| signal(kind).map_err(|error| YardError::io("wait for signals", &error));
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut told = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let mapped = tokio::select! {
        mapped = mapper.map(wanted) => Some(mapped),
        () = told() => None,
    };
    let mut granted = match mapped {
        Some(Ok(granted)) => granted,
        ended => {
            // The request may have been heard though its answer was not.
            mapper.abandon(wanted).await;
            return match ended {
                Some(Err(error)) => Err(failed(&to, &error)),
                _ => Ok(ExitCode::SUCCESS),
            };
        }
    };
    let mut problem = print(&granted, out).err();
    let mut pause = until_renewal(&granted);
    while problem.is_none() {
        let renewed = tokio::select! {
            () = told() => break,
            renewed = async {
                tokio::time::sleep(pause).await;
                renew(mapper, &granted, wanted).await
            } => renewed,
        };
        match renewed {
            Ok(renewed) => {
                if renewed != granted {
                    problem = print(&renewed, out).err();
                }
                granted = renewed;
                pause = until_renewal(&granted);
            }
            Err(error) => {
                // Nothing can be done where stderr is closed.
                _ = writeln!(io::stderr(), "netyard: cannot renew the mapping: {error}");
                pause = AGAIN.min(pause);
            }
        }
    }
    mapper
        .release(&granted)
        .await
        .map_err(|error| failed(&format!("give {} back", describe(&granted)), &error))?;
    problem.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Has the mapping renewed by what has granted it; only where that fails by another protocol, and then the
/// old one is given back.
async fn renew(mapper: &Mapper, old: &Granted, wanted: Wanted) -> Result<Granted, PortmapError> {
    let wanted = Wanted { external_port: old.external_port, ..wanted };
    let failure = match mapper.map_by(&[old.by], wanted).await {
        Ok(renewed) => return Ok(renewed),
        Err(failure) => failure,
    };
    let others: Vec<_> = mapper.portmap().protocols().filter(|it| *it != old.by).collect();
    let renewed = mapper.map_by(&others, wanted).await.map_err(|_| failure)?;
    // With the same external port it is the same mapping to many a gateway.
    if renewed.external_port != old.external_port
        && let Err(error) = mapper.release(old).await
    {
        // Nothing can be done where stderr is closed.
        _ = writeln!(io::stderr(), "netyard: cannot give the old mapping back: {error}");
    }
    Ok(renewed)
}

/// Half of its time (RFC 6886, section 3.3); a mapping without an end is looked after once a day.
fn until_renewal(granted: &Granted) -> Duration {
    match granted.lifetime_s {
        0 => Duration::from_secs(24 * 3600),
        seconds => Duration::from_secs(u64::from(seconds)).div_f64(2.0).max(Duration::from_secs(1)),
    }
}

/// Prints a mapping as a line.
fn print(granted: &Granted, out: Output) -> Result<(), YardError> {
    let line = match out.is_json() {
        true => format!("{}\n", json!(granted)),
        false => format!("{}\n", describe(granted)),
    };
    output::write(line.as_bytes())
        .and_then(|()| io::stdout().flush())
        .map_err(|error| YardError::io("print the result", &error))
}

/// `203.0.113.1:8080/tcp leads to 10.0.0.2:8080, by PCP, for 1h`.
fn describe(granted: &Granted) -> String {
    let Granted { by, transport, external, external_port, local, lifetime_s } = granted;
    let external = external.map_or_else(|| "its address".to_owned(), |it| it.to_string());
    let life = match lifetime_s {
        0 => "without an end".to_owned(),
        seconds => {
            let life = Duration::from_secs((*seconds).into());
            format!("for {}", humantime::format_duration(life))
        }
    };
    format!("{external}:{external_port}/{transport} leads to {local}, by {by}, {life}")
}

/// What the gateway said, for people.
fn text(portmap: &Portmap, colour: bool) -> String {
    let mut table = Table::default();
    table.item("gateway", portmap.gateway.to_string());
    let speaks: Vec<_> = portmap.protocols().map(|it: Protocol| it.to_string()).collect();
    table.item(
        "speaks",
        match speaks.is_empty() {
            true => "neither PCP nor NAT-PMP nor UPnP".to_owned(),
            false => speaks.join(", "),
        },
    );
    table.item("external", portmap.external.map(|address| address.to_string()));
    table.render(colour)
}

/// The same in a line: `10.0.0.1, external 203.0.113.1, speaks NAT-PMP`.
pub(super) fn gateway(portmap: &Portmap) -> String {
    let mut line = portmap.gateway.to_string();
    if let Some(external) = portmap.external {
        line.push_str(&format!(", external {external}"));
    }
    let speaks: Vec<_> = portmap.protocols().map(|it| it.to_string()).collect();
    match speaks.is_empty() {
        true => line.push_str(", does not answer"),
        false => line.push_str(&format!(", speaks {}", speaks.join(", "))),
    }
    line
}

fn failed(wanted: &str, error: &PortmapError) -> YardError {
    let (kind, next) = match error {
        PortmapError::NoGateway { .. } => (ErrorKind::Unknown, "`netyard nic show` has gateways"),
        PortmapError::Silent { .. } => {
            (ErrorKind::System, "switch one of them on in the gateway, or forward the port there")
        }
        _ => (ErrorKind::System, "see what the gateway says with `netyard nic map`"),
    };
    YardError::new(kind, wanted, error.to_string()).next(next)
}

#[cfg(test)]
mod tests {
    use netyard_nic::portmap::Transport;

    use super::*;

    #[test]
    fn a_mapping_is_renewed_at_half_its_time() {
        let granted = |lifetime_s| Granted {
            by: Protocol::NatPmp,
            transport: Transport::Tcp,
            external: Some([1, 3, 3, 7].into()),
            external_port: 8081,
            local: ([10, 0, 0, 2], 8080).into(),
            lifetime_s,
        };
        assert_eq!(until_renewal(&granted(3600)), Duration::from_secs(1800));
        assert_eq!(until_renewal(&granted(1)), Duration::from_secs(1), "no storm");
        assert_eq!(until_renewal(&granted(0)), Duration::from_secs(86_400));
        let line = "1.3.3.7:8081/tcp leads to 10.0.0.2:8080, by NAT-PMP, for 1h";
        assert_eq!(describe(&granted(3600)), line);
    }
}
