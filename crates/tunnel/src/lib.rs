//! Hub and peers: one private network of machines that reach each other through one of them, over
//! WebSocket and TLS, so that HTTPS is all that firewalls must let out.
//!
//! A peer holds a *session* with its hub over a *lane*, a WebSocket in TLS 1.3, and UDP beside it where that
//! gets through. Both have a TUN device.
//! Packets travel as the kernel hands them over: super-packets of up to 64 KiB with their virtio-net
//! header, which no program on the way cuts, joins or checksums. Between two peers the hub's own network
//! is not crossed.
//!
//! Read first:
//!
//! * [`join`]: what a new peer is given. [`identity`]: keys, pins, proofs.
//! * [`message`] and [`frame`]: control and data on a lane. [`websocket`] and [`upgrade`] below them.
//! * [`udp`]: what goes beside the WebSocket, how it is sealed, and how its loss is noticed.
//! * [`relay`]: who may send what to whom, by [`policy`]. [`queue`]: what waits for a peer, and what is dropped.
//! * [`addresses`] and [`store`]: who has which address, and what a hub remembers.
//! * `dns`: the network's names. [`hub`] and [`peer`]: the edges, with sockets and clocks. [`admin`]: a hub's control API.
//!
//! All but the edges is without IO and clock: time and randomness are arguments.

pub mod addresses;
pub mod admin;
mod brake;
mod clock;
mod device;
mod dial;
mod dns;
mod error;
mod folder;
pub mod frame;
mod hosts;
pub mod hub;
pub mod identity;
pub mod join;
mod keepalive;
mod kill_switch;
mod lane;
mod login;
pub mod message;
mod mtu;
mod paced;
#[cfg(test)]
mod packets;
pub mod peer;
pub mod policy;
mod pool;
pub mod proxy;
pub mod queue;
mod race;
mod read_ahead;
pub mod relay;
mod routes;
pub mod store;
pub mod text;
mod through;
mod tls;
pub mod udp;
pub mod upgrade;
pub mod websocket;

pub use error::{Blame, Error, Result};
