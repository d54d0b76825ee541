//! Content: publishing what comes in, and writing what goes out.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::boundary::{Delivery, Publish};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Refusal, Reply, Request};
use rocketbridge_session::Outbox;

use super::channel::{Backlog, Channel, Content, Headed, Publishing};
use super::shared::{Context, What};
use crate::codec::content::{CLASS_BASIC, CONTENT_HEADER_SIZE};
use crate::codec::{
    ContentHeader, FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD, FRAME_OVERHEAD, put_frame_header, put_short_str,
};
use crate::mapping::inbound::{meaning, with_reply_queue};
use crate::mapping::outbound::{Envelope, envelope, origin};
use crate::mapping::{FORMAT, REPLY_TOPIC, Route, TOPIC_EXCHANGE, target};
use crate::reply_code::{ChannelError, ConnectionError, Failure, ReplyCode, Resource, Snippet};

/// Largest body that RabbitMQ lets anybody announce; beyond it the connection ends.
const BODY_SIZE_MAX: u64 = 512 << 20;

impl Context<'_> {
    /// `basic.publish`: the content follows.
    pub fn basic_publish(
        &mut self,
        exchange: &[u8],
        routing_key: Bytes,
        mandatory: bool,
        immediate: bool,
    ) -> Result<(), Failure> {
        if immediate {
            return Err(Failure::not_implemented("immediate=true"));
        }
        let (exchange, routing_key) = match routing_key.strip_prefix(REPLY_TOPIC) {
            Some(key) if exchange.is_empty() => (TOPIC_EXCHANGE, routing_key.slice_ref(key)),
            _ => (exchange, routing_key),
        };
        self.channel.content = Content::Header(Publishing {
            exchange: self.shared.exchange(exchange),
            routing_key,
            mandatory,
        });
        Ok(())
    }

    /// A content header frame.
    pub fn content_header(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let publishing = match std::mem::take(&mut self.channel.content) {
            Content::Header(publishing) => publishing,
            other => return Err(other.unexpected().into()),
        };
        let header = ContentHeader::decode(payload).map_err(|_| ConnectionError::UnknownFrame {
            kind: FRAME_HEADER,
            snippet: Snippet::of(payload),
        })?;
        if header.weight != 0 {
            return Err(ConnectionError::ExpectedHeader.into());
        }
        if header.class != CLASS_BASIC {
            return Err(ConnectionError::OtherHeaderClass(header.class).into());
        }
        if header.body_size > BODY_SIZE_MAX {
            return Err(ConnectionError::BodyTooLarge {
                size: header.body_size,
                max: BODY_SIZE_MAX,
            }
            .into());
        }
        if header.body_size > self.config.message_size_max {
            return Err(ChannelError::MessageTooLarge {
                size: header.body_size,
                max: self.config.message_size_max,
            }
            .into());
        }
        let message = self.headed(publishing, header.properties)?;
        if header.body_size == 0 {
            self.publish(message, Bytes::new());
        } else {
            self.channel.content = Content::Body {
                message,
                body_size: header.body_size,
                body: BytesMut::new(),
            };
        }
        Ok(())
    }

    fn headed(&mut self, publishing: Publishing, properties: &[u8]) -> Result<Headed, Failure> {
        let Publishing {
            exchange,
            routing_key,
            mandatory,
        } = publishing;
        let reply = self.channel.reply.as_ref();
        let replaced = reply.and_then(|(_, queue)| with_reply_queue(properties, queue));
        let properties = replaced.as_deref().unwrap_or(properties);
        let mut target = target(&exchange, &routing_key);
        let meaning = meaning(
            properties,
            &self.shared.user,
            target.cut_from.take().as_ref(),
            &mut self.shared.attributes,
        )?;
        Ok(Headed {
            origin: origin(&exchange.name, &routing_key, properties, &mut self.shared.arena),
            exchange,
            target,
            attributes: meaning.attributes,
            persistent: meaning.persistent,
            mandatory,
        })
    }

    /// A body frame. `keep` gives the payload as shared bytes.
    pub fn content_body(&mut self, payload: &[u8], keep: impl FnOnce() -> Bytes) -> Result<(), Failure> {
        let (message, body_size, mut body) = match std::mem::take(&mut self.channel.content) {
            Content::Body {
                message,
                body_size,
                body,
            } => (message, body_size, body),
            other => return Err(other.unexpected().into()),
        };
        let missing = body_size - body.len() as u64;
        match (payload.len() as u64).cmp(&missing) {
            std::cmp::Ordering::Greater => return Err(ConnectionError::BodyOverrun.into()),
            std::cmp::Ordering::Equal if body.is_empty() => self.publish(message, keep()),
            std::cmp::Ordering::Equal => {
                body.put_slice(payload);
                self.publish(message, body.freeze());
            }
            std::cmp::Ordering::Less if body.is_empty() => {
                self.channel.content = Content::body(message, body_size);
                if let Content::Body { body, .. } = &mut self.channel.content {
                    body.put_slice(payload);
                }
            }
            std::cmp::Ordering::Less => {
                body.put_slice(payload);
                self.channel.content = Content::Body {
                    message,
                    body_size,
                    body,
                };
            }
        }
        Ok(())
    }

    /// Publishes a message that is complete. To an exchange that this connection has not met yet only when
    /// it is there: if not, the channel ends, and nothing that follows on it counts.
    fn publish(&mut self, mut message: Headed, body: Bytes) {
        if let Route::Exchange(name) = &message.exchange.route
            && !self.shared.is_met(&message.exchange)
        {
            let name = name.clone();
            message.target.key = Bytes::copy_from_slice(&message.target.key);
            let body = Bytes::copy_from_slice(&body);
            self.request(
                What::FindToPublish(Box::new((message, body))),
                Request::FindExchange { name },
            );
            self.channel.backlog = Some(Backlog::default());
        } else {
            self.submit(message, body);
        }
    }

    /// The exchange that the channel waits for is known now.
    pub fn exchange_met(
        &mut self,
        message: Headed,
        body: Bytes,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        match result {
            Ok(Reply::Exchange(exchange)) => {
                self.shared.remember_kind(&message.exchange, exchange.kind);
                self.shared.meet(&message.exchange);
                self.submit(message, body);
                Ok(())
            }
            other => Err(self.refused(&Resource::exchange(&message.exchange.name), other)),
        }
    }

    fn submit(&mut self, message: Headed, body: Bytes) {
        let publish = Publish {
            entry: message.target.entry,
            topic: message.target.topic,
            key: message.target.key,
            body,
            attributes: message.attributes,
            format: FORMAT,
            origin: message.origin,
            persistent: message.persistent,
            waits: true,
            mandatory: message.mandatory,
            ..Publish::default()
        };
        if self.channel.tx.is_some() {
            return self.hold(message.exchange, publish);
        }
        let tag = self.channel.confirms.as_mut().map_or(0, |confirms| confirms.open());
        let token = self.shared.publishes.push(self.channel.key, tag, &message.exchange);
        self.out.publish(Publish { token, ..publish });
    }

    /// `basic.get-ok`
    pub fn deliver_got(&mut self, delivery: &Delivery, remaining: u32) {
        let tag = lease(self.channel, delivery);
        let number = self.channel.key.number;
        let envelope = envelope(&delivery.message, delivery.attempts, &mut self.shared.scratch);
        let out = self.out.bytes();
        put_frame_header(out, FRAME_METHOD, number, 4 + 8 + 1 + envelope.address.len() + 4);
        out.put_slice(&[0, 60, 0, 71]);
        out.put_u64(tag);
        out.put_u8(delivery.redelivered.into());
        out.put_slice(envelope.address);
        out.put_u32(remaining);
        out.put_u8(FRAME_END);
        put_content(number, self.shared.frame_max, envelope, &delivery.message, self.out);
    }

    /// `basic.return` of a message that nobody was there for.
    pub fn give_back(&mut self, message: &Message) {
        let number = self.channel.key.number;
        let envelope = envelope(message, 0, &mut self.shared.scratch);
        let text = ReplyCode::NoRoute.name().as_bytes();
        let out = self.out.bytes();
        put_frame_header(
            out,
            FRAME_METHOD,
            number,
            4 + 2 + 1 + text.len() + envelope.address.len(),
        );
        out.put_slice(&[0, 60, 0, 50]);
        out.put_u16(ReplyCode::NoRoute as u16);
        put_short_str(out, text);
        out.put_slice(envelope.address);
        out.put_u8(FRAME_END);
        put_content(number, self.shared.frame_max, envelope, message, self.out);
    }
}

/// `basic.deliver`
pub fn deliver(
    channel: &mut Channel,
    consumer_tag: &[u8],
    delivery: &Delivery,
    frame_max: u32,
    scratch: &mut BytesMut,
    out: &mut Outbox,
) {
    let tag = lease(channel, delivery);
    let number = channel.key.number;
    let envelope = envelope(&delivery.message, delivery.attempts, scratch);
    let bytes = out.bytes();
    let size = 4 + 1 + consumer_tag.len() + 8 + 1 + envelope.address.len();
    bytes.reserve(size + envelope.properties.len() + 3 * FRAME_OVERHEAD + CONTENT_HEADER_SIZE);
    put_frame_header(bytes, FRAME_METHOD, number, size);
    bytes.put_slice(&[0, 60, 0, 60]);
    put_short_str(bytes, consumer_tag);
    bytes.put_u64(tag);
    bytes.put_u8(delivery.redelivered.into());
    bytes.put_slice(envelope.address);
    bytes.put_u8(FRAME_END);
    put_content(number, frame_max, envelope, &delivery.message, out);
}

/// The delivery's tag; remembers it when it must be settled.
fn lease(channel: &mut Channel, delivery: &Delivery) -> u64 {
    let tag = channel.next_tag();
    if delivery.leased {
        channel.unacked.push(tag, delivery.subscription, delivery.sequence);
    }
    tag
}

/// Content header and body frames.
fn put_content(channel: u16, frame_max: u32, envelope: Envelope<'_>, message: &Message, out: &mut Outbox) {
    let payload = message.payload();
    let body = &payload[..];
    let bytes = out.bytes();
    put_frame_header(
        bytes,
        FRAME_HEADER,
        channel,
        CONTENT_HEADER_SIZE + envelope.properties.len(),
    );
    let header = ContentHeader {
        class: CLASS_BASIC,
        weight: 0,
        body_size: body.len() as u64,
        properties: envelope.properties,
    };
    header.encode(bytes);
    bytes.put_u8(FRAME_END);
    let chunk_max = (frame_max as usize).saturating_sub(FRAME_OVERHEAD).max(1);
    if body.len() <= chunk_max {
        if !body.is_empty() {
            put_frame_header(bytes, FRAME_BODY, channel, body.len());
            out.body(body, || payload.share());
            out.bytes().put_u8(FRAME_END);
        }
        return;
    }
    let shared = payload.share();
    for (at, chunk) in body.chunks(chunk_max).enumerate() {
        put_frame_header(out.bytes(), FRAME_BODY, channel, chunk.len());
        let start = at * chunk_max;
        out.body(chunk, || shared.slice(start..start + chunk.len()));
        out.bytes().put_u8(FRAME_END);
    }
}
