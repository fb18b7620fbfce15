//! TAP and TUN devices with virtio-net headers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::call;

/// The device that TAPs are made with.
pub const DEVICE: &str = "/dev/net/tun";

/// Length of the header before each frame, bytes (`struct virtio_net_hdr_mrg_rxbuf`).
pub const HEADER_LEN: libc::c_int = 12;

/// A TAP device of the network namespace it was made in; it goes when its last descriptor closes.
#[derive(Debug)]
pub struct Tap {
    /// Non-blocking; one frame with its header for each read and write.
    pub fd: OwnedFd,
    /// What the instance's kernel may leave undone in frames that it sends us.
    pub offloads: Offloads,
}

/// The work that a kernel leaves to the other end of a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Checksums, and with them TCP segmentation for IPv4 and IPv6 and with ECN.
    pub tcp: bool,
    /// UDP segmentation (Linux 6.2 and later).
    pub udp: bool,
}

impl Tap {
    /// Makes the TAP `name` in the calling thread's network namespace, with 12-byte
    /// little-endian headers and as much offload as the kernel takes. One that is there already, a
    /// persistent one, is somebody else's.
    ///
    /// # Errors
    /// Opening [`DEVICE`]: `NotFound`, `PermissionDenied`; making the device: `EPERM` (the
    /// network namespace is not ours), `EBUSY` (the name is in use).
    pub fn create(name: &str) -> io::Result<Self> {
        Self::set_up(Device::create(name, Layer::Frames, true)?.fd)
    }

    /// The same for a device of either kind, which may be there already.
    ///
    /// # Errors
    /// As [`Tap::create`]; `EINVAL`: there is a device of another kind with that name.
    pub fn attach(name: &str, layer: Layer) -> io::Result<Self> {
        Self::set_up(Device::attach(name, layer, true)?.fd)
    }

    /// Takes over a descriptor that somebody else has attached, with `IFF_NO_PI` and `IFF_VNET_HDR`:
    /// see [`Device::flags`].
    ///
    /// # Errors
    /// What the kernel said.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        call::set_nonblocking(fd.as_fd(), true)?;
        Self::set_up(fd)
    }

    fn set_up(fd: OwnedFd) -> io::Result<Self> {
        set_header(&fd)?;
        let offloads = offer(&fd);
        Ok(Self { fd, offloads })
    }
}

/// How a descriptor of a TAP or TUN device was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// What it carries.
    pub layer: Layer,
    /// A virtio-net header stands before each frame or packet (`IFF_VNET_HDR`).
    pub headers: bool,
    /// Four bytes of other information do (no `IFF_NO_PI`).
    pub information: bool,
}

/// A TUN device of the network namespace it was made in; it goes when its last descriptor closes.
#[derive(Debug)]
pub struct Tun {
    /// Non-blocking; one packet with its header for each read and write.
    pub fd: OwnedFd,
    /// Its name.
    pub name: String,
    /// What this kernel may leave undone in packets that it hands over. Whatever it says, it takes packets
    /// that others have left undone.
    pub offloads: Offloads,
}

impl Tun {
    /// Makes the TUN `name` in the calling thread's network namespace, with headers as a [`Tap`] has.
    /// With `%d` in the name the kernel puts the first free number there. With `offload` it may leave
    /// work undone that this kernel knows; else it hands over whole packets.
    ///
    /// # Errors
    /// As [`Device::create`].
    pub fn create(name: &str, offload: bool) -> io::Result<Self> {
        let device = Device::create(name, Layer::Packets, true)?;
        let name = device.name()?;
        set_header(&device.fd)?;
        let offloads = if offload { offer(&device.fd) } else { Offloads::default() };
        Ok(Self { fd: device.fd, name, offloads })
    }
}

/// What a [`Device`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet frames: a TAP.
    Frames,
    /// IP packets: a TUN.
    Packets,
}

impl Layer {
    const fn flag(self) -> libc::c_int {
        match self {
            Self::Frames => libc::IFF_TAP,
            Self::Packets => libc::IFF_TUN,
        }
    }
}

/// A TAP or TUN device that somebody else will use: it stays as the kernel makes it.
#[derive(Debug)]
pub struct Device {
    /// Non-blocking; one frame or packet for each read and write.
    pub fd: OwnedFd,
}

impl Device {
    /// Makes the device `name` in the calling thread's network namespace, or attaches to a
    /// persistent one of that kind. It goes when its last descriptor closes, unless it is
    /// persistent. With `headers` each frame has a virtio-net header before it.
    ///
    /// # Errors
    /// As [`Tap::create`]; `EINVAL`: there is a device of another kind with that name.
    pub fn attach(name: &str, layer: Layer, headers: bool) -> io::Result<Self> {
        let flags = layer.flag() | if headers { libc::IFF_VNET_HDR } else { 0 };
        Self::open(name, flags)
    }

    /// The same, but a device of that name is never attached to.
    ///
    /// # Errors
    /// As [`Tap::create`]; `EBUSY`: there is a link of that name, of whatever kind.
    pub fn create(name: &str, layer: Layer, headers: bool) -> io::Result<Self> {
        let flags = layer.flag() | if headers { libc::IFF_VNET_HDR } else { 0 };
        Self::open(name, flags | libc::IFF_TUN_EXCL)
    }

    fn open(name: &str, flags: libc::c_int) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(DEVICE)?;
        let fd = OwnedFd::from(file);
        let mut request = call::interface_request(name)?;
        // The flags are 16 bits, of which the highest is one, too.
        let flags =
            u16::try_from(flags | libc::IFF_NO_PI).map_err(|_| io::ErrorKind::InvalidInput)?;
        request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(flags.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
        call::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(Self { fd })
    }

    /// Its name, which it may have got since it was made.
    ///
    /// # Errors
    /// `EBADFD`: the descriptor is not attached to a device; `ENOTTY`: it is something else.
    pub fn name(&self) -> io::Result<String> {
        let request = self.request()?;
        let name = request.ifr_name.iter().take_while(|letter| **letter != 0);
        let bytes: Vec<u8> = name.flat_map(|letter| letter.to_ne_bytes()).collect();
        String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// How it was attached.
    ///
    /// # Errors
    /// As [`Device::name`].
    pub fn flags(&self) -> io::Result<Flags> {
        let request = self.request()?;
        // SAFETY: TUNGETIFF has filled in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let has = |flag: libc::c_int| libc::c_int::from(flags) & flag != 0;
        let layer = if has(libc::IFF_TUN) { Layer::Packets } else { Layer::Frames };
        let (headers, information) = (has(libc::IFF_VNET_HDR), !has(libc::IFF_NO_PI));
        Ok(Flags { layer, headers, information })
    }

    fn request(&self) -> io::Result<libc::ifreq> {
        // SAFETY: ifreq holds integers, arrays and unions of them; all zeros is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let fd = self.fd.as_raw_fd();
        // SAFETY: TUNGETIFF writes one ifreq, which outlives the call.
        call::check(unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) })?;
        Ok(request)
    }

    /// Makes the kernel hand over whole frames with their checksums, whatever it was offered before.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn take_no_offloads(&self) -> io::Result<()> {
        set_offload(&self.fd, 0)
    }

    /// Says whether the device stays when its last descriptor closes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        let value = libc::c_ulong::from(persistent);
        // SAFETY: TUNSETPERSIST takes its argument by value.
        call::check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETPERSIST, value) })
            .map(drop)
    }

    /// Lets the user with this id attach to the device without privilege.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_owner(&self, user: u32) -> io::Result<()> {
        let value = libc::c_ulong::from(user);
        // SAFETY: TUNSETOWNER takes its argument by value.
        call::check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOWNER, value) }).map(drop)
    }
}

impl From<OwnedFd> for Device {
    /// Adopts a descriptor that somebody else has attached.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

/// Headers of [`HEADER_LEN`], little endian.
fn set_header(fd: &OwnedFd) -> io::Result<()> {
    set_number(fd, libc::TUNSETVNETHDRSZ, HEADER_LEN)?;
    set_number(fd, libc::TUNSETVNETLE, 1)
}

/// Offers to take over work; the kernel refuses what it does not know.
fn offer(fd: &OwnedFd) -> Offloads {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    if set_offload(fd, tcp).is_err() {
        return Offloads::default();
    }
    let udp = set_offload(fd, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_ok();
    Offloads { tcp: true, udp }
}

fn set_offload(fd: &OwnedFd, flags: libc::c_uint) -> io::Result<()> {
    let flags = libc::c_ulong::from(flags);
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    call::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, flags) }).map(drop)
}

fn set_number(fd: &OwnedFd, request: libc::Ioctl, mut value: libc::c_int) -> io::Result<()> {
    // SAFETY: the request reads one int, which outlives the call.
    call::check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) }).map(drop)
}
