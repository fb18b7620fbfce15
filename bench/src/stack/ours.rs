//! The servers on our stack, used as its core is: a loop of one thread.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use netyard_stack::device::Device;
use netyard_stack::driver::Driver;
use netyard_stack::{Error, Event, ListenerId, Options, Settings, Stack, TcpId};
use netyard_sys::poll::Events;
use netyard_sys::tap::Layer;
use netyard_wire::MacAddr;

use super::contender::{
    ADDRESS4, ADDRESS6, ANSWERS, DEVICE, MAC, PEER4, PREFIX4, PREFIX6, SINK, SOURCE, answer, ready,
};

/// Read or written at once, bytes.
const CHUNK: usize = 256 * 1024;

struct Servers {
    listeners: HashMap<ListenerId, u16>,
    /// Connections, and at which port they came.
    ports: HashMap<TcpId, u16>,
    buffer: Vec<u8>,
}

pub(super) fn serve() -> io::Result<()> {
    let stack = Stack::new(Instant::now(), [7; 32], Settings::default());
    let mut driver = Driver::new(stack)?;
    let nic = driver.attach(Device::open(DEVICE, Layer::Frames)?, Some(MacAddr(MAC)), 1500)?;
    let (stack, now) = driver.stack();
    let nets: [(IpAddr, u8); 2] = [(ADDRESS4.into(), PREFIX4), (ADDRESS6.into(), PREFIX6)];
    for (address, len) in nets {
        let net = IpNet::new(address, len).map_err(io::Error::other)?;
        stack.add_address(now, nic, net)?;
    }
    stack.add_route(IpNet::V4(Default::default()), nic, Some(PEER4.into()))?;
    let mut listeners = HashMap::new();
    for port in [SINK, SOURCE, ANSWERS] {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        listeners.insert(stack.tcp_listen(any, 4096)?, port);
    }
    let mut servers = Servers { listeners, ports: HashMap::new(), buffer: vec![0; CHUNK] };
    ready()?;
    let mut events = Events::new();
    loop {
        driver.turn(&mut events, None)?;
        let (stack, now) = driver.stack();
        while let Some(event) = stack.poll_event() {
            match event {
                Event::Listener(listener) => servers.accept(stack, now, listener)?,
                Event::Tcp(id) => servers.serve(stack, now, id),
                _ => {}
            }
        }
    }
}

impl Servers {
    fn accept(&mut self, stack: &mut Stack, now: Instant, listener: ListenerId) -> io::Result<()> {
        let Some(port) = self.listeners.get(&listener).copied() else { return Ok(()) };
        while let Ok((id, _)) = stack.tcp_accept(listener) {
            stack.tcp_set_options(id, Options { no_delay: true, ..Options::default() })?;
            self.ports.insert(id, port);
            self.serve(stack, now, id);
        }
        Ok(())
    }

    /// Does what can be done for a connection; it ends with the client, or with an error.
    fn serve(&mut self, stack: &mut Stack, now: Instant, id: TcpId) {
        let Some(port) = self.ports.get(&id).copied() else { return };
        let done = match port {
            SOURCE => self.pour(stack, id),
            _ => self.take(stack, now, id, port == ANSWERS),
        };
        if !matches!(done, Err(Error::WouldBlock)) {
            self.ports.remove(&id);
            stack.tcp_close(now, id);
        }
    }

    fn pour(&mut self, stack: &mut Stack, id: TcpId) -> Result<(), Error> {
        loop {
            stack.tcp_send(id, &self.buffer)?;
        }
    }

    fn take(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        id: TcpId,
        answers: bool,
    ) -> Result<(), Error> {
        loop {
            let len = stack.tcp_recv(now, id, &mut self.buffer, false)?;
            if len == 0 {
                return Ok(());
            }
            if answers {
                // Answers are small, and clients wait for them.
                stack.tcp_send(id, answer(self.buffer.get(..len).unwrap_or_default()))?;
            }
        }
    }
}
