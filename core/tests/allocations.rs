//! What the hot path asks of the allocator. A test binary of its own, because the counter is the process's allocator
//! and one other test beside it would be counted too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Waker;

use bytes::Bytes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, Flush};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;

mod support;
use support::{CrashStorage, ManualClock, queue};

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Larger than everything a run writes: making segments is not what is counted.
const SEGMENT: u64 = 64 << 20;

/// Batches before anything is counted, so that buffers have their size.
const WARM_UP: u64 = 20;
const COUNTED: u64 = 30;

/// What a batch may allocate, however many messages it has: buffers of events and outcomes.
const PER_BATCH: f64 = 24.0;

/// What a message may: its share of a chunk of 8 KiB, of index pages and the like.
const PER_MESSAGE: f64 = 0.06;

/// Allocations of one batch: published, made safe, delivered, settled.
fn per_batch(flush: Flush, persistent: bool, size: u64) -> f64 {
    let config = Config {
        flush,
        ..Config::default()
    };
    let storage = Arc::new(CrashStorage::default());
    let engine = Engine::open_storage(storage, SEGMENT, config, Arc::new(ManualClock::default())).expect("it opens");
    let inbox = Inbox::new();
    let peer = Peer {
        remote: ([127, 0, 0, 1], 1).into(),
        local: ([127, 0, 0, 1], 2).into(),
    };
    let mut link = engine.open(peer, inbox.clone());
    let subscription = SubscriptionId(1);
    link.request(RequestId(0), Request::Login(Credentials::Anonymous));
    link.request(RequestId(1), Request::DeclareQueue(queue("q")));
    link.request(
        RequestId(2),
        Request::Subscribe(Subscribe {
            subscription,
            queue: "q".into(),
            acknowledge: Acknowledge::Always,
            window: None,
            exclusive: false,
            priority: 0,
            selector: None,
        }),
    );
    let (topic, body) = (Bytes::from_static(b"q"), Bytes::from(vec![7; 256]));
    let (mut batch, mut settlements, mut events) = (VecDeque::new(), VecDeque::new(), Vec::new());
    let (mut token, mut delivered, mut before) = (0, 0, 0);
    for round in 0..WARM_UP + COUNTED {
        if round == WARM_UP {
            before = ALLOCATIONS.load(Relaxed);
        }
        for _ in 0..size {
            batch.push_back(Publish {
                token,
                entry: Entry::Queue,
                topic: topic.clone(),
                body: body.clone(),
                format: Format(9),
                persistent,
                waits: true,
                ..Publish::default()
            });
            token += 1;
        }
        assert_eq!(link.publish(&mut batch), Admission::All);
        engine.sync_once().expect("the disk works");
        while delivered < token {
            let taken = inbox.take(256, &mut events, Waker::noop());
            if taken.resume {
                link.resume();
            }
            assert!(
                taken.resume || !events.is_empty(),
                "{} of {token} were delivered",
                delivered
            );
            for event in events.drain(..) {
                let Event::Delivery(delivery) = event else { continue };
                delivered += 1;
                settlements.push_back(Settlement {
                    subscription,
                    first: delivery.sequence,
                    count: 1,
                    action: Settle::Ack,
                });
            }
            link.settle(&mut settlements);
        }
    }
    (ALLOCATIONS.load(Relaxed) - before) as f64 / COUNTED as f64
}

#[test]
fn publishing_allocates_per_batch_not_per_message() {
    for (flush, persistent) in [(Flush::Async, false), (Flush::Async, true), (Flush::Sync, true)] {
        for size in [10, 100, 1000] {
            let found = per_batch(flush, persistent, size);
            let allowed = PER_BATCH + PER_MESSAGE * size as f64;
            println!("{flush:?}, persistent {persistent}: {found:.1} allocations for {size} messages");
            assert!(
                found <= allowed,
                "{flush:?}, persistent {persistent}: {found} allocations for {size} messages, not {allowed}"
            );
        }
    }
}
