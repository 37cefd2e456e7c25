//! Classes: groups of operations that are counted together.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::operation::limits::outside;

/// What an operation is counted under: a label of its metrics and its rows of the history.
///
/// Name the operation, such as `payments.create`, never the tenant, the scope or the key: every class is a time series.
/// A client counts at most 100 classes; all further ones are counted as `other`. An operation without a class has its
/// client's ([`PgOnce::class`](crate::PgOnce::class)), by default `unclassified`; a route of the HTTP layer has its
/// matched path.
///
/// ```
/// use pgonce::{Class, Operation};
/// let op = Operation::new("acme/payments.create", "order-17")?.class(Class::new("payments.create")?);
/// assert!(Class::new("").is_err());
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Class(Arc<str>);

const BYTES_MAX: usize = 100;
const UNCLASSIFIED: &str = "unclassified";

impl Class {
    /// A class of this name: 1 to 100 bytes without control characters.
    ///
    /// ```
    /// assert_eq!(pgonce::Class::new("payments.create")?.as_str(), "payments.create");
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for any other name.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        checked("class", name.as_ref()).map(|name| Self(name.into()))
    }

    /// The class as text.
    ///
    /// ```
    /// assert_eq!(pgonce::Class::default().as_str(), "unclassified");
    /// ```
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What all classes beyond the limit are counted as.
    pub(crate) fn other() -> Self {
        Self("other".into())
    }
}

/// Checks the name of a label's value.
pub(crate) fn checked<'a>(field: &str, name: &'a str) -> Result<&'a str> {
    if name.is_empty() || name.len() > BYTES_MAX {
        return Err(outside(field, &format!("{} bytes long", name.len()), "1 to 100 bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{field} contains a control character")));
    }
    Ok(name)
}

impl Default for Class {
    fn default() -> Self {
        Self(UNCLASSIFIED.into())
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Class({})", self.0)
    }
}
