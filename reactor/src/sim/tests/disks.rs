//! Persistence: what survives, what may not, and how it tears.

use super::*;

/// The first byte of each 4 KiB block after a power loss.
fn after_power_loss(world: &World, blocks: u64) -> Vec<u8> {
    world.power_loss();
    (0..blocks).map(|block| world.bytes(DISK, block * K4, 1)[0]).collect()
}

#[test]
fn a_read_sees_a_write_that_has_finished() {
    seeds(20, |seed| {
        let mut io = world(seed).io();
        written(&mut io, 0, 2 * K4, 7);
        written(&mut io, 512, 1024, 8);
        let bytes = content(&mut io, 0, 2 * K4);
        assert!(bytes[..512].iter().chain(&bytes[1536..]).all(|&byte| byte == 7));
        assert!(bytes[512..1536].iter().all(|&byte| byte == 8));
    });
}

#[test]
fn a_barrier_covers_what_completed_before_it_and_nothing_else() {
    let mut lost = 0;
    seeds(200, |seed| {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, K4, 1);
        write(&mut io, 1, K4, K4, 2);
        barrier(&mut io, 2);
        write(&mut io, 3, 2 * K4, K4, 3);
        drain(&mut io);
        let blocks = after_power_loss(&world, 3);
        assert_eq!(blocks[0], 1, "what was taken before the barrier is persistent");
        assert!([0, 2].contains(&blocks[1]) && [0, 3].contains(&blocks[2]));
    });
    for seed in 0..200 {
        let world = world(seed);
        let mut io = world.io();
        write(&mut io, 1, 0, K4, 2);
        barrier(&mut io, 2);
        drain(&mut io);
        lost += u64::from(after_power_loss(&world, 1) == [0]);
    }
    assert!(lost > 50, "a write in flight when the barrier was submitted is often lost, here {lost} times");
}

#[test]
fn a_write_that_finished_but_was_not_reaped_is_not_covered() {
    let mut lost = 0;
    for seed in 0..200 {
        let world = world(seed);
        let mut io = world.io();
        write(&mut io, 1, 0, K4, 2);
        world.advance_ns(10_000_000);
        assert_eq!(world.bytes(DISK, 0, 1), [2], "it has landed");
        barrier(&mut io, 2);
        drain(&mut io);
        lost += u64::from(after_power_loss(&world, 1) == [0]);
    }
    assert!(lost > 50, "lost {lost} times");
}

#[test]
fn a_durable_write_makes_its_own_data_persistent_and_no_other() {
    let mut lost = 0;
    for seed in 0..200 {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, K4, 1);
        let buf = filled(&io, 4 * K4, 2);
        io.submit(Token(1), Op::Write { file: FILE, offset: K4, data: buf.into(), durable: true });
        assert_eq!(result(&mut io, 1), Ok(4 * K4 as usize));
        let blocks = after_power_loss(&world, 5);
        assert_eq!(blocks[1..], [2, 2, 2, 2]);
        lost += u64::from(blocks[0] == 0);
    }
    assert!(lost > 50, "lost {lost} times");
}

#[test]
fn what_a_durable_write_has_overwritten_never_comes_back() {
    seeds(200, |seed| {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, 2 * K4, 1);
        let buf = filled(&io, 512, 2);
        io.submit(Token(1), Op::Write { file: FILE, offset: 1024, data: buf.into(), durable: true });
        result(&mut io, 1).unwrap();
        world.power_loss();
        let bytes = world.bytes(DISK, 0, 2 * K4 as usize);
        assert!(bytes[1024..1536].iter().all(|&byte| byte == 2));
        assert!(bytes[..1024].iter().all(|&byte| byte == bytes[0]), "the rest is one old or one new unit");
    });
}

#[test]
fn power_loss_tears_at_the_atomic_unit_and_never_below() {
    for atomic in [512u64, 4096, 16384] {
        let (mut torn, mut mixed_pages) = (0, 0);
        for seed in 0..300 {
            let world = world_with(seed, DiskConfig { atomic_write_unit: atomic as u32, ..DiskConfig::default() });
            let mut io = world.io();
            written(&mut io, 0, 64 << 10, 1);
            flushed(&mut io);
            write(&mut io, 1, 0, 64 << 10, 2);
            if seed % 2 == 0 {
                drain(&mut io);
            }
            world.power_loss();
            let bytes = world.bytes(DISK, 0, 64 << 10);
            let units: Vec<u8> = bytes
                .chunks(atomic as usize)
                .map(|unit| {
                    assert!(unit.iter().all(|&byte| byte == unit[0]), "seed {seed}: a unit of {atomic} is torn");
                    unit[0]
                })
                .collect();
            assert!(units.iter().all(|unit| [1, 2].contains(unit)));
            torn += u64::from(units.contains(&1) && units.contains(&2));
            mixed_pages += u64::from(bytes.chunks(4096).any(|page| page[0] != page[4095]));
        }
        assert!(torn > 30, "units of {atomic}: torn {torn} times");
        assert_eq!(mixed_pages > 0, atomic == 512);
    }
}

#[test]
fn overlapping_unflushed_writes_survive_in_any_mixture_of_whole_units() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, 2 * K4, 1);
        written(&mut io, 0, 2 * K4, 2);
        seen.insert(after_power_loss(&world, 2));
    }
    let all: std::collections::BTreeSet<_> = (0..3).flat_map(|a| (0..3).map(move |b| vec![a, b])).collect();
    assert_eq!(seen, all);
}

#[test]
fn a_barrier_between_overlapping_writes_keeps_their_order() {
    seeds(200, |seed| {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, K4, 1);
        written(&mut io, 0, K4, 2);
        flushed(&mut io);
        written(&mut io, 0, K4, 3);
        assert!([2, 3].contains(&after_power_loss(&world, 1)[0]));
    });
}

#[test]
fn what_power_loss_has_left_is_persistent() {
    seeds(50, |seed| {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, 16 * K4, 1);
        let first = after_power_loss(&world, 16);
        assert_eq!(after_power_loss(&world, 16), first);
    });
}

#[test]
fn a_deallocated_range_reads_as_zero_and_may_come_back_until_a_barrier() {
    let mut back = 0;
    for seed in 0..200 {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, 4 * K4, 1);
        flushed(&mut io);
        io.submit(Token(1), Op::Deallocate { file: FILE, offset: K4, len: 1 << 19 });
        result(&mut io, 1).unwrap();
        let bytes = content(&mut io, 0, 4 * K4);
        assert!(bytes[..4096].iter().all(|&byte| byte == 1) && bytes[4096..].iter().all(|&byte| byte == 0));
        if seed % 2 == 0 {
            flushed(&mut io);
        }
        let blocks = after_power_loss(&world, 4);
        assert_eq!(blocks[0], 1);
        assert!(seed % 2 == 1 || blocks[1..] == [0, 0, 0]);
        back += u64::from(blocks[1..] != [0, 0, 0]);
    }
    assert!(back > 20, "came back {back} times");
}

#[test]
fn an_image_is_what_readers_see_and_a_world_made_of_it_has_it_persistent() {
    let world = world(1);
    let mut io = world.io();
    written(&mut io, 512, 3 * 512, 5);
    written(&mut io, 9 * K4, 2 * K4, 0);
    let image = world.image(DISK);
    assert_eq!(image.pages_used(), 1, "zeroes cost nothing");
    let next = World::new(2, WorldConfig::default());
    let disk = next.add_disk_from(DiskConfig::default(), &image);
    next.power_loss();
    assert_eq!(next.image(disk).digest(), image.digest());
    assert_eq!(next.bytes(disk, 512, 1536), vec![5; 1536]);
    let mut damaged = image.clone();
    damaged.write(1024, &[6]);
    assert_ne!(damaged.digest(), image.digest());
    assert_eq!((image.bytes(1024, 1), damaged.bytes(1024, 1)), (vec![5], vec![6]));
}

#[test]
fn one_run_branches_into_many_power_losses_and_goes_on() {
    let world = world(3);
    let mut io = world.io();
    written(&mut io, 0, 4 * K4, 1);
    write(&mut io, 1, 4 * K4, 4 * K4, 2);
    let mut rng = world.rng();
    let mut digests = std::collections::BTreeSet::new();
    for _ in 0..100 {
        digests.insert(world.power_loss_image(DISK, &mut rng).digest());
    }
    assert!(digests.len() > 20, "{} different outcomes", digests.len());
    drain(&mut io);
    flushed(&mut io);
    let only = world.image(DISK).digest();
    assert!((0..20).all(|_| world.power_loss_image(DISK, &mut rng).digest() == only), "a flushed disk has one outcome");
}

#[test]
fn operations_finish_out_of_order() {
    let mut io = world(1).io();
    for token in 0..32 {
        write(&mut io, token, token * K4, K4, 1);
    }
    let order: Vec<u64> = drain(&mut io).iter().map(|completion| completion.token.0).collect();
    assert_eq!(order.len(), 32);
    assert!(!order.is_sorted());
}

#[test]
fn a_reader_may_see_half_of_a_write_in_flight_but_never_half_of_a_unit() {
    let mut halves = 0;
    for seed in 0..300 {
        let world = world_with(seed, DiskConfig { two_step_writes: 1_000_000, ..DiskConfig::default() });
        let mut io = world.io();
        write(&mut io, 1, 0, 4 * K4, 1);
        world.advance_ns(60_000);
        let bytes = world.bytes(DISK, 0, 4 * K4 as usize);
        assert!(bytes.chunks(4096).all(|unit| unit.iter().all(|&byte| byte == unit[0])));
        halves += u64::from(bytes.contains(&0) && bytes.contains(&1));
        drain(&mut io);
        assert_eq!(world.bytes(DISK, 0, 4 * K4 as usize), vec![1; 4 * K4 as usize]);
        flushed(&mut io);
        assert_eq!(world.unflushed_writes(DISK), 0, "a barrier covers both parts");
    }
    assert!(halves > 50, "seen {halves} times");
}

#[test]
#[should_panic(expected = "not aligned to the logical block of 4096 bytes")]
fn an_operation_that_is_not_aligned_is_a_bug_and_no_error() {
    let mut io = world_with(1, DiskConfig { logical_block: 4096, ..DiskConfig::default() }).io();
    write(&mut io, 1, 512, 512, 1);
}

#[test]
fn power_loss_now_and_then_leaves_all_that_was_seen_or_nothing_of_it() {
    let world = world(6);
    let mut io = world.io();
    for round in 0..30u64 {
        written(&mut io, round % 7 * K4, (1 + round % 5) * K4, round as u8 + 1);
    }
    let (seen, mut rng) = (world.image(DISK).digest(), world.rng());
    let nothing = crate::sim::Image::zeroed(1 << 20).digest();
    let outcomes: Vec<u64> = (0..400).map(|_| world.power_loss_image(DISK, &mut rng).digest()).collect();
    let count = |wanted| outcomes.iter().filter(|&&outcome| outcome == wanted).count();
    assert!((20..150).contains(&count(seen)), "all of it {} times", count(seen));
    assert!((20..150).contains(&count(nothing)), "nothing of it {} times", count(nothing));
}
