//! Events that the relay has not taken yet. `data` is the order system's: operators may not read it.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

use crate::domain::confidential::Confidential;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "outbox")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub event_id: Uuid,
    #[sea_orm(column_type = "Text")]
    pub event_type: String,
    pub subject_id: Uuid,
    pub occurred_at: DateTime<Utc>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub data: Option<Confidential<Json>>,
    pub waiting_since: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
