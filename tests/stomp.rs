//! STOMP 1.0, 1.1 and 1.2 octet by octet on a socket: one row for each rule of the specifications and for each
//! choice where they leave one.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::broker::Broker;
use support::stomp_raw::{Frame, Stomp};
use support::wire::PATIENCE;

const VERSIONS: [&str; 3] = ["1.0", "1.1", "1.2"];

/// A rule by its name, and what shows it.
type Row = (&'static str, fn(&Broker));

fn run(rows: &[Row]) {
    let broker = Broker::start();
    let mut failed = Vec::new();
    for (name, row) in rows {
        if catch_unwind(AssertUnwindSafe(|| row(&broker))).is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}\n{}", broker.log());
}

fn raw(broker: &Broker) -> Stomp {
    Stomp::raw(broker.address("stomp"))
}

fn connect(broker: &Broker, version: &str) -> Stomp {
    Stomp::connect(broker.address("stomp"), version)
}

/// A queue's destination that nobody else uses.
fn queue() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("/queue/row-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Sends a message and waits until it is stored.
fn put(client: &mut Stomp, destination: &str, body: &str) {
    client.send(&format!("SEND\ndestination:{destination}\nreceipt:put\n\n{body}\0"));
    client.receipt_among_messages("put");
}

fn subscribe(client: &mut Stomp, destination: &str, headers: &str) {
    client.send(&format!(
        "SUBSCRIBE\ndestination:{destination}\nreceipt:sub\n{headers}\n\0"
    ));
    client.receipt("sub");
}

/// What comes back of a frame that is sent to a queue that the client consumes.
fn echo(broker: &Broker, version: &str, headers: &str, body: &str) -> Frame {
    let (mut client, destination) = (connect(broker, version), queue());
    subscribe(&mut client, &destination, "id:s\n");
    client.send(&format!("SEND\ndestination:{destination}\n{headers}\n{body}\0"));
    client.expect("MESSAGE")
}

#[test]
fn client_and_server_frames() {
    run(&[
        ("1.1 CONNECT, and STOMP as another name for it", |broker| {
            for command in ["CONNECT", "STOMP"] {
                for (accept, version) in [
                    ("", "1.0"),
                    ("accept-version:1.1\n", "1.1"),
                    ("accept-version:1.2\n", "1.2"),
                ] {
                    let mut client = raw(broker);
                    client.send(&format!(
                        "{command}\nlogin:guest\npasscode:guest\nhost:h\n{accept}receipt:r\n\n\0"
                    ));
                    let connected = client.expect("CONNECTED");
                    assert_eq!(connected.header("version"), version);
                    assert!(!connected.has("receipt-id"), "CONNECT has no receipt");
                    client.quiet();
                }
            }
        }),
        ("1.1 SEND", |broker| {
            for version in VERSIONS {
                let got = echo(broker, version, "receipt-not:x\ncontent-type:text/x\nmine:1\n", "body");
                assert_eq!(
                    (got.header("content-type"), got.header("mine"), got.text()),
                    ("text/x", "1", "body")
                );
                let mut client = connect(broker, version);
                client.send("SEND\n\nbody\0");
                client.error("Missing destination");
            }
        }),
        ("1.1 SUBSCRIBE", |broker| {
            let (mut old, destination) = (connect(broker, "1.0"), queue());
            subscribe(&mut old, &destination, "");
            put(&mut old, &destination, "x");
            assert!(!old.expect("MESSAGE").has("subscription"), "1.0 needs no id");
            for version in &VERSIONS[1..] {
                let mut client = connect(broker, version);
                client.send(&format!("SUBSCRIBE\ndestination:{}\n\n\0", queue()));
                client.error("Missing header");
                let mut client = connect(broker, version);
                subscribe(&mut client, &queue(), "id:s\n");
                client.send(&format!("SUBSCRIBE\nid:s\ndestination:{}\n\n\0", queue()));
                let error = client.error("Duplicated subscription identifier");
                assert_eq!(error.text(), "A subscription identified by 'T_s' already exists.");
            }
        }),
        ("1.1 UNSUBSCRIBE", |broker| {
            let (mut old, destination) = (connect(broker, "1.0"), queue());
            subscribe(&mut old, &destination, "");
            old.send(&format!("UNSUBSCRIBE\ndestination:{destination}\nreceipt:u\n\n\0"));
            old.receipt("u");
            put(&mut old, &destination, "x");
            old.quiet();
            for version in VERSIONS {
                let (mut client, destination) = (connect(broker, version), queue());
                subscribe(&mut client, &destination, "id:s\n");
                client.send("UNSUBSCRIBE\nid:s\nreceipt:u\n\n\0");
                client.receipt("u");
                put(&mut client, &destination, "x");
                client.quiet();
                client.send("UNSUBSCRIBE\nid:s\n\n\0");
                client.error("No subscription found");
                let mut client = connect(broker, version);
                client.send("UNSUBSCRIBE\n\n\0");
                client.error("Missing destination or id");
            }
        }),
        ("1.1 ACK and NACK", |broker| {
            for version in VERSIONS {
                let (mut client, destination) = (connect(broker, version), queue());
                subscribe(&mut client, &destination, "id:s\nack:client-individual\n");
                put(&mut client, &destination, "x");
                let names = |message: &Frame| match version {
                    "1.0" => format!("message-id:{}", message.header("message-id")),
                    "1.1" => format!("subscription:s\nmessage-id:{}", message.header("message-id")),
                    _ => format!("id:{}", message.header("ack")),
                };
                let first = client.expect("MESSAGE");
                client.send(&format!("NACK\n{}\nreceipt:n\n\n\0", names(&first)));
                client.receipt_among_messages("n");
                let again = client.expect("MESSAGE");
                assert_eq!((again.header("redelivered"), again.text()), ("true", "x"));
                client.send(&format!("ACK\n{}\nreceipt:a\n\n\0", names(&again)));
                client.receipt("a");
                client.send(&format!("ACK\n{}\nreceipt:b\n\n\0", names(&again)));
                let error = client.error("Message not found");
                assert_eq!(error.header("receipt-id"), "b");
                let mut client = connect(broker, version);
                client.send("ACK\n\n\0");
                client.error("Missing header");
            }
            let mut client = connect(broker, "1.2");
            client.send("ACK\nmessage-id:x\n\n\0");
            client.error("Missing header");
        }),
        ("1.1 BEGIN, COMMIT, ABORT", |broker| {
            for command in ["BEGIN", "COMMIT", "ABORT"] {
                let mut client = connect(broker, "1.2");
                client.send(&format!("{command}\n\n\0"));
                client.error("Missing transaction");
            }
        }),
        (
            "1.1, 1.10 DISCONNECT: the receipt, then the end; what follows is ignored",
            |broker| {
                for version in VERSIONS {
                    let (mut client, destination) = (connect(broker, version), queue());
                    client.send(&format!(
                        "SEND\ndestination:{destination}\n\nbefore\0DISCONNECT\nreceipt:bye\n\n\0\
                     SEND\ndestination:{destination}\n\nbehind\0BOGUS\n\n\0"
                    ));
                    client.receipt("bye");
                    client.ended();
                    let mut client = connect(broker, version);
                    subscribe(&mut client, &destination, "id:s\n");
                    assert_eq!(client.expect("MESSAGE").text(), "before");
                    client.quiet();
                    client.send("DISCONNECT\n\n\0");
                    client.ended();
                }
            },
        ),
        ("1.10 what was sent before the connection broke is taken", |broker| {
            let (mut client, destination) = (connect(broker, "1.2"), queue());
            for number in 0..500 {
                client.send(&format!("SEND\ndestination:{destination}\n\n{number}\0"));
            }
            client.wire.end();
            client.ended();
            let mut client = connect(broker, "1.2");
            subscribe(&mut client, &destination, "id:s\n");
            for number in 0..500 {
                assert_eq!(client.expect("MESSAGE").text(), number.to_string());
            }
        }),
        (
            "1.2 CONNECTED says version, session, server and heart-beat, also to 1.0",
            |broker| {
                let mut client = raw(broker);
                client.send("CONNECT\n\n\0");
                let connected = client.expect("CONNECTED");
                assert_eq!(
                    (connected.header("version"), connected.header("heart-beat")),
                    ("1.0", "0,0")
                );
                assert!(connected.header("server").starts_with("RocketBridge/"), "{connected:?}");
                assert!(!connected.header("session").is_empty(), "{connected:?}");
            },
        ),
        (
            "1.2 MESSAGE has its own headers and all of the sender's but those that were for the broker",
            |broker| {
                for version in VERSIONS {
                    for mode in ["auto", "client", "client-individual"] {
                        let (mut client, destination) = (connect(broker, version), queue());
                        subscribe(&mut client, &destination, &format!("id:s\nack:{mode}\n"));
                        client.send(&format!(
                            "BEGIN\ntransaction:t\n\n\0SEND\ndestination:{destination}\ntransaction:t\nreceipt:r\n\
                         content-type:text/plain\nmine:1\npriority:3\n\nbody\0COMMIT\ntransaction:t\n\n\0"
                        ));
                        let mut message = None;
                        for _ in 0..2 {
                            match client.frame() {
                                frame if frame.command == "MESSAGE" => message = Some(frame),
                                frame => assert_eq!(frame.header("receipt-id"), "r"),
                            }
                        }
                        let message = message.expect("it came");
                        assert_eq!(message.header("destination"), destination);
                        assert_eq!(message.header("subscription"), "s");
                        assert!(message.has("message-id"));
                        assert_eq!(
                            message.has("ack"),
                            version == "1.2" && mode != "auto",
                            "{version} {mode}"
                        );
                        assert_eq!(message.header("redelivered"), "false");
                        assert_eq!((message.header("mine"), message.header("priority")), ("1", "3"));
                        assert_eq!(
                            (message.header("content-type"), message.header("content-length")),
                            ("text/plain", "4")
                        );
                        assert!(!message.has("transaction") && !message.has("receipt"), "{message:?}");
                    }
                }
            },
        ),
        (
            "1.2 ERROR says what, to which frame, in words; and the connection ends",
            |broker| {
                for version in VERSIONS {
                    let mut client = connect(broker, version);
                    client.send("SEND\ndestination:/nowhere/x\nreceipt:r7\n\nx\0");
                    let error = client.error("Unknown destination");
                    assert_eq!(
                        (error.header("receipt-id"), error.header("content-type")),
                        ("r7", "text/plain")
                    );
                    assert_eq!(error.header("content-length"), error.body.len().to_string());
                    assert_eq!(error.header("version"), "1.0,1.1,1.2");
                    assert!(error.text().contains("/nowhere/x"), "{}", error.text());
                }
            },
        ),
    ]);
}

#[test]
fn framing() {
    run(&[
        (
            "1.3 a line ends with LF or CR LF, in every version; a CR alone is malformed",
            |broker| {
                for version in VERSIONS {
                    let (mut client, destination) = (connect(broker, version), queue());
                    subscribe(&mut client, &destination, "id:s\n");
                    client.send(&format!(
                        "SEND\r\ndestination:{destination}\r\nmine:1\r\n\r\nbody\r\n\0"
                    ));
                    let got = client.expect("MESSAGE");
                    assert_eq!((got.header("mine"), got.text()), ("1", "body\r\n"));
                    for bad in ["SEND\nmine:a\rb\n\n\0", "SE\rND\n\n\0"] {
                        let mut client = connect(broker, version);
                        client.send(bad);
                        client.error("malformed frame");
                    }
                }
                let mut client = raw(broker);
                client.send("CONNECT\r\naccept-version:1.1\r\n\r\n\0\r\n");
                assert_eq!(client.expect("CONNECTED").header("version"), "1.1");
            },
        ),
        ("1.3 between frames LF, CR LF and NUL are skipped", |broker| {
            for version in VERSIONS {
                let mut client = connect(broker, version);
                client.send("\n\n\r\n\n\0\0");
                client.quiet();
            }
        }),
        (
            "1.3 the first colon separates; a colon in a value is taken and written as the version wants",
            |broker| {
                for (version, written) in [("1.0", "a:b:c"), ("1.1", "a\\cb\\cc"), ("1.2", "a\\cb\\cc")] {
                    assert_eq!(
                        echo(broker, version, "mine:a:b:c\n", "").header("mine"),
                        written,
                        "{version}"
                    );
                }
            },
        ),
        ("1.3 a header without a colon is malformed", |broker| {
            for version in VERSIONS {
                let mut client = connect(broker, version);
                client.send("SEND\ndestination\n\n\0");
                client.error("malformed frame");
            }
        }),
        ("1.3 a value may be empty", |broker| {
            for version in VERSIONS {
                let got = echo(broker, version, "mine:\n", "");
                assert!(got.has("mine") && got.header("mine").is_empty(), "{got:?}");
            }
        }),
        ("1.3 values are trimmed in 1.0 and left alone since 1.1", |broker| {
            for (version, value) in [("1.0", "x y"), ("1.1", "  x y "), ("1.2", "  x y ")] {
                assert_eq!(
                    echo(broker, version, "mine:  x y \n", "").header("mine"),
                    value,
                    "{version}"
                );
            }
        }),
        (
            "1.3 escapes are those of the version, another one is malformed",
            |broker| {
                // In 1.0 a backslash is a backslash.
                assert_eq!(echo(broker, "1.0", "mine:a\\nb\\q\n", "").header("mine"), "a\\nb\\q");
                assert_eq!(
                    echo(broker, "1.1", "mi\\cne:\\n\\c\\\\\n", "").header("mi\\cne"),
                    "\\n\\c\\\\"
                );
                assert_eq!(
                    echo(broker, "1.2", "mi\\cne:\\n\\c\\\\\\r\n", "").header("mi\\cne"),
                    "\\n\\c\\\\\\r"
                );
                for (version, header) in [
                    ("1.1", "a:\\r"),
                    ("1.1", "a:\\t"),
                    ("1.2", "a:\\t"),
                    ("1.2", "\\t:a"),
                    ("1.2", "a:\\"),
                ] {
                    let mut client = connect(broker, version);
                    client.send(&format!("SEND\ndestination:/topic/a\nreceipt:r\n{header}\n\n\0"));
                    client.error("malformed frame");
                }
                // CONNECT has none.
                let mut client = raw(broker);
                client.send("CONNECT\naccept-version:1.2\nmine:\\t\n\n\0");
                client.expect("CONNECTED");
            },
        ),
        (
            "1.3 names and values are escaped on every frame but CONNECTED",
            |broker| {
                let mut client = connect(broker, "1.2");
                client.send("SEND\ndestination:/topic/a\nreceipt:a\\cb\\\\\\n\\r\n\n\0");
                assert_eq!(client.expect("RECEIPT").header("receipt-id"), "a\\cb\\\\\\n\\r");
                client.send("SEND\ndestination:/nowhere/x\nreceipt:a\\cb\n\n\0");
                assert_eq!(client.error("Unknown destination").header("receipt-id"), "a\\cb");
                // 1.0 cannot write it: the header is left out, not the message.
                let (mut old, destination) = (connect(broker, "1.0"), queue());
                subscribe(&mut old, &destination, "");
                connect(broker, "1.2").send(&format!("SEND\ndestination:{destination}\nmine:a\\nb\nother:1\n\nx\0"));
                let got = old.expect("MESSAGE");
                assert_eq!((got.has("mine"), got.header("other"), got.text()), (false, "1", "x"));
            },
        ),
        ("1.3 headers are UTF-8, checked where they mean something", |broker| {
            for version in VERSIONS {
                let got = echo(broker, version, "größe:世界 🚀\n", "ü");
                assert_eq!((got.header("größe"), got.text()), ("世界 🚀", "ü"));
            }
            let mut client = connect(broker, "1.2");
            client.send_bytes(b"SEND\ndestination:/queue/\xff\xfe\n\n\0");
            client.expect("ERROR");
            client.ended();
        }),
        ("1.3 of a repeated header the first counts", |broker| {
            for version in VERSIONS {
                assert_eq!(echo(broker, version, "mine:1\nmine:2\n", "").header("mine"), "1");
            }
        }),
        (
            "1.3 content-length counts the octets of SEND, and of no other frame",
            |broker| {
                for version in VERSIONS {
                    let (mut client, destination) = (connect(broker, version), queue());
                    subscribe(&mut client, &destination, "id:s\ncontent-length:3\n");
                    client.send_bytes(
                        &[
                            format!("SEND\ndestination:{destination}\ncontent-length:5\n\n").as_bytes(),
                            b"a\0b\0c\0",
                        ]
                        .concat(),
                    );
                    let got = client.expect("MESSAGE");
                    assert_eq!((&got.body[..], got.header("content-length")), (&b"a\0b\0c"[..], "5"));
                    client.send(
                        "BEGIN\ntransaction:t\ncontent-length:100\n\n\0ABORT\ntransaction:t\ncontent-length:7\n\n\0",
                    );
                    client.quiet();
                }
            },
        ),
        (
            "1.3 a content-length that is wrong, no number, negative or beyond all bounds",
            |broker| {
                for (length, message) in [
                    ("2", "malformed frame"),
                    ("x", "malformed frame"),
                    ("-1", "malformed frame"),
                    ("", "malformed frame"),
                    ("1e3", "malformed frame"),
                    ("10000000000000000000", "frame too large"),
                    ("100000000", "frame too large"),
                ] {
                    for version in VERSIONS {
                        let mut client = connect(broker, version);
                        client.send(&format!(
                            "SEND\ndestination:/topic/a\nreceipt:r\ncontent-length:{length}\n\nabcdef\0"
                        ));
                        assert_eq!(client.error(message).header("receipt-id"), "r", "{length}");
                    }
                }
            },
        ),
        ("1.3 a body where none belongs is ignored", |broker| {
            let (mut client, destination) = (connect(broker, "1.2"), queue());
            client.send(&format!(
                "SUBSCRIBE\nid:s\nreceipt:r\ndestination:{destination}\n\nwhat is this\0"
            ));
            client.receipt("r");
            client.quiet();
        }),
        ("1.3 frames end with NUL LF", |broker| {
            let mut client = connect(broker, "1.2");
            client.send("DISCONNECT\nreceipt:r\n\n\0");
            let all = client.wire.read_to_end();
            // The line end of CONNECTED stands before it.
            assert_eq!(
                all.escape_ascii().to_string(),
                "\\nRECEIPT\\nreceipt-id:r\\n\\n\\x00\\n"
            );
        }),
        ("1.3 a body has its content-length, an empty one none", |broker| {
            for version in VERSIONS {
                assert_eq!(echo(broker, version, "", "four").header("content-length"), "4");
                assert!(!echo(broker, version, "", "").has("content-length"));
            }
        }),
        ("1.11 limits: ERROR and the end", |broker| {
            let long = "x".repeat(70_000);
            let many: String = (0..300).map(|n| format!("h{n}:1\n")).collect();
            let large: String = (0..10).map(|n| format!("h{n}:{}\n", &long[..40_000])).collect();
            for frame in [
                format!("{long}\n\n\0"),
                format!("SEND\ndestination:/topic/a\nmine:{long}\n\n\0"),
                format!("SEND\ndestination:/topic/a\n{many}\n\0"),
                format!("SEND\ndestination:/topic/a\n{large}\n\0"),
            ] {
                let mut client = connect(broker, "1.2");
                client.send(&frame);
                client.error("frame too large");
            }
            let mut client = raw(broker);
            client.send(&format!("CONNECT\nmine:{}\n\n\0", &long[..20_000]));
            client.error("frame too large");
            // What a whole body may have goes through in both directions.
            let body = "y".repeat(8 << 20);
            assert!(echo(broker, "1.2", "", &body).body == body.as_bytes());
        }),
    ]);
}

#[test]
fn connecting_and_heart_beats() {
    run(&[
        (
            "1.4 the highest version of both is chosen, in whatever order and with blanks",
            |broker| {
                for (list, version) in [
                    ("1.0,1.1,1.2", "1.2"),
                    ("1.2,1.1", "1.2"),
                    ("1.1, 1.2", "1.2"),
                    ("1.0 , 9.9", "1.0"),
                ] {
                    let mut client = raw(broker);
                    client.send(&format!("CONNECT\naccept-version:{list}\n\n\0"));
                    assert_eq!(client.expect("CONNECTED").header("version"), version, "{list}");
                }
            },
        ),
        ("1.4 without a common version the broker's are told", |broker| {
            let mut client = raw(broker);
            client.send("CONNECT\naccept-version:1.3,2.0\n\n\0");
            let error = client.error("Version mismatch");
            assert_eq!(
                (error.header("version"), error.header("content-type")),
                ("1.0,1.1,1.2", "text/plain")
            );
            assert_eq!(error.text(), "Supported versions are 1.0,1.1,1.2\n");
        }),
        ("1.4 CONNECT comes first, and once", |broker| {
            let mut client = raw(broker);
            client.send("SEND\ndestination:/topic/a\n\nx\0");
            assert_eq!(
                client.error("Illegal command").text(),
                "You must log in using CONNECT first"
            );
            let mut client = connect(broker, "1.2");
            client.send("CONNECT\naccept-version:1.2\n\n\0");
            client.error("Already connected");
        }),
        (
            "1.4 a host's name is no virtual host; one that begins with a slash must be there",
            |broker| {
                for host in ["localhost", "127.0.0.1", "broker.example.org", "/"] {
                    let mut client = raw(broker);
                    client.send(&format!("CONNECT\naccept-version:1.2\nhost:{host}\n\n\0"));
                    client.expect("CONNECTED");
                }
                let mut client = raw(broker);
                client.send("CONNECT\naccept-version:1.2\nhost://\n\n\0");
                assert_eq!(client.error("Bad CONNECT").text(), "Virtual host '//' access denied");
            },
        ),
        ("1.7 a wrong password", |broker| {
            let mut client = raw(broker);
            client.send("CONNECT\naccept-version:1.2\nlogin:guest\npasscode:wrong\n\n\0");
            assert_eq!(client.error("Bad CONNECT").text(), "Access refused for user 'guest'");
        }),
        (
            "1.5 the client's wishes are granted, down to a floor, and malformed ones refused",
            |broker| {
                for (asked, told) in [
                    ("0,0", "0,0"),
                    ("10000,20000", "20000,10000"),
                    ("0,1", "250,0"),
                    ("1,0", "0,250"),
                ] {
                    let mut client = raw(broker);
                    client.send(&format!("CONNECT\naccept-version:1.2\nheart-beat:{asked}\n\n\0"));
                    assert_eq!(client.expect("CONNECTED").header("heart-beat"), told, "{asked}");
                }
                for wrong in ["", "1", "a,b", "-1,0", "1,2,3"] {
                    let mut client = raw(broker);
                    client.send(&format!("CONNECT\naccept-version:1.2\nheart-beat:{wrong}\n\n\0"));
                    client.error("Invalid header");
                }
            },
        ),
        ("1.5 the broker beats with line ends", |broker| {
            let mut client = raw(broker);
            client.send("CONNECT\naccept-version:1.2\nheart-beat:0,250\n\n\0");
            client.expect("CONNECTED");
            let until = Instant::now() + PATIENCE;
            while client.wire.buffered().len() < 4 {
                assert!(client.wire.fill(until).expect("it stays"), "no heart-beats");
            }
            assert!(client.wire.buffered().iter().all(|byte| *byte == b'\n'));
        }),
        (
            "1.5 a client that is silent is dead after two intervals and no less than two seconds",
            |broker| {
                let mut client = raw(broker);
                let began = Instant::now();
                client.send("CONNECT\naccept-version:1.2\nheart-beat:300,0\n\n\0");
                client.expect("CONNECTED");
                client.error("Heart-beat timeout");
                assert!(began.elapsed() >= Duration::from_secs(2));
            },
        ),
    ]);
}

#[test]
fn receipts_acknowledgements_and_transactions() {
    run(&[
        (
            "1.6 every frame but CONNECT is receipted, RECEIPT of a subscription before its backlog",
            |broker| {
                for version in VERSIONS {
                    let (mut client, destination) = (connect(broker, version), queue());
                    for number in 0..20 {
                        put(&mut client, &destination, &number.to_string());
                    }
                    client.send(&format!(
                        "SUBSCRIBE\nid:s\nack:client\nreceipt:s\ndestination:{destination}\n\n\0"
                    ));
                    client.receipt("s");
                    let messages: Vec<Frame> = (0..20).map(|_| client.expect("MESSAGE")).collect();
                    let last = messages[19].header(if version == "1.2" { "ack" } else { "message-id" });
                    let name = if version == "1.2" { "id" } else { "message-id" };
                    client.send(&format!("ACK\n{name}:{last}\nreceipt:a\n\n\0"));
                    client.receipt("a");
                    for (frame, id) in [
                        ("BEGIN\ntransaction:t\nreceipt:1\n\n\0", "1"),
                        ("ABORT\ntransaction:t\nreceipt:2\n\n\0", "2"),
                        ("UNSUBSCRIBE\nid:s\nreceipt:3\n\n\0", "3"),
                        ("DISCONNECT\nreceipt:4\n\n\0", "4"),
                    ] {
                        client.send(frame);
                        client.receipt(id);
                    }
                    client.ended();
                }
            },
        ),
        (
            "1.6 the receipt of a SEND in a transaction comes after COMMIT, of an aborted one never",
            |broker| {
                let (mut client, destination) = (connect(broker, "1.2"), queue());
                for (end, expected) in [("ABORT", &["e"][..]), ("COMMIT", &["m", "e"])] {
                    client.send(&format!(
                    "BEGIN\ntransaction:t\nreceipt:b\n\n\0SEND\ndestination:{destination}\ntransaction:t\nreceipt:m\n\n{end}\0"
                ));
                    client.receipt("b");
                    client.quiet();
                    client.send(&format!("{end}\ntransaction:t\nreceipt:e\n\n\0"));
                    for id in expected {
                        client.receipt(id);
                    }
                }
                subscribe(&mut client, &destination, "id:s\n");
                assert_eq!(client.expect("MESSAGE").text(), "COMMIT");
                client.quiet();
            },
        ),
        ("1.6 what no queue wants is receipted too", |broker| {
            let mut client = connect(broker, "1.2");
            client.send("SEND\ndestination:/topic/nobody.listens\npersistent:true\nreceipt:r\n\nx\0");
            client.receipt("r");
        }),
        ("1.7 the texts that programs compare", |broker| {
            for (frame, message, body) in [
                ("BOGUS\n\n\0", "Bad command", "Could not interpret command \"BOGUS\"\n"),
                (
                    "SEND\ndestination:/queue/\n\n\0",
                    "Invalid destination",
                    "'/' is not a valid queue destination\n",
                ),
                (
                    "SEND\ndestination:/queue/a/b\n\n\0",
                    "Invalid destination",
                    "'/a/b' is not a valid queue destination\n",
                ),
                (
                    "SEND\ndestination:/topic/a\nmessage-id:1\n\n\0",
                    "Invalid header",
                    "'message-id' is not allowed on 'SEND'.\n",
                ),
                (
                    "SUBSCRIBE\nid:s\ndestination:/queue/a\nack:maybe\n\n\0",
                    "Invalid header",
                    "",
                ),
                (
                    "SUBSCRIBE\nid:/temp-queue/x\ndestination:/queue/a\n\n\0",
                    "Invalid id",
                    "",
                ),
                (
                    "SEND\ndestination:/exchange/missing/k\nreceipt:r\n\nx\0",
                    "not_found",
                    "no exchange 'missing' in vhost '/'\n",
                ),
                ("SUBSCRIBE\nid:s\ndestination:/amq/queue/missing\n\n\0", "not_found", ""),
            ] {
                let mut client = connect(broker, "1.2");
                client.send(frame);
                let error = client.error(message);
                assert!(body.is_empty() || error.text() == body, "{frame}: {}", error.text());
            }
        }),
        (
            "1.8 a late ACK never settles a delivery of the next subscription of that id",
            |broker| {
                let (mut client, destination) = (connect(broker, "1.2"), queue());
                put(&mut client, &destination, "x");
                let mut ids = Vec::new();
                for _ in 0..2 {
                    subscribe(&mut client, &destination, "id:s\nack:client-individual\n");
                    ids.push(client.expect("MESSAGE").header("ack").to_owned());
                    if ids.len() < 2 {
                        client.send("UNSUBSCRIBE\nid:s\n\n\0");
                    }
                }
                assert_ne!(ids[0], ids[1]);
                client.send(&format!("ACK\nid:{}\n\n\0", ids[0]));
                client.error("Message not found");
            },
        ),
        ("1.8 the case of true and false does not count", |broker| {
            let (mut client, destination) = (connect(broker, "1.2"), queue());
            subscribe(
                &mut client,
                &destination,
                "id:s\nack:client-individual\nauto-delete:False\n",
            );
            client.send(&format!("SEND\ndestination:{destination}\npersistent:True\n\nx\0"));
            let message = client.expect("MESSAGE");
            assert_eq!(message.header("persistent"), "true");
            client.send(&format!("NACK\nid:{}\nrequeue:False\n\n\0", message.header("ack")));
            client.quiet();
        }),
        ("1.8 auto: what was sent is done with", |broker| {
            let (mut client, destination) = (connect(broker, "1.2"), queue());
            subscribe(&mut client, &destination, "id:s\n");
            put(&mut client, &destination, "x");
            let message = client.expect("MESSAGE");
            client.send(&format!("ACK\nid:{}\n\n\0", message.header("message-id")));
            client.error("Message not found");
            let mut client = connect(broker, "1.2");
            subscribe(&mut client, &destination, "id:s\n");
            client.quiet();
        }),
        (
            "1.8 client: an ACK is for all before it of the same subscription; the rest returns in order",
            |broker| {
                for version in VERSIONS {
                    let (mut client, one, other) = (connect(broker, version), queue(), queue());
                    subscribe(&mut client, &one, "id:1\nack:client\n");
                    subscribe(&mut client, &other, "id:2\nack:client\n");
                    let id = if version == "1.2" { "ack" } else { "message-id" };
                    let mut ids = Vec::new();
                    for destination in [&other, &one, &one, &one] {
                        client.send(&format!("SEND\ndestination:{destination}\n\n{}\0", ids.len()));
                        ids.push(client.expect("MESSAGE").header(id).to_owned());
                    }
                    let name = if version == "1.2" { "id" } else { "message-id" };
                    client.send(&format!("ACK\n{name}:{}\nreceipt:a\n\n\0", ids[2]));
                    client.receipt("a");
                    client.send("DISCONNECT\n\n\0");
                    client.ended();
                    let mut client = connect(broker, version);
                    subscribe(&mut client, &other, "id:2\n");
                    let again = client.expect("MESSAGE");
                    assert_eq!((again.text(), again.header("redelivered")), ("0", "true"));
                    subscribe(&mut client, &one, "id:1\n");
                    assert_eq!(client.expect("MESSAGE").text(), "3");
                    client.quiet();
                }
            },
        ),
        ("1.8 client-individual: an ACK is for its message", |broker| {
            for version in VERSIONS {
                let (mut client, destination) = (connect(broker, version), queue());
                subscribe(&mut client, &destination, "id:s\nack:client-individual\n");
                let mut second = String::new();
                for number in 0..3 {
                    put(&mut client, &destination, &number.to_string());
                    let message = client.expect("MESSAGE");
                    if number == 1 {
                        second = message
                            .header(if version == "1.2" { "ack" } else { "message-id" })
                            .to_owned();
                    }
                }
                let name = if version == "1.2" { "id" } else { "message-id" };
                client.send(&format!("ACK\n{name}:{second}\nreceipt:a\n\n\0DISCONNECT\n\n\0"));
                client.receipt("a");
                client.ended();
                let mut client = connect(broker, version);
                subscribe(&mut client, &destination, "id:s\n");
                assert_eq!(client.expect("MESSAGE").text(), "0");
                assert_eq!(client.expect("MESSAGE").text(), "2");
                client.quiet();
            }
        }),
        (
            "1.8 NACK without requeue: the message is done with, or dead-lettered",
            |broker| {
                let (mut client, destination, dead) = (connect(broker, "1.2"), queue(), queue());
                let dead_name = dead.trim_start_matches("/queue/");
                subscribe(&mut client, &dead, "id:dead\n");
                subscribe(
                    &mut client,
                    &destination,
                    &format!(
                        "id:s\nack:client-individual\nx-dead-letter-exchange:\nx-dead-letter-routing-key:{dead_name}\n"
                    ),
                );
                put(&mut client, &destination, "poison");
                let message = client.expect("MESSAGE");
                client.send(&format!("NACK\nid:{}\nrequeue:false\n\n\0", message.header("ack")));
                let letter = client.expect("MESSAGE");
                assert_eq!((letter.header("subscription"), letter.text()), ("dead", "poison"));
                client.quiet();
                client.send(&format!("NACK\nid:{}\nrequeue:maybe\n\n\0", message.header("ack")));
                client.error("Invalid header");
            },
        ),
        (
            "1.9 transactions hold SEND, ACK and NACK; ids are those of open ones",
            |broker| {
                let (mut client, destination) = (connect(broker, "1.2"), queue());
                subscribe(&mut client, &destination, "id:s\nack:client-individual\n");
                for body in ["to ack", "to nack"] {
                    put(&mut client, &destination, body);
                }
                let held: Vec<String> = (0..2)
                    .map(|_| client.expect("MESSAGE").header("ack").to_owned())
                    .collect();
                for end in ["ABORT", "COMMIT"] {
                    client.send(&format!(
                        "BEGIN\ntransaction:t\n\n\0ACK\nid:{}\ntransaction:t\n\n\0NACK\nid:{}\ntransaction:t\n\n\0\
                     SEND\ndestination:{destination}\ntransaction:t\n\n{end}\0",
                        held[0], held[1]
                    ));
                    client.quiet();
                    client.send(&format!("{end}\ntransaction:t\nreceipt:end\n\n\0"));
                    if end == "ABORT" {
                        client.receipt("end");
                        client.quiet();
                    }
                }
                let mut bodies = Vec::new();
                for _ in 0..3 {
                    let frame = client.frame();
                    if frame.command == "MESSAGE" {
                        bodies.push(format!("{} {}", frame.text(), frame.header("redelivered")));
                    }
                }
                bodies.sort();
                assert_eq!(bodies, ["COMMIT false", "to nack true"]);
                for frames in [
                    "BEGIN\ntransaction:u\n\n\0BEGIN\ntransaction:u\n\n\0",
                    "COMMIT\ntransaction:none\n\n\0",
                    "ABORT\ntransaction:none\n\n\0",
                    "SEND\ndestination:/topic/a\ntransaction:none\n\nx\0",
                ] {
                    let mut client = connect(broker, "1.2");
                    client.send(frames);
                    client.error("Bad transaction");
                }
            },
        ),
        ("1.9 a connection that ends aborts", |broker| {
            for end in ["DISCONNECT\n\n\0", ""] {
                let (mut client, destination) = (connect(broker, "1.2"), queue());
                client.send(&format!(
                    "BEGIN\ntransaction:t\n\n\0SEND\ndestination:{destination}\ntransaction:t\n\nx\0"
                ));
                client.quiet();
                client.send(end);
                client.wire.end();
                client.ended();
                let mut client = connect(broker, "1.2");
                subscribe(&mut client, &destination, "id:s\n");
                client.quiet();
            }
        }),
        (
            "1.9, 1.8 a group's messages: ACK and NACK in transactions, and refused for good",
            |broker| {
                let mut client = connect(broker, "1.2");
                let (topic, results) = ("/rocketmq/row-group", queue());
                for body in ["1", "2", "3", "4"] {
                    client.send(&format!(
                        "SEND\ndestination:{topic}\nx-sharding-key:one\nreceipt:put\n\n{body}\0"
                    ));
                    client.receipt("put");
                }
                subscribe(
                    &mut client,
                    topic,
                    "id:g\ngroup:row-members\nack:client-individual\nprefetch-count:4\n",
                );
                let held: Vec<String> = (0..4)
                    .map(|_| client.expect("MESSAGE").header("ack").to_owned())
                    .collect();
                for end in ["ABORT", "COMMIT"] {
                    client.send(&format!(
                    "BEGIN\ntransaction:t\n\n\0ACK\nid:{}\ntransaction:t\n\n\0NACK\nid:{}\ntransaction:t\n\n\0\
                     NACK\nid:{}\ntransaction:t\nrequeue:false\n\n\0SEND\ndestination:{results}\ntransaction:t\n\nresult\0",
                    held[0], held[1], held[2]
                ));
                    client.quiet();
                    client.send(&format!("{end}\ntransaction:t\nreceipt:end\n\n\0"));
                    if end == "ABORT" {
                        client.receipt("end");
                    }
                }
                // Only what was given back comes again.
                client.receipt_among_messages("end");
                let again = client.expect("MESSAGE");
                assert_eq!((again.text(), again.header("redelivered")), ("2", "true"));
                // Settled is settled: an ACK of it is unknown, in a transaction too.
                client.send(&format!("NACK\nid:{}\nrequeue:false\nreceipt:n\n\n\0", held[3]));
                client.receipt("n");
                client.quiet();
                subscribe(&mut client, &results, "id:r\n");
                assert_eq!(client.expect("MESSAGE").text(), "result");
                subscribe(
                    &mut client,
                    "/rocketmq/%DLQ%row-members",
                    "id:dead\ngroup:row-undertakers\n",
                );
                let mut dead: Vec<String> = (0..2).map(|_| client.expect("MESSAGE").text().to_owned()).collect();
                dead.sort();
                assert_eq!(dead, ["3", "4"]);
                client.send(&format!("ACK\nid:{}\ntransaction:none\n\n\0", held[0]));
                client.error("Message not found");
            },
        ),
    ]);
}

#[test]
fn selectors() {
    run(&[
        (
            "a queue gives what a selector takes and keeps the rest in its place",
            |broker| {
                let (mut client, destination) = (connect(broker, "1.2"), queue());
                subscribe(
                    &mut client,
                    &destination,
                    "id:r\nselector:colour = 'red' AND size > 1\n",
                );
                for (number, colour) in ["red", "red", "blue", "red", "green"].into_iter().enumerate() {
                    client.send(&format!(
                        "SEND\ndestination:{destination}\ncolour:{colour}\nsize:{number}\nreceipt:put\n\n{number}\0"
                    ));
                    client.receipt_among_messages("put");
                }
                assert_eq!(client.expect("MESSAGE").text(), "3");
                client.quiet();
                let mut other = connect(broker, "1.2");
                subscribe(&mut other, &destination, "id:b\nack:client\nselector:colour <> 'red'\n");
                let held = [other.expect("MESSAGE"), other.expect("MESSAGE")];
                assert_eq!([held[0].text(), held[1].text()], ["2", "4"]);
                assert_eq!(held[0].header("redelivered"), "false");
                other.wire.end();
                other.ended();
                let mut rest = connect(broker, "1.2");
                subscribe(&mut rest, &destination, "id:a\n");
                let rest: Vec<_> = (0..4).map(|_| rest.expect("MESSAGE")).collect();
                let rest: Vec<_> = rest
                    .iter()
                    .map(|frame| (frame.text(), frame.header("redelivered")))
                    .collect();
                let expected = [("0", "false"), ("1", "false"), ("2", "true"), ("4", "true")];
                assert_eq!(rest, expected);
            },
        ),
        (
            "a selector knows JMS's names, and what is wrong with one is said",
            |broker| {
                let (mut client, destination) = (connect(broker, "1.2"), queue());
                subscribe(&mut client, &destination, "id:j\nselector:JMSPriority = 7\n");
                for priority in [4, 7] {
                    client.send(&format!(
                        "SEND\ndestination:{destination}\npriority:{priority}\n\n{priority}\0"
                    ));
                }
                assert_eq!(client.expect("MESSAGE").text(), "7");
                client.send(&format!(
                    "SUBSCRIBE\nid:k\ndestination:{destination}\nselector:colour =\n\n\0"
                ));
                client.error("Invalid selector");
            },
        ),
    ]);
}

#[test]
fn websocket() {
    run(&[(
        "1.12 the highest subprotocol that is offered is chosen, at /ws",
        |broker| {
            for (offered, chosen) in [
                ("v10.stomp, v11.stomp, v12.stomp", Some("v12.stomp")),
                ("v11.stomp, v10.stomp", Some("v11.stomp")),
                ("v10.stomp", Some("v10.stomp")),
                ("", None),
            ] {
                let mut client = Stomp::raw(broker.address("stomp_websocket"));
                let offer = match offered {
                    "" => String::new(),
                    offered => format!("Sec-WebSocket-Protocol: {offered}\r\n"),
                };
                client.send(&format!(
                    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
                ));
                let until = Instant::now() + PATIENCE;
                while !client.wire.buffered().ends_with(b"\r\n\r\n") {
                    assert!(client.wire.fill(until).expect("it answers"), "no answer");
                }
                let answer = String::from_utf8_lossy(client.wire.buffered()).to_ascii_lowercase();
                assert!(answer.starts_with("http/1.1 101"), "{answer}");
                let told = answer
                    .lines()
                    .find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
                assert_eq!(told, chosen, "{offered}");
            }
        },
    )]);
}
