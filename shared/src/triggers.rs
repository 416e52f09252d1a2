//! The optional outbox triggers: changes of `orders` and `cart_items` become events, so that an existing order system need
//! not change a line.

use sea_orm::{ConnectionTrait, DbErr};

use crate::migration;

pub(crate) const INSTALL: &str = include_str!("migration/triggers_install.sql");

/// Installs the triggers. Idempotent.
///
/// # Errors
/// The database's.
pub async fn install(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(INSTALL).await?;
    // What was replaced is not pinned any more.
    migration::pin(db).await
}

/// Removes the triggers. Idempotent.
///
/// # Errors
/// The database's.
pub async fn remove(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(include_str!("migration/triggers_remove.sql")).await.map(|_| ())
}
