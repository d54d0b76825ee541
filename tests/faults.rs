//! A slow and a failing disk, injected from outside: no implementation can fake what `strace` does to its
//! system calls. Needs the Debian package `strace`.

mod support;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::amqp::{self, Amqp};
use support::broker::{Broker, Options};
use support::history::{Event, Extent, MessageId, Recorder};
use support::load::{self, Addresses, CLIENTS, Load};
use support::measure::{SetAtEnd, Spread, best_of};
use support::mqtt::{Connect, Mqtt};
use support::random::Random;
use support::remoting::{Remoting, SUCCESS, Send};
use support::stomp::Stomp;
use support::wire::PATIENCE;

/// What an `fdatasync` takes.
const DELAY: Duration = Duration::from_millis(300);

/// What everything that needs no disk may take.
const P99_MAX: Duration = Duration::from_millis(20);

/// Other programs take the processor, too: the best of so many measurements counts. What waits for the disk
/// fails in all of them.
const ATTEMPTS: u32 = 8;

/// The call that fails where messages come one by one.
const FAILING_CALL: usize = 20;

/// Writes of zeros that prepare the log before anything is written to it: none of them waits for the disk, and none
/// is the one that fails.
const PREPARING_WRITES: usize = 64;

/// The call that fails where everybody is at work; setting up takes far fewer.
const FAILING_CALL_OF_LOAD: usize = 60;

const EXIT_STORE_FAILED: i32 = 7;

/// A broker whose file calls `strace` changes, and the file in which it notes them.
fn traced(injection: &str) -> (Options, PathBuf, tempfile::TempDir) {
    let version = Command::new("strace").arg("--version").output();
    assert!(
        version.is_ok(),
        "strace is missing: install the Debian package `strace`"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    // As a grandchild, so that the child is the broker: signals and the exit code are its own.
    let words = [
        "strace",
        "-D",
        "--seccomp-bpf",
        "-f",
        "-e",
        "trace=fdatasync,pwrite64",
        "-e",
    ];
    let mut wrapper: Vec<_> = words.map(str::to_owned).into();
    wrapper.push(format!("inject={injection}"));
    wrapper.extend(["-o".to_owned(), trace.display().to_string()]);
    let options = Options {
        wrapper,
        ..Options::default()
    };
    (options, trace, folder)
}

/// The threads that made a system call, and how often it was made.
fn callers(trace: &PathBuf, call: &str) -> (BTreeSet<u32>, usize) {
    let text = std::fs::read_to_string(trace).expect("strace wrote it");
    let start = format!("{call}(");
    // A call that another one interrupts takes two lines; only the first has the parenthesis.
    let threads = text.lines().filter(|line| line.contains(&start));
    let threads: Vec<u32> = threads
        .map(|line| {
            line.split_whitespace()
                .next()
                .expect("a line begins with the thread")
                .parse()
                .expect("a number")
        })
        .collect();
    (threads.iter().copied().collect(), threads.len())
}

// --- a slow disk ------------------------------------------------------------------------------

#[test]
fn a_slow_disk_delays_only_what_waits_for_it() {
    let mut random = Random::from_environment();
    let (options, trace, _folder) = traced(&format!("fdatasync:delay_enter={}", DELAY.as_micros()));
    let mut broker = Broker::start_with(&options);
    let addresses = Addresses::of(&broker);
    let load = Load::default();
    load::set_up(&load, &addresses, &mut random).expect("it works");
    thread::scope(|scope| {
        let end = SetAtEnd(&load.stop);
        let clients = CLIENTS.map(|client| {
            let random = random.fork();
            let load = &load;
            scope.spawn(move || client.run(load, &addresses, random))
        });
        best_of(ATTEMPTS, P99_MAX, "MQTT QoS 0 from client to client", || {
            mqtt_round_trips(&addresses)
        });
        best_of(ATTEMPTS, P99_MAX, "transient AMQP from client to client", || {
            amqp_round_trips(&addresses)
        });
        best_of(ATTEMPTS, P99_MAX, "lateness of AMQP heartbeats", || {
            heartbeat_lateness(&addresses)
        });
        let slow = confirm_time(&addresses).expect("it works");
        assert!(
            slow >= DELAY,
            "a confirm came after {slow:?}, before its fdatasync can have ended"
        );
        // Until here: what a client that goes has acknowledged last may not arrive, and others get it again.
        let history = load.recorder.with(|history| history.clone());
        drop(end);
        for client in clients {
            client.join().expect("it does not panic").expect("it works");
        }
        history.assert_good(Extent::Cut);
    });
    broker.signal("TERM");
    assert!(broker.wait(PATIENCE).success());
    let (threads, calls) = callers(&trace, "fdatasync");
    assert!(calls > 10, "the disk was not kept busy: {calls} calls of fdatasync");
    assert_eq!(threads.len(), 1, "fdatasync was called by threads {threads:?}");
}

fn mqtt_round_trips(addresses: &Addresses) -> io::Result<Spread> {
    let mut subscriber = Mqtt::connect(addresses.mqtt, Connect::clean("quick-subscriber"))?;
    subscriber.subscribe("quick/#", 0)?;
    let mut publisher = Mqtt::connect(addresses.mqtt, Connect::clean("quick-publisher"))?;
    let mut spread = Spread::default();
    for number in 0..500u32 {
        let start = Instant::now();
        publisher.publish("quick/transient", 0, &number.to_le_bytes())?;
        let message = subscriber.next_message(PATIENCE)?.expect("it comes");
        spread.add(start.elapsed());
        assert_eq!(message.body, number.to_le_bytes());
    }
    Ok(spread)
}

fn amqp_round_trips(addresses: &Addresses) -> io::Result<Spread> {
    let mut consumer = Amqp::connect(addresses.amqp)?;
    let (queue, _) = consumer.declare_queue_with("", 4 | 8)?;
    consumer.consume(&queue, true)?;
    let mut publisher = Amqp::connect(addresses.amqp)?;
    let mut spread = Spread::default();
    for number in 0..500u32 {
        let start = Instant::now();
        publisher.publish(amqp::Publish {
            exchange: "",
            key: &queue,
            persistent: false,
            mandatory: false,
            body: &number.to_le_bytes(),
        })?;
        let delivery = consumer.next_delivery(PATIENCE)?.expect("it comes");
        spread.add(start.elapsed());
        assert_eq!(delivery.body, number.to_le_bytes());
    }
    Ok(spread)
}

/// How far the times between heartbeats are from what they mostly are, over many connections.
fn heartbeat_lateness(addresses: &Addresses) -> io::Result<Spread> {
    const CONNECTIONS: usize = 16;
    const BEATS: usize = 6;
    let intervals: Vec<io::Result<Vec<Duration>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| heartbeat_intervals(&mut Amqp::connect_with(addresses.amqp, 1)?, BEATS)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"))
            .collect()
    });
    let mut all = Vec::new();
    for intervals in intervals {
        all.extend(intervals?);
    }
    all.sort();
    let usual = all[all.len() / 2];
    assert!(
        usual <= Duration::from_millis(1100),
        "the broker was told a heartbeat of 1 s, and beats at {usual:?}"
    );
    let mut spread = Spread::default();
    all.iter()
        .for_each(|interval| spread.add(interval.saturating_sub(usual)));
    Ok(spread)
}

fn heartbeat_intervals(client: &mut Amqp, beats: usize) -> io::Result<Vec<Duration>> {
    let mut last: Option<Instant> = None;
    let mut intervals = Vec::new();
    while intervals.len() < beats {
        match client.next_event(Instant::now() + PATIENCE)? {
            Some(amqp::Event::Heartbeat) => {
                let now = Instant::now();
                intervals.extend(last.map(|last| now - last));
                last = Some(now);
                client.heartbeat()?;
            }
            other => panic!("not a heartbeat: {other:?}"),
        }
    }
    Ok(intervals)
}

/// How long one persistent message takes: the control that the disk really is slow.
fn confirm_time(addresses: &Addresses) -> io::Result<Duration> {
    let mut client = Amqp::connect(addresses.amqp)?;
    client.confirm_select()?;
    client.declare_queue("control", true)?;
    let start = Instant::now();
    client.publish_confirmed(to_queue("control", b"slow"))?;
    Ok(start.elapsed())
}

fn to_queue<'a>(queue: &'a str, body: &'a [u8]) -> amqp::Publish<'a> {
    amqp::Publish {
        exchange: "",
        key: queue,
        persistent: true,
        mandatory: true,
        body,
    }
}

// --- a failing disk ---------------------------------------------------------------------------

#[test]
fn no_confirm_follows_a_failed_fdatasync() {
    no_confirm_follows("fdatasync");
}

#[test]
fn no_confirm_follows_a_failed_pwrite() {
    no_confirm_follows("pwrite64");
}

#[test]
fn after_a_failed_fdatasync_nothing_confirmed_is_missing() {
    nothing_is_missing_after("fdatasync");
}

#[test]
fn after_a_failed_pwrite_nothing_confirmed_is_missing() {
    nothing_is_missing_after("pwrite64");
}

/// Files that only spare reading the log again may fail as they like. `ROCKETBRIDGE_INDEXED_MESSAGES` is how many
/// messages wait (default 5,000; from about 400,000 on index pages are written, too).
#[test]
fn failing_checkpoints_and_index_pages_cost_nothing_confirmed() {
    let messages = std::env::var("ROCKETBRIDGE_INDEXED_MESSAGES");
    let messages: u64 = messages.map_or(5_000, |text| text.parse().expect("a number"));
    for error in ["EIO", "ENOSPC"] {
        let data = tempfile::tempdir().expect("a folder");
        let (mut options, trace, _folder) = traced(&format!("pwrite64:error={error}"));
        options.config = "[store]\ncheckpoint_size = 65536\n".to_owned();
        options.data_dir = Some(data.path().to_owned());
        let program = options.wrapper.len() - 2;
        let files = |area: &'static str, count: u64| (0..count).map(move |number| format!("{area}/{number:020}"));
        for name in files("checkpoint", 40).chain(files("index", 4)) {
            let path = data.path().join(name).display().to_string();
            options.wrapper.splice(program..program, ["-P".to_owned(), path]);
        }
        let mut broker = Broker::start_with(&options);
        publish_numbers(&Addresses::of(&broker), messages).expect("the log does not fail");
        let until = Instant::now() + PATIENCE;
        while !broker.log().contains("cannot be kept small") {
            assert!(Instant::now() < until, "no checkpoint failed:\n{}", broker.log());
            thread::yield_now();
        }
        assert!(broker.is_running(), "{}", broker.log());
        let log = broker.log();
        broker.kill();
        let failed = std::fs::read_to_string(&trace).expect("strace wrote it");
        println!("{error}: {} writes failed", failed.matches("(INJECTED)").count());
        let options = Options {
            data_dir: options.data_dir.clone(),
            ..Options::default()
        };
        let broker = broker.restart(&options);
        consume_numbers(&Addresses::of(&broker), messages).unwrap_or_else(|error| panic!("{error}\n{log}"));
    }
}

fn publish_numbers(addresses: &Addresses, messages: u64) -> io::Result<()> {
    let mut client = Amqp::connect(addresses.amqp)?;
    client.confirm_select()?;
    client.declare_queue("numbers", true)?;
    let mut sent = 0;
    while sent < messages {
        let mut bytes = Vec::new();
        let first = sent;
        while sent < messages && sent < first + 1000 {
            client.put_publish(to_queue("numbers", &sent.to_le_bytes()), &mut bytes);
            sent += 1;
        }
        client.wire.send(&bytes)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match client.next_event(until)? {
                Some(amqp::Event::Confirmed { tag, ack: true, .. }) if tag == sent => break,
                Some(amqp::Event::Confirmed { ack: true, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    Ok(())
}

fn consume_numbers(addresses: &Addresses, messages: u64) -> io::Result<()> {
    let mut client = Amqp::connect(addresses.amqp)?;
    client.consume("numbers", true)?;
    for number in 0..messages {
        let delivery = client.next_delivery(PATIENCE)?.expect("all are there");
        assert_eq!(delivery.body, number.to_le_bytes());
    }
    client.close()
}

/// One client of each protocol publishes one message at a time: each confirm needs a write and a sync of its
/// own, so that one confirm too many can be counted.
fn no_confirm_follows(call: &str) {
    let publishers: [fn(&Recorder, &Addresses) -> io::Result<()>; 4] =
        [amqp_one_by_one, mqtt_one_by_one, stomp_one_by_one, native_one_by_one];
    for publisher in publishers {
        let (options, _trace, _folder) = traced(&format!("{call}:error=EIO:when={}", failing(call, FAILING_CALL)));
        let mut broker = Broker::start_with(&options);
        let recorder = Recorder::default();
        let result = publisher(&recorder, &Addresses::of(&broker));
        assert!(result.is_err(), "the broker is gone");
        assert_store_failed(&mut broker);
        let confirmed = recorder.with(|history| history.count(|event| matches!(event, Event::Confirmed { .. })));
        assert!(
            (1..FAILING_CALL).contains(&confirmed),
            "{confirmed} confirms before call {FAILING_CALL} failed"
        );
    }
}

/// The number of the failing call, those that prepare the log included.
fn failing(call: &str, number: usize) -> usize {
    number + if call == "pwrite64" { PREPARING_WRITES } else { 0 }
}

/// Ended with the documented exit code and a last line that says why.
fn assert_store_failed(broker: &mut Broker) {
    let status = broker.wait(PATIENCE);
    let log = broker.whole_log();
    assert_eq!(status.code(), Some(EXIT_STORE_FAILED), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("ERROR") && last.contains("the store failed"), "{log}");
    assert!(
        last.contains("Input/output error"),
        "the last line does not tell the cause:\n{log}"
    );
    assert!(!log.contains("panic"), "{log}");
}

fn next(recorder: &Recorder, sequence: &mut u64) -> (MessageId, Vec<u8>) {
    *sequence += 1;
    let message = MessageId {
        publisher: 1,
        sequence: *sequence,
    };
    (message, recorder.send(message, 100, &mut Random::new(*sequence)))
}

fn amqp_one_by_one(recorder: &Recorder, addresses: &Addresses) -> io::Result<()> {
    let mut client = Amqp::connect(addresses.amqp)?;
    client.confirm_select()?;
    client.declare_queue("one", true)?;
    let mut sequence = 0;
    loop {
        let (message, body) = next(recorder, &mut sequence);
        client.publish_confirmed(to_queue("one", &body))?;
        recorder.record(Event::Confirmed { message });
        assert!(sequence < FAILING_CALL as u64, "a confirm follows the failure");
    }
}

fn mqtt_one_by_one(recorder: &Recorder, addresses: &Addresses) -> io::Result<()> {
    let mut client = Mqtt::connect(addresses.mqtt, Connect::clean("one"))?;
    let mut sequence = 0;
    loop {
        let (message, body) = next(recorder, &mut sequence);
        client.publish_confirmed("one/by/one", &body)?;
        recorder.record(Event::Confirmed { message });
        assert!(sequence < FAILING_CALL as u64, "a confirm follows the failure");
    }
}

fn stomp_one_by_one(recorder: &Recorder, addresses: &Addresses) -> io::Result<()> {
    let mut client = Stomp::connect(addresses.stomp)?;
    let mut sequence = 0;
    loop {
        let (message, body) = next(recorder, &mut sequence);
        client.call("SEND", &[("destination", "/queue/one"), ("persistent", "true")], &body)?;
        recorder.record(Event::Confirmed { message });
        assert!(sequence < FAILING_CALL as u64, "a confirm follows the failure");
    }
}

fn native_one_by_one(recorder: &Recorder, addresses: &Addresses) -> io::Result<()> {
    let mut client = Remoting::connect(addresses.remoting)?;
    let mut sequence = 0;
    loop {
        let (message, body) = next(recorder, &mut sequence);
        let response = client.send_and_wait(Send {
            topic: "one",
            tag: "",
            queue_id: None,
            body: &body,
        })?;
        if response.code != SUCCESS {
            // A refusal is no confirm.
            recorder.record(Event::Refused { message });
            continue;
        }
        recorder.record(Event::Confirmed { message });
        assert!(sequence < FAILING_CALL as u64, "a confirm follows the failure");
    }
}

/// Everybody at work when the disk fails; then a start on a good disk, and the history is judged.
fn nothing_is_missing_after(call: &str) {
    let mut random = Random::from_environment();
    let (options, _trace, _folder) = traced(&format!(
        "{call}:error=EIO:when={}",
        failing(call, FAILING_CALL_OF_LOAD)
    ));
    let mut broker = Broker::start_with(&options);
    let load = Load::default();
    let at = Addresses::of(&broker);
    load::set_up(&load, &at, &mut random).expect("that takes fewer calls");
    thread::scope(|scope| {
        for client in CLIENTS {
            let random = random.fork();
            let load = &load;
            scope.spawn(move || assert!(client.run(load, &at, random).is_err(), "the broker is gone"));
        }
    });
    assert_store_failed(&mut broker);
    load.recorder.record(Event::Crashed);
    let broker = broker.restart(&Options::default());
    load::drain(&load, &Addresses::of(&broker), &mut random).expect("it works");
    load.recorder.with(|history| {
        let confirmed = history.count(|event| matches!(event, Event::Confirmed { .. }));
        assert!(confirmed > 0, "nothing was tested: no confirm came before the failure");
        history.assert_good(Extent::Drained);
    });
}
