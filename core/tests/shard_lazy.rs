//! Clones of what is on a backend alone: what is fetched, when, for whom, and what happens meanwhile.

mod rig;

use rig::{Rig, Setup};
use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};
use ringway_core::shard::{ChangedRange, Wanted};
use ringway_reactor::io::Io;
use ringway_reactor::sim::CrashPoint;

const CLUSTER: u64 = 64 << 10;
const LAZY: u32 = 5;
const ZEROES: Command = Command::WriteZeroes { fua: false, deallocate: true };

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.config.commit_interval_ns = u64::MAX / 2;
    setup
}

/// Eight clusters and a bit: data, a hole of a block in the second cluster, nothing in the fourth and fifth.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> = (0..8 * CLUSTER + 512).map(|at| (at / 512 % 250 + 1) as u8).collect();
    image[(CLUSTER + 4096) as usize..(CLUSTER + 8192) as usize].fill(0);
    image[(3 * CLUSTER) as usize..(5 * CLUSTER) as usize].fill(0);
    image
}

fn clone(seed: u64) -> (Rig, Vec<u8>) {
    let mut rig = Rig::new(seed, setup());
    rig.clone_of_image(LAZY, image());
    (rig, image())
}

/// All of a volume.
fn whole(rig: &mut Rig, id: u32, size: usize) -> Vec<u8> {
    let at = (0..size).step_by(CLUSTER as usize);
    at.flat_map(|at| rig.read(id, at as u64, (size - at).min(CLUSTER as usize) as u32).unwrap()).collect()
}

#[test]
fn what_a_lazy_clone_reads_is_fetched_once_and_there_without_the_backend_from_then_on() {
    let (mut rig, image) = clone(1);
    for round in 0..2 {
        assert!(whole(&mut rig, LAZY, image.len()) == image, "round {round}");
        assert_eq!(rig.backend.fetched, 7, "each cluster with data once, the others never");
    }
    assert_eq!(rig.shard.stats().clusters_fetched, 7);
    assert_eq!(rig.flush(LAZY), Status::Success);
    rig = rig.power_loss();
    rig.backend.fails = Some(Status::BackendUnavailable);
    // What is empty is known by this process alone.
    for cluster in [0, 1, 2, 5, 6, 7] {
        let at = (cluster * CLUSTER) as usize;
        assert!(rig.read(LAZY, at as u64, 65536).unwrap() == image[at..at + 65536], "cluster {cluster}");
    }
    assert!(rig.read(LAZY, 3 * CLUSTER, 4096) == Err(Status::BackendUnavailable));
    rig.settle_and_verify();
}

#[test]
fn what_is_written_to_a_clone_wins_over_what_is_fetched_for_it() {
    let (mut rig, mut image) = clone(2);
    rig.backend.holds = true;
    let buf = rig.buf(&[0; 65536]);
    let read = rig.submit(LAZY, Command::Read, 0, 65536, Some(buf));
    let buf = rig.buf(&[7; 512]);
    let part = rig.submit(LAZY, Command::Write { fua: false }, 512, 512, Some(buf));
    for _ in 0..20 {
        rig.turn();
    }
    // Whole blocks wait for nobody, nor do discards.
    assert_eq!(rig.write(LAZY, 8192, &[8; 8192], false), Status::Success);
    assert_eq!(rig.command(LAZY, Command::Deallocate, 20480, 4096), Status::Success);
    assert_eq!(rig.read(LAZY, 8192, 8192).unwrap(), [8; 8192]);
    assert_eq!(rig.read(LAZY, 20480, 4096).unwrap(), [0; 4096]);
    assert!(rig.done.is_empty(), "the others wait");
    assert!(matches!(rig.backend.held[..], [ref one] if one.wanted == Wanted::Map { range: 0 }));
    rig.release_fetches();
    for _ in 0..20 {
        rig.turn();
    }
    assert!(matches!(rig.backend.held[..], [ref one] if one.wanted == Wanted::Cluster { cluster: 0 }));
    assert_eq!(rig.write(LAZY, 24576, &[9; 4096], false), Status::Success, "also while it is on its way");
    rig.backend.holds = false;
    rig.release_fetches();
    assert_eq!(rig.wait(part).status, Status::Success);
    assert_eq!(rig.wait(read).status, Status::Success);
    image[512..1024].fill(7);
    image[8192..16384].fill(8);
    image[20480..24576].fill(0);
    image[24576..28672].fill(9);
    for _ in 0..2 {
        assert!(whole(&mut rig, LAZY, image.len()) == image);
        rig.flush(LAZY);
        rig = rig.power_loss();
    }
    rig.settle_and_verify();
}

#[test]
fn h17_what_waits_for_the_backend_is_bounded_and_holds_nothing_that_others_need() {
    let (mut rig, _) = clone(3);
    rig.write(1, 0, &[1; 65536], false);
    rig.backend.holds = true;
    let mut waiting = Vec::new();
    for nth in 0.. {
        let Some(buf) = rig.io.buffers().get(65536) else { panic!("{nth} reads hold every buffer") };
        let read = rig.submit(LAZY, Command::Read, nth % 3 * CLUSTER, 65536, Some(buf));
        for _ in 0..3 {
            rig.turn();
        }
        if let Some(refused) = rig.done.pop_front() {
            assert_eq!((refused.id, refused.status), (read, Status::Busy), "the host is told to come again");
            break;
        }
        waiting.push(read);
    }
    assert!(waiting.len() > 4, "{} may wait", waiting.len());
    // The healthy volume is served, and so are whole blocks of the clone.
    assert_eq!(rig.read(1, 0, 65536).unwrap(), [1; 65536]);
    assert_eq!(rig.write(1, 512, &[2; 512], false), Status::Success);
    assert_eq!(rig.write(LAZY, 0, &[3; 65536], false), Status::Success);
    assert_eq!(rig.flush(LAZY), Status::Success);
    rig.backend.holds = false;
    rig.release_fetches();
    for (nth, read) in waiting.into_iter().enumerate() {
        let done = rig.wait(read);
        assert_eq!(done.status, Status::Success);
        let first = done.data.unwrap().into_own()[0];
        assert_eq!(
            first,
            if nth % 3 == 0 { 3 } else { image()[nth % 3 * CLUSTER as usize] },
            "the word is the later one"
        );
    }
    rig.settle_and_verify();
}

#[test]
fn a_backend_that_fails_fails_what_needs_it_and_nothing_else_until_it_is_back() {
    let (mut rig, image) = clone(4);
    for (status, cluster) in [(Status::BackendUnavailable, 0), (Status::UnrecoveredRead, 5)] {
        let at = cluster * CLUSTER;
        rig.backend.fails = Some(status);
        assert!(rig.read(LAZY, at, 4096) == Err(status));
        assert_eq!(rig.write(LAZY, at + 512, &[1; 512], false), status, "a sector of a block that is not here");
        assert_eq!(rig.write(LAZY, at + 65536, &[2; 4096], false), Status::Success);
        assert!(rig.read(LAZY, at + 65536, 4096).unwrap() == [2; 4096]);
        rig.backend.fails = None;
        assert!(rig.read(LAZY, at, 4096).unwrap() == image[at as usize..][..4096], "nothing is faulted");
        rig.backend.fails = Some(status);
        assert!(rig.read(LAZY, 2 * CLUSTER, 4096) == Err(status));
        assert_eq!(rig.fill(LAZY).unwrap(), Err(status));
        rig = rig.kill();
    }
    rig.backend.fails = None;
    assert!(rig.read(LAZY, 2 * CLUSTER, 4096).unwrap() == image[131_072..135_168]);
    assert!(rig.faults.is_empty());
    rig.settle_and_verify();
}

#[test]
fn snapshots_and_clones_of_a_lazy_clone_look_through_it_to_the_backend() {
    let (mut rig, image) = clone(5);
    rig.write(LAZY, 0, &[1; 4096], false);
    rig.snapshot(LAZY, 20);
    rig.write(LAZY, 4096, &[2; 65536], false);
    rig.command(LAZY, ZEROES, 2 * CLUSTER, 65536);
    rig.clone_of(20, 6, image.len() as u64);
    rig.write(6, 8192 + 512, &[3; 512], false);
    let mut at_cut = image.clone();
    at_cut[..4096].fill(1);
    let mut live = at_cut.clone();
    live[4096..4096 + 65536].fill(2);
    live[131_072..196_608].fill(0);
    let mut cloned = at_cut.clone();
    cloned[8704..9216].fill(3);
    for round in 0..2 {
        for (id, expected) in [(LAZY, &live), (20, &at_cut), (6, &cloned)] {
            assert!(whole(&mut rig, id, image.len()) == *expected, "volume {id} round {round}");
        }
        [LAZY, 6].into_iter().for_each(|id| assert_eq!(rig.flush(id), Status::Success));
        rig = rig.power_loss();
    }
    assert_eq!(rig.backend.fetched, 0, "all of it is here");
    rig.settle_and_verify();
}

#[test]
fn a_walk_over_a_lazy_clone_lists_what_the_backend_has_without_fetching_it() {
    let (mut rig, _) = clone(6);
    rig.command(LAZY, Command::Deallocate, 0, 4096);
    rig.snapshot(LAZY, 20);
    let found = rig.changed(20, None).unwrap();
    let end = 8 * CLUSTER + 4096;
    let data = |from: u64, to: u64| ChangedRange { offset: from, len: to - from, data: true };
    assert_eq!(found, [data(4096, 3 * CLUSTER), data(5 * CLUSTER, end)]);
    assert_eq!(rig.backend.fetched, 0);
    rig.settle_and_verify();
}

#[test]
fn a_lazy_clone_that_is_filled_needs_the_backend_no_more() {
    let (mut rig, mut image) = clone(7);
    rig.write(LAZY, 0, &[1; 65536], false);
    image[..65536].fill(1);
    rig.snapshot(LAZY, 20);
    let (lazy, mut at_cut) = (VolumeId(LAZY), image.clone());
    rig.write(LAZY, CLUSTER, &[2; 512], false);
    image[65536..66048].fill(2);
    let copied = rig.fill(LAZY).unwrap().unwrap();
    assert_eq!(
        copied,
        4 * CLUSTER + 4096,
        "one was written whole, one fetched for the write of a sector, two are empty"
    );
    assert_eq!(rig.fill(LAZY).unwrap(), Ok(0), "nothing is left to fill");
    assert_eq!(rig.flush(LAZY), Status::Success);
    rig.detach(LAZY);
    rig.backend.fails = Some(Status::BackendUnavailable);
    rig.setup.backend.fails = rig.backend.fails;
    for _ in 0..2 {
        assert!(whole(&mut rig, LAZY, image.len()) == image);
        assert!(whole(&mut rig, 20, image.len()) == at_cut);
        rig = rig.power_loss();
    }
    rig.remove_snapshot(20);
    rig.settle_background();
    assert!(whole(&mut rig, LAZY, image.len()) == image);
    at_cut.clear();
    assert!(rig.shard.mapped_by(lazy) > 0);
    rig.settle_and_verify();
}

#[test]
fn a_clone_of_a_clone_is_filled_through_to_the_backend() {
    let (mut rig, image) = clone(8);
    rig.snapshot(LAZY, 20);
    rig.clone_of(20, 6, image.len() as u64);
    rig.write(6, 0, &[4; 4096], false);
    rig.backend.fails = Some(Status::BackendUnavailable);
    assert_eq!(rig.fill(6).unwrap(), Err(Status::BackendUnavailable));
    rig.backend.fails = None;
    assert!(rig.fill(6).unwrap().unwrap() > 0);
    assert_eq!(rig.flush(6), Status::Success);
    rig.detach(6);
    rig.backend.fails = Some(Status::BackendUnavailable);
    let mut expected = image.clone();
    expected[..4096].fill(4);
    assert!(whole(&mut rig, 6, image.len()) == expected);
    rig.settle_and_verify();
}

#[test]
fn a_lazy_clone_that_is_removed_answers_those_who_wait_and_late_blocks_land_nowhere() {
    let (mut rig, _) = clone(9);
    let buf = rig.buf(&[0; 4096]);
    assert_eq!(rig.read(LAZY, CLUSTER, 4096).unwrap().len(), 4096);
    rig.backend.holds = true;
    let read = rig.submit(LAZY, Command::Read, 0, 4096, Some(buf));
    for _ in 0..20 {
        rig.turn();
    }
    rig.remove_volume(LAZY);
    assert_eq!(rig.wait(read).status, Status::VolumeGone);
    rig.release_fetches();
    while rig.erased.is_empty() {
        rig.turn();
    }
    assert_eq!(rig.shard.stats().clusters_used, 0);
    rig.settle_and_verify();
}

#[test]
fn who_reads_a_lazy_clone_front_to_back_has_the_next_clusters_fetched_and_who_jumps_has_not() {
    let image: Vec<u8> = (0..64 * CLUSTER).map(|at| (at / 4096 % 250 + 1) as u8).collect();
    let mut rig = Rig::new(11, setup());
    rig.clone_of_image(LAZY, image.clone());
    for cluster in [40, 3, 60, 20] {
        assert!(rig.read(LAZY, cluster * CLUSTER, 4096).unwrap()[0] == image[(cluster * CLUSTER) as usize]);
    }
    assert_eq!(rig.backend.fetched, 4, "nothing beside what was asked for");
    assert_eq!(rig.read(LAZY, 21 * CLUSTER, 4096).unwrap().len(), 4096);
    rig.settle_background();
    assert_eq!(rig.backend.fetched, 7, "he goes on: the next two come with it");
    rig.backend.holds = true;
    let buf = rig.buf(&[0; 4096]);
    let read = rig.submit(LAZY, Command::Read, 24 * CLUSTER, 4096, Some(buf));
    for _ in 0..20 {
        rig.turn();
    }
    let wanted: Vec<_> = rig.backend.held.iter().map(|fetch| fetch.wanted).collect();
    assert_eq!(
        wanted,
        [24, 25, 26, 27, 28].map(|cluster| Wanted::Cluster { cluster }),
        "what is waited for is asked for first"
    );
    // What nobody waits for may fail without anybody's hearing of it.
    rig.backend.fails = Some(Status::BackendUnavailable);
    rig.release_fetches();
    assert_eq!(rig.wait(read).status, Status::BackendUnavailable);
    (rig.backend.fails, rig.backend.holds) = (None, false);
    assert!(whole(&mut rig, LAZY, image.len()) == image);
    assert_eq!(rig.backend.fetched, 64, "each once");
    rig.settle_and_verify();
}

#[test]
fn a_lazy_read_on_a_full_pool_says_so_serves_what_is_here_and_goes_on_when_there_is_space() {
    let mut setup = setup();
    // 16 clusters, of which maps and checkpoints take some.
    setup.slabs_per_disk = 1;
    let mut rig = Rig::new(12, setup);
    let image: Vec<u8> = (0..64 * CLUSTER).map(|at| (at / 4096 % 250 + 1) as u8).collect();
    rig.clone_of_image(LAZY, image.clone());
    let mut refused = 0;
    for cluster in 0..64 {
        match rig.read(LAZY, cluster * CLUSTER, 65536) {
            Ok(read) => assert!(read == image[(cluster * CLUSTER) as usize..][..65536], "cluster {cluster}"),
            Err(status) => {
                assert_eq!(status, Status::CapacityExceeded, "cluster {cluster}");
                refused += 1;
            }
        }
    }
    assert!((1..64).contains(&refused), "{refused} of 64 have no place");
    assert!(rig.faults.is_empty());
    assert!(rig.read(LAZY, 0, 65536).unwrap() == image[..65536], "what is here is read on");
    assert_eq!(rig.command(LAZY, ZEROES, 0, 4 * 65536), Status::Success);
    assert_eq!(rig.flush(LAZY), Status::Success);
    assert!(rig.read(LAZY, 63 * CLUSTER, 65536).unwrap() == image[63 * CLUSTER as usize..], "there is space again");
    rig.settle_and_verify();
}

/// Reads, writes, a cut, a fill: what is then in the clone, and what may be where a crash came before a write was durable.
fn work(rig: &mut Rig) {
    let waits = |rig: &mut Rig, id| {
        while !rig.world.crashed() && rig.done.iter().all(|done| done.id != id) {
            rig.turn();
        }
    };
    for (nth, at) in [0, CLUSTER, 5 * CLUSTER].into_iter().enumerate() {
        let buf = rig.buf(&[0; 8192]);
        let read = rig.submit(LAZY, Command::Read, at, 8192, Some(buf));
        let buf = rig.buf(&[200 + nth as u8; 512]);
        let write = rig.submit(LAZY, Command::Write { fua: true }, at + 4096 * 3, 512, Some(buf));
        waits(rig, read);
        waits(rig, write);
    }
    if !rig.world.crashed() {
        rig.fill(LAZY);
    }
    let flush = rig.submit(LAZY, Command::Flush, 0, 0, None);
    waits(rig, flush);
}

#[test]
fn power_loss_at_any_write_of_a_fetch_leaves_every_block_as_it_was_or_as_it_was_written() {
    for (n, power_loss) in (1..).flat_map(|n| [(n, false), (n, true)]) {
        let (mut rig, image) = clone(10);
        rig.world.crash_after(CrashPoint::Submitted(n));
        work(&mut rig);
        let crashed = rig.world.crashed();
        let mut rig = if power_loss { rig.power_loss() } else { rig.kill() };
        rig.world.crash_after(CrashPoint::Submitted(10_000_000));
        let found = whole(&mut rig, LAZY, image.len());
        for (nth, (sector, was)) in found.chunks(512).zip(image.chunks(512)).enumerate() {
            let at = nth as u64 * 512;
            let of = [0, CLUSTER, 5 * CLUSTER].iter().position(|&base| base + 12288 == at);
            let written = of.map(|of| 200 + of as u8);
            let whole = sector == was && (crashed || written.is_none());
            let new = written.is_some_and(|byte| sector.iter().all(|&b| b == byte));
            assert!(whole || new, "byte {at} after a crash at write {n}: {} for {}", sector[0], was[0]);
        }
        rig.settle_and_verify();
        if !crashed {
            assert!(n > 10, "there is more to it than {n} writes");
            return;
        }
    }
}
