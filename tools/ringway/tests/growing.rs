//! A pool that is full, and gets another device.

mod common;
mod volume;

use std::fs;

use common::{Place, run};
use ringway_core::host::Outcome;
use volume::Volume;

const MIB: usize = 1 << 20;

/// An image without zeros, another one for each seed.
fn image(place: &Place, name: &str, len: usize, seed: u64) -> String {
    let path = place.path(name);
    let mut state = seed;
    let word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state | 1).to_le_bytes()
    };
    let bytes: Vec<u8> = std::iter::repeat_with(word).take(len / 8).flatten().collect();
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn a_full_pool_grows_after_a_kill_and_goes_on_with_what_it_had_and_what_did_not_fit() {
    let place = Place::new();
    let pool = place.pool();
    let pool = pool.to_str().unwrap();
    let format = ["pool", "format", pool, "--size", "96MiB", "--shards", "2", "--slab", "4MiB", "--allocate", "sparse"];
    assert_eq!(run(format).code, Some(0));
    let kept = image(&place, "kept", 24 * MIB, 1);
    let large = image(&place, "large", 100 * MIB, 2);

    let daemon = place.serve(&[]);
    place.run(&["volume", "import", "kept", &kept, "--json"]).json();
    place.run(&["volume", "import", "large", &large]).fails(5, "CAPACITY_EXCEEDED");
    run(["pool", "grow", pool, "--size", "128MiB"]).fails(8, "`ringway pool grow` without its name");
    let boots = place.run(&["pool", "show", "--json"]).json()["boot_generation"].as_u64().unwrap();
    daemon.kill();

    // What a growth that was cut short leaves: a file without its name yet.
    fs::write(place.pool().join("device-1.ringway.new"), "cut short").unwrap();
    run(["pool", "grow", pool, "--size", "1MiB"]).fails(2, "at least");
    run(["pool", "grow", pool, "--device", "/dev/null"]).fails(2, "no block device");
    let grown = run(["pool", "grow", pool, "--size", "128MiB", "--allocate", "sparse", "--json"]).json();
    assert_eq!((grown["devices"].as_u64(), grown["serve"].as_str()), (Some(2), Some(pool)));
    assert!(!place.pool().join("device-1.ringway.new").exists());

    let daemon = place.serve(&[]);
    let shown = place.run(&["pool", "show", "--json"]).json();
    assert_eq!(shown["devices"].as_array().unwrap().len(), 2);
    assert_eq!(shown["size"], grown["size"]);
    assert_eq!(shown["boot_generation"].as_u64(), Some(boots + 1), "growing is no boot");
    place.run(&["volume", "import", "large", &large, "--json"]).json();
    daemon.kill();

    let moved = place.path("moved");
    let file = place.pool().join("device-1.ringway");
    fs::rename(&file, &moved).unwrap();
    place.try_serve(&[]).unwrap_err().fails(3, "device-1.ringway is missing: the pool has 2 devices");
    fs::rename(&moved, &file).unwrap();
    // One more that nobody counts on.
    fs::write(place.pool().join("device-2.ringway"), vec![0; MIB]).unwrap();
    let daemon = place.serve(&[]);
    daemon.logs("device 2 is not part of the pool");
    for (name, image) in [("kept", &kept), ("large", &large)] {
        let out = place.path("out");
        place.run(&["volume", "export", name, out.to_str().unwrap(), "--overwrite", "--json"]).json();
        assert!(fs::read(&out).unwrap() == fs::read(image).unwrap(), "{name} is not what it was");
    }
    assert_eq!(daemon.stop().code, Some(0));
    run(["inspect", pool, "--json"]).json();
    let grown = run(["pool", "grow", pool, "--size", "8MiB", "--allocate", "sparse", "--json"]).json();
    assert_eq!(grown["devices"], 3);
}

/// Writes 256 KiB pieces until that fails; the first byte that was not written.
fn fill(volume: &mut Volume, from: u64) -> (u64, Outcome) {
    let mut offset = from;
    loop {
        match volume.write(offset, &vec![(offset >> 18) as u8 | 1; 256 << 10]) {
            Outcome::Success => offset += 256 << 10,
            other => return (offset, other),
        }
    }
}

fn is_capacity_exceeded(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed(status) if status.to_string().contains("CAPACITY_EXCEEDED"))
}

#[test]
fn a_pool_that_is_full_under_a_live_connection_grows_online_and_its_writes_go_on() {
    let place = Place::new();
    let pool = place.pool();
    let pool = pool.to_str().unwrap();
    let format = ["pool", "format", pool, "--size", "96MiB", "--shards", "2", "--slab", "4MiB", "--allocate", "sparse"];
    assert_eq!(run(format).code, Some(0));
    let daemon = place.serve(&[]);
    place.run(&["volume", "create", "vm1", "1GiB", "--json"]).json();
    let mut volume = Volume::attach(&daemon.listener(), "vm1");
    let (full, outcome) = fill(&mut volume, 0);
    assert!(is_capacity_exceeded(outcome), "{outcome:?}");
    assert!(full > 32 << 20);

    place.run(&["pool", "grow"]).fails(2, "--size");
    place.run(&["pool", "grow", "--size", "1MiB"]).fails(2, "at least");
    place.run(&["pool", "grow", "--device", "/dev/null"]).fails(2, "no block device");
    // Something else that only has the name: it stays as it is.
    let stranger = place.pool().join("device-1.ringway");
    fs::write(&stranger, vec![7; MIB]).unwrap();
    place.run(&["pool", "grow", "--size", "64MiB", "--allocate", "sparse"]).fails(7, "another program");
    fs::remove_file(&stranger).unwrap();
    // Written, as by default.
    let grown = place.run(&["pool", "grow", "--size", "64MiB", "--json"]).json();
    assert_eq!((grown["devices"].as_u64(), grown["serve"].as_str()), (Some(2), Some(pool)), "{grown}");
    assert!(grown["device"].as_str().unwrap().ends_with("/device-1.ringway"), "{grown}");

    let (more, outcome) = fill(&mut volume, full);
    assert!(is_capacity_exceeded(outcome) && more > full + (48 << 20), "{outcome:?} at {more} after {full}");
    assert_eq!(volume.reconnects, 0, "one connection all the time");
    let text = place.run(&["pool", "grow", "--size", "32MiB", "--allocate", "reserved"]);
    assert!(text.code == Some(0) && text.stdout.contains("device-2.ringway"), "{text:?}");
    assert_eq!(volume.write(more, &[9; 4096]), Outcome::Success);
    let shown = place.run(&["pool", "show", "--json"]).json();
    assert_eq!(shown["devices"].as_array().unwrap().len(), 3, "{shown}");
    assert!(shown["growing"].is_null());
    daemon.logs("the pool has space again");

    // Unflushed: the process that dies must not take it along.
    let listen = daemon.listener();
    daemon.kill();
    let daemon = place.serve(&["--listen", &listen]);
    for offset in (0..more).step_by(256 << 10) {
        assert_eq!(volume.read(offset, 4096), vec![(offset >> 18) as u8 | 1; 4096], "byte {offset}");
    }
    assert_eq!(volume.read(more, 4096), vec![9; 4096]);
    assert_eq!(volume.flush(), Outcome::Success, "the machine lives");
    assert_eq!(volume.reconnects, 1);
    drop(volume);
    assert_eq!(daemon.stop().code, Some(0));
    run(["inspect", pool, "--json"]).json();
}

#[test]
fn a_pool_in_memory_does_not_grow() {
    let place = Place::new();
    let _daemon = place.serve(&["--pool", "mem:256MiB"]);
    place.run(&["pool", "grow", "--size", "64MiB"]).fails(2, "cannot grow");
}
