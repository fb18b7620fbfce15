//! The memory of a virtual machine, which another process shares with us by files.
//!
//! Its bytes change while they are read, so nobody ever has a reference to them: what is wanted is
//! copied. A file that is made shorter takes away what lies behind its new end; who touches that gets
//! `SIGBUS`, which would end the process. Here it ends only the memory: in the whole region there are
//! zeroes from then on, and [`GuestMemory::is_lost`] tells.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::call;

/// Regions that the process can have at a time.
const MAX_REGIONS: usize = 1_024;

/// A part of the memory.
#[derive(Debug)]
pub struct Region {
    /// Where the machine sees it.
    pub guest: u64,
    /// Where the process sees it that shares it.
    pub user: u64,
    /// Bytes.
    pub len: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// What it is shared by.
    pub file: File,
}

/// The memory that is shared.
#[derive(Debug)]
pub struct GuestMemory {
    map: GuestMemoryMmap,
    guards: Vec<Guard>,
    /// Begin for the process that shares it, bytes, begin for the machine.
    places: Vec<(u64, u64, u64)>,
}

impl GuestMemory {
    /// Maps the regions.
    ///
    /// # Errors
    /// `InvalidInput`: regions overlap, or are not in their files, or a file is not held in memory (which
    /// could let us wait for its bytes); out of memory.
    pub fn map(mut regions: Vec<Region>) -> io::Result<Self> {
        regions.sort_by_key(|region| region.guest);
        let places = regions.iter().map(|region| (region.user, region.len, region.guest)).collect();
        let mut mapped = Vec::with_capacity(regions.len());
        let mut guards = Vec::with_capacity(regions.len());
        for region in regions {
            let guest = GuestAddress(region.guest);
            let region = map_region(region)?;
            guards.push(Guard::new(Arc::clone(&region))?);
            let region = GuestRegionMmap::with_arc(region, guest);
            mapped.push(region.ok_or_else(|| invalid("a region goes beyond all addresses"))?);
        }
        let map = GuestMemoryMmap::from_regions(mapped).map_err(invalid)?;
        Ok(Self { map, guards, places })
    }

    /// The bytes, by the machine's addresses.
    #[must_use]
    pub fn bytes(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Where the machine sees what the process that shares it sees at an address.
    #[must_use]
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        self.places.iter().find_map(|&(start, len, guest)| {
            let offset = user.checked_sub(start).filter(|offset| *offset < len)?;
            guest.checked_add(offset)
        })
    }

    /// True once something in it was taken away.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.guards.iter().any(Guard::is_lost)
    }
}

fn invalid(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_string())
}

fn map_region(region: Region) -> io::Result<Arc<MmapRegion>> {
    check_file(&region.file)?;
    let end = region.offset.checked_add(region.len);
    if end.is_none_or(|end| region.file.metadata().map_or(0, |file| file.len()) < end) {
        return Err(invalid("a region goes beyond the end of its file"));
    }
    let len = usize::try_from(region.len).map_err(invalid)?;
    let place = FileOffset::new(region.file, region.offset);
    MmapRegion::from_file(place, len).map(Arc::new).map_err(invalid)
}

/// Only memory is there at once: a file system in user space, say, could let us wait for ever.
fn check_file(file: &File) -> io::Result<()> {
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: an open descriptor and room for the answer, which the kernel only writes.
    call::check(unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, so it was filled in.
    let found = unsafe { found.assume_init() };
    if [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&found.f_type) {
        return Ok(());
    }
    Err(invalid("the machine's memory must be a file in memory (memfd, tmpfs, huge pages)"))
}

/// What the handler of `SIGBUS` knows of one region.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    /// Zero while the slot is of no use.
    len: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MAX_REGIONS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MAX_REGIONS];

/// Keeps a region's faults from ending the process.
#[derive(Debug)]
struct Guard {
    slot: usize,
    /// Stays mapped for as long as the handler knows of it.
    _region: Arc<MmapRegion>,
}

impl Guard {
    fn new(region: Arc<MmapRegion>) -> io::Result<Self> {
        install()?;
        let free = |slot: &Slot| {
            let taken = &slot.taken;
            taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        let number = SLOTS.iter().position(free).ok_or(io::ErrorKind::OutOfMemory)?;
        let slot = SLOTS.get(number).ok_or(io::ErrorKind::OutOfMemory)?;
        slot.lost.store(false, Ordering::Release);
        slot.start.store(region.as_ptr().addr(), Ordering::Release);
        slot.len.store(region.size(), Ordering::Release);
        Ok(Self { slot: number, _region: region })
    }

    fn is_lost(&self) -> bool {
        SLOTS.get(self.slot).is_some_and(|slot| slot.lost.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = SLOTS.get(self.slot) {
            slot.len.store(0, Ordering::Release);
            slot.taken.store(false, Ordering::Release);
        }
    }
}

/// Handles `SIGBUS` from now on.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes are a valid value of this plain C structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a handler that does only what a handler may: see there.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        call::check(set).map(drop).map_err(|error| error.raw_os_error().unwrap_or_default())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Puts zeroes in the place of a region that was taken away. Reads atomics and calls mmap(2), which is no
/// more than a system call; allocates nothing and takes no lock.
extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid pointer to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS there is an address.
    let at = unsafe { info.si_addr() }.addr();
    for slot in &SLOTS {
        let (start, len) = (slot.start.load(Ordering::Acquire), slot.len.load(Ordering::Acquire));
        if at.checked_sub(start).is_none_or(|offset| offset >= len) {
            continue;
        }
        slot.lost.store(true, Ordering::Release);
        let place = std::ptr::with_exposed_provenance_mut(start);
        let data = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: exactly a region that its guard keeps mapped; to its bytes nobody has references.
        let mapped = unsafe { libc::mmap(place, len, data, flags, -1, 0) };
        if mapped != libc::MAP_FAILED {
            return;
        }
    }
    // Somebody else's fault: it ends the process when it comes again, at once.
    // SAFETY: no pointers; it may be called in a handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    fn region(guest: u64, len: u64, offset: u64, file: &File) -> Region {
        Region { guest, user: 0x7000_0000 + guest, len, offset, file: file.try_clone().unwrap() }
    }

    #[test]
    fn regions_are_found_by_both_addresses() {
        let file = crate::memory::file(c"guest").unwrap();
        file.set_len(0x10_000).unwrap();
        let regions = vec![region(0x10_0000, 0x8000, 0x8000, &file), region(0, 0x8000, 0, &file)];
        let memory = GuestMemory::map(regions).unwrap();
        memory.bytes().write_slice(b"low", GuestAddress(0x7ffd)).unwrap();
        memory.bytes().write_slice(b"high", GuestAddress(0x10_0000)).unwrap();
        let mut at = [0; 7];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut at, 0x7ffd).unwrap();
        assert_eq!(&at, b"lowhigh");
        assert!(memory.bytes().write_slice(b"over", GuestAddress(0x7ffd)).is_err());
        assert_eq!(memory.guest_address(0x7000_0010), Some(0x10));
        assert_eq!(memory.guest_address(0x7010_0000), Some(0x10_0000));
        for outside in [0, 0x10, 0x6fff_ffff, 0x7000_8000, u64::MAX] {
            assert_eq!(memory.guest_address(outside), None);
        }
        assert!(!memory.is_lost());
    }

    #[test]
    fn what_is_no_memory_or_not_there_is_refused() {
        let file = crate::memory::file(c"guest").unwrap();
        file.set_len(0x2000).unwrap();
        let refused = |regions| GuestMemory::map(regions).unwrap_err().kind();
        let short = vec![region(0, 0x3000, 0, &file)];
        assert_eq!(refused(short), io::ErrorKind::InvalidInput);
        let overflow = vec![region(0, 0x1000, u64::MAX - 0xfff, &file)];
        assert_eq!(refused(overflow), io::ErrorKind::InvalidInput);
        let overlap = vec![region(0, 0x2000, 0, &file), region(0x1000, 0x1000, 0, &file)];
        assert_eq!(refused(overlap), io::ErrorKind::InvalidInput);
        assert_eq!(refused(Vec::new()), io::ErrorKind::InvalidInput);
        let status = File::open("/proc/self/status").unwrap();
        assert_eq!(refused(vec![region(0, 0x1000, 0, &status)]), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn memory_that_is_taken_away_reads_as_zeroes_and_is_told() {
        let file = crate::memory::file(c"guest").unwrap();
        file.set_len(0x4000).unwrap();
        let memory = GuestMemory::map(vec![region(0, 0x4000, 0, &file)]).unwrap();
        memory.bytes().write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
        file.set_len(0x1000).unwrap();
        let mut at = [1; 4];
        memory.bytes().read_slice(&mut at, GuestAddress(0x2000)).unwrap();
        assert_eq!(at, [0; 4]);
        assert!(memory.is_lost());
        memory.bytes().write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
        drop(memory);
        // The next one finds its place free.
        file.set_len(0x4000).unwrap();
        assert!(!GuestMemory::map(vec![region(0, 0x4000, 0, &file)]).unwrap().is_lost());
    }
}
