//! URLs that contain a password: it is never printed. A URL from a file is read again at each connect, because passwords are rotated.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use url::{Host, Url};

/// What the URL of a kind of server may contain.
pub(super) struct UrlRules {
    /// The first one is suggested.
    pub schemes: &'static [&'static str],
    /// The parameters that its client reads. It would ignore any other, such as `ssl_mode` for `sslmode`.
    parameters: &'static [&'static str],
    /// Why a password over this connection could be read by others, given the parameters.
    exposed: fn(&Url) -> Option<String>,
}

/// <https://docs.rs/sqlx/latest/sqlx/postgres/struct.PgConnectOptions.html>
pub(super) const POSTGRESQL: UrlRules = UrlRules {
    schemes: &["postgres", "postgresql"],
    parameters: &[
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ],
    exposed: |url| {
        let mode = last(url, &["sslmode", "ssl-mode"]).or_else(|| std::env::var("PGSSLMODE").ok());
        let mode = mode.unwrap_or_else(|| "prefer".to_owned());
        let why = format!(
            "sslmode={mode} does not verify the server, so another one on the way can read the password and every row; \
             append ?sslmode=verify-full"
        );
        (mode != "verify-full").then_some(why)
    },
};

/// <https://docs.rs/amq-protocol-uri/latest/amq_protocol_uri/struct.AMQPQueryString.html>
pub(super) const RABBITMQ: UrlRules = UrlRules {
    schemes: &["amqp", "amqps"],
    parameters: &["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism"],
    exposed: |url| {
        let why = "the connection is not encrypted, so others on the way can read the password; use amqps://";
        (url.scheme() == "amqp").then(|| why.to_owned())
    },
};

/// The values of `sslmode`.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// A server's URL. `Display` and `Debug` show `***` for the password.
#[derive(Clone)]
pub struct SecretUrl {
    whole: String,
    shown: String,
    exposed: Option<String>,
    /// The file that it comes from.
    file: Option<(PathBuf, &'static UrlRules)>,
}

impl PartialEq for SecretUrl {
    fn eq(&self, other: &Self) -> bool {
        self.whole == other.whole
    }
}

impl Eq for SecretUrl {}

impl SecretUrl {
    /// A URL of a kind of server.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub(super) fn parse(text: &str, server: &UrlRules) -> Result<Self, String> {
        let UrlRules { schemes, parameters, exposed } = server;
        let like = format!("use the form {}://user:password@host:port/name", schemes[0]);
        let mut url = Url::parse(text).map_err(|error| format!("not a valid URL ({error}); {like}"))?;
        if !schemes.contains(&url.scheme()) {
            return Err(format!("unsupported scheme {:?}; {like}", url.scheme()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(format!("the host is missing; {like}"));
        }
        for (name, value) in url.query_pairs() {
            let known = parameters.contains(&&*name) || (parameters.contains(&"options") && name.starts_with("options["));
            if !known {
                return Err(format!("unknown parameter {}; known are {}", quoted(&name), parameters.join(", ")));
            }
            if ["sslmode", "ssl-mode"].contains(&&*name) && !SSL_MODES.contains(&&*value) {
                return Err(format!("{name} must be one of {}", SSL_MODES.join(", ")));
            }
        }
        let exposed = if is_local(&url) { None } else { exposed(&url) };
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return Err(format!("the user is missing; {like}"));
        }
        // Parameters may contain a password too.
        url.set_query(None);
        Ok(Self { whole: text.to_owned(), shown: url.into(), exposed, file: None })
    }

    /// The URL in a file.
    ///
    /// # Errors
    /// What is wrong with the file or the URL, without repeating it.
    pub(super) fn from_file(path: PathBuf, server: &'static UrlRules) -> Result<Self, String> {
        let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Self { file: Some((path, server)), ..Self::parse(text.trim(), server)? })
    }

    /// The URL as it is now: that of its file, if it comes from one. If the file cannot be read, as in the middle of a rotation, the URL
    /// that was read before.
    #[must_use]
    pub fn current(&self) -> Self {
        let Some((path, server)) = &self.file else { return self.clone() };
        Self::from_file(path.clone(), server).unwrap_or_else(|why| {
            tracing::warn!(why, url = %self, "a file with a URL cannot be used; using the URL that it contained before");
            self.clone()
        })
    }

    /// The host, if it is an IPv6 address, without the brackets: neither client of a server takes it from the URL.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        match Url::parse(&self.whole).ok()?.host()? {
            Host::Ipv6(address) => Some(address),
            Host::Domain(_) | Host::Ipv4(_) => None,
        }
    }

    /// A URL of PostgreSQL.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn postgresql(text: &str) -> Result<Self, String> {
        Self::parse(text, &POSTGRESQL)
    }

    /// A URL of RabbitMQ.
    #[cfg(test)]
    pub(crate) fn rabbitmq(text: &str) -> Result<Self, String> {
        Self::parse(text, &RABBITMQ)
    }

    /// The whole URL, to connect with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.whole
    }

    /// Why others could read what passes over this connection, and what to change; `None` for a verified connection, and for
    /// one that does not leave this machine.
    #[must_use]
    pub fn exposed(&self) -> Option<&str> {
        self.exposed.as_deref()
    }
}

/// The last value of a parameter of several names.
fn last(url: &Url, names: &[&str]) -> Option<String> {
    url.query_pairs().filter(|(name, _)| names.contains(&&**name)).last().map(|(_, value)| value.into_owned())
}

/// Whether the server is on this machine: a loopback address or a socket.
fn is_local(url: &Url) -> bool {
    let local = |host: &str| {
        host == "localhost"
            || host.starts_with('/')
            || host.to_ascii_lowercase().starts_with("%2f")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    match (last(url, &["host", "hostaddr"]), url.host()) {
        (Some(host), _) => local(&host),
        (None, Some(Host::Domain(name))) => local(name),
        (None, Some(Host::Ipv4(address))) => address.is_loopback(),
        (None, Some(Host::Ipv6(address))) => address.is_loopback(),
        (None, None) => false,
    }
}

/// A parameter's name, unless it may be part of a password.
fn quoted(name: &str) -> String {
    let plain = name.len() <= 30 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '-');
    if plain { format!("{name:?}") } else { "(not shown)".to_owned() }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        let url = SecretUrl::parse("postgres://kyhan:hunter2@db:5432/kyhan?password=hunter2", &POSTGRESQL).unwrap();
        assert_eq!(url.to_string(), "postgres://kyhan:***@db:5432/kyhan");
        assert!(!format!("{url:?}").contains("hunter2"));
        assert!(url.expose().contains("hunter2"));
    }

    #[test]
    fn a_url_in_a_file_is_read_again_and_kept_while_the_file_is_unusable() {
        let path = std::env::temp_dir().join(format!("kyhan-url-{}", std::process::id()));
        std::fs::write(&path, "postgres://u:old@db/n\n").unwrap();
        let url = SecretUrl::from_file(path.clone(), &POSTGRESQL).unwrap();
        std::fs::write(&path, "postgres://u:new@db/n\n").unwrap();
        assert_eq!(url.current().expose(), "postgres://u:new@db/n");
        for unusable in ["", "postgres://u:new@db/n?ssl_mode=x"] {
            std::fs::write(&path, unusable).unwrap();
            assert_eq!(url.current().expose(), "postgres://u:old@db/n");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(url.current(), url);
    }

    #[test]
    fn what_is_no_such_url_is_refused_without_repeating_it() {
        for wrong in ["hunter2", "mysql://kyhan:hunter2@db/kyhan", "postgres:///kyhan"] {
            let why = SecretUrl::parse(wrong, &POSTGRESQL).unwrap_err();
            assert!(why.contains("postgres://user:password@host:port/name") && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn a_parameter_that_the_client_would_ignore_is_refused() {
        for (wrong, server, said) in [
            ("postgres://u:hunter2@db/n?ssl_mode=verify-full", &POSTGRESQL, "unknown parameter \"ssl_mode\"; known are sslmode"),
            ("postgres://u:hunter2@db/n?connect_timeout=3", &POSTGRESQL, "unknown parameter \"connect_timeout\""),
            ("postgres://u:hunter2@db/n?Hunter2=x", &POSTGRESQL, "unknown parameter (not shown)"),
            ("postgres://u:hunter2@db/n?sslmode=full", &POSTGRESQL, "sslmode must be one of disable"),
            ("amqps://u:hunter2@mq/n?verify=verify_none", &RABBITMQ, "unknown parameter \"verify\"; known are frame_max"),
        ] {
            let why = SecretUrl::parse(wrong, server).unwrap_err();
            assert!(why.starts_with(said) && !why.to_lowercase().contains("hunter2"), "{why}");
        }
        for right in ["postgres://u@db/n?sslmode=verify-full&sslrootcert=/ca.pem", "postgres://u@db/n?options[search_path]=a"] {
            assert!(SecretUrl::parse(right, &POSTGRESQL).is_ok(), "{right}");
        }
    }

    #[test]
    fn a_connection_that_others_could_read_is_distinguished() {
        for (url, server, exposed) in [
            ("postgres://u@db.example/n", &POSTGRESQL, true),
            ("postgres://u@db.example/n?sslmode=require", &POSTGRESQL, true),
            ("postgres://u@db.example/n?sslmode=verify-ca", &POSTGRESQL, true),
            ("postgres://u@db.example/n?sslmode=verify-full&sslmode=prefer", &POSTGRESQL, true),
            ("postgres://u@localhost/n?host=db.example", &POSTGRESQL, true),
            ("postgres://u@db.example/n?sslmode=verify-full", &POSTGRESQL, false),
            ("postgres://u@db.example/n?host=/run/postgresql", &POSTGRESQL, false),
            ("postgres://u@%2Frun%2Fpostgresql/n", &POSTGRESQL, false),
            ("postgres://u@127.0.0.1:5432/n", &POSTGRESQL, false),
            ("postgres://u@[::1]/n", &POSTGRESQL, false),
            ("amqp://u@mq.example", &RABBITMQ, true),
            ("amqp://u@10.0.0.1", &RABBITMQ, true),
            ("amqps://u@mq.example", &RABBITMQ, false),
            ("amqp://u@localhost", &RABBITMQ, false),
            ("amqp://u@127.0.0.2", &RABBITMQ, false),
        ] {
            let parsed = SecretUrl::parse(url, server).unwrap();
            assert_eq!(parsed.exposed().is_some(), exposed, "{url}: {:?}", parsed.exposed());
        }
    }
}
