//! See the package description.

mod call;
pub mod capability;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod pty;
pub mod seqpacket;
pub mod tap;
pub mod wait;
