//! The network process from outside: joining, members that misbehave, leaving.
//!
//! This program is both the tests and, under the hidden verb, the network process.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program with its own main")]

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use netyard_engine::client::Connection;
use netyard_engine::config::{Config, Dhcp, Uplink};
use netyard_engine::control::{
    Answer, Call, ControlError, ControlErrorKind, MAX_MESSAGE, PlugKind, PlugRequest, Plugged,
    Reply, Request, ServiceInstance, ServiceSpec, State, TurnPolicy, VERSION,
};
use netyard_engine::forward::{Forward, Protocol};
use netyard_engine::process::{self, JoinError, VERB};
use netyard_sys::process::{has_children, kill};
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::wait;
use netyard_testbed::ask::with_port;
use netyard_testbed::{peer, run, wait_for};
use netyard_wire::{Features, MacAddr};

const LONG: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(VERB) {
        return process::main(|_| unreachable!("a user-mode network has no plumbing"));
    }
    type Test = (&'static str, fn(&Place));
    let tests: [Test; 15] = [
        ("two_members_share_one_process", two_members_share_one_process),
        ("the_last_member_takes_everything_away", the_last_member_takes_everything_away),
        ("a_permanent_network_stays", a_permanent_network_stays),
        ("a_large_network_is_shown_whole", a_large_network_is_shown_whole),
        ("what_a_member_made_goes_with_it", what_a_member_made_goes_with_it),
        ("a_misbehaving_member_harms_nobody", a_misbehaving_member_harms_nobody),
        ("frames_pass_between_members", frames_pass_between_members),
        ("a_plug_that_dies_is_taken_out", a_plug_that_dies_is_taken_out),
        ("a_forward_of_a_socket_comes_with_it", a_forward_of_a_socket_comes_with_it),
        ("a_taken_port_names_its_holder", a_taken_port_names_its_holder),
        ("nobody_answers_a_dial_to_nobody", nobody_answers_a_dial_to_nobody),
        ("a_killed_process_is_noticed_and_replaced", a_killed_process_is_noticed_and_replaced),
        ("a_process_belongs_to_nobody", a_process_belongs_to_nobody),
        ("a_process_that_does_not_come_up_is_told", a_process_that_does_not_come_up_is_told),
        ("what_nobody_waits_for_does_not_stay", what_nobody_waits_for_does_not_stay),
    ];
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            test(&Place::new());
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// A folder for one network.
struct Place {
    _root: tempfile::TempDir,
    folder: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("net");
        Self { _root: root, folder }
    }

    fn join(&self, member: &str) -> Connection {
        let mut connection = self.connect();
        connection.hello(member).unwrap();
        connection
    }

    /// Joins without saying hello.
    fn connect(&self) -> Connection {
        process::join(&self.folder, &config(), &std::env::current_exe().unwrap()).unwrap()
    }

    /// A connection on which anything can be said.
    fn raw(&self) -> SeqPacket {
        SeqPacket::connect(&self.folder.join("network.sock")).unwrap()
    }

    fn wait_until_gone(&self) {
        wait_for("the network's folder goes", LONG, || (!self.folder.exists()).then_some(()));
    }
}

fn config() -> Config {
    Config {
        name: "lab".into(),
        subnet4: "192.168.127.0/24".parse().unwrap(),
        subnet6: "fd00:1:2:3::/64".parse().unwrap(),
        mode: netyard_engine::config::Mode::User,
        gateway: None,
        gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        zone: "lan".into(),
        dns: Default::default(),
        mtu: 1500,
        uplink: Uplink::None,
        host: Vec::new(),
        dhcp: Some(Dhcp::default()),
        // Who reads a plug here counts what comes.
        snooping: false,
        mdns: Default::default(),
        permanent: false,
    }
}

fn ask(connection: &mut Connection, request: Request) -> Result<Reply, ControlError> {
    connection.request(request, None).unwrap().0
}

fn inspect(connection: &mut Connection) -> State {
    match ask(connection, Request::Inspect) {
        Ok(Reply::State(state)) => *state,
        other => panic!("{other:?}"),
    }
}

/// Plugs a frame socket in; returns its other end, greeted.
fn plug(connection: &mut Connection, name: &str) -> (Plugged, SeqPacket) {
    let (near, far) = SeqPacket::pair().unwrap();
    let request = PlugRequest::new(name, PlugKind::Socket);
    let (reply, _) =
        connection.request(Request::AddPlug(request), Some(OwnedFd::from(far))).unwrap();
    let Ok(Reply::Plugged(plugged)) = reply else { panic!("{reply:?}") };
    near.send(&Features::NONE.bits().to_le_bytes(), &[]).unwrap();
    assert_eq!(near.recv(&mut [0; 8]).unwrap().0, 4);
    (plugged, near)
}

fn two_members_share_one_process(place: &Place) {
    let mut one = place.connect();
    assert_eq!(one.hello("one").unwrap().config, config());
    let mut other = place.join("other");
    let mut namesake = place.join("other");
    let state = inspect(&mut one);
    assert_eq!(state.members, ["one", "other", "other~2"]);
    assert_ne!(state.pid, std::process::id());
    assert_eq!(inspect(&mut other).pid, state.pid);
    assert_eq!(inspect(&mut namesake).config, Some(config()));
    drop(one);
    wait_for("the member leaves", LONG, || (inspect(&mut other).members.len() == 2).then_some(()));
}

fn the_last_member_takes_everything_away(place: &Place) {
    let members = [place.join("one"), place.join("two")];
    assert_eq!(mode(&place.folder), 0o700);
    drop(members);
    place.wait_until_gone();
    let error = process::find(&place.folder).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    // Join and leave as fast as can be: nobody ever meets a process that is about to end.
    for _ in 0..20 {
        place.join("again");
    }
    place.wait_until_gone();
}

fn a_permanent_network_stays(place: &Place) {
    let mut first = place.join("first");
    let pid = inspect(&mut first).pid;
    ask(&mut first, Request::SetPermanent { permanent: true }).unwrap();
    drop(first);
    let mut second = process::find(&place.folder).unwrap();
    second.hello("second").unwrap();
    wait_for("the first is gone", LONG, || (inspect(&mut second).members.len() == 1).then_some(()));
    let state = inspect(&mut second);
    assert_eq!(state.pid, pid);
    assert!(state.config.unwrap().permanent);
    ask(&mut second, Request::SetPermanent { permanent: false }).unwrap();
    drop(second);
    place.wait_until_gone();
}

fn what_a_member_made_goes_with_it(place: &Place) {
    let mut stays = place.join("stays");
    let mut goes = place.join("goes");
    let (kept, _kept_end) = plug(&mut stays, "kept");
    let (_, gone_end) = plug(&mut goes, "gone");
    let (_, removed_end) = plug(&mut goes, "removed");
    let at = free_port();
    ask(&mut goes, Request::AddForward(forward(at, "gone"))).unwrap();
    assert_eq!(inspect(&mut stays).plugs.len(), 3);
    assert_eq!(TcpListener::bind(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    // Another's plug cannot be taken out.
    let refused = ask(&mut goes, Request::RemovePlug { plug: kept.plug }).unwrap_err();
    assert_eq!(refused.kind, ControlErrorKind::Unknown);
    let removed = inspect(&mut stays).plugs.last().unwrap().plug;
    ask(&mut goes, Request::RemovePlug { plug: removed }).unwrap();
    assert_eq!(removed_end.recv(&mut [0; 64]).unwrap().0, 0);

    drop(goes);
    assert_eq!(gone_end.recv(&mut [0; 64]).unwrap().0, 0);
    let state = inspect(&mut stays);
    let left: Vec<&str> = state.plugs.iter().map(|plug| plug.name.as_str()).collect();
    assert_eq!((left, state.forwards.len()), (vec!["kept"], 0));
    TcpListener::bind(at).unwrap();
}

fn a_misbehaving_member_harms_nobody(place: &Place) {
    let mut good = place.join("good");
    let (_, _end) = plug(&mut good, "instance");

    let bad = place.raw();
    let complaint = |message: &[u8]| {
        bad.send(message, &[]).unwrap();
        let answer = receive_answer(&bad);
        (answer.id, answer.reply.unwrap_err().kind)
    };
    assert_eq!(complaint(b"{"), (0, ControlErrorKind::Malformed));
    assert_eq!(complaint(b"\xff\x00"), (0, ControlErrorKind::Malformed));
    let unknown = br#"{"id": 7, "request": "no-such-verb"}"#;
    assert_eq!(complaint(unknown), (7, ControlErrorKind::Malformed));
    assert_eq!(complaint(&vec![b' '; MAX_MESSAGE + 1]), (0, ControlErrorKind::Malformed));
    let early = call(8, Request::Inspect);
    assert_eq!(complaint(&early), (8, ControlErrorKind::Malformed));
    let foreign = Request::Hello { version: VERSION + 1, member: "new".into() };
    assert_eq!(complaint(&call(9, foreign)), (9, ControlErrorKind::Version));
    let hello = Request::Hello { version: VERSION, member: "bad".into() };
    bad.send(&call(10, hello.clone()), &[]).unwrap();
    assert!(matches!(receive_answer(&bad).reply, Ok(Reply::Welcome(_))));
    assert_eq!(complaint(&call(11, hello)), (11, ControlErrorKind::Malformed));

    // Plugs without a descriptor, with too many, and with one that is something else.
    let request = PlugRequest::new("wrong", PlugKind::Tap);
    let request = call(12, Request::AddPlug(request));
    assert_eq!(complaint(&request), (12, ControlErrorKind::Malformed));
    bad.send(&request, &[bad.as_fd(), bad.as_fd()]).unwrap();
    assert_eq!(receive_answer(&bad).reply.unwrap_err().kind, ControlErrorKind::Malformed);
    bad.send(&request, &[io::stdin().as_fd()]).unwrap();
    assert_eq!(receive_answer(&bad).reply.unwrap_err().kind, ControlErrorKind::Malformed);

    // It asks and never reads: it is disconnected in the end.
    bad.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + LONG;
    let ask = call(13, Request::Inspect);
    loop {
        assert!(Instant::now() < deadline, "a member that does not read stays");
        match bad.send(&ask, &[]) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => break,
        }
    }
    let state = inspect(&mut good);
    assert_eq!((state.members.len(), state.plugs.len()), (1, 1));
}

fn frames_pass_between_members(place: &Place) {
    let (mut one, mut other) = (place.join("one"), place.join("other"));
    let (from, sends) = plug(&mut one, "from");
    let (to, receives) = plug(&mut other, "to");
    let (source, target) =
        (SocketAddr::from((from.address4, 1_000)), SocketAddr::from((to.address4, 2_000)));
    let mut bytes = Vec::new();
    netyard_wire::build::udp_frame(&mut bytes, from.mac, to.mac, source, target, 64, b"hello");
    let partial = netyard_wire::Offload {
        checksum: netyard_wire::Checksum::Partial { start: 34, offset: 6 },
        gso: None,
    };
    sends.send(&[&partial.encode()[..], &bytes].concat(), &[]).unwrap();
    let mut buffer = vec![0; 2_000];
    assert_eq!(wait::readable([receives.as_fd()], Some(LONG)).unwrap(), [true]);
    let (len, _) = receives.recv(&mut buffer).unwrap();
    let (header, frame) = buffer[..len].split_first_chunk().unwrap();
    assert_eq!(netyard_wire::Offload::parse(header, frame), Ok(netyard_wire::Offload::default()));
    assert!(frame.ends_with(b"hello"));
    let state = inspect(&mut one);
    assert_eq!(state.plugs[0].guest_to_host.frames, 1);
    assert_eq!(state.plugs[1].host_to_guest.frames, 1);
}

fn a_plug_that_dies_is_taken_out(place: &Place) {
    let mut member = place.join("member");
    let (_, end) = plug(&mut member, "dies");
    let (_, _other) = plug(&mut member, "lives");
    drop(end);
    wait_for("the dead plug is taken out", LONG, || {
        (inspect(&mut member).plugs.len() == 1).then_some(())
    });
    // Its name and address are free again.
    plug(&mut member, "dies");
}

fn a_forward_of_a_socket_comes_with_it(place: &Place) {
    let mut connection = place.join("one");
    let path = place.folder.join("web.sock");
    let text = format!("unix:{}:80", path.display());
    let forward = Forward { instance: "web".into(), ..text.parse().unwrap() };
    let mut add = |socket: Option<OwnedFd>| {
        connection.request(Request::AddForward(forward.clone()), socket).unwrap().0
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    for wrong in [None, Some(port.into())] {
        assert_eq!(add(wrong).unwrap_err().kind, ControlErrorKind::Malformed);
    }
    let socket = UnixListener::bind(&path).unwrap();
    assert!(matches!(add(Some(socket.into())), Ok(Reply::Forwarding { at }) if at.is_empty()));
    // Nobody is called so: whoever comes is sent away.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    ask(&mut connection, Request::RemoveForward { forward }).unwrap();
    wait_for("it to be closed", LONG, || UnixStream::connect(&path).is_err().then_some(()));
}

fn a_taken_port_names_its_holder(place: &Place) {
    let mut member = place.join("member");
    let listener = listener();
    let at = listener.local_addr().unwrap();
    let error = ask(&mut member, Request::AddForward(forward(at, "any"))).unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Taken);
    assert!(error.message.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(listener);
    ask(&mut member, Request::AddForward(forward(at, "any"))).unwrap();
    let unknown = ask(&mut member, Request::RemoveForward { forward: forward(at, "other") });
    assert_eq!(unknown.unwrap_err().kind, ControlErrorKind::Unknown);
    ask(&mut member, Request::RemoveForward { forward: forward(at, "any") }).unwrap();
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

fn nobody_answers_a_dial_to_nobody(place: &Place) {
    let mut member = place.join("member");
    let to = SocketAddr::from((Ipv4Addr::new(192, 168, 127, 77), 80));
    let dial = Request::Dial { to, within: Duration::from_millis(100) };
    let (reply, descriptor) = member.request(dial, None).unwrap();
    assert_eq!(reply.unwrap_err().kind, ControlErrorKind::Unreachable);
    assert!(descriptor.is_none());
    // However long it is asked to try, it does not stop at the number.
    member.call(Request::Dial { to, within: Duration::MAX }, None).unwrap();
    inspect(&mut member);
}

fn a_large_network_is_shown_whole(place: &Place) {
    let mut member = place.join("member");
    for number in 0..100 {
        let instances = (0..50u8)
            .map(|instance| ServiceInstance {
                name: format!("instance-{instance}"),
                address4: [192, 168, 127, instance].into(),
                address6: "fd00:1:2:3::1".parse().unwrap(),
                weight: 1,
                eligible: false,
            })
            .collect();
        let name = format!("service-{number}");
        let spec = ServiceSpec {
            name,
            protocol: Protocol::Tcp,
            port: 80,
            publish: None,
            delivery: Default::default(),
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances,
        };
        ask(&mut member, Request::SetService(spec)).unwrap();
    }
    let state = inspect(&mut member);
    assert!(serde_json::to_vec(&state).unwrap().len() > 2 * MAX_MESSAGE);
    assert_eq!((state.services.len(), state.asked_by.as_str()), (100, "member"));
    assert!(state.services.iter().all(|service| service.instances.len() == 50));
}

fn a_killed_process_is_noticed_and_replaced(place: &Place) {
    const SIGKILL: i32 = 9;
    let mut member = place.join("member");
    let pid = inspect(&mut member).pid;
    kill(i32::try_from(pid).unwrap(), SIGKILL).unwrap();
    assert_eq!(wait::readable([member.as_fd()], Some(LONG)).unwrap(), [true]);
    let error = member.poll_answer().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    // The kernel closes a dying process's descriptors one after the other.
    let error = wait_for("nobody listens", LONG, || process::find(&place.folder).err());
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let mut again = place.join("member");
    assert_ne!(inspect(&mut again).pid, pid);
    drop(again);
    place.wait_until_gone();
}

fn a_process_belongs_to_nobody(place: &Place) {
    let mut member = place.join("one");
    let pid = inspect(&mut member).pid;
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name: state, parent, process group, session (proc_pid_stat(5)).
    let (_, numbers) = status.rsplit_once(") ").unwrap();
    let numbers: Vec<&str> = numbers.split(' ').collect();
    assert_ne!(numbers[1], std::process::id().to_string(), "{status}");
    assert_eq!(numbers[2..4], [pid.to_string(), pid.to_string()], "{status}");
    // Nor is anything of ours left to be reaped.
    assert!(!has_children().unwrap());
}

fn a_process_that_does_not_come_up_is_told(place: &Place) {
    let join = |program: &Path| process::join(&place.folder, &config(), program).map(drop);
    let ended = join(&peer("false")).unwrap_err();
    assert!(matches!(ended, JoinError::Ended { .. }), "{ended}");
    let missing = join(Path::new("/no/such/program")).unwrap_err();
    assert!(matches!(missing, JoinError::Start { .. }), "{missing}");
    // Neither is in the way of one that does.
    place.join("one");
}

fn what_nobody_waits_for_does_not_stay(place: &Place) {
    let config = Config { permanent: true, ..config() };
    let program = std::env::current_exe().unwrap();
    // One that comes up when a pipe is closed.
    let folder = tempfile::tempdir().unwrap();
    let (pipe, late) = (folder.path().join("pipe"), folder.path().join("late"));
    run(Command::new(peer("mkfifo")).arg(&pipe));
    let text = format!(
        "#!/bin/sh\ncat {} >/dev/null\nexec {} \"$@\"\n",
        pipe.display(),
        program.display()
    );
    fs::write(&late, text).unwrap();
    fs::set_permissions(&late, fs::Permissions::from_mode(0o700)).unwrap();
    drop(process::begin(&place.folder, &config, &late).unwrap());
    drop(OpenOptions::new().write(true).open(&pipe).unwrap());
    place.wait_until_gone();
    // Whoever waits has it for good.
    let mut member = process::join(&place.folder, &config, &program).unwrap();
    member.hello("one").unwrap();
    assert!(inspect(&mut member).config.unwrap().permanent);
    ask(&mut member, Request::SetPermanent { permanent: false }).unwrap();
}

fn call(id: u64, request: Request) -> Vec<u8> {
    serde_json::to_vec(&Call { id, request }).unwrap()
}

fn receive_answer(socket: &SeqPacket) -> Answer {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (len, _) = socket.recv(&mut buffer).unwrap();
    serde_json::from_slice(&buffer[..len]).unwrap()
}

/// A host address whose port was free a moment ago, and is given to nobody.
fn free_port() -> SocketAddr {
    listener().local_addr().unwrap()
}

/// When it has gone nobody else is given its port, nor does a connection to it come from it.
fn listener() -> TcpListener {
    with_port(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).unwrap()
}

fn forward(at: SocketAddr, instance: &str) -> Forward {
    let mut forward: Forward = format!("{at}:80").parse().unwrap();
    forward.instance = instance.into();
    forward
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}
