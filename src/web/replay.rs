//! HTTP responses as stored ones, and back.

use bytes::Bytes;
use http::header::{self, CACHE_CONTROL, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use crate::error::{Error, ErrorKind, Result};
use crate::operation::response::Response as Stored;

/// What is stored of a response's headers unless a route adds to it: what describes the body and
/// where it is.
const KEPT: [HeaderName; 9] = [
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LINK,
    header::LOCATION,
];

/// What is never stored, whatever a route says: hop-by-hop (RFC 9110, section 7.6.1), credentials and
/// cookies, what is made anew for every answer, and what belongs to one exchange.
const NEVER: [&str; 39] = [
    "age",
    "alt-svc",
    "authentication-info",
    "authorization",
    "baggage",
    "cache-control",
    "connection",
    "content-length",
    "content-range",
    "cookie",
    "date",
    "idempotency-key",
    "idempotency-status",
    "idempotent-replayed",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "request-id",
    "retry-after",
    "server",
    "server-timing",
    "set-cookie",
    "set-cookie2",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "www-authenticate",
    "x-amz-request-id",
    "x-amzn-requestid",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "x-request-id",
    "x-trace-id",
];
const NEVER_PREFIXES: [&str; 5] =
    ["access-control-", "ratelimit", "x-b3-", "x-correlation", "x-ratelimit"];

/// The first line of a header block; the rest is field lines as in HTTP/1.1, each ended by CR LF.
const VERSION: &[u8] = b"pgonce headers 1\r\n";

/// The headers of a route's responses that are stored and replayed.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptHeaders(Vec<HeaderName>);

impl KeptHeaders {
    pub(crate) fn add(&mut self, name: HeaderName) -> Result<()> {
        let text = name.as_str();
        if NEVER.contains(&text) || NEVER_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            return Err(Error::invalid(format!("header {text} is never replayed")));
        }
        self.0.push(name);
        Ok(())
    }

    fn contains(&self, name: &HeaderName) -> bool {
        KEPT.contains(name) || self.0.contains(name)
    }

    /// The names, for people.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        KEPT.iter().chain(&self.0).map(HeaderName::as_str)
    }

    /// The header block to store. Values are bytes; a header's several values stay apart and in order.
    pub(crate) fn block(&self, headers: &HeaderMap) -> Vec<u8> {
        let mut block = VERSION.to_vec();
        for (name, value) in headers {
            if self.contains(name) {
                block.extend_from_slice(name.as_str().as_bytes());
                block.extend_from_slice(b": ");
                block.extend_from_slice(value.as_bytes()); // neither CR nor LF can be in it
                block.extend_from_slice(b"\r\n");
            }
        }
        block
    }
}

/// Reads a header block. An empty one has no headers: it was stored by something other than HTTP.
fn headers_in(block: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    if block.is_empty() {
        return Some(headers);
    }
    let mut rest = block.strip_prefix(VERSION)?;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let colon = rest[..end].windows(2).position(|two| two == b": ")?;
        let name = HeaderName::from_bytes(&rest[..colon]).ok()?;
        let value = HeaderValue::from_bytes(&rest[colon + 2..end]).ok()?;
        headers.append(name, value);
        rest = &rest[end + 2..];
    }
    Some(headers)
}

/// The status a stored response has, if its code is one. Without a code it is a success.
pub(crate) fn status(stored: &Stored) -> Result<StatusCode> {
    let code = stored.code().unwrap_or(200);
    u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
        .filter(|status| !status.is_informational())
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the stored code is no HTTP status"))
}

/// The response to replay.
pub(crate) fn replayed(stored: Stored) -> Result<http::Response<Bytes>> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "the stored header block cannot be read");
    let mut headers = headers_in(stored.headers()).ok_or_else(corrupt)?;
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let status = status(&stored)?;
    let mut response = http::Response::new(Bytes::from(stored.into_body()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
