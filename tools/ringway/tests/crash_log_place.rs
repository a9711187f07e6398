//! The log that survives the process is found by the next one, whatever that is started with (history C3).

mod common;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use common::{Daemon, Place, finish, ringway, run, spawn};
use serde_json::Value;

const VOLUME: &str = "vm1";

/// A place whose daemons keep their logs where they do by default. What is left of them goes with it.
struct Shared {
    place: Place,
    pool: String,
}

impl Shared {
    /// A pool, served by its first daemon, with an empty volume.
    fn new() -> (Shared, Daemon) {
        let place = Place::new();
        place.format();
        let pool = run(["inspect".as_ref(), place.pool().as_os_str(), "--json".as_ref()]).json();
        let pool = pool["uuid"].as_str().unwrap().replace('-', "");
        let shared = Shared { place, pool };
        let daemon = shared.serve("run-a", "tcp://127.0.0.1:0");
        shared.place.run(&["volume", "create", VOLUME, "192MiB", "--lba", "4096", "--json"]).json();
        (shared, daemon)
    }

    fn serve(&self, runtime: &str, listen: &str) -> Daemon {
        let (pool, runtime) = (self.place.pool(), self.place.path(runtime));
        let (pool, runtime) = (pool.to_str().unwrap(), runtime.to_str().unwrap());
        self.place.serve_plainly(&["--pool", pool, "--runtime", runtime, "--listen", listen])
    }

    fn logs(&self) -> Vec<PathBuf> {
        let all = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.to_str().is_some_and(|path| path.contains(&self.pool))).collect()
    }

    fn bench(&self, listener: &str, args: &[&str]) -> common::Running {
        let (target, oracle) = (format!("{listener}/{VOLUME}"), self.place.path("oracle"));
        let mut command = ringway(["bench", &target, "--verify", "--oracle", oracle.to_str().unwrap(), "--json"]);
        spawn(command.args(["--depth", "16", "--queues", "2"]).args(args))
    }

    /// Writes, and kills the daemon in the middle of it, and the host as well: nothing is sent again. `fresh`: nothing was
    /// written before.
    fn write_and_kill(&self, daemon: Daemon, fresh: bool) -> String {
        let listener = daemon.listener();
        let fresh: &[&str] = if fresh { &["--fresh"] } else { &[] };
        let load = self.bench(&listener, &[&["--mix", "write", "--time", "30"], fresh].concat());
        thread::sleep(Duration::from_millis(700));
        daemon.kill();
        load.kill();
        listener
    }

    fn everything_acknowledged_is_there(&self, listener: &str) {
        let ended = finish(self.bench(listener, &["--resume", "--time", "0", "--sweep", "acknowledged"]));
        let report: Value = ended.json();
        assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
        assert!(report["verify"]["units_swept"].as_u64().unwrap() > 0, "{report}");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.logs().iter().for_each(|log| drop(fs::remove_file(log)));
    }
}

#[test]
fn c3_a_restart_with_another_runtime_folder_has_all_that_was_acknowledged() {
    let (shared, mut daemon) = Shared::new();
    for (round, runtime) in ["run-b", "run-c", "run-a"].into_iter().enumerate() {
        let listener = shared.write_and_kill(daemon, round == 0);
        assert!(!shared.logs().is_empty());
        // Not even what the first folder holds is needed.
        drop(fs::remove_dir_all(shared.place.path("run-a")));
        daemon = shared.serve(runtime, &listener);
        daemon.logs("records of a process that died are replayed");
        shared.everything_acknowledged_is_there(&listener);
    }
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(shared.logs(), Vec::<PathBuf>::new(), "a pool that was closed in good order needs no log");
}

#[test]
fn c3_a_log_that_is_gone_although_the_machine_lives_is_said_and_not_passed_over() {
    let (shared, daemon) = Shared::new();
    let listener = shared.write_and_kill(daemon, true);
    shared.logs().iter().for_each(|log| fs::remove_file(log).unwrap());
    let daemon = shared.serve("run-a", &listener);
    daemon.logs("is gone, although this machine has not been restarted");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn c3_a_copy_of_the_pool_leaves_the_log_of_the_original_alone() {
    let (shared, daemon) = Shared::new();
    let listener = shared.write_and_kill(daemon, true);
    let copy = shared.place.path("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(shared.place.pool().join("device-0.ringway"), copy.join("device-0.ringway")).unwrap();
    let runtime = shared.place.path("run-copy");
    let (copy, runtime) = (copy.to_str().unwrap(), runtime.to_str().unwrap());
    let of_copy = shared.place.serve_plainly(&["--pool", copy, "--runtime", runtime, "--listen", "tcp://127.0.0.1:0"]);
    of_copy.logs("is gone, although this machine has not been restarted");
    assert_eq!(of_copy.stop().code, Some(0));
    let daemon = shared.serve("run-a", &listener);
    shared.everything_acknowledged_is_there(&listener);
    assert_eq!(daemon.stop().code, Some(0));
}
