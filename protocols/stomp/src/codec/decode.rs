//! From the bytes of a connection to frames.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

use super::head::{self, Head};
use super::{Command, Fault, Frame, Version};

/// What a peer may make us keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a command.
    pub command: usize,
    /// Headers of a frame.
    pub headers: usize,
    /// Octets of one header's line.
    pub header_line: usize,
    /// Octets of command and headers together.
    pub head: usize,
    /// Octets of a body.
    pub body: usize,
    /// Octets of a whole frame before login.
    pub before_login: usize,
}

/// A frame that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub fault: Fault,
    /// The frame's command, if it could be read.
    pub command: Option<Command>,
    /// The frame's receipt header, if it could be read.
    pub receipt: Option<Bytes>,
}

/// Takes frames from the front of a connection's input.
///
/// ```text
///            first octet of a frame        blank line               last octet, NUL
///   Between ------------------------> Head -----------> Body ----------------------> Between
///      (line ends, NUL: skipped)                  \--- body is there ---> Between
/// ```
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// Known from CONNECT on.
    version: Option<Version>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing of the next frame was seen.
    Between,
    /// The end of the headers was not seen yet.
    Head(Scan),
    /// The headers are parsed.
    Body(Box<Waiting>),
}

/// How far the search for the blank line has come.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    /// Octets that were looked at.
    seen: usize,
    /// Where the line begins that is being looked at.
    line: usize,
    /// Lines before it.
    lines: usize,
}

#[derive(Debug)]
struct Waiting {
    head: Head,
    /// Octets of command and headers.
    head_len: usize,
    /// Where the body begins.
    start: usize,
    end: BodyEnd,
}

#[derive(Clone, Copy, Debug)]
enum BodyEnd {
    /// After that many octets.
    Length(usize),
    /// At the first NUL; so many octets of the body were looked at.
    Nul { seen: usize },
}

impl Decoder {
    /// For a peer that has not logged in.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            version: None,
            state: State::Between,
        }
    }

    /// The version is agreed on and the peer has logged in.
    pub fn set_version(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// The next frame; `None` when more bytes are needed. After an error nothing more can be read.
    ///
    /// # Errors
    /// [`Refused`] with all that is known of the frame.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Refused> {
        let mut waiting = match &mut self.state {
            State::Body(_) => match std::mem::replace(&mut self.state, State::Between) {
                State::Body(waiting) => *waiting,
                _ => return Ok(None),
            },
            State::Head(_) | State::Between => match self.find_head(input)? {
                Some(waiting) => waiting,
                None => return Ok(None),
            },
        };
        let found = waiting
            .find_end(input, &self.limits)
            .and_then(|end| match self.version {
                None if end.unwrap_or(input.len()) > self.limits.before_login => {
                    Err(Fault::FrameTooLarge(self.limits.before_login))
                }
                _ => Ok(end),
            });
        match found {
            Ok(Some(end)) => {
                self.state = State::Between;
                self.take(waiting, end, input).map(Some)
            }
            Ok(None) => {
                self.state = State::Body(Box::new(waiting));
                Ok(None)
            }
            Err(fault) => Err(refused(fault, &waiting.head, &input[..waiting.head_len])),
        }
    }

    /// Parses command and headers once all of them are there.
    fn find_head(&mut self, input: &mut BytesMut) -> Result<Option<Waiting>, Refused> {
        let unread = |fault| Refused {
            fault,
            command: None,
            receipt: None,
        };
        let mut scan = match self.state {
            State::Head(scan) => scan,
            _ if skip_between(input).map_err(unread)? => Scan::default(),
            _ => return Ok(None),
        };
        let found = scan.find_end(input, &self.limits, self.version.is_some());
        let Some((head_len, start)) = found.map_err(unread)? else {
            self.state = State::Head(scan);
            return Ok(None);
        };
        let text = &input[..head_len];
        let head = head::parse(text).map_err(unread)?;
        match self.body_end(&head, text) {
            Ok(end) => Ok(Some(Waiting {
                head,
                head_len,
                start,
                end,
            })),
            Err(fault) => Err(refused(fault, &head, text)),
        }
    }

    fn body_end(&self, head: &Head, text: &[u8]) -> Result<BodyEnd, Fault> {
        let length = head
            .command
            .has_body()
            .then(|| head.find(text, b"content-length"))
            .flatten();
        let Some(length) = length else {
            return Ok(BodyEnd::Nul { seen: 0 });
        };
        let length = length.trim_ascii();
        if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
            return Err(Fault::ContentLength);
        }
        // Too many digits are too many octets.
        let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
        match length {
            Some(length) if length <= self.limits.body => Ok(BodyEnd::Length(length)),
            _ => Err(Fault::BodyTooLarge(self.limits.body)),
        }
    }

    /// Takes a frame that is there up to `end`, its NUL.
    fn take(&self, mut waiting: Waiting, end: usize, input: &mut BytesMut) -> Result<Frame, Refused> {
        let mut whole = input.split_to(end + 1).freeze();
        whole.truncate(end);
        let body = if waiting.head.command.has_body() {
            whole.slice(waiting.start..)
        } else {
            Bytes::new()
        };
        let mut head = whole;
        head.truncate(waiting.head_len);
        match self.version {
            _ if waiting.head.command.is_unescaped() => {}
            None => {}
            Some(Version::V10) => waiting.head.trim(&head),
            Some(version) if memchr(b'\\', &head).is_some() => {
                let escaped = waiting.head.clone();
                match waiting.head.unescape(&head, version) {
                    Ok(unescaped) => head = unescaped,
                    Err(fault) => return Err(refused(fault, &escaped, &head)),
                }
            }
            Some(_) => {}
        }
        Ok(Frame {
            command: waiting.head.command,
            command_len: waiting.head.command_len,
            headers: waiting.head.headers,
            head,
            body,
        })
    }
}

fn refused(fault: Fault, head: &Head, text: &[u8]) -> Refused {
    Refused {
        fault,
        command: Some(head.command),
        receipt: head.find(text, b"receipt").map(Bytes::copy_from_slice),
    }
}

/// Skips what may stand between frames: line ends, which are heart-beats too, and NUL. Says whether a
/// frame begins.
fn skip_between(input: &mut BytesMut) -> Result<bool, Fault> {
    let mut at = 0;
    let begins = loop {
        match &input[at..] {
            [b'\n' | 0, ..] => at += 1,
            [b'\r', b'\n', ..] => at += 2,
            [b'\r', _, ..] => return Err(Fault::BareCarriageReturn),
            [] | [b'\r'] => break false,
            _ => break true,
        }
    };
    input.advance(at);
    Ok(begins)
}

impl Scan {
    /// Where the last header's line ends and where the body begins. Each octet is looked at once.
    fn find_end(&mut self, input: &[u8], limits: &Limits, is_logged_in: bool) -> Result<Option<(usize, usize)>, Fault> {
        loop {
            if self.seen == self.line {
                // At the beginning of a line: is it the blank one?
                match &input[self.line..] {
                    [b'\n', ..] if self.lines > 0 => return Ok(Some((self.line, self.line + 1))),
                    [b'\r', b'\n', ..] if self.lines > 0 => return Ok(Some((self.line, self.line + 2))),
                    [0, ..] => return Err(Fault::NoBlankLine),
                    [] | [b'\r'] => return Ok(None),
                    _ => {}
                }
            }
            // In the command NUL is an end that comes too early; in a header it is an octet like others.
            let found = if self.lines == 0 {
                memchr2(b'\n', 0, &input[self.seen..])
            } else {
                memchr(b'\n', &input[self.seen..])
            };
            let end = found.map_or(input.len(), |at| self.seen + at);
            self.check(end, limits, is_logged_in)?;
            let line = &input[self.line..end];
            if found.is_none() {
                // Not beyond the last octet: it may be the CR of a line end.
                self.seen = end;
                return Ok(None);
            }
            if input[end] == 0 {
                return Err(Fault::NoBlankLine);
            }
            let text = line.strip_suffix(b"\r").unwrap_or(line);
            if memchr(b'\r', text).is_some() {
                return Err(Fault::BareCarriageReturn);
            }
            self.lines += 1;
            if self.lines > limits.headers + 1 {
                return Err(Fault::TooManyHeaders(limits.headers));
            }
            self.line = end + 1;
            self.seen = self.line;
        }
    }

    fn check(&self, end: usize, limits: &Limits, is_logged_in: bool) -> Result<(), Fault> {
        let line = end - self.line;
        if self.lines == 0 && line > limits.command + 1 {
            return Err(Fault::CommandTooLong(limits.command));
        }
        if !is_logged_in && end > limits.before_login {
            return Err(Fault::FrameTooLarge(limits.before_login));
        }
        if self.lines > 0 && line > limits.header_line + 1 {
            return Err(Fault::HeaderTooLong(limits.header_line));
        }
        if end > limits.head {
            return Err(Fault::HeadersTooLong(limits.head));
        }
        Ok(())
    }
}

impl Waiting {
    /// Where the NUL behind the body lies. Each octet is looked at once.
    fn find_end(&mut self, input: &[u8], limits: &Limits) -> Result<Option<usize>, Fault> {
        // A body that nobody wants has to be skipped, so it may not be longer than headers may.
        let has_body = self.head.command.has_body();
        let body_max = if has_body { limits.body } else { limits.head };
        match &mut self.end {
            BodyEnd::Length(length) => match input.get(self.start + *length) {
                None => Ok(None),
                Some(0) => Ok(Some(self.start + *length)),
                Some(_) => Err(Fault::BodyNotTerminated),
            },
            BodyEnd::Nul { seen } => {
                let from = self.start + *seen;
                let found = memchr(0, &input[from..]).map(|at| from + at);
                let end = found.unwrap_or(input.len());
                if end - self.start > body_max {
                    return Err(Fault::BodyTooLarge(body_max));
                }
                *seen = end - self.start;
                Ok(found)
            }
        }
    }
}
