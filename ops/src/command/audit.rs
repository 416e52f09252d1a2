//! `ops audit`: compares rows, ledger and broker. Exits 1 if anything is off.

use std::process::ExitCode;

use anyhow::Context;
use comfy_table::Table;
use ops::{
    actor::Operator,
    audit::{self, AuditReport, CheckCount, CheckVerdict},
};
use sea_orm::DatabaseConnection;
use shared::{
    broker::Broker,
    database::active_policy::Governed,
    process::{
        cli::{remark, say},
        redact,
    },
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{UsageError, governed, options::Json, table};

#[derive(clap::Args)]
#[command(after_help = "\
The audit changes nothing that it examines and takes no message. It counts the database in one snapshot. It records its result and the \
operator's name in activity, where `ops status` finds them.

  off   a fault
  note  not a fault, but an operator may have to act, for instance replay dead letters
  ok    as expected, or for information

The broker counts messages, and a message names up to topology.pack_max subjects. So the wake-ups shown as missing are certainly missing, \
and more may be. The sweep finds those once they are overdue. If pack_max was lowered while wake-ups wait, messages may name more \
subjects than that. Just after a restart RabbitMQ reports 0 messages for queues that still read their logs: wait a minute and run the \
audit again.

Exit codes: 0 nothing is off; 1 something is off, or could not be checked; 2 usage error.")]
pub struct AuditCommand {
    #[command(flatten)]
    pub json: Json,
}

pub async fn audit(
    command: AuditCommand,
    actor: Result<Operator, UsageError>,
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
    // The result is valid even if it cannot be recorded, for instance on a read-only standby.
    if let Err(error) = remember(&db, actor, &report).await {
        remark(&format!("ops: the result is not recorded: {}", redact::redacted(&*error)));
    }
    Ok(if report.off == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn remember(db: &DatabaseConnection, actor: Result<Operator, UsageError>, report: &AuditReport) -> anyhow::Result<()> {
    Ok(audit::remember(db, &actor?, report).await?)
}

fn show(report: &AuditReport) {
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
    let counts = report.wakeups;
    let perhaps = if counts.perhaps_missing > counts.missing { CheckVerdict::Note } else { CheckVerdict::Ok };
    let stale =
        if counts.verdict == CheckVerdict::Note && counts.perhaps_missing == 0 { CheckVerdict::Note } else { CheckVerdict::Ok };
    let missing = if counts.missing > 0 { CheckVerdict::Off } else { CheckVerdict::Ok };
    for (what, count, verdict) in [
        ("subjects that need a wake-up", counts.subjects, CheckVerdict::Ok),
        ("of these, with their event still in the outbox", counts.in_outbox, CheckVerdict::Ok),
        ("messages in rungs, lanes and quarantine", counts.messages, stale),
        ("of these, canaries, which wake nothing", counts.canaries, CheckVerdict::Ok),
        ("subjects without a wake-up, if no canary is lost", counts.perhaps_missing, perhaps),
        ("subjects that certainly have no wake-up", counts.missing, missing),
    ] {
        wakeups.add_row([what, &count.to_string(), verdict.name()]);
    }
    section("Wake-ups", &wakeups);
    section("Events", &counted(&report.events));

    say("");
    for kind in &report.paused {
        say(&format!("{kind} is paused, so its due rows wait; see `ops status`."));
    }
    if report.due.iter().any(|due| due.overdue > 0 && !report.paused.iter().any(|kind| kind == due.kind)) {
        say("If a worker runs, the sweep wakes overdue rows. `ops dead list` shows what failed for good.");
    }
    if counts.perhaps_missing > 0 {
        say("`ops rebuild` publishes missing wake-ups. A second wake-up of a row is harmless.");
    }
    if report.queues.iter().any(|queue| queue.messages.is_none()) {
        say("`ops topology declare` creates missing queues, and `ops rebuild` the wake-ups that they held.");
    }
    say(&match report.off {
        0 => "nothing is off".to_owned(),
        1 => "1 check is off".to_owned(),
        off => format!("{off} checks are off"),
    });
}

fn counted(all: &[CheckCount]) -> Table {
    let mut table = table(["kind", "what is counted", "count", "verdict"]);
    for one in all {
        table.add_row([one.kind.unwrap_or("-"), one.check, &one.count.to_string(), one.verdict.name()]);
    }
    table
}

fn section(title: &str, table: &Table) {
    say(&format!("\n{title}\n{table}"));
}
