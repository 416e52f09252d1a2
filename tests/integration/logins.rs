//! Logins with passwords, as `ops roles install` gives them: on servers of their own, whose PostgreSQL asks for one (SCRAM), because the
//! roles are a whole server's.

use std::process::Output;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbErr};
use shared::database::statement;
use tests::fleet;

use crate::{
    broker_users::{pair, sandbox},
    stage::{Stage, on_stage_of},
};

/// With what a URL, a shell and SQL would each trip over.
const PASSWORD: &str = r#"it's "mật khẩu": \ @/%24 $1"#;

/// Runs `ops` as an administrator with these variables, logging all that there is to log.
async fn ops_with(stage: &Stage, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = fleet::command("ops", &stage.sandbox.env, arguments).expect("built");
    command.envs(variables.iter().copied()).env("KYHAN_TELEMETRY_LOG", "trace");
    command.output().await.expect("run")
}

/// A URL of the sandbox's database with this login.
fn url(stage: &Stage, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(&stage.sandbox.env["KYHAN_DATABASE_URL"]).expect("a URL");
    // The crate leaves a % as it is.
    url.set_username(user).and_then(|()| url.set_password(Some(&password.replace('%', "%25")))).expect("a host");
    url.into()
}

/// Who one is after logging in.
async fn whoami(stage: &Stage, user: &str, password: &str) -> Result<String, DbErr> {
    let mut options = ConnectOptions::new(url(stage, user, password));
    options.max_connections(1).sqlx_logging(false);
    let db = Database::connect(options).await?;
    let row = db.query_one_raw(statement("SELECT current_user::text AS who", [])).await?;
    db.close().await?;
    row.expect("a row").try_get("", "who")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_logs_in_with_the_password_that_it_was_given_and_with_no_other() {
    let pair = pair().await;
    on_stage_of(sandbox(&pair).await, async |stage| {
        let file = std::env::temp_dir().join(format!("{}-password", stage.sandbox.database()));
        std::fs::write(&file, "from a file\n").expect("a file");
        let path = file.to_string_lossy().into_owned();
        let refused = async |user: &str, password: &str| {
            let said = whoami(stage, user, password).await.expect_err(user).to_string();
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
        let done = ops_with(stage, &["roles", "install", "--json"], &given).await;
        assert!(done.status.success(), "{done:?}");
        let said: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
        assert_eq!(said["passwords"], serde_json::json!(["kyhan_worker", "kyhan_ops", "kyhan_owner"]), "{said}");
        for (user, password) in [("kyhan_worker", PASSWORD), ("kyhan_ops", "from a file"), ("kyhan_owner", "owner's")] {
            assert_eq!(whoami(stage, user, password).await.expect(user), user);
            refused(user, "wrong").await;
        }
        for user in ["kyhan_producer", "kyhan_order_system"] {
            refused(user, PASSWORD).await;
        }
        // What the server keeps, and what is on record, in a log or on a terminal, is not the password.
        let kept = "SELECT count(*) FROM pg_authid WHERE rolname IN ('kyhan_worker', 'kyhan_ops', 'kyhan_owner')
                        AND rolpassword LIKE 'SCRAM-SHA-256$4096:%' AND NOT rolsuper AND NOT rolcreaterole AND NOT rolbypassrls";
        assert_eq!(stage.ask::<i64>(kept).await, 3);
        let told = "SELECT count(*) FROM activity WHERE action = 'roles.installed' AND strpos(detail::text, 'mật khẩu') = 0
                        AND detail -> 'changed' -> 'passwords' ? 'kyhan_worker'";
        assert_eq!(stage.ask::<i64>(told).await, 1);
        let output = [done.stdout, done.stderr].concat();
        let output = String::from_utf8_lossy(&output);
        assert!(!output.contains("mật khẩu") && !output.contains("from a file"), "{output}");

        // A worker and an operator work by them, and the owner migrates.
        stage.sandbox.declare().await.expect("declared");
        let mut command = fleet::command("worker", &stage.sandbox.env, [""; 0]).expect("built");
        command.env("KYHAN_DATABASE_URL", url(stage, "kyhan_worker", PASSWORD));
        let log = file.with_extension("log");
        let mut worker = fleet::start(command, &log).expect("started");
        let order = stage.delivering().await;
        stage.publish(vec![stage.wakeup("confirm-receipt", &[order])]).await;
        stage.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        fleet::terminate(&worker).await.expect("told");
        assert!(worker.wait().await.expect("an end").success());
        std::fs::remove_file(log).expect("removed");
        for (user, password, arguments, most) in [
            // It finds no lane that anybody takes from.
            ("kyhan_ops", "from a file", &["status"][..], 1),
            ("kyhan_owner", "owner's", &["migrate", "up"], 0),
            ("kyhan_owner", "owner's", &["migrate", "status"], 0),
        ] {
            let mut command = fleet::command("ops", &stage.sandbox.env, arguments).expect("built");
            command.env("KYHAN_DATABASE_URL", url(stage, user, password));
            let done = command.output().await.expect("run");
            assert!(done.status.code().is_some_and(|code| code <= most) && !done.stdout.is_empty(), "{arguments:?}: {done:?}");
        }

        // Another one takes its place; who is given none keeps the one it has.
        let done = ops_with(stage, &["roles", "install"], &[("KYHAN_ROLES_WORKER_PASSWORD", "another")]).await;
        assert!(done.status.success(), "{done:?}");
        refused("kyhan_worker", PASSWORD).await;
        assert_eq!(whoami(stage, "kyhan_worker", "another").await.expect("a login"), "kyhan_worker");
        assert_eq!(whoami(stage, "kyhan_ops", "from a file").await.expect("a login"), "kyhan_ops");

        for (variables, why) in [
            (&[("KYHAN_ROLES_OPS_PASSWORD_FILE", path.as_str()), ("KYHAN_ROLES_OPS_PASSWORD", "x")][..], "both set"),
            (&[("KYHAN_ROLES_OPS_PASSWORD", "")], "cannot be empty"),
            (&[("KYHAN_ROLES_OPS_PASSWORD_FILE", "/nonexistent")], "KYHAN_ROLES_OPS_PASSWORD_FILE"),
        ] {
            let done = ops_with(stage, &["roles", "install"], variables).await;
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.code() == Some(2) && said.contains(why), "{said}");
        }
        assert_eq!(whoami(stage, "kyhan_ops", "from a file").await.expect("a login"), "kyhan_ops");
        std::fs::remove_file(file).expect("removed");
    })
    .await;
}
