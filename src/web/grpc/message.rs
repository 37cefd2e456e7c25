//! A body that has one message: its flag, its length in four bytes, its bytes (gRPC over HTTP/2, *Length-Prefixed-Message*).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use crate::web::body::BoxError;

const PREFIX: usize = 5;

/// Fails when a second message begins, and says so in the flag.
#[derive(Debug)]
pub struct OneMessage<B> {
    body: Pin<Box<B>>,
    streams: Arc<AtomicBool>,
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come; known with the prefix.
    rest: usize,
}

impl<B> OneMessage<B> {
    pub(super) fn new(body: B, streams: Arc<AtomicBool>) -> Self {
        Self { body: Box::pin(body), streams, prefix: Vec::new(), rest: 0 }
    }

    /// Whether these bytes still belong to the first message.
    fn takes(&mut self, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            if self.prefix.len() < PREFIX {
                let (prefix, more) = data.split_at(data.len().min(PREFIX - self.prefix.len()));
                self.prefix.extend_from_slice(prefix);
                data = more;
                if let [_, length @ ..] = &self.prefix[..]
                    && let Ok(length) = length.try_into()
                {
                    self.rest = u32::from_be_bytes(length) as usize;
                }
            } else if self.rest == 0 {
                return false;
            } else {
                let taken = data.len().min(self.rest);
                self.rest -= taken;
                data = &data[taken..];
            }
        }
        true
    }
}

impl<B> Body for OneMessage<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(frame) = ready!(self.body.as_mut().poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let frame = frame.map_err(Into::into)?;
        let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
        if let Some(data) = frame.data_ref()
            && !self.takes(data)
        {
            self.streams.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err("a second message".into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
