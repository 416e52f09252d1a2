//! `ops policy`: what another policy would do, before anybody rolls it out.

use std::{path::PathBuf, process::ExitCode};

use clap::{Subcommand, ValueHint};
use ops::{
    preview::{self, Busy, Change},
    shown::moment,
};
use shared::{
    cli::{refuse, say},
    money::Dong,
    settings::Settings,
    span::compact,
};

use super::{table, with_schema};

#[derive(Subcommand)]
pub enum Policy {
    /// Say what another policy would do to the rows as they are now, and change nothing
    Preview(Preview),
}

#[derive(clap::Args)]
#[command(after_help = "\
FILE is a kyhan.toml. All of it has to hold as settings, and it needs a [[policy]] of its own; only that is compared. Everything is \
counted in one snapshot, by the same definition of due that the workers apply. It says how much falls due at once because of the change, \
not what an effect leads to: an order that is received by itself has its arrears checked later for that.

A longer span holds at once. A shorter one does not hurry what waits in a longer rung: the sweep finds those rows and wakes them, at \
most sweep.batch_max of a kind every sweep.every_ms.

Examples:
  ops policy preview kyhan-new.toml
  ops policy preview kyhan-new.toml --json | jq '.kinds[] | {kind, at_once, at_once_amount}'

Exit codes: 0 told, 1 a server is away, 2 FILE cannot hold.")]
pub struct Preview {
    /// A kyhan.toml with the other policy
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

pub async fn policy(command: Policy, settings: &Settings) -> anyhow::Result<ExitCode> {
    match command {
        Policy::Preview(command) => preview(command, settings).await,
    }
}

async fn preview(command: Preview, settings: &Settings) -> anyhow::Result<ExitCode> {
    let new = match Settings::policy_of(&command.file) {
        Ok(new) => new,
        Err(mistakes) => return Ok(refuse("ops", &format!("{}: {mistakes}", command.file.display()))),
    };
    let db = with_schema(settings).await?;
    let preview = preview::preview(&db, settings, &new).await?;
    if command.json {
        say(&serde_json::to_string_pretty(&preview)?);
    } else {
        show(&preview, settings);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(preview: &preview::Preview, settings: &Settings) {
    say(&format!("at {}", moment(preview.at)));
    let mut lines = table(["kind", "on", "now after", "then after"]);
    for (kind, line) in preview.kinds.iter().flat_map(|kind| kind.lines.iter().map(move |line| (kind.kind, line))) {
        let span = |span: &Option<String>| span.clone().unwrap_or("-".to_owned());
        lines.add_row([kind.to_owned(), line.on.to_owned(), span(&line.before), span(&line.after)]);
    }
    if lines.row_count() == 0 {
        say("the policy is the same, line for line");
    } else {
        say(&format!("\nThe lines that differ\n{lines}"));
    }
    let mut counts = table([]);
    counts.set_header([""].into_iter().chain(preview.kinds.iter().map(|kind| kind.kind)));
    for (name, shown) in MEASURES {
        counts.add_row([name.to_owned()].into_iter().chain(preview.kinds.iter().map(shown)));
    }
    say(&format!("\nWhat it does to the rows\n{counts}"));
    if !preview.rungs_new.is_empty() {
        say(&format!("\nRungs that the workers declare: {}", preview.rungs_new.join(", ")));
    }
    if !preview.rungs_forgotten.is_empty() {
        let rungs = preview.rungs_forgotten.join(", ");
        say(&format!("\nRungs that drain, and that `ops topology prune` removes once they are empty: {rungs}"));
    }
    for kind in preview.kinds.iter().filter(|kind| kind.at_once > 0) {
        say(&format!("\n{}", at_once(kind, settings)));
    }
}

/// How each measure of a kind is shown.
type Shown = fn(&Change) -> String;

const MEASURES: [(&str, Shown); 13] = [
    ("candidates", |kind| kind.candidates.to_string()),
    ("due earlier", |kind| kind.earlier.to_string()),
    ("due later", |kind| kind.later.to_string()),
    ("due when they were", |kind| kind.same.to_string()),
    ("due, and were never", |kind| kind.appear.to_string()),
    ("never due any more", |kind| kind.vanish.to_string()),
    ("never due, as before", |kind| kind.never.to_string()),
    ("overdue now", |kind| kind.due_before.to_string()),
    ("overdue then", |kind| kind.due_after.to_string()),
    ("due at once by the change", |kind| kind.at_once.to_string()),
    ("at stake of these", |kind| kind.at_once_amount.map_or("-".to_owned(), |amount| Dong(amount).to_string())),
    ("busiest coming day now", |kind| busy(kind.busiest_before)),
    ("busiest coming day then", |kind| busy(kind.busiest_after)),
];

fn busy(busy: Option<Busy>) -> String {
    busy.map_or("-".to_owned(), |busy| format!("{}: {}", busy.day, busy.subjects))
}

/// What becomes of the rows that fall due at once.
fn at_once(kind: &Change, settings: &Settings) -> String {
    let sweep = &settings.sweep;
    let rounds = u64::try_from(kind.at_once).unwrap_or_default().div_ceil(sweep.batch_max.into());
    let money = kind.at_once_amount.map_or(String::new(), |amount| format!(" and are short of {}", Dong(amount)));
    format!(
        "{}: {} rows fall due at once{money}. Once the fleet has the new policy, the sweep wakes at most {} of them every {}: that \
         takes at least {}.",
        kind.kind,
        kind.at_once,
        sweep.batch_max,
        compact(sweep.every_ms),
        compact(rounds.saturating_mul(sweep.every_ms))
    )
}
