//! By which route sockets leave: what the flags say.

use netyard_nic::pipe::PipeError;
use netyard_nic::stun::names;
use netyard_nic::{
    Bind, Family, Interface, NicError, Route, RoutePool, card_named, cards, default_card,
};
use netyard_yard::error::{ErrorKind, YardError};

use super::cards::failed;
use super::flags::By;

impl By {
    /// The family that is asked for.
    fn family(&self) -> Option<Family> {
        match (self.ip4, self.ip6) {
            (true, _) => Some(Family::Ip4),
            (_, true) => Some(Family::Ip6),
            _ => None,
        }
    }

    /// What sockets are bound to that leave as the flags say, of each family that there is; nothing: the
    /// kernel's choice. `to` is the family of the address that will be talked to, if it is known.
    pub(super) fn binds(&self, to: Option<Family>) -> Result<Vec<Bind>, YardError> {
        let family = self.family();
        if self.card.is_none() && self.route.is_none() {
            return Ok(family.map(Bind::every).into_iter().collect());
        }
        let ways = self.find(family.or(to)).map_err(|error| failed("choose a route", &error))?;
        Ok(ways.iter().map(Route::bind).collect())
    }

    fn find(&self, family: Option<Family>) -> Result<Vec<Route>, NicError> {
        let card = match (&self.card, self.route) {
            (Some(name), _) if name == Interface::DEFAULT => default_card()?,
            (Some(name), _) => card_named(name)?,
            (None, Some(address)) => {
                let mut all = cards()?;
                let has = |range: &netyard_nic::CardAddress| range.range.contains(address);
                let found = all.iter().position(|card| card.addresses.iter().any(has));
                match found {
                    Some(found) => all.swap_remove(found),
                    None => default_card()?,
                }
            }
            (None, None) => default_card()?,
        };
        let interface = Interface::unasked(card);
        match self.route {
            None => interface.ways(family),
            Some(address) => {
                let pools = RoutePool::from_ips(&interface, &[address])?;
                let routes = pools.get(Family::of(address)).routes();
                let none = || NicError::NotOnCard { card: interface.name().to_owned(), address };
                routes.first().cloned().map(|route| vec![route]).ok_or_else(none)
            }
        }
    }
}

/// The host and port of `HOST:PORT`.
pub(super) fn endpoint(text: &str) -> Result<(String, u16), YardError> {
    match names::split(text, 0) {
        (host, port @ 1..) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(YardError::new(
            ErrorKind::Input,
            format!("connect to {text}"),
            "that is not HOST:PORT, such as example.com:80 or [2001:db8::1]:80",
        )),
    }
}

/// The error of a command about a pipe.
pub(super) fn broken(wanted: impl Into<String>, error: PipeError) -> YardError {
    use std::io::ErrorKind as Io;
    let kind = match &error {
        PipeError::Dns(_) => ErrorKind::Unknown,
        PipeError::Timeout { .. } => ErrorKind::TimedOut,
        PipeError::Misuse(_) | PipeError::TooLarge { .. } => ErrorKind::Input,
        PipeError::Bind(error) => match error.io_kind() {
            Some(Io::AddrInUse) => ErrorKind::Conflict,
            Some(Io::PermissionDenied) => ErrorKind::NotPermitted,
            Some(_) => ErrorKind::System,
            None => ErrorKind::Input,
        },
        _ => ErrorKind::System,
    };
    YardError::new(kind, wanted, error.to_string())
}
