//! A blocking connection with a read buffer and deadlines: what the raw clients stand on.

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
        })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.byte_by_byte {
            return bytes.iter().try_for_each(|byte| self.stream.write_all(&[*byte]));
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
                self.input.extend_from_slice(&buffer[..count]);
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
