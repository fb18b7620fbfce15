//! `nic serve`.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use netyard_nic::rest::{self, RestOptions};
use netyard_nic::{Bind, BindError, Family, Interface, card_named, default_card};
use netyard_yard::error::{ErrorKind, YardError};
use serde_json::json;
use tokio::net::TcpListener;

use super::asked::Asked;
use super::by::broken;
use super::cards::failed;
use super::flags::{Reach, Serve};
use crate::output::{self, Output};

const WANTED: &str = "answer over HTTP";
/// What requests have to show, where the command line does not say.
const TOKEN: &str = "NETYARD_NIC_TOKEN";

pub(super) fn perform(flags: Serve, out: Output) -> Result<ExitCode, YardError> {
    if flags.no_token && flags.listen != Reach::Loopback {
        return Err(YardError::new(
            ErrorKind::Input,
            WANTED,
            "others could use it without a token",
        )
        .next("leave --no-token away, or listen on loopback"));
    }
    let given = flags.token.clone().or_else(|| std::env::var(TOKEN).ok());
    let given = given.filter(|token| !token.is_empty());
    let is_new = given.is_none() && !flags.no_token;
    let token = (!flags.no_token).then(|| given.unwrap_or_else(rest::new_token));
    let binds = binds(&flags)?;
    let asked = Asked::of(flags.ask, None)?;
    let options = RestOptions {
        servers: asked.servers,
        wanted: asked.agree,
        policy: asked.public,
        token: token.clone(),
    };
    super::run(async {
        let (listeners, at) = listen(binds, flags.port)?;
        tell(out, &at, token.as_deref(), is_new)?;
        let served = tokio::select! {
            served = rest::serve(listeners, options) => served,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(|error| YardError::io("wait for Ctrl-C", &error))?;
                Ok(())
            }
        };
        served.map_err(|error| failed(WANTED, &error))
    })??;
    Ok(ExitCode::SUCCESS)
}

fn binds(flags: &Serve) -> Result<Vec<Bind>, YardError> {
    let every = Family::BOTH.map(Bind::every);
    Ok(match flags.listen {
        Reach::Loopback => every.map(Bind::loopback).into(),
        Reach::All => every.into(),
        Reach::Local => {
            let card = match flags.card.as_deref() {
                Some(name) => card_named(name),
                None => default_card(),
            };
            let card = card.map_err(|error| failed(WANTED, &error))?;
            Interface::unasked(card).local_binds()
        }
    })
}

/// Listens on each, on one port. A family that the machine does not have is left out.
fn listen(
    binds: Vec<Bind>,
    mut port: u16,
) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), YardError> {
    let (mut listeners, mut at) = (Vec::new(), Vec::new());
    let mut missing = None;
    for bind in binds {
        let listener = match bind.port(port).listener() {
            Ok((listener, _)) => listener,
            Err(error) if is_missing(&error) => {
                missing = Some(error);
                continue;
            }
            Err(error) => return Err(broken(WANTED, error.into())),
        };
        let address = listener.local_addr().map_err(|error| YardError::io(WANTED, &error))?;
        port = address.port();
        at.push(address);
        listeners.push(listener);
    }
    match (listeners.is_empty(), missing) {
        (false, _) => Ok((listeners, at)),
        (true, Some(error)) => Err(broken(WANTED, error.into())),
        (true, None) => Err(YardError::new(ErrorKind::Unknown, WANTED, "the card has no address")),
    }
}

/// Whether the machine has no such address, or no such family at all.
fn is_missing(error: &BindError) -> bool {
    let kind = error.io_kind();
    !matches!(kind, Some(io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied))
}

/// Says where it listens, and the token if nobody else knows it: as JSON on stdout, for people on stderr.
fn tell(
    out: Output,
    at: &[SocketAddr],
    token: Option<&str>,
    is_new: bool,
) -> Result<(), YardError> {
    let urls: Vec<_> = at.iter().map(|at| format!("http://{at}")).collect();
    if out.is_json() {
        let line = format!("{}\n", json!({ "listening": urls, "token": token }));
        return output::write(line.as_bytes())
            .map_err(|error| YardError::io("print the result", &error));
    }
    let mut text = format!("netyard: answering on {}\n", urls.join(", "));
    if let Some(token) = token.filter(|_| is_new) {
        text.push_str(&format!("netyard: the token is {token}\n"));
    }
    // Nothing can be done where stderr is closed.
    _ = io::stderr().write_all(text.as_bytes());
    Ok(())
}
