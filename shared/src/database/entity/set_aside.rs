//! Events that the relay could not schedule. `data` is the order system's: no role of the fleet's may read it.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

use crate::domain::confidential::Confidential;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "set_aside")]
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
    #[sea_orm(column_type = "Text")]
    pub reason: String,
    pub set_aside_at: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
