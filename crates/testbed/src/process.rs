//! Programs that a test runs: found with a helpful error, ended by their own process id.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::wait::INTERVAL;

/// How many lines of a program's output are shown when it did not do what it was to do.
const LAST_LINES: usize = 50;

/// A program of the machine (`curl`, `iperf3`, ...), looked up in `PATH` and the system folders.
///
/// # Panics
/// When it is not installed; the message says how to install it.
#[must_use]
pub fn peer(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `make deps` as root"))
}

/// A program of this workspace, from the folder that cargo built the running program into.
///
/// # Panics
/// When it has not been built there.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let running = env::current_exe().expect("the running program has a path");
    // target/debug/netyard-bench or target/debug/deps/<test>-<hash>
    let found = running.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    found.into_iter().find(|file| file.is_file()).unwrap_or_else(|| {
        panic!(
            "{name} is not beside {}: build it first with `cargo build --workspace`",
            running.display()
        )
    })
}

/// Runs a command to its end and returns what came of it.
///
/// # Panics
/// When it cannot be started.
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Runs a command to its end and returns its standard output.
///
/// # Panics
/// When it cannot be started or fails; the message holds everything it said.
pub fn run(command: &mut Command) -> String {
    let done = output(command);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{command:?} failed ({}):\n{text}{}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    text
}

/// A program that runs beside the test. Its output is collected; it is killed, by its own process
/// id, when this value goes.
#[derive(Debug)]
pub struct Background {
    child: Child,
    what: String,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts a command. Its standard input is a pipe that stays open until this value goes.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().map(|pipe| collect(pipe, Arc::clone(&output)));
        let stderr = child.stderr.take().map(|pipe| collect(pipe, Arc::clone(&output)));
        let readers = stdout.into_iter().chain(stderr).collect();
        Self { child, what: format!("{command:?}"), output, readers }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far, both streams.
    ///
    /// # Panics
    /// Never in practice: the lock's other holder only appends lines.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until a line of its output contains `text`, and returns that line.
    ///
    /// # Panics
    /// When it ends before, or `within` has passed; the message holds the end of its output.
    pub fn wait_for_line(&mut self, text: &str, within: Duration) -> String {
        let start = Instant::now();
        loop {
            // The last lines may still be on their way through the pipes when it has ended.
            let ended = self.child.try_wait().expect("a child can be waited for");
            let all_read = self.readers.iter().all(JoinHandle::is_finished);
            if let Some(line) = self.output().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let how = match ended {
                Some(status) if all_read => format!("ended ({status})"),
                _ if start.elapsed() >= within => format!("went on for {within:?} ({ended:?})"),
                _ => {
                    thread::sleep(INTERVAL);
                    continue;
                }
            };
            panic!("{} {how} without `{text}`; its last lines:\n{}", self.what, self.last_lines());
        }
    }

    /// The end of its output: a machine's starts with what all machines say.
    fn last_lines(&self) -> String {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// Sends it a signal by name, e.g. `INT`.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits for its end, and for all that it has written. What it has left behind and has its pipes
    /// open, too, is not waited for longer than `within`.
    ///
    /// # Panics
    /// When `within` has passed; the message holds the end of its output.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let start = Instant::now();
        let mut status = None;
        loop {
            if status.is_none() {
                status = self.child.try_wait().expect("a child can be waited for");
            }
            let read = self.readers.iter().all(JoinHandle::is_finished);
            match status {
                Some(status) if read || start.elapsed() >= within => return status,
                None if start.elapsed() >= within => {
                    let lines = self.last_lines();
                    panic!("{} has not ended after {within:?}; its last lines:\n{lines}", self.what)
                }
                _ => thread::sleep(INTERVAL),
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by name to one process.
///
/// # Panics
/// When it cannot be sent.
pub(crate) fn signal(process: u32, name: &str) {
    run(Command::new(peer("kill")).arg(format!("-{name}")).arg(process.to_string()));
}

fn collect(pipe: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            into.lock().expect("no holder panics").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}
