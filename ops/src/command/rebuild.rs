//! `ops rebuild`: publishes every pending wake-up again, from the rows.

use anyhow::bail;
use ops::{
    actor::{Operator, id_of},
    progress, rebuild,
};
use serde_json::json;
use shared::{
    broker::Broker,
    database::{active_policy::Governed, canaries},
    domain::{task::Shown, tasks},
    process::cli::remark,
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{answer, governed, kind, options::Json};

#[derive(clap::Args)]
#[command(after_help = "Safe to run on a healthy broker: the second wake-up of a row finds nothing to do. \
                        After an interruption the same command continues where it stopped.\n\n\
                        Examples:\n  ops rebuild --dry-run\n  ops rebuild --kind confirm-receipt")]
pub struct RebuildCommand {
    /// Rebuild only this kind
    #[arg(long, value_parser = kind)]
    pub kind: Option<&'static str>,
    /// Count the pending wake-ups, and publish none
    #[arg(long)]
    pub dry_run: bool,
    /// Publish at most this many subjects per second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Start from the beginning, even if an earlier rebuild was interrupted
    #[arg(long, conflicts_with = "resume")]
    pub restart: bool,
    /// Continue an earlier rebuild, even if it was interrupted more than an hour ago
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub json: Json,
}

pub async fn rebuild(
    command: RebuildCommand,
    settings: &Settings,
    actor: &Operator,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let RebuildCommand { kind: only, dry_run, rate, restart, resume, json: Json { json } } = command;
    let Governed { db, settings } = governed(settings).await?;
    let settings = &settings;
    let chosen: Vec<&dyn Shown> = tasks::ALL.iter().copied().filter(|task| only.is_none_or(|kind| kind == task.kind())).collect();
    let (mut lines, mut document) = (Vec::new(), Vec::new());
    if dry_run {
        for task in chosen {
            let all = rebuild::pending(&db, settings, task, None).await?;
            let stands = rebuild::interrupted(&db, settings, task).await?;
            let note = stands.map(|stands| format!("; a rebuild was interrupted at {} after {}", stands.at, stands.cursor));
            lines.push(format!("{}: {all} pending{}", task.kind(), note.unwrap_or_default()));
            document.push(json!({ "kind": task.kind(), "pending": all }));
        }
        return answer(json, &document.into(), &lines.join("\n"));
    }
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    broker.declare(&settings.topology()).await?;
    // Canaries of a lost broker would count as overdue until the longest rung has passed.
    canaries::withdraw_all(&db, &settings.topology()).await?;
    for task in chosen {
        if restart {
            rebuild::forget(&db, settings, task).await?;
        }
        let stands = rebuild::interrupted(&db, settings, task).await?;
        if let Some(stands) = &stands {
            if !stands.lately && !resume {
                bail!(
                    "{}: a rebuild was interrupted at {}, more than an hour ago; the broker may have been lost again since then. \
                     Pass --restart to start from the beginning, or --resume to continue",
                    task.kind(),
                    stands.at
                );
            }
            remark(&format!("ops: {}: continuing the rebuild that was interrupted at {}", task.kind(), stands.at));
        }
        let bar = match rebuild::pending(&db, settings, task, stands.map(|stands| stands.cursor)).await {
            Ok(pending) => progress::bar(task.kind(), pending)?,
            // Only the bar needs the count.
            Err(_) => progress::spinner(task.kind())?,
        };
        let rebuilt = rebuild::rebuild(&db, &broker, settings, task, rate, stop, |count| bar.inc(count as u64)).await;
        // Before `finish`, which moves the bar to its end.
        let made = bar.position();
        bar.finish();
        // Also after an interruption, because some wake-ups are published.
        let changed = json!({ "kind": task.kind(), "scheduled": made, "whole": matches!(rebuilt, Ok(true)) });
        let recorded = actor.record(&db, "wakeups.rebuilt", ("kind", id_of(task.kind())), None, changed).await;
        let whole = rebuilt?;
        recorded?;
        if !whole {
            bail!("{}: interrupted after {made} subjects; run the command again to continue", task.kind());
        }
        lines.push(format!("{}: {made} subjects scheduled again", task.kind()));
        document.push(json!({ "kind": task.kind(), "scheduled": made }));
    }
    broker.close().await;
    answer(json, &document.into(), &lines.join("\n"))
}
