//! A lane's consumer: takes wake-ups of one kind over a connection of its own and leads them through the rooms, batch after
//! batch, in the order in which they came.

use std::sync::Arc;

use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use sea_orm::DatabaseConnection;
use shared::{
    broker::{Broker, BrokerError, backoff, close_channel},
    health::Health,
    settings::Settings,
    task::Statements,
    telemetry,
    topology::Topology,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    apply, batch,
    batch::{Batch, End},
    settle::Settle,
    tally::Tally,
};

/// Most messages of a batch to whose producers its span links; a span is not a list of everything.
const LINKS_MAX: usize = 32;

/// What all lanes of a worker share.
pub(crate) struct Context {
    pub settings: Settings,
    pub topology: Topology,
    pub db: DatabaseConnection,
    pub tally: Arc<Tally>,
    #[expect(dead_code, reason = "the lanes say nothing to it yet")]
    pub health: Health,
    /// Stop taking.
    pub shutdown: CancellationToken,
    /// Stop waiting for a server, too.
    pub abandon: CancellationToken,
}

/// One consumer of one lane.
pub(crate) struct Lane {
    pub kind: &'static str,
    pub queue: String,
    pub statements: Arc<Statements>,
}

impl Lane {
    /// Serves until told to shut down, over one connection after the other.
    pub(crate) async fn run(self, context: Arc<Context>) {
        let mut pauses = None;
        while let Some(broker) = Broker::connect_until(&context.settings.amqp, "kyhan worker", &context.shutdown).await {
            // The worker has declared everything once; a broker that was lost may have come back empty.
            let declared = if pauses.is_some() { broker.declare(&context.topology).await } else { Ok(()) };
            let mut settled = 0;
            let served = match declared {
                Ok(()) => self.serve(&broker, &context, &mut settled).await,
                Err(error) => Err(error),
            };
            broker.close().await;
            if settled > 0 {
                pauses = None;
            }
            match served {
                Ok(()) => return,
                Err(error) => tracing::warn!(lane = self.queue, %error, "lost RabbitMQ; unsettled wake-ups return to their lane"),
            }
            // Growing, as each time what was prefetched returns and has been delivered once more.
            let pause = pauses.get_or_insert_with(|| Box::new(backoff())).next().unwrap_or_default();
            context.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// Serves over one connection; `settled` counts its batches.
    async fn serve(&self, broker: &Broker, context: &Context, settled: &mut u64) -> Result<(), BrokerError> {
        let settle = Settle {
            channel: broker.channel().await?,
            publisher: broker.publisher().await?,
            topology: &context.topology,
            worker: &context.settings.worker,
            pack_max: context.settings.naming.pack_max,
        };
        let mut consumer = consume(&settle.channel, &self.queue, context.settings.worker.prefetch).await?;
        let limits = batch::Limits::from(&context.settings.worker);
        loop {
            let (batch, end) = batch::fill(&mut consumer, self.kind, limits, &context.shutdown).await;
            if !batch.is_empty() {
                if !self.process(batch, &settle, context).await? {
                    break;
                }
                *settled += 1;
            }
            match end {
                End::Full => {}
                End::Shutdown => break,
                End::Lost(error) => return Err(error),
            }
        }
        // Closing the channel returns what was prefetched and not taken.
        close_channel(&settle.channel).await;
        settle.publisher.close().await;
        Ok(())
    }

    /// One batch through apply and settle; `false` when it was abandoned unsettled.
    async fn process(&self, batch: Batch, settle: &Settle<'_>, context: &Context) -> Result<bool, BrokerError> {
        let span = tracing::info_span!("batch", otel.kind = "consumer", kind = self.kind, messages = batch.len());
        for wakeup in batch.wakeups().take(LINKS_MAX) {
            telemetry::link(&span, &wakeup.trace);
        }
        async {
            let asked = batch.asked();
            let Some(outcomes) = apply::apply(&context.db, &self.statements, asked, &context.abandon).await else {
                return Ok(false);
            };
            let settled = batch.answer(outcomes);
            settle.settle(&settled).await?;
            context.tally.count(self.kind, &settled);
            Ok(true)
        }
        .instrument(span)
        .await
    }
}

async fn consume(channel: &Channel, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
    // Per consumer, not global: quorum queues know no global prefetch, and RabbitMQ 4 refuses it.
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    Ok(channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?)
}
