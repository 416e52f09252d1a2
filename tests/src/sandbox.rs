//! A sandbox: its own database and RabbitMQ name prefix on real servers, both removed afterwards. Sandboxes can run in parallel.

use std::{collections::BTreeMap, env, time::Duration};

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use shared::{
    broker::{Broker, BrokerError},
    database::{
        self, Client,
        active_policy::{self, Applied},
        roles::{self, DatabaseRole, Deletes, Passwords},
        schema,
    },
    domain::policy::Policy,
    settings::{SecretUrl, Settings},
};
use uuid::Uuid;

/// The URLs of the servers.
#[derive(Clone, Debug)]
pub struct Servers {
    pub database_url: String,
    pub amqp_url: String,
}

impl Servers {
    /// The servers that `deploy/services` found or started.
    ///
    /// # Errors
    /// When the environment does not name them.
    pub fn from_env() -> Result<Self> {
        let url = |name: &str| {
            env::var(name)
                .with_context(|| format!("{name} is not set; run `deploy/services up`, then `eval \"$(deploy/services env)\"`"))
        };
        Ok(Self { database_url: url("KYHAN_DATABASE_URL")?, amqp_url: url("KYHAN_AMQP_URL")? })
    }
}

/// A database and a prefix, with a login for each role. Tests set up and read rows as an administrator; the code under test logs in with
/// its role, see [`as_role`].
pub struct Sandbox {
    /// With its policy as it was applied.
    pub settings: Settings,
    pub db: DatabaseConnection,
    /// The environment for the fleet's processes; [`crate::fleet::command`] adds the login of each role.
    pub env: BTreeMap<String, String>,
    servers: Servers,
    database: String,
}

impl Sandbox {
    /// Creates a database, migrates it, reads the settings (the defaults, then `file`, then the variables `more`) and applies their policy.
    ///
    /// # Errors
    /// When a server is away or the settings are invalid.
    pub async fn new(name: &str, file: &str, more: &[(&str, &str)]) -> Result<Self> {
        Self::on(Servers::from_env()?, name, file, more, None).await
    }

    /// Does the same on the given servers, with the database in the given tablespace.
    ///
    /// # Errors
    /// When a server is away or the settings are invalid.
    pub async fn on(servers: Servers, name: &str, file: &str, more: &[(&str, &str)], tablespace: Option<&str>) -> Result<Self> {
        let unique = Uuid::new_v4().simple().to_string();
        let database = format!("kyhan_{name}_{}", &unique[..12]);
        let admin = Database::connect(&servers.database_url).await.context("connecting to PostgreSQL")?;
        let place = tablespace.map_or(String::new(), |name| format!(" TABLESPACE {name}"));
        admin.execute_unprepared(&format!("CREATE DATABASE {database}{place}")).await?;
        admin.close().await?;

        let mut url = url::Url::parse(&servers.database_url)?;
        url.set_path(&database);
        let mut env: BTreeMap<String, String> = [
            ("KYHAN_DATABASE_URL", url.as_str()),
            ("KYHAN_AMQP_URL", &servers.amqp_url),
            ("KYHAN_TOPOLOGY_PREFIX", &format!("kyhan.{name}.{}", &unique[..12])),
        ]
        .into_iter()
        .chain(more.iter().copied())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let path = env::temp_dir().join(format!("{database}.toml"));
        std::fs::write(&path, file)?;
        let settings = Settings::read(Some(&path), env.clone())?;
        env.insert("KYHAN_CONFIG".into(), path.to_string_lossy().into_owned());
        let db = database::connect(&settings.database, Client::Ops).await?;
        roles::install(&db, &Passwords::new(), Deletes(settings.retention.deletes())).await.context("installing the roles")?;
        for role in DatabaseRole::ALL {
            let (login, password) = login(&database, role);
            db.execute_unprepared(&format!("CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE {role}")).await?;
        }
        for name in OPERATORS {
            let (login, password) = operators_login(&database, name);
            let role = DatabaseRole::Ops;
            db.execute_unprepared(&format!("CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE {role}")).await?;
        }
        let owner = roles::connect_as_owner(&as_role(settings.clone(), DatabaseRole::Owner)?.database).await?;
        schema::up(&owner).await?;
        roles::grant(&owner, Deletes(settings.retention.deletes())).await?;
        owner.close().await?;
        let mut sandbox = Self { settings, db, env, servers, database };
        let applied = sandbox.apply(&sandbox.settings.policy).await?;
        sandbox.settings = active_policy::under(&sandbox.settings, Some(&applied));
        Ok(sandbox)
    }

    /// A connection with the login of a role.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn connect_as(&self, role: DatabaseRole) -> Result<DatabaseConnection> {
        let door = match role {
            DatabaseRole::Producer => Client::Producer,
            DatabaseRole::Worker => Client::Worker,
            DatabaseRole::Ops | DatabaseRole::OrderSystem => Client::Ops,
            DatabaseRole::Owner => Client::Owner,
        };
        Ok(database::connect(&as_role(self.settings.clone(), role)?.database, door).await?)
    }

    /// A connection with an operator's own login, one of [`OPERATORS`].
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn connect_as_operator(&self, name: &str) -> Result<DatabaseConnection> {
        let mut settings = self.settings.clone();
        let url = url_as_operator(settings.database.url.expose(), name)?;
        settings.database.url = SecretUrl::postgresql(&url).map_err(anyhow::Error::msg)?;
        Ok(database::connect(&settings.database, Client::Ops).await?)
    }

    /// Applies a policy as an administrator, without a preview and without a release.
    ///
    /// # Errors
    /// A database error.
    pub async fn apply(&self, policy: &Policy) -> Result<Applied> {
        let applied = active_policy::apply(&self.db, policy, "administrator", "a test", None).await?;
        let sql = "UPDATE policies SET scheduled_at = now() WHERE id = $1";
        self.db.execute_raw(database::statement(sql, [applied.number.into()])).await?;
        Ok(applied)
    }

    /// The name of the database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// A connection to the broker.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn broker(&self) -> Result<Broker, BrokerError> {
        Broker::connect(&self.settings.amqp, "kyhan test").await
    }

    /// Declares the topology.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn declare(&self) -> Result<(), BrokerError> {
        let broker = self.broker().await?;
        broker.declare(&self.settings.topology()).await?;
        broker.close().await;
        Ok(())
    }

    /// The settings with further variables.
    ///
    /// # Errors
    /// When they are invalid.
    pub fn settings_with(&self, more: &[(&str, &str)]) -> Result<Settings> {
        let mut env = self.env.clone();
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let path = env.get("KYHAN_CONFIG").map(std::path::PathBuf::from);
        Ok(Settings::read(path.as_deref(), env)?)
    }

    /// How many messages are in the queues whose names, after the prefix, begin with the given text.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn depth(&self, broker: &Broker, begins: &str) -> Result<u32, BrokerError> {
        let begins = format!("{}.{begins}", self.settings.naming.prefix);
        let mut depth = 0;
        for queue in self.settings.topology().queues().iter().filter(|queue| queue.name.starts_with(&begins)) {
            depth += broker.observe(&queue.name).await?.map_or(0, |seen| seen.messages);
        }
        Ok(depth)
    }

    /// Removes the database and every queue and exchange.
    ///
    /// # Errors
    /// When a server is away; the error then names what remains.
    pub async fn remove(self) -> Result<()> {
        // Those of other policies too. A test may have removed the table.
        let (sql, prefix) =
            ("SELECT queue, exchange FROM rungs WHERE starts_with(queue, $1)", self.settings.naming.prefix.as_str());
        let rungs = self.db.query_all_raw(database::statement(sql, [prefix.into()])).await.unwrap_or_default();
        self.db.clone().close().await?;
        let admin = Database::connect(&self.servers.database_url).await?;
        admin
            .execute_unprepared(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database))
            .await
            .context(self.database.clone())?;
        for role in DatabaseRole::ALL {
            admin.execute_unprepared(&format!("DROP ROLE {}", login(&self.database, role).0)).await?;
        }
        for name in OPERATORS {
            admin.execute_unprepared(&format!("DROP ROLE {}", operators_login(&self.database, name).0)).await?;
        }
        admin.close().await?;
        if let Some(path) = self.env.get("KYHAN_CONFIG") {
            let _ = std::fs::remove_file(path);
        }
        let broker = self.broker().await?;
        let topology = self.settings.topology();
        for exchange in topology.exchanges() {
            broker.delete_exchange(&exchange.name).await.context(exchange.name)?;
        }
        // Rungs first: an at-least-once queue whose target is gone keeps its messages.
        for queue in topology.queues().iter().rev() {
            broker.delete_queue(&queue.name).await.context(queue.name.clone())?;
        }
        for rung in rungs {
            broker.delete_queue(&rung.try_get::<String>("", "queue")?).await?;
            broker.delete_exchange(&rung.try_get::<String>("", "exchange")?).await?;
        }
        broker.close().await;
        Ok(())
    }
}

/// The login of a role in a sandbox's database, and its password.
fn login(database: &str, role: DatabaseRole) -> (String, String) {
    let own = database.rsplit('_').next().unwrap_or(database);
    (format!("kyhan_{own}_{}", role.name().trim_start_matches("kyhan_")), own.to_owned())
}

/// Operators with logins of their own in every sandbox. A command with `--as NAME` uses the login of that name.
pub const OPERATORS: [&str; 3] = ["lan", "minh", "hoa"];

/// The login of an operator in a sandbox's database, and its password.
fn operators_login(database: &str, name: &str) -> (String, String) {
    let own = database.rsplit('_').next().unwrap_or(database);
    (format!("kyhan_{own}_operator_{name}"), own.to_owned())
}

/// A sandbox's URL with the login of an operator.
///
/// # Errors
/// When the URL is invalid.
pub fn url_as_operator(url: &str, name: &str) -> Result<String> {
    let mut url = url::Url::parse(url)?;
    let (user, password) = operators_login(url.path().trim_start_matches('/'), name);
    let set = url.set_username(&user).and_then(|()| url.set_password(Some(&password)));
    anyhow::ensure!(set.is_ok(), "a URL without a host has no login");
    Ok(url.into())
}

/// A sandbox's URL with the login of a role.
///
/// # Errors
/// When the URL is invalid.
pub fn url_as_role(url: &str, role: DatabaseRole) -> Result<String> {
    let mut url = url::Url::parse(url)?;
    let (user, password) = login(url.path().trim_start_matches('/'), role);
    let set = url.set_username(&user).and_then(|()| url.set_password(Some(&password)));
    anyhow::ensure!(set.is_ok(), "a URL without a host has no login");
    Ok(url.into())
}

/// Settings of a sandbox with the login of a role.
///
/// # Errors
/// When its URL is invalid.
pub fn as_role(mut settings: Settings, role: DatabaseRole) -> Result<Settings> {
    let url = url_as_role(settings.database.url.expose(), role)?;
    settings.database.url = SecretUrl::postgresql(&url).map_err(anyhow::Error::msg)?;
    Ok(settings)
}

/// Polls a condition for the given time and checks that it always holds.
///
/// # Panics
/// When it does not hold once; the message names the condition.
#[expect(clippy::panic, reason = "a test whose claim breaks has failed")]
pub async fn always(what: &str, span: Duration, mut ask: impl AsyncFnMut() -> Result<bool>) {
    let end = tokio::time::Instant::now() + span;
    while tokio::time::Instant::now() < end {
        match ask().await {
            Ok(holds) => assert!(holds, "no longer: {what}"),
            Err(error) => panic!("asking whether {what}: {error:#}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The pause between two polls.
const PAUSE: Duration = Duration::from_millis(20);

/// Polls a condition until it holds.
///
/// # Panics
/// When it does not hold within the deadline; the message names the condition.
#[expect(clippy::panic, reason = "a test that waits in vain has failed")]
pub async fn eventually(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> Result<bool>) {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match ask().await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => panic!("waiting until {what}: {error:#}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}
