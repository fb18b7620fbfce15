//! See the package description.

mod call;
pub mod seqpacket;
