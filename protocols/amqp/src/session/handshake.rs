//! The beginning of a connection: mechanisms and limits.

use bytes::Bytes;
use rocketbridge_core::request::Credentials;

use crate::codec::{LongStr, Method, Table, TableWriter, Value};
use crate::config::{Config, FRAME_MAX_FLOOR};
use crate::reply_code::ConnectionError;

/// What a server may do beyond AMQP 0-9-1, as RabbitMQ names it.
const CAPABILITIES: [&str; 9] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];

/// SASL mechanisms that are offered.
const MECHANISMS: [&str; 2] = ["PLAIN", "AMQPLAIN"];

/// Calls `send` with `connection.start`.
pub fn start(send: impl FnOnce(&Method<'_>)) {
    let mut capabilities = TableWriter::default();
    for name in CAPABILITIES {
        capabilities.put(name.as_bytes(), Value::Bool(true));
    }
    let mut properties = TableWriter::default();
    properties.put(b"capabilities", Value::Table(capabilities.table()));
    for (name, value) in [
        ("cluster_name", "rocketbridge"),
        ("copyright", "The RocketBridge authors"),
        ("information", "Licensed under the Apache License 2.0"),
        ("platform", "Rust"),
        ("product", "RocketBridge"),
        ("version", env!("CARGO_PKG_VERSION")),
    ] {
        properties.put(name.as_bytes(), Value::LongStr(value.as_bytes()));
    }
    send(&Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties: properties.table(),
        mechanisms: LongStr(MECHANISMS.join(" ").as_bytes()),
        locales: LongStr(b"en_US"),
    });
}

/// What a client says it understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCapabilities {
    /// `basic.cancel` from the server.
    pub consumer_cancel_notify: bool,
    /// `connection.close` as the answer to a failed login.
    pub authentication_failure_close: bool,
    /// Wants to be told when its publishes have to wait.
    pub connection_blocked: bool,
}

impl ClientCapabilities {
    /// As told in `connection.start-ok`.
    pub fn of(client_properties: Table<'_>) -> Self {
        let Some(Value::Table(capabilities)) = client_properties.get(b"capabilities") else {
            return Self::default();
        };
        let has = |name: &str| capabilities.get(name.as_bytes()) == Some(Value::Bool(true));
        Self {
            consumer_cancel_notify: has("consumer_cancel_notify"),
            authentication_failure_close: has("authentication_failure_close"),
            connection_blocked: has("connection.blocked"),
        }
    }
}

/// User and password from a SASL response, with the mechanism's name.
///
/// # Errors
/// 503 for a mechanism that was not offered, 502 for a response that is not of its mechanism.
pub fn credentials(mechanism: &[u8], response: &[u8]) -> Result<(&'static str, Credentials), ConnectionError> {
    let [plain, amqplain] = MECHANISMS;
    let (name, found) = match mechanism {
        m if m == plain.as_bytes() => (plain, of_plain(response)),
        m if m == amqplain.as_bytes() => (amqplain, of_amqplain(response)),
        other => {
            let name = String::from_utf8_lossy(other).into_owned();
            return Err(ConnectionError::UnknownMechanism(name));
        }
    };
    let (user, password) = found.ok_or_else(|| match name {
        "PLAIN" => ConnectionError::Syntax("response invalid".to_owned()),
        _ => ConnectionError::Syntax("AMQPLAIN auth info is missing LOGIN or PASSWORD field".to_owned()),
    })?;
    let credentials = Credentials::Password {
        user: Bytes::copy_from_slice(user),
        password: Bytes::copy_from_slice(password),
    };
    Ok((name, credentials))
}

/// RFC 4616: authorization identity, user, password, NUL between them.
fn of_plain(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = response.splitn(3, |b| *b == 0);
    let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    Some((user, password))
}

/// A field table without its length.
fn of_amqplain(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let table = Table::new(response);
    table.check().ok()?;
    let text = |name: &[u8]| match table.get(name)? {
        Value::LongStr(text) => Some(text),
        _ => None,
    };
    Some((text(b"LOGIN")?, text(b"PASSWORD")?))
}

/// Limits that both sides keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most channels open at a time.
    pub channel_max: u16,
    /// Largest frame in octets.
    pub frame_max: u32,
    /// Seconds; zero is no heartbeat.
    pub heartbeat: u16,
}

/// What a client made of our proposal: it may lower, not raise, and zero would be no limit.
///
/// # Errors
/// 530 naming the first value that is out of bounds.
pub fn negotiate(config: &Config, chosen: Limits) -> Result<Limits, ConnectionError> {
    let bounded = |field, value: u32, minimum: u32, maximum: u32| {
        let (than, bound) = if value != 0 && value < minimum {
            ("lower than the minimum", minimum)
        } else if value == 0 || value > maximum {
            ("higher than the maximum", maximum)
        } else {
            return Ok(());
        };
        let detail = if value == 0 { " (no limit)" } else { "" };
        Err(ConnectionError::Negotiation {
            field,
            value,
            detail,
            than,
            bound,
        })
    };
    bounded("frame_max", chosen.frame_max, FRAME_MAX_FLOOR, config.frame_max)?;
    bounded("channel_max", chosen.channel_max.into(), 1, config.channel_max.into())?;
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_user_and_password_behind_nuls() {
        assert_eq!(of_plain(b"\0guest\0guest"), Some((&b"guest"[..], &b"guest"[..])));
        assert_eq!(of_plain(b"id\0u\0p\0q"), Some((&b"u"[..], &b"p\0q"[..])));
        assert_eq!(of_plain(b"guest"), None);
        assert_eq!(of_plain(b""), None);
    }

    #[test]
    fn amqplain_is_a_table_without_length() {
        let mut table = TableWriter::default();
        table
            .put(b"LOGIN", Value::LongStr(b"u"))
            .put(b"PASSWORD", Value::LongStr(b"p"));
        assert_eq!(of_amqplain(table.table().as_bytes()), Some((&b"u"[..], &b"p"[..])));
        assert_eq!(of_amqplain(b"\x05LOGINS"), None);
    }

    #[test]
    fn a_client_may_lower_limits_but_not_raise_them() {
        let config = Config::default();
        let with = |channel_max, frame_max| {
            let limits = Limits {
                channel_max,
                frame_max,
                heartbeat: 0,
            };
            negotiate(&config, limits)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        assert_eq!(with(2047, 131_072), Ok(()));
        assert_eq!(with(1, 4096), Ok(()));
        for (channel_max, frame_max, text) in [
            (
                1,
                100,
                "negotiated frame_max = 100 is lower than the minimum allowed value (4096)",
            ),
            (
                1,
                131_073,
                "negotiated frame_max = 131073 is higher than the maximum allowed value (131072)",
            ),
            (
                1,
                0,
                "negotiated frame_max = 0 (no limit) is higher than the maximum allowed value (131072)",
            ),
            (
                2048,
                4096,
                "negotiated channel_max = 2048 is higher than the maximum allowed value (2047)",
            ),
            (
                0,
                4096,
                "negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047)",
            ),
        ] {
            assert_eq!(with(channel_max, frame_max), Err(text.to_owned()));
        }
    }
}
