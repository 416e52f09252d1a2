//! What an operator decides about letters: to discard them, or to put right what one says it was to do. Each is one transaction with
//! its record in `activity`; a letter that is decided about stays as it is.

use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult, TransactionTrait};
use serde_json::json;
use shared::{database::statement, domain::tasks};
use uuid::Uuid;

use crate::{actor::Actor, shown};

/// What stands in `activity` as the kind of a letter.
const LETTER: &str = "dead_letter";

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    #[error("there is no dead letter {0}")]
    NoLetter(Uuid),
    #[error("the letter {id} is {state} already, by {by} at {at}: {why}")]
    Decided { id: Uuid, state: String, by: String, at: String, why: String },
    #[error("the letter {id} is repaired already, as {repaired_as}")]
    Repaired { id: Uuid, repaired_as: Uuid },
    #[error("the plan {plan} is running with the letter {letter}; wait until it is done, or stop it")]
    Running { plan: Uuid, letter: Uuid },
    #[error("nobody knows what the letter {0} was to do: say it whole, with --kind and --subject")]
    Incomplete(Uuid),
    #[error("there is no task {0:?} any more: say what it is called now, with --kind")]
    UnknownKind(String),
    #[error("the letter {0} says so already: nothing would be repaired")]
    Same(Uuid),
    #[error("{kind} is about rows of {table}, and there is no row {subject}")]
    NoSubject { kind: String, table: &'static str, subject: Uuid },
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// What became of letters that were to be discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discarded {
    pub discarded: u64,
    /// Decided about by somebody else since they were chosen: left as they are.
    pub decided: u64,
}

/// Discards these letters for good, those of them that are open.
///
/// # Errors
/// [`DecideError::Running`] where a running plan has one of them; the database's. Nothing is discarded then.
pub async fn discard(db: &DatabaseConnection, actor: &Actor, ids: &[Uuid], why: &str) -> Result<Discarded, DecideError> {
    let tx = db.begin().await?;
    let open = open(&tx, ids).await?;
    refuse_running(&tx, &open).await?;
    let sql =
        "UPDATE dead_letters SET state = 'discarded', decided_at = now(), decided_by = $2, decided_why = $3 WHERE id = ANY($1)";
    let done = tx.execute_raw(statement(sql, [open.clone().into(), actor.name().into(), why.into()])).await?;
    actor
        .record_each(&tx, "dead_letter.discarded", (LETTER, &open), Some(why), json!({ "state": ["open", "discarded"] }))
        .await?;
    tx.commit().await?;
    let discarded = done.rows_affected();
    Ok(Discarded { discarded, decided: (ids.len() as u64).saturating_sub(discarded) })
}

/// What a letter says it was to do, put right. There is no other field: an amount stands in no letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// The kind it should have had, one of [`tasks::ALL`]; `None`: the one it has.
    pub kind: Option<&'static str>,
    /// The subject it should have had; `None`: the one it has.
    pub subject: Option<Uuid>,
}

/// Writes a letter anew with what is put right, open, and resolves the old one, which keeps all it says. The new letter's id.
///
/// # Errors
/// [`DecideError`]; nothing is changed then. The same repair twice is an error the second time, and makes no second letter.
pub async fn repair(
    db: &DatabaseConnection,
    actor: &Actor,
    id: Uuid,
    correction: Correction,
    why: &str,
) -> Result<Uuid, DecideError> {
    let tx = db.begin().await?;
    let sql = "SELECT state, kind, subject_id, decided_at, decided_by, decided_why,
                      (SELECT id FROM dead_letters AS repaired WHERE repaired.repaired_from = letter.id) AS repaired_as
                 FROM dead_letters AS letter WHERE id = $1 FOR NO KEY UPDATE OF letter";
    let row = tx.query_one_raw(statement(sql, [id.into()])).await?.ok_or(DecideError::NoLetter(id))?;
    refuse_decided(id, &row)?;
    refuse_running(&tx, &[id]).await?;

    let (old_kind, old_subject): (Option<String>, Option<Uuid>) = (row.try_get("", "kind")?, row.try_get("", "subject_id")?);
    let kind = correction.kind.map(ToOwned::to_owned).or_else(|| old_kind.clone());
    let subject = correction.subject.or(old_subject);
    let (Some(kind), Some(subject)) = (kind, subject) else { return Err(DecideError::Incomplete(id)) };
    if (Some(&kind), Some(subject)) == (old_kind.as_ref(), old_subject) {
        return Err(DecideError::Same(id));
    }
    let Some(task) = tasks::find(&kind) else { return Err(DecideError::UnknownKind(kind)) };
    let there = format!("SELECT FROM {} WHERE id = $1", task.table());
    if tx.query_one_raw(statement(&there, [subject.into()])).await?.is_none() {
        return Err(DecideError::NoSubject { kind, table: task.table(), subject });
    }

    let repaired_as = Uuid::new_v4();
    let copy = "INSERT INTO dead_letters (id, kind, subject_id, repaired_from, wakeup_id, reason, cause, cause_group, attempts,
                                          first_failed_at, last_failed_at, worker, trace_id, queue, routing_key, headers, body)
                SELECT $2, $3, $4, id, wakeup_id, reason, cause, cause_group, attempts,
                       first_failed_at, last_failed_at, worker, trace_id, queue, routing_key, headers, body
                  FROM dead_letters WHERE id = $1";
    tx.execute_raw(statement(copy, [id.into(), repaired_as.into(), kind.clone().into(), subject.into()])).await?;
    let resolve =
        "UPDATE dead_letters SET state = 'resolved', decided_at = now(), decided_by = $2, decided_why = $3 WHERE id = $1";
    let decided_why = format!("repaired as {repaired_as}: {why}");
    tx.execute_raw(statement(resolve, [id.into(), actor.name().into(), decided_why.into()])).await?;
    let changed = json!({
        "state": ["open", "resolved"], "repaired_as": repaired_as, "kind": [old_kind, kind], "subject_id": [old_subject, subject],
    });
    actor.record(&tx, "dead_letter.repaired", (LETTER, id), Some(why), changed).await?;
    tx.commit().await?;
    Ok(repaired_as)
}

/// Locks letters in id order, as everybody does who decides about several; those that are open.
async fn open(tx: &DatabaseTransaction, ids: &[Uuid]) -> Result<Vec<Uuid>, DbErr> {
    let sql = "SELECT id, state FROM dead_letters WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
    let mut open = Vec::new();
    // By what is read under the lock: who waited for it sees what was decided.
    for row in tx.query_all_raw(statement(sql, [ids.to_vec().into()])).await? {
        if row.try_get::<String>("", "state")? == "open" {
            open.push(row.try_get("", "id")?);
        }
    }
    Ok(open)
}

/// A plan that starts just after this finds its letter decided, and leaves it: a run asks again for each letter.
async fn refuse_running(tx: &DatabaseTransaction, ids: &[Uuid]) -> Result<(), DecideError> {
    let sql = "SELECT line.plan_id, line.letter_id
                 FROM replay_plan_letters AS line JOIN replay_plans AS plan ON plan.id = line.plan_id
                WHERE plan.state = 'running' AND line.letter_id = ANY($1) ORDER BY line.plan_id, line.letter_id LIMIT 1";
    match tx.query_one_raw(statement(sql, [ids.to_vec().into()])).await? {
        Some(row) => Err(DecideError::Running { plan: row.try_get("", "plan_id")?, letter: row.try_get("", "letter_id")? }),
        None => Ok(()),
    }
}

fn refuse_decided(id: Uuid, row: &QueryResult) -> Result<(), DecideError> {
    let state: String = row.try_get("", "state")?;
    if state == "open" {
        return Ok(());
    }
    if let Some(repaired_as) = row.try_get("", "repaired_as")? {
        return Err(DecideError::Repaired { id, repaired_as });
    }
    Err(DecideError::Decided {
        id,
        state,
        by: row.try_get("", "decided_by")?,
        at: shown::moment(row.try_get("", "decided_at")?),
        why: row.try_get("", "decided_why")?,
    })
}
