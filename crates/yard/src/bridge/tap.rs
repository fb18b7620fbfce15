//! TAPs of virtual machines: made by the keeper, which holds them as long as the instance is there,
//! so that they outlive QEMU and the network process, and nothing else. (Those of what is external
//! are the network's.)

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use netyard_engine::holder::Holder;
use netyard_link::rtnetlink::{Link, LinkName, Rtnetlink};
use netyard_sys::tap::{DEVICE, Device, Layer};

use super::names;
use crate::error::{ErrorKind, YardError};

/// `EPERM` of errno(3): the kernel's word for a missing capability.
const EPERM: i32 = 1;

/// The name of an instance's TAP on a network: the one that is wanted, or as the network would call
/// it.
///
/// # Errors
/// The wanted one cannot be a name.
pub(crate) fn name(
    network: &str,
    instance: &str,
    name: Option<&str>,
) -> Result<LinkName, YardError> {
    let wanted = || format!("plug instance {instance} in");
    match name {
        Some(name) => name.parse().map_err(|error: netyard_link::Error| {
            YardError::new(ErrorKind::Input, wanted(), error.to_string())
        }),
        None => {
            names::host_end(network, instance).map_err(|error| YardError::control(wanted(), &error))
        }
    }
}

/// Makes the TAP of an instance.
///
/// # Errors
/// The name is taken, or the kernel does not let us.
pub(crate) fn make(name: &LinkName, instance: &str) -> Result<OwnedFd, YardError> {
    let wanted = format!("plug instance {instance} in");
    Device::create(name.as_str(), Layer::Frames, true).map(|device| device.fd).map_err(|error| {
        let refused = |kind, found: String| YardError::new(kind, wanted.clone(), found);
        match error.kind() {
            io::ErrorKind::ResourceBusy => {
                let taken = |by: String| {
                    refused(ErrorKind::Conflict, format!("there is a link {name} already{by}"))
                };
                if !is_tap(name) {
                    return taken(", which is no TAP".to_owned()).next("choose another name");
                }
                let by = holder(name).map(|by| format!(", held by {by}")).unwrap_or_default();
                let remedy = format!("or remove that one: `ip link delete {name}`");
                taken(by).next(format!("choose another name, {remedy}"))
            }
            io::ErrorKind::NotFound => {
                refused(ErrorKind::NotPermitted, format!("there is no {DEVICE}"))
                    .next("load the driver with `sudo modprobe tun`")
            }
            _ if error.raw_os_error() == Some(EPERM) => {
                refused(ErrorKind::NotPermitted, format!("making the TAP {name} is not permitted"))
                    .next("it needs CAP_NET_ADMIN: run netyard as root, or grant it the capability")
            }
            _ => YardError::io(format!("make the TAP {name}"), &error),
        }
    })
}

/// The TAP of that name, if there is one; it has a carrier while somebody has it open.
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn find(name: &str) -> netyard_link::Result<Option<Link>> {
    Rtnetlink::open()?.link(name)
}

/// Whether somebody has deleted a TAP that we hold.
pub(crate) fn is_lost(held: &OwnedFd) -> bool {
    let device = held.try_clone().map(Device::from);
    device.is_ok_and(|device| device.name().is_err())
}

/// Whether a link of ours is a TAP or TUN device.
fn is_tap(name: &LinkName) -> bool {
    let link = find(name.as_str());
    link.is_ok_and(|link| link.is_some_and(|link| link.kind.as_deref() == Some("tun")))
}

/// Who has a TAP open, as far as we may see.
fn holder(name: &LinkName) -> Option<Holder> {
    let line = format!("iff:\t{name}");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| {
        // What the kernel tells of a descriptor, drivers/net/tun.c.
        let folder = fs::read_dir(format!("/proc/{pid}/fdinfo"));
        folder.into_iter().flatten().flatten().any(|descriptor| {
            let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
            text.lines().any(|it| it == line)
        })
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, name: name.trim_end().to_owned() })
}
