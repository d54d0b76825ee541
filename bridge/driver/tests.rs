//! The driver against a session that answers lines and a link that writes down what it is asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::{Fate, Outcome, Publish, Reject, RequestId, Settle, Settlement, SubscriptionId};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Duration, timeout};

use super::*;
use crate::connections::Connections;

/// How long anything in here may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, in order, in the words of the fake link and the test session.
#[derive(Clone, Default)]
struct Journal(Arc<(Mutex<Vec<String>>, Notify)>);

impl Journal {
    fn note(&self, what: impl Into<String>) {
        self.0.0.lock().unwrap().push(what.into());
        self.0.1.notify_waiters();
    }

    fn entries(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    async fn wait_for(&self, what: &str) {
        let found = async {
            loop {
                let noted = self.0.1.notified();
                if self.entries().iter().any(|entry| entry == what) {
                    return;
                }
                noted.await;
            }
        };
        if timeout(PATIENCE, found).await.is_err() {
            panic!("no {what:?} in {:?}", self.entries());
        }
    }
}

/// An inbox that the test fills.
#[derive(Clone, Default)]
struct FakeInbox(Arc<Mutex<(VecDeque<Event>, Option<Waker>)>>);

impl FakeInbox {
    fn push(&self, events: impl IntoIterator<Item = Event>) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.0.extend(events);
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().0.len()
    }
}

impl Events for FakeInbox {
    fn take(&self, max: usize, events: &mut Vec<Event>, waker: &Waker) -> Taken {
        let mut state = self.0.lock().unwrap();
        let count = max.min(state.0.len());
        events.extend(state.0.drain(..count));
        if count == 0 {
            state.1 = Some(waker.clone());
        }
        Taken {
            empty: count == 0,
            resume: false,
        }
    }
}

/// Takes as many publishes as there is room for and writes everything down.
struct FakeLink {
    journal: Journal,
    room: Arc<Mutex<usize>>,
}

impl Link for FakeLink {
    fn publish(&mut self, batch: &mut VecDeque<Publish>) -> Admission {
        let mut room = self.room.lock().unwrap();
        let count = batch.len().min(*room);
        *room -= count;
        for publish in batch.drain(..count) {
            self.journal.note(format!("publish {}", publish.token));
        }
        if batch.is_empty() {
            Admission::All
        } else {
            self.journal.note("refused");
            Admission::Partial
        }
    }

    fn settle(&mut self, batch: &mut VecDeque<Settlement>) {
        for settlement in batch.drain(..) {
            self.journal.note(format!("settle {}", settlement.first));
        }
    }

    fn request(&mut self, id: RequestId, _request: Request) {
        self.journal.note(format!("request {}", id.0));
    }

    fn cancel(&mut self, id: RequestId) {
        self.journal.note(format!("cancel {}", id.0));
    }

    fn resume(&mut self) {
        self.journal.note("resume");
    }
}

impl Drop for FakeLink {
    fn drop(&mut self) {
        self.journal.note("link dropped");
    }
}

/// Answers each line. Outcomes and replies become lines too.
struct Lines {
    journal: Journal,
    published: u64,
    timeout: Option<Millis>,
    reads_while_blocked: bool,
    /// Takes no more lines until a reply comes.
    holds: bool,
    /// Takes no more events.
    deaf: bool,
}

impl Lines {
    fn line(&mut self, now: Now, line: &[u8], out: &mut Outbox) {
        let line = std::str::from_utf8(line).expect("tests send text");
        self.journal.note(format!("line {}", &line[..line.len().min(20)]));
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = rest.parse().unwrap_or(0);
        match word {
            "publish" => {
                for _ in 0..number {
                    self.published += 1;
                    out.publish(publish(self.published));
                }
            }
            "settle" => out.settle(Settlement {
                subscription: SubscriptionId(1),
                first: number,
                count: 1,
                action: Settle::Ack,
            }),
            "request" => out.request(
                RequestId(number),
                Request::Detach {
                    keep: Millis(0),
                    keep_will: true,
                },
            ),
            "cancel" => out.cancel(RequestId(number)),
            "wake" => self.timeout = Some(now.mono + Millis(number)),
            "close" => {
                out.bytes().extend_from_slice(b"bye\n");
                out.close();
            }
            "hold" => self.holds = true,
            "deaf" => self.deaf = true,
            "panic" => panic!("asked for"),
            _ => {
                out.bytes().extend_from_slice(line.as_bytes());
                out.bytes().extend_from_slice(b"\n");
            }
        }
    }
}

impl Session for Lines {
    fn handle_bytes(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        while !self.holds
            && let Some(end) = input.iter().position(|byte| *byte == b'\n')
        {
            let line = input.split_to(end).freeze();
            input.advance(1);
            self.line(now, &line, out);
            if out.is_closing() {
                input.clear();
            }
        }
    }

    fn handle_events(&mut self, _now: Now, events: &mut Vec<Event>, out: &mut Outbox) {
        for event in events.drain(..) {
            match event {
                Event::Reply { id, .. } => {
                    self.holds = false;
                    out.bytes().extend_from_slice(format!("reply {}\n", id.0).as_bytes());
                }
                // Each stands for a message of that size.
                Event::Outcome(outcome) => out.bytes().extend_from_slice(&vec![b'x'; outcome.count as usize]),
                other => self.journal.note(format!("event {other:?}")),
            }
        }
    }

    fn handle_timeout(&mut self, _now: Now, out: &mut Outbox) {
        self.timeout = None;
        out.bytes().extend_from_slice(b"time\n");
    }

    fn handle_drained(&mut self, _now: Now, _out: &mut Outbox) {
        self.journal.note("drained");
    }

    fn handle_eof(&mut self, _now: Now, out: &mut Outbox) {
        self.journal.note("eof");
        out.request(
            RequestId(99),
            Request::Detach {
                keep: Millis(0),
                keep_will: true,
            },
        );
    }

    fn handle_shutdown(&mut self, _now: Now, out: &mut Outbox) {
        out.bytes().extend_from_slice(b"going down\n");
        out.close();
    }

    fn next_timeout(&self) -> Option<Millis> {
        self.timeout
    }

    fn wants_read(&self) -> bool {
        !self.holds
    }

    fn wants_events(&self) -> bool {
        !self.deaf
    }

    fn reads_while_blocked(&self) -> bool {
        self.reads_while_blocked
    }
}

fn publish(token: u64) -> Publish {
    Publish {
        token,
        entry: Entry::Topic,
        topic: Bytes::from_static(b"t"),
        key: Bytes::new(),
        body: Bytes::new(),
        attributes: Attributes::EMPTY,
        format: Format(1),
        origin: Bytes::new(),
        persistent: false,
        ..Publish::default()
    }
}

fn reply(id: u64) -> Event {
    Event::Reply {
        id: RequestId(id),
        result: Ok(Reply::Done),
    }
}

fn sized(bytes: u32) -> Event {
    Event::Outcome(Outcome {
        first: 0,
        count: bytes,
        fate: Fate::Rejected(Reject::Closed),
    })
}

/// A connection with its surroundings.
struct Bench<S> {
    client: S,
    journal: Journal,
    inbox: FakeInbox,
    room: Arc<Mutex<usize>>,
    connections: Arc<Connections>,
    task: JoinHandle<()>,
}

fn bench_over<S, C>(client: C, server: S, reads_while_blocked: bool) -> Bench<C>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    bench_among(Connections::new(1, usize::MAX), client, server, reads_while_blocked)
}

fn bench_among<S, C>(connections: Arc<Connections>, client: C, server: S, reads_while_blocked: bool) -> Bench<C>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let journal = Journal::default();
    let inbox = FakeInbox::default();
    let room = Arc::new(Mutex::new(usize::MAX));
    let link = FakeLink {
        journal: journal.clone(),
        room: Arc::clone(&room),
    };
    let session = Lines {
        journal: journal.clone(),
        published: 0,
        timeout: None,
        reads_while_blocked,
        holds: false,
        deaf: false,
    };
    let task = tokio::spawn(Connection::new(
        server,
        link,
        inbox.clone(),
        Box::new(session),
        SystemClock::start(),
        connections
            .admit(SocketAddr::from(([127, 0, 0, 1], 1)))
            .expect("a place"),
    ));
    Bench {
        client,
        journal,
        inbox,
        room,
        connections,
        task,
    }
}

fn bench() -> Bench<DuplexStream> {
    let (client, server) = duplex(4096);
    bench_over(client, server, false)
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bench<S> {
    async fn send(&mut self, text: &str) {
        let sent = timeout(PATIENCE, self.client.write_all(text.as_bytes())).await;
        sent.expect("the driver reads").expect("it is open");
    }

    async fn expect(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        let read = timeout(PATIENCE, self.client.read_exact(&mut got)).await;
        read.expect("there is an answer").expect("it is open");
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    async fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.client.read_to_end(&mut rest)).await;
        read.expect("the driver closes").expect("without an error");
        rest
    }
}

#[tokio::test]
async fn a_frame_in_pieces_is_answered_when_it_is_whole() {
    let mut bench = bench();
    for piece in ["hel", "lo", "\nwor", "ld\nx"] {
        bench.send(piece).await;
    }
    bench.expect("hello\nworld\n").await;
    bench.send("y\n").await;
    bench.expect("xy\n").await;
}

#[tokio::test]
async fn a_frame_larger_than_every_buffer_arrives_whole() {
    let bench = bench();
    let long = "l".repeat(1 << 20);
    let line = format!("{long}\nshort\n");
    let answer = line.clone();
    let (mut reader, mut writer) = tokio::io::split(bench.client);
    let sending = tokio::spawn(async move {
        writer.write_all(line.as_bytes()).await.unwrap();
        writer
    });
    let mut got = vec![0; answer.len()];
    timeout(PATIENCE, reader.read_exact(&mut got))
        .await
        .expect("in time")
        .unwrap();
    assert!(got == answer.as_bytes());
    drop(sending.await.unwrap());
    drop(reader);
    bench.journal.wait_for("link dropped").await;
    bench.task.await.unwrap();
}

#[tokio::test]
async fn orders_reach_core_in_the_order_of_the_session() {
    let mut bench = bench();
    bench
        .send("publish 2\nrequest 7\nsettle 4\npublish 1\ncancel 7\ndone\n")
        .await;
    bench.expect("done\n").await;
    let orders: Vec<_> = bench
        .journal
        .entries()
        .into_iter()
        .filter(|entry| !entry.starts_with("line"))
        .collect();
    assert_eq!(
        orders,
        [
            "publish 1",
            "publish 2",
            "request 7",
            "settle 4",
            "publish 3",
            "cancel 7"
        ]
    );
}

#[tokio::test]
async fn refused_publishes_hold_back_what_follows_until_there_is_room() {
    let mut bench = bench();
    *bench.room.lock().unwrap() = 1;
    bench.send("publish 3\nrequest 1\n").await;
    bench.journal.wait_for("refused").await;
    // What is sent now is not read: the session would only add to what waits.
    bench.send("later\n").await;
    *bench.room.lock().unwrap() = 10;
    assert!(!bench.journal.entries().contains(&"line later".into()));
    bench.inbox.push([Event::Writable]);
    bench.expect("later\n").await;
    let entries = bench.journal.entries();
    let tail: Vec<_> = entries.iter().skip_while(|entry| *entry != "refused").skip(1).collect();
    assert_eq!(tail, ["publish 2", "publish 3", "request 1", "line later"]);
}

#[tokio::test]
async fn a_session_may_go_on_reading_while_core_refuses() {
    let (client, server) = duplex(4096);
    let mut bench = bench_over(client, server, true);
    *bench.room.lock().unwrap() = 0;
    bench.send("publish 1\n").await;
    bench.journal.wait_for("refused").await;
    bench.send("still here\n").await;
    bench.expect("still here\n").await;
    *bench.room.lock().unwrap() = 1;
    bench.inbox.push([Event::Writable]);
    bench.journal.wait_for("publish 1").await;
}

#[tokio::test]
async fn refused_publishes_are_tried_again_although_no_event_can_be_seen() {
    let mut bench = bench();
    *bench.room.lock().unwrap() = 0;
    bench.send("deaf\npublish 1\n").await;
    bench.journal.wait_for("refused").await;
    *bench.room.lock().unwrap() = 1;
    bench.journal.wait_for("publish 1").await;
}

#[tokio::test]
async fn whole_frames_that_a_session_left_are_handed_over_when_it_reads_again() {
    let mut bench = bench();
    bench.send("hold\nfirst\nsecond\n").await;
    bench.journal.wait_for("line hold").await;
    bench.inbox.push([reply(1)]);
    // Nothing more is sent: the answers are to what was there.
    bench.expect("reply 1\nfirst\nsecond\n").await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_no_more_than_the_high_mark() {
    let mut bench = bench();
    const EVENTS: usize = 4096;
    const SIZE: usize = 16 * 1024;
    bench.inbox.push((0..EVENTS).map(|_| sized(SIZE as u32)));
    // The driver stops by itself; what it took is one batch beyond the mark at most.
    let mut taken = 0;
    loop {
        tokio::task::yield_now().await;
        let now_taken = EVENTS - bench.inbox.len();
        if now_taken == taken && taken > 0 {
            break;
        }
        taken = now_taken;
    }
    assert!(
        taken <= Outbox::HIGH_MARK / SIZE + 2 * EVENTS_MAX,
        "{taken} events taken"
    );
    assert!(!bench.journal.entries().contains(&"drained".into()));

    bench.inbox.push([reply(1)]);
    let mut left = EVENTS * SIZE;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let most = left.min(buffer.len());
        let count = bench.client.read(&mut buffer[..most]).await.unwrap();
        assert!(count > 0 && buffer[..count].iter().all(|byte| *byte == b'x'));
        left -= count;
    }
    bench.expect("reply 1\n").await;
    bench.journal.wait_for("drained").await;
}

#[tokio::test]
async fn what_was_ordered_at_eof_is_carried_out_before_the_link_ends() {
    let mut bench = bench();
    bench.send("publish 2\nlast").await;
    bench.client.shutdown().await.unwrap();
    assert_eq!(bench.read_to_end().await, b"");
    bench.task.await.unwrap();
    let entries = bench.journal.entries();
    assert_eq!(
        entries,
        [
            "line publish 2",
            "publish 1",
            "publish 2",
            "eof",
            "request 99",
            "link dropped"
        ]
    );
}

#[tokio::test]
async fn what_a_peer_sent_before_it_went_with_unread_bytes_is_carried_out() {
    let (mut client, server) = tcp_pair().await;
    let bench = bench_over((), server, false);
    // More than the sockets hold: the driver does not read meanwhile.
    bench.inbox.push((0..64).map(|_| sized(1 << 20)));
    client.readable().await.unwrap();
    while bench.inbox.len() > 0 {
        tokio::task::yield_now().await;
    }
    client.write_all(b"settle 7\n").await.unwrap();
    drop(client);
    timeout(PATIENCE, bench.task).await.expect("it ends").unwrap();
    let entries = bench.journal.entries();
    assert_eq!(
        entries,
        ["line settle 7", "settle 7", "eof", "request 99", "link dropped"]
    );
}

#[tokio::test]
async fn refused_publishes_are_not_lost_when_their_publisher_hangs_up() {
    let mut bench = bench();
    *bench.room.lock().unwrap() = 0;
    bench.send("publish 2\n").await;
    bench.journal.wait_for("refused").await;
    bench.client.shutdown().await.unwrap();
    *bench.room.lock().unwrap() = 2;
    bench.inbox.push([Event::Writable]);
    assert_eq!(bench.read_to_end().await, b"");
    bench.task.await.unwrap();
    let entries = bench.journal.entries();
    assert!(entries.contains(&"publish 2".into()), "{entries:?}");
}

#[tokio::test]
async fn the_link_ends_before_the_peer_reads_the_goodbye() {
    let mut bench = bench();
    bench.send("close\nignored\n").await;
    bench.expect("bye\n").await;
    assert!(bench.journal.entries().contains(&"link dropped".into()));
    assert_eq!(bench.read_to_end().await, b"");
}

#[tokio::test]
async fn a_peer_that_is_still_sending_gets_the_goodbye_and_no_reset() {
    let (mut client, server) = tcp_pair().await;
    // More than both sockets hold, sent before anything is read.
    let mut text = b"close\n".to_vec();
    text.resize(8 << 20, b'.');
    let bench = bench_over((), server, false);
    timeout(PATIENCE, client.write_all(&text))
        .await
        .expect("what is sent after the end is still read")
        .expect("without a reset");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("no reset");
    assert_eq!(rest, b"bye\n");
    drop(client);
    timeout(PATIENCE, bench.task).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_panic_ends_one_connection_and_drops_its_link() {
    let mut bench = bench();
    bench.send("panic\n").await;
    assert_eq!(bench.read_to_end().await, b"");
    assert!(bench.task.await.unwrap_err().is_panic());
    assert!(bench.journal.entries().contains(&"link dropped".into()));
    assert_eq!(bench.connections.count(), 0);
}

/// Waits until the connections keep that much of unfinished lines.
async fn until_unfinished(connections: &Connections, bytes: usize) {
    let found = async {
        while connections.unfinished() != bytes {
            tokio::task::yield_now().await;
        }
    };
    if timeout(PATIENCE, found).await.is_err() {
        panic!("{} bytes are kept, not {bytes}", connections.unfinished());
    }
}

#[tokio::test]
async fn who_keeps_most_of_an_unfinished_packet_is_closed_and_others_go_on() {
    const MAX: usize = 100 << 10;
    let connections = Connections::new(3, MAX);
    let one_more = || {
        let (client, server) = duplex(4096);
        bench_among(Arc::clone(&connections), client, server, false)
    };
    let (mut small, mut middle, mut large) = (one_more(), one_more(), one_more());
    // Below what is carried along, nothing is counted.
    small.send(&"s".repeat(CARRY_MAX)).await;
    middle.send(&"m".repeat(40 << 10)).await;
    until_unfinished(&connections, 40 << 10).await;
    large.send(&"l".repeat(60 << 10)).await;
    until_unfinished(&connections, MAX).await;

    middle.send("m").await;
    assert_eq!(large.read_to_end().await, b"");
    until_unfinished(&connections, (40 << 10) + 1).await;
    let entries = large.journal.entries();
    assert_eq!(entries, ["eof", "request 99", "link dropped"]);
    // What it still sends is thrown away.
    large.send(&"l".repeat(MAX)).await;
    drop(large.client);
    large.task.await.unwrap();

    for (bench, letter, len) in [(&mut small, "s", CARRY_MAX), (&mut middle, "m", (40 << 10) + 1)] {
        bench.send("\n").await;
        bench.expect(&format!("{}\n", letter.repeat(len))).await;
    }
    until_unfinished(&connections, 0).await;
    // Whole ones are not counted, however many they are.
    let lines = "line\n".repeat(MAX / 4);
    let (mut reader, mut writer) = tokio::io::split(middle.client);
    let sending = tokio::spawn(async move { writer.write_all(lines.as_bytes()).await.map(|()| lines) });
    let mut got = vec![0; MAX / 4 * 5];
    reader.read_exact(&mut got).await.expect("it goes on");
    assert!(got == sending.await.unwrap().unwrap().as_bytes());
}

#[tokio::test]
async fn what_a_connection_kept_is_not_counted_any_more_when_it_ends_in_any_way() {
    for ending in ["panic\n", "close\n", "hang up", "drop"] {
        let mut bench = bench();
        let connections = Arc::clone(&bench.connections);
        bench.send(&"x".repeat(20 << 10)).await;
        until_unfinished(&connections, 20 << 10).await;
        match ending {
            "hang up" => bench.client.shutdown().await.unwrap(),
            "drop" => bench.task.abort(),
            line => {
                bench.send("\n").await;
                bench.expect(&"x".repeat(20 << 10)).await;
                bench.send(&"y".repeat(20 << 10)).await;
                until_unfinished(&connections, 20 << 10).await;
                // It may be gone before it has read all that.
                let rest = format!("\n{line}{}", "z".repeat(20 << 10));
                let _ = bench.client.write_all(rest.as_bytes()).await;
            }
        }
        until_unfinished(&connections, 0).await;
    }
}

#[tokio::test]
async fn a_timeout_is_told_when_it_is_due_and_not_before() {
    let mut bench = bench();
    let started = tokio::time::Instant::now();
    // A later one first: the timer must be armed anew for an earlier time, and not fire for the old one.
    bench.send("wake 60000\nwake 30\n").await;
    bench.expect("time\n").await;
    assert!(started.elapsed() >= Duration::from_millis(30));
    bench.send("wake 20\nwake 60\n").await;
    bench.expect("time\n").await;
    assert!(started.elapsed() >= Duration::from_millis(90));
}

#[tokio::test]
async fn every_session_says_goodbye_at_shutdown() {
    let mut bench = bench();
    bench.send("hello\n").await;
    bench.expect("hello\n").await;
    bench.connections.tell(Call::SayGoodbye);
    assert_eq!(bench.read_to_end().await, b"going down\n");
    drop(bench.client);
    timeout(PATIENCE, bench.connections.emptied())
        .await
        .expect("no connection is left");
    assert!(bench.journal.entries().contains(&"link dropped".into()));
}

#[tokio::test]
async fn one_busy_connection_does_not_starve_another() {
    let busy = bench();
    let flood = tokio::spawn(async move {
        let lines = "x\n".repeat(32 * 1024);
        let (mut reader, mut writer) = tokio::io::split(busy.client);
        let reading = async { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await };
        let writing = async { while writer.write_all(lines.as_bytes()).await.is_ok() {} };
        tokio::join!(reading, writing)
    });
    let mut calm = bench();
    for _ in 0..20 {
        calm.send("ping\n").await;
        calm.expect("ping\n").await;
    }
    assert!(!flood.is_finished());
    flood.abort();
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<Connection<TcpStream, FakeLink>>() <= 512);
}
