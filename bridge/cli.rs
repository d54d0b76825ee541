//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use rocketbridge::bench::options::{self, Options};
use rocketbridge::config::{Override, Sources, environment};
use rocketbridge::protocols::PROTOCOLS;
use rocketbridge::store_tools;

/// What the user asked for.
pub enum Task {
    /// Run the broker with this configuration.
    Serve(Sources),
    /// Measure a broker.
    Bench(Box<Options>),
    /// Look at a data directory.
    Store(store_tools::Task),
}

const ROOT_HELP: &str = "\
Example:
  rocketbridge serve --data-dir /var/lib/rocketbridge
      starts a broker for AMQP 0-9-1, MQTT, STOMP and RocketMQ clients on this machine
  rocketbridge bench amqp --url amqp://guest:guest@127.0.0.1:5672
      measures it, or any other broker
  rocketbridge store check /var/lib/rocketbridge
      verifies the data of a broker that does not run

`rocketbridge serve --help` shows how to configure it, `rocketbridge bench --help` what can be measured.";

const SERVE_HELP: &str = "\
Configuration:
  A TOML file (--config), then environment variables, then flags; each replaces what came before.
  ROCKETBRIDGE_DATA_DIR is `data_dir`, ROCKETBRIDGE_AMQP__LISTEN is `listen` in section [amqp], and so on;
  a list may be written with commas. --set reaches every key in the same way.

Examples:
  rocketbridge serve
      listens on 127.0.0.1 only and keeps its data in ./rocketbridge-data

  rocketbridge serve --config /etc/rocketbridge.toml
      with a file like this:

        data_dir = \"/var/lib/rocketbridge\"
        [amqp]
        listen = [\"0.0.0.0:5672\"]
        [mqtt]
        listen = []                        # off
        [store]
        flush = \"async\"                    # confirm before the disk has it
        [[users]]
        name = \"app\"
        password = \"secret\"

  rocketbridge serve --amqp-listen 127.0.0.1:0 --mqtt-listen '' --set limits.connections_max=500
      lets the system choose AMQP's port, turns MQTT off, sets a limit

  ROCKETBRIDGE_REMOTING__ADVERTISE=mq.example.org rocketbridge serve --remoting-listen 0.0.0.0:10911
      tells RocketMQ clients an address that reaches this broker from outside a container

Ready:
  One line on stderr names every address: ready amqp=127.0.0.1:5672 mqtt=127.0.0.1:1883 ...

Signals:
  SIGTERM, SIGINT   stop in good order, within 10 s; a second one ends the process at once
  SIGHUP            read the configuration again; what needs a restart is named in the log

Exit codes:
  0  stopped in good order                     5  another process uses the data directory
  1  another reason                            6  the data is damaged or of a newer version
  2  wrong usage                               7  the disk failed while running
  3  wrong configuration                     130  a second signal
  4  an address is taken or not allowed";

/// Reads the command line. Ends the process with usage (exit code 2) or help.
pub fn parse() -> Task {
    let matches = command().get_matches();
    match matches.subcommand() {
        Some(("serve", matches)) => Task::Serve(sources(matches)),
        Some(("bench", matches)) => match options::parse(matches) {
            Ok(options) => Task::Bench(Box::new(options)),
            Err(words) => command().error(ErrorKind::ValueValidation, words).exit(),
        },
        Some(("store", matches)) => Task::Store(store_tools::parse(matches)),
        _ => unreachable!("a subcommand is required"),
    }
}

fn command() -> Command {
    Command::new("rocketbridge")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A message broker for AMQP, MQTT, STOMP and RocketMQ clients")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(ROOT_HELP)
        .subcommand(serve())
        .subcommand(options::command())
        .subcommand(store_tools::command())
}

fn serve() -> Command {
    let mut command = Command::new("serve")
        .about("Runs the broker until it is told to stop")
        .after_help(SERVE_HELP)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .env("ROCKETBRIDGE_CONFIG")
                .value_parser(value_parser!(PathBuf))
                .help("The configuration file"),
        );
    for flag in flags() {
        let arg = Arg::new(flag.name.clone()).long(flag.name).value_name(flag.value_name);
        command = command.arg(arg.action(ArgAction::Append).help(flag.help));
    }
    command.arg(
        Arg::new("set")
            .long("set")
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help("Any key, as in `--set store.flush=async`"),
    )
}

/// A flag that is short for one key.
struct Flag {
    name: String,
    value_name: &'static str,
    key: &'static str,
    help: String,
}

fn flags() -> Vec<Flag> {
    let flag = |name: &str, value_name, key, help: &str| Flag {
        name: name.to_owned(),
        value_name,
        key,
        help: help.to_owned(),
    };
    let mut flags = vec![flag("data-dir", "DIR", "data_dir", "Where everything durable lies")];
    for protocol in PROTOCOLS {
        flags.push(flag(
            &format!("{}-listen", protocol.name.replace('_', "-")),
            "HOST:PORT,..",
            protocol.listen_key,
            &format!("Where to listen for {}; '' is nowhere", protocol.title),
        ));
    }
    flags.extend([
        flag(
            "advertise",
            "HOST[:PORT]",
            "remoting.advertise",
            "The broker's address as RocketMQ clients reach it",
        ),
        flag(
            "flush",
            "sync|async",
            "store.flush",
            "When a persistent message is confirmed",
        ),
        flag("log-level", "LEVEL", "log.level", "error, warn, info, debug or trace"),
        flag("log-format", "text|json", "log.format", "How log lines look"),
    ]);
    flags
}

fn sources(matches: &ArgMatches) -> Sources {
    let mut overrides = environment(std::env::vars_os().filter_map(|(name, value)| {
        // A name or value that is no UTF-8 cannot be one of ours.
        Some((name.into_string().ok()?, value.into_string().ok()?))
    }));
    for flag in flags() {
        if let Some(values) = matches.get_many::<String>(&flag.name) {
            let values: Vec<_> = values.map(String::as_str).collect();
            overrides.push(setting(format!("--{}", flag.name), flag.key, &values.join(",")));
        }
    }
    for set in matches.get_many::<String>("set").into_iter().flatten() {
        let (key, value) = set.split_once('=').unwrap_or((set, ""));
        overrides.push(setting(format!("--set {key}"), key, value));
    }
    Sources {
        file: matches.get_one::<PathBuf>("config").cloned(),
        overrides,
    }
}

fn setting(origin: String, key: &str, value: &str) -> Override {
    Override {
        origin,
        path: key.split('.').map(str::to_owned).collect(),
        value: value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_stands_for_a_key_that_exists() {
        for flag in flags() {
            let value = match flag.value_name {
                "sync|async" => "async",
                "text|json" => "json",
                "LEVEL" => "debug",
                _ => "127.0.0.1:0",
            };
            let sources = Sources {
                file: None,
                overrides: vec![setting(flag.name.clone(), flag.key, value)],
            };
            sources.load().unwrap_or_else(|error| panic!("{}: {error}", flag.name));
        }
    }
}
