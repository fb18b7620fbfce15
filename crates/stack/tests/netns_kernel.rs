//! The stack against the kernel's own, over a TAP and a TUN device, in namespaces of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{io::Read as _, io::Write as _};

use netyard_stack::config::Config;
use netyard_stack::device::Device;
use netyard_stack::driver::Driver;
use netyard_stack::{Error, NicIndex, Settings, Stack, TcpId};
use netyard_sys::poll::Events;
use netyard_sys::tap::Layer;
use netyard_testbed::{User, isolate, output, peer, run, tshark};
use netyard_wire::MacAddr;

const LONG: Duration = Duration::from_secs(60);
const MAC: MacAddr = MacAddr([0xfe, 0xe1, 0xba, 0xd0, 0x33, 0x33]);
/// Enough for many windows, small enough for a slow machine.
const LEN: usize = 20_000_000;

/// The kernel is 192.168.1.1 and fd00::1 on `dev0`, the stack 192.168.1.100 and fd00::100.
struct Lab {
    driver: Driver,
    events: Events,
    nic: NicIndex,
}

impl Lab {
    fn new(layer: Layer) -> Self {
        let device = Device::open("dev0", layer).unwrap();
        configure_kernel();
        let stack = Stack::new(Instant::now(), [7; 32], Settings::default());
        let mut driver = Driver::new(stack).unwrap();
        let mac = (layer == Layer::Frames).then_some(MAC);
        let nic = driver.attach(device, mac, Device::mtu("dev0").unwrap()).unwrap();
        let (stack, now) = driver.stack();
        for net in ["192.168.1.100/24", "fd00::100/64"] {
            stack.add_address(now, nic, net.parse().unwrap()).unwrap();
        }
        Self { driver, events: Events::new(), nic }
    }

    /// Runs the stack until `done` gives a value.
    fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Stack, Instant) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            let (stack, now) = self.driver.stack();
            if let Some(value) = done(stack, now) {
                return value;
            }
            assert!(start.elapsed() < LONG, "in vain for {what}: {:?}", stack.drops());
            self.driver.turn(&mut self.events, Some(Duration::from_millis(20))).unwrap();
        }
    }

    /// Runs the stack until a thread, which uses the kernel, has its result.
    fn beside<T: Send + 'static>(
        &mut self,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
        mut meanwhile: impl FnMut(&mut Stack, Instant),
    ) -> T {
        let (tell, told) = mpsc::channel();
        let worker = thread::spawn(move || tell.send(work()).expect("the test waits"));
        let value = self.until(what, |stack, now| {
            meanwhile(stack, now);
            match told.try_recv() {
                Ok(value) => Some(value),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => panic!("{what}: the other side failed"),
            }
        });
        worker.join().expect("it has told its result");
        value
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new(peer("ip")).args(arguments));
}

fn configure_kernel() {
    ip(&["address", "add", "192.168.1.1/24", "dev", "dev0"]);
    ip(&["address", "add", "fd00::1/64", "dev", "dev0", "nodad"]);
    ip(&["link", "set", "dev0", "up"]);
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16).wrapping_mul(31)) as u8).collect()
}

fn layers() -> [Layer; 2] {
    [Layer::Frames, Layer::Packets]
}

/// Sends `data` from `sent` on, and says when it is all gone and the stream is ended.
fn pour(stack: &mut Stack, id: TcpId, data: &[u8], sent: &mut usize) {
    while *sent < data.len() {
        match stack.tcp_send(id, &data[*sent..]) {
            Ok(count) => *sent += count,
            Err(Error::WouldBlock) => return,
            Err(error) => panic!("send after {sent} bytes: {error}"),
        }
        if *sent == data.len() {
            stack.tcp_shutdown(id, false, true).unwrap();
        }
    }
}

/// Reads what is there; true at the end of the stream.
fn drain(stack: &mut Stack, now: Instant, id: TcpId, got: &mut Vec<u8>) -> bool {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stack.tcp_recv(now, id, &mut buffer, false) {
            Ok(0) => return true,
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(Error::WouldBlock) => return false,
            Err(error) => panic!("receive after {} bytes: {error}", got.len()),
        }
    }
}

#[test]
fn the_kernel_pings_the_stack() {
    isolate(|| {
        for layer in layers() {
            let mut lab = Lab::new(layer);
            for to in ["192.168.1.100", "fd00::100"] {
                let mut command = Command::new(peer("ping"));
                command.args(["-c", "3", "-i", "0.05", "-W", "20", "-s", "1400", to]);
                let done = lab.beside("ping", move || command.output().unwrap(), |_, _| {});
                let text = String::from_utf8_lossy(&done.stdout);
                assert!(text.contains("3 received"), "{layer:?}: {text}");
            }
        }
    });
}

#[test]
fn streams_go_both_ways_whoever_opens_them() {
    isolate(|| {
        for layer in layers() {
            let mut lab = Lab::new(layer);
            let data = pattern(LEN);
            for at in ["192.168.1.100:80", "[fd00::100]:80"] {
                // The kernel connects, and echoes what it is sent.
                let at: SocketAddr = at.parse().unwrap();
                let (stack, _) = lab.driver.stack();
                let listener = stack.tcp_listen(at, 4).unwrap();
                let echo = move || {
                    let mut stream = std::net::TcpStream::connect(at).unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    let data = pattern(LEN);
                    let writes = thread::spawn(move || {
                        writer.write_all(&data).unwrap();
                        writer.shutdown(std::net::Shutdown::Write).unwrap();
                    });
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).unwrap();
                    writes.join().unwrap();
                    got
                };
                let (mut id, mut sent, mut got) = (None, 0, Vec::new());
                let theirs = lab.beside("an echo", echo, |stack, now| {
                    if id.is_none() {
                        id = stack.tcp_accept(listener).ok().map(|(id, _)| id);
                    }
                    if let Some(id) = id {
                        pour(stack, id, &data, &mut sent);
                        drain(stack, now, id, &mut got);
                    }
                });
                assert!(theirs == data, "{layer:?} {at}: to the kernel");
                let id = id.unwrap();
                lab.until("the end", |stack, now| drain(stack, now, id, &mut got).then_some(()));
                assert!(got == data, "{layer:?} {at}: from the kernel");
                let (stack, now) = lab.driver.stack();
                stack.tcp_close(now, id);
                stack.tcp_close_listener(now, listener);
            }
            for at in ["192.168.1.1:0", "[fd00::1]:0"] {
                // The stack connects to the kernel.
                let listener = std::net::TcpListener::bind(at).unwrap();
                let to = listener.local_addr().unwrap();
                let (stack, now) = lab.driver.stack();
                let id = stack.tcp_connect(now, to, None).unwrap();
                let serve = move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).unwrap();
                    stream.write_all(&got).unwrap();
                };
                let (mut sent, mut got) = (0, Vec::new());
                lab.beside("a server", serve, |stack, now| {
                    pour(stack, id, &data, &mut sent);
                    drain(stack, now, id, &mut got);
                });
                lab.until("the end", |stack, now| drain(stack, now, id, &mut got).then_some(()));
                assert!(got == data, "{layer:?} {at}");
                let (stack, now) = lab.driver.stack();
                stack.tcp_close(now, id);
            }
            let (stack, _) = lab.driver.stack();
            assert_eq!(stack.counts().connections, 0);
            assert_eq!(lab.nic, NicIndex(0));
        }
    });
}

#[test]
fn datagrams_and_refusals_cross() {
    isolate(|| {
        for layer in layers() {
            let mut lab = Lab::new(layer);
            for (ours, theirs) in
                [("192.168.1.100:53", "192.168.1.1:0"), ("[fd00::100]:53", "[fd00::1]:0")]
            {
                let ours: SocketAddr = ours.parse().unwrap();
                let (stack, _) = lab.driver.stack();
                let id = stack.udp_bind(ours).unwrap();
                let socket = std::net::UdpSocket::bind(theirs).unwrap();
                let ask = move || {
                    socket.connect(ours).unwrap();
                    // Longer than the MTU: both sides send fragments.
                    let data = pattern(5_000);
                    socket.send(&data).unwrap();
                    let mut got = vec![0; 9_000];
                    let len = socket.recv(&mut got).unwrap();
                    got.truncate(len);
                    got
                };
                let mut asked = Vec::new();
                let answer = lab.beside("an answer", ask, |stack, now| {
                    let mut buffer = vec![0; 65_536];
                    if let Ok((len, from)) = stack.udp_recv(id, &mut buffer, false) {
                        asked = buffer[..len].to_vec();
                        stack.udp_send(now, id, Some(from), &asked).unwrap();
                    }
                });
                assert!(asked == pattern(5_000), "{layer:?} {ours}");
                assert!(answer == pattern(5_000), "{layer:?} {ours}");
                let (stack, _) = lab.driver.stack();
                stack.udp_close(id);
                // Nobody listens: both sides say so.
                let ask = move || std::net::TcpStream::connect(ours).unwrap_err().kind();
                let refused = lab.beside("a refusal", ask, |_, _| {});
                assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
                let ask = move || {
                    let socket = std::net::UdpSocket::bind(theirs).unwrap();
                    socket.connect(ours).unwrap();
                    socket.send(b"anybody?").unwrap();
                    socket.recv(&mut [0]).unwrap_err().kind()
                };
                let refused = lab.beside("an ICMP error", ask, |_, _| {});
                assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
                let closed = theirs.replace(":0", ":9").parse().unwrap();
                let (stack, now) = lab.driver.stack();
                let id = stack.tcp_connect(now, closed, None).unwrap();
                let refused = lab.until("a refusal", |stack, _| stack.tcp_take_error(id).unwrap());
                assert_eq!(refused, Error::ConnectionRefused);
                let (stack, now) = lab.driver.stack();
                let id = stack.udp_bind(SocketAddr::new(ours.ip(), 0)).unwrap();
                stack.udp_connect(now, id, closed).unwrap();
                stack.udp_send(now, id, None, b"anybody?").unwrap();
                let refused = lab.until("a refusal", |stack, _| stack.udp_take_error(id).unwrap());
                assert_eq!(refused, Error::ConnectionRefused);
            }
        }
    });
}

/// Where lines go that a test reads.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn addresses_of_the_link_lead_to_the_kernel_and_back() {
    isolate(|| {
        for layer in layers() {
            let mut lab = Lab::new(layer);
            ip(&["address", "add", "fe80::1/64", "dev", "dev0", "nodad"]);
            let (stack, now) = lab.driver.stack();
            stack.add_address(now, lab.nic, "fe80::100/64".parse().unwrap()).unwrap();
            let index = kernel_index("dev0");
            // To the kernel.
            let listener = std::net::TcpListener::bind("[::]:80").unwrap();
            let (stack, now) = lab.driver.stack();
            let from = Some("[fe80::100%1]:4000".parse().unwrap());
            let id = stack.tcp_connect(now, "[fe80::1%1]:80".parse().unwrap(), from).unwrap();
            let accept = move || listener.accept().unwrap().1;
            let from = lab.beside("the kernel accepts", accept, |_, _| {});
            assert_eq!(from, format!("[fe80::100%{index}]:4000").parse().unwrap());
            let (stack, now) = lab.driver.stack();
            stack.tcp_close(now, id);
            // And from there.
            let listener = stack.tcp_listen("[::]:81".parse().unwrap(), 4).unwrap();
            let socket = stack.udp_bind("[fe80::100%1]:53".parse().unwrap()).unwrap();
            let work = move || {
                let to: SocketAddr = format!("[fe80::100%{index}]:81").parse().unwrap();
                let stream = std::net::TcpStream::connect(to).unwrap();
                let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
                let to: SocketAddr = format!("[fe80::100%{index}]:53").parse().unwrap();
                socket.send_to(b"question", to).unwrap();
                let mut got = [0; 9];
                let (len, from) = socket.recv_from(&mut got).unwrap();
                assert_eq!((&got[..len], from), (&b"answer"[..], to));
                stream.local_addr().unwrap().port()
            };
            let mut accepted = None;
            let port = lab.beside("the kernel asks", work, |stack, now| {
                accepted = accepted.or_else(|| stack.tcp_accept(listener).ok());
                if let Ok((_, from)) = stack.udp_recv(socket, &mut [0; 9], false) {
                    stack.udp_send(now, socket, Some(from), b"answer").unwrap();
                }
            });
            let (_, from) = accepted.unwrap();
            assert_eq!(from, format!("[fe80::1%1]:{port}").parse().unwrap());
        }
    });
}

/// What the kernel calls an interface that has IPv6 addresses.
fn kernel_index(name: &str) -> u32 {
    let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let line = table.lines().find(|line| line.split_whitespace().last() == Some(name)).unwrap();
    u32::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

#[test]
fn a_configured_stack_tells_what_passes() {
    isolate(|| {
        // The device is there already, as an administrator makes it.
        ip(&["tuntap", "add", "dev", "dev0", "mode", "tap"]);
        configure_kernel();
        ip(&["link", "set", "dev0", "mtu", "1400"]);
        let text = "verbose; nic id=1 ether=fe:e1:ba:d0:33:33 dev=dev0 sniff=true pcap=/tmp/x.pcapng; \
                    ip nic=1 addr=192.168.1.100/24; route nic=1 ipnet=0.0.0.0/0 gw=192.168.1.1";
        let config = Config::parse(text).unwrap().config;
        let lines = Lines::default();
        let driver = Driver::start(&config, || Box::new(lines.clone())).unwrap();
        let mut lab = Lab { driver, events: Events::new(), nic: NicIndex(0) };
        let listener = std::net::TcpListener::bind("192.168.1.1:80").unwrap();
        let (stack, now) = lab.driver.stack();
        let to = listener.local_addr().unwrap();
        let id = stack.tcp_connect(now, to, None).unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got
        };
        let data = pattern(100_000);
        let mut sent = 0;
        let got = lab.beside("a server", serve, |stack, _| pour(stack, id, &data, &mut sent));
        assert!(got == data);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("verbose;\ntcp cc=cubic"), "{text}");
        for wanted in [
            "nic 1 out arp 192.168.1.100 asks for 192.168.1.1",
            "nic 1 in  arp 192.168.1.1 is at ",
            " > 192.168.1.1:80 SYN seq=",
            "mss=1360 ws=7 sackok ts=",
            "nic 1 in  tcp 192.168.1.1:80 > 192.168.1.100:",
            "SYN|ACK",
            " gso=1348",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        // Another program reads the file, and finds nothing wrong in it.
        // As root it would become somebody else first, whom a user namespace may not have.
        let mut command = User::Ordinary.peer("tcpdump");
        command.args(["-n", "-vv", "-r", "/tmp/x.pcapng"]);
        let read = output(&mut command);
        let text = String::from_utf8_lossy(&read.stdout);
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        assert!(text.contains("Flags [S], cksum") && text.contains("(correct)"), "{text}");
        assert!(!text.contains("incorrect") && !text.contains("truncated"), "{text}");
        let file = std::path::Path::new("/tmp/x.pcapng");
        assert_eq!(tshark::malformed(file), Vec::<Vec<String>>::new());
        assert!(!tshark::fields(file, "tcp.flags.syn == 1", &["frame.number"]).is_empty());
    });
}

#[test]
fn what_cannot_be_opened_says_what_to_do() {
    isolate(|| {
        ip(&["tuntap", "add", "dev", "dev0", "mode", "tun"]);
        let start = |text: &str| {
            let config = Config::parse(text).unwrap().config;
            Driver::start(&config, || Box::new(std::io::sink())).unwrap_err().to_string()
        };
        let error = start("nic id=1 ether=fe:e1:ba:d0:33:33 dev=dev0");
        assert!(
            error.starts_with("interface 1, device dev0: ") && error.contains("a TUN"),
            "{error}"
        );
        let error = start("nic id=2 fd=999");
        assert!(error.starts_with("interface 2, descriptor 999: "), "{error}");
    });
}

#[test]
fn without_offloads_every_packet_is_whole_in_both_directions() {
    isolate(|| {
        ip(&["tuntap", "add", "dev", "dev0", "mode", "tap"]);
        configure_kernel();
        // Somebody has used it before, with offloads, which the device remembers.
        drop(Device::open("dev0", Layer::Frames).unwrap());
        let text = "verbose; nic id=1 ether=fe:e1:ba:d0:33:33 dev=dev0 sniff=full offload=off; \
                    ip nic=1 addr=192.168.1.100/24";
        let config = Config::parse(text).unwrap().config;
        let lines = Lines::default();
        let driver = Driver::start(&config, || Box::new(lines.clone())).unwrap();
        let mut lab = Lab { driver, events: Events::new(), nic: NicIndex(0) };
        let listener = std::net::TcpListener::bind("192.168.1.1:80").unwrap();
        let (stack, now) = lab.driver.stack();
        let id = stack.tcp_connect(now, listener.local_addr().unwrap(), None).unwrap();
        let data = pattern(100_000);
        let answer = data.clone();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&answer).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got
        };
        let (mut sent, mut taken) = (0, Vec::new());
        let got = lab.beside("a server", serve, |stack, now| {
            pour(stack, id, &data, &mut sent);
            drain(stack, now, id, &mut taken);
        });
        assert!(got == data);
        lab.until("the answer", |stack, now| drain(stack, now, id, &mut taken).then_some(()));
        assert!(taken == data);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("\nnic 1 opened mtu=1500 offload=\n"), "{text}");
        // What goes out is cut behind who tells of it.
        let came: Vec<&str> = text.lines().filter(|line| line.contains(" in  tcp ")).collect();
        assert!(came.len() > 60, "100 kB in segments: {text}");
        for line in came {
            assert!(line.contains(" sum=0x") && line.contains(" ipid=0x"), "{line}");
            assert!(!line.contains(" gso="), "{line}");
        }
    });
}
