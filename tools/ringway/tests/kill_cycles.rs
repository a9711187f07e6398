//! SIGKILL of the real binary under a verified load, fifty times over, on one pool; longer where RINGWAY_SOAK_SECONDS says so.
//!
//! In every cycle the target is killed in the middle of writes, flushes and trims. In odd cycles the load generator lives: it
//! reconnects, sends again what was in flight, and reads everything back. In even cycles it is killed as well, a moment
//! after the target, and its promises are taken up from its file by another one. Each time every block of the region is read
//! and held to what was acknowledged.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, Running, finish, ringway, spawn};

const CYCLES: u64 = 50;
const VOLUME: &str = "cycles";

/// Different in every cycle, the same in every run of this test: 20 to 219 ms.
fn pause(cycle: u64) -> Duration {
    let mixed = (cycle + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Duration::from_millis(20 + mixed % 200)
}

struct Cycles {
    place: Place,
    target: String,
    daemon: Option<Daemon>,
}

impl Cycles {
    fn bench(&self, args: &[&str]) -> Running {
        let oracle = self.place.path("oracle");
        let mut command = ringway(["bench", &self.target, "--verify", "--oracle", oracle.to_str().unwrap(), "--json"]);
        spawn(command.args(["--depth", "16", "--queues", "2"]).args(args))
    }

    /// Goes on until well after the restart, then reads every block back.
    fn load(&self) -> Running {
        let mix = "write=90,trim=4,zeroes=2,flush=4";
        self.bench(&["--mix", mix, "--resume", "--time", "1", "--sweep", "acknowledged"])
    }

    fn restart(&mut self) {
        let listen = self.daemon.as_ref().map(Daemon::listener).expect("a daemon runs");
        self.daemon.take().expect("a daemon runs").kill();
        self.daemon = Some(self.place.serve(&["--listen", &listen]));
    }

    #[track_caller]
    fn check(running: Running, cycle: u64) -> serde_json::Value {
        let ended = finish(running);
        assert_eq!(ended.code, Some(0), "cycle {cycle}: {ended:?}");
        let report = ended.json();
        assert_eq!(
            report["verify"]["faults"].as_object().map(serde_json::Map::len),
            Some(0),
            "cycle {cycle}: {report}"
        );
        report
    }
}

#[test]
fn soak_nothing_acknowledged_is_lost_in_fifty_kills_or_more() {
    let soak = std::env::var("RINGWAY_SOAK_SECONDS").map_or(0, |text| text.parse().expect("a number of seconds"));
    let (soak, begun) = (Duration::from_secs(soak), Instant::now());
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "512MiB"]);
    place.run(&["volume", "create", VOLUME, "32MiB", "--lba", "4096", "--json"]).json();
    let target = format!("{}/{VOLUME}", daemon.listener());
    let mut cycles = Cycles { place, target, daemon: Some(daemon) };
    // Every block is written once, so that every block is judged each time.
    Cycles::check(cycles.bench(&["--mix", "write", "--pattern", "seq", "--operations", "8192", "--fresh"]), 0);

    let (mut swept, mut reconnects, mut cycle) = (0, 0, 0);
    while cycle < CYCLES || begun.elapsed() < soak {
        cycle += 1;
        let generator_lives = cycle % 2 == 1;
        let load = cycles.load();
        thread::sleep(Duration::from_millis(150) + pause(cycle));
        let report = if generator_lives {
            cycles.restart();
            let report = Cycles::check(load, cycle);
            reconnects += report["reconnects"].as_u64().unwrap();
            report
        } else {
            let listen = cycles.daemon.as_ref().map(Daemon::listener).expect("a daemon runs");
            cycles.daemon.take().expect("a daemon runs").kill();
            load.kill();
            cycles.daemon = Some(cycles.place.serve(&["--listen", &listen]));
            Cycles::check(cycles.bench(&["--resume", "--time", "0", "--sweep", "acknowledged"]), cycle)
        };
        let units = report["verify"]["units_swept"].as_u64().unwrap();
        assert_eq!(units, (32 << 20) / 4096, "cycle {cycle}: {report}");
        swept += units;
    }
    println!("{cycle} kills, {reconnects} seen by a load that lived, {swept} blocks judged");
    assert!(reconnects >= cycle / 2, "the load was connected at {reconnects} of {cycle} kills");
    assert_eq!(swept, cycle * (32 << 20) / 4096);
    assert_eq!(cycles.daemon.take().unwrap().stop().code, Some(0));
}
