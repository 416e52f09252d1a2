//! Spans: how long after a moment something falls due. Days and shorter are exact; months are calendar months in
//! Asia/Ho_Chi_Minh (policy.md). Rust and PostgreSQL add the same span to the same result.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, FixedOffset, Months, Utc};

/// Asia/Ho_Chi_Minh: UTC+7 without summer time since 1975.
const VIETNAM_OFFSET_S: i32 = 7 * 3600;
const DAY_MS: u64 = 86_400_000;
/// The longest span that a policy may have: RabbitMQ's maximum TTL.
const SPAN_MAX: u64 = 3_650 * DAY_MS;

/// A span of the policy, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// An exact duration, in milliseconds.
    Exact(u64),
    /// Calendar months in Asia/Ho_Chi_Minh.
    Months(u32),
}

impl Span {
    /// The moment one span after `basis`; `None` past the end of the calendar.
    #[must_use]
    pub fn after(self, basis: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Exact(ms) => basis.checked_add_signed(chrono::TimeDelta::try_milliseconds(i64::try_from(ms).ok()?)?),
            Self::Months(months) => {
                let vietnam = FixedOffset::east_opt(VIETNAM_OFFSET_S)?;
                let there = basis.with_timezone(&vietnam).checked_add_months(Months::new(months))?;
                Some(there.with_timezone(&Utc))
            }
        }
    }

    /// The SQL expression for one span after the `timestamptz` expression `basis`.
    #[must_use]
    pub fn sql_after(self, basis: &str) -> String {
        match self {
            Self::Exact(ms) => format!("{basis} + interval '{}.{:03} seconds'", ms / 1000, ms % 1000),
            Self::Months(months) => {
                format!("({basis} AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '{months} months') AT TIME ZONE 'Asia/Ho_Chi_Minh'")
            }
        }
    }

    /// The SQL expression for an upper bound, close to the latest moment of which one span later is no later than the
    /// `timestamptz` expression `end`: every such moment is no later than the bound.
    #[must_use]
    pub fn sql_before_at_the_latest(self, end: &str) -> String {
        match self {
            Self::Exact(ms) => format!("{end} - interval '{}.{:03} seconds'", ms / 1000, ms % 1000),
            // From 31 August, six months lead to 28 February, and six months back from there to 28 August: hence the margin.
            Self::Months(months) => format!("{} + interval '4 days'", Self::sql_months_ago(months, end)),
        }
    }

    /// The SQL expression for a moment one span before the `timestamptz` expression `end`: everything earlier is older than
    /// the span at `end`.
    #[must_use]
    pub fn sql_ago(self, end: &str) -> String {
        match self {
            Self::Exact(ms) => format!("({end} - interval '{}.{:03} seconds')", ms / 1000, ms % 1000),
            Self::Months(months) => Self::sql_months_ago(months, end),
        }
    }

    /// Adding the months to the result gives `end` or an earlier moment.
    fn sql_months_ago(months: u32, end: &str) -> String {
        format!("(({end} AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '{months} months') AT TIME ZONE 'Asia/Ho_Chi_Minh')")
    }

    /// Whether this span is at least as long as `other`, from any starting moment.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::Exact(own), Self::Exact(other)) => own >= other,
            (Self::Months(own), Self::Months(other)) => own >= other,
            (Self::Exact(own), Self::Months(_)) => own >= other.longest_ms(),
            // No month is shorter than 28 days.
            (Self::Months(own), Self::Exact(other)) => own as u64 * 28 * DAY_MS >= other,
        }
    }

    /// The exact duration; `None` for calendar months.
    #[must_use]
    pub const fn exact(self) -> Option<Duration> {
        match self {
            Self::Exact(ms) => Some(Duration::from_millis(ms)),
            Self::Months(_) => None,
        }
    }

    /// The length in milliseconds, with every month at its longest. Use it only to compare spans.
    #[must_use]
    pub const fn longest_ms(self) -> u64 {
        match self {
            Self::Exact(ms) => ms,
            Self::Months(months) => months as u64 * 31 * DAY_MS,
        }
    }
}

/// The SQL expression for the day of the `timestamptz` expression `moment` in Asia/Ho_Chi_Minh.
#[must_use]
pub fn sql_day(moment: &str) -> String {
    format!("({moment} AT TIME ZONE 'Asia/Ho_Chi_Minh')::date")
}

/// The shortest way to write an exact duration with one unit: `14d`, `1h`, `90s`, `1500ms`.
#[must_use]
pub fn compact(ms: u64) -> String {
    for (unit, size) in [("d", DAY_MS), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms > 0 && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(ms) => f.write_str(&compact(*ms)),
            Self::Months(1) => f.write_str("1 month"),
            Self::Months(months) => write!(f, "{months} months"),
        }
    }
}

/// Why a text is not a valid span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid duration ({why}); use a form like \"14d\", \"24h\", \"90s\", \"500ms\" or \"6 months\"")]
pub struct NotASpan {
    text: String,
    why: String,
}

impl FromStr for Span {
    type Err = NotASpan;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| NotASpan { text: text.to_owned(), why: why.to_owned() };
        let span: jiff::Span = text.trim().parse().map_err(|error: jiff::Error| refuse(&error.to_string()))?;
        if span.is_negative() || span.is_zero() {
            return Err(refuse("it must be positive"));
        }
        if span.get_microseconds() != 0 || span.get_nanoseconds() != 0 {
            return Err(refuse("the smallest unit is the millisecond"));
        }
        let months = i64::from(span.get_years()) * 12 + i64::from(span.get_months());
        let part = |count: i64, size: u64| u64::try_from(count).ok().and_then(|count| count.checked_mul(size));
        let exact = [
            part(i64::from(span.get_weeks()), 7 * DAY_MS),
            part(i64::from(span.get_days()), DAY_MS),
            part(i64::from(span.get_hours()), 3_600_000),
            part(span.get_minutes(), 60_000),
            part(span.get_seconds(), 1000),
            part(span.get_milliseconds(), 1),
        ]
        .into_iter()
        .try_fold(0u64, |sum, part| sum.checked_add(part?))
        .ok_or_else(|| refuse("it is too long"))?;
        let parsed = match (months, exact) {
            (0, exact) => Self::Exact(exact),
            (months, 0) => Self::Months(u32::try_from(months).map_err(|_| refuse("it is too long"))?),
            _ => return Err(refuse("calendar months cannot be combined with exact durations")),
        };
        if parsed.longest_ms() > SPAN_MAX {
            return Err(refuse("the maximum is 3650 days"));
        }
        Ok(parsed)
    }
}

/// Milliseconds as the signed integer that SQL takes.
#[must_use]
pub fn signed_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn the_policys_spans_are_read_and_written() {
        for (text, span, shown) in [
            ("14d", Span::Exact(14 * DAY_MS), "14d"),
            ("24h", Span::Exact(DAY_MS), "1d"),
            ("2 weeks", Span::Exact(14 * DAY_MS), "14d"),
            ("6 months", Span::Months(6), "6 months"),
            ("1 year", Span::Months(12), "12 months"),
            ("500ms", Span::Exact(500), "500ms"),
            ("1h 30m", Span::Exact(5_400_000), "90m"),
        ] {
            assert_eq!(text.parse(), Ok(span), "{text}");
            assert_eq!(span.to_string(), shown);
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example_of_what_is_right() {
        for text in ["", "0s", "-1d", "14", "soon", "1 month 3 days", "99999999999999d", "5µs", "40 years", "3651d"] {
            let refused = text.parse::<Span>().unwrap_err().to_string();
            assert!(refused.contains("\"6 months\""), "{text}: {refused}");
        }
    }

    #[test]
    fn six_months_follow_the_calendar_of_ho_chi_minh_city() {
        let six = Span::Months(6);
        // 31 August there; February has no 31st.
        assert_eq!(six.after(at("2026-08-31T03:00:00Z")), Some(at("2027-02-28T03:00:00Z")));
        // 18:00 UTC on the 30th is already the 31st there.
        assert_eq!(six.after(at("2026-08-30T18:00:00Z")), Some(at("2027-02-27T18:00:00Z")));
        assert_eq!(six.after(at("2027-08-31T03:00:00Z")), Some(at("2028-02-29T03:00:00Z")));
        assert_eq!(six.after(DateTime::<Utc>::MAX_UTC), None);
    }
}
