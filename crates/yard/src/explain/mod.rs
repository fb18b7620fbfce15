//! `netyard explain`: what there is, how it hangs together, and which way a packet takes.
//!
//! [`look`] collects the facts: from the keeper, from the network processes, from the kernel, which is
//! asked for links, addresses, routes and rules here and in every instance. The rest is values:
//! [`answers`] answers questions about one thing, [`path`] follows a packet, [`drawing`] draws the
//! yard. Nothing is told that is not there: rules are the kernel's own, with the text that stands
//! beside each of them; what a network process would do is asked of its own policy.

pub mod answers;
pub mod drawing;
pub mod facts;
pub mod look;
pub mod path;
