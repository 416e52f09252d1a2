//! The checker: compares the book of expectations with the records, set-based, and returns exact counts. It counts and names every
//! difference.

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::database::statement;

/// The policy's spans, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    pub confirm: u32,
    pub arrears: u32,
    pub purge: u32,
}

/// The counts of the effects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub expected: i64,
    pub applied_once: i64,
    pub applied_twice: i64,
    pub lost: i64,
    pub unexpected: i64,
    pub lateness_ms_max: i64,
}

impl Counts {
    pub fn is_right(&self) -> bool {
        self.expected > 0 && self.applied_once == self.expected && (self.applied_twice, self.lost, self.unexpected) == (0, 0, 0)
    }
}

/// SQL: the effects that the records show.
const FOUND: &str = "
    SELECT 'confirm-receipt' AS kind, '' AS part, order_id AS subject, count(*) AS times, NULL::bigint AS amount
      FROM order_status_history WHERE reason = 'confirm-receipt' AND wakeup_id IS NOT NULL GROUP BY order_id
    UNION ALL
    SELECT 'collect-arrears', accounts.kind, transfers.order_id, count(*), sum(amount)::bigint
      FROM transfers JOIN accounts ON accounts.id = credit_account WHERE reason = 'arrears' GROUP BY accounts.kind, transfers.order_id
    UNION ALL
    SELECT 'collect-arrears', 'restored', order_id, count(*), NULL
      FROM order_status_history WHERE reason LIKE 'collect-arrears%' GROUP BY order_id
    UNION ALL
    SELECT 'purge-cart-item', '', subject_id, count(*), NULL
      FROM activity WHERE action = 'cart_item.purged' GROUP BY subject_id";

/// SQL: the effects found beside the expected ones, one row per subject, kind and part.
fn compared() -> String {
    format!(
        "SELECT coalesce(e.kind, f.kind) AS kind, coalesce(e.times, 0)::bigint AS expected, coalesce(f.times, 0) AS found,
                coalesce(e.times, 0) > 0 AND coalesce(f.times, 0) = e.times AND e.amount IS DISTINCT FROM f.amount AS wrong_amount
           FROM fault_expected e FULL JOIN ({FOUND}) f ON (f.kind, f.part, f.subject) = (e.kind, e.part, e.subject)"
    )
}

/// Things that must not happen, each with the statement that counts it.
const ODDITIES: &[(&str, &str)] = &[
    (
        "orders whose status is not the one their records end with",
        "SELECT count(*) FROM orders WHERE status IS DISTINCT FROM (
             SELECT to_status FROM order_status_history h WHERE h.order_id = orders.id ORDER BY id DESC LIMIT 1)",
    ),
    (
        "orders that ended in another status than the book's",
        "SELECT count(*) FROM orders JOIN fault_book ON subject = id WHERE status <> final",
    ),
    (
        "cart items that are gone without a record, or there with one",
        "SELECT count(*) FROM fault_book b
          WHERE final IS NULL AND EXISTS (SELECT FROM cart_items i WHERE i.id = b.subject)
                = EXISTS (SELECT FROM activity a WHERE a.subject_id = b.subject AND a.action = 'cart_item.purged')",
    ),
    (
        "accounts whose balance is not the sum of their transfers",
        "SELECT count(*) FROM accounts JOIN (
             SELECT account, sum(delta) AS sum FROM (
                 SELECT credit_account AS account, amount AS delta FROM transfers
                 UNION ALL SELECT debit_account, -amount FROM transfers) AS moved GROUP BY account) AS moved ON account = id
          WHERE balance <> sum",
    ),
    ("a ledger that does not sum to zero", "SELECT (coalesce(sum(balance), 0) <> 0)::int::bigint FROM accounts"),
    (
        "orders charged otherwise than the activity log says",
        "SELECT count(*) FROM orders
          WHERE coalesce((SELECT sum(amount) FROM transfers WHERE reason = 'arrears' AND order_id = orders.id), 0)
             <> coalesce((SELECT sum(value::bigint) FROM activity, jsonb_each_text(detail -> 'collected')
                           WHERE action = 'order.arrears_collected' AND subject_id = orders.id), 0)",
    ),
    ("arrears left outstanding", "SELECT count(*) FROM arrears_outstanding"),
    (
        // If the sweep purged a cart item before its event was relayed, the event has no row any more.
        "events set aside, other than those of items purged meanwhile",
        "SELECT count(*) FROM set_aside s
          WHERE NOT EXISTS (SELECT FROM activity a WHERE a.subject_id = s.subject_id AND a.action = 'cart_item.purged')",
    ),
];

/// SQL: how late each effect came, as an interval.
fn lateness(spans: Spans) -> String {
    format!(
        "SELECT h.at - (delivering_since + interval '{confirm} ms') AS late
           FROM order_status_history h JOIN orders ON orders.id = order_id WHERE h.reason = 'confirm-receipt'
         UNION ALL
         -- Payments and fees move the deadline of arrears; the charge's key says which one it was for.
         SELECT least(at - regexp_replace(idempotency_key, '^.*:(\\d{{4}}-.*)$', '\\1Z')::timestamptz,
                      at - (delivering_since + interval '{arrears} ms'))
           FROM transfers JOIN orders ON orders.id = order_id WHERE reason = 'arrears' AND idempotency_key LIKE 'collect-arrears:%'
         UNION ALL
         SELECT at - ((detail ->> 'added_at')::timestamptz + interval '{purge} ms')
           FROM activity WHERE action = 'cart_item.purged' AND detail ? 'added_at'",
        confirm = spans.confirm,
        arrears = spans.arrears,
        purge = spans.purge,
    )
}

/// Counts the effects and names every difference. `letters` is the number of unexpected dead letters.
pub async fn check(db: &DatabaseConnection, spans: Spans, letters: i64) -> Result<(Counts, Vec<String>)> {
    let sql = format!(
        "SELECT kind, coalesce(sum(expected), 0)::bigint AS expected,
                coalesce(sum(least(expected, found)) FILTER (WHERE NOT wrong_amount), 0)::bigint AS once,
                coalesce(sum(greatest(found - expected, 0)) FILTER (WHERE expected > 0), 0)::bigint AS twice,
                coalesce(sum(greatest(expected - found, 0)), 0)::bigint AS lost,
                coalesce(sum(found) FILTER (WHERE expected = 0), 0)::bigint AS unasked,
                count(*) FILTER (WHERE wrong_amount) AS wrong_amount
           FROM ({}) AS compared GROUP BY kind ORDER BY kind",
        compared()
    );
    let (mut counts, mut remarks) = (Counts::default(), Vec::new());
    for row in db.query_all_raw(statement(&sql, [])).await.context("comparing")? {
        let (kind, number): (String, _) = (row.try_get("", "kind")?, |name: &str| row.try_get::<i64>("", name));
        counts.expected += number("expected")?;
        counts.applied_once += number("once")?;
        for (what, column, sum) in
            [("applied more often than expected", "twice", &mut counts.applied_twice), ("lost", "lost", &mut counts.lost)]
        {
            *sum += number(column)?;
            remark(&mut remarks, &kind, what, number(column)?);
        }
        for (what, column) in [("applied where nothing was expected", "unasked"), ("of a wrong amount", "wrong_amount")] {
            counts.unexpected += number(column)?;
            remark(&mut remarks, &kind, what, number(column)?);
        }
    }
    let late = lateness(spans);
    let early = format!("SELECT count(*) FROM ({late}) AS late WHERE late < interval '0'");
    let odd = ODDITIES.iter().copied().chain([("effects before their time", early.as_str())]);
    for (what, sql) in odd {
        let found = ask(db, sql).await.with_context(|| what.to_owned())?;
        counts.unexpected += found;
        remark(&mut remarks, "all", what, found);
    }
    counts.unexpected += letters;
    remark(&mut remarks, "all", "dead letters or unrouted messages too many", letters);
    let sql = format!("SELECT coalesce(ceil(extract(epoch FROM max(late)) * 1000), 0)::bigint FROM ({late}) AS late");
    counts.lateness_ms_max = ask(db, &sql).await.context("lateness")?;
    Ok((counts, remarks))
}

/// How many expected effects are missing so far.
pub async fn missing(db: &DatabaseConnection) -> Result<i64> {
    let sql = format!("SELECT coalesce(sum(greatest(expected - found, 0)), 0)::bigint FROM ({}) AS compared", compared());
    ask(db, &sql).await
}

/// The longest time between one effect and the next.
pub async fn longest_gap_ms(db: &DatabaseConnection) -> Result<i64> {
    let sql = "SELECT coalesce(extract(epoch FROM max(gap)) * 1000, 0)::bigint FROM (
                   SELECT at - lag(at) OVER (ORDER BY at) AS gap FROM (
                       SELECT at FROM order_status_history WHERE wakeup_id IS NOT NULL
                       UNION ALL SELECT at FROM transfers WHERE reason = 'arrears'
                       UNION ALL SELECT at FROM activity WHERE action = 'cart_item.purged') AS effects) AS gaps";
    ask(db, sql).await
}

/// The one number that a statement returns.
pub async fn ask(db: &DatabaseConnection, sql: &str) -> Result<i64> {
    let row = db.query_one_raw(statement(sql, [])).await?.context("no row")?;
    Ok(row.try_get_by_index(0)?)
}

fn remark(remarks: &mut Vec<String>, kind: &str, what: &str, count: i64) {
    if count != 0 {
        remarks.push(format!("{kind}: {count} {what}"));
    }
}
