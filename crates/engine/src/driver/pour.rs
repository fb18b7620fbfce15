//! Streams that are poured into each other: what the one receives is handed to the other.
//!
//! Little goes by a copy, which costs less than a pipe does; what fills the buffer is followed by all that there is,
//! spliced through a pipe, and where that was much the next is spliced from the start. There is one pipe for all streams: it is empty between calls, as what the receiving stream
//! did not take is kept beside it. That is little, for no more is spliced than it has room for.

use std::collections::{HashMap, HashSet};
use std::io;

use netyard_sys::splice::Pipe;
use netyard_sys::stream::Stream;

use super::sockets::Sockets;
use crate::edge::{Poured, SocketId, Then};

/// What is copied, bytes.
const COPIED: usize = 16 * 1024;
/// What is poured before others get their turn, bytes.
const TURN: usize = 1 << 20;
/// The most that is spliced in one step, bytes.
const STEP: usize = 256 << 10;
/// What is much, bytes.
const MUCH: usize = 64 << 10;

/// What it takes to pour streams.
#[derive(Debug, Default)]
pub(super) struct Pours {
    pipe: Option<Pipe>,
    buffer: Vec<u8>,
    /// What was taken off a stream and not by this one, to which it goes before anything else.
    rests: HashMap<SocketId, Vec<u8>>,
    /// Streams to which much was spliced the last time.
    bulk: HashSet<SocketId>,
}

impl Pours {
    /// Makes what pouring takes, if it is not there.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if self.pipe.is_none() {
            self.pipe = Some(Pipe::new()?);
            self.buffer = vec![0; COPIED];
        }
        Ok(())
    }

    /// A socket is closed.
    pub(super) fn forget(&mut self, socket: SocketId) {
        self.rests.remove(&socket);
        self.bulk.remove(&socket);
    }

    /// Moves what `from` has received to `to`.
    pub(super) fn pour(&mut self, sockets: &Sockets, from: SocketId, to: SocketId) -> Poured {
        let (Ok(source), Ok(sink), Some(pipe)) =
            (sockets.open_stream(from), sockets.open_stream(to), &self.pipe)
        else {
            return Poured { bytes: 0, then: Then::Broken };
        };
        let mut rest = self.rests.remove(&to).unwrap_or_default();
        let was_bulk = self.bulk.contains(&to);
        let mut pour =
            Pour { source, sink, pipe, rest: &mut rest, bytes: 0, spliced: 0, spoiled: false };
        let then = pour.run(&mut self.buffer, was_bulk).unwrap_or_else(|then| then);
        let Pour { bytes, spliced, spoiled, .. } = pour;
        match spliced >= MUCH {
            true if !was_bulk => _ = self.bulk.insert(to),
            false if was_bulk => _ = self.bulk.remove(&to),
            _ => {}
        }
        if spoiled {
            // What is left in it is nobody else's.
            self.pipe = Pipe::new().ok();
        }
        if !rest.is_empty() && then == Then::Full {
            self.rests.insert(to, rest);
        }
        Poured { bytes, then }
    }
}

/// One call of [`Pours::pour`].
struct Pour<'a> {
    source: &'a Stream,
    sink: &'a Stream,
    pipe: &'a Pipe,
    rest: &'a mut Vec<u8>,
    /// How many were taken off the source.
    bytes: usize,
    /// How many of them went by the pipe.
    spliced: usize,
    /// The pipe could not be emptied.
    spoiled: bool,
}

impl Pour<'_> {
    /// Pours; both results say how it stands.
    fn run(&mut self, buffer: &mut [u8], is_bulk: bool) -> Result<Then, Then> {
        let rest = std::mem::take(self.rest);
        self.hand_over(&rest)?;
        if is_bulk {
            self.splice()?;
        }
        while self.bytes < TURN {
            // It goes past urgent data, too, before which splice(2) stops.
            let count = match taken(self.source.receive(buffer))? {
                0 => return Ok(Then::Ended),
                count => count,
            };
            self.bytes += count;
            self.hand_over(buffer.get(..count).unwrap_or_default())?;
            if count == buffer.len() {
                self.splice()?;
            }
        }
        Ok(Then::More)
    }

    /// Splices until there is nothing more to be had, or enough.
    fn splice(&mut self) -> Result<(), Then> {
        while self.bytes < TURN {
            let room = self.sink.send_room().unwrap_or(COPIED).clamp(COPIED, STEP);
            let mut left = match taken(self.pipe.fill(self.source, room)) {
                // The next copy finds out what there is to know of it.
                Ok(0) | Err(Then::Dry) => return Ok(()),
                count => count?,
            };
            self.bytes += left;
            self.spliced += left;
            while left > 0 {
                match self.pipe.empty(self.sink, left) {
                    Ok(count @ 1..) => left = left.saturating_sub(count),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    outcome => {
                        self.keep(left)?;
                        return Err(full_or_refused(outcome));
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands bytes to the sink; keeps what it does not take.
    fn hand_over(&mut self, mut bytes: &[u8]) -> Result<(), Then> {
        while !bytes.is_empty() {
            match self.sink.send(bytes) {
                Ok(count @ 1..) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => {
                    self.rest.extend_from_slice(bytes);
                    return Err(full_or_refused(outcome));
                }
            }
        }
        Ok(())
    }

    /// Empties the pipe of what the sink did not take.
    fn keep(&mut self, mut left: usize) -> Result<(), Then> {
        self.rest.reserve_exact(left);
        let mut part = [0; 4096];
        while left > 0 {
            let room = part.len().min(left);
            let into = part.get_mut(..room).unwrap_or_default();
            match self.pipe.take(into) {
                Ok(count @ 1..) => {
                    self.rest.extend_from_slice(into.get(..count).unwrap_or_default());
                    left = left.saturating_sub(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // They were there a moment ago.
                _ => {
                    self.spoiled = true;
                    return Err(Then::Broken);
                }
            }
        }
        Ok(())
    }
}

/// How it stands when a source gave nothing.
fn taken(outcome: io::Result<usize>) -> Result<usize, Then> {
    outcome.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Then::Dry,
        io::ErrorKind::Interrupted => Then::More,
        _ => Then::Broken,
    })
}

/// How it stands when a sink took nothing.
fn full_or_refused(outcome: io::Result<usize>) -> Then {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Then::Refused,
        _ => Then::Full,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    use netyard_sys::poll::{Events, Poll};

    use super::*;

    /// How much is different before it begins anew, bytes.
    const PATTERN: u32 = 1_000_004;
    /// What far ends wait for at most.
    const SOON: Duration = Duration::from_secs(60);

    struct Table {
        poll: Poll,
        sockets: Sockets,
        pours: Pours,
    }

    impl Table {
        fn new() -> Self {
            let (poll, sockets) = (Poll::new().unwrap(), Sockets::new());
            let mut pours = Pours::default();
            pours.prepare().unwrap();
            Self { poll, sockets, pours }
        }

        /// A stream of ours and its far end.
        fn stream(&mut self) -> (SocketId, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            far.set_read_timeout(Some(SOON)).unwrap();
            let near = listener.accept().unwrap().0;
            (self.sockets.adopt_stream(&self.poll, near.into()).unwrap(), far)
        }

        /// Pours pairs in turn until none has more to do; how each came to its end.
        fn run(&mut self, pairs: &[(SocketId, SocketId)]) -> Vec<(usize, Then)> {
            let mut done: Vec<_> = pairs.iter().map(|_| (0, Then::More)).collect();
            let is_open = |then| matches!(then, Then::More | Then::Dry | Then::Full);
            let mut events = Events::new();
            while done.iter().any(|(_, then)| is_open(*then)) {
                let mut busy = false;
                for ((from, to), (bytes, then)) in pairs.iter().zip(&mut done) {
                    if is_open(*then) {
                        let poured = self.pours.pour(&self.sockets, *from, *to);
                        *bytes += poured.bytes;
                        *then = poured.then;
                        busy |= *then == Then::More;
                        if *then == Then::Ended {
                            self.sockets.shutdown_write(*to).unwrap();
                        }
                    }
                }
                if !busy {
                    self.poll.wait(&mut events, Some(Duration::from_millis(10))).unwrap();
                }
            }
            done
        }

        /// Sends until nobody takes any more, so that a rest is held; how much, and how much of it was poured.
        fn fill(&mut self, from: SocketId, to: SocketId, far: &TcpStream) -> (usize, usize) {
            far.set_nonblocking(true).unwrap();
            let text = text(0, PATTERN);
            let (mut sent, mut bytes) = (0, 0);
            loop {
                let blocked = match (&*far).write(&text[sent % text.len()..]) {
                    Ok(count) => {
                        sent += count;
                        false
                    }
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                };
                let poured = self.pours.pour(&self.sockets, from, to);
                bytes += poured.bytes;
                if blocked && poured.then == Then::Full {
                    break;
                }
            }
            far.set_nonblocking(false).unwrap();
            assert!(!self.pours.rests.is_empty());
            (sent, bytes)
        }
    }

    /// Bytes that no two pairs have in common, and that show when one is missing or told twice.
    fn text(seed: u32, len: u32) -> Vec<u8> {
        (0..len / 4).flat_map(|at| (at.wrapping_mul(2_654_435_761) ^ seed).to_le_bytes()).collect()
    }

    fn sends(mut far: TcpStream, bytes: Vec<u8>) -> JoinHandle<()> {
        thread::spawn(move || {
            far.write_all(&bytes).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
        })
    }

    /// Reads all that comes, at most so much at a time.
    fn gets(mut far: TcpStream, part: usize) -> JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), vec![0; part]);
            loop {
                match far.read(&mut buffer).unwrap() {
                    0 => return all,
                    count => all.extend_from_slice(&buffer[..count]),
                }
            }
        })
    }

    #[test]
    fn pairs_share_a_pipe_and_each_gets_its_own_bytes_whole() {
        let mut table = Table::new();
        let mut pairs = Vec::new();
        let mut threads = Vec::new();
        // One reader is far slower than its sender.
        for (seed, part) in [(1, 700), (2, 60_000), (3, 20_000)] {
            let ((from, source), (to, sink)) = (table.stream(), table.stream());
            let bytes = text(seed, 6_000_004);
            threads.push((sends(source, bytes.clone()), gets(sink, part), bytes));
            pairs.push((from, to));
        }
        let done = table.run(&pairs);
        assert!(done.iter().all(|it| *it == (6_000_004, Then::Ended)), "{done:?}");
        assert!(table.pours.rests.is_empty());
        for (sender, reader, bytes) in threads {
            sender.join().unwrap();
            assert!(reader.join().unwrap() == bytes, "the bytes differ");
        }
    }

    /// What [`Table::fill`] sends, from the beginning.
    fn is_filling(got: &[u8]) -> bool {
        let text = text(0, PATTERN);
        got.chunks(text.len()).all(|part| part == &text[..part.len()])
    }

    #[test]
    fn what_is_held_back_arrives_before_an_end() {
        let mut table = Table::new();
        let ((from, source), (to, sink)) = (table.stream(), table.stream());
        let (sent, before) = table.fill(from, to, &source);
        source.shutdown(Shutdown::Write).unwrap();
        let reader = gets(sink, 60_000);
        assert_eq!(table.run(&[(from, to)]), [(sent - before, Then::Ended)]);
        let got = reader.join().unwrap();
        assert!(got.len() == sent && is_filling(&got), "{} of {sent}", got.len());
        assert!(table.pours.rests.is_empty());
    }

    #[test]
    fn what_was_taken_before_a_reset_arrives() {
        let mut table = Table::new();
        let ((from, source), (to, sink)) = (table.stream(), table.stream());
        let (_, before) = table.fill(from, to, &source);
        // Closed with a byte that nobody has read.
        table.sockets.send(from, b"?").unwrap();
        source.peek(&mut [0]).unwrap();
        drop(source);
        let reader = gets(sink, 60_000);
        let [(after, then)] = table.run(&[(from, to)])[..] else { panic!("one pair") };
        assert_eq!(then, Then::Broken);
        table.sockets.close(to, false);
        let got = reader.join().unwrap();
        assert!(got.len() == before + after && is_filling(&got), "{}", got.len());
        assert!(table.pours.rests.is_empty());
    }

    #[test]
    fn a_reader_that_goes_is_told_and_what_was_held_for_it_is_forgotten() {
        let mut table = Table::new();
        let ((from, source), (to, sink)) = (table.stream(), table.stream());
        table.fill(from, to, &source);
        drop(sink);
        assert_eq!(table.run(&[(from, to)])[0].1, Then::Refused);
        assert!(table.pours.rests.is_empty());
    }
}
