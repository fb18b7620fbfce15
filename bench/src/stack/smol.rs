//! The servers on smoltcp, with a device of ours that has the offloads it can use: its own has none.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::time::Duration;

use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::tap::Tap;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::contender::{
    ADDRESS4, ADDRESS6, ANSWERS, DEVICE, MAC, PEER4, PREFIX4, PREFIX6, SINK, SOURCE, answer, ready,
};

/// Bytes of a `struct virtio_net_hdr_mrg_rxbuf`.
const HEADER_LEN: usize = 12;
/// Bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;
const MAX_FRAME_LEN: usize = ETHERNET_LEN + 65_535;
/// Buffers of a bulk connection, bytes: they are given once and for all.
const BULK: usize = 4 << 20;
/// Buffers of a connection with small requests, bytes.
const SMALL: usize = 2048;
/// Sockets that listen at a port: one for each connection that opens at the same time.
const LISTENERS: usize = 128;

/// A TAP with virtio-net headers.
struct Offloading {
    file: File,
    received: Box<[u8]>,
    scratch: Vec<u8>,
}

struct Received<'a>(&'a [u8]);

struct Sending<'a> {
    file: &'a mut File,
    scratch: &'a mut Vec<u8>,
    meta: PacketMeta,
}

impl Device for Offloading {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let Self { file, received, scratch } = self;
        let mut header = [0; HEADER_LEN];
        let parts = &mut [IoSliceMut::new(&mut header), IoSliceMut::new(received)];
        let len = file.read_vectored(parts).ok()?.checked_sub(HEADER_LEN)?;
        let meta = PacketMeta::default();
        Some((Received(received.get(..len)?), Sending { file, scratch, meta }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        let Self { file, scratch, .. } = self;
        Some(Sending { file, scratch, meta: PacketMeta::default() })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1500 + ETHERNET_LEN;
        // What the kernel hands over is right, or was never on a wire.
        capabilities.checksum.tcp = Checksum::None;
        // IPv6 segments of more than the MTU are dropped on their way to the device in 0.14.
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(MAX_FRAME_LEN);
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        if self.scratch.len() < len {
            self.scratch.resize(len, 0);
        }
        let frame = self.scratch.get_mut(..len).unwrap_or_default();
        let result = fill(frame);
        let header = header(frame, self.meta);
        // A device without room drops, as any device.
        let _ = self.file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame)]);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

/// What the kernel is to do with a frame: TCP has the sum of its pseudo-header, and it does the rest.
fn header(frame: &mut [u8], meta: PacketMeta) -> [u8; HEADER_LEN] {
    const NEEDS_CHECKSUM: u8 = 1;
    const TCP: u8 = 6;
    let mut header = [0; HEADER_LEN];
    let Some((ethernet, ip)) = frame.split_first_chunk_mut::<ETHERNET_LEN>() else { return header };
    let (is_tcp, start, addresses, kind) = match ethernet {
        [.., 0x08, 0x00] => (ip.get(9) == Some(&TCP), 20, 12..20, 1),
        [.., 0x86, 0xdd] => (ip.get(6) == Some(&TCP), 40, 8..40, 4),
        _ => return header,
    };
    let payload = u32::try_from(ip.len() - start.min(ip.len())).unwrap_or(0);
    let words = ip.get(addresses).unwrap_or_default().chunks_exact(2);
    let words = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum::<u32>() + payload + u32::from(TCP);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let Some(tcp) = ip.get_mut(start..).filter(|_| is_tcp) else { return header };
    let offset = usize::from(tcp.get(12).copied().unwrap_or(0) >> 4) * 4;
    let Some(checksum) = tcp.get_mut(16..18) else { return header };
    checksum.copy_from_slice(&u16::try_from(sum).unwrap_or(0).to_be_bytes());
    let field = |value: usize| u16::try_from(value).unwrap_or(0).to_le_bytes();
    let [s0, s1] = field(ETHERNET_LEN + start);
    let [h0, h1] = field(ETHERNET_LEN + start + offset);
    let size = meta.segmentation_offload_size.map_or(0, |size| size.get());
    let [g0, g1] = size.to_le_bytes();
    let kind = if size == 0 { 0 } else { kind };
    header = [NEEDS_CHECKSUM, kind, h0, h1, g0, g1, s0, s1, 16, 0, 0, 0];
    header
}

/// The sockets of one port.
struct Port {
    number: u16,
    buffer: usize,
    listening: Vec<SocketHandle>,
    open: Vec<SocketHandle>,
}

impl Port {
    fn fill(&mut self, sockets: &mut SocketSet<'static>) -> io::Result<()> {
        while self.listening.len() < LISTENERS {
            let buffer = || SocketBuffer::new(vec![0; self.buffer]);
            let mut socket = Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            socket.set_congestion_control(CongestionControl::Cubic);
            socket.listen(self.number).map_err(io::Error::other)?;
            self.listening.push(sockets.add(socket));
            if self.buffer == BULK && self.listening.len() == 4 {
                break;
            }
        }
        Ok(())
    }

    /// Serves what is open, and keeps enough sockets listening.
    fn serve(&mut self, sockets: &mut SocketSet<'static>, scratch: &mut [u8]) -> io::Result<()> {
        let open = &mut self.open;
        self.listening.retain(|handle| {
            let listens = sockets.get::<Socket<'_>>(*handle).is_listening();
            if !listens {
                open.push(*handle);
            }
            listens
        });
        let number = self.number;
        self.open.retain(|handle| {
            let socket = sockets.get_mut::<Socket<'_>>(*handle);
            match number {
                SOURCE => {
                    while socket.can_send() && socket.send_slice(scratch).is_ok_and(|sent| sent > 0)
                    {
                    }
                }
                _ => {
                    while socket.can_recv() {
                        let Ok(len) = socket.recv_slice(scratch) else { break };
                        if number == ANSWERS {
                            let request = scratch.get(..len).unwrap_or_default();
                            // Answers are small, and clients wait for them.
                            let _ = socket.send_slice(answer(request));
                        }
                    }
                }
            }
            if !socket.may_recv()
                && socket.is_open()
                && !socket.is_listening()
                && socket.may_send()
                && socket.recv_queue() == 0
                && socket.state() != smoltcp::socket::tcp::State::SynReceived
            {
                socket.close();
            }
            let open = socket.is_open();
            if !open {
                sockets.remove(*handle);
            }
            open
        });
        self.fill(sockets)
    }
}

pub(super) fn serve() -> io::Result<()> {
    let tap = Tap::create(DEVICE)?;
    let received = vec![0; MAX_FRAME_LEN].into_boxed_slice();
    let mut device = Offloading { file: File::from(tap.fd), received, scratch: Vec::new() };
    let mac = HardwareAddress::Ethernet(EthernetAddress(MAC));
    let mut interface = Interface::new(Config::new(mac), &mut device, Instant::now());
    interface.update_ip_addrs(|addresses| {
        for (address, len) in [(IpAddress::from(ADDRESS4), PREFIX4), (ADDRESS6.into(), PREFIX6)] {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(address, len));
        }
    });
    interface.routes_mut().add_default_ipv4_route(PEER4).map_err(io::Error::other)?;
    let mut sockets = SocketSet::new(Vec::new());
    let mut ports = [(SINK, BULK), (SOURCE, BULK), (ANSWERS, SMALL)].map(|(number, buffer)| Port {
        number,
        buffer,
        listening: Vec::new(),
        open: Vec::new(),
    });
    let mut scratch = vec![0; 256 * 1024];
    for port in &mut ports {
        port.fill(&mut sockets)?;
    }
    let poll = Poll::new()?;
    poll.add(device.file.as_fd(), 0, Interest::Readable)?;
    let mut events = Events::new();
    ready()?;
    loop {
        interface.poll(Instant::now(), &mut device, &mut sockets);
        for port in &mut ports {
            port.serve(&mut sockets, &mut scratch)?;
        }
        interface.poll(Instant::now(), &mut device, &mut sockets);
        let delay = interface.poll_delay(Instant::now(), &sockets);
        poll.wait(&mut events, delay.map(|delay| Duration::from_micros(delay.total_micros())))?;
    }
}
