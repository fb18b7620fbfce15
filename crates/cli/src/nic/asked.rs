//! Who is asked for external addresses: what the command line and a file say.

use std::fs;
use std::path::Path;

use ipnet::IpNet;
use netyard_nic::{Agreement, PublicPolicy};
use netyard_yard::error::{ErrorKind, YardError};
use serde::Deserialize;

use super::flags::Ask;

/// The file of `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    servers: Vec<String>,
    agree: Option<usize>,
    treat_as_public: Vec<IpNet>,
}

/// Who is asked, and what is made of the answers.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) servers: Vec<String>,
    /// How many have to see the same address.
    pub(super) agree: usize,
    pub(super) public: PublicPolicy,
}

impl Asked {
    /// What the flags say, and the file that they name. Flags come first.
    pub(super) fn of(flags: Ask) -> Result<Self, YardError> {
        let file = flags.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let public = flags.treat_as_public.into_iter().chain(file.treat_as_public).collect();
        Ok(Self {
            servers: flags.servers.into_iter().chain(file.servers).collect(),
            agree: flags.agree.or(file.agree).unwrap_or(Agreement::WANTED),
            public: PublicPolicy::treat_as_public(public),
        })
    }

    /// Nothing is sent.
    pub(super) fn nobody(&self) -> bool {
        self.servers.is_empty()
    }
}

fn read(path: &Path) -> Result<File, YardError> {
    let wanted = format!("read {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| YardError::io(&wanted, &error))?;
    toml::from_str(&text).map_err(|error| {
        YardError::new(ErrorKind::Input, &wanted, error.to_string().trim_end())
            .next("it may have `servers`, `agree` and `treat_as_public`")
    })
}
