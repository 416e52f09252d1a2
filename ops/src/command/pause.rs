//! `ops pause` and `ops resume`: a kind across the fleet.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::bail;
use ops::{
    actor::Actor,
    pause::{self, Paused, Resumed},
    shown::{moment, one_line},
};
use sea_orm::DatabaseConnection;
use serde_json::json;
use shared::{domain::task::Shown, process::cli::say, settings::Settings};
use tokio_util::sync::CancellationToken;

use super::{
    answer,
    options::{Json, Why},
    progress, task, with_schema,
};

#[derive(clap::Args)]
#[command(after_help = "\
Once it has returned with 0, nothing more of this kind is applied until it is resumed, whatever becomes of any process. What falls \
due waits, spends no attempt and is not buried. The other kinds go on.

Workers leave the kind's lanes within some seconds; `ops status`, their /readyz and the metric kyhan.paused tell of it.

Exit codes: 0 it is paused; 1 it could not be, or a transaction that began before still goes on, which is said: run it again to wait on; \
2 wrong use.

Examples:
  ops pause collect-arrears --why 'fees of November are wrong'
  ops pause confirm-receipt --why 'carrier on strike' --as lan --wait 600")]
pub struct Pause {
    /// The kind
    #[arg(value_parser = task)]
    pub kind: &'static dyn Shown,
    #[command(flatten)]
    pub why: Why,
    /// How long to wait for what is being applied at this moment
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
    #[command(flatten)]
    pub json: Json,
}

#[derive(clap::Args)]
#[command(after_help = "Workers come back within some seconds, and apply what has fallen due meanwhile.\n\n\
                        Example:\n  ops resume collect-arrears --why 'fees are put right'")]
pub struct Resume {
    /// The kind
    #[arg(value_parser = task)]
    pub kind: &'static dyn Shown,
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub json: Json,
}

pub async fn pause(command: Pause, actor: &Actor, settings: &Settings, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let Pause { kind: task, why: Why { why }, wait, json: Json { json } } = command;
    let (db, kind) = (with_schema(settings).await?, task.kind());
    let (pause, changed) = match pause::pause(&db, actor, task, &why).await? {
        Paused::Now(pause) => (pause, true),
        Paused::Before(pause) => (pause, false),
    };
    if !changed && !json {
        let (since, by, why) = (moment(pause.since), one_line(&pause.by), one_line(&pause.why));
        say(&format!("{kind} is paused already, since {since} by {by}: {why}; nothing was changed"));
    }
    // Also where it was paused already: whoever paused it may not have waited to the end.
    match nobody_applies(&db, task, Duration::from_secs(wait), stop).await? {
        0 => answer(
            json,
            &json!({ "paused": pause, "changed": changed }),
            &format!("{kind} is paused: nothing more of it is applied until `ops resume {kind}`"),
        )?,
        left => bail!("{kind} is paused, but {} may still be committed; run it again to wait on", began_before(left)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn nobody_applies(
    db: &DatabaseConnection,
    task: &dyn Shown,
    within: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<usize> {
    let waiting = |count| format!("waiting for {}", began_before(count));
    let bar = progress::spinner("waiting")?;
    // Where no bar is drawn, a line says it once.
    let mut said = std::io::stderr().is_terminal();
    let left = pause::until_nobody_applies(db, task, within, stop, |count| {
        if !std::mem::replace(&mut said, true) {
            eprintln!("ops: {}", waiting(count));
        }
        bar.set_message(waiting(count));
        bar.tick();
    });
    let left = left.await?;
    bar.finish_and_clear();
    Ok(left)
}

fn began_before(count: usize) -> String {
    format!("{count} transaction{} that began before", if count == 1 { "" } else { "s" })
}

pub async fn resume(command: Resume, actor: &Actor, settings: &Settings) -> anyhow::Result<()> {
    let Resume { kind: task, why: Why { why }, json: Json { json } } = command;
    let (db, kind) = (with_schema(settings).await?, task.kind());
    let resumed = pause::resume(&db, actor, task, &why).await?;
    let document = json!({ "kind": kind, "changed": matches!(resumed, Resumed::Now(_)) });
    answer(
        json,
        &document,
        &match resumed {
            Resumed::Now(pause) => {
                format!("{kind} is resumed; it was paused since {} by {}", moment(pause.since), one_line(&pause.by))
            }
            Resumed::Before(None) => format!("{kind} is not paused, and never was; nothing was changed"),
            Resumed::Before(Some((at, by))) => {
                format!("{kind} is not paused since {}, when {} resumed it; nothing was changed", moment(at), one_line(&by))
            }
        },
    )
}
