//! Machines that plug in by vhost-user: a QEMU that knows nothing of netyard, with a kernel of the machine
//! that the tests run on.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(clippy::print_stdout, reason = "how long a machine takes is of interest")]

mod stage;
#[path = "stage/vm.rs"]
mod vm;

use std::fs;
use std::path::Path;
use std::time::Instant;

use netyard_testbed::{Background, User, isolate, run, wait_for};

use crate::stage::{SOON, Stage};
use crate::vm::{BOOTED, chance, counted, initrd_with, needs_qemu, serve};

/// Of the file that the machine downloads.
const LEN: u64 = 100 << 20;

const YARD: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
mtu = 1400
host = ["127.0.0.1:9000", "127.0.0.1:9001"]

[instances.box]
kind = "external"
vhost-user = "box.sock"
address = "192.168.77.30"
mac = "02:00:5e:10:00:05"

[instances.server]
run = ["netyard-traffic", "serve", "0.0.0.0:7000"]
"#;

/// Names, a process of the yard, a file of the host both ways; and again with another network.
const SCRIPT: &str = r#"#!/bin/busybox sh
@CARD
echo "agreed to $(busybox cat /sys/class/net/eth0/device/features)"
busybox wget -q -O - http://server.lan:7000/
echo "the file is $(busybox wget -q -O - http://host.lan:9000/file | busybox md5sum)"
until busybox wget -q -O /again http://host.lan:9001/small; do busybox sleep 1; done
echo "another network has $(busybox cat /again)"
busybox poweroff -f
"#;

fn a_machine_is_served(user: User, machine: &[&str], card: &str) {
    needs_qemu();
    let stage = Stage::new(user, "lab", YARD);
    fs::write(stage.folder.join("small"), "enough").unwrap();
    let digest = chance(&stage.folder.join("file"), LEN);
    let _files = serve(9_000, &stage.folder);
    run(&mut stage.netyard(&["up", "-d", "--wait"]));
    let is = stage.instance("box");
    let socket = &is["sockets"][0];
    assert_eq!(
        (&socket["protocol"], &socket["mac"]),
        (&"vhost-user".into(), &"02:00:5e:10:00:05".into())
    );
    assert!(stage.say(&["inspect", "box"]).contains("vhost-user"));

    let (kernel, initrd) = initrd_with(&stage.folder, SCRIPT);
    let mut qemu = user.peer("qemu-system-x86_64");
    qemu.args(machine).args(["-accel", "tcg", "-m", "256M", "-nodefaults"]);
    qemu.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"]);
    qemu.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-chardev"]);
    qemu.arg(format!("socket,id=plug,path={},reconnect=1", socket["path"].as_str().unwrap()));
    qemu.args(["-netdev", "vhost-user,id=n,chardev=plug", "-device"]);
    qemu.arg(format!("{card},netdev=n,mac=02:00:5e:10:00:05,host_mtu=1400"));
    qemu.args(["-global", "virtio-mmio.force-legacy=false", "-append"]);
    qemu.args(["console=ttyS0 reboot=t tsc_early_khz=2000000 tsc=reliable", "-kernel"]);
    let started = Instant::now();
    let mut machine = Background::start(qemu.arg(&kernel).arg("-initrd").arg(&initrd));
    machine.wait_for_line("the mtu is 1400", BOOTED);
    machine.wait_for_line("the address is 192.168.77.30/24", BOOTED);
    println!("an address after {:.1?}", started.elapsed());
    machine.wait_for_line("hello from outside", BOOTED);
    let started = Instant::now();
    machine.wait_for_line(&format!("the file is {digest}"), BOOTED);
    println!("the file after {:.1?}", started.elapsed());
    let counted = counted(&stage, "box").unwrap();
    println!("{counted:?}");
    assert!(counted.to.bytes > LEN);
    // Frames of the MTU have at most 1414 bytes.
    assert!(counted.to.size() > 3_000, "super-frames stay whole");
    let output = machine.output();
    let agreed = output.lines().find_map(|line| line.split_once("agreed to ")).unwrap().1;
    // Bits from 0 on: checksums both ways, the MTU, TSO both ways, merged buffers, lists elsewhere, event index, modern.
    for bit in [0, 1, 3, 7, 8, 11, 12, 15, 28, 29, 32] {
        assert_eq!(agreed.as_bytes()[bit], b'1', "bit {bit} of {agreed}");
    }

    // Another process of the network: the machine is plugged in again and notices nothing else.
    stage.kill_network();
    let _more = serve(9_001, &stage.folder);
    machine.wait_for_line("another network has enough", BOOTED);
    assert_eq!(machine.wait(BOOTED).code(), Some(0), "{}", machine.output());
    // What is external stays until the yard goes, and its socket with it.
    let path = socket["path"].as_str().unwrap().to_owned();
    assert!(Path::new(&path).exists());
    let keeper = stage.keeper_pid();
    stage.say(&["down"]);
    assert!(!Path::new(&path).exists());
    wait_for("the keeper's end", SOON, || {
        (!Path::new(&format!("/proc/{keeper}")).exists()).then_some(())
    });
}

#[test]
fn a_machine_is_served_by_vhost_user() {
    isolate(|| {
        a_machine_is_served(
            User::Root,
            &["-M", "microvm,rtc=on,memory-backend=memory"],
            "virtio-net-device",
        );
    });
}

#[test]
fn a_machine_of_an_ordinary_user_is_served_by_vhost_user() {
    isolate(|| {
        a_machine_is_served(
            User::Ordinary,
            &["-M", "q35,memory-backend=memory"],
            // Without KVM, QEMU 7.2 looks at a ring of the card that it has not set up for vhost-user when
            // the guest masks its interrupt, and crashes.
            "virtio-net-pci,romfile=,vectors=0",
        );
    });
}
