//! Error numbers of calls.

use libc::c_int;
use netyard_stack::Error;

/// An error number, as `errno` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) c_int);

/// Nothing can be done at once; a call that may wait does so.
pub(crate) const AGAIN: Errno = Errno(libc::EAGAIN);

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        Self(error.errno())
    }
}
