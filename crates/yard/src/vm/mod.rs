//! Virtual machines: a program in a small Linux of its own, or an image that boots by itself.
//!
//! # Theory of operation
//!
//! A VM instance has the same tree of processes as any other: namespaces, an init of ours, and a
//! program. Its namespaces have no links. Its program is netyard itself, as a *monitor*
//! (`monitor`) which starts QEMU as its child with a wire for each plug: in user mode the file of a
//! socket that the network listens at, for vhost-user; in bridge mode a TAP of the host, which is a
//! port of the bridge. So a VM stops, is logged, restarted and killed like a process.
//!
//! For a program, the guest's first file system is made in memory (`image`): an init
//! (`netyard-vminit`), the modules that the kernel wants for virtio (`kernel`), the program and
//! the libraries that its ELF headers ask for (`elf`), without what is for debuggers (`strip`), as
//! a cpio archive (`cpio`); and a second archive with what this one instance is, which the kernel
//! unpacks after the first. Monitor and guest talk over a virtio-serial port: output, signals, exit
//! code.

mod cpio;
mod elf;
mod image;
mod kernel;
mod machine;
mod message;
mod monitor;
mod qemu;
mod strip;

pub(crate) use machine::{Machine, check};
pub(crate) use message::{Report, Wire, receive};
pub use monitor::{VERB, main};
