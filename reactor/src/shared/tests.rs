//! Two sides of one memory, in one process.

use super::*;

fn memory(pages: usize) -> (OwnedFd, Arc<SharedMemory>) {
    SharedMemory::create("test", pages * PAGE).unwrap()
}

#[test]
fn both_sides_see_one_memory() {
    let (fd, ours) = memory(2);
    let theirs = SharedMemory::map_sealed(&fd).unwrap();
    ours.store_u32(8, 0xA5A5, Ordering::Release);
    assert_eq!(theirs.load_u32(8, Ordering::Acquire), 0xA5A5);
    theirs.write(PAGE - 2, b"over");
    let mut seen = [0; 4];
    ours.read(PAGE - 2, &mut seen);
    assert_eq!(&seen, b"over");
    assert_eq!(&ours.read_array::<4>(PAGE - 2), b"over");
    assert_eq!(ours.fetch_or_u64(0, 6, Ordering::AcqRel), 0);
    assert_eq!(theirs.load_u64(0, Ordering::Relaxed), 6);
}

#[test]
fn memory_that_can_shrink_is_refused_where_a_seal_is_wanted() {
    let fd = rustix::fs::memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, PAGE as u64).unwrap();
    assert!(matches!(SharedMemory::map_sealed(&fd), Err(SharedError::NotSealed)));
    assert!(matches!(SharedMemory::map(&fd, 0, 2 * PAGE), Err(SharedError::Short { .. })));
}

#[test]
#[should_panic(expected = "of shared memory")]
fn a_word_beyond_the_end_is_our_own_bug() {
    let _ = memory(1).1.load_u64(PAGE - 4, Ordering::Relaxed);
}

#[test]
fn a_page_that_the_peer_takes_away_reads_as_zeros_and_marks_that_memory_alone() {
    let fd = rustix::fs::memfd_create("shrinks", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 4 * PAGE as u64).unwrap();
    let shrinking = SharedMemory::map(&fd, 0, 4 * PAGE).unwrap();
    let (_fd, other) = memory(4);
    shrinking.store_u32(3 * PAGE, 7, Ordering::Relaxed);
    rustix::fs::ftruncate(&fd, PAGE as u64).unwrap();
    assert!(!shrinking.is_faulted());
    assert_eq!(shrinking.load_u32(3 * PAGE, Ordering::Relaxed), 0);
    assert!(shrinking.is_faulted());
    shrinking.zero(PAGE, 3 * PAGE);
    other.zero(0, 4 * PAGE);
    assert!(!other.is_faulted());
    let table = MemoryTable::new(vec![other, shrinking]);
    assert!(table.is_faulted());
}

#[test]
fn a_range_is_split_joined_and_copied_over_its_pieces() {
    let (_fd, one) = memory(1);
    let (_fd, two) = memory(2);
    let table = MemoryTable::new(vec![one, two]);
    let parts = [(0, 4000, 96), (1, 0, 0), (1, 4096, 512), (1, 4608, 88)];
    let mut whole = SharedBuf::new(&table, parts).unwrap();
    assert_eq!((whole.len(), whole.pieces()), (696, 2));
    let bytes: Vec<u8> = (0..696).map(|at| at as u8).collect();
    whole.copy_from(0, &bytes);
    for at in [0, 1, 95, 96, 97, 608, 695, 696] {
        let mut rest = whole.split_off(at);
        assert_eq!((whole.len(), rest.len()), (at, 696 - at));
        let mut seen = vec![0; rest.len()];
        rest.copy_to(0, &mut seen);
        assert_eq!(seen, bytes[at..]);
        rest.copy_from(0, &seen);
        whole.join(rest);
        assert_eq!((whole.len(), whole.pieces()), (696, 2));
    }
    assert!(!whole.is_aligned(512));
    whole.zero();
    assert_eq!(table.areas()[1].load_u64(4096, Ordering::Relaxed), 0);
}

#[test]
fn a_range_out_of_bounds_is_refused_with_what_there_is() {
    let (_fd, one) = memory(1);
    let table = MemoryTable::new(vec![one]);
    for (area, offset, len) in [(0, 4096, 1), (0, u64::MAX, 2), (1, 0, 1), (0, 1, u32::MAX)] {
        let error = SharedBuf::new(&table, [(area, offset, len)]).unwrap_err();
        assert!(matches!(error, SharedError::OutOfBounds { .. }), "{error}");
    }
    let twice = SharedBuf::new(&table, std::iter::repeat_n((0, 0, 4096), 1 << 20));
    assert!(twice.is_err(), "4 GiB in one request");
}

#[test]
fn a_request_keeps_its_memory_mapped_after_the_peer_took_the_table_back() {
    let (_fd, one) = memory(1);
    let weak = Arc::downgrade(&one);
    let table = MemoryTable::new(vec![one]);
    let mut held = SharedBuf::new(&table, [(0, 0, 4096)]).unwrap();
    drop(table);
    let tail = held.split_off(100);
    drop(held);
    assert!(weak.upgrade().is_some());
    drop(tail);
    assert!(weak.upgrade().is_none());
}

#[test]
fn pages_are_there_once_they_were_asked_for_or_written() {
    let (_fd, memory) = SharedMemory::create("peer", 64 * PAGE).unwrap();
    assert!(!memory.is_populated(0..PAGE) && !memory.is_populated(0..64 * PAGE));
    memory.populate(PAGE..9 * PAGE).unwrap();
    assert!(memory.is_populated(PAGE..9 * PAGE) && !memory.is_populated(PAGE..10 * PAGE));
    memory.write(9 * PAGE, &[1]);
    assert!(memory.is_populated(PAGE..10 * PAGE) && !memory.is_populated(0..PAGE));
}
