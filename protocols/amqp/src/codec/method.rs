//! The one table of methods: class, number, name and fields of every method that AMQP 0-9-1 and
//! RabbitMQ's extensions know.

use bytes::{BufMut, BytesMut};

use super::{FRAME_END, FRAME_METHOD, Field, FieldError, FieldReader, FieldWriter, LongStr, ShortStr, Table};

/// A method's class and number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MethodId {
    /// The class.
    pub class: u16,
    /// The number in its class.
    pub method: u16,
}

impl MethodId {
    /// Stands in `close` methods when no method is to blame.
    pub const NONE: Self = Self { class: 0, method: 0 };
}

/// Why a method frame's payload is no method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// Not even class and number are there.
    #[error("a method frame of less than 4 octets")]
    NoId,
    /// No method of that class and number.
    #[error("unknown method {},{}", .0.class, .0.method)]
    Unknown(MethodId),
    /// The fields are malformed.
    #[error("method {},{}: {error}", .id.class, .id.method)]
    Fields {
        /// Whose fields.
        id: MethodId,
        /// What is wrong with them.
        error: FieldError,
    },
}

macro_rules! methods {
    ($( $class:literal, $number:literal, $name:literal, $variant:ident { $($field:ident: $kind:ty),* $(,)? } )*) => {
        /// A method with its fields; strings and tables are views of the frame.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Method<'a> {
            $( #[doc = concat!("`", $name, "`")] $variant { $($field: $kind),* }, )*
        }

        impl<'a> Method<'a> {
            /// Every method: class and number, name.
            pub const ALL: &'static [(MethodId, &'static str)] =
                &[$( (MethodId { class: $class, method: $number }, $name) ),*];

            /// Class and number.
            pub fn id(&self) -> MethodId {
                match self {
                    $( Self::$variant { .. } => MethodId { class: $class, method: $number }, )*
                }
            }

            /// The specification's name.
            pub fn name(&self) -> &'static str {
                match self {
                    $( Self::$variant { .. } => $name, )*
                }
            }

            fn read(id: MethodId, reader: &mut FieldReader<'a>) -> Result<Option<Self>, FieldError> {
                Ok(Some(match (id.class, id.method) {
                    $( ($class, $number) => Self::$variant {
                        $( $field: <$kind as Field<'a>>::read(reader)? ),*
                    }, )*
                    _ => return Ok(None),
                }))
            }

            fn write(&self, writer: &mut FieldWriter<'_>) {
                let _ = &writer;
                match self {
                    $( Self::$variant { $($field),* } => { $( Field::write($field, writer); )* } )*
                }
            }
        }
    };
}

methods! {
    10, 10, "connection.start", ConnectionStart {
        version_major: u8, version_minor: u8, server_properties: Table<'a>, mechanisms: LongStr<'a>, locales: LongStr<'a>,
    }
    10, 11, "connection.start-ok", ConnectionStartOk {
        client_properties: Table<'a>, mechanism: ShortStr<'a>, response: LongStr<'a>, locale: ShortStr<'a>,
    }
    10, 20, "connection.secure", ConnectionSecure { challenge: LongStr<'a> }
    10, 21, "connection.secure-ok", ConnectionSecureOk { response: LongStr<'a> }
    10, 30, "connection.tune", ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10, 31, "connection.tune-ok", ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10, 40, "connection.open", ConnectionOpen { virtual_host: ShortStr<'a>, capabilities: ShortStr<'a>, insist: bool }
    10, 41, "connection.open-ok", ConnectionOpenOk { known_hosts: ShortStr<'a> }
    10, 50, "connection.close", ConnectionClose {
        reply_code: u16, reply_text: ShortStr<'a>, class_id: u16, method_id: u16,
    }
    10, 51, "connection.close-ok", ConnectionCloseOk {}
    10, 60, "connection.blocked", ConnectionBlocked { reason: ShortStr<'a> }
    10, 61, "connection.unblocked", ConnectionUnblocked {}
    10, 70, "connection.update-secret", ConnectionUpdateSecret { new_secret: LongStr<'a>, reason: ShortStr<'a> }
    10, 71, "connection.update-secret-ok", ConnectionUpdateSecretOk {}

    20, 10, "channel.open", ChannelOpen { out_of_band: ShortStr<'a> }
    20, 11, "channel.open-ok", ChannelOpenOk { channel_id: LongStr<'a> }
    20, 20, "channel.flow", ChannelFlow { active: bool }
    20, 21, "channel.flow-ok", ChannelFlowOk { active: bool }
    20, 40, "channel.close", ChannelClose {
        reply_code: u16, reply_text: ShortStr<'a>, class_id: u16, method_id: u16,
    }
    20, 41, "channel.close-ok", ChannelCloseOk {}

    30, 10, "access.request", AccessRequest {
        realm: ShortStr<'a>, exclusive: bool, passive: bool, active: bool, write: bool, read: bool,
    }
    30, 11, "access.request-ok", AccessRequestOk { ticket: u16 }

    40, 10, "exchange.declare", ExchangeDeclare {
        ticket: u16, exchange: ShortStr<'a>, kind: ShortStr<'a>, passive: bool, durable: bool, auto_delete: bool,
        internal: bool, no_wait: bool, arguments: Table<'a>,
    }
    40, 11, "exchange.declare-ok", ExchangeDeclareOk {}
    40, 20, "exchange.delete", ExchangeDelete { ticket: u16, exchange: ShortStr<'a>, if_unused: bool, no_wait: bool }
    40, 21, "exchange.delete-ok", ExchangeDeleteOk {}
    40, 30, "exchange.bind", ExchangeBind {
        ticket: u16, destination: ShortStr<'a>, source: ShortStr<'a>, routing_key: ShortStr<'a>, no_wait: bool,
        arguments: Table<'a>,
    }
    40, 31, "exchange.bind-ok", ExchangeBindOk {}
    40, 40, "exchange.unbind", ExchangeUnbind {
        ticket: u16, destination: ShortStr<'a>, source: ShortStr<'a>, routing_key: ShortStr<'a>, no_wait: bool,
        arguments: Table<'a>,
    }
    40, 51, "exchange.unbind-ok", ExchangeUnbindOk {}

    50, 10, "queue.declare", QueueDeclare {
        ticket: u16, queue: ShortStr<'a>, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
        no_wait: bool, arguments: Table<'a>,
    }
    50, 11, "queue.declare-ok", QueueDeclareOk { queue: ShortStr<'a>, message_count: u32, consumer_count: u32 }
    50, 20, "queue.bind", QueueBind {
        ticket: u16, queue: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, no_wait: bool,
        arguments: Table<'a>,
    }
    50, 21, "queue.bind-ok", QueueBindOk {}
    50, 30, "queue.purge", QueuePurge { ticket: u16, queue: ShortStr<'a>, no_wait: bool }
    50, 31, "queue.purge-ok", QueuePurgeOk { message_count: u32 }
    50, 40, "queue.delete", QueueDelete {
        ticket: u16, queue: ShortStr<'a>, if_unused: bool, if_empty: bool, no_wait: bool,
    }
    50, 41, "queue.delete-ok", QueueDeleteOk { message_count: u32 }
    50, 50, "queue.unbind", QueueUnbind {
        ticket: u16, queue: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, arguments: Table<'a>,
    }
    50, 51, "queue.unbind-ok", QueueUnbindOk {}

    60, 10, "basic.qos", BasicQos { prefetch_size: u32, prefetch_count: u16, global: bool }
    60, 11, "basic.qos-ok", BasicQosOk {}
    60, 20, "basic.consume", BasicConsume {
        ticket: u16, queue: ShortStr<'a>, consumer_tag: ShortStr<'a>, no_local: bool, no_ack: bool, exclusive: bool,
        no_wait: bool, arguments: Table<'a>,
    }
    60, 21, "basic.consume-ok", BasicConsumeOk { consumer_tag: ShortStr<'a> }
    60, 30, "basic.cancel", BasicCancel { consumer_tag: ShortStr<'a>, no_wait: bool }
    60, 31, "basic.cancel-ok", BasicCancelOk { consumer_tag: ShortStr<'a> }
    60, 40, "basic.publish", BasicPublish {
        ticket: u16, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, mandatory: bool, immediate: bool,
    }
    60, 50, "basic.return", BasicReturn {
        reply_code: u16, reply_text: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>,
    }
    60, 60, "basic.deliver", BasicDeliver {
        consumer_tag: ShortStr<'a>, delivery_tag: u64, redelivered: bool, exchange: ShortStr<'a>,
        routing_key: ShortStr<'a>,
    }
    60, 70, "basic.get", BasicGet { ticket: u16, queue: ShortStr<'a>, no_ack: bool }
    60, 71, "basic.get-ok", BasicGetOk {
        delivery_tag: u64, redelivered: bool, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, message_count: u32,
    }
    60, 72, "basic.get-empty", BasicGetEmpty { cluster_id: ShortStr<'a> }
    60, 80, "basic.ack", BasicAck { delivery_tag: u64, multiple: bool }
    60, 90, "basic.reject", BasicReject { delivery_tag: u64, requeue: bool }
    60, 100, "basic.recover-async", BasicRecoverAsync { requeue: bool }
    60, 110, "basic.recover", BasicRecover { requeue: bool }
    60, 111, "basic.recover-ok", BasicRecoverOk {}
    60, 120, "basic.nack", BasicNack { delivery_tag: u64, multiple: bool, requeue: bool }

    85, 10, "confirm.select", ConfirmSelect { no_wait: bool }
    85, 11, "confirm.select-ok", ConfirmSelectOk {}

    90, 10, "tx.select", TxSelect {}
    90, 11, "tx.select-ok", TxSelectOk {}
    90, 20, "tx.commit", TxCommit {}
    90, 21, "tx.commit-ok", TxCommitOk {}
    90, 30, "tx.rollback", TxRollback {}
    90, 31, "tx.rollback-ok", TxRollbackOk {}
}

impl<'a> Method<'a> {
    /// Reads a method frame's payload.
    ///
    /// # Errors
    /// When there is no such method, or its fields do not fill the payload exactly.
    pub fn decode(payload: &'a [u8]) -> Result<Self, MethodError> {
        let [class_high, class_low, method_high, method_low, fields @ ..] = payload else {
            return Err(MethodError::NoId);
        };
        let id = MethodId {
            class: u16::from_be_bytes([*class_high, *class_low]),
            method: u16::from_be_bytes([*method_high, *method_low]),
        };
        let mut reader = FieldReader::new(fields);
        let method = Self::read(id, &mut reader)
            .map_err(|error| MethodError::Fields { id, error })?
            .ok_or(MethodError::Unknown(id))?;
        reader.finish().map_err(|error| MethodError::Fields { id, error })?;
        Ok(method)
    }

    /// Appends a whole method frame.
    pub fn encode(&self, channel: u16, out: &mut BytesMut) {
        super::put_frame_header(out, FRAME_METHOD, channel, 0);
        let start = out.len();
        self.encode_payload(out);
        let size = (out.len() - start) as u32;
        out[start - 4..start].copy_from_slice(&size.to_be_bytes());
        out.put_u8(FRAME_END);
    }

    /// Appends a method frame's payload.
    pub fn encode_payload(&self, out: &mut BytesMut) {
        let id = self.id();
        out.put_u16(id.class);
        out.put_u16(id.method);
        self.write(&mut FieldWriter::new(out));
    }
}
