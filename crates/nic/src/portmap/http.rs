//! One HTTP request over a connection of its own, bound to a card. Answers are short.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::stun::{Source, stream};

/// Longest answer that is read, bytes; descriptions of devices have some thousands.
const MAX_BODY: usize = 256 * 1024;

/// Sends a request from `source`, and reads the answer, all of it within `patience`. `request` must have
/// its `Host`.
pub(crate) async fn exchange(
    source: &Source,
    to: SocketAddr,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> io::Result<(StatusCode, Vec<u8>)> {
    let read = async |answer: Response<Incoming>| {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
        Ok((status, body.map_err(io::Error::other)?.to_bytes().to_vec()))
    };
    converse(source, to, request, patience, read).await
}

/// The same for its status alone: what comes behind it is not read.
pub(crate) async fn status(
    source: &Source,
    to: SocketAddr,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> io::Result<StatusCode> {
    converse(source, to, request, patience, async |answer| Ok(answer.status())).await
}

async fn converse<T>(
    source: &Source,
    to: SocketAddr,
    request: Request<Full<Bytes>>,
    patience: Duration,
    read: impl AsyncFnOnce(Response<Incoming>) -> io::Result<T>,
) -> io::Result<T> {
    let work = async {
        let stream = stream::connect(source, to)
            .await
            .map_err(|failure| io::Error::other(failure.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let answer =
            async { read(sender.send_request(request).await.map_err(io::Error::other)?).await };
        tokio::pin!(answer, connection);
        // The connection moves what the answer waits for.
        tokio::select! {
            answer = &mut answer => answer,
            ended = &mut connection => {
                ended.map_err(io::Error::other)?;
                answer.await
            }
        }
    };
    tokio::time::timeout(patience, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
