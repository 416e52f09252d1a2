//! Tests the checker: makes effects by hand, then removes, doubles and adds some, and compares the counts. A checker that cannot fail would
//! prove nothing.

use anyhow::{Context, Result};
use sea_orm::ConnectionTrait;
use tests::sandbox::Sandbox;

use crate::{
    book,
    checker::{self, Counts},
    harness::{ScenarioSettings, Setting, file},
    population::{Pace, populate},
};

const SUBJECTS: u32 = 200;

/// SQL that makes all expected effects as the fleet does.
const AS_EXPECTED: &[&str] = &[
    "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at, wakeup_id)
     SELECT subject, 'out_of_stock', final, 'collect-arrears: parcel on record', now() + interval '1 h', gen_random_uuid()
       FROM fault_expected JOIN fault_book USING (subject) WHERE part = 'restored'",
    "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at, wakeup_id)
     SELECT subject, 'delivering', 'received', 'confirm-receipt', now() + interval '1 h', gen_random_uuid()
       FROM fault_expected WHERE kind = 'confirm-receipt' AND times = 1",
    "UPDATE orders SET status = final FROM fault_book WHERE subject = id",
    "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
     SELECT fault_wallet(subject), fault_account(part, subject), amount, 'arrears', subject,
            'collect-arrears:' || subject || ':' || part || ':2026-01-01T00:00:00.000000', now() + interval '1 h'
       FROM fault_expected WHERE amount > 0 AND times = 1",
    "INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
     SELECT 'system', 'order.arrears_collected', 'order', subject, jsonb_build_object('collected', jsonb_object_agg(part, amount))
       FROM fault_expected WHERE amount > 0 AND times = 1 GROUP BY subject",
    "INSERT INTO activity (actor_kind, action, subject_kind, subject_id)
     SELECT 'system', 'cart_item.purged', 'cart_item', subject FROM fault_expected WHERE kind = 'purge-cart-item' AND times = 1",
    "DELETE FROM cart_items USING fault_expected WHERE subject = id AND times = 1",
];

/// A fault, and by how much it has to increase the counts of twice, lost and unexpected.
const WRONGS: &[(&str, [i64; 3])] = &[
    // A receipt confirmed twice.
    (
        "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at, wakeup_id)
         SELECT order_id, from_status, to_status, reason, at, gen_random_uuid() FROM order_status_history
          WHERE reason = 'confirm-receipt' ORDER BY id LIMIT 1",
        [1, 0, 0],
    ),
    // Two expected effects that never happened.
    (
        "INSERT INTO fault_expected (kind, part, subject, times)
         SELECT 'purge-cart-item', 'x', subject, 1 FROM fault_book WHERE situation = 'in-cart' ORDER BY subject LIMIT 2",
        [0, 2, 0],
    ),
    // A charge that was not owed and has no activity; the order is also charged twice.
    (
        "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
         SELECT fault_wallet(subject), fault_account('shipping', subject), 1, 'arrears', subject, 'again'
           FROM fault_book WHERE situation = 'paid' ORDER BY subject LIMIT 1",
        [0, 0, 2],
    ),
    // A charge of a wrong amount: once too often, or different from the book.
    (
        "UPDATE fault_expected SET amount = amount + 1 WHERE (subject, part) = (
         SELECT subject, part FROM fault_expected WHERE amount > 0 ORDER BY subject, part LIMIT 1)",
        [0, 0, 1],
    ),
    // A balance changed by hand is wrong by itself and in the sum.
    (
        "UPDATE accounts SET balance = balance + 1 WHERE id = (SELECT id FROM accounts WHERE kind = 'wallet' ORDER BY id LIMIT 1)",
        [0, 0, 2],
    ),
    // A status without a record, and different from the book.
    (
        "UPDATE orders SET status = 'deposited' WHERE id = (SELECT subject FROM fault_book WHERE situation = 'paid' ORDER BY subject LIMIT 1)",
        [0, 0, 2],
    ),
    // A cart item that vanished.
    (
        "DELETE FROM cart_items WHERE id = (SELECT subject FROM fault_book WHERE situation = 'ordered-from-cart' ORDER BY subject LIMIT 1)",
        [0, 0, 1],
    ),
    // An effect before its time.
    (
        "UPDATE orders SET delivering_since = now() + interval '1 day'
          WHERE id = (SELECT subject FROM fault_book WHERE situation = 'paid' ORDER BY subject DESC LIMIT 1)",
        [0, 0, 1],
    ),
    (
        "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, reason)
         VALUES (gen_random_uuid(), 'x', gen_random_uuid(), now(), 'x')",
        [0, 0, 1],
    ),
];

pub async fn the_checker_finds_what_is_wrong(setting: &Setting) -> Result<()> {
    let spans = ScenarioSettings::default().spans;
    let sandbox = Sandbox::on(setting.pair.servers.clone(), "suspect", &file(spans), &[], None).await?;
    let judged = async {
        let db = &sandbox.db;
        book::open(db).await?;
        populate(db, SUBJECTS, setting.seed, Pace::BURST).await?;
        let (nothing, _) = checker::check(db, spans, 0).await?;
        anyhow::ensure!(nothing.lost == nothing.expected && nothing.expected > 0, "nothing was done, and it says {nothing:?}");
        for sql in AS_EXPECTED {
            db.execute_unprepared(sql).await.context(*sql)?;
        }
        let (mut before, remarks) = checker::check(db, spans, 0).await?;
        anyhow::ensure!(before.is_right(), "all is as expected, and it says {before:?} {remarks:?}");
        for (sql, added) in WRONGS {
            let done = db.execute_unprepared(sql).await.context(*sql)?.rows_affected();
            let (after, remarks) = checker::check(db, spans, 0).await?;
            let found = difference(&before, &after);
            anyhow::ensure!(done > 0 && found == *added, "{sql}\nadds {added:?} wrongs, and it says {found:?} {remarks:?}");
            before = after;
        }
        let (letters, _) = checker::check(db, spans, 3).await?;
        anyhow::ensure!(letters.unexpected == before.unexpected + 3, "three dead letters are three");
        Ok(())
    }
    .await;
    sandbox.remove().await?;
    judged
}

fn difference(before: &Counts, after: &Counts) -> [i64; 3] {
    [after.applied_twice - before.applied_twice, after.lost - before.lost, after.unexpected - before.unexpected]
}
