//! What tests of pipes and daemons have in common: a runtime with a deadline, and a lab of two cards.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netyard_link::netns::Netns;
use netyard_nic::{Family, Interface, Route, card_named};
use netyard_testbed::{peer, run, wait_for};

/// Far above what anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Runs a test to its end.
pub(crate) fn now<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, work).await.unwrap() })
}

/// Runs a test to its end in another network namespace.
pub(crate) fn within<T: Send>(namespace: &Netns, work: impl Future<Output = T> + Send) -> T {
    namespace.run(|| now(work)).unwrap()
}

/// The first route of a card.
pub(crate) fn route(card: &str, family: Family) -> Route {
    Interface::unasked(card_named(card).unwrap()).route(Some(family)).unwrap()
}

/// A certificate for `name` that signs itself, and its key.
pub(crate) fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    run(Command::new(peer("openssl"))
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")])
        .args(["-addext", &format!("subjectAltName=DNS:{name}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key));
    (certificate, key)
}

/// How many sockets of the internet this process has open.
pub(crate) fn sockets() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let of_tables: String = ["tcp", "tcp6", "udp", "udp6"]
        .map(|it| std::fs::read_to_string(format!("/proc/self/net/{it}")).unwrap())
        .concat();
    files
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .filter_map(|to| {
            to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .filter(|inode| of_tables.split_whitespace().any(|word| word == inode))
        .count()
}

/// Waits for something.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, LIMIT, || condition().then_some(()));
}
