//! `ops dead show`: explains one dead letter. Texts from outside are escaped. Of the row it shows only what the task lets operators see.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use lapin::types::{AMQPValue, FieldTable};
use ops::{
    dead::{
        IdPrefix, Letter, Stands, letter, subject,
        trial::{About, Replays, Trial, Verdict},
    },
    shown,
};
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};
use shared::{
    domain::{money::Dong, task::Shown, tasks},
    process::cli::say,
    settings::Settings,
};

use crate::command::options::Json;

/// Most bytes of the message that are shown. `--bytes` writes all of them.
const BYTES_SHOWN: usize = 4_096;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ops dead show 5f0c1d2e
  ops dead show 5f0c1d2e --bytes message.bin
  ops dead show 5f0c1d2e-… --json

In JSON the original bytes are base64, and times are RFC 3339 in UTC.

Exit codes: 0 success; 1 failure, or the dead letter does not exist; 2 usage error.")]
pub struct Show {
    /// The id of the dead letter, or at least its first eight digits
    id: IdPrefix,
    /// Write all of the original bytes to this file
    #[arg(long, value_name = "FILE")]
    bytes: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

pub async fn show(command: Show, db: &DatabaseConnection, settings: &Settings) -> anyhow::Result<ExitCode> {
    let id = letter::named(db, &command.id).await?;
    let Some(letter) = letter::by_id(db, id).await? else { bail!("dead letter {id} no longer exists") };
    let Some(stands) = subject::stands(db, &settings.policy, id).await? else { bail!("dead letter {id} no longer exists") };
    let task = letter.summary.kind.as_deref().and_then(tasks::find);
    let row = match (task, letter.summary.subject_id) {
        (Some(task), Some(id)) => subject::seen(db, task, id).await?,
        _ => None,
    };
    let replay = what_a_replay_would_do(db, settings, &letter).await?;
    if command.json.json {
        say(&serde_json::to_string_pretty(&json!({ "letter": letter, "stands": stands, "row": row, "replay": replay }))?);
    } else {
        say(&explained(&letter, task, stands, row.as_ref(), &replay)?);
    }
    if let Some(path) = command.bytes {
        std::fs::write(&path, &letter.body).with_context(|| path.display().to_string())?;
        if !command.json.json {
            say(&format!("\n{} bytes written to {}", letter.body.len(), path.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a replay of this dead letter would do now, in one sentence. It is tried in a transaction that is rolled back.
async fn what_a_replay_would_do(db: &DatabaseConnection, settings: &Settings, letter: &Letter) -> anyhow::Result<String> {
    let summary = &letter.summary;
    if summary.state != "open" {
        return Ok("would do nothing, because only open dead letters are replayed".to_owned());
    }
    let about = About { letter: summary.id, kind: summary.kind.clone(), subject: summary.subject_id, wakeup: letter.wakeup_id };
    let Trial { verdict, why, amount, customers } = Replays::new(settings).would(db, &about).await?;
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    Ok(match verdict {
        Verdict::Applies if amount > 0 => {
            format!("would apply it and take {} from the wallets of {} customers{why}", Dong(amount), customers.len())
        }
        Verdict::Applies => format!("would apply it; no money would move{why}"),
        Verdict::Moot => format!("would do nothing and close the dead letter{why}"),
        Verdict::Waits => format!("would do nothing yet{why}"),
        Verdict::Fails => format!("would fail again{why}"),
        Verdict::Unreadable => format!("would do nothing{why}; see `ops dead repair`"),
    })
}

fn explained(
    letter: &Letter,
    task: Option<&dyn Shown>,
    stands: Stands,
    row: Option<&Value>,
    replay: &str,
) -> Result<String, std::fmt::Error> {
    let summary = &letter.summary;
    let mut text = String::new();
    line(&mut text, "letter", &summary.id)?;
    line(&mut text, "state", &summary.state)?;
    if let (Some(by), Some(why)) = (&summary.decided_by, &summary.decided_why) {
        let at = shown::moment_or_dash(summary.decided_at);
        line(&mut text, "decided", &format!("{at}, by {}: {}", shown::text(by), shown::text(why)))?;
    }
    if let Some(id) = letter.repaired_from {
        line(&mut text, "repaired from", &id)?;
    }
    if let Some(id) = letter.repaired_as {
        line(&mut text, "repaired as", &id)?;
    }
    for plan in &letter.plans {
        let result = plan.result.as_deref().map_or("not run".to_owned(), |result| format!("result: {result}"));
        let (id, state, verdict) = (plan.plan_id, &plan.plan_state, &plan.verdict);
        line(&mut text, "plan", &format!("{id} ({state}): planned: {verdict}; {result} {}", shown::moment_or_dash(plan.at)))?;
    }

    heading(&mut text, "Task")?;
    line(&mut text, "kind", &shown::text_or_dash(summary.kind.as_deref()))?;
    line(&mut text, "subject", &summary.subject_id.map_or("-".to_owned(), |id| id.to_string()))?;
    line(&mut text, "wake-up", &letter.wakeup_id.map_or("-".to_owned(), |id| id.to_string()))?;

    heading(&mut text, "What went wrong")?;
    line(&mut text, "reason", &shown::text(&summary.reason))?;
    line(&mut text, "cause", &shown::text(&summary.cause))?;
    line(&mut text, "group", &summary.group)?;
    line(&mut text, "attempts", &summary.attempts)?;
    line(&mut text, "first failed", &shown::moment_or_dash(summary.first_failed_at))?;
    line(&mut text, "last failed", &shown::moment(summary.last_failed_at))?;
    line(&mut text, "stored", &shown::moment(letter.stored_at))?;
    line(&mut text, "worker", &shown::text_or_dash(letter.worker.as_deref()))?;
    line(&mut text, "trace", &shown::text_or_dash(letter.trace_id.as_deref()))?;

    heading(&mut text, "The row now")?;
    if let (Some(task), Some(row)) = (task, row) {
        line(&mut text, "table", &task.table())?;
        fields(&mut text, row, "values", |value| value.as_str().map_or_else(|| value.to_string(), shown::text))?;
        fields(&mut text, row, "moments", moment)?;
        fields(&mut text, row, "money", |value| value.as_i64().map_or_else(|| value.to_string(), |dong| Dong(dong).to_string()))?;
    }
    line(&mut text, "stands", &stands.standing.name())?;
    line(&mut text, "due", &shown::moment_or_dash(stands.due_at))?;
    line(&mut text, "a replay", &shown::text(replay))?;

    heading(&mut text, "The message")?;
    line(&mut text, "queue", &shown::text(&letter.queue))?;
    line(&mut text, "routing key", &shown::text(&letter.routing_key))?;
    headers(&mut text, &letter.headers)?;
    line(&mut text, "bytes", &letter.body.len())?;
    writeln!(text, "{}", letter.body[..letter.body.len().min(BYTES_SHOWN)].escape_ascii())?;
    if letter.body.len() > BYTES_SHOWN {
        writeln!(text, "… {} more; --bytes FILE writes all of them", letter.body.len() - BYTES_SHOWN)?;
    }
    Ok(text)
}

fn heading(text: &mut String, heading: &str) -> std::fmt::Result {
    writeln!(text, "\n{heading}")
}

fn line(text: &mut String, name: &str, value: &impl std::fmt::Display) -> std::fmt::Result {
    writeln!(text, "{name:<20}{value}")
}

/// One of the objects of [`shared::domain::task::Shown::shown`].
fn fields(text: &mut String, row: &Value, part: &str, shown: impl Fn(&Value) -> String) -> std::fmt::Result {
    for (name, value) in row.get(part).and_then(Value::as_object).into_iter().flatten() {
        line(text, name, &if value.is_null() { "-".to_owned() } else { shown(value) })?;
    }
    Ok(())
}

/// A time from PostgreSQL; `infinity` and the like are shown unchanged.
fn moment(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    text.parse::<DateTime<Utc>>().map_or_else(|_| text.to_owned(), shown::moment)
}

fn headers(text: &mut String, headers: &[u8]) -> std::fmt::Result {
    if let Ok(table) = serde_json::from_slice::<FieldTable>(headers) {
        for (name, value) in table.inner() {
            line(text, "header", &format!("{}: {}", shown::text(name.as_str()), header(value)))?;
        }
    } else {
        line(text, "headers", &headers.escape_ascii())?;
    }
    Ok(())
}

/// A header's value, as text if possible.
fn header(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => {
            let bytes = text.as_bytes();
            str::from_utf8(bytes).map_or_else(|_| bytes.escape_ascii().to_string(), shown::text)
        }
        AMQPValue::ShortString(text) => shown::text(text.as_str()),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().escape_ascii().to_string(),
        AMQPValue::FieldArray(values) => {
            format!("[{}]", values.as_slice().iter().map(header).collect::<Vec<_>>().join(", "))
        }
        AMQPValue::FieldTable(table) => {
            let entries = table.inner().iter().map(|(name, value)| format!("{}: {}", shown::text(name.as_str()), header(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}
