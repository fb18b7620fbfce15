//! Why a request is not answered with what it wants.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::NicError;
use crate::pipe::PipeError;

/// An answer that says what was wanted, what was found and the next step.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    wanted: String,
    found: String,
    next: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, wanted: &str, found: impl ToString) -> Self {
        Self { status, kind, wanted: wanted.to_owned(), found: found.to_string(), next: None }
    }

    pub(super) fn next(self, next: &'static str) -> Self {
        Self { next: Some(next), ..self }
    }

    /// The request says something that cannot be.
    pub(super) fn input(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "input", wanted, found)
    }

    /// There is no such thing.
    pub(super) fn unknown(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown", wanted, found)
    }

    /// The state does not allow it.
    pub(super) fn conflict(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", wanted, found)
    }

    /// It was there, and is no more.
    pub(super) fn gone(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::GONE, "gone", wanted, found)
    }

    /// It took too long.
    pub(super) fn late(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timed-out", wanted, found)
    }

    /// There is too much of it.
    pub(super) fn too_large(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "input", wanted, found)
    }

    /// Nobody knows who asks.
    pub(super) fn stranger(found: impl ToString) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "not-permitted", "use the service", found).next(
            "send `Authorization: Bearer TOKEN` with the token that the service was started with",
        )
    }

    /// Whoever asks may not.
    pub(super) fn forbidden(found: impl ToString) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not-permitted", "use the service", found)
    }

    pub(super) fn method() -> Self {
        let found = "that path has other methods";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "input", "answer the request", found)
    }

    /// The network, or who is there, does not let it be.
    pub(super) fn network(wanted: &str, found: impl ToString) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "system", wanted, found)
    }

    pub(super) fn card(wanted: &str, error: &NicError) -> Self {
        match error {
            NicError::NotFound { .. } | NicError::NoDefault { .. } | NicError::NoRoute { .. } => {
                Self::unknown(wanted, error)
            }
            NicError::NotOnCard { .. } => Self::input(wanted, error),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "system", wanted, error),
        }
    }

    pub(super) fn pipe(wanted: &str, error: &PipeError) -> Self {
        match error {
            PipeError::Nic(error) => Self::card(wanted, error),
            PipeError::Timeout { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "timed-out", wanted, error)
            }
            PipeError::Closed => Self::gone(wanted, error),
            PipeError::TooLarge { .. } => Self::too_large(wanted, error),
            PipeError::NoClient(_) | PipeError::Bind(_) => Self::conflict(wanted, error),
            PipeError::Misuse(_) => Self::input(wanted, error),
            _ => Self::network(wanted, error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, kind, wanted, found, next } = self;
        let body = json!({ "kind": kind, "wanted": wanted, "found": found, "next": next });
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert("www-authenticate", challenge);
        }
        response
    }
}
