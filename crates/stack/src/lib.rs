//! A TCP/IP stack inside a program.
//!
//! [`Stack`] is the core: frames and time in, frames and events out. It does no IO, reads no clock
//! and makes no random numbers of its own, so that a test runs it in virtual time.
//!
//! [`driver`] runs one on [devices](device): TAP and TUN devices, sockets that carry frames. A [`Host`] is
//! one that runs by itself, with sockets that programs use as those of the standard library
//! ([`blocking`]) or of tokio ([`asynchronous`]). They name them as [`net`] and [`mod@tokio`].
//!
//! Read first: [`Stack`], then `tcp/mod.rs`, whose head explains how connections are kept.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]
#![cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only tokio's sockets leave wakers"))]

#[cfg(feature = "tokio")]
pub mod asynchronous;
pub mod blocking;
mod bucket;
pub mod capture;
pub mod config;
pub mod device;
pub mod driver;
mod error;
mod event;
mod grammar;
mod host;
mod inbox;
mod ip;
mod membership;
pub mod net;
mod port;
mod raw;
mod raw_socket;
mod resolver;
pub mod sniffer;
mod stack;
mod tcp;
#[cfg(feature = "tokio")]
pub mod tokio;
mod udp;
mod witness;

pub use error::Error;
pub use event::Event;
pub use host::Host;
pub use ip::{Medium, NicIndex};
pub use raw::RawId;
pub use raw_socket::RawSocket;
pub use stack::{Counts, Stack};
pub use tcp::{Algorithm, Info, Keepalive, ListenerId, Options, Settings, State, TcpId};
pub use udp::UdpId;
