//! Bridge mode beside other tools that plug namespaces into bridges, and other balancers.
//!
//! Each contender has a machine of its own: this program runs itself again, for one contender and
//! one group of rows, in new namespaces that play the host, and reads the figures that it prints.

mod connections;
mod contender;
mod netyard;
mod others;
mod plugs;
mod ports;
mod report;
mod requests;
mod stage;
mod throughput;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};
use netyard_testbed::{output, peer};

use self::contender::Contender;
pub(crate) use self::report::Row;
use crate::table::{Contender as _, Table};

/// All figures of a run.
pub(crate) type Report = Table<Row>;

/// Rows that are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Plugs are added and removed
    Plugs,
    /// Bulk TCP
    Throughput,
    /// Connections through a service
    Connections,
    /// Requests through a service that takes a turn for each
    Requests,
    /// Many ports forwarded
    Ports,
}

impl Group {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 5] =
        [Self::Plugs, Self::Throughput, Self::Connections, Self::Requests, Self::Ports];

    fn contenders(self) -> &'static [Contender] {
        match self {
            Self::Plugs => &plugs::CONTENDERS,
            Self::Throughput => &throughput::CONTENDERS,
            Self::Connections => &connections::CONTENDERS,
            Self::Requests => &requests::CONTENDERS,
            Self::Ports => &ports::CONTENDERS,
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// How the rows of bridge mode are taken.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How many plugs are many
    #[arg(long, default_value_t = 1000)]
    plugs: u16,
    /// How many are many for netavark and CNI, which need minutes for a thousand
    #[arg(long, default_value_t = 100)]
    peer_plugs: u16,
    /// For the run of one contender in its own namespaces
    #[arg(long, hide = true, requires = "group")]
    contender: Option<Contender>,
    #[arg(long, hide = true)]
    group: Option<Group>,
}

impl Options {
    /// Takes a round of a group's figures, one contender after the other. What cannot be taken is
    /// told and left out.
    pub(crate) fn round(&self, group: Group, seconds: u32, report: &mut Report) {
        for contender in group.contenders() {
            eprintln!("  {}: {}", group.name(), contender.name());
            match self.start(group, *contender, seconds) {
                Ok(figures) => report.add(*contender, figures),
                Err(message) => eprintln!("{}: {message}", contender.name()),
            }
        }
    }

    fn start(
        &self,
        group: Group,
        contender: Contender,
        seconds: u32,
    ) -> Result<BTreeMap<Row, f64>, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let contender = contender.to_possible_value().ok_or("it has no name")?;
        let mut command = Command::new(peer("unshare"));
        command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.args(["sh", "-ec", stage::SCRIPT, "sh"]).arg(program);
        command.args(["--group", &group.name(), "--contender", contender.get_name()]);
        command.args(["--plugs", &self.plugs.to_string()]);
        command.args(["--peer-plugs", &self.peer_plugs.to_string()]);
        command.args(["--seconds", &seconds.to_string()]);
        let done = output(&mut command);
        serde_json::from_slice(&done.stdout)
            .map_err(|_| String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// Takes one contender's figures here, if that is what this program was run for.
    pub(crate) fn contend(&self, seconds: u32) -> Option<ExitCode> {
        let (group, contender) = (self.group?, self.contender?);
        let figures = match group {
            Group::Plugs => match contender {
                Contender::Netavark | Contender::Cni => plugs::take(contender, self.peer_plugs),
                _ => plugs::take(contender, self.plugs),
            },
            Group::Throughput => throughput::take(contender, seconds),
            Group::Connections => connections::take(contender, seconds),
            Group::Requests => requests::take(contender, seconds),
            Group::Ports => ports::take(contender),
        };
        Some(match serde_json::to_string(&figures) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        })
    }
}
