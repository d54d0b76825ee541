//! Accept loops: from a listening socket to a task per connection.
//!
//! The loop waits for nothing but the next connection; what a handshake has to wait for (TLS,
//! WebSocket) belongs into the connection's own task.

use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use rocketbridge_core::boundary::{Broker, Peer};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::time::{Clock, Now};
use rocketbridge_session::Session;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, sleep};
use tracing::{Instrument, Span, debug, debug_span, warn};

use crate::clock::SystemClock;
use crate::connections::{Call, Complaint, Connections, Ticket};
use crate::driver::Connection;
use crate::protocols::Transport;
use crate::websocket::{self, Settings};

/// Makes the session of a new connection. The number is random, for names that must not be guessed.
pub type NewSession = Arc<dyn Fn(Peer, u64, Now) -> Box<dyn Session> + Send + Sync>;

/// The first wait after an accept that failed for want of something (file descriptors, memory).
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest such wait. The queue of the listening socket holds those who come meanwhile.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What every accept loop of one protocol shares.
pub struct Acceptor<B> {
    /// The protocol's name, for the log.
    pub protocol: &'static str,
    /// What carries the protocol's bytes.
    pub transport: Transport,
    /// Where links are opened.
    pub broker: B,
    /// Makes sessions.
    pub sessions: NewSession,
    /// Counts and limits connections.
    pub connections: Arc<Connections>,
    /// The clock of all connections.
    pub clock: SystemClock,
}

/// Opens a listening socket at `address`, `host:port`.
///
/// # Errors
/// What the system said: the address is taken, not ours, or not allowed.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

impl<B> Acceptor<B>
where
    B: Broker,
    B::Link: Unpin,
{
    /// Accepts connections until the task is aborted, which closes the socket.
    pub async fn run(self, listener: TcpListener) {
        let mut backoff = BACKOFF_MIN;
        let mut out_of_resources = Complaint::default();
        let mut full = Complaint::default();
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => {
                    backoff = BACKOFF_MIN;
                    match self.connections.admit(remote) {
                        Some(ticket) => self.open(stream, remote, ticket),
                        None if full.is_due() => {
                            let connections = self.connections.count();
                            warn!(%remote, connections, "connection refused: limits.connections_max is reached");
                        }
                        None => {}
                    }
                }
                Err(error) if is_about_one_connection(&error) => debug!(%error, "connection lost before accept"),
                Err(error) => {
                    if out_of_resources.is_due() {
                        warn!(%error, protocol = self.protocol, "cannot accept connections");
                    }
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    fn open(&self, stream: TcpStream, remote: SocketAddr, ticket: Ticket) {
        let peer = match stream.local_addr().and_then(|local| {
            // Answers go out when a turn ends; waiting for more would only delay them.
            stream.set_nodelay(true)?;
            Ok(Peer {
                remote: unmapped(remote),
                local: unmapped(local),
            })
        }) {
            Ok(peer) => peer,
            Err(error) => {
                debug!(%remote, %error, "connection lost at accept");
                return;
            }
        };
        let span = debug_span!("connection", protocol = self.protocol, remote = %peer.remote);
        debug!(parent: &span, "open");
        let opener = Opener {
            broker: self.broker.clone(),
            sessions: Arc::clone(&self.sessions),
            clock: self.clock,
            peer,
        };
        match self.transport {
            Transport::Plain => opener.run(stream, ticket, span),
            Transport::WebSocket(settings) => {
                // A task of its own, so that what a handshake needs is not kept by what comes of it.
                let handshake = opener.shake_hands(stream, settings, ticket, span.clone());
                tokio::spawn(handshake.instrument(span));
            }
        }
    }
}

/// What makes a connection of a stream.
struct Opener<B> {
    broker: B,
    sessions: NewSession,
    clock: SystemClock,
    peer: Peer,
}

impl<B> Opener<B>
where
    B: Broker,
    B::Link: Unpin,
{
    fn run<S>(self, stream: S, ticket: Ticket, span: Span)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let inbox = Inbox::new();
        let link = self.broker.open(self.peer, inbox.clone());
        let session = (self.sessions)(self.peer, random(), self.clock.now());
        tokio::spawn(Connection::new(stream, link, inbox, session, self.clock, ticket).instrument(span));
    }

    async fn shake_hands(self, stream: TcpStream, settings: &'static Settings, ticket: Ticket, span: Span) {
        let told = poll_fn(|cx| {
            ticket.register(cx.waker());
            if ticket.call() == Call::GoOn {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        let accepted = tokio::select! {
            accepted = websocket::accept(stream, settings) => accepted,
            () = told => return debug!("closed: the broker is going down"),
        };
        match accepted {
            Ok(stream) => self.run(stream, ticket, span),
            Err(error) => debug!(%error, "closed"),
        }
    }
}

/// `::ffff:1.2.3.4` is 1.2.3.4 to everybody behind the socket.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// A number nobody can guess: keyed by the system's randomness, another with each call.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
