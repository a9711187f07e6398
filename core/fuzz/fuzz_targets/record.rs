//! Map records out of a journal's body: whatever the bytes are, each is refused or is a record that can be applied, and that
//! means the same after it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway_core::ids::Lsn;
use ringway_core::map::{Decoded, MapNode, NodeKey, Record, Records};
use ringway_core::space::{Geometry, SlabArea};

fuzz_target!(|bytes: &[u8]| {
    let geometry = Geometry::new(4 << 20, vec![SlabArea { start: 1 << 20, slabs: 4 }]);
    let mut node: Option<MapNode> = None;
    let mut lsn = Lsn(0);
    for decoded in Records::new(bytes, &geometry) {
        let Ok(Decoded::Record(record)) = decoded else { continue };
        let mut written = Vec::new();
        record.encode(&mut written);
        assert_eq!(written.len(), record.encoded_len());
        let again = Record::decode(&written, &geometry).expect("what was written is a record");
        assert_eq!(again, (Decoded::Record(record.clone()), written.len()));
        // Replay: records of the first node that is met are applied, in order.
        let Some(key) = NodeKey::of_record(&record) else { continue };
        lsn = Lsn(lsn.0 + 1);
        let node = node.get_or_insert_with(|| MapNode::new(key));
        if node.key() == key {
            node.apply(lsn, &record);
        }
    }
});
