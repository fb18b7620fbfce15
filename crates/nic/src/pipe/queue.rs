//! Bounded queues of messages, with what happens when one is full.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use super::Message;

/// What happens to messages for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The oldest ones are thrown away and counted: what is newest matters. For datagrams.
    DropOldest,
    /// Nothing more is read until there is room, so that the other end has to wait. For streams, of which no
    /// part may be missing.
    Wait,
    /// The pipe is closed.
    Close,
}

/// How much a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages, at least one.
    pub messages: usize,
    /// Bytes of messages. A larger one is taken where the queue is empty.
    pub bytes: usize,
    /// What happens when it is full.
    pub policy: Policy,
}

impl Limits {
    /// 1,024 messages of 4 MiB together.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        Self { messages: 1024, bytes: 4 << 20, policy }
    }
}

/// Why there will be no more messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The other end is done, or the pipe was closed here.
    Closed,
    /// Something went wrong.
    Failed(String),
}

/// What came of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Push {
    Taken,
    /// Nobody reads any more.
    Gone,
    /// There is no room, and the pipe has to be closed.
    Full,
}

/// A queue between those who bring messages and those who take them.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    state: Mutex<State>,
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: usize,
    end: Option<End>,
    dropped: u64,
    abandoned: bool,
    wakers: Vec<Waker>,
}

impl State {
    fn fits(&self, message: &Message, limits: Limits) -> bool {
        self.messages.is_empty()
            || (self.messages.len() < limits.messages
                && self.bytes.saturating_add(message.bytes.len()) <= limits.bytes)
    }

    fn put(&mut self, message: Message) {
        self.bytes += message.bytes.len();
        self.messages.push_back(message);
        self.wake();
    }

    fn take(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.bytes.len();
        Some(message)
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default(), room: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a message; waits for room if that is the policy.
    pub(super) async fn push(&self, message: Message) -> Push {
        loop {
            let mut room = pin!(self.room.notified());
            // From here on no notice is missed.
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.end.is_some() {
                    return Push::Gone;
                }
                if self.limits.policy == Policy::DropOldest {
                    while !state.fits(&message, self.limits) {
                        state.take();
                        state.dropped += 1;
                    }
                }
                if state.fits(&message, self.limits) {
                    state.put(message);
                    return Push::Taken;
                }
                if self.limits.policy == Policy::Close {
                    state.dropped += 1;
                    return Push::Full;
                }
            }
            room.await;
        }
    }

    /// Takes a message; `None`: there will be no more.
    pub(super) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut state = self.state();
        if let Some(message) = state.take() {
            drop(state);
            self.room.notify_waiters();
            return Poll::Ready(Some(message));
        }
        if state.end.is_some() {
            return Poll::Ready(None);
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// No more messages come; what is there can still be taken.
    pub(super) fn end(&self, end: End) {
        let mut state = self.state();
        state.end.get_or_insert(end);
        state.wake();
        drop(state);
        self.room.notify_waiters();
    }

    /// Nobody takes messages any more.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.messages.clear();
        state.bytes = 0;
        state.abandoned = true;
        drop(state);
        self.end(End::Closed);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.state().abandoned
    }

    /// Why it has ended.
    pub(super) fn reason(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// How many messages were thrown away.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn message(text: &'static str) -> Message {
        let [from, to] = [1, 2].map(|port| ([127, 0, 0, 1], port).into());
        Message { bytes: Bytes::from_static(text.as_bytes()), from, to }
    }

    async fn take(queue: &Queue) -> Option<String> {
        let message = poll_fn(|context| queue.poll_take(context)).await?;
        Some(String::from_utf8(message.bytes.to_vec()).unwrap())
    }

    fn of(messages: usize, bytes: usize, policy: Policy) -> Arc<Queue> {
        Arc::new(Queue::new(Limits { messages, bytes, policy }))
    }

    #[tokio::test]
    async fn the_oldest_go_and_are_counted() {
        for (messages, bytes) in [(2, 1000), (1000, 2)] {
            let queue = of(messages, bytes, Policy::DropOldest);
            for text in ["1", "2", "3", "4"] {
                assert_eq!(queue.push(message(text)).await, Push::Taken);
            }
            assert_eq!(queue.dropped(), 2);
            queue.end(End::Closed);
            assert_eq!(take(&queue).await.as_deref(), Some("3"));
            assert_eq!(take(&queue).await.as_deref(), Some("4"));
            assert_eq!(take(&queue).await, None);
            assert_eq!(queue.push(message("5")).await, Push::Gone);
        }
    }

    #[tokio::test]
    async fn those_who_bring_wait_for_room() {
        let queue = of(1, 1000, Policy::Wait);
        let bringing = tokio::spawn({
            let queue = queue.clone();
            async move {
                for text in ["1", "2", "3"] {
                    assert_eq!(queue.push(message(text)).await, Push::Taken);
                }
                queue.push(message("4")).await
            }
        });
        for text in ["1", "2", "3"] {
            assert_eq!(take(&queue).await.as_deref(), Some(text));
        }
        queue.abandon();
        // It came before the reader left, or found that it had.
        assert!(matches!(bringing.await.unwrap(), Push::Taken | Push::Gone));
        assert_eq!((take(&queue).await, queue.dropped()), (None, 0));
    }

    #[tokio::test]
    async fn a_full_queue_may_close_the_pipe() {
        let queue = of(1, 1000, Policy::Close);
        assert_eq!(queue.push(message("1")).await, Push::Taken);
        assert_eq!(queue.push(message("2")).await, Push::Full);
        assert_eq!(queue.dropped(), 1);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_queue_passes_alone() {
        let queue = of(8, 2, Policy::Wait);
        assert_eq!(queue.push(message("large")).await, Push::Taken);
        assert_eq!(take(&queue).await.as_deref(), Some("large"));
    }
}
