//! What an RDMA host sends before and after it is connected: private data, and a capsule whose descriptor is keyed or in the capsule.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway_core::wire::command::{SQE_BYTES, Sqe};
use ringway_core::wire::rdma::{CmAccept, CmReject, CmRequest};
use ringway_core::wire::sgl::{Capsule, DataPlace, KEYED_BYTES_MAX, SGL_KEYED, SGL_KEYED_INVALIDATE, Sgl};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(wish) = CmRequest::check(bytes, 128, 256) {
        assert!(bytes.len() >= size_of::<CmRequest>());
        assert!(wish.queue_id <= 128 && (2..=256).contains(&wish.entries) && wish.responses > 0);
        assert!(wish.queue_id > 0 || wish.controller_id.is_none());
    }
    assert!(CmAccept::check(bytes).is_none_or(|receives| receives > 0));
    let _ = CmReject::check(bytes);

    let Some(sqe) = Sqe::read(bytes) else { return };
    let data = &bytes[SQE_BYTES..];
    match sqe.sgl.locate(Capsule::rdma(data.len())) {
        Ok(DataPlace::InCapsule { offset, len }) => {
            let (from, to) = (offset as usize, offset as usize + len as usize);
            data.get(from..to).expect("located inside the capsule");
        }
        Ok(DataPlace::Keyed { len, at }) => {
            assert!(len <= KEYED_BYTES_MAX);
            assert_eq!(Sgl::keyed(len, at), sqe.sgl, "what was read as a keyed descriptor is written as one");
        }
        Ok(DataPlace::Transport { .. }) => panic!("NVMe/RDMA knows no such descriptor"),
        Err(status) => {
            assert!(![SGL_KEYED, SGL_KEYED_INVALIDATE].contains(&sqe.sgl.kind), "any bytes are a keyed descriptor");
            assert!(status.do_not_retry());
        }
    }
});
