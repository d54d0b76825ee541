//! The HTTP request that becomes a WebSocket (RFC 6455, 4.2): its path, its headers and its subprotocol.
//!
//! Whatever else comes is answered in HTTP too: load balancers ask with a plain GET whether anybody is there, and a
//! person whose client is set up wrongly should read what is wrong.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use bytes::BufMut;
use httparse::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tungstenite::handshake::derive_accept_key;
use tungstenite::http::{StatusCode, Uri};

use super::{Messages, WebSocket};

/// How long a client may take for its request.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// How long a client that was refused may take to close its side. Closing at once would answer the rest of its request
/// with a reset, and a reset destroys our answer on its way to the reader.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Longest request with its headers, bytes: a browser's cookies may be in it.
const HEAD_MAX: usize = 16 * 1024;

/// Most headers of a request.
const HEADERS_MAX: usize = 128;

/// What a protocol is like over WebSocket.
#[derive(Debug)]
pub struct Settings {
    /// Its name, for people.
    pub title: &'static str,
    /// Paths that lead to it, the one to recommend first.
    pub paths: &'static [&'static str],
    /// Its subprotocols, the best one first.
    pub subprotocols: &'static [&'static str],
    /// What its messages may be.
    pub messages: Messages,
}

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It took too long.
    #[error("no WebSocket handshake in time")]
    Timeout,
    /// The client went.
    #[error("no WebSocket handshake: {0}")]
    Lost(#[from] io::Error),
    /// It was no handshake, or one for something else; the client was told with an HTTP status.
    #[error("no WebSocket handshake: {reason}, answered with {status}")]
    Handshake {
        /// The status.
        status: StatusCode,
        /// What was wrong.
        reason: &'static str,
    },
}

/// Answers a client's request.
///
/// # Errors
/// [`Refused`].
pub async fn accept<S>(mut stream: S, settings: &'static Settings) -> Result<WebSocket<S>, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let answered = timeout(HANDSHAKE_TIME, async {
        let answer = read_request(&mut stream, settings).await?;
        let text = match &answer {
            Ok(response) => response,
            Err(refusal) => &refusal.response(settings),
        };
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        io::Result::Ok(answer)
    });
    let Ok(answer) = answered.await else {
        return Err(Refused::Timeout);
    };
    match answer? {
        Ok(_) => Ok(WebSocket::new(stream, settings.messages)),
        Err(refusal) => {
            // It is told; how it takes that does not matter.
            let _ = stream.shutdown().await;
            let _ = timeout(LINGER_TIME, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
            Err(Refused::Handshake {
                status: refusal.status,
                reason: refusal.reason,
            })
        }
    }
}

/// What is answered to what is no handshake of ours.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    /// The request was HEAD.
    is_head: bool,
}

fn refusal(status: StatusCode, reason: &'static str) -> Refusal {
    Refusal {
        status,
        reason,
        is_head: false,
    }
}

/// Reads a request and gives the response that opens the WebSocket, or the refusal.
async fn read_request<S: AsyncRead + Unpin>(
    stream: &mut S,
    settings: &Settings,
) -> io::Result<Result<String, Refusal>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let room = HEAD_MAX - head.len();
        if room == 0 {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Ok(Err(refusal(status, "the request is longer than 16 KiB")));
        }
        if stream.read_buf(&mut (&mut head).limit(room)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(answer) = settings.answer(&head) {
            return Ok(answer);
        }
    }
}

type Request<'h, 'b> = httparse::Request<'h, 'b>;

impl Settings {
    /// What a request is answered with; `None` while it is not whole.
    fn answer(&self, bytes: &[u8]) -> Option<Result<String, Refusal>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(Status::Partial) => None,
            Ok(Status::Complete(len)) => {
                let answer = self.answer_request(&request, len < bytes.len());
                let is_head = request.method == Some("HEAD");
                Some(answer.map_err(|refusal| Refusal { is_head, ..refusal }))
            }
            Err(httparse::Error::TooManyHeaders) => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                Some(Err(refusal(status, "the request has more than 128 headers")))
            }
            Err(httparse::Error::Version) => {
                let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
                Some(Err(refusal(status, "the request is not HTTP/1.1")))
            }
            Err(_) => Some(Err(refusal(StatusCode::BAD_REQUEST, "this is no HTTP request"))),
        }
    }

    /// Checks what a handshake must be (4.2.1). `goes_on`: something came behind it.
    fn answer_request(&self, request: &Request<'_, '_>, goes_on: bool) -> Result<String, Refusal> {
        let bad = |reason| refusal(StatusCode::BAD_REQUEST, reason);
        let Ok(uri) = request.path.unwrap_or_default().parse::<Uri>() else {
            return Err(bad("the request's target is no path"));
        };
        if !self.paths.contains(&uri.path()) {
            return Err(refusal(StatusCode::NOT_FOUND, "there is nothing at this path"));
        }
        if request.method != Some("GET") {
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET"));
        }
        // HTTP/1.0 knows no upgrade, whatever it says (RFC 9110, 7.8).
        let upgrades = request.version == Some(1)
            && tokens(request, "Connection").any(|token| token.eq_ignore_ascii_case(b"upgrade"))
            && tokens(request, "Upgrade").any(|token| token.eq_ignore_ascii_case(b"websocket"));
        if !upgrades {
            let reason = "the request asks for no upgrade to a WebSocket";
            return Err(refusal(StatusCode::UPGRADE_REQUIRED, reason));
        }
        if values(request, "Host").count() != 1 {
            return Err(bad("there must be one Host"));
        }
        if !values(request, "Sec-WebSocket-Version").eq([b"13"]) {
            let reason = "Sec-WebSocket-Version must be 13";
            return Err(refusal(StatusCode::UPGRADE_REQUIRED, reason));
        }
        let mut keys = values(request, "Sec-WebSocket-Key");
        let key = match (keys.next(), keys.next()) {
            (Some(key), None) if is_nonce(key) => key,
            _ => return Err(bad("Sec-WebSocket-Key must be 16 bytes in base64")),
        };
        if goes_on {
            return Err(bad("nothing may follow the request before it is answered"));
        }
        let mut response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n",
            derive_accept_key(key)
        );
        // Who offers none of ours goes on without: the protocol itself says its version too.
        let is_offered = |ours: &&&str| tokens(request, "Sec-WebSocket-Protocol").any(|token| token == ours.as_bytes());
        if let Some(chosen) = self.subprotocols.iter().find(is_offered) {
            let _ = write!(response, "Sec-WebSocket-Protocol: {chosen}\r\n");
        }
        response.push_str("\r\n");
        Ok(response)
    }
}

impl Refusal {
    fn response(&self, settings: &Settings) -> String {
        let Settings {
            title,
            paths,
            subprotocols,
            ..
        } = settings;
        let body = format!(
            "{}.\nHere listens {title}; paths: {}; subprotocols: {}.\n",
            self.reason,
            paths.join(", "),
            subprotocols.join(", ")
        );
        let more = match self.status {
            // 4.2.2 and 4.4.
            StatusCode::UPGRADE_REQUIRED => ", Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
            StatusCode::METHOD_NOT_ALLOWED => "\r\nAllow: GET",
            _ => "",
        };
        let head = format!(
            "HTTP/1.1 {}\r\nConnection: close{more}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n",
            self.status,
            body.len()
        );
        if self.is_head { head } else { head + &body }
    }
}

fn values<'a>(request: &'a Request<'_, '_>, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let named = request
        .headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| header.value.trim_ascii())
}

/// What a header's lists hold.
fn tokens<'a>(request: &'a Request<'_, '_>, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let lists = values(request, name);
    lists.flat_map(|list| list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
}

/// 16 bytes in base64.
fn is_nonce(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key, [digits @ .., b'=', b'='] if digits.len() == 22 && digits.iter().all(is_digit))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    static SETTINGS: Settings = Settings {
        title: "a protocol",
        paths: &["/here", "/"],
        subprotocols: &["new", "old"],
        messages: Messages::Any,
    };

    const HANDSHAKE: &str = "GET /here HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    /// The whole answer, and whether there is a WebSocket.
    async fn answer(request: &str, piece: usize) -> (String, Result<(), Refused>) {
        let (mut client, server) = duplex(64 * 1024);
        for piece in request.as_bytes().chunks(piece) {
            client.write_all(piece).await.expect("there is room");
        }
        let accepting = tokio::spawn(async { accept(server, &SETTINGS).await.map(drop) });
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("it is shut");
        drop(client);
        (answer, accepting.await.expect("it does not panic"))
    }

    #[tokio::test]
    async fn a_handshake_is_answered_with_the_key_s_digest_and_the_best_subprotocol() {
        let expected = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        for piece in [1, 7, 1000] {
            let (got, result) = answer(HANDSHAKE, piece).await;
            assert_eq!(got, format!("{expected}\r\n"));
            assert!(result.is_ok());
        }
        let offers = "websocket\r\nSec-WebSocket-Protocol: other,old\r\nsec-websocket-protocol: new";
        for (from, to, more) in [
            ("/here", "/", ""),
            ("/here", "/here?a=b", ""),
            ("Connection: Upgrade", "connection: keep-alive, upgrade", ""),
            (
                "Connection: Upgrade",
                "Connection: keep-alive\r\nConnection: Upgrade",
                "",
            ),
            ("Upgrade: websocket", "UPGRADE: WebSocket", ""),
            ("websocket", offers, "Sec-WebSocket-Protocol: new\r\n"),
            ("websocket", "websocket\r\nSec-WebSocket-Protocol: NEW", ""),
            (
                "websocket",
                "websocket\r\nSec-WebSocket-Extensions: permessage-deflate",
                "",
            ),
        ] {
            let request = HANDSHAKE.replacen(from, to, 1);
            let (got, result) = answer(&request, 1000).await;
            assert_eq!(got, format!("{expected}{more}\r\n"), "{request}");
            assert!(result.is_ok());
        }
    }

    #[tokio::test]
    async fn what_is_no_handshake_is_answered_with_what_is_wrong_and_what_listens_here() {
        let long = format!("Host: a\r\nCookie: {}", "c".repeat(HEAD_MAX));
        let many = format!("Host: a{}", "\r\nA: b".repeat(HEADERS_MAX));
        for (from, to, status) in [
            ("/here", "/there", "404 Not Found"),
            ("/here", "/here/more", "404 Not Found"),
            ("GET", "POST", "405 Method Not Allowed"),
            ("HTTP/1.1", "HTTP/1.0", "426 Upgrade Required"),
            ("Upgrade: websocket\r\n", "", "426 Upgrade Required"),
            ("websocket", "h2c", "426 Upgrade Required"),
            ("Connection: Upgrade\r\n", "", "426 Upgrade Required"),
            ("Connection: Upgrade", "Connection: close", "426 Upgrade Required"),
            ("Version: 13", "Version: 8", "426 Upgrade Required"),
            ("Sec-WebSocket-Version: 13\r\n", "", "426 Upgrade Required"),
            ("Host: a\r\n", "", "400 Bad Request"),
            ("Sec-WebSocket-Key", "Key", "400 Bad Request"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "x", "400 Bad Request"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", "400 Bad Request"),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25jZQ!=",
                "400 Bad Request",
            ),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25jZQQQ",
                "400 Bad Request",
            ),
            ("\r\n\r\n", "\r\n\r\n\x02", "400 Bad Request"),
            (
                "GET /here HTTP/1.1\r\n",
                "\x10\x10\0\x04MQTT\x04\r\n",
                "400 Bad Request",
            ),
            ("GET /here HTTP/1.1", "PRI * HTTP/2.0", "505 HTTP Version Not Supported"),
            ("Host: a", &long, "431 Request Header Fields Too Large"),
            ("Host: a", &many, "431 Request Header Fields Too Large"),
        ] {
            let request = HANDSHAKE.replacen(from, to, 1);
            let (got, result) = answer(&request, 1000).await;
            let (head, body) = got.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {head}");
            assert!(head.contains("\r\nConnection: close"), "{head}");
            assert!(head.ends_with(&format!("\r\nContent-Length: {}", body.len())), "{head}");
            assert!(
                body.ends_with("\nHere listens a protocol; paths: /here, /; subprotocols: new, old.\n"),
                "{body}"
            );
            let is_426 = status.starts_with("426");
            assert_eq!(head.contains("\r\nSec-WebSocket-Version: 13\r\n"), is_426, "{head}");
            assert_eq!(head.contains(", Upgrade\r\nUpgrade: websocket\r\n"), is_426, "{head}");
            assert_eq!(head.contains("\r\nAllow: GET\r\n"), status.starts_with("405"), "{head}");
            assert!(
                matches!(result, Err(Refused::Handshake { status: told, .. }) if told.to_string() == status),
                "{result:?}"
            );
        }
        let (got, _) = answer("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 1000).await;
        assert!(got.starts_with("HTTP/1.1 405 ") && got.ends_with("\r\n\r\n"), "{got}");
    }

    #[tokio::test]
    async fn who_hangs_up_in_the_middle_is_not_answered() {
        let (mut client, server) = duplex(1024);
        client.write_all(b"GET / HT").await.expect("there is room");
        client.shutdown().await.expect("it is open");
        let result = accept(server, &SETTINGS).await.map(drop);
        assert!(matches!(result, Err(Refused::Lost(_))), "{result:?}");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("it is shut");
        assert_eq!(answer, b"");
    }
}
