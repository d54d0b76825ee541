//! All open connections: how many there may be, and a way to tell every one of them that the broker
//! is going down.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

/// What a connection is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Call {
    /// Nothing: go on.
    GoOn = 0,
    /// The broker is going down: say goodbye in the protocol's way.
    SayGoodbye = 1,
    /// The time for goodbyes is over.
    Drop = 2,
}

/// The open connections of one server.
#[derive(Debug)]
pub struct Connections {
    state: Mutex<State>,
    max: AtomicUsize,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Arc<Signal>>,
    last_id: u64,
    /// What was told to all, and holds for those that come late.
    call: u8,
}

#[derive(Debug)]
struct Signal {
    call: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// None yet, and at most `max`.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            max: AtomicUsize::new(max),
            emptied: Notify::new(),
        })
    }

    /// Changes the limit. Connections that are there stay.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// A place for one more connection, or `None` at the limit.
    pub fn admit(self: &Arc<Self>) -> Option<Ticket> {
        let mut state = lock(&self.state);
        if state.open.len() >= self.max.load(Ordering::Relaxed) {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        let signal = Arc::new(Signal {
            call: AtomicU8::new(state.call),
            waker: Mutex::default(),
        });
        state.open.insert(id, Arc::clone(&signal));
        Some(Ticket {
            connections: Arc::clone(self),
            id,
            signal,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.state).open.len()
    }

    /// Tells every connection, also those that are admitted later.
    pub fn tell(&self, call: Call) {
        let signals: Vec<_> = {
            let mut state = lock(&self.state);
            state.call = state.call.max(call as u8);
            state.open.values().cloned().collect()
        };
        for signal in signals {
            signal.call.fetch_max(call as u8, Ordering::SeqCst);
            if let Some(waker) = lock(&signal.waker).as_ref() {
                waker.wake_by_ref();
            }
        }
    }

    /// Waits until there is none.
    pub async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One connection's place. Dropping it frees the place.
#[derive(Debug)]
pub struct Ticket {
    connections: Arc<Connections>,
    id: u64,
    signal: Arc<Signal>,
}

impl Ticket {
    /// Keeps the waker that [`Connections::tell`] wakes. A call made before is seen by the next
    /// [`call`](Self::call).
    pub fn register(&self, waker: &Waker) {
        *lock(&self.signal.waker) = Some(waker.clone());
    }

    /// What the connection was told.
    pub fn call(&self) -> Call {
        match self.signal.call.load(Ordering::SeqCst) {
            0 => Call::GoOn,
            1 => Call::SayGoodbye,
            _ => Call::Drop,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.connections.state);
        state.open.remove(&self.id);
        if state.open.is_empty() {
            self.connections.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_place_can_be_taken_again() {
        let connections = Connections::new(2);
        let first = connections.admit();
        let second = connections.admit();
        assert!(first.is_some() && second.is_some());
        assert!(connections.admit().is_none());
        drop(first);
        assert!(connections.admit().is_some());
        assert_eq!(connections.count(), 1);
    }

    #[test]
    fn a_call_is_never_taken_back() {
        let connections = Connections::new(1);
        let ticket = connections.admit().expect("the first");
        assert_eq!(ticket.call(), Call::GoOn);
        connections.tell(Call::Drop);
        connections.tell(Call::SayGoodbye);
        assert_eq!(ticket.call(), Call::Drop);
        drop(ticket);
        let late = connections.admit().expect("the place is free");
        assert_eq!(late.call(), Call::Drop);
    }
}
