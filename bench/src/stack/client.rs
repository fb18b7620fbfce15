//! The clients: ordinary sockets of the kernel.

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream as Blocking};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time;

use super::contender::{ANSWERS, PAGE, SINK, SOURCE};

/// What a flow has before its figures count.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a connection may take to open, or to do anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Read or written at once, bytes.
const CHUNK: usize = 256 * 1024;
/// Connections that open at the same time.
const OPENING: usize = 32;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

/// What a flow has carried, and in what time.
pub(super) struct Carried {
    pub(super) bytes: f64,
    seconds: f64,
}

impl Carried {
    /// Bits in a second.
    pub(super) fn rate(&self) -> f64 {
        8.0 * self.bytes / self.seconds
    }
}

fn connect(to: IpAddr, port: u16) -> io::Result<Blocking> {
    let stream = Blocking::connect_timeout(&SocketAddr::new(to, port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Repeats a transfer: first as long as it must warm up, then for the time; `started` is called in between.
fn transfer(
    warm_up: Duration,
    seconds: u32,
    started: impl FnOnce(),
    mut step: impl FnMut() -> io::Result<usize>,
) -> io::Result<Carried> {
    let start = Instant::now();
    while start.elapsed() < warm_up {
        step()?;
    }
    started();
    let (start, mut bytes) = (Instant::now(), 0.0);
    while start.elapsed() < Duration::from_secs(seconds.into()) {
        bytes += step()? as f64;
    }
    Ok(Carried { bytes, seconds: start.elapsed().as_secs_f64() })
}

/// Reads from the source.
pub(super) fn receive(from: IpAddr, seconds: u32, started: impl FnOnce()) -> io::Result<Carried> {
    let (mut stream, mut buffer) = (connect(from, SOURCE)?, vec![0; CHUNK]);
    transfer(WARM_UP, seconds, started, || stream.read(&mut buffer))
}

/// Writes to the sink.
pub(super) fn send(to: IpAddr, seconds: u32, started: impl FnOnce()) -> io::Result<Carried> {
    let (mut stream, buffer) = (connect(to, SINK)?, vec![7; CHUNK]);
    transfer(WARM_UP, seconds, started, || stream.write(&buffer))
}

/// Reads over a long way, whose first seconds do not count.
pub(super) fn fetch(from: IpAddr, seconds: u32) -> io::Result<Carried> {
    let (mut stream, mut buffer) = (connect(from, SOURCE)?, vec![0; CHUNK]);
    transfer(3 * WARM_UP, seconds, || {}, || stream.read(&mut buffer))
}

/// Microseconds that half of the round trips of a byte take at most.
pub(super) fn round_trip(to: IpAddr, count: usize) -> io::Result<f64> {
    let mut stream = connect(to, ANSWERS)?;
    let mut times = Vec::new();
    for number in 0..count + count / 10 {
        let start = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        if number >= count / 10 {
            times.push(start.elapsed());
        }
    }
    times.sort();
    Ok(times.get(count / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6))
}

/// Runs what uses sockets of tokio, on one thread.
pub(super) fn run<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

/// Opens connections, each of which has carried a page.
pub(super) async fn open(to: IpAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let (mut opening, mut open) = (JoinSet::new(), Vec::new());
    let mut left = count;
    while left > 0 || !opening.is_empty() {
        while left > 0 && opening.len() < OPENING {
            opening.spawn(async move {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    match TcpStream::connect((to, ANSWERS)).await {
                        // smoltcp refuses where no socket happens to listen.
                        Err(error)
                            if error.kind() == io::ErrorKind::ConnectionRefused
                                && Instant::now() < deadline =>
                        {
                            time::sleep(Duration::from_millis(1)).await;
                        }
                        Err(error) => return Err(error),
                        Ok(mut stream) => {
                            stream.set_nodelay(true)?;
                            ask(&mut stream).await?;
                            return Ok(stream);
                        }
                    }
                }
            });
            left -= 1;
        }
        if let Some(opened) = opening.join_next().await {
            open.push(opened.map_err(io::Error::other)??);
        }
    }
    Ok(open)
}

async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut page = [0; PAGE.len()];
    time::timeout(PATIENCE, stream.read_exact(&mut page)).await??;
    Ok(())
}

/// Requests in a second of connections that each have one under way.
pub(super) async fn requests(mut streams: Vec<TcpStream>, seconds: u32) -> io::Result<f64> {
    let (count, start) = (Rc::new(Cell::new(0_u32)), Instant::now());
    let end = start + Duration::from_secs(seconds.into());
    let mut clients = JoinSet::new();
    for mut stream in streams.drain(..) {
        let count = Rc::clone(&count);
        clients.spawn_local(async move {
            while Instant::now() < end {
                ask(&mut stream).await?;
                count.set(count.get() + 1);
            }
            io::Result::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done.map_err(io::Error::other)??;
    }
    Ok(f64::from(count.get()) / start.elapsed().as_secs_f64())
}

/// What came of requests.
pub(super) struct Answered {
    /// Requests that were answered, and those within a second.
    pub(super) all: u32,
    pub(super) soon: u32,
    /// Requests that there were to be.
    pub(super) wanted: f64,
}

/// Each connection asks once a second, one after the other. One that gets no answer in time asks no more.
pub(super) async fn each_second(streams: Vec<TcpStream>, seconds: u32) -> io::Result<Answered> {
    let counts = Rc::new((Cell::new(0_u32), Cell::new(0_u32)));
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds.into());
    let wanted = streams.len() as f64 * f64::from(seconds);
    let every = Duration::from_secs(1) / u32::try_from(streams.len()).unwrap_or(u32::MAX).max(1);
    let mut clients = JoinSet::new();
    for (mut stream, number) in streams.into_iter().zip(0..) {
        let counts = Rc::clone(&counts);
        let work = async move {
            let mut due = start + every * number;
            while due < end {
                time::sleep_until(due.into()).await;
                ask(&mut stream).await?;
                let (all, soon) = &*counts;
                all.set(all.get() + 1);
                soon.set(soon.get() + u32::from(due.elapsed() < Duration::from_secs(1)));
                due += Duration::from_secs(1);
            }
            io::Result::Ok(())
        };
        // The last requests have their second.
        clients.spawn_local(time::timeout_at((end + Duration::from_secs(1)).into(), work));
    }
    while let Some(done) = clients.join_next().await {
        // Out of patience, or reset: it has had its answers.
        let _ = done.map_err(io::Error::other)?;
    }
    let (all, soon) = &*counts;
    Ok(Answered { all: all.get(), soon: soon.get(), wanted })
}
