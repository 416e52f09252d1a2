//! The outbox: rows are taken by deleting them in a transaction that commits only once their wake-ups are confirmed.
//! What makes no sense is set aside, whole and with a reason, in the same transaction.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult};
use shared::{
    database::statement,
    event::{Event, EventType},
};
use uuid::Uuid;

/// What a transaction has taken.
pub(crate) struct Taken {
    pub events: Vec<Event>,
    pub refused: Vec<Refused>,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

/// A row that makes no sense, as it was, and why.
pub(crate) struct Refused {
    event_id: Uuid,
    event_type: String,
    subject: Uuid,
    occurred_at: String,
    data: Option<String>,
    reason: String,
}

/// Takes up to `batch_max` rows, oldest first, that no other relay has in hand. `None` when there are none.
pub(crate) async fn take(tx: &DatabaseTransaction, batch_max: u32) -> Result<Option<Taken>, DbErr> {
    let rows = tx.query_all_raw(statement(&take_sql(), [i64::from(batch_max).into()])).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut taken = Taken { events: Vec::with_capacity(rows.len()), refused: Vec::new(), now: first.try_get("", "now")? };
    for row in &rows {
        match understand(row)? {
            Ok(event) => taken.events.push(event),
            Err(refused) => taken.refused.push(refused),
        }
    }
    Ok(Some(taken))
}

/// The subject's row is looked up beside the taking, so that an event about nothing is found here and not a month later.
fn take_sql() -> String {
    let known = EventType::ALL.map(|event| {
        let table = event.table();
        format!("WHEN '{event}' THEN EXISTS (SELECT FROM {table} WHERE {table}.id = taken.subject_id)")
    });
    format!(
        "WITH taken AS (
            DELETE FROM outbox WHERE id = ANY (ARRAY(
                SELECT id FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING *
         )
         SELECT event_id, event_type, subject_id, data::text AS data, occurred_at::text AS occurred_at_text,
                CASE WHEN occurred_at BETWEEN '1970-01-01' AND '9999-12-31' THEN occurred_at END AS occurred_at,
                CASE event_type {known} END AS known, clock_timestamp() AS now
           FROM taken",
        known = known.join(" ")
    )
}

fn understand(row: &QueryResult) -> Result<Result<Event, Refused>, DbErr> {
    let event_id: Uuid = row.try_get("", "event_id")?;
    let name: String = row.try_get("", "event_type")?;
    let subject: Uuid = row.try_get("", "subject_id")?;
    let occurred_at: Option<DateTime<Utc>> = row.try_get("", "occurred_at")?;
    let known: Option<bool> = row.try_get("", "known")?;
    let reason = match (name.parse::<EventType>(), occurred_at, known) {
        (Ok(event_type), Some(occurred_at), Some(true)) => {
            return Ok(Ok(Event { id: event_id, event_type, subject, occurred_at }));
        }
        (Err(unknown), _, _) => unknown.to_string(),
        (Ok(_), None, _) => "it says to have happened before 1970 or after 9999".to_owned(),
        (Ok(event_type), Some(_), _) => format!("no row of {} has this id", event_type.table()),
    };
    let occurred_at = row.try_get("", "occurred_at_text")?;
    Ok(Err(Refused { event_id, event_type: name, subject, occurred_at, data: row.try_get("", "data")?, reason }))
}

impl Refused {
    /// An event that was understood, but from which nothing sensible follows.
    pub(crate) fn beyond_the_calendar(event: &Event) -> Self {
        Self {
            event_id: event.id,
            event_type: event.event_type.name().to_owned(),
            subject: event.subject,
            occurred_at: event.occurred_at.to_rfc3339(),
            data: None,
            reason: "what follows from it would fall due beyond the calendar's end".to_owned(),
        }
    }
}

/// Sets rows aside.
pub(crate) async fn set_aside(tx: &DatabaseTransaction, refused: Vec<Refused>) -> Result<(), DbErr> {
    let sql = "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, data, reason)
               SELECT $1, $2, $3, $4::timestamptz, $5::jsonb, $6";
    for one in refused {
        tracing::warn!(event_id = %one.event_id, reason = one.reason, "an event is set aside");
        let values = [
            one.event_id.into(),
            one.event_type.into(),
            one.subject.into(),
            one.occurred_at.into(),
            one.data.into(),
            one.reason.into(),
        ];
        tx.execute_raw(statement(sql, values)).await?;
    }
    Ok(())
}
