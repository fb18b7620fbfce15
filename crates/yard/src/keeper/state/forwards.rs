//! Forwards that come and go while everything else stays as it is.
//!
//! One that is added belongs to its instance as those of the file do: it is opened again by a network process
//! that replaces another, and goes with the instance. What a file says is there after it was applied, so a
//! forward of the file that was removed comes back then; one that was added stays, unless the file wants its
//! host ports for something else.

use std::collections::btree_map::Entry;
use std::os::fd::{AsFd as _, OwnedFd};

use netyard_engine::forward::{Forward, SocketFile};
use netyard_sys::process;

use super::Keeper;
use crate::api::ForwardChanged;
use crate::error::{ErrorKind, YardError};
use crate::model::{InstanceSpec, Yard};
use crate::path_socket::PathSocket;

impl Keeper {
    /// Opens a forward, if it is not there.
    pub(in crate::keeper) async fn add_forward(
        &self,
        forward: Forward,
    ) -> Result<ForwardChanged, YardError> {
        let _one_at_a_time = self.applying.lock().await;
        let wanted = || format!("open the forward {forward} of instance {}", forward.instance);
        let yard = self.yard();
        let network = self.network_of(&yard, &forward)?;
        if self.is_open(&network, &forward) {
            return Ok(ForwardChanged { network, forward, changed: false });
        }
        if let Some(instance) = yard.instance(&forward.instance)
            && let Some(why) = why_not(&yard, instance, &forward)
        {
            let spliced = forward.delivery.wants_splice();
            let next = if spliced { "splice and loopback" } else { "proxy-v1 and proxy-v2" };
            return Err(YardError::new(ErrorKind::Unsupported, wanted(), why)
                .next(format!("leave out {next}")));
        }
        if let Some(other) = in_the_way(&yard, &forward) {
            return Err(YardError::new(ErrorKind::Conflict, wanted(), format!("{other} is there"))
                .next("choose other host ports or another path, or remove that one first"));
        }
        self.open_forward(&network, &forward).await?;
        self.added.borrow_mut().push(forward.clone());
        self.changes.tell();
        Ok(ForwardChanged { network, forward, changed: true })
    }

    /// Closes a forward, if it is there.
    pub(in crate::keeper) async fn remove_forward(
        &self,
        forward: Forward,
    ) -> Result<ForwardChanged, YardError> {
        let _one_at_a_time = self.applying.lock().await;
        let network = self.network_of(&self.yard(), &forward)?;
        let changed = self.is_open(&network, &forward);
        if changed {
            self.close_forward(&network, &forward).await?;
            self.added.borrow_mut().retain(|other| *other != forward);
            self.changes.tell();
        }
        Ok(ForwardChanged { network, forward, changed })
    }

    /// Has a yard that is wanted keep what was added, where nothing in it is in the way.
    pub(super) fn keep_forwards(&self, wanted: &mut Yard) {
        for forward in self.added.borrow().iter() {
            let fits = wanted
                .instance(&forward.instance)
                .is_some_and(|instance| why_not(wanted, instance, forward).is_none());
            // One that the file names by now is in its own way.
            if fits && in_the_way(wanted, forward).is_none() {
                let mut instances = wanted.instances.iter_mut();
                if let Some(instance) = instances.find(|it| it.name == forward.instance) {
                    instance.forwards.push(forward.clone());
                }
            }
        }
    }

    /// A file was applied: forwards that it names by now are its own, and others have gone with their instances.
    pub(super) fn forget_forwards(&self, file: &Yard) {
        let reached = self.yard();
        self.added.borrow_mut().retain(|forward| {
            let has = |yard: &Yard| {
                let instance = yard.instance(&forward.instance);
                instance.is_some_and(|instance| instance.forwards.contains(forward))
            };
            has(&reached) && !has(file)
        });
    }

    /// The socket that a forward begins at, if it does, for the network: made the first time.
    pub(super) fn socket_of(&self, forward: &Forward) -> Result<Option<OwnedFd>, YardError> {
        let Some(SocketFile { path, mode }) = forward.host.socket() else { return Ok(None) };
        let mut sockets = self.sockets.borrow_mut();
        let socket = match sockets.entry(path.clone()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(none) => {
                none.insert(PathSocket::open(path, *mode, process::effective_user())?)
            }
        };
        let copy = socket.as_fd().try_clone_to_owned();
        copy.map(Some).map_err(|error| YardError::io(format!("open the forward {forward}"), &error))
    }

    /// Nobody comes in by a forward any more: its socket goes, if it has one.
    pub(super) fn close_socket(&self, forward: &Forward) {
        if let Some(file) = forward.host.socket() {
            self.sockets.borrow_mut().remove(&file.path);
        }
    }

    /// Closes the sockets of all forwards into a network.
    pub(super) fn close_sockets_of(&self, network: &str) {
        let opened = self.opened.borrow();
        opened.iter().filter(|(of, _)| of == network).for_each(|(_, it)| self.close_socket(it));
    }

    /// Closes the sockets of forwards into networks whose process is gone and cannot be replaced now: clients
    /// would wait for somebody to take their connections. They are opened again with the network.
    pub(super) fn close_lost_sockets(&self) {
        let networks = self.networks.borrow();
        let lost = networks.iter().filter(|(_, network)| network.link().is_lost());
        lost.for_each(|(name, _)| self.close_sockets_of(name));
    }

    /// The network that a forward leads into: that of its instance's first plug.
    fn network_of(&self, yard: &Yard, forward: &Forward) -> Result<String, YardError> {
        let instance = yard.instance(&forward.instance);
        let instance = instance.ok_or_else(|| self.unknown(&forward.instance))?;
        let network = instance.plugs.first().map(|plug| plug.network.clone());
        network.ok_or_else(|| self.unknown(&forward.instance))
    }

    fn is_open(&self, network: &str, forward: &Forward) -> bool {
        self.opened.borrow().iter().any(|(of, other)| of == network && other == forward)
    }
}

/// Why an instance cannot have a forward, if it cannot.
fn why_not(yard: &Yard, instance: &InstanceSpec, forward: &Forward) -> Option<String> {
    let plug = instance.plugs.first()?;
    let on_bridge = yard.networks.get(&plug.network).is_some_and(|network| network.is_bridge());
    if on_bridge && let Err(error) = forward.delivery.check_bridge() {
        return Some(error.to_string());
    }
    let shaped = plug.link != Default::default();
    (forward.delivery.wants_splice() && (!instance.kind.hands_out_sockets() || shaped)).then(|| {
        "splicing takes a program or a namespace in user mode, with a link that is not shaped"
            .to_owned()
    })
}

/// What has one of the host ports of a forward, if something in the yard does.
fn in_the_way(yard: &Yard, forward: &Forward) -> Option<String> {
    let forwards = yard.instances.iter().flat_map(|instance| &instance.forwards);
    if let Some(other) = forwards.into_iter().find(|other| forward.conflicts(other)) {
        return Some(format!("the forward {other} of instance {}", other.instance));
    }
    let published = yard.services.iter().find(|service| {
        let published = service.publish.map(|at| format!("{at}/{}", service.protocol));
        // It has the host's side of a forward.
        let published = published.and_then(|at| at.parse::<Forward>().ok());
        published.is_some_and(|published| forward.conflicts(&published))
    })?;
    Some(format!("the published port of service {}", published.name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn yard(text: &str) -> Yard {
        crate::file::parse(text, Path::new("/srv/hello/yard.toml")).unwrap()
    }

    fn forward(text: &str) -> Forward {
        Forward { instance: "web".into(), ..text.parse().unwrap() }
    }

    #[test]
    fn what_has_a_port_already_is_named() {
        let yard = yard(
            "[instances.web]\nrun = [\"x\"]\nforwards = [\"8081:80\"]\n\
             [services.www]\ninstances = \"web\"\nport = 80\npublish = \"0.0.0.0:8080\"\n",
        );
        let way = |text: &str| in_the_way(&yard, &forward(text));
        let own = "the forward 127.0.0.1:8081:80/tcp of instance web";
        assert_eq!(way("8000-8081:8000-8081").as_deref(), Some(own));
        assert_eq!(way("8080:80").as_deref(), Some("the published port of service www"));
        assert_eq!(way("8080:80/udp"), None);
        assert_eq!(way("8082:80"), None);
    }

    #[test]
    fn only_programs_in_user_mode_are_spliced_or_told_of_clients() {
        let text = "[instances.web]\nrun = [\"x\"]\n";
        let refused = |yard: &Yard, text: &str| {
            why_not(yard, yard.instance("web").unwrap(), &forward(text)).is_some()
        };
        assert!(!refused(&yard(text), "8081:80/loopback"));
        let shaped = yard(&format!("{text}link = {{ delay = \"1ms\" }}\n"));
        assert!(refused(&shaped, "8081:80/loopback") && !refused(&shaped, "8081:80"));
        let bridge = yard(&format!("[networks.lan]\nmode = \"bridge\"\n{text}"));
        assert!(refused(&bridge, "8081:80/splice") && refused(&bridge, "8081:80/proxy-v2"));
        assert!(!refused(&bridge, "8081:80") && !refused(&yard(text), "8081:80/proxy-v2"));
    }
}
