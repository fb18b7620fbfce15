//! Packet formats: bytes to values and back, checksums, offload metadata, segmentation.
//!
//! Everything that a guest, a peer or a server sends is parsed here, once, into types that cannot
//! be nonsense; nobody else indexes a packet. Parsers borrow from the bytes and allocate nothing;
//! they return a [`ParseError`] whose [`reason`](ParseError::reason) names the drop counter.
//! Emitters write whole frames. There is no IO, no clock and no randomness in this crate.

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

pub mod arp;
pub mod build;
pub mod checksum;
pub mod dhcp;
pub mod dns;
mod error;
pub mod ethernet;
pub mod fragment;
mod frame;
pub mod icmp;
pub mod ip;
mod mac;
pub mod membership;
pub mod pcapng;
mod quoted;
pub mod reassembly;
pub mod router;
pub mod segment;
mod seq;
pub mod tcp;
pub mod udp;

pub use error::ParseError;
pub use frame::{
    Checksum, Features, Frame, FrameBuf, Gso, GsoKind, MAX_FRAME_LEN, Offload, OffloadError,
    VNET_HEADER_LEN,
};
pub use mac::{MacAddr, MacAddrError};
pub use quoted::Quoted;
pub use segment::{Part, fit, part};
pub use seq::SeqNumber;
