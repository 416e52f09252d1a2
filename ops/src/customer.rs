//! One customer: the masked view for staff, the export of all data held about the customer, and the erasure of personal data (policy
//! points 6 and 7). Export and erasure need a login of the order system's role; PostgreSQL refuses them to an operator's login.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult, TransactionTrait};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    database::{column, failure::is_refused, scalar, statement},
    domain::confidential::Confidential,
};
use uuid::Uuid;

use crate::actor::Operator;

/// A customer as staff may see one: enough to recognise a customer they already know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Masked {
    pub id: Uuid,
    pub name: String,
    pub phone: String,
    pub email: String,
    pub created_at: DateTime<Utc>,
    pub erased_at: Option<DateTime<Utc>>,
    pub orders: i64,
    pub orders_on_line: i64,
    /// The wallet's balance, in đồng.
    pub balance: i64,
}

/// Why a command on a customer failed.
#[derive(Debug, thiserror::Error)]
pub enum CustomerError {
    #[error("there is no customer {0}")]
    Unknown(Uuid),
    #[error(
        "the login {0} may not read personal data: use one of kyhan_order_system, like the customer service's, in \
         KYHAN_DATABASE_URL"
    )]
    Refused(String),
    #[error("{}", refused_because(.0))]
    Open(Vec<Obstacle>),
    #[error("PostgreSQL: {0}")]
    Database(#[source] DbErr),
}

/// A reason why a customer's data cannot be erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Obstacle {
    /// The wallet's balance in đồng, if it is not 0.
    Balance(i64),
    /// The code of an order that is in progress, short of money, disputed or held.
    Order(String),
}

fn refused_because(obstacles: &[Obstacle]) -> String {
    let told = obstacles.iter().map(|obstacle| match obstacle {
        Obstacle::Balance(balance) => format!("the wallet holds {}", shared::domain::money::Dong(*balance)),
        Obstacle::Order(code) => format!("order {} is in progress, short of money, disputed or held", code.escape_debug()),
    });
    format!("nothing was erased: {}", told.collect::<Vec<_>>().join("; "))
}

/// How much an erasure cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    pub orders: u64,
    pub sources: u64,
    pub messages: u64,
    pub products: u64,
    pub events: u64,
}

/// A customer, masked by the database.
///
/// # Errors
/// [`CustomerError`].
pub async fn show(db: &DatabaseConnection, id: Uuid) -> Result<Masked, CustomerError> {
    let sql = "SELECT masked.*,
                      (SELECT count(*) FROM orders WHERE customer_id = $1) AS orders,
                      (SELECT count(*) FROM orders WHERE customer_id = $1 AND hidden_at IS NULL) AS orders_on_line,
                      coalesce((SELECT balance FROM accounts WHERE customer_id = $1 AND kind = 'wallet'), 0) AS balance
                 FROM customers_masked AS masked WHERE masked.id = $1";
    let masked = Masked::find_by_statement(statement(sql, [id.into()])).one(db).await.map_err(CustomerError::Database)?;
    masked.ok_or(CustomerError::Unknown(id))
}

/// All data held about a customer, to be handed to that customer. Records in `activity` who exported it and why.
///
/// # Errors
/// [`CustomerError`].
pub async fn export(
    db: &DatabaseConnection,
    actor: &Operator,
    id: Uuid,
    why: &str,
) -> Result<Confidential<Value>, CustomerError> {
    let tx = begin(db, id).await?;
    let row = tx.query_one_raw(statement(EXPORT, [id.into()])).await;
    let row = match row {
        Ok(row) => row.ok_or(CustomerError::Unknown(id))?,
        Err(error) => return Err(refused(db, error).await),
    };
    let held: Value = row.try_get_by_index(0).map_err(CustomerError::Database)?;
    let record = actor.record(&tx, "customer.exported", ("customer", id), Some(why), json!({ "exported": true }));
    record.await.map_err(CustomerError::Database)?;
    tx.commit().await.map_err(CustomerError::Database)?;
    Ok(Confidential::new(held))
}

/// `$1`: the customer. The row policy of `order_sources` allows the read, because the transaction acts for the customer.
const EXPORT: &str = "
    WITH own_orders AS (SELECT * FROM orders WHERE customer_id = $1),
         own_items AS (SELECT * FROM cart_items WHERE customer_id = $1),
         own_accounts AS (
            SELECT * FROM accounts WHERE (kind = 'wallet' AND customer_id = $1) OR order_id IN (SELECT id FROM own_orders)),
         subjects AS (SELECT id FROM own_orders UNION SELECT id FROM own_items UNION SELECT $1)
    SELECT jsonb_build_object(
               'customer', to_jsonb(customer),
               'orders', (SELECT coalesce(jsonb_agg(to_jsonb(o) || jsonb_build_object(
                              'source', (SELECT to_jsonb(s) - 'order_id' FROM order_sources s WHERE s.order_id = o.id),
                              'history', (SELECT coalesce(jsonb_agg(to_jsonb(h) - 'order_id' ORDER BY h.id), '[]')
                                            FROM order_status_history h WHERE h.order_id = o.id),
                              'messages', (SELECT coalesce(jsonb_agg(jsonb_build_object('author', m.author, 'body', m.body, 'at', m.at)
                                                                     ORDER BY m.at, m.id), '[]')
                                             FROM order_messages m WHERE m.order_id = o.id),
                              'outstanding', (SELECT outstanding FROM arrears_outstanding a WHERE a.order_id = o.id),
                              'held_since', (SELECT held_at FROM retention_holds r WHERE r.order_id = o.id)
                          ) ORDER BY o.created_at, o.id), '[]') FROM own_orders o),
               'cart', (SELECT coalesce(jsonb_agg(to_jsonb(i) ORDER BY i.added_at, i.id), '[]') FROM own_items i),
               'accounts', (SELECT coalesce(jsonb_agg(to_jsonb(a) ORDER BY a.kind, a.id), '[]') FROM own_accounts a),
               'transfers', (SELECT coalesce(jsonb_agg(to_jsonb(t) - 'made_by' ORDER BY t.at, t.id), '[]') FROM transfers t
                              WHERE t.debit_account IN (SELECT id FROM own_accounts)
                                 OR t.credit_account IN (SELECT id FROM own_accounts)),
               -- Not who of the staff it was, and what they noted for each other.
               'activity', (SELECT coalesce(jsonb_agg(CASE WHEN a.actor_kind = 'customer' THEN to_jsonb(a)
                                                           ELSE to_jsonb(a) || jsonb_build_object('actor_id', NULL,
                                                                    'detail', a.detail - 'by' - 'login' - 'why') END ORDER BY a.id), '[]')
                              FROM activity a
                             WHERE a.subject_id IN (SELECT id FROM subjects) OR a.actor_id = $1
                                OR a.detail ->> 'customer_id' = $1::text),
               'events', (SELECT coalesce(jsonb_agg(event ORDER BY event ->> 'occurred_at'), '[]')
                            FROM (SELECT to_jsonb(e) AS event FROM outbox e WHERE e.subject_id IN (SELECT id FROM subjects)
                                  UNION ALL
                                  SELECT to_jsonb(e) FROM set_aside e WHERE e.subject_id IN (SELECT id FROM subjects)) AS waiting),
               'dead_letters', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                                           'id', d.id, 'state', d.state, 'kind', d.kind, 'subject', d.subject_id, 'reason', d.reason,
                                           'last_failed_at', d.last_failed_at) ORDER BY d.last_failed_at), '[]')
                                  FROM dead_letters d WHERE d.subject_id IN (SELECT id FROM subjects))) AS held
      FROM customers AS customer WHERE customer.id = $1";

/// Clears a customer's personal data in every table: contact data, messages, products and sources. The ledger, the history and the
/// sealed activity stay; they contain only ids.
///
/// # Errors
/// [`CustomerError::Open`] while money is outstanding, an order is in progress, or a hold exists; other [`CustomerError`]s. Nothing is
/// erased then.
pub async fn erase(db: &DatabaseConnection, actor: &Operator, id: Uuid, why: &str) -> Result<Erased, CustomerError> {
    let tx = begin(db, id).await?;
    let erased = match clear(&tx, id).await {
        Ok(erased) => erased,
        Err(CustomerError::Database(error)) => return Err(refused(db, error).await),
        Err(error) => return Err(error),
    };
    let record = actor.record(&tx, "customer.erased", ("customer", id), Some(why), json!(erased));
    record.await.map_err(CustomerError::Database)?;
    tx.commit().await.map_err(CustomerError::Database)?;
    Ok(erased)
}

async fn clear(tx: &DatabaseTransaction, id: Uuid) -> Result<Erased, CustomerError> {
    let run = async |sql: &str| {
        let done = tx.execute_raw(statement(sql, [id.into()])).await.map_err(CustomerError::Database)?;
        Ok::<_, CustomerError>(done.rows_affected())
    };
    // Blocks new orders and transfers of this customer until the transaction ends.
    if run("SELECT FROM customers WHERE id = $1 FOR UPDATE").await? == 0 {
        return Err(CustomerError::Unknown(id));
    }
    let orders = run("SELECT FROM orders WHERE customer_id = $1 ORDER BY id FOR UPDATE").await?;
    run("SELECT FROM accounts WHERE customer_id = $1 AND kind = 'wallet' FOR UPDATE").await?;
    let obstacles = obstacles(tx, id).await.map_err(CustomerError::Database)?;
    if !obstacles.is_empty() {
        return Err(CustomerError::Open(obstacles));
    }
    run("UPDATE customers SET full_name = '', phone = '', email = '', address = '', erased_at = coalesce(erased_at, now())
          WHERE id = $1")
    .await?;
    // Before the cart items are deleted, because events are found by their ids.
    let events = run(&EVENTS.replace("events", "outbox")).await? + run(&EVENTS.replace("events", "set_aside")).await?;
    run(UNKNOWN_EVENTS).await?;
    Ok(Erased {
        orders,
        sources: run("DELETE FROM order_sources WHERE order_id IN (SELECT id FROM orders WHERE customer_id = $1)").await?,
        // Without its salt, the recorded hash of a message reveals nothing about it.
        messages: run("UPDATE order_messages SET author = '', body = '', salt = NULL
                        WHERE (salt IS NOT NULL OR author <> '' OR body <> '') AND order_id IN (SELECT id FROM orders WHERE customer_id = $1)")
        .await?,
        products: run("DELETE FROM cart_items WHERE customer_id = $1 AND order_id IS NULL").await?
            + run("UPDATE cart_items SET product_ref = '', product_name = '' WHERE customer_id = $1 AND (product_ref, product_name) <> ('', '')")
                .await?,
        events,
    })
}

/// Clears the data that the order system put into the events about a customer.
const EVENTS: &str = "UPDATE events SET data = NULL
     WHERE data IS NOT NULL AND subject_id IN (
         SELECT id FROM orders WHERE customer_id = $1 UNION SELECT id FROM cart_items WHERE customer_id = $1 UNION SELECT $1)";

/// The type of an event that was set aside as unknown is free text.
const UNKNOWN_EVENTS: &str = "UPDATE set_aside SET event_type = 'erased'
     WHERE reason LIKE 'unknown event type%' AND subject_id IN (
         SELECT id FROM orders WHERE customer_id = $1 UNION SELECT id FROM cart_items WHERE customer_id = $1 UNION SELECT $1)";

/// The reasons why this customer's data cannot be erased.
async fn obstacles(tx: &DatabaseTransaction, id: Uuid) -> Result<Vec<Obstacle>, DbErr> {
    let mut obstacles = Vec::new();
    let sql = "SELECT balance FROM accounts WHERE customer_id = $1 AND kind = 'wallet' AND balance <> 0";
    obstacles.extend(column(tx, statement(sql, [id.into()])).await?.into_iter().map(Obstacle::Balance));
    let sql = "SELECT code FROM orders WHERE customer_id = $1 AND NOT (SELECT settled FROM order_retention WHERE order_retention.id = orders.id)
                ORDER BY code";
    obstacles.extend(column(tx, statement(sql, [id.into()])).await?.into_iter().map(Obstacle::Order));
    Ok(obstacles)
}

/// A transaction that acts for a customer; see the row policies of `order_sources`.
async fn begin(db: &DatabaseConnection, id: Uuid) -> Result<DatabaseTransaction, CustomerError> {
    let begun = async {
        let tx = db.begin().await?;
        tx.execute_raw(statement("SELECT set_config('kyhan.customer_id', $1, true)", [id.to_string().into()])).await?;
        Ok(tx)
    };
    begun.await.map_err(CustomerError::Database)
}

/// Converts an error; if the server refused the login, into one with advice.
async fn refused(db: &DatabaseConnection, error: DbErr) -> CustomerError {
    if !is_refused(&error) {
        return CustomerError::Database(error);
    }
    let login = scalar(db, statement("SELECT session_user::text", [])).await;
    CustomerError::Refused(login.unwrap_or_else(|_| "of this connection".to_owned()))
}
