//! The operator who runs a command. Every command that changes something records who, why and what in `activity`.

use sea_orm::{ConnectionTrait, DbErr};
use serde_json::{Value, json};
use shared::database::statement;
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
use uuid::Uuid;

/// The namespace of the ids (UUID version 5) that `activity` uses for things without a UUID of their own.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b79_6861_6e00_5000_8000_6163_7469_7600);

/// An operator's name: the operating system's user, or the name given with `--as`. It is a note for readers; who an operator is, is the
/// login of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    name: String,
}

impl Operator {
    /// The operator of the given name; without one, the operating system's user.
    ///
    /// # Errors
    /// [`NoName`]: the name is empty or has control characters.
    pub fn new(given: Option<&str>) -> Result<Self, NoName> {
        let name = given.map_or_else(|| whoami::username().unwrap_or_default(), ToOwned::to_owned);
        let name = normalised(&name);
        if name.is_empty() || name.chars().any(is_invisible) { Err(NoName) } else { Ok(Self { name }) }
    }

    /// For the commands of an automatic deployment: a container's user often has no name.
    #[must_use]
    pub fn unknown() -> Self {
        Self { name: "unknown".to_owned() }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Records an action, in the transaction that performs it. `changed` holds ids and counts, never personal data.
    ///
    /// # Errors
    /// Database errors.
    pub async fn record(
        &self,
        tx: &impl ConnectionTrait,
        action: &str,
        (subject_kind, subject): (&str, Uuid),
        why: Option<&str>,
        changed: Value,
    ) -> Result<(), DbErr> {
        self.record_each(tx, action, (subject_kind, &[subject]), why, changed).await
    }

    /// Records an action on several subjects, in one statement.
    ///
    /// # Errors
    /// Database errors.
    pub async fn record_each(
        &self,
        tx: &impl ConnectionTrait,
        action: &str,
        (subject_kind, subjects): (&str, &[Uuid]),
        why: Option<&str>,
        changed: Value,
    ) -> Result<(), DbErr> {
        let detail = json!({ "by": self.name, "why": why, "changed": changed });
        // The operator chooses the name in `by`; the server has checked the login.
        let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
                   SELECT 'staff', $1, $2, subject.id, $4::jsonb || jsonb_build_object('login', session_user) FROM unnest($3::uuid[]) WITH ORDINALITY AS subject (id, place)
                    ORDER BY subject.place";
        let values = [action.into(), subject_kind.into(), subjects.to_vec().into(), detail.into()];
        tx.execute_raw(statement(sql, values)).await.map(|_| ())
    }
}

/// One form for names that look the same: NFKC, without differences of case.
fn normalised(name: &str) -> String {
    let folded: String = name.nfkc().collect::<String>().to_lowercase();
    folded.nfkc().collect::<String>().trim().to_owned()
}

/// Control and format characters, among them those of no width; and whatever has no assigned meaning.
fn is_invisible(letter: char) -> bool {
    letter.general_category_group() == GeneralCategoryGroup::Other
}

/// The id of something that has only a name, such as a kind or a policy.
#[must_use]
pub fn id_of(name: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// See [`Operator::new`].
#[derive(Debug, thiserror::Error)]
#[error("no valid operator name; pass one with --as NAME")]
pub struct NoName;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_has_a_name() {
        assert_eq!(Operator::new(Some(" lan ")).unwrap().name(), "lan");
        assert!(Operator::new(Some("  ")).is_err() && Operator::new(Some("a\nb")).is_err());
        for same in ["LAN", "Lan", "\u{ff4c}an", "LA\u{ff2e}"] {
            assert_eq!(Operator::new(Some(same)).unwrap().name(), "lan", "{same:?}");
        }
        assert_eq!(Operator::new(Some("Ha\u{309}o")).unwrap(), Operator::new(Some("HẢO")).unwrap());
        for hidden in ["lan\u{200b}", "la\u{ad}n", "\u{202e}lan", "lan\u{feff}", "lan\u{e0061}", "\u{200b}"] {
            assert!(Operator::new(Some(hidden)).is_err(), "{hidden:?}");
        }
    }
}
