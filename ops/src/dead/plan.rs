//! A plan: what a replay of the selected letters would do, for each letter, checked against the current rows and stored. Making a plan
//! changes no letter and no subject. Only a plan can be run.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, DerivePartialModel, EntityTrait,
    FromQueryResult, QueryFilter, QueryOrder, QuerySelect, TransactionTrait,
};
use serde::Serialize;
use serde_json::json;
use shared::database::{
    active_policy,
    entity::{dead_letters, replay_plan_letters, replay_plans},
    scalar, statement,
};
use uuid::Uuid;

use super::{
    filter::{Filter, LetterState},
    trial::{About, Replays, Trial, TrialVerdict},
};
use crate::actor::Operator;

/// How many letters are tried concurrently.
const AT_ONCE: usize = 4;

/// An operator's request for a plan.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    pub filter: Filter,
    pub why: String,
    /// Most letters in the plan. The command reports how many more the filter matches.
    pub limit: u32,
    pub tolerance: Tolerance,
}

/// How far a run may deviate from its plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tolerance {
    /// Letters whose result differs.
    pub letters: u32,
    /// The sum of all differences, in đồng.
    pub amount: i64,
}

/// A stored plan.
#[derive(Clone, Debug, PartialEq, Serialize, DerivePartialModel)]
#[sea_orm(entity = "replay_plans::Entity")]
pub struct ReplayPlan {
    pub id: Uuid,
    pub state: String,
    pub made_at: DateTime<Utc>,
    /// The name that the operator gave, and the login.
    pub made_by: String,
    pub made_login: String,
    pub why: String,
    /// The number of the policy under which it was made.
    pub policy: Option<i64>,
    /// What is approved and run: a digest of the plan and its letters.
    pub digest: Option<String>,
    /// The total in đồng, and the number of customers who pay it.
    pub amount: i64,
    pub customers: i32,
    pub tolerance_letters: i32,
    pub tolerance_amount: i64,
    pub needs_approval: bool,
    pub approved_by: Option<String>,
    pub approved_login: Option<String>,
    pub approved_at: Option<DateTime<Utc>>,
    pub run_by: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub stopped_why: Option<String>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl ReplayPlan {
    #[must_use]
    pub fn tolerance(&self) -> Tolerance {
        Tolerance { letters: u32::try_from(self.tolerance_letters).unwrap_or_default(), amount: self.tolerance_amount }
    }

    /// Whether a second operator must still approve it.
    #[must_use]
    pub fn waits_for_approval(&self) -> bool {
        self.needs_approval && self.approved_login.is_none()
    }
}

/// One letter of a plan.
#[derive(Clone, Debug, PartialEq, Eq, DerivePartialModel)]
#[sea_orm(entity = "replay_plan_letters::Entity")]
pub struct PlannedLetter {
    pub position: i32,
    #[sea_orm(nested)]
    pub about: About,
    pub verdict: TrialVerdict,
    pub why: Option<String>,
    pub amount: i64,
}

/// The letters of a plan with the same verdict, result and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct PlanTally {
    pub verdict: String,
    /// `None`: not replayed yet.
    pub result: Option<String>,
    pub why: Option<String>,
    pub letters: i64,
    /// Planned and moved amounts, in đồng.
    pub amount: i64,
    pub moved: i64,
}

/// Why a plan was not made, found or approved.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("no open dead letters match")]
    Empty,
    #[error("no policy was applied to this database, so nothing is due; see `ops policy apply`")]
    NoPolicy,
    #[error("another policy became active while this was planned; plan it again")]
    OtherPolicy,
    #[error("no plan has the id {0}; see `ops dead plans`")]
    Unknown(Uuid),
    #[error("{by} made this plan, with this login ({login}); another operator must approve it, with a login of their own")]
    OwnPlan { by: String, login: String },
    #[error(
        "several people may use the login {0}; operators approve, and plan what needs approval, with logins of their own: ops roles add-operator"
    )]
    SharedLogin(String),
    #[error("the plan was changed after it was made; make a new one")]
    Altered,
    #[error("the plan is already approved, by {0}")]
    Approved(String),
    #[error("the plan is already done")]
    Done,
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// Checks every letter that the filter selects, and stores what a replay would do. `progress` receives the number of checked letters and
/// the total.
///
/// # Errors
/// [`PlanError`]; no plan is stored then.
pub async fn make(
    db: &DatabaseConnection,
    replays: &Replays,
    request: &PlanRequest,
    actor: &Operator,
    progress: impl Fn(usize, usize),
) -> Result<ReplayPlan, PlanError> {
    let abouts = chosen(db, &request.filter, request.limit).await?;
    if abouts.is_empty() {
        return Err(PlanError::Empty);
    }
    let checked = check(db, replays, &abouts, &progress).await?;
    let customers: BTreeSet<Uuid> = checked.iter().flat_map(|trial| trial.customers.iter().copied()).collect();
    let amount = checked.iter().map(|trial| trial.amount).sum::<i64>();
    let policy = replays.policy().ok_or(PlanError::NoPolicy)?;
    let tx = db.begin().await?;
    if active_policy::number(&tx).await? != Some(policy) {
        return Err(PlanError::OtherPolicy);
    }
    let plan = find(&tx, store(&tx, request, actor, policy, customers.len(), (&abouts, &checked)).await?).await?;
    let changed = json!({ "letters": abouts.len(), "amount": amount, "customers": customers.len() });
    actor.record(&tx, "replay.planned", ("replay_plan", plan.id), Some(&request.why), changed).await?;
    tx.commit().await?;
    Ok(plan)
}

/// What replays of these letters, one after the other, would do now. Changes nothing.
///
/// # Errors
/// The database is away.
pub(super) async fn check(
    db: &DatabaseConnection,
    replays: &Replays,
    abouts: &[About],
    progress: &impl Fn(usize, usize),
) -> Result<Vec<Trial>, DbErr> {
    let mut seen = HashMap::new();
    let mut trials: Vec<Option<Trial>> = abouts.iter().map(|about| repeated(about, &mut seen)).collect();
    let open: Vec<usize> = (0..abouts.len()).filter(|at| trials[*at].is_none()).collect();
    let each = stream::iter(open).map(|at| async move { Ok::<_, DbErr>((at, replays.would(db, &abouts[at]).await?)) });
    let mut each = std::pin::pin!(each.buffer_unordered(AT_ONCE));
    let mut done = 0;
    while let Some((at, trial)) = each.try_next().await? {
        trials[at] = Some(trial);
        done += 1;
        progress(done, abouts.len());
    }
    let mut trials: Vec<Trial> = trials.into_iter().flatten().collect();
    // Each was tried alone. Those that charge one wallet are tried again together, because the wallet's floor may not allow them all.
    for together in sharing(&trials) {
        let sharers: Vec<&About> = together.iter().map(|at| &abouts[*at]).collect();
        if let Some(again) = replays.would_all(db, &sharers).await? {
            for (at, trial) in together.into_iter().zip(again) {
                trials[at] = trial;
            }
        }
    }
    Ok(trials)
}

/// After a replay of the first letter about a subject, a second one has nothing left to do.
fn repeated(about: &About, seen: &mut HashMap<(String, Uuid), Uuid>) -> Option<Trial> {
    let key = (about.kind.clone()?, about.subject?);
    let first = *seen.entry(key).or_insert(about.letter);
    let why = Some(format!("dead letter {first} has the same kind and subject"));
    (first != about.letter).then_some(Trial { verdict: TrialVerdict::Moot, why, amount: 0, customers: Vec::new() })
}

/// Positions of letters that move money of the same customer, one list per customer.
fn sharing(trials: &[Trial]) -> Vec<Vec<usize>> {
    let mut of: HashMap<Uuid, Vec<usize>> = HashMap::new();
    for (at, trial) in trials.iter().enumerate().filter(|(_, trial)| trial.amount > 0) {
        // A replay charges one wallet.
        if let Some(customer) = trial.customers.first() {
            of.entry(*customer).or_default().push(at);
        }
    }
    of.into_values().filter(|letters| letters.len() > 1).collect()
}

/// The open letters that a filter selects, oldest first.
async fn chosen(db: &DatabaseConnection, filter: &Filter, limit: u32) -> Result<Vec<About>, DbErr> {
    use dead_letters::Column::{Id, LastFailedAt};
    let open = Filter { state: LetterState::Open, ..filter.clone() }.condition().add(filter.condition());
    let chosen = dead_letters::Entity::find().filter(open).order_by_asc(LastFailedAt).order_by_asc(Id);
    chosen.limit(u64::from(limit)).into_partial_model().all(db).await
}

/// Stores a plan. The database decides whether it needs approval, and takes the login from the session.
async fn store(
    tx: &DatabaseTransaction,
    request: &PlanRequest,
    actor: &Operator,
    policy: i64,
    customers: usize,
    (abouts, trials): (&[About], &[Trial]),
) -> Result<Uuid, DbErr> {
    let sql = "SELECT kyhan_plan_make($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let letters: Vec<Uuid> = abouts.iter().map(|about| about.letter).collect();
    let verdicts: Vec<String> = trials.iter().map(|trial| trial.verdict.name().to_owned()).collect();
    let whys: Vec<String> = trials.iter().map(|trial| trial.why.clone().unwrap_or_default()).collect();
    let amounts: Vec<i64> = trials.iter().map(|trial| trial.amount).collect();
    let values = [
        actor.name().into(),
        request.why.as_str().into(),
        serde_json::to_value(&request.filter).unwrap_or_default().into(),
        i32::try_from(customers).unwrap_or(i32::MAX).into(),
        i32::try_from(request.tolerance.letters).unwrap_or(i32::MAX).into(),
        request.tolerance.amount.into(),
        policy.into(),
        letters.into(),
        verdicts.into(),
        whys.into(),
        amounts.into(),
    ];
    scalar(tx, statement(sql, values)).await
}

/// The plan with this id.
///
/// # Errors
/// [`PlanError::Unknown`], or database errors.
pub async fn find(db: &impl ConnectionTrait, id: Uuid) -> Result<ReplayPlan, PlanError> {
    replay_plans::Entity::find_by_id(id).into_partial_model().one(db).await?.ok_or(PlanError::Unknown(id))
}

/// The newest plans.
///
/// # Errors
/// Database errors.
pub async fn newest(db: &DatabaseConnection, limit: u32) -> Result<Vec<ReplayPlan>, DbErr> {
    let newest = replay_plans::Entity::find().order_by_desc(replay_plans::Column::MadeAt).order_by_asc(replay_plans::Column::Id);
    newest.limit(u64::from(limit)).into_partial_model().all(db).await
}

/// The tallies of a plan, the largest first.
///
/// # Errors
/// Database errors.
pub async fn tallies(db: &DatabaseConnection, id: Uuid) -> Result<Vec<PlanTally>, DbErr> {
    let sql = "SELECT verdict, result, coalesce(result_why, why) AS why, count(*) AS letters,
                      coalesce(sum(amount), 0)::bigint AS amount, coalesce(sum(result_amount), 0)::bigint AS moved
                 FROM replay_plan_letters WHERE plan_id = $1
                GROUP BY 1, 2, 3 ORDER BY letters DESC, verdict, result, why";
    PlanTally::find_by_statement(statement(sql, [id.into()])).all(db).await
}

/// The letters of a plan that are still to be replayed or closed, in order.
///
/// # Errors
/// Database errors.
pub(super) async fn lines_left(db: &DatabaseConnection, id: Uuid) -> Result<Vec<PlannedLetter>, DbErr> {
    use replay_plan_letters::Column;
    let lines = replay_plan_letters::Entity::find().inner_join(dead_letters::Entity);
    let left = lines
        .filter(Column::PlanId.eq(id))
        .filter(Column::Result.is_null())
        .filter(Column::Verdict.is_in([TrialVerdict::Applies, TrialVerdict::Moot]));
    left.order_by_asc(Column::Position).into_partial_model().all(db).await
}

/// Approves a plan as the session's operator saw it.
///
/// # Errors
/// [`PlanError`].
pub async fn approve(
    db: &DatabaseConnection,
    seen: &ReplayPlan,
    actor: &Operator,
    why: Option<&str>,
) -> Result<ReplayPlan, PlanError> {
    let id = seen.id;
    let tx = db.begin().await?;
    let plan = find(&tx, id).await?;
    if plan.state == "done" {
        return Err(PlanError::Done);
    }
    // The function below refuses all of this, too; these errors explain it.
    let login: String = scalar(&tx, statement("SELECT session_user::text", [])).await?;
    if plan.made_login == login {
        return Err(PlanError::OwnPlan { by: plan.made_by, login });
    }
    for login in [&login, &plan.made_login] {
        if !scalar::<bool>(&tx, statement("SELECT kyhan_is_personal($1)", [login.as_str().into()])).await? {
            return Err(PlanError::SharedLogin(login.clone()));
        }
    }
    if let Some(approved_by) = plan.approved_by {
        return Err(PlanError::Approved(approved_by));
    }
    unaltered(&tx, seen).await?;
    let values = [id.into(), actor.name().into(), seen.digest.clone().into()];
    tx.execute_raw(statement("SELECT kyhan_plan_approve($1, $2, $3)", values)).await?;
    actor
        .record(&tx, "replay.approved", ("replay_plan", id), why, json!({ "amount": plan.amount, "digest": seen.digest }))
        .await?;
    let plan = find(&tx, id).await?;
    tx.commit().await?;
    Ok(plan)
}

/// Checks that a plan's letters are those with which it was made.
pub(super) async fn unaltered(db: &impl ConnectionTrait, plan: &ReplayPlan) -> Result<(), PlanError> {
    let now: Option<String> = scalar(db, statement("SELECT kyhan_plan_digest($1)", [plan.id.into()])).await?;
    if now.is_some() && now == plan.digest { Ok(()) } else { Err(PlanError::Altered) }
}

/// The positions of letters whose result would differ from the plan, and the sum of the differences in đồng.
#[must_use]
pub fn drift(lines: &[PlannedLetter], now: &[Trial]) -> (Vec<usize>, i64) {
    let differs = |(line, trial): &(&PlannedLetter, &Trial)| line.verdict != trial.verdict || line.amount != trial.amount;
    let changed: Vec<usize> = lines.iter().zip(now).enumerate().filter(|(_, pair)| differs(pair)).map(|(at, _)| at).collect();
    let amount = changed.iter().map(|at| (lines[*at].amount - now[*at].amount).abs()).sum();
    (changed, amount)
}
