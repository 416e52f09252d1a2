//! `ops explain`: the history of one order or cart item, and what falls due next.

use std::process::ExitCode;

use anyhow::bail;
use chrono::{DateTime, TimeDelta, Utc};
use ops::{
    explain::{self, CountedEvent, Outlook, Subject, WakeupPlace},
    shown::moment,
};
use shared::{database::active_policy::Governed, process::cli::say, settings::Settings};

use super::{governed, options::Json, table};

#[derive(clap::Args)]
#[command(after_help = "\
This reads only the database and changes nothing. A queue cannot be searched for one wake-up, so the place where it waits is computed from \
the row. It is right for a wake-up that was published when it should have been.

Rechecks that found nothing to do, and attempts that are retried, leave no row. Find them in the traces by the id of the wake-up. Free \
text of customers, staff and the order system is not shown.

Examples:
  ops explain BG-2026-001234
  ops explain 7f0c2b1e-5a34-4b7e-9c55-1f2a3b4c5d6e --json | jq '.subjects[].kinds[] | {kind, due_at, wakeup}'

Exit codes: 0 success; 1 nothing has this code or id, or a server is away; 2 usage error.")]
pub struct ExplainCommand {
    /// An order's code, an order's id or a cart item's id
    #[arg(value_name = "CODE|ID")]
    pub name: String,
    #[command(flatten)]
    pub json: Json,
}

pub async fn explain(command: ExplainCommand, settings: &Settings) -> anyhow::Result<ExitCode> {
    let Governed { db, settings } = governed(settings).await?;
    let settings = &settings;
    let Some(explanation) = explain::explain(&db, settings, &command.name).await? else {
        bail!(
            "no order has the code or id {:?}, no cart item has this id, and no record names it; \
             codes are compared with case and spaces",
            command.name
        );
    };
    if command.json.json {
        say(&serde_json::to_string_pretty(&explanation)?);
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("at {}", moment(explanation.at)));
    for subject in &explanation.subjects {
        show(subject, explanation.at);
    }
    say("\nRechecks that found nothing to do, and attempts that are retried, leave no row; see the traces.");
    Ok(ExitCode::SUCCESS)
}

fn show(subject: &Subject, now: DateTime<Utc>) {
    let code = subject.code.as_ref().map_or(String::new(), |code| format!(" {}", code.escape_debug()));
    match subject.table {
        Some(table) => say(&format!("\n{table}{code}  {}", subject.id)),
        None => say(&format!("\n{}  the row no longer exists; these are its records", subject.id)),
    }
    let mut timeline = table(["at", "what", "detail"]);
    for entry in &subject.timeline {
        timeline.add_row([moment(entry.at), entry.what.clone(), entry.detail.to_string()]);
    }
    say(&format!("\nWhat happened\n{timeline}\n\nWhat falls due"));
    for kind in &subject.kinds {
        show_kind(kind, now);
    }
}

/// No policy waits that long.
const FAR: TimeDelta = TimeDelta::days(3_652);

fn show_kind(kind: &Outlook, now: DateTime<Utc>) {
    say(&format!("  {}  {}", kind.kind, kind.due_at.map_or("not due".to_owned(), |due_at| format!("due {}", moment(due_at)))));
    if kind.due_at.is_some_and(|due_at| due_at - now > FAR) {
        say("    more than ten years from now: check the moment from which it counts");
    }
    for counted in kind.counts.iter().filter(|counted| counted.moment.is_some() || counted.own_line) {
        say(&format!("    {}", line(counted, kind.candidate)));
    }
    if let Some(since) = kind.released_since {
        say(&format!("    due at once by a policy active since {}, and released gradually", moment(since)));
    }
    match &kind.wakeup {
        WakeupPlace::None { why } => say(&format!("    wake-up: none: {why}")),
        WakeupPlace::Outbox { event } => say(&format!("    wake-up: not published yet: {event} waits in the outbox for a relay")),
        WakeupPlace::Rung { queue, until, then } => {
            say(&format!("    wake-up: waits in {queue} until {}", moment(*until)));
            for hops in then {
                let times = if hops.times > 1 { format!(", {} times", hops.times) } else { String::new() };
                say(&format!("             then in {}{times}", hops.queue));
            }
        }
        WakeupPlace::Lane { queue, swept_from } => say(&format!(
            "    wake-up: due: in the lane {queue}, with a worker, or between two attempts; from {} on the sweep publishes it again",
            moment(*swept_from)
        )),
    }
    for letter in &kind.open_letters {
        say(&format!("    dead letter {letter} is open: see `ops dead show {letter}`"));
    }
    if let Some(paused) = &kind.paused {
        let why = paused.why.escape_debug();
        say(&format!("    PAUSED since {} by {}: {why}; the kind is not applied", moment(paused.at), paused.by.escape_debug()));
    }
}

/// The event that a kind counts from, the duration, and, for a candidate, when it happened.
fn line(counted: &CountedEvent, candidate: bool) -> String {
    let after = counted.after.as_ref().map_or("not used by the policy".to_owned(), |after| format!("+ {after}"));
    let own = if counted.own_line || counted.after.is_none() { "" } else { " (no line of its own, so the longest of this kind)" };
    let at = match counted.moment {
        Some(at) => format!(": {}", moment(at)),
        None if candidate => ": has not happened".to_owned(),
        None => String::new(),
    };
    let decides = if counted.decides { ", which decides" } else { "" };
    format!("counts from {} {after}{own}{at}{decides}", counted.event)
}
