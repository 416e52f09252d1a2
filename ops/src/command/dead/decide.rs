//! `ops dead discard` and `ops dead repair`. Both ask for confirmation first.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::bail;
use clap::ArgGroup;
use ops::{
    actor::Operator,
    dead::{Correction, Discarded, Filter, IdPrefix, LetterState, decide, filter::HEADING, letter, page},
    shown,
};
use sea_orm::DatabaseConnection;
use serde_json::json;
use shared::process::cli::say;
use uuid::Uuid;

use super::without_alias;
use crate::command::{
    UsageError, answer,
    confirm::confirmed,
    kind,
    options::{Json, Why, Yes},
};

/// The options of a decision about dead letters.
#[derive(clap::Args)]
#[command(mut_arg("why", without_alias))]
struct Decision {
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    yes: Yes,
    #[command(flatten)]
    json: Json,
}

#[derive(clap::Args)]
#[command(after_help = "\
Only open dead letters are discarded. If a running plan contains one of them, the command refuses. Discarded dead letters stay in the \
table, with who discarded them and why.

Examples:
  ops dead discard --id 5f0c1d2e-… --why 'a test message'
  ops dead discard --group 3f9a0c1d2e --until 2026-11-23 --why 'sent by the old importer, see ticket 812'
  ops dead discard --unreadable --why 'noise of the port scan' --yes

Exit codes: 0 success; 1 failure, no match, or not confirmed; 2 usage error, or neither a terminal nor --yes.")]
pub struct DiscardCommand {
    #[command(flatten)]
    filter: Filter,
    /// Every open dead letter; not together with another filter
    #[arg(long, help_heading = HEADING)]
    all: bool,
    #[command(flatten)]
    decision: Decision,
}

pub async fn discard(command: DiscardCommand, db: &DatabaseConnection, actor: &Operator) -> anyhow::Result<ExitCode> {
    let DiscardCommand { filter, all, decision } = command;
    let Decision { why: Why { why }, yes: Yes { yes }, json: Json { json } } = decision;
    if filter.state != LetterState::Open {
        return Err(UsageError("only open dead letters can be discarded; leave out --state".to_owned()).into());
    }
    if filter.names_nothing() != all {
        return Err(
            UsageError("select dead letters with --kind, --group, --id or another filter, or pass --all".to_owned()).into()
        );
    }
    // Exactly the dead letters that the question counts are discarded, whatever arrives meanwhile.
    let ids = page::ids(db, &filter).await?;
    if !filter.ids.is_empty() {
        refuse_others(db, &filter, &ids).await?;
    }
    if ids.is_empty() {
        bail!("no open dead letters match; nothing is discarded");
    }
    if !confirmed(&format!("Discard {} for good?", letters(ids.len() as u64)), yes)? {
        bail!("not confirmed; nothing is discarded");
    }
    let Discarded { discarded, decided } = decide::discard(db, actor, &ids, &why).await?;
    if decided > 0 && !json {
        say(&format!("{} left as they are, because they were decided in the meantime", letters(decided)));
    }
    if discarded == 0 {
        bail!("nothing is discarded");
    }
    let document = json!({ "discarded": discarded, "left": decided });
    answer(json, &document, &format!("{} discarded", letters(discarded)))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses if an id that was given does not match, because an operator who lists ids means all of them.
async fn refuse_others(db: &DatabaseConnection, filter: &Filter, chosen: &[Uuid]) -> anyhow::Result<()> {
    let chosen: BTreeSet<Uuid> = chosen.iter().copied().collect();
    let mut others = Vec::new();
    for id in filter.ids.iter().copied().collect::<BTreeSet<_>>().difference(&chosen) {
        others.push(match letter::by_id(db, *id).await? {
            None => format!("there is no dead letter {id}"),
            Some(letter) => match (letter.summary.decided_by, letter.summary.decided_why) {
                (Some(by), Some(why)) => {
                    let at = shown::moment_or_dash(letter.summary.decided_at);
                    let (state, by, why) = (letter.summary.state, shown::text(&by), shown::text(&why));
                    format!("dead letter {id} is already {state}, by {by} at {at}: {why}")
                }
                _ => format!("the other filters exclude dead letter {id}"),
            },
        });
    }
    if !others.is_empty() {
        bail!("{}; nothing is discarded", others.join("; "));
    }
    Ok(())
}

#[derive(clap::Args)]
#[command(
    group(ArgGroup::new("repaired").args(["kind", "subject"]).required(true).multiple(true)),
    after_help = "\
A dead letter names a kind of task and a row, and only these can be corrected. It holds no amount: how much money moves is computed from \
the rows, when it moves. The old dead letter keeps its content and becomes resolved. A new open one with the same cause and bytes \
replaces it. If both the kind and the row are missing, pass both options.

Examples:
  ops dead repair 5f0c1d2e --subject 0193d8c4-… --why 'the importer mixed up two orders'
  ops dead repair 5f0c1d2e --kind confirm-receipt --why 'the kind was called receipt before June'

Exit codes: 0 success; 1 failure, no match, or not confirmed; 2 usage error, or neither a terminal nor --yes."
)]
pub struct RepairCommand {
    /// The id of the dead letter, or at least its first eight digits
    id: IdPrefix,
    /// The correct kind
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Option<&'static str>,
    /// The id of the correct row
    #[arg(long, value_name = "UUID")]
    subject: Option<Uuid>,
    #[command(flatten)]
    decision: Decision,
}

pub async fn repair(command: RepairCommand, db: &DatabaseConnection, actor: &Operator) -> anyhow::Result<ExitCode> {
    let RepairCommand { id, kind, subject, decision } = command;
    let Decision { why: Why { why }, yes: Yes { yes }, json: Json { json } } = decision;
    let id = letter::named(db, &id).await?;
    let Some(old) = letter::by_id(db, id).await? else { bail!("dead letter {id} no longer exists") };
    let mut changes = Vec::new();
    if let Some(kind) = kind {
        changes.push(format!("kind {} becomes {kind}", shown::text_or_dash(old.summary.kind.as_deref())));
    }
    if let Some(subject) = subject {
        let before = old.summary.subject_id.map_or("-".to_owned(), |id| id.to_string());
        changes.push(format!("subject {before} becomes {subject}"));
    }
    if !confirmed(&format!("Repair dead letter {id}: {}?", changes.join(", ")), yes)? {
        bail!("not confirmed; nothing is repaired");
    }
    let repaired_as = decide::repair(db, actor, id, Correction { kind, subject }, &why).await?;
    let document = json!({ "letter": id, "repaired_as": repaired_as });
    answer(json, &document, &format!("{id} is resolved; {repaired_as} replaces it and is open"))?;
    Ok(ExitCode::SUCCESS)
}

fn letters(count: u64) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}
