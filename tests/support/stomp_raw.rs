//! A STOMP client that sends what it is told, octet by octet, and reads frames.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use super::wire::{PATIENCE, Wire};

/// A frame of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub command: String,
    /// As they stood on the wire, escapes and all.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Frame {
    /// The header of that name, empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map_or("", |(_, value)| value)
    }

    pub fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(other, _)| other == name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }
}

/// A connection.
pub struct Stomp {
    pub wire: Wire,
    /// Messages that came while something else was awaited.
    messages: VecDeque<Frame>,
    fences: usize,
}

impl Stomp {
    /// Connected on TCP, and nothing said yet.
    pub fn raw(address: SocketAddr) -> Self {
        let wire = Wire::connect(address).expect("the broker listens");
        Self {
            wire,
            messages: VecDeque::new(),
            fences: 0,
        }
    }

    /// Logged in with that version.
    pub fn connect(address: SocketAddr, version: &str) -> Self {
        let mut client = Self::raw(address);
        client.send(&format!(
            "CONNECT\naccept-version:{version}\nhost:/\nlogin:guest\npasscode:guest\n\n\0"
        ));
        assert_eq!(client.expect("CONNECTED").header("version"), version);
        client
    }

    pub fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // What a broker refuses in the middle it need not read to the end.
        let _ = self.wire.send(bytes);
    }

    /// Buffers at least so many octets.
    fn fill(&mut self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.wire.buffered().len() < count {
            match self.wire.fill(until) {
                Ok(true) => {}
                Ok(false) => panic!("nothing more came in time"),
                Err(error) => {
                    let got = self.wire.buffered().escape_ascii().to_string();
                    panic!("the connection ended ({error}) behind {got}");
                }
            }
        }
    }

    fn byte(&mut self) -> u8 {
        self.fill(1);
        self.wire.take(1)[0]
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.byte() {
                b'\n' => return String::from_utf8(line).expect("headers are UTF-8"),
                byte => line.push(byte),
            }
        }
    }

    /// The next frame; line ends before it are heart-beats.
    pub fn frame(&mut self) -> Frame {
        match self.messages.pop_front() {
            Some(message) => message,
            None => self.read_frame(),
        }
    }

    fn read_frame(&mut self) -> Frame {
        let command = loop {
            let line = self.line();
            if !line.is_empty() {
                break line;
            }
        };
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else {
                assert_eq!(line, "", "a header without a colon");
                break;
            };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut frame = Frame {
            command,
            headers,
            body: Vec::new(),
        };
        if frame.has("content-length") {
            let count: usize = frame.header("content-length").parse().expect("a number");
            self.fill(count);
            frame.body = self.wire.take(count);
            assert_eq!(self.byte(), 0, "a NUL ends the body");
        } else {
            loop {
                match self.byte() {
                    0 => break,
                    byte => frame.body.push(byte),
                }
            }
        }
        frame
    }

    /// The next frame, which is one of that command.
    pub fn expect(&mut self, command: &str) -> Frame {
        let frame = self.frame();
        assert_eq!(
            frame.command,
            command,
            "{frame:?} {:?}",
            String::from_utf8_lossy(&frame.body)
        );
        frame
    }

    pub fn receipt(&mut self, id: &str) {
        assert_eq!(self.expect("RECEIPT").header("receipt-id"), id);
    }

    /// A receipt comes, before or behind messages, which are the next frames then.
    pub fn receipt_among_messages(&mut self, id: &str) {
        loop {
            let frame = self.read_frame();
            if frame.command != "MESSAGE" {
                assert_eq!((&frame.command[..], frame.header("receipt-id")), ("RECEIPT", id));
                return;
            }
            self.messages.push_back(frame);
        }
    }

    /// Nothing else was said: a frame that asks for a receipt is answered next.
    pub fn quiet(&mut self) {
        self.fences += 1;
        let fence = format!("fence-{}", self.fences);
        self.send(&format!("SEND\ndestination:/topic/fence\nreceipt:{fence}\n\n\0"));
        self.receipt(&fence);
    }

    /// An ERROR of that message, and the end of the connection behind it.
    pub fn error(&mut self, message: &str) -> Frame {
        let error = self.expect("ERROR");
        assert_eq!(error.header("message"), message, "{error:?} {}", error.text());
        let rest = self.wire.read_to_end();
        assert!(
            rest.iter().all(|byte| *byte == b'\n'),
            "behind ERROR came {}",
            rest.escape_ascii()
        );
        error
    }

    /// The connection ends without another frame.
    pub fn ended(&mut self) {
        let rest = self.wire.read_to_end();
        assert!(
            rest.iter().all(|byte| *byte == b'\n'),
            "at the end came {}",
            rest.escape_ascii()
        );
    }
}
