//! Frames, as bytes and as what they say.

use rocketbridge_stomp::codec::{Fault, Version};

/// Command, headers, body.
pub type Expected = (&'static str, &'static [(&'static str, &'static str)], &'static [u8]);

/// Why it is there, whom it is from (`None` is a peer before login), the bytes, and the one frame in them
/// or the fault.
pub type Row = (&'static str, Option<Version>, &'static [u8], Result<Expected, Fault>);

const V10: Option<Version> = Some(Version::V10);
const V11: Option<Version> = Some(Version::V11);
const V12: Option<Version> = Some(Version::V12);

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    ("CONNECT is read before the version is known", None, b"CONNECT\naccept-version:1.0,1.1,1.2\nhost:h\n\n\0",
        Ok(("CONNECT", &[("accept-version", "1.0,1.1,1.2"), ("host", "h")], b""))),
    ("CONNECT is never unescaped", V12, b"CONNECT\nlogin:a\\nb\\x\n\n\0", Ok(("CONNECT", &[("login", "a\\nb\\x")], b""))),
    ("STOMP is CONNECT", None, b"STOMP\nlogin:\\q\n\n\0", Ok(("STOMP", &[("login", "\\q")], b""))),
    ("CONNECTED is never unescaped", V12, b"CONNECTED\nversion:1.2\nserver:a\\c\n\n\0",
        Ok(("CONNECTED", &[("version", "1.2"), ("server", "a\\c")], b""))),
    ("CR LF ends lines in every version", V10, b"SEND\r\ndestination:/queue/a\r\n\r\nx\0",
        Ok(("SEND", &[("destination", "/queue/a")], b"x"))),
    ("CR LF and LF may be mixed", V12, b"SEND\r\ndestination:/queue/a\nb:c\r\n\nx\0",
        Ok(("SEND", &[("destination", "/queue/a"), ("b", "c")], b"x"))),
    ("line ends and NUL may stand between frames", V12, b"\n\n\r\n\n\0\0\nACK\nid:1\n\n\0", Ok(("ACK", &[("id", "1")], b""))),
    ("a carriage return alone between frames", V12, b"\n\rACK\nid:1\n\n\0", Err(Fault::BareCarriageReturn)),
    ("a carriage return alone in the command", V12, b"AC\rK\nid:1\n\n\0", Err(Fault::BareCarriageReturn)),
    ("a carriage return alone in a header", V11, b"ACK\nid:1\r2\n\n\0", Err(Fault::BareCarriageReturn)),
    ("two carriage returns at the end of a header", V12, b"ACK\nid:1\r\r\n\n\0", Err(Fault::BareCarriageReturn)),
    ("no headers at all", V12, b"DISCONNECT\n\n\0", Ok(("DISCONNECT", &[], b""))),
    ("an empty value", V12, b"SEND\ndestination:\n\n\0", Ok(("SEND", &[("destination", "")], b""))),
    ("raw colons in values are taken as they are", V12, b"SEND\na:b:c:\n\n\0", Ok(("SEND", &[("a", "b:c:")], b""))),
    ("1.2 knows four escapes", V12, b"SEND\na\\cb:\\n\\c\\\\\\r\n\n\0", Ok(("SEND", &[("a:b", "\n:\\\r")], b""))),
    ("1.1 knows three", V11, b"SEND\na\\cb:\\n\\c\\\\\n\n\0", Ok(("SEND", &[("a:b", "\n:\\")], b""))),
    ("1.1 does not know that of CR", V11, b"SEND\na:\\r\n\n\0", Err(Fault::Escape)),
    ("1.0 knows none", V10, b"SEND\na:\\n\\x\\\n\n\0", Ok(("SEND", &[("a", "\\n\\x\\")], b""))),
    ("an unknown escape", V12, b"SEND\na:\\t\n\n\0", Err(Fault::Escape)),
    ("an escape without an end", V12, b"SEND\na:b\\\n\n\0", Err(Fault::Escape)),
    ("an escape in a name", V12, b"SEND\n\\t:a\n\n\0", Err(Fault::Escape)),
    ("1.0 trims values", V10, b"SEND\na:  b c \n\n\0", Ok(("SEND", &[("a", "b c")], b""))),
    ("1.1 does not", V11, b"SEND\na:  b c \n\n\0", Ok(("SEND", &[("a", "  b c ")], b""))),
    ("1.2 does not", V12, b"SEND\na : b\n\n\0", Ok(("SEND", &[("a ", " b")], b""))),
    ("UTF-8", V12, "SEND\nd\u{e9}:\u{1d11e}\n\n\u{e9}\0".as_bytes(), Ok(("SEND", &[("d\u{e9}", "\u{1d11e}")], "\u{e9}".as_bytes()))),
    ("a repeated header is there, but the first counts", V12, b"SEND\na:1\na:2\n\n\0", Ok(("SEND", &[("a", "1"), ("a", "2")], b""))),
    ("a body with content-length holds NUL", V12, b"SEND\ncontent-length:5\n\na\0b\0c\0", Ok(("SEND", &[("content-length", "5")], b"a\0b\0c"))),
    ("an empty body with content-length", V12, b"SEND\ncontent-length:0\n\n\0", Ok(("SEND", &[("content-length", "0")], b""))),
    ("the first content-length counts", V12, b"SEND\ncontent-length:1\ncontent-length:9\n\nx\0",
        Ok(("SEND", &[("content-length", "1"), ("content-length", "9")], b"x"))),
    ("blanks around content-length", V10, b"SEND\ncontent-length: 2 \n\nab\0", Ok(("SEND", &[("content-length", "2")], b"ab"))),
    ("content-length counts for no frame without a body", V12, b"ACK\nid:1\ncontent-length:50\n\n\0",
        Ok(("ACK", &[("id", "1"), ("content-length", "50")], b""))),
    ("a body where none belongs is skipped", V12, b"SUBSCRIBE\nid:1\n\nbody\0", Ok(("SUBSCRIBE", &[("id", "1")], b""))),
    ("content-length too small", V12, b"SEND\ncontent-length:1\n\nab\0", Err(Fault::BodyNotTerminated)),
    ("content-length too large for this frame", V12, b"SEND\ncontent-length:3\n\nab\0ACK\nid:1\n\n\0", Err(Fault::BodyNotTerminated)),
    ("content-length is no number", V12, b"SEND\ncontent-length:x\n\nab\0", Err(Fault::ContentLength)),
    ("content-length is empty", V12, b"SEND\ncontent-length:\n\nab\0", Err(Fault::ContentLength)),
    ("content-length is negative", V12, b"SEND\ncontent-length:-1\n\nab\0", Err(Fault::ContentLength)),
    ("content-length has a sign", V12, b"SEND\ncontent-length:+1\n\na\0", Err(Fault::ContentLength)),
    ("content-length beyond the limit", V12, b"SEND\ncontent-length:16777217\n\n", Err(Fault::BodyTooLarge(16 << 20))),
    ("content-length beyond all numbers", V12, b"SEND\ncontent-length:10000000000000000000000\n\n", Err(Fault::BodyTooLarge(16 << 20))),
    ("a header without a colon", V12, b"SEND\ndestination\n\n\0", Err(Fault::NoColon)),
    ("a header without a name", V12, b"SEND\n:a\n\n\0", Err(Fault::NoName)),
    ("the end right behind the command", V12, b"DISCONNECT\0", Err(Fault::NoBlankLine)),
    ("the end right behind the command's line", V12, b"DISCONNECT\n\0", Err(Fault::NoBlankLine)),
    ("the end right behind a header's line", V12, b"ACK\nid:1\n\0", Err(Fault::NoBlankLine)),
    ("a command of any length that is read", V12, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef\n\n\0", Ok(("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef", &[], b""))),
    ("a command too long", V12, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgh\n\n\0", Err(Fault::CommandTooLong(32))),
    ("commands are case-sensitive", V12, b"send\n\n\0", Ok(("send", &[], b""))),
    ("MESSAGE", V12, b"MESSAGE\nsubscription:0\nmessage-id:1\ndestination:/queue/a\ncontent-length:3\n\na\0b\0",
        Ok(("MESSAGE", &[("subscription", "0"), ("message-id", "1"), ("destination", "/queue/a"), ("content-length", "3")], b"a\0b"))),
    ("ERROR", V12, b"ERROR\nmessage:x\n\nbody\0", Ok(("ERROR", &[("message", "x")], b"body"))),
    ("RECEIPT", V12, b"RECEIPT\nreceipt-id:1\n\n\0", Ok(("RECEIPT", &[("receipt-id", "1")], b""))),
];
