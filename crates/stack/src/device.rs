//! Device edges: where frames come from and go to.
//!
//! All of them carry super-frames with a virtio-net header where the other side can; what it cannot
//! take is cut and completed here, by [`netyard_wire::fit`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use netyard_sys::framed::Framed;
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::socket_path::SocketPath;
use netyard_sys::tap::{self, Layer, Tap};
use netyard_sys::{interface, process};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::{
    Features, Frame, FrameBuf, MAX_FRAME_LEN, MacAddr, Offload, OffloadError, VNET_HEADER_LEN, fit,
};

/// Segments of one super-frame that wait for room; while there are any, no other frame is sent.
const MAX_WAITING: usize = 64 * 1024;

/// One device of a stack.
#[derive(Debug)]
pub struct Device {
    kind: Kind,
    /// What the other side may be left to do, and what we take over from it.
    features: Features,
    takes: Features,
    /// Segments that the device had no room for.
    waiting: VecDeque<FrameBuf>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
enum Kind {
    /// A TAP or TUN device; with virtio-net headers or without.
    Tun { file: File, layer: Layer, headers: bool },
    /// A frame socket: what each side takes, then a header and a frame in each message.
    Socket { socket: SeqPacket, greeted: bool },
    /// A stream of whole frames, each with its length before it, as QEMU's `-netdev stream` has it.
    Stream { stream: Framed, path: Option<PathBuf> },
}

/// What a device brought.
#[derive(Debug)]
pub enum Received<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// Something that is no frame, for this reason: it is to be counted.
    Malformed(&'static str),
    /// Something that concerns the device alone.
    Taken,
    /// Nothing at the moment.
    Nothing,
}

impl Device {
    /// Opens the TAP (or TUN) device of this name, which is made if it is not there.
    ///
    /// # Errors
    /// `PermissionDenied`: the device is another user's, or making it takes `CAP_NET_ADMIN`; `NotFound`:
    /// no `/dev/net/tun`; `EBUSY`: somebody else has it open; `EINVAL`: it is of the other kind.
    pub fn open(name: &str, layer: Layer) -> io::Result<Self> {
        Tap::attach(name, layer).map(|tap| Self::tun(tap, layer))
    }

    /// Connects to the Unix socket of this path, behind which a network takes frames as QEMU's
    /// `-netdev stream` sends them: each with its length before it, 4 bytes in network order.
    ///
    /// # Errors
    /// `NotFound`: there is none; `ConnectionRefused`: nobody listens; `PermissionDenied`: it is another
    /// user's.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(SocketPath::new(path)?)?;
        Self::stream(stream.into(), Some(path.to_owned()))
    }

    /// Connects again, if it is a socket by its path, whose other end is gone.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Unsupported`: there is no path.
    pub fn reconnect(&mut self) -> io::Result<()> {
        let Kind::Stream { path: Some(path), .. } = &self.kind else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        *self = Self::connect(path)?;
        Ok(())
    }

    /// Whether it can be lost and [`reconnect`](Self::reconnect).
    #[must_use]
    pub fn reconnects(&self) -> bool {
        matches!(self.kind, Kind::Stream { path: Some(_), .. })
    }

    /// Takes over the descriptor of this number, which whoever started this program has opened: see
    /// [`adopt`](Self::adopt).
    ///
    /// # Errors
    /// `EBADF`: there is none; `InvalidInput`: it is something else.
    pub fn inherited(number: i32) -> io::Result<Self> {
        Self::adopt(process::inherited(number)?)
    }

    /// Takes over a descriptor: a TAP or TUN device, a frame socket (of type `SOCK_SEQPACKET`), or a stream
    /// socket with frames as [`connect`](Self::connect) says.
    ///
    /// # Errors
    /// `InvalidInput`: it is something else, or a TAP with packet information before each frame.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let device = tap::Device::from(fd);
        let Ok(flags) = device.flags() else {
            if let Ok(socket) = device.fd.try_clone().and_then(SeqPacket::adopt) {
                return Self::socket(socket);
            }
            return Self::stream(device.fd, None).map_err(|_| {
                invalid("neither a TAP or TUN device nor a socket that carries frames")
            });
        };
        if flags.information {
            return Err(invalid("the device has packet information: attach it with IFF_NO_PI"));
        }
        if flags.headers {
            return Tap::adopt(device.fd).map(|tap| Self::tun(tap, flags.layer));
        }
        netyard_sys::poll::set_nonblocking(device.fd.as_fd())?;
        let kind = Kind::Tun { file: File::from(device.fd), layer: flags.layer, headers: false };
        Ok(Self::new(kind, Features::NONE))
    }

    /// Neither side leaves work to the other: all frames are whole, with their checksums.
    ///
    /// # Errors
    /// What the kernel says; the other end is gone.
    pub fn without_offloads(mut self) -> io::Result<Self> {
        (self.features, self.takes) = (Features::NONE, Features::NONE);
        match &self.kind {
            Kind::Tun { file, .. } => {
                let fd = file.as_fd().try_clone_to_owned()?;
                tap::Device::from(fd).take_no_offloads()?;
            }
            Kind::Socket { socket, .. } => greet(socket, self.takes)?,
            Kind::Stream { .. } => {}
        }
        Ok(self)
    }

    /// What the other side does of what this one leaves undone, by its names; none where all is whole.
    #[must_use]
    pub fn offloads(&self) -> Vec<&'static str> {
        let names = [
            (Features::CSUM, "csum"),
            (Features::TSO4, "tso4"),
            (Features::TSO6, "tso6"),
            (Features::ECN, "ecn"),
            (Features::USO, "uso"),
        ];
        names
            .into_iter()
            .filter(|(one, _)| self.features.contains(*one))
            .map(|(_, name)| name)
            .collect()
    }

    /// Two devices in this process: what one sends, the other receives.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = SeqPacket::pair()?;
        Ok((Self::socket(one)?, Self::socket(other)?))
    }

    /// A frame socket.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn socket(socket: SeqPacket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        greet(&socket, Features::ALL)?;
        Ok(Self::new(Kind::Socket { socket, greeted: false }, Features::NONE))
    }

    fn stream(fd: OwnedFd, path: Option<PathBuf>) -> io::Result<Self> {
        let stream = Framed::adopt(fd, MAX_FRAME_LEN)?;
        Ok(Self::new(Kind::Stream { stream, path }, Features::NONE))
    }

    fn tun(tap: Tap, layer: Layer) -> Self {
        // A kernel takes from a TAP whatever a virtio-net header can say (but UDP to be cut, before
        // Linux 6.2).
        let features = Features::CSUM | Features::TSO4 | Features::TSO6 | Features::ECN;
        let features = if tap.offloads.udp { features | Features::USO } else { features };
        let kind = Kind::Tun { file: File::from(tap.fd), layer, headers: true };
        Self::new(kind, features)
    }

    fn new(kind: Kind, features: Features) -> Self {
        Self { kind, features, takes: Features::ALL, waiting: VecDeque::new(), scratch: Vec::new() }
    }

    /// What it carries.
    #[must_use]
    pub fn layer(&self) -> Layer {
        match &self.kind {
            Kind::Tun { layer, .. } => *layer,
            Kind::Socket { .. } | Kind::Stream { .. } => Layer::Frames,
        }
    }

    /// The name of the TAP or TUN device; `None` for sockets.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match &self.kind {
            Kind::Tun { file, .. } => {
                let fd = file.as_fd().try_clone_to_owned().ok()?;
                tap::Device::from(fd).name().ok()
            }
            Kind::Socket { .. } | Kind::Stream { .. } => None,
        }
    }

    /// The largest packet of the device of this name, bytes.
    ///
    /// # Errors
    /// There is none.
    pub fn mtu(name: &str) -> io::Result<u32> {
        interface::mtu(name)
    }

    /// Takes the next frame, in `buffer`, which holds [`BUFFER_LEN`] bytes.
    ///
    /// # Errors
    /// The device is gone, or its other end is (`UnexpectedEof`).
    pub fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
        let received = match &mut self.kind {
            Kind::Tun { file, layer, headers } => receive_tun(file, *layer, *headers, buffer),
            Kind::Socket { socket, greeted } => {
                receive_socket(socket, greeted, (&mut self.features, self.takes), buffer)
            }
            Kind::Stream { stream, .. } => receive_stream(stream, buffer),
        };
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Taken),
            received => received,
        }
    }

    /// Sends a frame, cut and completed as far as the other side needs it. False: there was no room
    /// for a part of it, which waits for [`Device::flush`]; nothing else is to be sent before.
    ///
    /// # Errors
    /// The device is gone.
    pub fn send(&mut self, frame: Frame<'_>) -> io::Result<bool> {
        let mut failed = None;
        let (kind, waiting) = (&mut self.kind, &mut self.waiting);
        let cut = fit(frame, self.features, &mut self.scratch, &mut |part| {
            if waiting.is_empty() && failed.is_none() {
                match kind.write(part) {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => failed = Some(error),
                }
            }
            if waiting.len() < MAX_WAITING {
                waiting.push_back(part.into());
            }
        });
        cut.map_err(io::Error::other)?;
        match failed {
            Some(error) => Err(error),
            None => Ok(self.waiting.is_empty()),
        }
    }

    /// Sends what waits; true if nothing does any more. To be called after the last [`send`](Self::send) of a
    /// turn, too: a stream gathers frames.
    ///
    /// # Errors
    /// The device is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(frame) = self.waiting.front() {
            if !self.kind.write(frame.as_frame())? {
                return Ok(false);
            }
            self.waiting.pop_front();
        }
        match &mut self.kind {
            Kind::Stream { stream, .. } => stream.flush(),
            Kind::Tun { .. } | Kind::Socket { .. } => Ok(true),
        }
    }
}

/// Room for one frame with everything that may stand before it, bytes.
pub const BUFFER_LEN: usize = VNET_HEADER_LEN + MAX_FRAME_LEN;

impl Kind {
    /// False if there is no room.
    fn write(&mut self, frame: Frame<'_>) -> io::Result<bool> {
        let written = match self {
            Self::Tun { file, layer: Layer::Frames, headers: true } => {
                let header = frame.offload.encode();
                file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame.bytes)])
            }
            Self::Tun { file, layer: Layer::Packets, headers: true } => {
                let header = move_offsets(frame.offload.encode(), false);
                let packet = frame.bytes.get(ethernet::HEADER_LEN..).unwrap_or_default();
                file.write_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
            }
            Self::Tun { file, layer, headers: false } => {
                let skip = if *layer == Layer::Packets { ethernet::HEADER_LEN } else { 0 };
                file.write(frame.bytes.get(skip..).unwrap_or_default())
            }
            Self::Socket { socket, .. } => {
                let header = frame.offload.encode();
                let mut parts = [IoSlice::new(&header), IoSlice::new(frame.bytes)];
                socket.send_parts(&mut parts).map(|()| frame.bytes.len())
            }
            Self::Stream { stream, .. } => stream.write(frame.bytes).map(|()| frame.bytes.len()),
        };
        match written {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            // A frame that the device will not have is lost, as on any wire; so is one to a device that is down.
            Err(error) if is_refusal(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// `EINVAL`, `EIO` (the interface is down), `ENOBUFS`, `ENOMEM`.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(22 | 5 | 105 | 12))
}

fn receive_tun<'a>(
    file: &mut File,
    layer: Layer,
    headers: bool,
    buffer: &'a mut [u8],
) -> io::Result<Received<'a>> {
    let before = if layer == Layer::Packets { ethernet::HEADER_LEN } else { 0 };
    let mut header = [0; VNET_HEADER_LEN];
    let room = buffer.get_mut(before..).unwrap_or_default();
    let len = if headers {
        let read =
            file.read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(room)])?;
        read.checked_sub(VNET_HEADER_LEN).ok_or(io::ErrorKind::UnexpectedEof)?
    } else {
        file.read(room)?
    };
    if layer == Layer::Packets {
        // The packet stands where it would behind an Ethernet header, which is put before it.
        let (ethernet, packet) = buffer
            .split_first_chunk_mut::<{ ethernet::HEADER_LEN }>()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let ethertype = match packet.first().map(|first| first >> 4) {
            Some(6) => ethernet::IPV6,
            _ => ethernet::IPV4,
        };
        let none = MacAddr([0; 6]);
        *ethernet = Ethernet { destination: none, source: none, ethertype }.emit();
        header = move_offsets(header, true);
    }
    let bytes = buffer.get(..before + len).unwrap_or_default();
    Ok(parse(&header, bytes))
}

/// Tells the other end of a frame socket what this one takes.
fn greet(socket: &SeqPacket, takes: Features) -> io::Result<()> {
    socket.send(&takes.bits().to_le_bytes(), &[])
}

fn receive_socket<'a>(
    socket: &SeqPacket,
    greeted: &mut bool,
    (features, takes): (&mut Features, Features),
    buffer: &'a mut [u8],
) -> io::Result<Received<'a>> {
    let len = socket.recv_bytes(buffer)?;
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let message = buffer.get(..len).unwrap_or_default();
    if let Ok(word) = message.try_into() {
        *features = Features::from_bits_truncate(u32::from_le_bytes(word) & takes.bits());
        if std::mem::replace(greeted, true) {
            // Somebody else has taken over the other end, and does not know what we take.
            greet(socket, takes)?;
        }
        return Ok(Received::Taken);
    }
    if !*greeted {
        let message = "the other end has not said what it takes";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(match message.split_first_chunk() {
        Some((header, bytes)) => parse(header, bytes),
        None => Received::Malformed("device-truncated"),
    })
}

fn receive_stream<'a>(stream: &mut Framed, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
    let ended =
        || io::Error::new(io::ErrorKind::UnexpectedEof, "the network has closed its socket");
    let len = stream.read(buffer)?.ok_or_else(ended)?;
    let bytes = buffer.get(..len).unwrap_or_default();
    Ok(Received::Frame(Frame { bytes, offload: Offload::default() }))
}

fn parse<'a>(header: &[u8; VNET_HEADER_LEN], bytes: &'a [u8]) -> Received<'a> {
    match Offload::parse(header, bytes) {
        Ok(offload) => Received::Frame(Frame { bytes, offload }),
        Err(error) => Received::Malformed(OffloadError::reason(&error)),
    }
}

/// Moves the offsets of a virtio-net header from a packet to a frame, or back: both count from the
/// first byte of what follows the header. Zero means "none", and stays.
fn move_offsets(header: [u8; VNET_HEADER_LEN], to_frame: bool) -> [u8; VNET_HEADER_LEN] {
    let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = header;
    let by = u16::try_from(ethernet::HEADER_LEN).unwrap_or(0);
    let moved = |field: u16| match field {
        0 => 0,
        field if to_frame => field.saturating_add(by),
        field => field.saturating_sub(by),
    };
    let [h0, h1] = moved(u16::from_le_bytes([h0, h1])).to_le_bytes();
    let [s0, s1] = moved(u16::from_le_bytes([s0, s1])).to_le_bytes();
    [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Tun { file, .. } => file.as_fd(),
            Kind::Socket { socket, .. } => socket.as_fd(),
            Kind::Stream { stream, .. } => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_carries_frames_once_both_have_said_what_they_take() {
        let (mut one, mut other) = Device::pair().unwrap();
        let mut buffer = vec![0; BUFFER_LEN];
        assert!(matches!(one.receive(&mut buffer).unwrap(), Received::Taken));
        assert_eq!(one.features, Features::ALL);
        let bytes = vec![7; 60];
        assert!(one.send(Frame { bytes: &bytes, offload: Offload::default() }).unwrap());
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Taken));
        match other.receive(&mut buffer).unwrap() {
            Received::Frame(frame) => assert_eq!(frame.bytes, bytes),
            received => panic!("{received:?}"),
        }
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Nothing));
        drop(one);
        let gone = other.receive(&mut buffer).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn whoever_takes_over_the_other_end_is_greeted() {
        let (near, far) = SeqPacket::pair().unwrap();
        let far = OwnedFd::from(far);
        let taken_over = SeqPacket::adopt(far.try_clone().unwrap()).unwrap();
        let mut one = Device::socket(near).unwrap();
        let mut other = Device::adopt(far).unwrap();
        let mut buffer = vec![0; BUFFER_LEN];
        assert!(matches!(one.receive(&mut buffer).unwrap(), Received::Taken));
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Taken));
        drop(other);
        let mut other = Device::socket(taken_over).unwrap();
        assert!(matches!(one.receive(&mut buffer).unwrap(), Received::Taken));
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Taken));
        assert_eq!(other.features, Features::ALL);
    }

    #[test]
    fn without_offloads_frames_come_whole_and_go_whole() {
        let (one, mut other) = Device::pair().unwrap();
        let mut one = one.without_offloads().unwrap();
        let mut buffer = vec![0; BUFFER_LEN];
        assert!(matches!(one.receive(&mut buffer).unwrap(), Received::Taken));
        // It has said twice what it takes, and the last word counts.
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Taken));
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Taken));
        assert_eq!((one.offloads(), other.offloads()), (vec![], vec![]));
        // The other end asks again what this one takes, and hears the same.
        assert!(matches!(one.receive(&mut buffer).unwrap(), Received::Taken));
        assert!(matches!(other.receive(&mut buffer).unwrap(), Received::Taken));
        assert_eq!((one.features, other.features), (Features::NONE, Features::NONE));
    }

    #[test]
    fn a_full_device_keeps_what_it_has_begun() {
        let (mut one, mut other) = Device::pair().unwrap();
        let mut buffer = vec![0; BUFFER_LEN];
        one.receive(&mut buffer).unwrap();
        let bytes = vec![7; 1500];
        let frame = Frame { bytes: &bytes, offload: Offload::default() };
        let mut sent = 1;
        while one.send(frame).unwrap() {
            sent += 1;
        }
        let mut got = 0;
        loop {
            match other.receive(&mut buffer).unwrap() {
                Received::Frame(_) => got += 1,
                Received::Nothing if one.flush().unwrap() && got == sent => break,
                _ => {}
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_stream_carries_whole_frames_with_their_length_before_them() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut device = Device::adopt(near.into()).unwrap();
        let mut buffer = vec![0; BUFFER_LEN];
        let bytes = vec![7; 60];
        assert!(device.send(Frame { bytes: &bytes, offload: Offload::default() }).unwrap());
        assert!(device.flush().unwrap());
        let mut got = [0; 64];
        far.read_exact(&mut got).unwrap();
        assert_eq!((&got[..4], &got[4..]), (&[0, 0, 0, 60][..], &bytes[..]));
        far.write_all(&got).unwrap();
        match device.receive(&mut buffer).unwrap() {
            Received::Frame(frame) => assert_eq!(frame.bytes, bytes),
            received => panic!("{received:?}"),
        }
        assert!(matches!(device.receive(&mut buffer).unwrap(), Received::Nothing));
        drop(far);
        let gone = device.receive(&mut buffer).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let error = Device::adopt(file.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(Device::inherited(9_999).unwrap_err().raw_os_error(), Some(9));
    }

    #[test]
    fn offsets_count_from_what_follows_the_header() {
        let header = [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 1, 0];
        let packet = move_offsets(header, false);
        assert_eq!(packet, [1, 1, 40, 0, 180, 5, 20, 0, 16, 0, 1, 0]);
        assert_eq!(move_offsets(packet, true), header);
        assert_eq!(move_offsets([0; 12], true), [0; 12]);
    }
}
