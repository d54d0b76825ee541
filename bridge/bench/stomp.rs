//! The load's side of STOMP 1.2: raw frames.

use super::options::Options;
use super::protocol::{Answers, Consume, Protocol, Sink, Told};
use super::template::{FILLER, Id, QUEUE_DIGITS, Template, queue_digits};
use super::wire::{Fault, Talk, resolve};

/// Digits of a receipt's number.
const RECEIPT_DIGITS: usize = 12;

pub struct Stomp {
    options: Options,
}

impl Stomp {
    pub fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
        }
    }

    fn destination(&self, queue: u32) -> String {
        let kind = if self.options.fan_out { "topic" } else { "queue" };
        format!(
            "/{kind}/rocketbridge-bench-{}-{}",
            self.options.name,
            queue_digits(queue)
        )
    }

    /// Queues that go when their last consumer goes. All who name the queue have to say the same.
    fn queue_headers(&self) -> &'static str {
        if self.options.fan_out {
            ""
        } else {
            "durable:true\nauto-delete:true\n"
        }
    }

    fn connect(&self) -> Result<Talk, Fault> {
        let target = &self.options.target;
        let mut talk = Talk::connect(resolve(&target.address)?)?;
        let host = if target.path.is_empty() { "/" } else { &target.path };
        let (user, password) = match &*target.user {
            "" => ("guest", "guest"),
            user => (user, &*target.password),
        };
        // CONNECT alone has no escapes.
        let connect = format!(
            "CONNECT\naccept-version:1.2\nhost:{host}\nlogin:{user}\npasscode:{password}\nheart-beat:0,0\n\n\0"
        );
        talk.write(connect.as_bytes())?;
        let bytes = next_frame(&mut talk)?;
        let frame = Frame::first(&bytes)?.expect("it is whole");
        match frame.command {
            b"CONNECTED" => Ok(talk),
            b"ERROR" => Err(Fault::Refused {
                what: "the connection".into(),
                why: frame.reason(),
            }),
            _ => Err(unexpected("something else than CONNECTED")),
        }
    }
}

impl Protocol for Stomp {
    fn prepare(&mut self) -> Result<(), Fault> {
        // Destinations need no declaration; but a broker that is not there is better missed now.
        self.connect().map(drop)
    }

    fn template(&self) -> Template {
        let options = &self.options;
        let mut text = format!("SEND\ndestination:{}\n", self.destination(0));
        let queue_at = text.len() - 1 - QUEUE_DIGITS;
        text.push_str(self.queue_headers());
        if options.persistent {
            text.push_str("persistent:true\n");
        }
        let mut ids = Vec::new();
        if options.confirm > 0 {
            text.push_str("receipt:");
            ids.push(Id::Decimal {
                at: text.len(),
                width: RECEIPT_DIGITS,
                first: 0,
                modulo: u64::MAX,
            });
            text.push_str(&format!("{:0RECEIPT_DIGITS$}\n", 0));
        }
        text.push_str(&format!("content-length:{}\n\n", options.size));
        let mut bytes = text.into_bytes();
        let body_at = bytes.len();
        bytes.resize(body_at + options.size, FILLER);
        bytes.push(0);
        Template {
            bytes,
            body_at,
            queue_at: Some(queue_at),
            ids,
        }
    }

    fn publisher(&self, _index: u32) -> Result<(Talk, Box<dyn Answers>), Fault> {
        Ok((self.connect()?, Box::new(Receipts)))
    }

    fn consumer(&self, index: u32) -> Result<(Talk, Box<dyn Consume>), Fault> {
        let options = &self.options;
        let mut talk = self.connect()?;
        let ack = match (options.auto_ack, options.ack_batch) {
            (true, _) => "auto",
            (false, 1) => "client-individual",
            (false, _) => "client",
        };
        let stride = if options.fan_out {
            1
        } else {
            options.queues.min(options.consumers)
        };
        let mut begin = String::new();
        for queue in (index % stride..options.queues).step_by(stride as usize) {
            let destination = self.destination(queue);
            begin.push_str(&format!(
                "SUBSCRIBE\nid:{queue}\ndestination:{destination}\nack:{ack}\n"
            ));
            begin.push_str(self.queue_headers());
            if options.prefetch > 0 {
                begin.push_str(&format!("prefetch-count:{}\n", options.prefetch));
            }
            begin.push_str("\n\0");
        }
        if options.fan_out {
            // Who comes later gets nothing: nobody may publish before all have subscribed.
            begin.pop();
            begin.pop();
            begin.push_str("receipt:subscribed\n\n\0");
            talk.write(begin.as_bytes())?;
            begin.clear();
            loop {
                let bytes = next_frame(&mut talk)?;
                let frame = Frame::first(&bytes)?.expect("it is whole");
                match frame.command {
                    b"RECEIPT" => break,
                    _ => frame.refused()?,
                }
            }
        }
        Ok((
            talk,
            Box::new(Messages {
                begin,
                ack_every: if options.auto_ack { 0 } else { options.ack_batch },
                open: Vec::new(),
            }),
        ))
    }

    fn idler(&self, _index: u32) -> Result<Talk, Fault> {
        self.connect()
    }

    fn goodbye(&self) -> Vec<u8> {
        b"DISCONNECT\n\n\0".to_vec()
    }

    fn clean_up(&self) -> Result<Option<String>, Fault> {
        if self.options.fan_out || self.options.consumers > 0 {
            return Ok(None);
        }
        // A queue that nobody consumed is there still: a consumer that goes takes it along.
        let mut talk = self.connect()?;
        for queue in 0..self.options.queues {
            let subscribe = format!(
                "SUBSCRIBE\nid:{queue}\ndestination:{}\nack:client\nprefetch-count:1\n{}\n\0UNSUBSCRIBE\nid:{queue}\n\n\0",
                self.destination(queue),
                self.queue_headers()
            );
            talk.write(subscribe.as_bytes())?;
        }
        talk.write(b"DISCONNECT\nreceipt:gone\n\n\0")?;
        loop {
            let bytes = next_frame(&mut talk)?;
            let frame = Frame::first(&bytes)?.expect("it is whole");
            match frame.command {
                b"RECEIPT" => return Ok(None),
                _ => frame.refused()?,
            }
        }
    }
}

fn unexpected(what: &str) -> Fault {
    Fault::Unexpected {
        protocol: "STOMP",
        what: what.to_owned(),
    }
}

/// What a publisher is told.
struct Receipts;

impl Answers for Receipts {
    fn read(&mut self, input: &[u8], told: &mut dyn Told, _out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(frame) = Frame::first(&input[at..])? {
            at += frame.length;
            if frame.command != b"RECEIPT" {
                frame.refused()?;
                continue;
            }
            let number = frame.header(b"receipt-id").and_then(decimal);
            told.confirm(number.ok_or_else(|| unexpected("a RECEIPT for something else"))?);
        }
        Ok(at)
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What a consumer is sent.
struct Messages {
    begin: String,
    /// 0: never.
    ack_every: u32,
    /// Of each subscription: how many are not acknowledged, and the last one's `ack` header.
    open: Vec<(u64, u32, Vec<u8>)>,
}

impl Consume for Messages {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.begin.as_bytes());
    }

    fn read(&mut self, input: &[u8], sink: &mut Sink<'_>, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(frame) = Frame::first(&input[at..])? {
            at += frame.length;
            if frame.command != b"MESSAGE" {
                frame.refused()?;
                continue;
            }
            if self.ack_every > 0 {
                let ack = frame
                    .header(b"ack")
                    .ok_or_else(|| unexpected("a MESSAGE without ack header"))?;
                if self.ack_every == 1 {
                    append_ack(out, ack);
                } else {
                    let subscription = frame.header(b"subscription").and_then(decimal).unwrap_or(0);
                    self.note(subscription, ack, out);
                }
            }
            sink.message(frame.body);
        }
        Ok(at)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        for (_, count, ack) in &mut self.open {
            if std::mem::take(count) > 0 {
                append_ack(out, ack);
            }
        }
    }
}

impl Messages {
    /// An acknowledgement covers all earlier ones of its subscription.
    fn note(&mut self, subscription: u64, ack: &[u8], out: &mut Vec<u8>) {
        let index = match self.open.binary_search_by_key(&subscription, |(id, ..)| *id) {
            Ok(index) => index,
            Err(index) => {
                self.open.insert(index, (subscription, 0, Vec::new()));
                index
            }
        };
        let (_, count, last) = &mut self.open[index];
        *count += 1;
        if *count == self.ack_every {
            *count = 0;
            append_ack(out, ack);
        } else {
            last.clear();
            last.extend_from_slice(ack);
        }
    }
}

/// The header's value goes back as it came, escapes and all.
fn append_ack(out: &mut Vec<u8>, ack: &[u8]) {
    out.extend_from_slice(b"ACK\nid:");
    out.extend_from_slice(ack);
    out.extend_from_slice(b"\n\n\0");
}

/// A frame as it lies in the input.
struct Frame<'a> {
    command: &'a [u8],
    headers: &'a [u8],
    body: &'a [u8],
    /// Of all of it, with the line ends before.
    length: usize,
}

impl<'a> Frame<'a> {
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, Fault> {
        let start = bytes.iter().position(|byte| !matches!(byte, b'\n' | b'\r'));
        let Some(start) = start else {
            return Ok(None);
        };
        let rest = &bytes[start..];
        let Some(command_end) = memchr::memchr(b'\n', rest) else {
            if rest.len() > 64 {
                return Err(unexpected("a line that is no command"));
            }
            return Ok(None);
        };
        let command = rest[..command_end].trim_ascii_end();
        let headers_at = command_end + 1;
        let mut at = headers_at;
        let mut content_length = None;
        // Headers end with an empty line.
        loop {
            let Some(end) = memchr::memchr(b'\n', &rest[at..]) else {
                return Ok(None);
            };
            let line = rest[at..at + end].trim_ascii_end();
            at += end + 1;
            if line.is_empty() {
                break;
            }
            if content_length.is_none() && line.starts_with(b"content-length:") {
                content_length = Some(decimal(&line[15..]).ok_or_else(|| unexpected("a content-length of no number"))?);
            }
        }
        let headers = &rest[headers_at..at];
        let body_end = match content_length {
            Some(length) => at + length as usize,
            None => match memchr::memchr(0, &rest[at..]) {
                Some(end) => at + end,
                None => return Ok(None),
            },
        };
        match rest.get(body_end) {
            None => return Ok(None),
            Some(0) => {}
            Some(_) => return Err(unexpected("a frame without its end")),
        }
        Ok(Some(Self {
            command,
            headers,
            body: &rest[at..body_end],
            length: start + body_end + 1,
        }))
    }

    /// The value of the first header of that name, not unescaped.
    fn header(&self, name: &[u8]) -> Option<&'a [u8]> {
        let mut lines = self.headers.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(b":"))?;
        Some(value.strip_suffix(b"\r").unwrap_or(value))
    }

    fn reason(&self) -> String {
        let message = self.header(b"message").unwrap_or(b"ERROR");
        let text = format!(
            "{}: {}",
            String::from_utf8_lossy(message),
            String::from_utf8_lossy(self.body)
        );
        text.trim_end_matches([':', ' ', '\n', '\r']).to_owned()
    }

    /// An ERROR ends the run.
    fn refused(&self) -> Result<(), Fault> {
        match self.command {
            b"ERROR" => Err(Fault::Ended(self.reason())),
            _ => Ok(()),
        }
    }
}

fn next_frame(talk: &mut Talk) -> Result<Vec<u8>, Fault> {
    talk.frame(|input| Ok(Frame::first(input)?.map(|frame| frame.length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_whole_or_waited_for() {
        let bytes = b"\n\r\nMESSAGE\r\nack:a\\c1\r\ncontent-length:3\n\nx\0y\0\nRECEIPT\nreceipt-id:07\n\n\0";
        let first_end = bytes.len() - 25;
        for cut in 0..bytes.len() {
            let frame = Frame::first(&bytes[..cut]).unwrap();
            assert_eq!(frame.is_some(), cut >= first_end, "{cut}");
        }
        let frame = Frame::first(bytes).unwrap().unwrap();
        assert_eq!(
            (frame.command, frame.body, frame.length),
            (&b"MESSAGE"[..], &b"x\0y"[..], first_end)
        );
        assert_eq!(frame.header(b"ack"), Some(&b"a\\c1"[..]));
        let receipt = Frame::first(&bytes[frame.length..]).unwrap().unwrap();
        assert_eq!(receipt.header(b"receipt-id").and_then(decimal), Some(7));
    }
}
