//! Scopes: whose key it is, and for which operation.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::operation::key::{NAME_BYTES_MAX, checked};

/// A server-chosen namespace of keys: tenant and operation, such as `acme/payments.create`.
///
/// Build it from its parts with [`Scope::of`]. The same limits as a [`Key`](crate::Key). Never take it from the client
/// alone: two tenants in one scope can replay each other's responses.
///
/// ```
/// let scope = pgonce::Scope::of(["acme", "payments.create"]);
/// assert_eq!(scope, pgonce::Scope::new("acme/payments.create")?);
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope(String);

/// In front of the digest. No part is written like this: behind a `%` come two hexadecimal digits, or the part's end.
const DIGEST_MARK: &str = "%sha256:";
const DIGEST_DIGITS: usize = 64;

impl Scope {
    /// Takes a scope as it is.
    ///
    /// ```
    /// assert!(pgonce::Scope::new("acme/payments.create").is_ok());
    /// assert!(pgonce::Scope::new("").is_err());
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when it is empty, blank, over 255 bytes or
    /// contains a control character.
    pub fn new(scope: impl Into<String>) -> Result<Self> {
        checked("scope", scope.into()).map(Self)
    }

    /// The scope of these parts: the tenant, the operation or the matched route, and further levels where keys form a
    /// hierarchy. Two different lists of parts never give the same scope, and no part is an error, whatever is in it.
    ///
    /// ```
    /// use pgonce::Scope;
    /// assert_eq!(Scope::of(["acme", "payments.create"]).as_str(), "acme/payments.create");
    /// assert_eq!(Scope::of(["acme", "orders", "17", "refunds.create"]).as_str(), "acme/orders/17/refunds.create");
    /// assert_eq!(Scope::of(["acme/payments", "create"]).as_str(), "acme%2Fpayments/create");
    /// assert!(Scope::of(["acme", &"x".repeat(1000)]).as_str().len() <= 255);
    /// ```
    ///
    /// `/` stands between the parts. In a part, visible ASCII characters stay as they are, and every byte of `/`, `%`
    /// and all others is written as `%` and two hexadecimal digits. An empty part is `%`, and no parts at all are `/`.
    /// What would be longer than 255 bytes keeps its first 183, and ends in `%sha256:` and the SHA-256 of the whole.
    ///
    /// Take the *matched* route of a request, `/orders/{id}`, never its path: clients choose a path, and can write one
    /// path in several ways.
    #[must_use]
    pub fn of<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        let parts: Vec<_> = parts.into_iter().map(|part| encoded(part.as_ref())).collect();
        if parts.is_empty() {
            return Self("/".to_owned());
        }
        let mut scope = parts.join("/");
        if scope.len() > NAME_BYTES_MAX {
            let digest: String =
                Sha256::digest(&scope).iter().map(|byte| format!("{byte:02x}")).collect();
            scope.truncate(NAME_BYTES_MAX - DIGEST_MARK.len() - DIGEST_DIGITS);
            scope.push_str(DIGEST_MARK);
            scope.push_str(&digest);
        }
        Self(scope)
    }

    /// The scope as text, to print on purpose: `Debug` shows no scope.
    ///
    /// ```
    /// assert_eq!(pgonce::Scope::of(["acme", "payments"]).as_str(), "acme/payments");
    /// ```
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A part without anything that could be taken for the end of it, in ASCII.
fn encoded(part: &[u8]) -> String {
    if part.is_empty() {
        return "%".to_owned();
    }
    let mut text = String::with_capacity(part.len());
    for &byte in part {
        if byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({} bytes)", self.0.len())
    }
}
