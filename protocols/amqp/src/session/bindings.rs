//! `bind` and `unbind` of classes queue and exchange.
//!
//! How a binding matches depends on the kind of its exchange. Where that is not known, core is asked
//! first, and the channel's later frames wait: they may rely on the binding.

use bytes::Bytes;
use rocketbridge_core::address::encode_name;
use rocketbridge_core::request::{Binding, Destination, ExchangeKind, Refusal, Reply, Request};

use super::channel::Backlog;
use super::exchanges::predeclared_kind;
use super::shared::{Context, What};
use crate::codec::{Method, Table};
use crate::mapping::{ExchangeName, Route, binding_arguments, matcher, source, strip_line_ends};
use crate::reply_code::{ChannelError, Failure, Resource};

/// What is done with a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Bind,
    Unbind,
}

/// A binding as its client gave it.
#[derive(Debug)]
pub struct Bind {
    action: Action,
    source: ExchangeName,
    destination: Destination,
    destination_name: Resource,
    routing_key: Bytes,
    arguments: Bytes,
    no_wait: bool,
}

/// The fields of `queue.bind`, `queue.unbind`, `exchange.bind` and `exchange.unbind`.
pub struct Fields<'a> {
    pub action: Action,
    /// Queue or exchange.
    pub destination: &'a [u8],
    pub source: &'a [u8],
    pub routing_key: &'a [u8],
    pub no_wait: bool,
    pub arguments: Table<'a>,
}

impl Context<'_> {
    /// `queue.bind`, `queue.unbind`
    pub fn queue_bind(&mut self, fields: &Fields<'_>) -> Result<(), Failure> {
        let mut routing_key = Bytes::copy_from_slice(fields.routing_key);
        let queue = if fields.destination.is_empty() {
            let last = self.last_queue()?;
            if routing_key.is_empty() {
                routing_key = last.clone();
            }
            last
        } else {
            Bytes::copy_from_slice(&strip_line_ends(fields.destination))
        };
        let bind = Bind {
            action: fields.action,
            source: ExchangeName::new(&strip_line_ends(fields.source)),
            destination_name: Resource::queue(&queue),
            destination: Destination::Queue(queue),
            routing_key,
            arguments: Bytes::copy_from_slice(fields.arguments.as_bytes()),
            no_wait: fields.no_wait,
        };
        self.bind(bind)
    }

    /// `exchange.bind`, `exchange.unbind`
    pub fn exchange_bind(&mut self, fields: &Fields<'_>) -> Result<(), Failure> {
        let destination = ExchangeName::new(&strip_line_ends(fields.destination));
        let to = match destination.route {
            Route::Default => return Err(ChannelError::DefaultExchange.into()),
            Route::Topics => Destination::Topics,
            Route::Exchange(name) => Destination::Exchange(name),
        };
        let bind = Bind {
            action: fields.action,
            source: ExchangeName::new(&strip_line_ends(fields.source)),
            destination_name: Resource::exchange(&destination.name),
            destination: to,
            routing_key: Bytes::copy_from_slice(fields.routing_key),
            arguments: Bytes::copy_from_slice(fields.arguments.as_bytes()),
            no_wait: fields.no_wait,
        };
        self.bind(bind)
    }

    fn bind(&mut self, bind: Bind) -> Result<(), Failure> {
        if bind.source.route == Route::Default {
            return Err(ChannelError::DefaultExchange.into());
        }
        let known = self.shared.kinds.get(&bind.source.name).copied();
        if let Some(kind) = predeclared_kind(&bind.source.name).or(known) {
            return self.bind_to(Box::new(bind), kind);
        }
        let name = encode_name(&bind.source.name);
        self.request(What::FindKind(Box::new(bind)), Request::FindExchange { name });
        self.channel.backlog = Some(Backlog::default());
        Ok(())
    }

    /// The exchange is known now.
    pub fn kind_found(&mut self, bind: Box<Bind>, result: Result<Reply, Refusal>) -> Result<(), Failure> {
        match result {
            Ok(Reply::Exchange(exchange)) => {
                self.shared.remember_kind(&bind.source, exchange.kind);
                self.bind_to(bind, exchange.kind)
            }
            other => Err(self.refused(&Resource::exchange(&bind.source.name), other)),
        }
    }

    fn bind_to(&mut self, bind: Box<Bind>, kind: ExchangeKind) -> Result<(), Failure> {
        let arguments = Table::new(&bind.arguments);
        let Some(source) = source(&bind.source) else {
            return Err(ChannelError::DefaultExchange.into());
        };
        let binding = Binding {
            source,
            matcher: matcher(&bind.source, kind, &bind.routing_key, arguments)?,
            destination: bind.destination.clone(),
            arguments: binding_arguments(kind, &bind.routing_key, arguments),
            cookie: Bytes::new(),
        };
        let request = match bind.action {
            Action::Bind => Request::Bind(binding),
            Action::Unbind => Request::Unbind(binding),
        };
        self.request(What::Bind(bind), request);
        Ok(())
    }

    /// The reply to a bind or unbind.
    pub fn bound(&mut self, bind: &Bind, result: Result<Reply, Refusal>) -> Result<(), Failure> {
        let source = Resource::exchange(&bind.source.name);
        let answer = match (&bind.destination, bind.action) {
            (Destination::Queue(_), Action::Bind) => Method::QueueBindOk {},
            (Destination::Queue(_), Action::Unbind) => Method::QueueUnbindOk {},
            (Destination::Exchange(_) | Destination::Topics, Action::Bind) => Method::ExchangeBindOk {},
            (Destination::Exchange(_) | Destination::Topics, Action::Unbind) => Method::ExchangeUnbindOk {},
        };
        match result {
            Ok(Reply::Done) => {
                self.send_unless(bind.no_wait, &answer);
                Ok(())
            }
            Err(Refusal::NotFound { what, name }) => {
                // What was remembered about the exchange may be wrong by now.
                self.shared.forget(&bind.source.name);
                let is_destination = match &bind.destination {
                    Destination::Queue(_) => what == "queue",
                    Destination::Topics => false,
                    Destination::Exchange(destination) => {
                        name == *destination || name == bind.destination_name.name.as_bytes()
                    }
                };
                let missing = if is_destination {
                    bind.destination_name.clone()
                } else {
                    source
                };
                Err(ChannelError::NotFound(missing).into())
            }
            Err(Refusal::Locked | Refusal::AccessRefused) => Err(self.refused(&bind.destination_name, result)),
            Err(Refusal::Closed) | Ok(_) => Err(self.refused(&source, result)),
            Err(refusal) => {
                self.shared.forget(&bind.source.name);
                Err(self.refused(&source, Err(refusal)))
            }
        }
    }

    /// The queue that an empty name stands for.
    pub fn last_queue(&self) -> Result<Bytes, ChannelError> {
        self.channel.last_queue.clone().ok_or(ChannelError::NoPreviousQueue)
    }

    /// A queue's name as a method gave it.
    pub fn queue_name(&self, name: &[u8]) -> Result<Bytes, ChannelError> {
        if name.is_empty() {
            self.last_queue()
        } else {
            Ok(Bytes::copy_from_slice(name))
        }
    }
}
