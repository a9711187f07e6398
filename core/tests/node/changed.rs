//! Questions about the map of a volume, put together over its shards.

use ringway_core::control::{
    ChangedBlocks, ChangedQuery, ChangedRange, ControlAnswer, ControlErrorKind, ControlRequest, FillStep, Filled,
};
use ringway_core::ids::{Epoch, VolumeId};
use ringway_core::request::{Command, Status};

use crate::rig::{MIB, Setup, Target};

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
