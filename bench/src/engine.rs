//! The engines: how each is started around a guest namespace, and how a program runs inside.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use netyard_testbed::{Background, Namespace, binary, output, peer, wait_for};
use serde::Serialize;

/// How long an engine may take until its guest reaches the outside.
const START: Duration = Duration::from_secs(20);

/// Port of the host's loopback that leads into the guest, to the same port there.
pub(crate) const FORWARDED: u16 = 5301;

/// What connects a guest with the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// No engine: the programs run at the kernel's veth pair that all the others use too.
    Veth,
    /// This project.
    Netyard,
    /// passt's pasta.
    Pasta,
    /// slirp4netns.
    Slirp4netns,
}

impl Engine {
    /// Whether connections to [`FORWARDED`] arrive in its guest.
    pub(crate) fn forwards(self) -> bool {
        self != Self::Slirp4netns
    }

    /// A namespace, and a command that connects it with the outside, at MTU 1500; `None`: there is no such engine.
    pub(crate) fn around_namespace(self) -> Option<(Namespace, Command)> {
        let command: fn(&Namespace) -> Command = match self {
            Self::Veth => return None,
            Self::Netyard => netyard_attach,
            Self::Pasta => |guest| pasta(guest, 1500, "none"),
            Self::Slirp4netns => |guest| slirp4netns(guest, 1500),
        };
        let namespace = Namespace::new("started");
        let command = command(&namespace);
        Some((namespace, command))
    }

    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 4] = [Self::Veth, Self::Netyard, Self::Pasta, Self::Slirp4netns];
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Netyard => "netyard",
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        })
    }
}

/// Where a guest's programs run.
enum Guest {
    /// Here.
    Here,
    /// In a namespace that was made for the engine.
    Namespace(Namespace),
    /// In the namespaces of a process that the engine started.
    Process(u32),
}

/// An engine with a guest that reaches the outside. It ends when this value goes.
pub(crate) struct Running {
    /// Which it is.
    pub(crate) engine: Engine,
    guest: Guest,
    /// The process that moves the packets, if there is one.
    pub(crate) process: Option<u32>,
    /// The engine (for netyard: the keeper), ended by its process id.
    background: Option<Background>,
}

impl Running {
    /// Starts an engine and waits until a connection from its guest to the outside succeeds.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub(crate) fn start(engine: Engine, mtu: u32) -> Result<Self, String> {
        let running = match engine {
            Engine::Veth => Self { engine, guest: Guest::Here, process: None, background: None },
            Engine::Pasta => Self::around_namespace(engine, |guest| {
                let forwarded = format!("127.0.0.1/{FORWARDED}");
                pasta(guest, mtu, &forwarded)
            }),
            Engine::Slirp4netns => Self::around_namespace(engine, |guest| slirp4netns(guest, mtu)),
            Engine::Netyard => Self::netyard(mtu)?,
        };
        running.wait_until_connected()?;
        Ok(running)
    }

    fn around_namespace(engine: Engine, start: impl FnOnce(&Namespace) -> Command) -> Self {
        let guest = Namespace::new("guest");
        let background = Background::start(&mut start(&guest));
        let process = Some(background.id());
        Self { engine, guest: Guest::Namespace(guest), process, background: Some(background) }
    }

    fn netyard(mtu: u32) -> Result<Self, String> {
        let folder = Path::new("/tmp/bench");
        let yard = format!(
            "[networks.lan]\nmtu = {mtu}\n[instances.guest]\nrun = [\"sleep\", \"infinity\"]\n\
             forwards = [\"{FORWARDED}\"]\n"
        );
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join("yard.toml"), yard))
            .map_err(|error| format!("cannot write its yard file: {error}"))?;
        let mut command = Command::new(binary("netyard"));
        let background = Background::start(command.arg("up").current_dir(folder));
        let guest = wait_for("netyard's guest", START, || process_with_argument("infinity"));
        let network = process_with_argument("network-process")
            .ok_or_else(|| "netyard has no network process".to_owned())?;
        Ok(Self {
            engine: Engine::Netyard,
            guest: Guest::Process(guest),
            process: Some(network),
            background: Some(background),
        })
    }

    /// A command that runs a program as the guest, with the rights to choose its congestion
    /// control. Arguments are added to the command.
    pub(crate) fn command(&self, program: &Path) -> Command {
        match &self.guest {
            Guest::Here => Command::new(program),
            Guest::Namespace(namespace) => namespace.command(program),
            Guest::Process(process) => {
                let mut command = Command::new(peer("nsenter"));
                command.args(["--target", &process.to_string(), "--user", "--net"]);
                command.args(["--preserve-credentials", "--"]).arg(program);
                command
            }
        }
    }

    fn wait_until_connected(&self) -> Result<(), String> {
        let start = Instant::now();
        let mut command = self.command(&binary("netyard-traffic"));
        command.arg("connections").arg(crate::measure::server().to_string());
        command.args(["--count", "1"]);
        loop {
            let tried = output(&mut command);
            if tried.status.success() {
                return Ok(());
            }
            if start.elapsed() > START {
                let said = self.background.as_ref().map(Background::output).unwrap_or_default();
                let error = String::from_utf8_lossy(&tried.stderr).into_owned();
                return Err(format!("its guest cannot connect: {error}{said}"));
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A keeper has things to put away; the others have nothing.
        if let Some(background) = &mut self.background {
            background.signal("TERM");
            background.wait(START);
        }
    }
}

fn netyard_attach(guest: &Namespace) -> Command {
    let mut command = Command::new(binary("netyard"));
    command.arg("attach").arg(guest.path());
    command
}

fn pasta(guest: &Namespace, mtu: u32, forwarded: &str) -> Command {
    let mut command = Command::new(peer("pasta"));
    command.args(["--foreground", "--quiet", "--config-net", "--runas", "0"]);
    command.args(["-t", forwarded, "-u", "none", "-T", "none", "-U", "none"]);
    command.args(["--mtu", &mtu.to_string(), "--netns"]).arg(guest.path());
    command
}

fn slirp4netns(guest: &Namespace, mtu: u32) -> Command {
    let mut command = Command::new(peer("slirp4netns"));
    command.args(["--configure", "--enable-ipv6", "--mtu", &mtu.to_string()]);
    command.arg("--netns-type=path").arg(guest.path()).arg("tap0");
    command
}

/// The process in this process namespace whose first argument is `word`.
fn process_with_argument(word: &str) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let process = entry.file_name().to_string_lossy().parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let first = line.split(|byte| *byte == 0).nth(1)?;
        (first == word.as_bytes()).then_some(process)
    })
}
