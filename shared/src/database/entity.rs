//! The tables whose rows are read, listed or inserted one by one: one sea-orm entity a file. Effects, locks and the hot path stay SQL.
//!
//! `find()` asks for every column. Where a role may not read one (`roles/grants.sql`), a query names its columns: `select_only`, or a
//! partial model.

use sea_orm::{DbBackend, Schema, sea_query::TableCreateStatement};

pub mod activity;
pub mod canaries;
pub mod dead_letter_bodies;
pub mod dead_letters;
pub mod order_messages;
pub mod outbox;
pub mod pauses;
pub mod policies;
pub mod rebuilds;
pub mod replay_plan_letters;
pub mod replay_plans;
pub mod retention_holds;
pub mod rungs;
pub mod set_aside;
pub mod swept;

/// Every entity here, as it would be created: a test compares each with the migrated schema.
#[must_use]
pub fn tables() -> Vec<TableCreateStatement> {
    let schema = Schema::new(DbBackend::Postgres);
    vec![
        schema.create_table_from_entity(activity::Entity),
        schema.create_table_from_entity(canaries::Entity),
        schema.create_table_from_entity(dead_letter_bodies::Entity),
        schema.create_table_from_entity(dead_letters::Entity),
        schema.create_table_from_entity(order_messages::Entity),
        schema.create_table_from_entity(outbox::Entity),
        schema.create_table_from_entity(pauses::Entity),
        schema.create_table_from_entity(policies::Entity),
        schema.create_table_from_entity(rebuilds::Entity),
        schema.create_table_from_entity(replay_plan_letters::Entity),
        schema.create_table_from_entity(replay_plans::Entity),
        schema.create_table_from_entity(retention_holds::Entity),
        schema.create_table_from_entity(rungs::Entity),
        schema.create_table_from_entity(set_aside::Entity),
        schema.create_table_from_entity(swept::Entity),
    ]
}
