//! Logins without the privileges of their program: the program names the login, what it lacks and the command that mends it.

use std::time::Duration;

use shared::database::active_policy::LOOK_EVERY;
use tests::{
    fleet,
    sandbox::{always, eventually},
};
use tokio::process::Command;

use crate::{
    admin::{Process, readiness, until_ready, why},
    harness::{Harness, QUICK, SOON, with_harness},
};

/// Long enough for several looks of a worker's watch and retries of its batch.
const SEVERAL_LOOKS: Duration = LOOK_EVERY.saturating_mul(2).saturating_add(Duration::from_secs(1));

/// A new login without a role, and its URL.
async fn stranger(harness: &Harness) -> (String, String) {
    let name = format!("{}_stranger", harness.sandbox.database());
    for sql in [
        format!("CREATE ROLE {name} LOGIN PASSWORD 'x'"),
        format!("GRANT CONNECT ON DATABASE {} TO {name}", harness.sandbox.database()),
        // As after a manual grant.
        format!("GRANT SELECT ON kyhan_migrations TO {name}"),
    ] {
        harness.run(&sql, []).await;
    }
    let mut url = url::Url::parse(&harness.sandbox.env["KYHAN_DATABASE_URL"]).expect("a URL");
    url.set_username(&name).and_then(|()| url.set_password(Some("x"))).expect("a host");
    (name, url.into())
}

/// A program with a login's URL instead of its role's.
fn command(harness: &Harness, program: &str, arguments: &[&str], url: &str) -> Command {
    let mut command = fleet::command(program, &harness.sandbox.env, arguments).expect("built");
    command.env("KYHAN_DATABASE_URL", url);
    command
}

/// Removes it again: a role belongs to the whole server.
async fn forget(harness: &Harness, name: &str) {
    for sql in [format!("DROP OWNED BY {name}"), format!("DROP ROLE {name}")] {
        harness.run(&sql, []).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_rights_ends_a_process_that_names_them_and_the_command_that_grants_them() {
    with_harness(QUICK, async |harness| {
        let (name, url) = stranger(harness).await;
        for (program, arguments, role, right) in [
            ("worker", &[][..], "kyhan_worker", "SELECT on policies"),
            ("producer", &["relay"], "kyhan_producer", "SELECT on policies"),
        ] {
            let mut command = command(harness, program, arguments, &url);
            let done = tokio::time::timeout(SOON, command.output()).await.expect("it ends").expect("run");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(78), "{program}: {said}");
            for part in [&format!("the login {name} lacks "), right, &format!("GRANT {role} TO {name}")] {
                assert!(said.contains(part), "{program}: no {part:?} in {said}");
            }
        }
        // The same login, once granted.
        harness.run(&format!("GRANT kyhan_worker, kyhan_producer TO {name}"), []).await;
        for (program, arguments) in [("worker", &[][..]), ("producer", &["relay"])] {
            let process = Process::of(command(harness, program, arguments, &url));
            until_ready(process.address().await).await;
            process.stop().await;
        }
        forget(harness, &name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_under_a_worker_spends_no_attempt_and_is_named_once() {
    with_harness(QUICK, async |harness| {
        let worker = Process::start("worker", &[], &harness.sandbox.env);
        let address = worker.address().await;
        until_ready(address).await;
        harness.run("REVOKE UPDATE (status) ON orders FROM kyhan_worker", []).await;
        let order = harness.delivering().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        let lacks = "lacks UPDATE of status on orders; run as an administrator: `ops roles install`";
        eventually("it names the right", SOON, async || {
            let (_, report) = readiness(address)?;
            Ok(why(&report, "postgresql").is_some_and(|why| why.contains(lacks)))
        })
        .await;
        always("it is named once, and as nothing else", SEVERAL_LOOKS, async || {
            let said = worker.said()?;
            let named = said.lines().filter(|line| line.contains("lacks UPDATE of status")).count();
            Ok(named == 1 && !said.contains("the connection to PostgreSQL broke") && !said.contains("will be retried"))
        })
        .await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM dead_letters").await, 0);

        harness.run("GRANT UPDATE (status) ON orders TO kyhan_worker", []).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        until_ready(address).await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_under_a_relay_is_named_in_its_log_and_on_readyz() {
    with_harness(QUICK, async |harness| {
        let relay = Process::start("producer", &["relay"], &harness.sandbox.env);
        let address = relay.address().await;
        until_ready(address).await;
        harness.run("REVOKE DELETE ON outbox FROM kyhan_producer", []).await;
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        let lacks = "lacks DELETE on outbox; run as an administrator: `ops roles install`";
        eventually("it names the right", SOON, async || {
            let (_, report) = readiness(address)?;
            Ok(why(&report, "postgresql").is_some_and(|why| why.contains(lacks)) && relay.said()?.contains(lacks))
        })
        .await;
        harness.run("GRANT DELETE ON outbox TO kyhan_producer", []).await;
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        until_ready(address).await;
        relay.stop().await;
    })
    .await;
}
