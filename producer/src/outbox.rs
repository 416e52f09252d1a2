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
    let mut taken = Taken { events: Vec::new(), refused: Vec::new(), now: first.try_get("", "now")? };
    for row in &rows {
        let name: String = row.try_get("", "event_type")?;
        let reason: Option<String> = row.try_get("", "reason")?;
        match (name.parse::<EventType>(), reason) {
            (Ok(event_type), None) => taken.events.extend(understood(row, event_type)?),
            (Ok(_), Some(reason)) => taken.refused.push(refused(row, name, reason)?),
            (Err(unknown), _) => taken.refused.push(refused(row, name, unknown.to_string())?),
        }
    }
    Ok(Some(taken))
}

/// One row for all sensible events of a type, and one for each event that makes no sense, with the reason. The subject's row is
/// looked up beside the taking, so that an event about nothing is found here and not a month later.
fn take_sql() -> String {
    let nothing = EventType::ALL.map(|event| {
        let table = event.table();
        format!(
            "WHEN '{event}' THEN CASE WHEN NOT EXISTS (SELECT FROM {table} WHERE {table}.id = taken.subject_id)
                                      THEN 'no row of {table} has this id' END"
        )
    });
    let known = EventType::ALL.map(|event| format!("'{event}'"));
    format!(
        "WITH taken AS (
            DELETE FROM outbox WHERE id = ANY (ARRAY(
                SELECT id FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING *
         ), judged AS MATERIALIZED (
            SELECT taken.*,
                   CASE WHEN event_type NOT IN ({known}) THEN 'unknown'
                        WHEN occurred_at NOT BETWEEN '1970-01-01' AND '9999-12-31'
                        THEN 'it says to have happened before 1970 or after 9999'
                        ELSE CASE event_type {nothing} END END AS reason
              FROM taken
         )
         SELECT event_type, array_agg(event_id ORDER BY id) AS event_ids, array_agg(subject_id ORDER BY id) AS subjects,
                array_agg(occurred_at ORDER BY id) AS moments,
                NULL AS occurred_at, NULL AS data, NULL AS reason, clock_timestamp() AS now
           FROM judged WHERE reason IS NULL GROUP BY event_type
         UNION ALL
         SELECT event_type, ARRAY[event_id], ARRAY[subject_id], NULL, occurred_at::text, data::text, reason, clock_timestamp()
           FROM judged WHERE reason IS NOT NULL",
        known = known.join(", "),
        nothing = nothing.join(" "),
    )
}

fn understood(row: &QueryResult, event_type: EventType) -> Result<impl Iterator<Item = Event> + use<>, DbErr> {
    let ids: Vec<Uuid> = row.try_get("", "event_ids")?;
    let subjects: Vec<Uuid> = row.try_get("", "subjects")?;
    let moments: Vec<DateTime<Utc>> = row.try_get("", "moments")?;
    let event = move |((id, subject), occurred_at)| Event { id, event_type, subject, occurred_at };
    Ok(ids.into_iter().zip(subjects).zip(moments).map(event))
}

fn refused(row: &QueryResult, event_type: String, reason: String) -> Result<Refused, DbErr> {
    let only = |ids: Vec<Uuid>| ids.first().copied().unwrap_or_default();
    Ok(Refused {
        event_id: only(row.try_get("", "event_ids")?),
        event_type,
        subject: only(row.try_get("", "subjects")?),
        occurred_at: row.try_get("", "occurred_at")?,
        data: row.try_get("", "data")?,
        reason,
    })
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
