//! What people see of the control API's answers: text made of values, nothing else.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use netyard_engine::config::Mode;
use netyard_engine::control::{
    LeaseState, PlugState, Remote, RemoteLink, Spliced, State, TurnPolicy,
};
use netyard_engine::forward::Protocol;
use netyard_yard::api::{
    ForwardChanged, InstanceState, InstanceStatus, MachineStatus, NetworkStatus,
    ServiceInstanceStatus, ServiceStatus, SocketStatus, TapStatus,
};
use netyard_yard::attach::Attached;
use netyard_yard::model::SocketProtocol;

use crate::nic::leaves::{Network, Seen, Yard};
use crate::nic::reach::{Outer, Reached};
use crate::output::{Cell, Mood, Table, line};

/// `netyard ps`: a row for each instance, then what is wrong with them.
pub(crate) fn instances(instances: &[InstanceStatus], colour: bool) -> String {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "PID",
        "ADDRESS",
        "PORTS",
        "RESTARTS",
        "UPTIME",
        "LAST EXIT",
    ]);
    for instance in instances {
        table.row([
            instance.name.as_str().into(),
            state(instance.state),
            pid(instance),
            instance.addresses.first().into(),
            ports(instance),
            instance.restarts.to_string().into(),
            uptime(instance),
            instance.exit.as_ref().into(),
        ]);
    }
    let mut text = table.render(colour);
    for instance in instances {
        warnings(instance, &mut text);
    }
    text
}

/// A line for each warning.
fn warnings(instance: &InstanceStatus, text: &mut String) {
    for warning in &instance.warnings {
        line(text, format!("warning: {}: {warning}", instance.name));
    }
}

fn state(state: InstanceState) -> Cell {
    let mood = match state {
        InstanceState::Healthy => Mood::Good,
        InstanceState::Running | InstanceState::Stopped | InstanceState::Exited { code: 0 } => {
            Mood::Plain
        }
        InstanceState::Pending | InstanceState::Starting | InstanceState::Backoff => Mood::Doubtful,
        InstanceState::Unhealthy | InstanceState::Exited { .. } | InstanceState::Failed => {
            Mood::Bad
        }
    };
    Cell::new(state, mood)
}

/// `netyard attach`: what whoever opens the TAP, or connects to the socket, has to know.
pub(crate) fn attached(instance: &InstanceStatus) -> String {
    let addresses: Vec<_> = instance.addresses.iter().map(ToString::to_string).collect();
    let addresses = addresses.join(" and ");
    let taps = instance.external.iter().flatten();
    let taps = taps.map(|TapStatus { name, mac, owner, .. }| (name.clone(), mac, owner));
    let sockets = instance.sockets.iter();
    let sockets = sockets
        .map(|SocketStatus { path, mac, owner, .. }| (path.display().to_string(), mac, owner));
    let mut text = String::new();
    for (name, mac, owner) in taps.chain(sockets) {
        _ = writeln!(
            text,
            "{name} is there for user {owner}: hardware address {mac}, addresses {addresses}"
        );
    }
    text
}

/// `netyard attach PID`: what there is in the namespace now.
pub(crate) fn attached_namespace(attached: &Attached) -> String {
    let list = |addresses: &[IpAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    };
    let mut text = format!(
        "{} of {} is on network {} as {}.{}: hardware address {}, addresses {}, gateway and resolver {}\n",
        attached.link,
        attached.target,
        attached.network,
        attached.name,
        attached.zone,
        attached.mac,
        list(&attached.addresses),
        list(&attached.gateways),
    );
    for at in &attached.forwards {
        _ = writeln!(text, "{at} leads to it");
    }
    for path in &attached.sockets {
        _ = writeln!(text, "{} leads to it", path.display());
    }
    text
}

/// The process id, or that it is somebody else's.
fn pid(instance: &InstanceStatus) -> Cell {
    match instance.external {
        Some(_) => "external".into(),
        None => instance.pid.into(),
    }
}

/// The ports that an instance listens on, without addresses.
fn ports(instance: &InstanceStatus) -> Cell {
    let mut ports: Vec<_> =
        instance.ports.iter().map(|at| (at.address.port(), at.protocol)).collect();
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<_> =
        ports.into_iter().map(|(port, protocol)| format!("{port}/{protocol}")).collect();
    Some(ports.join(",")).filter(|ports| !ports.is_empty()).into()
}

fn uptime(instance: &InstanceStatus) -> Cell {
    instance.uptime_ms.map(|ms| duration(Duration::from_millis(ms))).into()
}

/// A duration in its two largest units that are not zero before: `5s`, `2m10s`, `3h2m`, `4d1h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// `netyard service ls`: a row for each instance of each service.
pub(crate) fn services(services: &[ServiceStatus], colour: bool) -> String {
    let mut table = Table::new(&[
        "SERVICE",
        "ADDRESS",
        "PROTOCOL",
        "PUBLISHED",
        "POLICY",
        "INSTANCE",
        "HEALTH",
        "TURNS",
        "FAILED",
        "OPEN",
    ]);
    for service in services {
        let mut about = [
            service.name.as_str().into(),
            service.addresses.first().map(|ip| format!("{ip}:{}", service.port)).into(),
            service.protocol.to_string().into(),
            service.published.into(),
            policy(service.policy).into(),
        ];
        for instance in &service.instances {
            let [name, address, protocol, published, policy] = std::mem::take(&mut about);
            let turns = instance.turns;
            table.row([
                name,
                address,
                protocol,
                published,
                policy,
                instance.name.as_str().into(),
                health(instance),
                turns.turns.to_string().into(),
                turns.failed.to_string().into(),
                turns.open.to_string().into(),
            ]);
        }
    }
    let mut text = table.render(colour);
    for service in services {
        for instance in &service.instances {
            if let Some(problem) = &instance.problem {
                line(&mut text, format!("{}: {}: {problem}", service.name, instance.name));
            }
        }
        if service.refused > 0 {
            _ = writeln!(
                text,
                "{}: {} {} refused: no instance was healthy",
                service.name,
                service.refused,
                taking_turns(service)
            );
        }
        if service.clients_not_kept > 0 {
            _ = writeln!(
                text,
                "{}: {} connections took turns in spite of affinity: there are too many clients",
                service.name, service.clients_not_kept
            );
        }
    }
    text
}

fn health(instance: &ServiceInstanceStatus) -> Cell {
    if instance.turns.draining {
        Cell::new("draining", Mood::Doubtful)
    } else if instance.eligible {
        Cell::new("healthy", Mood::Good)
    } else {
        Cell::new("unhealthy", Mood::Bad)
    }
}

/// `netyard forward ls`.
pub(crate) fn forwards(forwards: &[Reached], colour: bool) -> String {
    let mut headings =
        vec!["HOST", "INSTANCE", "PORTS", "PROTOCOL", "NETWORK", "CONNECTIONS", "REACHED UNDER"];
    let outside = forwards.iter().any(|one| one.external.is_some());
    if outside {
        headings.push("FROM OUTSIDE");
    }
    let mut table = Table::new(&headings);
    for Reached { status, addresses, external } in forwards {
        let forward = &status.forward;
        let cells = [
            forward.host.to_string().into(),
            forward.instance.as_str().into(),
            forward.guest_ports.to_string().into(),
            forward.protocol.to_string().into(),
            status.network.as_str().into(),
            status.connections.to_string().into(),
            Some(addresses.join(", ")).filter(|list| !list.is_empty()).into(),
        ];
        if outside {
            let [a, b, c, d, e, f, g] = cells;
            let outer = external.iter().flatten().map(from_outside).collect::<Vec<_>>().join(", ");
            table.row([a, b, c, d, e, f, g, Some(outer).filter(|list| !list.is_empty()).into()]);
        } else {
            table.row(cells);
        }
    }
    table.render(colour)
}

/// `netyard forward add` and `rm`.
pub(crate) fn forward_changed(done: &ForwardChanged, state: &str) -> String {
    let ForwardChanged { forward, changed, .. } = done;
    let already = if *changed { "" } else { " already" };
    format!("forward {forward} of instance {} is {state}{already}\n", forward.instance)
}

/// `198.51.100.7`, `203.0.113.1 if its NAT forwards to 192.168.1.20`.
fn from_outside(outer: &Outer) -> String {
    match outer.direct {
        true => outer.address.clone(),
        false => format!("{} if its NAT forwards to {}", outer.address, outer.near),
    }
}

/// `netyard network ls`.
pub(crate) fn networks(networks: &[NetworkStatus], colour: bool) -> String {
    let mut table = Table::new(&[
        "NETWORK", "PREFIX", "PREFIX6", "ZONE", "BRIDGE", "UPLINK", "PLUGS", "TCP", "UDP", "DROPS",
        "PID",
    ]);
    for NetworkStatus { name, state, .. } in networks {
        let config = state.config.as_ref();
        table.row([
            name.as_str().into(),
            config.map(|config| config.subnet4).into(),
            config.map(|config| config.subnet6).into(),
            config.map(|config| &config.zone).into(),
            state.interface.as_deref().into(),
            config.map(|config| &config.uplink).into(),
            state.plugs.len().to_string().into(),
            state.tcp_flows.to_string().into(),
            state.udp_flows.to_string().into(),
            state.drops.values().sum::<u64>().to_string().into(),
            state.pid.to_string().into(),
        ]);
    }
    table.render(colour)
}

/// `netyard inspect`: the whole yard.
pub(crate) fn yard(Yard { rest, networks }: &Yard, colour: bool) -> String {
    let mut text = title("yard", &rest.name, colour);
    let mut list = Table::list();
    list.item("file", rest.file.display().to_string());
    list.item("keeper", format!("process {}", rest.keeper_pid));
    text.push_str(&list.render(colour));
    for one in &rest.instances {
        text.push_str(&instance(one, colour));
    }
    for one in &rest.services {
        text.push_str(&service(one, colour));
    }
    for one in networks {
        text.push_str(&network(one, colour));
    }
    text
}

/// The hub that a network has joined, on one line.
fn remote_machines(remote: &Remote) -> String {
    let joined = |values: Vec<String>| values.join(", ");
    let state = match &remote.link {
        RemoteLink::Connected => "connected",
        RemoteLink::Connecting(_) => "not connected",
        RemoteLink::Refused(_) => "refused",
    };
    let mut text = format!("{}, {state}", remote.hub);
    if let Some(name) = &remote.name {
        let addresses = remote.addresses.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", as {name} with {}", joined(addresses)));
    }
    if !remote.networks.is_empty() {
        let networks = remote.networks.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", leads to {}", joined(networks)));
    }
    if let Some(zone) = &remote.zone {
        text.push_str(&format!(", names in {zone}"));
    }
    text
}

/// `netyard inspect INSTANCE`.
pub(crate) fn instance(instance: &InstanceStatus, colour: bool) -> String {
    let mut list = Table::list();
    list.item("state", state(instance.state));
    if instance.own_stack {
        list.item("network", "a stack of the program's own");
    }
    for tap in instance.external.iter().flatten() {
        let open = match (tap.lost, tap.open) {
            (true, _) => "not there any more",
            (false, true) => "open",
            (false, false) => "not open",
        };
        let TapStatus { name, mac, owner, .. } = tap;
        list.item("tap", format!("{name}, {mac}, for user {owner}, {open}"));
    }
    for SocketStatus { path, protocol, mac, owner } in &instance.sockets {
        let label = match protocol {
            SocketProtocol::Stream => "socket",
            SocketProtocol::Datagram => "socket of datagrams",
            SocketProtocol::VhostUser => "vhost-user",
        };
        list.item(label, format!("{}, {mac}, for user {owner}", path.display()));
    }
    if let Some(vm) = &instance.vm {
        list.item("machine", machine(vm));
    }
    list.item("program", instance.pid.map(|pid| format!("process {pid}")));
    list.item("init", instance.init_pid.map(|pid| format!("process {pid}")));
    for address in &instance.addresses {
        list.item("address", address.to_string());
    }
    for at in &instance.ports {
        list.item("listens on", at.to_string());
    }
    list.item("uptime", uptime(instance));
    list.item("restarts", instance.restarts.to_string());
    list.item("last exit", instance.exit.as_ref());
    for warning in &instance.warnings {
        list.item("warning", Cell::new(warning, Mood::Bad));
    }
    title("instance", &instance.name, colour) + &list.render(colour)
}

/// A virtual machine in a line: `512 MiB, 1 cpu, kvm, running, booted in 640 ms, kernel 6.1.0`.
fn machine(vm: &MachineStatus) -> String {
    let cpus = if vm.cpus == 1 { "cpu" } else { "cpus" };
    let mut text = format!("{} MiB, {} {cpus}", vm.memory, vm.cpus);
    if let Some(accelerator) = vm.accelerator {
        _ = write!(text, ", {accelerator}");
    }
    if let Some(state) = &vm.state {
        _ = write!(text, ", {state}");
    }
    if let Some(boot) = vm.boot_ms {
        _ = write!(text, ", booted in {boot} ms");
    }
    if let Some(kernel) = &vm.kernel {
        _ = write!(text, ", kernel {kernel}");
    }
    text
}

/// The policy as the yard file says it.
fn policy(policy: TurnPolicy) -> &'static str {
    match policy {
        TurnPolicy::RoundRobin => "round-robin",
        TurnPolicy::PerRequest => "per-request",
    }
}

/// What takes turns.
fn taking_turns(service: &ServiceStatus) -> &'static str {
    match (service.policy, service.protocol) {
        (TurnPolicy::RoundRobin, Protocol::Tcp) => "connections",
        (TurnPolicy::RoundRobin, Protocol::Udp) => "flows",
        (TurnPolicy::PerRequest, _) => "requests",
    }
}

/// `netyard inspect SERVICE`.
pub(crate) fn service(service: &ServiceStatus, colour: bool) -> String {
    let mut list = Table::list();
    list.item("network", service.network.as_str());
    list.item("port", format!("{}/{}", service.port, service.protocol));
    for address in &service.addresses {
        list.item("address", address.to_string());
    }
    list.item("published", service.published);
    list.item("policy", policy(service.policy));
    list.item("refused", format!("{} {}", service.refused, taking_turns(service)));
    if let Some(time) = service.affinity_ms {
        let time = duration(Duration::from_millis(time));
        let kept =
            format!("{time}, {} clients, {} not kept", service.clients, service.clients_not_kept);
        list.item("affinity", kept);
    }
    let mut instances = Table::list();
    for instance in &service.instances {
        let turns = instance.turns;
        instances.row([
            "instance".into(),
            instance.name.as_str().into(),
            health(instance),
            format!("weight {}", instance.weight).into(),
            format!("turns {}, failed {}, open {}", turns.turns, turns.failed, turns.open).into(),
            instance.problem.as_deref().unwrap_or_default().into(),
        ]);
    }
    title("service", &service.name, colour) + &list.render(colour) + &instances.render(colour)
}

/// `netyard inspect NETWORK`.
pub(crate) fn network(network: &Network, colour: bool) -> String {
    let Network { status: NetworkStatus { name, state, problem }, leaves } = network;
    let mut list = Table::list();
    if let Some(problem) = problem {
        list.item("problem", problem.as_str());
    }
    if let Some(config) = &state.config {
        list.item("prefix", format!("{}, {}", config.subnet4, config.subnet6));
        let mac = config.gateway_mac;
        list.item("gateway", format!("{}, {}, {mac}", config.gateway4(), config.gateway6()));
        list.item("zone", config.zone.as_str());
        list.item("uplink", config.uplink.to_string());
        for leaving in leaves {
            list.item("leaves by", format!("{} ({})", leaving.way, leaving.family));
            if let Some(seen) = &leaving.seen {
                list.item("seen as", seen_as(seen));
            }
        }
        list.item("mtu", config.mtu.to_string());
        let mode = match (&config.mode, &state.interface) {
            (Mode::User, _) => "user".to_owned(),
            (Mode::Bridge(bridge), interface) => format!(
                "bridge {}{}",
                interface.as_deref().unwrap_or_default(),
                if bridge.isolate { ", isolated from other networks" } else { "" }
            ),
        };
        list.item("mode", mode);
        for service in &config.host {
            list.item("host", format!("{service} as {}", config.host4()));
        }
    }
    for remote in &state.remotes {
        list.item("hub", remote_machines(&remote.remote));
    }
    for warning in &state.warnings {
        list.item("warning", warning.as_str());
    }
    list.item("process", state.pid.to_string());
    list.item("members", state.members.join(", "));
    let pings = state.pings.map(|pings| format!(", {pings} pings")).unwrap_or_default();
    list.item("flows", format!("{} TCP, {} UDP{pings}", state.tcp_flows, state.udp_flows));
    counters(state, &mut list);
    let mut text = title("network", name, colour) + &list.render(colour);
    text.push_str(&plugs(&state.plugs, colour));
    text.push_str(&leases(&state.leases, colour));
    text
}

/// `203.0.113.1, restricted by address and port (type 5)`.
fn seen_as(seen: &Seen) -> Cell {
    let nat = match &seen.nat {
        None => "NAT not tested".to_owned(),
        Some(nat) => match nat.kind {
            Some(kind) => format!("{} (type {})", kind.label(), kind.number()),
            None => format!(
                "NAT inconclusive: {}",
                nat.details.inconclusive.as_deref().unwrap_or("not told why")
            ),
        },
    };
    match (&seen.external, &seen.unknown) {
        (Some(external), _) => Cell::new(format!("{external}, {nat}"), Mood::Plain),
        (None, why) => {
            let why = why.as_deref().unwrap_or("nobody was asked");
            Cell::new(format!("unknown: {why}; {nat}"), Mood::Doubtful)
        }
    }
}

/// The last second that can be written in this form, of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// A row for each address that is lent to somebody without a plug.
fn leases(leases: &[LeaseState], colour: bool) -> String {
    let mut list = Table::list();
    for lease in leases {
        let client = match (&lease.mac, &lease.client) {
            (Some(mac), _) => mac.to_string(),
            (None, Some(client)) => format!("client {client}"),
            (None, None) => "used by somebody else".to_owned(),
        };
        let until = UNIX_EPOCH + Duration::from_secs(lease.until.min(LAST_SECOND));
        let until = humantime::format_rfc3339_seconds(until);
        list.row([
            "lease".into(),
            lease.address.to_string().into(),
            client.into(),
            format!("until {until}").into(),
        ]);
    }
    list.render(colour)
}

/// What the DNS keeps, and a row for each reason that frames were dropped and each rule that decided.
fn counters(state: &State, list: &mut Table) {
    if let Some(dns) = state.dns {
        let kept = format!(
            "{} answers kept, {}",
            dns.answers,
            bytes(u64::try_from(dns.bytes).unwrap_or(u64::MAX))
        );
        list.item("dns cache", format!("{} hits, {} misses, {kept}", dns.hits, dns.misses));
    }
    for (reason, count) in &state.drops {
        list.item("dropped", format!("{count} {reason}"));
    }
    for (rule, count) in &state.policy {
        list.item("policy", format!("{count} {rule}"));
    }
}

fn plugs(plugs: &[PlugState], colour: bool) -> String {
    let mut list = Table::list();
    for plug in plugs {
        let (out, into) = (plug.guest_to_host, plug.host_to_guest);
        list.row([
            "plug".into(),
            plug.name.as_str().into(),
            plug.mac.to_string().into(),
            format!("guest to host {} frames, {}", out.frames, bytes(out.bytes)).into(),
            format!("host to guest {} frames, {}", into.frames, bytes(into.bytes)).into(),
            format!("dropped {}", plug.dropped).into(),
        ]);
    }
    for plug in plugs.iter().filter(|plug| plug.spliced.connections > 0) {
        let Spliced { connections, guest_to_host, host_to_guest, .. } = plug.spliced;
        list.row([
            "spliced".into(),
            plug.name.as_str().into(),
            format!("{connections} connections").into(),
            format!("guest to host {}", bytes(guest_to_host)).into(),
            format!("host to guest {}", bytes(host_to_guest)).into(),
        ]);
    }
    list.render(colour)
}

/// A number of bytes in the largest binary unit that leaves at least one: `999 B`, `1.5 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| count >= *size) {
        // Tenths, rounded down; no count in u64 bytes overflows here.
        Some((size, unit)) => {
            format!("{}.{} {unit}", count / size, (count % size) * 10 / size)
        }
        None => format!("{count} B"),
    }
}

pub(crate) fn title(kind: &str, name: &str, colour: bool) -> String {
    let mut table = Table::default();
    table.row([Cell::new(format!("{kind} {name}"), Mood::Heading)]);
    table.render(colour)
}

#[cfg(test)]
mod tests {
    use netyard_engine::control::TurnState;
    use netyard_engine::forward::Protocol;
    use netyard_yard::api::Listening;

    use super::*;

    fn web(n: u8, state: InstanceState) -> InstanceStatus {
        InstanceStatus {
            name: format!("web-{n}"),
            state,
            vm: None,
            own_stack: false,
            external: None,
            sockets: Vec::new(),
            pid: Some(100 + u32::from(n)),
            init_pid: Some(90 + u32::from(n)),
            addresses: vec![[192, 168, 127, 1 + n].into()],
            restarts: 0,
            uptime_ms: Some(65_000),
            exit: None,
            ports: vec![Listening {
                protocol: Protocol::Tcp,
                address: "0.0.0.0:8080".parse().unwrap(),
            }],
            warnings: Vec::new(),
        }
    }

    #[test]
    fn ps_lists_instances_then_warnings() {
        let mut ended = web(2, InstanceState::Exited { code: 3 });
        ended.pid = None;
        ended.uptime_ms = None;
        ended.ports.clear();
        ended.exit = Some("code 3".into());
        ended.warnings = vec!["listens on 127.0.0.1:8080 only".into()];
        assert_eq!(
            instances(&[web(1, InstanceState::Healthy), ended], false),
            "NAME   STATE     PID  ADDRESS        PORTS     RESTARTS  UPTIME  LAST EXIT\n\
             web-1  healthy   101  192.168.127.2  8080/tcp  0         1m5s    -\n\
             web-2  exited 3  -    192.168.127.3  -         0         -       code 3\n\
             warning: web-2: listens on 127.0.0.1:8080 only\n"
        );
    }

    #[test]
    fn service_ls_has_a_row_for_each_instance() {
        let turn = |turns, open| TurnState { turns, open, ..TurnState::default() };
        let instance = |name: &str, eligible, turns| ServiceInstanceStatus {
            name: name.into(),
            weight: 1,
            eligible,
            problem: (!eligible).then(|| "connection refused".into()),
            turns,
        };
        let web = ServiceStatus {
            name: "web".into(),
            network: "lan".into(),
            protocol: Protocol::Tcp,
            port: 8080,
            addresses: vec!["192.168.127.253".parse().unwrap()],
            published: Some("127.0.0.1:8080".parse().unwrap()),
            instances: vec![
                instance("web-1", true, turn(7, 1)),
                instance("web-2", false, turn(6, 0)),
            ],
            policy: TurnPolicy::PerRequest,
            affinity_ms: None,
            refused: 2,
            clients: 0,
            clients_not_kept: 0,
        };
        let heading = "SERVICE  ADDRESS               PROTOCOL  PUBLISHED       POLICY       ";
        let blank = " ".repeat(heading.len());
        assert_eq!(
            services(&[web], false),
            format!(
                "{heading}INSTANCE  HEALTH     TURNS  FAILED  OPEN\n\
                 web      192.168.127.253:8080  tcp       127.0.0.1:8080  per-request  \
                 web-1     healthy    7      0       1\n\
                 {blank}web-2     unhealthy  6      0       0\n\
                 web: web-2: connection refused\n\
                 web: 2 requests refused: no instance was healthy\n"
            )
        );
    }

    #[test]
    fn leases_say_who_has_what_until_when() {
        let lease = |last, client: Option<&str>, mac: Option<&str>| LeaseState {
            address: [192, 168, 42, last].into(),
            client: client.map(str::to_owned),
            mac: mac.map(|mac| mac.parse().unwrap()),
            until: 1_000_000_000,
        };
        let all = [
            lease(100, Some("01020000000001"), Some("02:00:00:00:00:01")),
            lease(101, Some("ff01"), None),
            lease(102, None, None),
        ];
        assert_eq!(
            leases(&all, false),
            "\x20 lease  192.168.42.100  02:00:00:00:00:01      until 2001-09-09T01:46:40Z\n\
             \x20 lease  192.168.42.101  client ff01            until 2001-09-09T01:46:40Z\n\
             \x20 lease  192.168.42.102  used by somebody else  until 2001-09-09T01:46:40Z\n"
        );
    }

    #[test]
    fn durations_are_short() {
        let text = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(
            [0, 59, 60, 3599, 3600, 90_000].map(text),
            ["0s", "59s", "1m0s", "59m59s", "1h0m", "1d1h"]
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            [0, 1023, 1536, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "16777215.9 TiB"]
        );
    }
}
