//! A connection of the load: blocking while it is made, then read and written in large pieces as it is ready.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use mio::net::TcpStream;

/// How long a broker may take for a connection, and for an answer while connections are made.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// Room for one read.
const READ_SIZE: usize = 256 * 1024;

/// Up to so much of an unfinished frame is copied in front of the next read; more stays where it is.
const CARRY_MAX: usize = 16 * 1024;

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot connect to {address}: {error}{}", hint(error))]
    Connect { address: String, error: io::Error },
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the broker does not answer ({0} s)")]
    NoAnswer(u64),
    #[error("the broker refuses {what}: {why}")]
    Refused { what: String, why: String },
    #[error("the broker closed the connection: {0}")]
    Ended(String),
    #[error("this is no {protocol} broker: {what}")]
    Unexpected { protocol: &'static str, what: String },
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("{0}")]
    Stalled(String),
}

fn hint(error: &io::Error) -> &'static str {
    const TOO_MANY_FILES: i32 = 24;
    match error.raw_os_error() {
        Some(TOO_MANY_FILES) => " (raise the limit: `ulimit -n`)",
        _ => "",
    }
}

/// The first address of `host:port`.
///
/// # Errors
/// [`Fault::Connect`] when there is none.
pub fn resolve(address: &str) -> Result<SocketAddr, Fault> {
    let fail = |error| Fault::Connect {
        address: address.to_owned(),
        error,
    };
    let mut found = address.to_socket_addrs().map_err(fail)?;
    found.next().ok_or_else(|| fail(ErrorKind::NotFound.into()))
}

/// A connection while it is made: one question, one answer.
#[derive(Debug)]
pub struct Talk {
    stream: std::net::TcpStream,
    input: Vec<u8>,
}

impl Talk {
    /// # Errors
    /// [`Fault::Connect`].
    pub fn connect(address: SocketAddr) -> Result<Self, Fault> {
        let stream = std::net::TcpStream::connect_timeout(&address, ANSWER_TIME)
            .and_then(|stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_TIME))?;
                stream.set_write_timeout(Some(ANSWER_TIME))?;
                Ok(stream)
            })
            .map_err(|error| Fault::Connect {
                address: address.to_string(),
                error,
            })?;
        Ok(Self {
            stream,
            input: Vec::new(),
        })
    }

    /// # Errors
    /// [`Fault::Lost`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(bytes).map_err(Fault::Lost)
    }

    /// The next whole frame. `length` tells how long the first one is, if that can be told and it is there.
    ///
    /// # Errors
    /// [`Fault`], that of `length` included.
    pub fn frame(&mut self, length: impl Fn(&[u8]) -> Result<Option<usize>, Fault>) -> Result<Vec<u8>, Fault> {
        loop {
            if let Some(length) = length(&self.input)? {
                return Ok(self.input.drain(..length).collect());
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Fault::Closed),
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Fault::NoAnswer(ANSWER_TIME.as_secs()));
                }
                Err(error) => return Err(Fault::Lost(error)),
            }
        }
    }

    /// From now on it is read and written when it is ready.
    ///
    /// # Errors
    /// [`Fault::System`].
    pub fn into_wire(self) -> Result<Wire, Fault> {
        self.stream.set_nonblocking(true)?;
        Ok(Wire {
            stream: TcpStream::from_std(self.stream),
            rest: self.input,
            pending: Vec::new(),
            written: 0,
        })
    }
}

/// Memory that all connections of a thread read into.
pub struct Scratch(Vec<u8>);

impl Scratch {
    pub fn new() -> Self {
        Self(vec![0; READ_SIZE])
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    pub bytes: usize,
    /// There may be more.
    pub more: bool,
}

/// A connection at work.
#[derive(Debug)]
pub struct Wire {
    pub stream: TcpStream,
    /// The beginning of a frame.
    rest: Vec<u8>,
    /// What the broker has not taken yet.
    pending: Vec<u8>,
    written: usize,
}

impl Wire {
    /// Whether bytes came before it was set to work.
    pub fn has_input(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Hands what came while the connection was made to `take`, which gives how many bytes it took.
    ///
    /// # Errors
    /// That of `take`.
    pub fn take_first(&mut self, take: impl FnOnce(&[u8]) -> Result<usize, Fault>) -> Result<(), Fault> {
        let taken = take(&self.rest)?;
        self.rest.drain(..taken);
        Ok(())
    }

    /// Reads once and hands what is there to `take`, which gives how many bytes it took.
    ///
    /// # Errors
    /// [`Fault`], that of `take` included.
    pub fn read(
        &mut self,
        scratch: &mut Scratch,
        take: impl FnOnce(&[u8]) -> Result<usize, Fault>,
    ) -> Result<Brought, Fault> {
        let Scratch(scratch) = scratch;
        if self.rest.len() > CARRY_MAX {
            return self.read_behind(take);
        }
        let carried = self.rest.len();
        scratch[..carried].copy_from_slice(&self.rest);
        let Some(count) = read(&mut self.stream, &mut scratch[carried..])? else {
            return Ok(Brought { bytes: 0, more: false });
        };
        let end = carried + count;
        let taken = take(&scratch[..end])?;
        self.rest.clear();
        self.rest.extend_from_slice(&scratch[taken..end]);
        Ok(Brought {
            bytes: count,
            more: end == scratch.len(),
        })
    }

    /// A large frame in small pieces costs linear time.
    fn read_behind(&mut self, take: impl FnOnce(&[u8]) -> Result<usize, Fault>) -> Result<Brought, Fault> {
        let before = self.rest.len();
        self.rest.resize(before + READ_SIZE, 0);
        let count = read(&mut self.stream, &mut self.rest[before..]);
        let count = match count {
            Ok(Some(count)) => count,
            other => {
                self.rest.truncate(before);
                return other.map(|_| Brought { bytes: 0, more: false });
            }
        };
        self.rest.truncate(before + count);
        let taken = take(&self.rest)?;
        if taken > 0 {
            self.rest = self.rest[taken..].to_vec();
        }
        Ok(Brought {
            bytes: count,
            more: count == READ_SIZE,
        })
    }

    /// Whether the broker has taken all that was written.
    pub fn is_flushed(&self) -> bool {
        self.written == self.pending.len()
    }

    /// Writes, and keeps what the broker does not take now.
    ///
    /// # Errors
    /// [`Fault::Lost`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.flush()?;
        let mut written = 0;
        if self.is_flushed() {
            written = write(&mut self.stream, bytes)?;
        }
        self.pending.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    /// Writes what was kept.
    ///
    /// # Errors
    /// [`Fault::Lost`].
    pub fn flush(&mut self) -> Result<(), Fault> {
        if !self.is_flushed() {
            self.written += write(&mut self.stream, &self.pending[self.written..])?;
        }
        if self.is_flushed() {
            self.pending.clear();
            self.written = 0;
        }
        Ok(())
    }
}

/// How many bytes came; none when nothing is there now.
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<Option<usize>, Fault> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Err(Fault::Closed),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::Lost(error)),
        }
    }
}

fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize, Fault> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(Fault::Lost(ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::Lost(error)),
        }
    }
    Ok(written)
}
