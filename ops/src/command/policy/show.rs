//! `ops policy show`: shows the active policy.

use std::process::ExitCode;

use ops::shown::{moment, one_line};
use serde_json::json;
use shared::{
    database::{
        self,
        active_policy::{self, Applied},
    },
    domain::policy::{Policy, PolicyLine, Release},
    process::cli::say,
    settings::Settings,
};

use super::super::{options::Json, with_schema};

#[derive(clap::Args)]
#[command(after_help = "\
The output is a [[policy]] table for a kyhan.toml. Put it into the file of every process, so that the files agree with the active policy. \
If no policy was applied to the database, nothing is applied, and this command shows the settings of `ops`, which could be applied.

Examples:
  ops policy show
  ops policy show --json | jq '.lines'")]
pub struct ShowPolicyCommand {
    #[command(flatten)]
    pub json: Json,
}

pub async fn show(command: ShowPolicyCommand, settings: &Settings) -> anyhow::Result<ExitCode> {
    let db = with_schema(settings).await?;
    let applied = active_policy::read(&db).await?;
    let now = database::now(&db).await?;
    let policy = applied.as_ref().map_or(&settings.policy, |applied| &applied.policy);
    let differs = !policy.is_equivalent(&settings.policy);
    let releases: Vec<_> = policy.releases().filter(|(_, release)| release.until() > now).collect();
    say(&if command.json.json {
        document(applied.as_ref(), policy, &releases, differs)?
    } else {
        toml(applied.as_ref(), policy, &releases, differs)
    });
    Ok(ExitCode::SUCCESS)
}

/// The releases that have not ended, with their kinds.
type Releases<'a> = [(&'static str, &'a Release)];

fn document(applied: Option<&Applied>, policy: &Policy, releases: &Releases<'_>, differs: bool) -> serde_json::Result<String> {
    let line = |line: &PolicyLine| json!({ "on": line.on.name(), "task": line.task, "after": line.after.to_string() });
    let release = |(kind, release): &(&str, &Release)| json!({ "kind": kind, "from": release.from, "until": release.until() });
    serde_json::to_string_pretty(&json!({
        "number": applied.map(|it| it.number),
        "applied_at": applied.map(|it| it.at),
        "applied_by": applied.map(|it| &it.by),
        "why": applied.map(|it| &it.why),
        "scheduled_at": applied.and_then(|it| it.scheduled_at),
        "lines": policy.lines().iter().map(line).collect::<Vec<_>>(),
        "safeguards": policy.safeguards().map(|it| json!({
            "wallet_floor": it.wallet_floor,
            "approval_above": it.approval_above,
            "delete_after": it.delete_after.map(|span| span.to_string()),
        })),
        "releases": releases.iter().map(release).collect::<Vec<_>>(),
        "settings_differ": differs,
    }))
}

fn toml(applied: Option<&Applied>, policy: &Policy, releases: &Releases<'_>, differs: bool) -> String {
    let mut lines = Vec::new();
    match applied {
        None => lines.push(
            "# No policy was applied to this database, so nothing is applied. These are the settings of this process.".to_owned(),
        ),
        Some(Applied { number, at, by, why, scheduled_at, .. }) => {
            lines.push(format!("# Policy {number}, applied {} by {}: {}", moment(*at), one_line(by), one_line(why)));
            for (kind, release) in releases {
                let (from, until) = (moment(release.from), moment(release.until()));
                lines.push(format!("# {kind}: rows that became due at once are released from {from} to {until}."));
            }
            if scheduled_at.is_none() {
                lines.push("# Some wake-ups of rows that are due earlier are missing: apply the policy again.".to_owned());
            }
        }
    }
    if differs {
        lines.push("# The settings of this process differ from it.".to_owned());
    }
    let safeguards = policy.safeguards().map_or(String::new(), |safeguards| safeguards.to_string());
    format!("{}\n\n{policy}{safeguards}", lines.join("\n"))
}
