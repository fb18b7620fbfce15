//! The host that plays with bridges, as its own tools show it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use netyard_testbed::{Outside, State, User, output, peer, run, wait_for};
use serde_json::Value;

use crate::stage::{SOON, text};

/// The host and its outside, when the kernel is through with their addresses; and all there is.
pub(crate) fn machine() -> (Outside, State) {
    let outside = Outside::new();
    wait_for("settled addresses", SOON, || {
        let text = ip(&["-6", "address", "show", "dev", Outside::UPLINK]);
        (text.contains("fe80:") && !text.contains("tentative")).then_some(())
    });
    (outside, State::take())
}

/// What `ip` says.
pub(crate) fn ip(arguments: &[&str]) -> String {
    run(Command::new(peer("ip")).args(arguments))
}

/// The same with details, as JSON.
pub(crate) fn ip_json(arguments: &[&str]) -> Value {
    ip(&[&["-j", "-d"], arguments].concat()).parse().unwrap()
}

/// Address and port.
pub(crate) fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// What a command refuses with: exit code and text.
pub(crate) fn refused(command: &mut Command) -> (Option<i32>, String) {
    let done = output(command);
    assert!(!done.status.success(), "{}", text(&done));
    (done.status.code(), text(&done))
}

/// A `netyard` command.
pub(crate) fn netyard(arguments: &[&str]) -> Command {
    let mut command = User::Root.command("netyard");
    command.args(arguments);
    command
}

/// Waits until everything is as it was.
pub(crate) fn restored(before: &State) {
    wait_for("the end of the network", SOON, || (State::take() == *before).then_some(()));
}
