//! Memory and events of a peer, on the kernel's ring.

use std::os::fd::OwnedFd;

use super::*;
use crate::buf::PAGE;
use crate::shared::{MemoryTable, SharedBuf};

fn shrinkable(pages: usize) -> (OwnedFd, Arc<SharedMemory>) {
    let fd = rustix::fs::memfd_create("peer", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, (pages * PAGE) as u64).unwrap();
    let memory = SharedMemory::map(&fd, 0, pages * PAGE).unwrap();
    (fd, memory)
}

/// Writes from pieces of a peer's memory in the wrong order, and reads back into another order.
fn moves_pieces(io: &mut UringIo, file: FileId, table: &Arc<MemoryTable>) {
    let memory = &table.areas()[0];
    for page in 0..4 {
        memory.write(page * PAGE, &[page as u8 + 1; PAGE]);
    }
    let page = |page: u64| (0, page * PAGE as u64, PAGE as u32);
    let scattered = SharedBuf::new(table, [page(2), page(0), page(3)]).unwrap();
    io.submit(Token(1), Op::Write { file, offset: 8192, data: scattered.into(), durable: true });
    let done = wait_for(io, 1).remove(0);
    assert_eq!(done.result, Ok(3 * PAGE));
    drop(done);
    let one = SharedBuf::new(table, [page(1)]).unwrap();
    io.submit(Token(2), Op::Read { file, offset: 8192, data: one.into() });
    assert_eq!(wait_for(io, 1).remove(0).result, Ok(PAGE));
    let scattered = SharedBuf::new(table, [page(3), page(0)]).unwrap();
    io.submit(Token(3), Op::Read { file, offset: 8192 + PAGE as u64, data: scattered.into() });
    assert_eq!(wait_for(io, 1).remove(0).result, Ok(2 * PAGE));
    let first = |page: usize| memory.read_array::<1>(page * PAGE)[0];
    assert_eq!([first(0), first(1), first(2), first(3)], [4, 3, 3, 1]);
}

#[test]
fn a_peers_memory_moves_in_place_registered_or_not_to_files_and_to_memory() {
    let folder = folder();
    let mut io = uring();
    let on_disk = io.add_file(&pool_file(folder.path(), 1 << 20)).unwrap();
    let in_memory = io.add_file(&OpenFile::memory(1 << 20).unwrap()).unwrap();
    let (_fd, memory) = SharedMemory::create("peer", 4 * PAGE).unwrap();
    let table = MemoryTable::new(vec![memory.clone()]);
    for file in [on_disk, in_memory] {
        moves_pieces(&mut io, file, &table);
    }
    if io.has_fixed_buffers() {
        // Pages 1 and 2, and page 3 by itself: pieces lie in one part, in two, in none.
        for part in [PAGE..3 * PAGE, 3 * PAGE..4 * PAGE] {
            io.register_memory(&memory, part).unwrap();
        }
        moves_pieces(&mut io, on_disk, &table);
        io.release_memory(&memory);
    }
    drop(table);
    assert_eq!(Arc::strong_count(&memory), 1, "nothing keeps the memory once it is released");
}

#[test]
fn memory_that_the_peer_took_away_is_its_own_error_and_not_the_devices() {
    let folder = folder();
    let mut io = uring();
    let on_disk = io.add_file(&pool_file(folder.path(), 1 << 20)).unwrap();
    let in_memory = io.add_file(&OpenFile::memory(1 << 20).unwrap()).unwrap();
    let (fd, memory) = shrinkable(4);
    let table = MemoryTable::new(vec![memory]);
    rustix::fs::ftruncate(&fd, PAGE as u64).unwrap();
    for file in [on_disk, in_memory] {
        for write in [true, false] {
            let gone = || SharedBuf::new(&table, [(0, 2 * PAGE as u64, PAGE as u32)]).unwrap().into();
            let op = if write {
                Op::Write { file, offset: 0, data: gone(), durable: false }
            } else {
                Op::Read { file, offset: 0, data: gone() }
            };
            io.submit(Token(1), op);
            let done = wait_for(&mut io, 1).remove(0);
            assert_eq!(done.result.unwrap_err().kind, ErrorKind::Memory, "{done:?}");
        }
    }
    assert!(!table.is_faulted(), "the kernel met it, not we");
}

#[test]
fn an_event_ends_a_sleep_and_is_reset_and_a_forgotten_one_is_cancelled() {
    let mut io = uring();
    let event = Arc::new(EventFd::new().unwrap());
    let peer = event.try_clone().unwrap();
    io.submit(Token(1), Op::WaitEvent { event: event.clone() });
    let signals = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        peer.signal().unwrap();
    });
    assert_eq!(wait_for(&mut io, 1).remove(0).result, Ok(0));
    signals.join().unwrap();
    assert!(!event.take().unwrap(), "the wait reset it");
    io.submit(Token(2), Op::WaitEvent { event: event.clone() });
    let mut done = Vec::new();
    io.poll(Wait::No, &mut done);
    assert!(done.is_empty());
    io.forget_event(&event);
    assert_eq!(wait_for(&mut io, 1).remove(0).result.unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(io.in_flight(), 0);
}

#[test]
fn a_signal_never_waits_for_a_peer_that_filled_its_event() {
    let mut io = uring();
    let event = Arc::new(EventFd::new().unwrap());
    io.submit(Token(1), Op::Signal { event: event.clone() });
    assert_eq!(wait_for(&mut io, 1).remove(0).result, Ok(0));
    assert!(event.take().unwrap());
    rustix::io::write(&*event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    io.submit(Token(2), Op::Signal { event: event.clone() });
    assert_eq!(wait_for(&mut io, 1).remove(0).result, Ok(0));
}
