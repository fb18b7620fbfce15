//! A virtual machine as its keeper prepares it.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use netyard_sys::memory;
use netyard_sys::seqpacket::SeqPacket;
use netyard_vminit::{Config, Plug, Program};

use super::kernel::Kernel;
use super::message::{self, Boot, Card, Drive, Job, Wire};
use super::{image, qemu};
use crate::error::{ErrorKind, YardError};
use crate::instance::{Configuration, PlugConfiguration, Start};
use crate::model::VmSpec;

/// Drivers that a guest needs to run one program: its bus, its cards, the port to its monitor.
const DRIVERS: [&str; 3] = ["virtio_mmio", "virtio_net", "virtio_console"];

/// The first bytes of a disk image in the format qcow2.
const QCOW2: [u8; 4] = *b"QFI\xfb";

/// A machine that is ready to be started.
#[derive(Debug)]
pub(crate) struct Machine {
    job: Job,
    files: Option<OwnedFd>,
    /// The kernel's release, or the file that it boots.
    kernel: String,
}

/// Finds out whether such a machine can be: QEMU, kernel, modules and files are there.
///
/// # Errors
/// What is missing, with what to do about it.
pub(crate) fn check(vm: &VmSpec, plugs: usize) -> Result<(), YardError> {
    qemu::find()?;
    if plugs > qemu::MAX_PLUGS {
        let found =
            format!("it has {plugs} plugs, and a virtual machine {} at most", qemu::MAX_PLUGS);
        return Err(YardError::new(ErrorKind::Input, "run a virtual machine", found));
    }
    if vm.is_image() { boot_image(vm).map(drop) } else { kernel(vm)?.modules(&DRIVERS).map(drop) }
}

fn kernel(vm: &VmSpec) -> Result<Kernel, YardError> {
    vm.kernel.as_deref().map_or_else(Kernel::of_host, Kernel::at)
}

/// How an image boots, and what that is called.
fn boot_image(vm: &VmSpec) -> Result<(Boot, String), YardError> {
    let drive = vm.drive.as_deref().map(drive).transpose()?;
    if let Some(initrd) = &vm.initrd {
        readable(initrd)?;
    }
    match drive {
        Some(drive) if vm.kernel.is_none() && vm.initrd.is_none() => {
            let what = drive.path.display().to_string();
            Ok((Boot::Loader { drive }, what))
        }
        drive => {
            let kernel = kernel(vm)?;
            let initrd = vm.initrd.clone();
            Ok((Boot::Kernel { kernel: kernel.image, initrd, drive }, kernel.release))
        }
    }
}

fn readable(path: &Path) -> Result<File, YardError> {
    File::open(path).map_err(|error| YardError::io(format!("use {}", path.display()), &error))
}

/// A disk image, by its first bytes.
fn drive(path: &Path) -> Result<Drive, YardError> {
    let mut start = [0; 4];
    let qcow2 = readable(path)?.read_exact(&mut start).is_ok() && start == QCOW2;
    let format = if qcow2 { "qcow2" } else { "raw" };
    Ok(Drive { path: path.to_owned(), format: format.to_owned() })
}

impl Machine {
    /// Prepares a machine that runs a program, or what its image holds. `start` is what a process
    /// instance would start, `wires` are what its plugs are connected by. Reads files, some of them
    /// large.
    ///
    /// # Errors
    /// What is missing, with what to do about it.
    pub(crate) fn prepare(
        vm: &VmSpec,
        start: &Start,
        configuration: &Configuration,
        wires: &[Wire],
    ) -> Result<Self, YardError> {
        let (boot, files, kernel) = if vm.is_image() {
            let (boot, kernel) = boot_image(vm)?;
            (boot, None, kernel)
        } else {
            let kernel = kernel(vm)?;
            let files = first_files(&kernel, start, configuration)?;
            (Boot::Program { kernel: kernel.image }, Some(files), kernel.release)
        };
        let cards = configuration.plugs.iter().zip(wires);
        let cards = cards.map(|(plug, wire)| Card { mac: plug.mac, mtu: plug.mtu, wire: *wire });
        let (memory, cpus) = (vm.memory, vm.cpus);
        let job = Job { qemu: qemu::find()?, memory, cpus, cards: cards.collect(), boot };
        Ok(Self { job, files, kernel })
    }

    /// What it boots, for people.
    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Tells a monitor, which gets the second end as its standard input, to run it. `ends` are
    /// QEMU's ends of its wires.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn order(self, ends: Vec<OwnedFd>) -> io::Result<(SeqPacket, OwnedFd)> {
        let (ours, theirs) = SeqPacket::pair()?;
        let descriptors: Vec<OwnedFd> = self.files.into_iter().chain(ends).collect();
        message::send(&ours, &self.job, &descriptors)?;
        Ok((ours, theirs.into()))
    }
}

/// The first file system of a guest that runs a program, in memory.
fn first_files(
    kernel: &Kernel,
    start: &Start,
    configuration: &Configuration,
) -> Result<OwnedFd, YardError> {
    let failed = |error: io::Error| YardError::io("make a guest's first file system", &error);
    let program = fs::canonicalize(&start.program)
        .map_err(|error| YardError::io(format!("run {}", start.program.display()), &error))?;
    let variable = |name: &str| {
        let own = start.env.iter().rev().find(|(key, _)| key == name);
        own.map(|(_, value)| value.into()).or_else(|| env::var_os(name))
    };
    let modules = kernel.modules(&DRIVERS)?;
    let libraries = variable("LD_LIBRARY_PATH");
    let base = image::with_program(&program, libraries.as_deref(), &modules)?;
    let text = |path: &PathBuf| {
        fs::read_to_string(path)
            .map_err(|error| YardError::io(format!("read {}", path.display()), &error))
    };
    let config = image::with_config(&Config {
        host_name: configuration.host_name.clone(),
        modules: image::module_paths(&modules),
        plugs: configuration.plugs.iter().map(plug).collect::<Result<_, _>>()?,
        resolv_conf: text(&configuration.resolv_conf)?,
        hosts: text(&configuration.hosts)?,
        program: Program {
            path: program,
            argv: start.argv.clone(),
            env: variables(&start.env),
            cwd: start.cwd.clone(),
        },
    })?;
    let mut files = memory::file(c"netyard-guest").map_err(failed)?;
    for archive in [base, config] {
        files.write_all(&archive).map_err(failed)?;
    }
    Ok(files.into())
}

fn plug(plug: &PlugConfiguration) -> Result<Plug, YardError> {
    let bad = |error: ipnet::PrefixLenError| {
        YardError::new(ErrorKind::Bug, "describe a network card", error.to_string())
    };
    let ((address4, len4), (address6, len6)) = (plug.address4, plug.address6);
    Ok(Plug {
        mac: plug.mac.0,
        mtu: plug.mtu,
        address4: Ipv4Net::new(address4, len4).map_err(bad)?,
        address6: Ipv6Net::new(address6, len6).map_err(bad)?,
        gateway: plug.gateway,
    })
}

/// All variables of the program: those that a process instance has, as far as they are text.
fn variables(own: &[(String, String)]) -> Vec<(String, String)> {
    let ours = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut variables: Vec<(String, String)> = ours.collect();
    for (name, value) in own {
        variables.retain(|(other, _)| other != name);
        variables.push((name.clone(), value.clone()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_of_a_drive_is_seen_not_guessed_by_the_guest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for (bytes, format) in
            [(&b"QFI\xfb rest"[..], "qcow2"), (b"boot sector", "raw"), (b"", "raw")]
        {
            fs::write(&path, bytes).unwrap();
            assert_eq!(drive(&path).unwrap().format, format);
        }
        assert_eq!(drive(Path::new("/no/such")).unwrap_err().kind, ErrorKind::Unknown);
    }

    #[test]
    fn own_variables_win() {
        let own = vec![("PATH".to_owned(), "/x".to_owned()), ("A".to_owned(), "1".to_owned())];
        let all = variables(&own);
        let value = |name: &str| {
            let mut found = all.iter().filter(|(key, _)| key == name);
            let value = found.next().map(|(_, value)| value.as_str());
            assert!(found.next().is_none(), "once");
            value
        };
        assert_eq!((value("PATH"), value("A")), (Some("/x"), Some("1")));
    }
}
