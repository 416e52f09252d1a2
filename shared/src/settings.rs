//! Settings: one struct per section, read from `kyhan.toml` and `KYHAN_…`, validated at once with every mistake listed, and
//! printed with secrets redacted.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    domain::policy::{Policy, Safeguards},
    message::topology::Topology,
};

mod policy_table;
mod reader;
mod secret;
mod sections;
mod values;

use reader::SettingsReader;
pub use reader::{SAMPLE, SettingMistake};
pub use secret::SecretUrl;
pub use sections::{
    AdminSettings, AmqpSettings, ArrearsSettings, ClockSettings, DatabaseSettings, DeadLetterSettings, ForecastSettings,
    NamingSettings, RelaySettings, RetentionSettings, StatisticsSettings, SweepSettings, TelemetrySettings, WorkerSettings,
};

/// All settings of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    pub database: DatabaseSettings,
    pub amqp: AmqpSettings,
    pub policy: Policy,
    pub arrears: ArrearsSettings,
    pub naming: NamingSettings,
    pub relay: RelaySettings,
    pub worker: WorkerSettings,
    pub clock: ClockSettings,
    pub sweep: SweepSettings,
    pub dead_letters: DeadLetterSettings,
    pub retention: RetentionSettings,
    pub statistics: StatisticsSettings,
    pub forecast: ForecastSettings,
    pub admin: AdminSettings,
    pub telemetry: TelemetrySettings,
    held: Vec<(String, String)>,
}

/// Invalid settings: every mistake, with its key and what is accepted.
#[derive(Debug, thiserror::Error)]
pub struct SettingsError(pub Vec<SettingMistake>);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in the settings:",
            if self.0.len() == 1 { "1 mistake".into() } else { format!("{} mistakes", self.0.len()) }
        )?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

/// The file that is read if none is named and it exists.
const DEFAULT_FILE: &str = "kyhan.toml";

impl Settings {
    /// Reads the settings of this process: `file`, else `KYHAN_CONFIG`, else `kyhan.toml` in the working directory, else the
    /// defaults; and `KYHAN_…`.
    ///
    /// # Errors
    /// Every mistake.
    pub fn load(file: Option<PathBuf>) -> Result<Self, SettingsError> {
        let file = file
            .or_else(|| std::env::var_os("KYHAN_CONFIG").map(PathBuf::from))
            .or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
        Self::read(file.as_deref(), own_env())
    }

    /// The policy of another file, which must be valid as settings of this process and must contain a policy.
    ///
    /// # Errors
    /// Every mistake.
    pub fn policy_of(file: &Path) -> Result<Policy, SettingsError> {
        let mut reader = SettingsReader::new(Some(file), own_env());
        if reader.in_file.as_ref().is_some_and(|set| !set.contains("policy")) {
            reader.mistake("policy", format!("{} contains no [[policy]]", file.display()));
        }
        Self::of(reader).map(|settings| settings.policy)
    }

    /// Reads settings from a file and an environment.
    ///
    /// # Errors
    /// Every mistake.
    pub fn read(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, SettingsError> {
        Self::of(SettingsReader::new(file, env))
    }

    /// Reads each section, in the order in which the settings are printed.
    fn of(mut reader: SettingsReader) -> Result<Self, SettingsError> {
        let r = &mut reader;
        let database = DatabaseSettings::read(r);
        let amqp = AmqpSettings::read(r);
        let arrears = ArrearsSettings::read(r);
        let naming = NamingSettings::read(r);
        let relay = RelaySettings::read(r);
        let worker = WorkerSettings::read(r);
        let clock = ClockSettings::read(r);
        let sweep = SweepSettings::read(r);
        let forecast = ForecastSettings::read(r);
        let dead_letters = DeadLetterSettings::read(r);
        let retention = RetentionSettings::read(r);
        let statistics = StatisticsSettings::read(r);
        let admin = AdminSettings::read(r);
        let telemetry = TelemetrySettings::read(r);
        let policy = policy_table::policy(r).guarded(Safeguards {
            wallet_floor: arrears.wallet_floor,
            approval_above: dead_letters.approval_above,
            delete_after: retention.delete_after,
        });
        let held = std::mem::take(&mut r.held);
        match (database, amqp) {
            (Some(database), Some(amqp)) if reader.mistakes.is_empty() => Ok(Self {
                database,
                amqp,
                policy,
                arrears,
                naming,
                relay,
                worker,
                clock,
                sweep,
                dead_letters,
                retention,
                statistics,
                forecast,
                admin,
                telemetry,
                held,
            }),
            _ => Err(SettingsError(reader.mistakes)),
        }
    }

    /// The same settings with another policy, and with what its safeguards decide.
    #[must_use]
    pub fn with_policy(&self, policy: Policy) -> Self {
        let mut settings = self.clone();
        if let Some(Safeguards { wallet_floor, approval_above, delete_after }) = policy.safeguards() {
            settings.arrears.wallet_floor = wallet_floor;
            settings.dead_letters.approval_above = approval_above;
            settings.retention.delete_after = delete_after;
        }
        settings.policy = policy;
        settings
    }

    /// The exchanges and queues that follow from these settings.
    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology::new(&self.naming.prefix, self.naming.shards, &self.naming.ladder, &self.policy)
    }
}

impl fmt::Display for Settings {
    /// As a `kyhan.toml`, with secrets redacted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        let mut section = "";
        for (key, value) in &self.held {
            let (of, name) = key.split_once('.').unwrap_or(("", key));
            if of != section {
                writeln!(f, "{}[{of}]", if section.is_empty() { "" } else { "\n" })?;
                section = of;
            }
            writeln!(f, "{name} = {value}")?;
        }
        Ok(())
    }
}

fn own_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    const URLS: [(&str, &str); 2] =
        [("KYHAN_DATABASE_URL", "postgres://k:hunter2@db/kyhan"), ("KYHAN_AMQP_URL", "amqp://k:hunter2@mq/%2f")];

    fn read(file: &str, env: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let path = std::env::temp_dir().join(format!("kyhan-settings-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&path, file).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = Settings::read(Some(&path), env);
        std::fs::remove_file(&path).unwrap();
        settings.map_err(|SettingsError(mistakes)| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_sample_file_and_the_settings_name_the_same_keys() {
        let known: BTreeSet<String> = SettingsReader::new(None, []).known().filter(|key| *key != "policy").cloned().collect();
        let settings = read("", &URLS).unwrap();
        let held: BTreeSet<String> =
            settings.held.iter().map(|(key, _)| key.clone()).filter(|key| !key.contains(".url")).collect();
        assert_eq!(known, held);
    }

    #[test]
    fn the_default_policy_is_the_one_that_was_published() {
        let lines = read("", &URLS)
            .unwrap()
            .policy
            .lines()
            .iter()
            .map(|l| format!("{} {} {}", l.on, l.task, l.after))
            .collect::<Vec<_>>();
        assert_eq!(
            lines,
            [
                "order.shipped confirm-receipt 14d",
                "order.shipped collect-arrears 1d",
                "order.received collect-arrears 1d",
                "order.out_of_stock collect-arrears 1d",
                "order.fees_changed collect-arrears 1d",
                "cart.item_added purge-cart-item 30d",
                "order.recorded hide-order 6 months",
            ]
        );
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let env = [
            URLS[0],
            URLS[1],
            ("KYHAN_WORKER_BATCH_MAX", "17"),
            ("KYHAN_TOPOLOGY_LADDER", "2s, 1m"),
            ("KYHAN_ARREARS_WALLET_FLOOR", "-5_000"),
            ("KYHAN_ADMIN_LISTEN", "[::]:9400"),
            ("KYHAN_FORECAST_EVERY_MS", "none"),
            ("KYHAN_DEAD_LETTERS_KEEP", "365d"),
        ];
        let settings = read("[worker]\nbatch_max = 3\nlinger_ms = 9", &env).unwrap();
        assert_eq!((settings.worker.batch_max, settings.worker.linger), (17, Duration::from_millis(9)));
        assert_eq!(settings.naming.ladder, [2, 60].map(Duration::from_secs));
        assert_eq!(settings.arrears.wallet_floor, Some(-5_000));
        assert_eq!(settings.forecast.every, None);
        assert_eq!(settings.dead_letters.keep, Some("365d".parse().unwrap()));
        assert_eq!(settings.admin.listen, Some("[::]:9400".parse().unwrap()));
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_key_and_what_would_be_right() {
        let file = r#"
            [sweep]
            # every_ms = 1
            [worker2]
            [worker]
            batch_max = 0
            linger = 5
            retry = ["soon"]
            [topology]
            prefix = "kỳ hạn"
            [database]
            url = "postgres://x"
            [arrears]
            wallet_floor = "deep"
            [dead_letters]
            keep = "for ever"
            [forecast]
            every_ms = 0
            [admin]
            listen = "localhost"
            [retention]
            mode = "shred"
            records = "5 months"
            delete_after = "183d"
            [statistics]
            min_customers = 2
            [[policy]]
            on = "order.recorded"
            task = "hide-order"
            after = "183d"
            [[policy]]
            on = "order.shiped"
            task = "confirm-receipt"
            after = "14d"
            [[policy]]
            on = "cart.item_added"
            task = "collect-arrears"
            after = "24h"
            [[policy]]
            on = "order.shipped"
            task = "make-coffee"
            after = "two weeks or so"
        "#;
        let mistakes = read(file, &[("KYHAN_AMQP_URL", "http://mq"), ("KYHAN_WORKER_PREFECH", "1")]).unwrap_err().join("\n");
        for expected in [
            "worker.batch_max: must be an integer from 1 to 10000 (got 0)",
            "worker2: unknown setting",
            "worker.linger: unknown setting; did you mean worker.linger_ms?",
            "worker.retry[0]: \"soon\" is not a valid duration",
            "topology.prefix: \"kỳ hạn\" is not a valid prefix for queue names",
            "database.url: not allowed in a file, because it contains a password; set KYHAN_DATABASE_URL",
            "database.url: not set; set KYHAN_DATABASE_URL to postgres://",
            "amqp.url: unsupported scheme \"http\"; use the form amqp://",
            "arrears.wallet_floor: must be \"none\" or an integer number of đồng (got \"deep\")",
            "dead_letters.keep: \"for ever\" is not a valid duration",
            "forecast.every_ms: must be \"none\" or an integer from 10 to 86400000 (got \"0\")",
            "admin.listen: must be \"none\" or an address and port like 0.0.0.0:9400 (got \"localhost\")",
            "retention.mode: must be \"hide\" or \"delete\" (got \"shred\")",
            "retention.records: must be at least 6 months, as the policy promises (got 5 months)",
            "retention.delete_after: must be at least 6 months, as the policy promises (got 183d)",
            "statistics.min_customers: must be an integer from 5 to 1000 (got 2)",
            "policy[0].after: hide-order must not fall due before 6 months",
            "policy[1].on: unknown event type \"order.shiped\"",
            "policy[2].on: collect-arrears cannot count from cart.item_added",
            "policy[3].task: unknown task \"make-coffee\"; valid tasks are confirm-receipt",
            "policy[3].after: \"two weeks or so\" is not a valid duration",
            "KYHAN_WORKER_PREFECH: unknown setting; did you mean KYHAN_WORKER_PREFETCH?",
        ] {
            assert!(mistakes.contains(expected), "missing {expected:?} in:\n{mistakes}");
        }
        assert!(!mistakes.contains("sweep"), "an empty section is valid:\n{mistakes}");
    }

    #[test]
    fn what_is_printed_holds_no_secret_and_can_be_read_again() {
        let settings = read("", &URLS).unwrap();
        let printed = settings.to_string();
        assert!(!printed.contains("hunter2") && printed.contains("postgres://k:***@db/kyhan"), "{printed}");
        let again: String = printed.lines().filter(|line| !line.starts_with("url = ")).collect::<Vec<_>>().join("\n");
        assert_eq!(read(&again, &URLS).unwrap().to_string(), printed);
    }
}
