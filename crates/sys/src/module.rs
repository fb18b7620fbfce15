//! Kernel modules.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Loads an uncompressed module into the running kernel.
///
/// # Errors
/// `EPERM`; `ENOEXEC`: made for another kernel; `ENOENT`: it needs another module first;
/// `EEXIST`: it is loaded already.
pub fn load(module: &File) -> io::Result<()> {
    const NO_PARAMETERS: &CStr = c"";
    // SAFETY: a C string that outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), NO_PARAMETERS.as_ptr(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The release of the running kernel, e.g. `6.1.0-32-amd64`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn running_kernel() -> io::Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_refused() {
        let text = File::open("/proc/self/status").unwrap();
        let error = load(&text).unwrap_err();
        assert_ne!(error.raw_os_error(), Some(0), "{error}");
        assert!(!running_kernel().unwrap().is_empty());
    }
}
