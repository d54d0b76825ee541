//! What an operator can set, and where it comes from: a TOML file, then `ROCKETBRIDGE_` environment
//! variables, then flags; each replaces what came before it.
//!
//! The file is parsed straight into [`Config`], so an error names line and column; `overrides` lays
//! environment and flags over it. Settings of one protocol are that protocol's own type, next to the
//! addresses it listens at ([`Section`]).

mod overrides;
mod section;

pub use overrides::{Override, environment};
pub use section::{RemotingSection, Section, WebSection};

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use toml::{Table, Value};
use tracing_subscriber::filter::Targets;

/// Everything that can be set. [`Default`] is what a broker without any configuration does.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything durable lies. Default `./rocketbridge-data`.
    pub data_dir: PathBuf,
    /// AMQP 0-9-1.
    pub amqp: Section<rocketbridge_amqp::Config, 5672>,
    /// MQTT 3.1, 3.1.1 and 5.0.
    pub mqtt: WebSection<rocketbridge_mqtt::Config, 1883, 8083>,
    /// STOMP 1.0, 1.1 and 1.2.
    pub stomp: WebSection<rocketbridge_stomp::Config, 61613, 15674>,
    /// RocketMQ remoting: broker and name server.
    pub remoting: RemotingSection,
    /// The log on disk.
    pub store: Store,
    /// What the broker says about itself.
    pub log: Log,
    /// Limits that no protocol owns.
    pub limits: Limits,
    /// Messages that are delivered later.
    pub timers: Timers,
    /// Transactions of native producers.
    pub transactions: Transactions,
    /// Who may log in. Default `guest` with password `guest`, from this machine only.
    pub users: Vec<User>,
    /// Clients without credentials.
    pub anonymous: Anonymous,
    /// Topics that know copies of messages. Default none.
    pub deduplicate: Vec<Deduplicate>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "rocketbridge-data".into(),
            amqp: Section::default(),
            mqtt: WebSection::default(),
            stomp: WebSection::default(),
            remoting: RemotingSection::default(),
            store: Store::default(),
            log: Log::default(),
            limits: Limits::default(),
            timers: Timers::default(),
            transactions: Transactions::default(),
            users: vec![User {
                name: "guest".into(),
                password: Secret("guest".into()),
                loopback_only: true,
            }],
            anonymous: Anonymous::default(),
            deduplicate: Vec::new(),
        }
    }
}

/// A topic that knows copies of messages: the second of two with the same value of a property is confirmed and not
/// stored.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deduplicate {
    /// The topic, by its own name.
    pub topic: String,
    /// The property. Default `UNIQ_KEY`: the id that a RocketMQ producer gives each message, in other protocols the
    /// message id.
    #[serde(default = "unique_key")]
    pub property: String,
    /// Values remembered, about 100 bytes of memory each. Default 100,000.
    #[serde(default = "dedup_keys")]
    pub keys: u32,
    /// How long each is remembered. Default: as long as there is room.
    #[serde(default, with = "humantime_serde")]
    pub time: Option<Duration>,
}

fn unique_key() -> String {
    "UNIQ_KEY".into()
}

fn dedup_keys() -> u32 {
    100_000
}

/// The log on disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// When a persistent message is confirmed. Default `sync`.
    pub flush: Flush,
    /// How long topics keep their messages, such as `72h`. Queues keep theirs until they are consumed. Default
    /// 72 hours. When 85 % of the disk are used and less than 8 GiB free, the oldest go before; at 90 % and 4 GiB
    /// publishers are held back.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// Bytes by which the log grows until the next checkpoint, at most: what a start after a crash has to read
    /// again. Default 256 MiB.
    pub checkpoint_size: u64,
}

impl Default for Store {
    fn default() -> Self {
        let engine = rocketbridge_core::engine::Config::default();
        Self {
            flush: Flush::Sync,
            retention: Duration::from_millis(engine.retention.0),
            checkpoint_size: engine.checkpoint_bytes,
        }
    }
}

/// When a persistent message is confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// When the disk has it: it survives a power cut.
    #[default]
    Sync,
    /// When the kernel has it: it survives the broker's death; the disk follows within 500 ms.
    Async,
}

/// What the broker says about itself, on stderr.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, for some modules another one: `info,rocketbridge_amqp=debug`.
    /// Default `info`.
    #[serde(deserialize_with = "level")]
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let level = String::deserialize(deserializer)?;
    match level.parse::<Targets>() {
        Ok(_) => Ok(level),
        Err(error) => Err(de::Error::custom(format_args!("{level:?} is no log level: {error}"))),
    }
}

/// Limits that no protocol owns.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most open connections of all protocols together; one more is accepted and closed. Default 100,000
    /// (the system's limit on open files is usually lower, and met first).
    pub connections_max: usize,
    /// Largest message body, bytes, whatever the protocol allows. Default 16 MiB.
    pub body_size_max: usize,
    /// Memory for what clients have begun to send and not ended (packets, frames), all connections together, bytes, as
    /// far as a connection keeps more than 16 KiB of it. Beyond it the connections that keep most are closed; so
    /// nobody can send a larger packet than this. Default 256 MiB.
    pub unfinished_max: usize,
    /// Most bytes that may wait for the disk before publishers are held back. Default 32 MiB.
    pub unsynced_max: usize,
    /// Memory for messages that need no disk, bytes; beyond it they go to the log. Default 64 MiB.
    pub transient_max: usize,
    /// Most topics that publishing makes; beyond it messages enter topic `catch-all`. Default 10,000.
    pub topics_auto_max: usize,
    /// Most addresses with a retained message; beyond it a retained message to a new address is refused. Default
    /// 1,000,000.
    pub retained_max: usize,
    /// Dedup keys remembered by all topics and exchanges together, about 100 bytes of memory each. Default 1,000,000.
    pub dedup_keys_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let engine = rocketbridge_core::engine::Config::default();
        Self {
            connections_max: 100_000,
            body_size_max: engine.body_max,
            unfinished_max: 256 << 20,
            unsynced_max: engine.unsynced_max,
            transient_max: engine.transient_max,
            topics_auto_max: engine.topics_auto_max,
            retained_max: engine.retained_max,
            dedup_keys_max: engine.dedup_keys_max,
        }
    }
}

/// Messages that are delivered later.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timers {
    /// Longest time from a publish to its delivery, at most a year, as in `90 days`. Default 3 days, as RocketMQ's
    /// `timerMaxDelaySec`.
    #[serde(deserialize_with = "delay")]
    pub delay_max: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        let engine = rocketbridge_core::engine::Config::default();
        Self {
            delay_max: Duration::from_millis(engine.delay_max.0),
        }
    }
}

/// When native producers are asked about transactions that they have not ended.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transactions {
    /// How long after its half message a transaction is asked about first, unless the message says so itself.
    /// Default 6 s, as RocketMQ.
    #[serde(with = "humantime_serde")]
    pub check_after: Duration,
    /// How long after that again. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
    /// How often. Then the half message moves to topic `TRANS_CHECK_MAX_TIME_TOPIC`. Default 15.
    pub check_max: u32,
}

impl Default for Transactions {
    fn default() -> Self {
        let engine = rocketbridge_core::engine::Config::default();
        Self {
            check_after: Duration::from_millis(engine.check_after.0),
            check_interval: Duration::from_millis(engine.check_interval.0),
            check_max: engine.check_max,
        }
    }
}

/// A year, and a day more for leap years.
const DELAY_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let delay = humantime_serde::deserialize(deserializer)?;
    if delay > DELAY_MAX {
        return Err(de::Error::custom("a message may be delayed by at most a year"));
    }
    Ok(delay)
}

/// Somebody who may log in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The password.
    pub password: Secret,
    /// Only from this machine. Default false.
    #[serde(default)]
    pub loopback_only: bool,
}

/// A password. Not shown when debugging.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Clients without credentials.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anonymous {
    /// From this machine. Default true.
    pub loopback: bool,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { loopback: true }
    }
}

/// Where configuration comes from; read again at SIGHUP.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Environment and flags, in the order they apply.
    pub overrides: Vec<Override>,
}

/// A configuration and what it was made of.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// What was set, without defaults.
    pub set: Table,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file says what cannot be.
    #[error("{}:{line}:{column}: {problem}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong.
        problem: Problem,
    },
    /// An environment variable or flag says what cannot be.
    #[error("{origin}: {problem}")]
    Override {
        /// Which.
        origin: String,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such key.
    UnknownKey {
        /// The key.
        key: String,
        /// Those there are in its place, the nearest one first.
        known: Vec<String>,
    },
    /// The value does not fit, or the file is no TOML.
    Invalid(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(message) => f.write_str(message),
            Self::UnknownKey { key, known } => {
                write!(f, "unknown key `{key}`")?;
                let Some((nearest, others)) = known.split_first() else {
                    return f.write_str("; no key is known here");
                };
                write!(f, "; did you mean `{nearest}`?")?;
                if !others.is_empty() {
                    write!(f, " (others known here: {})", others.join(", "))?;
                }
                Ok(())
            }
        }
    }
}

impl Problem {
    fn of(error: &toml::de::Error) -> Self {
        // serde says: unknown field `a`, expected one of `b`, `c`
        let message = error.message();
        let Some(names) = message.strip_prefix("unknown field ") else {
            return Self::Invalid(message.to_owned());
        };
        let mut names = names.split('`').skip(1).step_by(2).map(str::to_owned);
        let key = names.next().unwrap_or_default();
        let mut known: Vec<_> = names.collect();
        known.sort_by_key(|name| distance(name, &key));
        Self::UnknownKey { key, known }
    }
}

/// How many characters must be added, taken away or changed to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl Sources {
    /// Reads everything anew.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, line and column, or the variable or flag.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let set = match &self.file {
            Some(file) => read(file)?,
            None => Table::new(),
        };
        overrides::apply(set, &self.overrides)
    }
}

fn read(file: &Path) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(file).map_err(|error| ConfigError::Read {
        file: file.to_owned(),
        error,
    })?;
    let refuse = |error: toml::de::Error| {
        let (line, column) = place(&text, error.span().map_or(0, |span| span.start));
        ConfigError::File {
            file: file.to_owned(),
            line,
            column,
            problem: Problem::of(&error),
        }
    };
    // First into the real type: errors of values know their place only here.
    toml::from_str::<Config>(&text).map_err(refuse)?;
    toml::from_str::<Table>(&text).map_err(refuse)
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// The keys, with dots, whose values differ.
pub fn differences(old: &Table, new: &Table) -> Vec<String> {
    let mut differing = Vec::new();
    collect_differences("", old, new, &mut differing);
    differing
}

fn collect_differences(prefix: &str, old: &Table, new: &Table, differing: &mut Vec<String>) {
    let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let none = Table::new();
    for key in keys {
        let path = format!("{prefix}{key}");
        match (old.get(key), new.get(key)) {
            (old, new) if old == new => {}
            (Some(Value::Table(old)), Some(Value::Table(new))) => {
                collect_differences(&format!("{path}."), old, new, differing);
            }
            (Some(Value::Table(old)), None) => collect_differences(&format!("{path}."), old, &none, differing),
            (None, Some(Value::Table(new))) => collect_differences(&format!("{path}."), &none, new, differing),
            _ => differing.push(path),
        }
    }
}

#[cfg(test)]
mod tests;
