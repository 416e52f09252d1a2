//! `ops topology`: RabbitMQ's exchanges and queues.

use clap::Subcommand;
use ops::{
    actor::{Operator, id_of},
    rungs::{self, Pruned},
    shown,
};
use sea_orm::{DatabaseConnection, DbErr};
use serde_json::{Value, json};
use shared::{
    broker::Broker,
    database::{self, active_policy::Governed},
    message::topology::{Argument, Queue},
    process::{cli::remark, redact::redacted},
    settings::Settings,
};

use super::{answer, governed, options::Json, table};

#[derive(Subcommand)]
pub enum TopologyCommand {
    /// Show depth, consumers and arguments of every queue
    Show(Json),
    /// Declare missing exchanges and queues. Idempotent
    Declare(Json),
    /// Remove empty rungs that the policy no longer uses
    Prune(Json),
}

pub async fn topology(command: TopologyCommand, settings: &Settings, actor: &Operator) -> anyhow::Result<()> {
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    match command {
        TopologyCommand::Show(Json { json }) => {
            let topology = match governed(settings).await {
                Ok(governed) => governed.settings.topology(),
                // The queues can still be shown.
                Err(error) => {
                    remark(&format!("ops: {}; showing the rungs of this process's own policy", redacted(&*error)));
                    settings.topology()
                }
            };
            let mut table = table(["queue", "depth", "consumers", "bound to", "arguments"]);
            let mut document = Vec::new();
            for queue in topology.queues() {
                let seen = broker.observe(&queue.name).await?;
                let (depth, consumers) =
                    seen.map_or(("missing".into(), "-".into()), |seen| (seen.messages.to_string(), seen.consumers.to_string()));
                let bound = format!("{} {}", queue.exchange, queue.routing_key);
                let difference = if seen.is_some() { broker.difference(&queue).await? } else { None };
                document.push(json!({
                    "queue": queue.name,
                    "messages": seen.as_ref().map(|seen| seen.messages),
                    "consumers": seen.as_ref().map(|seen| seen.consumers),
                    "exchange": queue.exchange,
                    "routing_key": queue.routing_key,
                    "difference": difference.as_ref().map(|found| found.difference.clone()),
                }));
                let arguments = match difference {
                    None => arguments(&queue),
                    Some(difference) => format!("{}\ndiffers: {}", arguments(&queue), difference.difference),
                };
                table.add_row([queue.name.clone(), depth, consumers, bound, arguments]);
            }
            answer(json, &document.into(), &table.to_string())?;
        }
        TopologyCommand::Declare(Json { json }) => {
            let Governed { db, settings } = governed(settings).await?;
            let topology = settings.topology();
            broker.declare(&topology).await?;
            database::rungs::remember(&db, &topology).await?;
            let (exchanges, queues) = (topology.exchanges().len(), topology.queues().len());
            let document = json!({ "exchanges": exchanges, "queues": queues });
            record(&db, actor, "topology.declared", document.clone()).await?;
            answer(json, &document, &format!("{exchanges} exchanges and {queues} queues exist"))?;
        }
        TopologyCommand::Prune(Json { json }) => {
            let Governed { db, settings } = governed(settings).await?;
            let pruned = rungs::prune(&db, &broker, &settings.topology()).await?;
            let removed: Vec<&String> =
                pruned.iter().filter(|(_, done)| *done == Pruned::Removed).map(|(queue, _)| queue).collect();
            if !removed.is_empty() {
                record(&db, actor, "topology.pruned", json!({ "queues": removed })).await?;
            }
            let line = |(queue, done): &(String, Pruned)| match done {
                Pruned::Removed => format!("{}: removed", shown::text(queue)),
                Pruned::Gone => format!("{}: did not exist", shown::text(queue)),
                Pruned::Waiting(count) => {
                    format!("{}: still holds {count} wake-ups; prune it after they have expired", shown::text(queue))
                }
            };
            let text = match pruned.as_slice() {
                [] => "the policy uses every rung".to_owned(),
                pruned => pruned.iter().map(line).collect::<Vec<_>>().join("\n"),
            };
            let waiting = pruned.iter().filter(|(_, done)| matches!(done, Pruned::Waiting(_))).map(|(queue, _)| queue);
            answer(json, &json!({ "removed": removed, "waiting": waiting.collect::<Vec<_>>() }), &text)?;
        }
    }
    broker.close().await;
    Ok(())
}

fn arguments(queue: &Queue) -> String {
    let shown = queue.arguments.iter().map(|(name, value)| match value {
        Argument::Text(text) => format!("{name}={text}"),
        Argument::Number(number) => format!("{name}={number}"),
    });
    shown.collect::<Vec<_>>().join("\n")
}

async fn record(db: &DatabaseConnection, actor: &Operator, action: &str, changed: Value) -> Result<(), DbErr> {
    actor.record(db, action, ("topology", id_of("topology")), None, changed).await
}
