//! Ending the machine. For the init of a guest.

use std::io;

use crate::call;

/// Writes what is not written yet and switches the machine off.
///
/// # Errors
/// `EPERM`: we may not. Otherwise it does not return.
pub fn off() -> io::Result<()> {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::sync() };
    // SAFETY: no pointers.
    call::check(unsafe { libc::reboot(libc::RB_POWER_OFF) }).map(drop)
}
