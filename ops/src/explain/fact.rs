//! Facts about an entry that may be shown. Free text of another system is shown only if it is a code word, because any other text could
//! contain a customer's name, a phone number or a supplier.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use shared::domain::money::Dong;
use uuid::Uuid;

use crate::shown::moment;

/// Most characters of a text in a table. JSON contains all of it.
const TEXT_SHOWN: usize = 300;

/// Longest code word.
const WORD_MAX: usize = 48;

/// One fact; in JSON a string or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A text of this system or of an operator.
    Text(String),
    /// An amount in đồng.
    Money(i64),
    Count(i64),
    Moment(DateTime<Utc>),
    Id(Uuid),
}

impl Fact {
    /// A field for code words, such as a status or a reason, that another system wrote and [`WORD`] has read.
    pub(super) fn word_read(read: Option<&str>) -> Self {
        Self::word(read.unwrap_or_default())
    }

    /// The same for a field that was read completely.
    pub(super) fn word(text: &str) -> Self {
        Self::Text(if is_word(text) { text.to_owned() } else { "(redacted: free text)".to_owned() })
    }
}

/// SQL: the value of such a column if it is a code word, else null. PostgreSQL does not return any other text.
pub(super) const WORD: &str = "substring({column} FROM '^[a-z][a-z_.:-]{0,47}$')";

/// Lower-case letters, separated by `_`, `-`, `.` or `:`. No digits, so no phone number; no spaces, so no full name or sentence.
fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | '-' | '.' | ':');
    text.len() <= WORD_MAX && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(plain)
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => {
                plain(text.chars().take(TEXT_SHOWN)).try_for_each(|c| write!(f, "{c}"))?;
                if text.chars().nth(TEXT_SHOWN).is_some() { f.write_str(" …") } else { Ok(()) }
            }
            Self::Money(amount) => Dong(*amount).fmt(f),
            Self::Count(count) => count.fmt(f),
            Self::Moment(at) => f.write_str(&moment(*at)),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// Escapes characters that control a terminal or reverse the direction of a line.
fn plain(text: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    text.flat_map(|c| {
        let steers = c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (!steers).then_some(c).into_iter().chain(steers.then(|| c.escape_unicode()).into_iter().flatten())
    })
}

impl Serialize for Fact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Money(number) | Self::Count(number) => number.serialize(serializer),
            Self::Moment(at) => at.serialize(serializer),
            Self::Id(id) => id.serialize(serializer),
        }
    }
}

/// Named facts, in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(Vec<(&'static str, Fact)>);

impl Facts {
    pub(super) fn new(facts: impl IntoIterator<Item = (&'static str, Fact)>) -> Self {
        Self(facts.into_iter().collect())
    }

    #[must_use]
    pub(super) fn with(mut self, name: &'static str, fact: Option<Fact>) -> Self {
        self.0.extend(fact.map(|fact| (name, fact)));
        self
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, (name, fact))| {
            let between = if at > 0 { " · " } else { "" };
            write!(f, "{between}{} {fact}", name.replace('_', " "))
        })
    }
}

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, fact)| (*name, fact)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_others_wrote_only_words_of_a_code_are_shown() {
        for word in ["arrears", "in_warehouse", "order.arrears_collected", "collect-arrears"] {
            assert_eq!(Fact::word(word), Fact::Text(word.into()));
        }
        for free in ["", "Nguyễn Thị Mẫu", "0901234567", "refund for Lan", "mau@example.vn", "taobao/1", "Lan", &"x".repeat(49)]
        {
            assert_eq!(Fact::word(free).to_string(), "(redacted: free text)", "{free}");
        }
    }

    #[test]
    fn what_is_shown_reads_well_and_controls_no_terminal() {
        let facts =
            Facts::new([("amount", Fact::Money(1_500_000)), ("by_whom", Fact::Text("lan \"x\"\u{1b}[2J\u{202e}".into()))]);
        assert_eq!(facts.to_string(), "amount 1.500.000 ₫ · by whom lan \"x\"\\u{1b}[2J\\u{202e}");
        let json = serde_json::to_value(facts.with("none", None)).unwrap();
        assert_eq!(json, serde_json::json!({ "amount": 1_500_000, "by_whom": "lan \"x\"\u{1b}[2J\u{202e}" }));
        assert!(Fact::Text("y".repeat(400)).to_string().ends_with("y …"));
    }
}
