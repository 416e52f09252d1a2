//! `ops set-aside`: events that the relay could not schedule.

use anyhow::bail;
use clap::Subcommand;
use ops::{actor::Operator, set_aside, shown};
use serde_json::json;
use shared::{process::cli::say, settings::Settings};

use super::{
    UsageError, answer,
    options::{Json, Why},
    table, with_schema,
};

#[derive(Subcommand)]
pub enum SetAsideCommand {
    /// List the newest events
    List {
        /// List at most this many
        #[arg(long, default_value_t = 100)]
        limit: u64,
        #[command(flatten)]
        json: Json,
    },
    /// Put events back into the outbox
    Retry {
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        json: Json,
    },
    /// Delete events, so that they are never scheduled
    Discard {
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(clap::Args)]
pub struct Chosen {
    /// The ids of the events
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<i64>,
    /// All events that are set aside
    #[arg(long)]
    all: bool,
}

impl Chosen {
    /// # Errors
    /// An id that is not set aside.
    fn found(&self, done: u64, what: &str) -> anyhow::Result<()> {
        if done < self.ids.len() as u64 {
            bail!("{done} events {what}; the other ids are not set aside; see `ops set-aside list`");
        }
        Ok(())
    }
}

pub async fn aside(command: SetAsideCommand, settings: &Settings, actor: Result<Operator, UsageError>) -> anyhow::Result<()> {
    const NAME_SHOWN: usize = 80;
    let db = with_schema(settings).await?;
    match command {
        SetAsideCommand::List { limit, json: Json { json } } => {
            let (found, all) = set_aside::list(&db, limit).await?;
            if json {
                return answer(true, &json!({ "total": all, "events": found }), "");
            }
            if found.is_empty() {
                say("no events are set aside");
                return Ok(());
            }
            let mut table = table(["id", "set aside at", "event", "subject", "occurred at", "reason"]);
            for one in &found {
                table.add_row([
                    one.id.to_string(),
                    one.set_aside_at.clone(),
                    shown::text(&one.event_type).chars().take(NAME_SHOWN).collect(),
                    one.subject.to_string(),
                    one.occurred_at.clone(),
                    shown::text(&one.reason),
                ]);
            }
            say(&table.to_string());
            let more = all - i64::try_from(found.len()).unwrap_or_default();
            if more > 0 {
                say(&format!("{more} more; see --limit"));
            }
        }
        SetAsideCommand::Discard { chosen, why: Why { why }, json: Json { json } } => {
            let discarded = set_aside::discard(&db, &actor?, &chosen.ids, &why).await?;
            chosen.found(discarded, "are discarded")?;
            answer(json, &json!({ "discarded": discarded }), &format!("{discarded} events are discarded"))?;
        }
        SetAsideCommand::Retry { chosen, json: Json { json } } => {
            let back = set_aside::retry(&db, &actor?, &chosen.ids).await?;
            chosen.found(back, "are back in the outbox")?;
            answer(json, &json!({ "retried": back }), &format!("{back} events are back in the outbox"))?;
        }
    }
    Ok(())
}
