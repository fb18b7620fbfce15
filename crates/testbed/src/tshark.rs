//! Captures, as tshark reads them.

use std::path::Path;
use std::process::Command;

use crate::{peer, run};

/// Checksums that tshark looks at only if asked to.
const CHECKED: [&str; 3] = ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"];

/// What is wrong with a packet.
const WRONG: &str = "_ws.malformed || ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" \
                     || udp.checksum.status == \"Bad\" || icmp.checksum.status == \"Bad\" \
                     || icmpv6.checksum.status == \"Bad\"";

/// These fields of each packet of a file that fits a display filter.
///
/// # Panics
/// When tshark is missing, or cannot read the file.
#[must_use]
pub fn fields(file: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new(peer("tshark"));
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    command.args(CHECKED.iter().flat_map(|option| ["-o".to_owned(), format!("{option}:TRUE")]));
    let lines = run(&mut command);
    lines.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// What is malformed in a file, or has a wrong checksum: number and summary of each such packet.
///
/// # Panics
/// When tshark is missing, or cannot read the file.
#[must_use]
pub fn malformed(file: &Path) -> Vec<Vec<String>> {
    fields(file, WRONG, &["frame.number", "_ws.col.Info"])
}
