//! The outbox: takes rows by deleting them in a transaction that commits only after their wake-ups are confirmed. Events that cannot be
//! scheduled are set aside, complete and with a reason, in the same transaction, and never leave the database.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult};
use shared::{
    database::{scalar, statement},
    domain::event::{Event, EventType},
};
use uuid::Uuid;

use crate::portion::Portion;

/// The events that a transaction has taken.
pub(crate) struct TakenEvents {
    pub events: Vec<Event>,
    /// How many rows were set aside.
    pub set_aside: usize,
    /// The last row's id.
    pub last: i64,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

/// Whether there are events, perhaps of another relay.
pub(crate) async fn is_waiting(db: &DatabaseConnection) -> Result<bool, DbErr> {
    scalar(db, statement("SELECT EXISTS (SELECT FROM outbox ORDER BY id LIMIT 1)", [])).await
}

/// Takes up to a `portion` of rows with an id greater than `after`, oldest first, and skips rows that another relay has locked. `after` exists
/// because skipping rows that others hold, or have just taken, costs as much as taking them. `None` if there are no rows.
pub(crate) async fn take(tx: &DatabaseTransaction, portion: Portion, after: i64) -> Result<Option<TakenEvents>, DbErr> {
    let values = [i64::from(portion.events()).into(), after.into(), portion.is_bare().into()];
    let rows = tx.query_all_raw(statement(&take_sql(), values)).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut taken =
        TakenEvents { events: Vec::new(), set_aside: 0, last: first.try_get("", "last")?, now: first.try_get("", "now")? };
    for row in &rows {
        let event_ids: Vec<Uuid> = row.try_get("", "event_ids")?;
        if let Some(reason) = row.try_get::<Option<String>>("", "reason")? {
            for event_id in &event_ids {
                log_set_aside(*event_id, &reason);
            }
            taken.set_aside += event_ids.len();
        } else {
            taken.events.extend(events(row, event_ids)?);
        }
    }
    Ok(Some(taken))
}

/// `$1` how many, `$2` after which id, `$3` whether to set aside without data. Returns one row for all schedulable events of a type, and one
/// for each reason to set events aside. It also looks up the subjects, so
/// that an event without a subject is found here and not a month later.
fn take_sql() -> String {
    const LOST: &str = "; its data is lost, because the event could not be moved with it";
    let quoted = |names: &[&str]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let known = EventType::ALL.map(EventType::name);
    let tables: BTreeSet<&str> = EventType::ALL.into_iter().map(EventType::table).collect();
    let (mut there, mut nothing) = (Vec::new(), Vec::new());
    for table in tables {
        let of_table = EventType::ALL.into_iter().filter(|event| event.table() == table);
        let events = quoted(&of_table.map(EventType::name).collect::<Vec<_>>());
        // One lookup for all ids: a lookup per event takes longer than taking the event.
        there.push(format!(
            "in_{table} AS MATERIALIZED (
                SELECT id FROM {table} WHERE id = ANY (ARRAY(SELECT subject_id FROM taken WHERE event_type IN ({events})))
             )"
        ));
        nothing.push(format!(
            "WHEN event_type IN ({events}) AND subject_id NOT IN (SELECT id FROM in_{table}) THEN '{table} has no row with this id'"
        ));
    }
    format!(
        "WITH taken AS (
            -- By ctid, which is stable because the rows are locked; finding them by id again takes twice as long.
            DELETE FROM outbox WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM outbox WHERE id > $2 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING *
         ), {there}, judged AS MATERIALIZED (
            SELECT taken.*,
                   CASE WHEN event_type NOT IN ({known})
                        THEN 'unknown event type; known are {list}'
                        WHEN occurred_at NOT BETWEEN '1970-01-01' AND '9999-12-31'
                        THEN 'occurred_at is before 1970 or after 9999'
                        {nothing} END AS reason
              FROM taken
         ), aside AS (
            INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, data, reason)
            SELECT event_id, event_type, subject_id, occurred_at, CASE WHEN NOT $3 THEN data END,
                   CASE WHEN $3 AND data IS NOT NULL THEN reason || '{LOST}' ELSE reason END
              FROM judged WHERE reason IS NOT NULL ORDER BY id
            RETURNING event_id, reason
         )
         SELECT event_type, array_agg(event_id) AS event_ids, array_agg(subject_id) AS subjects, array_agg(occurred_at) AS moments,
                NULL AS reason, (SELECT max(id) FROM taken) AS last, clock_timestamp() AS now
           FROM judged WHERE reason IS NULL GROUP BY event_type
         UNION ALL
         SELECT NULL, array_agg(event_id), NULL, NULL, reason, (SELECT max(id) FROM taken), clock_timestamp()
           FROM aside GROUP BY reason",
        there = there.join(", "),
        nothing = nothing.join(" "),
        list = known.join(", "),
        known = quoted(&known),
    )
}

fn events(row: &QueryResult, ids: Vec<Uuid>) -> Result<impl Iterator<Item = Event> + use<>, DbErr> {
    let name: String = row.try_get("", "event_type")?;
    let event_type: EventType = name.parse().map_err(|unknown| DbErr::Type(format!("{unknown}")))?;
    let subjects: Vec<Uuid> = row.try_get("", "subjects")?;
    let moments: Vec<DateTime<Utc>> = row.try_get("", "moments")?;
    let event = move |((id, subject), occurred_at)| Event { id, event_type, subject, occurred_at };
    Ok(ids.into_iter().zip(subjects).zip(moments).map(event))
}

fn log_set_aside(event_id: Uuid, reason: &str) {
    tracing::warn!(%event_id, reason, "an event was set aside");
}

#[cfg(test)]
mod tests {
    use shared::domain::span::Span;

    use super::*;

    #[test]
    fn no_deadline_of_an_event_that_is_taken_lies_beyond_the_end_of_the_calendar() {
        let latest: DateTime<Utc> = "9999-12-31T23:59:59Z".parse().unwrap();
        for longest in ["3650d", "117 months"] {
            assert!(longest.parse::<Span>().unwrap().after(latest).is_some(), "{longest}");
        }
        assert!("3651d".parse::<Span>().is_err() && "118 months".parse::<Span>().is_err(), "no longer span is valid");
    }
}
