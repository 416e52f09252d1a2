//! Values of settings that are more than a number in a range or a string. Each function reads one key and reports what is
//! accepted.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use super::reader::SettingsReader;
use crate::domain::span::Span;

/// Reads a key whose name ends in `_ms`.
pub(super) fn duration(r: &mut SettingsReader, key: &str, range_ms: RangeInclusive<u64>) -> Duration {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let ms = r.number(key, signed(*range_ms.start())..=signed(*range_ms.end()));
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

pub(super) fn size(r: &mut SettingsReader, key: &str, most: usize) -> usize {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    usize::try_from(r.number(key, 1..=most)).unwrap_or(1)
}

pub(super) fn prefix(r: &mut SettingsReader) -> String {
    const LENGTH_MAX: usize = 80;
    let prefix = r.text("topology.prefix");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if prefix.is_empty()
        || prefix.len() > LENGTH_MAX
        || !prefix.chars().all(plain)
        || prefix == "amq"
        || prefix.starts_with("amq.")
    {
        let why = format!(
            "{prefix:?} is not a valid prefix for queue names; use up to {LENGTH_MAX} letters, digits, '-', '_' and '.', \
             but not amq, which RabbitMQ reserves"
        );
        r.mistake("topology.prefix", why);
    }
    prefix
}

/// A schema's name that needs no quotes in SQL.
pub(super) fn schema_name(r: &mut SettingsReader, key: &'static str) -> String {
    let name = r.text(key);
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain || name.len() > 63 || name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() || name.starts_with("pg_") {
        let why = format!(
            "{name:?} is not a valid schema; use up to 63 lowercase letters, digits and '_', beginning with a letter, but not pg_, \
             which PostgreSQL reserves"
        );
        r.mistake(key, why);
    }
    name
}

pub(super) fn dong_or_none(r: &mut SettingsReader, key: &'static str) -> Option<i64> {
    let text = r.text(key);
    if text == "none" {
        return None;
    }
    let amount = text.replace('_', "").parse().ok();
    if amount.is_none() {
        r.mistake(key, format!("must be \"none\" or an integer number of đồng (got {text:?})"));
    }
    amount
}

pub(super) fn keep(r: &mut SettingsReader) -> Option<Span> {
    let text = r.text("dead_letters.keep");
    if text == "none" {
        return None;
    }
    let span = text.parse();
    if let Err(error) = &span {
        r.mistake("dead_letters.keep", format!("{error}, or \"none\" to keep them forever"));
    }
    span.ok()
}

/// How long the policy promises to keep records in the active views (point 4).
const SIX_MONTHS: Span = Span::Months(6);

pub(super) fn at_least_six_months(r: &mut SettingsReader, key: &'static str) -> Span {
    at_least(r, key, SIX_MONTHS, ", as the policy promises")
}

/// How long an event that was set aside is kept at least: the database discards no younger one.
const SET_ASIDE_LEAST: Span = Span::Exact(30 * 24 * 60 * 60_000);

pub(super) fn set_aside(r: &mut SettingsReader) -> Span {
    at_least(r, "retention.set_aside", SET_ASIDE_LEAST, "")
}

fn at_least(r: &mut SettingsReader, key: &'static str, least: Span, why: &str) -> Span {
    match r.text(key).parse::<Span>() {
        Ok(span) if span.covers(least) => return span,
        Ok(span) => r.mistake(key, format!("must be at least {least}{why} (got {span})")),
        Err(error) => r.mistake(key, error.to_string()),
    }
    least
}

/// How long after it was hidden something is deleted; `None`: never.
pub(super) fn delete_after(r: &mut SettingsReader) -> Option<Span> {
    let after = at_least_six_months(r, "retention.delete_after");
    match r.text("retention.mode").as_str() {
        "hide" => None,
        "delete" => Some(after),
        other => {
            r.mistake("retention.mode", format!("must be \"hide\" or \"delete\" (got {other:?})"));
            None
        }
    }
}

pub(super) fn forecast_every(r: &mut SettingsReader) -> Option<Duration> {
    const RANGE_MS: RangeInclusive<u64> = 10..=24 * 60 * 60_000;
    let text = r.text("forecast.every_ms");
    if text == "none" {
        return None;
    }
    let every_ms = text.replace('_', "").parse().ok().filter(|every_ms| RANGE_MS.contains(every_ms));
    if every_ms.is_none() {
        let (low, high) = (RANGE_MS.start(), RANGE_MS.end());
        r.mistake("forecast.every_ms", format!("must be \"none\" or an integer from {low} to {high} (got {text:?})"));
    }
    every_ms.map(Duration::from_millis)
}

pub(super) fn listen(r: &mut SettingsReader) -> Option<SocketAddr> {
    let text = r.text("admin.listen");
    if text == "none" {
        return None;
    }
    let address = text.parse().ok();
    if address.is_none() {
        r.mistake("admin.listen", format!("must be \"none\" or an address and port like 0.0.0.0:9400 (got {text:?})"));
    }
    address
}

pub(super) fn log_filter(r: &mut SettingsReader) -> String {
    let filter = r.text("telemetry.log");
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&filter) {
        r.mistake(
            "telemetry.log",
            format!("{filter:?} is not a valid filter ({error}); use a form like \"info\" or \"worker=debug,info\""),
        );
    }
    filter
}
