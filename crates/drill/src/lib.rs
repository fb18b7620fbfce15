//! The stack as a shared object that packetdrill drives.
//!
//! packetdrill runs scripts of system calls and packets. With `--so_filename` it asks a shared object for
//! both instead of the kernel, and for the time: no root, no device, no real time. This is that object, for
//! [`netyard_stack::Stack`]; see docs/guide/stack.md for how to use it.
//!
//! `table` and `calls` are the C interface, with `pointers` the only unsafe code beside `sys`. They call
//! `world`, which is one stack in virtual time with the sockets that a script has opened: `sockets` are the
//! calls, `options` what can be set, `clock` whose turn it is.

mod address;
mod calls;
mod clock;
mod errno;
mod flags;
mod options;
mod pointers;
mod sockets;
mod table;
mod world;

pub use table::{Interface, packetdrill_interface_init};
