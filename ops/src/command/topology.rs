//! `ops topology`: RabbitMQ's exchanges and queues.

use clap::Subcommand;
use ops::rungs;
use shared::{
    broker::Broker,
    cli::say,
    database,
    policy::in_force::Governed,
    settings::Settings,
    topology::{Argument, Queue},
};

use super::{governed, table};

#[derive(Subcommand)]
pub enum Topology {
    /// Show every queue: depth, consumers, arguments
    Show,
    /// Declare what is missing; again is no harm
    Declare,
    /// Remove empty rungs that the policy no longer uses
    Prune,
}

pub async fn topology(command: Topology, settings: &Settings) -> anyhow::Result<()> {
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    match command {
        Topology::Show => {
            let topology = match governed(settings).await {
                Ok(governed) => governed.settings.topology(),
                // The broker can be looked at all the same.
                Err(error) => {
                    eprintln!("ops: {error:#}; these are the rungs of this process's own policy");
                    settings.topology()
                }
            };
            let mut table = table(["queue", "depth", "consumers", "bound to", "arguments"]);
            for queue in topology.queues() {
                let seen = broker.observe(&queue.name).await?;
                let (depth, consumers) =
                    seen.map_or(("missing".into(), "-".into()), |seen| (seen.messages.to_string(), seen.consumers.to_string()));
                let bound = format!("{} {}", queue.exchange, queue.routing_key);
                let difference = if seen.is_some() { broker.difference(&queue).await? } else { None };
                let arguments = match difference {
                    None => arguments(&queue),
                    Some(difference) => format!("{}\ndiffers: {}", arguments(&queue), difference.difference),
                };
                table.add_row([queue.name.clone(), depth, consumers, bound, arguments]);
            }
            say(&table.to_string());
        }
        Topology::Declare => {
            let Governed { db, settings } = governed(settings).await?;
            let topology = settings.topology();
            broker.declare(&topology).await?;
            database::remember_rungs(&db, &topology).await?;
            say(&format!("{} exchanges and {} queues are there", topology.exchanges().len(), topology.queues().len()));
        }
        Topology::Prune => {
            let Governed { db, settings } = governed(settings).await?;
            let pruned = rungs::prune(&db, &broker, &settings.topology()).await?;
            if pruned.is_empty() {
                say("the policy uses every rung there is");
            }
            for (queue, done) in pruned {
                say(&match done {
                    rungs::Pruned::Removed => format!("{queue}: removed"),
                    rungs::Pruned::Gone => format!("{queue}: was gone already"),
                    rungs::Pruned::Waiting(count) => {
                        format!("{queue}: still holds {count} wake-ups; prune again when they have expired")
                    }
                });
            }
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
