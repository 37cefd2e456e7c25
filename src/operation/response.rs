//! Responses: what complete or fail store, and what a replay hands out.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// A stored response: a code, a header block and a body. pgonce gives none of them a meaning and
/// returns the same bytes.
///
/// `Debug` shows lengths, never content.
///
/// ```
/// use pgonce::Response;
/// let response = Response::json(&serde_json::json!({"id": 7}))?.with_code(201);
/// assert_eq!(response.code(), Some(201));
/// assert_eq!(response.parse_json::<serde_json::Value>()?["id"], 7);
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Response {
    pub(crate) code: Option<i32>,
    pub(crate) headers: Option<Vec<u8>>,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) omitted: bool,
}

impl Response {
    /// A response with this body and nothing else.
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { body: Some(body.into()), ..Self::default() }
    }

    /// A response whose body is `value` as JSON.
    ///
    /// # Errors
    /// [`Encoding`](crate::ErrorKind::Encoding) when the value cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        serde_json::to_vec(value).map(Self::bytes).map_err(|error| {
            Error::with_source(ErrorKind::Encoding, "the response cannot be written as JSON", error)
        })
    }

    /// What to store of a value, and what its first caller gets: what a retry will read from it. A value that its own
    /// JSON does not give back is refused, since every retry would fail.
    pub(crate) fn of_value<T>(value: T, secret: bool) -> Result<(T, Self)>
    where
        T: Serialize + DeserializeOwned,
    {
        let response = Self::json(&value)?;
        if secret {
            return Ok((value, response.secret()));
        }
        Ok((read_back(response.body())?, response))
    }

    /// A response without code, headers or body: "it is done".
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Sets the code, for example an HTTP status.
    #[must_use]
    pub fn with_code(mut self, code: i32) -> Self {
        self.code = Some(code);
        self
    }

    /// Sets the header block.
    #[must_use]
    pub fn with_headers(mut self, headers: impl Into<Vec<u8>>) -> Self {
        self.headers = Some(headers.into());
        self
    }

    /// Marks the response as secret: it is stored as *omitted*. The key still blocks a second run,
    /// and a replay says that the response was not kept.
    #[must_use]
    pub fn secret(mut self) -> Self {
        self.omitted = true;
        self
    }

    /// The code, if one was given. Kept for an omitted response too.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// The header block; empty when none was given.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        self.headers.as_deref().unwrap_or_default()
    }

    /// The body; empty when none was given.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }

    /// The body, owned.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body.unwrap_or_default()
    }

    /// Whether headers and body were not kept (too large, or secret).
    #[must_use]
    pub fn is_omitted(&self) -> bool {
        self.omitted
    }

    /// The response as it is stored: without headers and body when they are over the limit together, or secret. What
    /// is not stored is not sent either.
    pub(crate) fn omitted_over(self, bytes_max: i64) -> Self {
        let bytes = self.headers().len() + self.body().len();
        if !self.omitted && i64::try_from(bytes).is_ok_and(|bytes| bytes <= bytes_max) {
            return self;
        }
        Self { code: self.code, omitted: true, ..Self::default() }
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// [`Encoding`](crate::ErrorKind::Encoding) when the body is omitted or is not JSON of this type.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T> {
        if self.omitted && self.body.is_none() {
            return Err(Error::new(ErrorKind::Encoding, "the response was not kept"));
        }
        // The parser's own message can quote the body, so it is not carried along.
        serde_json::from_slice(self.body()).map_err(|error| {
            Error::new(
                ErrorKind::Encoding,
                format!("the stored body is not JSON of the wanted type (line {})", error.line()),
            )
        })
    }
}

/// Reads what was just written.
pub(crate) fn read_back<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        let message = format!(
            "the value cannot be read back from its own JSON (column {}), so no retry could get it; does it have a \
             NaN, or a field that is not written?",
            error.column()
        );
        Error::new(ErrorKind::Encoding, message)
    })
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("code", &self.code)
            .field("headers_bytes", &self.headers().len())
            .field("body_bytes", &self.body().len())
            .field("omitted", &self.omitted)
            .finish()
    }
}
