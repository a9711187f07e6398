//! Volumes as disks of virtual machines: rust-vmm's front end and a driver of our own against a whole target.
#![expect(clippy::disallowed_methods, reason = "a guest has clocks of its own, and sleeps")]

mod hostile;
mod independent;
mod rig;
mod vm;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rig::{Rig, eventually, pattern};
use ringway_core::control::ControlRequest;
use ringway_core::export::Polling;
use ringway_core::target::PoolSpec;
use ringway_reactor::shared::SharedMemory;
use std::os::fd::AsRawFd;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vm::{
    DATA, DISCARD, F_BASE, F_CONFIG_WCE, F_EVENT_IDX, F_FLUSH, F_INDIRECT, F_LOG_ALL, F_PACKED, FLUSH, GET_ID,
    IO_ERROR, MIB, OK, READ, UNSUPPORTED, Vm, WRITE, WRITE_ZEROES, Wish, back, create_memory, out, region_info,
};

#[test]
fn every_command_works_on_every_kind_of_ring() {
    let rig = Rig::on_disk();
    for kind in 0..8u64 {
        let bit = |at: u64, feature: u64| if kind >> at & 1 == 1 { feature } else { 0 };
        let features = F_BASE | bit(0, F_PACKED) | bit(1, F_EVENT_IDX) | bit(2, F_INDIRECT);
        let socket = rig.disk(&format!("v{kind}"), 32 * MIB);
        let mut vm = Vm::new(&socket, Wish { features, queues: 2, ..Wish::default() });
        for round in 0..200u64 {
            let queue = round as usize % 2;
            let (sector, len) = (round * 37 % 60_000, 512 * (1 + round as usize * 7 % 40));
            let data = pattern(round, len);
            assert_eq!(vm.write(queue, sector, &data), OK);
            assert!(vm.read(1 - queue, sector, len as u32) == data, "round {round} of features {features:#x}");
        }
        assert_eq!(vm.request(0, FLUSH, 0, &[]), OK);
        let (zeros, ones) = (vec![0; 8192], vec![1; 8192]);
        for (command, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
            assert_eq!(vm.write(0, 80, &ones), OK);
            assert_eq!(vm.erase(1, command, 80, 16, flags), OK);
            assert_eq!(vm.read(0, 80, 8192), zeros);
        }
        assert_eq!(vm.request(0, GET_ID, 0, &[back(DATA, 20)]), OK);
        let mut id = [0; 20];
        vm.memory.read(DATA, &mut id).unwrap();
        assert!(id.iter().all(u8::is_ascii_hexdigit), "{id:?}");
        let end = 32 * MIB / 512;
        for (command, sector, pieces, expected) in [
            (99, 0, vec![back(DATA, 512)], UNSUPPORTED),
            (READ, end, vec![back(DATA, 512)], IO_ERROR),
            (READ, u64::MAX, vec![back(DATA, 512)], IO_ERROR),
            (READ, 0, vec![back(DATA, 513)], IO_ERROR),
            (WRITE, end - 1, vec![out(DATA, 1024)], IO_ERROR),
            (READ, 0, vec![back(64 * MIB, 512)], IO_ERROR),
            (DISCARD, 0, vec![out(DATA, 15)], IO_ERROR),
        ] {
            assert_eq!(vm.request(0, command, sector, &pieces), expected, "{command} {sector} {pieces:?}");
        }
        assert_eq!(vm.erase(0, DISCARD, 0, 8, 1), UNSUPPORTED);
        assert_eq!(vm.erase(0, WRITE_ZEROES, 0, 8, 2), UNSUPPORTED);
        assert_eq!(vm.erase(0, WRITE_ZEROES, end, 8, 0), IO_ERROR);
    }
}

#[test]
fn gigabytes_move_in_place() {
    move_in_place(&Rig::new(), 3 << 30);
}

#[test]
fn a_pool_on_a_disk_moves_data_in_place_as_well() {
    move_in_place(&Rig::on_disk(), 256 * MIB);
}

fn move_in_place(rig: &Rig, bytes: u64) {
    let socket = rig.disk("v", 128 * MIB);
    let mut vm = Vm::new(&socket, Wish { memory: 64 * MIB, ..Wish::default() });
    let image = pattern(1, 32 * MIB as usize);
    vm.memory.write(16 * MIB, &image).unwrap();
    let (mut moved, mut in_flight, mut next) = (0u64, 0, 0u64);
    while moved < bytes {
        while in_flight < 32 {
            // Writes from one half of the memory, reads into it: 128 KiB in three pieces.
            let at = 16 * MIB + next % 256 * (128 << 10);
            let sector = next % 256 * 256;
            let pieces = |piece: fn(u64, u32) -> ringway_shm_ring::virtqueue::driver::Piece| {
                [piece(at, 4096), piece(at + 4096, 61_440), piece(at + 65_536, 65_536)]
            };
            if next / 256 % 2 == 0 {
                vm.submit(0, WRITE, sector, &pieces(out));
            } else {
                vm.submit(0, READ, sector, &pieces(back));
            }
            next += 1;
            in_flight += 1;
        }
        let (_, status) = vm.wait(0);
        assert_eq!(status, OK);
        in_flight -= 1;
        moved += 128 << 10;
    }
    for _ in 0..in_flight {
        assert_eq!(vm.wait(0).1, OK);
    }
    let mut seen = vec![0; image.len()];
    vm.memory.read(16 * MIB, &mut seen).unwrap();
    assert!(seen == image, "what was read is what was written");
    assert_eq!(rig.bytes_copied(), 0);
}

/// History C12: a balloon takes a page away and the guest touches it again: another page. What is read has to land in that one.
#[test]
fn c12_what_is_read_lands_in_the_page_that_is_there_now() {
    let rig = Rig::on_disk();
    let socket = rig.disk("v", 32 * MIB);
    let mut vm = Vm::new(&socket, Wish::default());
    for round in 0..20 {
        let data = pattern(round, 64 << 10);
        assert_eq!(vm.write(0, round * 128, &data), OK);
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&*vm.fd, hole, DATA, 64 << 10).unwrap();
        assert!(vm.read(0, round * 128, 64 << 10) == data, "round {round}");
    }
}

#[test]
fn pieces_that_no_device_takes_are_copied_and_counted() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let mut vm = Vm::new(&socket, Wish::default());
    let before = rig.bytes_copied();
    let data = pattern(7, 8192);
    let odd = [out(DATA + 3, 1), out(DATA + 100, 511), out(DATA + 1024, 7000), out(DATA + 9001, 680)];
    let mut rest = &data[..];
    for piece in odd {
        let (here, more) = rest.split_at(piece.len as usize);
        vm.memory.write(piece.addr, here).unwrap();
        rest = more;
    }
    assert_eq!(vm.request(0, WRITE, 3, &odd), OK);
    assert!(vm.read(0, 3, 8192) == data);
    let odd = odd.map(|piece| back(piece.addr + 1, piece.len));
    vm.memory.write(DATA, &[0xCC; 16384]).unwrap();
    assert_eq!(vm.request(0, READ, 3, &odd), OK);
    let mut seen = Vec::new();
    for piece in odd {
        let mut bytes = vec![0; piece.len as usize];
        vm.memory.read(piece.addr, &mut bytes).unwrap();
        seen.extend(bytes);
    }
    assert!(seen == data);
    assert_eq!(rig.bytes_copied() - before, 2 * 8192);
}

#[test]
fn a_request_larger_than_ours_is_cut_and_a_hopeless_one_refused() {
    let rig = Rig::new();
    let socket = rig.disk("v", 64 * MIB);
    let mut vm = Vm::new(&socket, Wish { memory: 32 * MIB, ..Wish::default() });
    let image = pattern(3, 9 * MIB as usize);
    vm.memory.write(8 * MIB, &image).unwrap();
    assert_eq!(vm.request(0, WRITE, 5, &[out(8 * MIB, MIB as u32), out(9 * MIB, 8 * MIB as u32)]), OK);
    assert_eq!(vm.request(0, READ, 5, &[back(20 * MIB, 9 * MIB as u32)]), OK);
    let mut seen = vec![0; image.len()];
    vm.memory.read(20 * MIB, &mut seen).unwrap();
    assert!(seen == image);
    let endless: Vec<_> = (0..60).map(|_| back(8 * MIB, 8 * MIB as u32)).collect();
    assert_eq!(vm.request(0, READ, 0, &endless), IO_ERROR);
}

#[test]
fn memory_comes_and_goes_under_running_rings() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let mut vm = Vm::new(&socket, Wish { queues: 2, ..Wish::default() });
    let (fd, memory) = create_memory(4 * MIB, false);
    let info = region_info(1 << 32, 4 * MIB, 0, &fd);
    for round in 0..50u64 {
        for queue in [0, 1] {
            for nth in 0..20 {
                vm.submit(queue, WRITE, nth * 8, &[out(DATA + nth * 4096, 4096)]);
            }
        }
        vm.frontend.add_mem_region(&info).unwrap();
        memory.write(0, &pattern(round, 4096));
        assert!(vm.frontend.add_mem_region(&info).is_err(), "it is there already");
        for queue in [0, 1] {
            for _ in 0..20 {
                assert_eq!(vm.wait(queue).1, OK);
            }
        }
        assert_eq!(vm.request(1, WRITE, 1024, &[out(1 << 32, 4096)]), OK);
        assert!(vm.read(0, 1024, 4096) == pattern(round, 4096));
        vm.frontend.remove_mem_region(&info).unwrap();
        assert_eq!(vm.request(0, WRITE, 1024, &[out(1 << 32, 4096)]), IO_ERROR, "it is gone");
        assert!(vm.frontend.remove_mem_region(&info).is_err());
        // The whole table anew.
        let regions = [region_info(0, vm.wish.memory, 0, &vm.fd), info];
        vm.frontend.set_mem_table(&regions[..1 + round as usize % 2]).unwrap();
        vm.frontend.set_mem_table(&regions[..1]).unwrap();
    }
}

#[test]
fn a_ring_stops_where_it_says_and_goes_on_from_there() {
    for packed in [0, F_PACKED] {
        let rig = Rig::new();
        let socket = rig.disk("v", 32 * MIB);
        let mut vm = Vm::new(&socket, Wish { features: F_BASE | F_EVENT_IDX | packed, ..Wish::default() });
        for round in 0..20 {
            for nth in 0..(7 + round) {
                vm.submit(0, WRITE, nth * 8, &[out(DATA, 4096)]);
            }
            let base = vm.frontend.get_vring_base(0).unwrap();
            // What was taken has ended; the rest is still there.
            let mut ended = 0;
            while let Some((_, status)) = vm.poll(0) {
                assert_eq!(status, OK);
                ended += 1;
            }
            if packed == 0 {
                assert_eq!(base, u32::from(vm.drivers[0].used()));
            } else {
                assert_eq!(base & 0x7FFF, u32::from(vm.drivers[0].used()));
            }
            vm.frontend.set_vring_base(0, base as u16).unwrap();
            vm.frontend.set_vring_call(0, &vm.calls[0]).unwrap();
            vm.frontend.set_vring_kick(0, &vm.kicks[0]).unwrap();
            for _ in ended..(7 + round) {
                assert_eq!(vm.wait(0).1, OK);
            }
        }
    }
}

#[test]
fn requests_in_flight_are_carried_out_once_whoever_is_connected() {
    for packed in [0, F_PACKED] {
        let rig = Rig::new();
        let socket = rig.disk("v", 32 * MIB);
        let features = F_BASE | F_EVENT_IDX | packed;
        let mut vm = Vm::new(&socket, Wish { features, inflight: true, ..Wish::default() });
        for round in 0..40u64 {
            let data = pattern(round, 4096);
            vm.memory.write(DATA, &data).unwrap();
            for nth in 0..40 {
                vm.submit(0, WRITE, nth * 8, &[out(DATA, 4096)]);
            }
            // The connection breaks in the middle of them; some have ended, and the driver has seen some of those.
            for _ in 0..round % 5 {
                assert_eq!(vm.wait(0).1, OK);
            }
            vm.reconnect(&socket);
            for _ in round % 5..40 {
                assert_eq!(vm.wait(0).1, OK);
            }
            assert!(vm.poll(0).is_none());
            assert!(vm.read(0, 39 * 8, 4096) == data);
        }
    }
}

#[test]
fn what_the_device_writes_is_logged_while_the_machine_moves() {
    for packed in [0, F_PACKED] {
        let rig = Rig::new();
        let socket = rig.disk("v", 32 * MIB);
        let features = F_BASE | packed;
        let mut vm = Vm::new(&socket, Wish { features, ..Wish::default() });
        assert_eq!(vm.write(0, 0, &[5; 16384]), OK);
        let (log_fd, log) = SharedMemory::create("log", 4096).unwrap();
        let region = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: log_fd.as_raw_fd() };
        vm.frontend.set_log_base(0, Some(region)).unwrap();
        vm.frontend.set_features(features | F_LOG_ALL).unwrap();
        let device = vm.drivers[0].config().device;
        vm.set_address(0, Some(device));
        // Data over a page's end, from the middle of one.
        assert_eq!(vm.request(0, READ, 0, &[back(DATA + 2048, 8192)]), OK);
        let dirty: Vec<u64> = (0..4096 * 8)
            .filter(|page| log.load_u64(page / 64 * 8, Ordering::Acquire) >> (page % 64) & 1 == 1)
            .map(|page| page as u64)
            .collect();
        let pages = [DATA / 4096, DATA / 4096 + 1, DATA / 4096 + 2];
        assert!(pages.iter().all(|page| dirty.contains(page)), "the data: {dirty:?}");
        assert!(dirty.contains(&256), "the status byte: {dirty:?}");
        let ring = if packed == 0 { device } else { vm.drivers[0].config().desc };
        assert!(dirty.contains(&(ring / 4096)), "the ring: {dirty:?}");
        assert!(dirty.iter().all(|page| page < &16 || pages.contains(page) || *page == 256), "and no more: {dirty:?}");
        vm.frontend.set_features(features).unwrap();
        assert_eq!(vm.request(0, READ, 0, &[back(8 * MIB, 4096)]), OK);
        let last = 8 * MIB as usize / 4096;
        assert_eq!(log.load_u64(last / 64 * 8, Ordering::Acquire) >> (last % 64) & 1, 0);
    }
}

#[test]
fn a_resize_is_told_and_every_sector_of_it_is_there() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let mut vm = Vm::new(&socket, Wish { queues: 2, ..Wish::default() });
    let (ours, theirs) = UnixStream::pair().unwrap();
    vm.frontend.set_backend_request_fd(&theirs).unwrap();
    let capacity = |vm: &mut Vm| {
        let config = vm.frontend.get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60]).unwrap().1;
        u64::from_le_bytes(config[..8].try_into().unwrap())
    };
    assert_eq!(capacity(&mut vm), 32 * MIB / 512);
    assert_eq!(vm.request(0, READ, 32 * MIB / 512, &[back(DATA, 512)]), IO_ERROR);
    rig.call(ControlRequest::VolumeResize { name: "v".into(), size: 48 * MIB }).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut message = [0; 12];
    (&ours).read_exact(&mut message).unwrap();
    assert_eq!(message[..4], 2u32.to_ne_bytes(), "the configuration has changed");
    assert_eq!(capacity(&mut vm), 48 * MIB / 512);
    for queue in [0, 1] {
        assert_eq!(vm.request(queue, WRITE, 48 * MIB / 512 - 1, &[out(DATA, 512)]), OK);
    }
}

#[test]
fn the_write_cache_is_the_drivers_to_set() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let cache = |vm: &mut Vm| vm.frontend.get_config(32, 1, VhostUserConfigFlags::WRITABLE, &[0]).unwrap().1[0];
    let mut vm = Vm::new(&socket, Wish::default());
    assert_eq!(cache(&mut vm), 1);
    vm.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    assert_eq!(cache(&mut vm), 0);
    assert_eq!(vm.write(0, 0, &[3; 4096]), OK);
    assert!(vm.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[2]).is_err());
    assert!(vm.frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[1]).is_err());
    assert_eq!(vm.write(0, 0, &[4; 4096]), OK);
    drop(vm);
    let mut vm = Vm::new(&socket, Wish { features: F_BASE & !(F_FLUSH | F_CONFIG_WCE), ..Wish::default() });
    assert_eq!(cache(&mut vm), 0, "who cannot flush writes through");
    assert_eq!(vm.write(0, 0, &[3; 4096]), OK);
}

#[test]
fn a_second_front_end_is_refused_and_the_next_is_served() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let mut first = Vm::new(&socket, Wish::default());
    assert_eq!(first.write(0, 0, &[9; 4096]), OK);
    let mut second = UnixStream::connect(&socket).unwrap();
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "it is closed at once");
    for nth in 0..100 {
        first.submit(0, WRITE, nth * 8, &[out(DATA, 4096)]);
    }
    // It leaves in the middle of its requests.
    drop(first);
    let mut third = Vm::new(&socket, Wish::default());
    assert_eq!(third.read(0, 0, 4096), [9; 4096]);
    let Ok(ringway_core::control::ControlAnswer::Exports(exports)) = rig.call(ControlRequest::ExportList) else {
        panic!()
    };
    assert_eq!(exports[0].connections, 1);
    rig.call(ControlRequest::ExportRemove { id: exports[0].id }).unwrap();
    eventually("its front end is let go", || third.frontend.get_features().is_err());
    eventually("its socket is removed", || !socket.exists());
}

#[test]
fn a_read_only_disk_refuses_to_be_written() {
    let rig = Rig::new();
    rig.volume("v", 32 * MIB);
    let writable = rig.export("v", |_| {}).socket;
    let mut vm = Vm::new(&writable, Wish::default());
    assert_eq!(vm.write(0, 8, &[6; 4096]), OK);
    drop(vm);
    let read_only = rig.export("v", |add| {
        add.read_only = true;
        add.socket = Some(rig.dir.path().join("ro.sock").display().to_string());
    });
    let mut vm = Vm::new(&read_only.socket, Wish::default());
    assert_eq!(vm.frontend.get_features().unwrap() & 1 << 5, 1 << 5);
    assert_eq!(vm.read(0, 8, 4096), [6; 4096]);
    assert_eq!(vm.write(0, 8, &[7; 4096]), IO_ERROR);
    assert_eq!(vm.erase(0, DISCARD, 8, 8, 0), IO_ERROR);
    assert_eq!(vm.read(0, 8, 4096), [6; 4096]);
}

#[test]
fn every_polling_policy_hears_every_kick() {
    let rig = Rig::of(PoolSpec::Null(1 << 30));
    rig.volume("v", 32 * MIB);
    for (nth, polling) in [Polling::Interrupt, Polling::Adaptive, Polling::Busy].into_iter().enumerate() {
        let export = rig.export("v", |add| {
            add.polling = polling;
            add.socket = Some(rig.dir.path().join(format!("{nth}.sock")).display().to_string());
        });
        for event_idx in [0, F_EVENT_IDX] {
            let mut vm = Vm::new(&export.socket, Wish { features: F_BASE | event_idx, ..Wish::default() });
            for round in 0..60u64 {
                // Long enough now and then that the reactor sleeps.
                std::thread::sleep(Duration::from_micros(round % 6 * 50));
                assert_eq!(vm.request(0, READ, round, &[back(DATA, 4096)]), OK);
            }
            for round in 0..2000u64 {
                assert_eq!(vm.request(0, READ, round, &[back(DATA, 4096)]), OK);
            }
        }
    }
}

#[test]
fn a_write_cache_that_was_switched_off_stays_off_for_the_next_target_and_not_for_the_next_machine() {
    let rig = Rig::new();
    rig.volume("v", 32 * MIB);
    let socket = rig.export("v", |_| {}).socket;
    let cache = |vm: &mut Vm| vm.frontend.get_config(32, 1, VhostUserConfigFlags::WRITABLE, &[0]).unwrap().1[0];
    let mut vm = Vm::new(&socket, Wish { inflight: true, ..Wish::default() });
    assert_eq!(vm.write(0, 0, &[1; 4096]), OK);
    vm.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    // Its connection breaks with its rings running: it is the same machine that comes back.
    vm.reconnect(&socket);
    assert_eq!(cache(&mut vm), 0);
    assert_eq!(vm.write(0, 8, &[2; 4096]), OK);
    // And by itself it changes its mind, for good.
    vm.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[1]).unwrap();
    vm.reconnect(&socket);
    assert_eq!(cache(&mut vm), 1);
    vm.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    // It ends in order: another machine has its own cache.
    vm.frontend.get_vring_base(0).unwrap();
    drop(vm);
    let mut next = Vm::new(&socket, Wish::default());
    assert_eq!(cache(&mut next), 1);
}

#[test]
fn a_guest_of_more_than_a_gigabyte_is_pinned_in_slices_and_let_go() {
    let rig = Rig::new();
    rig.volume("v", 32 * MIB);
    let export = rig.export("v", |add| add.pin_guest = true);
    let pinned = || rig.metrics().reactors.iter().map(|reactor| reactor.registered_bytes.get()).sum::<u64>();
    let reactors = rig.metrics().reactors.len() as u64;
    let len = 1100 * MIB;
    let mut vm = Vm::new(&export.socket, Wish { memory: len, ..Wish::default() });
    let mut round = 0;
    // It is served meanwhile: registering what is not there yet takes the kernel a second or more a gigabyte.
    while pinned() != len * reactors {
        let data = pattern(round, 4096);
        assert_eq!(vm.write(0, round % 1000 * 8, &data), OK);
        assert!(vm.read(0, round % 1000 * 8, 4096) == data);
        round += 1;
        assert!(round < 2_000_000, "{} of {} bytes are registered", pinned(), len * reactors);
    }
    // At the end of it, across a border of slices, and at the start of another.
    for at in [len - 8192, 512 * MIB - 4096, 1024 * MIB] {
        assert_eq!(vm.request(0, READ, 0, &[back(at, 8192)]), OK, "at {at}");
    }
    drop(vm);
    eventually("its memory is let go", || pinned() == 0);
}

#[test]
fn a_disk_that_rests_lets_its_reactors_sleep_unless_its_export_wants_them_to_poll() {
    let rig = Rig::of(PoolSpec::Null(1 << 30));
    rig.volume("v", 32 * MIB);
    for (nth, polling) in [Polling::Interrupt, Polling::Adaptive, Polling::Busy].into_iter().enumerate() {
        let export = rig.export("v", |add| {
            add.polling = polling;
            add.socket = Some(rig.dir.path().join(format!("{nth}.sock")).display().to_string());
        });
        let mut vm = Vm::new(&export.socket, Wish::default());
        assert_eq!(vm.request(0, READ, 0, &[back(DATA, 4096)]), OK);
        let turns = || -> u64 {
            let metrics = rig.metrics();
            metrics.reactors.iter().map(|reactor| reactor.polls_empty.get() + reactor.polls_busy.get()).sum()
        };
        std::thread::sleep(Duration::from_millis(300));
        let before = turns();
        std::thread::sleep(Duration::from_secs(1));
        let (turned, polls) = (turns() - before, polling == Polling::Busy);
        assert!(if polls { turned > 10_000 } else { turned < 500 }, "{polling:?}: {turned} turns in a second");
        assert_eq!(vm.request(0, READ, 0, &[back(DATA, 4096)]), OK);
    }
}

#[test]
fn each_ring_is_shown_with_its_disk_its_requests_and_its_bytes() {
    let rig = Rig::new();
    rig.volume("v", 32 * MIB);
    let export = rig.export("v", |_| {});
    let mut vm = Vm::new(&export.socket, Wish::default());
    assert_eq!(vm.write(0, 0, &[1; 8192]), OK);
    assert_eq!(vm.read(0, 0, 4096), [1; 4096]);
    let started = std::time::Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", rig.metrics().connections());
        let shown = rig.metrics().connections();
        let Some(ring) = shown.iter().find(|ring| ring.commands.get() == 2) else { continue };
        assert_eq!(ring.label.peer, format!("vhost-user:{}", export.socket.display()));
        assert_eq!((ring.label.subsystem.as_str(), ring.label.queue), ("nqn.2026-11.io.ringway:v", 0));
        assert_eq!((ring.bytes_received.get(), ring.bytes_sent.get(), ring.in_flight.get()), (8192, 4096, 0));
        break;
    }
}

#[test]
fn pinned_memory_serves_as_well() {
    let rig = Rig::new();
    rig.volume("v", 32 * MIB);
    let export = rig.export("v", |add| add.pin_guest = true);
    let mut vm = Vm::new(&export.socket, Wish::default());
    for round in 0..50 {
        let data = pattern(round, 4096);
        assert_eq!(vm.write(0, round * 8, &data), OK);
        assert!(vm.read(0, round * 8, 4096) == data);
    }
    let (fd, _memory) = create_memory(4 * MIB, false);
    let info = region_info(1 << 32, 4 * MIB, 0, &fd);
    vm.frontend.add_mem_region(&info).unwrap();
    assert_eq!(vm.request(0, READ, 0, &[back(1 << 32, 4096)]), OK);
    vm.frontend.remove_mem_region(&info).unwrap();
    assert!(Arc::strong_count(&vm.fd) == 1);
}
