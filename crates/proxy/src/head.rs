//! The heads of requests and responses, as they are passed on.
//!
//! What belongs to one connection (RFC 9110 section 7.6.1) ends here; what a client is and what it
//! asked for is added. Everything else is passed on as it came, `Host` and trailers among it.

use std::net::IpAddr;

use hyper::header::{
    self, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    UPGRADE,
};
use hyper::http::request;
use hyper::http::uri::PathAndQuery;
use hyper::{Uri, Version};

/// The longest head of a message, bytes.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most fields of a head.
pub(crate) const MAX_FIELDS: usize = 128;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields that belong to one connection, whether `Connection` names them or not.
const HOP_BY_HOP: [HeaderName; 7] = [
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    TE,
    header::TRANSFER_ENCODING,
    UPGRADE,
];

/// Makes the head of a client's request that of the request to an instance. Returns the protocol
/// that the client wants to change to.
pub(crate) fn forward_request(
    head: &mut request::Parts,
    client: IpAddr,
    service: &str,
) -> Option<HeaderValue> {
    let version = std::mem::replace(&mut head.version, Version::HTTP_11);
    let upgrade = wanted_protocol(&head.headers).filter(|_| version == Version::HTTP_11);
    let trailers = head.headers.get(TE).is_some_and(|te| has_token(te, "trailers"));
    strip(&mut head.headers);
    // We answer that ourselves, when the instance wants the body.
    head.headers.remove(EXPECT);
    if trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = &upgrade {
        ask_for(&mut head.headers, protocol);
    }
    if version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    let uri = std::mem::take(&mut head.uri).into_parts();
    // RFC 9112 section 3.2.2: what stands in the request line counts.
    let authority = uri.authority.and_then(|it| HeaderValue::try_from(it.as_str()).ok());
    if let Some(host) = authority {
        head.headers.insert(HOST, host);
    }
    let path = uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from(path);
    let host = match head.headers.get(HOST) {
        Some(host) => Some(host.clone()),
        None => {
            if let Ok(host) = HeaderValue::try_from(service) {
                head.headers.insert(HOST, host);
            }
            None
        }
    };
    tell_client(&mut head.headers, client, host);
    upgrade
}

/// Makes the head of an instance's response that of the response to the client. `length_known`:
/// the body is exactly as long as the head says.
pub(crate) fn forward_response(headers: &mut HeaderMap, length_known: bool) {
    strip(headers);
    if !length_known {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Puts the fields of a change of protocol into a head.
pub(crate) fn ask_for(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

/// The protocol that a head wants to change to, but for HTTP/2, which is spoken without.
fn wanted_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let connection = headers.get_all(CONNECTION).iter();
    let wanted = connection.into_iter().any(|value| has_token(value, "upgrade"));
    (wanted && !has_token(protocol, "h2c")).then(|| protocol.clone())
}

/// True if a list has this element, letter case and parameters ignored.
fn has_token(list: &HeaderValue, token: &str) -> bool {
    let elements = list.to_str().unwrap_or_default().split(',');
    let mut names = elements.map(|element| element.split(';').next().unwrap_or_default().trim());
    names.any(|name| name.eq_ignore_ascii_case(token))
}

/// Removes what belongs to one connection.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let lists = headers.get_all(CONNECTION).iter().filter_map(|list| list.to_str().ok());
        let named: Vec<HeaderName> = lists
            .flat_map(|list| list.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            .filter(|name| *name != HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// RFC 9113 section 8.2.3: HTTP/2 may send a cookie in pieces, HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..]))
    {
        headers.insert(COOKIE, whole);
    }
}

/// Adds the client's address to the list of those before it; and what it asked for, unless a proxy
/// before us has said that.
fn tell_client(headers: &mut HeaderMap, client: IpAddr, host: Option<HeaderValue>) {
    let mut route = String::new();
    for before in headers.get_all(X_FORWARDED_FOR) {
        if let Ok(before) = before.to_str() {
            route.push_str(before);
            route.push_str(", ");
        }
    }
    route.push_str(&client.to_canonical().to_string());
    if let Ok(route) = HeaderValue::try_from(route) {
        headers.insert(X_FORWARDED_FOR, route);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = host
        && !headers.contains_key(X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn forwarded(request: request::Builder) -> (request::Parts, Option<HeaderValue>) {
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let upgrade = forward_request(&mut head, [192, 0, 2, 7].into(), "web");
        (head, upgrade)
    }

    fn field<'a>(head: &'a request::Parts, name: &str) -> Option<&'a str> {
        head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn what_belongs_to_one_connection_is_removed() {
        let (head, upgrade) = forwarded(
            Request::get("/a?b=c")
                .header("Host", "web.lan")
                .header("Connection", "keep-alive, X-Private, Host")
                .header("Keep-Alive", "timeout=5")
                .header("X-Private", "1")
                .header("X-Public", "2")
                .header("TE", "gzip")
                .header("Transfer-Encoding", "chunked")
                .header("Proxy-Authorization", "Basic x")
                .header("Upgrade", "websocket")
                .header("Expect", "100-continue"),
        );
        assert_eq!(upgrade, None);
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-public"];
        assert_eq!(names, expected);
        assert_eq!(
            (head.uri.to_string(), field(&head, "host")),
            ("/a?b=c".into(), Some("web.lan"))
        );
    }

    #[test]
    fn the_client_is_told_behind_those_before_it() {
        let (head, _) = forwarded(Request::get("/").header("Host", "web.lan:8080"));
        assert_eq!(field(&head, "x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(field(&head, "x-forwarded-proto"), Some("http"));
        assert_eq!(field(&head, "x-forwarded-host"), Some("web.lan:8080"));
        let (head, _) = forwarded(
            Request::get("/")
                .header("X-Forwarded-For", "203.0.113.1")
                .header("X-Forwarded-For", "203.0.113.2, 203.0.113.3")
                .header("X-Forwarded-Proto", "https")
                .header("X-Forwarded-Host", "example.org"),
        );
        let route = "203.0.113.1, 203.0.113.2, 203.0.113.3, 192.0.2.7";
        assert_eq!(field(&head, "x-forwarded-for"), Some(route));
        assert_eq!(field(&head, "x-forwarded-proto"), Some("https"));
        assert_eq!(field(&head, "x-forwarded-host"), Some("example.org"));
        assert_eq!(field(&head, "host"), Some("web"), "HTTP/1.1 wants one");
    }

    #[test]
    fn ipv4_clients_of_ipv6_sockets_are_shown_as_ipv4() {
        let (mut head, ()) = Request::get("/").body(()).unwrap().into_parts();
        forward_request(&mut head, "::ffff:192.0.2.7".parse().unwrap(), "web");
        assert_eq!(field(&head, "x-forwarded-for"), Some("192.0.2.7"));
    }

    #[test]
    fn the_request_line_says_which_host_is_meant() {
        let (head, _) = forwarded(Request::get("http://a.lan:81/x").header("Host", "b.lan"));
        assert_eq!((head.uri.to_string(), field(&head, "host")), ("/x".into(), Some("a.lan:81")));
        let (head, _) = forwarded(Request::options("*"));
        assert_eq!(head.uri.to_string(), "*");
    }

    #[test]
    fn upgrades_are_passed_on_but_those_to_http2() {
        let asks = |connection, protocol| {
            forwarded(
                Request::get("/").header("Connection", connection).header("Upgrade", protocol),
            )
        };
        let (head, upgrade) = asks("keep-alive, Upgrade", "websocket");
        assert_eq!(upgrade.unwrap(), "websocket");
        assert_eq!(field(&head, "connection"), Some("upgrade"));
        assert_eq!(field(&head, "upgrade"), Some("websocket"));
        let (head, upgrade) = asks("Upgrade, HTTP2-Settings", "h2c");
        assert_eq!((upgrade, field(&head, "upgrade")), (None, None));
        let (_, upgrade) = asks("keep-alive", "websocket");
        assert_eq!(upgrade, None, "not asked of us");
    }

    #[test]
    fn http2_requests_become_http1_requests() {
        let (head, _) = forwarded(
            Request::get("http://web.lan/x")
                .version(Version::HTTP_2)
                .header("TE", "trailers")
                .header("Cookie", "a=1")
                .header("Cookie", "b=2"),
        );
        assert_eq!(head.version, Version::HTTP_11);
        assert_eq!((head.uri.to_string(), field(&head, "host")), ("/x".into(), Some("web.lan")));
        assert_eq!(field(&head, "cookie"), Some("a=1; b=2"));
        assert_eq!(head.headers.get_all(COOKIE).iter().count(), 1);
        assert_eq!(field(&head, "te"), Some("trailers"));
    }

    #[test]
    fn a_length_that_is_not_the_bodys_is_removed() {
        let headers = || {
            let fields = [(CONTENT_LENGTH, "5"), (CONNECTION, "close"), (header::ETAG, "x")];
            fields.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter()
        };
        let mut known: HeaderMap = headers().collect();
        forward_response(&mut known, true);
        assert_eq!(known.len(), 2);
        let mut unknown: HeaderMap = headers().collect();
        forward_response(&mut unknown, false);
        assert_eq!(unknown.keys().collect::<Vec<_>>(), [header::ETAG]);
    }
}
