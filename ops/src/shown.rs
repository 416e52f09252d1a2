//! How times and texts are shown to operators. Times are those of Asia/Ho_Chi_Minh, to the second. Control characters in texts from
//! outside are escaped, so that they cannot control the terminal.

use chrono::{DateTime, FixedOffset, Utc};

/// The time zone of Vietnam since 1975, without daylight saving time.
pub const HO_CHI_MINH: FixedOffset = FixedOffset::east_opt(7 * 3_600).unwrap();

/// `2026-11-24 15:04:05 +07`.
#[must_use]
pub fn moment(at: DateTime<Utc>) -> String {
    at.with_timezone(&HO_CHI_MINH).format("%Y-%m-%d %H:%M:%S +07").to_string()
}

/// [`moment`], or a dash.
#[must_use]
pub fn moment_or_dash(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), moment)
}

/// A text from outside on one line, with unprintable characters escaped.
#[must_use]
pub fn text(text: &str) -> String {
    // Quotation marks are printable, and causes contain many.
    text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

/// [`text`], or a dash.
#[must_use]
pub fn text_or_dash(shown: Option<&str>) -> String {
    shown.map_or_else(|| "-".to_owned(), text)
}

/// A text from an operator or a message on one line, with control characters replaced by spaces.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_ho_chi_minh_city() {
        assert_eq!(moment("2026-11-23T17:30:00.9Z".parse().unwrap()), "2026-11-24 00:30:00 +07");
    }

    #[test]
    fn control_characters_are_escaped_and_the_rest_stays_readable() {
        assert_eq!(text("«Hết hàng» of \"orders\" isn't"), "«Hết hàng» of \"orders\" isn't");
        assert_eq!(text("\u{1b}[2J\n\u{202e}\\"), "\\u{1b}[2J\\n\\u{202e}\\\\");
    }
}
