//! What can be set for TCP connections.

use std::io;
use std::time::Duration;

use super::TcpStream;

impl TcpStream {
    /// Lets small segments go at once (`TCP_NODELAY`), or not.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.change(|options| options.no_delay = nodelay)
    }

    /// `TCP_NODELAY`.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn nodelay(&self) -> io::Result<bool> {
        Ok(self.0.options()?.no_delay)
    }

    /// Acknowledges what comes next at once, or lets it wait for company (`TCP_QUICKACK`), for a while.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_quickack(&self, quick: bool) -> io::Result<()> {
        self.0.socket.call(|stack, _| stack.tcp_set_quick_ack(self.0.id(), quick))
    }

    /// `TCP_QUICKACK`: true in the beginning.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn quickack(&self) -> io::Result<bool> {
        self.0.socket.call(|stack, _| stack.tcp_quick_ack(self.0.id()))
    }

    /// Sets `SO_LINGER`: without time, closing resets the connection; with some, it waits so long for the
    /// other end to have everything, and holds up its thread.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.0.set_linger(linger)
    }

    /// Lets closing reset the connection.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_zero_linger(&self) -> io::Result<()> {
        self.0.set_linger(Some(Duration::ZERO))
    }

    /// `SO_LINGER`.
    ///
    /// # Errors
    /// None.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        Ok(self.0.linger())
    }

    /// Sets how many routers packets may pass.
    ///
    /// # Errors
    /// `InvalidInput`: not 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let hops = crate::host::hop_limit(ttl)?;
        self.0.change(|options| options.hop_limit = Some(hops))
    }

    /// How many routers packets may pass.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn ttl(&self) -> io::Result<u32> {
        Ok(crate::host::ttl(self.0.options()?.hop_limit))
    }
}
