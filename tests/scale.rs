//! Ten million messages: unacknowledged on a connection that is lost, purged, deleted with their queue. Others do not
//! notice, memory stays as it is, and the disk gets its space back.
//!
//! `ROCKETBRIDGE_SCALE_MESSAGES` is how many (default 20,000, `tests/soak scale` says 10 million). Times and sizes are
//! judged from [`JUDGED_FROM`] on; what comes back, its order and its marks always are.

mod support;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use support::amqp::{self, Amqp, Bytes};
use support::broker::{Broker, Options};
use support::measure::{Memory, SetAtEnd, Spread};
use support::wire::PATIENCE;

const MESSAGES_DEFAULT: u64 = 20_000;
const JUDGED_FROM: u64 = 1_000_000;

/// What others may feel of it.
const P99_MAX: Duration = Duration::from_millis(20);

/// What the leases of all messages may take.
const GROWTH_MAX_KIB: u64 = 50 << 10;

/// What may be left on the disk: the segment at hand, the one that is ready, one that was just ended; index files.
const LEFT_MAX: u64 = (3 * 256 + 64) << 20;

/// Between two messages of others: the processor is for the broker.
const PERIOD: Duration = Duration::from_millis(2);

const BIG: &str = "big";

/// Published in one piece, and unconfirmed at most.
const BATCH: u64 = 500;
const WINDOW: u64 = 20_000;

const PASSIVE: u8 = 1;
const EXCLUSIVE_AUTO_DELETE: u8 = 4 | 8;
const QUEUE_PURGE: u32 = amqp::id(50, 30);
const QUEUE_PURGE_OK: u32 = amqp::id(50, 31);
const QUEUE_DELETE: u32 = amqp::id(50, 40);
const QUEUE_DELETE_OK: u32 = amqp::id(50, 41);

#[test]
fn ten_million_messages_come_back_and_go_and_others_do_not_notice() {
    let messages = std::env::var("ROCKETBRIDGE_SCALE_MESSAGES");
    let messages = messages.map_or(MESSAGES_DEFAULT, |text| text.parse().expect("a number"));
    let is_judged = messages >= JUDGED_FROM;
    // What is published to a queue is history of a topic, too; here only the queue is to keep it.
    let options = Options {
        config: "[store]\nretention = \"1s\"\n".to_owned(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let big = Big {
        broker: &broker,
        messages,
    };
    big.all().unwrap_or_else(|error| panic!("{error}\n{}", broker.log()));
    let left = || disk_usage(&broker.data_dir());
    println!("{} MiB on the disk at the end of the last deletion", left() >> 20);
    if is_judged {
        poll("space is not given back", || left() <= LEFT_MAX);
        println!("{} MiB on the disk at last", left() >> 20);
    }
}

struct Big<'a> {
    broker: &'a Broker,
    messages: u64,
}

impl Big<'_> {
    fn all(&self) -> io::Result<()> {
        let mut control = self.connect()?;
        control.declare_queue(BIG, true)?;
        self.fill()?;
        let usual = self.beside("nothing happens", Duration::ZERO, || {
            self.watch_on();
            Ok(())
        })?;
        let limit = P99_MAX.max(usual);

        // To one connection that never acknowledges, and is lost.
        let memory = Memory::watch(self.broker);
        let holder = self.consume(false)?;
        println!(
            "all {} are unacknowledged, {} KiB more memory",
            self.messages,
            memory.growth()
        );
        assert_eq!(control.declare_queue_with(BIG, PASSIVE)?.1, 0, "none is ready");
        self.beside("their connection is lost", limit, || {
            drop(holder);
            self.poll_ready(&mut control, self.messages)?;
            self.watch_on();
            Ok(())
        })?;
        println!("all are back, {} KiB more memory at most", memory.growth());

        // To the next one, in order and marked; it ends in an orderly way.
        let mut next = None;
        self.beside("they are delivered again", Duration::MAX, || {
            next = Some(self.consume(true)?);
            Ok(())
        })?;
        self.beside("a client leaves and has acknowledged none", limit, || {
            next.take().expect("it was made").close()?;
            self.poll_ready(&mut control, self.messages)?;
            self.watch_on();
            Ok(())
        })?;
        if self.messages >= JUDGED_FROM {
            memory.assert_growth_below(GROWTH_MAX_KIB);
        }

        self.beside("the queue is purged", limit, || {
            let purge = Bytes::method(QUEUE_PURGE).u16(0).short(BIG).u8(0);
            control.send_method(1, purge)?;
            let purged = control.wait_for(QUEUE_PURGE_OK)?;
            assert_eq!(u64::from(amqp::Reader(&purged).u32()), self.messages);
            self.watch_on();
            Ok(())
        })?;
        assert_eq!(control.declare_queue_with(BIG, PASSIVE)?.1, 0, "none is left");

        self.fill()?;
        self.beside("the queue is deleted", limit, || {
            let delete = Bytes::method(QUEUE_DELETE).u16(0).short(BIG).u8(0);
            control.send_method(1, delete)?;
            let deleted = control.wait_for(QUEUE_DELETE_OK)?;
            assert_eq!(u64::from(amqp::Reader(&deleted).u32()), self.messages);
            self.watch_on();
            Ok(())
        })?;
        Ok(())
    }

    /// What was begun may go on behind its answer.
    fn watch_on(&self) {
        let is_judged = self.messages >= JUDGED_FROM;
        poll_for(Duration::from_millis(if is_judged { 3000 } else { 50 }));
    }

    fn connect(&self) -> io::Result<Amqp> {
        Amqp::connect(self.broker.address("amqp"))
    }

    /// Numbered messages, all confirmed.
    fn fill(&self) -> io::Result<()> {
        let start = Instant::now();
        let mut client = self.connect()?;
        client.confirm_select()?;
        let (mut sent, mut confirmed) = (0, 0);
        while confirmed < self.messages {
            let mut bytes = Vec::new();
            while sent < self.messages && bytes.len() < BATCH as usize * 100 && sent < confirmed + WINDOW {
                client.put_publish(
                    amqp::Publish {
                        exchange: "",
                        key: BIG,
                        persistent: true,
                        mandatory: false,
                        body: &sent.to_le_bytes(),
                    },
                    &mut bytes,
                );
                sent += 1;
            }
            client.wire.send(&bytes)?;
            let is_far = sent == self.messages || sent >= confirmed + WINDOW;
            let until = if is_far {
                Instant::now() + PATIENCE
            } else {
                Instant::now()
            };
            match client.next_event(until)? {
                // Confirms of one queue come in order.
                Some(amqp::Event::Confirmed { tag, ack: true, .. }) => confirmed = tag,
                None if !is_far => {}
                other => panic!("{other:?}"),
            }
        }
        println!("{} messages stored in {:?}", self.messages, start.elapsed());
        client.close()
    }

    /// Takes all messages, each in its place, and acknowledges none.
    fn consume(&self, redelivered: bool) -> io::Result<Amqp> {
        let start = Instant::now();
        let mut client = self.connect()?;
        client.consume(BIG, false)?;
        for number in 0..self.messages {
            match client.next_event(Instant::now() + PATIENCE)? {
                Some(amqp::Event::Delivery(delivery)) => {
                    assert_eq!(delivery.body, number.to_le_bytes(), "message {number}");
                    assert_eq!(delivery.redelivered, redelivered, "message {number}");
                }
                other => panic!("message {number}: {other:?}"),
            }
        }
        println!("{} messages delivered in {:?}", self.messages, start.elapsed());
        Ok(client)
    }

    fn poll_ready(&self, control: &mut Amqp, messages: u64) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ready = u64::from(control.declare_queue_with(BIG, PASSIVE)?.1);
            if ready == messages {
                return Ok(());
            }
            assert!(Instant::now() < until, "{ready} messages are ready, not {messages}");
        }
    }

    /// How long a message of somebody else takes meanwhile, at the 99th percentile.
    fn beside(&self, what: &str, limit: Duration, act: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
        let mut client = self.connect()?;
        let (queue, _) = client.declare_queue_with("", EXCLUSIVE_AUTO_DELETE)?;
        client.consume(&queue, true)?;
        let stop = AtomicBool::new(false);
        let (spread, took) = thread::scope(|scope| {
            let others = scope.spawn(|| round_trips(&mut client, &queue, &stop));
            let start = Instant::now();
            let acted = {
                let _end = SetAtEnd(&stop);
                act()
            };
            let took = start.elapsed();
            let spread = others.join().expect("it does not panic");
            acted.and(spread).map(|spread| (spread, took))
        })?;
        let (p99, most) = (spread.percentile(99), spread.percentile(100));
        println!(
            "while {what} ({took:?}): {} messages of others, median {:?}, p99 {p99:?}, most {most:?}",
            spread.len(),
            spread.percentile(50)
        );
        if self.messages >= JUDGED_FROM && limit > Duration::ZERO {
            assert!(p99 <= limit, "{what}: p99 of others is {p99:?}, allowed are {limit:?}");
        }
        Ok(p99)
    }
}

fn round_trips(client: &mut Amqp, queue: &str, stop: &AtomicBool) -> io::Result<Spread> {
    let mut spread = Spread::default();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) || number < 100 {
        let start = Instant::now();
        client.publish(amqp::Publish {
            exchange: "",
            key: queue,
            persistent: false,
            mandatory: false,
            body: &number.to_le_bytes(),
        })?;
        let delivery = client.next_delivery(PATIENCE)?.expect("it comes");
        // Those that would have been sent meanwhile would have waited, too.
        let mut took = start.elapsed();
        spread.add(took);
        while took > PERIOD {
            took -= PERIOD;
            spread.add(took);
        }
        assert_eq!(delivery.body, number.to_le_bytes());
        number += 1;
        poll_for(PERIOD);
    }
    Ok(spread)
}

fn poll_for(time: Duration) {
    let (_sender, receiver) = channel::<()>();
    let _ = receiver.recv_timeout(time);
}

fn poll(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        poll_for(Duration::from_millis(100));
    }
}

fn disk_usage(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
