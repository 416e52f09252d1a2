//! `ops audit`: what is off between rows, ledger and broker. Exit code 1 when something is.

use std::process::ExitCode;

use anyhow::Context;
use comfy_table::Table;
use ops::{
    actor::Actor,
    audit::{self, Counted, Report, Verdict},
};
use sea_orm::DatabaseConnection;
use shared::{
    broker::Broker,
    database::active_policy::Governed,
    process::{cli::say, redact::told},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{WrongUse, governed, options::Json, table};

#[derive(clap::Args)]
#[command(after_help = "\
It only looks: nothing that it looks at is written, and no message is taken. That it was made, by whom and what it came to is recorded \
in activity, for `ops status`. All counts of the database are of one moment.

  off   something is wrong
  note  nothing is wrong, and somebody may have something to do, like replaying dead letters
  ok    as it should be, or only told

The broker counts messages, not the subjects that they name. A message names at most topology.pack_max of them, so what is shown as \
missing is certain, and there may be more: that the sweep finds once it is overdue. Where pack_max was lowered while wake-ups wait, \
they may name more than it says. A count of 0 just after RabbitMQ was started means nothing, as its queues are still reading their \
logs: wait a minute and look again.

Exit codes: 0 nothing is off, 1 something is off or could not be looked at.")]
pub struct Audit {
    #[command(flatten)]
    pub json: Json,
}

pub async fn audit(
    command: Audit,
    actor: Result<Actor, WrongUse>,
    settings: &Settings,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let Governed { db, settings } = governed(settings).await?;
    let settings = &settings;
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    let report = stop.run_until_cancelled(audit::audit(&db, &broker, settings)).await.context("interrupted")??;
    broker.close().await;
    if command.json.json {
        say(&serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    // What was found holds all the same, say on a standby, where nothing can be written.
    if let Err(error) = remember(&db, actor, &report).await {
        eprintln!("ops: what the audit came to is not recorded: {}", told(&*error));
    }
    Ok(if report.off == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn remember(db: &DatabaseConnection, actor: Result<Actor, WrongUse>, report: &Report) -> anyhow::Result<()> {
    Ok(audit::remember(db, &actor?, report).await?)
}

fn show(report: &Report) {
    say(&format!("at {}", report.at.to_rfc3339()));
    let mut due = table(["kind", "due later", "due, on its way", "overdue, no effect", "verdict"]);
    for one in &report.due {
        due.add_row([one.kind, &one.pending.to_string(), &one.due.to_string(), &one.overdue.to_string(), one.verdict.name()]);
    }
    section("What is due", &due);
    section("Effects and their records", &counted(&report.records));
    section("The ledger", &counted(&report.ledger));

    let mut queues = table(["queue", "role", "messages", "consumers", "verdict"]);
    let count = |count: Option<u32>, none: &str| count.map_or(none.to_owned(), |count| count.to_string());
    for one in &report.queues {
        let (messages, consumers) = (count(one.messages, "missing"), count(one.consumers, "-"));
        queues.add_row([&one.queue, one.role, &messages, &consumers, one.verdict.name()]);
    }
    section("Queues", &queues);

    let mut rungs = table(["rung", "messages", "of them canaries", "candidates that would wait there now"]);
    for one in &report.rungs {
        rungs.add_row([one.rung.clone(), one.messages.to_string(), one.canaries.to_string(), one.candidates.to_string()]);
    }
    section("Rungs", &rungs);

    let mut wakeups = table(["what waits", "count", "verdict"]);
    let told = report.wakeups;
    let perhaps = if told.perhaps_missing > told.missing { Verdict::Note } else { Verdict::Ok };
    let stale = if told.verdict == Verdict::Note && told.perhaps_missing == 0 { Verdict::Note } else { Verdict::Ok };
    let missing = if told.missing > 0 { Verdict::Off } else { Verdict::Ok };
    for (what, count, verdict) in [
        ("subjects that need a wake-up", told.subjects, Verdict::Ok),
        ("of them, whose event is still in the outbox", told.in_outbox, Verdict::Ok),
        ("messages in rungs, lanes and quarantine", told.messages, stale),
        ("of them canaries, which wake nothing", told.canaries, Verdict::Ok),
        ("subjects without a wake-up, if those canaries are there", told.perhaps_missing, perhaps),
        ("subjects that certainly have no wake-up", told.missing, missing),
    ] {
        wakeups.add_row([what, &count.to_string(), verdict.name()]);
    }
    section("Wake-ups", &wakeups);
    section("Events", &counted(&report.events));

    say("");
    for kind in &report.paused {
        say(&format!("{kind} is paused, so what is due of it waits; see `ops status`."));
    }
    if report.due.iter().any(|due| due.overdue > 0 && !report.paused.iter().any(|kind| kind == due.kind)) {
        say("The sweep wakes what is overdue, if a worker runs; what failed for good is in `ops dead list`.");
    }
    if told.perhaps_missing > 0 {
        say("`ops rebuild` makes missing wake-ups again; what has one already comes to no harm.");
    }
    if report.queues.iter().any(|queue| queue.messages.is_none()) {
        say("`ops topology declare` makes missing queues; what was in them, `ops rebuild`.");
    }
    say(&match report.off {
        0 => "nothing is off".to_owned(),
        1 => "1 check is off".to_owned(),
        off => format!("{off} checks are off"),
    });
}

fn counted(all: &[Counted]) -> Table {
    let mut table = table(["kind", "what is counted", "count", "verdict"]);
    for one in all {
        table.add_row([one.kind.unwrap_or("-"), one.check, &one.count.to_string(), one.verdict.name()]);
    }
    table
}

fn section(title: &str, table: &Table) {
    say(&format!("\n{title}\n{table}"));
}
