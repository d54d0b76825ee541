//! Entity synchronisation: the services of a company keep copies of users and groups up to date.
//!
//! One service owns the entities of a kind and publishes every change to a durable fanout exchange. Each
//! consuming service has one durable queue for each exchange, named after both, and as many instances as it
//! likes compete on it. Nothing is lost: publishers wait for confirms and publish again what came back;
//! consumers acknowledge what they have done and give back what failed.
//!
//! ```text
//!                                      +--> exchange_user_consumer_org_rpc  --> org_rpc 1, org_rpc 2
//!   user service --> (exchange_user) --+
//!                                      +--> exchange_user_consumer_search   --> search 1
//!                                      +--> exchange_group_consumer_org_rpc --> org_rpc 1, org_rpc 2
//!  group service --> (exchange_group) -+
//!                                      +--> exchange_group_consumer_search  --> search 1
//! ```
//!
//! Start the broker with `cargo run --release -- serve`, then in other terminals:
//!
//! ```text
//! cargo run --example entity_sync                     # all of it in one process, as a first look
//! cargo run --example entity_sync -- publish 1000     # the service that owns the entities
//! cargo run --example entity_sync -- consume org_rpc  # an instance of a consuming service: start two
//! ```
//!
//! Kill the broker while they run and start it again: they connect again and go on. `AMQP_URL` says where
//! the broker is; the default is `amqp://guest:guest@127.0.0.1:5672/%2f`. The program is plain AMQP 0-9-1
//! and runs against RabbitMQ as well. With RocketBridge, native RocketMQ clients can read the same entities
//! from topics `exchange_user` and `exchange_group`, also those published before they came.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::time::{Duration, SystemTime};

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

const EXCHANGES: [&str; 2] = ["exchange_user", "exchange_group"];

/// Publishes that may wait for their confirm.
const WINDOW: usize = 100;

/// Deliveries that an instance may hold.
const PREFETCH: u16 = 20;

/// Between two attempts to reach the broker, and between two looks at a connection.
const PAUSE: Duration = Duration::from_millis(200);

/// For the broker's greeting, and its goodbye.
const PATIENCE: Duration = Duration::from_secs(10);

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => demonstrate().await,
        ["publish", count] => {
            publish_until_done(entities(count.parse()?)).await;
            Ok(())
        }
        ["consume", service] => {
            let (done, mut synchronised) = unbounded_channel();
            tokio::spawn(consume_for_ever(service.to_owned(), 1, done));
            while let Some((exchange, id)) = synchronised.recv().await {
                println!("{service}: {exchange} {id}");
            }
            Ok(())
        }
        _ => Err("usage: entity_sync [publish COUNT | consume SERVICE]".into()),
    }
}

/// Two instances of one service, and another service that starts when all is published.
async fn demonstrate() -> Result<(), Failure> {
    let channel = connect().await?.create_channel().await?;
    for service in ["org_rpc", "search"] {
        declare(&channel, service).await?;
    }
    let (done, mut synchronised) = unbounded_channel();
    for instance in 1..=2 {
        tokio::spawn(consume_for_ever("org_rpc".to_owned(), instance, done.clone()));
    }
    let entities = entities(200);
    let ids: BTreeSet<_> = entities.iter().map(|entity| entity.id.clone()).collect();
    publish_until_done(entities).await;
    wait_for("org_rpc", ids.clone(), &mut synchronised).await;

    tokio::spawn(consume_for_ever("search".to_owned(), 1, done));
    wait_for("search, which started late,", ids, &mut synchronised).await;
    Ok(())
}

async fn wait_for(
    service: &str,
    mut missing: BTreeSet<String>,
    synchronised: &mut tokio::sync::mpsc::UnboundedReceiver<(String, String)>,
) {
    let count = missing.len();
    while !missing.is_empty() {
        // A message may come twice, so a service must not mind.
        let (_, id) = synchronised.recv().await.expect("instances run for ever");
        missing.remove(&id);
    }
    println!("{service} has all {count} entities");
}

/// What is published: a change of one entity.
struct Entity {
    id: String,
    exchange: &'static str,
    change: Value,
}

fn entities(count: usize) -> Vec<Entity> {
    let run = std::process::id();
    let of_kind = |exchange: &'static str, kind: &'static str, number: usize| Entity {
        id: format!("{kind}-{run}-{number}"),
        exchange,
        change: json!({ "kind": kind, "number": number, "name": format!("{kind} number {number}") }),
    };
    (0..count)
        .flat_map(|number| {
            [
                of_kind(EXCHANGES[0], "user", number),
                of_kind(EXCHANGES[1], "group", number),
            ]
        })
        .collect()
}

async fn connect() -> Result<Connection, Failure> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned());
    let properties = ConnectionProperties::default().with_connection_name("entity_sync".into());
    Ok(timeout(PATIENCE, Connection::connect(&url, properties)).await??)
}

/// What comes of `work`, or an error when the connection is gone. lapin (4.12) tells everybody who waits for
/// the broker that the connection is lost, except who begins to wait in the moment in which it ends.
async fn unless_lost<T, E: Into<Failure>>(
    connection: &Connection,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let lost = async {
        while connection.status().connected() {
            // Its events are not kept for who listens late, its state is.
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        biased;
        result = work => result.map_err(E::into),
        () = lost => Err("the connection is lost".into()),
    }
}

/// What both sides agree on. Declaring what is there already changes nothing, so everybody does it.
async fn declare(channel: &Channel, service: &str) -> Result<(), lapin::Error> {
    for exchange in EXCHANGES {
        declare_exchange(channel, exchange).await?;
        let queue = queue_of(exchange, service);
        channel
            .queue_declare(
                queue.as_str().into(),
                QueueDeclareOptions::durable(),
                FieldTable::default(),
            )
            .await?;
        let (source, key) = (exchange.into(), "".into());
        channel
            .queue_bind(
                queue.as_str().into(),
                source,
                key,
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
    }
    Ok(())
}

async fn declare_exchange(channel: &Channel, exchange: &str) -> Result<(), lapin::Error> {
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(exchange.into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
}

fn queue_of(exchange: &str, service: &str) -> String {
    format!("{exchange}_consumer_{service}")
}

// --- the service that owns the entities --------------------------------------------------------------

/// Publishes until every entity is confirmed and was taken by a queue, over as many connections as it takes.
async fn publish_until_done(mut entities: Vec<Entity>) {
    let count = entities.len();
    while !entities.is_empty() {
        if let Err(error) = publish(&mut entities).await {
            eprintln!("{} entities are not confirmed, again soon: {error}", entities.len());
        }
        if !entities.is_empty() {
            // A broker that is away, or has no queue yet, is not asked without a break.
            sleep(PAUSE).await;
        }
    }
    println!("{count} changes are published and confirmed");
}

/// One attempt. What is confirmed and was not returned leaves the list.
async fn publish(entities: &mut Vec<Entity>) -> Result<(), Failure> {
    let connection = connect().await?;
    let channel = unless_lost(&connection, confirming_channel(&connection)).await?;
    let mut waiting = std::mem::take(entities);
    while !waiting.is_empty() {
        let window = waiting.drain(..waiting.len().min(WINDOW)).collect();
        if let Err(error) = publish_window(&connection, &channel, window, entities).await {
            entities.append(&mut waiting);
            return Err(error);
        }
    }
    timeout(PATIENCE, connection.close(200, "done".into())).await??;
    Ok(())
}

async fn confirming_channel(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    for exchange in EXCHANGES {
        declare_exchange(&channel, exchange).await?;
    }
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Publishes all, then waits for the confirms of all. What has to be published again goes to `again`.
async fn publish_window(
    connection: &Connection,
    channel: &Channel,
    window: Vec<Entity>,
    again: &mut Vec<Entity>,
) -> Result<(), Failure> {
    let mut confirms = Vec::new();
    for entity in &window {
        confirms.push(unless_lost(connection, send(channel, entity)).await);
    }
    let mut result = Ok(());
    for (entity, confirm) in window.into_iter().zip(confirms) {
        let confirmation = match confirm {
            Ok(confirm) => unless_lost(connection, confirm).await,
            Err(error) => Err(error),
        };
        match confirmation {
            Ok(Confirmation::Ack(None)) => {}
            // Refused, or confirmed after it came back because no queue wants it yet.
            Ok(_) => again.push(entity),
            Err(error) => {
                again.push(entity);
                result = Err(error);
            }
        }
    }
    result
}

async fn send(channel: &Channel, entity: &Entity) -> Result<lapin::PublisherConfirm, lapin::Error> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut headers = FieldTable::default();
    // RocketBridge keeps the order of messages with the same key for native consumers, too.
    headers.insert(
        "x-sharding-key".into(),
        AMQPValue::LongString(LongString::from(entity.id.as_str())),
    );
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2) // persistent: it survives a restart of the broker
        .with_message_id(entity.id.as_str().into())
        .with_timestamp(now.as_secs())
        .with_headers(headers);
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let body = entity.change.to_string();
    channel
        .basic_publish(entity.exchange.into(), "".into(), options, body.as_bytes(), properties)
        .await
}

// --- a consuming service --------------------------------------------------------------------------------

/// An instance: it works until the process ends, over as many connections as it takes. Exchange and id of
/// each entity that it has synchronised go to `done`.
async fn consume_for_ever(service: String, instance: u32, done: UnboundedSender<(String, String)>) {
    loop {
        if let Err(error) = consume(&service, instance, &done).await {
            eprintln!("{service} {instance}: again soon: {error}");
        }
        // A broker that is away is not asked without a break.
        sleep(PAUSE).await;
    }
}

async fn consume(service: &str, instance: u32, done: &UnboundedSender<(String, String)>) -> Result<(), Failure> {
    let connection = connect().await?;
    unless_lost(&connection, consume_on(&connection, service, instance, done)).await
}

async fn consume_on(
    connection: &Connection,
    service: &str,
    instance: u32,
    done: &UnboundedSender<(String, String)>,
) -> Result<(), Failure> {
    let channel = connection.create_channel().await?;
    declare(&channel, service).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let [mut users, mut groups] = [
        consumer(&channel, EXCHANGES[0], service, instance).await?,
        consumer(&channel, EXCHANGES[1], service, instance).await?,
    ];
    loop {
        let delivery = tokio::select! {
            delivery = users.next() => delivery,
            delivery = groups.next() => delivery,
        };
        let delivery = delivery.ok_or("the consumer was cancelled")??;
        match synchronise(&delivery) {
            Ok(id) => {
                // First the work, then the acknowledgement: what fails in between comes again.
                let _ = done.send((delivery.exchange.to_string(), id));
                delivery.ack(BasicAckOptions::default()).await?;
            }
            Err(error) => {
                eprintln!("{service} {instance}: {error}");
                // Back to its place in the queue, for the next instance that is free.
                delivery
                    .nack(BasicNackOptions {
                        requeue: true,
                        ..BasicNackOptions::default()
                    })
                    .await?;
            }
        }
    }
}

async fn consumer(channel: &Channel, exchange: &str, service: &str, instance: u32) -> Result<Consumer, lapin::Error> {
    let (queue, tag) = (queue_of(exchange, service), format!("{exchange}-{service}-{instance}"));
    let options = BasicConsumeOptions::default();
    channel
        .basic_consume(
            queue.as_str().into(),
            tag.as_str().into(),
            options,
            FieldTable::default(),
        )
        .await
}

/// The work of the service: here it only reads the change. Fails now and then at the first attempt, as real
/// work does.
fn synchronise(delivery: &Delivery) -> Result<String, Failure> {
    let id = delivery
        .properties
        .message_id()
        .as_ref()
        .ok_or("a change without an id")?
        .to_string();
    let change: Value = serde_json::from_slice(&delivery.data)?;
    let number = change["number"].as_u64().ok_or("a change without a number")?;
    if number % 50 == 7 && !delivery.redelivered {
        return Err(format!("{id}: the database is busy").into());
    }
    Ok(id)
}
