//! The fuzz targets' bodies on seeded bytes: random ones, and real records with bytes changed.

mod support;

use rocketbridge_core::boundary::Publish;
use rocketbridge_core::fuzzing::{fuzz, fuzz_filter};
use rocketbridge_core::message::{Entry, Message};
use rocketbridge_core::store::storage::{Area, FileId, Storage};
use rocketbridge_core::time::Millis;
use support::*;

#[test]
fn no_bytes_make_a_decoder_panic() {
    let harness = Harness::new();
    let mut client = harness.client();
    let publish: Publish = message(Entry::Topic, "t", "k", "body");
    let host = "127.0.0.1:1".parse().unwrap();
    assert_eq!(Message::from_publish(&publish, host, host, Millis(1)).body(), b"body");
    client.publish(publish);
    harness.engine.sync_once().unwrap();
    let mut seed = vec![0; 2048];
    let segment = harness.storage.files(Area::Log).unwrap()[0];
    harness.storage.read(FileId::segment(segment), 0, &mut seed).unwrap();
    let mut random = Random(1);
    for _ in 0..200_000 {
        let start = 8 * random.below(120) as usize;
        let mut data = seed[start..start + random.below(600) as usize].to_vec();
        for _ in 0..random.below(6) {
            if !data.is_empty() {
                let at = random.below(data.len() as u64) as usize;
                data[at] = random.below(256) as u8;
            }
        }
        fuzz(&data);
    }
}

#[test]
fn no_expression_makes_the_filter_panic() {
    let pieces = [
        "a",
        "b",
        "$c",
        "TAGS",
        "1",
        "2.5",
        "3000000000",
        "1e3",
        ".5",
        "9L",
        "'x'",
        "''",
        "'it''s'",
        "'",
        "TRUE",
        "null",
        " and ",
        " OR ",
        "not ",
        "=",
        "<>",
        "<",
        "<=",
        ">",
        ">=",
        "(",
        ")",
        ",",
        " in ",
        " between ",
        " is ",
        " contains ",
        " startswith ",
        " endswith ",
        "-",
        "+",
        "--",
        "\n",
        "/*",
        "*/",
        " ",
        "é",
        "\u{0}",
        "#",
        "e",
        ".",
    ];
    let properties = "a\u{1}1\u{2}b\u{1}x\u{2}$c\u{1}2.5\u{2}TAGS\u{1}é\u{2}";
    let mut random = Random(2);
    for _ in 0..200_000 {
        let mut data = String::new();
        for _ in 0..random.below(24) {
            data += pieces[random.below(pieces.len() as u64) as usize];
        }
        data.push('\n');
        data += properties;
        fuzz_filter(data.as_bytes());
    }
}
