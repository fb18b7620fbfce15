//! STUN: which address does a server on the Internet see?
//!
//! [`message`] and [`attribute`] are the codec of RFC 8489 with RFC 5780's attributes and the classic
//! form of RFC 3489, [`framing`] cuts streams into messages. [`machine`] runs conversations over
//! several sockets without knowing sockets or clocks, [`ask`] is one question, [`client`] asks several
//! servers and sees whether they agree, [`server`] answers. The edges are [`udp`], [`stream`] and
//! [`listen`]; [`StunClient`] is one server asked from one place, over any of them.

pub mod ask;
pub mod attribute;
pub mod client;
pub mod framing;
mod instead;
pub mod listen;
pub mod machine;
pub mod message;
pub mod names;
mod one;
pub mod server;
pub mod stream;
pub mod udp;

pub use ask::{Answer, Failure, Question, Schedule};
pub use attribute::{Change, ErrorCode, Kind};
pub use client::{External, Lookup, Reply, lookup};
pub(crate) use instead::ask_instead;
pub use machine::{Action, Line, Machine, Port};
pub use message::{Builder, Class, Malformed, Message, Method, TransactionId};
pub use one::{Carrier, Kept, Mapping, StunClient, StunError};
pub use server::Server;
pub use udp::{Source, StunProber};
