//! Plugs with one by vhost-user, and a guest with its monitor.

use std::collections::VecDeque;
use std::fs::File;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use netyard_sys::guest_memory::{GuestMemory, Region};
use netyard_sys::poll::{Events, Poll};
use netyard_wire::{Features, FrameBuf, Gso, GsoKind, MacAddr, Offload, build};
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend as _, VhostUserVirtioFeatures};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::{PlugKind, PlugRequest};
use crate::driver::edge::Ports as _;
use crate::driver::plugs::vhost_user::backend::{FROM_GUEST, TO_GUEST};
use crate::driver::plugs::{BUFFER_LEN, Counts, Plugs, Received};
use crate::driver::token::Token;
use crate::edge::PlugId;

const ID: PlugId = PlugId(3);

/// Entries of each ring.
pub(super) const ENTRIES: u16 = 256;
/// Bytes of the memory, and of a half of it: each a region with a file of its own.
pub(super) const MEMORY: u64 = 0x40_0000;
const HALF: u64 = MEMORY / 2;
/// Where the guest has its buffers for frames that it sends, and for those that it gets.
const SENDS_AT: u64 = 0x10_0000;
const GETS_AT: u64 = 0x20_0000;

/// Plugs with one.
pub(super) struct Bench {
    poll: Poll,
    plugs: Plugs,
    folder: TempDir,
    events: Events,
    buffer: Vec<u8>,
    received: Vec<Result<FrameBuf, &'static str>>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("plug")).unwrap();
        let request = PlugRequest::new("one", PlugKind::VhostUser);
        plugs.add(&poll, ID, "yard", listener.into(), &request, 1).unwrap();
        let (buffer, events) = (vec![0; BUFFER_LEN], Events::new());
        Self { poll, plugs, folder, events, buffer, received: Vec::new() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("plug")
    }

    /// Does what is to do now, as the driver would.
    pub(super) fn pump(&mut self) {
        self.wait(Duration::ZERO);
    }

    /// Notes what has happened, and does nothing yet.
    pub(super) fn notice(&mut self, within: Duration) {
        self.poll.wait(&mut self.events, Some(within)).unwrap();
        let token = Token::Plug(ID).encode();
        for event in self.events.iter().filter(|event| event.token == token) {
            let readable = event.readable || event.read_closed || event.hangup || event.error;
            self.plugs.handle_event(ID, readable, event.writable);
        }
    }

    fn wait(&mut self, within: Duration) {
        self.notice(within);
        while self.plugs.any_readable() {
            match self.plugs.receive(&self.poll, Instant::now(), 0, &mut self.buffer).1 {
                Received::Frame(frame) => self.received.push(Ok(frame.into())),
                Received::Malformed(reason) => self.received.push(Err(reason)),
                Received::Taken | Received::Nothing => {}
            }
        }
        self.plugs.send_batches(&self.poll, Instant::now());
    }

    /// Serves what somebody does in another thread, until it is done.
    pub(super) fn during<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        let done = thread::scope(|scope| {
            let work = scope.spawn(work);
            while !work.is_finished() {
                self.wait(Duration::from_millis(5));
            }
            work.join().unwrap()
        });
        self.pump();
        done
    }

    /// Sends a frame to the guest, at once.
    pub(super) fn transmit(&mut self, frame: &FrameBuf) -> bool {
        let taken = self.transmit_later(frame);
        self.pump();
        taken
    }

    pub(super) fn transmit_later(&mut self, frame: &FrameBuf) -> bool {
        self.plugs.transmit(Instant::now(), ID, frame.as_frame())
    }

    /// What has come from the guest.
    pub(super) fn receive(&mut self) -> Vec<Result<FrameBuf, &'static str>> {
        self.pump();
        std::mem::take(&mut self.received)
    }

    /// What has come that was no frame.
    pub(super) fn ended(&mut self) -> Vec<&'static str> {
        self.receive().into_iter().filter_map(Result::err).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.plugs.counts(ID).unwrap()
    }

    pub(super) fn features(&self) -> Features {
        self.plugs.list[0].features
    }

    pub(super) fn is_alive(&mut self) -> bool {
        self.plugs.take_dead().is_empty()
    }
}

/// A guest's side of a ring.
#[derive(Default)]
struct Half {
    offered: u16,
    got_back: u16,
}

/// A guest and its monitor.
pub(super) struct Guest {
    monitor: Frontend,
    /// What the monitor speaks on.
    connection: UnixStream,
    files: [File; 2],
    memory: GuestMemory,
    /// Where the monitor has the memory itself.
    user: u64,
    halves: [Half; 2],
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    agreed: u64,
    laid: u64,
}

impl Guest {
    /// Plugs in by the path, with what is offered of these features.
    pub(super) fn plug_in(bench: &mut Bench, features: u64) -> Self {
        let path = bench.path();
        bench.during(|| Self::set_up(UnixStream::connect(path).unwrap(), features))
    }

    pub(super) fn set_up(connection: UnixStream, features: u64) -> Self {
        let mut monitor = Frontend::from_stream(connection.try_clone().unwrap(), 2);
        monitor.set_owner().unwrap();
        let offered = monitor.get_features().unwrap();
        let known = monitor.get_protocol_features().unwrap();
        monitor.set_protocol_features(known).unwrap();
        monitor.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let agreed = offered & (features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits());
        monitor.set_features(agreed).unwrap();
        let files = [(); 2].map(|()| {
            let file = netyard_sys::memory::file(c"guest").unwrap();
            file.set_len(HALF).unwrap();
            file
        });
        let event = || [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let (kicks, calls, halves) = (event(), event(), [Half::default(), Half::default()]);
        let memory = map(&files);
        let (user, laid) = (0x7f00_0000_0000, 0);
        let mut guest =
            Self { monitor, connection, files, memory, user, halves, kicks, calls, agreed, laid };
        guest.share();
        guest.start();
        guest
    }

    /// Goes away.
    pub(super) fn unplug(self, bench: &mut Bench) {
        // A program that another test starts has a copy of it until it runs: this ends the copies, too.
        self.connection.shutdown(Shutdown::Both).unwrap();
        bench.during(|| drop(self));
    }

    fn share(&self) {
        let region = |number: u64, file: &File| VhostUserMemoryRegionInfo {
            guest_phys_addr: HALF * number,
            memory_size: HALF,
            userspace_addr: self.user + 0x1000_0000 * number,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        let [low, high] = &self.files;
        self.monitor.set_mem_table(&[region(1, high), region(0, low)]).unwrap();
    }

    fn start(&mut self) {
        for ring in [TO_GUEST, FROM_GUEST] {
            self.take_call(ring);
            let at = self.user + descriptors(ring);
            let data = VringConfigData {
                queue_max_size: ENTRIES,
                queue_size: ENTRIES,
                flags: 0,
                desc_table_addr: at,
                avail_ring_addr: at + AVAILABLE_AFTER,
                used_ring_addr: at + USED_AFTER,
                log_addr: None,
            };
            let next = self.halves[ring].got_back;
            self.monitor.set_vring_num(ring, ENTRIES).unwrap();
            self.monitor.set_vring_base(ring, next).unwrap();
            self.monitor.set_vring_addr(ring, &data).unwrap();
            self.monitor.set_vring_call(ring, &self.calls[ring]).unwrap();
            self.monitor.set_vring_kick(ring, &self.kicks[ring]).unwrap();
            self.monitor.set_vring_enable(ring, true).unwrap();
            // For what it was told before: with its descriptor, and when the ring can be used.
            let usable = self.agreed & 1 << VIRTIO_F_VERSION_1 != 0;
            assert_eq!(self.take_call(ring), 1 + u64::from(usable));
        }
    }

    /// Agrees to other features.
    pub(super) fn agree_to(&mut self, bench: &mut Bench, features: u64) {
        self.agreed = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        bench.during(|| self.monitor.set_features(self.agreed).unwrap());
    }

    /// Switches a ring off and on again, and waits for no answer.
    pub(super) fn switch_off_and_on(&mut self, ring: usize) {
        self.monitor.set_hdr_flags(VhostUserHeaderFlag::empty());
        for on in [false, true] {
            self.monitor.set_vring_enable(ring, on).unwrap();
        }
        self.monitor.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    /// Puts other files, with the same bytes, in the place of the memory.
    pub(super) fn replace_memory(&mut self, bench: &mut Bench) {
        let mut bytes = vec![0; usize::try_from(MEMORY).unwrap()];
        self.memory.bytes().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        self.files = [(); 2].map(|()| {
            let file = netyard_sys::memory::file(c"guest").unwrap();
            file.set_len(HALF).unwrap();
            file
        });
        self.memory = map(&self.files);
        self.memory.bytes().write_slice(&bytes, GuestAddress(0)).unwrap();
        bench.during(|| self.share());
    }

    /// Stops both rings and starts them again, as a guest does that resets its device.
    pub(super) fn stop_and_start(&mut self, bench: &mut Bench) {
        bench.during(|| {
            for ring in [TO_GUEST, FROM_GUEST] {
                let next = self.monitor.get_vring_base(ring).unwrap();
                assert_eq!(next, u32::from(self.halves[ring].got_back));
            }
            // What was offered and not used is offered anew.
            for ring in [TO_GUEST, FROM_GUEST] {
                self.halves[ring].offered = self.halves[ring].got_back;
                self.set_available(ring);
            }
            self.start();
        });
        self.lay_out(4, 2_048);
    }

    /// Lets go of a half of the memory, under whoever uses it.
    pub(super) fn take_memory_away(&self) {
        self.files[1].set_len(0).unwrap();
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.bytes().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn describe(&self, ring: usize, n: u16, at: u64, len: u32, flags: u32, next: u16) {
        self.describe_at(descriptors(ring), n, at, len, flags, next);
    }

    pub(super) fn describe_at(&self, table: u64, n: u16, at: u64, len: u32, flags: u32, next: u16) {
        let flags = u16::try_from(flags).unwrap();
        let descriptor = RawDescriptor::from(Descriptor::new(at, len, flags, next));
        let place = GuestAddress(table + 16 * u64::from(n));
        self.memory.bytes().write_obj(descriptor, place).unwrap();
    }

    /// Offers a chain by its first descriptor.
    pub(super) fn offer(&mut self, ring: usize, head: u16) {
        let place = u64::from(self.halves[ring].offered % ENTRIES);
        self.write(descriptors(ring) + AVAILABLE_AFTER + 4 + 2 * place, &head.to_le_bytes());
        self.halves[ring].offered = self.halves[ring].offered.wrapping_add(1);
        self.set_available(ring);
    }

    /// Says that it has offered so many more than it has.
    pub(super) fn lie(&mut self, ring: usize, by: u16) {
        self.halves[ring].offered = self.halves[ring].offered.wrapping_add(by);
        self.set_available(ring);
    }

    fn set_available(&self, ring: usize) {
        let at = GuestAddress(descriptors(ring) + AVAILABLE_AFTER + 2);
        let offered = self.halves[ring].offered.to_le();
        self.memory.bytes().store(offered, at, Ordering::Release).unwrap();
    }

    pub(super) fn kick(&self, ring: usize) {
        self.kicks[ring].write(1).unwrap();
    }

    /// How often it was woken since the last call.
    pub(super) fn take_call(&self, ring: usize) -> u64 {
        self.calls[ring].read().unwrap_or(0)
    }

    fn word(&self, ring: usize, after: u64) -> u16 {
        let at = GuestAddress(descriptors(ring) + after);
        u16::from_le(self.memory.bytes().load(at, Ordering::Acquire).unwrap())
    }

    /// Wants to be woken once so many chains more than this are back since the beginning.
    pub(super) fn wake_after(&self, ring: usize, count: u16) {
        let at = descriptors(ring) + AVAILABLE_AFTER + 4 + 2 * u64::from(ENTRIES);
        self.write(at, &count.to_le_bytes());
    }

    pub(super) fn be_silent(&self, ring: usize, silent: bool) {
        self.write(descriptors(ring) + AVAILABLE_AFTER, &u16::from(silent).to_le_bytes());
    }

    /// Whether it was asked to tell of its next chain.
    pub(super) fn is_wanted(&self, ring: usize) -> bool {
        if self.agreed & 1 << VIRTIO_RING_F_EVENT_IDX == 0 {
            return self.word(ring, USED_AFTER) == 0;
        }
        self.word(ring, USED_AFTER + 4 + 8 * u64::from(ENTRIES)) == self.halves[ring].offered
    }

    /// The chains that it has got back since the last call, with the bytes in them.
    pub(super) fn back(&mut self, ring: usize) -> Vec<(u32, u32)> {
        let told = self.word(ring, USED_AFTER + 2);
        let mut back = Vec::new();
        while self.halves[ring].got_back != told {
            let place = u64::from(self.halves[ring].got_back % ENTRIES);
            let at = GuestAddress(descriptors(ring) + USED_AFTER + 4 + 8 * place);
            let element: [u32; 2] = self.memory.bytes().read_obj(at).unwrap();
            back.push((u32::from_le(element[0]), u32::from_le(element[1])));
            self.halves[ring].got_back = self.halves[ring].got_back.wrapping_add(1);
        }
        back
    }

    /// Sends a frame in pieces of so many bytes.
    pub(super) fn send(&mut self, frame: &FrameBuf, piece: usize) {
        let bytes = [&frame.offload.encode()[..], &frame.bytes].concat();
        self.write(SENDS_AT, &bytes);
        let pieces = bytes.len().div_ceil(piece);
        for number in 0..pieces {
            let len = piece.min(bytes.len() - number * piece);
            let at = SENDS_AT + u64::try_from(number * piece).unwrap();
            let last = number + 1 == pieces;
            let n = u16::try_from(number).unwrap();
            let flags = if last { 0 } else { VRING_DESC_F_NEXT };
            self.describe(FROM_GUEST, n, at, u32::try_from(len).unwrap(), flags, n + 1);
        }
        self.offer(FROM_GUEST, 0);
        self.kick(FROM_GUEST);
    }

    /// Offers so many buffers for frames.
    pub(super) fn lay_out(&mut self, count: u16, len: u32) {
        self.laid = len.into();
        for n in 0..count {
            let at = GETS_AT + self.laid * u64::from(n);
            self.describe(TO_GUEST, n, at, len, VRING_DESC_F_WRITE, 0);
            self.offer(TO_GUEST, n);
        }
    }

    pub(super) fn offer_again(&mut self, n: u16) {
        self.offer(TO_GUEST, n);
    }

    /// Of how many buffers the next frame is said to be.
    pub(super) fn merged(&self) -> u16 {
        let place = u64::from(self.halves[TO_GUEST].got_back % ENTRIES);
        let at = GuestAddress(descriptors(TO_GUEST) + USED_AFTER + 4 + 8 * place);
        let head: u32 = self.memory.bytes().read_obj(at).unwrap();
        let at = GuestAddress(GETS_AT + self.laid * u64::from(head) + 10);
        u16::from_le(self.memory.bytes().read_obj(at).unwrap())
    }

    /// How many chains it has got back, whatever is in them.
    pub(super) fn collect_nothing(&mut self) -> usize {
        self.back(TO_GUEST).len()
    }

    /// The frames that it has got, put together from their buffers.
    pub(super) fn collect(&mut self) -> Vec<FrameBuf> {
        let mut back = VecDeque::from(self.back(TO_GUEST));
        let mut frames = Vec::new();
        while !back.is_empty() {
            let mut bytes = Vec::new();
            let mut left = 1;
            while left > 0 {
                let (head, len) = back.pop_front().expect("all buffers of a frame at once");
                let mut part = vec![0; usize::try_from(len).unwrap()];
                let at = GuestAddress(GETS_AT + self.laid * u64::from(head));
                self.memory.bytes().read_slice(&mut part, at).unwrap();
                if bytes.is_empty() {
                    left = u16::from_le_bytes(part[10..12].try_into().unwrap());
                }
                left -= 1;
                bytes.extend(part);
            }
            bytes[10..12].fill(0);
            let (header, bytes) = bytes.split_first_chunk().unwrap();
            let offload = Offload::parse(header, bytes).unwrap();
            frames.push(FrameBuf { bytes: bytes.to_vec(), offload });
        }
        frames
    }
}

/// Rings lie in the lower half of the memory: descriptors, chains offered, chains given back.
pub(super) const fn descriptors(ring: usize) -> u64 {
    if ring == TO_GUEST { 0x1000 } else { 0x1_1000 }
}

pub(super) const AVAILABLE_AFTER: u64 = 0x1000;
pub(super) const USED_AFTER: u64 = 0x2000;

fn map(files: &[File; 2]) -> GuestMemory {
    let regions = files.iter().zip([0, HALF]).map(|(file, guest)| {
        let file = file.try_clone().unwrap();
        Region { guest, user: guest, len: HALF, offset: 0, file }
    });
    GuestMemory::map(regions.collect()).unwrap()
}

/// A UDP frame, its checksum left to do; to be cut into datagrams of `size` bytes if given.
pub(super) fn datagram(payload: usize, size: Option<u16>) -> FrameBuf {
    let (from, to): (SocketAddr, SocketAddr) =
        ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    let mut bytes = Vec::new();
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let payload: Vec<u8> = (0..=250).cycle().take(payload).collect();
    let mut offload = build::udp_frame(&mut bytes, mac, mac, from, to, 64, &payload);
    let header_len = u16::try_from(bytes.len() - payload.len()).unwrap();
    offload.gso = size.map(|size| Gso { kind: GsoKind::Udp, size, header_len, ecn: false });
    FrameBuf { bytes, offload }
}
