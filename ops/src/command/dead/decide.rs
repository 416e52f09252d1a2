//! `ops dead discard` and `ops dead repair`: what is about to be done is shown and asked about before it is done.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::bail;
use clap::ArgGroup;
use ops::{
    actor::Actor,
    dead::{Correction, Discarded, Filter, IdPrefix, State, decide, letter, page},
    shown,
};
use sea_orm::DatabaseConnection;
use serde_json::json;
use shared::process::cli::say;
use uuid::Uuid;

use super::without_alias;
use crate::command::{
    WrongUse, answer,
    confirm::confirmed,
    kind,
    options::{Json, Why, Yes},
};

/// The options of a decision about letters.
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
Only open letters are discarded, and none while a plan is running with one of them. They stay in the table, as discarded, with who \
and why.

Examples:
  ops dead discard --id 5f0c1d2e-… --why 'a test message'
  ops dead discard --group 3f9a0c1d2e --until 2026-11-23 --why 'sent by the old importer, see ticket 812'
  ops dead discard --unreadable --why 'noise of the port scan' --yes

Exit codes: 0 done, 1 failed, nothing found or not confirmed, 2 wrong use, or nobody to ask and no --yes.")]
pub struct Discard {
    #[command(flatten)]
    filter: Filter,
    /// Every open letter: for when nothing else is named
    #[arg(long, help_heading = "Which letters")]
    all: bool,
    #[command(flatten)]
    decision: Decision,
}

pub async fn discard(command: Discard, db: &DatabaseConnection, actor: &Actor) -> anyhow::Result<ExitCode> {
    let Discard { filter, all, decision } = command;
    let Decision { why: Why { why }, yes: Yes { yes }, json: Json { json } } = decision;
    if filter.state != State::Open {
        return Err(WrongUse("only open letters can be discarded: leave --state out".to_owned()).into());
    }
    if filter.names_nothing() != all {
        return Err(
            WrongUse("say which letters are meant, by --kind, --group, --id or another option, or say --all".to_owned()).into()
        );
    }
    // What is asked about is what is discarded, whatever dies meanwhile.
    let ids = page::ids(db, &filter).await?;
    if !filter.ids.is_empty() {
        refuse_others(db, &filter, &ids).await?;
    }
    if ids.is_empty() {
        bail!("no open letter is meant; nothing is discarded");
    }
    if !confirmed(&format!("Discard {} for good?", letters(ids.len() as u64)), yes)? {
        bail!("not confirmed; nothing is discarded");
    }
    let Discarded { discarded, decided } = decide::discard(db, actor, &ids, &why).await?;
    if decided > 0 && !json {
        say(&format!("{} left as they are: somebody else has decided about them meanwhile", letters(decided)));
    }
    if discarded == 0 {
        bail!("nothing is discarded");
    }
    let document = json!({ "discarded": discarded, "left": decided });
    answer(json, &document, &format!("{} discarded", letters(discarded)))?;
    Ok(ExitCode::SUCCESS)
}

/// Whoever names letters by their ids means all of them.
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
                    format!("the letter {id} is {state} already, by {by} at {at}: {why}")
                }
                _ => format!("the other options leave out the letter {id}"),
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
A letter says which kind of task was to be done about which row, and only that can be repaired. There is no amount in it: how much \
money moves follows from the rows, at the moment it moves. The letter keeps its bytes and all that it says, and becomes resolved; a \
new open letter takes its place, with the same cause and bytes. A letter of which nobody knows what it was to do needs both options.

Examples:
  ops dead repair 5f0c1d2e --subject 0193d8c4-… --why 'the importer mixed up two orders'
  ops dead repair 5f0c1d2e --kind confirm-receipt --why 'the kind was called receipt before June'

Exit codes: 0 done, 1 failed, nothing found or not confirmed, 2 wrong use, or nobody to ask and no --yes."
)]
pub struct Repair {
    /// The letter's id, or the first eight digits of it or more
    id: IdPrefix,
    /// The kind that it should have had
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Option<&'static str>,
    /// The id of the row that it should have been about
    #[arg(long, value_name = "UUID")]
    subject: Option<Uuid>,
    #[command(flatten)]
    decision: Decision,
}

pub async fn repair(command: Repair, db: &DatabaseConnection, actor: &Actor) -> anyhow::Result<ExitCode> {
    let Repair { id, kind, subject, decision } = command;
    let Decision { why: Why { why }, yes: Yes { yes }, json: Json { json } } = decision;
    let id = letter::named(db, &id).await?;
    let Some(old) = letter::by_id(db, id).await? else { bail!("the letter {id} is gone") };
    let mut changes = Vec::new();
    if let Some(kind) = kind {
        changes.push(format!("kind {} becomes {kind}", shown::text_or_dash(old.summary.kind.as_deref())));
    }
    if let Some(subject) = subject {
        let before = old.summary.subject_id.map_or("-".to_owned(), |id| id.to_string());
        changes.push(format!("subject {before} becomes {subject}"));
    }
    if !confirmed(&format!("Repair the letter {id}: {}?", changes.join(", ")), yes)? {
        bail!("not confirmed; nothing is repaired");
    }
    let repaired_as = decide::repair(db, actor, id, Correction { kind, subject }, &why).await?;
    let document = json!({ "letter": id, "repaired_as": repaired_as });
    answer(json, &document, &format!("{id} is resolved; repaired as {repaired_as}, which is open"))?;
    Ok(ExitCode::SUCCESS)
}

fn letters(count: u64) -> String {
    if count == 1 { "1 letter".to_owned() } else { format!("{count} letters") }
}
