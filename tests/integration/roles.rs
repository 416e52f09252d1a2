//! The roles: each role tries what it must not do, and the server itself refuses it (policy points 4 to 7). No code of this
//! project is involved.

use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use shared::{
    database::{failure::is_refused, roles::DatabaseRole, schema::triggers, statement},
    domain::task::EXAMPLE_CUSTOMER,
};
use tests::{fleet, sandbox::url_as_role};

use crate::{
    harness::{Harness, QUICK, with_harness},
    letters::ops,
};

/// Statements, each with the only roles that may run them.
const FORBIDDEN: [(&str, &[DatabaseRole]); 54] = {
    use DatabaseRole::{Ops, OrderSystem, Owner, Worker};
    [
        // Personal data: policy point 7.
        ("SELECT full_name FROM customers", &[OrderSystem, Owner]),
        ("SELECT phone FROM customers", &[OrderSystem, Owner]),
        ("SELECT email FROM customers", &[OrderSystem, Owner]),
        ("SELECT address FROM customers", &[OrderSystem, Owner]),
        ("SELECT customers FROM customers", &[OrderSystem, Owner]),
        ("SELECT count(*) FROM customers WHERE phone LIKE '09%'", &[OrderSystem, Owner]),
        ("COPY customers TO STDOUT", &[OrderSystem, Owner]),
        ("SELECT product_name FROM cart_items", &[OrderSystem, Owner]),
        ("SELECT product_ref FROM cart_items", &[OrderSystem, Owner]),
        ("SELECT body FROM order_messages", &[OrderSystem, Owner]),
        ("SELECT author FROM order_messages", &[OrderSystem, Owner]),
        ("SELECT detail FROM activity", &[OrderSystem, Owner]),
        ("SELECT data FROM set_aside", &[OrderSystem, Owner]),
        // Sources: policy point 6. The roles that may read the table still get no rows: see sources.rs.
        ("SELECT supplier_name FROM order_sources", &[OrderSystem, Owner]),
        ("SELECT count(*) FROM order_sources", &[OrderSystem, Owner]),
        ("SELECT supplier_name FROM own_imports", &[OrderSystem, Owner]),
        ("ALTER TABLE order_sources DISABLE ROW LEVEL SECURITY", &[Owner]),
        ("SET row_security = off; SELECT supplier_name FROM order_sources", &[]),
        // The ledger. Its trigger also binds the owner.
        ("UPDATE transfers SET amount = 1", &[]),
        ("DELETE FROM transfers", &[]),
        ("UPDATE accounts SET balance = 1", &[Owner]),
        ("UPDATE accounts SET kind = 'outside', customer_id = NULL", &[]),
        // The record: policy point 5.
        ("UPDATE activity SET action = 'x'", &[]),
        ("DELETE FROM activity", &[]),
        ("TRUNCATE activity", &[]),
        ("UPDATE activity_seals SET rows = 0", &[]),
        ("INSERT INTO activity_removals (number, recorded_as) SELECT max(number), 1 FROM activity_seals", &[]),
        (
            "INSERT INTO activity (at, actor_kind, action, subject_kind, subject_id) VALUES ('2020-01-01', 'system', 'x', 'x', gen_random_uuid())",
            &[Owner],
        ),
        // On behalf of which actor it is made.
        (
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('customer', 'x', 'x', gen_random_uuid())",
            &[OrderSystem, Owner],
        ),
        (
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('staff', 'x', 'x', gen_random_uuid())",
            &[OrderSystem, Owner],
        ),
        (
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('system', 'x', 'x', gen_random_uuid())",
            &[Worker, Ops, Owner],
        ),
        (
            r#"INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
               VALUES ('staff', 'x', 'x', gen_random_uuid(), '{"by": "minh", "changed": {}, "login": "somebody_else"}')"#,
            &[Owner],
        ),
        (
            r#"INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
               VALUES ('staff', 'policy.applied', 'x', gen_random_uuid(), '{"by": "minh"}')"#,
            &[Owner],
        ),
        (
            r#"INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
               VALUES ('customer', 'x', 'x', gen_random_uuid(), '{"login": "kyhan_ops"}')"#,
            &[Owner],
        ),
        // What the database itself judges, and the leader alone records.
        ("UPDATE activity_closing SET last_id = 1000", &[Owner]),
        ("UPDATE statistics_rule SET min_customers = 1000", &[Owner]),
        ("INSERT INTO leader (instance) VALUES ('x')", &[Worker, Owner]),
        (
            "INSERT INTO customers (id, full_name, phone, email, address, erased_at) VALUES (gen_random_uuid(), '', '', '', '', now())",
            &[Owner],
        ),
        // Only the fleet may name a wake-up.
        (
            "INSERT INTO order_status_history (order_id, from_status, to_status, reason, wakeup_id)
             SELECT gen_random_uuid(), 'x', 'x', 'x', gen_random_uuid() WHERE false",
            &[Worker, Ops, Owner],
        ),
        // Retention: policy point 4.
        ("DELETE FROM orders", &[Owner]),
        ("UPDATE orders SET hidden_at = now()", &[Worker, Ops, Owner]), // and its trigger asks whether it is time
        // If the policy deletes nothing.
        ("SELECT kyhan_delete_hidden_orders(now(), 1, 0)", &[Owner]),
        ("SELECT kyhan_remove_activity(now(), 1)", &[Owner]),
        ("SELECT salt FROM activity_seals", &[OrderSystem, Owner]),
        ("SELECT kyhan_activity_digest(1, 1, gen_random_uuid())", &[Owner]),
        (
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('staff', 'order.message_recorded', 'order', gen_random_uuid())",
            &[Owner],
        ),
        (
            "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at) SELECT id, 'a', 'b', 'c', '2020-01-01' FROM orders",
            &[OrderSystem, Owner],
        ),
        ("DELETE FROM order_status_history", &[Owner]),
        // And other objects that they must not use.
        ("INSERT INTO policies (policy, applied_by, why) VALUES ('{}', 'x', 'x')", &[Owner]),
        ("INSERT INTO operators (login, added_by) VALUES ('x', 'x')", &[Owner]),
        ("UPDATE replay_plans SET approved_by = 'x'", &[Owner]),
        ("UPDATE replay_plan_letters SET amount = 0", &[Owner]),
        ("DELETE FROM operator_charges", &[Owner]),
        ("SELECT kyhan_policy_needs_approval('{}')", &[Ops, Owner]),
    ]
};

/// PostgreSQL's answer to a statement, which is always rolled back.
async fn tried(db: &DatabaseConnection, sql: &str) -> Result<(), sea_orm::DbErr> {
    let tx = db.begin().await.expect("a transaction");
    let done = tx.execute_unprepared(sql).await.map(|_| ());
    let _ = tx.rollback().await;
    done
}

/// Makes a row to read and change in every table that the statements use.
async fn populate(harness: &Harness) {
    let order = harness.delivering().await;
    harness.in_cart().await;
    harness.run("INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'khách', 'Bao giờ?')", [order.into()]).await;
    harness.run("INSERT INTO order_sources VALUES ($1, 'Xưởng A', 'https://example.cn/a', NULL)", [order.into()]).await;
    harness
        .run(
            "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ($1, 'a', 'b', 'c')",
            [order.into()],
        )
        .await;
    harness
        .run("INSERT INTO accounts (kind, customer_id) VALUES ('outside', NULL), ('wallet', $1)", [EXAMPLE_CUSTOMER.into()])
        .await;
    let paid = "INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
                SELECT outside.id, wallet.id, 1000, 'nạp ví', 'paid' FROM accounts outside, accounts wallet
                 WHERE outside.kind = 'outside' AND wallet.kind = 'wallet'";
    harness.run(paid, []).await;
    harness.run("SELECT kyhan_seal_activity(1000, 1000)", []).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_refuses_each_role_what_it_must_not_do() {
    with_harness(QUICK, async |harness| {
        populate(harness).await;
        for role in DatabaseRole::ALL {
            let db = harness.sandbox.connect_as(role).await.expect("a login");
            for (sql, allowed) in FORBIDDEN {
                let done = tried(&db, sql).await;
                if allowed.contains(&role) {
                    // Otherwise the test would prove nothing: the permission must be missing, not the table.
                    if let Err(error) = done {
                        assert!(!is_refused(&error), "{role} may: {sql}: {error}");
                    }
                } else {
                    let error = done.expect_err(&format!("{role}: {sql}"));
                    // With row_security off, a row-level policy raises an error itself.
                    assert!(is_refused(&error) || sql.contains("row_security"), "{role}: {sql}: {error}");
                }
            }
            db.close().await.expect("closed");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_belongs_to_the_owner_and_nothing_is_open_to_everybody() {
    with_harness(QUICK, async |harness| {
        let others = "SELECT coalesce(string_agg(name, ', '), '') FROM (
                SELECT relname::text AS name FROM pg_class WHERE relnamespace IN ('kyhan'::regnamespace, 'public'::regnamespace) AND relkind IN ('r', 'v', 'S')
                   AND pg_get_userbyid(relowner) <> 'kyhan_owner'
                UNION ALL
                SELECT proname::text FROM pg_proc WHERE pronamespace IN ('kyhan'::regnamespace, 'public'::regnamespace) AND pg_get_userbyid(proowner) <> 'kyhan_owner'
            ) AS others";
        assert_eq!(harness.ask::<String>(others).await, "");
        // Every function that runs with its owner's rights is granted to roles by name, and finds its tables for any
        // `search_path`.
        let open = "SELECT coalesce(string_agg(proname, ', '), '') FROM pg_proc
                     WHERE pronamespace IN ('kyhan'::regnamespace, 'public'::regnamespace) AND prosecdef
                       AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0)
                            OR NOT coalesce(array_to_string(proconfig, ','), '') ~ 'search_path=(kyhan, )?public, pg_temp')";
        assert_eq!(harness.ask::<String>(open).await, "");
        let everybodys = "SELECT coalesce(string_agg(relname, ', '), '') FROM pg_class, aclexplode(relacl) AS acl
                           WHERE relnamespace IN ('kyhan'::regnamespace, 'public'::regnamespace) AND acl.grantee = 0";
        assert_eq!(harness.ask::<String>(everybodys).await, "");
        // A role's login has no more rights than the role.
        let powers = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'kyhan\\_%' AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls)";
        assert_eq!(harness.ask::<i64>(powers).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_finds_its_tables_whatever_the_search_path_is() {
    with_harness(QUICK, async |harness| {
        triggers::install(&harness.sandbox.db).await.expect("triggers");
        let loose = "SELECT coalesce(string_agg(proname, ', '), '') FROM pg_proc, LATERAL (
                           SELECT CASE WHEN proname = 'kyhan_messages_record_themselves' THEN 'pg_catalog'
                                       WHEN pronamespace = 'kyhan'::regnamespace THEN 'kyhan, public' ELSE 'public' END AS path) AS pinned
                      WHERE pronamespace IN ('kyhan'::regnamespace, 'public'::regnamespace)
                        AND array_to_string(proconfig, ',') IS DISTINCT FROM 'search_path=' || path || ', pg_temp'";
        assert_eq!(harness.ask::<String>(loose).await, "");
        assert!(harness.ask::<i64>("SELECT count(*) FROM pg_proc WHERE pronamespace IN ('kyhan'::regnamespace, 'public'::regnamespace)").await > 30);
    })
    .await;
}

const FLEET: &str = "KYHAN_DATABASE_SCHEMA";
const ORDER_SYSTEM: &str = "KYHAN_DATABASE_ORDER_SYSTEM_SCHEMA";

/// `ALTER ROLE CURRENT_USER SET` needs no privilege, and outlasts the session.
#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_that_a_login_gives_itself_bind_no_session_of_the_fleet() {
    with_harness(QUICK, async |harness| {
        let (login, _) = login_of(harness, DatabaseRole::Worker);
        let thief = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        for default in [
            "search_path = pg_temp",
            "synchronous_commit = off",
            "row_security = off",
            "idle_session_timeout = '1ms'",
            "statement_timeout = '1ms'",
            "lock_timeout = '1ms'",
            "default_transaction_isolation = serializable",
        ] {
            let sql = format!("ALTER ROLE {login} SET {default}");
            thief.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        thief.close().await.expect("closed");
        let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        for (name, value) in [
            ("search_path", "kyhan, public, pg_temp"),
            ("synchronous_commit", "on"),
            ("row_security", "on"),
            ("idle_session_timeout", "0"),
            ("statement_timeout", "1min"),
            ("lock_timeout", "2s"),
            ("default_transaction_isolation", "read committed"),
        ] {
            let setting = statement("SELECT current_setting($1) AS setting", [name.into()]);
            assert_eq!(shared::database::scalar::<String>(&db, setting).await.expect("a setting"), value, "{name}");
        }
        db.close().await.expect("closed");
        let order = harness.delivering().await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

/// A login that may make functions and operators in a schema of its own, which it puts before ours.
#[tokio::test(flavor = "multi_thread")]
async fn no_function_or_operator_of_another_schema_takes_a_mask_off() {
    with_harness(QUICK, async |harness| {
        let masked: String = harness.ask("SELECT concat_ws(' ', name, phone, email) FROM customers_masked").await;
        let (login, _) = login_of(harness, DatabaseRole::Ops);
        harness.run(&format!("CREATE SCHEMA unmask AUTHORIZATION {login}"), []).await;
        let db = harness.sandbox.connect_as(DatabaseRole::Ops).await.expect("a login");
        let tx = db.begin().await.expect("a transaction");
        tx.execute_unprepared(
            "SET LOCAL search_path = unmask, pg_catalog, public;
             CREATE FUNCTION unmask.left(text, integer) RETURNS text LANGUAGE sql AS 'SELECT $1';
             CREATE FUNCTION unmask.right(text, integer) RETURNS text LANGUAGE sql AS 'SELECT $1';
             CREATE FUNCTION unmask.upper(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
             CREATE FUNCTION unmask.length(text) RETURNS integer LANGUAGE sql AS 'SELECT 100';
             CREATE FUNCTION unmask.regexp_replace(text, text, text, text) RETURNS text LANGUAGE sql AS 'SELECT $1';
             CREATE FUNCTION unmask.first(text, text) RETURNS text LANGUAGE sql AS 'SELECT $1';
             CREATE OPERATOR unmask.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = unmask.first);
             CREATE FUNCTION unmask.never(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false';
             CREATE OPERATOR unmask.< (LEFTARG = integer, RIGHTARG = integer, FUNCTION = unmask.never)",
        )
        .await
        .expect("made");
        let row = tx.query_one_raw(statement("SELECT concat_ws(' ', name, phone, email) FROM customers_masked", [])).await;
        assert_eq!(row.expect("masked").expect("a row").try_get_by_index::<String>(0).expect("a text"), masked);
        tx.rollback().await.expect("undone");
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_roles_that_use_the_database_may_connect_and_the_others_are_named() {
    with_harness(QUICK, async |harness| {
        let database = harness.sandbox.database();
        let (stranger, neighbour) = (format!("{database}_stranger"), format!("{database}_neighbour"));
        for role in [&stranger, &neighbour] {
            harness.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'"), []).await;
        }
        harness.run("CREATE SCHEMA shop", []).await;
        harness.run("CREATE TABLE shop.parcels (id int)", []).await;
        harness.run(&format!("ALTER TABLE shop.parcels OWNER TO {neighbour}"), []).await;
        harness.run(&format!("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO PUBLIC"), []).await;
        let may = async |role: &str, what: &str| {
            harness.ask::<bool>(&format!("SELECT has_database_privilege('{role}', current_database(), '{what}')")).await
        };
        assert!(may(&stranger, "CONNECT").await);
        let done = ops(harness, &["roles", "install"]).await;
        let said = done.out.clone();
        assert!(done.code == 0 && said.contains("PUBLIC has none") && said.contains("cannot connect any more"), "{done:?}");
        assert!(said.contains(&format!("granted to other roles that use the database: {neighbour}")), "{said}");
        assert!(!may(&stranger, "CONNECT").await && !may(&stranger, "TEMPORARY").await);
        assert!(may(&neighbour, "CONNECT").await && may(&neighbour, "TEMPORARY").await);
        let (worker, _) = login_of(harness, DatabaseRole::Worker);
        assert!(may(&worker, "CONNECT").await && !may(&worker, "TEMPORARY").await);
        // It is named, and once only: the second time it could not connect before.
        harness.run(&format!("GRANT CONNECT ON DATABASE {database} TO PUBLIC"), []).await;
        let done = ops(harness, &["roles", "install", "--json"]).await;
        let json: serde_json::Value = serde_json::from_str(&done.out).expect("JSON");
        let shut_out = json["connect"]["shut_out"].as_array().expect("a list");
        assert!(shut_out.contains(&stranger.clone().into()) && json["connect"]["public"] == false, "{json}");
        assert!(!shut_out.contains(&neighbour.clone().into()), "{json}");
        let done = ops(harness, &["roles", "install", "--json"]).await;
        let json: serde_json::Value = serde_json::from_str(&done.out).expect("JSON");
        assert!(!json["connect"]["shut_out"].as_array().expect("a list").contains(&stranger.clone().into()), "{json}");
        harness.run("DROP SCHEMA shop CASCADE", []).await;
        for role in [&stranger, &neighbour] {
            harness.run(&format!("DROP OWNED BY {role}"), []).await;
            harness.run(&format!("DROP ROLE {role}"), []).await;
        }
    })
    .await;
}

/// A shop's own tables, some with the same names as ours, in a schema of the sandbox's database.
#[tokio::test(flavor = "multi_thread")]
async fn installing_the_roles_takes_no_table_that_our_migrations_did_not_make() {
    with_harness(QUICK, async |harness| {
        let (shop, _) = login_of(harness, DatabaseRole::OrderSystem);
        let owners = "SELECT string_agg(relname || ' ' || pg_get_userbyid(relowner), ', ' ORDER BY relname) FROM pg_class
                       WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'v')";
        let install = async |schema: &str| {
            let mut command = fleet::command("ops", &harness.sandbox.env, ["roles", "install"]).expect("built");
            let done = command.env(schema, "shop").output().await.expect("run");
            (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        let admin = async |sql: &str| harness.sandbox.db.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        admin(&format!("CREATE SCHEMA shop AUTHORIZATION {shop}; SET ROLE {shop}; CREATE TABLE shop.parcels (id int); RESET ROLE")).await;
        for (schema, sql, ours) in [
            (ORDER_SYSTEM, "CREATE TABLE shop.orders (id int)", "orders"),
            (FLEET, "CREATE VIEW shop.activity AS SELECT 1 AS one", "activity"),
            (ORDER_SYSTEM, "CREATE FUNCTION shop.kyhan_customer() RETURNS int LANGUAGE sql AS 'SELECT 1'", "kyhan_customer()"),
            // Another program that keeps its migrations under our name.
            (FLEET, "CREATE TABLE shop.kyhan_migrations (version text, applied_at bigint); CREATE TABLE shop.outbox (id int);
              INSERT INTO shop.kyhan_migrations VALUES ('m2024_shop', 1)", "outbox"),
        ] {
            admin(&format!("SET ROLE {shop}; {sql}; RESET ROLE")).await;
            let before: String = harness.ask(owners).await;
            let (code, said) = install(schema).await;
            assert!(code == Some(1) && said.contains("did not make") && said.contains(ours) && said.contains(&shop), "{sql}: {said}");
            assert!(!said.contains("parcels"), "{said}");
            assert_eq!(harness.ask::<String>(owners).await, before, "{sql}");
            admin("DROP FUNCTION IF EXISTS shop.kyhan_customer(); DROP VIEW IF EXISTS shop.activity; DROP TABLE IF EXISTS shop.orders").await;
        }
        admin("DROP TABLE shop.outbox").await;
        // No table left has one of our names. But the shop lets every role create objects in this schema, and may rely on that.
        admin("GRANT CREATE ON SCHEMA shop TO PUBLIC").await;
        let (code, said) = install(FLEET).await;
        assert!(code == Some(1) && said.contains("REVOKE CREATE ON SCHEMA shop FROM PUBLIC"), "{said}");
        admin("REVOKE CREATE ON SCHEMA shop FROM PUBLIC").await;
        let (code, said) = install(FLEET).await;
        assert_eq!(code, Some(0), "{said}");
        let kept = format!("kyhan_migrations {shop}, parcels {shop}");
        assert_eq!(harness.ask::<String>(owners).await, kept);
    })
    .await;
}

/// The installation's list of our objects contains exactly what the migrations create.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_the_migrations_make_belongs_to_an_administrator_first_and_then_to_the_owner() {
    with_harness(QUICK, async |harness| {
        triggers::install(&harness.sandbox.db).await.expect("triggers");
        // As in a deployment from before the roles.
        let administrator: String = harness.ask("SELECT current_user::text").await;
        harness.sandbox.db.execute_unprepared(&format!("REASSIGN OWNED BY kyhan_owner TO {administrator}")).await.expect("taken back");
        let others = "SELECT count(*) FROM (
                          SELECT FROM pg_class WHERE relnamespace IN ('kyhan'::regnamespace, 'public'::regnamespace) AND relkind IN ('r', 'v', 'S')
                             AND pg_get_userbyid(relowner) <> 'kyhan_owner'
                          UNION ALL
                          SELECT FROM pg_proc WHERE pronamespace IN ('kyhan'::regnamespace, 'public'::regnamespace) AND pg_get_userbyid(proowner) <> 'kyhan_owner'
                      ) AS others";
        assert!(harness.ask::<i64>(others).await > 70);
        let done = ops(harness, &["roles", "install"]).await;
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(harness.ask::<i64>(others).await, 0);
    })
    .await;
}

/// The user name and password of the sandbox's login for a role.
fn login_of(harness: &Harness, role: DatabaseRole) -> (String, String) {
    let url = url_as_role(&harness.sandbox.env["KYHAN_DATABASE_URL"], role).expect("a URL");
    let url = url::Url::parse(&url).expect("a URL");
    (url.username().to_owned(), url.password().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_locks_what_it_judges_and_changes_no_more_than_its_effects_do() {
    with_harness(QUICK, async |harness| {
        populate(harness).await;
        let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        for sql in [
            "SELECT FROM accounts FOR NO KEY UPDATE",
            "SELECT FROM orders FOR NO KEY UPDATE",
            "SELECT FROM cart_items FOR NO KEY UPDATE",
            "UPDATE accounts SET kind = kind",
        ] {
            tried(&db, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        for column in ["customer_id", "code", "goods_due", "parcel_recorded_at", "on_hold", "created_at", "delivering_since"] {
            let error = tried(&db, &format!("UPDATE orders SET {column} = {column}")).await.expect_err(column);
            assert!(is_refused(&error), "{column}: {error}");
        }
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn installing_again_changes_nothing_and_takes_back_manual_grants() {
    with_harness(QUICK, async |harness| {
        let grants = "SELECT jsonb_agg(jsonb_build_array(relname, relacl::text, (
                              SELECT jsonb_agg(jsonb_build_array(attname, attacl::text) ORDER BY attname) FROM pg_attribute
                               WHERE attrelid = pg_class.oid AND attacl IS NOT NULL)) ORDER BY relname)::text
                        FROM pg_class WHERE relnamespace IN ('kyhan'::regnamespace, 'public'::regnamespace)";
        let before: String = harness.ask(grants).await;
        let policies = "SELECT string_agg(concat_ws(' ', polname, polroles, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)), E'\n' ORDER BY polname)
                          FROM pg_policy WHERE polrelid = 'activity'::regclass";
        let (policies_before, same) = (harness.ask::<String>(policies).await, "SELECT string_agg(oid::text, ' ' ORDER BY polname) FROM pg_policy");
        // An object that is correct is not recreated, because that would lock the table.
        let untouched = harness.ask::<String>(same).await;
        assert_eq!(ops(harness, &["roles", "install"]).await.code, 0);
        assert_eq!(harness.ask::<String>(same).await, untouched);
        harness.run("CREATE POLICY anybody ON activity FOR INSERT WITH CHECK (true)", []).await;
        harness.run("ALTER POLICY activity_of_the_fleet ON activity WITH CHECK (true)", []).await;
        harness.run("ALTER TABLE activity DISABLE ROW LEVEL SECURITY", []).await;
        harness.run("GRANT SELECT ON customers TO kyhan_worker", []).await;
        harness.run("GRANT SELECT (supplier_name) ON order_sources TO kyhan_ops", []).await;
        harness.run("GRANT SELECT ON order_messages TO PUBLIC", []).await;
        let done = ops(harness, &["roles", "install"]).await;
        assert!(done.code == 0 && done.out.contains("granted"), "{done:?}");
        let sorted = |acl: &str| {
            let mut words: Vec<String> = acl.split(['{', '}', ',', '"', '[', ']', ' ']).map(ToOwned::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&harness.ask::<String>(grants).await), sorted(&before));
        assert_eq!(harness.ask::<String>(policies).await, policies_before);
        assert!(harness.ask::<bool>("SELECT relrowsecurity FROM pg_class WHERE relname = 'activity'").await);
        let refused = ops(harness, &["--as", "lan", "migrate", "status"]).await;
        assert_eq!(refused.code, 0, "{refused:?}");
        // An operator's login gets an explanation of each refusal.
        let id = EXAMPLE_CUSTOMER.to_string();
        let db = harness.sandbox.connect_as(DatabaseRole::Ops).await.expect("a login");
        let error =
            ::ops::customer::export(&db, &::ops::actor::Operator::new(Some("lan")).expect("a name"), EXAMPLE_CUSTOMER, "x").await;
        let said = error.expect_err("refused").to_string();
        assert!(said.contains("may not read personal data: use one of kyhan_order_system") && !said.contains(&id), "{said}");
        db.close().await.expect("closed");
        let unrecorded = statement("SELECT count(*) AS n FROM activity WHERE action = 'customer.exported'", []);
        let row = harness.sandbox.db.query_one_raw(unrecorded).await.expect("a count").expect("a row");
        assert_eq!(row.try_get::<i64>("", "n").expect("a count"), 0);
    })
    .await;
}
