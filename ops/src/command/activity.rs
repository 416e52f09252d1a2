//! `ops activity`: the sealed record of what was done.

use std::process::ExitCode;

use clap::Subcommand;
use ops::{
    activity::{self, Fault, Head, Removal},
    shown::moment,
};
use serde_json::json;
use shared::{process::cli::say, settings::Settings};

use super::{answer, options::Json, progress, table, with_schema};

#[derive(Subcommand)]
pub enum Activity {
    /// Compare every row of activity with what was sealed, and say which ranges differ
    #[command(after_help = "\
Workers seal activity about once a minute: ranges of rows are hashed into a chain. A row that somebody changed, removed or slipped in \
afterwards is found here, whoever it was. Whoever may do everything could also make the whole chain anew; that is found with a seal \
noted down outside of the database: the last line tells the newest one, and each worker's log tells those that it makes.

With a login that may read the rows (of kyhan_order_system, or an administrator's) they are hashed by this program's own statement; \
kyhan_ops asks a function of the database to do it.

In the retention.mode \"delete\" old ranges are removed, and told as such. In any other mode a removed range is a fault.

Exit codes: 0 all is as it was sealed; 1 something is not, or a server is away; 2 wrong use.

Examples:
  ops activity verify
  ops activity verify --seal 1042:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    Verify {
        /// A seal that was noted down: it has to be part of the chain
        #[arg(long, value_name = "NUMBER:HASH")]
        seal: Option<Head>,
        /// Old ranges were removed while retention.mode was "delete", though it is not any more
        #[arg(long)]
        removed_before: bool,
        #[command(flatten)]
        json: Json,
    },
}

pub async fn activity(command: Activity, settings: &Settings) -> anyhow::Result<ExitCode> {
    let Activity::Verify { seal, removed_before, json: Json { json } } = command;
    let db = with_schema(settings).await?;
    let bar = progress::bar("seals", 0)?;
    let verified =
        activity::verify(&db, seal.as_ref(), removed_before || settings.retention.delete_after.is_some(), |done, all| {
            bar.set_length(all);
            bar.set_position(done);
        })
        .await?;
    bar.finish_and_clear();
    let code = if verified.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        answer(true, &json!(verified), "")?;
        return Ok(code);
    }
    if !verified.faults.is_empty() {
        let mut table = table(["seal", "ids of activity", "sealed at", "what is wrong"]);
        for Fault { seal, first_id, last_id, sealed_at, what } in &verified.faults {
            let ids = first_id.zip(*last_id).map_or("-".to_owned(), |(first, last)| format!("{first} to {last}"));
            let number = seal.map_or("-".to_owned(), |seal| seal.to_string());
            table.add_row([number, ids, sealed_at.map_or("-".to_owned(), moment), what.clone()]);
        }
        say(&table.to_string());
    }
    say(&format!(
        "{} rows in {} seals are as they were sealed; {} ranges were removed because of their age; {} rows are not sealed yet",
        verified.rows, verified.seals, verified.removed, verified.unsealed
    ));
    for Removal { first_seal, last_seal, first_id, last_id } in &verified.removals {
        say(&format!("removed: seals {first_seal} to {last_seal}, ids {first_id} to {last_id} of activity"));
    }
    if !verified.anchored {
        say("not compared with a seal that was noted down earlier: see --seal");
    }
    if let Some(head) = &verified.head {
        say(&format!("newest seal {head}"));
    }
    Ok(code)
}
