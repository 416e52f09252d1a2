//! One struct per section of `kyhan.toml`. Each reads and validates its own keys.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use super::{
    SecretUrl,
    reader::SettingsReader,
    secret::{POSTGRESQL, RABBITMQ},
    values::{
        at_least_six_months, delete_after, dong_or_none, duration, forecast_every, keep, listen, log_filter, prefix, schema_name,
        set_aside, size,
    },
};
use crate::{domain::span::Span, message::wakeup::SUBJECTS_MAX};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// `database.*`
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    pub url: SecretUrl,
    /// The schema of the fleet's tables.
    pub schema: String,
    /// The schema of the order system's tables.
    pub order_system_schema: String,
    pub max_connections: u32,
    pub acquire_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
}

impl DatabaseSettings {
    /// `None`, with its mistake noted, without a URL.
    pub(super) fn read(r: &mut SettingsReader) -> Option<Self> {
        let url = r.secret("database.url", &POSTGRESQL);
        let schema = schema_name(r, "database.schema");
        let order_system_schema = schema_name(r, "database.order_system_schema");
        if schema == order_system_schema {
            r.mistake("database.schema", "must differ from database.order_system_schema".to_owned());
        }
        let max_connections = r.number("database.max_connections", 2u32..=1_000);
        let acquire_timeout = duration(r, "database.acquire_timeout_ms", 1..=10 * MINUTE_MS);
        let statement_timeout = duration(r, "database.statement_timeout_ms", 100..=60 * MINUTE_MS);
        let lock_timeout = duration(r, "database.lock_timeout_ms", 10..=60 * MINUTE_MS);
        Some(Self { url: url?, schema, order_system_schema, max_connections, acquire_timeout, statement_timeout, lock_timeout })
    }

    /// The `search_path` of every session: ours first, so that no table of the order system's hides one of ours, and temporary
    /// tables last.
    pub(crate) fn search_path(&self) -> String {
        format!("{}, {}, pg_temp", self.schema, self.order_system_schema)
    }
}

/// `amqp.*`
#[derive(Clone, Debug)]
pub struct AmqpSettings {
    pub url: SecretUrl,
    pub confirm_timeout: Duration,
}

impl AmqpSettings {
    /// `None`, with its mistake noted, without a URL.
    pub(super) fn read(r: &mut SettingsReader) -> Option<Self> {
        let url = r.secret("amqp.url", &RABBITMQ);
        let confirm_timeout = duration(r, "amqp.confirm_timeout_ms", 100..=10 * MINUTE_MS);
        Some(Self { url: url?, confirm_timeout })
    }
}

/// `arrears.*`
#[derive(Clone, Copy, Debug)]
pub struct ArrearsSettings {
    /// Lowest balance in đồng to which a charge may take a wallet.
    pub wallet_floor: Option<i64>,
}

impl ArrearsSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { wallet_floor: dong_or_none(r, "arrears.wallet_floor") }
    }
}

/// `topology.*`
#[derive(Clone, Debug)]
pub struct NamingSettings {
    pub prefix: String,
    pub shards: u16,
    pub ladder: Vec<Duration>,
    pub pack_max: usize,
}

impl NamingSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self {
            prefix: prefix(r),
            shards: r.number("topology.shards", 1u16..=256),
            ladder: r.durations("topology.ladder"),
            pack_max: size(r, "topology.pack_max", SUBJECTS_MAX),
        }
    }
}

/// `relay.*`
#[derive(Clone, Copy, Debug)]
pub struct RelaySettings {
    pub batch_max: u32,
    pub poll: Duration,
}

impl RelaySettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { batch_max: r.number("relay.batch_max", 1u32..=100_000), poll: duration(r, "relay.poll_ms", 1..=MINUTE_MS) }
    }
}

/// `worker.*`
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    pub consumers: u16,
    pub batch_max: usize,
    pub linger: Duration,
    pub prefetch: u16,
    pub attempts_max: u32,
    /// Pauses between attempts, each plus up to half of it at random; the last one repeats.
    pub retry: Vec<Duration>,
    pub hold: Duration,
    pub grace: Duration,
}

impl WorkerSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self {
            consumers: r.number("worker.consumers", 1u16..=64),
            batch_max: size(r, "worker.batch_max", 10_000),
            linger: duration(r, "worker.linger_ms", 0..=10_000),
            prefetch: r.number("worker.prefetch", 1u16..=u16::MAX),
            attempts_max: r.number("worker.attempts_max", 1u32..=1_000),
            retry: r.durations("worker.retry"),
            hold: duration(r, "worker.hold_ms", 100..=DAY_MS),
            grace: duration(r, "worker.grace_ms", 0..=60 * MINUTE_MS),
        }
    }
}

/// `clock.*`
#[derive(Clone, Copy, Debug)]
pub struct ClockSettings {
    /// By how much PostgreSQL's clock may differ from this machine's.
    pub max_skew: Duration,
}

impl ClockSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { max_skew: duration(r, "clock.max_skew_ms", 1_000..=36_500 * DAY_MS) }
    }
}

/// `sweep.*`
#[derive(Clone, Copy, Debug)]
pub struct SweepSettings {
    pub every: Duration,
    pub grace: Duration,
    /// Most subjects of one kind that one round wakes.
    pub batch_max: u32,
    /// A kind with more messages in its lanes than this is not swept.
    pub lane_depth_max: u32,
    /// By how much each look at the recent past overlaps the previous one.
    pub lookback: Duration,
    /// The interval between two looks at the rest of the past.
    pub whole_every: Duration,
}

impl SweepSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self {
            every: duration(r, "sweep.every_ms", 10..=DAY_MS),
            grace: duration(r, "sweep.grace_ms", 10..=DAY_MS),
            batch_max: r.number("sweep.batch_max", 1u32..=1_000_000),
            lane_depth_max: r.number("sweep.lane_depth_max", 0u32..=1_000_000),
            lookback: duration(r, "sweep.lookback_ms", MINUTE_MS..=30 * DAY_MS),
            whole_every: duration(r, "sweep.whole_every_ms", 10..=30 * DAY_MS),
        }
    }
}

/// `forecast.*`
#[derive(Clone, Copy, Debug)]
pub struct ForecastSettings {
    /// How often it is computed; `None`: never.
    pub every: Option<Duration>,
    /// Most subjects that are counted per kind and stretch of time.
    pub count_max: u32,
}

impl ForecastSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { every: forecast_every(r), count_max: r.number("forecast.count_max", 1u32..=1_000_000_000) }
    }
}

/// `dead_letters.*`
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterSettings {
    /// How long a letter is kept after an operator decided about it; `None`: forever. Open letters are always kept.
    pub keep: Option<Span>,
    /// A plan that moves more đồng than this needs the approval of a second operator.
    pub approval_above: Option<i64>,
    /// Letters that a run replays per second.
    pub rate: NonZeroU32,
}

impl DeadLetterSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self {
            keep: keep(r),
            approval_above: dong_or_none(r, "dead_letters.approval_above"),
            rate: NonZeroU32::new(r.number("dead_letters.rate", 1u32..=100_000)).unwrap_or(NonZeroU32::MIN),
        }
    }
}

/// `retention.*`
#[derive(Clone, Copy, Debug)]
pub struct RetentionSettings {
    /// After how long finance and activity records that belong to no active order are hidden from the active views.
    pub records: Span,
    /// How long after it was hidden an order is deleted, and after how long sealed activity is deleted; `None`: never.
    pub delete_after: Option<Span>,
    /// How long an event that was set aside is kept.
    pub set_aside: Span,
}

impl RetentionSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { records: at_least_six_months(r, "retention.records"), delete_after: delete_after(r), set_aside: set_aside(r) }
    }

    /// Whether workers delete what is old enough.
    #[must_use]
    pub const fn deletes(&self) -> bool {
        self.delete_after.is_some()
    }
}

/// `statistics.*`
#[derive(Clone, Copy, Debug)]
pub struct StatisticsSettings {
    /// Fewest customers that a group must have.
    pub min_customers: u16,
    /// The largest share of any figure of a group that one customer may have, in percent.
    pub max_share_percent: u16,
}

impl StatisticsSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self {
            min_customers: r.number("statistics.min_customers", 5u16..=1_000),
            max_share_percent: r.number("statistics.max_share_percent", 1u16..=50),
        }
    }
}

/// `admin.*`
#[derive(Clone, Copy, Debug)]
pub struct AdminSettings {
    /// The address of the admin port; port 0 is any free one.
    pub listen: Option<SocketAddr>,
}

impl AdminSettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { listen: listen(r) }
    }
}

/// `telemetry.*`
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    pub log: String,
    pub report_every: Duration,
}

impl TelemetrySettings {
    pub(super) fn read(r: &mut SettingsReader) -> Self {
        Self { log: log_filter(r), report_every: duration(r, "telemetry.report_every_ms", 10..=60 * MINUTE_MS) }
    }
}
