//! The optional outbox triggers: changes of `orders` and `cart_items` become events, so that an existing order system need
//! not change a line.

use sea_orm::{ConnectionTrait, DbErr};

/// Installs the triggers; again is no harm.
///
/// # Errors
/// The database's.
pub async fn install(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(include_str!("migration/triggers_install.sql")).await.map(|_| ())
}

/// Removes the triggers; again is no harm.
///
/// # Errors
/// The database's.
pub async fn remove(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(include_str!("migration/triggers_remove.sql")).await.map(|_| ())
}
