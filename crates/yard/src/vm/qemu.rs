//! QEMU: where it is, and how it is started.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// Name of the machine's memory, where it is shared.
const MEMORY: &str = "memory";

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

/// How QEMU is told to connect again to a network whose process was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// After a second: the only way before 9.2, and deprecated since.
    Seconds,
    /// After a tenth of one.
    Milliseconds,
}

impl Again {
    /// As the version that QEMU says it is wants it.
    ///
    /// # Errors
    /// It cannot be started, or says something else.
    pub(super) fn for_program(qemu: &Path) -> io::Result<Self> {
        let said = Command::new(qemu).arg("--version").stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&said.stdout);
        Self::for_version(&said).ok_or_else(|| {
            let said = said.lines().next().unwrap_or_default();
            io::Error::other(format!("{} does not say its version: {said:?}", qemu.display()))
        })
    }

    /// By the first line, `QEMU emulator version 7.2.22 (...)`.
    fn for_version(said: &str) -> Option<Self> {
        let mut words = said.lines().next()?.split_whitespace();
        let mut numbers = words.by_ref().skip_while(|word| *word != "version").nth(1)?.split('.');
        let mut number = || numbers.next()?.parse::<u32>().ok();
        let version = (number()?, number()?);
        Some(if version < (9, 2) { Self::Seconds } else { Self::Milliseconds })
    }

    const fn option(self) -> &'static str {
        match self {
            Self::Seconds => "reconnect=1",
            Self::Milliseconds => "reconnect-ms=100",
        }
    }
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

/// The arguments for a job; `again` is for cards by vhost-user.
pub(super) fn arguments(
    job: &Job,
    accelerator: Accelerator,
    again: Again,
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
    let memory = job.memory;
    arguments.option("-m", format!("{memory}M"));
    if job.shares_memory() {
        let size = format!("size={memory}M,share=on");
        arguments.option("-object", format!("memory-backend-memfd,id={MEMORY},{size}"));
    }
    arguments.option("-smp", job.cpus.to_string());
    let control = inherited.control.as_raw_fd();
    arguments.option("-chardev", format!("socket,id=control,fd={control}"));
    arguments.option("-mon", "chardev=control,mode=control");
    arguments.option("-chardev", "stdio,id=console,signal=off");
    arguments.option("-serial", "chardev:console");
    let bus = match &job.boot {
        Boot::Program { kernel } => {
            arguments.microvm(job);
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
            arguments.microvm(job);
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
            arguments.machine("q35", job);
            arguments.drive(drive, "virtio-blk-pci");
            "pci"
        }
    };
    for (number, (card, wire)) in job.cards.iter().zip(&inherited.wires).enumerate() {
        let wire = wire.as_raw_fd();
        let netdev = match card.wire {
            Wire::VhostUser => {
                let socket = format!("path=/proc/self/fd/{wire},{}", again.option());
                arguments.option("-chardev", format!("socket,id=card{number},{socket}"));
                format!("vhost-user,id=plug{number},chardev=card{number}")
            }
            // The kernel's own backend would need rights that QEMU does not have here.
            Wire::Tap => format!("tap,id=plug{number},fd={wire},vhost=off"),
        };
        arguments.option("-netdev", netdev);
        let (mac, mtu) = (card.mac, card.mtu);
        let mut device = format!("virtio-net-{bus},netdev=plug{number},mac={mac},host_mtu={mtu}");
        if bus == "pci" {
            // Booting from the network is not offered, and its firmware would be loaded in vain.
            device.push_str(",romfile=");
            // Without KVM, QEMU 7.2 looks at a ring of the card that it has not set up for vhost-user when the
            // guest masks its interrupt, and crashes.
            if card.wire == Wire::VhostUser && accelerator == Accelerator::Tcg {
                device.push_str(",vectors=0");
            }
        }
        arguments.option("-device", device);
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

    fn machine(&mut self, kind: &str, job: &Job) {
        let memory =
            if job.shares_memory() { format!(",memory-backend={MEMORY}") } else { String::new() };
        self.option("-machine", format!("{kind}{memory}"));
    }

    /// The machine without a past. Its devices are found by ACPI, which most kernels want.
    fn microvm(&mut self, job: &Job) {
        self.machine("microvm,acpi=on,rtc=on,isa-serial=on,x-option-roms=off", job);
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

    /// The arguments of a machine with a card by each of these.
    fn with(wires: &[Wire], boot: Boot, accelerator: Accelerator) -> String {
        let cards = (1..).zip(wires).map(|(number, wire)| card(number, *wire)).collect();
        let job = Job { qemu: "qemu".into(), memory: 512, cpus: 2, cards, boot };
        let file = std::fs::File::open("/dev/null").unwrap();
        let inherited = Inherited {
            control: file.as_fd(),
            guest: Some((file.as_fd(), file.as_fd())),
            wires: wires.iter().map(|_| file.as_fd()).collect(),
        };
        let arguments = arguments(&job, accelerator, Again::Seconds, &inherited);
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    fn text(boot: Boot, accelerator: Accelerator) -> String {
        with(&[Wire::VhostUser, Wire::Tap], boot, accelerator)
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
        assert!(text.contains("-chardev socket,id=card0,path=/proc/self/fd/"), "{text}");
        assert!(text.contains(",reconnect=1 -netdev vhost-user,id=plug0,chardev=card0"), "{text}");
        assert!(text.contains("tap,id=plug1,fd="), "{text}");
        assert!(text.contains("-cpu host") && !text.contains("tsc_early_khz"), "{text}");
    }

    #[test]
    fn without_kvm_the_kernel_is_told_how_fast_its_clock_is() {
        let text = text(Boot::Program { kernel: "/k".into() }, Accelerator::Tcg);
        assert!(text.contains("-accel tcg") && text.contains("tsc_early_khz="), "{text}");
    }

    #[test]
    fn memory_is_shared_with_networks_in_user_mode_only() {
        let drive = || Drive { path: "/disk".into(), format: "raw".into() };
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            for boot in [Boot::Program { kernel: "/k".into() }, Boot::Loader { drive: drive() }] {
                let (vhost, tap) = ([Wire::Tap, Wire::VhostUser], [Wire::Tap, Wire::Tap]);
                let shared = with(&vhost, boot.clone(), accelerator);
                let object = "-object memory-backend-memfd,id=memory,size=512M,share=on";
                assert!(shared.contains(object) && shared.contains(",memory-backend=memory"));
                assert!(shared.contains("-m 512M"), "{shared}");
                let own = with(&tap, boot.clone(), accelerator);
                assert!(!own.contains("memory-backend") && !own.contains("vectors"), "{own}");
                // What has to be got around is in machines with a PCI bus and without KVM.
                let around = shared.contains(",vectors=0");
                let wanted = matches!(boot, Boot::Loader { .. }) && accelerator == Accelerator::Tcg;
                assert_eq!(around, wanted, "{shared}");
            }
        }
    }

    #[test]
    fn each_version_is_told_in_its_own_words_to_connect_again() {
        for (said, again) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", Some(Again::Seconds)),
            ("QEMU emulator version 9.0.0 (qemu-kvm-9.0.0-10.el9)", Some(Again::Seconds)),
            ("QEMU emulator version 9.2.50 (v9.2.0-1-gabc)\nmore", Some(Again::Milliseconds)),
            ("QEMU emulator version 10.0.2", Some(Again::Milliseconds)),
            ("QEMU emulator version x", None),
            ("version 9", None),
            ("", None),
        ] {
            assert_eq!(Again::for_version(said), again, "{said}");
        }
        assert!(Again::for_program(Path::new("/bin/true")).is_err());
    }

    #[test]
    fn paths_cannot_become_options() {
        let drive = Drive { path: "/a,snapshot=on".into(), format: "raw".into() };
        let text = text(Boot::Loader { drive }, Accelerator::Tcg);
        assert!(text.contains("file=/a,,snapshot=on"), "{text}");
        assert!(text.contains("-machine q35"), "{text}");
    }
}
