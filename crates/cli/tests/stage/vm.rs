//! Virtual machines: what they need, and an initrd as users make them, of busybox, the kernel's
//! virtio modules and a script.
#![allow(dead_code, reason = "each test file uses its own part of the stage")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netyard_testbed::{Background, peer, run};
use serde_json::Value;

use crate::stage::Stage;

/// Far above what a machine takes to boot without KVM, on two cores that others use, too.
pub(crate) const BOOTED: Duration = Duration::from_secs(120);

/// QEMU and a kernel are there; a missing one fails the test with its name.
pub(crate) fn needs_qemu() {
    drop(peer("qemu-system-x86_64"));
    let kernels = fs::read_dir("/boot").into_iter().flatten().flatten();
    let mut names = kernels.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found = names.any(|name| name.starts_with("vmlinuz-"));
    assert!(found, "no kernel is installed: run `make deps` as root");
}

/// The process ids of the host's processes that are a QEMU.
pub(crate) fn qemus() -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let qemu = all.filter(|it| {
        let name = fs::read_to_string(it.path().join("comm")).unwrap_or_default();
        name.starts_with("qemu-system")
    });
    qemu.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
}

/// A server of a folder's files for this machine's own loopback.
pub(crate) fn serve(port: u16, folder: &Path) -> Background {
    let mut command = Command::new(peer("busybox"));
    command.args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h"]).arg(folder);
    Background::start(&mut command)
}

/// Makes a file of so many bytes by chance; its MD5.
pub(crate) fn chance(file: &Path, bytes: u64) -> String {
    let make = format!("head -c {bytes} /dev/urandom >{0}; md5sum <{0}", file.display());
    let digest = run(Command::new("sh").args(["-c", &make]));
    digest.split_whitespace().next().unwrap().to_owned()
}

/// What the first network of a yard has counted for a plug.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) to: Traffic,
    pub(crate) from: Traffic,
    pub(crate) dropped: u64,
}

/// One way.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl Traffic {
    /// Of a frame, on average.
    pub(crate) fn size(&self) -> u64 {
        self.bytes / self.frames.max(1)
    }
}

/// What the first network has counted; `None` while it has no such plug.
pub(crate) fn counted(stage: &Stage, plug: &str) -> Option<Counted> {
    let inspected = stage.json(&["inspect"]);
    let plugs = inspected["networks"][0]["state"]["plugs"].as_array()?;
    let plug = plugs.iter().find(|it| it["name"] == plug)?;
    let number = |value: &Value| value.as_u64().unwrap();
    let traffic =
        |way: &Value| Traffic { frames: number(&way["frames"]), bytes: number(&way["bytes"]) };
    let (to, from) = (traffic(&plug["host_to_guest"]), traffic(&plug["guest_to_host"]));
    Some(Counted { to, from, dropped: number(&plug["dropped"]) })
}

/// Configures itself by DHCP, fetches a page, switches itself off.
const INIT: &str = r#"#!/bin/busybox sh
@CARD
busybox wget -q -O - http://server.lab:7000/
busybox poweroff -f
"#;

/// The beginning of every script. What the kernel says would get into the middle of lines that tests wait for, as both
/// write to one console: from here on it says nothing but what it ends with.
const CARD: &str = r#"
for at in proc sys dev; do busybox mkdir -p /$at; done
busybox mount -t proc proc /proc
echo 1 >/proc/sys/kernel/printk
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod $module; done
busybox ip link set eth0 up
busybox udhcpc -i eth0 -s /configure -f -n -q -t 30 -T 1
echo "the mtu is $(busybox cat /sys/class/net/eth0/mtu)"
echo "the address is $(busybox ip -4 -o addr show dev eth0 | busybox awk '{print $4}')"
"#;

/// What udhcpc calls with its lease.
const CONFIGURE: &str = r#"#!/bin/busybox sh
[ "$1" = bound ] || exit 0
busybox ip addr add $ip/$mask dev $interface
busybox ip route add default via $router
echo "nameserver $dns" >/etc/resolv.conf
"#;

/// The newest kernel of the machine that has its modules, and an initrd for it.
pub(crate) fn initrd(folder: &Path) -> (PathBuf, PathBuf) {
    initrd_with(folder, INIT)
}

/// The same, with another script; `@CARD` in it configures the card as [`INIT`] does.
pub(crate) fn initrd_with(folder: &Path, script: &str) -> (PathBuf, PathBuf) {
    let release = fs::read_dir("/lib/modules")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|release| Path::new("/boot").join(format!("vmlinuz-{release}")).is_file())
        .max()
        .unwrap();
    let mut archive = Vec::new();
    for name in ["bin", "etc", "lib", "lib64", "modules"] {
        entry(&mut archive, name, 0o040_755, b"");
    }
    let busybox = peer("busybox");
    entry(&mut archive, "bin/busybox", 0o100_755, &fs::read(&busybox).unwrap());
    // `NAME => PATH (ADDRESS)`, or the path alone for the interpreter.
    let listed = run(Command::new("ldd").arg(&busybox));
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.map(Path::new).collect::<BTreeSet<_>>() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let folder = if name.starts_with("ld-") { "lib64" } else { "lib" };
        entry(&mut archive, &format!("{folder}/{name}"), 0o100_755, &fs::read(path).unwrap());
    }
    for (number, driver) in ["virtio_mmio", "virtio_pci", "virtio_net"].into_iter().enumerate() {
        let show = ["--set-version", &release, "--show-depends", driver];
        let order = run(Command::new(peer("modprobe")).args(show));
        for (place, line) in order.lines().enumerate() {
            let Some(path) = line.strip_prefix("insmod ") else { continue };
            let name = format!("modules/{number}{place}.ko");
            entry(&mut archive, &name, 0o100_644, &fs::read(path.trim()).unwrap());
        }
    }
    let script = script.replace("@CARD", CARD.trim());
    entry(&mut archive, "init", 0o100_755, script.as_bytes());
    entry(&mut archive, "configure", 0o100_755, CONFIGURE.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, b"");
    let initrd = folder.join("initrd");
    fs::write(&initrd, archive).unwrap();
    (Path::new("/boot").join(format!("vmlinuz-{release}")), initrd)
}

/// One entry of a cpio archive of the kind "newc".
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let links = if mode & 0o040_000 == 0 { 1 } else { 2 };
    let numbers = [0, usize::try_from(mode).unwrap(), 0, 0, links, 0, bytes.len()];
    let numbers = numbers.into_iter().chain([0, 0, 0, 0, name.len() + 1, 0]);
    let header: String = numbers.map(|number| format!("{number:08x}")).collect();
    archive.extend(format!("070701{header}{name}\0").bytes());
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
