//! Pools that are damaged, of a later version, or another program's: each is named as what it is, and nothing is changed.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use common::{Place, finish, ringway, run, spawn};

const BLOCK: u64 = 4096;
/// The superblock's checksum, and what it covers.
const CHECKSUM: std::ops::Range<usize> = 8..12;
const VERSION: std::ops::Range<usize> = 12..16;
const SHARDS: usize = 76;
const JOURNALS: usize = 160;
const JOURNAL_BYTES: usize = 168;

/// A pool's first file, read and changed behind the target's back.
struct Device {
    path: PathBuf,
    file: File,
}

impl Device {
    fn of(place: &Place) -> Device {
        let path = place.pool().join("device-0.ringway");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Device { path, file }
    }

    fn block(&self, offset: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut block, offset).unwrap();
        block
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
        self.file.sync_all().unwrap();
    }

    /// Where both copies of the superblock are.
    fn copies(&self) -> [u64; 2] {
        [0, self.file.metadata().unwrap().len() / BLOCK * BLOCK - BLOCK]
    }

    fn flip(&self, offset: u64) {
        let mut block = self.block(offset);
        block[100] ^= 0x40;
        self.put(offset, &block);
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

fn number(block: &[u8], at: usize, len: usize) -> u64 {
    block[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// CRC32C, bit by bit: by another way than the product's.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// A pool with a volume, closed in good order.
fn pool_with_a_volume(place: &Place) -> Device {
    place.format();
    let daemon = place.serve(&[]);
    place.run(&["volume", "create", "vm1", "16MiB", "--json"]).json();
    assert_eq!(daemon.stop().code, Some(0));
    Device::of(place)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn of_a_superblock_with_one_damaged_copy_the_other_is_used_and_that_is_said() {
    let place = Place::new();
    let device = pool_with_a_volume(&place);
    for (copy, named) in device.copies().into_iter().zip(["the superblock ", "the copy of the superblock at the end"]) {
        device.flip(copy);
        let before = device.content();
        let looked = run(["inspect", text(&place.pool())]);
        assert_eq!(looked.code, Some(0), "{looked:?}");
        assert!(looked.stdout.contains(named) && looked.stdout.contains("the other copy is used"), "{looked:?}");
        assert!(device.content() == before, "inspect has written to the pool");

        let daemon = place.serve(&[]);
        let logged = daemon.logs("rewritten from the other");
        assert!(logged.contains(named) && logged.contains("checksum"), "{logged}");
        assert_eq!(place.run(&["volume", "show", "vm1", "--json"]).json()["size"], 16 << 20);
        assert_eq!(daemon.stop().code, Some(0));
        let [front, back] = device.copies().map(|copy| device.block(copy));
        assert!(front == back, "the damaged copy was not rewritten");
        assert!(!run(["inspect", text(&place.pool())]).stdout.contains("note"));
    }
}

/// Every command that would open the pool refuses with `says`, and changes nothing.
fn refused(place: &Place, device: &Device, says: &str) {
    let before = device.content();
    let pool = place.pool();
    place.try_serve(&[]).unwrap_err().fails(7, says);
    for command in [&["inspect"][..], &["pool", "show"], &["pool", "grow", "--size", "64MiB"]] {
        let ended = run(command.iter().copied().chain([text(&pool)]));
        ended.fails(7, says);
        assert!(ended.stderr.contains(text(&pool)), "the pool is not named: {ended:?}");
    }
    run(["pool", "format", text(&pool), "--size", "64MiB"]).fails(4, "force");
    assert!(device.content() == before, "a refused pool was changed");
}

#[test]
fn a_pool_with_both_copies_damaged_is_refused_and_left_alone() {
    let place = Place::new();
    let device = pool_with_a_volume(&place);
    device.copies().into_iter().for_each(|copy| device.flip(copy));
    refused(&place, &device, "has checksum");
}

#[test]
fn a_pool_of_a_later_version_is_refused_and_left_alone() {
    let place = Place::new();
    let device = pool_with_a_volume(&place);
    for copy in device.copies() {
        let mut block = device.block(copy);
        assert_eq!(number(&block, VERSION.start, 4), 1);
        block[VERSION].copy_from_slice(&2_u32.to_le_bytes());
        let checksum = crc32c(&block[CHECKSUM.end..]);
        block[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        device.put(copy, &block);
    }
    refused(&place, &device, "has format version 2, this Ringway understands up to 1");
}

#[test]
fn a_file_of_another_program_is_named_as_such_and_left_alone() {
    let place = Place::new();
    place.format();
    let device = Device::of(&place);
    let qcow2 = [b"QFI\xfb".as_slice(), &[0, 0, 0, 3], &[7; 4088]].concat();
    device.copies().into_iter().for_each(|copy| device.put(copy, &qcow2));
    refused(&place, &device, "belongs to another program");
}

#[test]
fn a_truncated_pool_says_how_much_is_missing() {
    let place = Place::new();
    let device = pool_with_a_volume(&place);
    device.file.set_len(100 << 20).unwrap();
    refused(&place, &device, "it had 268435456 when the pool was made");
}

/// What memory kept of a pool's last moments: gone with the machine.
fn lose_memory(place: &Place) {
    fs::remove_dir_all(place.path("run")).unwrap();
    let uuid = run(["pool", "show", text(&place.pool()), "--json"]).json()["uuid"].as_str().unwrap().to_owned();
    for folder in ["/dev/shm", "/run/ringway"] {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.to_string_lossy().contains(&uuid) {
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
            }
        }
    }
}

#[test]
fn a_torn_journal_tail_is_cut_off_and_what_was_flushed_before_is_there() {
    let place = Place::new();
    let pool = place.pool();
    let format = ["pool", "format", text(&pool), "--size", "256MiB", "--shards", "1", "--allocate", "sparse", "--json"];
    run(format).json();
    let daemon = place.serve(&[]);
    let image = place.path("flushed");
    fs::write(&image, (0..1 << 20).map(|n: u32| (n / 4096 % 251) as u8 + 1).collect::<Vec<_>>()).unwrap();
    place.run(&["volume", "import", "flushed", text(&image), "--json"]).json();
    place.run(&["volume", "create", "late", "64MiB", "--json"]).json();
    let target = format!("{}/late", daemon.listener());
    let load = spawn(&mut ringway(["bench", &target, "--mix", "write", "--time", "60", "--rate", "500"]));
    // Each group is written within a second of its oldest record.
    thread::sleep(Duration::from_millis(2500));
    daemon.kill();
    load.kill();
    lose_memory(&place);

    let device = Device::of(&place);
    let superblock = device.block(0);
    assert_eq!(number(&superblock, SHARDS, 2), 1);
    let (start, len) = (number(&superblock, JOURNALS, 8), number(&superblock, JOURNAL_BYTES, 8));
    // A journal that has not gone round ends at its last block that was ever written.
    let blocks = (0..len / BLOCK).map(|n| start + n * BLOCK);
    let last = blocks.rev().find(|&at| device.block(at).iter().any(|&byte| byte != 0)).expect("groups were written");
    device.put(last + BLOCK / 8, &[0x5a; 512]);

    let looked = run(["inspect", text(&pool)]);
    assert_eq!(looked.code, Some(0), "{looked:?}");
    assert!(looked.stdout.contains("is torn"), "{looked:?}");
    let daemon = place.serve(&[]);
    daemon.logs("torn");
    for volume in place.run(&["volume", "list", "--json"]).json().as_array().unwrap() {
        assert!(volume["fault"].is_null(), "{volume}");
    }
    let out = place.path("out");
    place.run(&["volume", "export", "flushed", text(&out), "--json"]).json();
    assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap(), "flushed data is lost");
    // And it goes on: what is written from now on is kept again.
    let listener = daemon.listener();
    let target = format!("{listener}/late");
    let oracle = place.path("oracle");
    let bench = ["bench", &target, "--verify", "--mix", "write", "--time", "1", "--oracle", text(&oracle), "--json"];
    finish(spawn(&mut ringway(bench))).json();
    daemon.kill();
    let _daemon = place.serve(&["--listen", &listener]);
    let again = ["bench", &target, "--verify", "--time", "0", "--resume", "--sweep", "acknowledged", "--json"];
    finish(spawn(ringway(again).args(["--oracle", text(&oracle)]))).json();
}

#[test]
fn a_pool_that_is_served_is_looked_at_through_its_target_and_is_not_taken_from_it() {
    let place = Place::new();
    place.format();
    let daemon = place.serve(&[]);
    place.run(&["volume", "create", "vm1", "16MiB", "--json"]).json();
    let pool = place.pool();
    // The target is found by its socket.
    let shown = place.run(&["pool", "show", text(&pool), "--json"]).json();
    assert_eq!((&shown["volumes"], &shown["boot_generation"]), (&1.into(), &1.into()));
    // Without it there is only the lock, for which each of these waits half a minute: all at once.
    let nowhere = place.path("nowhere.sock");
    let commands = [
        vec!["inspect", text(&pool)],
        vec!["pool", "show", text(&pool), "--control", text(&nowhere)],
        vec!["pool", "format", text(&pool), "--size", "64MiB", "--force"],
        vec!["pool", "grow", text(&pool), "--size", "64MiB"],
    ];
    let running: Vec<_> = commands.iter().map(|command| spawn(&mut ringway(command))).collect();
    for ended in running.into_iter().map(finish) {
        ended.fails(8, "in use by");
        assert!(ended.stderr.contains(&daemon.pid().to_string()), "{ended:?}");
    }
    let shown_again = place.run(&["pool", "show", "--json"]).json();
    assert_eq!(shown_again, shown);

    // Nobody serves it any more: the pool itself is asked, and says the same.
    assert_eq!(daemon.stop().code, Some(0));
    let offline = place.run(&["pool", "show", text(&pool), "--json"]).json();
    for (field, value) in shown.as_object().unwrap() {
        if field != "used" {
            assert_eq!(&offline[field], value, "{field}");
        }
    }
    assert_eq!(offline.as_object().unwrap().len(), shown.as_object().unwrap().len());
    assert!(place.run(&["pool", "show", text(&pool)]).stdout.contains("Nobody serves it"));
    run(["pool", "show", "mem:1GiB"]).fails(2, "gone with the target");
    run(["pool", "show", "/no/such/pool"]).fails(3, "/no/such/pool");
}
