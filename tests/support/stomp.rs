//! A small STOMP 1.2 client that hides nothing: one connection, no threads.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::wire::{PATIENCE, Wire, timed_out, unexpected};

/// A frame of the broker.
#[derive(Clone, Debug)]
pub struct Frame {
    pub command: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Frame {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| &value[..])
    }
}

pub struct Stomp {
    pub wire: Wire,
    receipts: u64,
    kept: VecDeque<Frame>,
}

impl Stomp {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::log_in(Wire::connect(address)?)
    }

    pub fn connect_websocket(address: SocketAddr) -> io::Result<Self> {
        Self::log_in(Wire::upgraded(address, "/ws")?)
    }

    /// CONNECT and CONNECTED.
    fn log_in(wire: Wire) -> io::Result<Self> {
        let mut client = Self {
            wire,
            receipts: 0,
            kept: VecDeque::new(),
        };
        let headers = [("accept-version", "1.2"), ("login", "guest"), ("passcode", "guest")];
        client.send("CONNECT", &headers, b"")?;
        match client.next_frame(Instant::now() + PATIENCE)? {
            Some(frame) if frame.command == "CONNECTED" => Ok(client),
            other => unexpected(other),
        }
    }

    pub fn send(&mut self, command: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::new();
        put_frame(command, headers, body, &mut bytes);
        self.wire.send(&bytes)
    }

    /// Appends a SEND of a persistent message, to be sent with others; gives the receipt it asks for.
    pub fn put_send(&mut self, destination: &str, more: &[(&str, &str)], body: &[u8], bytes: &mut Vec<u8>) -> u64 {
        self.receipts += 1;
        let receipt = self.receipts.to_string();
        let mut headers = vec![
            ("destination", destination),
            ("persistent", "true"),
            ("receipt", &receipt),
        ];
        headers.extend_from_slice(more);
        put_frame("SEND", &headers, body, bytes);
        self.receipts
    }

    /// Sends a frame and waits for its receipt; what comes meanwhile is kept.
    pub fn call(&mut self, command: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        self.receipts += 1;
        let receipt = self.receipts.to_string();
        let mut all = headers.to_vec();
        all.push(("receipt", &receipt));
        self.send(command, &all, body)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read_frame(until)? {
                Some(frame) if receipt_of(&frame) == Some(self.receipts) => return Ok(()),
                Some(frame) if frame.command == "ERROR" => return unexpected(frame),
                Some(frame) => self.kept.push_back(frame),
                None => return timed_out("RECEIPT"),
            }
        }
    }

    /// The next frame; `None` when none comes until then.
    pub fn next_frame(&mut self, until: Instant) -> io::Result<Option<Frame>> {
        match self.kept.pop_front() {
            Some(frame) => Ok(Some(frame)),
            None => self.read_frame(until),
        }
    }

    fn read_frame(&mut self, until: Instant) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Ok(Some(frame));
            }
            if !self.wire.fill(until)? {
                return Ok(None);
            }
        }
    }

    /// A whole frame that was read already. Line ends between frames are heart-beats.
    fn take_frame(&mut self) -> Option<Frame> {
        let beats = self.wire.buffered().iter().take_while(|byte| **byte == b'\n').count();
        if beats > 0 {
            self.wire.take(beats);
        }
        let bytes = self.wire.buffered();
        let head_len = bytes.windows(2).position(|pair| pair == b"\n\n")? + 2;
        let head = std::str::from_utf8(&bytes[..head_len - 2]).expect("headers are UTF-8");
        let mut lines = head.split('\n');
        let command = lines.next().unwrap_or_default().to_owned();
        let pairs = lines.filter_map(|line| line.split_once(':'));
        let headers: Vec<_> = pairs.map(|(name, value)| (unescaped(name), unescaped(value))).collect();
        let told = headers.iter().find(|(name, _)| name == "content-length");
        let body_len = match told {
            Some((_, len)) => len.parse().expect("content-length is a number"),
            None => bytes[head_len..].iter().position(|byte| *byte == 0)?,
        };
        let len = head_len + body_len + 1;
        if bytes.len() < len {
            return None;
        }
        let bytes = self.wire.take(len);
        assert_eq!(bytes[len - 1], 0, "a frame ends with NUL");
        Some(Frame {
            command,
            headers,
            body: bytes[head_len..len - 1].to_vec(),
        })
    }
}

/// The number of a RECEIPT that [`Stomp`] has asked for.
pub fn receipt_of(frame: &Frame) -> Option<u64> {
    let receipt = frame.header("receipt-id").filter(|_| frame.command == "RECEIPT")?;
    receipt.parse().ok()
}

pub fn put_frame(command: &str, headers: &[(&str, &str)], body: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(command.as_bytes());
    bytes.push(b'\n');
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}:{value}\n").as_bytes());
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("content-length:{}\n", body.len()).as_bytes());
    }
    bytes.push(b'\n');
    bytes.extend_from_slice(body);
    bytes.push(0);
}

fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for letter in text.chars() {
        match (std::mem::take(&mut escaped), letter) {
            (false, '\\') => escaped = true,
            (true, 'n') => plain.push('\n'),
            (true, 'r') => plain.push('\r'),
            (true, 'c') => plain.push(':'),
            (_, letter) => plain.push(letter),
        }
    }
    plain
}
