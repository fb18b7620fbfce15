//! What a keeper in the foreground shows on standard error: a live table on a terminal, lines
//! elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::rc::Rc;
use std::time::{Duration, Instant};

use netyard_sys::pty;
use tokio::time;

use super::state::Keeper;
use crate::api::{InstanceState, InstanceStatus, ServiceStatus};

/// How long changes are gathered before the table is drawn again.
const GATHER: Duration = Duration::from_millis(100);

/// What is seen only by looking (listening sockets, turns) is looked at so often.
const LOOK: Duration = Duration::from_secs(1);

/// Looking takes the time of everything else, and more of it the more instances there are: at most one
/// part in so many is spent on it.
const SHARE: u32 = 20;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Instances and services.
    Everything,
    /// Only what is likely wrong: the program has the terminal.
    Warnings,
}

/// Shows how the yard is until the task is aborted.
pub(super) async fn show(keeper: Rc<Keeper>, show: Show) {
    let mut lines = Lines::default();
    let mut table = (show == Show::Everything && io::stderr().is_terminal()).then(Table::default);
    let changes = keeper.changes();
    let mut changes = changes.listen();
    loop {
        let begun = Instant::now();
        match &mut table {
            Some(table) => {
                let services = keeper.service_statuses(&keeper.service_states().await);
                table.draw(&keeper.instance_statuses(), &services);
            }
            None => lines.print(&keeper.instance_statuses(), show),
        }
        let rest = begun.elapsed().saturating_mul(SHARE);
        // Whichever comes first; both mean the same.
        let _ = time::timeout(LOOK, changes.changed()).await;
        time::sleep(GATHER.max(rest)).await;
        changes.mark_unchanged();
    }
}

/// Says each thing once.
#[derive(Default)]
struct Lines {
    states: BTreeMap<String, InstanceState>,
    warnings: BTreeMap<String, Vec<String>>,
}

impl Lines {
    fn print(&mut self, instances: &[InstanceStatus], show: Show) {
        let text = self.news(instances, show);
        // Nobody may listen any more.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn news(&mut self, instances: &[InstanceStatus], show: Show) -> String {
        let mut text = String::new();
        for instance in instances {
            let name = &instance.name;
            let before = self.states.insert(name.clone(), instance.state);
            if show == Show::Everything && before != Some(instance.state) {
                let exit = instance.exit.as_deref().filter(|_| is_bad(instance.state));
                let exit = exit.map(|exit| format!(": {exit}")).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name} is {}{exit}", instance.state);
            }
            let known = self.warnings.entry(name.clone()).or_default();
            for warning in &instance.warnings {
                if !known.contains(warning) {
                    let _ = writeln!(text, "warning: {name} {warning}");
                    known.push(warning.clone());
                }
            }
        }
        text
    }
}

fn is_bad(state: InstanceState) -> bool {
    match state {
        InstanceState::Backoff | InstanceState::Failed => true,
        InstanceState::Exited { code } => code != 0,
        _ => false,
    }
}

/// Draws over itself.
#[derive(Default)]
struct Table {
    /// Lines that the last drawing has.
    lines: usize,
    last: String,
}

impl Table {
    fn draw(&mut self, instances: &[InstanceStatus], services: &[ServiceStatus]) {
        let size = pty::size(std::os::fd::AsFd::as_fd(&io::stderr()));
        // A terminal that does not know its size says zero.
        let size = size.ok().filter(|size| size.rows > 0 && size.columns > 0);
        let (rows, columns) =
            size.map_or((24, 80), |size| (usize::from(size.rows), usize::from(size.columns)));
        let text = cut(&text(instances, services), rows.saturating_sub(1).max(1), columns.max(1));
        if text == self.last {
            return;
        }
        let mut out = String::new();
        if self.lines > 0 {
            // CUU and ED of ECMA-48: up to where the table began, clear what is below.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        out.push_str(&text);
        // The terminal may be gone.
        let _ = io::stderr().write_all(out.as_bytes());
        self.lines = text.lines().count();
        self.last = text;
    }
}

/// Cuts a text to the terminal: what scrolled or wrapped could not be drawn over.
fn cut(text: &str, rows: usize, columns: usize) -> String {
    let mut lines: Vec<String> =
        text.lines().map(|line| line.chars().take(columns).collect()).collect();
    if lines.len() > rows {
        lines.truncate(rows.saturating_sub(1));
        lines.push("... `netyard ps` shows all".chars().take(columns).collect());
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn text(instances: &[InstanceStatus], services: &[ServiceStatus]) -> String {
    let mut rows = vec![["INSTANCE", "STATE", "ADDRESS", "RESTARTS", "NOTE"].map(str::to_owned)];
    rows.extend(instances.iter().map(|instance| {
        let exit = instance.exit.clone().filter(|_| is_bad(instance.state));
        [
            instance.name.clone(),
            instance.state.to_string(),
            instance.addresses.first().map(ToString::to_string).unwrap_or_default(),
            instance.restarts.to_string(),
            instance.warnings.first().cloned().or(exit).unwrap_or_default(),
        ]
    }));
    let mut text = columns(&rows);
    if !services.is_empty() {
        let mut rows = vec![["SERVICE", "PUBLISHED", "READY", "TURNS"].map(str::to_owned)];
        rows.extend(services.iter().map(|service| {
            let ready = service.instances.iter().filter(|it| it.eligible).count();
            let turns: u64 = service.instances.iter().map(|it| it.turns.turns).sum();
            [
                service.name.clone(),
                service.published.map_or_else(|| "-".to_owned(), |at| at.to_string()),
                format!("{ready}/{}", service.instances.len()),
                turns.to_string(),
            ]
        }));
        text.push('\n');
        text.push_str(&columns(&rows));
    }
    text
}

/// Aligns rows in columns.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(state: InstanceState) -> InstanceStatus {
        InstanceStatus {
            vm: None,
            own_stack: false,
            external: None,
            sockets: Vec::new(),
            name: "web-1".to_owned(),
            state,
            pid: None,
            init_pid: None,
            addresses: vec!["192.168.127.2".parse().unwrap()],
            restarts: 2,
            uptime_ms: None,
            exit: Some("code 1".to_owned()),
            ports: vec![],
            warnings: vec![],
        }
    }

    #[test]
    fn each_change_is_said_once() {
        let mut lines = Lines::default();
        let mut now = instance(InstanceState::Healthy);
        let mut news =
            |now: &InstanceStatus| lines.news(std::slice::from_ref(now), Show::Everything);
        assert_eq!(news(&now), "web-1 is healthy\n");
        assert_eq!(news(&now), "");
        now.warnings = vec!["listens on 127.0.0.1:80 only".to_owned()];
        assert_eq!(news(&now), "warning: web-1 listens on 127.0.0.1:80 only\n");
        now.state = InstanceState::Exited { code: 1 };
        assert_eq!(news(&now), "web-1 is exited 1: code 1\n");
        let quiet = Lines::default().news(&[now], Show::Warnings);
        assert_eq!(quiet, "warning: web-1 listens on 127.0.0.1:80 only\n");
    }

    #[test]
    fn the_table_is_aligned_and_fits_the_terminal() {
        let table = text(&[instance(InstanceState::Backoff)], &[]);
        assert_eq!(
            table,
            "INSTANCE  STATE    ADDRESS        RESTARTS  NOTE\n\
             web-1     backoff  192.168.127.2  2         code 1\n"
        );
        assert_eq!(cut(&table, 10, 5), "INSTA\nweb-1\n");
        assert_eq!(cut("a\nb\nc\n", 2, 80), "a\n... `netyard ps` shows all\n");
    }
}
