//! A pool that is full, and gets another device.

mod common;

use std::fs;

use common::{Place, run};

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
    place.run(&["pool", "grow", "--size", "128MiB"]).fails(8, &format!("`ringway pool grow {pool} --size 134217728`"));
    run(["pool", "grow", pool, "--size", "128MiB"]).fails(8, "grows only while it is not served");
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
