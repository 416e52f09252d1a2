//! A wrapper for values that must not be disclosed: personal data, sources of goods (policy points 6 and 7) and secrets. It
//! neither prints nor serializes, so no log, span, message, error or panic can contain the value by accident.

use std::fmt;

/// A value that only [`Confidential::expose`] returns.
///
/// `Debug` prints `***`, so types that contain it can derive `Debug`. It implements neither `Display` nor `Serialize`:
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

    /// The value itself, for a statement's parameter or for the customer to whom it belongs.
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
