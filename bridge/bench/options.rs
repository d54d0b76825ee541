//! What a run is told on the command line.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::body;
use super::url::Target;

/// The protocols of brokers that can be loaded, and the engine alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Engine,
    Amqp,
    Mqtt,
    Stomp,
    RocketMq,
}

/// What follows what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Publishers and consumers work at the same time.
    Together,
    /// First everything is published, then everything consumed.
    Backlog,
    /// Everything is published and left in the broker.
    Fill,
    /// What an earlier run left is consumed.
    Drain,
}

/// How native messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Each waits for the answer of the one before.
    Sync,
    /// A window of them is open.
    Async,
    /// Nothing is answered.
    OneWay,
}

/// When the engine confirms persistent messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    Sync,
    Async,
}

/// Everything about a run. What a protocol does not have stays as it is by default.
#[derive(Clone, Debug)]
pub struct Options {
    pub kind: Kind,
    pub target: Target,
    /// Of all publishers together; with `seconds` no more than that.
    pub messages: u64,
    pub seconds: Option<Duration>,
    pub warm_up: Duration,
    pub size: usize,
    pub publishers: u32,
    pub consumers: u32,
    pub queues: u32,
    pub fan_out: bool,
    /// Messages a second; 0 is as many as possible.
    pub rate: f64,
    /// How far publishers may be ahead of consumers; 0 is any distance.
    pub ahead: u64,
    /// Messages of a publisher that are not confirmed, at most; 0 is without confirms.
    pub confirm: u64,
    pub persistent: bool,
    pub auto_ack: bool,
    pub ack_batch: u32,
    pub prefetch: u32,
    pub qos: u8,
    pub sending: Sending,
    pub flush: Flush,
    pub mode: Mode,
    pub idle: u32,
    pub threads: u32,
    pub pid: Option<u32>,
    pub patience: Duration,
    pub name: String,
    pub json: bool,
}

const BENCH_HELP: &str = "\
The load costs far less than a broker: what it measures is the broker. It works with every broker of the
protocol, so that brokers can be compared on one machine. With --pid it reads from /proc what the broker's
process used: CPU time (user and system) per message, and resident memory.

Each message carries its publisher, queue, number, time and a checksum. What is lost, altered, doubled or
out of order is counted; the exit code is 1 when something was lost or altered, or the broker failed.

Latency is the time from sending a message to receiving it. With --rate it counts from the time at which the
message should have been sent, so that a broker that stalls cannot hide it; without --rate publishers send
as fast as they may, and latency is mostly the time in queues.

Examples:
  rocketbridge bench amqp --url amqp://guest:guest@127.0.0.1:5672 --auto-ack --pid $(pidof rocketbridge)
      one publisher, one consumer, 1,000,000 messages of 256 bytes, no confirms

  rocketbridge bench amqp --persistent --confirm 1000 --ack-batch 100
      persistent messages, at most 1,000 unconfirmed, one acknowledgement for 100

  rocketbridge bench mqtt --url mqtt://127.0.0.1:1883 --consumers 50
      each message goes to 50 subscribers

  rocketbridge bench amqp --rate 20000 --seconds 30 --json
      latency at a steady 20,000 messages a second; the last line is a JSON object

  rocketbridge bench engine --queues 100000
      the broker's core in this process, without protocol and sockets

`rocketbridge bench PROTOCOL --help` tells all options.";

const ENGINE_HELP: &str = "\
Publishes to queues, takes the deliveries and settles them, all in one thread of this process, with a data
directory that is removed afterwards. CPU and memory are those of this process.

Examples:
  rocketbridge bench engine
      transient messages through one queue
  rocketbridge bench engine --persistent --flush sync --confirm 4000
      each message on the disk before it is confirmed
  rocketbridge bench engine --queues 100000 --messages 4000000
      the same work over many queues
  rocketbridge bench engine --persistent --backlog
      everything is published first, then everything delivered";

const AMQP_HELP: &str = "\
Queues are durable, and named rocketbridge-bench-...; they are deleted afterwards. With --fan-out there is an
exchange and a queue for each consumer.

Examples:
  rocketbridge bench amqp --auto-ack
  rocketbridge bench amqp --persistent --confirm 1000 --ack-batch 100 --prefetch 1000
  rocketbridge bench amqp --persistent --confirm 1          latency of one confirm at a time
  rocketbridge bench amqp --queues 1000 --publishers 10 --consumers 100
  rocketbridge bench amqp --persistent --confirm 1000 --backlog --messages 10000000
  rocketbridge bench amqp --persistent --confirm 1000 --fill --name big --messages 10000000
  rocketbridge bench amqp --drain --name big --messages 10000000 --auto-ack";

const MQTT_HELP: &str = "\
MQTT 3.1.1, clean sessions. --queues is the number of topics; every consumer subscribes to all of them and
gets every message. With --backlog, --fill and --drain the consumers have sessions that the broker keeps.

Examples:
  rocketbridge bench mqtt                                   QoS 0, one to one
  rocketbridge bench mqtt --consumers 50                    one to fifty
  rocketbridge bench mqtt --qos 1 --confirm 100             at most 100 without PUBACK
  rocketbridge bench mqtt --messages 0 --idle 10000 --pid PID    what idle connections cost";

const STOMP_HELP: &str = "\
STOMP 1.2. Destinations are /queue/rocketbridge-bench-..., with --fan-out /topic/...; the queues delete
themselves when their last consumer goes. --receipt asks for a RECEIPT for every SEND; --confirm says how
many may be open. Without --auto-ack consumers acknowledge: each message (client-individual), with
--ack-batch many at once (client).

Examples:
  rocketbridge bench stomp --auto-ack
  rocketbridge bench stomp --persistent --receipt --confirm 1000 --ack-batch 100
  rocketbridge bench stomp --url stomp://guest:guest@127.0.0.1:61613/myhost";

const ROCKETMQ_HELP: &str = "\
The URL is the name server's. --queues is the number of message queues of the topic, which is named
rocketbridge-bench-... and deleted afterwards where the broker allows it. Consumers pull as push consumers of
RocketMQ's clients do: one long poll for each message queue, 32 messages a pull (--prefetch), the offset
committed along with the next pull. With --fan-out every consumer is a group of its own.

Examples:
  rocketbridge bench rocketmq --send async --confirm 1000
  rocketbridge bench rocketmq --send sync --publishers 64 --consumers 0
  rocketbridge bench rocketmq --send one-way --consumers 0
  rocketbridge bench rocketmq --backlog --messages 200000   sends, then drains";

/// `rocketbridge bench`.
pub fn command() -> Command {
    let bench = Command::new("bench")
        .about("Measures a broker of any of the protocols, or the engine alone")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(BENCH_HELP);
    let protocols = [engine(), amqp(), mqtt(), stomp(), rocketmq()];
    bench.subcommands(protocols.map(|protocol| protocol.args_override_self(true)))
}

fn engine() -> Command {
    let command = Command::new("engine")
        .about("The engine in this process: publish, deliver, settle")
        .after_help(ENGINE_HELP);
    command
        .arg(count("messages", "1000000", "Messages in all"))
        .arg(size())
        .arg(count("queues", "1", "Queues that messages are spread over"))
        .arg(flag("persistent", "Messages survive a restart"))
        .arg(
            Arg::new("flush")
                .long("flush")
                .value_parser(["sync", "async"])
                .default_value("async")
                .help("When a persistent message is confirmed: when the disk has it, or the kernel"),
        )
        .arg(count("confirm", "4000", "Messages not yet confirmed, at most"))
        .arg(ahead("2000"))
        .arg(count("ack-batch", "1", "Deliveries in one settlement, at least"))
        .arg(flag("backlog", "First publish everything, then consume everything"))
        .arg(flag("json", "The last line of standard output is a JSON object"))
}

fn amqp() -> Command {
    let command = Command::new("amqp").about("AMQP 0-9-1").after_help(AMQP_HELP);
    load(command, "amqp://guest:guest@127.0.0.1:5672", "20000")
        .arg(count(
            "confirm",
            "0",
            "Publisher confirms: messages not yet confirmed, at most; 0: none",
        ))
        .arg(flag("persistent", "Messages survive a restart (delivery mode 2)"))
        .arg(flag("auto-ack", "Consumers do not acknowledge"))
        .arg(count("ack-batch", "1", "Deliveries in one acknowledgement"))
        .arg(
            Arg::new("prefetch")
                .long("prefetch")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Deliveries not yet acknowledged, at most; 0: any number [default: 1000, with --auto-ack 0]"),
        )
        .arg(flag("fan-out", "Every consumer gets every message"))
}

fn mqtt() -> Command {
    let command = Command::new("mqtt").about("MQTT 3.1.1").after_help(MQTT_HELP);
    load(command, "mqtt://127.0.0.1:1883", "2000")
        .arg(count(
            "qos",
            "0",
            "Quality of service of publishers and subscribers: 0, 1 or 2",
        ))
        .arg(count(
            "confirm",
            "100",
            "QoS 1 and 2: messages whose handshake is open, at most",
        ))
        .arg(flag("fan-out", "Every consumer gets every message: always so in MQTT").hide(true))
}

fn stomp() -> Command {
    let command = Command::new("stomp").about("STOMP 1.2").after_help(STOMP_HELP);
    load(command, "stomp://guest:guest@127.0.0.1:61613", "20000")
        .arg(flag("receipt", "Asks for a receipt for every message"))
        .arg(
            Arg::new("confirm")
                .long("confirm")
                .value_name("WINDOW")
                .value_parser(value_parser!(u64))
                .help("Messages without receipt, at most; implies --receipt [default with --receipt: 1000]"),
        )
        .arg(flag("persistent", "Messages survive a restart (persistent:true)"))
        .arg(flag("auto-ack", "Consumers do not acknowledge"))
        .arg(count("ack-batch", "1", "Deliveries in one acknowledgement"))
        .arg(
            Arg::new("prefetch")
                .long("prefetch")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("prefetch-count of subscriptions; 0: not sent [default: 1000, with --auto-ack 0]"),
        )
        .arg(flag("fan-out", "Every consumer gets every message"))
}

fn rocketmq() -> Command {
    let command = Command::new("rocketmq")
        .about("RocketMQ remoting")
        .after_help(ROCKETMQ_HELP);
    load(command, "rocketmq://127.0.0.1:9876", "20000")
        .arg(
            Arg::new("send")
                .long("send")
                .value_parser(["sync", "async", "one-way"])
                .default_value("async")
                .help("How messages are sent"),
        )
        .arg(count("confirm", "1000", "Asynchronous sends that are open, at most"))
        .arg(count("prefetch", "32", "Messages of one pull, at most"))
        .arg(flag("fan-out", "Every consumer gets every message"))
}

fn ahead(far: &'static str) -> Arg {
    let help = "How many messages publishers may be ahead of consumers; 0: any number";
    count("ahead", far, help)
}

/// Options of all protocols.
fn load(command: Command, url: &'static str, far: &'static str) -> Command {
    command
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .default_value(url)
                .help("Where the broker is"),
        )
        .arg(count("messages", "1000000", "Messages of all publishers together"))
        .arg(size())
        .arg(count("publishers", "1", "Connections that publish"))
        .arg(count("consumers", "1", "Connections that consume"))
        .arg(count(
            "queues",
            "1",
            "Queues (topics, message queues) that messages are spread over",
        ))
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("N")
                .value_parser(value_parser!(f64))
                .help("Messages a second of all publishers together [default: as many as possible]"),
        )
        .arg(ahead(far))
        .arg(seconds("seconds", None, "Measure so long instead of --messages"))
        .arg(seconds("warm-up", Some("0"), "Do not measure the first seconds"))
        .arg(flag("backlog", "First publish everything, then consume everything"))
        .arg(flag("fill", "Publish only, and leave it in the broker for --drain"))
        .arg(flag(
            "drain",
            "Consume what --fill left; the other options must be the same",
        ))
        .arg(
            Arg::new("name")
                .long("name")
                .value_name("NAME")
                .help("Part of the names of queues; for --fill and --drain [default: new for each run]"),
        )
        .arg(count("idle", "0", "Open so many connections before, which do nothing"))
        .arg(
            Arg::new("pid")
                .long("pid")
                .value_name("PID")
                .value_parser(value_parser!(u32))
                .help("The broker's process on this machine: its CPU time and memory are measured"),
        )
        .arg(count("threads", "1", "Threads of publishers, and as many of consumers"))
        .arg(seconds("patience", Some("15"), "End when nothing moves for so long"))
        .arg(flag("json", "The last line of standard output is a JSON object"))
}

fn count(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let value_name = if name == "confirm" { "WINDOW" } else { "N" };
    Arg::new(name)
        .long(name)
        .value_name(value_name)
        .value_parser(value_parser!(u64))
        .default_value(default)
        .help(help)
}

fn size() -> Arg {
    count("size", "256", "Bytes of a body").value_name("BYTES")
}

fn seconds(name: &'static str, default: Option<&'static str>, help: &'static str) -> Arg {
    let arg = Arg::new(name)
        .long(name)
        .value_name("SECONDS")
        .value_parser(value_parser!(f64))
        .help(help);
    match default {
        Some(default) => arg.default_value(default),
        None => arg,
    }
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Most connections of a kind: a body has 16 bits for its publisher.
const CONNECTIONS_MAX: u64 = 65_535;
/// Names have seven digits.
const QUEUES_MAX: u64 = 10_000_000;
/// The largest body that some broker takes.
const SIZE_MAX: u64 = 128 << 20;
/// Packet identifiers have 16 bits, and may be answered in any order.
const MQTT_WINDOW_MAX: u64 = 8_000;
const WINDOW_MAX: u64 = 1_000_000;
/// What RocketMQ's brokers make by default, and more than any of them is meant for.
const MESSAGE_QUEUES_MAX: u64 = 10_000;
const NAME_MAX: usize = 40;

/// Reads the options.
///
/// # Errors
/// In words, what cannot be.
pub fn parse(matches: &ArgMatches) -> Result<Options, String> {
    let (name, matches) = matches.subcommand().expect("a subcommand is required");
    let kind = match name {
        "engine" => Kind::Engine,
        "amqp" => Kind::Amqp,
        "mqtt" => Kind::Mqtt,
        "stomp" => Kind::Stomp,
        _ => Kind::RocketMq,
    };
    let given = Given { matches };
    let mode = match (given.flag("backlog"), given.flag("fill"), given.flag("drain")) {
        (false, false, false) => Mode::Together,
        (true, false, false) => Mode::Backlog,
        (false, true, false) => Mode::Fill,
        (false, false, true) => Mode::Drain,
        _ => return Err("--backlog, --fill and --drain exclude each other".into()),
    };
    let sending = match given.text("send") {
        Some("sync") => Sending::Sync,
        Some("one-way") => Sending::OneWay,
        _ => Sending::Async,
    };
    let auto_ack = given.flag("auto-ack");
    let qos = given.number("qos", 0, 2)?.unwrap_or(0) as u8;
    let confirm = confirm(kind, qos, sending, &given)?;
    let ack_batch = given.number("ack-batch", 1, 1_000_000)?.unwrap_or(1) as u32;
    let default_prefetch = if auto_ack { 0 } else { 1000.max(ack_batch.min(65_535)) };
    let prefetch = given
        .number("prefetch", 0, 65_535)?
        .map_or(default_prefetch, |n| n as u32);
    let options = Options {
        kind,
        target: match given.text("url") {
            Some(url) => Target::parse(kind, url)?,
            None => Target::default(),
        },
        messages: given.number("messages", 0, 1 << 47)?.unwrap_or(0),
        seconds: given.duration("seconds")?,
        warm_up: given.duration("warm-up")?.unwrap_or_default(),
        size: given.number("size", body::SIZE_MIN as u64, SIZE_MAX)?.unwrap_or(0) as usize,
        publishers: given.number("publishers", 0, CONNECTIONS_MAX)?.unwrap_or(1) as u32,
        consumers: given.number("consumers", 0, CONNECTIONS_MAX)?.unwrap_or(1) as u32,
        queues: given
            .number(
                "queues",
                1,
                if kind == Kind::RocketMq {
                    MESSAGE_QUEUES_MAX
                } else {
                    QUEUES_MAX
                },
            )?
            .unwrap_or(1) as u32,
        fan_out: given.flag("fan-out") || kind == Kind::Mqtt,
        rate: given.rate()?,
        ahead: given.number("ahead", 0, u64::MAX)?.unwrap_or(0),
        confirm,
        persistent: given.flag("persistent"),
        auto_ack,
        ack_batch,
        prefetch,
        qos,
        sending,
        flush: if given.text("flush") == Some("sync") {
            Flush::Sync
        } else {
            Flush::Async
        },
        mode,
        idle: given.number("idle", 0, 1_000_000)?.unwrap_or(0) as u32,
        threads: given.number("threads", 1, 64)?.unwrap_or(1) as u32,
        pid: given.has("pid").then(|| matches.get_one("pid").copied()).flatten(),
        patience: given.duration("patience")?.unwrap_or(Duration::from_secs(15)),
        name: run_name(&given)?,
        json: given.flag("json"),
    };
    check(&options, &given)?;
    Ok(options)
}

fn confirm(kind: Kind, qos: u8, sending: Sending, given: &Given<'_>) -> Result<u64, String> {
    let max = if kind == Kind::Mqtt {
        MQTT_WINDOW_MAX
    } else {
        WINDOW_MAX
    };
    let window = given.number("confirm", 0, max)?;
    Ok(match kind {
        Kind::Mqtt if qos == 0 => 0,
        Kind::Mqtt if window == Some(0) => {
            return Err("--confirm 0 cannot be: a publish of QoS 1 or 2 is always answered".into());
        }
        Kind::Stomp if given.flag("receipt") => window.unwrap_or(1000).max(1),
        Kind::RocketMq if sending == Sending::Sync => 1,
        Kind::RocketMq if sending == Sending::OneWay => 0,
        Kind::RocketMq | Kind::Engine => window.unwrap_or(1000).max(1),
        _ => window.unwrap_or(0),
    })
}

fn check(options: &Options, given: &Given<'_>) -> Result<(), String> {
    let refuse = |words: &str| Err(words.to_owned());
    if options.publishers == 0 && options.mode != Mode::Drain && options.messages > 0 {
        return refuse("--publishers 0 leaves nothing to measure: --drain consumes what an earlier run left");
    }
    if options.consumers == 0 && matches!(options.mode, Mode::Drain | Mode::Backlog) {
        return refuse("--consumers 0 cannot drain anything");
    }
    if options.mode != Mode::Together && (options.seconds.is_some() || options.rate > 0.0 || !options.warm_up.is_zero())
    {
        return refuse("--seconds, --rate and --warm-up are for runs without --backlog, --fill and --drain");
    }
    if matches!(options.mode, Mode::Fill | Mode::Drain) && !given.has("name") {
        return refuse("--fill and --drain need a --name, the same for both");
    }
    let fills = matches!(options.mode, Mode::Fill | Mode::Drain | Mode::Backlog);
    if fills && options.kind == Kind::Mqtt && options.qos == 0 {
        return refuse("MQTT brokers keep nothing of QoS 0 for a session that is away: add --qos 1");
    }
    if fills && options.fan_out && options.kind == Kind::Stomp {
        return refuse(
            "a STOMP topic keeps nothing for consumers to come: --fan-out goes without --backlog, --fill and --drain",
        );
    }
    let window = matches!(options.kind, Kind::Amqp | Kind::Stomp) && options.prefetch > 0;
    if window && !options.auto_ack && options.prefetch < options.ack_batch {
        return Err(format!(
            "--ack-batch {} never fills: --prefetch {} lets fewer come",
            options.ack_batch, options.prefetch
        ));
    }
    if options.auto_ack && given.was_given("ack-batch") {
        return refuse("--auto-ack and --ack-batch exclude each other");
    }
    if options.kind == Kind::RocketMq && options.prefetch == 0 {
        return refuse("--prefetch 0 cannot be: a pull asks for at least one message");
    }
    if options.kind == Kind::RocketMq && given.was_given("confirm") && options.sending != Sending::Async {
        return refuse("--confirm is for --send async");
    }
    if options.queues > 1 && u64::from(options.queues) > 1_000_000 && options.kind != Kind::Engine {
        return refuse("more than 1,000,000 queues are for `bench engine` only");
    }
    Ok(())
}

fn run_name(given: &Given<'_>) -> Result<String, String> {
    let Some(name) = given.text("name") else {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        return Ok(format!("{}-{}", std::process::id(), now.subsec_micros()));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err(format!(
            "--name {name:?} cannot be: up to {NAME_MAX} letters, digits, `-` and `_`"
        ));
    }
    Ok(name.to_owned())
}

/// What was given. A protocol does not have every option.
struct Given<'a> {
    matches: &'a ArgMatches,
}

impl Given<'_> {
    fn has(&self, name: &str) -> bool {
        matches!(self.matches.try_contains_id(name), Ok(true))
    }

    fn was_given(&self, name: &str) -> bool {
        self.has(name) && self.matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine)
    }

    fn flag(&self, name: &str) -> bool {
        self.has(name) && self.matches.get_flag(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.has(name)
            .then(|| self.matches.get_one::<String>(name))?
            .map(String::as_str)
    }

    fn number(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, String> {
        if !self.has(name) {
            return Ok(None);
        }
        let number = *self.matches.get_one::<u64>(name).expect("it is there");
        if (min..=max).contains(&number) {
            return Ok(Some(number));
        }
        let why = match name {
            "size" if number < min => " (number, time and checksum need that much)",
            _ => "",
        };
        let range = if number < min {
            format!("at least {min}")
        } else {
            format!("at most {max}")
        };
        Err(format!("--{name} {number} cannot be: {range}{why}"))
    }

    fn duration(&self, name: &str) -> Result<Option<Duration>, String> {
        if !self.has(name) {
            return Ok(None);
        }
        let seconds = *self.matches.get_one::<f64>(name).expect("it is there");
        if !(0.0..=1e6).contains(&seconds) || seconds == 0.0 && name != "warm-up" {
            return Err(format!("--{name} {seconds} cannot be: a number of seconds above 0"));
        }
        Ok(Some(Duration::from_secs_f64(seconds)))
    }

    fn rate(&self) -> Result<f64, String> {
        if !self.has("rate") {
            return Ok(0.0);
        }
        let rate = *self.matches.get_one::<f64>("rate").expect("it is there");
        if !(0.001..=1e9).contains(&rate) {
            return Err(format!("--rate {rate} cannot be: messages a second, above 0"));
        }
        Ok(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        let arguments = ["bench"].into_iter().chain(line.split_whitespace());
        match command().try_get_matches_from(arguments) {
            Ok(matches) => parse(&matches),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_commands_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn what_the_examples_say_is_understood() {
        for help in [BENCH_HELP, ENGINE_HELP, AMQP_HELP, MQTT_HELP, STOMP_HELP, ROCKETMQ_HELP] {
            for line in help
                .lines()
                .filter_map(|line| line.strip_prefix("  rocketbridge bench "))
            {
                let line = line.split("   ").next().unwrap_or(line);
                let line = line.replace("$(pidof rocketbridge)", "1").replace("PID", "1");
                options(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_in_words() {
        for (line, words) in [
            ("amqp --size 10", "--size 10 cannot be: at least 24"),
            ("amqp --url http://127.0.0.1", "amqp://"),
            ("amqp --url amqps://127.0.0.1", "TLS"),
            ("amqp --ack-batch 100 --prefetch 10", "never fills"),
            ("amqp --auto-ack --ack-batch 10", "exclude each other"),
            ("amqp --backlog --fill", "exclude each other"),
            ("amqp --fill", "--name"),
            ("amqp --publishers 0", "--publishers 0"),
            ("amqp --publishers 70000", "at most 65535"),
            ("amqp --rate 0", "--rate 0"),
            ("amqp --name a/b --fill", "--name"),
            ("amqp --backlog --consumers 0", "--consumers 0"),
            ("mqtt --qos 3", "--qos 3"),
            ("mqtt --backlog", "--qos 1"),
            ("mqtt --qos 1 --confirm 0", "--confirm 0"),
            ("mqtt --persistent", "--persistent"),
            ("rocketmq --send sync --confirm 5", "--confirm is for --send async"),
            ("rocketmq --send later", "later"),
            ("stomp --fan-out --backlog", "--fan-out"),
        ] {
            let error = options(line).err().unwrap_or_else(|| panic!("{line} was taken"));
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn windows_are_what_the_protocol_means_by_them() {
        let window = |line: &str| options(line).unwrap().confirm;
        assert_eq!(window("amqp"), 0);
        assert_eq!(window("amqp --confirm 7"), 7);
        assert_eq!(window("mqtt --confirm 7"), 0);
        assert_eq!(window("mqtt --qos 1"), 100);
        assert_eq!(window("stomp"), 0);
        assert_eq!(window("stomp --receipt"), 1000);
        assert_eq!(window("stomp --confirm 5"), 5);
        assert_eq!(window("rocketmq --send sync"), 1);
        assert_eq!(window("rocketmq --send one-way"), 0);
    }
}
