//! Bodies of fuzz targets, also run under `cargo test` with seeded bytes.

use crate::attributes::Iter;
use crate::engine::decode_change;
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
