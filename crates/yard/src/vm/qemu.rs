//! QEMU: where it is, and how it is started.

use std::env;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use netyard_sys::ticks;
use netyard_vminit::PORT;

use super::message::{Boot, Drive, Job, Wire};
use crate::api::Accelerator;
use crate::error::{ErrorKind, YardError};

/// The program, and where some distributions keep it besides `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";
const ELSEWHERE: [&str; 2] = ["/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"];

/// Plugs of one machine: microvm has eight places for devices, and the port takes one.
pub(super) const MAX_PLUGS: usize = 6;

/// Finds QEMU.
pub(super) fn find() -> Result<PathBuf, YardError> {
    let wanted = "run a virtual machine";
    if !cfg!(target_arch = "x86_64") {
        let found = format!("this machine is of the kind {}", env::consts::ARCH);
        return Err(YardError::new(ErrorKind::Unsupported, wanted, found)
            .next("virtual machines run on x86-64 only, today"));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    places.chain(ELSEWHERE.map(PathBuf::from)).find(|file| file.is_file()).ok_or_else(|| {
        let found = format!("{PROGRAM} is not in PATH");
        YardError::new(ErrorKind::Unknown, wanted, found)
            .next("install QEMU 7.2 or newer (Debian: apt install qemu-system-x86)")
    })
}

/// Descriptors that QEMU inherits.
pub(super) struct Inherited<'f> {
    /// Its control connection.
    pub(super) control: BorrowedFd<'f>,
    /// The connection to our init in the guest, and the first file system, if the guest is ours.
    pub(super) guest: Option<(BorrowedFd<'f>, BorrowedFd<'f>)>,
    /// One for each card.
    pub(super) wires: Vec<BorrowedFd<'f>>,
}

/// The arguments for a job.
pub(super) fn arguments(
    job: &Job,
    accelerator: Accelerator,
    inherited: &Inherited<'_>,
) -> Vec<OsString> {
    let mut arguments = Arguments(Vec::new());
    for flag in ["-nodefaults", "-no-user-config"] {
        arguments.flag(flag);
    }
    arguments.option("-display", "none");
    // What the guest breaks out of finds no other program to start and no rights to gain.
    arguments.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    arguments.option("-accel", accelerator.to_string());
    arguments.option("-cpu", cpu);
    arguments.option("-m", format!("{}M", job.memory));
    arguments.option("-smp", job.cpus.to_string());
    let control = inherited.control.as_raw_fd();
    arguments.option("-chardev", format!("socket,id=control,fd={control}"));
    arguments.option("-mon", "chardev=control,mode=control");
    arguments.option("-chardev", "stdio,id=console,signal=off");
    arguments.option("-serial", "chardev:console");
    let bus = match &job.boot {
        Boot::Program { kernel } => {
            arguments.microvm();
            // The guest says how its program ended before it goes; what starts again instead has
            // failed.
            arguments.flag("-no-reboot");
            arguments.path("-kernel", "", kernel);
            if let Some((port, files)) = inherited.guest {
                arguments.option("-initrd", format!("/proc/self/fd/{}", files.as_raw_fd()));
                let port = port.as_raw_fd();
                arguments.option("-chardev", format!("socket,id=guest,fd={port}"));
                arguments.option("-device", "virtio-serial-device");
                arguments.option("-device", format!("virtserialport,chardev=guest,name={PORT}"));
            }
            arguments.option("-append", command_line(accelerator, "quiet panic=-1"));
            "device"
        }
        Boot::Kernel { kernel, initrd, drive } => {
            arguments.microvm();
            arguments.path("-kernel", "", kernel);
            if let Some(initrd) = initrd {
                arguments.path("-initrd", "", initrd);
            }
            let root = drive.as_ref().map_or("", |_| "root=/dev/vda rw");
            arguments.option("-append", command_line(accelerator, root));
            if let Some(drive) = drive {
                arguments.drive(drive, "virtio-blk-device");
            }
            "device"
        }
        Boot::Loader { drive } => {
            arguments.option("-machine", "q35");
            arguments.drive(drive, "virtio-blk-pci");
            "pci"
        }
    };
    for (number, (card, wire)) in job.cards.iter().zip(&inherited.wires).enumerate() {
        let wire = wire.as_raw_fd();
        let netdev = match card.wire {
            Wire::Stream => {
                format!("stream,id=plug{number},server=off,addr.type=fd,addr.str={wire}")
            }
            // The kernel's own backend would need rights that QEMU does not have here.
            Wire::Tap => format!("tap,id=plug{number},fd={wire},vhost=off"),
        };
        arguments.option("-netdev", netdev);
        // Booting from the network is not offered, and its firmware would be loaded in vain.
        let rom = if bus == "pci" { ",romfile=" } else { "" };
        let (mac, mtu) = (card.mac, card.mtu);
        arguments.option(
            "-device",
            format!("virtio-net-{bus},netdev=plug{number},mac={mac},host_mtu={mtu}{rom}"),
        );
    }
    arguments.0
}

/// The kernel's command line.
fn command_line(accelerator: Accelerator, more: &str) -> String {
    let mut words = vec!["console=ttyS0", "reboot=t", "random.trust_cpu=on"];
    let ticks;
    if accelerator == Accelerator::Tcg {
        // microvm has no clock to measure the time stamp counter with, and without knowing its
        // rate the kernel's timers do not start. It ticks as that of the host.
        if let Some(rate) = ticks::per_millisecond() {
            ticks = format!("tsc_early_khz={rate} tsc=reliable");
            words.push(&ticks);
        }
        // What protects from tricks with a real processor only costs time here.
        words.extend(["mitigations=off", "cryptomgr.notests", "init_on_alloc=0"]);
    }
    words.extend(Some(more).filter(|more| !more.is_empty()));
    words.join(" ")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.extend([flag.into(), value.into()]);
    }

    fn path(&mut self, flag: &str, before: &str, path: &Path) {
        let mut value = OsString::from(before);
        value.push(path);
        self.option(flag, value);
    }

    /// The machine without a past. Its devices are found by ACPI, which most kernels want.
    fn microvm(&mut self) {
        self.option("-machine", "microvm,acpi=on,rtc=on,isa-serial=on,x-option-roms=off");
        self.option("-global", "virtio-mmio.force-legacy=false");
    }

    fn drive(&mut self, drive: &Drive, device: &str) {
        // In a list of options a comma is written twice.
        let path = drive.path.as_os_str().to_string_lossy().replace(',', ",,");
        let format = &drive.format;
        self.option("-drive", format!("if=none,id=drive,format={format},file={path}"));
        self.option("-device", format!("{device},drive=drive,bootindex=1"));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use netyard_wire::MacAddr;

    use super::super::message::Card;
    use super::*;

    fn card(number: u8, wire: Wire) -> Card {
        Card { mac: MacAddr([2, 0, 0, 0, 0, number]), mtu: 1400, wire }
    }

    fn text(boot: Boot, accelerator: Accelerator) -> String {
        let job = Job {
            qemu: "qemu".into(),
            memory: 512,
            cpus: 2,
            cards: vec![card(1, Wire::Stream), card(2, Wire::Tap)],
            boot,
        };
        let file = std::fs::File::open("/dev/null").unwrap();
        let inherited = Inherited {
            control: file.as_fd(),
            guest: Some((file.as_fd(), file.as_fd())),
            wires: vec![file.as_fd(), file.as_fd()],
        };
        let arguments = arguments(&job, accelerator, &inherited);
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn each_plug_has_a_card_with_its_address() {
        let kernel = PathBuf::from("/boot/vmlinuz");
        let text = text(Boot::Program { kernel }, Accelerator::Kvm);
        assert!(text.contains("virtio-net-device,netdev=plug0,mac=02:00:00:00:00:01"), "{text}");
        assert!(
            text.contains("virtio-net-device,netdev=plug1,mac=02:00:00:00:00:02,host_mtu=1400"),
            "{text}"
        );
        assert!(text.contains("stream,id=plug0") && text.contains("tap,id=plug1,fd="), "{text}");
        assert!(text.contains("-cpu host") && !text.contains("tsc_early_khz"), "{text}");
    }

    #[test]
    fn without_kvm_the_kernel_is_told_how_fast_its_clock_is() {
        let text = text(Boot::Program { kernel: "/k".into() }, Accelerator::Tcg);
        assert!(text.contains("-accel tcg") && text.contains("tsc_early_khz="), "{text}");
    }

    #[test]
    fn paths_cannot_become_options() {
        let drive = Drive { path: "/a,snapshot=on".into(), format: "raw".into() };
        let text = text(Boot::Loader { drive }, Accelerator::Tcg);
        assert!(text.contains("file=/a,,snapshot=on"), "{text}");
        assert!(text.contains("-machine q35"), "{text}");
    }
}
