//! The forecast: counts how many subjects fall due in each coming period, as a metric by which an autoscaler adds workers before a burst.
//!
//! It uses the same definition of *due* as the recheck. Only the leader counts, and outdated counts are not exported.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, global};
use sea_orm::DbErr;
use shared::{
    database::{failure::trouble, scalar, statement, within},
    domain::{due, policy::Policy, task::Task, tasks},
    settings,
};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::ANSWER_WITHIN;
use crate::context::Context;

/// The periods: the attribute `within`, and the begin (exclusive) and the end (inclusive) in seconds from now. Exported counts of coming
/// periods are cumulative. Nothing older than an hour is counted, because that would read every past row of the index; the sweep and the
/// audit find what is overdue for longer.
const STRETCHES: [(&str, i32, i32); 5] =
    [("-1h", -3600, 0), ("1m", 0, 60), ("5m", 60, 300), ("15m", 300, 900), ("1h", 900, 3600)];

/// After how many periods without a new round the last counts are no longer exported.
const ROUNDS_MISSED_MAX: u32 = 3;

/// One point of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    kind: &'static str,
    within: &'static str,
    due: u64,
}

/// What the exporter reads: the points, and when they were counted.
#[derive(Clone, Default)]
pub(crate) struct ForecastGauge(Arc<Mutex<Option<CountedPoints>>>);

type CountedPoints = (Instant, Vec<Point>);

impl ForecastGauge {
    /// Registers an observable gauge, which, unlike a recorded one, exports nothing that it does not observe again. Counts expire after
    /// [`ROUNDS_MISSED_MAX`] periods, so that a round that hangs does not freeze them.
    pub(crate) fn new(settings: settings::ForecastSettings) -> Self {
        let forecast = Self::default();
        let Some(every) = settings.every else { return forecast };
        let (asked, lasts) = (forecast.clone(), every * ROUNDS_MISSED_MAX);
        let _registered = global::meter("kyhan")
            .u64_observable_gauge("kyhan.forecast.due")
            .with_unit("{subject}")
            .with_description(
                "Subjects that fall due within this time, by kind; at -1h, those that fell due and are not applied yet",
            )
            .with_callback(move |observer| {
                let forecast = asked.0.lock().unwrap_or_else(PoisonError::into_inner);
                let points = forecast.iter().filter(|(at, _)| at.elapsed() < lasts).flat_map(|(_, points)| points);
                for Point { kind, within, due } in points {
                    observer.observe(*due, &[KeyValue::new("kind", *kind), KeyValue::new("within", *within)]);
                }
            })
            .build();
        forecast
    }

    fn publish(&self, points: Option<Vec<Point>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = points.map(|points| (Instant::now(), points));
    }
}

/// Forecasts while `leads` is true, until its sender is dropped.
pub(super) async fn run(context: &Context, forecast: ForecastGauge, mut leads: watch::Receiver<bool>) {
    let Some(every) = context.settings.forecast.every else { return };
    // Withdraw the counts of the policy before.
    forecast.publish(None);
    while leads.wait_for(|leads| *leads).await.is_ok() {
        let sweeps = tokio::select! {
            never = rounds(context, every, &forecast) => match never {},
            deposed = leads.wait_for(|leads| !*leads) => deposed.is_ok(),
        };
        // Another process leads now; withdraw these counts, so that only one process exports them.
        forecast.publish(None);
        if !sweeps {
            return;
        }
    }
}

/// Counts round after round.
async fn rounds(context: &Context, every: Duration, forecast: &ForecastGauge) -> Infallible {
    let mut ticks = tokio::time::interval(every);
    // Do not catch up on ticks that a slow round missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut points = Vec::new();
        for task in tasks::ALL {
            match within(ANSWER_WITHIN, count(context, *task)).await {
                Ok(counted) => points.extend(counted),
                // The consumers log an outage already.
                Err(error) if trouble(&error).is_outage() => {
                    tracing::debug!(
                        kind = task.kind(),
                        error = shared::process::redact::redacted(&error),
                        "a kind could not be forecast"
                    );
                }
                Err(error) => {
                    tracing::warn!(
                        kind = task.kind(),
                        error = shared::process::redact::redacted(&error),
                        "a kind could not be forecast"
                    );
                }
            }
        }
        forecast.publish(Some(points));
    }
}

/// The points of one kind; none if no index supports the count.
async fn count(context: &Context, task: &dyn Task) -> Result<Vec<Point>, DbErr> {
    let Some(sql) = question(task, &context.settings.policy) else { return Ok(Vec::new()) };
    let count_max = i64::from(context.settings.forecast.count_max);
    let counts: Vec<i64> = scalar(&context.db, statement(&sql, [count_max.into()])).await?;
    Ok(points(task.kind(), &counts))
}

/// Each period has its own limit, so that a full one does not affect the others.
fn question(task: &dyn Task, policy: &Policy) -> Option<String> {
    let of_stretch = |(_, after, until): &(&str, i32, i32)| {
        let moment = |seconds: &i32| format!("(now() + interval '{seconds} seconds')");
        let (after, until) = (moment(after), moment(until));
        let due = due::query_between(task, policy, &after, &until)?;
        Some(format!(
            "(SELECT count(*) FROM (SELECT FROM {due} AS due WHERE due_at > {after} AND due_at <= {until} LIMIT $1) AS counted)"
        ))
    };
    let counts: Option<Vec<String>> = STRETCHES.iter().map(of_stretch).collect();
    Some(format!("SELECT ARRAY[{}] AS counts", counts?.join(", ")))
}

fn points(kind: &'static str, counts: &[i64]) -> Vec<Point> {
    let mut coming = 0;
    let of_stretch = |(&(within, after, _), count): (&(&'static str, i32, i32), &i64)| {
        let count = u64::try_from(*count).unwrap_or_default();
        let due = if after < 0 {
            count
        } else {
            coming += count;
            coming
        };
        Point { kind, within, due }
    };
    STRETCHES.iter().zip(counts).map(of_stretch).collect()
}
