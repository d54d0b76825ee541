//! The log: events to stderr, through a bounded queue.
//!
//! A thread of its own writes, so that a terminal or pipe that does not take more stops no worker: what
//! does not fit in the queue is dropped and counted, and the count is logged when there is room again.

use std::cell::Cell;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::{error, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry, reload};

use crate::config::{Log, LogFormat};

/// Lines that may wait. With [`LINE_MAX`] this bounds the memory of the log to 32 MiB.
const LINES_MAX: usize = 4096;

/// Longest line, bytes; the rest of a longer one is cut.
const LINE_MAX: usize = 8 * 1024;

/// Bytes written at a time when many lines wait.
const WRITE_SIZE: usize = 64 * 1024;

/// How long [`LogHandle::flush`] waits for a stderr that takes nothing.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// The running log.
pub struct LogHandle {
    level: reload::Handle<Targets, Registry>,
    queue: Queue,
}

/// Starts the process's log. Panics are logged too, as errors.
///
/// # Errors
/// When the thread cannot be started or there is a log already.
pub fn start(config: &Log) -> io::Result<LogHandle> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    let queue = Queue {
        sender,
        dropped: Arc::default(),
    };
    let dropped = Arc::clone(&queue.dropped);
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&receiver, &dropped))?;
    let (level, handle) = reload::Layer::new(targets(config));
    let lines = fmt::layer().with_ansi(false).with_writer(queue.clone());
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    registry()
        .with(level)
        .with(lines)
        .try_init()
        .map_err(io::Error::other)?;
    panic::set_hook(Box::new(log_panic));
    Ok(LogHandle { level: handle, queue })
}

fn targets(config: &Log) -> Targets {
    config.level.parse().expect("the configuration was checked")
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let location = info.location().map(ToString::to_string);
    let message = info.payload_as_str().unwrap_or("no message");
    error!(
        thread = thread.name(),
        location, message, "panic; what it was working for has ended"
    );
}

impl LogHandle {
    /// Changes what is logged. The format stays.
    pub fn reload(&self, config: &Log) {
        if let Err(error) = self.level.reload(targets(config)) {
            error!(%error, "log level not changed");
        }
    }

    /// Waits until everything logged so far is written, a second at most.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.sender.try_send(Line::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH_TIME);
        }
    }
}

enum Line {
    Text(Box<[u8]>),
    /// Everything before it is to be written.
    Flush(SyncSender<()>),
}

/// Set once the last line of the process is being logged.
static ENDED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread has the last word.
    static HAS_LAST_WORD: Cell<bool> = const { Cell::new(false) };
}

/// Logs what ends the process: nothing that other threads still do is logged behind it.
pub fn last_words(log: impl FnOnce()) {
    HAS_LAST_WORD.set(true);
    ENDED.store(true, Ordering::Release);
    log();
}

/// Where formatted lines go.
#[derive(Clone)]
struct Queue {
    sender: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Queue;

    fn make_writer(&'a self) -> &'a Queue {
        self
    }
}

impl Write for &Queue {
    /// One call is one line: the formatter writes whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if ENDED.load(Ordering::Acquire) && !HAS_LAST_WORD.get() {
            return Ok(line.len());
        }
        let mut text = line[..line.len().min(LINE_MAX)].to_vec();
        if text.len() < line.len() {
            text.push(b'\n');
        }
        if self.sender.try_send(Line::Text(text.into())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(lines: &Receiver<Line>, dropped: &AtomicU64) {
    let mut stderr = io::stderr();
    let mut text = Vec::new();
    while let Ok(first) = lines.recv() {
        let mut flushed = None;
        let mut next = Some(first);
        while let Some(line) = next {
            match line {
                Line::Text(line) => text.extend_from_slice(&line),
                Line::Flush(done) => flushed = Some(done),
            }
            let more = text.len() < WRITE_SIZE && flushed.is_none();
            next = if more { lines.try_recv().ok() } else { None };
        }
        // There is nobody left to tell when stderr is closed.
        let _ = stderr.write_all(&text);
        text.clear();
        if let Some(done) = flushed {
            let _ = done.try_send(());
        }
        let lines = dropped.swap(0, Ordering::Relaxed);
        if lines > 0 {
            warn!(lines, "log lines dropped: stderr was too slow");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_waiting() {
        let (sender, receiver) = sync_channel(2);
        let queue = Queue {
            sender,
            dropped: Arc::default(),
        };
        for _ in 0..5 {
            (&queue).write_all(b"line\n").expect("never fails");
        }
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3);
        (&queue).write_all(&[b'x'; 2 * LINE_MAX]).expect("never fails");
        receiver.try_recv().expect("the first line");
        (&queue).write_all(&[b'x'; 2 * LINE_MAX]).expect("never fails");
        let cut = receiver.try_iter().last();
        assert!(matches!(cut, Some(Line::Text(line)) if line.len() == LINE_MAX + 1 && line.ends_with(b"\n")));
    }
}
