//! `ops retention`: holds orders as they are, and makes hidden orders visible.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use ops::{
    actor::Operator,
    retention::{self, ChangeOutcome},
    shown::{moment, one_line},
};
use serde_json::{Value, json};
use shared::{process::cli::say, settings::Settings};

use super::{
    UsageError, answer,
    options::{Json, Why},
    table, with_schema,
};

#[derive(Subcommand)]
pub enum RetentionCommand {
    /// Hold an order: it is neither hidden nor deleted until it is released
    #[command(after_help = "Example:\n  ops retention hold BG-2026-001234 --why 'khiếu nại, đang kiểm tra'")]
    Hold(OrderArguments),
    /// Release a held order
    Release(OrderArguments),
    /// Make a hidden order visible again, for at least six months
    Unhide(OrderArguments),
    /// List the held orders
    List(Json),
}

#[derive(clap::Args)]
pub struct OrderArguments {
    /// The order's code or id
    #[arg(value_name = "CODE|ID")]
    pub order: String,
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub json: Json,
}

pub async fn retention(
    command: RetentionCommand,
    settings: &Settings,
    actor: Result<Operator, UsageError>,
) -> anyhow::Result<()> {
    let db = with_schema(settings).await?;
    match command {
        RetentionCommand::Hold(OrderArguments { order, why: Why { why }, json: Json { json } }) => {
            let (hold, changed) = match retention::hold(&db, &actor?, &order, &why).await? {
                ChangeOutcome::Now(hold) => (hold, true),
                ChangeOutcome::Before(hold) => (hold, false),
            };
            let code = hold.code.escape_debug();
            let text = if changed {
                format!("{code} is held: it is neither hidden nor deleted until `ops retention release {code}`")
            } else {
                let (since, by, why) = (moment(hold.since), one_line(&hold.by), one_line(&hold.why));
                format!("{code} is already held, since {since} by {by}: {why}; nothing was changed")
            };
            answer(json, &json!({ "hold": hold, "changed": changed }), &text)
        }
        RetentionCommand::Release(OrderArguments { order, why: Why { why }, json: Json { json } }) => {
            let (code, hold) = retention::release(&db, &actor?, &order, &why).await?;
            let code = code.escape_debug();
            let text = match &hold {
                Some(hold) => format!("{code} is released; it was held since {} by {}", moment(hold.since), one_line(&hold.by)),
                None => format!("{code} is not held; nothing was changed"),
            };
            answer(json, &json!({ "hold": hold, "changed": hold.is_some() }), &text)
        }
        RetentionCommand::Unhide(OrderArguments { order, why: Why { why }, json: Json { json } }) => {
            match retention::unhide(&db, &actor?, &order, &why).await? {
                ChangeOutcome::Now((code, since)) => {
                    answer(json, &unhidden(&code, since), &format!("{} is visible again", code.escape_debug()))
                }
                ChangeOutcome::Before((code, _)) => answer(
                    json,
                    &unhidden(&code, None),
                    &format!("{} is already visible; nothing was changed", code.escape_debug()),
                ),
            }
        }
        RetentionCommand::List(Json { json }) => {
            let holds = retention::holds(&db).await?;
            if json {
                return answer(true, &json!({ "holds": holds }), "");
            }
            if holds.is_empty() {
                say("no orders are held");
                return Ok(());
            }
            let mut table = table(["order", "id", "since", "by", "why"]);
            for hold in &holds {
                let code = hold.code.escape_debug().to_string();
                table.add_row([code, hold.order.to_string(), moment(hold.since), one_line(&hold.by), one_line(&hold.why)]);
            }
            say(&table.to_string());
            Ok(())
        }
    }
}

fn unhidden(code: &str, since: Option<DateTime<Utc>>) -> Value {
    json!({ "code": code, "was_hidden_at": since, "changed": since.is_some() })
}
