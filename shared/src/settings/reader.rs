//! Reads settings key by key, and collects every mistake instead of stopping at the first. The sample file lists the known
//! keys and contains the defaults.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use config::{Config, File, FileFormat, Map, Source, Value, ValueKind};

use super::secret::{SecretUrl, UrlRules};
use crate::domain::span::Span;

/// The sample file: every key, its default and its meaning.
pub const SAMPLE: &str = include_str!("../../../kyhan.toml");

/// Environment variables of Kỳ Hạn that are not settings: the path of the file, the variables of the services script, and the
/// passwords that `ops roles install` sets.
const NOT_SETTINGS: [&str; 3] = ["KYHAN_CONFIG", "KYHAN_SERVICES_", "KYHAN_ROLES_"];

/// One mistake: its key, what is wrong, and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingMistake {
    pub key: String,
    pub why: String,
}

impl fmt::Display for SettingMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

pub(super) struct SettingsReader {
    values: BTreeMap<String, Value>,
    env: BTreeMap<String, String>,
    pub mistakes: Vec<SettingMistake>,
    /// The keys that the file itself sets; `None` without a readable file.
    pub in_file: Option<BTreeSet<String>>,
    /// The settings that were read, as they are printed, in order.
    pub held: Vec<(String, String)>,
}

impl SettingsReader {
    /// Merges the sample, `file` and the environment, in this order.
    pub fn new(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Self {
        let env: BTreeMap<String, String> = env.into_iter().filter(|(name, _)| name.starts_with("KYHAN_")).collect();
        let mut reader = Self { values: BTreeMap::new(), env, mistakes: Vec::new(), in_file: None, held: Vec::new() };
        let sample = File::from_str(SAMPLE, FileFormat::Toml);
        match Config::builder().add_source(sample).build().and_then(|sample| sample.collect()) {
            Ok(sample) => reader.values = flat(sample),
            Err(error) => reader.mistake("kyhan.toml (built in)", error.to_string()),
        }
        if let Some(file) = file {
            reader.merge_file(file);
        }
        reader.merge_env();
        reader
    }

    fn merge_file(&mut self, path: &Path) {
        let file = File::from(PathBuf::from(path)).format(FileFormat::Toml);
        match Config::builder().add_source(file).build().and_then(|file| file.collect()) {
            Err(error) => self.mistake(&path.display().to_string(), error.to_string()),
            Ok(file) => {
                let file = flat(file);
                self.in_file = Some(file.keys().cloned().collect());
                for (key, value) in file {
                    // A section whose settings are all commented out is valid.
                    let section = format!("{key}.");
                    let empty = matches!(&value.kind, ValueKind::Table(inner) if inner.is_empty());
                    if empty && self.values.keys().any(|known| known.starts_with(&section)) {
                        continue;
                    }
                    if let Some(held) = self.values.get_mut(&key) {
                        *held = value;
                    } else if ["database.url", "amqp.url"].contains(&key.as_str()) {
                        let why = format!("not allowed in a file, because it contains a password; set {}", env_name(&key));
                        self.mistake(&key, why);
                    } else {
                        let why = format!("unknown setting{}", similar(&key, self.values.keys()));
                        self.mistake(&key, why);
                    }
                }
            }
        }
    }

    fn merge_env(&mut self) {
        let secrets = ["database.url", "amqp.url"].map(env_name);
        let mut known: BTreeMap<String, String> = self.values.keys().map(|key| (env_name(key), key.clone())).collect();
        known.remove("KYHAN_POLICY");
        for (name, text) in self.env.clone() {
            if let Some(key) = known.get(&name) {
                let list = matches!(self.values[key].kind, ValueKind::Array(_));
                let value = if list {
                    Value::from(text.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>())
                } else {
                    Value::from(text)
                };
                self.values.insert(key.clone(), value);
            } else if !secrets.iter().any(|secret| name == *secret || name == format!("{secret}_FILE"))
                && !NOT_SETTINGS.iter().any(|other| name.starts_with(other))
            {
                let why = format!("unknown setting{}", similar(&name, known.keys().chain(&secrets)));
                self.mistake(&name, why);
            }
        }
    }

    pub fn mistake(&mut self, key: &str, why: impl Into<String>) {
        self.mistakes.push(SettingMistake { key: key.to_owned(), why: why.into() });
    }

    /// An integer within `range`.
    pub fn number<T>(&mut self, key: &str, range: RangeInclusive<T>) -> T
    where
        T: TryFrom<i64> + Into<i64> + Copy + PartialOrd + fmt::Display,
    {
        let (low, high) = (*range.start(), *range.end());
        let value = self.take(key);
        let number = match &value.kind {
            // A fraction is refused rather than rounded.
            ValueKind::Float(_) | ValueKind::Boolean(_) => None,
            _ => value.clone().into_int().ok().and_then(|number| T::try_from(number).ok()).filter(|n| range.contains(n)),
        };
        if number.is_none() {
            self.mistake(key, format!("must be an integer from {low} to {high} (got {})", shown(&value)));
        }
        let number = number.unwrap_or(low);
        self.held.push((key.to_owned(), number.to_string()));
        number
    }

    /// A string.
    pub fn text(&mut self, key: &str) -> String {
        let value = self.take(key);
        let text = match value.kind {
            ValueKind::String(text) => text,
            ValueKind::I64(number) => number.to_string(),
            _ => {
                self.mistake(key, format!("must be a string (got {})", shown(&value)));
                String::new()
            }
        };
        self.held.push((key.to_owned(), format!("{text:?}")));
        text
    }

    /// A list of at least one exact duration.
    pub fn durations(&mut self, key: &str) -> Vec<std::time::Duration> {
        let value = self.take(key);
        let Ok(list) = value.clone().into_array() else {
            self.mistake(key, format!("must be a list of durations like [\"1s\", \"5m\"] (got {})", shown(&value)));
            return Vec::new();
        };
        if list.is_empty() {
            self.mistake(key, "must contain at least one duration");
        }
        let mut durations = Vec::new();
        let mut kept = Vec::new();
        for (at, entry) in list.into_iter().enumerate() {
            let text = shown(&entry).trim_matches('"').to_owned();
            match text.parse::<Span>().map(|span| (span, span.exact())) {
                Ok((span, Some(duration))) => {
                    durations.push(duration);
                    kept.push(format!("\"{span}\""));
                }
                Ok((_, None)) => self.mistake(&format!("{key}[{at}]"), "calendar months have no exact length; use days"),
                Err(error) => self.mistake(&format!("{key}[{at}]"), error.to_string()),
            }
        }
        self.held.push((key.to_owned(), format!("[{}]", kept.join(", "))));
        durations
    }

    /// A list of tables.
    pub fn tables(&mut self, key: &str) -> Vec<Map<String, Value>> {
        let value = self.take(key);
        let Ok(list) = value.clone().into_array() else {
            self.mistake(key, format!("must be a list of tables (got {})", shown(&value)));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (at, entry) in list.into_iter().enumerate() {
            match entry.clone().into_table() {
                Ok(table) => tables.push(table),
                Err(_) => self.mistake(&format!("{key}[{at}]"), format!("must be a table (got {})", shown(&entry))),
            }
        }
        tables
    }

    /// A server's URL, from its variable or from the file that its `_FILE` variable names.
    pub fn secret(&mut self, key: &str, server: &'static UrlRules) -> Option<SecretUrl> {
        let name = env_name(key);
        let file = format!("{name}_FILE");
        let url = match (self.env.get(&name), self.env.get(&file)) {
            (Some(_), Some(_)) => Err(format!("both {name} and {file} are set; set only one of them")),
            (Some(text), None) => SecretUrl::parse(text.trim(), server),
            (None, Some(path)) => SecretUrl::from_file(path.into(), server).map_err(|why| format!("{file}: {why}")),
            (None, None) => Err(format!(
                "not set; set {name} to {}://user:password@host:port/name, or {file} to the path of a file that contains it",
                server.schemes[0]
            )),
        };
        match url {
            Ok(url) => {
                self.held.push((key.to_owned(), format!("\"{url}\"")));
                Some(url)
            }
            Err(why) => {
                self.mistake(key, why);
                None
            }
        }
    }

    fn take(&mut self, key: &str) -> Value {
        self.values.get(key).cloned().unwrap_or_else(|| Value::new(None, ValueKind::Nil))
    }

    /// The keys of the sample file.
    #[cfg(test)]
    pub fn known(&self) -> impl Iterator<Item = &String> {
        self.values.keys()
    }
}

/// The environment variable of a key: that of `worker.batch_max` is `KYHAN_WORKER_BATCH_MAX`.
pub(super) fn env_name(key: &str) -> String {
    format!("KYHAN_{}", key.to_uppercase().replace('.', "_"))
}

/// A value as a user would write it.
pub(super) fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Nil => "nothing".into(),
        _ => value.to_string(),
    }
}

/// `section.key` → value; lists stay whole.
fn flat(tables: Map<String, Value>) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    for (key, value) in tables {
        match value.kind {
            ValueKind::Table(inner) if !inner.is_empty() => {
                values.extend(flat(inner).into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            _ => {
                values.insert(key, value);
            }
        }
    }
    values
}

/// Suggests the known name nearest to a mistyped one.
fn similar<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    const NEAR: f64 = 0.75;
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("; did you mean {candidate}?"))
        .unwrap_or_default()
}
