//! See the package description.

mod address;
pub mod arrival;
mod call;
pub mod capability;
pub mod daemon;
pub mod datagram;
pub mod framed;
pub mod interface;
pub mod kvm;
pub mod memory;
pub mod module;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod poll;
pub mod power;
pub mod process;
pub mod pty;
pub mod resolv_conf;
pub mod segments;
pub mod seqpacket;
pub mod socket_path;
pub mod stream;
pub mod tap;
pub mod ticks;
pub mod wait;
