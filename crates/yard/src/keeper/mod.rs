//! The keeper: the process that brings a yard up, looks after it and takes it down.
//!
//! One thread: instances die with the thread that made them, so everything runs on the main one.
//! See `state` for what is kept and `supervisor` for one instance.

mod attach;
mod background;
mod cable;
mod changes;
mod files;
mod joined;
mod namespace;
mod network;
mod output;
mod probe;
mod run;
mod stack;
mod state;
mod status;
mod summary;
mod supervisor;
mod up;

use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

pub use self::attach::attach;
pub use self::background::{VERB, main};
pub(crate) use self::namespace::{Foreign, Made, keep_namespace};
pub use self::run::{RunOptions, run};
use self::state::Keeper;
use self::summary::Show;
use self::up::just_started;
pub use self::up::{UpOptions, up};
use crate::address;
use crate::api::{Applied, Down};
use crate::error::{ErrorKind, YardError};
use crate::file;
use crate::instance::Inside;
use crate::journal;
use crate::model::Yard;
use crate::path_socket::PathSocket;
use crate::runtime::Runtime;
use crate::server::{self, Ask, Change};

/// A yard that is about to be kept.
struct Keep {
    runtime: Runtime,
    yard: Yard,
    /// Whether the program has our terminal.
    attached: bool,
    /// What is shown meanwhile.
    show: Show,
    /// What goes into the namespace of somebody else, if such an instance is in the yard.
    inside: Option<Inside>,
    /// One more socket of the control API.
    control: Option<PathSocket>,
}

impl Keep {
    /// A yard that is kept by its own socket alone.
    fn new(runtime: Runtime, yard: Yard, attached: bool, show: Show) -> Self {
        Self { runtime, yard, attached, show, inside: None, control: None }
    }

    /// Brings the yard up, calls `started`, keeps it until it is asked down or `until` is over,
    /// and takes it down. What `until` said, if it came to that: a signal may come before.
    ///
    /// # Errors
    /// The yard cannot be brought up; then nothing of it is left.
    fn run<T>(
        self,
        started: impl FnOnce(),
        until: impl AsyncFnOnce(Rc<Keeper>, StopSignals) -> T,
    ) -> Result<Option<T>, YardError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| YardError::io("start a runtime", &error))?;
        LocalSet::new().block_on(&runtime, self.keep(started, until))
    }

    async fn keep<T>(
        self,
        started: impl FnOnce(),
        until: impl AsyncFnOnce(Rc<Keeper>, StopSignals) -> T,
    ) -> Result<Option<T>, YardError> {
        let Self { runtime, yard, attached, show, inside, control } = self;
        let failed = |error: io::Error| YardError::io(format!("bring up {}", yard.name), &error);
        // From here on a signal ends us in order.
        let mut signals = StopSignals::take().map_err(failed)?;
        let Some(folder) = runtime.claim(&yard.name)? else { return Err(just_started(&yard.name)) };
        runtime.sweep();
        // Whatever a keeper that was killed has left.
        let killed = journal::clean(folder.path()).map_err(failed)?;
        if killed > 0 {
            tracing::warn!(killed, "processes of a keeper that was killed were left");
        }
        folder.clear().map_err(failed)?;
        let listener = server::listen(&folder.socket()).map_err(failed)?;
        let keeper = Rc::new(Keeper::new(runtime, folder, &yard, attached, inside));

        let (asks, mut taken) = mpsc::channel(server::WAITING_ASKS);
        let mut tasks = JoinSet::new();
        if let Some(control) = &control {
            let listener = server::share(control.as_fd()).map_err(failed)?;
            tasks.spawn(server::serve(listener, asks.clone()));
        }
        tasks.spawn(server::serve(listener, asks));
        tasks.spawn_local(Rc::clone(&keeper).look_after());
        let (down, mut downs) = mpsc::channel(1);
        let answering = Rc::clone(&keeper);
        tasks.spawn_local(async move {
            while let Some(ask) = taken.recv().await {
                tokio::task::spawn_local(answer(Rc::clone(&answering), ask, down.clone()));
            }
        });

        let outcome = match bring_up(&keeper, yard, &mut signals).await {
            Ok(()) => {
                started();
                tasks.spawn_local(summary::show(Rc::clone(&keeper), show));
                tokio::select! {
                    said = until(Rc::clone(&keeper), signals) => Ok(Some(said)),
                    _ = downs.recv() => Ok(None),
                }
            }
            Err(error) => Err(error),
        };
        keeper.end().await;
        tasks.shutdown().await;
        outcome
    }
}

/// Makes everything, unless a signal comes before it is done.
async fn bring_up(keeper: &Keeper, yard: Yard, signals: &mut StopSignals) -> Result<(), YardError> {
    let name = yard.name.clone();
    let applying = async {
        keeper.apply(yard).await?;
        keeper.settled().await;
        Ok(())
    };
    tokio::pin!(applying);
    tokio::select! {
        applied = &mut applying => return applied,
        _ = signals.next() => keeper.give_up(),
    }
    // The step that was begun is finished, so that it can be undone like the others.
    applying.await?;
    Err(interrupted(&name))
}

/// A signal came before a yard was up.
fn interrupted(yard: &str) -> YardError {
    YardError::new(ErrorKind::Conflict, format!("bring up {yard}"), "it was interrupted")
}

/// Answers what the control API asks.
async fn answer(keeper: Rc<Keeper>, ask: Ask, down: mpsc::Sender<()>) {
    // Whoever asked may have gone, which changes nothing.
    match ask {
        Ask::Yard(answer) => drop(answer.send(Ok(keeper.status().await))),
        Ask::Instances(answer) => drop(answer.send(Ok(keeper.instance_statuses()))),
        Ask::Services(answer) => {
            let states = keeper.service_states().await;
            drop(answer.send(Ok(keeper.service_statuses(&states))));
        }
        Ask::Forwards(answer) => drop(answer.send(Ok(keeper.forward_statuses().await))),
        Ask::Forward { forward, wanted: true, answer } => {
            drop(answer.send(keeper.add_forward(forward).await));
        }
        Ask::Forward { forward, wanted: false, answer } => {
            drop(answer.send(keeper.remove_forward(forward).await));
        }
        Ask::Networks(answer) => drop(answer.send(Ok(keeper.network_states().await))),
        Ask::Change { instance, change, answer } => {
            let changed = change_instance(&keeper, &instance, change).await;
            let status = changed.and_then(|()| {
                keeper.instance_status(&instance).ok_or_else(|| keeper.unknown(&instance))
            });
            drop(answer.send(status));
        }
        Ask::Log { instance, answer } => {
            drop(answer.send(keeper.log(&instance).ok_or_else(|| keeper.unknown(&instance))));
        }
        Ask::Apply { file, answer } => {
            let applied = match file::load(&file) {
                Ok(mut wanted) => {
                    address::keep(&mut wanted, &keeper.yard());
                    keeper.apply(wanted).await.map(|steps| Applied { steps })
                }
                Err(error) => Err(error),
            };
            drop(answer.send(applied));
        }
        Ask::Down(answer) => {
            drop(answer.send(Ok(Down { keeper_pid: std::process::id() })));
            // One is enough.
            let _ = down.try_send(());
        }
        Ask::Wait { within, answer } => drop(answer.send(Ok(keeper.wait(within).await))),
    }
}

async fn change_instance(keeper: &Keeper, name: &str, change: Change) -> Result<(), YardError> {
    if matches!(change, Change::Stop | Change::Restart) {
        keeper.stop(name).await?;
    }
    if matches!(change, Change::Start | Change::Restart) {
        keeper.start(name).await?;
    }
    Ok(())
}

/// The signals that ask a keeper to stop.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Takes the signals over.
    fn take() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one: whether it was an interrupt.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => false,
            _ = self.hangup.recv() => false,
        }
    }
}
