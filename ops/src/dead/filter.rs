//! Selects dead letters: the options that all commands on dead letters share, and the condition that they become. What an operator types
//! is bound as a parameter and never becomes SQL.

use sea_orm::{
    ColumnTrait, Condition, Value,
    sea_query::{Expr, ExprTrait, Query, extension::postgres::PgFunc, postgres_array::NotU8},
};
use serde::{Deserialize, Serialize};
use shared::{database::entity::dead_letters::Column, domain::tasks};
use uuid::Uuid;

use super::{groups::GROUP_ID, moment::Moment};

/// The heading of these options in a command's help.
pub const HEADING: &str = "Which letters";

/// Selects dead letters. All options must match; of a repeated option, one value must match. It is stored as JSON with a plan, so the
/// names of its fields must not change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The letter with this id (repeatable)
    #[arg(help_heading = HEADING, long = "id", value_name = "ID")]
    pub ids: Vec<Uuid>,
    /// Letters of this kind (repeatable)
    #[arg(help_heading = HEADING, long = "kind", value_name = "KIND", value_parser = known_kind)]
    pub kinds: Vec<String>,
    /// Letters that died for this reason: malformed, attempts-exhausted, delivery-limit, unrouted, … (repeatable)
    #[arg(help_heading = HEADING, long = "reason", value_name = "REASON", value_parser = something)]
    pub reasons: Vec<String>,
    /// Letters about the row with this id (repeatable)
    #[arg(help_heading = HEADING, long = "subject", value_name = "UUID")]
    pub subjects: Vec<Uuid>,
    /// Letters about the order with this code (repeatable)
    #[arg(help_heading = HEADING, long = "order", value_name = "CODE", value_parser = something)]
    pub orders: Vec<String>,
    /// Letters whose cause contains this text, ignoring case
    #[arg(help_heading = HEADING, long, value_name = "TEXT", value_parser = something)]
    pub cause: Option<String>,
    /// Letters of this group of causes, as `ops dead list --groups` shows it (repeatable)
    #[arg(help_heading = HEADING, long = "group", value_name = "GROUP", value_parser = group)]
    pub groups: Vec<String>,
    /// Letters that last failed at or after this time: a time (RFC 3339), a day in Asia/Ho_Chi_Minh (2026-11-24), or a duration ago (2h, 3d)
    #[arg(help_heading = HEADING, long, value_name = "WHEN")]
    pub since: Option<Moment>,
    /// Letters that last failed before this time; for a day, before its end
    #[arg(help_heading = HEADING, long, value_name = "WHEN")]
    pub until: Option<Moment>,
    /// Letters in this state
    #[arg(help_heading = HEADING, long, value_enum, default_value_t)]
    pub state: LetterState,
    /// Letters without a kind or a subject, or of an unknown kind
    #[arg(help_heading = HEADING, long)]
    pub unreadable: bool,
}

/// The states by which a filter selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LetterState {
    /// Not decided yet
    #[default]
    Open,
    /// A replay applied them
    Replayed,
    /// Nothing was left to do, or a repaired letter replaced them
    Resolved,
    /// An operator discarded them
    Discarded,
    /// Any of these
    All,
}

impl LetterState {
    /// The name in the table; `None`: any state.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Open => Some("open"),
            Self::Replayed => Some("replayed"),
            Self::Resolved => Some("resolved"),
            Self::Discarded => Some("discarded"),
            Self::All => None,
        }
    }
}

impl Filter {
    /// Whether it selects only by state.
    #[must_use]
    pub fn names_nothing(&self) -> bool {
        *self == Self { state: self.state, ..Self::default() }
    }

    /// The condition on rows of `dead_letters`.
    #[must_use]
    pub fn condition(&self) -> Condition {
        let mut all = Condition::all()
            .add_option(any(Column::Id, &self.ids))
            .add_option(any(Column::Kind, &self.kinds))
            .add_option(any(Column::Reason, &self.reasons))
            .add_option(any(Column::SubjectId, &self.subjects));
        if !self.orders.is_empty() {
            let called = Expr::col("code").eq(PgFunc::any(Expr::val(self.orders.clone())));
            let orders = Query::select().column("id").from("orders").and_where(called).take();
            all = all.add(Column::SubjectId.in_subquery(orders));
        }
        if let Some(cause) = &self.cause {
            // Not LIKE, so that the text has no wildcards.
            all = all.add(Expr::cust_with_values("strpos(lower(cause), lower($1)) > 0", [cause.clone()]));
        }
        if !self.groups.is_empty() {
            all = all.add(Expr::cust(GROUP_ID).eq(PgFunc::any(Expr::val(self.groups.clone()))));
        }
        let failed_at = || Column::LastFailedAt.into_expr();
        all = all.add_option(self.since.as_ref().map(|since| failed_at().gte(since.begins())));
        all = all.add_option(self.until.as_ref().map(|until| failed_at().lt(until.ends())));
        if let Some(state) = self.state.name() {
            // A literal, not a parameter, so that the planner can use the partial index on open letters.
            all = all.add(Column::State.into_expr().eq(Expr::Constant(state.into())));
        }
        if self.unreadable {
            let unknown = Column::Kind.ne_all(tasks::kinds().map(ToOwned::to_owned));
            all = all.add(Column::Kind.is_null().or(Column::SubjectId.is_null()).or(unknown));
        }
        all
    }
}

/// Matches any of the values; `None`: there are no values.
fn any<V: Clone + Into<Value> + NotU8>(column: Column, values: &[V]) -> Option<Expr> {
    (!values.is_empty()).then(|| column.eq_any(values.iter().cloned()))
}

fn known_kind(name: &str) -> Result<String, String> {
    let known = || tasks::kinds().collect::<Vec<_>>().join(", ");
    let task = tasks::find(name);
    task.map(|task| task.kind().to_owned())
        .ok_or_else(|| format!("known kinds are {}; select letters of other kinds with --unreadable", known()))
}

/// A text that is not empty. An empty one would match every letter.
fn something(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn group(text: &str) -> Result<String, String> {
    let digits = text.len() == super::groups::GROUP_ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("must be ten hex digits, as `ops dead list --groups` shows them".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sea_orm::{DbBackend, EntityTrait, QueryFilter, QuerySelect, QueryTrait};
    use shared::database::entity::dead_letters;

    use super::*;

    #[derive(Debug, Parser)]
    struct FilterCommand {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(arguments: &[&str]) -> Result<Filter, String> {
        let arguments = std::iter::once("ops").chain(arguments.iter().copied());
        FilterCommand::try_parse_from(arguments).map(|command| command.filter).map_err(|error| error.to_string())
    }

    /// The condition as sent to PostgreSQL, and the values of its parameters.
    fn condition(filter: &Filter) -> (String, Vec<Value>) {
        let ids = dead_letters::Entity::find().select_only().column(Column::Id);
        let statement = ids.filter(filter.condition()).build(DbBackend::Postgres);
        let condition = statement.sql.split_once(" WHERE ").map_or("", |(_, condition)| condition);
        (condition.to_owned(), statement.values.map(|values| values.0).unwrap_or_default())
    }

    #[test]
    fn nothing_typed_is_all_open_letters_and_names_nothing() {
        let none = filter(&[]).unwrap();
        assert!(none.names_nothing() && none == Filter::default());
        assert_eq!(condition(&none), (r#""dead_letters"."state" = 'open'"#.to_owned(), vec![]));
        assert!(filter(&["--state", "all"]).unwrap().names_nothing());
        assert_eq!(condition(&filter(&["--state", "all"]).unwrap()).0, "TRUE");
        assert!(!filter(&["--unreadable"]).unwrap().names_nothing());
    }

    #[test]
    fn parameters_are_numbered_in_the_order_of_their_values() {
        let chosen = filter(&["--reason", "malformed", "--kind", "confirm-receipt", "--cause", "a?b", "--since", "2h"]).unwrap();
        let (sql, values) = condition(&chosen);
        for (at, value) in [r#""kind" = ANY($1)"#, r#""reason" = ANY($2)"#, "lower($3)", ">= (now() - $4"].iter().enumerate() {
            assert!(sql.contains(value), "{at}: {sql}");
        }
        assert_eq!(values.len(), 4);
    }

    #[test]
    fn what_is_typed_never_becomes_sql() {
        let hostile = "'); DROP TABLE orders; --?$1";
        let chosen = filter(&["--cause", hostile, "--reason", hostile, "--order", hostile]).unwrap();
        assert!(!condition(&chosen).0.contains("DROP"));
    }

    #[test]
    fn a_wrong_value_is_refused_with_what_is_right() {
        for (arguments, said) in [
            (
                ["--kind", "make-coffee"],
                "known kinds are confirm-receipt, purge-cart-item, collect-arrears, hide-order; select letters of other kinds",
            ),
            (["--cause", " "], "must not be empty"),
            (["--group", "abc"], "ten hex digits"),
            (["--since", "yesterday"], "2026-11-24"),
            (["--subject", "7"], "invalid value"),
            (["--state", "closed"], "open"),
        ] {
            let refused = filter(&arguments).unwrap_err();
            assert!(refused.contains(said), "{arguments:?}: {refused}");
        }
    }

    #[test]
    fn a_filter_is_the_same_after_json() {
        let id = Uuid::from_u128(7).to_string();
        let arguments = ["--id", &id, "--since", "2026-11-24", "--until", "3d", "--state", "discarded", "--group", "00AAff1122"];
        let chosen = filter(&arguments).unwrap();
        let json = serde_json::to_string(&chosen).unwrap();
        assert_eq!(serde_json::from_str::<Filter>(&json).unwrap(), chosen, "{json}");
        assert_eq!(serde_json::from_str::<Filter>("{}").unwrap(), Filter::default());
    }
}
