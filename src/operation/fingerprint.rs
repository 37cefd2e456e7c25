//! Fingerprints: what binds a key to its request.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde_json::Value;
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use crate::operation::key::digest_of_parts;

/// A versioned digest of a request. The same key with another fingerprint is a
/// [mismatch](crate::Begin::Mismatch).
///
/// 36 bytes: a four-byte header (algorithm, and for keyed ones the secret's id) and a 32-byte digest.
/// Fingerprints with different headers are not compared, so a change of algorithm or secret does
/// not turn retries into mismatches.
///
/// ```
/// use pgonce::Fingerprint;
/// let json = Fingerprint::of_json(&serde_json::json!({"b": 1, "a": 2.0}))?;
/// assert_eq!(json, Fingerprint::of_bytes(br#"{"a":2,"b":1}"#)); // canonical: order and spelling do not matter
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 36]);

/// Makes fingerprints under a secret (HMAC-SHA-256), so that a stolen table cannot be used to guess
/// what was in the requests.
///
/// The fingerprints carry a three-byte id of the secret. After a change of secret, requests that
/// were begun before it are replayed without comparing fingerprints.
///
/// ```
/// use pgonce::{Fingerprint, FingerprintSecret};
/// let secret = FingerprintSecret::new("at least sixteen bytes")?;
/// assert_ne!(secret.of_bytes(b"body"), Fingerprint::of_bytes(b"body"));
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone)]
pub struct FingerprintSecret {
    header: [u8; 4],
    mac: Hmac<Sha256>,
}

/// Header of an unkeyed SHA-256; `sql/public/fingerprint.sql` writes the same.
const SHA_256: [u8; 4] = [1, 0, 0, 0];
/// First header byte of HMAC-SHA-256; the secret's id follows.
const HMAC_SHA_256: u8 = 2;
const LABEL: &[u8] = b"pgonce";
const SECRET_BYTES_MIN: usize = 16;

impl Fingerprint {
    /// The fingerprint of a request body as received.
    #[must_use]
    pub fn of_bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self::parts([bytes])
    }

    /// The fingerprint of a value's canonical JSON
    /// ([RFC 8785](https://www.rfc-editor.org/rfc/rfc8785)): key order, spaces and the spelling of
    /// numbers do not matter.
    ///
    /// # Errors
    /// [`Encoding`](crate::ErrorKind::Encoding) when the value cannot be written as JSON, or holds a
    /// number beyond 2^53 - 1: canonical JSON writes numbers as doubles, in which neighbours look alike.
    pub fn of_json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::of_bytes(canonical(value)?))
    }

    /// The fingerprint of several parts, such as method, path and body. Parts are length-prefixed:
    /// `["ab", "c"]` and `["a", "bc"]` differ.
    #[must_use]
    pub fn parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        Self::assemble(SHA_256, digest_of_parts(LABEL, parts))
    }

    fn assemble(header: [u8; 4], digest: [u8; 32]) -> Self {
        let mut bytes = [0; 36];
        bytes[..4].copy_from_slice(&header);
        bytes[4..].copy_from_slice(&digest);
        Self(bytes)
    }

    /// Marks how the parts were chosen: fingerprints made by different recipes are not compared.
    #[cfg(feature = "tower")]
    pub(crate) fn made_by(mut self, recipe: &str) -> Self {
        let mark = digest_of_parts(b"pgonce recipe", [recipe]);
        // Mixed in, because under a secret these bytes hold the secret's id.
        for (byte, mark) in self.0[1..4].iter_mut().zip(mark) {
            *byte ^= mark;
        }
        self
    }

    /// The bytes as stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FingerprintSecret {
    /// Takes the secret; every process that serves the same keys needs the same one.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when it is shorter than 16 bytes.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self> {
        let secret = secret.as_ref();
        if secret.len() < SECRET_BYTES_MIN {
            return Err(Error::invalid(format!(
                "secret has {} bytes; it takes at least {SECRET_BYTES_MIN}",
                secret.len()
            )));
        }
        let mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|error| {
            Error::with_source(ErrorKind::InvalidInput, "secret refused", error)
        })?;
        // The id is made under the secret too, so it says nothing about it.
        let id = mac.clone().chain_update(b"pgonce secret id").finalize().into_bytes();
        Ok(Self { header: [HMAC_SHA_256, id[0], id[1], id[2]], mac })
    }

    /// As [`Fingerprint::of_bytes`], under the secret.
    #[must_use]
    pub fn of_bytes(&self, bytes: impl AsRef<[u8]>) -> Fingerprint {
        self.parts([bytes])
    }

    /// As [`Fingerprint::of_json`], under the secret.
    ///
    /// # Errors
    /// As [`Fingerprint::of_json`].
    pub fn of_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<Fingerprint> {
        Ok(self.of_bytes(canonical(value)?))
    }

    /// As [`Fingerprint::parts`], under the secret.
    #[must_use]
    pub fn parts<P: AsRef<[u8]>>(&self, parts: impl IntoIterator<Item = P>) -> Fingerprint {
        let digest = digest_of_parts(LABEL, parts);
        let keyed = self.mac.clone().chain_update(digest).finalize().into_bytes();
        Fingerprint::assemble(self.header, keyed.into())
    }
}

pub(crate) fn canonical<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let refused = |error: serde_json::Error| {
        Error::with_source(ErrorKind::Encoding, "the request cannot be written as JSON", error)
    };
    let value = serde_json::to_value(value).map_err(refused)?;
    check_integers(&value)?;
    serde_json_canonicalizer::to_vec(&value).map_err(refused)
}

/// RFC 8785 writes every number as a double. Beyond 2^53 - 1 two integers share one, and two requests
/// would share a fingerprint; so they are refused, as I-JSON (RFC 7493, section 2.2) advises.
fn check_integers(value: &Value) -> Result<()> {
    const INTEGER_MAX: f64 = 9_007_199_254_740_991.0;
    match value {
        Value::Number(number) if number.as_f64().is_none_or(|n| n.abs() > INTEGER_MAX) => {
            Err(Error::new(
                ErrorKind::Encoding,
                "the request has a number beyond 2^53 - 1, which canonical JSON cannot tell from its \
                 neighbours; send it as a string, or fingerprint the bytes",
            ))
        }
        Value::Array(items) => items.iter().try_for_each(check_integers),
        Value::Object(fields) => fields.values().try_for_each(check_integers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the digest: an unkeyed one lets a reader of logs test guesses.
        write!(f, "Fingerprint(algorithm {})", self.0[0])
    }
}

impl fmt::Debug for FingerprintSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintSecret(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_that_a_double_cannot_hold_are_refused_at_any_depth() {
        for value in [
            json!(9_007_199_254_740_992_u64),
            json!(-9_007_199_254_740_992_i64),
            json!(u64::MAX),
            json!(18_446_744_073_709_551_616.0),
        ] {
            let error = Fingerprint::of_json(&json!({"a": [1, {"b": value}]})).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Encoding);
        }
        let largest = Fingerprint::of_json(&json!(9_007_199_254_740_991_u64)).unwrap();
        assert_ne!(largest, Fingerprint::of_json(&json!(9_007_199_254_740_990_u64)).unwrap());
    }
}
