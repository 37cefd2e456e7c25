//! One call, and how it ended.

use std::fmt::{self, Display};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

/// What to call with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The idempotency key.
    pub key: String,
    /// Whether to send another request than usual: another amount, for example.
    pub changed: bool,
    /// Whether to drop the response before its body is read.
    pub(super) unread: bool,
}

/// How a call ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Done(Answer),
    /// Told to try again.
    Later(String),
    /// Failed. A retry may succeed.
    Failed(String),
    /// Refused; a retry is refused too.
    Refused(String),
}

/// The response to a call that did its work, or that replays it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status, if there is one.
    pub(super) code: Option<u16>,
    pub(super) body: Bytes,
}

pub(super) type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;
pub(super) type Call = Arc<dyn Fn(Attempt) -> Running + Send + Sync>;

impl Attempt {
    pub(super) fn new(key: &str) -> Self {
        Self { key: key.to_owned(), changed: false, unread: false }
    }
}

impl Answer {
    /// Whether both look like responses to the same kind of request, whose bodies may differ in an id.
    pub(super) fn resembles(&self, other: &Self) -> bool {
        self.code == other.code && self.body.is_empty() == other.body.is_empty()
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        if let Some(code) = self.code {
            write!(f, "{code} ")?;
        }
        let body = String::from_utf8_lossy(&self.body);
        match body.char_indices().nth(SHOWN) {
            _ if body.is_empty() => f.write_str("without a body"),
            Some((end, _)) => write!(f, "`{}...`", &body[..end]),
            None => write!(f, "`{body}`"),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(answer) => answer.fmt(f),
            Self::Later(words) | Self::Failed(words) | Self::Refused(words) => f.write_str(words),
        }
    }
}

/// Polls until the call has been pending so many times. `None` if it has not ended by then.
pub(super) async fn poll_times(running: &mut Running, times: u32) -> Option<Outcome> {
    let mut pending = 0;
    poll_fn(|cx| match running.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => {
            pending += 1;
            if pending >= times { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}
