//! The entries of a subject from its row and from records: the row's times, its status, transfers, activity, events and sweeps. Of text
//! that other systems wrote, only code words are shown.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult, QueryResult};
use serde_json::Value;
use shared::{
    database::{column, statement},
    domain::due::bounded,
};
use uuid::Uuid;

use super::{Fact, Facts, TimelineEntry, fact::WORD};

/// All columns of the row that hold a time.
pub(super) async fn of_row(
    snapshot: &DatabaseTransaction,
    table: Option<&'static str>,
    id: Uuid,
) -> Result<Vec<TimelineEntry>, DbErr> {
    #[derive(FromQueryResult)]
    struct ColumnTime {
        at: DateTime<Utc>,
        name: String,
    }
    let Some(table) = table else { return Ok(Vec::new()) };
    let columns = "SELECT '(' || quote_literal(attname) || ', ' || quote_ident(attname) || ')' FROM pg_attribute
                    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND atttypid = 'timestamptz'::regtype
                      AND has_column_privilege(attrelid, attnum, 'SELECT')
                    ORDER BY attnum";
    let pairs: Vec<String> = column(snapshot, statement(columns, [table.into()])).await?;
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT {at} AS at, moment.name::text AS name
           FROM {table} AS subject CROSS JOIN LATERAL (VALUES {pairs}) AS moment (name, at)
          WHERE subject.id = $1 AND moment.at IS NOT NULL",
        at = bounded("moment.at"),
        pairs = pairs.join(", ")
    );
    let entry = |ColumnTime { at, name }| {
        let detail = Facts::new([("row", Fact::Text(format!("{table}.{name}")))]);
        TimelineEntry { at, what: name.replace('_', " "), detail }
    };
    Ok(ColumnTime::find_by_statement(statement(&sql, [id.into()])).all(snapshot).await?.into_iter().map(entry).collect())
}

/// All other records, those of each source in order of time.
pub(super) async fn of_subject(snapshot: &DatabaseTransaction, id: Uuid) -> Result<Vec<TimelineEntry>, DbErr> {
    let mut entries = Vec::new();
    for (sql, entry) in SOURCES {
        let sql = sql.replace("{at}", &bounded("at")).replace("{word of reason}", &WORD.replace("{column}", "reason"));
        for row in snapshot.query_all_raw(statement(&sql, [id.into()])).await? {
            entries.push(entry(&row)?);
        }
    }
    Ok(entries)
}

/// Makes an entry from a row.
type ReadEntry = fn(&QueryResult) -> Result<TimelineEntry, DbErr>;

/// Statements (`$1`: the subject; `{at}`: the bounded time `at`; `{word of reason}`: [`WORD`]). Entries of the same time are shown in this
/// order.
const SOURCES: [(&str, ReadEntry); 7] = [
    (
        "SELECT {at} AS at, id, event_type, NULL AS reason, NULL::timestamptz AS occurred_at
           FROM (SELECT id, event_type, occurred_at AS at FROM outbox WHERE subject_id = $1) AS waiting ORDER BY at, id",
        event,
    ),
    (
        "SELECT {at} AS at, id, event_type, reason, least(greatest(occurred_at, '1970-01-01'), '9999-12-31') AS occurred_at
           FROM (SELECT id, event_type, reason, occurred_at, set_aside_at AS at FROM set_aside WHERE subject_id = $1) AS aside
          ORDER BY at, id",
        event,
    ),
    (
        // Only the fleet has wake-up ids, so with one the reason is the fleet's own text.
        "SELECT {at} AS at, from_status, to_status, CASE WHEN wakeup_id IS NULL THEN {word of reason} ELSE reason END AS reason, wakeup_id
           FROM order_status_history WHERE order_id = $1 ORDER BY at, id",
        status,
    ),
    (
        "SELECT {at} AS at, amount, {word of reason} AS reason, debit.kind AS debited, credit.kind AS credited
           FROM transfers JOIN accounts AS debit ON debit.id = debit_account JOIN accounts AS credit ON credit.id = credit_account
          WHERE transfers.order_id = $1 ORDER BY at, debit.kind, credit.kind, transfers.id",
        transfer,
    ),
    (
        "SELECT {at} AS at, actor_kind, action, (SELECT detail FROM activity_operations AS own WHERE own.id = activity.id) AS detail
           FROM activity WHERE subject_id = $1 ORDER BY at, id",
        activity,
    ),
    ("SELECT {at} AS at, kind, due_at, times FROM swept WHERE subject_id = $1 ORDER BY at, kind", swept),
    (
        "SELECT {at} AS at, outstanding FROM (SELECT *, tried_at AS at FROM arrears_outstanding WHERE order_id = $1) AS tried",
        outstanding,
    ),
];

#[derive(FromQueryResult)]
struct Raised {
    at: DateTime<Utc>,
    id: i64,
    event_type: String,
    reason: Option<String>,
    occurred_at: Option<DateTime<Utc>>,
}

fn event(row: &QueryResult) -> Result<TimelineEntry, DbErr> {
    let Raised { at, id, event_type, reason, occurred_at } = Raised::from_query_result(row, "")?;
    let what = if reason.is_some() { "event set aside" } else { "event, waits in the outbox" };
    let detail = Facts::new([("event", Fact::word(&event_type))])
        .with("occurred", occurred_at.map(Fact::Moment))
        .with(
            "reason",
            reason.map(|reason| if reason.starts_with("unknown event type") { unknown_event() } else { Fact::Text(reason) }),
        )
        .with("number", Some(Fact::Count(id)));
    Ok(entry(at, what, detail))
}

/// Replaces the reason, because it quotes the unknown name, which may be any text.
fn unknown_event() -> Fact {
    Fact::Text("unknown event type; see `ops set-aside list`".into())
}

#[derive(FromQueryResult)]
struct StatusChange {
    at: DateTime<Utc>,
    from_status: String,
    to_status: String,
    reason: Option<String>,
    wakeup_id: Option<Uuid>,
}

fn status(row: &QueryResult) -> Result<TimelineEntry, DbErr> {
    let StatusChange { at, from_status, to_status, reason, wakeup_id } = StatusChange::from_query_result(row, "")?;
    let reason = match reason {
        Some(reason) if wakeup_id.is_some() => Fact::Text(reason),
        read => Fact::word_read(read.as_deref()),
    };
    let detail = Facts::new([("from", Fact::word(&from_status)), ("to", Fact::word(&to_status)), ("reason", reason)]);
    Ok(entry(at, "status", detail.with("wakeup", wakeup_id.map(Fact::Id))))
}

#[derive(FromQueryResult)]
struct Transfer {
    at: DateTime<Utc>,
    amount: i64,
    reason: Option<String>,
    debited: Option<String>,
    credited: Option<String>,
}

fn transfer(row: &QueryResult) -> Result<TimelineEntry, DbErr> {
    let Transfer { at, amount, reason, debited, credited } = Transfer::from_query_result(row, "")?;
    let word = |word: Option<String>| Fact::word_read(word.as_deref());
    let detail = [("from", word(debited)), ("to", word(credited)), ("amount", Fact::Money(amount)), ("reason", word(reason))];
    Ok(entry(at, "transfer", Facts::new(detail)))
}

#[derive(FromQueryResult)]
struct RecordedActivity {
    at: DateTime<Utc>,
    actor_kind: String,
    action: String,
    /// `None` for a customer's activity, which the view excludes.
    detail: Option<Value>,
}

/// Shows the known parts of the detail if the system or an operator recorded it. For other activity it shows only the action, because
/// the detail may contain anything.
pub(super) fn activity(row: &QueryResult) -> Result<TimelineEntry, DbErr> {
    let RecordedActivity { at, actor_kind: actor, action, detail } = RecordedActivity::from_query_result(row, "")?;
    let detail = detail.unwrap_or_default();
    let text = |key: &str| detail.get(key).and_then(Value::as_str).map(ToOwned::to_owned).map(Fact::Text);
    let word = |key: &str| detail.get(key).and_then(Value::as_str).map(Fact::word);
    let money = |value: Option<&Value>| value.and_then(Value::as_i64).map(Fact::Money);
    let facts = Facts::new([("activity", Fact::word(&action))]);
    let facts = match actor.as_str() {
        "system" => {
            let collected = |component: &str| money(detail.get("collected").and_then(|collected| collected.get(component)));
            let wakeup = detail.get("wakeup_id").and_then(Value::as_str).and_then(|id| id.parse().ok());
            facts
                .with("goods", collected("goods"))
                .with("shipping", collected("shipping"))
                .with("service", collected("service"))
                .with("outstanding", money(detail.get("outstanding")))
                .with("restored_to", word("restored_to"))
                .with("wakeup", wakeup.map(Fact::Id))
        }
        // The format of `Operator::record`.
        "staff" if detail.as_object().is_some_and(|detail| detail.len() == 4 && detail.contains_key("changed")) => {
            facts.with("operator", text("by")).with("login", text("login")).with("why", text("why"))
        }
        _ => facts,
    };
    Ok(entry(at, &format!("activity by {}", if actor == "system" { "the system" } else { &actor }), facts))
}

#[derive(FromQueryResult)]
struct SweptSubject {
    at: DateTime<Utc>,
    kind: String,
    due_at: DateTime<Utc>,
    times: i32,
}

fn swept(row: &QueryResult) -> Result<TimelineEntry, DbErr> {
    let SweptSubject { at, kind, due_at, times } = SweptSubject::from_query_result(row, "")?;
    let detail = [("kind", Fact::word(&kind)), ("due", Fact::Moment(due_at)), ("times", Fact::Count(times.into()))];
    Ok(entry(at, "woken by the sweep", Facts::new(detail)))
}

#[derive(FromQueryResult)]
struct Tried {
    at: DateTime<Utc>,
    outstanding: i64,
}

fn outstanding(row: &QueryResult) -> Result<TimelineEntry, DbErr> {
    let Tried { at, outstanding } = Tried::from_query_result(row, "")?;
    Ok(entry(at, "tried and left outstanding", Facts::new([("amount", Fact::Money(outstanding))])))
}

fn entry(at: DateTime<Utc>, what: &str, detail: Facts) -> TimelineEntry {
    TimelineEntry { at, what: what.to_owned(), detail }
}
