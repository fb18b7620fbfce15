//! The shared object behind its C interface, and a peer that speaks to what it runs.

use std::cell::Cell;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use libc::{c_int, c_short, sockaddr, sockaddr_in, socklen_t};
use netyard_drill::{Interface, packetdrill_interface_init};
use netyard_wire::build::{self, TcpFrame};
use netyard_wire::ethernet::{self, HEADER_LEN};
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Features, Frame, MacAddr, Offload, SeqNumber, fit};

pub(crate) const LOCAL: SocketAddr = address([192, 168, 7, 7], 8080);
pub(crate) const REMOTE: SocketAddr = address([192, 0, 2, 1], 40_000);

const NONE: MacAddr = MacAddr([0; 6]);
const ADDRESS_LEN: socklen_t = size_of::<sockaddr_in>() as socklen_t;

const fn address([a, b, c, d]: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))
}

/// A loaded object with a stack of its own. Calls end with an error number if they fail.
pub(crate) struct Object(Interface);

// SAFETY: packetdrill calls the table from two threads, so its pointer may be used from any.
unsafe impl Sync for Object {}

impl Object {
    /// Loads the object that lies where cargo puts it, beside this program.
    pub(crate) fn load(flags: &str) -> Self {
        let folder: PathBuf = env::current_exe().unwrap().parent().unwrap().into();
        let file = folder.join("libnetyard_drill.so");
        let name = CString::new(file.to_str().unwrap()).unwrap();
        // SAFETY: it is a string, and what the object runs when it is loaded is Rust's own.
        let object = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!object.is_null(), "{}: not to be loaded", file.display());
        // SAFETY: the object is never unloaded, and the name is a string.
        let init = unsafe { libc::dlsym(object, c"packetdrill_interface_init".as_ptr()) };
        assert!(!init.is_null(), "{}: no such function", file.display());
        let mut init_type = packetdrill_interface_init as unsafe extern "C" fn(_, _);
        // SAFETY: the object was built of the crate that has this function.
        unsafe { ptr::from_mut(&mut init_type).cast::<*mut libc::c_void>().write(init) };
        let flags = CString::new(flags).unwrap();
        let mut table = MaybeUninit::uninit();
        // SAFETY: the flags are a string, and there is room for a table.
        unsafe { init_type(flags.as_ptr(), table.as_mut_ptr()) };
        // SAFETY: it has filled in the table.
        Self(unsafe { table.assume_init() })
    }

    pub(crate) fn socket(&self, kind: c_int) -> Result<c_int, c_int> {
        // SAFETY: the table's own pointer.
        check(unsafe { (self.0.socket)(self.0.userdata, libc::AF_INET, kind, 0) })
    }

    pub(crate) fn bind(&self, fd: c_int, local: SocketAddr) -> Result<(), c_int> {
        let (address, len) = raw(local);
        // SAFETY: an address with its length.
        done(unsafe { (self.0.bind)(self.0.userdata, fd, (&raw const address).cast(), len) })
    }

    pub(crate) fn listen(&self, fd: c_int, backlog: c_int) -> Result<(), c_int> {
        // SAFETY: the table's own pointer.
        done(unsafe { (self.0.listen)(self.0.userdata, fd, backlog) })
    }

    pub(crate) fn accept(&self, fd: c_int) -> Result<(c_int, SocketAddr), c_int> {
        let (mut address, mut len) = raw(REMOTE);
        let to = (&raw mut address).cast::<sockaddr>();
        // SAFETY: room for an address, and its length.
        let accepted = check(unsafe { (self.0.accept)(self.0.userdata, fd, to, &raw mut len) })?;
        assert_eq!(len, ADDRESS_LEN);
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        Ok((accepted, SocketAddr::new(ip.into(), u16::from_be(address.sin_port))))
    }

    pub(crate) fn connect(&self, fd: c_int, remote: SocketAddr) -> Result<(), c_int> {
        let (address, len) = raw(remote);
        // SAFETY: an address with its length.
        done(unsafe { (self.0.connect)(self.0.userdata, fd, (&raw const address).cast(), len) })
    }

    pub(crate) fn read(&self, fd: c_int, len: usize) -> Result<Vec<u8>, c_int> {
        let mut bytes = vec![0; len];
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: there is room for so many bytes.
        let count = check(unsafe { (self.0.read)(self.0.userdata, fd, to, len) })?;
        bytes.truncate(count.try_into().unwrap());
        Ok(bytes)
    }

    pub(crate) fn read_into_null(&self, fd: c_int) -> Result<isize, c_int> {
        // SAFETY: null is to be refused.
        check(unsafe { (self.0.read)(self.0.userdata, fd, ptr::null_mut(), 1) })
    }

    pub(crate) fn write(&self, fd: c_int, bytes: &[u8]) -> Result<isize, c_int> {
        let from = bytes.as_ptr().cast();
        // SAFETY: so many bytes are there.
        check(unsafe { (self.0.write)(self.0.userdata, fd, from, bytes.len()) })
    }

    pub(crate) fn send_to(&self, fd: c_int, bytes: &[u8], to: SocketAddr) -> Result<isize, c_int> {
        let (address, len) = raw(to);
        let (from, to) = (bytes.as_ptr().cast(), (&raw const address).cast());
        let user = self.0.userdata;
        // SAFETY: so many bytes are there, and an address with its length.
        check(unsafe { (self.0.sendto)(user, fd, from, bytes.len(), 0, to, len) })
    }

    pub(crate) fn close(&self, fd: c_int) -> Result<(), c_int> {
        // SAFETY: the descriptor is one of the object's, or refused.
        done(unsafe { (self.0.close)(self.0.userdata, fd) })
    }

    /// Bytes that wait to be read.
    pub(crate) fn queued(&self, fd: c_int) -> c_int {
        let mut count = -1;
        // SAFETY: this request tells a number, for which there is room.
        let result = unsafe { (self.0.ioctl)(self.0.userdata, fd, libc::FIONREAD, &raw mut count) };
        assert_eq!(result, 0);
        count
    }

    /// `SO_ERROR`.
    pub(crate) fn error(&self, fd: c_int) -> c_int {
        let mut error: c_int = -1;
        let mut len: socklen_t = 4;
        let (level, name) = (libc::SOL_SOCKET, libc::SO_ERROR);
        let to = (&raw mut error).cast();
        // SAFETY: there is room for the number, and its length.
        let result =
            unsafe { (self.0.getsockopt)(self.0.userdata, fd, level, name, to, &raw mut len) };
        assert_eq!((result, len), (0, 4));
        error
    }

    /// What `poll` tells of one socket, after at most so many milliseconds.
    pub(crate) fn poll(&self, fd: c_int, events: c_short, timeout: c_int) -> c_short {
        let mut polled = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: there is one of them.
        let found = unsafe { (self.0.poll)(self.0.userdata, &raw mut polled, 1, timeout) };
        assert_eq!(found, c_int::from(polled.revents != 0));
        polled.revents
    }

    /// The time, microseconds.
    pub(crate) fn time(&self) -> i64 {
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
        // SAFETY: there is room for a time.
        unsafe { (self.0.gettimeofday)(self.0.userdata, &raw mut time, ptr::null_mut()) };
        time.tv_sec * 1_000_000 + time.tv_usec
    }

    pub(crate) fn sleep(&self, microseconds: u32) {
        // SAFETY: the table's own pointer.
        unsafe { (self.0.usleep)(self.0.userdata, microseconds) };
    }

    /// A packet of a peer, from its Ethernet header on, with what is to be done for it.
    fn send(&self, frame: &[u8], offload: Offload) {
        let mut emit = |frame: Frame<'_>| {
            let packet = &frame.bytes[HEADER_LEN..];
            let from = packet.as_ptr().cast();
            // SAFETY: so many bytes are there.
            let result = unsafe { (self.0.netdev_send)(self.0.userdata, from, packet.len()) };
            assert_eq!(result, 0);
        };
        fit(Frame { bytes: frame, offload }, Features::NONE, &mut Vec::new(), &mut emit).unwrap();
    }

    /// The next packet of the stack, and when it was sent; `None`: there is none, ever.
    pub(crate) fn receive(&self) -> Option<(i64, Vec<u8>)> {
        let mut bytes = vec![0; 65_536];
        let (mut len, mut at) = (bytes.len(), 0);
        let to = bytes.as_mut_ptr().cast();
        let result =
            // SAFETY: there is room for so many bytes, their number and a time.
            unsafe { (self.0.netdev_receive)(self.0.userdata, to, &raw mut len, &raw mut at) };
        assert_eq!(result, 0);
        bytes.truncate(len);
        (len > 0).then_some((at, bytes))
    }

    pub(crate) fn receive_datagram(&self) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let (_, bytes) = self.receive().expect("a datagram");
        let packet = IpPacket::parse(ethernet::IPV4, &bytes).unwrap();
        let datagram = Datagram::parse(&packet, Checksum::Present).unwrap();
        (
            SocketAddr::new(packet.source, datagram.source_port),
            SocketAddr::new(packet.destination, datagram.destination_port),
            datagram.payload.to_vec(),
        )
    }

    pub(crate) fn send_datagram(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let mut frame = Vec::new();
        let offload = build::udp_frame(&mut frame, NONE, NONE, from, to, 64, payload);
        self.send(&frame, offload);
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: nobody uses the table after this.
        unsafe { (self.0.free)(self.0.userdata) };
    }
}

/// A segment of the stack.
pub(crate) struct Sent {
    pub(crate) at: i64,
    pub(crate) flags: Flags,
    pub(crate) seq: u32,
    pub(crate) payload: Vec<u8>,
}

/// The other end of a connection, at [`REMOTE`]: it numbers and acknowledges by itself.
pub(crate) struct Connection {
    local: Cell<SocketAddr>,
    seq: u32,
    ack: u32,
}

impl Connection {
    pub(crate) fn new() -> Self {
        Self { local: Cell::new(LOCAL), seq: 1000, ack: 0 }
    }

    pub(crate) fn send(&mut self, object: &Object, flags: Flags, payload: &[u8]) {
        let acknowledges = flags.contains(Flags::ACK);
        let header = TcpFrame {
            source_mac: NONE,
            destination_mac: NONE,
            source: REMOTE,
            destination: self.local.get(),
            seq: SeqNumber(self.seq),
            ack: SeqNumber(if acknowledges { self.ack } else { 0 }),
            flags,
            window: 60_000,
            options: TcpOptions {
                mss: flags.contains(Flags::SYN).then_some(1460),
                ..TcpOptions::default()
            },
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        let mut frame = vec![0; header.header_len()];
        frame.extend_from_slice(payload);
        let offload = header.emit(&mut frame, u16::MAX);
        object.send(&frame, offload);
        self.seq += length(flags, payload);
    }

    pub(crate) fn receive(&mut self, object: &Object) -> Sent {
        let (at, bytes) = object.receive().expect("a segment");
        let packet = IpPacket::parse(ethernet::IPV4, &bytes).unwrap();
        let segment = Segment::parse(&packet, Checksum::Present).unwrap();
        self.local.set(SocketAddr::new(packet.source, segment.source_port));
        self.ack = segment.seq.0.wrapping_add(length(segment.flags, segment.payload));
        let (flags, payload) = (segment.flags, segment.payload.to_vec());
        Sent { at, flags, seq: segment.seq.0, payload }
    }
}

/// How many sequence numbers a segment takes.
fn length(flags: Flags, payload: &[u8]) -> u32 {
    let control = [Flags::SYN, Flags::FIN].iter().filter(|flag| flags.contains(**flag)).count();
    u32::try_from(payload.len() + control).unwrap()
}

/// Waits until the thread whose number is stored there sleeps.
pub(crate) fn await_sleep(thread: &AtomicI32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let file = format!("/proc/self/task/{}/stat", thread.load(Ordering::Acquire));
        let stat = fs::read_to_string(file).unwrap_or_default();
        // The state is the word behind the name, which is in brackets.
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S')) {
            return;
        }
        assert!(Instant::now() < deadline, "the thread does not sleep: {stat}");
        thread::yield_now();
    }
}

fn raw(address: SocketAddr) -> (sockaddr_in, socklen_t) {
    let SocketAddr::V4(address) = address else { panic!("IPv4 only") };
    let raw = sockaddr_in {
        sin_family: libc::AF_INET as _,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    (raw, ADDRESS_LEN)
}

fn check<T: PartialEq + From<i8>>(result: T) -> Result<T, c_int> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        Ok(result)
    }
}

fn done(result: c_int) -> Result<(), c_int> {
    check(result).map(|_| ())
}
