//! Bodies that the layer has read, in part or in whole, and gives on.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError};

/// What the error of a request's body must turn into, as in axum.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// What the layer has read of a body, and then the rest of it as it comes: the request's body for
/// the handler, and the response's for the client.
pub struct Buffered<B> {
    read: Bytes,
    trailers: Option<HeaderMap>,
    rest: Option<Pin<Box<B>>>,
}

/// How reading a request's body ended.
pub(crate) enum Read<B> {
    Whole(Bytes, Option<HeaderMap>),
    /// Over the limit; the body is still good to be given on.
    TooLarge(Buffered<B>),
    /// Cut off by a limit that a layer outside has put around the body.
    CutOff,
    Broken,
}

impl<B> Buffered<B> {
    /// A body that the layer does not read.
    pub(crate) fn untouched(body: B) -> Self {
        Self { read: Bytes::new(), trailers: None, rest: Some(Box::pin(body)) }
    }

    /// A body that the layer has in full.
    pub(crate) fn whole(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { read: bytes, trailers, rest: None }
    }
}

/// Reads a body of up to `limit` bytes. One that declares more is not read at all.
pub(crate) async fn read<B>(body: B, limit: usize) -> Read<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > limit as u64 {
        return Read::TooLarge(Buffered::untouched(body));
    }
    let mut rest = Box::pin(body);
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = rest.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                return if is_limit(&*error.into()) { Read::CutOff } else { Read::Broken };
            }
        };
        match frame.into_data() {
            Ok(mut data) => bytes.extend_from_slice(&data.copy_to_bytes(data.remaining())),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if bytes.len() > limit {
            let read = bytes.freeze();
            return Read::TooLarge(Buffered { read, trailers: None, rest: Some(rest) });
        }
    }
    Read::Whole(bytes.freeze(), trailers)
}

fn is_limit(error: &(dyn Error + 'static)) -> bool {
    error.is::<LengthLimitError>() || error.source().is_some_and(is_limit)
}

impl<B: Body> Body for Buffered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.read)))));
        }
        if let Some(rest) = &mut self.rest {
            let frame = ready!(rest.as_mut().poll_frame(cx));
            return Poll::Ready(frame.map(|frame| {
                frame.map(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
            }));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.len() as u64;
        let rest =
            self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), |rest| rest.size_hint());
        let mut both = SizeHint::new();
        if let Some(upper) = rest.upper() {
            both.set_upper(upper.saturating_add(read));
        }
        both.set_lower(rest.lower().saturating_add(read));
        both
    }
}

impl<B> fmt::Debug for Buffered<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffered")
            .field("bytes_read", &self.read.len())
            .field("whole", &self.rest.is_none())
            .finish()
    }
}
