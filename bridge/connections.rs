//! All open connections: how many there may be, what they may keep of packets that have not come whole, and a
//! way to tell every one of them that the broker is going down.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tracing::warn;

/// How often a condition that lasts is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What a connection is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Call {
    /// Nothing: go on.
    GoOn = 0,
    /// It keeps more of an unfinished packet than there is room for: end.
    GiveUp = 1,
    /// The broker is going down: say goodbye in the protocol's way.
    SayGoodbye = 2,
    /// The time for goodbyes is over.
    Drop = 3,
}

/// The open connections of one server.
#[derive(Debug)]
pub struct Connections {
    state: Mutex<State>,
    max: AtomicUsize,
    /// What all keep of unfinished packets, bytes.
    unfinished: AtomicUsize,
    unfinished_max: AtomicUsize,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Arc<Signal>>,
    last_id: u64,
    /// What was told to all, and holds for those that come late.
    call: u8,
    complaint: Complaint,
}

#[derive(Debug)]
struct Signal {
    remote: SocketAddr,
    call: AtomicU8,
    /// What the connection keeps of an unfinished packet, bytes.
    kept: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// None yet, and at most `max`, which keep at most `unfinished_max` bytes of unfinished packets.
    pub fn new(max: usize, unfinished_max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            max: AtomicUsize::new(max),
            unfinished: AtomicUsize::new(0),
            unfinished_max: AtomicUsize::new(unfinished_max),
            emptied: Notify::new(),
        })
    }

    /// Changes the limits. Connections that are there stay until one of them keeps more than it did.
    pub fn set_max(&self, max: usize, unfinished_max: usize) {
        self.max.store(max, Ordering::Relaxed);
        self.unfinished_max.store(unfinished_max, Ordering::Relaxed);
    }

    /// A place for one more connection, or `None` at the limit.
    pub fn admit(self: &Arc<Self>, remote: SocketAddr) -> Option<Ticket> {
        let mut state = lock(&self.state);
        if state.open.len() >= self.max.load(Ordering::Relaxed) {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        let signal = Arc::new(Signal {
            remote,
            call: AtomicU8::new(state.call),
            kept: AtomicUsize::new(0),
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
            signal.tell(call);
        }
    }

    /// What all keep of unfinished packets, bytes.
    pub fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// Makes room by ending those that keep most: many who keep little are left alone.
    fn end_the_largest(&self) {
        let mut state = lock(&self.state);
        // Those that were told will be gone soon.
        let mut keeping: Vec<_> = state
            .open
            .values()
            .filter(|signal| signal.call.load(Ordering::SeqCst) == Call::GoOn as u8)
            .map(|signal| (signal.kept.load(Ordering::Relaxed), signal))
            .filter(|(kept, _)| *kept > 0)
            .collect();
        keeping.sort_unstable_by_key(|(kept, _)| *kept);
        let max = self.unfinished_max.load(Ordering::Relaxed);
        let mut total: usize = keeping.iter().map(|(kept, _)| kept).sum();
        let mut ended = Vec::new();
        while total > max
            && let Some((kept, signal)) = keeping.pop()
        {
            total -= kept;
            ended.push((kept, Arc::clone(signal)));
        }
        let complains = !ended.is_empty() && state.complaint.is_due();
        drop(state);
        for (kept, signal) in ended {
            if complains {
                warn!(
                    remote = %signal.remote, kept, max,
                    "connection closed: limits.unfinished_max is reached, and it keeps most of an unfinished packet"
                );
            }
            signal.tell(Call::GiveUp);
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

impl Signal {
    fn tell(&self, call: Call) {
        self.call.fetch_max(call as u8, Ordering::SeqCst);
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake_by_ref();
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
            1 => Call::GiveUp,
            2 => Call::SayGoodbye,
            _ => Call::Drop,
        }
    }

    /// Counts the bytes that the connection keeps of an unfinished packet. When all keep too many and this one more
    /// than before, those that keep most are told to [`Call::GiveUp`].
    pub fn keep(&self, bytes: usize) {
        let all = &self.connections;
        let before = self.signal.kept.swap(bytes, Ordering::Relaxed);
        if bytes > before {
            let total = all.unfinished.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before);
            if total > all.unfinished_max.load(Ordering::Relaxed) {
                all.end_the_largest();
            }
        } else {
            all.unfinished.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        if bytes == 0 {
            // It came whole before anything was done about it.
            let call = &self.signal.call;
            let _ = call.compare_exchange(Call::GiveUp as u8, Call::GoOn as u8, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.keep(0);
        let mut state = lock(&self.connections.state);
        state.open.remove(&self.id);
        if state.open.is_empty() {
            self.connections.emptied.notify_waiters();
        }
    }
}

/// Keeps a lasting condition from filling the log.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<Instant>,
}

impl Complaint {
    /// Whether to complain now.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now - last >= COMPLAIN_EVERY);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[test]
    fn a_freed_place_can_be_taken_again() {
        let connections = Connections::new(2, 0);
        let first = connections.admit(REMOTE);
        let second = connections.admit(REMOTE);
        assert!(first.is_some() && second.is_some());
        assert!(connections.admit(REMOTE).is_none());
        drop(first);
        assert!(connections.admit(REMOTE).is_some());
        assert_eq!(connections.count(), 1);
    }

    #[test]
    fn a_call_is_never_taken_back() {
        let connections = Connections::new(1, 0);
        let ticket = connections.admit(REMOTE).expect("the first");
        assert_eq!(ticket.call(), Call::GoOn);
        connections.tell(Call::Drop);
        connections.tell(Call::SayGoodbye);
        assert_eq!(ticket.call(), Call::Drop);
        drop(ticket);
        let late = connections.admit(REMOTE).expect("the place is free");
        assert_eq!(late.call(), Call::Drop);
    }

    #[test]
    fn who_keeps_most_gives_up_once_all_keep_too_much() {
        let connections = Connections::new(9, 100);
        let tickets: Vec<_> = (0..4).map(|_| connections.admit(REMOTE).expect("a place")).collect();
        let calls = || tickets.iter().map(Ticket::call).collect::<Vec<_>>();
        for (ticket, bytes) in tickets.iter().zip([30, 40, 0, 30]) {
            ticket.keep(bytes);
        }
        assert_eq!((connections.unfinished(), calls()), (100, vec![Call::GoOn; 4]));
        tickets[2].keep(1);
        let second = vec![Call::GoOn, Call::GiveUp, Call::GoOn, Call::GoOn];
        assert_eq!((connections.unfinished(), calls()), (101, second.clone()));
        // It is as good as gone: nobody else has to go for what it still keeps.
        tickets[2].keep(39);
        assert_eq!(calls(), second);
        // Its packet came whole in time.
        tickets[1].keep(0);
        assert_eq!((connections.unfinished(), calls()), (99, vec![Call::GoOn; 4]));
        // Whoever keeps less than before is no reason to end anybody.
        connections.set_max(9, 50);
        tickets[2].keep(38);
        assert_eq!(calls(), vec![Call::GoOn; 4]);
        tickets[0].keep(50);
        assert_eq!(calls(), [Call::GiveUp, Call::GoOn, Call::GiveUp, Call::GoOn]);
        drop(tickets);
        assert_eq!(connections.unfinished(), 0);
    }

    #[test]
    fn a_broker_that_goes_down_is_more_than_too_much_kept() {
        let connections = Connections::new(1, 10);
        let ticket = connections.admit(REMOTE).expect("a place");
        ticket.keep(11);
        assert_eq!(ticket.call(), Call::GiveUp);
        connections.tell(Call::SayGoodbye);
        ticket.keep(0);
        assert_eq!(ticket.call(), Call::SayGoodbye);
    }
}
