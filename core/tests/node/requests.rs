//! Requests over several reactors and shards.

use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};

use crate::rig::{MIB, Setup, Target};

#[test]
fn what_is_written_by_one_reactor_is_read_by_any_other_across_stripes_and_shards() {
    let mut target = Target::new(1, Setup { reactors: 3, shards: 4, ..Setup::default() });
    let volume = target.create("vm1", 64 * MIB).id;
    for n in 0..24_u64 {
        // Every third crosses the border of two stripes, which two shards have.
        let offset = n * MIB + if n % 3 == 0 { MIB - 128 * 1024 } else { 8192 };
        let bytes: Vec<u8> = (0..256 * 1024).map(|at| (at / 512 + n as usize) as u8).collect();
        assert_eq!(target.write(volume, offset, &bytes), Status::Success);
        assert_eq!(target.read(volume, offset, bytes.len()), Ok(bytes));
    }
    assert_eq!(target.flush(volume), Status::Success);
    let counted: u64 = target.metrics.volumes()[0].1.hops;
    assert!(counted > 10, "{counted} parts went to another reactor");
}

#[test]
fn a_range_without_a_buffer_may_be_the_whole_volume() {
    let mut target = Target::new(2, Setup::default());
    let volume = target.create("vm1", 40 * MIB).id;
    for stripe in 0..40 {
        assert_eq!(target.write(volume, stripe * MIB, &[7; 8192]), Status::Success);
    }
    let id = target.request(volume, Command::WriteZeroes { fua: true, deallocate: true }, 0, 40 << 20, None);
    assert_eq!(target.wait(id).status, Status::Success);
    for stripe in 0..40 {
        assert_eq!(target.read(volume, stripe * MIB, 8192), Ok(vec![0; 8192]));
    }
    target.pass_ns(3_000_000_000);
    assert_eq!(target.pool().used, 0, "all of its space came back");
}

#[test]
fn requests_that_cannot_be_end_with_their_status_and_give_their_buffer_back() {
    let mut target = Target::new(3, Setup::default());
    let volume = target.create("vm1", MIB).id;
    for (volume, offset, status) in [
        (volume, MIB - 4096, Status::LbaOutOfRange),
        (volume, u64::MAX - 100, Status::LbaOutOfRange),
        (VolumeId(99), 0, Status::VolumeGone),
    ] {
        let id = target.request(volume, Command::Read, offset, 8192, Some(&[0; 8192]));
        let done = target.wait(id);
        assert_eq!((done.status, done.data.map(|data| data.len())), (status, Some(8192)));
    }
}
