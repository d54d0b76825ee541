//! The id of a stored message: upper-case hex of the broker's address and the position in its log.
//! Clients take it apart again to ask that broker for the message.

use std::net::{IpAddr, SocketAddr};

use bytes::BufMut;
use rocketbridge_core::store::record::Position;

/// Digits of the longest id.
pub const ID_MAX: usize = 56;

/// Appends the id: 32 digits, [`ID_MAX`] with an IPv6 host.
pub fn push(out: &mut impl BufMut, host: SocketAddr, position: Position) {
    match host.ip().to_canonical() {
        IpAddr::V4(ip) => push_hex(out, &ip.octets()),
        IpAddr::V6(ip) => push_hex(out, &ip.octets()),
    }
    push_hex(out, &u32::from(host.port()).to_be_bytes());
    push_hex(out, &position.0.to_be_bytes());
}

/// Appends upper-case hex.
pub(crate) fn push_hex(out: &mut impl BufMut, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        out.put_u8(DIGITS[usize::from(byte >> 4)]);
        out.put_u8(DIGITS[usize::from(byte & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(host: &str, position: u64) -> String {
        let mut out = Vec::new();
        push(&mut out, host.parse().unwrap(), Position(position));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_id_is_host_port_and_position_in_hex() {
        assert_eq!(id("127.0.0.1:10911", 0x1234), "7F00000100002A9F0000000000001234");
        assert_eq!(
            id("[::ffff:10.1.2.255]:80", u64::MAX >> 1),
            "0A0102FF000000507FFFFFFFFFFFFFFF"
        );
        assert_eq!(
            id("[2001:db8::1]:10911", 0),
            "20010DB800000000000000000000000100002A9F0000000000000000"
        );
    }
}
