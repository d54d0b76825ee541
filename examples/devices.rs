//! An MQTT client that prints what everybody sends to devices, and sends one command itself.
//!
//! `cargo run --example devices`; `MQTT_PORT` is the broker's port, unless it is 1883.

use rumqttc::{Client, Event, MqttOptions, Packet, QoS};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::var("MQTT_PORT").map_or(Ok(1883), |port| port.parse())?;
    let (client, mut connection) = Client::new(MqttOptions::new("rust", "127.0.0.1", port), 10);
    client.subscribe("devices/#", QoS::AtLeastOnce)?;
    client.publish("devices/42/cmd", QoS::AtLeastOnce, false, "reboot, says Rust")?;
    for event in connection.iter() {
        if let Event::Incoming(Packet::Publish(message)) = event? {
            println!("rust received {}", String::from_utf8_lossy(&message.payload));
        }
    }
    Ok(())
}
