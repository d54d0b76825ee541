//! The program: reads its configuration, runs a [`Server`], listens to signals.

mod cli;

use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rocketbridge::config::{Loaded, Sources, differences};
use rocketbridge::log::{self, LogHandle};
use rocketbridge::server::{Server, StartError};
use rocketbridge_core::engine::OpenError;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use toml::Table;
use tracing::{error, info, warn};

/// Why the process ended, for whoever started it. `rocketbridge serve --help` lists them.
mod exit {
    pub const OTHER: u8 = 1;
    pub const CONFIG: u8 = 3;
    pub const ADDRESS: u8 = 4;
    pub const LOCKED: u8 = 5;
    pub const DAMAGED: u8 = 6;
    pub const STORE_FAILED: u8 = 7;
    pub const SECOND_SIGNAL: u8 = 130;
}

/// Keys that SIGHUP puts into force.
const RELOADED: [&str; 3] = ["log.level", "limits.connections_max", "limits.unfinished_max"];

/// How long threads that do not end may hold up the process's end.
const END_TIME: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let started = Instant::now();
    let sources = match cli::parse() {
        cli::Task::Serve(sources) => sources,
        cli::Task::Bench(options) => return rocketbridge::bench::run(&options),
        cli::Task::Store(task) => return ExitCode::from(rocketbridge::store_tools::run(&task)),
    };
    let loaded = match sources.load() {
        Ok(loaded) => loaded,
        Err(error) => return refuse(exit::CONFIG, &error),
    };
    let log = match log::start(&loaded.config.log) {
        Ok(log) => log,
        Err(error) => return refuse(exit::OTHER, &error),
    };
    let code = match runtime() {
        Ok(runtime) => {
            let code = runtime.block_on(serve(&sources, loaded, &log, started));
            // Whatever still runs has nothing to say any more.
            runtime.shutdown_timeout(if code == 0 { END_TIME } else { Duration::ZERO });
            code
        }
        Err(error) => {
            error!(%error, "cannot start");
            exit::OTHER
        }
    };
    log.flush();
    // Not `return`: a thread that waits for a broken disk must not hold up the end.
    std::process::exit(code.into())
}

/// Before there is a log.
fn refuse(code: u8, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("rocketbridge: {error}");
    ExitCode::from(code)
}

fn runtime() -> io::Result<Runtime> {
    // As many workers as cores.
    runtime::Builder::new_multi_thread()
        .thread_name("worker")
        .enable_all()
        .build()
}

async fn serve(sources: &Sources, loaded: Loaded, log: &LogHandle, started: Instant) -> u8 {
    // Before the ready line: who reads it may send a signal at once.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot listen to signals");
            return exit::OTHER;
        }
    };
    let mut server = match Server::start(loaded.config.clone()).await {
        Ok(server) => server,
        Err(error) => {
            error!("{error}");
            return code_of(&error);
        }
    };
    info!(
        "ready {} startup_ms={}",
        server.listening(),
        started.elapsed().as_millis()
    );

    let mut settings = Settings {
        at_start: loaded.set.clone(),
        last: loaded.set,
    };
    loop {
        tokio::select! {
            // The server has logged it: that is the last line.
            _ = server.failed() => return exit::STORE_FAILED,
            told = signals.next() => match told {
                Told::Stop => break,
                Told::Reload => settings.reload(sources, &server, log),
            },
        }
    }
    info!(connections = server.connection_count(), "stopping");
    let mut ending = pin!(server.shutdown());
    loop {
        tokio::select! {
            result = &mut ending => match result {
                Ok(()) => {
                    info!("stopped");
                    return 0;
                }
                Err(failed) => {
                    error!(%failed, "not everything was written");
                    return exit::STORE_FAILED;
                }
            },
            told = signals.next() => match told {
                Told::Stop => {
                    warn!("second signal, ending at once");
                    return exit::SECOND_SIGNAL;
                }
                Told::Reload => info!("stopping, configuration not reloaded"),
            },
        }
    }
}

fn code_of(error: &StartError) -> u8 {
    match error {
        StartError::Listen { .. } => exit::ADDRESS,
        StartError::Open { error, .. } => match error {
            OpenError::Locked => exit::LOCKED,
            OpenError::Recovery(_) => exit::DAMAGED,
            OpenError::Io(_) => exit::OTHER,
        },
        StartError::Thread(_) => exit::OTHER,
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.reload.recv() => Told::Reload,
        }
    }
}

/// What a signal asks for.
enum Told {
    Stop,
    Reload,
}

/// What was set when the process started, and at the last reload.
struct Settings {
    at_start: Table,
    last: Table,
}

impl Settings {
    /// Reads the configuration again. A bad one changes nothing.
    fn reload(&mut self, sources: &Sources, server: &Server, log: &LogHandle) {
        let loaded = match sources.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                error!(%error, "configuration not reloaded, nothing is changed");
                return;
            }
        };
        log.reload(&loaded.config.log);
        server.reload(&loaded.config);
        let mut changed = differences(&self.last, &loaded.set);
        changed.retain(|key| RELOADED.contains(&&key[..]));
        info!(changed = changed.join(", "), "configuration reloaded");
        let mut waiting = differences(&self.at_start, &loaded.set);
        waiting.retain(|key| !RELOADED.contains(&&key[..]));
        if !waiting.is_empty() {
            warn!(keys = waiting.join(", "), "a restart is needed for these to change");
        }
        self.last = loaded.set;
    }
}
