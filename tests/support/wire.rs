//! A blocking connection with a read buffer and deadlines: what the raw clients stand on. It may be a WebSocket:
//! then what is sent goes out as a message, and what comes in is what messages hold.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a broker may take to answer what it must answer; generous, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A connection.
pub struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    /// Bytes of `input` that were taken.
    taken: usize,
    byte_by_byte: bool,
    /// Of a WebSocket: what was read and is no whole frame.
    frames: Option<Vec<u8>>,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            input: Vec::new(),
            taken: 0,
            byte_by_byte: false,
            frames: None,
        })
    }

    /// A WebSocket at that path.
    pub fn upgraded(address: SocketAddr, path: &str) -> io::Result<Self> {
        let mut wire = Self::connect(address)?;
        wire.send(upgrade_request(path).as_bytes())?;
        let until = Instant::now() + PATIENCE;
        let head = loop {
            if let Some(at) = wire.buffered().windows(4).position(|window| window == b"\r\n\r\n") {
                break wire.take(at + 4);
            }
            if !wire.fill(until)? {
                return timed_out("answer to the WebSocket handshake");
            }
        };
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return unexpected(head.escape_ascii().to_string());
        }
        wire.frames = Some(wire.take(wire.buffered().len()));
        Ok(wire)
    }

    /// What is sent from now on goes out as it is, though it is a WebSocket.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.byte_by_byte {
            return bytes.iter().try_for_each(|byte| self.stream.write_all(&[*byte]));
        }
        if self.frames.is_some() {
            return self.stream.write_all(&message(bytes));
        }
        self.stream.write_all(bytes)
    }

    /// From now on each byte goes in a packet of its own.
    pub fn send_byte_by_byte(&mut self) {
        self.byte_by_byte = true;
    }

    /// How long sending waits for a peer that does not read.
    pub fn set_write_timeout(&self, timeout: Duration) {
        self.stream.set_write_timeout(Some(timeout)).expect("it is not zero");
    }

    /// Bytes that were read and not taken.
    pub fn buffered(&self) -> &[u8] {
        &self.input[self.taken..]
    }

    /// Takes `count` buffered bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.buffered()[..count].to_vec();
        self.taken += count;
        if self.taken == self.input.len() {
            self.input.clear();
            self.taken = 0;
        }
        bytes
    }

    /// Reads some more; `false` when nothing came until then. The peer's end is an error.
    pub fn fill(&mut self, until: Instant) -> io::Result<bool> {
        if self.taken > 1 << 20 {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        let mut buffer = [0; 64 << 10];
        // A timeout of zero would mean none.
        let wait = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_micros(1));
        self.stream.set_read_timeout(Some(wait))?;
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                match &mut self.frames {
                    None => self.input.extend_from_slice(&buffer[..count]),
                    Some(frames) => {
                        frames.extend_from_slice(&buffer[..count]);
                        take_messages(frames, &mut self.input);
                    }
                }
                Ok(true)
            }
            // A machine that was suspended interrupts what waited.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(until),
            Err(error) if is_timeout(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Everything up to the peer's end, however it ends. Panics when there is no end in time.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.fill(until) {
                Ok(true) => {}
                Ok(false) => panic!("the peer does not end the connection"),
                Err(_) => return self.take(self.buffered().len()),
            }
        }
    }

    /// Tells the peer that nothing more comes.
    pub fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// The client's half of a WebSocket handshake.
pub fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A WebSocket's binary message, masked with zeros.
pub fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 14);
    bytes.push(0x82);
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Moves the payload of whole frames of messages to `input`; control frames only go.
fn take_messages(frames: &mut Vec<u8>, input: &mut Vec<u8>) {
    let mut at = 0;
    while let [first, second, rest @ ..] = &frames[at..] {
        let digits = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((digits, rest)) = rest.split_at_checked(digits) else {
            break;
        };
        let length = match digits {
            [] => usize::from(*second),
            digits => digits.iter().fold(0, |number, digit| number << 8 | usize::from(*digit)),
        };
        let Some(payload) = rest.get(..length) else { break };
        if first & 0x0F < 8 {
            input.extend_from_slice(payload);
        }
        at = frames.len() - rest.len() + length;
    }
    frames.drain(..at);
}

pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// An answer that must come.
pub fn timed_out<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::TimedOut, format!("no {what} in time")))
}

/// A peer that says what it must not.
pub fn unexpected<T>(what: impl std::fmt::Debug) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::InvalidData, format!("unexpected {what:?}")))
}
