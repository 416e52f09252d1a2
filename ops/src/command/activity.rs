//! `ops activity`: verifies the sealed records of activity.

use std::process::ExitCode;

use clap::Subcommand;
use ops::{
    activity::{self, Fault, Head, Removal},
    progress,
    shown::moment,
};
use serde_json::json;
use shared::{process::cli::say, settings::Settings};

use super::{answer, options::Json, table, with_schema};

#[derive(Subcommand)]
pub enum ActivityCommand {
    /// Compare every row of activity with its seal, and list the ranges that differ
    #[command(after_help = "\
Workers seal activity about once a minute: they hash ranges of rows into a chain. This command finds rows that were changed, removed or \
inserted after that. An administrator of the database could rewrite the whole chain. To detect that, keep a seal outside the database and \
pass it with --seal: the last line of this command shows the newest seal, and each worker logs the seals that it makes.

A login that may read the rows (kyhan_order_system, or an administrator) hashes them in this command's own statement. kyhan_ops calls a \
function of the database instead.

With retention.mode \"delete\" old ranges are removed, and listed as removed. In any other mode a removed range is a fault.

Exit codes: 0 every range matches its seal; 1 a range differs, or a server is away; 2 usage error.

Examples:
  ops activity verify
  ops activity verify --seal 1042:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    Verify {
        /// A seal that you kept: it must be part of the chain
        #[arg(long, value_name = "NUMBER:HASH")]
        seal: Option<Head>,
        /// Accept removed ranges, because retention.mode was "delete" before
        #[arg(long)]
        removed_before: bool,
        #[command(flatten)]
        json: Json,
    },
}

pub async fn activity(command: ActivityCommand, settings: &Settings) -> anyhow::Result<ExitCode> {
    let ActivityCommand::Verify { seal, removed_before, json: Json { json } } = command;
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
        "{} rows in {} seals match; {} ranges were removed because of their age; {} rows are not sealed yet",
        verified.rows, verified.seals, verified.removed, verified.unsealed
    ));
    for Removal { first_seal, last_seal, first_id, last_id } in &verified.removals {
        say(&format!("removed: seals {first_seal} to {last_seal}, activity ids {first_id} to {last_id}"));
    }
    if !verified.anchored {
        say("not compared with an earlier seal; see --seal");
    }
    if let Some(head) = &verified.head {
        say(&format!("newest seal {head}"));
    }
    Ok(code)
}
