//! A trial: what a replay of a letter would do now. It runs the replay itself and rolls back, so trial and replay always agree on
//! what is due, how much money moves, and what fails and why.

use std::{collections::HashMap, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, DeriveActiveEnum, DerivePartialModel, EnumIter,
    FromQueryResult, TransactionTrait,
};
use serde::Serialize;
use shared::{
    database::{
        clock,
        entity::dead_letters,
        failure::Trouble,
        one,
        probe::judge,
        scalar, statement,
        statements::{NotApplied, OnLocked, Statements},
    },
    domain::{outcome::Outcome, tasks},
    process::redact::redacted,
    settings::Settings,
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::shown::moment;

/// Most tries of a replay that conflicts with other transactions. After these it counts as failed.
const CONFLICTS_MAX: u32 = 5;

/// What a letter is about, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, DerivePartialModel)]
#[sea_orm(entity = "dead_letters::Entity")]
pub struct About {
    /// The letter's id.
    #[sea_orm(from_col = "id")]
    pub letter: Uuid,
    pub kind: Option<String>,
    #[sea_orm(from_col = "subject_id")]
    pub subject: Option<Uuid>,
    /// The wake-up that failed. The effect is recorded under its id, or, if `None`, under the letter's id.
    #[sea_orm(from_col = "wakeup_id")]
    pub wakeup: Option<Uuid>,
}

/// The result of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, EnumIter, DeriveActiveEnum)]
#[serde(rename_all = "lowercase")]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "lowercase")]
pub enum TrialVerdict {
    /// It applies the effect, or as much of it as the wallet allows.
    Applies,
    /// Nothing is left to do.
    Moot,
    /// The subject is not due yet, so the letter stays open.
    Waits,
    /// It fails, as before or with another cause.
    Fails,
    /// The letter has no kind or no subject, or an unknown kind.
    Unreadable,
}

impl TrialVerdict {
    /// The name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Applies => "applies",
            Self::Moot => "moot",
            Self::Waits => "waits",
            Self::Fails => "fails",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The result of one letter's replay or trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    pub verdict: TrialVerdict,
    /// An explanation, if the verdict needs one.
    pub why: Option<String>,
    /// Đồng taken from wallets.
    pub amount: i64,
    /// The owners of these wallets.
    pub customers: Vec<Uuid>,
}

impl Trial {
    fn without_money(verdict: TrialVerdict, why: impl Into<Option<String>>) -> Self {
        Self { verdict, why: why.into(), amount: 0, customers: Vec::new() }
    }
}

/// The statements of every kind, for one policy.
pub struct Replays {
    policy: Option<i64>,
    /// The deferrable constraints that a replay checks at its end, as SQL names them; read once.
    max_skew: Duration,
    constraints: OnceCell<Option<String>>,
    statements: HashMap<&'static str, Statements>,
}

impl Replays {
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            policy: settings.policy.number(),
            max_skew: settings.clock.max_skew,
            constraints: OnceCell::new(),
            statements: tasks::ALL
                .iter()
                .map(|task| (task.kind(), Statements::new(*task, &settings.policy, settings.arrears.wallet_floor)))
                .collect(),
        }
    }

    /// The number of the active policy; `None`: none was applied.
    #[must_use]
    pub const fn policy(&self) -> Option<i64> {
        self.policy
    }

    /// Replays in a transaction that the caller commits or rolls back.
    ///
    /// # Errors
    /// Database errors; the transaction must be rolled back then.
    pub async fn replay(&self, tx: &DatabaseTransaction, about: &About) -> Result<Trial, DbErr> {
        let (kind, subject) = match (&about.kind, about.subject) {
            (Some(kind), Some(subject)) => (kind.as_str(), subject),
            _ => {
                return Ok(Trial::without_money(
                    TrialVerdict::Unreadable,
                    "the dead letter has no kind or no subject".to_owned(),
                ));
            }
        };
        let Some(statements) = self.statements.get(kind) else {
            return Ok(Trial::without_money(TrialVerdict::Unreadable, format!("the kind {kind:?} is unknown")));
        };
        let before = moved(tx, subject).await?;
        let outcomes = match statements.apply(tx, &[(subject, about.wakeup.unwrap_or(about.letter))], OnLocked::Wait).await {
            Ok(rechecked) => {
                clock::agrees(rechecked.now, self.max_skew).map_err(|error| DbErr::Custom(error.to_string()))?;
                rechecked.outcomes
            }
            Err(NotApplied::Paused(pause)) => {
                let why = format!("{kind} has been paused since {} by {}: {}", moment(pause.since), pause.by, pause.why);
                return Ok(Trial::without_money(TrialVerdict::Fails, why));
            }
            Err(outdated @ NotApplied::Outdated) => {
                return Ok(Trial::without_money(TrialVerdict::Fails, format!("{outdated}; run it again")));
            }
            Err(NotApplied::Database(error)) => return Err(error),
        };
        self.check_constraints(tx).await?;
        let (amount, customers) = moved(tx, subject).await?;
        let (verdict, why) = match outcomes.into_iter().next().map(|(_, outcome)| outcome) {
            Some(Outcome::Applied { .. }) => (TrialVerdict::Applies, None),
            Some(Outcome::Postpone { until, .. }) if amount > before.0 => {
                (TrialVerdict::Applies, Some(format!("in part; the rest is retried at {}", moment(until))))
            }
            Some(Outcome::Postpone { until, .. }) => (TrialVerdict::Waits, Some(format!("due at {}", moment(until)))),
            Some(Outcome::Stale) | None => (TrialVerdict::Moot, Some("nothing is left to do".to_owned())),
            Some(Outcome::Retry { cause } | Outcome::Reject { cause, .. }) => (TrialVerdict::Fails, Some(cause)),
        };
        Ok(Trial { verdict, why, amount: amount - before.0, customers })
    }

    /// Checks deferred constraints now, which would otherwise fail only at the commit; except the one that wants to see the plan's line,
    /// which is written last.
    async fn check_constraints(&self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        let sql = "SELECT string_agg(DISTINCT format('%I.%I', nspname, conname), ', ')
                     FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace
                    WHERE condeferrable AND conname <> 'charges_are_planned' AND has_schema_privilege(nspname, 'USAGE')";
        if let Some(others) = self.constraints.get_or_try_init(|| scalar(tx, statement(sql, []))).await? {
            tx.execute_unprepared(&format!("SET CONSTRAINTS {others} IMMEDIATE")).await?;
        }
        Ok(())
    }

    /// What a replay would do now. Changes nothing.
    ///
    /// # Errors
    /// The database is away. Any other failure is a verdict.
    pub async fn would(&self, db: &DatabaseConnection, about: &About) -> Result<Trial, DbErr> {
        let mut conflicts = 0;
        loop {
            let tx = db.begin().await?;
            let tried = self.replay(&tx, about).await;
            // Also after an error. If the connection broke, PostgreSQL rolls back.
            let rolled_back = tx.rollback().await;
            match tried {
                Ok(trial) => return rolled_back.map(|()| trial),
                Err(error) => {
                    conflicts += 1;
                    let trouble = judge(db, &error).await;
                    if let Some(trial) = failed(error, trouble, conflicts)? {
                        return Ok(trial);
                    }
                }
            }
        }
    }

    /// What replays of these letters, one after the other, would do. They share one transaction, because money that one takes from a
    /// wallet is not available to the next. `None`: one of them fails.
    ///
    /// # Errors
    /// The database is away.
    pub async fn would_all(&self, db: &DatabaseConnection, abouts: &[&About]) -> Result<Option<Vec<Trial>>, DbErr> {
        let tx = db.begin().await?;
        let mut trials = Vec::with_capacity(abouts.len());
        for about in abouts {
            match self.replay(&tx, about).await {
                Ok(trial) => trials.push(trial),
                Err(error) if judge(db, &error).await.is_outage() => return Err(error),
                Err(_) => return Ok(None),
            }
        }
        tx.rollback().await?;
        Ok(Some(trials))
    }
}

/// Converts an error of a replay into a verdict. `None`: a conflict with another transaction, so another try may succeed.
///
/// # Errors
/// The error itself if the database is away, because then it is not the letter's fault.
pub(crate) fn failed(error: DbErr, trouble: Trouble, tries: u32) -> Result<Option<Trial>, DbErr> {
    match trouble {
        Trouble::Away | Trouble::Cut => Err(error),
        Trouble::Conflict if tries < CONFLICTS_MAX => Ok(None),
        Trouble::Conflict | Trouble::Unconfirmed | Trouble::Failure => {
            Ok(Some(Trial::without_money(TrialVerdict::Fails, redacted(&error))))
        }
    }
}

/// The amount that this transaction has taken from wallets for a subject so far, and the owners of these wallets. This works for every
/// kind, because each transfer of a task names its order.
async fn moved(tx: &DatabaseTransaction, subject: Uuid) -> Result<(i64, Vec<Uuid>), DbErr> {
    #[derive(FromQueryResult)]
    struct Moved {
        amount: i64,
        customers: Vec<Uuid>,
    }
    let sql = "SELECT coalesce(sum(transfers.amount), 0)::bigint AS amount,
                      coalesce(array_agg(DISTINCT wallet.customer_id), '{}') AS customers
                 FROM transfers JOIN accounts AS wallet ON wallet.id = transfers.debit_account AND wallet.kind = 'wallet'
                WHERE transfers.order_id = $1 AND transfers.xmin = pg_current_xact_id_if_assigned()::xid";
    let Moved { amount, customers } = one(tx, statement(sql, [subject.into()])).await?;
    Ok((amount, customers))
}
