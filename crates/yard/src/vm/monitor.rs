//! The monitor of a virtual machine: the program of a VM instance. It starts QEMU, carries the
//! guest program's output to its own, passes signals on, and ends as the guest's program did.
//!
//! Threads wait, one for each thing that may happen, and put it into one channel; the main thread
//! decides. QEMU dies with the monitor, the monitor with the instance.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use netyard_sys::capability::Capabilities;
use netyard_sys::kvm;
use netyard_sys::process::{self, Launch, PidFd, Session, Signals};
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::wait;
use netyard_vminit::protocol::Message;
use serde_json::{Value, json};

use super::message::{self, Boot, Job, Report};
use super::qemu::{self, Again, Inherited};
use crate::api::Accelerator;
use crate::instance::signal;

/// The hidden verb that calls [`main`].
pub const VERB: &str = "vm-monitor";

/// How long QEMU may take to end by itself.
const GOING: Duration = Duration::from_secs(1);

/// How long the guest's last words may take when QEMU is gone: they are here already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the monitor reads.
const WATCHED: [i32; 4] = [signal::HANGUP, signal::INTERRUPT, signal::QUIT, signal::TERMINATE];

/// What the hidden verb [`VERB`] runs: standard input is the connection to the keeper.
#[must_use]
pub fn main() -> ExitCode {
    match monitor() {
        Ok(code) => code,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Says something where the guest's errors go.
fn say(text: &str) {
    // Nobody may listen.
    let _ = writeln!(io::stderr(), "netyard: {text}");
}

/// What may happen.
enum Event {
    /// The guest's init says something that is not output.
    Guest(Message),
    /// The guest's init says nothing more.
    GuestSilent,
    /// QEMU says something.
    Qemu(Value),
    /// QEMU has ended.
    Ended(io::Result<ExitStatus>),
    Signal(i32),
}

fn monitor() -> io::Result<ExitCode> {
    let keeper = SeqPacket::from(io::stdin().as_fd().try_clone_to_owned()?);
    let nothing = || io::Error::new(io::ErrorKind::UnexpectedEof, "there is nothing to run");
    let (job, descriptors) = message::receive::<Job>(&keeper)?.ok_or_else(nothing)?;
    let signals = Signals::take(&WATCHED)?;
    let (accelerator, why) = choose();
    tell(&keeper, &Report::Accelerator { accelerator, why });
    let (events, happened) = channel();
    let mut machine = Machine::start(&job, accelerator, descriptors, &events)?;
    let sender = events.clone();
    thread::spawn(move || pass_signals(&signals, &sender));
    Ok(machine.watch(&keeper, &happened))
}

fn tell(keeper: &SeqPacket, report: &Report) {
    // A keeper that is gone takes us along.
    let _ = message::send(keeper, report, &[]);
}

/// The fastest way that works here, and why it is not KVM.
fn choose() -> (Accelerator, Option<String>) {
    let Err(error) = kvm::probe() else { return (Accelerator::Kvm, None) };
    let why = match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {}", kvm::DEVICE),
        io::ErrorKind::PermissionDenied => {
            format!("{} is closed to this user (its group is usually kvm)", kvm::DEVICE)
        }
        _ => format!("KVM is of no use here: {error}"),
    };
    (Accelerator::Tcg, Some(why))
}

/// A running QEMU.
struct Machine {
    /// Held, so that its number stays its own.
    qemu: PidFd,
    control: UnixStream,
    /// To the guest's init, if the guest is ours.
    guest: Option<UnixStream>,
    /// The guest's program runs.
    started: bool,
    /// We want it to end, and this is the code to end with then.
    ending: Option<u8>,
}

impl Machine {
    fn start(
        job: &Job,
        accelerator: Accelerator,
        descriptors: Vec<OwnedFd>,
        events: &Sender<Event>,
    ) -> io::Result<Self> {
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let mut descriptors = descriptors.into_iter();
        let (control, their_control) = UnixStream::pair()?;
        let (mut guest, mut their_guest) = (None, None);
        if matches!(job.boot, Boot::Program { .. }) {
            let (ours, theirs) = UnixStream::pair()?;
            let files = descriptors.next().ok_or_else(missing)?;
            (guest, their_guest) = (Some(ours), Some((OwnedFd::from(theirs), files)));
        }
        let wires: Vec<OwnedFd> = descriptors.collect();
        if wires.len() != job.cards.len() {
            return Err(missing());
        }
        let inherited = Inherited {
            control: their_control.as_fd(),
            guest: their_guest.as_ref().map(|(port, files)| (port.as_fd(), files.as_fd())),
            wires: wires.iter().map(AsFd::as_fd).collect(),
        };
        let again = match job.shares_memory() {
            true => Again::for_program(&job.qemu)?,
            false => Again::Seconds,
        };
        let mut command = Command::new(&job.qemu);
        command.args(qemu::arguments(job, accelerator, again, &inherited));
        // The console: an image's own output, but only complaints of a kernel that runs a program.
        let console = match guest {
            Some(_) => io::stderr().as_fd().try_clone_to_owned()?,
            None => io::stdout().as_fd().try_clone_to_owned()?,
        };
        command.stdin(Stdio::null()).stdout(console);
        // What a terminal sends to its foreground is for us to pass on.
        command.process_group(0);
        let mut shared: Vec<OwnedFd> = vec![their_control.into()];
        shared.extend(their_guest.into_iter().flat_map(|(port, files)| [port, files]));
        shared.extend(wires);
        process::inherit(&mut command, shared);
        let launch =
            Launch { session: Session::Ours, bounding: Capabilities::NONE, die_with_us: true };
        let child = launch.spawn(&mut command)?;
        // It holds what only QEMU should: ends whose closing means something.
        drop(command);
        let qemu = PidFd::open(child.id())?;
        follow(child, control.try_clone()?, guest.as_ref(), events)?;
        let machine = Self { qemu, control, guest, started: false, ending: None };
        machine.ask("qmp_capabilities");
        machine.ask("query-status");
        Ok(machine)
    }

    /// Sends QEMU a command. The answer comes as an event.
    fn ask(&self, command: &str) {
        let line = format!("{}\n", json!({ "execute": command }));
        // A QEMU that is gone has ended, which is an event, too.
        let _ = (&self.control).write_all(line.as_bytes());
    }

    /// Until the end; the code to end with.
    fn watch(&mut self, keeper: &SeqPacket, happened: &Receiver<Event>) -> ExitCode {
        loop {
            // Only one that was asked to end is waited for with a limit.
            let event = match self.ending.filter(|_| self.guest.is_some()) {
                None => happened.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => happened.recv_timeout(GOING),
            };
            match event {
                Ok(Event::Guest(message)) => self.hear(keeper, message),
                Ok(Event::GuestSilent) => {}
                Ok(Event::Qemu(said)) => {
                    if let Some(state) = state(&said) {
                        tell(keeper, &Report::State(state.to_owned()));
                    }
                }
                Ok(Event::Signal(signal)) => self.pass(signal),
                Ok(Event::Ended(status)) => return self.ended(keeper, status, happened),
                Err(RecvTimeoutError::Timeout) => {
                    // Nothing that it still holds is of worth.
                    let _ = self.qemu.signal(signal::KILL);
                }
                Err(RecvTimeoutError::Disconnected) => return ExitCode::FAILURE,
            }
        }
    }

    /// The guest's init says something.
    fn hear(&mut self, keeper: &SeqPacket, message: Message) {
        let code = match message {
            Message::Started => {
                self.started = true;
                return tell(keeper, &Report::Booted);
            }
            Message::Exited(code) => u8::try_from(code).unwrap_or(u8::MAX),
            Message::Killed(signal) => by_signal(signal),
            Message::Failed(text) => {
                say(&format!("the guest cannot be set up: {text}"));
                1
            }
            Message::Output(_) | Message::Error(_) | Message::Signal(_) => return,
        };
        self.ending = Some(code);
        self.ask("quit");
    }

    /// Passes a signal on: to the program, or as the press of a button to an image.
    fn pass(&mut self, signal: i32) {
        match &self.guest {
            Some(guest) if self.started => {
                // A guest that does not read it any more is ending.
                let _ = Message::Signal(signal).write(&mut &*guest);
            }
            // Still booting: there is nothing to be asked.
            Some(_) => {
                self.ending = self.ending.or(Some(by_signal(signal)));
                self.ask("quit");
            }
            None if self.ending.is_none() => {
                self.ending = Some(0);
                self.ask("system_powerdown");
            }
            None => self.ask("quit"),
        }
    }

    /// QEMU has ended.
    fn ended(
        &mut self,
        keeper: &SeqPacket,
        status: io::Result<ExitStatus>,
        happened: &Receiver<Event>,
    ) -> ExitCode {
        // What the guest said last may come behind the end.
        while self.guest.is_some() && self.ending.is_none() {
            match happened.recv_timeout(LAST_WORDS) {
                Ok(Event::Guest(message)) => self.hear(keeper, message),
                Ok(Event::GuestSilent) | Err(_) => break,
                Ok(_) => {}
            }
        }
        if let Some(code) = self.ending {
            return ExitCode::from(code);
        }
        match status {
            Err(error) => say(&format!("cannot wait for QEMU: {error}")),
            Ok(status) if !status.success() => {
                let how = status.signal().map_or_else(
                    || format!("code {}", status.code().unwrap_or_default()),
                    |signal| format!("signal {signal}"),
                );
                let old = match self.started {
                    true => "",
                    false => "; version 7.2 or newer is needed, in user mode with vhost-user",
                };
                say(&format!("QEMU has ended with {how}{old}"));
            }
            Ok(_) if self.guest.is_none() => return ExitCode::SUCCESS,
            Ok(_) => say("the guest has gone without saying how its program ended"),
        }
        ExitCode::FAILURE
    }
}

/// As a shell shows it.
fn by_signal(signal: i32) -> u8 {
    u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX)
}

/// The machine's state, if that is what QEMU says: the answer to `query-status`, or an event.
fn state(said: &Value) -> Option<&str> {
    match said.get("event").and_then(Value::as_str) {
        Some("STOP") => Some("paused"),
        Some("RESUME") => Some("running"),
        Some("SHUTDOWN") => Some("shutdown"),
        Some("GUEST_PANICKED") => Some("guest-panicked"),
        Some(_) => None,
        None => said.get("return")?.get("status")?.as_str(),
    }
}

/// Starts the threads that wait for QEMU and what it says, and for the guest.
fn follow(
    mut qemu: Child,
    control: UnixStream,
    guest: Option<&UnixStream>,
    events: &Sender<Event>,
) -> io::Result<()> {
    if let Some(guest) = guest {
        let (guest, events) = (guest.try_clone()?, events.clone());
        thread::spawn(move || carry(&guest, &events));
    }
    let said = events.clone();
    thread::spawn(move || {
        // One JSON value on each line, docs/interop/qmp-spec of QEMU. Nothing in it comes from
        // the guest but what it names itself, and QEMU bounds that.
        for line in BufReader::new(control).lines().map_while(Result::ok) {
            if let Ok(value) = serde_json::from_str(&line)
                && said.send(Event::Qemu(value)).is_err()
            {
                return;
            }
        }
    });
    let ended = events.clone();
    thread::spawn(move || {
        // Nobody listens any more if we end first.
        let _ = ended.send(Event::Ended(qemu.wait()));
    });
    Ok(())
}

/// Carries what the guest's program writes; everything else is for the main thread.
fn carry(guest: &UnixStream, events: &Sender<Event>) {
    let mut from = BufReader::with_capacity(netyard_vminit::protocol::MAX_PAYLOAD, guest);
    // What cannot be understood ends the conversation; the guest may be anybody's by then.
    while let Ok(Some(message)) = Message::read(&mut from) {
        // Output that nobody wants is dropped, as the guest cannot be told.
        match message {
            Message::Output(bytes) => drop(put(&mut io::stdout().lock(), &bytes)),
            Message::Error(bytes) => drop(put(&mut io::stderr().lock(), &bytes)),
            other => {
                if events.send(Event::Guest(other)).is_err() {
                    return;
                }
            }
        }
    }
    let _ = events.send(Event::GuestSilent);
}

fn put(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Waits for signals.
fn pass_signals(signals: &Signals, events: &Sender<Event>) {
    loop {
        if wait::readable([signals.as_fd()], None).is_err() {
            return;
        }
        while let Ok(Some(signal)) = signals.next() {
            if events.send(Event::Signal(signal.number)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_told_by_answers_and_events() {
        let state = |said: Value| state(&said).map(str::to_owned);
        let answer = json!({"return": {"running": true, "status": "running"}});
        assert_eq!(state(answer).as_deref(), Some("running"));
        assert_eq!(state(json!({"event": "SHUTDOWN"})).as_deref(), Some("shutdown"));
        for other in [json!({"return": {}}), json!({"event": "x"}), json!({"QMP": {}}), json!(1)] {
            assert_eq!(state(other), None);
        }
    }

    #[test]
    fn without_kvm_there_is_a_reason() {
        let (accelerator, why) = choose();
        assert_eq!(why.is_none(), accelerator == Accelerator::Kvm);
    }
}
