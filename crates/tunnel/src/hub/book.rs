//! A network's database, as its hub uses it, and what to do while it does not answer.
//!
//! # Theory of operation
//!
//! Packets do not wait for the database: it is asked on another thread, one question after the other. A login is looked
//! up there. If that takes longer than [`PATIENCE`], because another program holds the database, or if it cannot be
//! used at all, nodes that are [`remembered`] come back without it, and others are told to come again. From then
//! on the book is *late*: nobody's login waits for it any more until it was written.
//!
//! What is to be in the database and may not be is [`unwritten`], and written when that is possible: who is here, and
//! deeds of the hub's own. So is each departure, and each login that came to nothing.
//!
//! The hub and the database do not see things happen at the same moment. A node may be turned out after the database has
//! let it in, and before the hub knows: then it is not let in ([`ousted`]).

mod ousted;
mod remembered;
mod unwritten;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::{task, time};

use self::ousted::Ousted;
use self::remembered::Remembered;
use self::unwritten::Unwritten;
use super::session::Entrant;
use crate::clock::now_ms;
use crate::error::{Blame, Error, Result};
use crate::login::Guest;
use crate::message::RejectCode;
use crate::relay::NodeId;
use crate::store::{Deed, Login, Node, Stamp, Store};

/// How long a login waits for the database.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// A login in the database: the node, and the exit that it has asked for, if that is one, unless the rest of what it says
/// could not be written. Or why it is not let in.
type Found = Result<(Node, Result<Option<Option<NodeId>>>), RejectCode>;

/// See the module.
pub(super) struct Book {
    store: Arc<Mutex<dyn Store>>,
    /// Whose turn it is; who waits for it can give up.
    turns: Arc<Semaphore>,
    is_late: Cell<bool>,
    remembered: RefCell<Remembered>,
    ousted: Ousted,
    unwritten: RefCell<Unwritten>,
    /// Something is to be written.
    came: Notify,
}

impl Book {
    pub(super) fn new(store: impl Store + 'static) -> Self {
        Self {
            store: Arc::new(Mutex::new(store)),
            turns: Arc::new(Semaphore::new(1)),
            is_late: Cell::new(false),
            remembered: RefCell::default(),
            ousted: Ousted::default(),
            unwritten: RefCell::default(),
            came: Notify::new(),
        }
    }

    /// Asks the database, away from the packets.
    ///
    /// # Errors
    /// What was asked cannot be done.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turn().await?;
        self.ask_in_turn(turn, work).await
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.turns).acquire_owned().await.map_err(broken)
    }

    async fn ask_in_turn<T: Send + 'static>(
        &self,
        turn: OwnedSemaphorePermit,
        work: impl FnOnce(&mut dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        let done = task::spawn_blocking(move || {
            // The turn is over when it is done, whether anybody waits for that or not.
            let _turn = turn;
            // A panic elsewhere left the database as it was before: changes are transactions.
            work(&mut *store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.map_err(broken)?
    }

    /// Whether logins do not wait for the database at the moment.
    pub(super) const fn is_late(&self) -> bool {
        self.is_late.get()
    }

    /// Lets a guest in, or says why not.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn log_in(
        self: &Rc<Self>,
        guest: &Guest,
        capacity: u32,
    ) -> Result<Entrant, RejectCode> {
        let ticket = self.ousted.ticket();
        if self.is_late()
            && let Some(entrant) = self.come_back(guest)
        {
            return Ok(entrant);
        }
        let mut asked = self.look_up(guest.clone(), capacity);
        let error = match time::timeout(PATIENCE, asked.answer()).await {
            Ok(Ok(found)) => {
                let (node, exit) = found?;
                let no_exit = matches!(exit, Ok(Some(None))).then_some(RejectCode::NoExit);
                if let Some(code) = ticket.verdict(node.id).or(no_exit) {
                    self.doubt(&node);
                    return Err(code);
                }
                match exit {
                    Ok(exit) => {
                        let Guest { names, by_udp, run, .. } = *guest;
                        let entrant = Entrant { node, exit: exit.flatten(), names, by_udp, run };
                        self.remembered.borrow_mut().insert(guest, &entrant);
                        return Ok(entrant);
                    }
                    Err(error) => {
                        self.doubt(&node);
                        error.to_string()
                    }
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                self.is_late.set(true);
                self.came.notify_one();
                format!("the database has not answered within {PATIENCE:?}")
            }
        };
        tracing::error!(error, peer = guest.name, "a login is not in the database");
        self.come_back(guest).ok_or(RejectCode::Busy)
    }

    /// Asks the database for a login.
    fn look_up(self: &Rc<Self>, guest: Guest, capacity: u32) -> Asked {
        let (mut answer, answered) = oneshot::channel();
        let book = Rc::clone(self);
        let epoch = self.remembered.borrow().epoch(&guest);
        task::spawn_local(async move {
            let turn = tokio::select! {
                turn = book.turn() => turn,
                // Nobody waits for it any more.
                () = answer.closed() => return,
            };
            let found = match turn {
                Ok(turn) => {
                    book.ask_in_turn(turn, move |store| enter(store, guest, (capacity, epoch)))
                        .await
                }
                Err(error) => Err(error),
            };
            if let Err(found) = answer.send(found) {
                book.came_to_nothing(&found);
            }
        });
        Asked { book: Rc::clone(self), answered }
    }

    /// Whoever was let in is not waited for any more, and not here by that.
    fn came_to_nothing(&self, found: &Result<Found>) {
        if let Ok(Ok((node, _))) = found {
            self.doubt(node);
        }
    }

    /// A node comes back as it is remembered.
    fn come_back(&self, guest: &Guest) -> Option<Entrant> {
        let entrant = self.remembered.borrow_mut().come_back(guest)?;
        self.doubt(&entrant.node);
        Some(entrant)
    }

    /// The remembered node of this name.
    pub(super) fn named(&self, name: &str) -> Option<NodeId> {
        self.remembered.borrow().named(name)
    }

    /// A node is not let in as it was before: whoever is about to be let in so is told this.
    pub(super) fn oust(&self, node: NodeId, code: RejectCode) {
        self.remembered.borrow_mut().forget(node);
        self.ousted.oust(node, code);
    }

    /// The database may not say the truth about whether a node is here.
    pub(super) fn doubt(&self, node: &Node) {
        self.unwritten.borrow_mut().doubt(node.id, node.epoch, now_ms());
        self.came.notify_one();
    }

    /// Something was done, which is written down when that is possible.
    pub(super) fn note(&self, action: &str, subject: &str, by: Stamp) {
        let (action, subject) = (action.to_owned(), subject.to_owned());
        let deed = Deed { at_ms: by.at_ms, who: by.who, action, subject };
        self.unwritten.borrow_mut().note(deed);
        self.came.notify_one();
    }

    /// Waits until something is to be written.
    pub(super) async fn came(&self) {
        self.came.notified().await;
    }

    /// Writes what is unwritten, with what is said now about who is here. True if the book was late until now.
    ///
    /// # Errors
    /// It is still unwritten.
    pub(super) async fn settle(&self, is_here: impl Fn(NodeId) -> bool) -> Result<bool> {
        let unwritten = self.unwritten.borrow().clone();
        if unwritten.is_empty() && !self.is_late() {
            return Ok(false);
        }
        let (presences, deeds) = unwritten.said(is_here);
        self.ask(move |store| store.keep_up(&presences, &deeds)).await?;
        self.unwritten.borrow_mut().written(&unwritten);
        Ok(self.is_late.replace(false))
    }
}

/// A login that the database is asked for.
struct Asked {
    book: Rc<Book>,
    answered: oneshot::Receiver<Result<Found>>,
}

impl Asked {
    /// Waits for the answer, which comes once.
    async fn answer(&mut self) -> Result<Found> {
        (&mut self.answered).await.unwrap_or_else(|error| Err(broken(error)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // None can come from now on; one may have.
        self.answered.close();
        if let Ok(found) = self.answered.try_recv() {
            self.book.came_to_nothing(&found);
        }
    }
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::new(Blame::System, "use the hub's database", error)
}

/// A login, in the database, after the one with this count.
fn enter(store: &mut dyn Store, guest: Guest, (capacity, epoch): (u32, u64)) -> Result<Found> {
    let Guest { key, name, token, subnets, exit, .. } = guest;
    let login = Login { key: &key, name: &name, token, capacity, epoch, now_ms: now_ms() };
    let node = match store.login(&login)? {
        Ok(node) => node,
        Err(code) => return Ok(Err(code)),
    };
    let exit = store
        .offer(node.id, &subnets)
        .and_then(|()| exit.map(|name| store.exit(&name)).transpose());
    Ok(Ok((node, exit)))
}

#[cfg(test)]
mod tests;
