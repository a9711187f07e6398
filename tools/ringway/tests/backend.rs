//! Snapshots in a folder, seen from outside: made on one target, restored on another, collected, checked; and what goes wrong.

mod common;
mod volume;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Ended, Place, ringway, spawn};
use ringway_core::host::Outcome;
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

/// A site that serves `vm1`, made of an image, whose snapshot `vm1@s` is in a folder.
struct Stored {
    here: Place,
    folder: PathBuf,
    site: Site,
    daemon: Daemon,
    image: PathBuf,
}

impl Stored {
    fn new() -> Stored {
        let here = Place::new();
        let folder = folder(&here);
        let site = Site::new(&folder);
        let daemon = start(&site);
        site.set();
        let image = image(&site.place, "image", 1);
        site.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
        site.ok(&["snapshot", "create", "vm1", "s", "--timeout", "60s"]);
        Stored { here, folder, site, daemon, image }
    }
}

/// What is mounted at the folder is gone, and a file is in its way: nothing is known of what was there.
fn take_away(here: &Place, folder: &Path) {
    fs::rename(folder, here.path("away")).unwrap();
    fs::write(folder, b"not a folder").unwrap();
}

fn bring_back(here: &Place, folder: &Path) {
    fs::remove_file(folder).unwrap();
    fs::rename(here.path("away"), folder).unwrap();
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
    let Stored { folder, site, daemon: _daemon, here: _here, .. } = Stored::new();
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

/// What a volume reads, by an export to a file.
fn content(site: &Site, volume: &str) -> Vec<u8> {
    let out = site.place.path("out");
    let _ = fs::remove_file(&out);
    site.ok(&["volume", "export", volume, out.to_str().unwrap()]);
    fs::read(&out).unwrap()
}

fn references(folder: &Path) -> usize {
    files(folder).iter().filter(|path| path.to_string_lossy().contains("/references/")).count()
}

#[test]
fn a_lazy_clone_serves_at_once_where_its_origin_is_gone_and_fetches_what_is_read_through_kills() {
    let here = Place::new();
    let folder = folder(&here);
    let (one, other) = (Site::new(&folder), Site::new(&folder));
    let image = image(&one.place, "image", 1);
    let maker = start(&one);
    one.set();
    one.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
    one.ok(&["snapshot", "create", "vm1", "monday", "--timeout", "60s"]);
    // The target that made it is no more, and its pool neither.
    maker.kill();
    fs::remove_dir_all(one.place.path("pool")).unwrap();

    let mut reader = start(&other);
    let clone = ["volume", "clone", "vm1@monday", "vm2", "--from", &one.url];
    let made = other.ok(&clone);
    assert_eq!((made["name"].as_str(), made["size"].as_u64()), (Some("vm2"), Some(16 * MIB as u64)));
    assert!(made["parent"].as_str().unwrap().starts_with("vm1@monday on file://"), "{made}");
    other.run(&clone).fails(4, "vm2");
    other.run(&["volume", "clone", "vm1@tuesday", "vm3", "--from", &one.url]).fails(3, "there is vm1@monday");
    other.run(&["volume", "clone", "vm1@monday", "vm3", "--from", "ftp://x"]).fails(2, "file:///FOLDER");
    other.run(&["volume", "clone", "vm1@monday", "vm3", "--from", &one.url, "--patience", "0"]).fails(2, "1 to 3600");
    assert_eq!(references(&folder), 1, "its owner is kept from deleting it");
    // Some of it is fetched when the target dies, twice.
    for _ in 0..2 {
        let half = other.place.path("half").display().to_string();
        let export = spawn(&mut ringway(other.place.with_control(&["volume", "export", "vm2", &half])));
        thread::sleep(Duration::from_millis(150));
        reader.kill();
        export.kill();
        let _ = fs::remove_file(half);
        reader = start(&other);
    }
    assert!(content(&other, "vm2") == fs::read(&image).unwrap(), "it is the same");
    let shown = other.ok(&["backend", "show"]);
    assert_eq!(shown["clones"][0]["name"], "vm2", "{shown}");
    // All of it is here by now.
    fs::rename(&folder, here.path("away")).unwrap();
    assert!(content(&other, "vm2") == fs::read(&image).unwrap(), "it is here");
    fs::rename(here.path("away"), &folder).unwrap();
    other.ok(&["volume", "remove", "vm2"]);
    wait_until("nobody reads it any more", || references(&folder) == 0);
    assert_eq!(reader.stop().code, Some(0));
}

#[test]
fn what_a_lazy_clone_looks_through_to_stays_until_it_is_gone_though_its_owner_removes_it() {
    let here = Place::new();
    let folder = folder(&here);
    let (one, other) = (Site::new(&folder), Site::new(&folder));
    let image = image(&one.place, "image", 1);
    let (maker, reader) = (start(&one), start(&other));
    one.set();
    one.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
    one.ok(&["snapshot", "create", "vm1", "s", "--timeout", "60s"]);
    other.ok(&["restore", "vm1@s", "--from", &one.url, "--lazy", "--as", "vm2"]);
    one.ok(&["snapshot", "remove", "vm1@s"]);
    one.ok(&["volume", "remove", "vm1"]);
    // Longer than the grace time, with a collection after it.
    thread::sleep(Duration::from_secs(3));
    one.ok(&["backend", "collect"]);
    assert!(content(&other, "vm2") == fs::read(&image).unwrap(), "its owner waits for us");
    other.run(&["restore", "vm1@s", "--from", &one.url, "--lazy", "--as", "vm3"]).fails(3, "about to be deleted");
    other.ok(&["volume", "remove", "vm2"]);
    wait_until("the snapshot is gone", || one.stored().is_empty());
    wait_until("nothing of it is left", || {
        !files(&folder).iter().any(|path| path.to_string_lossy().contains("/packs/"))
    });
    drop((maker, reader));
}

#[test]
fn a_lazy_clone_whose_backend_is_away_fails_reads_in_time_and_nothing_else() {
    let stored = Stored::new();
    let site = &stored.site;
    site.ok(&["volume", "clone", "vm1@s", "vm2", "--from", "backend", "--patience", "1"]);
    site.run(&["backend", "set", "none"]).fails(8, "1 clones need what is there");
    take_away(&stored.here, &stored.folder);
    let begun = Instant::now();
    let out = site.place.path("out");
    let ended = site.run(&["volume", "export", "vm2", out.to_str().unwrap()]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(content(site, "vm1") == fs::read(&stored.image).unwrap(), "others are not touched");
    let volume = site.ok(&["volume", "show", "vm2"]);
    assert!(volume["fault"].is_null(), "{volume}");
    let shown = site.ok(&["backend", "show"]);
    assert!(shown["clones"][0]["trouble"].is_string(), "{shown}");
    bring_back(&stored.here, &stored.folder);
    assert!(content(site, "vm2") == fs::read(&stored.image).unwrap(), "it is back");
    assert_eq!(stored.daemon.stop().code, Some(0));
}

#[test]
fn a_missed_deadline_says_what_the_store_said_last() {
    let here = Place::new();
    let folder = folder(&here);
    let site = Site::new(&folder);
    let _daemon = start(&site);
    site.set();
    let image = image(&site.place, "image", 1);
    site.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
    // A file is where the folder of packs belongs: no put succeeds, and one may again when it is gone.
    let pool = site.ok(&["pool", "show"])["uuid"].as_str().unwrap().replace('-', "");
    fs::create_dir_all(folder.join(&pool)).unwrap();
    fs::write(folder.join(&pool).join("packs"), b"in the way").unwrap();
    let ended = site.run(&["snapshot", "create", "vm1", "s", "--timeout", "2s"]);
    ended.fails(11, "it was being stored in the backend (");
    assert!(ended.stderr.contains("/packs/"), "{ended:?}");
    assert_eq!(site.ok(&["snapshot", "list"]), serde_json::json!([]), "no trace of it");
    fs::remove_file(folder.join(&pool).join("packs")).unwrap();
    site.ok(&["snapshot", "create", "vm1", "s", "--timeout", "60s"]);
}

#[test]
fn the_backend_is_given_at_format_or_at_the_start_and_stays_the_pools_own() {
    let here = Place::new();
    let folder = folder(&here);
    let url = format!("file://{}", folder.display());
    let recorded = |site: &Site| site.ok(&["backend", "show"])["settings"]["url"].as_str().map(str::to_owned);
    // At format: nobody looks whether it is there.
    let one = Site { place: Place::new(), url: url.clone() };
    let pool = one.place.pool().display().to_string();
    let format = ["pool", "format", &pool, "--size", "256MiB", "--allocate", "sparse", "--backend"];
    common::run([&format[..], &["nonsense"]].concat()).fails(2, "file:///FOLDER");
    common::run([&format[..], &[&url]].concat()).ends(0);
    let daemon = start(&one);
    assert_eq!(recorded(&one).as_deref(), Some(&*url));
    assert_eq!(daemon.stop().code, Some(0));
    // At the start: it is looked at once, and on record from then on.
    let two = Site::new(&folder);
    let refused = two.place.try_serve(&["--backend", "file:///nowhere/at/all"]).unwrap_err();
    refused.fails(6, "is not there");
    let daemon = two.place.serve(&["--backend", &url]);
    assert_eq!(recorded(&two).as_deref(), Some(&*url));
    daemon.kill();
    fs::rename(&folder, here.path("away")).unwrap();
    let daemon = two.place.serve(&["--backend", &url]);
    assert_eq!(daemon.stop().code, Some(0), "a pool serves though its backend is away");
    let daemon = start(&two);
    assert_eq!(recorded(&two).as_deref(), Some(&*url));
    drop(daemon);
}

/// A server that says the same to everybody, or, without an answer, nothing.
fn server(answer: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let mut silent = Vec::new();
        for mut socket in listener.incoming().flatten() {
            let Some(answer) = answer else {
                silent.push(socket);
                continue;
            };
            let mut asked = [0; 8192];
            let _ = socket.read(&mut asked);
            let _ = socket.write_all(answer.as_bytes());
        }
    });
    endpoint
}

const REFUSES: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const NO_BUCKET: &str = "HTTP/1.1 404 Not Found\r\ncontent-type: application/xml\r\ncontent-length: 50\r\nconnection: close\r\n\r\n<Error><Code>NoSuchBucket</Code></Error>          ";
const FULL: &str = "HTTP/1.1 507 Insufficient Storage\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[test]
fn a_store_that_refuses_lacks_the_bucket_is_full_or_hangs_is_told_apart_and_never_missed_by_a_deadline() {
    for (answer, code, says) in [
        (Some(REFUSES), 9, "403"),
        (Some(NO_BUCKET), 3, "NoSuchBucket"),
        (Some(FULL), 5, "507"),
        (None, 6, "no answer"),
    ] {
        let url = format!("s3://backups?endpoint={}", server(answer));
        // At format nobody looks; so snapshots meet it first.
        let site = Site { place: Place::new(), url: url.clone() };
        let pool = site.place.pool().display().to_string();
        let format = ["pool", "format", &pool, "--size", "256MiB", "--allocate", "sparse", "--backend", &url];
        common::run(format).ends(0);
        let credentials = site.place.path("credentials");
        fs::write(&credentials, "aws_access_key_id=somebody\naws_secret_access_key=guessed\n").unwrap();
        let daemon = site.place.serve(&["--backend-credentials", credentials.to_str().unwrap()]);
        let image = image(&site.place, "image", 1);
        site.ok(&["volume", "import", "vm1", image.to_str().unwrap()]);
        let begun = Instant::now();
        let ended = site.run(&["snapshot", "create", "vm1", "s", "--timeout", "3s"]);
        assert!(ended.code.is_some_and(|code| code != 0) && ended.stderr.contains(says), "{says}: {ended:?}");
        assert!(!ended.stderr.contains("guessed"), "no secret is said: {ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_eq!(site.ok(&["snapshot", "list"]), serde_json::json!([]), "no trace of it");
        site.run(&["backend", "set", &format!("{url}&region=x")]).fails(code, says);
        assert!(content(&site, "vm1") == fs::read(&image).unwrap(), "the volume is not touched");
        daemon.kill();
    }
}

#[test]
fn a_lazy_clone_that_was_streamed_needs_its_backend_no_more() {
    let Stored { here, folder, site, daemon, image } = Stored::new();
    site.ok(&["volume", "clone", "vm1@s", "vm2", "--from", "backend"]);
    site.run(&["stream", "start", "vm2"]).ends(0);
    wait_until("the clone is populated", || site.ok(&["volume", "show", "vm2"])["parent"].is_null());
    wait_until("nothing holds the snapshot", || references(&folder) == 0);
    daemon.kill();
    fs::rename(&folder, here.path("away")).unwrap();
    let daemon = start(&site);
    assert!(content(&site, "vm2") == fs::read(&image).unwrap(), "all of it is here");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_sync_of_a_lazy_clone_waits_for_what_that_looks_through_to_and_keeps_no_other_waiting() {
    let stored = Stored::new();
    // Another target, with a backend of its own that is well.
    let own = stored.here.path("own");
    fs::create_dir(&own).unwrap();
    let other = Site::new(&own);
    let daemon = start(&other);
    other.set();
    other.ok(&["volume", "import", "plain", stored.image.to_str().unwrap()]);
    other.ok(&["volume", "clone", "vm1@s", "lazy", "--from", &stored.site.url, "--patience", "2"]);
    take_away(&stored.here, &stored.folder);
    other.ok(&["snapshot", "create", "lazy", "behind", "--no-wait"]);
    let ended = other.run(&["snapshot", "create", "lazy", "late", "--timeout", "5s"]);
    ended.fails(11, "it was being stored in the backend");
    // Longer than the clone's patience: it is tried again.
    let begun = Instant::now();
    other.ok(&["snapshot", "create", "plain", "s", "--timeout", "20s"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} beside two that wait", begun.elapsed());
    let state = |name: &str| other.ok(&["snapshot", "show", name])["state"].as_str().unwrap().to_owned();
    assert_eq!(state("lazy@behind"), "sealed");
    bring_back(&stored.here, &stored.folder);
    wait_until("the snapshot of the lazy clone is stored", || state("lazy@behind") == "synced");
    other.ok(&["backend", "check", "lazy@behind", "--data"]);
    other.ok(&["restore", "lazy@behind", "--as", "back"]);
    assert!(content(&other, "back") == fs::read(&stored.image).unwrap());
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_target_stops_in_good_order_while_reads_and_a_sync_wait_for_a_backend_that_is_away() {
    let stored = Stored::new();
    let site = &stored.site;
    site.ok(&["volume", "clone", "vm1@s", "vm2", "--from", "backend", "--patience", "3600"]);
    take_away(&stored.here, &stored.folder);
    let reads = spawn(&mut ringway(["bench", &format!("{}/vm2", stored.daemon.listener()), "--time", "60"]));
    site.ok(&["snapshot", "create", "vm2", "t", "--no-wait"]);
    wait_until("something waits for the backend", || site.ok(&["backend", "show"])["clones"][0]["trouble"].is_string());
    let begun = Instant::now();
    stored.daemon.signal(Signal::TERM);
    let ended = stored.daemon.wait();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!ended.stderr.contains("does not end"), "nothing had to be given up: {ended:?}");
    reads.kill();
    bring_back(&stored.here, &stored.folder);
    let daemon = start(site);
    assert!(content(site, "vm2") == fs::read(&stored.image).unwrap(), "nothing is lost");
    wait_until("the sync goes on", || site.ok(&["snapshot", "show", "vm2@t"])["state"] == "synced");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_full_pool_still_stores_its_snapshots_and_reads_of_a_lazy_clone_on_it_say_that_it_is_full() {
    let stored = Stored::new();
    let other = Site { place: Place::new(), url: stored.site.url.clone() };
    let pool = other.place.pool().display().to_string();
    common::run(["pool", "format", &pool, "--size", "64MiB", "--allocate", "sparse"]).ends(0);
    let daemon = start(&other);
    other.set();
    other.ok(&["volume", "clone", "vm1@s", "lazy", "--from", &other.url]);
    other.ok(&["volume", "create", "fat", "256MiB"]);
    let mut volume = volume::Volume::attach(&daemon.listener(), "fat");
    let full = (0..256 * 4).position(|nth| volume.write(nth * 256 * 1024, &[7; 256 * 1024]) != Outcome::Success);
    assert!(full.is_some_and(|nth| nth > 8), "{full:?} writes fit");
    other.ok(&["snapshot", "create", "fat", "s", "--timeout", "60s"]);
    other.ok(&["backend", "check", "fat@s", "--data"]);
    let out = other.place.path("half").display().to_string();
    let ended = other.run(&["volume", "export", "lazy", &out]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(other.ok(&["volume", "show", "lazy"])["fault"].is_null());
    assert_eq!(volume.read(0, 4096), [7; 4096], "what is here is read on");
    drop(volume);
    other.ok(&["snapshot", "remove", "fat@s"]);
    other.ok(&["volume", "remove", "fat", "--force"]);
    wait_until("there is space again", || {
        fs::remove_file(&out).unwrap();
        other.run(&["volume", "export", "lazy", &out]).code == Some(0)
    });
    assert!(fs::read(&out).unwrap() == fs::read(&stored.image).unwrap());
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn what_is_left_of_a_worn_pack_moves_and_the_pack_goes_while_every_snapshot_stays() {
    let Stored { here: _here, folder, site, daemon, .. } = Stored::new();
    let packs = || {
        let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        files(&folder).iter().filter(|path| path.to_string_lossy().contains("/packs/")).map(bytes).sum::<u64>()
    };
    let mut volume = volume::Volume::attach(&daemon.listener(), "vm1");
    let mut noise = 7_u64;
    let mut block = || -> Vec<u8> {
        let mut word = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            noise.to_le_bytes()
        };
        std::iter::repeat_with(&mut word).take(4 * 4096 / 8).flatten().collect()
    };
    // Four blocks of each five are other ones from now on.
    for nth in 0..(5 * MIB as u64 / 4096) / 5 {
        assert_eq!(volume.write((5 * nth + 1) * 4096, &block()), Outcome::Success);
    }
    assert_eq!(volume.flush(), Outcome::Success);
    site.ok(&["snapshot", "create", "vm1", "t", "--timeout", "60s"]);
    let before = content(&site, "vm1@t");
    let worn = packs();
    site.ok(&["snapshot", "remove", "vm1@s"]);
    wait_until("something was copied", || {
        site.place
            .metrics()
            .lines()
            .any(|line| line.strip_prefix("ringway_backend_rewritten_bytes_total ").is_some_and(|bytes| bytes != "0"))
    });
    wait_until("the worn pack is gone", || packs() < worn * 2 / 3);
    site.ok(&["backend", "check", "--data"]);
    daemon.kill();
    let daemon = start(&site);
    assert_eq!(site.stored(), ["vm1@t"]);
    site.ok(&["restore", "vm1@t", "--as", "back"]);
    assert!(content(&site, "back") == before);
    // The next one builds upon the manifest that has taken the old one's place.
    site.ok(&["snapshot", "create", "vm1", "u", "--timeout", "60s"]);
    site.ok(&["backend", "check", "vm1@u", "--data"]);
    assert_eq!(daemon.stop().code, Some(0));
}
