//! See the package description.

mod address;
mod call;
pub mod capability;
pub mod daemon;
pub mod datagram;
pub mod interface;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod poll;
pub mod process;
pub mod pty;
pub mod seqpacket;
pub mod socket_path;
pub mod stream;
pub mod tap;
pub mod wait;
