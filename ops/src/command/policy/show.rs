//! `ops policy show`: the policy that is in force.

use std::process::ExitCode;

use ops::shown::{moment, one_line};
use serde_json::json;
use shared::{
    cli::say,
    policy::{
        Line, Policy,
        in_force::{self, Applied},
    },
    settings::Settings,
    tasks,
};

use super::super::with_schema;

#[derive(clap::Args)]
#[command(after_help = "\
A database in which no policy was applied has that of each process's settings. What is printed is a [[policy]] for a kyhan.toml: lay it \
there, so that the files say what holds.

Examples:
  ops policy show
  ops policy show --json | jq '.lines'")]
pub struct Show {
    /// One JSON document instead of a kyhan.toml
    #[arg(long)]
    pub json: bool,
}

pub async fn show(command: Show, settings: &Settings) -> anyhow::Result<ExitCode> {
    let db = with_schema(settings).await?;
    let applied = in_force::read(&db).await?;
    let policy = applied.as_ref().map_or(&settings.policy, |applied| &applied.policy);
    let differs = !policy.says_the_same(&settings.policy);
    say(&if command.json { document(applied.as_ref(), policy, differs)? } else { toml(applied.as_ref(), policy, differs) });
    Ok(ExitCode::SUCCESS)
}

fn document(applied: Option<&Applied>, policy: &Policy, differs: bool) -> serde_json::Result<String> {
    let line = |line: &Line| json!({ "on": line.on.name(), "task": line.task, "after": line.after.to_string() });
    let release = |task: &&dyn shared::task::Task| {
        let release = policy.release(*task)?;
        Some(json!({ "kind": task.kind(), "from": release.from, "until": release.until() }))
    };
    serde_json::to_string_pretty(&json!({
        "number": applied.map(|it| it.number),
        "applied_at": applied.map(|it| it.at),
        "applied_by": applied.map(|it| &it.by),
        "why": applied.map(|it| &it.why),
        "scheduled_at": applied.and_then(|it| it.scheduled_at),
        "lines": policy.lines().iter().map(line).collect::<Vec<_>>(),
        "releases": tasks::ALL.iter().filter_map(release).collect::<Vec<_>>(),
        "settings_differ": differs,
    }))
}

fn toml(applied: Option<&Applied>, policy: &Policy, differs: bool) -> String {
    let mut lines = Vec::new();
    match applied {
        None => lines.push("# That of this process's settings: no policy was applied in this database.".to_owned()),
        Some(Applied { number, at, by, why, scheduled_at, .. }) => {
            lines.push(format!("# Policy {number}, applied {} by {}: {}", moment(*at), one_line(by), one_line(why)));
            for task in tasks::ALL {
                if let Some(release) = policy.release(*task) {
                    let (from, until) = (moment(release.from), moment(release.until()));
                    lines.push(format!("# {}: what it made due at once is released from {from} to {until}.", task.kind()));
                }
            }
            if scheduled_at.is_none() {
                lines.push("# Not all wake-ups of what it made due earlier are made: apply it once more.".to_owned());
            }
        }
    }
    if differs {
        lines.push("# The settings of this process say something else.".to_owned());
    }
    format!("{}\n\n{policy}", lines.join("\n"))
}
