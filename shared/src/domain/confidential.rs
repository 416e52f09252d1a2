//! What must not be told: personal data and sources of goods (policy points 6 and 7), and secrets. It does not print and does not
//! serialise, so that no log, span, message, error or panic can hold it by mistake; whoever needs it says so.

use std::fmt;

/// A value that is told to nobody who does not ask for it by [`Confidential::expose`].
///
/// It can be formatted for debugging, as whatever holds it can, and shows `***` then. It is neither `Display` nor `Serialize`:
///
/// ```compile_fail
/// let name = shared::domain::confidential::Confidential::new("Nguyễn Thị Mẫu");
/// println!("{name}");
/// ```
///
/// ```compile_fail
/// let name = shared::domain::confidential::Confidential::new("Nguyễn Thị Mẫu");
/// serde_json::to_string(&name);
/// ```
///
/// ```
/// let name = shared::domain::confidential::Confidential::new("Nguyễn Thị Mẫu");
/// assert_eq!(format!("{name:?}"), "***");
/// assert_eq!(*name.expose(), "Nguyễn Thị Mẫu");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Confidential<T>(T);

impl<T> Confidential<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for where it belongs: a statement's parameter, or the hands of the customer whose it is.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Confidential<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> From<T> for Confidential<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}
