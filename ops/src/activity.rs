//! Verifies the sealed activity (policy point 5): each range against its seal, and each seal against the one before. Only a
//! superuser can cause what it finds, because only a superuser can change, remove or insert sealed rows.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use sea_orm::{AccessMode, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult, IsolationLevel, TransactionTrait};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use shared::database::{column, one, scalar, statement};
use uuid::Uuid;

/// Seals read per page.
const PAGE: i64 = 1_000;

/// What was verified, and the faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub seals: u64,
    /// Rows that match their seal.
    pub rows: u64,
    /// Ranges whose rows were removed because of their age. `removals` lists them, adjacent ranges as one.
    pub removed: u64,
    pub removals: Vec<Removal>,
    /// Rows without a seal so far.
    pub unsealed: i64,
    /// The newest seal. A copy kept outside the database shows later whether the chain was rewritten.
    pub head: Option<Head>,
    pub faults: Vec<Fault>,
    /// Whether a seal noted down outside the database was compared. Without one, a chain that was rebuilt completely looks valid.
    pub anchored: bool,
    /// Whether this login may read the rows. If so, this crate's own statement hashed them; otherwise a function in the database did.
    pub read_directly: bool,
}

/// Adjacent ranges that were removed because of their age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removal {
    pub first_seal: i64,
    pub last_seal: i64,
    /// Ids of activity.
    pub first_id: i64,
    pub last_id: i64,
}

/// A seal that identifies a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    pub number: i64,
    /// In hexadecimal.
    pub hash: String,
}

impl std::str::FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "must be NUMBER:HASH, as `ops activity verify` and the workers' logs print it".to_owned();
        let (number, hash) = text.trim().split_once(':').ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        let hash = hash.to_ascii_lowercase();
        if hash.len() != 64 || !hash.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        Ok(Self { number, hash })
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

/// A difference between the activity and its seals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// `None`: the fault concerns no particular seal.
    pub seal: Option<i64>,
    /// The ids of activity that the seal covers.
    pub first_id: Option<i64>,
    pub last_id: Option<i64>,
    pub sealed_at: Option<DateTime<Utc>>,
    pub what: String,
}

/// A row of `activity_seals`.
#[derive(FromQueryResult)]
struct SealRow {
    number: i64,
    first_id: i64,
    last_id: i64,
    rows: i64,
    digest: Vec<u8>,
    sealed_at: DateTime<Utc>,
    /// `sealed_at` as the text that PostgreSQL hashes.
    sealed_epoch: String,
    hash: Vec<u8>,
    /// If its rows were removed: whether they were younger than six months, or the removal is dated in the future.
    removed_early: Option<bool>,
    /// Whether activity records the removal, or that record was itself removed later, with its range.
    removed_recorded: bool,
}

/// The rows found in a range.
#[derive(FromQueryResult)]
struct Range {
    rows: i64,
    holds: bool,
}

/// The rows after the last seal.
#[derive(FromQueryResult)]
struct Unsealed {
    rows: i64,
    late: bool,
}

impl SealRow {
    /// The hash that it should have after the seal with hash `before`, computed like kyhan_seal_hash() in the migration.
    fn hash_after(&self, before: &[u8]) -> Vec<u8> {
        let Self { number, first_id, last_id, rows, sealed_epoch, .. } = self;
        let text = format!("[{number}, {first_id}, {last_id}, {rows}, \"{}\", \"{sealed_epoch}\"]", hex(&self.digest));
        Sha256::new().chain_update(before).chain_update(text).finalize().to_vec()
    }

    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault {
            seal: Some(self.number),
            first_id: Some(self.first_id),
            last_id: Some(self.last_id),
            sealed_at: Some(self.sealed_at),
            what: what.into(),
        }
    }
}

/// Verifies everything in one snapshot. `noted` is a seal noted down earlier. `removals_expected` is whether old ranges may have been
/// removed. `progress` receives the number of verified seals and the total.
///
/// # Errors
/// Database errors.
pub async fn verify(
    db: &DatabaseConnection,
    noted: Option<&Head>,
    removals_expected: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified, DbErr> {
    let snapshot = db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let all: i64 = scalar(&snapshot, statement("SELECT count(*) FROM activity_seals", [])).await?;
    let sql = "SELECT has_column_privilege('activity', 'detail', 'SELECT') AND has_column_privilege('activity_seals', 'salt', 'SELECT')";
    let read_directly = scalar(&snapshot, statement(sql, [])).await?;
    let holds = if read_directly { HOLDS } else { "SELECT rows, holds FROM kyhan_seal_holds($1)" };
    let mut verified = Verified {
        seals: 0,
        rows: 0,
        removed: 0,
        removals: Vec::new(),
        unsealed: 0,
        head: None,
        faults: Vec::new(),
        anchored: noted.is_some(),
        read_directly,
    };
    let (mut number, mut last_id, mut hash) = (0, 0, Vec::new());
    loop {
        let page = page(&snapshot, number).await?;
        for seal in &page {
            if seal.number != number + 1 {
                verified.faults.push(seal.fault(format!("the seals between {number} and this one are missing")));
            } else if seal.first_id != last_id + 1 {
                verified.faults.push(seal.fault("its range does not start after the previous range"));
            } else if seal.hash != seal.hash_after(&hash) {
                verified.faults.push(seal.fault("it does not follow from the seals before it: the seal or its hash was changed"));
            }
            if noted.is_some_and(|noted| noted.number == seal.number && noted.hash != hex(&seal.hash)) {
                verified.faults.push(seal.fault("it is not the seal that was noted down: the chain was rewritten"));
            }
            compare(&snapshot, holds, seal, &mut verified).await?;
            if seal.removed_early.is_some() {
                verified.note_removal(seal, removals_expected);
            }
            (number, last_id) = (seal.number, seal.last_id);
            hash.clone_from(&seal.hash);
            verified.seals += 1;
            progress(verified.seals, u64::try_from(all).unwrap_or_default());
        }
        if page.is_empty() {
            break;
        }
    }
    if let Some(noted) = noted.filter(|noted| noted.number > number) {
        verified.faults.push(bare(format!("seal {} was noted down and is missing: the chain was cut short", noted.number)));
    }
    let outside: i64 = scalar(&snapshot, statement("SELECT count(*) FROM activity WHERE id < 1", [])).await?;
    if outside > 0 {
        verified.faults.push(bare(format!("{outside} rows have ids below 1, which no seal covers: they were slipped in")));
    }
    let sql = "SELECT count(*) AS rows, coalesce(min(at) < now() - interval '1 hour', false) AS late FROM activity WHERE id > $1";
    let Unsealed { rows, late } = one(&snapshot, statement(sql, [last_id.into()])).await?;
    verified.unsealed = rows;
    if late {
        verified.faults.push(bare(format!(
            "{} rows are not sealed, the oldest for more than an hour; is a worker running?",
            verified.unsealed
        )));
    }
    verified.head = (number > 0).then(|| Head { number, hash: hex(&hash) });
    let altered: Vec<Option<String>> =
        column(&snapshot, statement("SELECT message_id FROM kyhan_messages_altered()", [])).await?;
    for id in altered {
        let name =
            id.and_then(|id| Uuid::parse_str(&id).ok()).map_or_else(|| "a message".to_owned(), |id| format!("message {id}"));
        verified.faults.push(bare(format!("{name} differs from its record, is gone, or was never recorded")));
    }
    snapshot.rollback().await?;
    Ok(verified)
}

impl Verified {
    fn note_removal(&mut self, seal: &SealRow, expected: bool) {
        self.removed += 1;
        if !expected {
            self.faults
                .push(seal.fault("its rows were removed because of their age, but retention.mode does not allow deletion"));
        }
        match self.removals.last_mut().filter(|before| before.last_seal + 1 == seal.number) {
            Some(before) => (before.last_seal, before.last_id) = (seal.number, seal.last_id),
            None => self.removals.push(Removal {
                first_seal: seal.number,
                last_seal: seal.number,
                first_id: seal.first_id,
                last_id: seal.last_id,
            }),
        }
    }
}

/// Compares a range with its seal.
async fn compare(snapshot: &DatabaseTransaction, holds: &str, seal: &SealRow, verified: &mut Verified) -> Result<(), DbErr> {
    let Range { rows, holds } = one(snapshot, statement(holds, [seal.number.into()])).await?;
    if let Some(early) = seal.removed_early {
        if early {
            verified.faults.push(seal.fault("its rows were removed before they were six months old"));
        } else if !seal.removed_recorded {
            verified.faults.push(seal.fault("its rows were removed, but no activity records the removal"));
        }
        if rows > 0 {
            verified.faults.push(seal.fault(format!("its rows were removed, but it has {rows} rows: they were slipped in")));
        }
    } else if rows != seal.rows {
        verified.faults.push(seal.fault(format!("{} rows were sealed, but {rows} exist", seal.rows)));
    } else if !holds {
        verified.faults.push(seal.fault("its rows do not match the seal: at least one was changed"));
    } else {
        verified.rows += u64::try_from(rows).unwrap_or_default();
    }
    Ok(())
}

/// The same as kyhan_seal_holds() in the migration, which a superuser could have replaced.
const HOLDS: &str = r"SELECT found.rows, found.rows = seal.rows AND found.digest = seal.digest AS holds
      FROM activity_seals AS seal CROSS JOIN LATERAL (
           SELECT count(*) AS rows, pg_catalog.sha256(pg_catalog.uuid_send(seal.salt) || pg_catalog.convert_to(coalesce(
                      string_agg(pg_catalog.jsonb_build_array(
                          id, extract(epoch FROM at)::text, actor_kind, actor_id, action, subject_kind, subject_id, detail)::text,
                          E'\n' ORDER BY id), ''), 'UTF8')) AS digest
             FROM activity WHERE id BETWEEN seal.first_id AND seal.last_id) AS found
     WHERE seal.number = $1";

async fn page(snapshot: &DatabaseTransaction, after: i64) -> Result<Vec<SealRow>, DbErr> {
    let sql =
        "SELECT number, first_id, last_id, rows, digest, sealed_at, hash, extract(epoch FROM sealed_at)::text AS sealed_epoch,
                      removal.removed_at > now()
                      OR removal.removed_at < (sealed_at AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '6 months')
                                              AT TIME ZONE 'Asia/Ho_Chi_Minh' AS removed_early,
                      EXISTS (SELECT FROM activity_operations AS record
                               WHERE record.id = removal.recorded_as AND record.action = 'activity.removed'
                                 AND record.at = removal.removed_at AND record.detail ->> 'hash' = encode(hash, 'hex'))
                      OR EXISTS (SELECT FROM activity_seals AS later JOIN activity_removals AS gone ON gone.number = later.number
                                  WHERE removal.recorded_as BETWEEN later.first_id AND later.last_id
                                    AND later.sealed_at >= removal.removed_at) AS removed_recorded
                 FROM activity_seals AS seal LEFT JOIN activity_removals AS removal USING (number)
                WHERE number > $1 ORDER BY number LIMIT $2";
    SealRow::find_by_statement(statement(sql, [after.into(), PAGE.into()])).all(snapshot).await
}

fn bare(what: String) -> Fault {
    Fault { seal: None, first_id: None, last_id: None, sealed_at: None, what }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_seal_is_read_back() {
        let head = Head { number: 12, hash: "ab".repeat(32) };
        assert_eq!(head.to_string().parse(), Ok(head));
        for wrong in ["", "12", "12:ab", "0:00", "x:00"] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }
}
