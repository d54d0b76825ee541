//! Bodies of fuzz targets, also run under `cargo test` with seeded bytes.

use crate::attributes::Iter;
use crate::engine::decode_change;
use crate::filter::{Names, Sql};
use crate::properties;
use crate::store::record::{self, MessageRecord, Position};

/// Reads bytes as everything core decodes; nothing may panic.
pub fn fuzz(data: &[u8]) {
    let _ = record::check(data, Position(0));
    let view = MessageRecord::of(data);
    if view.is_whole() {
        let _ = (
            view.topic(),
            view.key(),
            view.attributes(),
            view.origin(),
            view.properties(),
            view.born_at(),
        );
        let _ = (view.topic_queue(), view.destinations().count(), data.get(view.body()));
    }
    decode_change(data);
    Iter::new(data).for_each(drop);
    properties::attributes(data).for_each(drop);
}

/// Reads bytes as an expression and, behind a newline at the end of it, a property string; nothing may panic.
pub fn fuzz_filter(data: &[u8]) {
    let at = data.iter().rposition(|byte| *byte == b'\n').unwrap_or(data.len());
    let (text, properties) = data.split_at(at);
    let text = String::from_utf8_lossy(text);
    for names in [Names::Native, Names::Jms] {
        match Sql::compile(&text, names) {
            Ok(sql) => {
                let first = sql.matches(properties::pairs(properties));
                assert_eq!(sql.matches(properties::pairs(properties)), first);
            }
            Err(error) => assert!(error.position >= 1 && error.position <= text.chars().count() + 1),
        }
    }
}
