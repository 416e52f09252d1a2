//! Redacts errors for messages, logs, letters and terminals. PostgreSQL's own messages name tables and constraints. If it
//! quotes a value, or passes on what another program's trigger raised, the text may contain anyone's name (policy point 7).

use std::{error::Error, iter};

use sea_orm::{
    RuntimeErr,
    sqlx::{self, postgres::PgDatabaseError, postgres::PgErrorPosition},
};

/// The text of an error and its causes, outermost first, without the parts that PostgreSQL did not choose itself. Of a
/// message that a function raised, its SQLSTATE and where it was raised remain, unless the function is this system's; of a
/// message that quotes a value, the part before the value.
#[must_use]
pub fn redacted(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = iter::successors(Some(error), |&cause| cause.source()).collect();
    let mut text = String::new();
    for cause in &causes {
        // Wrappers repeat the text of what they wrap.
        let said = cause.to_string();
        if !text.contains(&said) {
            text = if text.is_empty() { said } else { format!("{text}: {said}") };
        }
    }
    for cause in causes {
        let known = match (cause.downcast_ref(), cause.downcast_ref()) {
            (Some(RuntimeErr::SqlxError(error)), _) => Some(error.as_ref()),
            (_, known) => known,
        };
        let Some(sqlx::Error::Database(said)) = known else { continue };
        let Some(said) = said.try_downcast_ref::<PgDatabaseError>() else { continue };
        let words = Words {
            sqlstate: said.code(),
            message: said.message(),
            context: said.r#where().unwrap_or_default(),
            file: said.file().unwrap_or_default(),
            of_made_up_sql: matches!(said.position(), Some(PgErrorPosition::Internal { .. })),
        };
        if !words.message.is_empty() {
            text = text.replace(&said.to_string(), &words.redacted());
        }
    }
    text
}

/// Prefixes of the server's source files that pass on messages of others: what functions raise in PL/pgSQL, PL/Python,
/// PL/Perl, PL/Tcl, PL/V8, and what another server answers over `postgres_fdw` and `dblink`.
const OTHERS: [&str; 7] = ["pl_", "plpy", "plperl", "pltcl", "plv8", "connection.c", "dblink"];

/// The fields of an error message that matter here.
/// <https://www.postgresql.org/docs/current/protocol-error-fields.html>
struct Words<'a> {
    sqlstate: &'a str,
    message: &'a str,
    /// The call stack, innermost first.
    context: &'a str,
    /// The server's source file that reports it.
    file: &'a str,
    /// Whether it is about a query that a function composed.
    of_made_up_sql: bool,
}

impl Words<'_> {
    fn redacted(&self) -> String {
        let Self { sqlstate, message, .. } = *self;
        // P0 is PL/pgSQL's own class; HV is that of foreign data, which passes on the message of another server.
        let passed_on = OTHERS.iter().any(|begins| self.file.starts_with(begins))
            || ["P0", "HV"].iter().any(|class| sqlstate.starts_with(class));
        if passed_on && !self.is_ours() {
            let place = self.place().map_or(String::new(), |place| format!(" in {place}"));
            return format!("SQLSTATE {sqlstate}{place}; its words are kept back");
        }
        // Class 22, data exceptions, quotes the input that could not be parsed. Class 42, if a foreign function issued the
        // query, quotes what was taken for a word of a query or of a text search. In a query composed from values, any word
        // may be a value.
        let quotes =
            sqlstate.starts_with("22") || self.of_made_up_sql || (sqlstate.starts_with("42") && self.is_asked_by_others());
        match message.split_once(QUOTES) {
            Some((before, _)) if quotes => format!("{before}\"…\""),
            _ => message.to_owned(),
        }
    }

    /// The function and its line, in the server's language. A line with quotes may quote a query.
    fn place(&self) -> Option<&str> {
        self.context.lines().next().filter(|first| first.contains("PL/") && !first.contains(QUOTES))
    }

    /// Whether a function of this system raised it, or a block (`DO`) of its own statements: their messages contain no
    /// personal data.
    fn is_ours(&self) -> bool {
        self.place().is_some_and(|place| of_ours(place) || (is_block(place) && !self.is_asked_by_others()))
    }

    /// Whether a function that is not ours led to it.
    fn is_asked_by_others(&self) -> bool {
        self.context.lines().any(|line| line.contains("PL/") && !of_ours(line) && !is_block(line))
    }
}

/// Whether a line of a call stack names a function of this system: in every language, the name stands before the first
/// bracket.
fn of_ours(place: &str) -> bool {
    let Some((before, _)) = place.split_once('(') else { return false };
    let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
    name.is_some_and(|name| name.starts_with("kyhan_"))
}

/// Whether a line names a block, which has no name of its own.
fn is_block(place: &str) -> bool {
    place.contains("inline_code_block") && !place.contains('(')
}

/// PostgreSQL's quotation marks, in the languages of its messages (`lc_messages`).
const QUOTES: [char; 9] = ['"', '“', '”', '„', '«', '»', '‹', '‘', '「'];

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Words<'_> = Words {
        sqlstate: "23514",
        message: "new row for relation \"orders\" violates check constraint \"orders_check\"",
        context: "SQL statement \"UPDATE orders SET …\"\nPL/pgSQL function ship(uuid) line 3 at SQL statement",
        file: "execMain.c",
        of_made_up_sql: false,
    };

    #[test]
    fn the_servers_own_words_are_told() {
        assert_eq!(SERVER.redacted(), SERVER.message);
        let raised = "PL/pgSQL function kyhan_ledger_has_its_orders() line 9 at RAISE";
        let ours = Words { message: "accounts names an order that does not exist", context: raised, file: "pl_exec.c", ..SERVER };
        assert_eq!(ours.redacted(), ours.message);
        let elsewhere = Words { context: "PL/pgSQL function baogam.kyhan_keeps() line 1 at RAISE", ..ours };
        assert_eq!(elsewhere.redacted(), ours.message);
    }

    #[test]
    fn what_somebody_elses_function_says_is_not() {
        let raised = Words {
            sqlstate: "P0001",
            message: "no label for Nguyễn Thị Mẫu",
            context: "PL/pgSQL function label(text) line 12 at RAISE\nSQL statement \"SELECT label('Nguyễn Thị Mẫu')\"",
            file: "pl_exec.c",
            of_made_up_sql: false,
        };
        assert_eq!(
            raised.redacted(),
            "SQLSTATE P0001 in PL/pgSQL function label(text) line 12 at RAISE; its words are kept back"
        );
        let python = Words { context: "Traceback (most recent call last):\n  PL/Python …", file: "plpy_elog.c", ..raised };
        assert_eq!(python.redacted(), "SQLSTATE P0001; its words are kept back");
        let block = Words { context: "PL/pgSQL function inline_code_block line 4 at RAISE", ..raised };
        assert_eq!(block.redacted(), raised.message);
        let of_theirs = "PL/pgSQL function inline_code_block line 4 at RAISE\nSQL statement \"DO …\"\nPL/pgSQL function label() line 1 at EXECUTE";
        assert!(Words { context: of_theirs, ..raised }.redacted().contains("kept back"));
        let imitated = "PL/pgSQL function label(kyhan_) line 12 at RAISE\nPL/pgSQL function kyhan_x() line 1 at PERFORM";
        assert!(Words { context: imitated, ..raised }.redacted().contains("kept back"));
    }

    #[test]
    fn quoted_values_are_not() {
        let cast = Words { sqlstate: "22P02", message: "invalid input syntax for type integer: \"0901234567\"", ..SERVER };
        assert_eq!(cast.redacted(), "invalid input syntax for type integer: \"…\"");
        let made_up = Words { sqlstate: "42703", message: "column \"mẫu\" does not exist", of_made_up_sql: true, ..SERVER };
        assert_eq!(made_up.redacted(), "column \"…\"");
        let german = Words { message: "ungültige Eingabesyntax für Typ integer: „0901234567“", ..cast };
        assert_eq!(german.redacted(), "ungültige Eingabesyntax für Typ integer: \"…\"");
        let vietnamese =
            Words { context: "Hàm PL/pgSQL kyhan_ledger_has_its_orders() dòng 9 tại RAISE", file: "pl_exec.c", ..SERVER };
        assert_eq!(vietnamese.redacted(), vietnamese.message);
        let remote = Words { sqlstate: "23514", message: "no label for Mẫu", context: "", file: "connection.c", ..SERVER };
        assert_eq!(remote.redacted(), "SQLSTATE 23514; its words are kept back");
        let quoted = Words { context: "SQL statement \"SELECT 'PL/x Mẫu'\"", sqlstate: "P0001", ..remote };
        assert_eq!(quoted.redacted(), "SQLSTATE P0001; its words are kept back");
        // A text search for what a row holds; in a query of ours, the same class names a column.
        let searched = Words { sqlstate: "42601", message: "syntax error in tsquery: \"Mẫu &\"", ..SERVER };
        assert_eq!(searched.redacted(), "syntax error in tsquery: \"…\"");
        let own = Words { sqlstate: "42703", message: "column \"statuss\" does not exist", context: "", ..SERVER };
        assert_eq!(own.redacted(), own.message);
    }
}
