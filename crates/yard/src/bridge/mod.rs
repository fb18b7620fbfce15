//! Networks in bridge mode: what a network process asks of the kernel, done with links and
//! nftables.
//!
//! # Theory of operation
//!
//! [`Plumber`] is told by its network process what there is to be, and makes it so:
//!
//! * Links, addresses and settings are plans of [`netyard_link::plan`]: one for the segment, one
//!   for each plug, one for each service's addresses. They are in a journal before they are made, so
//!   that the next process of this network takes back what one that was killed has left.
//! * Rules are two nftables tables, `rules` and `guard`. They hold on when the process dies, and
//!   `nft flush ruleset` passes them over where the kernel can own tables (Linux 6.9); elsewhere they
//!   are made again when they have gone.
//!
//! Each call is one transaction for the rules: it is done whole or not at all.

mod checks;
mod counters;
mod everywhere;
mod foreign;
mod forwards;
mod guard;
mod names;
mod opened;
mod rules;
mod segment;
pub(crate) mod tap;
mod turns;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, io, thread};

use ipnet::IpNet;
use netyard_engine::config::Config;
use netyard_engine::control::{ControlError, ControlErrorKind, PlugRequest, Plugged};
use netyard_engine::edge::PlugId;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{
    KernelForward, KernelService, PlugTraffic, Plumbing, Refusals, Segment, ServiceTraffic, Tracked,
};
use netyard_link::conntrack::Conntrack;
use netyard_link::plan::{Host, Options, Owner};
use netyard_link::{Error, Features};

use self::opened::Opened;
use self::turns::Turns;

/// The journal in a network's folder, and the ledger of settings beside all of them.
const JOURNAL: &str = "links.journal";
const LEDGER: &str = ".settings.json";

/// How long the process before may take to clean up.
const HANDING_OVER: Duration = Duration::from_secs(5);
/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// The plumbing of the network that has this folder, for
/// [`netyard_engine::process::main`].
///
/// # Errors
/// A capability is missing, or the kernel cannot be asked what it can do.
pub fn plumbing(folder: &Path) -> Result<Box<dyn Plumbing>, ControlError> {
    let features = Features::probe().map_err(|error| failed(&error))?;
    Ok(Box::new(Plumber::new(folder, features)))
}

/// The ledger of settings of all networks; `folder` is that of one of them.
pub(crate) fn ledger(folder: &Path) -> PathBuf {
    folder.parent().unwrap_or(folder).join(LEDGER)
}

/// Takes back what the process of a network that was killed has left on this machine; `folder` is
/// the network's, and nobody uses it.
///
/// # Errors
/// What could not be taken back, which stays written down.
pub(crate) fn take_back(folder: &Path) -> io::Result<()> {
    if !folder.join(JOURNAL).exists() {
        return Ok(());
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let undo = || {
        let owner = Owner::new(&name)?;
        let mut host = Plumber::new(folder, Features::probe()?).take_journal(&owner)?;
        recover(&mut host, &owner, [])
    };
    undo().map_err(io::Error::other)
}

/// Takes back what the process before has left: what it has made, and then the flows over UDP that its
/// services have led into its segment, which would go on for ever. `nets` are of the segment, too.
fn recover(
    host: &mut Host,
    owner: &Owner,
    nets: impl IntoIterator<Item = IpNet>,
) -> Result<(), Error> {
    let segment: Vec<IpNet> = host.addresses().into_iter().chain(nets).collect();
    host.recover()?;
    let is_inside = |address| segment.iter().any(|net| net.contains(&address));
    let forgotten = Conntrack::open()
        .and_then(|mut tracked| Turns::of(owner).forget_all(is_inside, &mut tracked));
    if let Err(error) = forgotten {
        tracing::warn!(%error, "flows over UDP to services of before may go on");
    }
    Ok(())
}

/// See the module.
pub struct Plumber {
    folder: PathBuf,
    features: Features,
    opened: Option<Opened>,
}

impl fmt::Debug for Plumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plumber").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Plumber {
    /// One that keeps what has to outlive it in `folder`, for a kernel that can do this.
    #[must_use]
    pub fn new(folder: &Path, features: Features) -> Self {
        Self { folder: folder.to_owned(), features, opened: None }
    }

    fn opened(&mut self) -> Result<&mut Opened, ControlError> {
        let closed = || refused(ControlErrorKind::Malformed, "the segment is not made yet");
        self.opened.as_mut().ok_or_else(closed)
    }

    /// Takes the journal over from the process before, which may still be cleaning up.
    fn take_journal(&self, owner: &Owner) -> Result<Host, Error> {
        let options = Options {
            owner: owner.clone(),
            journal: self.folder.join(JOURNAL),
            ledger: ledger(&self.folder),
            features: self.features,
        };
        let deadline = Instant::now() + HANDING_OVER;
        loop {
            match Host::open(&options) {
                Err(Error::InUse { .. }) if Instant::now() < deadline => thread::sleep(LOOK),
                opened => return opened,
            }
        }
    }
}

impl Plumbing for Plumber {
    fn open(&mut self, config: &Config) -> Result<Segment, ControlError> {
        let owner = Owner::new(&config.name).map_err(|error| failed(&error))?;
        let mut host = self.take_journal(&owner).map_err(|error| failed(&error))?;
        if !host.plans().is_empty() {
            tracing::warn!("the process before was killed; taking back what it has left");
        }
        let nets = [config.subnet4.into(), config.subnet6.into()];
        recover(&mut host, &owner, nets).map_err(|error| failed(&error))?;
        match Opened::make(config, &owner, host) {
            Ok((opened, segment)) => {
                self.opened = Some(opened);
                Ok(segment)
            }
            Err(error) => {
                self.forget_journal();
                Err(error)
            }
        }
    }

    fn add_plug(
        &mut self,
        plugged: &Plugged,
        request: &PlugRequest,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        self.opened()?.add_plug(plugged, request, descriptor)
    }

    fn remove_plugs(&mut self, plugs: &[PlugId]) {
        if let Some(opened) = &mut self.opened {
            opened.remove_plugs(plugs);
        }
    }

    fn change_forwards(
        &mut self,
        gone: &[KernelForward],
        new: &[KernelForward],
    ) -> Result<(), ControlError> {
        self.opened()?.change_forwards(gone, new)
    }

    fn set_services(&mut self, services: &[KernelService]) -> Result<(), ControlError> {
        self.opened()?.set_services(services)
    }

    fn set_tunnels(&mut self, links: &[String]) -> Result<(), ControlError> {
        self.opened()?.set_tunnels(links)
    }

    fn traffic(&mut self, plug: PlugId) -> Option<PlugTraffic> {
        self.opened.as_mut()?.traffic(plug)
    }

    fn forward_traffic(&mut self) -> BTreeMap<(Protocol, SocketAddr), u64> {
        let counted = self.opened.as_mut().map(Opened::forward_traffic);
        counted.unwrap_or(Ok(BTreeMap::new())).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the counters of forwards");
            BTreeMap::new()
        })
    }

    fn tracked(&mut self) -> Option<Tracked> {
        let counted = self.opened.as_mut()?.tracked();
        counted.inspect_err(|error| tracing::warn!(%error, "cannot count the connections")).ok()
    }

    fn refusals(&mut self) -> Refusals {
        let counted = self.opened.as_mut().map(Opened::refusals);
        counted.unwrap_or(Ok(Refusals::default())).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the counters of rules");
            Refusals::default()
        })
    }

    fn forget_flows(&mut self, plug: PlugId) {
        if let Some(opened) = &mut self.opened {
            opened.forget_flows(plug);
        }
    }

    fn forget_unanswered(&mut self, service: &str, instance: &str) {
        if let Some(opened) = &mut self.opened {
            opened.forget_unanswered(service, instance);
        }
    }

    fn services(&mut self) -> Option<BTreeMap<String, ServiceTraffic>> {
        let counted = self.opened.as_mut()?.services();
        counted.inspect_err(|error| tracing::warn!(%error, "cannot read the counters")).ok()
    }

    fn watched(&self) -> Vec<BorrowedFd<'_>> {
        self.opened.iter().flat_map(Opened::watched).collect()
    }

    fn handle_changes(&mut self) -> Vec<PlugId> {
        let gone = self.opened.as_mut().map(Opened::handle_changes);
        gone.unwrap_or(Ok(Vec::new())).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot see what has changed");
            Vec::new()
        })
    }
}

impl Drop for Plumber {
    fn drop(&mut self) {
        let Some(opened) = self.opened.take() else { return };
        match opened.undo() {
            Ok(()) => self.forget_journal(),
            Err(error) => {
                tracing::error!(%error, "something is left; the next start takes it back")
            }
        }
    }
}

impl Plumber {
    /// Nothing is left that would have to be known.
    fn forget_journal(&self) {
        let _ = fs::remove_file(self.folder.join(JOURNAL));
    }
}

/// An error of the link crate as a network process tells it.
fn failed(error: &Error) -> ControlError {
    ControlError { kind: kind_of(error), message: error.to_string() }
}

fn kind_of(error: &Error) -> ControlErrorKind {
    match error {
        Error::NotPermitted { .. } => ControlErrorKind::NotPermitted,
        Error::Step { cause, .. } => kind_of(cause),
        Error::Several(errors) => errors.first().map_or(ControlErrorKind::Failed, kind_of),
        error if error.exists() => ControlErrorKind::Taken,
        Error::Absent { .. } => ControlErrorKind::Unknown,
        _ => ControlErrorKind::Failed,
    }
}

fn refused(kind: ControlErrorKind, message: impl Into<String>) -> ControlError {
    ControlError { kind, message: message.into() }
}
