//! Whether the network answers in the place of others, as those do that want a login first (RFC 8952, section 1).

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};

use crate::portmap::http::status;
use crate::stun::{Source, names};
use crate::{CardId, Family};

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A page of which is known that its own server answers "no content" (204) and nothing else. Whoever gets another
/// answer is not talking to that server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalCheck {
    url: Uri,
    /// Host and port, as the URL has them.
    authority: String,
}

/// Reads `http://HOST[:PORT][/PATH]`: over HTTPS nobody can answer in the place of another.
impl FromStr for PortalCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let authority = url.authority().map(ToString::to_string);
        match (url.scheme_str(), authority) {
            (Some("http"), Some(authority)) if !authority.contains('@') => {
                Ok(Self { url, authority })
            }
            _ => Err(format!("{text:?} is not http://HOST[:PORT][/PATH]")),
        }
    }
}

impl fmt::Display for PortalCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl PortalCheck {
    /// Asks for the page. `None`: nobody answered.
    pub(super) async fn is_captive(&self, source: &Source, card: Option<&CardId>) -> Option<bool> {
        // That answer has no body (RFC 9110 section 15.3.5), and another's says nothing more.
        self.ask(source, card).await.ok().map(|status| status != StatusCode::NO_CONTENT)
    }

    async fn ask(&self, source: &Source, card: Option<&CardId>) -> io::Result<StatusCode> {
        let family = Family::of(source.address);
        let to = names::find(&self.authority, &[family], 80, card).await?;
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let request =
            Request::get(path).header(HOST, &self.authority).body(Full::<Bytes>::default());
        status(source, to, request.map_err(io::Error::other)?, PATIENCE).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_pages_can_tell() {
        for url in
            ["http://portal.test/204", "http://192.0.2.1:8080", "http://[2001:db8::1]:80/x?y"]
        {
            assert!(url.parse::<PortalCheck>().is_ok(), "{url}");
        }
        for url in ["https://portal.test/204", "portal.test/204", "http://", "http://a:b@c/", "/x"]
        {
            assert!(url.parse::<PortalCheck>().is_err(), "{url}");
        }
    }
}
