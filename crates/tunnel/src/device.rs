//! A TUN device on a tokio runtime.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdSocket;

use netyard_link::rtnetlink::{LinkChange, LinkIndex, LinkName, Rtnetlink};
use netyard_sys::tap::Tun;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::error::{Blame, Error, Result};
use crate::frame::Record;

/// Read from a device before lanes get their turn, bytes.
pub(crate) const BUDGET: usize = 256 * 1024;

/// A TUN device, up. It goes when this value goes, with its addresses and routes.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    /// The runtime's own type for foreign descriptors can only be made with unsafe code. A socket can be
    /// made from any; this one is a duplicate that serves for its readiness alone.
    readiness: UnixDatagram,
    name: String,
    index: LinkIndex,
}

impl Device {
    /// Makes it and switches it on. With `%d` in the name the first free number is taken.
    pub(crate) fn create(name: &str, offload: bool, mtu: u32, queue_length: u32) -> Result<Self> {
        let wanted = || format!("make the TUN device {name}");
        let tun = Tun::create(name, offload).map_err(|error| {
            let explained = Error::io(wanted(), &error);
            match explained.blame {
                Blame::NotPermitted => explained.next(
                    "run it as root, or with CAP_NET_ADMIN; /dev/net/tun must be readable and writable",
                ),
                _ if error.raw_os_error() == Some(EPERM) => {
                    explained.next("run it as root, or with CAP_NET_ADMIN")
                }
                Blame::Conflict => explained.next("name another one with --tun"),
                _ => explained,
            }
        })?;
        let readiness = readiness(&tun.fd).map_err(|error| Error::io(wanted(), &error))?;
        let index =
            set_up(&tun.name, mtu, queue_length).map_err(|error| Error::link(wanted(), &error))?;
        Ok(Self { file: File::from(tun.fd), readiness, name: tun.name, index })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub(crate) const fn index(&self) -> LinkIndex {
        self.index
    }

    /// Gives it its name back, and switches it on, if somebody has done otherwise; what was led to it must be led
    /// there again then.
    pub(crate) fn hold(&self) -> netyard_link::Result<()> {
        let mut kernel = Rtnetlink::open()?;
        let Some(link) = kernel.link_by_index(self.index)? else {
            // Who reads from it hears of that.
            return Ok(());
        };
        let name = &self.name;
        if link.name != *name {
            tracing::warn!(
                name,
                now = link.name,
                "somebody renamed the TUN device; it has its name again"
            );
            let name = LinkName::try_from(name.clone())?;
            // Before Linux 6.2 a link that is switched on keeps its name. It is on again in any case: another link may
            // have the name.
            kernel.change_link(self.index, &LinkChange::new().up(false))?;
            let renamed = kernel.change_link(self.index, &LinkChange::new().name(name));
            return kernel.change_link(self.index, &LinkChange::new().up(true)).and(renamed);
        } else if !link.up {
            tracing::warn!(name, "somebody switched the TUN device off; it is on again");
        } else {
            return Ok(());
        }
        kernel.change_link(self.index, &LinkChange::new().up(true))
    }

    /// Reads packets with their virtio-net headers, and hands each to `handle`, until none is there or
    /// `budget` bytes are read.
    pub(crate) async fn read(
        &self,
        scratch: &mut [u8],
        budget: usize,
        mut handle: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let ready = self.readiness.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            // The kernel says so of a device that somebody has removed (`tun_chr_poll`), and of no other.
            return Err(io::Error::new(io::ErrorKind::NotConnected, "somebody has removed it"));
        }
        let mut count = 0;
        while count < budget {
            match self.readiness.try_io(Interest::READABLE, || (&self.file).read(scratch)) {
                Ok(len) => {
                    count += len;
                    handle(scratch.get(..len).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hands a packet to the kernel; false if it does not take it.
    pub(crate) fn write(&self, record: &Record<'_>) -> bool {
        let mut file = &self.file;
        let written = match record.joined {
            Some(bytes) => file.write(bytes),
            None => file.write_vectored(&[IoSlice::new(record.header), IoSlice::new(record.bytes)]),
        };
        written.is_ok()
    }
}

/// `asm-generic/errno-base.h`.
const EPERM: i32 = 1;

fn readiness(fd: &OwnedFd) -> io::Result<UnixDatagram> {
    UnixDatagram::from_std(StdSocket::from(fd.try_clone()?))
}

fn set_up(name: &str, mtu: u32, queue_length: u32) -> netyard_link::Result<LinkIndex> {
    let mut kernel = Rtnetlink::open()?;
    let index = kernel.index(name)?;
    // Without a link-local address the kernel sends nothing of its own by it.
    let change = LinkChange::new().mtu(mtu).queue_length(queue_length).link_local(false);
    kernel.change_link(index, &change)?;
    kernel.change_link(index, &LinkChange::new().up(true))?;
    Ok(index)
}
