//! `ops status`: faults set its exit code, waiting work is shown, and two readings give rates.

use std::process::Stdio;

use serde_json::Value;
use shared::domain::task::EXAMPLE_CUSTOMER;
use tests::{fleet, sandbox::eventually};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, SOON, with_harness};

/// The output of `ops status` with these arguments, and its exit code.
async fn status(harness: &Harness, arguments: &[&str]) -> (String, i32) {
    let arguments = [&["status"], arguments].concat();
    let done = fleet::command("ops", &harness.sandbox.env, arguments).expect("built").output().await.expect("an end");
    (String::from_utf8(done.stdout).expect("text"), done.status.code().expect("an exit code"))
}

async fn json(harness: &Harness) -> (Value, i32) {
    let (said, code) = status(harness, &["--json"]).await;
    (serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}")), code)
}

fn troubles(status: &Value) -> Vec<&str> {
    status["troubles"].as_array().expect("a list").iter().map(|trouble| trouble.as_str().expect("text")).collect()
}

/// That many open letters of this group, as a worker would store them.
async fn letters(harness: &Harness, group: i32, count: i32) {
    let sql = "INSERT INTO dead_letters (id, kind, subject_id, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash)
               SELECT gen_random_uuid(), 'confirm-receipt', gen_random_uuid(), 'attempts-exhausted', 'cause', 'group ' || $1::int, 3,
                      now() - n * interval '1 hour', 'dead', 'confirm-receipt.0', $3
                 FROM generate_series(1, $2::int) AS n";
    assert_eq!(harness.run(sql, [group.into(), count.into(), harness.kept_body(b"", b"").await.into()]).await, count as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_letters_are_wrong_and_shown_by_group_the_largest_first() {
    with_harness(QUICK, async |harness| {
        let worker = harness.worker();
        harness.until_consumed().await;
        let (calm, code) = json(harness).await;
        assert_eq!((troubles(&calm), code), (vec![], 0));
        assert_eq!((&calm["letters"]["open"], &calm["plans"]["count"], &calm["audited"]), (&0.into(), &0.into(), &Value::Null));
        for group in 1..=12 {
            letters(harness, group, group).await;
        }
        let (found, code) = json(harness).await;
        assert_eq!((troubles(&found), code), (vec!["78 dead letters are open; see `ops dead list`"], 1));
        let letters = &found["letters"];
        assert_eq!(
            (&letters["open"], &letters["groups"], letters["largest"].as_array().map(Vec::len)),
            (&78.into(), &12.into(), Some(10))
        );
        let first = &letters["largest"][0];
        assert_eq!(
            (&first["letters"], &first["cause"], &first["kind"]),
            (&12.into(), &"group 12".into(), &"confirm-receipt".into())
        );
        let oldest: chrono::DateTime<chrono::Utc> = serde_json::from_value(first["oldest"].clone()).expect("a time");
        let at: chrono::DateTime<chrono::Utc> = serde_json::from_value(found["at"].clone()).expect("a time");
        assert_eq!((at - oldest).num_hours(), 12);
        let (screen, code) = status(harness, &[]).await;
        assert_eq!(code, 1);
        assert!(
            screen.contains("… 2 more groups") && screen.contains("WRONG   78 dead letters") && screen.contains("group 12"),
            "{screen}"
        );
        harness
            .run("UPDATE dead_letters SET state = 'discarded', decided_at = now(), decided_by = 'lan', decided_why = 'x'", [])
            .await;
        assert_eq!(status(harness, &[]).await.1, 0);
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_without_relay_and_worker_is_wrong_though_no_lane_holds_a_message() {
    with_harness(QUICK, async |harness| {
        // The event's own time does not determine how long it has waited.
        let shipped = "INSERT INTO outbox (event_type, subject_id, occurred_at) VALUES ('order.shipped', $1, now() + interval '1 year')";
        for _ in 0..3 {
            harness.run(shipped, [harness.delivering().await.into()]).await;
        }
        let nothing_runs = "no worker consumes any lane (0 messages wait); is a worker running?";
        let (found, code) = json(harness).await;
        assert_eq!((troubles(&found), code), (vec![nothing_runs], 1), "an event may wait for a moment");
        harness.run("UPDATE outbox SET waiting_since = now() - interval '3 minutes'", []).await;
        let (found, _) = json(harness).await;
        let said = troubles(&found);
        assert!(said[0] == nothing_runs && said[1].starts_with("3 events wait in the outbox, the oldest for 18"), "{said:?}");
        assert!(found["outbox"]["oldest_s"].as_f64().is_some_and(|waits| (180.0..240.0).contains(&waits)), "{found:#}");

        // The worker is running again, and the relay is not.
        let worker = harness.worker();
        harness.until_consumed().await;
        let (found, code) = json(harness).await;
        assert!(code == 1 && troubles(&found).len() == 1 && troubles(&found)[0].contains("is a relay running?"), "{found:#}");
        let relay = harness.relay();
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        eventually("nothing is wrong", SOON, async || Ok(json(harness).await.1 == 0)).await;

        // An event that is set aside is a fault until an operator decides about it.
        harness.event("order.shiped", Uuid::nil()).await;
        harness.event("order.shipped", Uuid::nil()).await;
        harness.until("SELECT count(*) = 2 FROM set_aside").await;
        let (found, code) = json(harness).await;
        assert_eq!((troubles(&found), code), (vec!["2 events are set aside and not scheduled; see `ops set-aside list`"], 1));
        harness.ops(&["--as", "lan", "set-aside", "discard", "--all", "--why", "typed by hand"]).await.expect("discarded");
        assert_eq!(json(harness).await.1, 0);
        let recorded = "SELECT count(*) FROM activity WHERE action = 'set_aside.discarded' AND detail ->> 'by' = 'lan'
                           AND detail ->> 'why' = 'typed by hand' AND detail -> 'changed' ->> 'subject' = '00000000-0000-0000-0000-000000000000'";
        assert_eq!(harness.ask::<i64>(recorded).await, 2);
        assert!(harness.ops(&["set-aside", "discard", "1", "--why", "x"]).await.is_err(), "no such id");
        worker.stop().await;
        relay.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_run_or_were_stopped_the_sweep_and_the_last_audit_are_shown() {
    with_harness(QUICK, async |harness| {
        let plan = "INSERT INTO replay_plans (state, made_by, why, filter, amount, customers, tolerance_letters, tolerance_amount,
                                              needs_approval, started_at, stopped_why, finished_at)
                    VALUES ($1, 'lan', 'because', '{}', 0, 0, 0, 0, false, now(), $2, CASE $1 WHEN 'done' THEN now() END)";
        for (state, stopped) in [("running", None), ("stopped", Some("3 failures")), ("done", None), ("planned", None)] {
            harness.run(plan, [state.into(), stopped.into()]).await;
        }
        letters(harness, 1, 2).await;
        let chosen = "INSERT INTO replay_plan_letters (plan_id, letter_id, position, verdict, result, at)
                      SELECT replay_plans.id, letter.id, number, 'applies', CASE number WHEN 1 THEN 'applied' END, CASE number WHEN 1 THEN now() END
                        FROM replay_plans, (SELECT id, row_number() OVER (ORDER BY id) AS number FROM dead_letters) AS letter
                       WHERE state = 'running'";
        assert_eq!(harness.run(chosen, []).await, 2);
        let swept = "INSERT INTO swept (kind, subject_id, due_at, at, times) VALUES ('confirm-receipt', $1, now(), now() - $2::text::interval, 1)";
        for ago in ["1 minute", "2 hours"] {
            harness.run(swept, [Uuid::new_v4().into(), ago.into()]).await;
        }
        harness.run("UPDATE dead_letters SET state = 'discarded', decided_at = now(), decided_by = 'lan', decided_why = 'x'", []).await;
        let worker = harness.worker();
        harness.until_consumed().await;
        harness.ops(&["--as", "lan", "audit"]).await.expect("nothing is off");
        let (found, code) = json(harness).await;
        assert_eq!((troubles(&found), code), (vec![], 0));
        let plans = &found["plans"];
        assert_eq!(plans["count"], 2);
        let states: Vec<_> = plans["newest"].as_array().expect("plans").iter().map(|plan| (&plan["state"], &plan["letters"], &plan["done"])).collect();
        assert_eq!(states, [(&"stopped".into(), &0.into(), &0.into()), (&"running".into(), &2.into(), &1.into())]);
        assert_eq!(found["swept"]["last_hour"], 1);
        assert_eq!((&found["audited"]["by"], &found["audited"]["off"]), (&"lan".into(), &0.into()));
        let (screen, _) = status(harness, &[]).await;
        for said in ["1 of 2", "3 failures", "woke 1 subjects within the last hour", "by lan: 0 checks off"] {
            assert!(screen.contains(said), "{said}: {screen}");
        }
        // An audit that found something is a fault until the next audit.
        harness.run("INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail) SELECT actor_kind, action, subject_kind, subject_id, jsonb_set(detail, '{changed,off}', '2') FROM activity", []).await;
        let (found, code) = json(harness).await;
        assert!(code == 1 && troubles(&found)[0].contains("found 2 checks off"), "{found:#}");
        harness.ops(&["audit"]).await.expect("nothing is off");
        assert_eq!(json(harness).await.1, 0);
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_for_longer_than_the_grace_is_wrong_and_no_index_counts_arrears() {
    with_harness(QUICK, async |harness| {
        let worker = harness.worker();
        harness.until_consumed().await;
        let due = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   VALUES (gen_random_uuid(), $2::text, $1, 'delivering', now() - $2::text::interval)";
        harness.run(due, [EXAMPLE_CUSTOMER.into(), "2 minutes".into()]).await;
        let due_for = async |kind: usize| json(harness).await.0["kinds"][kind]["due_for_s"].as_f64();
        assert!(due_for(0).await.is_some_and(|due_for_s| (119.0..180.0).contains(&due_for_s)));
        assert_eq!((due_for(1).await, due_for(2).await), (Some(0.0), None));
        assert_eq!(json(harness).await.1, 0, "within the grace it is on its way");
        harness.run(due, [EXAMPLE_CUSTOMER.into(), "20 minutes".into()]).await;
        let (found, code) = json(harness).await;
        assert!(code == 1 && troubles(&found)[0].starts_with("confirm-receipt: rows have been due for 12"), "{found:#}");
        let (screen, _) = status(harness, &[]).await;
        assert!(screen.contains("not indexed") && screen.contains("1 thing is wrong"), "{screen}");
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_exit_code_3_and_wrong_use_is_2() {
    with_harness(QUICK, async |harness| {
        for (variable, closed) in [
            ("KYHAN_DATABASE_URL", "postgres://kyhan:hunter2@127.0.0.1:9/kyhan"),
            ("KYHAN_AMQP_URL", "amqp://kyhan:hunter2@127.0.0.1:9/%2f"),
        ] {
            let mut env = harness.sandbox.env.clone();
            env.insert(variable.into(), closed.into());
            let done = fleet::command("ops", &env, ["status"]).expect("built").output().await.expect("an end");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.code() == Some(3) && said.contains("cannot connect") && !said.contains("hunter2"), "{said}");
            let mut watching = Watching::start(&env, &["--json", "--watch", "1"]);
            for _ in 0..2 {
                let away = watching.next().await;
                assert!(away["away"].as_str().is_some_and(|why| why.contains("cannot connect")), "{away}");
            }
            assert_eq!(watching.stop().await, 3);
        }
        for wrong in [&["--watch", "0"][..], &["--watch", "often"], &["--jason"]] {
            assert_eq!(status(harness, wrong).await.1, 2, "{wrong:?}");
        }
    })
    .await;
}

/// An `ops status --watch` whose JSON documents are read line by line.
struct Watching {
    child: tokio::process::Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Watching {
    fn start(env: &std::collections::BTreeMap<String, String>, arguments: &[&str]) -> Self {
        let mut command = fleet::command("ops", env, [&["status"], arguments].concat()).expect("built");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> Option<String> {
        tokio::time::timeout(SOON, self.lines.next_line()).await.expect("a line in time").expect("text")
    }

    async fn next(&mut self) -> Value {
        serde_json::from_str(&self.line().await.expect("a document")).expect("JSON")
    }

    /// Stops it and returns its exit code.
    async fn stop(mut self) -> i32 {
        fleet::terminate(&self.child).await.expect("SIGTERM sent");
        tokio::time::timeout(SOON, self.child.wait()).await.expect("it leaves").expect("a status").code().expect("an exit code")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_look_is_a_line_of_json_and_the_second_has_rates() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(40).await;
        let mut watching = Watching::start(&harness.sandbox.env, &["--json", "--watch", "1"]);
        let first = watching.next().await;
        assert_eq!((&first["lanes"][0]["growth_per_s"], &first["kinds"][0]["effects_per_s"]), (&Value::Null, &Value::Null));
        harness.publish(orders.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect()).await;
        // Until a reading shows it: the growth adds up to the total.
        let growth = |look: &Value| {
            look["lanes"].as_array().expect("lanes").iter().filter_map(|lane| lane["growth_per_s"].as_f64()).sum::<f64>()
        };
        let mut look = watching.next().await;
        while growth(&look) <= 0.0 {
            look = watching.next().await;
        }
        let worker = harness.worker();
        let effects = |look: &Value| look["kinds"][0]["effects_per_s"].as_f64().expect("a rate");
        while effects(&look) <= 0.0 {
            look = watching.next().await;
        }
        assert!(effects(&look) <= 40.0 && growth(&look) <= 0.0, "{look:#}");
        worker.stop().await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_pipe_one_block_follows_the_other_without_any_colour_until_the_reader_goes() {
    with_harness(QUICK, async |harness| {
        let worker = harness.worker();
        harness.until_consumed().await;
        let mut watching = Watching::start(&harness.sandbox.env, &["--watch", "1"]);
        let mut blocks = 0;
        while blocks < 2 {
            let line = watching.line().await.expect("a line");
            assert!(!line.contains('\u{1b}'), "{line:?}");
            blocks += u32::from(line.ends_with("nothing is wrong"));
        }
        let Watching { mut child, lines } = watching;
        drop(lines);
        let status = tokio::time::timeout(SOON, child.wait()).await.expect("it leaves").expect("a status");
        assert_eq!(status.code(), Some(0));
        worker.stop().await;
    })
    .await;
}
