//! Plans applied to this machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

use super::journal::{Entry, Journal};
use super::ledger::Ledger;
use super::step::{Context, Place, Planned};
use super::{Owner, Plan, Step};
use crate::error::{Error, Result, gone_is_done};
use crate::features::Features;
use crate::netns::NetnsId;
use crate::nft::{Batch, Nftables};
use crate::rtnetlink::{Link, LinkChange, LinkIndex, Rtnetlink};

/// Conversations with the kernel, opened when they are needed.
#[derive(Debug)]
pub struct Kernel {
    features: Features,
    here: Option<Rtnetlink>,
    /// The other namespace that was spoken with last: the steps of a plan come in a row.
    inside: Option<(NetnsId, Rtnetlink)>,
    nftables: Option<Nftables>,
    ipv6_settings: Option<File>,
}

impl Kernel {
    fn new(features: Features) -> Self {
        Self { features, here: None, inside: None, nftables: None, ipv6_settings: None }
    }

    /// What it can do.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// About our own namespace.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn here(&mut self) -> Result<&mut Rtnetlink> {
        match &mut self.here {
            Some(here) => Ok(here),
            empty => Ok(empty.insert(Rtnetlink::open()?)),
        }
    }

    /// About a namespace.
    ///
    /// # Errors
    /// [`Error::Absent`]: it is gone.
    pub fn routing(&mut self, namespace: Option<&NetnsId>) -> Result<&mut Rtnetlink> {
        let Some(wanted) = namespace else { return self.here() };
        let known = self.inside.take().filter(|(id, _)| id == wanted);
        let inside = match known {
            Some(known) => known,
            None => {
                let netns = wanted.open()?.ok_or_else(|| Error::Absent {
                    what: format!("namespace {} any more", wanted.path().display()),
                })?;
                (wanted.clone(), Rtnetlink::open_in(&netns)?)
            }
        };
        Ok(&mut self.inside.insert(inside).1)
    }

    /// About the namespace that a link is in, and the link's number.
    ///
    /// # Errors
    /// [`Error::Absent`]: the namespace or the link is gone.
    pub fn at(&mut self, place: &Place) -> Result<(&mut Rtnetlink, LinkIndex)> {
        let kernel = self.routing(place.namespace.as_ref())?;
        let link = kernel.index(place.link.as_str())?;
        Ok((kernel, link))
    }

    /// The folder of our own links' IPv6 settings, held open: on the way from `/proc/sys` the kernel
    /// looks for it among those of all namespaces, one by one.
    pub(super) fn ipv6_settings(&mut self) -> io::Result<&File> {
        match &mut self.ipv6_settings {
            Some(folder) => Ok(folder),
            empty => Ok(empty.insert(File::open("/proc/sys/net/ipv6/conf")?)),
        }
    }

    /// About the ruleset of our own namespace. Owned tables belong to this conversation.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn nftables(&mut self) -> Result<&mut Nftables> {
        match &mut self.nftables {
            Some(nftables) => Ok(nftables),
            empty => Ok(empty.insert(Nftables::open()?)),
        }
    }
}

/// Beside an owner's group: links of it that are about to go. No owner's group has this bit.
const LEAVING: u32 = 0x8000_0000;

/// Where an owner keeps what must be known, and what the kernel can do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose things they are.
    pub owner: Owner,
    /// The owner's journal.
    pub journal: PathBuf,
    /// The ledger of settings; the same file for all owners on this machine.
    pub ledger: PathBuf,
    /// What the kernel can do.
    pub features: Features,
}

/// How far a step is. The moments at which a killed process leaves different things behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is written down, and about to be made.
    Intended,
    /// It is made.
    Made,
    /// It is written down that it is made.
    Recorded,
}

/// What is done about a table that is gone.
#[derive(Debug, Clone, Copy)]
enum Tables {
    Left,
    Remade,
}

/// Something that was not as it was made.
#[derive(Debug)]
pub struct Drift {
    /// The plan it belongs to.
    pub plan: String,
    /// The step.
    pub step: Step,
    /// Whether it is right again. A table is made again by [`Host::restore_plan`] alone: elsewhere its owner
    /// knows what belongs in it by now.
    pub repaired: Result<bool>,
}

/// What one owner has made on this machine, in the calling thread's network namespace. Stay in that
/// namespace.
///
/// Dropping it undoes nothing: the next [`Host::open`] of this owner finds all of it in the journal.
#[derive(Debug)]
pub struct Host {
    owner: Owner,
    ledger: Ledger,
    journal: Journal,
    kernel: Kernel,
}

impl Host {
    /// Opens the journal, or begins one. If [`Host::plans`] is not empty then, a process of this
    /// owner was killed: [`Host::recover`].
    ///
    /// # Errors
    /// [`Error::InUse`]: another process has it. [`Error::Journal`]: it is not this owner's.
    pub fn open(options: &Options) -> Result<Self> {
        Ok(Self {
            owner: options.owner.clone(),
            ledger: Ledger::at(&options.ledger),
            journal: Journal::open(&options.journal, &options.owner)?,
            kernel: Kernel::new(options.features),
        })
    }

    /// The names of the plans of which anything is there, in the order in which they came.
    #[must_use]
    pub fn plans(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let plans = self.journal.entries().map(|entry| entry.plan.as_str());
        plans.filter(|plan| seen.insert(*plan)).collect()
    }

    /// The addresses, with their prefixes, that plans have given to links of our own namespace, or were
    /// about to give.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpNet> {
        let steps = self.journal.entries().map(|entry| &entry.step);
        let given = steps.filter_map(|step| match step {
            Step::Address { at, net } if at.namespace.is_none() => Some(*net),
            _ => None,
        });
        given.collect()
    }

    /// To look at the machine, and to change what is in tables of ours.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Checks every step of a plan against the machine, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Several`]: everything that is in the way.
    pub fn check(&mut self, plan: &Plan) -> Result<()> {
        let mut planned = Planned::default();
        let mut problems = Vec::new();
        if self.journal.entries_of(&plan.name).next().is_some() {
            problems.push(Error::Taken { what: format!("the plan {:?}", plan.name) });
        }
        for step in &plan.steps {
            problems.extend(step.check(&mut self.kernel, &mut planned).err());
        }
        Error::all(problems)
    }

    /// Checks a plan and makes it; if a step fails, undoes what it made.
    ///
    /// # Errors
    /// [`Error::Several`]: it was not begun, for these reasons. [`Error::Step`]: a step failed.
    pub fn apply(&mut self, plan: &Plan) -> Result<()> {
        self.apply_watched(plan, |_, _| {})
    }

    /// The same, and says how far each step is.
    ///
    /// # Errors
    /// As [`Host::apply`].
    pub fn apply_watched(
        &mut self,
        plan: &Plan,
        mut watch: impl FnMut(&Step, Progress),
    ) -> Result<()> {
        let made = self.check(plan).and_then(|()| {
            plan.steps.iter().try_for_each(|step| {
                self.make(&plan.name, step, &mut watch).map_err(|cause| {
                    let left = self.undo(&plan.name).err().map(Box::new);
                    Error::Step { step: step.to_string(), cause: Box::new(cause), left }
                })
            })
        });
        // A socket in it would keep a namespace that is wanted by nobody else.
        self.kernel.inside = None;
        made
    }

    fn make(
        &mut self,
        plan: &str,
        step: &Step,
        watch: &mut impl FnMut(&Step, Progress),
    ) -> Result<()> {
        let context = Context { owner: &self.owner, plan, ledger: &self.ledger };
        let before = step.before(&mut self.kernel)?;
        let id = self.journal.intend(plan, step.clone(), before.clone())?;
        watch(step, Progress::Intended);
        step.make(&mut self.kernel, context, &before)?;
        watch(step, Progress::Made);
        self.journal.done(id)?;
        watch(step, Progress::Recorded);
        tracing::debug!(owner = %self.owner, plan, %step, "made");
        Ok(())
    }

    /// Undoes a plan, the last step first. Goes on when a step cannot be undone: that one stays in
    /// the journal. A plan that is not there is fine.
    ///
    /// # Errors
    /// [`Error::Several`]: what could not be undone.
    pub fn undo(&mut self, plan: &str) -> Result<()> {
        let entries: Vec<Entry> = self.journal.entries_of(plan).rev().cloned().collect();
        self.undo_entries(entries)
    }

    /// The same for several plans. Their links go in one request, so that a thousand cost little more
    /// than one.
    ///
    /// # Errors
    /// As [`Host::undo`].
    pub fn undo_all<'a>(&mut self, plans: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut entries = Vec::new();
        for plan in plans {
            entries.extend(self.journal.entries_of(plan).rev().cloned());
        }
        let mut problems = Vec::new();
        problems.extend(self.remove_links(&entries).err());
        problems.extend(self.undo_entries(entries).err());
        Error::all(problems)
    }

    /// Removes the links of several entries at once: they leave the owner's group for one that has
    /// nothing else. Until they are gone their aliases say whose they are.
    fn remove_links(&mut self, entries: &[Entry]) -> Result<()> {
        let names: BTreeSet<&str> = entries.iter().filter_map(|it| it.step.makes_link()).collect();
        if names.len() < 2 {
            return Ok(());
        }
        let leaving = self.owner.group() | LEAVING;
        let kernel = self.kernel.here()?;
        let links = kernel.links()?;
        if links.iter().any(|link| link.group == leaving) {
            // Somebody else's: then they go one by one.
            return Ok(());
        }
        for link in links.iter().filter(|link| names.contains(link.name.as_str())) {
            if link.alias.is_some() && self.owner.owns(link) {
                gone_is_done(kernel.change_link(link.index, &LinkChange::new().group(leaving)))?;
            }
        }
        kernel.remove_group(leaving)
    }

    /// Undoes everything of this owner: what the journal has, and links and tables that carry the
    /// owner's mark and that no journal knows. All links go in one request, so that a thousand cost little
    /// more than one.
    ///
    /// # Errors
    /// [`Error::Several`]: what could not be undone.
    pub fn recover(&mut self) -> Result<()> {
        // Addresses and ports that are lent come back first: their links still lead to ours.
        let entries: Vec<Entry> = self.journal.entries().rev().cloned().collect();
        let (lent, rest): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| matches!(entry.step, Step::Move { .. } | Step::Join { .. }));
        let mut problems = Vec::new();
        problems.extend(self.undo_entries(lent).err());
        problems.extend(self.sweep().err());
        problems.extend(self.undo_entries(rest).err());
        Error::all(problems)
    }

    fn undo_entries(&mut self, entries: Vec<Entry>) -> Result<()> {
        let mut problems = Vec::new();
        for entry in entries {
            let context = Context { owner: &self.owner, plan: &entry.plan, ledger: &self.ledger };
            let undone = entry.step.undo(&mut self.kernel, context, &entry.before);
            match undone.and_then(|()| self.journal.undone(entry.id)) {
                Ok(()) => tracing::debug!(owner = %self.owner, step = %entry.step, "undone"),
                Err(error) => problems.push(error),
            }
        }
        Error::all(problems)
    }

    /// Removes every link and table that carries this owner's mark.
    fn sweep(&mut self) -> Result<()> {
        let group = self.owner.group();
        let kernel = self.kernel.here()?;
        let links = kernel.links()?;
        let (ours, foreign): (Vec<_>, Vec<_>) =
            links.iter().partition(|link| self.owner.owns(link));
        // A whole group at once, if nobody else has put a link into it.
        if !foreign.iter().any(|link| link.group == group) {
            kernel.remove_group(group)?;
        }
        let mut problems = Vec::new();
        for link in ours {
            // It may be gone by now, or its number somebody else's.
            if let Some(link) = kernel.link_by_index(link.index)?
                && self.owner.owns(&link)
            {
                problems.extend(kernel.remove_link(link.index).err());
            }
        }
        if self.kernel.features.nftables {
            let mark = self.owner.mark();
            let kernel = self.kernel.nftables()?;
            for found in kernel.tables()? {
                if found.comment.is_some_and(|comment| comment.starts_with(&mark)) {
                    let mut batch = Batch::new();
                    batch.remove_table(&found.table);
                    problems.extend(gone_is_done(kernel.commit(&batch)).err());
                }
            }
        }
        Error::all(problems)
    }

    /// Whether a link is as a plan has made it, or changed it, without asking the kernel about it: as a
    /// notice of a change tells. True if the plan is about no link of that name.
    ///
    /// # Errors
    /// The kernel cannot be asked where its bridge is.
    pub fn fits(&mut self, plan: &str, link: &Link) -> Result<bool> {
        for entry in self.journal.entries_of(plan) {
            if !entry.step.fits(&mut self.kernel, link)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks whether everything is as it was made, and makes right what is not.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn reconcile(&mut self) -> Result<Vec<Drift>> {
        let entries = self.journal.entries().cloned().collect();
        self.reconcile_entries(entries, Tables::Left)
    }

    /// The same for one plan.
    ///
    /// # Errors
    /// As [`Host::reconcile`].
    pub fn reconcile_plan(&mut self, plan: &str) -> Result<Vec<Drift>> {
        let entries = self.journal.entries_of(plan).cloned().collect();
        self.reconcile_entries(entries, Tables::Left)
    }

    /// The same for a plan whose tables nobody has changed since this process has made them: one that is gone is
    /// made again, with what was in it.
    ///
    /// # Errors
    /// As [`Host::reconcile`].
    pub fn restore_plan(&mut self, plan: &str) -> Result<Vec<Drift>> {
        let entries = self.journal.entries_of(plan).cloned().collect();
        self.reconcile_entries(entries, Tables::Remade)
    }

    fn reconcile_entries(&mut self, entries: Vec<Entry>, tables: Tables) -> Result<Vec<Drift>> {
        let mut drifts = Vec::new();
        for entry in entries.into_iter().filter(|entry| entry.done) {
            let context = Context { owner: &self.owner, plan: &entry.plan, ledger: &self.ledger };
            if entry.step.holds(&mut self.kernel, &entry.before)? {
                continue;
            }
            let repaired = match (&entry.step, tables) {
                (Step::Table { .. }, Tables::Left) => Ok(false),
                (step @ Step::Table { .. }, Tables::Remade) => {
                    step.make(&mut self.kernel, context, &entry.before).map(|()| true)
                }
                (step, _) => step.repair(&mut self.kernel, context, &entry.before).map(|()| true),
            };
            drifts.push(Drift { plan: entry.plan, step: entry.step, repaired });
        }
        Ok(drifts)
    }
}
