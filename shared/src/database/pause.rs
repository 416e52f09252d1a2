//! A pause: no effect of a kind is applied until an operator resumes it. Its row in `pauses` is the pause, and each
//! transaction that applies effects checks for it: no process has to be notified.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use sea_orm::{ConnectionTrait, DbErr, EntityTrait, QueryOrder};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::entity::pauses;

/// One kind's pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub kind: String,
    pub since: DateTime<Utc>,
    /// The operator who paused it.
    pub by: String,
    pub why: String,
}

/// All pauses as one JSON text, by kind.
pub(crate) const ALL: &str =
    "SELECT coalesce(jsonb_agg(jsonb_build_object('kind', kind, 'since', paused_at, 'by', paused_by, 'why', why)
                                        ORDER BY kind), '[]')::text AS pauses FROM pauses";

/// A scalar: this kind's pause as a JSON text; null if it is not paused.
pub(crate) fn scalar(kind: &str) -> String {
    format!(
        "(SELECT jsonb_build_object('kind', kind, 'since', paused_at, 'by', paused_by, 'why', why)::text
            FROM pauses WHERE kind = '{kind}')"
    )
}

/// Reads what [`ALL`] or [`scalar`] returned.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, DbErr> {
    serde_json::from_str(text).map_err(|error| DbErr::Type(format!("a row of pauses: {error}")))
}

/// Every pause, by kind.
///
/// # Errors
/// A database error.
pub async fn all(db: &impl ConnectionTrait) -> Result<Vec<Pause>, DbErr> {
    let rows = pauses::Entity::find().order_by_asc(pauses::Column::Kind).all(db).await?;
    Ok(rows.into_iter().map(Pause::from).collect())
}

impl From<pauses::Model> for Pause {
    fn from(pauses::Model { kind, paused_at, paused_by, why }: pauses::Model) -> Self {
        Self { kind, since: paused_at, by: paused_by, why }
    }
}

impl fmt::Display for Pause {
    /// On one line, because what an operator wrote must not control a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |text: &str| text.replace(char::is_control, " ");
        let since = self.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "{} has been paused since {since} by {}: {}", self.kind, line(&self.by), line(&self.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_says_since_when_by_whom_and_why_on_one_line() {
        let text = r#"{"kind":"confirm-receipt","since":"2026-11-24T08:00:00.5+00:00","by":"lan","why":"phí\nsai"}"#;
        let pause: Pause = read(text).unwrap();
        assert_eq!(pause.to_string(), "confirm-receipt has been paused since 2026-11-24T08:00:00Z by lan: phí sai");
        assert!(read::<Pause>("{}").is_err());
    }
}
