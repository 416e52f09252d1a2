//! Obstacles: triggers of the order system that make an effect fail, each in its own way, so that PostgreSQL quotes the customer,
//! the product or the supplier in its error.

use sea_orm::{ConnectionTrait, DatabaseTransaction};
use shared::database::statement;
use uuid::Uuid;

use crate::harness::Harness;

/// The ways to fail. In each of them, MESSAGE, DETAIL, HINT or CONTEXT of the error, or a warning before it, quotes marked
/// columns.
pub const WAYS: &[&str] = &[
    "check",
    "not null",
    "unique",
    "reference",
    "exclusion",
    "raised",
    "context",
    "warning",
    "cast",
    "said",
    "made up",
    "file",
    "schema",
    "cursor",
    "statement",
    "database",
    "feature",
];

/// The tables may be invisible to the fleet's roles, as in a separate order system: the function runs with its owner's rights.
const TABLES: &str = "
    CREATE TABLE obstacles (subject uuid PRIMARY KEY, way text NOT NULL);
    CREATE TABLE label_names (full_name text PRIMARY KEY);
    CREATE TABLE labels (
        full_name text UNIQUE REFERENCES label_names, phone text NOT NULL, source text, weight int CHECK (weight > 0),
        EXCLUDE (source WITH =)
    );
    CREATE FUNCTION obstacle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE
        way text := (SELECT obstacles.way FROM obstacles WHERE subject = OLD.id);
        c customers := (SELECT customers FROM customers WHERE id = OLD.customer_id);
        s text := coalesce((SELECT supplier_name || note FROM order_sources WHERE order_id = OLD.id),
                           (SELECT product_name || product_ref FROM cart_items WHERE id = OLD.id));
    BEGIN
        CASE way
            WHEN 'check' THEN
                INSERT INTO labels VALUES (NULL, c.phone, s, 0);
            WHEN 'not null' THEN
                INSERT INTO labels VALUES (NULL, NULL, s || c.email, 1);
            WHEN 'unique' THEN
                INSERT INTO label_names VALUES (c.full_name), (c.full_name);
            WHEN 'reference' THEN
                INSERT INTO labels VALUES (c.full_name, c.phone, s, 1);
                SET CONSTRAINTS ALL IMMEDIATE;
            WHEN 'exclusion' THEN
                INSERT INTO labels VALUES (NULL, c.phone, s, 1), (NULL, c.address, s, 1);
            WHEN 'raised' THEN
                RAISE EXCEPTION 'no label for this one' USING DETAIL = c.full_name || ' at ' || c.address, HINT = 'Call ' || c.phone;
            WHEN 'context' THEN
                EXECUTE format('SELECT 1 / 0 /* of %s, from %s */', c.email, s);
            WHEN 'warning' THEN
                RAISE WARNING 'no label for %', c.full_name USING DETAIL = c.address;
                RAISE EXCEPTION 'no label for this one either';
            WHEN 'cast' THEN
                PERFORM c.phone::int;
            WHEN 'said' THEN
                RAISE EXCEPTION 'no label for % at %, from %', c.full_name, c.address, s;
            WHEN 'made up' THEN
                EXECUTE format('SELECT %I', c.email);
            WHEN 'file' THEN
                PERFORM pg_read_file('/labels/' || c.full_name);
            WHEN 'schema' THEN
                EXECUTE format('CREATE TABLE %I.labels ()', c.full_name);
            WHEN 'cursor' THEN
                PERFORM cursor_to_xml(c.full_name::refcursor, 1, true, true, '');
            WHEN 'statement' THEN
                EXECUTE format('DEALLOCATE %I', c.full_name);
            WHEN 'database' THEN
                PERFORM pg_database_size(c.phone::name);
            WHEN 'feature' THEN
                EXECUTE format('SELECT * FROM %I.x.y', c.email);
            ELSE
        END CASE;
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END $$;";

/// Creates the obstacles, for no subject yet.
pub async fn install(harness: &Harness, tables: impl IntoIterator<Item = &'static str>) {
    harness.sandbox.db.execute_unprepared(TABLES).await.expect("tables of the order system");
    for table in tables {
        let sql = "CREATE OR REPLACE TRIGGER obstacle BEFORE UPDATE OR DELETE ON # FOR EACH ROW EXECUTE FUNCTION obstacle()";
        harness.run(&sql.replace('#', table), []).await;
    }
}

/// Puts an obstacle in a subject's way.
pub async fn lay(tx: &DatabaseTransaction, subject: Uuid, way: &str) {
    let sql = statement("INSERT INTO obstacles VALUES ($1, $2)", [subject.into(), way.into()]);
    tx.execute_raw(sql).await.expect("an obstacle");
}
