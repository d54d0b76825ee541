//! A load on a broker that costs far less than the broker: a measuring instrument, not a client.
//!
//! It works against any broker of the protocol and knows none of them. Frames are encoded once, numbered in
//! place and written in large pieces; readers look at lengths and sequence numbers and at nothing else. Each run
//! prints one line of `key=value`:
//!
//! | key | meaning |
//! |---|---|
//! | `rate` | deliveries a second in the window |
//! | `cpu_us` | user and system time of process `--pid` in the window, microseconds per delivery |
//! | `load_us` | the same of this program |
//! | `rss_mib` | resident memory of `--pid` at the end of the window |
//! | `behind` | published and not delivered at the end of the window |
//! | `lost` | published, never delivered, although the run waited |
//! | `out_of_order` | deliveries whose number is not above the one before |
//!
//! `cargo bench --bench load -- amqp --addr 127.0.0.1:5672 --pid PID`; `compare` beside this file runs it against
//! this broker and the reference brokers.

mod amqp;
mod measure;
mod mqtt;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::measure::Process;

fn main() {
    // A thread that fails leaves a run without a meaning, and the others waiting.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        std::process::exit(1);
    }));
    let matches = command().get_matches();
    match matches.subcommand() {
        Some(("amqp", matches)) => amqp::run(&amqp::Options {
            run: run_options(matches),
            confirm: number(matches, "confirm"),
            persistent: matches.get_flag("persistent"),
            ack_every: number(matches, "ack-every"),
            prefetch: number(matches, "prefetch").try_into().expect("a prefetch has 16 bits"),
        }),
        Some(("mqtt", matches)) => mqtt::run(&mqtt::Options {
            run: run_options(matches),
            qos: number(matches, "qos").try_into().expect("0 or 1"),
            confirm: number(matches, "confirm"),
            subscribers: number(matches, "subscribers").try_into().expect("a number of threads"),
        }),
        Some(("idle", matches)) => {
            mqtt::idle(address(matches), process(matches), number(matches, "connections"));
        }
        Some(("wait", matches)) => wait(matches),
        _ => unreachable!("a subcommand is required"),
    }
}

/// What every run has.
pub struct RunOptions {
    pub address: SocketAddr,
    pub broker: Process,
    /// Bytes of a body; the first eight are its number.
    pub size: usize,
    /// How far the publisher may be ahead of the slowest consumer; 0: any distance.
    pub window: u64,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How long to wait for what is missing at the end.
    pub patience: Duration,
}

fn run_options(matches: &ArgMatches) -> RunOptions {
    let seconds = |name| Duration::from_secs_f64(*matches.get_one::<f64>(name).expect("it has a default"));
    RunOptions {
        address: address(matches),
        broker: process(matches),
        size: usize::try_from(number(matches, "size")).expect("a size").max(8),
        window: number(matches, "window"),
        warm_up: seconds("warm-up"),
        measured: seconds("seconds"),
        patience: seconds("patience"),
    }
}

fn address(matches: &ArgMatches) -> SocketAddr {
    *matches.get_one("addr").expect("it is required")
}

fn process(matches: &ArgMatches) -> Process {
    Process::new(*matches.get_one("pid").expect("it is required"))
}

fn number(matches: &ArgMatches, name: &str) -> u64 {
    *matches.get_one(name).expect("it has a default")
}

fn command() -> Command {
    let protocol = |name| with_target(Command::new(name));
    // cargo passes `--bench` to every benchmark.
    let bench = Arg::new("bench")
        .long("bench")
        .action(ArgAction::SetTrue)
        .global(true)
        .hide(true);
    Command::new("load")
        .subcommand_required(true)
        .arg(bench)
        .subcommand(
            with_run(protocol("amqp"), "20000")
                .about("AMQP 0-9-1: one publisher, one durable queue, one consumer")
                .arg(amount(
                    "confirm",
                    "0",
                    "Publisher confirms outstanding at most; 0: no confirms",
                ))
                .arg(Arg::new("persistent").long("persistent").action(ArgAction::SetTrue))
                .arg(amount(
                    "ack-every",
                    "0",
                    "Acknowledge every N deliveries; 0: automatic acknowledgement",
                ))
                .arg(amount(
                    "prefetch",
                    "0",
                    "Unacknowledged deliveries at most; 0: any number",
                )),
        )
        .subcommand(
            with_run(protocol("mqtt"), "2000")
                .about("MQTT 3.1.1: one publisher, one topic, some subscribers")
                .arg(amount("qos", "0", "0 or 1, of publisher and subscribers"))
                .arg(amount("confirm", "100", "QoS 1: publishes without PUBACK at most"))
                .arg(amount(
                    "subscribers",
                    "1",
                    "Subscribers, each on a connection and a thread of its own",
                )),
        )
        .subcommand(
            protocol("idle")
                .about("MQTT connections that do nothing: memory and CPU of each")
                .arg(amount("connections", "10000", "How many")),
        )
        .subcommand(
            Command::new("wait")
                .about("Waits until a broker answers and prints the milliseconds since --since")
                .arg(
                    Arg::new("protocol")
                        .required(true)
                        .value_parser(["amqp", "mqtt", "tcp"]),
                )
                .arg(target())
                .arg(amount("since", "0", "Nanoseconds since 1970"))
                .arg(amount("limit", "60", "Seconds to wait at most")),
        )
}

fn target() -> Arg {
    Arg::new("addr")
        .long("addr")
        .required(true)
        .value_parser(value_parser!(SocketAddr))
}

fn with_target(command: Command) -> Command {
    let pid = Arg::new("pid")
        .long("pid")
        .required(true)
        .value_parser(value_parser!(u32));
    command.arg(target()).arg(pid.help("The broker's process"))
}

fn with_run(command: Command, window: &'static str) -> Command {
    let seconds = |name, default, help| {
        let arg = Arg::new(name)
            .long(name)
            .value_parser(value_parser!(f64))
            .default_value(default);
        arg.help(help)
    };
    command
        .arg(amount("size", "256", "Bytes of a body"))
        .arg(amount(
            "window",
            window,
            "How far the publisher may be ahead of the slowest consumer; 0: any distance",
        ))
        .arg(seconds("warm-up", "1", "Seconds before the window"))
        .arg(seconds("seconds", "5", "Seconds of the window"))
        .arg(seconds(
            "patience",
            "15",
            "Seconds to wait for missing messages at the end",
        ))
}

fn amount(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_parser(value_parser!(u64))
        .default_value(default)
        .help(help)
}

fn wait(matches: &ArgMatches) {
    let address = address(matches);
    let protocol: &String = matches.get_one("protocol").expect("it is required");
    let answers = || match protocol.as_str() {
        "amqp" => amqp::answers(address),
        "mqtt" => mqtt::answers(address),
        _ => std::net::TcpStream::connect(address).is_ok(),
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(number(matches, "limit"));
    while !answers() {
        assert!(std::time::Instant::now() < deadline, "{address} does not answer");
        std::thread::sleep(Duration::from_millis(1));
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("it is after 1970");
    let since = Duration::from_nanos(number(matches, "since"));
    println!("{}", now.saturating_sub(since).as_millis());
}
