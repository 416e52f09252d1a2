//! Logins with passwords, as `ops roles install` creates them. The tests start servers of their own, whose PostgreSQL requires a
//! password (SCRAM), because roles belong to the whole server.

use std::process::{Output, Stdio};

use opentelemetry_proto::tonic::collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest};
use prost::Message;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbErr};
use shared::database::{roles::DatabaseRole, statement};
use tests::{fleet, sandbox::url_as_role};

use crate::{
    broker_users::{pair, sandbox},
    harness::{Harness, on_harness},
    telemetry::{collector, messages},
};

/// With characters that are special in a URL, a shell or SQL.
const PASSWORD: &str = r#"it's "mật khẩu": \ @/%24 $1"#;

/// Runs `ops` as an administrator with these variables and the most verbose log level.
async fn ops_with(harness: &Harness, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = fleet::command("ops", &harness.sandbox.env, arguments).expect("built");
    command.envs(variables.iter().copied()).env("KYHAN_TELEMETRY_LOG", "trace");
    command.output().await.expect("run")
}

/// A URL of the sandbox's database with this login.
fn url(harness: &Harness, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(&harness.sandbox.env["KYHAN_DATABASE_URL"]).expect("a URL");
    // The crate does not escape `%`.
    url.set_username(user).and_then(|()| url.set_password(Some(&password.replace('%', "%25")))).expect("a host");
    url.into()
}

/// The current user after logging in.
async fn whoami(harness: &Harness, user: &str, password: &str) -> Result<String, DbErr> {
    let mut options = ConnectOptions::new(url(harness, user, password));
    options.max_connections(1).sqlx_logging(false);
    let db = Database::connect(options).await?;
    let row = db.query_one_raw(statement("SELECT current_user::text AS who", [])).await?;
    db.close().await?;
    row.expect("a row").try_get("", "who")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_logs_in_with_the_password_that_it_was_given_and_with_no_other() {
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        let file = std::env::temp_dir().join(format!("{}-password", harness.sandbox.database()));
        std::fs::write(&file, "from a file\n").expect("a file");
        let path = file.to_string_lossy().into_owned();
        let refused = async |user: &str, password: &str| {
            let said = whoami(harness, user, password).await.expect_err(user).to_string();
            assert!(
                said.contains("password authentication failed") || said.contains("not permitted to log in"),
                "{user}: {said}"
            );
        };
        refused("kyhan_worker", "").await;

        let given = [
            ("KYHAN_ROLES_WORKER_PASSWORD", PASSWORD),
            ("KYHAN_ROLES_OPS_PASSWORD_FILE", path.as_str()),
            ("KYHAN_ROLES_OWNER_PASSWORD", "owner's"),
        ];
        let done = ops_with(harness, &["roles", "install", "--json"], &given).await;
        assert!(done.status.success(), "{done:?}");
        let said: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
        assert_eq!(said["passwords"], serde_json::json!(["kyhan_worker", "kyhan_ops", "kyhan_owner"]), "{said}");
        for (user, password) in [("kyhan_worker", PASSWORD), ("kyhan_ops", "from a file"), ("kyhan_owner", "owner's")] {
            assert_eq!(whoami(harness, user, password).await.expect(user), user);
            refused(user, "wrong").await;
        }
        for user in ["kyhan_producer", "kyhan_order_system"] {
            refused(user, PASSWORD).await;
        }
        // The server stores no plain password, and none is in the activity, in a log or on a terminal.
        let kept = "SELECT count(*) FROM pg_authid WHERE rolname IN ('kyhan_worker', 'kyhan_ops', 'kyhan_owner')
                        AND rolpassword LIKE 'SCRAM-SHA-256$4096:%' AND NOT rolsuper AND NOT rolcreaterole AND NOT rolbypassrls";
        assert_eq!(harness.ask::<i64>(kept).await, 3);
        let record = "SELECT count(*) FROM activity WHERE action = 'roles.installed' AND strpos(detail::text, 'mật khẩu') = 0
                        AND detail -> 'changed' -> 'passwords' ? 'kyhan_worker'";
        assert_eq!(harness.ask::<i64>(record).await, 1);
        let output = [done.stdout, done.stderr].concat();
        let output = String::from_utf8_lossy(&output);
        assert!(!output.contains("mật khẩu") && !output.contains("from a file"), "{output}");

        // A worker and an operator work with them, and the owner migrates.
        harness.sandbox.declare().await.expect("declared");
        let mut command = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built");
        command.env("KYHAN_DATABASE_URL", url(harness, "kyhan_worker", PASSWORD));
        let log = file.with_extension("log");
        let mut worker = fleet::start(command, &log).expect("started");
        let order = harness.delivering().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        fleet::terminate(&worker).await.expect("SIGTERM sent");
        assert!(worker.wait().await.expect("an end").success());
        std::fs::remove_file(log).expect("removed");
        for (user, password, arguments, most) in [
            // Exits 1, because no lane has a consumer.
            ("kyhan_ops", "from a file", &["status"][..], 1),
            ("kyhan_owner", "owner's", &["migrate", "up"], 0),
            ("kyhan_owner", "owner's", &["migrate", "status"], 0),
        ] {
            let mut command = fleet::command("ops", &harness.sandbox.env, arguments).expect("built");
            command.env("KYHAN_DATABASE_URL", url(harness, user, password));
            let done = command.output().await.expect("run");
            assert!(done.status.code().is_some_and(|code| code <= most) && !done.stdout.is_empty(), "{arguments:?}: {done:?}");
        }

        // A new password replaces the old one; a role without a new password keeps its own.
        let done = ops_with(harness, &["roles", "install"], &[("KYHAN_ROLES_WORKER_PASSWORD", "another")]).await;
        assert!(done.status.success(), "{done:?}");
        refused("kyhan_worker", PASSWORD).await;
        assert_eq!(whoami(harness, "kyhan_worker", "another").await.expect("a login"), "kyhan_worker");
        assert_eq!(whoami(harness, "kyhan_ops", "from a file").await.expect("a login"), "kyhan_ops");

        for (variables, why) in [
            (&[("KYHAN_ROLES_OPS_PASSWORD_FILE", path.as_str()), ("KYHAN_ROLES_OPS_PASSWORD", "x")][..], "both set"),
            (&[("KYHAN_ROLES_OPS_PASSWORD", "")], "must not be empty"),
            (&[("KYHAN_ROLES_OPS_PASSWORD_FILE", "/nonexistent")], "KYHAN_ROLES_OPS_PASSWORD_FILE"),
        ] {
            let done = ops_with(harness, &["roles", "install"], variables).await;
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.code() == Some(2) && said.contains(why), "{said}");
        }
        assert_eq!(whoami(harness, "kyhan_ops", "from a file").await.expect("a login"), "kyhan_ops");
        std::fs::remove_file(file).expect("removed");
    })
    .await;
}

/// A password in each form in which a log could contain it.
fn ways(password: &str) -> Vec<String> {
    let mut url = url::Url::parse("amqp://host").expect("a URL");
    url.set_username("u").and_then(|()| url.set_password(Some(&password.replace('%', "%25")))).expect("a host");
    let escaped = format!("{password:?}");
    let bytes = format!("{:?}", password.as_bytes());
    vec![
        password.to_owned(),
        url.password().expect("a password").to_owned(),
        escaped.trim_matches('"').to_owned(),
        // In JSON, and in a string within JSON.
        escaped.trim_matches('"').replace('\\', "\\\\"),
        bytes.trim_matches(['[', ']']).to_owned(),
    ]
}

/// Every binary logs at the most verbose level to stderr and to a collector, with valid logins and with refused ones.
#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_logged_or_exported_at_any_level() {
    const TOKEN: &str = "collector-token-55aa";
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        harness.sandbox.declare().await.expect("declared");
        // The sandbox's logins, with unmistakable passwords.
        let env = &harness.sandbox.env;
        let admin = url::Url::parse(&env["KYHAN_DATABASE_URL"]).expect("a URL");
        let login = |role: DatabaseRole| {
            let url = url::Url::parse(&url_as_role(&env["KYHAN_DATABASE_URL"], role).expect("a URL")).expect("a URL");
            (url.username().to_owned(), format!("{role}'s \"mật khẩu\" \\ %2f"))
        };
        for role in DatabaseRole::ALL {
            let (name, password) = login(role);
            let set = format!("ALTER ROLE {name} PASSWORD '{}'", password.replace('\'', "''"));
            harness.sandbox.db.execute_unprepared(&set).await.expect("set");
        }
        let users = [&pair.users.producer, &pair.users.worker, &pair.users.ops, &env["KYHAN_AMQP_URL"]];
        let amqp = users.map(|url| url::Url::parse(url).expect("a URL").password().expect("a password").to_owned());
        let mut secrets: Vec<String> = DatabaseRole::ALL.map(|role| login(role).1).into_iter().chain(amqp).collect();
        secrets.extend([TOKEN, "given by hand 77", PASSWORD].map(ToOwned::to_owned));
        secrets.extend(admin.password().map(ToOwned::to_owned));

        let (endpoint, received) = collector().await;
        let command = |name: &str, arguments: &[&str], role: DatabaseRole, amqp: &str| {
            let mut command = fleet::command(name, env, arguments).expect("built");
            let (user, password) = login(role);
            command
                .env("KYHAN_DATABASE_URL", url(harness, &user, &password))
                .env("KYHAN_AMQP_URL", amqp)
                .env("KYHAN_TELEMETRY_LOG", "trace")
                .env("RUST_BACKTRACE", "full")
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
                .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer {TOKEN}"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command
        };
        let mut outputs = Vec::new();
        let (relay, worker) = (
            command("producer", &["relay"], DatabaseRole::Producer, &pair.users.producer).spawn().expect("started"),
            command("worker", &[], DatabaseRole::Worker, &pair.users.worker).spawn().expect("started"),
        );
        // Read their output while they run, because a full pipe would block them.
        let pids = [relay.id(), worker.id()].map(|pid| pid.expect("it runs"));
        let running = tokio::spawn(async move { futures::join!(relay.wait_with_output(), worker.wait_with_output()) });
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;

        let id = order.to_string();
        let mut emit = command("producer", &["emit", "order.shipped", &id], DatabaseRole::Producer, &pair.users.producer);
        outputs.push(emit.output().await.expect("run"));
        for arguments in [
            &["status"][..],
            &["audit"],
            &["topology", "show"],
            &["explain", &id],
            &["forecast"],
            &["dead", "list"],
            &["policy", "show"],
            &["--print-config"],
        ] {
            let done = command("ops", arguments, DatabaseRole::Ops, &pair.users.ops).output().await.expect("run");
            assert!(done.status.code().is_some_and(|code| code <= 1), "{arguments:?}: {done:?}");
            outputs.push(done);
        }
        outputs.push(command("ops", &["migrate", "up"], DatabaseRole::Owner, &pair.users.ops).output().await.expect("run"));
        let mut install = command("ops", &["roles", "install"], DatabaseRole::Owner, &pair.users.ops);
        install.env("KYHAN_DATABASE_URL", admin.as_str()).env("KYHAN_ROLES_ORDER_SYSTEM_PASSWORD", "given by hand 77");
        outputs.push(install.output().await.expect("run"));
        for pid in pids {
            tests::pair::send(pid, "TERM").await.expect("SIGTERM sent");
        }
        let (relay, worker) = running.await.expect("no panic");
        outputs.extend([relay.expect("an end"), worker.expect("an end")]);

        // Refused by PostgreSQL and by RabbitMQ.
        let (user, _) = login(DatabaseRole::Worker);
        for (database, broker) in [
            (url(harness, &user, PASSWORD), pair.users.worker.clone()),
            (url(harness, &user, &login(DatabaseRole::Worker).1), {
                let mut url = url::Url::parse(&pair.users.worker).expect("a URL");
                url.set_password(Some(&PASSWORD.replace('%', "%25"))).expect("a host");
                url.into()
            }),
        ] {
            let mut refused = command("worker", &[], DatabaseRole::Worker, &broker);
            let done = refused.env("KYHAN_DATABASE_URL", database).output().await.expect("run");
            assert_eq!(done.status.code(), Some(78), "{done:?}");
            outputs.push(done);
        }

        let logged: String =
            outputs.iter().flat_map(|done| [&done.stdout, &done.stderr]).map(|text| String::from_utf8_lossy(text)).collect();
        let logs = messages::<ExportLogsServiceRequest>(&received, "LogsService");
        let traces = messages::<ExportTraceServiceRequest>(&received, "TraceService");
        let raw: String =
            received.lock().expect("no panic").iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
        let sizes = (logged.len(), logs.iter().map(Message::encoded_len).sum::<usize>(), traces.len());
        assert!(logged.contains("DEBUG") && sizes.0 > 10_000 && sizes.1 > 10_000 && sizes.2 > 0, "{sizes:?}");
        let exported = format!("{raw}{logs:?}{traces:?}");
        for secret in secrets.iter().flat_map(|secret| ways(secret)) {
            for (place, text) in [("a log", &logged), ("an export", &exported)] {
                if let Some(at) = text.find(&secret) {
                    let around = |at: usize| text.char_indices().map(|(at, _)| at).find(|from| *from >= at).unwrap_or(text.len());
                    panic!("{secret:?} is in {place}: {}", &text[around(at.saturating_sub(300))..around(at + secret.len() + 50)]);
                }
            }
        }
    })
    .await;
}

/// As on a managed server: an administrator may create roles and owns the database, and is no superuser.
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_who_is_no_superuser_installs_everything_or_is_given_the_missing_command() {
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        for order in [["roles install", "migrate up"], ["migrate up", "roles install"]] {
            let name = format!("{}_{}", harness.sandbox.database(), order[0].len());
            let dba = format!("dba_{name}");
            for sql in [
                format!("CREATE ROLE {dba} LOGIN CREATEROLE PASSWORD 'dba'"),
                format!("CREATE ROLE {dba}_lan LOGIN PASSWORD 'lan'"),
                format!("CREATE DATABASE {name} OWNER {dba}"),
            ] {
                harness.sandbox.db.execute_unprepared(&sql).await.expect("created");
            }
            let of = |user: &str, password: &str| {
                let mut url = url::Url::parse(&url(harness, user, password)).expect("a URL");
                url.set_path(&name);
                url.to_string()
            };
            let run = async |program: &str, arguments: &str, login: &str| {
                let mut command = fleet::command(program, &harness.sandbox.env, arguments.split(' ')).expect("built");
                command.env("KYHAN_DATABASE_URL", login);
                command.output().await.expect("run")
            };
            for arguments in order {
                let done = run("ops", arguments, &of(&dba, "dba")).await;
                assert!(done.status.success(), "{order:?}: {arguments}: {done:?}");
            }
            let sql = format!("GRANT kyhan_ops TO {dba}_lan");
            harness.sandbox.db.execute_unprepared(&sql).await.expect("granted");
            let done = run("ops", "policy show", &of(&format!("{dba}_lan"), "lan")).await;
            let shown = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(done.status.success() && shown.contains("# Policy 1"), "{order:?}: {done:?}");

            // Without the right to grant the owner, the command that is missing is named.
            for sql in [format!("REVOKE kyhan_owner FROM {dba}"), format!("ALTER ROLE {dba} NOCREATEROLE")] {
                harness.sandbox.db.execute_unprepared(&sql).await.expect("revoked");
            }
            let done = run("ops", "roles install", &of(&dba, "dba")).await;
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(!done.status.success() && said.contains("GRANT kyhan_owner TO dba_"), "{said}");
            for sql in [format!("DROP DATABASE {name} WITH (FORCE)"), format!("DROP ROLE {dba}, {dba}_lan")] {
                harness.sandbox.db.execute_unprepared(&sql).await.expect("dropped");
            }
        }
    })
    .await;
}
