//! Real clients of other languages against the real program; see `tests/interop/`.
//!
//! Each test starts a broker of its own on free ports. The number of checks stands here, so that a suite
//! that skips some fails.

mod support;

use support::clients::{Language, run};

#[test]
fn go_amqp() {
    run(Language::Go, "amqp", 82);
}

#[test]
fn go_amqp_through_a_kill() {
    run(Language::Go, "amqp-restart", 6);
}

#[test]
fn go_entity_synchronisation() {
    run(Language::Go, "entity-sync", 6);
}

#[test]
fn go_rocketmq_tutorial() {
    run(Language::Go, "tutorial", 2);
}

#[test]
fn go_rocketmq() {
    run(Language::Go, "rocketmq", 28);
}

#[test]
fn go_rocketmq_later() {
    run(Language::Go, "rocketmq-later", 7);
}

#[test]
fn go_rocketmq_later_through_a_kill() {
    run(Language::Go, "rocketmq-later-restart", 3);
}

#[test]
fn go_rocketmq_through_a_kill() {
    run(Language::Go, "rocketmq-restart", 5);
}

#[test]
fn go_mqtt() {
    run(Language::Go, "mqtt", 35);
}

#[test]
fn go_across() {
    run(Language::Go, "across", 45);
}

#[test]
fn go_stomp() {
    run(Language::Go, "stomp", 5);
}

#[test]
fn java_amqp() {
    run(Language::Java("5.3.3"), "amqp", 14);
}

#[test]
fn java_rocketmq_4_9_8() {
    run(Language::Java("4.9.8"), "rocketmq", 24);
}

#[test]
fn java_rocketmq_later_4_9_8() {
    run(Language::Java("4.9.8"), "rocketmq-later", 7);
}

#[test]
fn java_rocketmq_later_5_3_3() {
    run(Language::Java("5.3.3"), "rocketmq-later", 7);
}

#[test]
fn java_rocketmq_5_3_3() {
    run(Language::Java("5.3.3"), "rocketmq", 24);
}

#[test]
fn java_spring_stomp() {
    run(Language::Spring, "stomp", 21);
}

#[test]
fn python_amqp() {
    run(Language::Python, "amqp", 16);
}

#[test]
fn python_mqtt() {
    run(Language::Python, "mqtt", 14);
}

#[test]
fn python_mqtt_sessions_through_a_kill() {
    run(Language::Python, "mqtt-restart", 5);
}

#[test]
fn node_mqtt_sessions_through_a_kill() {
    run(Language::Node, "mqtt-restart", 5);
}

#[test]
fn python_stomp() {
    run(Language::Python, "stomp", 8);
}

#[test]
fn node_stomp() {
    run(Language::Node, "stomp", 6);
}

#[test]
fn node_amqp() {
    run(Language::Node, "amqp", 15);
}

#[test]
fn node_mqtt() {
    run(Language::Node, "mqtt", 12);
}
