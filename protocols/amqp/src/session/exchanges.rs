//! Methods of class exchange, without bindings, and their replies.

use bytes::Bytes;
use rocketbridge_core::address::encode_name;
use rocketbridge_core::request::{Exchange, ExchangeKind, HashOn, Refusal, Reply, Request};

use super::shared::{Context, What};
use crate::arguments::{check_exchange, check_exchange_equivalence};
use crate::codec::{Method, Table};
use crate::mapping::dedup::dedup;
use crate::mapping::{ExchangeName, PREDECLARED, Route, exchange_kind, exchange_type, strip_line_ends};
use crate::reply_code::{ChannelError, ConnectionError, Failure, Resource};

/// The fields of `exchange.declare`.
pub struct Declare<'a> {
    pub exchange: &'a [u8],
    pub kind: &'a [u8],
    pub passive: bool,
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    pub no_wait: bool,
    pub arguments: Table<'a>,
}

impl Context<'_> {
    /// `exchange.declare`
    pub fn exchange_declare(&mut self, declare: &Declare<'_>) -> Result<(), Failure> {
        let Declare { passive, no_wait, .. } = *declare;
        let wanted_kind = exchange_kind(declare.kind);
        if !passive && wanted_kind.is_none() {
            let name = String::from_utf8_lossy(declare.kind).into_owned();
            return Err(ChannelError::UnknownExchangeType(name).into());
        }
        let exchange = ExchangeName::new(&strip_line_ends(declare.exchange));
        if exchange.route == Route::Default {
            return Err(ChannelError::DefaultExchange.into());
        }
        let name = encode_name(&exchange.name);
        let wanted = match wanted_kind.filter(|_| !passive) {
            None => None,
            Some(kind) => {
                let arguments = check_exchange(&exchange.name, kind, declare.arguments)?;
                Some(Exchange {
                    name: name.clone(),
                    kind,
                    durable: declare.durable,
                    auto_delete: declare.auto_delete,
                    internal: declare.internal,
                    alternate: arguments.alternate,
                    hash_on: arguments.hash_on,
                    dedup: dedup(&exchange.name, declare.kind, declare.arguments)?,
                    arguments: Bytes::copy_from_slice(declare.arguments.as_bytes()),
                })
            }
        };
        if exchange.route == Route::Topics {
            if let Some(wanted) = &wanted {
                compare(&exchange, wanted, &topic_exchange(name))?;
            }
            if !no_wait {
                self.answer(&Method::ExchangeDeclareOk {});
            }
            return Ok(());
        }
        let is_reserved = exchange.name.starts_with(b"amq.");
        match wanted {
            Some(wanted) if !is_reserved => {
                let request = Request::DeclareExchange(wanted.clone());
                let what = What::DeclareExchange {
                    exchange,
                    wanted,
                    no_wait,
                };
                self.request(what, request);
            }
            wanted => {
                let what = What::FindExchange {
                    exchange,
                    wanted,
                    no_wait,
                };
                self.request(what, Request::FindExchange { name });
            }
        }
        Ok(())
    }

    /// The reply to a declaration.
    pub fn exchange_declared(
        &mut self,
        exchange: &ExchangeName,
        wanted: Option<&Exchange>,
        no_wait: bool,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        match result {
            Ok(Reply::Exchange(current)) => {
                if let Some(wanted) = wanted {
                    compare(exchange, wanted, &current)?;
                }
                self.shared.remember_kind(exchange, current.kind);
                self.send_unless(no_wait, &Method::ExchangeDeclareOk {});
                Ok(())
            }
            Err(Refusal::NotFound { .. }) => {
                let resource = Resource::exchange(&exchange.name);
                Err(match wanted {
                    Some(_) => ChannelError::ReservedName(resource),
                    None => ChannelError::NotFound(resource),
                }
                .into())
            }
            other => Err(self.refused(&Resource::exchange(&exchange.name), other)),
        }
    }

    /// `exchange.delete`
    pub fn exchange_delete(&mut self, name: &[u8], if_unused: bool, no_wait: bool) -> Result<(), Failure> {
        let exchange = ExchangeName::new(&strip_line_ends(name));
        if exchange.route == Route::Default {
            return Err(ChannelError::DefaultExchange.into());
        }
        if exchange.name.starts_with(b"amq.") {
            return Err(ChannelError::SystemExchange(Resource::exchange(&exchange.name)).into());
        }
        self.shared.forget(&exchange.name);
        let name = encode_name(&exchange.name);
        let what = What::DeleteExchange { exchange, no_wait };
        self.request(what, Request::DeleteExchange { name, if_unused });
        Ok(())
    }

    /// The reply to a deletion: what is not there is deleted.
    pub fn exchange_deleted(
        &mut self,
        exchange: &ExchangeName,
        no_wait: bool,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        match result {
            Ok(Reply::Done) | Err(Refusal::NotFound { .. }) => {
                self.shared.forget(&exchange.name);
                self.send_unless(no_wait, &Method::ExchangeDeleteOk {});
                Ok(())
            }
            Err(Refusal::InUse) => Err(ChannelError::InUse(Resource::exchange(&exchange.name)).into()),
            other => Err(self.refused(&Resource::exchange(&exchange.name), other)),
        }
    }

    /// What a refusal means that is not special to a method.
    pub fn refused(&self, resource: &Resource, result: Result<Reply, Refusal>) -> Failure {
        let refusal = match result {
            Ok(reply) => {
                return ConnectionError::Internal(format!("unexpected reply {reply:?}")).into();
            }
            Err(refusal) => refusal,
        };
        match refusal {
            Refusal::NotFound { .. } => ChannelError::NotFound(resource.clone()).into(),
            Refusal::Locked => ChannelError::Locked(resource.clone()).into(),
            Refusal::InUse => ChannelError::InUse(resource.clone()).into(),
            Refusal::SingleActive => ChannelError::SingleActive(resource.clone()).into(),
            Refusal::NotEmpty => ChannelError::NotEmpty(resource.clone()).into(),
            Refusal::AccessRefused => ChannelError::AccessRefused {
                what: resource.to_string(),
                user: String::from_utf8_lossy(&self.shared.user).into_owned(),
            }
            .into(),
            Refusal::Invalid(why) => ChannelError::Invalid(why).into(),
            Refusal::NotSupported(what) => Failure::not_implemented(what),
            Refusal::Closed => ConnectionError::Forced("shutdown").into(),
            Refusal::NoSubscription | Refusal::Ended | Refusal::LeaseEnded | Refusal::Rejected { .. } => {
                ConnectionError::Internal(refusal.to_string()).into()
            }
        }
    }
}

/// What `amq.topic` is: no exchange of core's, but all its topics.
fn topic_exchange(name: Bytes) -> Exchange {
    Exchange {
        name,
        kind: ExchangeKind::Pattern,
        durable: true,
        auto_delete: false,
        internal: false,
        alternate: None,
        hash_on: HashOn::Key,
        dedup: None,
        arguments: Bytes::new(),
    }
}

/// The kind of an exchange that is always there.
pub fn predeclared_kind(name: &[u8]) -> Option<ExchangeKind> {
    PREDECLARED
        .iter()
        .find(|(predeclared, _)| *predeclared == name)
        .map(|(_, kind)| *kind)
}

/// An exchange may be declared again, as what it is.
fn compare(exchange: &ExchangeName, wanted: &Exchange, current: &Exchange) -> Result<(), ChannelError> {
    let flag = |value: bool| value.to_string();
    for (argument, received, current) in [
        (
            "type",
            exchange_type(wanted.kind).to_owned(),
            exchange_type(current.kind).to_owned(),
        ),
        ("durable", flag(wanted.durable), flag(current.durable)),
        ("auto_delete", flag(wanted.auto_delete), flag(current.auto_delete)),
        ("internal", flag(wanted.internal), flag(current.internal)),
    ] {
        if received != current {
            return Err(ChannelError::Inequivalent {
                argument: argument.to_owned(),
                resource: Resource::exchange(&exchange.name),
                received: format!("'{received}'"),
                current: format!("'{current}'"),
            });
        }
    }
    check_exchange_equivalence(
        &exchange.name,
        Table::new(&current.arguments),
        Table::new(&wanted.arguments),
    )
}
