//! The exchanges that every AMQP broker has.

use bytes::Bytes;
use rocketbridge_core::address::encode_name;
use rocketbridge_core::request::{Exchange, ExchangeKind, HashOn};

/// `amq.direct`, `amq.fanout`, `amq.headers` and `amq.match`, for the engine to make at its first start.
/// The default exchange and `amq.topic` are not among them: they are the address space itself.
pub fn predeclared_exchanges() -> Vec<Exchange> {
    let exchange = |name: &'static str, kind| Exchange {
        name: encode_name(&Bytes::from_static(name.as_bytes())),
        kind,
        durable: true,
        auto_delete: false,
        internal: false,
        alternate: None,
        hash_on: HashOn::Key,
        dedup: None,
        arguments: Bytes::new(),
    };
    vec![
        exchange("amq.direct", ExchangeKind::Direct),
        exchange("amq.fanout", ExchangeKind::Fanout),
        exchange("amq.headers", ExchangeKind::Headers),
        exchange("amq.match", ExchangeKind::Headers),
    ]
}
