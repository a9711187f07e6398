//! Front ends and guests that lie, shrink, scribble and vanish: each harms itself alone.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringway_shm_ring::virtqueue::driver::Piece;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use super::rig::{Rig, eventually};
use super::vm::{
    DATA, F_BASE, F_PACKED, IO_ERROR, MIB, OK, READ, Vm, WRITE, Wish, back, create_memory, greet, out, region_info,
};

/// The target serves `vm`, whatever the others have done to it.
fn is_well(vm: &mut Vm) {
    assert_eq!(vm.write(0, 0, &[0x5A; 4096]), OK);
    assert_eq!(vm.read(0, 0, 4096), [0x5A; 4096]);
}

#[test]
fn a_guest_whose_memory_shrinks_loses_its_connection_alone() {
    let rig = Rig::new();
    let (mine, other) = (rig.disk("mine", 32 * MIB), rig.disk("other", 32 * MIB));
    let mut bystander = Vm::new(&other, Wish::default());
    is_well(&mut bystander);
    for (round, keep) in [0, DATA, 64 << 10].into_iter().enumerate() {
        let mut vm = Vm::new(&mine, Wish { unsealed: true, ..Wish::default() });
        is_well(&mut vm);
        for nth in 0..40 {
            let data = DATA + nth * 8192;
            vm.submit(
                0,
                if nth % 2 == 0 { READ } else { WRITE },
                nth * 16,
                &[Piece { addr: data, len: 8192, write: nth % 2 == 0 }],
            );
        }
        rustix::fs::ftruncate(&*vm.fd, keep).unwrap();
        // Whatever of it the target touches next: the ring, a header, a status byte, the data. If nothing is left to touch, a kick
        // makes it look.
        vm.kicks[0].write(1).unwrap();
        if keep == DATA {
            // The ring is still there; the data is not.
            vm.submit(0, READ, 0, &[back(DATA + MIB, 8192)]);
            vm.kicks[0].write(1).unwrap();
        }
        let what = format!("round {round}: the connection ends");
        eventually(&what, || vm.frontend.get_features().is_err());
        is_well(&mut bystander);
    }
    is_well(&mut Vm::new(&mine, Wish::default()));
}

#[test]
fn a_broken_ring_stops_alone_and_says_so() {
    for packed in [0, F_PACKED] {
        let rig = Rig::new();
        let socket = rig.disk("v", 32 * MIB);
        let mut vm = Vm::new(&socket, Wish { features: F_BASE | packed, queues: 2, ..Wish::default() });
        is_well(&mut vm);
        let config = *vm.drivers[1].config();
        if packed == 0 {
            vm.drivers[1].set_word(config.driver + 2, 5000);
        } else {
            for index in 0..config.size {
                vm.drivers[1].descriptor(config.desc, index, 0, 1, 0, 1 << 7 | 1);
            }
        }
        vm.kicks[1].write(1).unwrap();
        eventually("the error event", || vm.errors[1].read().is_ok());
        is_well(&mut vm);
        vm.frontend.get_vring_base(1).unwrap();
    }
}

#[test]
fn requests_that_are_none_end_and_harm_nobody() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let mut vm = Vm::new(&socket, Wish { features: F_BASE, ..Wish::default() });
    // No status byte: the chain comes back, and nothing says how it ended.
    let driver = &mut vm.drivers[0];
    for pieces in [
        vec![out(DATA, 16)],
        vec![out(DATA, 16), back(DATA, 0)],
        vec![out(DATA, 16), back(64 * MIB, 1)],
        vec![out(DATA, 16), back(u64::MAX, u32::MAX)],
    ] {
        let id = driver.offer(&pieces);
        vm.kicks[0].write(1).unwrap();
        let mut used = None;
        eventually("it comes back", || {
            used = driver.take_used();
            used.is_some()
        });
        assert_eq!(used, Some((id, 0)));
    }
    // Headers that are too short, or nowhere.
    for pieces in
        [vec![out(DATA, 15), back(DATA + 64, 1)], vec![back(DATA + 64, 1)], vec![out(1 << 50, 16), back(DATA + 64, 1)]]
    {
        vm.memory.write(DATA + 64, &[0xEE]).unwrap();
        let driver = &mut vm.drivers[0];
        driver.offer(&pieces);
        vm.kicks[0].write(1).unwrap();
        eventually("it comes back", || driver.take_used().is_some());
        let mut status = [0];
        vm.memory.read(DATA + 64, &mut status).unwrap();
        assert_eq!(status[0], IO_ERROR, "{pieces:?}");
    }
    is_well(&mut vm);
}

#[test]
fn tables_and_rings_that_cannot_be_are_refused_and_the_old_ones_stay() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let mut vm = Vm::new(&socket, Wish::default());
    is_well(&mut vm);
    let (fd, _memory) = create_memory(4 * MIB, false);
    let whole = region_info(0, vm.wish.memory, 0, &vm.fd);
    for wrong in [
        region_info(MIB, 4 * MIB, 0, &fd),
        region_info(1 << 32, 8 * MIB, 0, &fd),
        region_info(1 << 32, 4 * MIB, MIB, &fd),
    ] {
        assert!(vm.frontend.set_mem_table(&[whole, wrong]).is_err());
        assert!(vm.frontend.add_mem_region(&wrong).is_err());
        is_well(&mut vm);
    }
    assert!(vm.frontend.set_vring_num(0, 3).is_err());
    assert!(vm.frontend.set_vring_num(0, 2048).is_err());
    assert!(vm.frontend.set_vring_num(9, 128).is_err());
    is_well(&mut vm);
    // A ring that is moved while it runs goes on where it is then; to nowhere, it stops.
    vm.set_address(0, None);
    is_well(&mut vm);
}

#[test]
fn memory_that_goes_round_the_end_of_all_addresses_costs_its_front_end_the_connection_at_most() {
    let rig = Rig::new();
    let (mine, other) = (rig.disk("mine", 32 * MIB), rig.disk("other", 32 * MIB));
    let mut bystander = Vm::new(&other, Wish::default());
    let (fd, _memory) = create_memory(4 * MIB, false);
    let fits = region_info(1 << 32, 4 * MIB, 0, &fd);
    for wraps in [
        VhostUserMemoryRegionInfo { guest_phys_addr: u64::MAX - MIB + 1, ..fits },
        VhostUserMemoryRegionInfo { userspace_addr: u64::MAX - MIB + 1, ..fits },
        VhostUserMemoryRegionInfo { mmap_offset: u64::MAX - 4095, ..fits },
        VhostUserMemoryRegionInfo { memory_size: u64::MAX - (1 << 32), ..fits },
    ] {
        for adds in [false, true] {
            let mut vm = Vm::new(&mine, Wish::default());
            is_well(&mut vm);
            let is_refused = if adds {
                vm.frontend.add_mem_region(&wraps).is_err()
            } else {
                vm.frontend.set_mem_table(&[wraps]).is_err()
            };
            assert!(is_refused, "{:#x} bytes at {:#x}", wraps.memory_size, wraps.guest_phys_addr);
        }
        is_well(&mut bystander);
    }
    // A hole in a table is no fault; what lies in it is.
    let mut vm = Vm::new(&mine, Wish::default());
    vm.frontend.add_mem_region(&fits).unwrap();
    assert_eq!(vm.request(0, READ, 0, &[back(1 << 32, 4096)]), OK);
    assert_eq!(vm.request(0, READ, 0, &[back((1 << 32) - 4096, 4096)]), IO_ERROR);
    assert_eq!(vm.request(0, READ, 0, &[back((1 << 32) - 4096, 8192)]), IO_ERROR);
    is_well(&mut vm);
}

#[test]
fn a_front_end_that_talks_nonsense_is_cut_off() {
    let rig = Rig::new();
    let socket = rig.disk("v", 32 * MIB);
    let messages: [&[u32]; 6] = [&[0, 1, 0], &[999, 1, 0], &[1, 2, 0], &[1, 1, 100_000], &[5, 1, 8, 1, 0], &[21, 1, 0]];
    for message in messages {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
        stream.write_all(&bytes).unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0, "{message:?}");
    }
    // Half a header, and gone.
    UnixStream::connect(&socket).unwrap().write_all(&[1, 0, 0]).unwrap();
    eventually("the next one is served", || UnixStream::connect(&socket).is_ok());
    std::thread::sleep(Duration::from_millis(100));
    let frontend = greet(&socket, F_BASE);
    drop(frontend);
    std::thread::sleep(Duration::from_millis(100));
    is_well(&mut Vm::new(&socket, Wish::default()));
}
