//! `netyard run`: a yard of one instance in the foreground.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netyard_engine::control::Link;
use netyard_engine::forward::Forward;
use netyard_sys::pty;
use netyard_wire::MacAddr;

use super::state::Keeper;
use super::summary::Show;
use super::{Keep, StopSignals};
use crate::api::InstanceState;
use crate::error::{ErrorKind, YardError};
use crate::instance::find_program;
use crate::model::{
    Address, InstanceSpec, Kind, MAX_LABEL, PlugSpec, Restart, SocketSpec, VmSpec, Yard,
};
use crate::networks::{NetworkOptions, is_label};
use crate::runtime::Runtime;

/// The name of a network that nobody else joins.
const PRIVATE: &str = "lan";

/// Two interrupts within this time are meant for us, not for the program.
const TWICE: Duration = Duration::from_secs(1);

/// What `run` is asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunOptions {
    /// Program and arguments; none for a virtual machine with an image of its own, and for what is
    /// external.
    pub argv: Vec<String>,
    /// What runs.
    pub kind: Kind,
    /// Variables set on top of our own.
    pub env: Vec<(String, String)>,
    /// Working folder; ours if absent.
    pub cwd: Option<PathBuf>,
    /// The instance's name; the program's if absent.
    pub name: Option<String>,
    /// The network to join, made if it is not there; a private one if it has no name. Its guest is
    /// the instance: a free address if it has none.
    pub network: NetworkOptions,
    /// Name of the host's end of the instance's link, in bridge mode; chosen if absent.
    pub tap: Option<String>,
    /// Of what is external, in user mode: the socket that it connects to.
    pub socket: Option<SocketSpec>,
    /// The instance's hardware address; chosen if absent.
    pub mac: Option<MacAddr>,
    /// Shaping of its link, in user mode.
    pub shaping: Link,
    /// Host ports that lead to the program.
    pub forwards: Vec<Forward>,
}

/// Runs one program on a network, with our standard input, output and error, until it ends.
/// Its exit code; 128 + signal if a signal ended it.
///
/// # Errors
/// The flags make no sense, the network or the instance cannot be made, the program cannot be
/// started. Nothing is left behind.
pub fn run(options: RunOptions) -> Result<ExitCode, YardError> {
    let yard = yard(options)?;
    let runtime = Runtime::open()?;
    let instance = yard.instances.first().map(|instance| instance.name.clone()).unwrap_or_default();
    let keep = Keep::new(runtime, yard, true, Show::Warnings);
    match keep.run(|| {}, async |keeper, signals| until_ended(&keeper, &instance, signals).await)? {
        Some(code) => code,
        // Taken down by `netyard down`.
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Waits for the program's end, or for a signal that asks us to bring it about.
async fn until_ended(
    keeper: &Rc<Keeper>,
    instance: &str,
    mut signals: StopSignals,
) -> Result<ExitCode, YardError> {
    let changes = keeper.changes();
    let mut changes = changes.listen();
    let mut interrupted: Option<Instant> = None;
    loop {
        if let Some(ended) = ended(keeper, instance) {
            return ended;
        }
        let interrupt = tokio::select! {
            _ = changes.changed() => continue,
            interrupt = signals.next() => interrupt,
        };
        // Ctrl-C on a terminal that the program shares has reached the program, too, which may
        // have its own idea of it. Twice means us.
        let now = Instant::now();
        let shared = interrupt && pty::is_foreground(io::stdin().as_fd());
        let again = interrupted.is_some_and(|before| now.duration_since(before) < TWICE);
        interrupted = Some(now);
        if !shared || again {
            return stop(keeper, instance, &mut signals).await;
        }
    }
}

/// Stops the program, at once if another signal comes; the code it ended with.
async fn stop(
    keeper: &Rc<Keeper>,
    instance: &str,
    signals: &mut StopSignals,
) -> Result<ExitCode, YardError> {
    let Some(supervisor) = keeper.supervisor(instance) else { return Ok(ExitCode::SUCCESS) };
    let mut stopping = pin!(supervisor.stop());
    loop {
        tokio::select! {
            stopped = &mut stopping => break stopped?,
            _ = signals.next() => supervisor.hurry(),
        }
    }
    Ok(supervisor.observed().code.map_or(ExitCode::SUCCESS, code))
}

/// How the program ended, if it did.
fn ended(keeper: &Keeper, instance: &str) -> Option<Result<ExitCode, YardError>> {
    let observed = keeper.supervisor(instance)?.observed();
    match observed.state {
        InstanceState::Exited { code: ended } => Some(Ok(code(ended))),
        InstanceState::Failed => Some(Err(observed.error.unwrap_or_else(|| {
            YardError::new(ErrorKind::Bug, format!("run {instance}"), "it failed silently")
        }))),
        // By `netyard stop`.
        InstanceState::Stopped => Some(Ok(observed.code.map_or(ExitCode::SUCCESS, code))),
        _ => None,
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The yard that the flags describe.
pub(super) fn yard(options: RunOptions) -> Result<Yard, YardError> {
    let verb = if options.kind.has_program() { "run" } else { "attach" };
    let id = format!("{verb}-{}", std::process::id());
    let wanted = |what: &str| format!("{verb} with {what}");
    let image = options.kind.vm().is_some_and(VmSpec::is_image);
    let program = match (options.argv.first(), image) {
        (Some(program), false) => program.as_str(),
        (None, true) => "vm",
        (None, false) if !options.kind.has_program() => {
            let socket = options.socket.as_ref().and_then(|socket| socket.path.file_stem());
            let socket = socket.and_then(OsStr::to_str);
            options.tap.as_deref().or(socket).unwrap_or("external")
        }
        (Some(program), true) => {
            let found = format!("{program} is given, too, and an image runs what is in it");
            return Err(YardError::new(ErrorKind::Input, wanted("--initrd or --drive"), found)
                .next("leave the program out"));
        }
        (None, false) => {
            return Err(YardError::new(ErrorKind::Input, "run a program", "none is given"));
        }
    };
    let here = env::current_dir().map_err(|error| YardError::io("find our folder", &error))?;
    let absolute = |path: PathBuf| here.join(path);
    let kind = match options.kind {
        Kind::Vm(vm) => Kind::Vm(VmSpec {
            kernel: vm.kernel.map(absolute),
            initrd: vm.initrd.map(absolute),
            drive: vm.drive.map(absolute),
            ..vm
        }),
        other => other,
    };
    let cwd = options.cwd.map_or(here.clone(), |wanted| here.join(wanted));
    let name = match options.name {
        Some(name) if is_label(&name) => name,
        Some(name) => {
            let found = format!("{name} is no name: a-z, 0-9 and - inside, {MAX_LABEL} at most");
            return Err(YardError::new(ErrorKind::Input, wanted("--name"), found));
        }
        None => label_of(program),
    };
    let network = options.network.spec(PRIVATE, &id)?;
    let (address, address6) = options.network.guest;
    let plug = PlugSpec {
        network: network.name.clone(),
        address: address.map_or(Address::Any, Address::Fixed),
        address6,
        mac: options.mac,
        link: options.shaping,
        socket: options.socket.map(|socket| socket.within(&here)),
        tap: options.tap,
    };
    let forwards = options
        .forwards
        .into_iter()
        .map(|forward| Forward { instance: name.clone(), ..forward }.within(&here))
        .collect::<Vec<_>>();
    let shaped = options.shaping != Link::default();
    if shaped && network.is_bridge() {
        let wanted = "shape the link of an instance on a bridge";
        return Err(YardError::new(ErrorKind::Unsupported, wanted, "the kernel moves its packets")
            .next("leave out --delay, --loss, --rate and --packets, or -b"));
    }
    let spliced = |forward: &&Forward| forward.delivery.wants_splice();
    if let Some(forward) = forwards.iter().find(spliced)
        && (!kind.hands_out_sockets() || network.is_bridge() || shaped)
    {
        let found = "only programs and namespaces in user mode, with a link that is not shaped, \
                     get connections without packets";
        return Err(YardError::new(ErrorKind::Unsupported, format!("forward {forward}"), found)
            .next("leave out splice and loopback"));
    }
    if network.is_bridge()
        && let Some((forward, error)) = forwards
            .iter()
            .find_map(|forward| Some((forward, forward.delivery.check_bridge().err()?)))
    {
        let wanted = format!("forward {forward}");
        return Err(YardError::new(ErrorKind::Unsupported, wanted, error.to_string())
            .next("instances on a bridge see the addresses of clients anyway"));
    }
    let mut argv = options.argv;
    in_working_folder(&mut argv, &options.env, &cwd);
    let instance = InstanceSpec {
        group: name.clone(),
        name,
        kind,
        run: argv,
        env: options.env.into_iter().collect::<BTreeMap<_, _>>(),
        cwd,
        restart: Restart::No,
        needs: Vec::new(),
        plugs: vec![plug],
        forwards,
    };
    Ok(Yard {
        path: PathBuf::from(format!("(netyard {verb})")),
        name: id,
        networks: BTreeMap::from([(network.name.clone(), network)]),
        instances: vec![instance],
        services: Vec::new(),
    })
}

/// What is found nowhere else may be in the working folder.
fn in_working_folder(argv: &mut [String], env: &[(String, String)], cwd: &Path) {
    let Some(program) = argv.first_mut() else { return };
    let there = format!("./{program}");
    if !program.contains('/')
        && find_program(program, env, cwd).is_err_and(|error| error.kind == ErrorKind::NoProgram)
        && find_program(&there, env, cwd).is_ok()
    {
        *program = there;
    }
}

/// The name of an instance that runs a program: the program's own, as far as it can be one.
fn label_of(program: &str) -> String {
    let file = program.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let known = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = file.chars().map(known).take(MAX_LABEL).collect();
    let name = name.trim_matches('-');
    if is_label(name) { name.to_owned() } else { "program".to_owned() }
}

#[cfg(test)]
mod tests {
    use netyard_engine::control::Shape;

    use super::*;

    fn options(argv: &[&str]) -> RunOptions {
        RunOptions { argv: argv.iter().map(ToString::to_string).collect(), ..Default::default() }
    }

    fn named(network: &str) -> NetworkOptions {
        NetworkOptions { name: Some(network.to_owned()), ..Default::default() }
    }

    #[test]
    fn flags_become_a_yard_of_one_instance() {
        let yard = yard(RunOptions {
            forwards: vec!["8081:80".parse().unwrap()],
            network: NetworkOptions {
                subnet: Some("10.9.0.1/24".parse().unwrap()),
                guest: (Some([10, 9, 0, 7].into()), None),
                ..named("lab")
            },
            ..options(&["/usr/bin/My.Server", "x"])
        })
        .unwrap();
        let instance = &yard.instances[0];
        assert_eq!(instance.name, "my-server");
        assert_eq!(instance.forwards[0].instance, "my-server");
        assert_eq!(instance.plugs[0].address, Address::Fixed([10, 9, 0, 7].into()));
        assert_eq!(yard.networks["lab"].global, "lab");
        assert_eq!(yard.networks["lab"].subnet, "10.9.0.0/24".parse().unwrap());
    }

    #[test]
    fn without_a_network_it_is_alone() {
        let yard = yard(options(&["sh"])).unwrap();
        assert_eq!(yard.networks["lan"].global, yard.name);
        assert_eq!(yard.networks["lan"].zone, "lan");
    }

    #[test]
    fn what_cannot_be_spliced_is_refused() {
        let forwards: Vec<Forward> = vec!["8081:80/loopback".parse().unwrap()];
        let program = || RunOptions { forwards: forwards.clone(), ..options(&["sh"]) };
        assert!(yard(program()).unwrap().instances[0].forwards[0].delivery.loopback);
        let machine = RunOptions { kind: Kind::Vm(VmSpec::default()), ..program() };
        assert_eq!(yard(machine).unwrap_err().kind, ErrorKind::Unsupported);
        let shape = Shape { rate: Some(1_000_000), ..Shape::default() };
        let shaping = Link { up: shape, down: shape };
        let shaped = RunOptions { shaping, ..program() };
        assert_eq!(yard(shaped).unwrap_err().kind, ErrorKind::Unsupported);
        let shaped = RunOptions { shaping, ..options(&["sh"]) };
        assert_eq!(yard(shaped).unwrap().instances[0].plugs[0].link, shaping);
        let network = NetworkOptions { bridge: Some(Default::default()), ..Default::default() };
        let bridged = RunOptions { shaping, network, ..options(&["sh"]) };
        assert_eq!(yard(bridged).unwrap_err().kind, ErrorKind::Unsupported);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a.b", "A", "-a", "../x"] {
            let named = RunOptions { name: Some(name.to_owned()), ..options(&["sh"]) };
            assert_eq!(yard(named).unwrap_err().kind, ErrorKind::Input, "{name}");
            let joined = RunOptions { network: self::named(name), ..options(&["sh"]) };
            assert_eq!(yard(joined).unwrap_err().kind, ErrorKind::Input, "{name}");
        }
        assert_eq!(label_of("/bin/[.."), "program");
        assert!(yard(options(&[])).is_err());
    }
}
