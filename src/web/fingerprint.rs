//! The fingerprint of a request.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri};
use serde_json::Value;

use crate::operation::fingerprint::{self, Fingerprint, FingerprintSecret};

type ByteParts<'a> = Vec<Cow<'a, [u8]>>;
type Custom = Arc<dyn Fn(&Parts, &Bytes) -> Fingerprint + Send + Sync>;

/// Which parts of a request a key is bound to: method, path, query, content type, content encoding
/// and the body's bytes, unless told otherwise.
///
/// A request with the same key and other parts is a mismatch. Keys that were begun under another choice
/// of parts are not compared, so changing it does not turn retries into mismatches. The exception is
/// [`custom`](RequestFingerprint::custom): another function gives other fingerprints.
///
/// ```
/// use pgonce::web::RequestFingerprint;
/// let fingerprint = RequestFingerprint::new()
///     .canonical_json()
///     .without_field("/sent_at")
///     .header(http::header::ACCEPT_LANGUAGE);
/// ```
#[derive(Clone, Default)]
pub struct RequestFingerprint {
    query_ignored: bool,
    content_type_ignored: bool,
    headers: Vec<HeaderName>,
    /// JSON pointers of what is taken out of a body before it is written canonically.
    json_without: Option<Vec<String>>,
    secret: Option<FingerprintSecret>,
    custom: Option<Custom>,
}

/// Changes when the parts below are put together in another way.
const VERSION: &str = "http 1";

impl RequestFingerprint {
    /// Method, path, query, content type, content encoding, body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves the query out.
    #[must_use]
    pub fn without_query(mut self) -> Self {
        self.query_ignored = true;
        self
    }

    /// Leaves content type and content encoding out.
    #[must_use]
    pub fn without_content_type(mut self) -> Self {
        self.content_type_ignored = true;
        self
    }

    /// Takes the values of a request header in, all of them and in their order.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// Takes a body that is JSON in its canonical form (RFC 8785): the order of fields, spaces and the
    /// spelling of numbers do not matter. A body that is not JSON, or holds a number that
    /// may be rounded (an integer beyond 64 bits, a fraction beyond 2^53), counts by its bytes.
    #[must_use]
    pub fn canonical_json(mut self) -> Self {
        self.json_without.get_or_insert_default();
        self
    }

    /// Leaves a field of a JSON body out, named by a JSON pointer (RFC 6901) such as `/meta/sent_at`.
    /// Implies [`canonical_json`](RequestFingerprint::canonical_json).
    #[must_use]
    pub fn without_field(mut self, pointer: impl Into<String>) -> Self {
        self.json_without.get_or_insert_default().push(pointer.into());
        self
    }

    /// Makes fingerprints under a secret, so that a stolen table cannot be used to guess requests.
    #[must_use]
    pub fn secret(mut self, secret: FingerprintSecret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Does it all in your own function; the other settings are then of no account. For example
    /// for multipart forms, whose boundary changes with every attempt.
    #[must_use]
    pub fn custom<F>(mut self, fingerprint: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> Fingerprint + Send + Sync + 'static,
    {
        self.custom = Some(Arc::new(fingerprint));
        self
    }

    pub(crate) fn of(&self, request: &Parts, body: &Bytes) -> Fingerprint {
        if let Some(custom) = &self.custom {
            return custom(request, body);
        }
        let canonical = self.json_without.as_ref().and_then(|without| canonical(body, without));
        let (form, body) = match &canonical {
            Some(json) => ("json", json.as_slice()),
            None => ("bytes", body.as_ref()),
        };
        let uri = whole_uri(request);
        let mut parts = ByteParts::from([
            Cow::Borrowed(request.method.as_str().as_bytes()),
            Cow::Borrowed(uri.path().as_bytes()),
        ]);
        if !self.query_ignored {
            // No query and an empty one differ.
            let query = uri.query();
            parts.push(Cow::Owned(
                query.map(|query| format!("?{query}")).unwrap_or_default().into(),
            ));
        }
        if !self.content_type_ignored {
            take(&mut parts, &request.headers, &CONTENT_TYPE);
            take(&mut parts, &request.headers, &CONTENT_ENCODING);
        }
        for name in &self.headers {
            take(&mut parts, &request.headers, name);
        }
        parts.extend([Cow::Borrowed(form.as_bytes()), Cow::Borrowed(body)]);
        let fingerprint = match &self.secret {
            Some(secret) => secret.parts(parts),
            None => Fingerprint::parts(parts),
        };
        fingerprint.made_by(&self.recipe())
    }

    /// Says which parts are taken, in the same words for the same choice.
    pub(crate) fn recipe(&self) -> String {
        let mut recipe = vec![VERSION.to_owned(), "method".to_owned(), "path".to_owned()];
        if self.custom.is_some() {
            return "custom".to_owned();
        }
        if !self.query_ignored {
            recipe.push("query".to_owned());
        }
        if !self.content_type_ignored {
            recipe.extend([CONTENT_TYPE, CONTENT_ENCODING].map(|name| name.to_string()));
        }
        recipe.extend(self.headers.iter().map(ToString::to_string));
        match &self.json_without {
            None => recipe.push("body".to_owned()),
            Some(without) => {
                recipe.push("canonical JSON body".to_owned());
                recipe.extend(without.iter().map(|pointer| format!("without {pointer}")));
            }
        }
        recipe.join(", ")
    }
}

/// The URI as it was asked for. A nested router sees only what follows its own place, which
/// `/accounts/1/deposit` and `/accounts/2/deposit` have in common.
fn whole_uri(request: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) = request.extensions.get() {
        return uri;
    }
    &request.uri
}

/// A header's values in their order, their number first, so that the values of two headers never run
/// together.
fn take<'a>(parts: &mut ByteParts<'a>, headers: &'a HeaderMap, name: &HeaderName) {
    let values = headers.get_all(name);
    parts.push(Cow::Owned(values.iter().count().to_string().into_bytes()));
    parts.extend(values.iter().map(|value| Cow::Borrowed(value.as_bytes())));
}

/// The body's canonical form without the named fields, if it has one.
fn canonical(body: &[u8], without: &[String]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    for pointer in without {
        // A name without a slash is one at the top.
        let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        if let Some(Value::Object(fields)) = value.pointer_mut(parent) {
            fields.remove(&field.replace("~1", "/").replace("~0", "~"));
        }
    }
    fingerprint::canonical(&value).ok()
}

impl fmt::Debug for RequestFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestFingerprint({})", self.recipe())
    }
}
