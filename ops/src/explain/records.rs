//! What the rows and the records say about a subject: the row's own moments, its status, its money, its activity, its events, and
//! what the sweep did. Of what other systems wrote, words of codes are told and nothing else.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult};
use serde_json::Value;
use shared::{database::statement, domain::due::bounded};
use uuid::Uuid;

use super::{Entry, Fact, Facts, fact::WORD};

/// The moments that the row itself holds, whatever its columns are called.
pub(super) async fn of_row(snapshot: &DatabaseTransaction, table: Option<&'static str>, id: Uuid) -> Result<Vec<Entry>, DbErr> {
    let Some(table) = table else { return Ok(Vec::new()) };
    let columns = "SELECT quote_literal(attname) || ', ' || quote_ident(attname) AS pair FROM pg_attribute
                    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND atttypid = 'timestamptz'::regtype
                      AND has_column_privilege(attrelid, attnum, 'SELECT')
                    ORDER BY attnum";
    let mut pairs = Vec::new();
    for row in snapshot.query_all_raw(statement(columns, [table.into()])).await? {
        pairs.push(format!("({})", row.try_get::<String>("", "pair")?));
    }
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
    let entry = |row: &QueryResult| {
        let name: String = row.try_get("", "name")?;
        let column = Fact::Text(format!("{table}.{name}"));
        Ok(Entry { at: row.try_get("", "at")?, what: name.replace('_', " "), detail: Facts::new([("row", column)]) })
    };
    snapshot.query_all_raw(statement(&sql, [id.into()])).await?.iter().map(entry).collect()
}

/// Everything else that is on record, each source in order of time.
pub(super) async fn of_subject(snapshot: &DatabaseTransaction, id: Uuid) -> Result<Vec<Entry>, DbErr> {
    let mut entries = Vec::new();
    for (sql, entry) in SOURCES {
        let sql = sql.replace("{at}", &bounded("at")).replace("{word of reason}", &WORD.replace("{column}", "reason"));
        for row in snapshot.query_all_raw(statement(&sql, [id.into()])).await? {
            entries.push(entry(&row)?);
        }
    }
    Ok(entries)
}

/// How a row is told.
type Tell = fn(&QueryResult) -> Result<Entry, DbErr>;

/// Statements (`$1`: the subject; `{at}`: the moment `at`, bounded; `{word of reason}`: [`WORD`]), in the order in which what has the same
/// moment is told.
const SOURCES: [(&str, Tell); 7] = [
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
        // Only the fleet knows wake-ups, so it is the one who wrote such a reason.
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

fn event(row: &QueryResult) -> Result<Entry, DbErr> {
    let reason: Option<String> = row.try_get("", "reason")?;
    let occurred_at: Option<DateTime<Utc>> = row.try_get("", "occurred_at")?;
    let what = if reason.is_some() { "event set aside" } else { "event, waits in the outbox" };
    let event_type: String = row.try_get("", "event_type")?;
    let detail = Facts::new([("event", Fact::word(&event_type))])
        .with("occurred", occurred_at.map(Fact::Moment))
        .with(
            "reason",
            reason.map(|reason| if reason.starts_with("unknown event type") { unknown_event() } else { Fact::Text(reason) }),
        )
        .with("number", Some(Fact::Count(row.try_get("", "id")?)));
    entry(row, what, detail)
}

/// The reason quotes whatever stood in the place of the event's name.
fn unknown_event() -> Fact {
    Fact::Text("unknown event type; see `ops set-aside list`".into())
}

fn status(row: &QueryResult) -> Result<Entry, DbErr> {
    let (from, to): (String, String) = (row.try_get("", "from_status")?, row.try_get("", "to_status")?);
    let (reason, wakeup): (Option<String>, Option<Uuid>) = (row.try_get("", "reason")?, row.try_get("", "wakeup_id")?);
    let reason = match reason {
        Some(reason) if wakeup.is_some() => Fact::Text(reason),
        read => Fact::word_read(read.as_deref()),
    };
    let detail = Facts::new([("from", Fact::word(&from)), ("to", Fact::word(&to)), ("reason", reason)]);
    entry(row, "status", detail.with("wakeup", wakeup.map(Fact::Id)))
}

fn transfer(row: &QueryResult) -> Result<Entry, DbErr> {
    let word = |column: &str| row.try_get::<Option<String>>("", column).map(|word| Fact::word_read(word.as_deref()));
    let (from, to, reason) = (word("debited")?, word("credited")?, word("reason")?);
    let amount = Fact::Money(row.try_get("", "amount")?);
    entry(row, "transfer", Facts::new([("from", from), ("to", to), ("amount", amount), ("reason", reason)]))
}

/// Of what the system and operators recorded, the known parts of the detail; of what customers and staff did, that they did it: the
/// rest of a detail may be anything.
pub(super) fn activity(row: &QueryResult) -> Result<Entry, DbErr> {
    let (actor, action): (String, String) = (row.try_get("", "actor_kind")?, row.try_get("", "action")?);
    // Of a customer's there is none to be had.
    let detail = row.try_get::<Option<Value>>("", "detail")?.unwrap_or_default();
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
        // As `Actor::record` writes them.
        "staff" if detail.as_object().is_some_and(|detail| detail.len() == 4 && detail.contains_key("changed")) => {
            facts.with("operator", text("by")).with("login", text("login")).with("why", text("why"))
        }
        _ => facts,
    };
    entry(row, &format!("recorded of {}", if actor == "system" { "the system" } else { &actor }), facts)
}

fn swept(row: &QueryResult) -> Result<Entry, DbErr> {
    let kind: String = row.try_get("", "kind")?;
    let due_at = Fact::Moment(row.try_get("", "due_at")?);
    let times = Fact::Count(row.try_get::<i32>("", "times")?.into());
    entry(row, "woken by the sweep", Facts::new([("kind", Fact::word(&kind)), ("due", due_at), ("times", times)]))
}

fn outstanding(row: &QueryResult) -> Result<Entry, DbErr> {
    entry(row, "tried, and left outstanding", Facts::new([("amount", Fact::Money(row.try_get("", "outstanding")?))]))
}

fn entry(row: &QueryResult, what: &str, detail: Facts) -> Result<Entry, DbErr> {
    Ok(Entry { at: row.try_get("", "at")?, what: what.to_owned(), detail })
}
