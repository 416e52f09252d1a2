//! The database's part of an audit. All counts come from one snapshot, so that they agree with each other. *Due* is the shared
//! definition in [`due::query`].

use std::{collections::BTreeMap, time::Duration};

use sea_orm::{DatabaseTransaction, DbErr, FromQueryResult};
use shared::{
    database::{pause, scalar, statement},
    domain::{due, span::signed_ms, task::Shown, tasks},
    message::{
        ladder::{Hop, Ladder},
        topology::Topology,
    },
    settings::Settings,
};

use super::{CheckCount, CheckVerdict, DueCounts};

/// The counts of one snapshot.
pub(super) struct Rows {
    pub due: Vec<DueCounts>,
    pub records: Vec<CheckCount>,
    pub ledger: Vec<CheckCount>,
    pub events: Vec<CheckCount>,
    /// Pending candidates of all kinds by the rung that they would be sent to now, shortest rung first.
    pub by_rung: Vec<u64>,
    /// Pending candidates whose event is still in the outbox.
    pub in_outbox: u64,
    /// Canaries that wait, by the rung's queue.
    pub canaries: BTreeMap<String, u64>,
    /// The kinds that are paused.
    pub paused: Vec<String>,
}

/// Counts everything.
pub(super) async fn count(snapshot: &DatabaseTransaction, settings: &Settings) -> Result<Rows, DbErr> {
    let topology = settings.topology();
    let mut rows = Rows {
        due: Vec::new(),
        records: Vec::new(),
        ledger: Vec::new(),
        events: Vec::new(),
        by_rung: vec![0; topology.ladder().rungs().len()],
        in_outbox: 0,
        canaries: canaries(snapshot, &topology).await?,
        paused: pause::all(snapshot).await?.into_iter().map(|pause| pause.kind).collect(),
    };
    for task in tasks::ALL {
        candidates(snapshot, settings, topology.ladder(), *task, &mut rows).await?;
        for check in task.checks() {
            let count = number(snapshot, check.sql).await?;
            rows.records.push(CheckCount { kind: Some(task.kind()), ..off(check.name, count) });
        }
    }
    for (check, sql) in LEDGER {
        rows.ledger.push(off(check, number(snapshot, sql).await?));
    }
    let waiting = number(snapshot, "SELECT count(*) FROM outbox").await?;
    rows.events.push(CheckCount { kind: None, check: "events in the outbox", count: waiting, verdict: CheckVerdict::Ok });
    let set_aside = number(snapshot, "SELECT count(*) FROM set_aside").await?;
    let verdict = CheckVerdict::note_if(set_aside > 0);
    rows.events.push(CheckCount { kind: None, check: "events set aside", count: set_aside, verdict });
    let letters = number(snapshot, "SELECT count(*) FROM dead_letters WHERE state = 'open'").await?;
    let verdict = CheckVerdict::note_if(letters > 0);
    rows.events.push(CheckCount { kind: None, check: "open dead letters", count: letters, verdict });
    rows.events.push(off("records dated later than now", number(snapshot, LATER).await?));
    let without = i64::from(settings.policy.number().is_none());
    rows.events.push(off("no policy was applied, so nothing is due", without));
    Ok(rows)
}

/// Made while PostgreSQL's clock was ahead, so that what they record may have been applied too early.
const LATER: &str = "SELECT (SELECT count(*) FROM order_status_history WHERE at > clock_timestamp() + interval '1 minute')
                          + (SELECT count(*) FROM transfers WHERE at > clock_timestamp() + interval '1 minute')
                          + (SELECT count(*) FROM activity WHERE at > clock_timestamp() + interval '1 minute')";

/// No policy waits that long: the moment from which such a row counts is a typing error, like 2926 for 2026.
const FAR: &str = "10 years";

const LEDGER: [(&str, &str); 3] = [
    (
        "the sum of all balances",
        // Clamped to the range of a bigint: a sum beyond it is wrong in any case, and must not make the audit fail.
        "SELECT least(greatest(coalesce(sum(balance), 0), -9223372036854775808), 9223372036854775807)::bigint FROM accounts",
    ),
    (
        "accounts that differ from their transfers",
        "SELECT count(*)
           FROM accounts LEFT JOIN (
                    SELECT account, sum(delta) AS balance
                      FROM (SELECT credit_account AS account, amount AS delta FROM transfers
                            UNION ALL
                            SELECT debit_account, -amount FROM transfers) AS moved
                     GROUP BY account) AS moved ON moved.account = accounts.id
          WHERE accounts.balance <> coalesce(moved.balance, 0)",
    ),
    (
        // By today's roles of the login, or because it was an operator's. Another one that was removed since is not recognized.
        "transfers by the fleet's logins that are not arrears",
        "SELECT count(*) FROM transfers LEFT JOIN pg_roles ON rolname = made_by
          WHERE reason <> 'arrears'
            AND (EXISTS (SELECT FROM operators WHERE login = made_by) OR pg_has_role(pg_roles.oid, to_regrole('kyhan_worker'), 'MEMBER') OR pg_has_role(pg_roles.oid, to_regrole('kyhan_ops'), 'MEMBER'))
            AND pg_has_role(pg_roles.oid, to_regrole('kyhan_order_system'), 'MEMBER') IS NOT TRUE
            AND pg_has_role(pg_roles.oid, to_regrole('kyhan_owner'), 'MEMBER') IS NOT TRUE",
    ),
];

fn off(check: &'static str, count: i64) -> CheckCount {
    CheckCount { kind: None, check, count, verdict: CheckVerdict::off_if(count != 0) }
}

async fn number(snapshot: &DatabaseTransaction, sql: &str) -> Result<i64, DbErr> {
    scalar(snapshot, statement(sql, [])).await
}

/// Canaries that are not due and have not arrived, by queue. They wait in their rung, unless they are in transit or were lost with it.
async fn canaries(snapshot: &DatabaseTransaction, topology: &Topology) -> Result<BTreeMap<String, u64>, DbErr> {
    #[derive(FromQueryResult)]
    struct WaitingCanaries {
        queue: String,
        waiting: i64,
    }
    let sql = "SELECT queue, count(*) AS waiting FROM canaries
                WHERE arrived_at IS NULL AND due_at > now() AND starts_with(queue, $1) GROUP BY queue";
    let rows =
        WaitingCanaries::find_by_statement(statement(sql, [topology.rung_prefix().into()])).all(snapshot).await?.into_iter();
    Ok(rows.map(|WaitingCanaries { queue, waiting }| (queue, unsigned(waiting))).collect())
}

/// Counts one kind's candidates by due time and by the rung where they would wait.
async fn candidates(
    snapshot: &DatabaseTransaction,
    settings: &Settings,
    ladder: &Ladder,
    task: &dyn Shown,
    rows: &mut Rows,
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct OnRung {
        /// 0: already due, so in no rung.
        rung: i32,
        pending: i64,
        due: i64,
        overdue: i64,
        far: i64,
        in_outbox: i64,
    }
    let sql = format!(
        "SELECT width_bucket(floor(extract(epoch FROM due_at - now()) * 1000000)::bigint, $3::bigint[]) AS rung,
                count(*) FILTER (WHERE due_at > now()) AS pending,
                count(*) FILTER (WHERE due_at <= now() AND due_at >= now() - $1 * interval '1 ms') AS due,
                count(*) FILTER (WHERE due_at < now() - $1 * interval '1 ms') AS overdue,
                count(*) FILTER (WHERE due_at > now() + interval '{FAR}') AS far,
                count(*) FILTER (WHERE due_at > now() AND id IN (
                    SELECT subject_id FROM outbox WHERE event_type = ANY($2))) AS in_outbox
           FROM {due} AS due WHERE due_at IS NOT NULL GROUP BY 1",
        due = due::query(task, &settings.policy)
    );
    let grace_ms = signed_ms(settings.sweep.grace);
    let lines = settings.policy.lines().iter().filter(|line| line.task == task.kind());
    let events: Vec<String> = lines.map(|line| line.on.name().to_owned()).collect();
    let mut due = DueCounts { kind: task.kind(), pending: 0, due: 0, overdue: 0, verdict: CheckVerdict::Ok };
    let values = [grace_ms.into(), events.into(), shortest_waits(ladder).into()];
    let mut far = 0;
    for counted in OnRung::find_by_statement(statement(&sql, values)).all(snapshot).await? {
        if let Some(waiting) = usize::try_from(counted.rung - 1).ok().and_then(|at| rows.by_rung.get_mut(at)) {
            *waiting += unsigned(counted.pending);
        }
        due.pending += unsigned(counted.pending);
        due.due += unsigned(counted.due);
        due.overdue += unsigned(counted.overdue);
        far += counted.far;
        rows.in_outbox += unsigned(counted.in_outbox);
    }
    let paused = rows.paused.iter().any(|kind| kind == task.kind());
    due.verdict = if paused { CheckVerdict::note_if(due.overdue > 0) } else { CheckVerdict::off_if(due.overdue > 0) };
    rows.due.push(due);
    rows.records.push(CheckCount { kind: Some(task.kind()), ..off("rows due more than ten years from now", far) });
    Ok(())
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// For each rung, shortest first, the shortest wait in microseconds that goes into it or a longer one. It is computed by searching
/// [`Ladder::next`], so that only the ladder defines which rung a wait takes.
fn shortest_waits(ladder: &Ladder) -> Vec<i64> {
    let takes = |wait: u64, rung| ladder.next(Duration::from_micros(wait)) >= Hop::Rung(rung);
    let shortest = |rung| {
        let (mut short, mut long) = (0, u64::MAX);
        while long - short > 1 {
            let wait = short + (long - short) / 2;
            if takes(wait, rung) { long = wait } else { short = wait }
        }
        i64::try_from(long).unwrap_or(i64::MAX)
    };
    ladder.rungs().iter().map(|rung| shortest(*rung)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_by_the_rung_that_the_ladder_gives_them() {
        for seconds in [&[1, 5, 30, 300, 3_600, 21_600, 86_400, 604_800, 1_209_600, 2_592_000][..], &[100, 101], &[7], &[]] {
            let ladder = Ladder::new(seconds.iter().copied().map(Duration::from_secs));
            let waits = shortest_waits(&ladder);
            assert!(waits.is_sorted() && waits.len() == ladder.rungs().len());
            let near = waits.iter().flat_map(|wait| [wait - 1, *wait, wait + 1]);
            for wait in near.chain([0, 1, 999_999, 1_000_001, 100_500_000, 86_399_000_000, i64::from(u32::MAX) * 1_000_000]) {
                // The same as width_bucket in PostgreSQL.
                let bucket = waits.partition_point(|shortest| *shortest <= wait);
                let hop = bucket.checked_sub(1).map_or(Hop::Lane, |at| Hop::Rung(ladder.rungs()[at]));
                assert_eq!(hop, ladder.next(Duration::from_micros(wait.cast_unsigned())), "{wait} µs of {seconds:?}");
            }
        }
    }
}
