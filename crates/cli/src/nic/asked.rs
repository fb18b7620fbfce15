//! Who is asked for external addresses: what the command line, a file and the environment say.
//!
//! Nothing is sent unasked: a verb asks if the user says so, and asks those whom the user has named.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use netyard_nic::stun::{StunProber, names};
use netyard_nic::{Agreement, Card, Discovery, Interface, Look, PublicPolicy, Within};
use netyard_yard::error::{ErrorKind, YardError};
use serde::Deserialize;

use super::flags::{Ask, Servers};

/// The variable that says whom to ask, with commas between, where the command line names nobody. It does
/// not say whether to ask.
pub(super) const SERVERS: &str = "NETYARD_STUN";

/// The file of `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    servers: Vec<String>,
    agree: Option<usize>,
    treat_as_public: Vec<IpNet>,
}

/// How long the servers may take that are asked about one card.
const LIMIT: Duration = Duration::from_secs(5);

/// Who is asked, and what is made of the answers.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Nobody: nothing is sent.
    pub(super) servers: Vec<String>,
    /// How many have to see the same address.
    pub(super) agree: usize,
    pub(super) public: PublicPolicy,
    /// Of blocks the last address is asked for too.
    verify_last: bool,
}

impl Asked {
    /// What the flags say, and the file that they name; flags come first. Servers that are named are
    /// asked; if none is, and the answers are wanted all the same, those of the environment are.
    ///
    /// # Errors
    /// Nobody is named who could be asked; the file is not to be read.
    pub(crate) fn of(flags: Ask, wanted: Option<&str>) -> Result<Self, YardError> {
        let file = file(&flags.servers)?;
        let named = flags.servers.servers.into_iter().chain(file.servers).collect();
        let wanted = wanted.or(flags.external.then_some("look external addresses up"));
        let servers = match wanted {
            Some(wanted) => somebody(named, wanted, FLAGS)?,
            None => names::spelled_out(named),
        };
        let public = flags.treat_as_public.into_iter().chain(file.treat_as_public).collect();
        Ok(Self {
            servers,
            agree: flags.agree.or(file.agree).unwrap_or(Agreement::WANTED),
            public: PublicPolicy::treat_as_public(public),
            verify_last: false,
        })
    }

    /// The same, asking of blocks about their last address too if `verify_last` says so.
    pub(super) fn verifying_last(self, verify_last: bool) -> Self {
        Self { verify_last, ..self }
    }

    /// The servers that are named, or those of the environment.
    ///
    /// # Errors
    /// As for [`Asked::of`].
    pub(super) fn certainly(flags: Servers, wanted: &str) -> Result<Vec<String>, YardError> {
        let file = file(&flags)?;
        somebody(flags.servers.into_iter().chain(file.servers).collect(), wanted, FLAGS)
    }

    /// A card with its routes, as the servers see them. What is not known in time stays unknown.
    pub(super) async fn load(&self, card: Card) -> Interface {
        let prober = Within::new(StunProber { servers: self.servers.clone() }, LIMIT);
        let discovery = Discovery::new(&card, self.public.clone());
        let discovery = if self.verify_last { discovery.verifying_last() } else { discovery };
        let routes = discovery.ask(self.agree, &prober).await;
        Interface::new(card, routes)
    }

    /// To look from one address; `gateway`: it is asked too where the NAT is tested.
    pub(super) fn look(&self, gateway: bool) -> Look {
        let Self { servers, agree, public, .. } = self.clone();
        Look { servers, agree, public, gateway }
    }

    /// Nothing is sent.
    pub(crate) fn nobody(&self) -> bool {
        self.servers.is_empty()
    }
}

/// How flags name servers.
const FLAGS: &str = "--server, --config";

/// Those who are named, or those of the environment. `how` says where names are given.
pub(super) fn somebody(
    named: Vec<String>,
    wanted: &str,
    how: &str,
) -> Result<Vec<String>, YardError> {
    let mut servers = named;
    if servers.is_empty() {
        let listed = std::env::var(SERVERS).unwrap_or_default();
        let listed = listed.split(',').map(str::trim).filter(|server| !server.is_empty());
        servers = listed.map(str::to_owned).collect();
    }
    if servers.is_empty() {
        let next = format!(
            "name STUN servers with {how} or {SERVERS}; the name `{}` stands for {}",
            names::PUBLIC,
            names::PUBLIC_SERVERS.join(", ")
        );
        return Err(YardError::new(ErrorKind::Input, wanted, "no server is named").next(next));
    }
    Ok(names::spelled_out(servers))
}

fn file(flags: &Servers) -> Result<File, YardError> {
    Ok(flags.config.as_deref().map(read).transpose()?.unwrap_or_default())
}

fn read(path: &Path) -> Result<File, YardError> {
    let wanted = format!("read {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| YardError::io(&wanted, &error))?;
    toml::from_str(&text).map_err(|error| {
        YardError::new(ErrorKind::Input, &wanted, error.to_string().trim_end())
            .next("it may have `servers`, `agree` and `treat_as_public`")
    })
}
