//! Plans of replays: what they would do, as checked, and how far their run has come.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "replay_plans")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(column_type = "Text")]
    pub state: String,
    pub made_at: DateTime<Utc>,
    #[sea_orm(column_type = "Text")]
    pub made_by: String,
    #[sea_orm(column_type = "Text")]
    pub made_login: String,
    #[sea_orm(column_type = "Text")]
    pub why: String,
    pub policy: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub digest: Option<String>,
    #[sea_orm(column_type = "JsonBinary")]
    pub filter: Json,
    pub amount: i64,
    pub customers: i32,
    pub tolerance_letters: i32,
    pub tolerance_amount: i64,
    pub needs_approval: bool,
    #[sea_orm(column_type = "Text", nullable)]
    pub approved_by: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub approved_login: Option<String>,
    pub approved_at: Option<DateTime<Utc>>,
    #[sea_orm(column_type = "Text", nullable)]
    pub approved_digest: Option<String>,
    pub run: Option<Uuid>,
    #[sea_orm(column_type = "Text", nullable)]
    pub run_by: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub run_login: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    #[sea_orm(column_type = "Text", nullable)]
    pub stopped_why: Option<String>,
    pub finished_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
