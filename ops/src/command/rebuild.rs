//! `ops rebuild`: every pending wake-up again from the rows.

use anyhow::bail;
use ops::{
    actor::{Actor, id_of},
    rebuild,
};
use serde_json::json;
use shared::{
    broker::Broker,
    database::{active_policy::Governed, canaries},
    domain::{task::Shown, tasks},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{answer, governed, kind, options::Json, progress};

#[derive(clap::Args)]
#[command(after_help = "Running it on a healthy broker does no harm. Interrupted, it goes on where it stopped.\n\n\
                        Examples:\n  ops rebuild --dry-run\n  ops rebuild --kind confirm-receipt")]
pub struct Rebuild {
    /// Only this kind
    #[arg(long, value_parser = kind)]
    pub kind: Option<&'static str>,
    /// Only count what is pending
    #[arg(long)]
    pub dry_run: bool,
    /// Most subjects a second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Begin at the beginning, even where an earlier rebuild was interrupted
    #[arg(long, conflicts_with = "resume")]
    pub restart: bool,
    /// Go on after an earlier rebuild, even where that was interrupted over an hour ago
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub json: Json,
}

pub async fn rebuild(command: Rebuild, settings: &Settings, actor: &Actor, stop: &CancellationToken) -> anyhow::Result<()> {
    let Rebuild { kind: only, dry_run, rate, restart, resume, json: Json { json } } = command;
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
    // Those of a broker that was lost would be missed for as long as its longest rung.
    canaries::withdraw_all(&db, &settings.topology()).await?;
    for task in chosen {
        if restart {
            rebuild::forget(&db, settings, task).await?;
        }
        let stands = rebuild::interrupted(&db, settings, task).await?;
        if let Some(stands) = &stands {
            if !stands.lately && !resume {
                bail!(
                    "{}: a rebuild was interrupted at {}, and the broker may have been lost again since; \
                     --restart begins anew, --resume goes on after it",
                    task.kind(),
                    stands.at
                );
            }
            eprintln!("ops: {}: going on after the rebuild that was interrupted at {}", task.kind(), stands.at);
        }
        let bar = match rebuild::pending(&db, settings, task, stands.map(|stands| stands.cursor)).await {
            Ok(pending) => progress::bar(task.kind(), pending)?,
            // Only the bar wants the count.
            Err(_) => progress::spinner(task.kind())?,
        };
        let rebuilt = rebuild::rebuild(&db, &broker, settings, task, rate, stop, |count| bar.inc(count as u64)).await;
        // To finish it puts it at its end, wherever that was expected.
        let made = bar.position();
        bar.finish();
        // Also of what ended too early: its wake-ups are made.
        let changed = json!({ "kind": task.kind(), "scheduled": made, "whole": matches!(rebuilt, Ok(true)) });
        let recorded = actor.record(&db, "wakeups.rebuilt", ("kind", id_of(task.kind())), None, changed).await;
        let whole = rebuilt?;
        recorded?;
        if !whole {
            bail!("{}: interrupted after {made} subjects; run it again to go on", task.kind());
        }
        lines.push(format!("{}: {made} subjects scheduled again", task.kind()));
        document.push(json!({ "kind": task.kind(), "scheduled": made }));
    }
    broker.close().await;
    answer(json, &document.into(), &lines.join("\n"))
}
