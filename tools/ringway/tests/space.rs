//! A pool that fills: it says so at 80, 90 and 95 per cent, refuses what does not fit and nothing else, and gets its space back.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::{Daemon, Place, run};

const MIB: u64 = 1 << 20;

struct Filling {
    place: Place,
    daemon: Daemon,
}

impl Filling {
    fn shown(&self, field: &str) -> u64 {
        self.place.run(&["pool", "show", "--json"]).json()[field].as_u64().unwrap()
    }

    /// Imports a volume that takes the pool up to `percent` of its size.
    fn up_to(&self, percent: u64) {
        let bytes = (self.shown("size") * percent / 100 - self.shown("used")) / MIB * MIB + MIB;
        let image = self.place.path("image");
        fs::write(&image, vec![percent as u8; bytes as usize]).unwrap();
        self.place.run(&["volume", "import", &format!("at-{percent}"), image.to_str().unwrap(), "--json"]).json();
    }

    /// Waits until the metric has this value.
    #[track_caller]
    fn threshold_is(&self, percent: u64) {
        let line = format!("ringway_pool_threshold_percent {percent}\n");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.place.metrics().contains(&line) {
            assert!(Instant::now() < deadline, "{line:?} is not in the metrics");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn file_bytes(&self) -> u64 {
        fs::metadata(self.place.pool().join("device-0.ringway")).unwrap().blocks() * 512
    }
}

#[test]
fn a_pool_that_fills_says_so_three_times_refuses_what_does_not_fit_and_gives_its_space_back() {
    let place = Place::new();
    let pool = place.pool();
    let format = ["pool", "format", pool.to_str().unwrap(), "--size", "160MiB", "--allocate", "sparse", "--json"];
    run(format.iter().chain(&["--shards", "1", "--slab", "4MiB"])).json();
    let daemon = place.serve(&[]);
    let filling = Filling { place, daemon };
    let place = &filling.place;
    place.run(&["volume", "create", "other", "8MiB", "--json"]).json();
    let other = format!("{}/other", filling.daemon.listener());
    let whole = ["--verify", "--mix", "write", "--pattern", "seq", "--operations", "2048", "--json"];
    run(["bench", &other].iter().chain(&whole)).json();
    filling.threshold_is(0);
    for percent in [80, 90, 95] {
        filling.up_to(percent);
        filling.threshold_is(percent);
        filling.daemon.logs(&percent.to_string());
    }
    // What does not fit is refused; overwriting and reading what is there is not, nor is it for others.
    place.run(&["volume", "create", "late", "64MiB", "--json"]).json();
    let late = format!("{}/late", filling.daemon.listener());
    let write = ["--mix", "write", "--pattern", "seq", "--block", "64KiB", "--operations", "1000"];
    run(["bench", &late].iter().chain(&write)).fails(1, "CAPACITY_EXCEEDED");
    let both = ["--verify", "--mix", "write=50,read=50", "--operations", "4096", "--sweep", "acknowledged", "--json"];
    let report = run(["bench", &other].iter().chain(&both)).json();
    assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");

    let full = filling.file_bytes();
    for volume in ["at-80", "late"] {
        place.run(&["volume", "remove", volume, "--json"]).json();
    }
    filling.threshold_is(0);
    filling.daemon.logs("has space again");
    // It goes back to the file system too.
    let deadline = Instant::now() + Duration::from_secs(30);
    while filling.file_bytes() + 64 * MIB > full {
        assert!(Instant::now() < deadline, "{} of {full} bytes are still held", filling.file_bytes());
        std::thread::sleep(Duration::from_millis(100));
    }
    place.run(&["volume", "create", "new", "32MiB", "--json"]).json();
    let new = format!("{}/new", filling.daemon.listener());
    let last = ["--verify", "--mix", "write", "--pattern", "seq", "--operations", "8192", "--json"];
    run(["bench", &new].iter().chain(&last)).json();
}
