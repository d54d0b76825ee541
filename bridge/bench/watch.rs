//! Watches a run from the outside: progress, measurements, and when it is over.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::options::Options;
use super::process::{self, Usage};
use super::report::grouped;
use super::shared::Shared;
use super::wire::Fault;

/// How often it looks.
const LOOK_TIME: Duration = Duration::from_millis(5);

/// How often it tells what goes on: a terminal, and a file.
const TERMINAL_US: u64 = 500_000;
const FILE_US: u64 = 5_000_000;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// SIGINT and SIGTERM end a run in good order: what it declared is removed.
pub fn listen_to_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, SeqCst);
            // The second one ends the process.
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130)
        })
    };
    thread::spawn(move || {
        let result: std::io::Result<()> = listen();
        if let Err(error) = result {
            eprintln!("rocketbridge bench: cannot listen to signals: {error}");
        }
    });
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at_us: u64,
    /// Delivered, or published where nobody consumes.
    pub messages: u64,
    pub broker: Option<Usage>,
    pub load: Option<Usage>,
}

pub struct Watch<'a> {
    options: &'a Options,
    shared: &'a Shared,
    consume: bool,
    began: Sample,
    terminal: bool,
}

impl<'a> Watch<'a> {
    /// Just before the first message.
    pub fn begin(options: &'a Options, shared: &'a Shared, consume: bool, broker: Option<Usage>) -> Self {
        shared.measured.store(options.warm_up.is_zero(), SeqCst);
        let began = Sample {
            at_us: shared.now_us(),
            messages: 0,
            broker,
            load: process::usage(std::process::id()).ok(),
        };
        Self {
            options,
            shared,
            consume,
            began,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn messages(&self) -> u64 {
        if self.consume {
            self.shared.unique.load(SeqCst)
        } else if self.options.confirm > 0 {
            self.shared.confirmed.load(SeqCst)
        } else {
            self.shared.published.load(SeqCst)
        }
    }

    fn sample(&self, broker: Option<Usage>) -> Sample {
        Sample {
            at_us: self.shared.now_us(),
            messages: self.messages(),
            broker,
            load: process::usage(std::process::id()).ok(),
        }
    }

    /// Waits until everything is published, confirmed and delivered, or nothing moves any more. Gives where it stood
    /// when measuring began and ended.
    ///
    /// # Errors
    /// [`Fault`] of the run.
    pub fn until_over(
        self,
        expected: &dyn Fn() -> u64,
        usage: &dyn Fn() -> Option<Usage>,
    ) -> Result<(Sample, Sample), Fault> {
        let shared = self.shared;
        let warm_up_us = self.options.warm_up.as_micros() as u64;
        let measured_us = self.options.seconds.map(|seconds| seconds.as_micros() as u64);
        let mut begin = self.began;
        let mut end = None;
        let mut warm = warm_up_us == 0;
        let (mut told_us, mut told) = (self.began.at_us, (0, 0));
        let result = loop {
            thread::park_timeout(LOOK_TIME);
            let now_us = shared.now_us();
            if let Some(fault) = shared.take_fault() {
                break Err(fault);
            }
            if INTERRUPTED.load(SeqCst) {
                break Err(Fault::Stalled("interrupted".into()));
            }
            if !warm && now_us - self.began.at_us >= warm_up_us {
                warm = true;
                begin = self.sample(usage());
                shared.measured.store(true, SeqCst);
            }
            if let Some(measured_us) = measured_us
                && end.is_none()
                && warm
                && now_us - begin.at_us >= measured_us
            {
                end = Some(self.sample(usage()));
                shared.measured.store(false, SeqCst);
                shared.stop();
            }
            let published = shared.publishing.load(SeqCst) == 0;
            if published && (!self.consume || shared.unique.load(SeqCst) >= expected()) {
                break Ok(());
            }
            let still_us = now_us.saturating_sub(shared.last_us().max(self.began.at_us));
            if still_us > self.options.patience.as_micros() as u64 {
                // What has not come by now will not come: that is for the report to say.
                break if published { Ok(()) } else { Err(self.stalled()) };
            }
            let every_us = if self.terminal { TERMINAL_US } else { FILE_US };
            if now_us - told_us >= every_us {
                let now = (shared.published.load(SeqCst), shared.unique.load(SeqCst));
                self.tell(now_us, now_us - told_us, told, now);
                (told_us, told) = (now_us, now);
            }
        };
        if self.terminal && told != (0, 0) {
            eprint!("\r\x1b[K");
        }
        result?;
        let end = end.unwrap_or_else(|| {
            let mut end = self.sample(usage());
            end.at_us = shared.last_us().max(begin.at_us);
            end
        });
        Ok((begin, end))
    }

    fn stalled(&self) -> Fault {
        let seconds = self.options.patience.as_secs_f64();
        let last = self.shared.last_notice();
        let reason = last.map_or_else(String::new, |words| format!(" ({words})"));
        Fault::Stalled(format!("nothing moved for {seconds} s{reason}"))
    }

    fn tell(&self, now_us: u64, past_us: u64, before: (u64, u64), now: (u64, u64)) {
        let rate = |before: u64, now: u64| grouped((now - before) * 1_000_000 / past_us.max(1));
        let mut line = format!("{:.1} s:", now_us as f64 / 1e6);
        if now.0 > 0 {
            line.push_str(&format!(" published {} ({}/s)", grouped(now.0), rate(before.0, now.0)));
        }
        if self.consume {
            line.push_str(&format!(" delivered {} ({}/s)", grouped(now.1), rate(before.1, now.1)));
        }
        if self.terminal {
            eprint!("\r{line}\x1b[K");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }
}
