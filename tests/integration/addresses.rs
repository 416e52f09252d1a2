//! What is connected to is what the settings name: over IPv6 too, and with the login that a file contains now.

use std::{net::SocketAddr, path::Path};

use sea_orm::ConnectionTrait;
use shared::database::roles::DatabaseRole;
use tests::{
    fleet,
    sandbox::{eventually, url_as_role},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use url::Url;

use crate::{
    admin::{Process, readiness, until_ready},
    broker_users::{pair, sandbox},
    harness::{Harness, QUICK, SOON, on_harness, with_harness},
};

/// Forwards connections from a port of the IPv6 loopback to the server of a URL; returns the URL with that port.
async fn over_ipv6(url: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    let server = (url.host_str().expect("a host").to_owned(), url.port().expect("a port"));
    let listener = TcpListener::bind("[::1]:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    url.set_host(Some("[::1]"))
        .and_then(|()| url.set_port(Some(port)).map_err(|()| url::ParseError::InvalidPort))
        .expect("a host");
    url.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_reached_over_ipv6() {
    with_harness(QUICK, async |harness| {
        let mut env = harness.sandbox.env.clone();
        for name in ["KYHAN_DATABASE_URL", "KYHAN_AMQP_URL"] {
            let url = over_ipv6(&env[name]).await;
            env.insert(name.into(), url);
        }
        let worker = Process::start("worker", &[], &env);
        until_ready(worker.address().await).await;
        let order = harness.delivering().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        let queues = fleet::output(fleet::command("ops", &env, ["topology", "show"]).expect("built")).await.expect("shown");
        assert!(queues.contains("due.confirm-receipt"), "{queues}");
    })
    .await;
}

/// A URL with another user and password, written to a file.
fn write_login(file: &Path, url: &str, user: &str, password: &str) {
    let mut url = Url::parse(url).expect("a URL");
    url.set_username(user).and_then(|()| url.set_password(Some(password))).expect("a host");
    std::fs::write(file, format!("{url}\n")).expect("a file");
}

async fn receives_one_more(harness: &Harness, address: SocketAddr) {
    let received = "SELECT count(*) FROM orders WHERE status = 'received'";
    let before: i64 = harness.ask(received).await;
    let order = harness.delivering().await;
    harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
    harness.until(&format!("SELECT ({received}) = {}", before + 1)).await;
    eventually("it is ready", SOON, async || Ok(readiness(address)?.0 == 200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_rotated_in_its_file_is_used_at_the_next_connect() {
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        harness.sandbox.declare().await.expect("declared");
        let (env, name) = (&harness.sandbox.env, harness.sandbox.database().to_owned());
        let files = ["database", "amqp"].map(|server| std::env::temp_dir().join(format!("{name}-{server}")));
        let role = Url::parse(&url_as_role(&env["KYHAN_DATABASE_URL"], DatabaseRole::Worker).expect("a URL")).expect("a URL");
        pair.rabbitmqctl(&["add_user", &name, "first"]).await.expect("a user");
        pair.rabbitmqctl(&["set_permissions", &name, ".*", ".*", ".*"]).await.expect("permissions");
        let set = async |password: &str| {
            let sql = format!("ALTER ROLE {} PASSWORD '{password}'", role.username());
            harness.sandbox.db.execute_unprepared(&sql).await.expect("a password");
            write_login(&files[0], &env["KYHAN_DATABASE_URL"], role.username(), password);
            write_login(&files[1], &env["KYHAN_AMQP_URL"], &name, password);
        };
        set("first").await;
        let mut command = fleet::command("worker", env, [""; 0]).expect("built");
        command.env_remove("KYHAN_DATABASE_URL").env_remove("KYHAN_AMQP_URL");
        command.env("KYHAN_DATABASE_URL_FILE", &files[0]).env("KYHAN_AMQP_URL_FILE", &files[1]);
        let worker = Process::of(command);
        let address = worker.address().await;
        until_ready(address).await;
        receives_one_more(harness, address).await;

        set("second").await;
        pair.rabbitmqctl(&["change_password", &name, "second"]).await.expect("another password");
        // It fails if one of them has just closed by itself.
        let close = async || Ok(pair.rabbitmqctl(&["close_all_user_connections", &name, "rotated"]).await.is_ok());
        eventually("all are closed", SOON, close).await;
        let ended =
            format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{}'", role.username());
        assert!(harness.ask::<i64>(&ended).await > 0);
        receives_one_more(harness, address).await;
        worker.stop().await;
        pair.rabbitmqctl(&["delete_user", &name]).await.expect("deleted");
        for file in files {
            std::fs::remove_file(file).expect("removed");
        }
    })
    .await;
}
