//! The `producer` binary: `relay` drains the outbox, `emit` schedules one event by hand.

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use clap::{CommandFactory, Parser, Subcommand};
use producer::{
    Producer,
    relay::{self, RelayError},
};
use sea_orm::ConnectionTrait;
use shared::{
    database::{
        self, Client,
        active_policy::{self, Governed},
        statement,
    },
    domain::event::{Event, EventType},
    process::cli::{self, Common, say},
    settings::Settings,
};
use uuid::Uuid;

/// Kỳ Hạn's producer: turns events of the order system into wake-ups that wait in RabbitMQ until they are due
#[derive(Parser)]
#[command(version)]
struct ProducerArguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<ProducerCommand>,
}

#[derive(Subcommand)]
enum ProducerCommand {
    /// Drain the outbox until SIGTERM; run as many as you like
    Relay,
    /// Schedule the wake-ups of one event by hand
    #[command(after_help = "Example: producer emit order.shipped 6f2c2e0e-6a3e-4d2b-9a38-3d1f0f1f8f10")]
    Emit {
        /// One of order.recorded, order.shipped, order.received, order.out_of_stock, order.fees_changed, cart.item_added
        event: EventType,
        /// The id of the order or cart item
        subject: Uuid,
        /// When the event happened, for example 2026-11-24T09:30:00+07:00 [default: now]
        #[arg(long, value_name = "TIME")]
        occurred_at: Option<DateTime<Utc>>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let ProducerArguments { common, command } = ProducerArguments::parse();
    if command.is_none() && !common.print_config {
        ProducerArguments::command()
            .error(clap::error::ErrorKind::MissingSubcommand, "a subcommand is required: `relay` or `emit`")
            .exit();
    }
    match command {
        None | Some(ProducerCommand::Relay) => {
            cli::serve("producer", &common, async |settings, health, shutdown| {
                tracing::info!(prefix = settings.naming.prefix, "relay started");
                let done = relay::run(settings, health, shutdown).await;
                Ok::<_, RelayError>(done.map_or_else(|error| cli::give_up("producer", &error), |_| ExitCode::SUCCESS))
            })
            .await
        }
        Some(ProducerCommand::Emit { event, subject, occurred_at }) => {
            cli::run("producer", &common, async |settings, _| {
                emit(settings, event, subject, occurred_at).await.map(|()| ExitCode::SUCCESS)
            })
            .await
        }
    }
}

async fn emit(settings: &Settings, event_type: EventType, subject: Uuid, at: Option<DateTime<Utc>>) -> anyhow::Result<()> {
    let db = database::connect(&settings.database, Client::Producer).await?;
    let Governed { db, settings } = active_policy::of(db, settings).await?;
    ensure!(settings.policy.number().is_some(), active_policy::NONE);
    let find = format!("SELECT 1 AS found FROM {} WHERE id = $1", event_type.table());
    if db.query_one_raw(statement(&find, [subject.into()])).await?.is_none() {
        bail!("{} has no row with the id {subject}", event_type.table());
    }
    let occurred_at = match at {
        Some(at) => at,
        None => database::now(&db).await?,
    };
    let producer = Producer::connect(&settings).await?;
    let event = Event { id: Uuid::new_v4(), event_type, subject, occurred_at };
    let beyond = producer.schedule(&[event]).await.context("the event could not be scheduled")?;
    producer.close().await;
    if !beyond.is_empty() {
        bail!("a deadline of this event lies beyond the end of the calendar; nothing was scheduled");
    }
    let mut follows =
        settings.policy.lines_on(event_type).filter_map(|line| Some((line.task, line.after.after(occurred_at)?))).peekable();
    if follows.peek().is_none() {
        say(&format!("nothing to schedule: the policy has no line on {event_type}"));
    }
    for (kind, due_at) in follows {
        say(&format!("{kind} of {subject} is due {}", due_at.to_rfc3339()));
    }
    Ok(())
}
