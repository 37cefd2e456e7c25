//! Keys: what names an operation in its scope.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::{Error, Result};
pub(crate) use crate::operation::scope::Scope;

/// The longest scope or key, in bytes. The table has the same limit.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// The caller's identifier of an operation, unique within a [`Scope`].
///
/// 1 to 255 bytes of UTF-8, not blank, without control characters; kept byte for byte.
/// `Debug` shows its length, never the key, and there is no `Display`: a log line must not show keys by mistake. To print
/// one on purpose, call [`as_str`](Key::as_str); as JSON it is its text.
///
/// ```
/// use pgonce::Key;
/// let key = Key::new("order-17/attempt")?;
/// assert_eq!(key.as_str(), "order-17/attempt");
/// assert!(!format!("{key:?}").contains("order"));
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// Takes a key as the caller sent it.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when it is empty, blank, over 255 bytes or
    /// contains a control character.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        checked("key", key.into()).map(Self)
    }

    /// A fresh key: a UUIDv7. Its time prefix keeps new keys side by side in the index; a random
    /// (v4) key costs about 4 kB of WAL per operation right after a checkpoint.
    ///
    /// ```
    /// assert_ne!(pgonce::Key::generate(), pgonce::Key::generate());
    /// ```
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// The key that these parts always give: a UUIDv8 over their SHA-256. Parts are
    /// length-prefixed, so `["ab", "c"]` and `["a", "bc"]` differ.
    ///
    /// ```
    /// use pgonce::Key;
    /// assert_eq!(Key::derive(["invoice", "17"]), Key::derive(["invoice", "17"]));
    /// assert_ne!(Key::derive(["ab", "c"]), Key::derive(["a", "bc"]));
    /// ```
    #[must_use]
    pub fn derive<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        let digest = digest_of_parts(b"pgonce key", parts);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string())
    }

    /// The key of a job that runs once per time window: the same `base` in the same window gives
    /// the same key, the next window another one. Windows are counted from the Unix epoch, so every
    /// process agrees on them.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pgonce::Key;
    /// use time::OffsetDateTime;
    /// let noon = OffsetDateTime::from_unix_timestamp(43_200).unwrap();
    /// let hour = Duration::from_secs(3600);
    /// let report = Key::in_window("report", noon, hour)?;
    /// assert_eq!(report, Key::in_window("report", noon + Duration::from_secs(3599), hour)?);
    /// assert_ne!(report, Key::in_window("report", noon + hour, hour)?);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when `width` is zero or over ten years.
    pub fn in_window(base: impl AsRef<str>, at: OffsetDateTime, width: Duration) -> Result<Self> {
        const WIDTH_MAX: Duration = Duration::from_secs(315_576_000);
        if width.is_zero() || width > WIDTH_MAX {
            return Err(Error::invalid("width takes more than zero and at most ten years"));
        }
        let width_nanos = i128::try_from(width.as_nanos()).unwrap_or(i128::MAX);
        let window = at.unix_timestamp_nanos().div_euclid(width_nanos);
        Ok(Self::derive([
            base.as_ref().as_bytes(),
            &width_nanos.to_be_bytes(),
            &window.to_be_bytes(),
        ]))
    }

    /// The key as text, to print on purpose: `Debug` shows no key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rule of `sql/internal/check_name.sql`, here for an answer before a connection is needed.
pub(crate) fn checked(field: &str, name: String) -> Result<String> {
    if name.is_empty() {
        return Err(Error::invalid(format!("{field} is empty; it takes 1 to 255 bytes")));
    }
    if name.len() > NAME_BYTES_MAX {
        let length = name.len();
        return Err(Error::invalid(format!("{field} has {length} bytes; the limit is 255")));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{field} contains a control character")));
    }
    if name.chars().all(char::is_whitespace) {
        return Err(Error::invalid(format!("{field} is blank")));
    }
    Ok(name)
}

/// SHA-256 over a label and every part with its length in front.
pub(crate) fn digest_of_parts<P: AsRef<[u8]>>(
    label: &[u8],
    parts: impl IntoIterator<Item = P>,
) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(label);
    for part in parts {
        let part = part.as_ref();
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// What can name an operation: text, or a value already checked.
macro_rules! from_text {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl TryFrom<&str> for $name {
            type Error = Error;
            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }
        impl TryFrom<&String> for $name {
            type Error = Error;
            fn try_from(text: &String) -> Result<Self> {
                Self::new(text.as_str())
            }
        }
        impl TryFrom<&$name> for $name {
            type Error = Error;
            fn try_from(checked: &$name) -> Result<Self> {
                Ok(checked.clone())
            }
        }
    };
}
from_text!(Key);
from_text!(Scope);
