//! `ops dead list`: a page of dead letters, or their groups, as text, JSON or CSV.

use std::process::ExitCode;

use anyhow::Context;
use ops::{
    dead::{Cursor, Filter, Groups, LetterGroup, LetterPage, Summary, groups, page},
    shown,
};
use sea_orm::DatabaseConnection;
use serde::Serialize;
use serde_json::json;
use shared::{
    process::cli::{remark, say},
    settings::Settings,
};

use crate::command::{options::Json, table};

/// Most characters of a cause in a table. `ops dead show` shows all.
const CAUSE_SHOWN: usize = 100;

#[derive(clap::Args)]
#[command(after_help = "\
The states of a row, with --groups:
  due         a replay would apply it, if nothing fails
  waits       it is not due yet
  moot        the row exists and nothing is left to do
  gone        the row does not exist
  unreadable  the kind or the subject is missing or unknown

Examples:
  ops dead list --groups
  ops dead list --kind collect-arrears --since 2h
  ops dead list --order BG-20261124-17 --state all
  ops dead list --group 3f9a0c1d2e --csv > letters.csv

Times are those of Asia/Ho_Chi_Minh; in JSON and CSV they are RFC 3339 in UTC. With --csv the counts go to stderr.

Exit codes: 0 success, also if nothing matches; 1 failure; 2 usage error.")]
pub struct ListLettersCommand {
    #[command(flatten)]
    filter: Filter,
    /// Count them by cause and by the state of their rows now
    #[arg(long = "groups", conflicts_with = "after")]
    grouped: bool,
    #[command(flatten)]
    json: Json,
    /// Print CSV with a header line
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// List at most this many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Continue after the page that ended with this cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
}

pub async fn list(command: ListLettersCommand, db: &DatabaseConnection, settings: &Settings) -> anyhow::Result<ExitCode> {
    let ListLettersCommand { filter, grouped, json: Json { json }, csv, limit, after } = command;
    if grouped {
        let found = groups::groups(db, &settings.policy, &filter, limit).await?;
        if json {
            say(&serde_json::to_string_pretty(&found)?);
        } else if csv {
            say(&lines(GROUP_COLUMNS, found.groups.iter().map(group_cells))?);
            remark(&counted(&found));
        } else {
            show_groups(&found);
        }
    } else {
        let page = page::page(db, &filter, after, limit).await?;
        let total = page::count(db, &filter).await?;
        if json {
            say(&serde_json::to_string_pretty(&json!({ "total": total, "letters": page.letters, "next": page.next }))?);
        } else if csv {
            say(&lines(SUMMARY_COLUMNS, page.letters.iter().map(summary_cells))?);
            remark(&paged(&page, total));
        } else {
            show_page(&page, total);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_page(page: &LetterPage, total: u64) {
    if page.letters.is_empty() {
        say(if total == 0 { "no dead letters" } else { "no more dead letters" });
        return;
    }
    let mut table = table(["id", "state", "last failed", "reason", "kind", "subject", "attempts", "group", "cause"]);
    for letter in &page.letters {
        table.add_row([
            letter.id.to_string(),
            letter.state.clone(),
            shown::moment(letter.last_failed_at),
            shown::text(&letter.reason),
            shown::text_or_dash(letter.kind.as_deref()),
            letter.subject_id.map_or("-".to_owned(), |id| id.to_string()),
            letter.attempts.to_string(),
            letter.group.clone(),
            beginning(&letter.cause),
        ]);
    }
    say(&table.to_string());
    say(&paged(page, total));
}

/// How many there are and, if there are more, the option for the next page on the last line.
fn paged(page: &LetterPage, total: u64) -> String {
    let counted = format!("{} of {total} dead letters", page.letters.len());
    page.next.map_or(counted.clone(), |next| format!("{counted}\nnext page: --after {next}"))
}

fn show_groups(found: &Groups) {
    if found.groups.is_empty() {
        say("no dead letters");
        return;
    }
    let mut table =
        table(["group", "letters", "row stands", "kinds", "reasons", "first failed", "last failed", "example", "cause"]);
    for group in &found.groups {
        table.add_row([
            group.group.clone(),
            group.letters.to_string(),
            group.standing.name().to_owned(),
            shown::text(&group.kinds.join(", ")),
            shown::text(&group.reasons.join(", ")),
            shown::moment(group.first_failed_at),
            shown::moment(group.last_failed_at),
            group.example.to_string(),
            beginning(&group.cause),
        ]);
    }
    say(&table.to_string());
    say(&counted(found));
}

fn counted(found: &Groups) -> String {
    format!("{} of {} groups; {} dead letters in total", found.groups.len(), found.all, found.letters)
}

fn beginning(cause: &str) -> String {
    let all = shown::text(cause);
    let mut shown: String = all.chars().take(CAUSE_SHOWN).collect();
    if shown.len() < all.len() {
        shown.push('…');
    }
    shown
}

const SUMMARY_COLUMNS: &[&str] = &[
    "id",
    "state",
    "kind",
    "subject_id",
    "reason",
    "attempts",
    "first_failed_at",
    "last_failed_at",
    "group",
    "cause",
    "decided_at",
    "decided_by",
    "decided_why",
];

fn summary_cells(letter: &Summary) -> impl Serialize + use<> {
    (
        letter.id,
        letter.state.clone(),
        letter.kind.as_deref().map(cell),
        letter.subject_id,
        cell(&letter.reason),
        letter.attempts,
        letter.first_failed_at,
        letter.last_failed_at,
        letter.group.clone(),
        cell(&letter.cause),
        letter.decided_at,
        letter.decided_by.as_deref().map(cell),
        letter.decided_why.as_deref().map(cell),
    )
}

const GROUP_COLUMNS: &[&str] =
    &["group", "cause", "standing", "letters", "kinds", "reasons", "first_failed_at", "last_failed_at", "example"];

fn group_cells(group: &LetterGroup) -> impl Serialize + use<> {
    (
        group.group.clone(),
        cell(&group.cause),
        group.standing,
        group.letters,
        cell(&group.kinds.join(" ")),
        cell(&group.reasons.join(" ")),
        group.first_failed_at,
        group.last_failed_at,
        group.example,
    )
}

/// A text from outside, quoted so that a spreadsheet does not run it as a formula. <https://owasp.org/www-community/attacks/CSV_Injection>
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("{guard}{text}")
}

fn lines(columns: &[&str], rows: impl Iterator<Item = impl Serialize>) -> anyhow::Result<String> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(columns)?;
    for row in rows {
        writer.serialize(row)?;
    }
    String::from_utf8(writer.into_inner().context("writing CSV")?).context("writing CSV")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_not_a_formula_and_keeps_its_commas_quotes_and_line_ends() {
        let rows = [(cell("=HYPERLINK(\"x\")"), cell("a, \"b\"\nc"))];
        assert_eq!(lines(&["x", "y"], rows.iter()).unwrap(), "x,y\n\"'=HYPERLINK(\"\"x\"\")\",\"a, \"\"b\"\"\nc\"\n");
    }
}
