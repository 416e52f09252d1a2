//! Redacts errors for messages, logs, letters and terminals. PostgreSQL's text is shown only where it can name nothing but
//! tables, constraints and logins. Any other may quote a value of a row, and so contain anyone's name (policy point 7).

use std::{error::Error, iter};

use sea_orm::{
    RuntimeErr,
    sqlx::{
        self,
        postgres::{PgDatabaseError, PgErrorPosition, PgSeverity},
    },
};

/// The text of an error and its causes, outermost first. A message of PostgreSQL gets its SQLSTATE. Of one that may quote a value, only
/// that and the place that reported it remain, unless a function of this system raised it.
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
            routine: said.routine().unwrap_or_default(),
            of_our_sql: matches!(said.position(), Some(PgErrorPosition::Original(_))),
            of_session: matches!(said.severity(), PgSeverity::Fatal | PgSeverity::Panic),
        };
        if !words.message.is_empty() {
            text = text.replace(&said.to_string(), &words.redacted());
        }
    }
    text
}

/// Prefixes of the source files that pass on messages of others: what functions raise in PL/pgSQL, PL/Python, PL/Perl, PL/Tcl,
/// PL/V8, and what another server answers over `postgres_fdw` and `dblink`.
const OTHERS: [&str; 7] = ["pl_", "plpy", "plperl", "pltcl", "plv8", "connection.c", "dblink"];

/// The server's source file that checks privileges. It names schemas, tables, columns and functions.
const PRIVILEGES: &str = "aclchk.c";

/// The server's source files that report a violated constraint by its name and that of its table.
const CONSTRAINTS: [&str; 10] = [
    "execMain.c",
    "execExprInterp.c",
    "execIndexing.c",
    "execPartition.c",
    "domains.c",
    "nbtinsert.c",
    "ri_triggers.c",
    "tablecmds.c",
    "tuplesort.c",
    "tuplesortvariants.c",
];

/// The fields of an error message that matter here.
/// <https://www.postgresql.org/docs/current/protocol-error-fields.html>
struct Words<'a> {
    sqlstate: &'a str,
    message: &'a str,
    /// The call stack, innermost first.
    context: &'a str,
    /// The server's source file that reports it, and the function in it.
    file: &'a str,
    routine: &'a str,
    /// Whether it points at a word of the statement itself, which this system wrote; values are parameters.
    of_our_sql: bool,
    /// Whether it ends the session, or refuses it: it concerns a login, a database or the server.
    of_session: bool,
}

impl Words<'_> {
    fn redacted(&self) -> String {
        if self.is_passed_on() && self.is_ours() || !self.is_passed_on() && self.is_safe() {
            // The text is in the server's language.
            return format!("{} (SQLSTATE {})", self.message, self.sqlstate);
        }
        let place = match self.place() {
            Some(place) => format!(" in {place}"),
            None if self.is_passed_on() || self.routine.is_empty() => String::new(),
            None => format!(" in {} ({})", self.routine, self.file),
        };
        format!("SQLSTATE {}{}{place}; its text is redacted", self.sqlstate, title(self.sqlstate))
    }

    /// Whether the server passes on a message of others. P0 is PL/pgSQL's own class; HV is that of foreign data.
    fn is_passed_on(&self) -> bool {
        OTHERS.iter().any(|begins| self.file.starts_with(begins))
            || ["P0", "HV"].iter().any(|class| self.sqlstate.starts_with(class))
    }

    /// Whether the server's own message can quote no value. What is not listed here can, or may in a later version.
    fn is_safe(&self) -> bool {
        match self.sqlstate {
            // Fixed texts: division by zero, stack depth, a lock that is not available, out of memory, too many connections.
            "22012" | "54001" | "55P03" | "53200" | "53300" => true,
            "42501" => self.file == PRIVILEGES || CONSTRAINTS.contains(&self.file),
            // Objects that exist already, or on which others depend: reported for a statement that makes or drops objects.
            "42P06" | "42P07" | "42701" | "42710" | "42723" | "2BP01" => self.context.is_empty(),
            code => match code.get(..2).unwrap_or_default() {
                // Fixed texts: invalid transaction states, rollbacks, interventions of an operator.
                "25" | "40" | "57" => true,
                "23" => CONSTRAINTS.contains(&self.file),
                // Broken connections; refused logins; unknown databases.
                "08" | "28" | "3D" | "53" => self.of_session,
                "42" | "3F" | "0A" => self.of_our_sql,
                _ => false,
            },
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

/// The title of a SQLSTATE's class, for those of which a text is kept back most often.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn title(sqlstate: &str) -> &'static str {
    match sqlstate.get(..2).unwrap_or_default() {
        "0A" => " (feature not supported)",
        "21" => " (cardinality violation)",
        "22" => " (data exception)",
        "23" => " (integrity constraint violation)",
        "26" => " (invalid statement name)",
        "34" => " (invalid cursor name)",
        "3D" => " (invalid database name)",
        "3F" => " (invalid schema name)",
        "42" if sqlstate == "42501" => " (insufficient privilege)",
        "42" => " (invalid name or syntax)",
        "53" => " (insufficient resources)",
        "54" => " (program limit exceeded)",
        "55" => " (object not in prerequisite state)",
        "58" => " (system error)",
        "F0" => " (configuration file error)",
        "XX" => " (internal error)",
        _ => "",
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
        routine: "ExecConstraints",
        of_our_sql: false,
        of_session: false,
    };

    /// The whole message.
    fn shown(words: &Words<'_>) -> String {
        format!("{} (SQLSTATE {})", words.message, words.sqlstate)
    }

    /// As the server reports it for a statement without functions.
    const fn bare<'a>(sqlstate: &'a str, message: &'a str, file: &'a str, routine: &'a str) -> Words<'a> {
        Words { sqlstate, message, context: "", file, routine, of_our_sql: false, of_session: false }
    }

    #[test]
    fn the_servers_own_words_are_kept() {
        let own = Words {
            of_our_sql: true,
            ..bare("42703", "column \"statuss\" does not exist", "parse_relation.c", "errorMissingColumn")
        };
        let login = Words {
            of_session: true,
            ..bare("28P01", "password authentication failed for user \"kyhan_worker\"", "auth.c", "auth_failed")
        };
        let database =
            Words { of_session: true, ..bare("3D000", "database \"baogam\" does not exist", "postinit.c", "InitPostgres") };
        for words in [
            SERVER,
            own,
            login,
            database,
            bare("42501", "permission denied for table orders", "aclchk.c", "aclcheck_error"),
            bare("42P07", "relation \"orders\" already exists", "heap.c", "heap_create_with_catalog"),
            bare("57014", "canceling statement due to statement timeout", "postgres.c", "ProcessInterrupts"),
            bare("25006", "cannot execute UPDATE in a read-only transaction", "utility.c", "PreventCommandIfReadOnly"),
            bare("40P01", "deadlock detected", "deadlock.c", "DeadLockReport"),
        ] {
            assert_eq!(words.redacted(), shown(&words));
        }
        let raised = "PL/pgSQL function kyhan_ledger_has_its_orders() line 9 at RAISE";
        let ours = Words { message: "accounts names an order that does not exist", context: raised, file: "pl_exec.c", ..SERVER };
        assert_eq!(ours.redacted(), shown(&ours));
        let elsewhere = Words { context: "PL/pgSQL function baogam.kyhan_keeps() line 1 at RAISE", ..ours };
        assert_eq!(elsewhere.redacted(), shown(&elsewhere));
        let vietnamese = Words { context: "Hàm PL/pgSQL kyhan_ledger_has_its_orders() dòng 9 tại RAISE", ..ours };
        assert_eq!(vietnamese.redacted(), shown(&vietnamese));
    }

    #[test]
    fn what_another_programs_function_says_is_not() {
        let raised = Words {
            message: "no label for Nguyễn Thị Mẫu",
            context: "PL/pgSQL function label(text) line 12 at RAISE\nSQL statement \"SELECT label('Nguyễn Thị Mẫu')\"",
            ..bare("P0001", "", "pl_exec.c", "exec_stmt_raise")
        };
        assert_eq!(raised.redacted(), "SQLSTATE P0001 in PL/pgSQL function label(text) line 12 at RAISE; its text is redacted");
        let python = Words { context: "Traceback (most recent call last):\n  PL/Python …", file: "plpy_elog.c", ..raised };
        assert_eq!(python.redacted(), "SQLSTATE P0001; its text is redacted");
        let block = Words { context: "PL/pgSQL function inline_code_block line 4 at RAISE", ..raised };
        assert_eq!(block.redacted(), shown(&block));
        let of_theirs = "PL/pgSQL function inline_code_block line 4 at RAISE\nSQL statement \"DO …\"\nPL/pgSQL function label() line 1 at EXECUTE";
        assert!(Words { context: of_theirs, ..raised }.redacted().contains("is redacted"));
        let imitated = "PL/pgSQL function label(kyhan_) line 12 at RAISE\nPL/pgSQL function kyhan_x() line 1 at PERFORM";
        assert!(Words { context: imitated, ..raised }.redacted().contains("is redacted"));
        // Whatever SQLSTATE it chooses.
        for sqlstate in ["23514", "25006", "40001", "57014", "22012", "55P03"] {
            assert!(Words { sqlstate, ..raised }.redacted().contains("is redacted"), "{sqlstate}");
        }
        let remote = Words { message: "no label for Mẫu", context: "", file: "connection.c", ..SERVER };
        assert_eq!(remote.redacted(), "SQLSTATE 23514 (integrity constraint violation); its text is redacted");
        let quoted = Words { context: "SQL statement \"SELECT 'PL/x Mẫu'\"", sqlstate: "P0001", ..remote };
        assert_eq!(quoted.redacted(), "SQLSTATE P0001; its text is redacted");
        let unknown = Words { message: "no label for Mẫu", context: "", file: "plsh.c", ..SERVER };
        assert!(unknown.redacted().contains("is redacted"));
    }

    #[test]
    fn a_message_that_may_quote_a_value_is_not() {
        let file = bare("58P01", "could not open file \"/labels/Nguyễn Thị Mẫu\" for reading", "genfile.c", "read_binary_file");
        assert_eq!(file.redacted(), "SQLSTATE 58P01 (system error) in read_binary_file (genfile.c); its text is redacted");
        let made_up = Words {
            context: "PL/pgSQL function label() line 1 at EXECUTE",
            ..bare("3F000", "schema \"mẫu\" does not exist", "namespace.c", "get_namespace_oid")
        };
        assert_eq!(
            made_up.redacted(),
            "SQLSTATE 3F000 (invalid schema name) in PL/pgSQL function label() line 1 at EXECUTE; its text is redacted"
        );
        for (sqlstate, message) in [
            ("22P02", "invalid input syntax for type integer: \"0901234567\""),
            ("22P02", "ungültige Eingabesyntax für Typ integer: „0901234567“"),
            ("22030", "duplicate JSON object key value: Mẫu"),
            ("0A000", "cross-database references are not implemented: \"mẫu.x.y\""),
            ("26000", "prepared statement \"mẫu\" does not exist"),
            ("34000", "cursor \"mẫu\" does not exist"),
            ("3D000", "database \"mẫu\" does not exist"),
            ("42703", "column \"mẫu\" does not exist"),
            ("42601", "syntax error in tsquery: \"Mẫu &\""),
            ("42501", "permission denied to open /labels/Mẫu"),
            ("42704", "unrecognized configuration parameter \"mẫu.x\""),
            ("53100", "could not extend file \"/labels/Mẫu\": No space left on device"),
            ("54000", "word is too long in tsquery: \"Mẫu\""),
            ("55000", "sequence \"mẫu\" is not yet defined"),
            ("XX000", "could not find tuple for Mẫu"),
            ("99999", "a class of a later version: Mẫu"),
        ] {
            let shown = bare(sqlstate, message, "x.c", "reports").redacted();
            assert!(shown.starts_with(&format!("SQLSTATE {sqlstate}")), "{shown}");
            assert!(!shown.to_lowercase().contains("mẫu") && !shown.contains("0901234567"), "{shown}");
        }
    }

    /// Otherwise `redacted` would not find it, and would show its text within the wrapper's.
    #[test]
    fn an_error_of_the_database_is_the_source_of_each_error_that_wraps_it() {
        let mut wrapped = 0;
        let mut folders: Vec<_> = ["shared", "producer", "worker", "ops"]
            .map(|crate_| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_).join("src"))
            .into();
        while let Some(path) = folders.pop() {
            if path.is_dir() {
                folders.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            for (at, line) in lines.iter().enumerate() {
                // A field of a struct or variant, alone on its line, or a variant's only one.
                let field = line.trim_start_matches("#[source] ").strip_prefix("error: ").is_some_and(|of| of == "DbErr,");
                // In parts, because this file is read, too.
                let variant = [["(", "DbErr),"], ["{ error: ", "DbErr }"], [", error: ", "DbErr }"]]
                    .iter()
                    .any(|parts| line.contains(&parts.concat()));
                assert!(!variant, "{}: {line}", path.display());
                let opened = lines[..at].iter().rev().find(|line| line.ends_with(['{', '(']));
                if field && opened.is_some_and(|line| line.ends_with('{')) {
                    wrapped += 1;
                    assert!(line.starts_with("#[source]") || lines[at - 1] == "#[source]", "{}: {line}", path.display());
                }
            }
        }
        assert!(wrapped >= 2, "{wrapped}");
    }
}
