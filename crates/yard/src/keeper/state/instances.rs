//! Instances come and go, several at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::super::interrupted;
use super::super::output::Output;
use super::super::supervisor::Supervisor;
use super::Keeper;
use crate::error::{ErrorKind, YardError};
use crate::logs::Log;
use crate::model::{InstanceSpec, Need, Yard};
use crate::plan::Step;

/// How many instances are made at a time: each is a chain of waits for its init, for the network and for
/// the kernel, of which the processors see little.
const AT_ONCE: usize = 8;

impl Keeper {
    /// Makes instances, several at a time; their programs start when they have what they need. If one
    /// cannot be made, no more are begun, and the error is that of the first step that failed.
    pub(super) async fn start_instances(
        &self,
        steps: &[Step],
        wanted: &Yard,
    ) -> Result<(), YardError> {
        let specs = steps.iter().filter_map(Step::starts).filter_map(|it| wanted.instance(it));
        let mut left = specs.cloned().enumerate();
        let mut making = JoinSet::new();
        let mut failed = BTreeMap::new();
        loop {
            while failed.is_empty()
                && making.len() < AT_ONCE
                && let Some((number, spec)) = left.next()
            {
                let supervised = match self.giving_up.get() {
                    true => Err(interrupted(&wanted.name)),
                    false => self.supervise(&spec),
                };
                match supervised {
                    Err(error) => drop(failed.insert(number, error)),
                    Ok(supervisor) => drop(making.spawn_local(async move {
                        let made = supervisor.prepare().await;
                        if made.is_err() {
                            supervisor.end().await;
                        }
                        (number, spec, made)
                    })),
                }
            }
            // What was begun is finished, so that it can be undone like the others.
            let (number, spec, made) = match making.join_next().await {
                None => break,
                Some(Ok(made)) => made,
                Some(Err(error)) => {
                    let bug = YardError::new(ErrorKind::Bug, "make instances", error.to_string());
                    failed.insert(usize::MAX, bug);
                    continue;
                }
            };
            match made {
                Ok(()) => {
                    self.watch_instance(&spec, &self.reached.borrow().services);
                    self.pending.borrow_mut().insert(spec.name.clone());
                    self.reached.borrow_mut().instances.push(spec);
                    self.changes.tell();
                }
                Err(error) => {
                    self.supervisors.borrow_mut().remove(&spec.name);
                    failed.insert(number, error);
                }
            }
        }
        failed.into_values().next().map_or(Ok(()), Err)
    }

    /// Begins to look after an instance that is not there yet.
    fn supervise(&self, spec: &InstanceSpec) -> Result<Rc<Supervisor>, YardError> {
        let name = &spec.name;
        let links = spec
            .plugs
            .iter()
            .map(|plug| self.linked(&plug.network))
            .collect::<Result<Vec<_>, _>>()?;
        let folder = self.folder.instance(name)?;
        let output = if self.attached {
            Output::Ours
        } else {
            let log = Log::open(&folder)
                .map(Arc::new)
                .map_err(|error| YardError::io(format!("keep the log of {name}"), &error))?;
            self.logs.borrow_mut().insert(name.to_owned(), Arc::clone(&log));
            Output::Log(log)
        };
        let runtime = self.runtime.root().to_owned();
        let changes = self.changes.clone();
        let inside = spec.kind.namespace().and_then(|_| self.inside.take());
        let supervisor =
            Supervisor::new(spec.clone(), links, runtime, folder, output, changes, inside);
        let supervisor = Rc::new(supervisor);
        self.supervisors.borrow_mut().insert(name.clone(), Rc::clone(&supervisor));
        Ok(supervisor)
    }

    pub(super) async fn update_instance(
        &self,
        name: &str,
        wanted: &Yard,
        restart: bool,
    ) -> Result<(), YardError> {
        let Some(spec) = wanted.instance(name) else { return Ok(()) };
        let supervisor = self.known(name)?;
        supervisor.update(spec.clone()).await?;
        if let Some(known) =
            self.reached.borrow_mut().instances.iter_mut().find(|other| other.name == name)
        {
            known.clone_from(spec);
        }
        if restart {
            supervisor.stop().await?;
            self.pending.borrow_mut().insert(name.to_owned());
        }
        Ok(())
    }

    /// Stops instances, those first that no other of them is needed by; those of the same rank
    /// together.
    pub(super) async fn stop_instances(&self, steps: &[Step]) {
        let mut left: BTreeSet<&str> = steps
            .iter()
            .filter_map(|step| match step {
                Step::StopInstance { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let yard = self.yard();
        while !left.is_empty() {
            let needed: BTreeSet<&str> = left
                .iter()
                .filter_map(|name| yard.instance(name))
                .flat_map(|instance| needed_by(&yard, instance))
                .collect();
            let mut rank: Vec<&str> = left.difference(&needed).copied().collect();
            if rank.is_empty() {
                rank.extend(&left);
            }
            let mut ending = JoinSet::new();
            for name in rank {
                left.remove(name);
                self.pending.borrow_mut().remove(name);
                self.watches.borrow_mut().remove(name);
                if let Some(supervisor) = self.supervisors.borrow_mut().remove(name) {
                    ending.spawn_local(async move { supervisor.end().await });
                }
                self.reached.borrow_mut().instances.retain(|other| other.name != name);
            }
            while ending.join_next().await.is_some() {}
        }
        for step in steps {
            let Step::StopInstance { name, changes } = step else { continue };
            if changes.is_empty() {
                self.forget_instance(name);
            }
        }
    }

    /// An instance is not wanted any more: its log ends, for its readers too.
    fn forget_instance(&self, name: &str) {
        self.logs.borrow_mut().remove(name);
        self.eligible.borrow_mut().remove(name);
        self.folder.remove_instance(name);
    }
}

/// The instances that an instance needs.
fn needed_by<'y>(yard: &'y Yard, instance: &'y InstanceSpec) -> Vec<&'y str> {
    let mut names = Vec::new();
    for need in &instance.needs {
        match need {
            Need::Instance(name) => names.push(name.as_str()),
            Need::Service(name) => {
                let service = yard.service(name);
                names.extend(service.into_iter().flat_map(|it| &it.instances).map(String::as_str));
            }
        }
    }
    names.retain(|name| *name != instance.name);
    names
}
