//! Who may ask, and how long a request may take to come in.

use std::net::{IpAddr, Ipv6Addr};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::timeout;

use super::refusal::Refusal;
use super::{MAX_BODY, PATIENCE, Shared};

/// From where a browser sends a request (Fetch Metadata Request Headers, section 2.2).
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What a program says where it has no token to show.
const OURS: HeaderName = HeaderName::from_static("x-netyard");

/// Lets a request pass that comes from where it says, and from somebody who has the token.
pub(super) async fn check(
    State(service): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let headers = request.headers();
    let host = single(headers, &HOST)?.unwrap_or_default();
    // A name that leads here may be anybody's, and so would be the page that asks (DNS rebinding).
    if !is_ours(host) {
        return Err(Refusal::forbidden(format!("the host {host:?} is no address of this service"))
            .next("ask for it by its address, or as localhost"));
    }
    if let Some(origin) = single(headers, &ORIGIN)?
        && origin.strip_prefix("http://") != Some(host)
    {
        return Err(Refusal::forbidden(format!("pages of {origin:?} may not use the service")));
    }
    // Browsers leave `Origin` out of what a page only embeds, but say from where it is.
    if let Some(site) = single(headers, &SITE)?
        && !matches!(site, "none" | "same-origin")
    {
        return Err(Refusal::forbidden(format!("pages of another place ({site}) may not use it")));
    }
    // A page cannot send this without being allowed to, and nobody here allows it.
    if service.options.token.is_none() && single(headers, &OURS)?.is_none() {
        return Err(Refusal::forbidden("there is no `X-Netyard` in the request, as pages send it")
            .next("send `X-Netyard: 1`, as the service was started without a token"));
    }
    if let Some(token) = &service.options.token {
        let shown = single(headers, &AUTHORIZATION)?.and_then(|it| it.split_once(' '));
        match shown {
            Some((scheme, shown)) if scheme.eq_ignore_ascii_case("bearer") => {
                if !is_same(shown.trim().as_bytes(), token.as_bytes()) {
                    return Err(Refusal::stranger("the token is another one"));
                }
            }
            _ => return Err(Refusal::stranger("there is no token")),
        }
    }
    Ok(next.run(request).await)
}

/// The only value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(|value| value.to_str()).transpose();
    match (value, values.next()) {
        (Ok(value), None) => Ok(value),
        _ => Err(Refusal::input("read the request", format!("{name} has to be there once"))),
    }
}

/// Whether a host, with its port or without, is an address or this machine's own name for itself.
fn is_ours(host: &str) -> bool {
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok() && (rest.is_empty() || rest.starts_with(':'));
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Compares in a time that does not tell where the difference is.
fn is_same(shown: &[u8], token: &[u8]) -> bool {
    shown.len() == token.len()
        && shown.iter().zip(token).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Has the body of a request there before it is looked at, whole and in time.
pub(super) async fn in_time(request: Request, next: Next) -> Result<Response, Refusal> {
    const WANTED: &str = "read the body of the request";
    let (head, body) = request.into_parts();
    let body = timeout(PATIENCE, to_bytes(body, MAX_BODY))
        .await
        .map_err(|_| {
            Refusal::late(WANTED, format!("it took longer than {} s", PATIENCE.as_secs()))
        })?
        .map_err(|_| {
            Refusal::too_large(WANTED, format!("it has more than {MAX_BODY} bytes, or broke off"))
        })?;
    Ok(next.run(Request::from_parts(head, Body::from(body))).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_localhost() {
        for ours in
            ["127.0.0.1", "127.0.0.1:12333", "[::1]", "[::1]:12333", "LocalHost:1", "10.0.0.2"]
        {
            assert!(is_ours(ours), "{ours}");
        }
        for foreign in
            ["", "evil.test", "evil.test:12333", "127.0.0.1.evil.test", "[::1]evil", "::1"]
        {
            assert!(!is_ours(foreign), "{foreign}");
        }
    }

    #[test]
    fn tokens_are_the_same_or_not() {
        assert!(is_same(b"abc", b"abc"));
        assert!(!is_same(b"abd", b"abc") && !is_same(b"ab", b"abc") && !is_same(b"", b"abc"));
    }
}
