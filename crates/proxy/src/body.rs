//! Bodies, passed on piece by piece.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::front::{Front, UnderWay};
use crate::pool::Connection;
use crate::turns::Held;

/// The body of a request to an instance: the client's, or none.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Client(Incoming),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body) => body.size_hint(),
        }
    }
}

/// The body of a response to a client.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    content: Content,
    /// The request is under way for as long.
    under_way: UnderWay,
}

#[derive(Debug)]
enum Content {
    /// Ours, or nothing.
    Own(Option<Bytes>),
    /// An instance's.
    Instance { body: Incoming, lease: Option<Lease> },
}

/// What a response holds until it is complete.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) front: Arc<Front>,
    pub(crate) connection: Connection,
    pub(crate) held: Held,
}

impl Lease {
    /// The response is complete: the connection can be used again.
    fn give_back(self) {
        let Self { front, connection, held } = self;
        front.pool().put(held.key(), connection);
    }
}

impl ResponseBody {
    /// A body of our own.
    pub(crate) fn own(text: String, under_way: UnderWay) -> Self {
        let text = (!text.is_empty()).then(|| text.into());
        Self { content: Content::Own(text), under_way }
    }

    /// The body of an instance's response.
    pub(crate) fn of_instance(body: Incoming, lease: Lease, under_way: UnderWay) -> Self {
        let mut content = Content::Instance { body, lease: Some(lease) };
        content.note_end();
        Self { content, under_way }
    }
}

impl Content {
    /// Gives back what is held if there is no more to come. Nobody asks again then.
    fn note_end(&mut self) {
        if let Self::Instance { body, lease } = self
            && body.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let (body, lease) = match &mut this.content {
            Content::Own(text) => {
                return Poll::Ready(text.take().map(|text| Ok(Frame::data(text))));
            }
            Content::Instance { body, lease } => (body, lease),
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => this.content.note_end(),
            Some(Err(_)) => {
                // What the client has got is not everything, and it must see that.
                *lease = None;
                this.under_way.broke_off();
            }
            None => {
                if let Some(lease) = lease.take() {
                    lease.give_back();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_none(),
            Content::Instance { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => {
                let len = text.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(len).unwrap_or(u64::MAX))
            }
            Content::Instance { body, .. } => body.size_hint(),
        }
    }
}
