//! A stack with its devices and the clock, on one thread.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::tap::Layer;
use netyard_wire::{FrameBuf, MacAddr};

use crate::config::{Config, Nic, Route, Source};
use crate::device::{BUFFER_LEN, Device, Received};
use crate::sniffer::Direction;
use crate::witness::Witness;
use crate::{Error, Medium, NicIndex, Stack};

/// The MTU of an interface whose device does not tell, bytes (that of Ethernet).
const DEFAULT_MTU: u32 = 1500;

/// How long a network whose socket has closed is left alone before it is connected to again.
const RECONNECT: Duration = Duration::from_millis(100);

/// Frames read from one device before the others, and what they cause, have their turn.
const FRAMES_PER_TURN: usize = 64;
/// The same in bytes: what is read is still in the processor's cache when the program takes it.
const BYTES_PER_TURN: usize = 256 * 1024;

/// A stack that runs: its program calls [`turn`](Self::turn) as often as it likes, and uses the stack
/// in between.
#[derive(Debug)]
pub struct Driver {
    stack: Stack,
    /// By interface.
    devices: Vec<Attached>,
    poll: Arc<Poll>,
    buffer: Box<[u8]>,
    frame: FrameBuf,
}

#[derive(Debug)]
struct Attached {
    device: Device,
    /// Who is told of what passes.
    witness: Witness,
    /// It has no room: nothing is sent until it has.
    blocked: bool,
    /// It was sent something that it may have gathered.
    sent: bool,
    /// It may have more than was read.
    readable: bool,
    /// Its other end is gone: when to connect again.
    lost: Option<Instant>,
}

impl Driver {
    /// A stack as configured, with its devices. What `sniff` asks for, and with `verbose` the
    /// configuration, goes to what `output` gives.
    ///
    /// # Errors
    /// Each names the interface and what to do about it.
    pub fn start(config: &Config, output: impl Fn() -> Box<dyn Write + Send>) -> io::Result<Self> {
        if config.verbose {
            write!(output(), "{config}")?;
        }
        let mut driver = Self::new(Stack::new(Instant::now(), rand::random(), config.tcp))?;
        let mut indexes = Vec::new();
        for nic in &config.nics {
            let index = driver.open(nic, config.verbose, &output).map_err(|error| {
                let (id, device) = (nic.id, &nic.device);
                io::Error::new(error.kind(), format!("interface {id}, {device}: {error}"))
            })?;
            indexes.push((nic.id, index));
        }
        for route in &config.routes {
            let index = indexes.iter().find(|(id, _)| *id == route.nic).map(|(_, index)| *index);
            let index = index.ok_or_else(|| {
                let (prefix, id) = (route.prefix, route.nic);
                invalid(format!("route to {prefix}: there is no interface {id}"))
            })?;
            driver.stack.add_route(route.prefix, index, route.gateway)?;
        }
        if config.verbose {
            driver.tell_rest(config, &indexes, output())?;
        }
        Ok(driver)
    }

    /// Tells what the configuration does not say and the stack has made of it, as it could be configured: link-local
    /// addresses, and the routes of addresses.
    fn tell_rest(
        &self,
        config: &Config,
        indexes: &[(u32, NicIndex)],
        mut out: impl Write,
    ) -> io::Result<()> {
        for (nic, (id, index)) in config.nics.iter().zip(indexes) {
            let made = self.stack.addresses(*index);
            for net in made.iter().filter(|net| !nic.addresses.contains(net)) {
                writeln!(out, "ip nic={id} addr={net};")?;
            }
        }
        for (prefix, nic, gateway) in self.stack.routes() {
            let id = indexes.iter().find(|(_, index)| *index == nic).map(|(id, _)| *id);
            let route = id.map(|nic| Route { nic, prefix, gateway });
            if let Some(route) = route.filter(|route| !config.routes.contains(route)) {
                write!(out, "{route}")?;
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        nic: &Nic,
        verbose: bool,
        output: &impl Fn() -> Box<dyn Write + Send>,
    ) -> io::Result<NicIndex> {
        let layer = if nic.mac.is_some() { Layer::Frames } else { Layer::Packets };
        let (device, own_mtu) = match &nic.device {
            Source::Name(name) => {
                let device = Device::open(name, layer).map_err(|error| explain(name, error))?;
                (device, Device::mtu(name).ok())
            }
            Source::Socket(path) => {
                let device = Device::connect(path).map_err(explain_socket)?;
                (device, None)
            }
            Source::Descriptor(number) => {
                let device = Device::inherited(*number)?;
                let mtu = device.name().and_then(|name| Device::mtu(&name).ok());
                (device, mtu)
            }
        };
        let device = if nic.offload { device } else { device.without_offloads()? };
        let mtu = nic.mtu.or(own_mtu).unwrap_or(DEFAULT_MTU);
        if verbose {
            let offload = device.offloads().join(",");
            writeln!(output(), "nic {} opened mtu={mtu} offload={offload}", nic.id)?;
        }
        let index = self.attach(device, nic.mac, mtu)?;
        let now = Instant::now();
        for address in &nic.addresses {
            self.stack.add_address(now, index, *address)?;
        }
        if nic.autoconf {
            self.stack.enable_autoconf(now, index)?;
        }
        if nic.dhcp {
            self.stack.enable_dhcp(now, index)?;
        }
        let mut witness = Witness::default();
        if let Some(detail) = nic.sniff {
            witness.tell(nic.id, detail, output());
        }
        if let Some(name) = &nic.capture {
            let file = Box::new(File::create(name)?);
            witness.record(name.clone(), file, layer == Layer::Packets, output())?;
        }
        if let Some(attached) = self.devices.last_mut() {
            attached.witness = witness;
        }
        Ok(index)
    }

    /// A stack without devices.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(stack: Stack) -> io::Result<Self> {
        Ok(Self {
            stack,
            devices: Vec::new(),
            poll: Arc::new(Poll::new()?),
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            frame: FrameBuf::default(),
        })
    }

    /// Gives the stack an interface on this device; `mac` where it carries Ethernet. `mtu`: the largest IP
    /// packet, bytes.
    ///
    /// # Errors
    /// A device that carries IP packets has no hardware address, one that carries frames needs one;
    /// the device cannot be waited for.
    pub fn attach(
        &mut self,
        device: Device,
        mac: Option<MacAddr>,
        mtu: u32,
    ) -> io::Result<NicIndex> {
        let medium = match (device.layer(), mac) {
            (Layer::Frames, Some(mac)) => Medium::Ethernet(mac),
            (Layer::Packets, None) => Medium::Ip,
            (Layer::Frames, None) => {
                return Err(invalid("a TAP device needs a hardware address: `ether`"));
            }
            (Layer::Packets, Some(_)) => {
                return Err(invalid("a TUN device has no hardware address: leave `ether` out"));
            }
        };
        let nic = self.stack.add_nic(medium, mtu)?;
        self.poll.add(device.as_fd(), nic.0.into(), Interest::Readable)?;
        let witness = Witness::default();
        self.devices.push(Attached {
            device,
            witness,
            blocked: false,
            sent: false,
            readable: true,
            lost: None,
        });
        Ok(nic)
    }

    /// The stack, and the time for its calls.
    pub fn stack(&mut self) -> (&mut Stack, Instant) {
        (&mut self.stack, Instant::now())
    }

    /// Sends what there is, waits until something comes or is due, at most for `limit`, and takes it
    /// in.
    ///
    /// # Errors
    /// A device is gone.
    pub fn turn(&mut self, events: &mut Events, limit: Option<Duration>) -> io::Result<()> {
        self.transmit()?;
        let due = self.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        self.poll.wait(events, [due, limit].into_iter().flatten().min())?;
        self.take_in(events)?;
        self.transmit()
    }

    /// What its devices are waited for with; it may be waited for without the driver.
    pub(crate) fn poll(&self) -> &Arc<Poll> {
        &self.poll
    }

    /// When [`take_in`](Self::take_in) has something to do though no device has anything; `None`: never, as
    /// things are.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.devices.iter().any(|attached| attached.readable) {
            return Some(Instant::now());
        }
        let lost = self.devices.iter().filter_map(|attached| attached.lost);
        lost.chain(self.stack.poll_timeout()).min()
    }

    /// Takes in what was waited for, and lets what is due happen.
    ///
    /// # Errors
    /// A device is gone.
    pub(crate) fn take_in(&mut self, events: &Events) -> io::Result<()> {
        let mut roomy = Vec::new();
        for event in events.iter() {
            let attached = usize::try_from(event.token)
                .ok()
                .and_then(|place| Some((place, self.devices.get_mut(place)?)));
            if let Some((place, attached)) = attached {
                attached.readable |= event.readable || event.hangup;
                if event.writable && attached.blocked {
                    roomy.push(place);
                }
            }
        }
        for place in roomy {
            self.resume(place)?;
        }
        let now = Instant::now();
        for (place, attached) in self.devices.iter_mut().enumerate() {
            if attached.lost.is_some_and(|at| at <= now) {
                attached.reconnect(&self.poll, place, now)?;
            }
        }
        for place in 0..self.devices.len() {
            self.receive(place)?;
        }
        let now = Instant::now();
        if self.stack.poll_timeout().is_some_and(|at| at <= now) {
            self.stack.handle_timeout(now);
        }
        Ok(())
    }

    /// Takes in what a device has.
    fn receive(&mut self, place: usize) -> io::Result<()> {
        let Some(attached) = self.devices.get_mut(place) else { return Ok(()) };
        if !std::mem::take(&mut attached.readable) {
            return Ok(());
        }
        let nic = NicIndex(u16::try_from(place).map_err(|_| Error::InvalidInput)?);
        let mut bytes = 0;
        for _ in 0..FRAMES_PER_TURN {
            let received = attached.device.receive(&mut self.buffer);
            let Some(received) = attached.or_lost(&self.poll, received)? else { return Ok(()) };
            match received {
                Received::Frame(frame) => {
                    attached.witness.see(Direction::In, frame);
                    self.stack.handle_frame(Instant::now(), nic, frame);
                    bytes += frame.bytes.len();
                }
                Received::Malformed(reason) => self.stack.count_drop(reason),
                Received::Taken => {}
                Received::Nothing => return Ok(()),
            }
            if bytes >= BYTES_PER_TURN {
                break;
            }
        }
        attached.readable = true;
        Ok(())
    }

    /// Sends what the stack has, while the devices have room.
    ///
    /// # Errors
    /// A device is gone.
    pub(crate) fn transmit(&mut self) -> io::Result<()> {
        // One device without room holds back all: frames come out of the stack in their order.
        while self.devices.iter().all(|attached| !attached.blocked) {
            let Some(nic) = self.stack.poll_transmit(Instant::now(), &mut self.frame) else {
                break;
            };
            let place = usize::from(nic.0);
            let Some(attached) = self.devices.get_mut(place) else { continue };
            attached.witness.see(Direction::Out, self.frame.as_frame());
            if attached.lost.is_some() {
                self.stack.count_drop("device-lost");
                continue;
            }
            attached.sent = true;
            let sent = attached.device.send(self.frame.as_frame());
            attached.keep_to_room(&self.poll, place, sent)?;
        }
        for (place, attached) in self.devices.iter_mut().enumerate() {
            if std::mem::take(&mut attached.sent) && !attached.blocked {
                let flushed = attached.device.flush();
                attached.keep_to_room(&self.poll, place, flushed)?;
            }
        }
        Ok(())
    }

    /// A device has room again.
    fn resume(&mut self, place: usize) -> io::Result<()> {
        let Some(attached) = self.devices.get_mut(place) else { return Ok(()) };
        let flushed = attached.device.flush();
        if attached.or_lost(&self.poll, flushed)? == Some(true) {
            attached.blocked = false;
            self.poll.change(attached.device.as_fd(), token(place), Interest::Readable)?;
        }
        Ok(())
    }
}

impl Attached {
    /// After something was sent: waits for room if there was none.
    fn keep_to_room(
        &mut self,
        poll: &Poll,
        place: usize,
        sent: io::Result<bool>,
    ) -> io::Result<()> {
        if self.or_lost(poll, sent)? == Some(false) {
            self.blocked = true;
            poll.change(self.device.as_fd(), token(place), Interest::ReadableOrWritable)?;
        }
        Ok(())
    }

    /// What a device gives; `None` if its other end is gone and will be connected to again.
    fn or_lost<T>(&mut self, poll: &Poll, given: io::Result<T>) -> io::Result<Option<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match given {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if self.device.reconnects()
                    && matches!(
                        error.kind(),
                        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
                    ) =>
            {
                if self.lost.is_none() {
                    poll.remove(self.device.as_fd())?;
                    self.lost = Some(Instant::now() + RECONNECT);
                }
                self.blocked = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn reconnect(&mut self, poll: &Poll, place: usize, now: Instant) -> io::Result<()> {
        if self.device.reconnect().is_err() {
            self.lost = Some(now + RECONNECT);
            return Ok(());
        }
        (self.lost, self.readable) = (None, true);
        poll.add(self.device.as_fd(), token(place), Interest::Readable)
    }
}

fn token(place: usize) -> u64 {
    u64::try_from(place).unwrap_or(u64::MAX)
}

/// What to do about a device that cannot be opened.
fn explain(name: &str, error: io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        // EPERM, EACCES
        Some(1 | 13) => format!(
            "make it yours first, as root: `ip tuntap add dev {name} mode tap user $USER`, and see \
             that /dev/net/tun can be opened"
        ),
        // ENOENT
        Some(2) => "/dev/net/tun is missing: load the kernel module `tun`".to_owned(),
        // EBUSY
        Some(16) => "another program has it open".to_owned(),
        // EINVAL
        Some(22) => {
            "there is a device of another kind with this name: a TAP wants an `ether`, a TUN \
                     wants none"
                .to_owned()
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

/// What to do about a socket that does not take us.
fn explain_socket(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket: see that its network is up",
        io::ErrorKind::ConnectionRefused => "nobody listens there any more: bring its network up",
        io::ErrorKind::PermissionDenied => {
            "it is another user's: `owner` in the yard file, or `--owner`, names you"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.into())
}
