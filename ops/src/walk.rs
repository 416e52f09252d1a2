//! A walk over rows of one kind in id order that publishes their wake-ups page by page. It stores its position only after a page is
//! confirmed, so an interrupted walk can continue.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbErr, FromQueryResult};
use shared::{
    broker::{Broker, Publisher},
    database::statement,
    domain::task::Shown,
    message::{
        outgoing::Outgoing,
        pack::{WaitingSubject, pack},
        wakeup::TraceContext,
    },
    settings::Settings,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::OpsError;

/// Most rows per page.
const PAGE: i64 = 5_000;

pub(crate) struct Walk<'a> {
    pub db: &'a DatabaseConnection,
    pub broker: &'a Broker,
    pub settings: &'a Settings,
    pub task: &'a dyn Shown,
    /// SQL: a subquery of `id` and `due_at`, under the name `due`.
    pub due: &'a str,
    /// SQL: the condition on its rows.
    pub which: &'a str,
    /// Most subjects per second.
    pub rate: u32,
    pub stop: &'a CancellationToken,
}

impl Walk<'_> {
    /// Publishes the wake-ups of the rows after `cursor`. After each page, `remember` stores the position and `progress` receives the
    /// size of the page. Returns `false` if `stop` was cancelled before the end.
    pub(crate) async fn run(
        &self,
        mut cursor: Option<Uuid>,
        remember: impl AsyncFn(Uuid) -> Result<(), DbErr>,
        mut progress: impl FnMut(usize),
    ) -> Result<bool, OpsError> {
        let publisher = self.broker.publisher().await?;
        let mut ended = false;
        while !ended && !self.stop.is_cancelled() {
            let began = Instant::now();
            let page = self.page(cursor).await?;
            let count = page.len();
            match page.last().map(|waiting| waiting.subject) {
                None => ended = true,
                Some(last) => {
                    self.publish(&publisher, page).await?;
                    remember(last).await?;
                    cursor = Some(last);
                    progress(count);
                    let pace = Duration::from_micros(count as u64 * 1_000_000 / u64::from(self.rate.max(1)));
                    self.stop.run_until_cancelled(tokio::time::sleep_until(began + pace)).await;
                }
            }
        }
        publisher.close().await;
        Ok(ended)
    }

    async fn page(&self, cursor: Option<Uuid>) -> Result<Vec<WaitingSubject>, DbErr> {
        #[derive(FromQueryResult)]
        struct DueRow {
            id: Uuid,
            due_at: DateTime<Utc>,
            now: DateTime<Utc>,
        }
        let Self { due, which, .. } = self;
        let sql = format!(
            "SELECT due.id, due.due_at, clock_timestamp() AS now FROM {due} AS due
              WHERE due.due_at IS NOT NULL AND ({which}) AND {beyond} ORDER BY due.id LIMIT $1",
            beyond = beyond(cursor)
        );
        let rows = DueRow::find_by_statement(statement(&sql, [PAGE.into()])).all(self.db).await?.into_iter();
        let kind = self.task.kind();
        Ok(rows
            .map(|DueRow { id, due_at, now }| WaitingSubject { kind, subject: id, due_at, wait: due_at - now, attempt: 0 })
            .collect())
    }

    async fn publish(&self, publisher: &Publisher, page: Vec<WaitingSubject>) -> Result<(), OpsError> {
        let topology = self.settings.topology();
        let pack_max = self.settings.naming.pack_max;
        let packed = pack(page, topology.ladder(), topology.shards(), pack_max, &TraceContext::default());
        let messages: Vec<Outgoing> = packed.iter().map(|packed| Outgoing::of(packed, &topology)).collect();
        Ok(publisher.publish_all(&messages).await?)
    }
}

/// SQL: the condition for rows of `due` after a cursor.
pub(crate) fn beyond(cursor: Option<Uuid>) -> String {
    cursor.map_or("true".to_owned(), |cursor| format!("due.id > '{cursor}'"))
}
