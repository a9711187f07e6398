//! A command capsule, entry and data: every field is read by every reading there is, and what points into the data stays in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway_core::wire::command::{SQE_BYTES, Sqe};
use ringway_core::wire::dsm::DsmRange;
use ringway_core::wire::fabrics::{Capabilities, Configuration, Connect, ConnectData, Property, PropertyFields};
use ringway_core::wire::sgl::DataPlace;

fuzz_target!(|bytes: &[u8]| {
    let Some(sqe) = Sqe::read(bytes) else {
        assert!(bytes.len() < SQE_BYTES);
        return;
    };
    let data = &bytes[SQE_BYTES..];
    let _ = (sqe.fuse(), sqe.direction(), sqe.psdt(), sqe.reserved_flags());

    let range = sqe.block_range();
    assert!((1..=1 << 16).contains(&range.blocks), "the count on the wire is one less");
    let _ = sqe.identify_fields();
    let _ = sqe.log_page_fields();

    if let Ok(DataPlace::InCapsule { offset, len }) = sqe.sgl.locate(data.len()) {
        let (from, to) = (offset as usize, offset as usize + len as usize);
        let data = data.get(from..to).expect("located inside the capsule");
        if let Some(ranges) = DsmRange::read(data) {
            assert_eq!(ranges.len() * size_of::<DsmRange>(), data.len());
        }
        assert!(ConnectData::read(data).is_none() || data.len() >= size_of::<ConnectData>());
    }

    if let Some(connect) = Connect::of(sqe) {
        let again = connect.sqe();
        assert!(Connect::of(&again).is_some(), "what was read as a Connect is written as one");
    }
    let fields = PropertyFields::of(sqe);
    let _ = format!("{fields:?}");
    for wide in [false, true] {
        if let Some(property) = Property::at(sqe.cdw11.get(), wide) {
            let (offset, is_wide) = property.place();
            assert_eq!((offset, is_wide), (sqe.cdw11.get(), wide));
        }
    }
    let value = u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32;
    assert!(Capabilities(value).queue_entries_max() >= 1);
    assert!(Capabilities(value).page_bytes_min() >= 4096);
    let _ = (Capabilities(value).timeout_ms(), Configuration(value as u32).shutdown());
});
