//! The crate `virtio-driver`: a front end and a driver that know nothing of ours.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions};
use virtio_driver::{VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

use super::rig::{Rig, pattern};
use super::vm::{MIB, create_memory};

struct Disk {
    transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'static, u64>>,
    memory: MmapMut,
}

impl Disk {
    fn new(socket: &std::path::Path, features: u64, queues: usize, entries: u16) -> Disk {
        let all = VirtioBlkFeatureFlags::all().bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket.to_str().unwrap(), all | features).unwrap());
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, entries).unwrap();
        let (fd, _) = create_memory(32 * MIB, false);
        // SAFETY: the memory is ours and the device's; it is looked at only when the device is done with it.
        let mut memory = unsafe { MmapOptions::new().map_mut(&fd) }.unwrap();
        transport.map_mem_region(memory.as_mut_ptr() as usize, memory.len(), fd.as_raw_fd(), 0).unwrap();
        Disk { transport, queues, memory }
    }

    fn kick(&mut self, queue: usize) {
        if self.queues[queue].avail_notif_needed() {
            self.transport.get_submission_notifier(queue).notify().unwrap();
        }
    }

    /// Waits until `count` requests have ended well.
    fn finish(&mut self, queue: usize, count: usize) -> Vec<u64> {
        let begun = Instant::now();
        let mut ended = Vec::new();
        while ended.len() < count {
            for completion in self.queues[queue].completions() {
                assert_eq!(completion.ret, 0, "request {}", completion.context);
                ended.push(completion.context);
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "requests do not end");
        }
        ended
    }
}

#[test]
fn an_independent_driver_reads_what_it_wrote_on_both_kinds_of_ring() {
    let rig = Rig::new();
    for (nth, features) in [
        VirtioFeatureFlags::VERSION_1.bits(),
        (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits(),
        (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_PACKED).bits(),
        (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_PACKED | VirtioFeatureFlags::RING_EVENT_IDX).bits(),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = rig.disk(&format!("v{nth}"), 64 * MIB);
        let mut disk = Disk::new(&socket, features, 2, 256);
        assert_eq!(disk.transport.get_features() & features, features, "all of it is offered");
        let config = disk.transport.get_config().unwrap();
        assert_eq!(u64::from(config.capacity), 64 * MIB / 512);
        let mut expected = BTreeMap::new();
        for round in 0..300u64 {
            let (queue, base) = (round as usize % 2, round * 7919 % 3000 * 16384);
            for nth in 0..4 {
                let (at, offset) = (nth as usize * 65_536, base + nth * 4096);
                let data = pattern(round * 4 + nth, 4096);
                disk.memory[at..at + 4096].copy_from_slice(&data);
                expected.insert(offset, data);
                // SAFETY: the memory is left alone until the request has ended.
                unsafe { disk.queues[queue].write_raw(offset, disk.memory[at..].as_ptr(), 4096, nth) }.unwrap();
            }
            disk.kick(queue);
            disk.finish(queue, 4);
        }
        disk.queues[0].flush(0).unwrap();
        disk.kick(0);
        disk.finish(0, 1);
        let discarded = *expected.keys().next().unwrap();
        disk.queues[1].discard(discarded, 4096, 0).unwrap();
        disk.queues[1].write_zeroes(discarded + 4096, 4096, true, 1).unwrap();
        disk.kick(1);
        disk.finish(1, 2);
        expected.insert(discarded, vec![0; 4096]);
        expected.insert(discarded + 4096, vec![0; 4096]);
        for (offset, data) in &expected {
            // SAFETY: as above.
            unsafe { disk.queues[1].read_raw(*offset, disk.memory.as_mut_ptr(), 4096, 0) }.unwrap();
            disk.kick(1);
            disk.finish(1, 1);
            assert!(disk.memory[..4096] == data[..], "offset {offset} of features {features:#x}");
        }
    }
}
