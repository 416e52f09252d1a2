//! A time as an operator types it: exact, a day in Asia/Ho_Chi_Minh, or a duration ago. *Ago* is relative to PostgreSQL's clock.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Utc};
use sea_orm::sea_query::Expr;
use serde::{Deserialize, Serialize};
use shared::domain::span::Span;

use crate::shown::HO_CHI_MINH;

/// A time, a day, or a duration ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Moment {
    At(DateTime<Utc>),
    /// A day in Asia/Ho_Chi_Minh.
    Day(NaiveDate),
    /// This long before the statement runs.
    Ago(Span),
}

impl Moment {
    /// SQL for the time, or the beginning of the day.
    #[must_use]
    pub fn begins(&self) -> Expr {
        match self {
            Self::At(at) => Expr::val(*at),
            Self::Day(day) => Expr::val(midnight(*day)),
            Self::Ago(Span::Exact(ms)) => {
                Expr::cust_with_values("now() - $1::bigint * interval '1 ms'", [i64::try_from(*ms).unwrap_or(i64::MAX)])
            }
            Self::Ago(Span::Months(months)) => Expr::cust_with_values(
                "(now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - $1::bigint * interval '1 month') AT TIME ZONE 'Asia/Ho_Chi_Minh'",
                [i64::from(*months)],
            ),
        }
    }

    /// SQL for the time, or the end of the day.
    #[must_use]
    pub fn ends(&self) -> Expr {
        match self {
            Self::Day(day) => Self::Day(day.succ_opt().unwrap_or(*day)).begins(),
            Self::At(_) | Self::Ago(_) => self.begins(),
        }
    }
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    // The offset never changes, so each midnight exists once. Parsing limits the year, so the result is in range.
    let there = day.and_time(NaiveTime::MIN).and_local_timezone(HO_CHI_MINH);
    there.single().map_or(DateTime::<Utc>::MIN_UTC, |midnight| midnight.to_utc())
}

/// The error for a text that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid time; use a time (2026-11-24T15:04:05+07:00), a day (2026-11-24) or a duration ago (2h, 3d)")]
pub struct NotAMoment(String);

impl FromStr for Moment {
    type Err = NotAMoment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// The years that both PostgreSQL and chrono can represent.
        const YEARS: std::ops::RangeInclusive<i32> = 1970..=9998;
        let text = text.trim();
        let read = if let Ok(day) = text.parse::<NaiveDate>() {
            Some(Self::Day(day)).filter(|_| YEARS.contains(&day.year()))
        } else if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            Some(Self::At(at.to_utc())).filter(|_| YEARS.contains(&at.year()))
        } else {
            text.parse().ok().map(Self::Ago)
        };
        read.ok_or_else(|| NotAMoment(text.to_owned()))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => f.write_str(&at.to_rfc3339()),
            Self::Day(day) => write!(f, "{day}"),
            Self::Ago(span) => write!(f, "{span}"),
        }
    }
}

impl TryFrom<String> for Moment {
    type Error = NotAMoment;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn moments_days_and_spans_are_distinguished() {
        for (text, moment) in [
            ("2026-11-24T15:04:05+07:00", Moment::At(at("2026-11-24T08:04:05Z"))),
            ("2026-11-24", Moment::Day(NaiveDate::from_ymd_opt(2026, 11, 24).unwrap())),
            ("2h", Moment::Ago(Span::Exact(7_200_000))),
            ("6 months", Moment::Ago(Span::Months(6))),
        ] {
            assert_eq!(text.parse(), Ok(moment.clone()), "{text}");
            assert_eq!(moment.to_string().parse(), Ok(moment));
        }
        for text in ["", "soon", "-2h", "2026-13-01", "9999-12-31", "2026-11-24 15:04", "1764000000"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_day_is_that_of_ho_chi_minh_city_from_its_beginning_to_its_end() {
        let day: Moment = "2026-11-24".parse().unwrap();
        assert_eq!(day.begins(), Expr::val(at("2026-11-23T17:00:00Z")));
        assert_eq!(day.ends(), Expr::val(at("2026-11-24T17:00:00Z")));
    }
}
