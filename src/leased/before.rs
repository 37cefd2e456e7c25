//! Waits for the first of two futures.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

/// The output of `future`, or `None` when `end` completes first.
pub(crate) async fn before<F: Future>(
    end: &mut Pin<&mut impl Future>,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
