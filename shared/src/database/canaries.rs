//! The canaries that were sent and those that have arrived, in the table `canaries`: the state of each rung follows from it
//! alone.

use std::time::Duration;

use chrono::TimeDelta;
use sea_orm::{ColumnTrait, ConnectionTrait, DatabaseConnection, DbErr, EntityTrait, FromQueryResult, QueryFilter};
use uuid::Uuid;

use super::{entity::canaries, statement};
use crate::domain::span::signed_ms;
use crate::message::{
    canary::{Canary, RungQueue},
    topology::Topology,
};

/// Longest time between two canaries of a rung: a rung that has stalled is detected within it and the grace.
const EVERY_MAX: Duration = Duration::from_hours(1);

/// How old a rung's head is, judged by its canaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RungAge {
    pub queue: String,
    /// Age of the oldest canary that has not arrived; zero if none waits.
    pub head_age: TimeDelta,
    /// How long that canary has been overdue; zero if it is not.
    pub overdue: TimeDelta,
    /// How late the newest arrival was; `None` before the first.
    pub late: Option<TimeDelta>,
}

/// Records a canary for every rung that needs one now; the caller publishes each, or [`withdraw`]s it.
///
/// # Errors
/// A database error.
pub async fn send(db: &DatabaseConnection, topology: &Topology, every: Duration) -> Result<Vec<(Canary, RungQueue)>, DbErr> {
    let rungs: Vec<(RungQueue, String)> = topology.rungs().collect();
    let queues: Vec<String> = rungs.iter().map(|(_, queue)| queue.clone()).collect();
    let durations: Vec<i64> = rungs.iter().map(|((rung, _), _)| signed(rung.duration_ms())).collect();
    let (least, most) = (signed_ms(every), signed_ms(EVERY_MAX.max(every)));
    let sql = "INSERT INTO canaries (id, queue, published_at, due_at)
               SELECT gen_random_uuid(), asked.queue, now(), now() + asked.duration_ms * interval '1 ms'
                 FROM unnest($1::text[], $2::bigint[]) AS asked (queue, duration_ms)
                WHERE NOT EXISTS (
                          SELECT FROM canaries WHERE canaries.queue = asked.queue
                             AND canaries.published_at > now() - least(greatest(asked.duration_ms, $3), $4) * interval '1 ms')
               RETURNING *";
    let values = [queues.into(), durations.into(), least.into(), most.into()];
    let written = canaries::Model::find_by_statement(statement(sql, values)).all(db).await?;
    let placed = |canaries::Model { id, queue, .. }| {
        let (place, _) = rungs.iter().find(|(_, name)| *name == queue)?;
        Some((Canary { id, queue }, *place))
    };
    Ok(written.into_iter().filter_map(placed).collect())
}

/// Deletes a canary that could not be published.
///
/// # Errors
/// A database error.
pub async fn withdraw(db: &DatabaseConnection, canary: &Canary) -> Result<(), DbErr> {
    canaries::Entity::delete_by_id(canary.id).exec(db).await.map(|_| ())
}

/// Deletes every canary that waits: its rung was lost, or will be probed again from the start.
///
/// # Errors
/// A database error.
pub async fn withdraw_all(db: &impl ConnectionTrait, topology: &Topology) -> Result<(), DbErr> {
    let of_topology = canaries::Column::Queue.eq_any(topology.rungs().map(|(_, queue)| queue));
    let waiting = canaries::Entity::delete_many().filter(of_topology).filter(canaries::Column::ArrivedAt.is_null());
    waiting.exec(db).await.map(|_| ())
}

/// Records that canaries have arrived. Idempotent; an unknown canary is ignored.
///
/// # Errors
/// A database error.
pub async fn arrived(db: &impl ConnectionTrait, canaries: &[Canary]) -> Result<(), DbErr> {
    let ids: Vec<Uuid> = canaries.iter().map(|canary| canary.id).collect();
    let sql = "UPDATE canaries SET arrived_at = now() WHERE id = ANY($1) AND arrived_at IS NULL";
    db.execute_raw(statement(sql, [ids.into()])).await.map(|_| ())
}

/// How old the head of every rung is.
///
/// # Errors
/// A database error.
pub async fn ages(db: &DatabaseConnection, topology: &Topology) -> Result<Vec<RungAge>, DbErr> {
    /// In seconds.
    #[derive(FromQueryResult)]
    struct Ages {
        queue: String,
        head_age: f64,
        overdue: f64,
        late: Option<f64>,
    }
    let sql = "SELECT asked.queue,
                      coalesce(extract(epoch FROM now() - min(published_at) FILTER (WHERE arrived_at IS NULL)), 0)::float8 AS head_age,
                      coalesce(greatest(extract(epoch FROM now() - min(due_at) FILTER (WHERE arrived_at IS NULL)), 0), 0)::float8 AS overdue,
                      extract(epoch FROM (array_agg(arrived_at - due_at ORDER BY arrived_at DESC)
                                          FILTER (WHERE arrived_at IS NOT NULL))[1])::float8 AS late
                 FROM unnest($1::text[]) WITH ORDINALITY AS asked (queue, place)
                      LEFT JOIN canaries ON canaries.queue = asked.queue
                GROUP BY asked.queue, asked.place ORDER BY asked.place";
    let queues: Vec<String> = topology.rungs().map(|(_, queue)| queue).collect();
    let rungs = Ages::find_by_statement(statement(sql, [queues.into()])).all(db).await?.into_iter();
    let age = |Ages { queue, head_age, overdue, late }| RungAge {
        queue,
        head_age: seconds(head_age),
        overdue: seconds(overdue),
        late: late.map(seconds),
    };
    Ok(rungs.map(age).collect())
}

/// Deletes old canaries, and those that younger ones of their rung have overtaken: a rung keeps its order, so they were lost.
/// Returns how many were lost.
///
/// # Errors
/// A database error.
pub async fn forget(db: &DatabaseConnection, topology: &Topology) -> Result<u64, DbErr> {
    let queues: Vec<String> = topology.rungs().map(|(_, queue)| queue).collect();
    let old = "DELETE FROM canaries WHERE arrived_at < now() - interval '1 day'
                  OR (NOT queue = ANY($1) AND due_at < now() - interval '1 day')";
    db.execute_raw(statement(old, [queues.clone().into()])).await?;
    let lost = "DELETE FROM canaries WHERE queue = ANY($1) AND arrived_at IS NULL AND due_at < now() - interval '1 minute'
                   AND EXISTS (SELECT FROM canaries AS younger
                                WHERE younger.queue = canaries.queue AND younger.published_at > canaries.published_at
                                  AND younger.arrived_at < now() - interval '1 minute')";
    Ok(db.execute_raw(statement(lost, [queues.into()])).await?.rows_affected())
}

fn seconds(seconds: f64) -> TimeDelta {
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the range of a time delta")]
    TimeDelta::milliseconds((seconds * 1000.0) as i64)
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
