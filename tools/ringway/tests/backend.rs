//! Snapshots in a folder, seen from outside: made on one target, restored on another, collected, checked; and what goes wrong.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Ended, Place};
use rustix::process::Signal;
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A target with a folder as its backend.
struct Site {
    place: Place,
    url: String,
}

impl Site {
    fn new(folder: &Path) -> Site {
        let place = Place::new();
        place.format();
        Site { place, url: format!("file://{}", folder.display()) }
    }

    fn ok(&self, args: &[&str]) -> Value {
        self.place.run(&[args, &["--json"]].concat()).json()
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.place.run(args)
    }

    fn set(&self) {
        self.ok(&["backend", "set", &self.url, "--grace", "1", "--patience", "5"]);
    }

    /// The names of what is stored.
    fn stored(&self) -> Vec<String> {
        let stored = self.ok(&["backend", "list", "--from", &self.url]);
        stored.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    }
}

fn folder(place: &Place) -> PathBuf {
    let folder = place.path("backend");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// An image without zeros but at its end.
fn image(place: &Place, name: &str, seed: u64) -> PathBuf {
    let path = place.path(name);
    let mut state = seed;
    let word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state | 1).to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(word).take(5 * MIB / 8).flatten().collect();
    bytes.resize(16 * MIB, 0);
    fs::write(&path, bytes).unwrap();
    path
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "it did not happen: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn start(site: &Site) -> Daemon {
    site.place.serve(&[])
}

#[test]
fn a_snapshot_comes_back_on_another_target_from_its_folder_alone() {
    let here = Place::new();
    let folder = folder(&here);
    let (one, other) = (Site::new(&folder), Site::new(&folder));
    let image = image(&one.place, "image", 1);
    let maker = start(&one);
    one.set();
    one.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
    one.ok(&["snapshot", "create", "vm1", "monday", "--timeout", "60s"]);
    assert_eq!(one.stored(), ["vm1@monday"]);
    // The target that made it is no more, and comes with nothing: all there is lies in the folder.
    maker.kill();

    let reader = start(&other);
    other.run(&["restore", "vm1@tuesday", "--from", &one.url]).fails(3, "there is vm1@monday");
    let back = other.ok(&["restore", "vm1@monday", "--from", &one.url, "--as", "back"]);
    assert_eq!((back["name"].as_str(), back["size"].as_u64()), (Some("back"), Some(16 * MIB as u64)));
    let out = other.place.path("out");
    other.ok(&["volume", "export", "back", out.to_str().unwrap()]);
    assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap(), "it is the same");
    other.run(&["restore", "vm1@monday", "--from", &one.url, "--as", "back"]).fails(4, "back");
    let volumes = other.ok(&["volume", "list"]);
    assert_eq!(volumes.as_array().unwrap().len(), 1, "nothing unfinished is left: {volumes}");
    assert!(
        !files(&folder).iter().any(|path| path.to_string_lossy().contains("references")),
        "nobody reads it any more"
    );
    assert_eq!(reader.stop().code, Some(0));
}

#[test]
fn what_no_snapshot_needs_goes_and_what_one_needs_stays_through_kills() {
    let here = Place::new();
    let folder = folder(&here);
    let site = Site::new(&folder);
    let daemon = start(&site);
    site.set();
    let (first, second) = (image(&site.place, "first", 1), image(&site.place, "second", 2));
    site.ok(&["volume", "import", "a", first.to_str().unwrap()]);
    site.ok(&["snapshot", "create", "a", "s", "--timeout", "60s"]);
    site.ok(&["volume", "import", "b", second.to_str().unwrap()]);
    site.ok(&["snapshot", "create", "b", "s", "--timeout", "60s"]);
    site.run(&["backend", "set", "none"]).fails(8, "2 snapshots are stored at file://");
    site.ok(&["snapshot", "remove", "a@s"]);
    site.ok(&["volume", "remove", "a"]);
    daemon.kill();
    let daemon = start(&site);
    wait_until("the snapshot of a is gone", || site.stored() == ["b@s"]);
    site.ok(&["backend", "collect"]);
    site.ok(&["backend", "check", "--data"]);
    site.ok(&["restore", "b@s", "--as", "c"]);
    let out = site.place.path("out");
    site.ok(&["volume", "export", "c", out.to_str().unwrap()]);
    assert!(fs::read(&out).unwrap() == fs::read(&second).unwrap());
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_damaged_object_is_named_by_check_and_never_restored() {
    let here = Place::new();
    let folder = folder(&here);
    let site = Site::new(&folder);
    let _daemon = start(&site);
    site.set();
    let image = image(&site.place, "image", 1);
    site.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
    site.ok(&["snapshot", "create", "vm1", "s", "--timeout", "60s"]);
    let pack = files(&folder).into_iter().find(|path| path.to_string_lossy().contains("/packs/")).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    let checked = site.run(&["backend", "check", "--data"]);
    assert!(checked.stdout.contains(name), "{checked:?}");
    checked.fails(7, "1 of 1 stored snapshots are damaged");
    site.run(&["restore", "vm1@s", "--as", "copy"]).fails(7, name);
    let volumes = site.ok(&["volume", "list"]);
    assert_eq!(volumes.as_array().unwrap().len(), 1, "nothing half restored is left: {volumes}");
}

#[test]
fn a_backend_that_goes_away_fails_snapshots_by_their_deadline_and_touches_nothing_else() {
    let here = Place::new();
    let folder = folder(&here);
    let site = Site::new(&folder);
    let daemon = start(&site);
    site.run(&["backend", "set", "file:///nowhere/at/all"]).fails(6, "is not there");
    site.run(&["backend", "set", "ftp://x"]).fails(2, "file:///FOLDER");
    site.set();
    let image = image(&site.place, "image", 1);
    site.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
    // What is mounted there is gone, and a file is in its way.
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, b"not a folder").unwrap();
    let begun = Instant::now();
    let ended = site.run(&["snapshot", "create", "vm1", "s", "--timeout", "3s"]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(site.ok(&["snapshot", "list"]), serde_json::json!([]), "no trace of it");
    let out = site.place.path("out");
    site.ok(&["volume", "export", "vm1", out.to_str().unwrap()]);
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    site.ok(&["snapshot", "create", "vm1", "s", "--timeout", "60s"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code, Some(0));
}
