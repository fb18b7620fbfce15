//! What passes between a virtual machine of netyard's own and its networks in user mode: super-frames both ways, by
//! a network of large packets too, and on through another process of the network.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(clippy::print_stdout, reason = "how long a transfer takes is of interest")]

#[path = "stage/disk.rs"]
mod disk;
mod stage;
#[path = "stage/vm.rs"]
mod vm;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use netyard_testbed::{User, isolate, peer, run, wait_for};

use crate::stage::{SOON, Stage, before};
use crate::vm::{BOOTED, chance, counted, initrd_with, needs_qemu, qemus, serve};

/// Of what the machine downloads, and of what it uploads.
const LEN: u64 = 100 << 20;

/// Of what the source sends again and again.
const PART: u64 = 1 << 20;

const YARD: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
host = ["127.0.0.1:9000"]

[networks.wide]
subnet = "192.168.78.0/24"
mtu = 9000

[instances.source]
run = ["busybox", "nc", "-l", "-p", "7000", "-e", "./source"]
restart = "no"
network = "lan"

[instances.sink]
run = ["sh", "-c", "tail -f /dev/null | busybox nc -l -p 7001 | md5sum"]
restart = "no"
network = "lan"

[instances.far]
run = ["sleep", "infinity"]
network = "wide"
address = "192.168.78.40"

[instances.box]
kind = "vm"
network = ["lan", "wide"]
restart = "no"
run = ["busybox", "sh", "-c", """
echo "packets of $(busybox cat /sys/class/net/eth0/mtu) and $(busybox cat /sys/class/net/eth1/mtu)"
busybox ping -c 1 -s 8900 -W 60 192.168.78.40
echo "downloaded $(busybox wget -q -O - http://host.lan:9000/file | busybox md5sum)"
busybox nc sink.lan 7001 -e busybox dd if=/dev/zero bs=64k count=1600
echo "uploaded"
echo "the source sent $(busybox nc source.lan 7000 </dev/null | busybox md5sum)"
"""]
"#;

/// What the source runs for the one connection that it takes: it goes on until it is told that it is enough.
const SOURCE: &str = r#"#!/bin/sh
parts=0
until [ -e enough ]; do cat part; parts=$((parts + 1)); done
echo $parts >parts
"#;

/// Waits until an instance has said something; the line.
fn hear(stage: &Stage, instance: &str, what: &str) -> String {
    wait_for(what, BOOTED, || {
        let log = stage.say(&["logs", instance]);
        log.lines().find(|line| line.contains(what)).map(str::to_owned)
    })
}

fn passes_whole_and_on(user: User) {
    needs_qemu();
    drop(peer("busybox"));
    let before = before(user);
    let stage = Stage::new(user, "traffic", YARD);
    let file = |name: &str| stage.folder.join(name);
    let digest = chance(&file("file"), LEN);
    chance(&file("part"), PART);
    fs::write(file("source"), SOURCE).unwrap();
    fs::set_permissions(file("source"), fs::Permissions::from_mode(0o755)).unwrap();
    let files = serve(9_000, &stage.folder);
    run(&mut stage.netyard(&["up", "-d", "--wait"]));

    hear(&stage, "box", "packets of 1500 and 9000");
    // It is larger than what has to be cut.
    hear(&stage, "box", "8908 bytes from 192.168.78.40");
    let started = Instant::now();
    hear(&stage, "box", &format!("downloaded {digest}"));
    println!("the download after {:.1?}", started.elapsed());
    let down = counted(&stage, "box").unwrap();
    let started = Instant::now();
    hear(&stage, "box", "uploaded");
    println!("the upload after {:.1?}", started.elapsed());
    let zeros = run(Command::new("sh").args(["-c", &format!("head -c {LEN} /dev/zero | md5sum")]));
    hear(&stage, "sink", zeros.trim());
    let up = counted(&stage, "box").unwrap();
    println!("{down:?} of {} bytes, {up:?} of {}", down.to.size(), up.from.size());
    assert!(down.to.bytes > LEN && up.from.bytes > LEN);
    assert!(down.to.size() > 3_000 && up.from.size() > 3_000, "super-frames stay whole");

    // A network process that ends in the middle is replaced: the connection stays, and the machine does not notice.
    let was = stage.instance("box");
    let machine = qemus();
    flows(&stage, up.to.bytes);
    for _ in 0..3 {
        stage.kill_network();
        // Another one begins to count anew.
        flows(&stage, 0);
    }
    fs::write(file("enough"), "").unwrap();
    let parts = wait_for("the number of parts", BOOTED, || {
        fs::read_to_string(file("parts")).ok().filter(|text| text.ends_with('\n'))
    });
    let all =
        format!("i=0; while [ $i -lt {} ]; do cat part; i=$((i + 1)); done | md5sum", parts.trim());
    let sent = run(Command::new("sh").args(["-c", &all]).current_dir(&stage.folder));
    hear(&stage, "box", &format!("the source sent {}", sent.trim()));
    wait_for("the machine's end", BOOTED, || {
        (stage.instance("box")["exit"] == "code 0").then_some(())
    });
    let is = stage.instance("box");
    assert_eq!((&is["addresses"], &is["restarts"]), (&was["addresses"], &was["restarts"]));
    assert_eq!(machine.len(), 1);
    stage.say(&["down"]);
    drop(files);
    fs::remove_dir_all(&stage.folder).unwrap();
    before.assert_restored(SOON);
}

/// Waits until the machine has got some of what the source sends, beyond so many bytes.
fn flows(stage: &Stage, before: u64) {
    wait_for("the source's bytes to pass", BOOTED, || {
        counted(stage, "box").filter(|counted| counted.to.bytes > before + 4 * PART)
    });
}

#[test]
fn super_frames_pass_and_a_connection_survives_the_networks_process() {
    isolate(|| passes_whole_and_on(User::Root));
}

#[test]
fn super_frames_pass_for_an_ordinary_user() {
    isolate(|| passes_whole_and_on(User::Ordinary));
}

/// A machine that boots by itself, as others do that know nothing of netyard.
const OWN_LOADER: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
host = ["127.0.0.1:9000"]

[networks.wide]
subnet = "192.168.78.0/24"
mtu = 9000

[instances.far]
run = ["sleep", "infinity"]
network = "wide"
address = "192.168.78.40"

[instances.box]
kind = "vm"
network = ["lan", "wide"]
restart = "no"
drive = "disk"
memory = "256M"
"#;

/// What its init runs.
const OWN_SCRIPT: &str = r#"#!/bin/busybox sh
@CARD
echo "downloaded $(busybox wget -q -O - http://host.lan:9000/file | busybox md5sum)"
busybox ip link set eth1 up
busybox udhcpc -i eth1 -s /configure -f -n -q -t 30 -T 1
busybox ping -c 1 -s 8900 -W 60 192.168.78.40
echo "packets of $(busybox cat /sys/class/net/eth0/mtu) and $(busybox cat /sys/class/net/eth1/mtu)"
busybox poweroff -f
"#;

#[test]
fn super_frames_pass_to_a_machine_with_a_loader_of_its_own() {
    isolate(|| {
        needs_qemu();
        let before = before(User::Root);
        let stage = Stage::new(User::Root, "traffic", OWN_LOADER);
        let digest = chance(&stage.folder.join("file"), LEN);
        let files = serve(9_000, &stage.folder);
        let (kernel, initrd) = initrd_with(&stage.folder, OWN_SCRIPT);
        let disk = disk::bootable(&kernel, &initrd, "console=ttyS0 quiet mitigations=off");
        fs::write(stage.folder.join("disk"), disk).unwrap();
        run(&mut stage.netyard(&["up", "-d"]));
        hear(&stage, "box", &format!("downloaded {digest}"));
        let counted = counted(&stage, "box").unwrap();
        assert!(counted.to.size() > 3_000, "super-frames stay whole: {counted:?}");
        hear(&stage, "box", "8908 bytes from 192.168.78.40");
        hear(&stage, "box", "packets of 1500 and 9000");
        wait_for("the machine's end", BOOTED, || {
            (stage.instance("box")["exit"] == "code 0").then_some(())
        });
        stage.say(&["down"]);
        drop(files);
        fs::remove_dir_all(&stage.folder).unwrap();
        before.assert_restored(SOON);
    });
}
