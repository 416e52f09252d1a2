//! A trial: what a replay of a letter would do now. It is the replay itself in a transaction that is rolled back, so there is no
//! second opinion about what is due, how much money moves, or what still fails and why.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, DeriveActiveEnum, DerivePartialModel, EnumIter,
    FromQueryResult, TransactionTrait,
};
use serde::Serialize;
use shared::{
    database::{
        entity::dead_letters,
        failure::trouble,
        one, statement,
        statements::{NotApplied, Statements},
    },
    domain::{outcome::Outcome, tasks},
    process::redact::redacted,
    settings::Settings,
};
use uuid::Uuid;

use crate::shown::moment;

/// So often a trial that collides with the fleet is made again before it counts as a failure.
const CONFLICTS_MAX: u32 = 5;

/// What a letter is about, as far as it says so.
#[derive(Clone, Debug, PartialEq, Eq, DerivePartialModel)]
#[sea_orm(entity = "dead_letters::Entity")]
pub struct About {
    /// The letter's id.
    #[sea_orm(from_col = "id")]
    pub letter: Uuid,
    pub kind: Option<String>,
    #[sea_orm(from_col = "subject_id")]
    pub subject: Option<Uuid>,
    /// The wake-up that died, under whose name the effect is recorded; the letter's own id where there is none.
    #[sea_orm(from_col = "wakeup_id")]
    pub wakeup: Option<Uuid>,
}

/// What a replay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, EnumIter, DeriveActiveEnum)]
#[serde(rename_all = "lowercase")]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "lowercase")]
pub enum Verdict {
    /// It applies the effect, or as much of it as a wallet allows.
    Applies,
    /// There is nothing to do any more.
    Moot,
    /// It is not due yet: the letter stays open.
    Waits,
    /// It fails as before, or in another way.
    Fails,
    /// It names no kind or no subject, or a kind that nobody knows.
    Unreadable,
}

impl Verdict {
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

/// What a replay of one letter does or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    pub verdict: Verdict,
    /// In words, where there is more to say.
    pub why: Option<String>,
    /// Đồng that leave wallets.
    pub amount: i64,
    /// Whose wallets.
    pub customers: Vec<Uuid>,
}

impl Trial {
    fn without_money(verdict: Verdict, why: impl Into<Option<String>>) -> Self {
        Self { verdict, why: why.into(), amount: 0, customers: Vec::new() }
    }
}

/// The replays of every kind under one policy.
pub struct Replays {
    statements: HashMap<&'static str, Statements>,
}

impl Replays {
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            statements: tasks::ALL
                .iter()
                .map(|task| (task.kind(), Statements::new(*task, &settings.policy, settings.arrears.wallet_floor)))
                .collect(),
        }
    }

    /// Replays within a transaction, which is the caller's to commit or to roll back.
    ///
    /// # Errors
    /// The database's: the transaction can only be rolled back then.
    pub async fn replay(&self, tx: &DatabaseTransaction, about: &About) -> Result<Trial, DbErr> {
        let (kind, subject) = match (&about.kind, about.subject) {
            (Some(kind), Some(subject)) => (kind.as_str(), subject),
            _ => return Ok(Trial::without_money(Verdict::Unreadable, "it names no kind or no subject".to_owned())),
        };
        let Some(statements) = self.statements.get(kind) else {
            return Ok(Trial::without_money(Verdict::Unreadable, format!("nobody knows the kind {kind:?}")));
        };
        let before = moved(tx, subject).await?;
        let outcomes = match statements.apply(tx, &[(subject, about.wakeup.unwrap_or(about.letter))]).await {
            Ok(outcomes) => outcomes,
            Err(NotApplied::Paused(pause)) => {
                let why = format!("{kind} is paused since {} by {}: {}", moment(pause.since), pause.by, pause.why);
                return Ok(Trial::without_money(Verdict::Fails, why));
            }
            Err(outdated @ NotApplied::Outdated) => {
                return Ok(Trial::without_money(Verdict::Fails, format!("{outdated}; run it once more")));
            }
            Err(NotApplied::Database(error)) => return Err(error),
        };
        // What waits for the commit to complain, complains now.
        tx.execute_unprepared("SET CONSTRAINTS ALL IMMEDIATE").await?;
        let (amount, customers) = moved(tx, subject).await?;
        let (verdict, why) = match outcomes.into_iter().next().map(|(_, outcome)| outcome) {
            Some(Outcome::Applied { .. }) => (Verdict::Applies, None),
            Some(Outcome::Postpone { until, .. }) if amount > before.0 => {
                (Verdict::Applies, Some(format!("in part; the rest is tried again at {}", moment(until))))
            }
            Some(Outcome::Postpone { until, .. }) => (Verdict::Waits, Some(format!("due at {}", moment(until)))),
            Some(Outcome::Stale) | None => (Verdict::Moot, Some("nothing to do any more".to_owned())),
            Some(Outcome::Retry { cause } | Outcome::Reject { cause, .. }) => (Verdict::Fails, Some(cause)),
        };
        Ok(Trial { verdict, why, amount: amount - before.0, customers })
    }

    /// What a replay would do now. Nothing is changed.
    ///
    /// # Errors
    /// When the database is away; what a replay fails with is a verdict.
    pub async fn would(&self, db: &DatabaseConnection, about: &About) -> Result<Trial, DbErr> {
        let mut conflicts = 0;
        loop {
            let tx = db.begin().await?;
            let tried = self.replay(&tx, about).await;
            // Whatever became of it; a connection that broke rolls back by itself.
            let rolled_back = tx.rollback().await;
            match tried {
                Ok(trial) => return rolled_back.map(|()| trial),
                Err(error) => {
                    conflicts += 1;
                    if let Some(trial) = failed(error, conflicts)? {
                        return Ok(trial);
                    }
                }
            }
        }
    }

    /// What replays of these letters one after the other would do, in one transaction: where several draw on one wallet, what the first
    /// takes the next cannot take. `None` when one of them fails.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn would_all(&self, db: &DatabaseConnection, abouts: &[&About]) -> Result<Option<Vec<Trial>>, DbErr> {
        let tx = db.begin().await?;
        let mut trials = Vec::with_capacity(abouts.len());
        for about in abouts {
            match self.replay(&tx, about).await {
                Ok(trial) => trials.push(trial),
                Err(error) if trouble(&error).is_outage() => return Err(error),
                Err(_) => return Ok(None),
            }
        }
        tx.rollback().await?;
        Ok(Some(trials))
    }
}

/// What a replay that failed is to be told as; `None`: it collided with others, and the same again may succeed.
///
/// # Errors
/// The failure itself, when the database is away and no letter is to blame.
pub(crate) fn failed(error: DbErr, tries: u32) -> Result<Option<Trial>, DbErr> {
    use shared::database::failure::Trouble::{Away, Conflict, Cut, Failure};
    match trouble(&error) {
        Away | Cut => Err(error),
        Conflict if tries < CONFLICTS_MAX => Ok(None),
        Conflict | Failure => Ok(Some(Trial::without_money(Verdict::Fails, redacted(&error)))),
    }
}

/// What this transaction has moved out of wallets for a subject so far, and out of whose. Whatever the kind: money that a task moves
/// names its order.
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
