//! What instances write to standard output and standard error: kept in files of bounded size,
//! passed on to those who follow.
//!
//! A line of a log is `2026-11-21T14:52:13.123Z out text`, or `err`. `log` has at most
//! [`FILE_LEN`] bytes; when it is full it becomes `log.1`, whose lines go.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hyper::body::Bytes;
use tokio::sync::broadcast::{self, Receiver, Sender};

/// Bytes in a file of a log; there are two.
const FILE_LEN: u64 = 1 << 20;

/// Longest line, bytes; what is longer continues on the next.
const LINE_LEN: usize = 8 << 10;

/// Writes that a follower may be behind; what it has missed by then, it is told.
const FOLLOWER_LAG: usize = 256;

/// Which of a program's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    Error,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Output => "out",
            Self::Error => "err",
        }
    }
}

/// The log of one instance.
#[derive(Debug)]
pub(crate) struct Log {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    len: u64,
    followers: Sender<Bytes>,
}

impl Log {
    /// The log in that folder, gone on with if there is one.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let (file, len) = open_file(folder)?;
        let state = State { file, len, followers: broadcast::channel(FOLLOWER_LAG).0 };
        Ok(Self { folder: folder.to_owned(), state: Mutex::new(state) })
    }

    /// Adds whole lines, each of which ends with a line feed.
    pub(crate) fn write(&self, lines: Bytes) -> io::Result<()> {
        let mut state = self.lock();
        // Nobody may follow.
        let _ = state.followers.send(lines.clone());
        let len = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if state.len.saturating_add(len) > FILE_LEN {
            fs::rename(current(&self.folder), rotated(&self.folder))?;
            (state.file, state.len) = open_file(&self.folder)?;
        }
        state.file.write_all(&lines)?;
        state.len += len;
        Ok(())
    }

    /// What is there: all of it, or the last lines.
    pub(crate) fn read(&self, tail: Option<usize>) -> io::Result<Bytes> {
        let _state = self.lock();
        read(&self.folder, tail)
    }

    /// The same, and what comes.
    pub(crate) fn follow(&self, tail: Option<usize>) -> io::Result<(Bytes, Receiver<Bytes>)> {
        let state = self.lock();
        Ok((read(&self.folder, tail)?, state.followers.subscribe()))
    }

    /// How many follow.
    #[cfg(test)]
    pub(crate) fn followers(&self) -> usize {
        self.lock().followers.receiver_count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn current(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn rotated(folder: &Path) -> PathBuf {
    folder.join("log.1")
}

fn open_file(folder: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(current(folder))?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

fn read(folder: &Path, tail: Option<usize>) -> io::Result<Bytes> {
    let mut text = match fs::read(rotated(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        text => text?,
    };
    text.append(&mut fs::read(current(folder))?);
    let text = Bytes::from(text);
    let Some(lines) = tail else { return Ok(text) };
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    // The last line's end ends no other line.
    let start = ends.map(|(at, _)| at + 1).nth(lines).unwrap_or(0);
    Ok(text.slice(start..))
}

/// Makes lines of a log from what a program writes, however it is cut.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    begun: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, begun: Vec::new() }
    }

    /// The lines that `bytes` complete.
    pub(crate) fn push(&mut self, now: SystemTime, bytes: &[u8]) -> Bytes {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            for piece in text.chunks(LINE_LEN) {
                if self.begun.len() + piece.len() > LINE_LEN {
                    self.end(now, &mut lines);
                }
                self.begun.extend_from_slice(piece);
            }
            if ends {
                self.end(now, &mut lines);
            }
        }
        lines.into()
    }

    /// The line that was begun and not ended, if any.
    pub(crate) fn finish(&mut self, now: SystemTime) -> Bytes {
        let mut lines = Vec::new();
        if !self.begun.is_empty() {
            self.end(now, &mut lines);
        }
        lines.into()
    }

    fn end(&mut self, now: SystemTime, lines: &mut Vec<u8>) {
        let time = humantime::format_rfc3339_millis(now);
        lines.extend_from_slice(format!("{time} {} ", self.stream.word()).as_bytes());
        lines.append(&mut self.begun);
        lines.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_carry_time_and_stream_however_they_are_cut() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let mut lines = Lines::new(Stream::Error);
        assert_eq!(text(&lines.push(now, b"he")), "");
        assert_eq!(
            text(&lines.push(now, b"llo\n\nwor")),
            "1970-01-01T00:00:01.500Z err hello\n1970-01-01T00:00:01.500Z err \n"
        );
        assert_eq!(text(&lines.finish(now)), "1970-01-01T00:00:01.500Z err wor\n");
        assert_eq!(text(&lines.finish(now)), "");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::new(Stream::Output);
        let cut = lines.push(SystemTime::UNIX_EPOCH, &vec![b'x'; 2 * LINE_LEN + 1]);
        assert_eq!(cut.iter().filter(|byte| **byte == b'\n').count(), 2);
    }

    #[test]
    fn a_log_is_bounded_and_its_last_lines_can_be_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        let line = |number: usize| Bytes::from(format!("{number} {}\n", "x".repeat(1000)));
        for number in 0..4000 {
            log.write(line(number)).unwrap();
        }
        let all = log.read(None).unwrap();
        assert!(all.len() <= 2 << 20 && all.len() > 1 << 20, "{}", all.len());
        assert!(all.ends_with(&line(3999)));
        let [a, b] = [line(3998), line(3999)];
        assert_eq!(log.read(Some(2)).unwrap(), [a, b].concat());
        assert_eq!(log.read(Some(0)).unwrap(), "");
        assert_eq!(log.read(Some(1_000_000)).unwrap(), all);
        drop(log);
        assert_eq!(
            Log::open(folder.path()).unwrap().read(None).unwrap(),
            all,
            "it is gone on with"
        );
    }

    #[test]
    fn followers_see_what_comes_after_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        log.write(Bytes::from_static(b"one\n")).unwrap();
        let (there, mut coming) = log.follow(None).unwrap();
        log.write(Bytes::from_static(b"two\n")).unwrap();
        assert_eq!((there, coming.try_recv().unwrap()), ("one\n".into(), "two\n".into()));
        drop(log);
        assert!(coming.try_recv().is_err());
    }
}
