//! A gRPC response as one that the layer can store: its trailers become the last frame of its body, as in gRPC-Web
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>), and its code becomes a status of HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower_service::Service;

use super::message::OneMessage;
use super::{is_http2_grpc, status};
use crate::web::body::{BoxError, Buffered};
use crate::web::settle::Settle;

const GRPC: &str = "application/grpc";
const FOLDED: &str = "application/grpc-web";
/// The flag of the frame that has the trailers.
const TRAILERS: u8 = 0x80;

#[derive(Debug, Clone)]
pub(crate) struct Folded<S>(pub(super) S);

impl<S, B, R> Service<Request<Buffered<B>>> for Folded<S>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>> + Send,
    S::Error: Send,
    S::Future: Send + 'static,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Buffered<B>>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move { Ok(fold(response.await?).await) })
    }
}

async fn fold<R>(response: Response<R>) -> Response<Full<Bytes>>
where
    R: Body,
    R::Error: Into<BoxError>,
{
    let (mut parts, body) = response.into_parts();
    if !is_http2_grpc(&parts.headers) {
        return foreign(parts);
    }
    let streams = Arc::new(AtomicBool::new(false));
    let Ok(body) = OneMessage::new(body, streams.clone()).collect().await else {
        // What was written is undone. A remote may have been called.
        let streams = streams.load(Ordering::Relaxed);
        let broken = || status::only_status(status::INTERNAL, "The response broke off.");
        let mut refused = if streams { status::streaming() } else { broken() };
        refused.extensions_mut().insert(Settle::Lapse);
        let (parts, ()) = refused.into_parts();
        return folded(parts, &Bytes::new(), None);
    };
    parts.headers.remove(CONTENT_LENGTH);
    let trailers = body.trailers().cloned();
    folded(parts, &body.to_bytes(), trailers)
}

/// An answer that is not gRPC's, such as a refusal of a layer inside: its status stays for the rule, and becomes a code
/// for the client.
fn foreign(parts: Parts) -> Response<Full<Bytes>> {
    let (synthetic, ()) = status::only_status(status::of_http(parts.status), "").into_parts();
    let mut folded = folded(synthetic, &Bytes::new(), None);
    *folded.status_mut() = parts.status;
    *folded.extensions_mut() = parts.extensions;
    folded
}

fn folded(mut parts: Parts, message: &Bytes, trailers: Option<HeaderMap>) -> Response<Full<Bytes>> {
    let content_type = parts.headers.remove(CONTENT_TYPE);
    let trailers = match trailers {
        Some(trailers) if trailers.contains_key(status::STATUS) => trailers,
        // *Trailers-Only*: all metadata is trailing metadata.
        _ => std::mem::take(&mut parts.headers),
    };
    parts.status = status::as_http(&trailers);
    let suffix = content_type.as_ref().and_then(|it| it.to_str().ok()?.strip_prefix(GRPC));
    let content_type = HeaderValue::from_str(&format!("{FOLDED}{}", suffix.unwrap_or_default()));
    if let Ok(content_type) = content_type {
        parts.headers.insert(CONTENT_TYPE, content_type);
    }
    let mut lines = Vec::new();
    for (name, value) in &trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut body = BytesMut::from(&message[..]);
    body.put_u8(TRAILERS);
    body.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    body.put_slice(&lines);
    Response::from_parts(parts, Full::new(body.freeze()))
}

pub(super) fn is_folded(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(FOLDED.as_bytes()))
}

/// What was folded, now or by an earlier call.
pub(super) fn unfold(mut parts: Parts, body: &Bytes) -> Response<Buffered<Full<Bytes>>> {
    let suffix = parts.headers.remove(CONTENT_TYPE);
    let suffix = suffix.as_ref().and_then(|it| it.to_str().ok()?.strip_prefix(FOLDED));
    let content_type = HeaderValue::from_str(&format!("{GRPC}{}", suffix.unwrap_or_default()));
    if let Ok(content_type) = content_type {
        parts.headers.insert(CONTENT_TYPE, content_type);
    }
    parts.headers.remove(CONTENT_LENGTH);
    parts.status = http::StatusCode::OK;
    let at = message_length(body);
    let trailers = trailers(body.get(at + 5..).unwrap_or_default());
    Response::from_parts(parts, Buffered::whole(body.slice(..at), Some(trailers)))
}

/// Of the bytes before the frame with the trailers: no message, or one.
fn message_length(body: &[u8]) -> usize {
    match body {
        [TRAILERS, ..] | [] => 0,
        [_, a, b, c, d, ..] => (5 + u32::from_be_bytes([*a, *b, *c, *d]) as usize).min(body.len()),
        _ => body.len(),
    }
}

fn trailers(lines: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            trailers.append(name, value);
        }
    }
    trailers
}
