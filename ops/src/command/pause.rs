//! `ops pause` and `ops resume`: stop and resume a kind across the fleet.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::bail;
use ops::{
    actor::Operator,
    pause::{self, PauseOutcome, ResumeOutcome},
    progress,
    shown::{moment, one_line},
};
use sea_orm::DatabaseConnection;
use serde_json::json;
use shared::{
    domain::task::Shown,
    process::cli::{remark, say},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{
    answer,
    options::{Json, Why},
    task, with_schema,
};

#[derive(clap::Args)]
#[command(after_help = "\
When this command has returned with 0, no process applies this kind until it is resumed. What falls due waits, spends no attempt and is \
not dead-lettered. Other kinds continue.

Workers leave the kind's lanes within a few seconds. `ops status`, /readyz of each worker and the metric kyhan.paused show the pause.

Exit codes: 0 paused; 1 failure, or a transaction that began earlier is still open: run the command again to wait longer; 2 usage error.

Examples:
  ops pause collect-arrears --why 'fees of November are wrong'
  ops pause confirm-receipt --why 'carrier on strike' --as lan --wait 600")]
pub struct PauseCommand {
    /// The kind of task
    #[arg(value_parser = task)]
    pub kind: &'static dyn Shown,
    #[command(flatten)]
    pub why: Why,
    /// How long to wait for transactions that are already applying the kind
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
    #[command(flatten)]
    pub json: Json,
}

#[derive(clap::Args)]
#[command(
    after_help = "Workers return to the kind's lanes within a few seconds and apply what has fallen due in the meantime.\n\n\
                        Example:\n  ops resume collect-arrears --why 'the fees are corrected'"
)]
pub struct ResumeCommand {
    /// The kind of task
    #[arg(value_parser = task)]
    pub kind: &'static dyn Shown,
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub json: Json,
}

pub async fn pause(
    command: PauseCommand,
    actor: &Operator,
    settings: &Settings,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let PauseCommand { kind: task, why: Why { why }, wait, json: Json { json } } = command;
    let (db, kind) = (with_schema(settings).await?, task.kind());
    let (pause, changed) = match pause::pause(&db, actor, task, &why).await? {
        PauseOutcome::Now(pause) => (pause, true),
        PauseOutcome::Before(pause) => (pause, false),
    };
    if !changed && !json {
        let (since, by, why) = (moment(pause.since), one_line(&pause.by), one_line(&pause.why));
        say(&format!("{kind} is already paused, since {since} by {by}: {why}; nothing was changed"));
    }
    // Also for a kind that was already paused: the earlier command may not have waited to the end.
    match wait_for_transactions(&db, task, Duration::from_secs(wait), stop).await? {
        0 => answer(
            json,
            &json!({ "paused": pause, "changed": changed }),
            &format!("{kind} is paused: it is not applied until `ops resume {kind}`"),
        )?,
        left => bail!("{kind} is paused, but {} may still commit; run the command again to wait longer", began_earlier(left)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn wait_for_transactions(
    db: &DatabaseConnection,
    task: &dyn Shown,
    within: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<usize> {
    let waiting = |count| format!("waiting for {}", began_earlier(count));
    let bar = progress::spinner("waiting")?;
    // Without a terminal there is no spinner, so one line is printed.
    let mut printed = std::io::stderr().is_terminal();
    let left = pause::until_idle(db, task, within, stop, |count| {
        if !std::mem::replace(&mut printed, true) {
            remark(&format!("ops: {}", waiting(count)));
        }
        bar.set_message(waiting(count));
        bar.tick();
    });
    let left = left.await?;
    bar.finish_and_clear();
    Ok(left)
}

fn began_earlier(count: usize) -> String {
    format!("{count} transaction{} that began earlier", if count == 1 { "" } else { "s" })
}

pub async fn resume(command: ResumeCommand, actor: &Operator, settings: &Settings) -> anyhow::Result<()> {
    let ResumeCommand { kind: task, why: Why { why }, json: Json { json } } = command;
    let (db, kind) = (with_schema(settings).await?, task.kind());
    let resumed = pause::resume(&db, actor, task, &why).await?;
    let document = json!({ "kind": kind, "changed": matches!(resumed, ResumeOutcome::Now(_)) });
    answer(
        json,
        &document,
        &match resumed {
            ResumeOutcome::Now(pause) => {
                format!("{kind} is resumed; it was paused since {} by {}", moment(pause.since), one_line(&pause.by))
            }
            ResumeOutcome::Before(None) => format!("{kind} was never paused; nothing was changed"),
            ResumeOutcome::Before(Some((at, by))) => {
                format!("{kind} is not paused: it was resumed at {} by {}; nothing was changed", moment(at), one_line(&by))
            }
        },
    )
}
