//! Traffic whose every byte is checked, and its measurement.
//!
//! One server answers every kind of client on one port. A client's first bytes choose: a
//! `HEADER_LEN`-byte header (kind, length, seed), or an HTTP request line. Payload is a fixed
//! noise block of prime length, read from an offset that the seed chooses, so that both ends can
//! tell what each byte must be.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// Kind (1 byte), length (8 bytes, big endian), seed (8 bytes, big endian).
const HEADER_LEN: usize = 17;

const ECHO: u8 = b'e';
const SOURCE: u8 = b's';
const SINK: u8 = b'k';

/// The answer to a plain HTTP request, whatever its path.
pub const HTTP_BODY: &str = "hello from outside\n";

/// How much is written or read at once.
const CHUNK: usize = 256 * 1024;

/// Stack of a connection's thread: it holds no buffers.
const STACK: usize = 64 * 1024;

/// How long a connection may take to open: several lost SYNs.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a connection may stand still before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Noise; the length is the largest prime below 2^20, so that no power of two divides it and a
/// slice taken from the wrong place of the stream never looks right.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut state = 0_u64;
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let mut noise: Vec<u8> =
        std::iter::repeat_with(next).take(131_072).flat_map(u64::to_le_bytes).collect();
    noise.truncate(1_048_573);
    noise
});

/// An endless stream of bytes that its seed determines.
struct Pattern {
    position: usize,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        let length = NOISE.len() as u64;
        let position = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) % length;
        Self { position: usize::try_from(position).expect("below 2^20") }
    }

    /// The next bytes, at most `limit`, at least one.
    fn peek(&self, limit: usize) -> &'static [u8] {
        let rest = &NOISE[self.position..];
        &rest[..rest.len().min(limit)]
    }

    fn advance(&mut self, count: usize) {
        self.position = (self.position + count) % NOISE.len();
    }

    /// Goes on by `bytes.len()` and says whether that is what must come here.
    fn matches(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.peek(bytes.len());
            let (head, rest) = bytes.split_at(expected.len());
            if head != expected {
                return false;
            }
            self.advance(expected.len());
            bytes = rest;
        }
        true
    }
}

/// Writes `length` bytes of the pattern.
fn pour(mut stream: &TcpStream, length: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut left = length;
    while left > 0 {
        let limit = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let count = stream.write(pattern.peek(limit))?;
        pattern.advance(count);
        left -= count as u64;
    }
    Ok(())
}

/// Reads to the end of the stream and checks every byte; returns how many there were.
fn drain(mut stream: &TcpStream, seed: u64) -> io::Result<u64> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        if !pattern.matches(&buffer[..count]) {
            return Err(invalid(format!("wrong bytes after {total} right ones")));
        }
        total += count as u64;
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn spawn(
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> thread::JoinHandle<io::Result<()>> {
    thread::Builder::new().stack_size(STACK).spawn(work).expect("threads can be started")
}

// ------------------------------------------------------------------------------------ server --

/// Serves TCP connections and echoes UDP datagrams at one address, for ever.
///
/// # Errors
/// When accepting or receiving fails.
pub fn serve(listener: &TcpListener, datagrams: UdpSocket) -> io::Result<()> {
    spawn(move || echo_datagrams(&datagrams));
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes away is the client's matter.
        spawn(move || answer(&stream));
    }
}

fn echo_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (count, client) = socket.recv_from(&mut buffer)?;
        // An error here is an ICMP message about an earlier datagram.
        let _ = socket.send_to(&buffer[..count], client);
    }
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    let (length, seed) = (number(&header[1..9]), number(&header[9..]));
    match header[0] {
        ECHO => echo(stream),
        SOURCE => {
            pour(stream, length, seed)?;
            stream.shutdown(Shutdown::Write)
        }
        SINK => {
            let total = drain(stream, seed)?;
            stream.write_all(&total.to_be_bytes())
        }
        _ => answer_http(stream, &header),
    }
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn answer_http(mut stream: &TcpStream, start: &[u8]) -> io::Result<()> {
    let mut request = start.to_vec();
    let mut buffer = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        if count == 0 || request.len() > 16 * 1024 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..count]);
    }
    let length = HTTP_BODY.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(HTTP_BODY.as_bytes())
}

// ----------------------------------------------------------------------------------- clients --

fn open(server: SocketAddr, kind: u8, length: u64, seed: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, CONNECT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut header = vec![kind];
    header.extend(length.to_be_bytes());
    header.extend(seed.to_be_bytes());
    stream.write_all(&header)?;
    Ok(stream)
}

/// What a checked transfer did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Payload bytes, all flows.
    pub bytes: u64,
    /// From the first connect to the last flow's end.
    pub seconds: f64,
}

/// Sends `bytes` in all, over `flows` connections at once; the server checks every byte and
/// confirms the count.
///
/// # Errors
/// The first flow's failure; `InvalidData` when bytes are wrong or missing.
pub fn send(server: SocketAddr, bytes: u64, flows: u64) -> io::Result<Transfer> {
    transfer(bytes, flows, move |seed, share| {
        let mut stream = open(server, SINK, share, seed)?;
        pour(&stream, share, seed)?;
        stream.shutdown(Shutdown::Write)?;
        let mut confirmed = [0; 8];
        stream.read_exact(&mut confirmed)?;
        check_length(u64::from_be_bytes(confirmed), share)
    })
}

/// Receives `bytes` in all, over `flows` connections at once, and checks every byte.
///
/// # Errors
/// As [`send`].
pub fn receive(server: SocketAddr, bytes: u64, flows: u64) -> io::Result<Transfer> {
    transfer(bytes, flows, move |seed, share| {
        let stream = open(server, SOURCE, share, seed)?;
        check_length(drain(&stream, seed)?, share)
    })
}

fn check_length(got: u64, wanted: u64) -> io::Result<()> {
    if got == wanted { Ok(()) } else { Err(invalid(format!("{got} of {wanted} bytes"))) }
}

fn transfer(
    bytes: u64,
    flows: u64,
    one: impl Fn(u64, u64) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<Transfer> {
    let start = Instant::now();
    let share = bytes.div_ceil(flows.max(1));
    let running: Vec<_> = (0..flows)
        .map(|seed| {
            let one = one.clone();
            let share = share.min(bytes.saturating_sub(seed * share));
            spawn(move || one(seed, share))
        })
        .collect();
    for flow in running {
        flow.join().map_err(|_| io::Error::other("a flow's thread panicked"))??;
    }
    Ok(Transfer { bytes, seconds: start.elapsed().as_secs_f64() })
}

/// Times of many operations done one after the other, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: usize,
    /// Half of them were faster.
    pub p50: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// Operations per second, all of them.
    pub rate: f64,
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: usize| {
            let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let total = times.iter().sum::<Duration>().as_secs_f64();
        Self { count: times.len(), p50: at(50), p99: at(99), rate: times.len() as f64 / total }
    }
}

/// One-byte requests and answers on one open connection.
///
/// # Errors
/// What the connection gave.
pub fn round_trips(server: SocketAddr, count: usize) -> io::Result<Latency> {
    let mut stream = open(server, ECHO, 0, 0)?;
    // Not counted: the far thread's start, and the neighbours' first meeting.
    let warm_up = count / 10;
    let mut times = Vec::with_capacity(count);
    for turn in 0..count + warm_up {
        let start = Instant::now();
        let mut byte = [0];
        stream.write_all(b"?")?;
        stream.read_exact(&mut byte)?;
        if turn >= warm_up {
            times.push(start.elapsed());
        }
    }
    Ok(Latency::of(times))
}

/// Connect, request, answer, close; one connection after the other.
///
/// # Errors
/// What a connection gave.
pub fn connections(server: SocketAddr, count: usize) -> io::Result<Latency> {
    Ok(Latency::of(greetings(server, count)?))
}

/// The same by several clients at once, `count` connections in all; the rate is that of all of them.
///
/// # Errors
/// What a connection gave.
pub fn connections_at_once(
    server: SocketAddr,
    count: usize,
    at_once: usize,
) -> io::Result<Latency> {
    let start = Instant::now();
    let share = count.div_ceil(at_once.max(1));
    let clients: Vec<_> =
        (0..at_once).map(|_| thread::spawn(move || greetings(server, share))).collect();
    let mut times = Vec::with_capacity(count);
    for client in clients {
        times.extend(client.join().map_err(|_| io::Error::other("a client's thread panicked"))??);
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    Ok(Latency { rate, ..Latency::of(times) })
}

fn greetings(server: SocketAddr, count: usize) -> io::Result<Vec<Duration>> {
    let greeting = |_| {
        let start = Instant::now();
        greet(server).map(|_| start.elapsed())
    };
    (0..count).map(greeting).collect()
}

/// Tries to connect until that succeeds; when that was.
pub fn first(server: SocketAddr) -> SystemTime {
    // A SYN that nobody answers is asked again after a second, by the kernel.
    let limit = Duration::from_millis(20);
    while TcpStream::connect_timeout(&server, limit).is_err() {
        thread::sleep(Duration::from_micros(200));
    }
    SystemTime::now()
}

/// Opens `count` connections that have each carried a byte both ways, and keeps them.
///
/// # Errors
/// What a connection gave.
pub fn hold(server: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    (0..count).map(|_| greet(server)).collect()
}

fn greet(server: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = open(server, ECHO, 0, 0)?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Sends `count` datagrams of `size` bytes one after the other, and expects each back.
///
/// # Errors
/// What the socket gave; `InvalidData` for a wrong answer; `WouldBlock` when one is lost.
pub fn datagrams(server: SocketAddr, count: usize, size: usize) -> io::Result<Latency> {
    let any: SocketAddr =
        if server.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut times = Vec::with_capacity(count);
    let mut buffer = vec![0; 65_535];
    for seed in 0..count as u64 {
        let expected = Pattern::new(seed).peek(size);
        let start = Instant::now();
        socket.send(expected)?;
        let length = socket.recv(&mut buffer)?;
        if &buffer[..length] != expected {
            return Err(invalid(format!("datagram {seed} came back changed")));
        }
        times.push(start.elapsed());
    }
    Ok(Latency::of(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let datagrams = UdpSocket::bind(address).unwrap();
        thread::spawn(move || serve(&listener, datagrams));
        address
    }

    #[test]
    fn whole_transfers_are_confirmed() {
        let server = server();
        assert_eq!(send(server, 5_000_001, 3).unwrap().bytes, 5_000_001);
        assert_eq!(receive(server, 5_000_001, 3).unwrap().bytes, 5_000_001);
    }

    #[test]
    fn one_wrong_or_moved_byte_is_noticed() {
        let whole = Pattern::new(7).peek(1000).to_vec();
        assert!(Pattern::new(7).matches(&whole));
        assert!(!Pattern::new(8).matches(&whole));
        assert!(!Pattern::new(7).matches(&whole[1..]));
        let mut broken = whole;
        broken[999] ^= 1;
        assert!(!Pattern::new(7).matches(&broken));
    }

    #[test]
    fn every_kind_of_client_is_answered_on_one_port() {
        let server = server();
        assert_eq!(round_trips(server, 20).unwrap().count, 20);
        assert_eq!(connections(server, 5).unwrap().count, 5);
        assert_eq!(connections_at_once(server, 6, 3).unwrap().count, 6);
        assert_eq!(hold(server, 5).unwrap().len(), 5);
        assert_eq!(datagrams(server, 5, 1400).unwrap().count, 5);
        assert_eq!(crate::http::get(server, "/").unwrap().body, HTTP_BODY);
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (1..=100).rev().map(Duration::from_micros).collect();
        let latency = Latency::of(times);
        assert!((latency.p50 - 51.0).abs() < 0.01 && (latency.p99 - 100.0).abs() < 0.01);
    }
}
