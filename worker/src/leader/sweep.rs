//! The sweep: publishes a new wake-up for rows that are overdue and not applied, because theirs was lost. It uses the same definition of
//! *due* as the recheck. In a healthy system it finds nothing; what it finds is counted and logged as a warning.
//!
//! An index on a time holds the whole past, so a round first looks at the recent past, and then at the rest step by step, within a time
//! limit.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{KeyValue, global, metrics::Counter};
use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};
use shared::{
    broker::Broker,
    database::{pause, statement},
    domain::{span::signed_ms, task::Shown, tasks},
    message::{
        outgoing::Outgoing,
        pack::{WaitingSubject, pack},
        wakeup::TraceContext,
    },
};
use uuid::Uuid;

use super::{Duty, DutyError, DutyRound, NEXT_ROUND};
use crate::context::Context;

mod overdue;
mod view;

use overdue::{Which, has_index, horizon, overdue};
use view::{Step, View};

/// How long a round continues a kind's deep look, and how long one of its queries may take.
const DEEP_MAX: Duration = Duration::from_secs(10);

/// After 30 days a swept row has its effect or its dead letter.
const FORGET: &str = "DELETE FROM swept WHERE at < now() - interval '30 days'";

const NAME: &str = "the sweep";

/// The duty that sweeps, with what it has looked at by kind.
pub(super) struct SweepDuty {
    views: HashMap<&'static str, View>,
    woken: Counter<u64>,
}

impl SweepDuty {
    pub(super) fn new() -> Self {
        let woken = global::meter("kyhan")
            .u64_counter("kyhan.sweep.woken")
            .with_unit("{subject}")
            .with_description("Overdue subjects without an effect that were woken again, by kind; zero in a healthy system")
            .build();
        Self { views: HashMap::new(), woken }
    }

    async fn kinds(&mut self, context: &Context, broker: &Broker) -> Result<(), DutyError> {
        // Skip paused kinds: everything due waits in its lane.
        let paused = pause::all(&context.db).await?;
        let mut done = Ok(());
        for task in tasks::ALL.iter().filter(|task| paused.iter().all(|pause| pause.kind != task.kind())) {
            let mut count = 0;
            let swept = sweep(context, broker, *task, self.views.entry(task.kind()).or_default(), &mut count).await;
            if count > 0 {
                tracing::warn!(kind = task.kind(), count, "woke overdue subjects whose wake-up was lost");
                self.woken.add(count as u64, &[KeyValue::new("kind", task.kind())]);
            }
            match swept {
                Ok(()) => {}
                // The other kinds are still swept.
                Err(error @ DutyError::Database(_)) => error.log(NAME, Some(task.kind()), NEXT_ROUND),
                Err(error) => done = Err(error),
            }
        }
        context.db.execute_unprepared(FORGET).await?;
        done
    }
}

impl Duty for SweepDuty {
    fn name(&self) -> &'static str {
        NAME
    }

    fn decides_leadership(&self) -> bool {
        true
    }

    fn forget(&mut self) {
        self.views.clear();
    }

    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { self.kinds(round.context, round.broker().await?).await }.boxed()
    }
}

/// Wakes the overdue rows of one kind, and adds their number to `woken`.
async fn sweep(
    context: &Context,
    broker: &Broker,
    task: &dyn Shown,
    view: &mut View,
    woken: &mut usize,
) -> Result<(), DutyError> {
    let sweep = &context.settings.sweep;
    let mut behind = 0;
    for lane in context.topology.lanes(task.kind()) {
        behind += broker.observe(&lane).await?.map_or(0, |seen| seen.messages);
    }
    if behind > sweep.lane_depth_max {
        // The lane is behind, so its rows still have their wake-ups.
        return Ok(());
    }
    let (horizon, batch_max) = (horizon(context).await?, sweep.batch_max as usize);
    if !has_index(context, task) {
        if view.is_resting() {
            return Ok(());
        }
        let asked = Instant::now();
        if task.not_before().is_some() {
            view.descend(horizon, horizon, TimeDelta::zero());
            let done = dive(context, broker, task, view, Which::OfAge, horizon, woken).await;
            view.rests_after(asked.elapsed());
            return done;
        }
        let found = overdue(&context.db, context, task, horizon, Which::All, batch_max).await;
        // Rest also after a failure, such as a timeout, and when rows are left for the next look.
        view.rests_after(asked.elapsed());
        let found = found?;
        return wake(context, broker, task, &found, woken).await;
    }
    let (after, pauses_after) = view.begins(horizon, delta(sweep.lookback));
    let recent = overdue(&context.db, context, task, horizon, Which::Recent { after, pauses_after }, batch_max).await;
    // If the recent past was too long for one query, a new view looks at it in small steps.
    let recent = recent.inspect_err(|_| *view = View::default())?;
    wake(context, broker, task, &recent, woken).await?;
    // After a full batch the next round takes the rest.
    if *woken < batch_max {
        view.saw(horizon);
        view.descend(after, horizon, delta(sweep.whole_every));
        dive(context, broker, task, view, Which::Deep, horizon, woken).await?;
    }
    Ok(())
}

/// Continues the deep look for at most [`DEEP_MAX`]. A failed query is only logged, because the recent past was already swept.
async fn dive(
    context: &Context,
    broker: &Broker,
    task: &dyn Shown,
    view: &mut View,
    which: fn(Step) -> Which,
    horizon: DateTime<Utc>,
    woken: &mut usize,
) -> Result<(), DutyError> {
    let (began, batch_max) = (Instant::now(), context.settings.sweep.batch_max as usize);
    while let Some(step) = view.step() {
        let (asked, room) = (Instant::now(), batch_max - *woken);
        let found = match impatiently(context, task, horizon, which(step), room).await {
            Ok(found) => found,
            Err(error) => {
                view.stumbled();
                DutyError::from(error).log("a look at rows overdue for long", Some(task.kind()), NEXT_ROUND);
                break;
            }
        };
        let took = asked.elapsed();
        wake(context, broker, task, &found, woken).await?;
        // This stretch may hold more rows.
        if found.len() == room {
            break;
        }
        view.stepped(step, took, horizon);
        if began.elapsed() > DEEP_MAX {
            break;
        }
    }
    Ok(())
}

/// [`overdue()`] with a statement timeout of at most [`DEEP_MAX`].
async fn impatiently(
    context: &Context,
    task: &dyn Shown,
    horizon: DateTime<Utc>,
    which: Which,
    limit: usize,
) -> Result<Vec<(Uuid, DateTime<Utc>)>, DbErr> {
    let timeout_ms = DEEP_MAX.min(context.settings.database.statement_timeout).as_millis();
    let tx = context.db.begin().await?;
    tx.execute_unprepared(&format!("SET LOCAL statement_timeout = {timeout_ms}")).await?;
    let found = overdue(&tx, context, task, horizon, which, limit).await?;
    tx.rollback().await?;
    Ok(found)
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::milliseconds(signed_ms(duration))
}

/// Publishes wake-ups of these rows directly into their lane.
async fn wake(
    context: &Context,
    broker: &Broker,
    task: &dyn Shown,
    overdue: &[(Uuid, DateTime<Utc>)],
    woken: &mut usize,
) -> Result<(), DutyError> {
    if overdue.is_empty() {
        return Ok(());
    }
    let waiting = overdue.iter().map(|(subject, due_at)| WaitingSubject {
        kind: task.kind(),
        subject: *subject,
        due_at: *due_at,
        wait: TimeDelta::zero(),
        attempt: 0,
    });
    let topology = &context.topology;
    let packed = pack(waiting, topology.ladder(), topology.shards(), context.settings.naming.pack_max, &TraceContext::default());
    let publisher = broker.publisher().await?;
    let messages: Vec<Outgoing> = packed.iter().map(|packed| Outgoing::of(packed, topology)).collect();
    publisher.publish_all(&messages).await?;
    publisher.close().await;
    *woken += overdue.len();
    // After the confirms: if the process dies in between, the rows are woken once more, which is harmless.
    Ok(remember(context, task, overdue).await?)
}

async fn remember(context: &Context, task: &dyn Shown, woken: &[(Uuid, DateTime<Utc>)]) -> Result<(), DbErr> {
    let (subjects, dues): (Vec<Uuid>, Vec<DateTime<Utc>>) = woken.iter().copied().unzip();
    let sql = "INSERT INTO swept (kind, subject_id, due_at, at, times)
               SELECT $1, subject_id, due_at, now(), 1 FROM unnest($2::uuid[], $3::timestamptz[]) AS woken (subject_id, due_at)
               ON CONFLICT (kind, subject_id) DO UPDATE SET at = now(), due_at = EXCLUDED.due_at,
                   times = CASE WHEN swept.due_at = EXCLUDED.due_at THEN swept.times + 1 ELSE 1 END";
    context.db.execute_raw(statement(sql, [task.kind().into(), subjects.into(), dues.into()])).await.map(|_| ())
}
