//! The answer to a request whose work goes on after it.

use std::time::Duration;

use http::header::{CACHE_CONTROL, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::error::{Error, Result};

/// `202 Accepted`: the work goes on, and `status_url` tells how far it is. With `Location`, `Retry-After` (in
/// whole seconds, at least one) and `Cache-Control: no-store`; the body is empty. What the URL answers is
/// [`PgOnce::status`](crate::PgOnce::status) as JSON.
///
/// ```
/// # use std::time::Duration;
/// let accepted: http::Response<()> = pgonce::web::accepted("/orders/17/status", Duration::from_secs(2))?;
/// assert_eq!(accepted.status(), 202);
/// assert_eq!(accepted.headers()["location"], "/orders/17/status");
/// # Ok::<(), pgonce::Error>(())
/// ```
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the URL cannot be in a header.
pub fn accepted<B: Default>(status_url: &str, retry_after: Duration) -> Result<Response<B>> {
    let url = HeaderValue::from_str(status_url)
        .map_err(|_| Error::invalid("status_url has characters that no header may have"))?;
    let seconds = retry_after.as_millis().div_ceil(1000).max(1);
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(LOCATION, url);
    headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
