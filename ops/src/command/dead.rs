//! `ops dead`: dead letters listed, shown and replayed.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use lapin::types::AMQPValue;
use ops::dead::{Held, Reader, choose};
use shared::{cli::say, settings::Settings};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::table;

#[derive(Subcommand)]
pub enum Dead {
    /// List the letters, oldest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one letter whole: why it died, its original headers and bytes
    Show {
        /// The letter's id
        id: Uuid,
        /// Write the original bytes, all of them, into this file
        #[arg(long, value_name = "FILE")]
        bytes: Option<PathBuf>,
    },
    /// Wake again what letters are about; each leaves the queue only once that is confirmed
    #[command(after_help = "Examples:\n  ops dead replay 5f0c…\n  ops dead replay --all")]
    Replay {
        /// The letters' ids
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<Uuid>,
        /// Every letter that lies there now
        #[arg(long)]
        all: bool,
    },
}

pub async fn dead(command: Dead, settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let reader = Reader::open(settings).await?;
    let done = match command {
        Dead::List { limit } => list(&reader, limit).await,
        Dead::Show { id, bytes } => show(&reader, id, bytes).await,
        Dead::Replay { ids, .. } => replay(&reader, ids.into_iter().collect(), shutdown).await,
    };
    reader.close().await;
    done
}

async fn list(reader: &Reader, limit: usize) -> anyhow::Result<()> {
    const CAUSE_SHOWN: usize = 100;
    let ready = reader.ready().await?;
    let held = reader.take(limit).await?;
    if held.is_empty() {
        say("no dead letters");
        return Ok(());
    }
    let mut table = table(["id", "died at", "reason", "kind", "subject", "attempts", "cause"]);
    for Held { letter, .. } in &held {
        table.add_row([
            letter.id.to_string(),
            letter.died_at.map_or("-".into(), |at| at.to_rfc3339()),
            letter.reason.escape_debug().to_string(),
            letter.kind.as_deref().unwrap_or("-").escape_debug().to_string(),
            letter.subject.map_or("-".into(), |id| id.to_string()),
            letter.attempts.to_string(),
            letter.cause.escape_debug().take(CAUSE_SHOWN).collect(),
        ]);
    }
    say(&table.to_string());
    if held.len() < ready.min(limit) {
        say(&format!("{} are in another reader's hands; list again once it is done", ready.min(limit) - held.len()));
    }
    if ready > held.len() {
        say(&format!("{} more; see --limit", ready - held.len()));
    }
    Ok(())
}

async fn show(reader: &Reader, id: Uuid, bytes: Option<PathBuf>) -> anyhow::Result<()> {
    const BYTES_SHOWN: usize = 4_096;
    let all = reader.take(usize::MAX).await?;
    let Some(Held { letter, queue, .. }) = all.iter().find(|held| held.letter.id == id) else {
        bail!("no dead letter has the id {id}, or another reader holds it right now; see `ops dead list`");
    };
    let optional = |value: Option<String>| value.unwrap_or("-".into());
    say(&format!("id           {}", letter.id));
    say(&format!("lies in      {queue}"));
    say(&format!("died at      {}", optional(letter.died_at.map(|at| at.to_rfc3339()))));
    say(&format!("reason       {}", letter.reason));
    say(&format!("attempts     {}", letter.attempts));
    say(&format!("kind         {}", optional(letter.kind.clone())));
    say(&format!("subject      {}", optional(letter.subject.map(|id| id.to_string()))));
    say(&format!("wake-up      {}", optional(letter.wakeup.map(|id| id.to_string()))));
    // What came from outside must not steer the terminal that shows it.
    say(&format!("routing key  {}", letter.routing_key.escape_debug()));
    say(&format!("cause        {}", letter.cause.escape_debug()));
    for (name, value) in letter.headers.inner() {
        say(&format!("header       {}: {}", name.as_str().escape_debug(), shown(value)));
    }
    say(&format!("bytes        {}", letter.body.len()));
    say(&letter.body[..letter.body.len().min(BYTES_SHOWN)].escape_ascii().to_string());
    if letter.body.len() > BYTES_SHOWN {
        say(&format!("… {} more; --bytes FILE writes them all", letter.body.len() - BYTES_SHOWN));
    }
    if let Some(path) = bytes {
        std::fs::write(&path, &letter.body).with_context(|| path.display().to_string())?;
        say(&format!("written to {}", path.display()));
    }
    Ok(())
}

/// Replays these letters, or every one that lies there now when there are none.
async fn replay(reader: &Reader, ids: BTreeSet<Uuid>, shutdown: CancellationToken) -> anyhow::Result<()> {
    /// So many letters are held at a time when all are replayed.
    const HELD: usize = 1_000;
    let mut done = 0;
    if ids.is_empty() {
        // No more than lie there now: one that dies again meanwhile comes back to the end of the queue.
        let mut left = reader.ready().await?;
        while left > 0 && !shutdown.is_cancelled() {
            let held = reader.take(left.min(HELD)).await?;
            if held.is_empty() {
                break;
            }
            left -= held.len();
            reader.replay(&held, |count| done += count).await?;
        }
    } else {
        let (chosen, missing) = choose(reader.take(usize::MAX).await?, &ids);
        if !missing.is_empty() {
            let missing = missing.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ");
            bail!("no dead letter has the id {missing}; nothing is replayed");
        }
        reader.replay(&chosen, |count| done += count).await?;
    }
    say(&format!("{done} letters replayed"));
    Ok(())
}

/// A header's value, as text where it is one.
fn shown(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string().escape_debug().to_string(),
        AMQPValue::ShortString(text) => text.as_str().escape_debug().to_string(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().escape_ascii().to_string(),
        AMQPValue::FieldArray(values) => {
            format!("[{}]", values.as_slice().iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        AMQPValue::FieldTable(table) => {
            let entries = table.inner().iter().map(|(name, value)| format!("{}: {}", name.as_str().escape_debug(), shown(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}
