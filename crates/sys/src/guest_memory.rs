//! The memory of a virtual machine, which another process shares with us by files.
//!
//! Its bytes change while they are read, so nobody ever has a reference to them: what is wanted is
//! copied. A file that is made shorter takes away what lies behind its new end; who touches that gets
//! `SIGBUS`, which would end the process. Here it ends only the memory: in each page that was touched there
//! are zeroes from then on, and [`GuestMemory::is_lost`] tells.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::call;

/// Regions that the process can have at a time.
const MAX_REGIONS: usize = 1_024;

/// Bytes that one process may share with us, and all of them: more than machines have, and less than a
/// process has addresses for.
const MAX_BYTES: u64 = 1 << 40;
const MAX_BYTES_IN_ALL: u64 = 16 << 40;

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
    _share: Share,
    /// Begin for the process that shares it, bytes, begin for the machine.
    places: Vec<(u64, u64, u64)>,
}

impl GuestMemory {
    /// Maps the regions.
    ///
    /// # Errors
    /// `InvalidInput`: regions overlap, or are not in their files or no whole pages of them, or a file is not
    /// held in memory (which could let us wait for its bytes), or they are more than 1 TiB; out of memory, or
    /// all that are mapped would be more than 16 TiB.
    pub fn map(mut regions: Vec<Region>) -> io::Result<Self> {
        let share = Share::take(&SHARED, &regions)?;
        regions.sort_by_key(|region| region.guest);
        let places = regions.iter().map(|region| (region.user, region.len, region.guest)).collect();
        let mut mapped = Vec::with_capacity(regions.len());
        let mut guards = Vec::with_capacity(regions.len());
        for region in regions {
            let guest = GuestAddress(region.guest);
            let (region, page) = map_region(region)?;
            guards.push(Guard::new(Arc::clone(&region), page)?);
            let region = GuestRegionMmap::with_arc(region, guest);
            mapped.push(region.ok_or_else(|| invalid("a region goes beyond all addresses"))?);
        }
        let map = GuestMemoryMmap::from_regions(mapped).map_err(invalid)?;
        Ok(Self { map, guards, _share: share, places })
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

/// Bytes of all that is mapped.
static SHARED: AtomicU64 = AtomicU64::new(0);

/// Its part of them.
#[derive(Debug)]
struct Share {
    all: &'static AtomicU64,
    bytes: u64,
}

impl Share {
    fn take(all: &'static AtomicU64, regions: &[Region]) -> io::Result<Self> {
        let bytes = regions.iter().fold(0, |sum: u64, region| sum.saturating_add(region.len));
        if bytes > MAX_BYTES {
            return Err(invalid("the machine shares more than 1 TiB of memory"));
        }
        let more = |now: u64| now.checked_add(bytes).filter(|now| *now <= MAX_BYTES_IN_ALL);
        if all.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            let why = "the machines of this network share more than 16 TiB of memory";
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
        Ok(Self { all, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A region, and the bytes of a page of it.
fn map_region(region: Region) -> io::Result<(Arc<MmapRegion>, usize)> {
    let page = page_size(&region.file)?;
    if !region.len.is_multiple_of(page) || !region.offset.is_multiple_of(page) {
        return Err(invalid("a region is not of whole pages of its file"));
    }
    let end = region.offset.checked_add(region.len);
    if end.is_none_or(|end| region.file.metadata().map_or(0, |file| file.len()) < end) {
        return Err(invalid("a region goes beyond the end of its file"));
    }
    let len = usize::try_from(region.len).map_err(invalid)?;
    let place = FileOffset::new(region.file, region.offset);
    let mapped = MmapRegion::from_file(place, len).map(Arc::new).map_err(invalid)?;
    Ok((mapped, usize::try_from(page).map_err(invalid)?))
}

/// The bytes of a page of a file, which must be one in memory. Only that is there at once: a file system in
/// user space, say, could let us wait for ever. Huge pages can be mapped and replaced as a whole only.
fn page_size(file: &File) -> io::Result<u64> {
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: an open descriptor and room for the answer, which the kernel only writes.
    call::check(unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, so it was filled in.
    let found = unsafe { found.assume_init() };
    if ![libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&found.f_type) {
        let why = "the machine's memory must be a file in memory (memfd, tmpfs, huge pages)";
        return Err(invalid(why));
    }
    u64::try_from(found.f_bsize)
        .ok()
        .filter(|page| page.is_power_of_two())
        .ok_or_else(|| invalid("the file system of the machine's memory has pages of no size"))
}

/// What the handler of `SIGBUS` knows of one region.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    /// Zero while the slot is of no use.
    len: AtomicUsize,
    /// Bytes of a page of it.
    page: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MAX_REGIONS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
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
    fn new(region: Arc<MmapRegion>, page: usize) -> io::Result<Self> {
        install()?;
        let free = |slot: &Slot| {
            let taken = &slot.taken;
            taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        let number = SLOTS.iter().position(free).ok_or(io::ErrorKind::OutOfMemory)?;
        let slot = SLOTS.get(number).ok_or(io::ErrorKind::OutOfMemory)?;
        slot.lost.store(false, Ordering::Release);
        slot.start.store(region.as_ptr().addr(), Ordering::Release);
        slot.page.store(page, Ordering::Release);
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

/// Puts zeroes in the place of a page that was taken away: only of that, as a limit of what may be promised
/// could refuse the whole region. Reads atomics and calls mmap(2), which is no more than a system call;
/// allocates nothing and takes no lock.
extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid pointer to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    if info.si_code <= 0 {
        // Somebody has sent it: there is no address, and it does not come again by itself.
        // SAFETY: no pointers; it may be called in a handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        // SAFETY: no pointers; it may be called in a handler, and the signal comes at its end.
        unsafe { libc::raise(libc::SIGBUS) };
        return;
    }
    // SAFETY: for a SIGBUS of the kernel there is an address.
    let at = unsafe { info.si_addr() }.addr();
    for slot in &SLOTS {
        let (start, len) = (slot.start.load(Ordering::Acquire), slot.len.load(Ordering::Acquire));
        let page = slot.page.load(Ordering::Acquire);
        let Some(offset) = at.checked_sub(start).filter(|offset| *offset < len && page > 0) else {
            continue;
        };
        slot.lost.store(true, Ordering::Release);
        let place = std::ptr::with_exposed_provenance_mut(start + (offset & !(page - 1)));
        let data = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: one page of a region that its guard keeps mapped, and regions are whole pages from
        // the beginning of one on; to its bytes nobody has references.
        let mapped = unsafe { libc::mmap(place, page, data, flags, -1, 0) };
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
        // No whole pages.
        assert_eq!(refused(vec![region(0, 0x800, 0, &file)]), io::ErrorKind::InvalidInput);
        assert_eq!(refused(vec![region(0, 0x1000, 0x800, &file)]), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn more_memory_than_machines_have_is_refused() {
        let file = crate::memory::file(c"guest").unwrap();
        file.set_len(1 << 40).unwrap();
        let half = 1 << 39;
        let twice = |more| vec![region(0, half, 0, &file), region(half, half + more, 0, &file)];
        let refused = GuestMemory::map(twice(0x1000)).unwrap_err();
        assert!(refused.to_string().contains("1 TiB"), "{refused}");
        let endless = vec![region(0, u64::MAX, 0, &file), region(0, 0x1000, 0, &file)];
        assert_eq!(GuestMemory::map(endless).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        static ALL: AtomicU64 = AtomicU64::new(0);
        let take = || Share::take(&ALL, &twice(0));
        let mut shares: Vec<Share> = (0..16).map(|_| take().unwrap()).collect();
        let refused = take().unwrap_err();
        assert!(refused.to_string().contains("16 TiB"), "{refused}");
        shares.pop();
        assert!(take().is_ok());
    }

    #[test]
    fn parts_of_huge_pages_are_refused() {
        // SAFETY: a string that ends, and flags.
        let made = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_HUGETLB) };
        // Kernels can be without; none of the pages is used here.
        let Ok(file) = call::own(made).map(File::from) else { return };
        file.set_len(4 << 20).unwrap();
        for (len, offset) in [(0x1000, 0), (0x20_0000, 0x1000)] {
            let refused = GuestMemory::map(vec![region(0, len, offset, &file)]).unwrap_err();
            assert!(refused.to_string().contains("whole pages"), "{refused}");
        }
    }

    #[test]
    fn a_signal_that_somebody_sends_ends_the_process() {
        use std::os::unix::process::ExitStatusExt as _;
        const SENDS: &str = "NETYARD_TEST_SENDS_SIGBUS";
        if std::env::var_os(SENDS).is_some() {
            install().unwrap();
            // SAFETY: no pointers.
            unsafe { libc::raise(libc::SIGBUS) };
            return;
        }
        let name = "guest_memory::tests::a_signal_that_somebody_sends_ends_the_process";
        let mut same = std::process::Command::new(std::env::current_exe().unwrap());
        // Where an image of it can be left.
        let folder = tempfile::tempdir().unwrap();
        same.args(["--exact", name]).env(SENDS, "1").current_dir(&folder);
        let ended = same.output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{ended:?}");
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
        // What was not taken away is there, and each page that was reads the same.
        for (place, expected) in [(0xffc, 7), (0x1000, 0), (0x2ffc, 0), (0x3ffc, 0)] {
            memory.bytes().read_slice(&mut at, GuestAddress(place)).unwrap();
            assert_eq!(at, [expected; 4], "at {place:#x}");
        }
        memory.bytes().write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
        drop(memory);
        // The next one finds its place free.
        file.set_len(0x4000).unwrap();
        assert!(!GuestMemory::map(vec![region(0, 0x4000, 0, &file)]).unwrap().is_lost());
    }
}
