//! The one bell of a keeper: something has changed, look again.

use std::rc::Rc;

use tokio::sync::watch;

/// Rings and hears the bell. What changed is seen where it is kept; rings that nobody has heard
/// yet are one ring.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    sender: Rc<watch::Sender<()>>,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self { sender: Rc::new(watch::Sender::new(())) }
    }

    /// Says that something has changed.
    pub(super) fn tell(&self) {
        self.sender.send_replace(());
    }

    /// Hears changes from now on.
    pub(super) fn listen(&self) -> watch::Receiver<()> {
        self.sender.subscribe()
    }
}
