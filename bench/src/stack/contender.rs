//! Who is measured, and the servers that each of them runs.
//!
//! A contender is a process of this program: a host at [`ADDRESS4`] and [`ADDRESS6`] behind the TAP
//! `dev0`, on one thread, which serves three ports.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use serde::Serialize;

use super::{kernel, ours, smol};
use crate::table;

/// The host that is measured.
pub(super) const ADDRESS4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 100);
pub(super) const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 77, 0, 0, 0, 0, 0, 0x100);
/// This machine, on the other side of the TAP.
pub(super) const PEER4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
pub(super) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 77, 0, 0, 0, 0, 0, 1);
/// The lengths of their prefixes.
pub(super) const PREFIX4: u8 = 24;
pub(super) const PREFIX6: u8 = 64;

/// The host's hardware address.
pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// The host's device, which it makes.
pub(super) const DEVICE: &str = "dev0";

/// Takes what comes and throws it away.
pub(super) const SINK: u16 = 7001;
/// Sends as long as somebody takes it.
pub(super) const SOURCE: u16 = 7002;
/// Answers requests: a page for each that ends as HTTP has it, and a byte for a byte.
pub(super) const ANSWERS: u16 = 7003;

/// A page.
pub(super) const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n\
This is a page of one hundred bytes, so that it is a page and not nothing at all......................\n";

/// What ends a request for a page.
const END: &[u8] = b"\r\n\r\n";

/// What is sent to a client that has sent this: requests come whole.
pub(super) fn answer(request: &[u8]) -> &[u8] {
    if request.ends_with(END) { PAGE } else { request }
}

/// Whose TCP is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// Ours
    Netyard,
    /// smoltcp 0.14 with the offloads that it has
    Smoltcp,
    /// gVisor's netstack as Debian 12 has it, which has no offloads on a TAP
    Gvisor,
    /// The kernel, behind a TAP of its own whose frames a relay carries
    Kernel,
}

impl table::Contender for Contender {
    const ALL: &[Self] = &[Self::Netyard, Self::Smoltcp, Self::Gvisor, Self::Kernel];

    fn name(self) -> &'static str {
        match self {
            Self::Netyard => "netyard",
            Self::Smoltcp => "smoltcp",
            Self::Gvisor => "gvisor",
            Self::Kernel => "kernel",
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(table::Contender::name(*self))
    }
}

/// A part of the stage that is a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    /// The servers, on our stack
    Netyard,
    /// The servers, on smoltcp
    Smoltcp,
    /// The servers, on the kernel
    Kernel,
    /// What carries frames between two TAPs
    Relay,
    /// A client that reads for so many seconds
    Fetch,
}

impl Program {
    /// Runs until it is killed.
    pub(super) fn run(self, seconds: u32) -> io::Result<()> {
        match self {
            Self::Netyard => ours::serve(),
            Self::Smoltcp => smol::serve(),
            Self::Kernel => kernel::serve(),
            Self::Relay => kernel::relay(),
            Self::Fetch => {
                let fetched = super::client::fetch(ADDRESS4.into(), seconds)?;
                writeln!(io::stdout(), "{}", fetched.rate())
            }
        }
    }
}

/// Tells that the device is there, or that the servers listen.
pub(super) fn ready() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()
}
