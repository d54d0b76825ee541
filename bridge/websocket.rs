//! WebSocket as a byte stream: what a client's messages hold comes out as one stream, and what is written
//! goes out as messages, so that the driver's loop is the same for all transports (RFC 6455, server side).
//!
//! A protocol's packets may be split over messages in any way, so no message is ever put together: payload
//! is unmasked where it was read to, and what is written is sent from where it lies behind a header of its
//! own. A connection has no buffer here, and the protocol's own limits bound what a client makes us keep.
//! The handshake is [`handshake`]'s.

mod handshake;
mod text;

pub use handshake::{Refused, Settings, accept};

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::coding::CloseCode;

use text::Utf8;

/// Longest payload of a control frame (5.5).
const CONTROL_MAX: usize = 125;

/// Most bytes of answers to pings that wait for a peer that does not read: beyond it, it is not read.
const CONTROL_OUT_MAX: usize = 4 * (CONTROL_MAX + 2);

/// Bytes that tell how long a packet is.
pub const PACKET_HEAD_MAX: usize = 5;

/// Most pieces of one write besides the header.
const PIECES_MAX: usize = 63;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// What messages may be.
#[derive(Clone, Copy, Debug)]
pub enum Messages {
    /// Binary only, in both directions.
    Binary {
        /// How long the packet is that begins with these bytes, at most [`PACKET_HEAD_MAX`] of them; `None` when they
        /// do not tell. Each packet that is sent is a message of its own: there are clients (Paho's for C) that do
        /// not look at the rest of a message before something new arrives.
        packet_len: fn(&[u8]) -> Option<usize>,
    },
    /// Both are read; binary is sent to who sends binary, and where the bytes are no text.
    Any,
}

/// A WebSocket after its handshake.
pub struct WebSocket<S> {
    stream: S,
    messages: Messages,
    input: Input,
    /// The peer sent a binary message.
    is_binary: bool,
    /// The text message that is being read.
    utf8: Utf8,
    /// Control frames to be sent; no memory unless there are some.
    control_out: Vec<u8>,
    output: Output,
    end: End,
}

/// What is being read.
#[derive(Debug)]
struct Input {
    state: Reading,
    /// The opcode of the message whose frames are being read; `None` between messages.
    message: Option<u8>,
}

#[derive(Debug)]
enum Reading {
    /// A frame's header; so many of its bytes are there.
    Header { bytes: [u8; 14], len: u8 },
    /// Payload of a message.
    Payload {
        left: u64,
        mask: [u8; 4],
        turn: u8,
        is_last: bool,
    },
    /// Payload of a control frame.
    Control {
        opcode: u8,
        left: u8,
        mask: [u8; 4],
        payload: Vec<u8>,
    },
}

const HEADER: Reading = Reading::Header { bytes: [0; 14], len: 0 };

/// What is being written.
#[derive(Debug, Default)]
struct Output {
    /// The header of the frame that is open, and how much of it is sent.
    header: [u8; 10],
    header_len: u8,
    header_sent: u8,
    /// Payload of the open frame that is not sent.
    left: usize,
}

/// How far the connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The peer said goodbye or broke the rules: nothing more is read, and our goodbye waits to be sent.
    Answered,
    /// Our goodbye waits to be sent or is sent.
    Said,
}

impl<S> WebSocket<S> {
    /// A stream whose handshake is done.
    pub fn new(stream: S, messages: Messages) -> Self {
        Self {
            stream,
            messages,
            input: Input {
                state: HEADER,
                message: None,
            },
            is_binary: matches!(messages, Messages::Binary { .. }),
            utf8: Utf8::default(),
            control_out: Vec::new(),
            output: Output::default(),
            end: End::Open,
        }
    }

    fn put_control(&mut self, opcode: u8, payload: &[u8]) {
        self.control_out.push(FINAL | opcode);
        self.control_out.push(payload.len() as u8);
        self.control_out.extend_from_slice(payload);
    }

    fn put_close(&mut self, code: CloseCode) {
        self.put_control(opcode::CLOSE, &u16::from(code).to_be_bytes());
    }

    /// Takes what was read in its place: payload of messages moves to the front, everything else goes.
    /// Gives the length of what stays.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() && self.end == End::Open {
            let result = match &mut self.input.state {
                Reading::Header { bytes: header, len } => {
                    header[usize::from(*len)] = bytes[from];
                    *len += 1;
                    from += 1;
                    let (header, len) = (*header, usize::from(*len));
                    self.take_header(&header[..len])
                }
                Reading::Payload {
                    left,
                    mask,
                    turn,
                    is_last,
                } => {
                    let count = (bytes.len() - from).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    bytes.copy_within(from..from + count, to);
                    unmask(&mut bytes[to..to + count], mask, *turn);
                    *turn = (usize::from(*turn) + count) as u8 & 3;
                    *left -= count as u64;
                    let is_over = *left == 0;
                    let ends_message = is_over && *is_last;
                    let is_text = self.input.message == Some(opcode::TEXT);
                    let result = if is_text {
                        self.utf8.take(&bytes[to..to + count], ends_message)
                    } else {
                        Ok(())
                    };
                    if is_over {
                        self.input.state = HEADER;
                    }
                    if ends_message {
                        self.input.message = None;
                    }
                    from += count;
                    // What is no text does not reach the session.
                    if result.is_ok() {
                        to += count;
                    }
                    result
                }
                Reading::Control {
                    left, mask, payload, ..
                } => {
                    let byte = bytes[from] ^ mask[payload.len() & 3];
                    payload.push(byte);
                    from += 1;
                    *left -= 1;
                    self.take_control()
                }
            };
            if let Err(code) = result {
                self.put_close(code);
                self.end = End::Answered;
            }
        }
        to
    }

    /// Looks at a frame's header as far as it is there (5.2).
    fn take_header(&mut self, header: &[u8]) -> Result<(), CloseCode> {
        let [first, second, rest @ ..] = header else {
            return Ok(());
        };
        let (opcode, is_last) = (first & 0x0F, first & FINAL != 0);
        if first & RESERVED != 0 || second & MASKED == 0 {
            return Err(CloseCode::Protocol);
        }
        let is_control = opcode >= opcode::CLOSE;
        let short = second & 0x7F;
        if is_control && (!is_last || usize::from(short) > CONTROL_MAX) {
            return Err(CloseCode::Protocol);
        }
        match (opcode, self.input.message) {
            (opcode::CONTINUATION, Some(_)) | (opcode::TEXT | opcode::BINARY, None) => {}
            (opcode::CLOSE | opcode::PING | opcode::PONG, _) => {}
            _ => return Err(CloseCode::Protocol),
        }
        if opcode == opcode::TEXT && matches!(self.messages, Messages::Binary { .. }) {
            return Err(CloseCode::Unsupported);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if rest.len() < extended + 4 {
            return Ok(());
        }
        let (extended, mask) = rest.split_at(extended);
        let length = match extended {
            [] => u64::from(short),
            digits => digits.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)),
        };
        if length > i64::MAX as u64 {
            return Err(CloseCode::Protocol);
        }
        let mask = mask.try_into().unwrap_or_default();
        if is_control {
            self.input.state = Reading::Control {
                opcode,
                left: length as u8,
                mask,
                payload: Vec::new(),
            };
            return self.take_control();
        }
        if opcode != opcode::CONTINUATION {
            self.input.message = Some(opcode);
            self.is_binary |= opcode == opcode::BINARY;
        }
        if length == 0 {
            self.input.state = HEADER;
            if is_last {
                let is_text = self.input.message.take() == Some(opcode::TEXT);
                return if is_text { self.utf8.take(&[], true) } else { Ok(()) };
            }
            return Ok(());
        }
        self.input.state = Reading::Payload {
            left: length,
            mask,
            turn: 0,
            is_last,
        };
        Ok(())
    }

    /// Acts on a control frame once it is whole.
    fn take_control(&mut self) -> Result<(), CloseCode> {
        let Reading::Control { opcode, left: 0, .. } = self.input.state else {
            return Ok(());
        };
        let Reading::Control { payload, .. } = std::mem::replace(&mut self.input.state, HEADER) else {
            return Ok(());
        };
        match opcode {
            opcode::PING => self.put_control(opcode::PONG, &payload),
            opcode::CLOSE => {
                let code = match &payload[..] {
                    [] => None,
                    [_] => return Err(CloseCode::Protocol),
                    [high, low, reason @ ..] => {
                        let code = CloseCode::from(u16::from_be_bytes([*high, *low]));
                        if !code.is_allowed() {
                            return Err(CloseCode::Protocol);
                        }
                        if std::str::from_utf8(reason).is_err() {
                            return Err(CloseCode::Invalid);
                        }
                        Some(code)
                    }
                };
                match code {
                    Some(code) => self.put_close(code),
                    None => self.put_control(opcode::CLOSE, &[]),
                }
                self.end = End::Answered;
            }
            // An answer that nobody asked for (5.5.3).
            _ => {}
        }
        Ok(())
    }

    /// Begins a frame for what is to be written.
    fn open_frame(&mut self, pieces: &[IoSlice<'_>], len: usize) {
        let mut head = [0; PACKET_HEAD_MAX];
        let (opcode, len) = match self.messages {
            Messages::Binary { packet_len } => {
                let packet_len = packet_len(head_of(pieces, &mut head));
                (opcode::BINARY, packet_len.unwrap_or(len))
            }
            Messages::Any if self.is_binary => (opcode::BINARY, len),
            Messages::Any => match text::prefix(pieces) {
                Some(len) => (opcode::TEXT, len),
                None => (opcode::BINARY, len),
            },
        };
        let header = &mut self.output.header;
        header[0] = FINAL | opcode;
        let header_len = match len {
            0..=125 => {
                header[1] = len as u8;
                2
            }
            126..=0xFFFF => {
                header[1] = 126;
                header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                4
            }
            _ => {
                header[1] = 127;
                header[2..10].copy_from_slice(&(len as u64).to_be_bytes());
                10
            }
        };
        self.output.header_len = header_len;
        self.output.header_sent = 0;
        self.output.left = len;
    }
}

/// The first bytes of what is to be written.
fn head_of<'a>(pieces: &[IoSlice<'_>], head: &'a mut [u8; PACKET_HEAD_MAX]) -> &'a [u8] {
    let mut len = 0;
    for (to, from) in head.iter_mut().zip(pieces.iter().flat_map(|piece| piece.iter())) {
        *to = *from;
        len += 1;
    }
    &head[..len]
}

/// `turn` is which byte of the mask is next.
fn unmask(bytes: &mut [u8], mask: &[u8; 4], turn: u8) {
    let mut turned = *mask;
    turned.rotate_left(usize::from(turn));
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, mask) in word.iter_mut().zip(turned) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(turned) {
        *byte ^= mask;
    }
}

impl<S: AsyncWrite + Unpin> WebSocket<S> {
    /// Sends control frames, which may only stand between others.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.left > 0 || self.output.header_sent < self.output.header_len {
            // The rest of the frame comes with the next write.
            return Poll::Ready(Ok(()));
        }
        while !self.control_out.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.control_out))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.control_out.drain(..count);
        }
        self.control_out = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // Also when nothing is read: answers to pings must not wait for something to be written.
            match this.poll_control(cx)? {
                Poll::Pending if this.control_out.len() > CONTROL_OUT_MAX => return Poll::Pending,
                _ => {}
            }
            if this.end != End::Open {
                return Poll::Ready(Ok(()));
            }
            let start = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let read = &mut buf.filled_mut()[start..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count = this.take(read);
            buf.set_filled(start + count);
            if count > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bufs = &bufs[..bufs.len().min(PIECES_MAX)];
        let len: usize = bufs.iter().map(|piece| piece.len()).sum();
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        if this.output.left == 0 && this.output.header_sent == this.output.header_len {
            ready!(this.poll_control(cx))?;
            if this.end != End::Open {
                // Behind a close frame no other may stand (5.5.1), and nobody reads it.
                return Poll::Ready(Ok(len));
            }
            this.open_frame(bufs, len);
        }
        loop {
            let output = &this.output;
            let header = &output.header[usize::from(output.header_sent)..usize::from(output.header_len)];
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX + 1];
            pieces[0] = IoSlice::new(header);
            let mut left = output.left;
            for (piece, buf) in pieces[1..].iter_mut().zip(bufs) {
                let count = left.min(buf.len());
                *piece = IoSlice::new(&buf[..count]);
                left -= count;
            }
            let pieces = &pieces[usize::from(header.is_empty())..=bufs.len()];
            let header_left = header.len();
            let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, pieces))?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            let of_header = count.min(header_left);
            this.output.header_sent += of_header as u8;
            let of_payload = count - of_header;
            this.output.left -= of_payload;
            if of_payload > 0 {
                return Poll::Ready(Ok(of_payload));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    /// Says goodbye first, unless the peer's was answered (7.1.2).
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end == End::Open {
            this.put_close(CloseCode::Normal);
        }
        this.end = match this.end {
            End::Open => End::Said,
            other => other,
        };
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
