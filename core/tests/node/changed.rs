//! Questions about the map of a volume, put together over its shards.

use ringway_core::control::{
    ChangedBlocks, ChangedQuery, ChangedRange, ControlAnswer, ControlErrorKind, ControlRequest, FillStep, Filled,
    HeldQuery,
};
use ringway_core::ids::{Epoch, VolumeId};
use ringway_core::request::{Command, Status};
use ringway_core::snapshot::asked::{SnapshotInfo, VolumeClone};

use crate::rig::{MIB, Setup, Target};
use crate::snapshots::{remove, snapshot};

/// The cut of a snapshot, from how it is shown.
fn epoch(info: &SnapshotInfo) -> Epoch {
    let (boot, counter) = info.cut.as_deref().and_then(|cut| cut.split_once('.')).expect("it is cut");
    Epoch(boot.parse::<u64>().expect("a number") << 32 | counter.parse::<u64>().expect("a number"))
}

fn clone_of(target: &mut Target, snapshot: &str, name: &str) -> VolumeId {
    let (snapshot, name) = (snapshot.to_owned(), name.to_owned());
    let clone = VolumeClone { snapshot, name, exclusive: false, allowed_hosts: vec![] };
    match target.call(ControlRequest::VolumeClone(clone)) {
        Ok(ControlAnswer::Volume(made)) => made.id,
        other => panic!("no clone: {other:?}"),
    }
}

fn changed(target: &mut Target, volume: VolumeId) -> (Vec<ChangedRange>, usize) {
    let (mut all, mut cursor, mut steps) = (Vec::new(), 0, 0);
    loop {
        let query = ChangedQuery { volume, after: None, cursor };
        let Ok(ControlAnswer::Changed(ChangedBlocks { ranges, next })) = target.call(ControlRequest::Changed(query))
        else {
            panic!("no answer at {cursor}")
        };
        assert!(ranges.iter().all(|range| range.offset >= cursor && next.is_none_or(|next| range.offset < next)));
        all.extend(ranges);
        steps += 1;
        match next {
            Some(next) => cursor = next,
            None => return (all, steps),
        }
    }
}

#[test]
fn what_a_volume_holds_is_told_in_order_over_all_of_its_shards_and_empty_stretches_cost_nothing() {
    let mut target = Target::new(1, Setup { reactors: 2, shards: 3, ..Setup::default() });
    let volume = target.create("vm1", 400 * MIB).id;
    // A megabyte is a stripe: this run lies on two shards, and is one range all the same.
    assert_eq!(target.write(volume, 2 * MIB - 8192, &[1; 16384]), Status::Success);
    assert_eq!(target.write(volume, 300 * MIB + 4096, &[2; 4096]), Status::Success);
    assert_eq!(target.write(volume, 399 * MIB, &[3; 8192]), Status::Success);
    let range = |offset, len| ChangedRange { offset, len, data: true };
    let (ranges, steps) = changed(&mut target, volume);
    assert_eq!(ranges, [range(2 * MIB - 8192, 16384), range(300 * MIB + 4096, 4096), range(399 * MIB, 8192)]);
    assert!(steps <= 3, "{steps} steps for three stretches");
    let id = target.request(volume, Command::Deallocate, 300 * MIB, MIB as u32, None);
    assert_eq!(target.wait(id).status, Status::Success);
    let mut target = target.restart();
    assert_eq!(changed(&mut target, volume).0, [range(2 * MIB - 8192, 16384), range(399 * MIB, 8192)]);
}

#[test]
fn questions_that_cannot_be_answered_say_why() {
    let mut target = Target::new(2, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    let ask = |volume, after| ControlRequest::Changed(ChangedQuery { volume, after, cursor: 0 });
    let refused = |target: &mut Target, request| target.call(request).unwrap_err().kind;
    assert_eq!(refused(&mut target, ask(VolumeId(99), None)), ControlErrorKind::NotFound);
    assert_eq!(refused(&mut target, ask(volume, Some(Epoch(5)))), ControlErrorKind::Invalid);
    let step = FillStep { volume, cursor: 0 };
    assert_eq!(target.call(ControlRequest::Fill(step)), Ok(ControlAnswer::Filled(Filled { next: None, copied: 0 })));
}

#[test]
fn space_of_removed_snapshots_comes_back_through_the_whole_target_and_differences_are_told_on_the_way() {
    let mut target = Target::new(3, Setup { reactors: 2, shards: 3, ..Setup::default() });
    let volume = target.create("vm1", 40 * MIB).id;
    for stripe in 0..12 {
        assert_eq!(target.write(volume, stripe * MIB, &[1; 65536]), Status::Success);
    }
    let first = snapshot(&mut target, "vm1", "a");
    let after = epoch(&first);
    for stripe in 0..12 {
        assert_eq!(target.write(volume, stripe * MIB + 4096, &[2; 4096]), Status::Success);
    }
    let second = snapshot(&mut target, "vm1", "b");
    assert_eq!(target.write(volume, 0, &[3; 4096]), Status::Success);
    let query = ChangedQuery { volume: second.id, after: Some(after), cursor: 0 };
    let Ok(ControlAnswer::Changed(told)) = target.call(ControlRequest::Changed(query)) else { panic!("no answer") };
    let expected: Vec<_> = (0..12).map(|n| ChangedRange { offset: n * MIB + 4096, len: 4096, data: true }).collect();
    assert_eq!(told.ranges, expected);
    assert_eq!(target.read(first.id, MIB, 8192), Ok(vec![1; 8192]));
    // Of the whole first cluster only the second block is not the live volume's; `b` shares what it has with that.
    assert_eq!(target.write(volume, 0, &[3; 65536]), Status::Success);
    let held = ControlRequest::SnapshotSpace(HeldQuery { volume, cursor: 0 });
    let Ok(ControlAnswer::SnapshotSpace(space)) = target.call(held) else { panic!("no answer") };
    assert_eq!(space.next, None);
    assert_eq!(space.unique, [(epoch(&second), 65536)], "its block of the cluster that was written all over");
    for name in ["vm1@a", "vm1@b"] {
        assert_eq!(remove(&mut target, name), Ok(ControlAnswer::Done));
    }
    target.pass_ns(10_000_000_000);
    let mut target = target.kill().restart();
    target.pass_ns(10_000_000_000);
    assert_eq!(target.flush(volume), Status::Success);
    let info = target.volumes().remove(0);
    assert_eq!(info.allocated, 12 * 65536, "one cluster is left of each stripe");
    for stripe in 0..12 {
        let mut content = vec![1; 65536];
        content[4096..8192].fill(2);
        if stripe == 0 {
            content.fill(3);
        }
        assert_eq!(target.read(volume, stripe * MIB, 65536), Ok(content), "stripe {stripe}");
    }
}

#[test]
fn a_clone_is_filled_over_all_of_its_shards_and_needs_its_parent_no_more() {
    let mut target = Target::new(4, Setup { reactors: 2, shards: 3, ..Setup::default() });
    let volume = target.create("vm1", 40 * MIB).id;
    for stripe in [0, 1, 2, 7, 30] {
        assert_eq!(target.write(volume, stripe * MIB, &[1; 8192]), Status::Success);
    }
    snapshot(&mut target, "vm1", "a");
    let clone = clone_of(&mut target, "vm1@a", "vm2");
    assert_eq!(target.write(clone, 0, &[2; 512]), Status::Success);
    let (mut cursor, mut copied) = (0, 0);
    loop {
        let step = ControlRequest::Fill(FillStep { volume: clone, cursor });
        let Ok(ControlAnswer::Filled(filled)) = target.call(step) else { panic!("no answer at {cursor}") };
        copied += filled.copied;
        match filled.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    // The first block of the first stripe was the clone's own already.
    assert_eq!(copied, 9 * 4096);
    assert_eq!(target.flush(clone), Status::Success);
    let mut target = target.power_loss();
    let mut first = vec![1; 8192];
    first[..512].fill(2);
    assert_eq!(target.read(clone, 0, 8192), Ok(first));
    assert_eq!(
        target.read(clone, 30 * MIB, 16384).map(|read| read[4096..12288].to_vec()),
        Ok([[1; 4096], [0; 4096]].concat())
    );
    let (ranges, _) = changed(&mut target, clone);
    let expected = [0, 1, 2, 7, 30].map(|n| ChangedRange { offset: n * MIB, len: 8192, data: true });
    assert_eq!(ranges, expected);
}
