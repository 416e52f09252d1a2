//! Operators: each has a PostgreSQL login of their own, a member of `kyhan_ops`. It is their identity; a name given with `--as` is a note.

use postgres_protocol::password::scram_sha_256;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};

use super::{DatabaseRole, quoted};
use crate::{
    database::{scalar, statement},
    domain::confidential::Confidential,
};

/// Why a login was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error(
        "an operator's login consists of 1 to 63 of a-z, 0-9 and _, begins with a letter, and not with pg_ or kyhan_ (got {0:?})"
    )]
    Name(String),
    #[error("the role {0} exists and is not a login of kyhan_ops alone; choose another name")]
    Taken(String),
    #[error("no operator has the login {0}")]
    Unknown(String),
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// Adds an operator's login, or sets its password again. It needs an administrator's login. Returns whether it is new.
///
/// # Errors
/// [`OperatorError`]; nothing is changed then.
pub async fn add(db: &DatabaseConnection, login: &str, password: &Confidential<String>, by: &str) -> Result<bool, OperatorError> {
    check(login)?;
    let tx = db.begin().await?;
    let exists = is_operators(&tx, login).await?;
    if exists == Some(false) {
        return Err(OperatorError::Taken(login.to_owned()));
    }
    let name = quoted(login);
    if exists.is_none() {
        tx.execute_unprepared(&format!("CREATE ROLE {name} IN ROLE {}", DatabaseRole::Ops)).await?;
    }
    // As a verifier: the server's log may contain statements.
    let verifier = scram_sha_256(password.expose().as_bytes());
    tx.execute_unprepared(&format!("ALTER ROLE {name} LOGIN PASSWORD '{verifier}'")).await?;
    let sql = "INSERT INTO operators (login, added_by) VALUES ($1, $2)
               ON CONFLICT (login) DO UPDATE SET added_at = now(), added_by = EXCLUDED.added_by, removed_at = NULL
                WHERE operators.removed_at IS NOT NULL";
    tx.execute_raw(statement(sql, [login.into(), by.into()])).await?;
    tx.commit().await?;
    Ok(exists.is_none())
}

/// Removes an operator's login; its sessions end. What it did stays attributed to it.
///
/// # Errors
/// [`OperatorError`]; nothing is changed then.
pub async fn remove(db: &DatabaseConnection, login: &str) -> Result<(), OperatorError> {
    let tx = db.begin().await?;
    match is_operators(&tx, login).await? {
        Some(true) => {}
        Some(false) => return Err(OperatorError::Taken(login.to_owned())),
        None => return Err(OperatorError::Unknown(login.to_owned())),
    }
    tx.execute_unprepared(&format!("DROP ROLE {}", quoted(login))).await?;
    tx.execute_raw(statement("UPDATE operators SET removed_at = now() WHERE login = $1", [login.into()])).await?;
    tx.commit().await?;
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
    db.execute_raw(statement(sql, [login.into()])).await?;
    Ok(())
}

/// Whether a role of this name is a member of `kyhan_ops` and of nothing else, without further powers; `None`: it does not exist.
async fn is_operators(tx: &impl ConnectionTrait, login: &str) -> Result<Option<bool>, DbErr> {
    let sql =
        "SELECT (SELECT NOT (rolname = ANY($2) OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)
                         FROM pg_roles WHERE rolname = $1)";
    let ours: Vec<String> = DatabaseRole::ALL.map(|role| role.name().to_owned()).to_vec();
    let plain: Option<bool> = scalar(tx, statement(sql, [login.into(), ours.into()])).await?;
    let Some(plain) = plain else { return Ok(None) };
    let sql = "SELECT coalesce(array_agg(roleid::regrole::text), '{}') = ARRAY[$2] FROM pg_auth_members
                WHERE member = (SELECT oid FROM pg_roles WHERE rolname = $1)";
    let alone: bool = scalar(tx, statement(sql, [login.into(), DatabaseRole::Ops.name().into()])).await?;
    Ok(Some(plain && alone))
}

fn check(login: &str) -> Result<(), OperatorError> {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let reserved = login.starts_with("pg_") || login.starts_with("kyhan_");
    let valid = login.len() <= 63 && login.starts_with(|first: char| first.is_ascii_lowercase()) && login.chars().all(plain);
    if valid && !reserved { Ok(()) } else { Err(OperatorError::Name(login.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_a_plain_name_and_not_one_of_ours() {
        for good in ["lan", "nguyen_thi_lan", "a1"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "Lan", "1a", "pg_lan", "kyhan_ops", "lan\u{200b}", "l an", "lan\"", &"x".repeat(64)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
