//! C11: nothing of an association that has ended lands after its fence.

use ringway_core::ids::AssociationId;
use ringway_core::request::{Command, Request, Status};

use crate::rig::{BLOCK, MIB, Setup, Target};

#[test]
fn c11_a_write_of_a_dead_association_never_lands_on_one_that_came_after_its_fence() {
    let (mut aborted, mut written) = (0, 0);
    for seed in 0..40 {
        // One message a ring, so that parts wait in backlogs.
        let mut target = Target::new(seed, Setup { reactors: 3, shards: 3, mailbox: 1, ..Setup::default() });
        let volume = target.create("vm1", 12 * MIB).id;
        let places: Vec<u64> = (0..12).map(|stripe| stripe * MIB + 8 * BLOCK).collect();
        let write = |target: &mut Target, reactor: usize, association: u64, offset: u64, value: u8| {
            let data = Some(target.buf(&[value; 4096]).into());
            let command = Command::Write { fua: false };
            let association = AssociationId(association);
            target.submit(reactor, Request { association, volume, command, offset, len: 4096, data })
        };
        // Several for each place: they wait for each other at the shard, as others wait in the mailboxes.
        let old: Vec<_> = (0..48).map(|n| write(&mut target, 1, 7, places[n % places.len()], 0xAA)).collect();
        let turns = target.world.pick(40) as u64;
        target.run(turns, |_| false);
        target.reactors[1].application().begin_fence(AssociationId(7));
        target.world.stir();
        for _ in 0..100_000 {
            if !target.reactors[1].application().is_fencing(AssociationId(7)) {
                break;
            }
            target.run(1, |_| false);
        }
        assert!(!target.reactors[1].application().is_fencing(AssociationId(7)), "seed {seed}: the fence ends");
        // The host has connected again, elsewhere, and writes what its file system has become meanwhile.
        let new: Vec<_> = places.iter().map(|&offset| write(&mut target, 2, 8, offset, 0xBB)).collect();
        target.run_until(|done| old.iter().chain(&new).all(|id| done.contains_key(id)));
        for id in old {
            match target.done[&id].status {
                Status::Aborted => aborted += 1,
                Status::Success => written += 1,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        for offset in places {
            assert_eq!(target.read(volume, offset, 4096), Ok(vec![0xBB; 4096]), "seed {seed} at {offset}");
        }
    }
    assert!(aborted > 20 && written > 20, "both happen: {aborted} aborted, {written} written");
}
