//! What each verb does.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::CommandFactory as _;
use netyard_engine::config::Bridge;
use netyard_engine::control::{Link, Shape};
use netyard_engine::forward::Forward;
use netyard_engine::policy::rules::{Direction, Remote, Rule, Rules, Verdict};
use netyard_yard::api::{InstanceStatus, LogsQuery, ServiceStatus, YardStatus};
use netyard_yard::attach::{self, AttachOptions};
use netyard_yard::client::Client;
use netyard_yard::error::{ErrorKind, YardError};
use netyard_yard::file;
use netyard_yard::instance::{self, ExecOptions};
use netyard_yard::keeper::{self, RunOptions, UpOptions};
use netyard_yard::model::{ExternalSpec, Kind, SocketProtocol, SocketSpec, VmSpec};
use netyard_yard::networks::{self, NetworkOptions};
use serde::Serialize;
use serde_json::json;

use crate::explain;
use crate::flags::{
    Attach, Cli, Completions, Exec, ForwardAdd, ForwardRm, ForwardVerb, Inspect, LinkFlags, Logs,
    Network, NetworkCreate, NetworkFlags, RuleFlags, Run, Service, Up, Verb,
};
use crate::hub;
use crate::metrics;
use crate::nic::asked::Asked;
use crate::nic::{self, leaves, reach};
use crate::output::{self, Output, patiently};
use crate::policy;
use crate::traffic;
use crate::view;

/// Does what the command line says. The exit code is that of a program that was run, or success.
pub(crate) fn perform(Cli { global, verb }: Cli) -> Result<ExitCode, YardError> {
    let client = || Client::find(global.yard.as_deref());
    let out = Output::new(global.json);
    if global.yard.is_some() && is_ours(&verb) {
        return Err(not_for_a_running_yard());
    }
    match verb {
        Verb::Run(run) => return keeper::run((*run).into()),
        Verb::Attach(what) => return attach(*what, out),
        Verb::Up(what) => return up(what, out),
        Verb::Down(_) => down(&client()?, out),
        Verb::Ps(_) => show(out, &client()?.instances()?, |all, c| view::instances(all, c)),
        Verb::Start(start) => change(&client()?, "starting", &start.names, Client::start, out),
        Verb::Stop(stop) => change(&client()?, "stopping", &stop.names, Client::stop, out),
        Verb::Restart(restart) => {
            change(&client()?, "restarting", &restart.names, Client::restart, out)
        }
        Verb::Logs(query) => logs(&client()?, &query, out),
        Verb::Exec(command) => return exec(&client()?, command),
        Verb::Inspect(what) => inspect(client()?.yard()?, what, out),
        Verb::Explain(what) => explain::explain(client(), &what, out),
        Verb::Service(Service::Ls) => {
            show(out, &client()?.services()?, |all, c| view::services(all, c))
        }
        Verb::Forward(ForwardVerb::Ls(flags)) => {
            let asked = Asked::of(flags.ask, None)?;
            let reached = reach::reached(client()?.forwards()?, &asked)?;
            show(out, &reached, |all, c| view::forwards(all, c))
        }
        Verb::Forward(ForwardVerb::Add(ForwardAdd { instance, forward })) => {
            let done = client()?.add_forward(&led(instance, forward)?)?;
            show(out, &done, |done, _| view::forward_changed(done, "open"))
        }
        Verb::Forward(ForwardVerb::Rm(ForwardRm { instance, forward })) => {
            let done = client()?.remove_forward(&led(instance, forward)?)?;
            show(out, &done, |done, _| view::forward_changed(done, "closed"))
        }
        Verb::Network(verb) => network(verb, global.yard.as_deref(), out),
        Verb::Policy(verb) => policy::policy(verb, global.yard.as_deref(), out),
        Verb::Capture(what) => traffic::capture(what, out),
        Verb::Flows(what) => traffic::flows(&what, out),
        Verb::Nic(verb) => return nic::perform(verb, out),
        Verb::Hub(what) => return hub::hub(*what, out),
        Verb::Join(what) => return hub::join(*what, out),
        Verb::Token(verb) => return hub::token(verb, out),
        Verb::Peers(what) => return hub::peers(what, out),
        Verb::Completions(shell) => completions(&shell),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a verb does not talk to a running yard.
fn is_ours(verb: &Verb) -> bool {
    matches!(
        verb,
        Verb::Run(_)
            | Verb::Attach(_)
            | Verb::Up(_)
            | Verb::Capture(_)
            | Verb::Flows(_)
            | Verb::Nic(_)
            | Verb::Hub(_)
            | Verb::Join(_)
            | Verb::Token(_)
            | Verb::Peers(_)
            | Verb::Completions(_)
    )
}

/// Prints a result.
pub(crate) fn show<T: Serialize + ?Sized>(
    out: Output,
    value: &T,
    text: impl FnOnce(&T, bool) -> String,
) -> Result<(), YardError> {
    out.show(value, text).map_err(|error| YardError::io("print the result", &error))
}

/// How often `--watch` looks.
const WATCHED: Duration = Duration::from_secs(1);

/// Looks once; to watch, again and again until that fails or a signal comes.
pub(crate) fn watched(
    watch: bool,
    mut look: impl FnMut() -> Result<(), YardError>,
) -> Result<(), YardError> {
    loop {
        look()?;
        if !watch {
            return Ok(());
        }
        thread::sleep(WATCHED);
    }
}

fn not_for_a_running_yard() -> YardError {
    YardError::new(
        ErrorKind::Input,
        "use --yard here",
        "it names a running yard, and this verb does not talk to one",
    )
    .next("leave it out; a yard's name is the `name` in its yard file, or its folder's")
}

impl From<Run> for RunOptions {
    fn from(run: Run) -> Self {
        let default = VmSpec::default();
        Self {
            argv: run.command_line(),
            kind: match run.vm {
                false => Kind::Process,
                true => Kind::Vm(VmSpec {
                    memory: run.memory.unwrap_or(default.memory),
                    cpus: run.smp.unwrap_or(default.cpus),
                    kernel: run.kernel,
                    initrd: run.initrd,
                    drive: run.drive,
                }),
            },
            env: run.env,
            cwd: run.cwd,
            name: run.name,
            network: NetworkOptions {
                name: run.network,
                guest: (run.ip_address, run.ipv6_address),
                rules: run.rules.into(),
                ..run.network_flags.into()
            },
            tap: run.tapname,
            socket: None,
            mac: None,
            shaping: run.link.into(),
            forwards: run.ports.into_iter().chain(run.udp).collect(),
        }
    }
}

/// A forward to an instance; the path of its socket is taken from our folder.
fn led(instance: String, forward: Forward) -> Result<Forward, YardError> {
    let here = std::env::current_dir();
    let here = here.map_err(|error| YardError::io("find our folder", &error))?;
    Ok(Forward { instance, ..forward }.within(&here))
}

/// Plugs in what somebody else starts, until a signal comes or it ends.
fn attach(flags: Attach, out: Output) -> Result<ExitCode, YardError> {
    // Whoever waits for it reads a pipe.
    let told = || io::stdout().flush().map_err(|error| YardError::io("print the result", &error));
    let Attach { name, mac, ports, udp, network_flags, .. } = flags;
    let shared = |path| SocketSpec { path, protocol: SocketProtocol::VhostUser };
    let socket = flags.socket.or(flags.vhost_user.map(shared));
    let bridged = flags.target.is_none() && socket.is_none();
    let network = NetworkOptions {
        name: flags.network,
        guest: (flags.ip_address, flags.ipv6_address),
        rules: flags.rules.into(),
        ..NetworkFlags { bridged, ..network_flags }.into()
    };
    let forwards = ports.into_iter().chain(udp).collect();
    let shaping = flags.link.into();
    let Some(target) = flags.target else {
        let owner = flags.owner.unwrap_or_else(netyard_sys::process::effective_user);
        let kind = Kind::External(ExternalSpec { owner });
        let tap = flags.tapname;
        let rest = RunOptions::default();
        let options =
            RunOptions { kind, name, network, tap, socket, mac, shaping, forwards, ..rest };
        return keeper::attach(options, |status| {
            show(out, status, |status, _| view::attached(status))?;
            told()
        });
    };
    let link = flags.tapname.unwrap_or_else(|| NAMESPACE_LINK.to_owned());
    let (control, ready, exit) = (flags.control, flags.ready_fd, flags.exit_fd);
    let options =
        AttachOptions { target, link, name, network, mac, shaping, forwards, control, ready, exit };
    attach::attach(options, |attached| {
        show(out, attached, |attached, _| view::attached_namespace(attached))?;
        told()
    })
}

/// The link that `attach` makes in a namespace, unless it is given another name.
const NAMESPACE_LINK: &str = "tap0";

impl From<NetworkFlags> for NetworkOptions {
    fn from(flags: NetworkFlags) -> Self {
        let bridge = Bridge { name: flags.bridgename, ..Bridge::default() };
        Self {
            name: None,
            bridge: flags.bridged.then_some(bridge),
            subnet: flags.subnet,
            subnet6: flags.subnet6,
            mtu: flags.mtu,
            resolvers: flags.dns,
            gateway: flags.bridgeipaddress.or(flags.gateway),
            guest: (None, None),
            prefix_len: flags.netmask,
            host: flags.host,
            uplink: flags.uplink,
            rules: Rules::default(),
        }
    }
}

impl From<LinkFlags> for Link {
    fn from(LinkFlags { delay, loss, rate, packets }: LinkFlags) -> Self {
        let shape = Shape {
            delay: delay.unwrap_or_default(),
            loss: loss.unwrap_or_default(),
            rate,
            packets: packets.map(u64::from),
        };
        Self { up: shape, down: shape }
    }
}

impl From<RuleFlags> for Rules {
    fn from(flags: RuleFlags) -> Self {
        let rule = |name: &str, verdict, others: Vec<Remote>| Rule {
            name: name.to_owned(),
            verdict,
            direction: Direction::Out,
            instances: Vec::new(),
            others,
            protocol: None,
            ports: Vec::new(),
        };
        let otherwise = if flags.allow.is_empty() { Verdict::Allow } else { Verdict::Deny };
        let rules = [("deny", Verdict::Deny, flags.deny), ("allow", Verdict::Allow, flags.allow)];
        let given = rules.into_iter().filter(|(_, _, to)| !to.is_empty());
        Self { list: given.map(|(name, verdict, to)| rule(name, verdict, to)).collect(), otherwise }
    }
}

/// Makes, shows and removes networks.
fn network(verb: Network, yard: Option<&str>, out: Output) -> Result<(), YardError> {
    match verb {
        Network::Ls => {
            let networks = match yard {
                Some(yard) => Client::find(Some(yard))?.networks()?,
                None => networks::list()?,
            };
            show(out, networks.as_slice(), view::networks)
        }
        Network::Create(NetworkCreate { name, open, flags }) => {
            let mut options = NetworkOptions { name, ..flags.into() };
            if let Some(bridge) = &mut options.bridge {
                bridge.isolate = !open;
            }
            let made = leaves::Network::new(networks::create(&options)?, &leaves::here());
            show(out, &made, view::network)
        }
        Network::Inspect { name, prometheus: true } => {
            let network = networks::inspect(&name)?;
            // On a bridge the kernel has them.
            let flows = match network.state.interface {
                None => networks::flows(Some(&name))?,
                Some(_) => Vec::new(),
            };
            output::write(metrics::of(&network, &flows).as_bytes())
                .map_err(|error| YardError::io("print the counters", &error))
        }
        Network::Inspect { name, prometheus: false } => {
            let network = leaves::Network::new(networks::inspect(&name)?, &leaves::here());
            show(out, &network, view::network)
        }
        Network::Rm { name } => {
            patiently(&format!("removing {name}"), || networks::remove(&name))?;
            show(out, &json!({ "network": name }), |_, _| format!("{name} is removed\n"))
        }
    }
}

/// Brings a yard up. In the foreground that lasts until it is down; else its instances are shown.
fn up(Up { detach, wait, timeout, file }: Up, out: Output) -> Result<ExitCode, YardError> {
    let wait = wait.then_some(timeout);
    let options = UpOptions { file, detach, wait };
    if !detach && wait.is_none() {
        return keeper::up(&options);
    }
    let what = format!("bringing up {}", options.file.display());
    let code = patiently(&what, || keeper::up(&options))?;
    let yard = Client::find(Some(&file::load(&options.file)?.name))?.yard()?;
    show(out, &yard, |yard, colour| view::instances(&yard.instances, colour))?;
    Ok(code)
}

fn down(client: &Client, out: Output) -> Result<(), YardError> {
    let name = client.name();
    patiently(&format!("stopping {name}"), || client.down())?;
    show(out, &json!({ "yard": name }), |_, _| format!("{name} is down\n"))
}

/// Starts, stops or restarts instances, one after the other, and shows how they are then.
fn change(
    client: &Client,
    doing: &str,
    names: &[String],
    action: fn(&Client, &str) -> Result<InstanceStatus, YardError>,
    out: Output,
) -> Result<(), YardError> {
    let changed: Vec<_> = names
        .iter()
        .map(|name| patiently(&format!("{doing} {name}"), || action(client, name)))
        .collect::<Result<_, _>>()?;
    show(out, changed.as_slice(), view::instances)
}

fn logs(client: &Client, logs: &Logs, out: Output) -> Result<(), YardError> {
    let query = LogsQuery { follow: logs.follow, tail: logs.tail };
    let stdout = io::stdout().lock();
    if out.is_json() {
        client.logs(&logs.name, query, &mut JsonLines::new(&logs.name, stdout))
    } else {
        client.logs(&logs.name, query, &mut { stdout })
    }
}

/// Makes a JSON object of each line: `{"instance":"web-1","line":"..."}`. Bytes that are not UTF-8
/// are replaced.
struct JsonLines<'a, W: Write> {
    instance: &'a str,
    line: Vec<u8>,
    out: W,
}

impl<'a, W: Write> JsonLines<'a, W> {
    fn new(instance: &'a str, out: W) -> Self {
        Self { instance, line: Vec::new(), out }
    }
}

impl<W: Write> Write for JsonLines<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if let Some(line) = self.line.strip_suffix(b"\n") {
                let line = String::from_utf8_lossy(line);
                writeln!(self.out, "{}", json!({ "instance": self.instance, "line": line }))?;
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Runs a command in an instance; its exit code.
fn exec(client: &Client, command: Exec) -> Result<ExitCode, YardError> {
    let yard = client.instances()?;
    let wanted = || format!("run a command in instance {}", command.name);
    let Some(status) = yard.iter().find(|instance| instance.name == command.name) else {
        let found = format!("yard {} has no instance of that name", client.name());
        let known: Vec<_> = yard.iter().map(|instance| instance.name.as_str()).collect();
        return Err(YardError::new(ErrorKind::Unknown, wanted(), found)
            .next(format!("choose one of {}", known.join(", "))));
    };
    if status.vm.is_some() {
        let found = "it is a virtual machine: its programs are not processes of this host";
        return Err(YardError::new(ErrorKind::Unsupported, wanted(), found).next(
            "reach it over the network, from another instance or through a forward (`forwards`, -p)",
        ));
    }
    if status.external.is_some() {
        let found = "somebody else starts its programs";
        return Err(YardError::new(ErrorKind::Unsupported, wanted(), found)
            .next("run it where they are, in a namespace with `nsenter`"));
    }
    let Some(init_pid) = status.init_pid else {
        return Err(YardError::new(
            ErrorKind::Conflict,
            wanted(),
            format!("it is {}", status.state),
        )
        .next(format!("start it with `netyard start {}`", command.name)));
    };
    instance::exec(&ExecOptions {
        instance: command.name,
        init_pid,
        argv: command.argv,
        input: command.interactive,
        terminal: command.tty,
    })
}

/// What `inspect NAME` found under one name.
#[derive(Debug, Serialize)]
struct Named<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a InstanceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a ServiceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a leaves::Network>,
}

impl<'a> Named<'a> {
    /// Everything of that name; an error that names what there is if there is nothing.
    fn find(yard: &'a leaves::Yard, name: &str) -> Result<Self, YardError> {
        let leaves::Yard { rest, networks } = yard;
        let found = Self {
            instance: rest.instances.iter().find(|one| one.name == name),
            service: rest.services.iter().find(|one| one.name == name),
            network: networks.iter().find(|one| one.status.name == name),
        };
        if found.instance.is_some() || found.service.is_some() || found.network.is_some() {
            return Ok(found);
        }
        let known: Vec<_> = (rest.instances.iter().map(|one| one.name.as_str()))
            .chain(rest.services.iter().map(|one| one.name.as_str()))
            .chain(networks.iter().map(|one| one.status.name.as_str()))
            .collect();
        Err(YardError::new(
            ErrorKind::Unknown,
            format!("inspect {name}"),
            format!("yard {} has no instance, service or network of that name", rest.name),
        )
        .next(format!("choose one of {}", known.join(", "))))
    }

    fn text(&self, colour: bool) -> String {
        let instance = self.instance.map(|one| view::instance(one, colour));
        let service = self.service.map(|one| view::service(one, colour));
        let network = self.network.map(|one| view::network(one, colour));
        [instance, service, network].into_iter().flatten().collect()
    }
}

fn inspect(yard: YardStatus, what: Inspect, out: Output) -> Result<(), YardError> {
    let asked = Asked::of(what.ask, None)?;
    let yard = leaves::Yard::new(yard, &leaves::ways(&asked, !what.no_gateway)?);
    match what.name {
        None => show(out, &yard, view::yard),
        Some(name) => show(out, &Named::find(&yard, &name)?, Named::text),
    }
}

fn completions(Completions { shell }: &Completions) -> Result<(), YardError> {
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut Cli::command(), "netyard", &mut script);
    output::write(&script).map_err(|error| YardError::io("print the completions", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_become_json_objects_however_they_arrive() {
        let mut out = Vec::new();
        let mut lines = JsonLines::new("web-1", &mut out);
        for part in ["on", "e\ntwo \"q\"\n", "not ended"] {
            lines.write_all(part.as_bytes()).unwrap();
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"instance\":\"web-1\",\"line\":\"one\"}\n\
             {\"instance\":\"web-1\",\"line\":\"two \\\"q\\\"\"}\n"
        );
    }
}
