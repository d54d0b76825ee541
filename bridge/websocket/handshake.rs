//! The HTTP request that becomes a WebSocket: its path and subprotocol.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{Messages, WebSocket};

/// How long a client may take for its request.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// What a protocol is like over WebSocket.
#[derive(Debug)]
pub struct Settings {
    /// Paths that lead to it.
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
    /// It was no handshake, or one for something else.
    #[error("{0}")]
    Handshake(String),
}

/// Answers a client's request.
///
/// # Errors
/// [`Refused`]; the client has been told with an HTTP status then.
pub async fn accept<S>(stream: S, settings: &'static Settings) -> Result<WebSocket<S>, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Nothing is read or written by it but the handshake.
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    #[allow(clippy::result_large_err, reason = "the library's own type")]
    let answer = |request: &Request, response: Response| settings.answer(request, response);
    match timeout(
        HANDSHAKE_TIME,
        accept_hdr_async_with_config(stream, answer, Some(config)),
    )
    .await
    {
        Err(_) => Err(Refused::Timeout),
        Ok(Err(error)) => Err(Refused::Handshake(error.to_string())),
        Ok(Ok(websocket)) => Ok(WebSocket::new(websocket.into_inner(), settings.messages)),
    }
}

impl Settings {
    #[allow(clippy::result_large_err, reason = "the library's own type")]
    fn answer(&self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let path = request.uri().path();
        if !self.paths.contains(&path) {
            let mut refusal = ErrorResponse::new(Some(format!("no WebSocket at {path}\n")));
            *refusal.status_mut() = StatusCode::NOT_FOUND;
            return Err(refusal);
        }
        let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
        let offered: Vec<&str> = offered
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(',').map(str::trim))
            .collect();
        // Who offers none of ours goes on without: the protocol itself says its version too.
        if let Some(chosen) = self.subprotocols.iter().find(|ours| offered.contains(ours)) {
            let value = HeaderValue::from_static(chosen);
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
        Ok(response)
    }
}
