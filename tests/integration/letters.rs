//! Dead letters for tests, inserted by SQL as a worker would store them, and a way to run `ops` that returns its output and exit
//! code.

use chrono::{DateTime, Utc};
use sea_orm::Value;
use tests::fleet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::harness::{Harness, SOON};

/// A letter; a test sets the fields that matter to it.
pub struct StoredLetter<'a> {
    pub id: Uuid,
    pub kind: Option<&'a str>,
    pub subject: Option<Uuid>,
    pub reason: &'a str,
    pub cause: &'a str,
    /// The cause without the parts that differ from letter to letter.
    pub group: &'a str,
    /// When it last failed, RFC 3339; `None`: an hour ago.
    pub failed: Option<&'a str>,
    pub headers: &'a [u8],
    pub body: &'a [u8],
}

impl Default for StoredLetter<'_> {
    fn default() -> Self {
        Self {
            id: Uuid::new_v4(),
            kind: Some("confirm-receipt"),
            subject: None,
            reason: "attempts-exhausted",
            cause: "Execution Error: new row for relation \"orders\" violates check constraint \"obstacle\"",
            group: "Execution Error: new row for relation \"orders\" violates check constraint \"obstacle\"",
            failed: None,
            headers: b"{}",
            body: br#"{"v":1}"#,
        }
    }
}

impl StoredLetter<'_> {
    /// Stores it as an open letter and returns its id.
    pub async fn store(&self, harness: &Harness) -> Uuid {
        let failed: Option<DateTime<Utc>> = self.failed.map(|failed| failed.parse().expect("a moment"));
        let sql =
            "INSERT INTO dead_letters (id, kind, subject_id, wakeup_id, reason, cause, cause_group, attempts, first_failed_at,
                                             last_failed_at, worker, trace_id, queue, routing_key, body_hash)
                   SELECT $1, $2, $3, gen_random_uuid(), $4, $5, $6, 6, failed.at - interval '1 minute', failed.at,
                          'worker-7', '4bf92f3577b34da6a3ce929d0e0e4736', 'kyhan.dead', 'confirm-receipt.0', $8
                     FROM coalesce($7, now() - interval '1 hour') AS failed (at)";
        let values: [Value; 8] = [
            self.id.into(),
            self.kind.map(ToOwned::to_owned).into(),
            self.subject.into(),
            self.reason.into(),
            self.cause.into(),
            self.group.into(),
            failed.into(),
            harness.kept_body(self.headers, self.body).await.into(),
        ];
        harness.run(sql, values).await;
        self.id
    }
}

/// A command's exit code and output.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `ops` as an operator would, without a terminal.
pub async fn ops(harness: &Harness, arguments: &[&str]) -> Said {
    let run = fleet::command("ops", &harness.sandbox.env, arguments).expect("built").output().await.expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: run.status.code().expect("an exit code"), out: text(&run.stdout), err: text(&run.stderr) }
}

/// The JSON output of `ops`.
pub async fn json(harness: &Harness, arguments: &[&str]) -> serde_json::Value {
    let said = ops(harness, arguments).await;
    assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
    serde_json::from_str(&said.out).expect("JSON")
}

/// Runs `ops` in a terminal of its own, made by `script` of util-linux, and answers its question with these keys. Returns the
/// exit code.
pub async fn at_a_terminal(harness: &Harness, arguments: &str, question: &str, keys: &str) -> i32 {
    let run = format!("exec '{}' {arguments}", fleet::binary("ops").expect("built").display());
    let mut script = tokio::process::Command::new("script");
    script.args(["--quiet", "--return", "--command", &run, "/dev/null"]).envs(&harness.sandbox.env).env("SHELL", "/bin/sh");
    let piped = std::process::Stdio::piped;
    let mut process = script.stdin(piped()).stdout(piped()).kill_on_drop(true).spawn().expect("script of util-linux");
    let (mut input, mut output) = (process.stdin.take().expect("a pipe"), process.stdout.take().expect("a pipe"));
    let mut said = Vec::new();
    let asked = tokio::time::timeout(SOON, async {
        while !String::from_utf8_lossy(&said).contains(question) {
            assert!(output.read_buf(&mut said).await.expect("output") > 0, "{}", String::from_utf8_lossy(&said));
        }
    });
    asked.await.expect("it asks");
    input.write_all(keys.as_bytes()).await.expect("typed");
    let rest = tokio::time::timeout(SOON, output.read_to_end(&mut said));
    rest.await.expect("it leaves").expect("output");
    process.wait().await.expect("an end").code().expect("an exit code")
}
