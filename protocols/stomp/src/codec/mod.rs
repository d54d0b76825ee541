//! Bytes to frames and back, for STOMP 1.0, 1.1 and 1.2 and all commands of both sides.
//!
//! A [`Decoder`] reads both sides; CONNECT decides the version. It copies nothing (headers are places in one
//! slice of the input, the body is another), allocates nothing that a peer merely claims, and looks at
//! each byte a fixed number of times however small the pieces are. Command and headers are parsed with
//! nom ([`head`]) once all of them are there; bodies and the line ends between frames never meet it.

mod decode;
mod encode;
mod head;

pub use decode::{Decoder, Limits, Refused};
pub use encode::{
    END_OF_FRAME, put_command, put_escaped, put_header, put_number_header, put_plain_header, put_stored_escaped,
    put_stored_headers,
};
pub use head::{Header, Headers};

use bytes::{BufMut, Bytes, BytesMut};

/// A version of the protocol. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V10,
    V11,
    V12,
}

impl Version {
    /// All of them, the oldest first.
    pub const ALL: [Self; 3] = [Self::V10, Self::V11, Self::V12];

    /// As it stands in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V10 => "1.0",
            Self::V11 => "1.1",
            Self::V12 => "1.2",
        }
    }

    /// The version of that name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name().as_bytes() == name)
    }
}

/// A frame's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Connect,
    /// What 1.1 and 1.2 may write instead of CONNECT.
    Stomp,
    Send,
    Subscribe,
    Unsubscribe,
    Ack,
    Nack,
    Begin,
    Commit,
    Abort,
    Disconnect,
    Connected,
    Message,
    Receipt,
    Error,
    /// None of the above: [`Frame::command_text`] says what.
    Unknown,
}

impl Command {
    const NAMED: [(Self, &'static str); 15] = [
        (Self::Connect, "CONNECT"),
        (Self::Stomp, "STOMP"),
        (Self::Send, "SEND"),
        (Self::Subscribe, "SUBSCRIBE"),
        (Self::Unsubscribe, "UNSUBSCRIBE"),
        (Self::Ack, "ACK"),
        (Self::Nack, "NACK"),
        (Self::Begin, "BEGIN"),
        (Self::Commit, "COMMIT"),
        (Self::Abort, "ABORT"),
        (Self::Disconnect, "DISCONNECT"),
        (Self::Connected, "CONNECTED"),
        (Self::Message, "MESSAGE"),
        (Self::Receipt, "RECEIPT"),
        (Self::Error, "ERROR"),
    ];

    /// The command of that name. Names are case-sensitive.
    pub fn from_name(name: &[u8]) -> Self {
        match name {
            b"SEND" => Self::Send,
            b"ACK" => Self::Ack,
            _ => Self::NAMED
                .into_iter()
                .find(|(_, known)| known.as_bytes() == name)
                .map_or(Self::Unknown, |(command, _)| command),
        }
    }

    /// Its name on the wire; empty for [`Unknown`](Self::Unknown).
    pub fn name(self) -> &'static str {
        Self::NAMED
            .into_iter()
            .find(|(command, _)| *command == self)
            .map_or("", |(_, name)| name)
    }

    /// Whether `content-length` counts. Clients echo a MESSAGE's headers into their ACK, its length among
    /// them, so it only does where a body is allowed.
    pub const fn has_body(self) -> bool {
        matches!(self, Self::Send | Self::Message | Self::Error)
    }

    /// Headers of these are never escaped, in either direction (1.2, "Value Encoding").
    pub const fn is_unescaped(self) -> bool {
        matches!(self, Self::Connect | Self::Stomp | Self::Connected)
    }
}

/// One frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub command: Command,
    /// Command and headers, unescaped.
    head: Bytes,
    headers: Headers,
    command_len: u32,
    /// Empty where the command allows none.
    pub body: Bytes,
}

impl Frame {
    /// The command as it was written.
    pub fn command_text(&self) -> &[u8] {
        &self.head[..self.command_len as usize]
    }

    /// The first header of that name: later ones do not count (1.2, "Repeated Header Entries").
    pub fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|h| h.name(&self.head) == name)
            .map(|h| h.value(&self.head))
    }

    /// Each header once, in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.headers.iter().enumerate().filter_map(|(at, header)| {
            let name = header.name(&self.head);
            let is_repeated = self.headers[..at]
                .iter()
                .any(|earlier| earlier.name(&self.head) == name);
            (!is_repeated).then(|| (name, header.value(&self.head)))
        })
    }

    /// Every header, also those that repeat an earlier one.
    pub fn all_headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.headers.iter().map(|h| (h.name(&self.head), h.value(&self.head)))
    }

    /// Writes the frame as it was read.
    pub fn encode(&self, version: Version, out: &mut BytesMut) {
        out.put_slice(self.command_text());
        out.put_u8(b'\n');
        for (name, value) in self.all_headers() {
            if self.command.is_unescaped() {
                out.put_slice(&[name, b":", value, b"\n"].concat());
            } else {
                put_header(out, version, name, value);
            }
        }
        out.put_u8(b'\n');
        out.put_slice(&self.body);
        out.put_slice(END_OF_FRAME);
    }

    /// A copy of a header's value that does not keep the frame's memory.
    pub fn copy(&self, name: &[u8]) -> Option<Bytes> {
        self.header(name).map(Bytes::copy_from_slice)
    }
}

/// Why bytes are not a frame. All of them end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the command has more than {0} octets")]
    CommandTooLong(usize),
    #[error("the frame has more than {0} headers")]
    TooManyHeaders(usize),
    #[error("a header has more than {0} octets")]
    HeaderTooLong(usize),
    #[error("the headers have more than {0} octets")]
    HeadersTooLong(usize),
    #[error("the body has more than {0} octets")]
    BodyTooLarge(usize),
    #[error("a frame has at most {0} octets before login")]
    FrameTooLarge(usize),
    #[error("a carriage return is not followed by a line feed")]
    BareCarriageReturn,
    #[error("a header has no colon")]
    NoColon,
    #[error("a header has no name")]
    NoName,
    #[error("the frame ends before the blank line behind its headers")]
    NoBlankLine,
    #[error("a header has an undefined escape sequence")]
    Escape,
    #[error("content-length is not a number of octets")]
    ContentLength,
    #[error("the octet behind the body is not NUL: content-length is wrong")]
    BodyNotTerminated,
}

impl Fault {
    /// It is well-formed so far, but there is too much of it.
    pub const fn is_limit(self) -> bool {
        matches!(
            self,
            Self::CommandTooLong(_)
                | Self::TooManyHeaders(_)
                | Self::HeaderTooLong(_)
                | Self::HeadersTooLong(_)
                | Self::BodyTooLarge(_)
                | Self::FrameTooLarge(_)
        )
    }
}
