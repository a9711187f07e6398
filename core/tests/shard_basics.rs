//! A shard on a simulated disk: single commands and what they promise.

mod rig;

use rig::{Rig, Setup};
use ringway_core::request::{Command, Status};

#[test]
fn what_was_written_is_read_and_the_rest_is_zero() {
    let mut rig = Rig::new(1, Setup::new());
    assert_eq!(rig.read(1, 0, 4096).unwrap(), vec![0; 4096]);
    assert_eq!(rig.write(1, 8192, &[7; 4096], false), Status::Success);
    let read = rig.read(1, 0, 64 << 10).unwrap();
    assert!(read[..8192].iter().all(|&byte| byte == 0) && read[12288..].iter().all(|&byte| byte == 0));
    assert_eq!(read[8192..12288], [7; 4096]);
    assert_eq!(rig.flush(1), Status::Success);
    rig.drain_and_verify();
    let mut rig = rig.power_loss();
    assert_eq!(rig.read(1, 8192, 4096).unwrap(), vec![7; 4096]);
    assert_eq!(rig.read(2, 8192, 4096).unwrap(), vec![0; 4096]);
    rig.drain_and_verify();
}

#[test]
fn an_overwrite_in_place_is_one_device_write_and_no_record() {
    let mut rig = Rig::new(2, Setup::new());
    rig.write(1, 0, &[1; 65536], false);
    rig.flush(1);
    let before = rig.shard.stats();
    rig.write(1, 4096, &[2; 4096], false);
    rig.write(1, 512, &[3; 1024], false);
    let after = rig.shard.stats();
    assert_eq!(after.device_writes - before.device_writes, 2);
    assert_eq!((after.records, after.device_reads), (before.records, before.device_reads));
    let read = rig.read(1, 0, 8192).unwrap();
    assert_eq!((read[511], read[512], read[1536], read[4096]), (1, 3, 1, 2));
    rig.drain_and_verify();
}

#[test]
fn zeroes_and_discards_give_their_clusters_back() {
    let mut rig = Rig::new(3, Setup::new());
    rig.write(1, 0, &[1; 262144], false);
    assert_eq!(rig.shard.stats().clusters_used, 4);
    assert_eq!(rig.command(1, Command::Deallocate, 65536 + 512, 65536), Status::Success);
    let read = rig.read(1, 65536, 131072).unwrap();
    assert!(read[..4096].iter().all(|&byte| byte == 1), "a discard leaves the block it covers in part");
    assert!(read[4096..65536].iter().all(|&byte| byte == 0) && read[65536..].iter().all(|&byte| byte == 1));
    let zeroes = Command::WriteZeroes { fua: false, deallocate: true };
    assert_eq!(rig.command(1, zeroes, 512, 196608 - 1024), Status::Success);
    let read = rig.read(1, 0, 196608).unwrap();
    assert_eq!((read[511], read[512], read[196608 - 513], read[196608 - 512]), (1, 0, 0, 1));
    rig.flush(1);
    rig.turn();
    assert_eq!(rig.shard.stats().clusters_used, 3);
    rig.drain_and_verify();
}

#[test]
fn memory_that_begins_inside_a_sector_of_the_device_is_copied_and_not_given_to_it() {
    let mut setup = Setup::new();
    setup.disk.logical_block = 4096;
    let mut rig = Rig::new(4, setup);
    rig.write(1, 0, &[1; 65536], false);
    for ahead in [512, 3584, 4096] {
        // As the second part of a request that began so many bytes before the end of a stripe.
        let mut front = rig.buf(&vec![ahead as u8; ahead + 12288]);
        let data = front.split_off(ahead);
        let before = rig.shard.stats().read_modify_writes;
        let id = rig.submit(1, Command::Write { fua: false }, 4096, 12288, Some(data));
        assert_eq!(rig.wait(id).status, Status::Success);
        assert_eq!(
            rig.shard.stats().read_modify_writes > before,
            ahead != 4096,
            "what lies as the device wants it is not copied"
        );
        let data = rig.buf(&vec![0xEE; ahead + 20480]).split_off(ahead);
        let id = rig.submit(1, Command::Read, 0, 20480, Some(data));
        let done = rig.wait(id);
        assert_eq!(done.status, Status::Success);
        let read = done.data.expect("a read gives its buffer back").into_own();
        assert!(read[..4096].iter().chain(&read[16384..]).all(|&byte| byte == 1));
        assert!(read[4096..16384].iter().all(|&byte| byte == ahead as u8));
    }
    rig.drain_and_verify();
}
