//! The walk-through of docs/operations.md: a constraint makes a thousand charges fail, and operators find, examine, plan, approve,
//! replay and audit them. It prints the page from the output of the built binaries.

use std::{
    path::Path,
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use sea_orm::ConnectionTrait;
use shared::{database::statement, process::cli::say};
use tests::{
    fleet,
    sandbox::{Sandbox, eventually},
};

/// The published policy, with an earlier retry.
const SETTINGS: &str = r#"
    [topology]
    ladder = ["100ms", "1s", "5s", "30s", "5m", "1h", "6h", "1d", "7d", "30d"]
    [worker]
    retry = ["100ms"]
    attempts_max = 3
"#;

const FOLDER: &str = "target/walkthrough";
const ORDERS: i64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    match walk().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("walkthrough: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn walk() -> Result<()> {
    std::fs::create_dir_all(FOLDER)?;
    let sandbox = Sandbox::new("walk", SETTINGS, &[]).await?;
    let walked = story(&sandbox).await;
    sandbox.remove().await?;
    walked
}

async fn story(sandbox: &Sandbox) -> Result<()> {
    sandbox.declare().await?;
    print(INTRODUCTION);
    for sql in [
        "INSERT INTO customers (id, full_name, phone, email, address)
         SELECT gen_random_uuid(), 'Khách ' || n, '09', 'k@example.vn', 'Hà Nội' FROM generate_series(1, $1::bigint) AS n",
        "INSERT INTO orders (id, code, customer_id, status, delivering_since, shipping_due)
         SELECT gen_random_uuid(), 'BG-' || to_char(row_number() OVER (), 'FM00000'), id, 'delivering', now() - interval '2 days', 35000
           FROM customers LIMIT $1",
        "ALTER TABLE accounts ADD CONSTRAINT wallets_are_not_negative CHECK (kind <> 'wallet' OR balance >= 0)",
        "INSERT INTO outbox (event_type, subject_id, occurred_at) SELECT 'order.shipped', id, delivering_since FROM orders LIMIT $1",
    ] {
        let values = if sql.contains("$1") { vec![ORDERS.into()] } else { Vec::new() };
        sandbox.db.execute_raw(statement(sql, values)).await.with_context(|| sql.to_owned())?;
    }
    let log = Path::new(FOLDER).join("fleet.log");
    let relay = fleet::start(fleet::command("producer", &sandbox.env, ["relay"])?, &log)?;
    let worker = fleet::start(fleet::command("worker", &sandbox.env, [""; 0])?, &log)?;
    eventually("the letters are stored", PATIENCE, async || {
        Ok(ask::<i64>(sandbox, "SELECT count(*) FROM dead_letters WHERE state = 'open'").await? == ORDERS)
    })
    .await;

    print("## Something is wrong");
    shown(sandbox, &["status"]).await?;
    shown(sandbox, &["dead", "list", "--groups"]).await?;
    let groups = said(sandbox, &["dead", "list", "--groups", "--json"]).await?;
    let group = first_group(&groups).with_context(|| groups.clone())?;
    let letter: String = ask(sandbox, "SELECT left(id::text, 8) FROM dead_letters ORDER BY last_failed_at, id LIMIT 1").await?;
    print("One of the letters, with what a replay would do now:");
    shown(sandbox, &["dead", "show", &letter]).await?;

    print("## Pause the kind, fix the cause, plan the replay\n\nAfter this command returns, no further charges are made:");
    shown(
        sandbox,
        &["--as", "lan", "pause", "collect-arrears", "--why", "wallets may be negative by the policy; a constraint forbids it"],
    )
    .await?;
    print("```sql\nALTER TABLE accounts DROP CONSTRAINT wallets_are_not_negative;\n```");
    sandbox.db.execute_unprepared("ALTER TABLE accounts DROP CONSTRAINT wallets_are_not_negative").await?;
    shown(sandbox, &["--as", "lan", "resume", "collect-arrears", "--why", "the constraint is gone"]).await?;
    shown(sandbox, &["--as", "lan", "dead", "replay", "--group", &group, "--plan", "--why", "the constraint is gone"]).await?;
    let plan: String = ask(sandbox, "SELECT id::text FROM replay_plans").await?;

    print("## A second operator approves the plan");
    shown(sandbox, &["--as", "lan", "dead", "replay", "--run", &plan, "--yes"]).await?;
    shown(sandbox, &["--as", "lan", "dead", "approve", &plan, "--yes"]).await?;
    shown(sandbox, &["--as", "hoa", "dead", "approve", &plan, "--yes", "--why", "checked three orders by hand"]).await?;

    print("## Run the plan, first with a limit on the amount");
    let run = ["--as", "lan", "dead", "replay", "--run", &plan, "--yes", "--rate", "500"];
    shown(sandbox, &[&run[..], &["--amount-max", "1.000.000"]].concat()).await?;
    shown(sandbox, &run).await?;
    print("The same command again:");
    shown(sandbox, &run).await?;
    shown(sandbox, &["dead", "plans", &plan]).await?;

    print("## Audit the result");
    shown(sandbox, &["audit"]).await?;
    shown(sandbox, &["dead", "list"]).await?;
    shown(sandbox, &["explain", "BG-00001"]).await?;
    for mut process in [worker, relay] {
        fleet::terminate(&process).await?;
        process.wait().await?;
    }
    Ok(())
}

const INTRODUCTION: &str = "\
# Operations: dead letters, a walk-through

`make walkthrough` generates this page: it runs every command below on a temporary database and
shows what the built binaries printed.

A thousand orders were shipped two days ago, and each still owes 35.000 ₫ for shipping. A wrong
constraint on the wallets makes every charge fail. After the last attempt, each charge becomes a
dead letter.

One setting differs from the defaults: failed effects are retried after 100 ms. The sweep runs with
its default settings. If an effect moves money and its dead letter is open, the sweep makes no new
wake-up for it.
";

async fn ask<T: sea_orm::TryGetable>(sandbox: &Sandbox, sql: &str) -> Result<T> {
    let row = sandbox.db.query_one_raw(statement(sql, [])).await?.context("no row")?;
    row.try_get_by_index(0).with_context(|| sql.to_owned())
}

fn first_group(groups: &str) -> Option<String> {
    let groups: serde_json::Value = serde_json::from_str(groups).ok()?;
    let list = groups.get("groups").unwrap_or(&groups);
    Some(list.get(0)?.get("group")?.as_str()?.to_owned())
}

/// Runs a command and returns its output and exit code.
async fn output(sandbox: &Sandbox, arguments: &[&str]) -> Result<(String, i32)> {
    let mut command = fleet::command("ops", &sandbox.env, arguments)?;
    command.env("COLUMNS", "160").env("NO_COLOR", "1").stdin(Stdio::null());
    let done = command.output().await?;
    let said = [done.stdout, done.stderr].concat();
    Ok((String::from_utf8(said)?, done.status.code().unwrap_or(-1)))
}

async fn said(sandbox: &Sandbox, arguments: &[&str]) -> Result<String> {
    Ok(output(sandbox, arguments).await?.0)
}

/// Prints a part of the page and an empty line.
fn print(part: &str) {
    say(part);
    say("");
}

/// Runs a command and prints it with its output as a code block.
async fn shown(sandbox: &Sandbox, arguments: &[&str]) -> Result<()> {
    let typed = arguments.iter().map(|one| if one.contains([' ', ';']) { format!("'{one}'") } else { (*one).to_owned() });
    let (said, code) = output(sandbox, arguments).await?;
    let said = said.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    let code = if code == 0 { String::new() } else { format!("(exit code {code})\n") };
    print(&format!("```console\n$ ops {}\n{said}\n{code}```", typed.collect::<Vec<_>>().join(" ")));
    Ok(())
}
