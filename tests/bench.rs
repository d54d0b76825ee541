//! `rocketbridge bench` as its user meets it: against this broker, against none, and against one that loses and
//! alters messages.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;

use rocketbridge::{Config, Server};
use serde_json::Value;

fn bench(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rocketbridge"));
    command
        .arg("bench")
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    command.output().expect("the program starts")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_else(|| panic!("no output: {errors}"));
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{last}: {error}: {errors}"))
}

/// Runs it, and checks what every good run says.
fn good(arguments: &str, delivered: u64) -> Value {
    // A busy machine may stand still for longer than is usual.
    let patience = if arguments.starts_with("engine") {
        ""
    } else {
        " --patience 60"
    };
    let output = bench(&format!("{arguments}{patience} --json"));
    let errors = String::from_utf8_lossy(&output.stderr);
    let found = json(&output);
    assert!(output.status.success(), "{arguments}: {found} {errors}");
    assert_eq!(found["delivered"], delivered, "{arguments}: {found} {errors}");
    for name in ["lost", "duplicated", "out_of_order", "altered"] {
        assert_eq!(found[name], 0, "{arguments}: {name}: {found}");
    }
    assert!(
        found["messages_per_second"].as_f64().is_some_and(|rate| rate > 0.0),
        "{found}"
    );
    found
}

struct Broker {
    server: Server,
    _folder: tempfile::TempDir,
}

impl Broker {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let mut config = Config {
            data_dir: folder.path().join("data"),
            ..Config::default()
        };
        config.store.flush = rocketbridge::config::Flush::Async;
        for listen in [
            &mut config.amqp.listen,
            &mut config.mqtt.listen,
            &mut config.stomp.listen,
            &mut config.remoting.listen,
            &mut config.remoting.name_server_listen,
        ] {
            *listen = vec!["127.0.0.1:0".into()];
        }
        config.mqtt.websocket_listen.clear();
        config.stomp.websocket_listen.clear();
        Self {
            server: Server::start(config).await.expect("it starts"),
            _folder: folder,
        }
    }

    fn address(&self, protocol: &str) -> SocketAddr {
        self.server.address(protocol)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_is_measured_and_every_message_verified() {
    let broker = Broker::start().await;
    let amqp = format!(
        "amqp --url amqp://guest:guest@{} --messages 5000",
        broker.address("amqp")
    );
    let pid = std::process::id();
    let found = good(&format!("{amqp} --auto-ack --pid {pid}"), 5000);
    assert!(found["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{found}");
    assert!(found["cpu_us_per_message"].is_number(), "{found}");
    assert!(found["latency_us"]["p99"].as_u64().is_some_and(|us| us > 0), "{found}");
    let found = good(
        &format!("{amqp} --persistent --confirm 100 --ack-batch 7 --prefetch 50"),
        5000,
    );
    assert_eq!(found["confirmed"], 5000);
    assert!(found["confirm_latency_us"]["p50"].is_number(), "{found}");
    good(&format!("{amqp} --queues 7 --publishers 3 --consumers 4"), 5000);
    good(&format!("{amqp} --queues 2 --consumers 5 --ack-batch 1"), 5000);
    good(&format!("{amqp} --fan-out --consumers 3 --auto-ack"), 15_000);
    good(&format!("{amqp} --size 300000 --messages 20"), 20);
    let found = good(&format!("{amqp} --backlog --confirm 100 --persistent"), 5000);
    assert!(found["fill"]["messages_per_second"].is_number() && found["drain"]["seconds"].is_number());
    let found = good(&format!("{amqp} --rate 20000 --messages 2000"), 2000);
    assert!(
        found["seconds"].as_f64().is_some_and(|s| (0.09..60.0).contains(&s)),
        "{found}"
    );
    // What one run leaves, another consumes.
    good(&format!("{amqp} --fill --name left --confirm 100"), 0);
    good(&format!("{amqp} --drain --name left"), 5000);

    let mqtt = format!("mqtt --url mqtt://{} --messages 5000", broker.address("mqtt"));
    good(&mqtt, 5000);
    good(&format!("{mqtt} --consumers 5 --queues 3"), 25_000);
    good(&format!("{mqtt} --qos 1 --publishers 2"), 5000);
    good(&format!("{mqtt} --qos 1 --backlog --consumers 2"), 10_000);

    let stomp = format!(
        "stomp --url stomp://guest:guest@{} --messages 3000",
        broker.address("stomp")
    );
    good(&format!("{stomp} --auto-ack"), 3000);
    good(
        &format!("{stomp} --receipt --confirm 100 --persistent --ack-batch 10 --queues 3"),
        3000,
    );
    good(&format!("{stomp} --receipt --consumers 2"), 3000);
    good(&format!("{stomp} --fan-out --consumers 3"), 9000);
    good(&format!("{stomp} --backlog --confirm 50"), 3000);

    let rocketmq = format!(
        "rocketmq --url rocketmq://{} --messages 3000",
        broker.address("name_server")
    );
    good(&rocketmq, 3000);
    good(&format!("{rocketmq} --send one-way --queues 4 --consumers 2"), 3000);
    good(
        &format!("{rocketmq} --send sync --publishers 4 --fan-out --consumers 2"),
        6000,
    );
    good(&format!("{rocketmq} --backlog --queues 4"), 3000);

    let found = good(&format!("{mqtt} --messages 10 --idle 20 --pid {pid} --warm-up 0"), 10);
    assert_eq!(found["idle"]["connections"], 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_leaves_nothing_in_the_broker() {
    let broker = Broker::start().await;
    let address = broker.address("amqp");
    good(&format!("amqp --url amqp://{address} --messages 100 --name gone"), 100);
    // Its queue is not there any more to be drained.
    let output = bench(&format!(
        "amqp --url amqp://{address} --messages 100 --name gone --drain --json"
    ));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        json(&output)["error"]
            .as_str()
            .is_some_and(|words| words.contains("404")),
        "{output:?}"
    );
}

#[test]
fn the_engine_alone_is_measured() {
    let found = good("engine --messages 20000", 20_000);
    assert!(found["publish_us_per_message"].is_number(), "{found}");
    good("engine --messages 20000 --queues 300 --size 24", 20_000);
    good("engine --messages 5000 --persistent --flush sync", 5000);
    let found = good("engine --messages 20000 --persistent --backlog", 20_000);
    assert!(found["drain"]["messages_per_second"].is_number(), "{found}");
}

#[test]
fn a_broker_that_is_not_there_is_said_so() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port");
    for kind in ["amqp", "mqtt", "stomp", "rocketmq"] {
        let output = bench(&format!("{kind} --url {kind}://{nobody} --json"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{kind}: {errors}");
        assert!(errors.contains("cannot connect to 127.0.0.1"), "{kind}: {errors}");
        assert!(json(&output)["error"].is_string());
    }
}

#[test]
fn bad_options_are_wrong_usage() {
    for arguments in [
        "amqp --size 3",
        "mqtt --qos 7",
        "stomp --url amqp://h",
        "engine --queues 0",
        "amqp --no-such",
    ] {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(!output.stderr.is_empty());
    }
}

/// An MQTT broker of one connection each that hands on what is published, as `fault` has it.
fn faulty_broker(fault: fn(u64, &mut Vec<u8>) -> u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut subscriber = accept(&listener);
        let subscribe = read_packet(&mut subscriber).expect("a SUBSCRIBE");
        assert_eq!(subscribe[0], 0x82);
        subscriber
            .write_all(&[0x90, 3, subscribe[2], subscribe[3], 0])
            .expect("it reads");
        let mut publisher = accept(&listener);
        let mut count = 0;
        while let Some(mut publish) = read_packet(&mut publisher) {
            if publish[0] & 0xF0 == 0x30 {
                for _ in 0..fault(count, &mut publish) {
                    // The run may be over.
                    let _ = subscriber.write_all(&publish);
                }
                count += 1;
            }
        }
    });
    address
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().expect("a client");
    assert_eq!(read_packet(&mut stream).expect("a CONNECT")[0], 0x10);
    stream.write_all(&[0x20, 2, 0, 0]).expect("it reads");
    stream
}

fn read_packet(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut packet = vec![0];
    stream.read_exact(&mut packet).ok()?;
    let mut size = 0;
    for shift in [0, 7, 14] {
        let mut octet = [0];
        stream.read_exact(&mut octet).ok()?;
        packet.push(octet[0]);
        size |= usize::from(octet[0] & 0x7F) << shift;
        if octet[0] & 0x80 == 0 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + size, 0);
    stream.read_exact(&mut packet[head..]).ok()?;
    Some(packet)
}

#[test]
fn a_fast_wrong_broker_shows() {
    let run = |fault| {
        let address = faulty_broker(fault);
        let output = bench(&format!(
            "mqtt --url mqtt://{address} --messages 100 --patience 5 --json"
        ));
        (output.status.code(), json(&output))
    };
    let (code, found) = run(|count, _| u32::from(count % 10 != 3));
    assert_eq!((code, &found["lost"]), (Some(1), &10.into()), "{found}");
    let (code, found) = run(|count, publish| {
        if count == 50 {
            *publish.last_mut().expect("a body") ^= 1;
        }
        1
    });
    assert_eq!((code, &found["altered"]), (Some(1), &1.into()), "{found}");
    let (code, found) = run(|count, _| 1 + u32::from(count == 7));
    assert_eq!(
        (code, &found["duplicated"], &found["lost"]),
        (Some(0), &1.into(), &0.into()),
        "{found}"
    );
}

#[test]
fn a_broker_that_goes_away_ends_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let broker = thread::spawn(move || {
        let mut subscriber = accept(&listener);
        let subscribe = read_packet(&mut subscriber).expect("a SUBSCRIBE");
        subscriber
            .write_all(&[0x90, 3, subscribe[2], subscribe[3], 0])
            .expect("it reads");
        let mut publisher = accept(&listener);
        read_packet(&mut publisher);
    });
    let output = bench(&format!("mqtt --url mqtt://{address} --messages 100000 --json"));
    broker.join().expect("it was as it should");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("connection"), "{errors}");
}
