//! A small STOMP 1.2 client that hides nothing: one connection, no threads.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::wire::{PATIENCE, Wire, timed_out, unexpected};

/// What the broker says.
#[derive(Clone, Debug)]
pub struct Frame {
    pub command: String,
    /// Lines as they came.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }
}

pub struct Stomp {
    pub wire: Wire,
    receipts: u64,
}

impl Stomp {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::log_in(Wire::connect(address)?)
    }

    pub fn connect_websocket(address: SocketAddr) -> io::Result<Self> {
        Self::log_in(Wire::upgraded(address, "/ws")?)
    }

    /// CONNECT and CONNECTED.
    pub fn log_in(wire: Wire) -> io::Result<Self> {
        let mut client = Self { wire, receipts: 0 };
        client.send("CONNECT", "accept-version:1.2\nlogin:guest\npasscode:guest\n", b"")?;
        match client.next_frame(PATIENCE)? {
            Some(frame) if frame.command == "CONNECTED" => Ok(client),
            other => unexpected(other),
        }
    }

    /// `headers` are whole lines.
    pub fn send(&mut self, command: &str, headers: &str, body: &[u8]) -> io::Result<()> {
        let mut bytes = format!("{command}\n{headers}\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes.push(0);
        self.wire.send(&bytes)
    }

    /// Sends, and waits for the receipt; nothing else may come before it.
    pub fn send_confirmed(&mut self, command: &str, headers: &str, body: &[u8]) -> io::Result<()> {
        self.receipts += 1;
        let receipt = self.receipts.to_string();
        self.send(command, &format!("{headers}receipt:{receipt}\n"), body)?;
        match self.next_frame(PATIENCE)? {
            Some(frame) if frame.command == "RECEIPT" && frame.header("receipt-id") == Some(&receipt) => Ok(()),
            Some(frame) => unexpected(frame),
            None => timed_out("receipt"),
        }
    }

    /// The next frame; `None` when none comes in that time.
    pub fn next_frame(&mut self, within: Duration) -> io::Result<Option<Frame>> {
        let until = Instant::now() + within;
        loop {
            if let Some(frame) = self.buffered_frame() {
                return Ok(Some(frame));
            }
            if !self.wire.fill(until)? {
                return Ok(None);
            }
        }
    }

    fn buffered_frame(&mut self) -> Option<Frame> {
        while matches!(self.wire.buffered().first(), Some(b'\n' | b'\r')) {
            self.wire.take(1);
        }
        let bytes = self.wire.buffered();
        let head_end = bytes.windows(2).position(|window| window == b"\n\n")?;
        let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
        let mut lines = head.split('\n').map(str::to_owned);
        let mut frame = Frame {
            command: lines.next()?,
            headers: lines.collect(),
            body: Vec::new(),
        };
        let body = &bytes[head_end + 2..];
        let length = match frame.header("content-length") {
            Some(length) => length.parse().ok()?,
            None => body.iter().position(|byte| *byte == 0)?,
        };
        if body.len() <= length {
            return None;
        }
        assert_eq!(body[length], 0, "a body is followed by NUL");
        frame.body = body[..length].to_vec();
        self.wire.take(head_end + 2 + length + 1);
        Some(frame)
    }
}
