//! Whether KVM is of use: not whether the device is there, but whether guests run on it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use crate::call;

/// The device.
pub const DEVICE: &str = "/dev/kvm";

/// `KVM_CREATE_VM`, `KVM_CREATE_VCPU`, `KVM_GET_VCPU_MMAP_SIZE`, `KVM_RUN`,
/// `KVM_SET_USER_MEMORY_REGION` of `linux/kvm.h`, x86.
const CREATE_VM: libc::c_ulong = 0xae01;
const CREATE_VCPU: libc::c_ulong = 0xae41;
const VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
const RUN: libc::c_ulong = 0xae80;
const SET_MEMORY: libc::c_ulong = 0x4020_ae46;

/// `KVM_EXIT_IO`: the guest has written to a port.
const EXIT_IO: u32 = 2;

/// Byte offset of `exit_reason` in `struct kvm_run`.
const EXIT_REASON: usize = 8;

/// One page below 4 GiB: a processor starts in its last 16 bytes.
const PAGE: usize = 4096;
const PAGE_AT: u64 = 0xffff_f000;

/// `mov ecx, 10000`; `again: dec ecx`; `jnz again`; `out 0x10, al`; `jmp` to the first, in real
/// mode.
const LOOP: [u8; 14] =
    [0x66, 0xb9, 0x10, 0x27, 0, 0, 0x66, 0x49, 0x75, 0xfc, 0xe6, 0x10, 0xeb, 0xf2];

/// How long the loop may take. A processor needs some 10 µs for it; where each instruction of a
/// guest is emulated (KVM nested in a virtual machine without the hardware for it) it takes tens
/// of milliseconds.
const LIMIT: Duration = Duration::from_millis(3);

/// How often it is tried: the first run sets much up, and another program may come between.
const TRIES: usize = 3;

/// Tries KVM out: runs some instructions in a guest and takes the time.
///
/// # Errors
/// Opening [`DEVICE`]: `NotFound`, `PermissionDenied`; `Unsupported`: guests do not run, or far
/// too slowly; else what the kernel said.
pub fn probe() -> io::Result<()> {
    if !cfg!(target_arch = "x86_64") {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this is no x86-64 machine"));
    }
    let kvm = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let guest = Guest::new(&kvm)?;
    let mut fastest = Duration::MAX;
    for _ in 0..TRIES {
        let started = Instant::now();
        guest.run()?;
        fastest = fastest.min(started.elapsed());
        if fastest < LIMIT {
            return Ok(());
        }
    }
    let text = format!("it emulates: 20,000 instructions take {fastest:.1?}");
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

/// A guest of one processor and one page. The order of the fields is that of their end.
struct Guest {
    run: Mapping,
    cpu: OwnedFd,
    _vm: OwnedFd,
    _memory: Mapping,
}

impl Guest {
    fn new(kvm: &File) -> io::Result<Self> {
        let mut memory = Mapping::new(PAGE, None)?;
        memory.write(PAGE - 16, &LOOP);
        // SAFETY: no pointers.
        let vm = call::own(unsafe { libc::ioctl(kvm.as_raw_fd(), CREATE_VM, 0) })?;
        // struct kvm_userspace_memory_region: slot and flags, guest address, length, our address.
        let region: [u64; 4] = [0, PAGE_AT, PAGE as u64, memory.start as u64];
        // SAFETY: the kernel reads the structure, which outlives the call; `memory` outlives the
        // machine.
        call::check(unsafe { libc::ioctl(vm.as_raw_fd(), SET_MEMORY, region.as_ptr()) })?;
        // SAFETY: no pointers.
        let cpu = call::own(unsafe { libc::ioctl(vm.as_raw_fd(), CREATE_VCPU, 0) })?;
        // SAFETY: no pointers.
        let size = call::check(unsafe { libc::ioctl(kvm.as_raw_fd(), VCPU_MMAP_SIZE, 0) })?;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidData)?;
        let run = Mapping::new(size, Some(&cpu))?;
        Ok(Self { run, cpu, _vm: vm, _memory: memory })
    }

    /// Goes once around the loop.
    fn run(&self) -> io::Result<()> {
        // SAFETY: the guest reads and writes its own page only, whose mapping `self` holds.
        call::check(unsafe { libc::ioctl(self.cpu.as_raw_fd(), RUN, 0) })?;
        match self.run.read_u32(EXIT_REASON) {
            EXIT_IO => Ok(()),
            reason => {
                let text = format!("a guest stops for the reason {reason}");
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
        }
    }
}

/// Memory that is shared with the kernel.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of `file`, or of nothing: zeros.
    fn new(len: usize, file: Option<&OwnedFd>) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (kind, file) = match file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a new mapping where the kernel likes; it replaces none.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    /// Copies bytes into it.
    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the range is inside of the mapping, as was just checked.
        let target = unsafe { self.start.add(at) };
        // SAFETY: as above; the slice is ours and elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// Reads a number that the kernel may have changed.
    fn read_u32(&self, at: usize) -> u32 {
        assert!(at.is_multiple_of(align_of::<u32>()) && at + size_of::<u32>() <= self.len);
        // SAFETY: the range is inside of the mapping, as was just checked.
        let source = unsafe { self.start.add(at) };
        // SAFETY: as above; mappings start on a page, so the place is aligned.
        unsafe { source.cast::<u32>().read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody else has its address any more.
        let _ = unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_known_soon() {
        let started = Instant::now();
        match probe() {
            Ok(()) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn mappings_hold_what_was_written() {
        let mut mapping = Mapping::new(PAGE, None).unwrap();
        mapping.write(PAGE - 4, &7_u32.to_ne_bytes());
        assert_eq!(mapping.read_u32(PAGE - 4), 7);
    }
}
