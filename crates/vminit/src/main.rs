//! Process 1 of a virtual machine that netyard has made for one program.
//!
//! It mounts what programs expect, loads the modules that came with it, sets the network up, and
//! runs the program as its child. Three threads carry: the program's standard output, its standard
//! error, and the host's signals. When the program has ended everything else is killed, what was
//! written last is carried, the host is told how it ended, and the machine is switched off.
//!
//! Nothing here can be repaired by the guest: a step that fails is told to the host, on the port
//! if there is one already and on the console otherwise.

mod network;
mod port;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use netyard_sys::process::{self, Exit};
use netyard_sys::{module, mount, namespace, power};
use netyard_vminit::protocol::{MAX_PAYLOAD, Message};
use netyard_vminit::{CONFIG, Config, Program};

/// `SIGKILL`.
const KILL: i32 = 9;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        say("netyard-vminit is the first process of a virtual machine, and of no use elsewhere");
        return ExitCode::FAILURE;
    }
    let mut port = None;
    let last = run(&mut port).unwrap_or_else(|Failure { step, error }| {
        let text = format!("{step}: {error}");
        say(&text);
        Message::Failed(text)
    });
    if let Some(port) = &port {
        // Without a port the host sees the machine go off without a word.
        let _ = port.send(&last);
    }
    if let Err(error) = power::off() {
        say(&format!("cannot switch the machine off: {error}"));
    }
    ExitCode::FAILURE
}

/// Says something on the console.
fn say(text: &str) {
    // There may be none.
    let _ = writeln!(io::stderr(), "netyard-vminit: {text}");
}

/// A step that did not work.
struct Failure {
    step: String,
    error: io::Error,
}

/// Names the step that an error belongs to.
trait During<T> {
    fn during(self, step: &str) -> Result<T, Failure>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step.to_owned(), error })
    }
}

/// The port, shared by the threads.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn send(&self, message: &Message) -> io::Result<()> {
        message.write(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Everything; the last message for the host.
fn run(port: &mut Option<Port>) -> Result<Message, Failure> {
    mounts()?;
    let text = fs::read(CONFIG).during("read the configuration")?;
    let config: Config =
        serde_json::from_slice(&text).map_err(io::Error::from).during("read the configuration")?;
    network::before_cards();
    for path in &config.modules {
        let step = format!("load {}", path.display());
        let file = File::open(path).during(&step)?;
        match module::load(&file) {
            // Built in, or loaded by the kernel itself.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            loaded => loaded.during(&step)?,
        }
    }
    let device = port::find().during("find the virtio-serial port to the host")?;
    let from_host = device.try_clone().during("share the port")?;
    let port = port.insert(Port(Arc::new(Mutex::new(device))));
    namespace::set_host_name(&config.host_name).during("set the host name")?;
    files(&config)?;
    network::set_up(&config.plugs)?;
    run_program(&config.program, port, from_host)
}

/// Mounts what programs expect.
fn mounts() -> Result<(), Failure> {
    // Not on /run and /tmp: the program itself may be there.
    let kernel: [(&str, &str, Option<&str>); 5] = [
        ("proc", "/proc", None),
        ("sysfs", "/sys", None),
        ("devtmpfs", "/dev", None),
        ("devpts", "/dev/pts", Some("mode=0620,ptmxmode=0666")),
        ("tmpfs", "/dev/shm", Some("mode=1777")),
    ];
    for (kind, folder, options) in kernel {
        let step = format!("mount {folder}");
        fs::create_dir_all(folder).during(&step)?;
        match mount::kernel(kind, Path::new(folder), options) {
            // Many kernels mount devtmpfs by themselves.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            mounted => mounted.during(&step)?,
        }
    }
    fs::create_dir_all("/run").during("make /run")?;
    fs::create_dir_all("/tmp").during("make /tmp")?;
    fs::set_permissions("/tmp", Permissions::from_mode(0o1777)).during("open /tmp")?;
    let links = [("fd", "/dev/fd"), ("fd/0", "/dev/stdin"), ("fd/1", "/dev/stdout")];
    for (to, at) in links.into_iter().chain([("fd/2", "/dev/stderr")]) {
        // Nothing stops without them.
        let _ = symlink(Path::new("/proc/self").join(to), at);
    }
    Ok(())
}

/// Writes the files that say who and where the guest is.
fn files(config: &Config) -> Result<(), Failure> {
    let files = [
        ("/etc/resolv.conf", config.resolv_conf.as_str()),
        ("/etc/hosts", &config.hosts),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("/etc/group", "root:x:0:\n"),
    ];
    fs::create_dir_all("/etc").during("make /etc")?;
    fs::create_dir_all("/root").during("make /root")?;
    for (path, text) in files {
        fs::write(path, text).during(&format!("write {path}"))?;
    }
    Ok(())
}

/// Runs the program to its end; how it ended, for the host.
fn run_program(program: &Program, port: &Port, from_host: File) -> Result<Message, Failure> {
    let step = format!("start {}", program.path.display());
    fs::create_dir_all(&program.cwd).during(&format!("make {}", program.cwd.display()))?;
    let (name, arguments) =
        program.argv.split_first().ok_or(io::ErrorKind::InvalidInput.into()).during(&step)?;
    let (output, program_output) = io::pipe().during(&step)?;
    let (errors, program_errors) = io::pipe().during(&step)?;
    let mut command = Command::new(&program.path);
    command.arg0(name).args(arguments).current_dir(&program.cwd);
    command.env_clear().envs(program.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(program_output).stderr(program_errors);
    // One of its own, so that signals reach its children, too.
    command.process_group(0);
    let pid = command.spawn().during(&step)?.id();
    // It holds the pipes' other ends, whose closing tells the carriers to end.
    drop(command);
    port.send(&Message::Started).during("tell the host")?;
    let carriers =
        [carry(output, port.clone(), Message::Output), carry(errors, port.clone(), Message::Error)];
    thread::spawn(move || obey(from_host, pid));
    let exit = loop {
        let (ended, exit) = process::wait_any().during("wait for the program")?;
        if ended == pid {
            break exit;
        }
    };
    // Nobody left is fine.
    let _ = process::kill(-1, KILL);
    for carrier in carriers {
        // It carried what there was.
        let _ = carrier.join();
    }
    Ok(match exit {
        Exit::Code(code) => Message::Exited(code),
        Exit::Signal(signal) => Message::Killed(signal),
    })
}

/// Carries what the program writes to the host, until nobody can write any more.
fn carry(
    mut from: io::PipeReader,
    port: Port,
    message: fn(Vec<u8>) -> Message,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_PAYLOAD / 4];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..len).unwrap_or_default().to_vec();
            if port.send(&message(bytes)).is_err() {
                return;
            }
        }
    })
}

/// Passes the host's signals on to the program.
fn obey(mut from_host: File, pid: u32) {
    let Ok(group) = i32::try_from(pid).map(|pid| -pid) else { return };
    while let Ok(Some(message)) = Message::read(&mut from_host) {
        if let Message::Signal(signal) = message {
            // It may have ended in this moment.
            let _ = process::kill(group, signal);
        }
    }
}
