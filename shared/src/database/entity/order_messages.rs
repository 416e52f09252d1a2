//! What was said about an order. `author` and `body` are personal data: only the order system's role may read them.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

use crate::domain::confidential::Confidential;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "order_messages")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub order_id: Uuid,
    #[sea_orm(column_type = "Text")]
    pub author: Confidential<String>,
    #[sea_orm(column_type = "Text")]
    pub body: Confidential<String>,
    pub at: DateTime<Utc>,
    pub salt: Option<Uuid>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
