//! Consumers with selectors on a queue that others consume too.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use rocketbridge_core::attributes::{AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::filter::{Names, Sql};
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::*;
use rocketbridge_core::time::Millis;
use support::*;

struct Broker {
    harness: Harness,
    client: Client,
}

impl Broker {
    fn new(queue: Queue) -> Self {
        let mut broker = Self::on(Harness::new());
        broker
            .client
            .ask(&broker.harness.engine, Request::DeclareQueue(queue))
            .unwrap();
        broker
    }

    fn on(harness: Harness) -> Self {
        let client = harness.client();
        Self { harness, client }
    }

    /// Publishes a message of a colour to queue `q`; the body says the colour, too.
    fn publish(&mut self, number: u64, colour: &str) {
        let mut attributes = AttributesBuilder::default();
        attributes.put(Name::User(b"colour"), Value::Text(colour.as_bytes()));
        self.client.publish(Publish {
            attributes: attributes.finish(),
            ..message(Entry::Queue, "q", "", &format!("{number} {colour}"))
        });
    }

    fn consumer(&self, number: u32, selector: &str, window: Option<u32>) -> Consumer {
        self.consumer_of(Subscribe {
            selector: selector_of(selector),
            ..subscribe(number, window)
        })
    }

    fn consumer_of(&self, subscribe: Subscribe) -> Consumer {
        let mut client = self.harness.client();
        let subscription = subscribe.subscription;
        client.request(Request::Subscribe(subscribe));
        self.harness.engine.sync_once().unwrap();
        Consumer { client, subscription }
    }
}

fn subscribe(number: u32, window: Option<u32>) -> Subscribe {
    Subscribe {
        subscription: SubscriptionId(number),
        queue: bytes("q"),
        acknowledge: Acknowledge::Always,
        window,
        exclusive: false,
        priority: 0,
        selector: None,
    }
}

fn selector_of(text: &str) -> Option<Box<Sql>> {
    (!text.is_empty()).then(|| Box::new(Sql::compile(text, Names::Native).unwrap()))
}

struct Consumer {
    client: Client,
    subscription: SubscriptionId,
}

impl Consumer {
    fn bodies(&mut self) -> Vec<String> {
        self.client.bodies()
    }

    fn settle(&mut self, sequence: u64, action: Settle) {
        self.client.settle(self.subscription, sequence, 1, action);
    }
}

#[test]
fn what_a_selector_does_not_take_stays_in_its_place_for_others() {
    let mut broker = Broker::new(queue("q"));
    let mut red = broker.consumer(1, "colour = 'red'", None);
    for (number, colour) in ["blue", "red", "blue", "green", "red"].into_iter().enumerate() {
        broker.publish(number as u64, colour);
    }
    assert_eq!(red.bodies(), ["1 red", "4 red"]);
    let mut blue = broker.consumer(2, "colour = 'blue'", Some(1));
    let first = blue.client.deliveries();
    assert_eq!(first.iter().map(body).collect::<Vec<_>>(), ["0 blue"]);
    assert!(!first[0].redelivered, "nobody had it");
    blue.settle(first[0].sequence, Settle::Ack);
    assert_eq!(blue.bodies(), ["2 blue"]);
    let mut all = broker.consumer(3, "", None);
    let rest = all.client.deliveries();
    assert_eq!(rest.iter().map(body).collect::<Vec<_>>(), ["3 green"]);
    assert!(!rest[0].redelivered);
    broker.publish(5, "white");
    assert_eq!(all.bodies(), ["5 white"]);
}

#[test]
fn what_comes_back_goes_to_the_first_whose_selector_takes_it_and_is_flagged() {
    let mut broker = Broker::new(queue("q"));
    let mut one = broker.consumer(1, "colour = 'red'", None);
    broker.publish(0, "blue");
    broker.publish(1, "red");
    broker.publish(2, "red");
    let taken = one.client.deliveries();
    assert_eq!(taken.iter().map(body).collect::<Vec<_>>(), ["1 red", "2 red"]);
    let mut two = broker.consumer(2, "colour IN ('red', 'green')", None);
    assert_eq!(two.bodies(), [""; 0]);
    one.settle(taken[0].sequence, Settle::Release);
    let again = [one.client.deliveries(), two.client.deliveries()].concat();
    assert_eq!(again.iter().map(body).collect::<Vec<_>>(), ["1 red"]);
    assert!(again[0].redelivered);
    drop(one);
    let all: BTreeSet<_> = two.bodies().into_iter().chain(again.iter().map(body)).collect();
    assert_eq!(
        all,
        BTreeSet::from(["1 red".to_owned(), "2 red".to_owned()]),
        "lost connections give back, too"
    );
}

#[test]
fn what_nobody_selects_is_still_counted_expires_and_is_purged() {
    let mut broker = Broker::new(Queue {
        limit: Limit {
            messages: Some(4),
            bytes: None,
        },
        policy: Some(Box::new(Policy {
            message_ttl: Some(Millis(1000)),
            dead_letter: Some(DeadLetter {
                way: Way::Queue,
                key: Some(bytes("dead")),
            }),
            ..Policy::default()
        })),
        ..queue("q")
    });
    let Broker { harness, client } = &mut broker;
    client
        .ask(&harness.engine, Request::DeclareQueue(queue("dead")))
        .unwrap();
    let mut dead = harness.client();
    dead.subscribe("dead", None);
    let mut red = broker.consumer(1, "colour = 'red'", None);
    for number in 0..6 {
        broker.publish(number, "blue");
    }
    assert_eq!(dead.bodies(), ["0 blue", "1 blue"], "a full queue drops its head");
    broker.harness.clock.advance(1001);
    broker.harness.engine.tick();
    assert_eq!(dead.bodies(), ["2 blue", "3 blue", "4 blue", "5 blue"]);
    broker.publish(6, "blue");
    broker.publish(7, "red");
    assert_eq!(red.bodies(), ["7 red"]);
    let purged = broker
        .client
        .ask(&broker.harness.engine, Request::PurgeQueue { name: bytes("q") });
    assert!(matches!(purged, Ok(Reply::Count(1))), "{purged:?}");
}

#[test]
fn selectors_keep_to_priorities_and_to_the_single_active_consumer() {
    let mut broker = Broker::new(Queue {
        policy: Some(Box::new(Policy {
            single_active: true,
            ..Policy::default()
        })),
        ..queue("q")
    });
    let mut red = broker.consumer(1, "colour = 'red'", None);
    let mut all = broker.consumer(2, "", None);
    broker.publish(0, "blue");
    broker.publish(1, "red");
    assert_eq!((red.bodies(), all.bodies()), (vec!["1 red".to_owned()], vec![]));
    drop(red);
    assert_eq!(all.bodies(), ["0 blue", "1 red"]);

    let mut broker = Broker::new(queue("q"));
    let mut first = broker.consumer_of(Subscribe {
        priority: 5,
        selector: selector_of("colour = 'red'"),
        ..subscribe(1, Some(1))
    });
    let mut second = broker.consumer(2, "", None);
    for (number, colour) in ["red", "blue", "red"].into_iter().enumerate() {
        broker.publish(number as u64, colour);
    }
    assert_eq!(first.bodies(), ["0 red"]);
    assert_eq!(second.bodies(), ["1 blue", "2 red"]);
}

#[test]
fn a_restart_forgets_who_looked_at_what_and_loses_nothing() {
    let mut broker = Broker::new(queue("q"));
    let mut red = broker.consumer(1, "colour = 'red'", None);
    for (number, colour) in ["blue", "red", "green"].into_iter().enumerate() {
        broker.publish(number as u64, colour);
    }
    let taken = red.client.deliveries();
    red.settle(taken[0].sequence, Settle::Ack);
    broker.harness.engine.sync_once().unwrap();
    let Broker { harness, client } = broker;
    drop((client, red));
    let broker = Broker::on(harness.kill());
    let mut rest = broker.consumer(1, "colour <> 'red'", None);
    assert_eq!(rest.bodies(), ["0 blue", "2 green"]);
}

/// Random publishes, settlements, consumers that come and go: each message goes to one consumer at a time, which
/// wants it; in the end nothing waits that a consumer with room wants; what was never handed out is not flagged.
#[test]
fn selecting_agrees_with_a_model_under_random_operations() {
    const COLOURS: [&str; 3] = ["red", "green", "blue"];
    const SELECTORS: [(&str, [bool; 3]); 5] = [
        ("colour = 'red'", [true, false, false]),
        ("colour <> 'red'", [false, true, true]),
        ("colour IN ('red', 'blue')", [true, false, true]),
        ("colour IS NULL", [false, false, false]),
        ("", [true, true, true]),
    ];
    #[derive(Debug)]
    struct Known {
        colour: usize,
        holder: Option<u32>,
        handed_out: bool,
    }
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut broker = Broker::new(queue("q"));
        let mut consumers: BTreeMap<u32, (Consumer, [bool; 3], u64)> = BTreeMap::new();
        let mut messages: BTreeMap<u64, Known> = BTreeMap::new();
        let (mut published, mut number) = (0, 0);
        for _ in 0..120 {
            match random.below(8) {
                0..3 => {
                    let colour = random.below(3) as usize;
                    broker.publish(published, COLOURS[colour]);
                    let known = Known {
                        colour,
                        holder: None,
                        handed_out: false,
                    };
                    messages.insert(published, known);
                    published += 1;
                }
                3 if consumers.len() < 4 => {
                    number += 1;
                    let (text, wants) = SELECTORS[random.below(5) as usize];
                    let window = 1 + random.below(3);
                    let consumer = broker.consumer(number, text, Some(window as u32));
                    consumers.insert(number, (consumer, wants, window));
                }
                4 if random.below(4) == 0 => {
                    if let Some((number, _)) = consumers.pop_first() {
                        let held = messages.values_mut().filter(|known| known.holder == Some(number));
                        held.for_each(|known| known.holder = None);
                    }
                }
                _ => {
                    let held: Vec<_> = messages.iter().filter(|(_, known)| known.holder.is_some()).collect();
                    if held.is_empty() {
                        continue;
                    }
                    let (at, known) = held[random.below(held.len() as u64) as usize];
                    let (at, holder) = (*at, known.holder.expect("it is held"));
                    let (consumer, _, _) = consumers.get_mut(&holder).expect("it is there");
                    if random.below(3) == 0 {
                        consumer.settle(at, Settle::Release);
                        messages.get_mut(&at).expect("known").holder = None;
                    } else {
                        consumer.settle(at, Settle::Ack);
                        messages.remove(&at);
                    }
                }
            }
            for (number, (consumer, wants, window)) in &mut consumers {
                for delivery in consumer.client.deliveries() {
                    // One queue, published in order: a message's sequence is its number.
                    let known = messages.get_mut(&delivery.sequence).expect("it is not settled");
                    assert_eq!(
                        body(&delivery),
                        format!("{} {}", delivery.sequence, COLOURS[known.colour])
                    );
                    assert!(wants[known.colour], "seed {seed}: {known:?} goes to consumer {number}");
                    assert_eq!(known.holder, None, "seed {seed}: it is another's");
                    assert_eq!(delivery.redelivered, known.handed_out, "seed {seed}: {delivery:?}");
                    (known.holder, known.handed_out) = (Some(*number), true);
                }
                let held = messages.values().filter(|known| known.holder == Some(*number)).count() as u64;
                assert!(held <= *window, "seed {seed}");
            }
            for (number, (_, wants, window)) in &consumers {
                let held = messages.values().filter(|known| known.holder == Some(*number)).count() as u64;
                let waits = messages
                    .values()
                    .any(|known| known.holder.is_none() && wants[known.colour]);
                assert!(held == *window || !waits, "seed {seed}: consumer {number} has room");
            }
        }
    }
}
