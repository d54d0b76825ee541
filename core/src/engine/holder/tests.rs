use std::sync::Arc;
use std::task::Waker;

use super::*;
use crate::boundary::{Broker, Event, Link, Peer, RequestId};
use crate::engine::{Config, Engine};
use crate::inbox::Inbox;
use crate::request::{Credentials, Limit, Request};
use crate::store::storage::MemoryStorage;
use crate::time::{Clock, Now};

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now::default()
    }
}

/// Stores of brokers that let anybody delete a session's queue may hold such a session.
#[test]
fn a_session_whose_queue_is_missing_begins_anew() {
    let storage = Arc::new(MemoryStorage::default());
    let engine = Engine::open_storage(storage, 64 << 10, Config::default(), Arc::new(Still)).expect("it opens");
    let attach = || {
        Request::Attach(Attach {
            holder: Bytes::from_static(b"device"),
            clean: false,
            durable: true,
            keep: Millis(1000),
            limit: Limit::NONE,
            will: None,
        })
    };
    let attached = || {
        let address = "127.0.0.1:1".parse().expect("an address");
        let peer = Peer {
            remote: address,
            local: address,
        };
        let inbox = Inbox::new();
        let mut link = engine.open(peer, inbox.clone());
        link.request(RequestId(1), Request::Login(Credentials::Anonymous));
        link.request(RequestId(2), attach());
        let name = queue_name(b"device");
        link.request(RequestId(3), Request::FindQueue { name });
        engine.sync_once().expect("it syncs");
        let mut events = Vec::new();
        inbox.take(usize::MAX, &mut events, Waker::noop());
        let mut replies = events.into_iter().filter_map(|event| match event {
            Event::Reply { result, .. } => Some(result),
            _ => None,
        });
        let present = match replies.nth(1) {
            Some(Ok(Reply::Attached { present, .. })) => present,
            other => panic!("{other:?}"),
        };
        assert!(matches!(replies.next(), Some(Ok(Reply::Queue(_)))));
        present
    };
    assert!(!attached());
    assert!(attached());
    engine.hold(|state| {
        let id = state.queue_id(&queue_name(b"device")).expect("the session has one");
        state.delete_queue(id);
    });
    assert!(!attached());
    assert!(attached());
}
