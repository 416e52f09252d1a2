//! `ops set-aside`: events that made no sense to the relay.

use anyhow::bail;
use clap::Subcommand;
use ops::{actor::Actor, set_aside};
use serde_json::json;
use shared::{cli::say, settings::Settings};

use super::{Json, WrongUse, answer, table, with_schema};

#[derive(Subcommand)]
pub enum SetAside {
    /// List the newest
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u64,
        #[command(flatten)]
        json: Json,
    },
    /// Put them back into the outbox
    Retry {
        /// Their ids
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<i64>,
        /// All of them
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        json: Json,
    },
}

pub async fn aside(command: SetAside, settings: &Settings, actor: Result<Actor, WrongUse>) -> anyhow::Result<()> {
    const NAME_SHOWN: usize = 80;
    let db = with_schema(settings).await?;
    match command {
        SetAside::List { limit, json: Json { json } } => {
            let (found, all) = set_aside::list(&db, limit).await?;
            if json {
                return answer(true, &json!({ "total": all, "events": found }), "");
            }
            if found.is_empty() {
                say("nothing is set aside");
                return Ok(());
            }
            let mut table = table(["id", "set aside at", "event", "subject", "occurred at", "reason"]);
            for one in &found {
                table.add_row([
                    one.id.to_string(),
                    one.set_aside_at.clone(),
                    one.event_type.escape_debug().take(NAME_SHOWN).collect(),
                    one.subject.to_string(),
                    one.occurred_at.clone(),
                    one.reason.clone(),
                ]);
            }
            say(&table.to_string());
            let more = all - i64::try_from(found.len()).unwrap_or_default();
            if more > 0 {
                say(&format!("{more} more; see --limit"));
            }
        }
        SetAside::Retry { ids, json: Json { json }, .. } => {
            let back = set_aside::retry(&db, &actor?, &ids).await?;
            if back < ids.len() as u64 {
                bail!("{back} events are back in the outbox; the other ids are not set aside: see `ops set-aside list`");
            }
            answer(json, &json!({ "retried": back }), &format!("{back} events are back in the outbox"))?;
        }
    }
    Ok(())
}
