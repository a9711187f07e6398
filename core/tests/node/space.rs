//! A pool that fills, and empties again.

use ringway_core::control::ControlRequest;
use ringway_core::ids::VolumeId;
use ringway_core::inspect::{Severity, inspect_pool};
use ringway_core::request::{Command, Status};

use ringway_reactor::sim::{CrashPoint, DiskConfig, Ended};

use crate::rig::{MIB, Setup, Target};

pub(crate) const PIECE: usize = 256 << 10;

/// Writes a volume from its front until there is no space; bytes written.
pub(crate) fn fill(target: &mut Target, volume: VolumeId, size: u64) -> u64 {
    let mut offset = 0;
    while offset < size {
        match target.write(volume, offset, &vec![offset as u8 | 1; PIECE]) {
            Status::Success => offset += PIECE as u64,
            Status::CapacityExceeded => break,
            other => panic!("{other:?} at {offset}"),
        }
    }
    offset
}

#[test]
fn a_full_pool_says_so_keeps_reads_and_other_volumes_going_and_recovers_when_space_is_freed() {
    let mut target = Target::new(1, Setup::default());
    let other = target.create("other", 4 * MIB).id;
    assert_eq!(target.write(other, 0, &vec![9; PIECE]), Status::Success);
    let big = target.create("big", 1 << 30).id;
    let written = fill(&mut target, big, 1 << 30);
    let pool = target.pool();
    assert!(written > pool.size / 2 && written < pool.size, "{written} of {}", pool.size);
    target.pass_ns(2_000_000_000);
    assert!(target.metrics.pool.threshold_percent.get() >= 80, "{:?}", target.pool());

    assert_eq!(target.read(big, 0, 4096), Ok(vec![1; 4096]));
    assert_eq!(target.write(other, 0, &vec![10; PIECE]), Status::Success, "an overwrite needs no space");
    assert_eq!(target.read(other, 0, 4096), Ok(vec![10; 4096]));

    let id = target.request(big, Command::Deallocate, 0, (written / 2) as u32, None);
    assert_eq!(target.wait(id).status, Status::Success);
    assert_eq!(target.flush(big), Status::Success);
    let quarter = written / 4 / PIECE as u64 * PIECE as u64;
    assert_eq!(fill(&mut target, big, quarter), quarter, "what was freed can be written again");
    target.pass_ns(2_000_000_000);
    assert!(target.metrics.pool.threshold_percent.get() < 95);
}

#[test]
fn removing_a_volume_gives_its_space_back() {
    let mut target = Target::new(2, Setup::default());
    let big = target.create("big", 1 << 30).id;
    let written = fill(&mut target, big, 1 << 30);
    target.call(ControlRequest::VolumeRemove { name: "big".into(), force: false }).unwrap();
    target.pass_ns(5_000_000_000);
    assert_eq!(target.pool().used, 0);
    let next = target.create("next", 1 << 30).id;
    assert_ne!(next, big, "ids are never reused");
    assert_eq!(target.read(next, 0, 4096), Ok(vec![0; 4096]));
    let again = fill(&mut target, next, 1 << 30);
    assert!(again >= written / 10 * 9, "{again} after {written}");
}

#[test]
fn h7_a_volume_on_one_shard_can_have_the_whole_pool() {
    let mut target = Target::new(3, Setup::default());
    let pinned = target.create_on("pinned", 1 << 30, Some(vec![0])).id;
    let written = fill(&mut target, pinned, 1 << 30);
    let size = target.pool().size;
    assert!(written > size / 10 * 8, "{written} of {size} on one of three shards");
}

/// Frees everything of a volume, durably. A shard that was refused space asks again after a tenth of a second.
fn forget(target: &mut Target, volume: VolumeId, bytes: u64) {
    let id = target.request(volume, Command::Deallocate, 0, bytes as u32, None);
    assert_eq!(target.wait(id).status, Status::Success);
    assert_eq!(target.flush(volume), Status::Success);
    target.pass_ns(200_000_000);
}

#[test]
fn h7_what_is_deleted_on_one_shard_can_be_written_on_another() {
    for reactors in 1..=3 {
        let mut target = Target::new(4, Setup { reactors, ..Setup::default() });
        let near = target.create_on("near", 1 << 30, Some(vec![0])).id;
        let far = target.create_on("far", 1 << 30, Some(vec![1])).id;
        let size = target.pool().size;
        let first = fill(&mut target, near, 1 << 30);
        assert!(first > size / 10 * 7, "{first} of {size}");
        let left = fill(&mut target, far, 1 << 30);
        assert!(left < size / 5, "{left} of {size}: the pool is full");
        forget(&mut target, near, first);
        let second = fill(&mut target, far, 1 << 30);
        assert!(second > size / 10 * 7, "{second} of {size} after {first} were deleted");
        assert_eq!(target.read(near, 0, 4096), Ok(vec![0; 4096]));
        forget(&mut target, far, second);
        let third = fill(&mut target, near, 1 << 30);
        assert!(third > size / 10 * 7, "{third} of {size}, and back again");
        let mut target = target.power_loss();
        forget(&mut target, near, third);
        target.stop();
        let report = inspect_pool(&mut target.world.io(), false, &mut |_| {}).unwrap();
        let faults: Vec<_> = report.all_findings().filter(|finding| finding.severity == Severity::Fault).collect();
        assert!(faults.is_empty(), "{faults:?}");
    }
}

/// What a crash may leave of two volumes that hand their space to and fro.
struct Handing {
    target: Target,
    near: VolumeId,
    far: VolumeId,
    /// Pieces of each that are flushed, and those that may be there.
    kept: [u64; 2],
    begun: [u64; 2],
}

const PIECES: u64 = 96;

impl Handing {
    fn new(seed: u64) -> Handing {
        let disks = vec![DiskConfig { size: 48 * MIB, ..DiskConfig::default() }];
        let mut target = Target::new(seed, Setup { disks, shards: 2, ..Setup::default() });
        let near = target.create_on("near", 64 * MIB, Some(vec![0])).id;
        let far = target.create_on("far", 64 * MIB, Some(vec![1])).id;
        Handing { target, near, far, kept: [0; 2], begun: [0; 2] }
    }

    /// `None`: the target has crashed.
    fn done(
        &mut self,
        volume: VolumeId,
        command: Command,
        offset: u64,
        len: u32,
        bytes: Option<&[u8]>,
    ) -> Option<Status> {
        let id = self.target.request(volume, command, offset, len, bytes);
        match self.target.run(2_000_000, |done| done.contains_key(&id)) {
            Ended::Crashed => None,
            Ended::Done => self.target.done.remove(&id).map(|done| done.status),
            other => panic!("{other:?}"),
        }
    }

    fn hand(&mut self, nth: usize) -> Option<()> {
        let volume = [self.near, self.far][nth];
        let byte = [0xA1, 0xB2][nth];
        for piece in 0..PIECES {
            self.begun[nth] = self.begun[nth].max(piece + 1);
            let write = Command::Write { fua: false };
            match self.done(volume, write, piece * PIECE as u64, PIECE as u32, Some(&vec![byte; PIECE]))? {
                Status::Success => {}
                Status::CapacityExceeded => break,
                other => panic!("{other:?}"),
            }
            if piece % 16 == 15 {
                assert_eq!(self.done(volume, Command::Flush, 0, 0, None)?, Status::Success);
                self.kept[nth] = piece + 1;
            }
        }
        assert!(self.kept[nth] >= PIECES / 2, "{} pieces have room", self.kept[nth]);
        self.kept[nth] = 0;
        let all = (PIECES * PIECE as u64) as u32;
        assert_eq!(self.done(volume, Command::Deallocate, 0, all, None)?, Status::Success);
        assert_eq!(self.done(volume, Command::Flush, 0, 0, None)?, Status::Success);
        self.begun[nth] = 0;
        Some(())
    }

    fn check(&mut self) {
        for (nth, byte) in [0xA1, 0xB2].into_iter().enumerate() {
            let volume = [self.near, self.far][nth];
            for piece in 0..PIECES {
                let read = self.target.read(volume, piece * PIECE as u64, PIECE).unwrap();
                let whole = piece < self.kept[nth];
                let known = |&found: &u8| found == byte && piece < self.begun[nth] || found == 0 && !whole;
                assert!(read.iter().all(known), "volume {nth} piece {piece}: {:?}", &read[..16]);
            }
        }
    }
}

#[test]
fn h7_no_crash_while_slabs_change_hands_shows_one_volume_what_another_wrote() {
    let mut crashes = 0;
    for seed in 0..24u64 {
        let mut handing = Handing::new(700 + seed);
        let n = handing.target.world.rng().below(900);
        let point = if seed % 2 == 0 { CrashPoint::Submitted(n) } else { CrashPoint::Completed(n) };
        handing.target.world.crash_after(point);
        let crashed = (0..4).any(|round| handing.hand(round % 2).is_none());
        crashes += u64::from(crashed);
        let target = if seed % 4 < 2 { handing.target.kill() } else { handing.target.power_loss() };
        handing = Handing { target, ..handing };
        handing.check();
        for volume in [handing.near, handing.far] {
            assert_eq!(handing.done(volume, Command::Flush, 0, 0, None), Some(Status::Success));
        }
        (0..2).for_each(|round| handing.hand(round).expect("nothing crashes now"));
        handing.target.stop();
        let report = inspect_pool(&mut handing.target.world.io(), false, &mut |_| {}).unwrap();
        let faults: Vec<_> = report.all_findings().filter(|finding| finding.severity == Severity::Fault).collect();
        assert!(faults.is_empty(), "seed {seed}: {faults:?}");
    }
    assert!(crashes > 8, "{crashes} crashes");
}
