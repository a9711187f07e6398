//! A guest's memory full of anything, and a device that walks the rings in it: chains are inside their bounds, what is taken can be given
//! back, and a ring that is begun again with the notes of its predecessor is as sound.
//!
//! The first bytes choose the ring; the rest is laid over the memory of the guest, rings first.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ringway_reactor::shared::SharedMemory;
use ringway_shm_ring::virtqueue::{
    Chain, GuestMemory, GuestRegion, InflightRegion, RingConfig, VirtQueue, inflight_bytes,
};

const BYTES: usize = 64 << 10;
const SIZE: u16 = 16;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, base)) = bytes.split_first() else { return };
    let Some((base, content)) = base.split_first_chunk::<4>() else { return };
    let (_fd, memory) = SharedMemory::create("guest", BYTES).expect("a page or two");
    memory.write(0, &content[..content.len().min(BYTES)]);
    let half = BYTES as u64 / 2;
    let region = |guest, offset| GuestRegion { guest, len: half, user: guest, memory: Arc::clone(&memory), offset };
    // Two that adjoin, or with a hole between.
    let second = if choice & 16 == 0 { half } else { half * 2 };
    let guest = GuestMemory::new(vec![region(0, 0), region(second, half)]).expect("they do not overlap");
    let config = RingConfig {
        size: SIZE,
        desc: 0,
        driver: 512,
        device: 1024,
        packed: choice & 1 != 0,
        event_idx: choice & 2 != 0,
        indirect: choice & 4 != 0,
        base: u32::from_le_bytes(*base),
    };
    let notes = choice & 8 != 0;
    let len = inflight_bytes(config.packed, SIZE);
    let inflight = notes.then(|| {
        // The guest's front end may have scribbled on it as well.
        let (_fd, memory) = SharedMemory::create("notes", len).expect("a page");
        if choice & 32 != 0 {
            let tail = &content[content.len().saturating_sub(len)..];
            memory.write(0, tail);
        }
        InflightRegion::new(memory, 0, config.packed, SIZE)
    });
    for _ in 0..3 {
        let Ok(mut queue) = VirtQueue::new(&config, &guest, inflight.clone(), None) else { return };
        let mut chain = Chain::new();
        let mut heads = Vec::new();
        while let Ok(true) = queue.pop(&guest, &mut chain) {
            assert!(chain.readable().len() + chain.writable().len() <= 1024);
            let all = chain.readable().iter().chain(chain.writable());
            assert_eq!(all.map(|range| u64::from(range.len)).sum::<u64>(), chain.readable_bytes() + chain.writable_bytes());
            let mut header = [0; 16];
            if chain.readable_bytes() >= 16 {
                let _ = chain.read(&guest, 0, &mut header);
            }
            let wanted = chain.writable_bytes().min(1 << 20);
            if let Ok(data) = guest.data(&mut guest.refs(), chain.writable_from(0, wanted).map(|range| (range.addr, range.len))) {
                assert_eq!(data.len() as u64, wanted);
            }
            heads.push(chain.head());
            assert!(heads.len() <= usize::from(SIZE), "never more than the ring has");
        }
        // Some are given back, the rest are in flight when it dies.
        for head in heads.iter().skip(usize::from(choice >> 6)) {
            queue.push(*head, 1);
        }
        let _ = queue.publish();
        let _ = queue.arm();
        queue.disarm();
        let _ = queue.base();
    }
});
