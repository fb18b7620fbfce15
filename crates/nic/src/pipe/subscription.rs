//! Who gets which messages.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use regex::bytes::{Regex, RegexBuilder};

use super::queue::{End, Limits, Push, Queue};
use super::{Message, PipeError};

/// Which messages a subscription wants: those that have everything that is said here.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pattern: Option<Regex>,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl Filter {
    /// Every message.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Those that somewhere have this pattern: a regular expression over bytes, whose classes are those of
    /// ASCII.
    ///
    /// # Errors
    /// It is no regular expression.
    pub fn matching(mut self, pattern: &str) -> Result<Self, regex::Error> {
        self.pattern = Some(RegexBuilder::new(pattern).unicode(false).build()?);
        Ok(self)
    }

    /// Those from this address, whichever the port.
    #[must_use]
    pub fn from(mut self, address: IpAddr) -> Self {
        (self.address, self.port) = (Some(address.to_canonical()), None);
        self
    }

    /// Those from this address and port; port 0 is any.
    #[must_use]
    pub fn from_endpoint(self, endpoint: SocketAddr) -> Self {
        let port = Some(endpoint.port()).filter(|port| *port != 0);
        Self { port, ..self.from(endpoint.ip()) }
    }

    /// Whether it wants this message.
    #[must_use]
    pub fn wants(&self, message: &Message) -> bool {
        self.address.is_none_or(|address| message.from.ip().to_canonical() == address)
            && self.port.is_none_or(|port| message.from.port() == port)
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(&message.bytes))
    }
}

/// Messages that a filter wants, in a queue of their own. Ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
}

impl Subscription {
    /// Waits for the next message. `None`: there will be no more, as the other end is done or the pipe is
    /// closed.
    ///
    /// # Errors
    /// None came in time; the pipe has failed.
    pub async fn recv(&self, within: Duration) -> Result<Option<Message>, PipeError> {
        let timeout = PipeError::Timeout { what: "waiting for a message", after: within };
        match tokio::time::timeout(within, self.next()).await {
            Err(_) => Err(timeout),
            Ok(next) => next,
        }
    }

    /// The same, however long it takes.
    ///
    /// # Errors
    /// The pipe has failed.
    pub async fn next(&self) -> Result<Option<Message>, PipeError> {
        match std::future::poll_fn(|context| self.queue.poll_take(context)).await {
            Some(message) => Ok(Some(message)),
            None => match self.queue.reason() {
                Some(End::Failed(reason)) => Err(PipeError::Io(std::io::Error::other(reason))),
                _ => Ok(None),
            },
        }
    }

    /// How many messages were thrown away because nobody took them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    pub(super) fn failure(&self) -> Option<String> {
        match self.queue.reason() {
            Some(End::Failed(reason)) => Some(reason),
            _ => None,
        }
    }

    pub(super) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.queue.poll_take(context)
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.queue.poll_take(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

/// The subscriptions of a pipe.
#[derive(Debug, Default)]
pub(super) struct Hub {
    subscribers: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    list: Vec<(Filter, Arc<Queue>)>,
    end: Option<End>,
    /// What subscriptions that have gone threw away.
    dropped_before: u64,
}

impl Subscribers {
    /// Lets go of those that nobody reads any more.
    fn prune(&mut self) {
        let dropped_before = &mut self.dropped_before;
        self.list.retain(|(_, queue)| {
            let is_read = !queue.is_abandoned();
            if !is_read {
                *dropped_before += queue.dropped();
            }
            is_read
        });
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        // Nothing panics while it is locked.
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self, filter: Filter, limits: Limits) -> Subscription {
        let queue = Arc::new(Queue::new(limits));
        let mut subscribers = self.lock();
        if let Some(end) = &subscribers.end {
            queue.end(end.clone());
        }
        subscribers.prune();
        subscribers.list.push((filter, queue.clone()));
        Subscription { queue }
    }

    /// Gives a message to everyone who wants it.
    ///
    /// # Errors
    /// Somebody has no room, and wants the pipe to be closed then.
    pub(super) async fn publish(&self, message: &Message) -> Result<(), PipeError> {
        let wanting: Vec<_> = {
            let mut subscribers = self.lock();
            subscribers.prune();
            let wanting = subscribers.list.iter().filter(|(filter, _)| filter.wants(message));
            wanting.map(|(_, queue)| queue.clone()).collect()
        };
        for queue in wanting {
            match queue.push(message.clone()).await {
                Push::Taken | Push::Gone => {}
                Push::Full => return Err(PipeError::Closed),
            }
        }
        Ok(())
    }

    /// No more messages come.
    pub(super) fn end(&self, end: &End) {
        let mut subscribers = self.lock();
        subscribers.end.get_or_insert_with(|| end.clone());
        for (_, queue) in &subscribers.list {
            queue.end(end.clone());
        }
    }

    /// How many messages were thrown away, over all subscriptions.
    pub(super) fn dropped(&self) -> u64 {
        let subscribers = self.lock();
        let now: u64 = subscribers.list.iter().map(|(_, queue)| queue.dropped()).sum();
        now + subscribers.dropped_before
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pipe::queue::Policy;

    fn message(text: &'static str, from: &str) -> Message {
        let (from, to) = (from.parse().unwrap(), ([127, 0, 0, 1], 2).into());
        Message { bytes: Bytes::from_static(text.as_bytes()), from, to }
    }

    #[test]
    fn filters_look_at_bytes_and_at_who_sends() {
        let one = message("aÿbc 17", "192.0.2.1:5000");
        let wants = |filter: Filter| filter.wants(&one);
        assert!(wants(Filter::all()));
        assert!(wants(Filter::all().matching(r"^a\xc3.bc \d+$").unwrap()));
        assert!(!wants(Filter::all().matching("^b").unwrap()));
        assert!(wants(Filter::all().from("192.0.2.1".parse().unwrap())));
        assert!(wants(Filter::all().from("::ffff:192.0.2.1".parse().unwrap())));
        assert!(!wants(Filter::all().from("192.0.2.2".parse().unwrap())));
        assert!(wants(Filter::all().from_endpoint("192.0.2.1:5000".parse().unwrap())));
        assert!(!wants(Filter::all().from_endpoint("192.0.2.1:5001".parse().unwrap())));
        assert!(wants(Filter::all().from_endpoint("192.0.2.1:0".parse().unwrap())), "any port");
        let both = Filter::all().matching("17").unwrap().from("192.0.2.2".parse().unwrap());
        assert!(!wants(both));
        assert!(Filter::all().matching("(").is_err());
    }

    #[tokio::test]
    async fn everyone_gets_a_copy_until_they_leave() {
        let hub = Hub::default();
        let limits = Limits { messages: 1, ..Limits::new(Policy::DropOldest) };
        let all = hub.subscribe(Filter::all(), limits);
        let also = hub.subscribe(Filter::all(), limits);
        let some = hub.subscribe(Filter::all().matching("b").unwrap(), limits);
        for text in ["a", "b"] {
            hub.publish(&message(text, "192.0.2.1:1")).await.unwrap();
        }
        for subscription in [&all, &also, &some] {
            assert_eq!(subscription.next().await.unwrap().unwrap().bytes, "b");
        }
        assert_eq!((all.dropped(), some.dropped(), hub.dropped()), (1, 0, 2));
        drop(also);
        hub.publish(&message("c", "192.0.2.1:1")).await.unwrap();
        assert_eq!(hub.dropped(), 2, "of the one that left, too");
        for _ in 0..100 {
            drop(hub.subscribe(Filter::all().matching("never").unwrap(), limits));
        }
        assert!(hub.lock().list.len() <= 3, "those that are gone take no room");
        hub.end(&End::Failed("why".to_owned()));
        assert_eq!(all.next().await.unwrap().unwrap().bytes, "c");
        assert!(all.next().await.is_err_and(|error| error.to_string().contains("why")));
        let late = hub.subscribe(Filter::all(), limits);
        assert!(late.next().await.is_err());
    }
}
