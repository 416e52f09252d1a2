//! Policies that operators applied; the newest is the active one.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "policies")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    #[sea_orm(column_type = "JsonBinary")]
    pub policy: Json,
    pub applied_at: DateTime<Utc>,
    #[sea_orm(column_type = "Text")]
    pub applied_by: String,
    #[sea_orm(column_type = "Text")]
    pub applied_login: String,
    #[sea_orm(column_type = "Text")]
    pub why: String,
    #[sea_orm(column_type = "JsonBinary")]
    pub scheduled_to: Json,
    pub went_on_at: DateTime<Utc>,
    pub scheduled_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
