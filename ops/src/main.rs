//! `ops`: the operators' command line.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, Subcommand};
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use lapin::types::AMQPValue;
use ops::{
    dead::{Held, Reader, choose},
    rebuild, rungs, set_aside,
};
use sea_orm::DatabaseConnection;
use sea_orm_migration::{MigrationStatus, MigratorTrait};
use shared::{
    broker::Broker,
    cli::{self, Common, say},
    database::{self, Role},
    migration::{self, Migrator},
    settings::Settings,
    task::Task,
    tasks,
    topology::{Argument, Queue},
    triggers,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Kỳ Hạn's operators' door
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 2 arguments or settings that cannot hold.")]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The database's schema
    #[command(subcommand)]
    Migrate(Migrate),
    /// The optional triggers that turn changes of orders and cart_items into events
    #[command(subcommand)]
    Triggers(Triggers),
    /// RabbitMQ's exchanges and queues
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// Make every pending wake-up again from the rows, as after a broker was lost with its disk
    #[command(after_help = "Running it on a healthy broker does no harm. Interrupted, it goes on where it stopped.\n\n\
                            Examples:\n  ops rebuild --dry-run\n  ops rebuild --kind confirm-receipt")]
    Rebuild {
        /// Only this kind
        #[arg(long, value_parser = kind)]
        kind: Option<&'static str>,
        /// Only count what is pending
        #[arg(long)]
        dry_run: bool,
        /// Most subjects a second
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
        /// Begin at the beginning, even where an earlier rebuild was interrupted
        #[arg(long, conflicts_with = "resume")]
        restart: bool,
        /// Go on after an earlier rebuild, even where that was interrupted over an hour ago
        #[arg(long)]
        resume: bool,
    },
    /// Dead letters: what failed for good, or could not be understood
    #[command(subcommand)]
    Dead(Dead),
    /// Events that made no sense to the relay
    #[command(subcommand)]
    SetAside(SetAside),
}

#[derive(Subcommand)]
enum Migrate {
    /// Apply every migration that is to go
    Up,
    /// Take migrations back, newest first; their tables' data is gone
    Down {
        /// How many
        #[arg(long, default_value_t = 1)]
        steps: u32,
    },
    /// Show which migrations were applied
    Status,
}

#[derive(Subcommand)]
enum Triggers {
    /// Install them; again is no harm
    Install,
    /// Remove them; again is no harm
    Remove,
}

#[derive(Subcommand)]
enum TopologyCommand {
    /// Show every queue: depth, consumers, arguments
    Show,
    /// Declare what is missing; again is no harm
    Declare,
    /// Remove empty rungs that the policy no longer uses
    Prune,
}

#[derive(Subcommand)]
enum Dead {
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

#[derive(Subcommand)]
enum SetAside {
    /// List the newest
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Put them back into the outbox
    Retry {
        /// Their ids
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<i64>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    if command.is_none() && !common.print_config {
        Arguments::command().error(clap::error::ErrorKind::MissingSubcommand, "say what to do; see --help").exit();
    }
    cli::run("ops", &common, async |settings, shutdown| match command {
        None => Ok(ExitCode::SUCCESS),
        Some(command) => run(command, settings, shutdown).await.map(|()| ExitCode::SUCCESS),
    })
    .await
}

async fn run(command: Command, settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    match command {
        Command::Migrate(command) => migrate(command, settings).await,
        Command::Triggers(command) => {
            let db = with_schema(settings).await?;
            match command {
                Triggers::Install => {
                    triggers::install(&db).await?;
                    say("changes of orders and cart_items are events now");
                }
                Triggers::Remove => {
                    triggers::remove(&db).await?;
                    say("the triggers are removed; events come from the order system itself");
                }
            }
            Ok(())
        }
        Command::Topology(command) => topology(command, settings).await,
        Command::Rebuild { kind, dry_run, rate, restart, resume } => {
            let begin = match (restart, resume) {
                (true, _) => Begin::Anew,
                (_, true) => Begin::Resume,
                _ => Begin::Lately,
            };
            rebuilding(settings, kind, dry_run, rate, begin, &shutdown).await
        }
        Command::Dead(command) => dead(command, settings, shutdown).await,
        Command::SetAside(command) => aside(command, settings).await,
    }
}

async fn migrate(command: Migrate, settings: &Settings) -> anyhow::Result<()> {
    let db = database::connect(&settings.database, Role::Ops).await?;
    match command {
        Migrate::Up => {
            let applied = migration::up(&db).await.context("migrating up")?;
            say(&format!("{applied} migrations applied; the schema is up to date"));
        }
        Migrate::Down { steps } => {
            let taken_back = migration::down(&db, steps).await.context("migrating down")?;
            say(&format!("{taken_back} migrations taken back"));
        }
        Migrate::Status => {
            let mut table = table(["migration", "state"]);
            for migration in Migrator::get_migration_with_status(&db).await? {
                let state = match migration.status() {
                    MigrationStatus::Applied => "applied",
                    MigrationStatus::Pending => "to go",
                };
                table.add_row([migration.name(), state]);
            }
            say(&table.to_string());
        }
    }
    Ok(())
}

async fn topology(command: TopologyCommand, settings: &Settings) -> anyhow::Result<()> {
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    let topology = settings.topology();
    match command {
        TopologyCommand::Show => {
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
        TopologyCommand::Declare => {
            let db = with_schema(settings).await?;
            broker.declare(&topology).await?;
            database::remember_rungs(&db, &topology).await?;
            say(&format!("{} exchanges and {} queues are there", topology.exchanges().len(), topology.queues().len()));
        }
        TopologyCommand::Prune => {
            let db = with_schema(settings).await?;
            let pruned = rungs::prune(&db, &broker, &topology).await?;
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

/// A kind of the list of tasks.
fn kind(name: &str) -> Result<&'static str, String> {
    let known = || tasks::kinds().collect::<Vec<_>>().join(", ");
    tasks::find(name).map(Task::kind).ok_or_else(|| format!("known are {}", known()))
}

/// Where a rebuild begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Anew,
    Resume,
    /// Where one was interrupted lately.
    Lately,
}

async fn rebuilding(
    settings: &Settings,
    only: Option<&'static str>,
    dry_run: bool,
    rate: u32,
    begin: Begin,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let db = with_schema(settings).await?;
    let chosen: Vec<&dyn Task> = tasks::ALL.iter().copied().filter(|task| only.is_none_or(|kind| kind == task.kind())).collect();
    if dry_run {
        for task in chosen {
            let all = rebuild::pending(&db, settings, task, None).await?;
            let stands = rebuild::interrupted(&db, settings, task).await?;
            let note = stands.map(|stands| format!("; a rebuild was interrupted at {} after {}", stands.at, stands.cursor));
            say(&format!("{}: {all} pending{}", task.kind(), note.unwrap_or_default()));
        }
        return Ok(());
    }
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    broker.declare(&settings.topology()).await?;
    for task in chosen {
        if begin == Begin::Anew {
            rebuild::restart(&db, settings, task).await?;
        }
        let stands = rebuild::interrupted(&db, settings, task).await?;
        if let Some(stands) = &stands {
            if !stands.lately && begin != Begin::Resume {
                bail!(
                    "{}: a rebuild was interrupted at {}, and the broker may have been lost again since; \
                     --restart begins anew, --resume goes on after it",
                    task.kind(),
                    stands.at
                );
            }
            say(&format!("{}: going on after the rebuild that was interrupted at {}", task.kind(), stands.at));
        }
        let bar = match rebuild::pending(&db, settings, task, stands.map(|stands| stands.cursor)).await {
            Ok(pending) => {
                let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}")?;
                ProgressBar::new(pending).with_style(style)
            }
            // Only the bar wants the count.
            Err(_) => ProgressBar::new_spinner(),
        };
        let bar = bar.with_message(task.kind());
        let whole = rebuild::rebuild(&db, &broker, settings, task, rate, stop, |count| bar.inc(count as u64)).await?;
        bar.finish();
        let made = bar.position();
        if !whole {
            bail!("{}: interrupted after {made} subjects; run it again to go on", task.kind());
        }
        say(&format!("{}: {made} subjects scheduled again", task.kind()));
    }
    broker.close().await;
    Ok(())
}

async fn dead(command: Dead, settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
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
        let (chosen, _, missing) = choose(reader.take(usize::MAX).await?, &ids);
        if !missing.is_empty() {
            let missing = missing.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ");
            bail!("no dead letter has the id {missing}; nothing is replayed");
        }
        reader.replay(&chosen, |count| done += count).await?;
    }
    say(&format!("{done} letters replayed"));
    Ok(())
}

async fn aside(command: SetAside, settings: &Settings) -> anyhow::Result<()> {
    const NAME_SHOWN: usize = 80;
    let db = with_schema(settings).await?;
    match command {
        SetAside::List { limit } => {
            let (found, all) = set_aside::list(&db, limit).await?;
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
        SetAside::Retry { ids, .. } => {
            let back = set_aside::retry(&db, &ids).await?;
            if back < ids.len() as u64 {
                bail!("{back} events are back in the outbox; the other ids are not set aside: see `ops set-aside list`");
            }
            say(&format!("{back} events are back in the outbox"));
        }
    }
    Ok(())
}

async fn with_schema(settings: &Settings) -> anyhow::Result<DatabaseConnection> {
    let db = database::connect(&settings.database, Role::Ops).await?;
    database::require_schema(&settings.database, &db).await?;
    Ok(db)
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

fn arguments(queue: &Queue) -> String {
    let shown = queue.arguments.iter().map(|(name, value)| match value {
        Argument::Text(text) => format!("{name}={text}"),
        Argument::Number(number) => format!("{name}={number}"),
    });
    shown.collect::<Vec<_>>().join("\n")
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    // What is copied from a table must not be broken over lines, however narrow the terminal.
    for (column, name) in table.column_iter_mut().zip(header) {
        if ["id", "subject", "queue", "arguments"].contains(&name) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}
