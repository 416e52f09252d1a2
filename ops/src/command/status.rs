//! `ops status`: the fleet on one screen.

use std::process::ExitCode;

use ops::status;
use shared::{broker::Broker, cli::say, settings::Settings};

use super::{table, with_schema};

#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 all is well, 1 something is wrong, or a server is away.")]
pub struct Status {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

pub async fn status(command: Status, settings: &Settings) -> anyhow::Result<ExitCode> {
    let db = with_schema(settings).await?;
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    let status = status::status(&db, &broker, settings).await?;
    broker.close().await;
    if command.json {
        say(&serde_json::to_string_pretty(&status)?);
    } else {
        show(&status);
    }
    Ok(if status.troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(status: &status::Status) {
    let count = |count: Option<u32>| count.map_or("missing".to_owned(), |count| count.to_string());
    let mut lanes = table(["queue", "due", "consumers"]);
    for lane in &status.lanes {
        lanes.add_row([lane.queue.clone(), count(lane.messages), count(lane.consumers)]);
    }
    let mut rungs = table(["queue", "waiting", "holds for", "head age", "overdue", "last canary late"]);
    for rung in &status.rungs {
        rungs.add_row([
            rung.queue.clone(),
            count(rung.messages),
            rung.duration.clone(),
            format!("{:.0} s", rung.head_age_s),
            format!("{:.0} s", rung.overdue_s),
            rung.late_s.map_or("-".to_owned(), |late| format!("{late:.3} s")),
        ]);
    }
    let mut kept = table(["queue", "messages"]);
    for queue in &status.kept {
        kept.add_row([queue.queue.clone(), count(queue.messages)]);
    }
    say(&format!("{lanes}\n{rungs}\n{kept}"));
    say(&format!("outbox     {} events, the oldest {:.0} s old", status.outbox.events, status.outbox.oldest_s));
    say(&format!("set aside  {} events", status.set_aside));
    if status.troubles.is_empty() {
        say("nothing is wrong");
    }
    for trouble in &status.troubles {
        say(&format!("WRONG  {trouble}"));
    }
}
