//! Proposals: policies that wait for a second operator. The database decides which policies need one, and takes both logins from the
//! sessions.

use std::num::NonZeroU32;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};
use serde_json::json;
use shared::{
    database::{scalar, statement},
    domain::policy::Policy,
};

use crate::actor::{Operator, id_of};

/// A policy that an operator wants to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub id: i64,
    pub policy: Policy,
    /// How many rows of a kind are released per second.
    pub rate: NonZeroU32,
    /// The number of the policy that was active when it was made; `None`: none was.
    pub base: Option<i64>,
    pub made_at: DateTime<Utc>,
    /// The name that the operator gave, and the login.
    pub made_by: String,
    pub made_login: String,
    pub why: String,
    /// The number under which it was applied.
    pub applied_as: Option<i64>,
}

#[derive(FromQueryResult)]
struct ProposalRow {
    id: i64,
    policy: serde_json::Value,
    rate: i32,
    base: Option<i64>,
    made_at: DateTime<Utc>,
    made_by: String,
    made_login: String,
    why: String,
    applied_as: Option<i64>,
}

impl ProposalRow {
    fn read(self) -> Result<Proposal, DbErr> {
        let Self { id, policy, rate, base, made_at, made_by, made_login, why, applied_as } = self;
        let policy = Policy::of_json(policy).map_err(|why| DbErr::Type(format!("proposal {id} cannot be read: {why}")))?;
        let rate = u32::try_from(rate).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        Ok(Proposal { id, policy, rate, base, made_at, made_by, made_login, why, applied_as })
    }
}

const PROPOSALS: &str = "SELECT id, policy, rate, base, made_at, made_by, made_login, why, applied_as FROM policy_proposals";

/// Stores a proposal and records it, in a transaction of the caller's; returns its number.
///
/// # Errors
/// Database errors.
pub async fn make(
    tx: &impl ConnectionTrait,
    policy: &Policy,
    rate: NonZeroU32,
    actor: &Operator,
    why: &str,
) -> Result<i64, DbErr> {
    let written = policy.to_json().map_err(|error| DbErr::Json(error.to_string()))?;
    let rate = i32::try_from(rate.get()).unwrap_or(i32::MAX);
    let values = [written.into(), rate.into(), actor.name().into(), why.into()];
    let id: i64 = scalar(tx, statement("SELECT kyhan_policy_propose($1, $2, $3, $4)", values)).await?;
    actor.record(tx, "policy.proposed", ("policy", id_of("policy")), Some(why), json!({ "proposal": id })).await?;
    Ok(id)
}

/// The proposal of this number.
///
/// # Errors
/// Database errors; a policy of a later version.
pub async fn find(db: &impl ConnectionTrait, id: i64) -> Result<Option<Proposal>, DbErr> {
    let stored = ProposalRow::find_by_statement(statement(&format!("{PROPOSALS} WHERE id = $1"), [id.into()])).one(db).await?;
    stored.map(ProposalRow::read).transpose()
}

/// The proposals that can still be approved, oldest first.
///
/// # Errors
/// As [`find`].
pub async fn open(db: &impl ConnectionTrait) -> Result<Vec<Proposal>, DbErr> {
    let sql =
        format!("{PROPOSALS} WHERE applied_as IS NULL AND base IS NOT DISTINCT FROM (SELECT max(id) FROM policies) ORDER BY id");
    ProposalRow::find_by_statement(statement(&sql, [])).all(db).await?.into_iter().map(ProposalRow::read).collect()
}
