//! A network at work, whoever moves its packets: its loop, and what its members ask of it.
//!
//! In user mode that is [`crate::driver::Driver`], in bridge mode the kernel.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use netyard_sys::poll::{Interest, Poll};

use crate::capture;
use crate::config::Config;
use crate::control::{
    ControlError, FlowState, Name, Opener, PlugRequest, Plugged, Remote, ServiceSpec, ServiceState,
    State,
};
use crate::driver::token::Token;
use crate::edge::PlugId;
use crate::forward::Forward;
use crate::network::DialId;
use crate::policy::rules::{Rules, What};
use crate::policy::{self, Tested};

/// One network with everything that makes it run.
///
/// Errors of its verbs say what was wanted, what was found and what to do; after an error
/// everything is as it was before.
pub(crate) trait Drive: fmt::Debug {
    /// The network's configuration, as it came to be.
    fn config(&self) -> &Config;

    /// Sets whether the network stays when the last plug leaves.
    fn set_permanent(&mut self, permanent: bool);

    /// What its loop waits on.
    fn poll(&self) -> &Poll;

    /// Watches a descriptor of the caller: [`Drive::turn`] tells `key` while it is ready.
    ///
    /// # Errors
    /// It is watched already, or cannot be.
    fn watch(&self, fd: BorrowedFd<'_>, key: u32) -> io::Result<()> {
        self.poll().add(fd, Token::Watch(key).encode(), Interest::Readable)
    }

    /// Sets whether room to write is told too.
    ///
    /// # Errors
    /// It is not watched.
    fn watch_room(&self, fd: BorrowedFd<'_>, key: u32, room: bool) -> io::Result<()> {
        let interest = if room { Interest::ReadableOrWritable } else { Interest::Readable };
        self.poll().change(fd, Token::Watch(key).encode(), interest)
    }

    /// Waits for what happens next, at most until `limit`, and handles it. The keys of watched
    /// descriptors that are ready are put into `ready`.
    ///
    /// # Errors
    /// The poll itself failed: the network cannot go on.
    fn turn(&mut self, limit: Option<Instant>, ready: &mut Vec<u32>) -> io::Result<()>;

    /// Lets what is due happen, and finishes what a batch of input or verbs has begun.
    fn settle(&mut self);

    /// Plugs in what `fd` leads to, or what is made for the plug, for `member`.
    ///
    /// # Errors
    /// `Taken` if the wanted name or address is another's, `Malformed` if the address is not of
    /// this network or the descriptor is not what the request says, `Exhausted` if no address is
    /// free.
    fn add_plug(
        &mut self,
        member: &str,
        request: &PlugRequest,
        fd: Option<OwnedFd>,
    ) -> Result<Plugged, ControlError>;

    /// Takes the connection by which the instance behind a plug of `member` hands out sockets of its namespace.
    ///
    /// # Errors
    /// `Unknown` if the member has no such plug, `Malformed`: it is no such connection, or networks of this kind
    /// have no use for it.
    fn set_supply(
        &mut self,
        member: &str,
        plug: PlugId,
        supply: OwnedFd,
    ) -> Result<(), ControlError>;

    /// Takes a plug out; false if `member` has no such plug.
    fn remove_plug(&mut self, member: &str, plug: PlugId) -> bool;

    /// Opens a forward of `member`; returns the bound host addresses. That of a Unix socket comes with the socket.
    ///
    /// # Errors
    /// `Taken` if somebody has such a port, `NotPermitted`, `Malformed` without the socket, `Failed`.
    fn add_forward(
        &mut self,
        member: &str,
        forward: Forward,
        socket: Option<OwnedFd>,
    ) -> Result<Vec<SocketAddr>, ControlError>;

    /// Closes a forward of `member`; open connections stay. False if it has no such forward.
    fn remove_forward(&mut self, member: &str, forward: &Forward) -> bool;

    /// Makes or replaces a service of `member`; returns its virtual addresses and its published
    /// host address.
    ///
    /// # Errors
    /// `Malformed` for a service that cannot be, `Taken` if its name or host port is another's,
    /// `Exhausted` if no virtual address is free, `NotPermitted`, `Failed`.
    fn set_service(
        &mut self,
        member: &str,
        spec: ServiceSpec,
    ) -> Result<(Vec<IpAddr>, Option<SocketAddr>), ControlError>;

    /// Removes a service of `member`; open connections stay.
    ///
    /// # Errors
    /// `Unknown` if the member has no such service.
    fn remove_service(&mut self, member: &str, name: &str) -> Result<(), ControlError>;

    /// Replaces the rules of `member` about what its plugs may reach, and who may reach them.
    ///
    /// # Errors
    /// `Malformed`: networks of this kind have none.
    fn set_rules(&mut self, member: &str, rules: Rules) -> Result<(), ControlError>;

    /// What the policy would say of a new flow to a plug.
    ///
    /// # Errors
    /// As [`Drive::test_policy`].
    fn test_entry(
        &mut self,
        from: &Opener,
        guest: &str,
        what: What,
    ) -> Result<Tested, ControlError>;

    /// What the policy would say of a new flow of a plug.
    ///
    /// # Errors
    /// `Unknown` if there is no such plug, `Malformed`: networks of this kind have no such rules.
    fn test_policy(
        &mut self,
        guest: &str,
        protocol: policy::Protocol,
        to: SocketAddr,
    ) -> Result<Tested, ControlError>;

    /// Says whether an instance of a service may get new connections.
    ///
    /// # Errors
    /// `Unknown` if the member has no such service, or the service no such instance.
    fn set_eligible(
        &mut self,
        member: &str,
        service: &str,
        instance: &str,
        eligible: bool,
    ) -> Result<(), ControlError>;

    /// The program of an instance of `member` has ended: flows over UDP that services have led there end.
    fn program_ended(&mut self, member: &str, instance: &str);

    /// An instance of a service of `member` does not answer its checks: flows over UDP that the service has
    /// led there and that were never answered end.
    fn instance_hangs(&mut self, member: &str, service: &str, instance: &str);

    /// Heeds what `member` tells of the remote machines that it brings, whose socket comes along the first time in
    /// user mode.
    ///
    /// # Errors
    /// `Malformed` without a socket or link that leads there, `Taken` if the member has brought one, `Failed`.
    fn set_remote(
        &mut self,
        member: &str,
        remote: Remote,
        socket: Option<OwnedFd>,
    ) -> Result<(), ControlError>;

    /// The names and addresses of plugs and services.
    fn names(&self) -> Vec<Name>;

    /// Starts to open a TCP connection from the gateway to an address of the network;
    /// [`Drive::poll_dialed`] tells the outcome.
    ///
    /// # Errors
    /// What the kernel said at once.
    fn dial(&mut self, to: SocketAddr, within: Duration) -> Result<DialId, ControlError>;

    /// The next outcome of a [`Drive::dial`]: the open connection, or why there is none.
    fn poll_dialed(&mut self) -> Option<(DialId, Result<OwnedFd, ControlError>)>;

    /// Nobody waits for the outcome of a [`Drive::dial`] any more.
    fn abandon_dial(&mut self, dial: DialId);

    /// Begins to write what passes the plugs to `to`, as pcapng, until `member` leaves or nobody reads.
    ///
    /// # Errors
    /// `Exhausted` if too many look already, `Failed`: also where the kernel moves the packets.
    fn capture(
        &mut self,
        member: &str,
        filter: capture::Filter,
        to: OwnedFd,
    ) -> Result<(), ControlError>;

    /// Takes everything out that `member` made.
    fn remove_member(&mut self, member: &str);

    /// The flows that there are.
    ///
    /// # Errors
    /// `Failed`: the kernel has them.
    fn flows(&mut self) -> Result<Vec<FlowState>, ControlError>;

    /// The services of everybody, with their counters.
    fn services(&mut self) -> Vec<ServiceState>;

    /// What could not be done and can be lived without, or is in the way, with the next step.
    fn warnings(&mut self) -> Vec<String>;

    /// What `inspect` shows, but the members' names.
    fn state(&mut self) -> State;
}
