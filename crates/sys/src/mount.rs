//! Mounts of the calling thread's mount namespace.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use crate::call;

/// Stops mounts of this namespace from being seen in the one it was copied from, and the other
/// way round.
///
/// # Errors
/// `EPERM`: the mount namespace is not ours.
pub fn make_private() -> io::Result<()> {
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// Shows the file or folder `source` at `target`, which must exist.
///
/// # Errors
/// `EPERM`: not ours; `NotFound`; `EINVAL`: file on folder.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None, libc::MS_BIND, None)
}

/// Covers the folder `target` with an empty one in memory, mode 0755.
///
/// # Errors
/// `EPERM`: not ours; `NotFound`.
pub fn cover(target: &Path) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(Path::new("tmpfs")), target, Some("tmpfs"), flags, Some("mode=0755,size=64k"))
}

/// Makes a file or folder read-only for everybody in this mount namespace.
///
/// # Errors
/// `NotFound`: it is not there; `EPERM`: the namespace is not ours.
pub fn read_only(target: &Path) -> io::Result<()> {
    bind(target, target)?;
    // What covers it, so that a user namespace may: the flags that were there have to stay.
    let flags = libc::MS_REMOUNT
        | libc::MS_BIND
        | libc::MS_RDONLY
        | libc::MS_NOSUID
        | libc::MS_NODEV
        | libc::MS_NOEXEC;
    mount(None, target, None, flags, None)
}

/// Mounts a new `/proc` that shows the calling thread's PID namespace.
///
/// # Errors
/// `EPERM`: the namespace is not ours, or parts of the present `/proc` are covered (containers
/// do that) and the kernel does not let us look under them.
pub fn proc() -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(Path::new("proc")), Path::new("/proc"), Some("proc"), flags, None)
}

/// Mounts a file system of the kernel's own (`proc`, `sysfs`, `devtmpfs`, `tmpfs`, ...) at
/// `target`, which must exist.
///
/// # Errors
/// `EPERM`: not ours; `NotFound`; `ENODEV`: the kernel has no such file system; `EBUSY`: it is
/// mounted there already.
pub fn kernel(kind: &str, target: &Path, options: Option<&str>) -> io::Result<()> {
    let flags = libc::MS_NOSUID | if kind == "devtmpfs" { 0 } else { libc::MS_NODEV };
    mount(Some(Path::new(kind)), target, Some(kind), flags, options)
}

fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&str>,
) -> io::Result<()> {
    let source = source.map(|path| CString::new(path.as_os_str().as_bytes())).transpose()?;
    let target = CString::new(target.as_os_str().as_bytes())?;
    let kind = kind.map(CString::new).transpose()?;
    let data = data.map(CString::new).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: each pointer is null or a C string that outlives the call; the kernel only reads.
    call::check(unsafe {
        libc::mount(pointer(&source), target.as_ptr(), pointer(&kind), flags, pointer(&data).cast())
    })
    .map(drop)
}

/// Takes away the mount at `target`, also while it is in use.
///
/// # Errors
/// `EPERM`: not ours; `NotFound`; `EINVAL`: nothing is mounted there.
pub fn detach(target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: the pointer is a C string that outlives the call; the kernel only reads it.
    call::check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}
