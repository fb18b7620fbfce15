//! One request: whose turn it is, until an instance answers.
//!
//! A turn is taken for each instance that is tried. Within it the request goes over a connection
//! that is open already, and if that turns out dead, over a new one: an instance that closes quiet
//! connections loses no turn by that. What becomes of a request that could not be sent, or was not
//! answered, depends on how far it came:
//!
//! | | may be repeated | may not |
//! | --- | --- | --- |
//! | nothing was sent | again | again |
//! | sent, no byte of the answer came | again, once; then 502 | 502 |
//! | the answer has begun | breaks off | breaks off |
//!
//! Only once, because the request may be what ends instances: it is not to end all of them.
//!
//! A request may be repeated if its method is idempotent (RFC 9110 section 9.2.2) and it has no
//! body.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::http::{request, response};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};

use crate::body::{Lease, RequestBody, ResponseBody};
use crate::front::{Client, UnderWay};
use crate::head;
use crate::pool::Connection;
use crate::tunnel;
use crate::turns::{Held, Turn};

/// What came of sending a request to one instance.
enum Outcome {
    Answered(Connection, Response<Incoming>),
    /// The instance cannot have seen it. It is here again, to be sent to somebody else.
    Unsent(Request<RequestBody>),
    /// The instance may have seen it. It is here again, and may be repeated.
    Unanswered(Request<RequestBody>),
    /// It may have been seen, and cannot be repeated.
    Lost,
}

/// Answers a request of a client.
pub(crate) async fn answer(
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let under_way = client.begin(request.version());
    let (mut head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        let why = "this is no proxy for other hosts\n";
        return Ok(own(StatusCode::METHOD_NOT_ALLOWED, why.to_owned(), under_way));
    }
    let front = Arc::clone(client.front());
    let ours = head.extensions.remove::<OnUpgrade>();
    head.extensions.clear();
    let asked = head::forward_request(&mut head, client.asker().address, front.name());
    let body = if body.is_end_stream() { RequestBody::Empty } else { RequestBody::Client(body) };
    let repeatable = head.method.is_idempotent() && matches!(body, RequestBody::Empty);
    if body.size_hint().exact().is_none() {
        head.headers.remove(CONTENT_LENGTH);
    }
    let is_head = head.method == Method::HEAD;
    let spare = repeatable.then(|| head.clone());
    let mut request = Request::from_parts(head, body);
    let mut tried = Vec::new();
    let mut was_unanswered = false;
    loop {
        let Some(turn) = front.turns().next(client.asker(), &tried) else {
            return Ok(nobody(front.name(), tried.len(), under_way));
        };
        let mut held = Held::new(front.turns(), turn.key);
        let (connection, response) = match send(&client, &turn, request, spare.as_ref()).await {
            Outcome::Answered(connection, response) => (connection, response),
            Outcome::Unsent(again) => {
                held.failed();
                tried.push(turn.key);
                request = again;
                continue;
            }
            Outcome::Unanswered(again) if !was_unanswered => {
                held.failed();
                tried.push(turn.key);
                request = again;
                was_unanswered = true;
                continue;
            }
            Outcome::Unanswered(_) => {
                held.failed();
                let why = format!(
                    "two instances of {} that had the request ended the connection without an \
                     answer; it may be the cause, so it was not sent to a third\n",
                    front.name()
                );
                return Ok(own(StatusCode::BAD_GATEWAY, why, under_way));
            }
            Outcome::Lost => {
                held.failed();
                let why = format!(
                    "the instance of {} that had the request ended the connection without an \
                     answer; it may have been carried out, so it was not sent to another\n",
                    front.name()
                );
                return Ok(own(StatusCode::BAD_GATEWAY, why, under_way));
            }
        };
        held.opened();
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let theirs = head.extensions.remove::<OnUpgrade>();
            let (Some(_), Some(ours), Some(theirs)) = (asked, ours, theirs) else {
                let why = "the instance changes to a protocol that was not asked for\n";
                return Ok(own(StatusCode::BAD_GATEWAY, why.to_owned(), under_way));
            };
            return Ok(change_protocol(&client, head, ours, theirs, under_way));
        }
        let exact = body.size_hint().exact().is_some();
        let bodiless = is_head || head.status == StatusCode::NOT_MODIFIED;
        head::forward_response(&mut head.headers, exact || bodiless);
        head.version = hyper::Version::HTTP_11;
        let lease = Lease { front, connection, held };
        return Ok(Response::from_parts(head, ResponseBody::of_instance(body, lease, under_way)));
    }
}

/// Sends a request to the instance whose turn it is. `spare` is its head if it may be repeated.
async fn send(
    client: &Client,
    turn: &Turn,
    mut request: Request<RequestBody>,
    spare: Option<&request::Parts>,
) -> Outcome {
    let pool = client.front().pool();
    let mut kept = pool.take(turn.key, spare.is_none()).await;
    let mut was_sent = false;
    loop {
        let is_new = kept.is_none();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match pool.open(&turn.addresses).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, addresses = ?turn.addresses, "an instance is silent");
                    // An instance that closes quiet connections goes on to listen: this one has
                    // ended, maybe by the request.
                    return match was_sent {
                        true => Outcome::Unanswered(request),
                        false => Outcome::Unsent(request),
                    };
                }
            },
        };
        let mut failed = match connection.send(request).await {
            Ok(response) => return Outcome::Answered(connection, response),
            Err(failed) => failed,
        };
        request = match (failed.take_message(), spare) {
            (Some(unsent), _) => unsent,
            (None, Some(head)) => {
                was_sent = true;
                Request::from_parts(head.clone(), RequestBody::Empty)
            }
            (None, None) => return Outcome::Lost,
        };
        match (is_new, was_sent) {
            (false, _) => {}
            (true, true) => return Outcome::Unanswered(request),
            (true, false) => return Outcome::Unsent(request),
        }
    }
}

/// Answers that the protocol changes, and joins both ends.
fn change_protocol(
    client: &Arc<Client>,
    mut head: response::Parts,
    ours: OnUpgrade,
    theirs: OnUpgrade,
    under_way: UnderWay,
) -> Response<ResponseBody> {
    let protocol = head.headers.get(UPGRADE).cloned();
    head::forward_response(&mut head.headers, false);
    if let Some(protocol) = protocol {
        head::ask_for(&mut head.headers, &protocol);
    }
    tokio::spawn(tunnel::join(Arc::clone(client), ours, theirs));
    Response::from_parts(head, ResponseBody::own(String::new(), under_way))
}

/// No instance has answered.
fn nobody(service: &str, tried: usize, under_way: UnderWay) -> Response<ResponseBody> {
    if tried == 0 {
        let why = format!("no instance of {service} can be asked now\n");
        return own(StatusCode::SERVICE_UNAVAILABLE, why, under_way);
    }
    let why = format!("no instance of {service} has answered; tried: {tried}\n");
    own(StatusCode::BAD_GATEWAY, why, under_way)
}

/// An answer of our own.
fn own(status: StatusCode, text: String, under_way: UnderWay) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::own(text, under_way));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
