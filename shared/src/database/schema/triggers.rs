//! The optional outbox triggers: changes of `orders` and `cart_items` become events, so that an existing order system need
//! not change a line.

use sea_orm::{ConnectionTrait, DbErr};

use crate::database::schema;

pub(crate) const INSTALL: &str = include_str!("triggers_install.sql");

/// Installs the triggers. Idempotent.
///
/// # Errors
/// The database's.
pub async fn install(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(INSTALL).await?;
    // What was replaced is not pinned any more.
    schema::pin(db).await
}

/// Removes the triggers. Idempotent.
///
/// # Errors
/// The database's.
pub async fn remove(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(include_str!("triggers_remove.sql")).await.map(|_| ())
}
