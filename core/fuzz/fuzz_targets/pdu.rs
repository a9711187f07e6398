//! A stream of PDUs as a target or a host reads it: each is refused with a termination, or its parts lie inside it.
//!
//! The first byte chooses who reads and which digests were agreed; the rest is the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway_core::wire::command::Sqe;
use ringway_core::wire::pdu::{Agreed, COMMON, Common, DIGEST, Frame, HEADER_MAX, Reader, check_header_digest};
use zerocopy::FromBytes;

const DATA_MAX: usize = 256 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, mut stream)) = bytes.split_first() else { return };
    let agreed =
        Agreed { header_digest: choice & 1 != 0, data_digest: choice & 2 != 0, pda: 4 << (choice >> 4 & 7).min(5) };
    let reader = if choice & 4 == 0 { Reader::Controller } else { Reader::Host };
    while let Ok((common, _)) = Common::ref_from_prefix(stream) {
        let Ok(frame) = Frame::check(common, reader, &agreed, DATA_MAX) else { return };
        assert!(COMMON <= frame.header_len && frame.header_len <= HEADER_MAX + DIGEST);
        assert!(frame.header_len <= frame.data_offset && frame.data_len <= DATA_MAX);
        let digest = if frame.has_data_digest() { DIGEST } else { 0 };
        assert_eq!(frame.data_offset + frame.data_len + digest, frame.pdu_len);
        assert_eq!(frame.pdu_len, common.plen.get() as usize, "the next PDU starts where this one says");
        assert!(digest == 0 || agreed.data_digest);
        let Some(header) = stream.get(..frame.header_len) else { return };
        if check_header_digest(&frame, header).is_err() {
            assert!(agreed.header_digest);
            return;
        }
        // Any 64 bytes are an entry; whether they make sense is for the target `capsule`.
        let _ = Sqe::read(&header[COMMON..]);
        let Some(next) = stream.get(frame.pdu_len..) else { return };
        stream = next;
    }
});
