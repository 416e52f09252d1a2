//! The forecast: how many subjects fall due in each coming stretch of time, as a metric by which an autoscaler adds workers before
//! a burst. It reads the same definition of *due* as the recheck, and only counts; a number that is no longer kept up to date is
//! not told.
//!
//! The sweep's leader makes it, as the rows are the same for everyone.

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

use crate::lane::Context;

/// What is counted: the attribute `within`, and the stretch of time after the one moment up to the other, in seconds from now.
/// Of the coming ones each number counts those before it too. Further back nothing is counted: there every row that an index holds
/// of the past would have to be looked at. What is overdue for longer, the sweep and the audit find.
const STRETCHES: [(&str, i32, i32); 5] =
    [("-1h", -3600, 0), ("1m", 0, 60), ("5m", 60, 300), ("15m", 300, 900), ("1h", 900, 3600)];

/// How long PostgreSQL may take to count one kind, should it not give up by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Rounds that may fail or be late before the numbers of the last good one are withdrawn.
const ROUNDS_MISSED_MAX: u32 = 3;

/// One point of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    kind: &'static str,
    within: &'static str,
    due: u64,
}

/// What the exporter is told when it asks: the points and when they were counted.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Option<Counted>>>);

type Counted = (Instant, Vec<Point>);

impl Told {
    /// An observable gauge, unlike one that is recorded, forgets what it is not told again. Numbers last for a few rounds: one that hangs
    /// must not freeze them.
    pub(crate) fn new(settings: settings::Forecast) -> Self {
        let told = Self::default();
        let Some(every) = settings.every else { return told };
        let (asked, lasts) = (told.clone(), every * ROUNDS_MISSED_MAX);
        let _registered = global::meter("kyhan")
            .u64_observable_gauge("kyhan.forecast.due")
            .with_unit("{subject}")
            .with_description(
                "Subjects that fall due between now and then, by kind; at -1h, that fell due and are not applied yet",
            )
            .with_callback(move |observer| {
                let told = asked.0.lock().unwrap_or_else(PoisonError::into_inner);
                let points = told.iter().filter(|(at, _)| at.elapsed() < lasts).flat_map(|(_, points)| points);
                for Point { kind, within, due } in points {
                    observer.observe(*due, &[KeyValue::new("kind", *kind), KeyValue::new("within", *within)]);
                }
            })
            .build();
        told
    }

    fn tell(&self, points: Option<Vec<Point>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = points.map(|points| (Instant::now(), points));
    }
}

/// Forecasts while `leads` says so, until the sweep is gone.
pub(crate) async fn run(context: Arc<Context>, told: Told, mut leads: watch::Receiver<bool>) {
    let Some(every) = context.settings.forecast.every else { return };
    // Under another policy, perhaps, something else was told.
    told.tell(None);
    while leads.wait_for(|leads| *leads).await.is_ok() {
        let sweeps = tokio::select! {
            never = rounds(&context, every, &told) => match never {},
            deposed = leads.wait_for(|leads| !*leads) => deposed.is_ok(),
        };
        // Another process tells now, and two that differ would be one too many.
        told.tell(None);
        if !sweeps {
            return;
        }
    }
}

/// Counts round after round.
async fn rounds(context: &Context, every: Duration, told: &Told) -> Infallible {
    let mut ticks = tokio::time::interval(every);
    // What a slow round missed is not made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut points = Vec::new();
        for task in tasks::ALL {
            match within(ANSWER_WITHIN, count(context, *task)).await {
                Ok(counted) => points.extend(counted),
                // An outage is told of by the lanes already.
                Err(error) if trouble(&error).is_outage() => {
                    tracing::debug!(kind = task.kind(), error = shared::process::redact::told(&error), "no forecast");
                }
                Err(error) => tracing::warn!(kind = task.kind(), error = shared::process::redact::told(&error), "no forecast"),
            }
        }
        told.tell(Some(points));
    }
}

/// One kind's points; none of a kind that no index helps to count.
async fn count(context: &Context, task: &dyn Task) -> Result<Vec<Point>, DbErr> {
    let Some(sql) = question(task, &context.settings.policy) else { return Ok(Vec::new()) };
    let count_max = i64::from(context.settings.forecast.count_max);
    let counts: Vec<i64> = scalar(&context.db, statement(&sql, [count_max.into()])).await?;
    Ok(points(task.kind(), &counts))
}

/// Each stretch by itself, so that none keeps another from being counted.
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
