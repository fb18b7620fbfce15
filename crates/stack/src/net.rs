//! The network of a program: `std::net`, or the same names on a stack of its own.
//!
//! A program writes `use netyard_stack::net::TcpListener` and builds as it is. With the feature `stack` of
//! this crate the sockets are those of the [host of the process](crate::Host::of_process), which
//! `NETYARD_STACK` or `GONET` describes; without it they are the kernel's.

#[cfg(feature = "stack")]
pub use crate::blocking::*;
#[cfg(not(feature = "stack"))]
pub use std::net::*;
