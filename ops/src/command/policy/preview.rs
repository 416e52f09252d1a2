//! `ops policy preview`: shows what another policy would do.

use std::{num::NonZeroU32, path::PathBuf, process::ExitCode};

use clap::ValueHint;
use ops::{
    preview::{self, Busy, KindChange},
    shown::moment,
};
use shared::{database::active_policy::Governed, domain::money::Dong, process::cli::say, settings::Settings};

use super::{
    super::{governed, options::Json, table},
    RATE, at_once, policy_of,
};

#[derive(clap::Args)]
#[command(after_help = "\
FILE is a kyhan.toml with a [[policy]] table. All of its settings must be valid, but only the policy is compared with the active one. \
Everything is counted in one snapshot, by the definition of \"due\" that the workers use. The counts do not include what follows from an \
effect: an order that is received has its arrears checked later because of that.

Examples:
  ops policy preview kyhan-new.toml
  ops policy preview kyhan-new.toml --rate 5
  ops policy preview kyhan-new.toml --json | jq '.kinds[] | {kind, at_once, at_once_amount}'

Exit codes: 0 success; 1 failure, for instance a server is away; 2 usage error or invalid FILE.")]
pub struct PreviewPolicyCommand {
    /// A kyhan.toml with the new policy
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// How many rows of a kind `ops policy apply` would release per second
    #[arg(long, value_name = "SUBJECTS", default_value_t = RATE)]
    pub rate: NonZeroU32,
    #[command(flatten)]
    pub json: Json,
}

pub async fn preview(command: PreviewPolicyCommand, settings: &Settings) -> anyhow::Result<ExitCode> {
    let new = policy_of(&command.file)?;
    let Governed { db, settings, .. } = governed(settings).await?;
    let preview = preview::preview(&db, &settings, &new).await?;
    say(&if command.json.json { serde_json::to_string_pretty(&preview)? } else { shown(&preview, command.rate) });
    Ok(ExitCode::SUCCESS)
}

/// A preview as tables, with the duration of the release.
pub(super) fn shown(preview: &preview::PolicyPreview, rate: NonZeroU32) -> String {
    let mut parts = vec![format!("at {}", moment(preview.at))];
    let mut lines = table(["kind", "on", "now after", "then after"]);
    for (kind, line) in preview.kinds.iter().flat_map(|kind| kind.lines.iter().map(move |line| (kind.kind, line))) {
        let span = |span: &Option<String>| span.clone().unwrap_or("-".to_owned());
        lines.add_row([kind.to_owned(), line.on.to_owned(), span(&line.before), span(&line.after)]);
    }
    if lines.row_count() == 0 {
        parts.push("the policy is the same, line for line".to_owned());
    } else {
        parts.push(format!("\nThe lines that differ\n{lines}"));
    }
    let mut counts = table([]);
    counts.set_header([""].into_iter().chain(preview.kinds.iter().map(|kind| kind.kind)));
    for (name, shown) in MEASURES {
        counts.add_row([name.to_owned()].into_iter().chain(preview.kinds.iter().map(shown)));
    }
    parts.push(format!("\nEffect on the rows\n{counts}"));
    if !preview.rungs_new.is_empty() {
        parts.push(format!("\nNew rungs: {}", preview.rungs_new.join(", ")));
    }
    if !preview.rungs_forgotten.is_empty() {
        let rungs = preview.rungs_forgotten.join(", ");
        parts.push(format!("\nUnused rungs, which `ops topology prune` removes once they are empty: {rungs}"));
    }
    let at_once = preview.kinds.iter().filter(|kind| kind.at_once > 0).map(|kind| at_once(kind, rate));
    parts.extend(at_once.map(|at_once| format!("\n{at_once}")));
    parts.join("\n")
}

/// How a measure of a kind is shown.
type Cell = fn(&KindChange) -> String;

const MEASURES: [(&str, Cell); 13] = [
    ("candidates", |kind| kind.candidates.to_string()),
    ("due earlier", |kind| kind.earlier.to_string()),
    ("due later", |kind| kind.later.to_string()),
    ("due as before", |kind| kind.same.to_string()),
    ("due, but never before", |kind| kind.appear.to_string()),
    ("no longer due", |kind| kind.vanish.to_string()),
    ("not due, as before", |kind| kind.never.to_string()),
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
