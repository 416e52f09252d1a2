//! Dead-letter upkeep: closes open letters that have become moot, and deletes letters that were decided longer ago than
//! `dead_letters.keep`, if that is set. Each statement also writes its record. An open letter is never deleted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{KeyValue, global, metrics::Counter};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};
use shared::{
    database::{scalar, statement, within},
    domain::{
        due,
        policy::Policy,
        span::{Span, signed_ms},
        task::Task,
        tasks,
    },
};
use uuid::Uuid;

use super::{ANSWER_WITHIN, Duty, DutyError, DutyRound};
use crate::context::Context;

/// How many letters one query reads.
const PAGE: u32 = 500;
/// How long a round looks at open letters; the next round continues.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Most letters that a round deletes.
const DELETED_MAX: i64 = 1_000;
/// By how much the time of a failure may be wrong, because it comes from a worker's clock.
const CLOCKS_DIFFER: &str = "interval '1 day'";

/// The duty of dead-letter upkeep, its position and its metrics.
pub(super) struct LettersDuty {
    /// The last open letter that was looked at; the next round begins after it.
    looked: Option<LetterPosition>,
    resolved: Counter<u64>,
    expired: Counter<u64>,
}

/// The position of a letter among the open ones: its last failure and its id.
type LetterPosition = (DateTime<Utc>, Uuid);

impl LettersDuty {
    pub(super) fn new() -> Self {
        let meter = global::meter("kyhan");
        let counter = |name, what| meter.u64_counter(name).with_unit("{letter}").with_description(what).build();
        Self {
            looked: None,
            resolved: counter("kyhan.dead_letters.resolved", "Open dead letters that became moot and were closed, by kind"),
            expired: counter("kyhan.dead_letters.expired", "Decided dead letters that were deleted after dead_letters.keep"),
        }
    }

    async fn upkeep(&mut self, context: &Context) -> Result<(), DbErr> {
        self.close_moot(context).await?;
        if let Some(keep) = context.settings.dead_letters.keep {
            let count = within(ANSWER_WITHIN, expire(context, keep)).await?;
            if count > 0 {
                tracing::info!(count, %keep, "deleted dead letters that were decided longer ago than dead_letters.keep");
                self.expired.add(count, &[]);
            }
        }
        Ok(())
    }

    /// Closes letters whose subject is no longer a candidate, for at most [`LOOK_MAX`].
    async fn close_moot(&mut self, context: &Context) -> Result<(), DbErr> {
        let began = Instant::now();
        while began.elapsed() < LOOK_MAX {
            let page = within(ANSWER_WITHIN, open(context, self.looked)).await?;
            let full = page.letters.len() == PAGE as usize;
            for (kind, (letters, subjects)) in by_kind(page.letters) {
                let Some(task) = tasks::find(&kind) else { continue };
                let count = within(ANSWER_WITHIN, close(context, task, letters, subjects)).await?;
                if count > 0 {
                    tracing::info!(kind, count, "closed dead letters that had become moot");
                    self.resolved.add(count, &[KeyValue::new("kind", task.kind())]);
                }
            }
            // After the last page, start again from the first.
            self.looked = page.last.filter(|_| full);
            if !full {
                break;
            }
        }
        Ok(())
    }
}

impl Duty for LettersDuty {
    fn name(&self) -> &'static str {
        "dead-letter upkeep"
    }

    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(self.upkeep(round.context).await?) }.boxed()
    }
}

/// Some open letters, oldest first.
struct OpenLetterPage {
    letters: Vec<(String, Uuid, Uuid)>,
    last: Option<LetterPosition>,
}

/// The next page of open letters of known kinds. Letters stored within the sweep's grace are left out, because their subject may still
/// change.
async fn open(context: &Context, after: Option<LetterPosition>) -> Result<OpenLetterPage, DbErr> {
    #[derive(FromQueryResult)]
    struct Open {
        kind: String,
        id: Uuid,
        subject_id: Uuid,
        last_failed_at: DateTime<Utc>,
    }
    let sql = "SELECT kind, id, subject_id, last_failed_at FROM dead_letters
                WHERE state = 'open' AND (last_failed_at, id) > ($1, $2)
                  AND kind = ANY($3) AND subject_id IS NOT NULL AND stored_at < now() - $4 * interval '1 ms'
                ORDER BY last_failed_at, id LIMIT $5";
    let (at, id) = after.unwrap_or((DateTime::UNIX_EPOCH, Uuid::nil()));
    let kinds: Vec<String> = tasks::kinds().map(ToOwned::to_owned).collect();
    let grace_ms = signed_ms(context.settings.sweep.grace);
    let values = [at.into(), id.into(), kinds.into(), grace_ms.into(), i64::from(PAGE).into()];
    let open = Open::find_by_statement(statement(sql, values)).all(&context.db).await?;
    let last = open.last().map(|letter| (letter.last_failed_at, letter.id));
    Ok(OpenLetterPage { letters: open.into_iter().map(|letter| (letter.kind, letter.id, letter.subject_id)).collect(), last })
}

/// The letters and their subjects by kind.
fn by_kind(letters: Vec<(String, Uuid, Uuid)>) -> BTreeMap<String, (Vec<Uuid>, Vec<Uuid>)> {
    let mut kinds: BTreeMap<String, (Vec<Uuid>, Vec<Uuid>)> = BTreeMap::new();
    for (kind, letter, subject) in letters {
        let (letters, subjects) = kinds.entry(kind).or_default();
        letters.push(letter);
        subjects.push(subject);
    }
    kinds
}

/// Closes the moot ones among these letters; returns how many.
async fn close(context: &Context, task: &dyn Task, letters: Vec<Uuid>, subjects: Vec<Uuid>) -> Result<u64, DbErr> {
    let sql = closing(task, &context.settings.policy);
    let why = format!("moot: its subject is no longer a candidate of {}", task.kind());
    Ok(context.db.execute_raw(statement(&sql, [letters.into(), subjects.into(), why.into()])).await?.rows_affected())
}

/// `$1` letters, `$2` their subjects, `$3` why. No time is compared: a subject that is not due yet is not moot. Locked letters are
/// skipped, because an operator is deciding about them now.
fn closing(task: &dyn Task, policy: &Policy) -> String {
    format!(
        "WITH asked AS (
            SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS asked (letter_id, subject_id)
        ), moot AS (
            SELECT asked.letter_id FROM asked LEFT JOIN {due} AS due ON due.id = asked.subject_id WHERE due.id IS NULL
        ), free AS (
            SELECT id FROM dead_letters WHERE id IN (SELECT letter_id FROM moot) AND state = 'open'
             ORDER BY id FOR UPDATE SKIP LOCKED
        ), resolved AS (
            UPDATE dead_letters AS letter SET state = 'resolved', decided_at = now(), decided_by = 'kyhan', decided_why = $3
              FROM free WHERE letter.id = free.id AND letter.state = 'open'
            RETURNING letter.id
        )
        INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
        SELECT 'system', 'dead_letter.resolved', 'dead_letter', id,
               jsonb_build_object('by', 'kyhan', 'why', $3::text, 'changed', jsonb_build_object('state', 'resolved'))
          FROM resolved",
        due = due::query(task, policy)
    )
}

/// Deletes letters that were decided longer ago than `keep`, oldest first; returns how many. A letter that another one was repaired from is
/// deleted only after that one. The record has the nil id, because it covers many letters.
async fn expire(context: &Context, keep: Span) -> Result<u64, DbErr> {
    // A letter is decided after its last failure, so the index on the failure time is enough to find candidates.
    let at_least_ms = match keep {
        Span::Exact(ms) => ms,
        Span::Months(months) => u64::from(months) * 28 * 86_400_000,
    };
    let sql = format!(
        "WITH old AS (
            SELECT id FROM dead_letters AS letter
             WHERE state <> 'open' AND {ends} < now()
               AND last_failed_at < now() - interval '{at_least_ms} ms' + {CLOCKS_DIFFER}
               AND NOT EXISTS (SELECT FROM dead_letters AS repaired WHERE repaired.repaired_from = letter.id)
             ORDER BY last_failed_at, id LIMIT $1 FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM dead_letters AS letter USING old WHERE letter.id = old.id RETURNING letter.id
        ), counted AS (
            SELECT count(*) AS letters FROM gone
        ), recorded AS (
            INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
            SELECT 'system', 'dead_letters.expired', 'dead_letters', '00000000-0000-0000-0000-000000000000'::uuid,
                   jsonb_build_object('by', 'kyhan', 'why', $2::text, 'changed', jsonb_build_object('letters', letters))
              FROM counted WHERE letters > 0
        )
        SELECT letters FROM counted",
        ends = keep.sql_after("decided_at"),
    );
    let why = format!("decided longer ago than dead_letters.keep = \"{keep}\"");
    let count: i64 = scalar(&context.db, statement(&sql, [DELETED_MAX.into(), why.into()])).await?;
    Ok(u64::try_from(count).unwrap_or_default())
}
