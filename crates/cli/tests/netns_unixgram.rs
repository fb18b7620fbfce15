//! What somebody else starts and plugs in by a Unix socket of datagrams, a frame in each, or by a stream of frames.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;
#[path = "stage/vm.rs"]
mod vm;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use netyard_testbed::{Background, User, isolate, run, wait_for};

use crate::stage::{SOON, Stage};
use crate::vm::{BOOTED, initrd, needs_qemu};

const YARD: &str = r#"
[networks.lab]
subnet = "192.168.88.0/24"

[instances.server]
run = ["netyard-traffic", "serve", "0.0.0.0:7000"]

[instances.box]
kind = "external"
socket = "unixgram:box.sock"
address = "192.168.88.30"
mac = "02:00:5e:10:00:05"
"#;

const OWN: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 5];

/// Who has the gateway's address? 192.168.88.30 would like to know.
fn question() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &OWN, &[8, 6]].concat();
    let arp =
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &OWN, &[192, 168, 88, 30], &[0; 6], &[192, 168, 88, 1]];
    [ethernet, arp.concat()].concat()
}

/// The gateway's hardware address, if a frame is its answer.
fn answer(frame: &[u8]) -> Option<[u8; 6]> {
    let is = frame.get(12..22)? == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
        && frame.get(28..32)? == [192, 168, 88, 1]
        && frame.get(..6)? == OWN;
    frame.get(22..28)?.try_into().ok().filter(|_| is)
}

/// Asks for the gateway until it answers.
fn gateway(guest: &UnixDatagram, network: &Path) -> [u8; 6] {
    guest.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    wait_for("an answer of the gateway", SOON, || {
        // While the network's process is another one, nobody reads: then the socket is full at some time.
        guest.set_nonblocking(true).unwrap();
        let sent = guest.send_to(&question(), network);
        guest.set_nonblocking(false).unwrap();
        if let Err(error) = sent {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        }
        let mut frame = [0; 2_000];
        std::iter::from_fn(|| guest.recv(&mut frame).ok().map(|len| answer(&frame[..len])))
            .flatten()
            .next()
    })
}

#[test]
fn who_sends_last_is_the_guest_and_may_come_again() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::new(user, "lab", YARD);
            run(&mut stage.netyard(&["up", "-d"]));
            let path = stage.folder.join("box.sock");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let is = stage.instance("box");
            assert_eq!(is["sockets"][0]["protocol"], "datagram", "{is}");
            assert!(stage.say(&["inspect", "box"]).contains("socket of datagrams"));

            let places = ["first.sock", "second.sock"].map(|name| stage.folder.join(name));
            let mut heard = Vec::new();
            for place in [&places[0], &places[1], &places[0]] {
                let guest = UnixDatagram::bind(place).unwrap();
                // The network's process is nobody's friend where it has no rights: an ordinary user's may write to it.
                fs::set_permissions(place, fs::Permissions::from_mode(0o666)).unwrap();
                // What vfkit says first, and two that are no frames.
                for nothing in [&b"VFKT"[..], b"", b"runt"] {
                    guest.send_to(nothing, &path).unwrap();
                }
                heard.push(gateway(&guest, &path));
                drop(guest);
                fs::remove_file(place).unwrap();
            }
            // It goes on with another process of the network.
            let guest = UnixDatagram::bind(&places[0]).unwrap();
            fs::set_permissions(&places[0], fs::Permissions::from_mode(0o666)).unwrap();
            heard.push(gateway(&guest, &path));
            stage.kill_network();
            heard.push(gateway(&guest, &path));
            heard.dedup();
            assert_eq!(heard.len(), 1, "{heard:?}");

            run(&mut stage.netyard(&["down"]));
            assert!(!path.exists());
            drop(guest);
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

/// A QEMU that knows nothing of netyard boots, gets its address and fetches a page. `FOLDER` in what its card is
/// connected by is the yard's.
fn boots(user: User, yard: &str, netdev: &str) {
    needs_qemu();
    let stage = Stage::up(user, "lab", yard);
    let (kernel, initrd) = initrd(&stage.folder);
    let folder = stage.folder.to_str().unwrap();
    let mut qemu = user.peer("qemu-system-x86_64");
    qemu.args(["-M", "microvm,rtc=on", "-accel", "tcg", "-m", "256M", "-nodefaults"]);
    qemu.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-netdev"]);
    qemu.arg(netdev.replace("FOLDER", folder));
    qemu.args(["-device", "virtio-net-device,netdev=n,mac=02:00:5e:10:00:05"]);
    qemu.args(["-global", "virtio-mmio.force-legacy=false", "-append"]);
    qemu.args(["console=ttyS0 reboot=t tsc_early_khz=2000000 tsc=reliable", "-kernel"]);
    let mut machine = Background::start(qemu.arg(&kernel).arg("-initrd").arg(&initrd));
    machine.wait_for_line("the address is 192.168.88.30/24", BOOTED);
    machine.wait_for_line("hello from outside", BOOTED);
    machine.wait(BOOTED);
    stage.say(&["down"]);
}

const DATAGRAMS: &str = "dgram,id=n,local.type=unix,local.path=FOLDER/guest.sock,\
                         remote.type=unix,remote.path=FOLDER/box.sock";

#[test]
fn a_machine_of_somebody_else_sends_each_frame_as_a_datagram() {
    isolate(|| boots(User::Root, YARD, DATAGRAMS));
}

#[test]
fn a_machine_of_an_ordinary_user_sends_each_frame_as_a_datagram() {
    isolate(|| boots(User::Ordinary, YARD, DATAGRAMS));
}

#[test]
fn a_machine_of_somebody_else_sends_its_frames_by_a_stream() {
    isolate(|| {
        let yard = YARD.replace("unixgram:", "");
        boots(
            User::Ordinary,
            &yard,
            "stream,id=n,addr.type=unix,addr.path=FOLDER/box.sock,server=off",
        );
    });
}
