//! What a stranger says and writes over shared memory: a message of the handshake, and a queue's words with everything in them.
#![no_main]

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use libfuzzer_sys::fuzz_target;
use ringway_core::controller::io::{IoSight, check_shared};
use ringway_core::directory::{Directory, Namespace};
use ringway_core::ids::VolumeId;
use ringway_core::wire::command::Sqe;
use ringway_shm_ring::layout::Layout;
use ringway_shm_ring::message::Message;
use ringway_shm_ring::ring::{Completion, QueuePlace, TargetQueue};
use ringway_shm_ring::words::Words;

const ENTRIES: u16 = 4;
const AREA: u64 = 1 << 20;

struct Heap(RefCell<Vec<u64>>);

impl Words for &Heap {
    fn load(&self, offset: usize, _: Ordering) -> u64 {
        self.0.borrow()[offset / 8]
    }

    fn store(&self, offset: usize, value: u64, _: Ordering) {
        self.0.borrow_mut()[offset / 8] = value;
    }

    fn fence(&self) {}
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::parse(bytes) {
        assert_eq!(Message::parse(&message.bytes()), Ok(message), "what was read is written as the same");
    }
    let place = Layout::new(1, ENTRIES, AREA).expect("possible numbers").queue(0);
    let heap = Heap(RefCell::new(vec![0; (place.base() + QueuePlace::bytes(ENTRIES)) / 8]));
    let mut queue = TargetQueue::new(&heap, place, 1);
    let directory = Directory::default();
    let namespaces = [Namespace { nsid: 1, volume: VolumeId(1) }];
    let sight = IoSight { namespaces: &namespaces, directory: &directory, write_through: false };
    let mut taken = 0u32;
    for command in bytes.chunks_exact(64) {
        let at = place.base() + 256 + (taken as usize % usize::from(ENTRIES)) * 64;
        for (word, value) in command.chunks_exact(8).enumerate() {
            (&heap).store(at + 8 * word, u64::from_le_bytes(value.try_into().expect("eight bytes")), Ordering::Relaxed);
        }
        // With the right ticket, unless the first byte says otherwise.
        if command[0] & 0x80 == 0 {
            (&heap).store(at + 8, 1 << 32 | u64::from(taken + 1), Ordering::Relaxed);
        }
        match queue.take() {
            Ok(Some(words)) => {
                taken += 1;
                let sqe: Sqe = zerocopy::transmute!(words);
                if let Ok((io, offset)) = check_shared(&sqe, AREA, &sight) {
                    assert!(offset + u64::from(io.data.len()) <= AREA, "data lies in the data area");
                }
                if command[1] & 1 == 0 {
                    queue.post(Completion { cid: sqe.cid.get(), status: 0, result: 0 });
                }
            }
            Ok(None) => {}
            // The connection ends.
            Err(_) => return,
        }
        assert!(queue.outstanding() <= u32::from(ENTRIES));
    }
});
