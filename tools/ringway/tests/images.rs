//! Raw images into volumes and out of them, and volumes that are changed while hosts are attached.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, finish, ringway, spawn};

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file of `size` bytes that has data at `islands` alone.
fn sparse(path: &Path, size: u64, islands: &[(u64, usize)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for &(at, len) in islands {
        let bytes: Vec<u8> = (0..len).map(|n| ((at as usize + n) % 255) as u8 + 1).collect();
        file.write_all_at(&bytes, at).unwrap();
    }
}

#[test]
fn a_sparse_image_goes_in_and_comes_out_as_it_was_and_stays_sparse() {
    let place = Place::new();
    let _daemon = place.serve(&["--pool-size", "512MiB"]);
    let image = place.path("image");
    // Its end is in the middle of a block, whatever a block is.
    let size = 300 * MIB + 100;
    let islands =
        [(0, 512), (MIB - 1, 2), (64 * MIB + 511, 4097), (200 * MIB + 12_288, 3 * MIB as usize), (300 * MIB + 90, 10)];
    sparse(&image, size, &islands);
    for lba in ["512", "4096"] {
        let (name, out) = (format!("copy/{lba}"), place.path(&format!("out-{lba}")));
        let moved = place.run(&["volume", "import", &name, text(&image), "--lba", lba, "--json"]).json();
        let rounded = size.next_multiple_of(lba.parse().unwrap());
        assert_eq!((moved["size"].as_u64(), moved["volume"]["size"].as_u64()), (Some(size), Some(rounded)));
        // Nothing was sent or mapped where the image has nothing: requests are 256 KiB, clusters 64.
        assert!(moved["data"].as_u64().unwrap() < 6 * MIB, "{moved}");
        assert!(moved["volume"]["allocated"].as_u64().unwrap() < 8 * MIB, "{moved}");

        place.run(&["volume", "export", &name, text(&out), "--json"]).json();
        let (was, is) = (fs::read(&image).unwrap(), fs::read(&out).unwrap());
        assert!(is.len() as u64 == rounded && is[..was.len()] == was, "the image is not what it was");
        assert!(is[was.len()..].iter().all(|&byte| byte == 0));
        assert!(fs::metadata(&out).unwrap().blocks() * 512 < 16 * MIB, "holes were filled");
        place.run(&["volume", "export", &name, text(&out)]).fails(4, "--overwrite");
        place.run(&["volume", "export", &name, text(&out), "--overwrite", "--json"]).json();
    }
}

#[test]
fn an_image_that_cannot_be_taken_leaves_no_volume_behind() {
    let place = Place::new();
    let _daemon = place.serve(&["--pool-size", "128MiB"]);
    let empty = place.path("empty");
    fs::write(&empty, "").unwrap();
    place.run(&["volume", "import", "vm1", text(&empty)]).fails(2, "64 TiB");
    place.run(&["volume", "import", "vm1", text(&place.pool())]).fails(2, "directory");
    place.run(&["volume", "import", "a b", text(&empty)]).fails(2, "A-Z a-z 0-9");
    let large = place.path("large");
    sparse(&large, 256 * MIB, &[(0, 200 * MIB as usize)]);
    place.run(&["volume", "import", "vm1", text(&large)]).fails(5, "CAPACITY_EXCEEDED");
    assert_eq!(place.run(&["volume", "list", "--json"]).json().as_array().unwrap().len(), 0);
    // Its space is back.
    let small = place.path("small");
    sparse(&small, 64 * MIB, &[(0, 32 * MIB as usize)]);
    place.run(&["volume", "import", "vm1", text(&small), "--json"]).json();
    place.run(&["volume", "import", "vm1", text(&small)]).fails(4, "exists already");
    place.run(&["volume", "export", "vm2", text(&place.path("out"))]).fails(3, "no volume named");
    assert!(!place.path("out").exists());
    place.run(&["volume", "export", "vm1", "/no/such/dir/out"]).fails(3, "/no/such/dir/out");
}

fn wait_for_a_host(place: &Place, volume: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while place.run(&["volume", "show", volume, "--json"]).json()["attached_hosts"].as_array().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the load never attached");
        thread::sleep(Duration::from_millis(20));
    }
}

fn target(daemon: &Daemon, volume: &str) -> String {
    format!("{}/{volume}", daemon.listener())
}

#[test]
fn an_attached_volume_grows_under_load_and_is_removed_only_by_force() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    for volume in ["vm1", "other"] {
        place.run(&["volume", "create", volume, "16MiB", "--json"]).json();
    }
    let loaded = |volume: &str, seconds: &str| {
        let load =
            ["--verify", "--fresh", "--mix", "write=50,read=50", "--time", seconds, "--reconnect", "2", "--json"];
        spawn(ringway(["bench", &target(&daemon, volume)]).args(load))
    };
    let (doomed, other) = (loaded("vm1", "60"), loaded("other", "3"));
    wait_for_a_host(&place, "vm1");
    place.run(&["volume", "remove", "vm1"]).fails(8, "use force");
    assert_eq!(place.run(&["volume", "resize", "vm1", "32MiB", "--json"]).json()["size"], 32 * MIB);
    place.run(&["volume", "remove", "vm1", "--force", "--json"]).json();
    // Its host learns of it, and nobody else is disturbed.
    let ended = finish(doomed);
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    let report = finish(other).json();
    assert_eq!((&report["reconnects"], report["errors"].as_object().map(serde_json::Map::len)), (&0.into(), Some(0)));
    place.run(&["volume", "show", "vm1"]).fails(3, "no volume named");
    // The name is free, and the new volume has nothing of the old one.
    place.run(&["volume", "create", "vm1", "16MiB", "--json"]).json();
    let out = place.path("out");
    place.run(&["volume", "export", "vm1", text(&out), "--json"]).json();
    assert!(fs::read(&out).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn sectors_of_512_bytes_are_written_and_read_side_by_side() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    place.run(&["volume", "create", "vm1", "8MiB", "--lba", "512", "--json"]).json();
    let oracle = place.path("oracle");
    let load = ["--block", "512", "--depth", "64", "--verify", "--fresh", "--oracle", text(&oracle)];
    let mix = ["--mix", "write=60,read=40", "--time", "2", "--sweep", "acknowledged", "--json"];
    let report = finish(spawn(ringway(["bench", &target(&daemon, "vm1")]).args(load).args(mix))).json();
    assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    assert!(report["verify"]["units_swept"].as_u64() > Some(4 * MIB / 512), "{report}");
    place.run(&["volume", "create", "vm2", "8MiB", "--lba", "4096", "--json"]).json();
    let refused = finish(spawn(ringway(["bench", &target(&daemon, "vm2")]).args(["--block", "512"])));
    refused.fails(2, "4096");
}
