//! Whose turn it is to send.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::WriteHalf;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use super::PipeError;
use super::shared::Connection;
use crate::datagrams::Datagrams;

/// The way out of a socket.
#[derive(Debug)]
pub(super) enum Out {
    Stream(WriteHalf<Connection>),
    Datagrams(Arc<Datagrams>),
}

/// Who may send. Whoever sends a message has its turn until all of it is sent. Whoever writes bytes has one
/// for as long as a write takes the kernel, and holds nothing while the kernel has no room: a write that is
/// given up stops nobody.
#[derive(Debug)]
pub(super) struct Turns {
    /// `None`: it is closed.
    out: AsyncMutex<Option<Out>>,
    /// The one who writes bytes and waits: as that takes the pipe for itself, there is no other.
    writer: Mutex<Option<Waker>>,
}

impl Turns {
    pub(super) fn new(out: Option<Out>) -> Self {
        Self { out: AsyncMutex::new(out), writer: Mutex::default() }
    }

    /// Waits for a turn.
    pub(super) async fn next(&self) -> Turn<'_> {
        // Also where it is given up while it waits.
        let told = Told(self);
        Turn { out: self.out.lock().await, _told: told }
    }

    /// Does something with the way out of a stream, if it is nobody else's turn.
    pub(super) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut WriteHalf<Connection>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        // First this: a turn that ends behind the look is told.
        self.wait(Some(context.waker().clone()));
        let Ok(mut out) = self.out.try_lock() else { return Poll::Pending };
        let result = match out.as_mut() {
            Some(Out::Stream(writer)) => act(Pin::new(writer), context),
            Some(Out::Datagrams(_)) => Poll::Ready(Err(no_bytes())),
            None => Poll::Ready(Err(PipeError::Closed.into())),
        };
        if result.is_ready() {
            self.wait(None);
        }
        result
    }

    /// Has this one told when a turn ends; returns who was before.
    fn wait(&self, writer: Option<Waker>) -> Option<Waker> {
        // Nothing panics while it is locked.
        let mut waiting = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *waiting, writer)
    }
}

/// A turn to send, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    // Dropped in this order.
    pub(super) out: MutexGuard<'a, Option<Out>>,
    _told: Told<'a>,
}

/// Tells the writer that it may try again.
#[derive(Debug)]
struct Told<'a>(&'a Turns);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(writer) = self.0.wait(None) {
            writer.wake();
        }
    }
}

pub(super) fn no_bytes() -> io::Error {
    PipeError::Misuse("bytes are read and written over TCP; over UDP use messages").into()
}
