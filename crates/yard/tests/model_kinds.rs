//! What a yard file says of machines, of what somebody else starts, and of programs with a stack of their own.

mod model;

use std::path::Path;

use netyard_yard::file;
use netyard_yard::model::{Kind, VmSpec};

use self::model::{PATH, good, refuses};

#[test]
fn a_program_can_have_a_stack_of_its_own() {
    let text = r#"
[networks.lan]
[instances.box]
kind = "stack"
run = ["x"]
"#;
    let yard = file::parse(text, Path::new(PATH)).unwrap();
    assert_eq!(yard.instances[0].kind, Kind::Stack);
    refuses(
        &format!("{text}memory = \"1G\"\nowner = 1\n"),
        r#"
           6: instances.box.memory: belongs to a virtual machine: write kind = "vm" beside it
           7: instances.box.owner: belongs to what somebody else starts: write kind = "external" beside it"#,
    );
    let many: Vec<String> = (0..14).map(|n| format!("n{n}")).collect();
    let network = |n| format!("[networks.n{n}]\nsubnet = \"10.77.{n}.0/24\"\n");
    let networks: String = (0..14).map(network).collect();
    refuses(
        &format!(
            "[instances.box]\nkind = \"stack\"\nrun = [\"x\"]\nnetwork = {many:?}\n{networks}"
        ),
        "1: instances.box: a program with a stack of its own has at most 13 plugs",
    );
}

#[test]
fn what_is_external_has_taps_and_nothing_to_run() {
    let yard = good(
        r#"
[networks.lan]
mode = "bridge"
[instances.box]
kind = "external"
tap = "tap5"
owner = 1000
mac = "02:00:00:00:00:05"
[instances.other]
kind = "external"
owner = "root"
forwards = ["2222:22"]
[instances.machine]
kind = "vm"
run = ["x"]
tap = "tap6"
[services.web]
instances = ["box", "machine"]
port = 80
"#,
    );
    let owner = |name: &str| yard.instance(name).unwrap().kind.external().unwrap().owner;
    assert_eq!((owner("box"), owner("other")), (1000, 0));
    assert!(yard.instance("box").unwrap().run.is_empty());
    assert!(yard.instance("machine").unwrap().kind.vm().is_some());
    refuses(
        r#"
[networks.lan]
[instances.box]
kind = "external"
run = ["x"]
owner = "no-such-user"
[instances.web]
run = ["x"]
owner = 5
"#,
        r#"3: instances.box: is external, and network lan has no TAPs that others can open: write where they connect to, socket = "PATH" or vhost-user = "PATH", or give it mode = "bridge"
           5: instances.box.run: belongs to what netyard starts; somebody else starts this
           6: instances.box.owner: expected the name or the number of a user of this machine, found the string "no-such-user"
           9: instances.web.owner: belongs to what somebody else starts: write kind = "external" beside it"#,
    );
}

#[test]
fn what_is_external_in_user_mode_has_one_socket() {
    use netyard_yard::model::SocketProtocol::{Stream, VhostUser};

    let yard = good(
        r#"
[networks.lan]
[instances.box]
kind = "external"
socket = "box.sock"
[instances.fast]
kind = "external"
network = [{ name = "lan", vhost-user = "run/fast.sock" }]
"#,
    );
    let socket = |name: &str| yard.instance(name).unwrap().plugs[0].socket.clone().unwrap();
    for (name, path, protocol) in
        [("box", "box.sock", Stream), ("fast", "run/fast.sock", VhostUser)]
    {
        let socket = socket(name);
        assert!(socket.path.is_absolute() && socket.path.ends_with(path), "{socket:?}");
        assert_eq!(socket.protocol, protocol);
    }
    refuses(
        r#"
[networks.lan]
[networks.wire]
mode = "bridge"
subnet = "10.9.0.0/24"
[instances.both]
kind = "external"
network = "lan"
socket = "a"
vhost-user = "b"
[instances.bridged]
kind = "external"
network = "wire"
vhost-user = "c"
[instances.ours]
network = "lan"
run = ["x"]
vhost-user = "d"
[instances.many]
kind = "external"
network = "lan"
count = 2
vhost-user = "e"
"#,
        r#"10: instances.both.vhost-user: a plug has one socket: write `socket` or `vhost-user`
           14: instances.bridged.vhost-user: a socket needs a network with mode = "user": here it is a TAP
           18: instances.ours.vhost-user: belongs to what somebody else starts: write kind = "external" beside it
           23: instances.many.vhost-user: several instances cannot share it: leave `count` out, or write one section for each"#,
    );
}

#[test]
fn the_socket_of_something_external_is_of_streams_or_datagrams() {
    use netyard_yard::model::SocketProtocol;
    let socket = |value: &str| {
        let box_ = format!("kind = \"external\"\nsocket = \"{value}\"\n");
        let yard = good(&format!("[networks.lan]\n[instances.box]\n{box_}"));
        let socket = yard.instances[0].plugs[0].socket.clone().unwrap();
        (socket.protocol, socket.path.display().to_string())
    };
    let stream = (SocketProtocol::Stream, "/srv/hello/box.sock".to_owned());
    assert_eq!([socket("box.sock"), socket("unix:./box.sock")], [stream.clone(), stream]);
    let datagrams = (SocketProtocol::Datagram, "/run/box.sock".to_owned());
    assert_eq!(socket("unixgram:/run/box.sock"), datagrams);
}

#[test]
fn virtual_machines_have_keys_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let yard_file = folder.path().join("yard.toml");
    for name in ["vmlinuz", "initrd", "disk"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let text = r#"
[networks.lan]
[instances.plain]
kind = "vm"
run = ["server"]
[instances.large]
kind = "vm"
run = ["server"]
memory = "2G"
cpus = 4
kernel = "vmlinuz"
[instances.image]
kind = "vm"
kernel = "vmlinuz"
initrd = "./initrd"
drive = "disk"
"#;
    let yard = file::parse(text, &yard_file).unwrap_or_else(|error| panic!("{error}"));
    let vm = |name: &str| yard.instance(name).unwrap().kind.vm().unwrap().clone();
    assert_eq!(vm("plain"), VmSpec::default());
    let kernel = Some(folder.path().join("vmlinuz"));
    assert_eq!(vm("large"), VmSpec { memory: 2048, cpus: 4, kernel, ..VmSpec::default() });
    assert!(vm("image").is_image() && yard.instance("image").unwrap().run.is_empty());
    assert_eq!(vm("image").drive, Some(folder.path().join("disk")));
}

#[test]
fn keys_of_virtual_machines_are_held_against_each_other() {
    refuses(
        r#"
[networks.lan]
[instances.process]
run = ["server"]
memory = "1G"
[instances.few]
kind = "vm"
run = ["server"]
memory = "12"
cpus = 0
kernel = "no-such-kernel"
[instances.image]
kind = "vm"
run = ["server"]
drive = "yard.toml"
[instances.nothing]
kind = "vm"
"#,
        r#"5: instances.process.memory: belongs to a virtual machine: write kind = "vm" beside it
           9: instances.few.memory: expected an amount of memory like "512M" or "2G", from 64M to 1024G, found the string "12"
           10: instances.few.cpus: expected a whole number from 1 to 64, found the number 0
           11: instances.few.kernel: expected a file; there is none at /srv/hello/no-such-kernel
           14: instances.image.run: an image (`initrd`, `drive`) runs what is in it: leave `run` out
           15: instances.image.drive: expected a file; there is none at /srv/hello/yard.toml
           16: instances.nothing: has no `run`: write run = ["program", "argument"]"#,
    );
}
