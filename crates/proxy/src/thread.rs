//! A thread with an event loop of its own.

use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;

/// A thread that runs what is given to it. Dropping it ends all of that at once.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: Handle,
    /// Dropped first: the thread ends.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// What the kernel said: out of descriptors or threads.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            // The other end is dropped, never used.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was told on standard error.
            let _ = thread.join();
        }
    }
}
