//! Money: whole đồng, formatted as Vietnamese readers expect. Never a float.

use std::fmt;

/// A signed count of đồng. The đồng has no smaller unit, so this is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dong(pub i64);

impl fmt::Display for Dong {
    /// `1.234.567 ₫`: dots between thousands, as in Vietnam.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.unsigned_abs().to_string();
        let mut shown = String::with_capacity(digits.len() + digits.len() / 3 + 1);
        if self.0 < 0 {
            shown.push('-');
        }
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                shown.push('.');
            }
            shown.push(digit);
        }
        write!(f, "{shown} ₫")
    }
}

/// The SQL expression for the sum of `amount`, 0 without rows. It is capped at the largest [`Dong`], so that one absurd amount does
/// not fail a whole report.
#[must_use]
pub fn sql_sum(amount: &str) -> String {
    format!("least(coalesce(sum({amount}), 0), {})::bigint", i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::Dong;

    #[test]
    fn thousands_are_parted_by_dots() {
        assert_eq!(Dong(0).to_string(), "0 ₫");
        assert_eq!(Dong(999).to_string(), "999 ₫");
        assert_eq!(Dong(1_234_567).to_string(), "1.234.567 ₫");
        assert_eq!(Dong(-50_000).to_string(), "-50.000 ₫");
        assert_eq!(Dong(i64::MIN).to_string(), "-9.223.372.036.854.775.808 ₫");
    }
}
