//! Against real files, among them hostile ones, and a real child that is really killed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn config(folder: &Path, generation: u64) -> CrashLogConfig {
    CrashLogConfig { folder: folder.to_owned(), pool: [7; 16], instance: [9; 16], shard: 3, generation, capacity: 8192 }
}

fn open(folder: &Path, generation: u64) -> CrashLog {
    CrashLog::open(&config(folder, generation)).unwrap()
}

fn record(lsn: u64) -> Vec<u8> {
    (0..20 + lsn as usize * 37 % 300).map(|at| (lsn as usize + at) as u8).collect()
}

fn lsns(log: &impl RecordLog) -> Vec<u64> {
    let records = log.replay();
    assert!(records.iter().all(|(lsn, bytes)| *bytes == record(*lsn)));
    records.iter().map(|(lsn, _)| *lsn).collect()
}

fn stale(log: &CrashLog) -> &str {
    match log.found() {
        Found::Stale(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_are_there_for_the_next_process_until_they_are_durable_elsewhere() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut log = open(folder.path(), 1);
    assert_eq!(*log.found(), Found::Nothing);
    (1..=9).for_each(|lsn| log.append(lsn, &record(lsn)).unwrap());
    log.truncate(4);
    drop(log);
    let mut log = open(folder.path(), 2);
    assert_eq!(*log.found(), Found::Records(5));
    assert_eq!(lsns(&log), [5, 6, 7, 8, 9]);
    log.append(10, &record(10)).unwrap();
    drop(log);
    let mut log = open(folder.path(), 3);
    assert_eq!(lsns(&log), [5, 6, 7, 8, 9, 10]);
    log.truncate(u64::MAX);
    drop(log);
    assert_eq!(lsns(&open(folder.path(), 4)), []);
}

#[test]
fn the_ring_goes_round_many_times_and_a_full_one_takes_nothing() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut log = open(folder.path(), 1);
    let mut lsn = 0;
    for round in 0..200 {
        while log.append(lsn + 1, &record(lsn + 1)).is_ok() {
            lsn += 1;
        }
        let (used, capacity) = log.used();
        assert!(used <= capacity && used > capacity - 400);
        log.truncate(lsn - round % 7);
        if round % 10 == 0 {
            drop(log);
            log = open(folder.path(), 1);
            assert_eq!(lsns(&log), (lsn - round % 7 + 1..=lsn).collect::<Vec<_>>());
        }
    }
}

#[test]
fn another_boot_pool_or_generation_is_not_replayed_and_says_why() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let fill = |generation| {
        let mut log = open(folder.path(), generation);
        log.truncate(u64::MAX);
        log.append(1, &record(1)).unwrap();
    };
    fill(5);
    let log = CrashLog::open_on_boot(&config(folder.path(), 6), [1; 16]).unwrap();
    assert!(stale(&log).contains("restarted") && lsns(&log).is_empty());
    drop(log);
    fill(5);
    assert!(stale(&open(folder.path(), 7)).contains("another process had the pool"));
    fill(7);
    assert!(stale(&open(folder.path(), 6)).contains("another process had the pool"));
    fill(6);
    let other = CrashLogConfig { pool: [8; 16], ..config(folder.path(), 6) };
    std::fs::rename(config(folder.path(), 6).path(), other.path()).unwrap();
    assert!(stale(&CrashLog::open(&other).unwrap()).contains("another pool"));
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_one_in_use_too() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = config(folder.path(), 1).path();
    let error = |config: &CrashLogConfig| CrashLog::open(config).err().unwrap().to_string();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(error(&config(folder.path(), 1)).contains("symbolic link"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(error(&config(folder.path(), 1)).contains("directory"));
    std::fs::remove_dir(&path).unwrap();
    let _log = open(folder.path(), 1);
    assert!(error(&config(folder.path(), 1)).contains("in use"));
    assert!(error(&CrashLogConfig { capacity: 5000, ..config(folder.path(), 1) }).contains("5000"));
}

#[test]
fn memory_keeps_what_a_file_keeps() {
    let mut log = MemoryLog::new(500);
    let survivor = log.clone();
    while log.append(log.replay().len() as u64 + 1, &[]).is_ok() {}
    assert_eq!(survivor.replay().len(), 500 / 32);
    log.truncate(10);
    assert_eq!(survivor.replay()[0].0, 11);
}

proptest! {
    #[test]
    fn garbage_anywhere_neither_panics_nor_invents_a_record(
        at in 0usize..12288, garbage in prop::collection::vec(any::<u8>(), 1..64), cut in 0usize..3
    ) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut log = open(folder.path(), 1);
        (1..=20).for_each(|lsn| log.append(lsn, &record(lsn)).unwrap());
        log.truncate(3);
        let path = log.path().to_owned();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len().min(at + garbage.len());
        bytes[at..end].copy_from_slice(&garbage[..end - at]);
        bytes.truncate(bytes.len() - [0, 1, 9000][cut]);
        std::fs::write(&path, &bytes).unwrap();
        // Garbage at the very tail number may skip records; never may one come back that was not written, or out of order.
        let mut log = open(folder.path(), 2);
        let left = lsns(&log);
        prop_assert!(left.is_sorted_by(|a, b| a < b) && left.iter().all(|lsn| (1..=20).contains(lsn)));
        log.append(21, &record(21)).unwrap();
        drop(log);
        let mut expected = left;
        expected.push(21);
        prop_assert_eq!(lsns(&open(folder.path(), 3)), expected);
    }
}

const CHILD: &str = "RINGWAY_TEST_CRASH_LOG_CHILD";

/// Not a test by itself: what the killed child runs.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let mut log = open(Path::new(&folder), 1);
    let mut out = std::io::stdout();
    for lsn in 1.. {
        while log.append(lsn, &record(lsn)).is_err() {
            log.truncate(lsn - 10);
        }
        std::io::Write::write_all(&mut out, format!("acknowledged {lsn}\n").as_bytes()).unwrap();
    }
}

#[test]
fn c3_everything_acknowledged_survives_sigkill() {
    for round in 0..20 {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "crash_log::tests::child_that_appends_until_it_is_killed"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = 0;
        let number = |line: String| line.strip_prefix("acknowledged ").map(|text| text.parse::<u64>());
        while last < 500 + round * 97 {
            match number(lines.next().expect("the child writes until it is killed").unwrap()) {
                Some(Ok(lsn)) => last = lsn,
                _ => continue,
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had acknowledged before it died; the last line may be torn.
        for line in lines.map_while(Result::ok) {
            if let Some(Ok(lsn)) = number(line) {
                last = last.max(lsn);
            }
        }
        let log = open(folder.path(), 2);
        let left = lsns(&log);
        assert!(*left.last().unwrap() >= last, "{last} was acknowledged, the log ends with {left:?}");
        assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }
}

#[test]
fn a_log_is_found_only_where_it_was_left_and_looking_changes_nothing() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let missing = CrashLog::find(&config(folder.path(), 2)).unwrap();
    assert!(missing.is_err_and(|why| why.contains("does not exist")));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let nowhere = CrashLog::find(&config(&folder.path().join("gone"), 2)).unwrap();
    assert!(nowhere.is_err_and(|why| why.contains("gone")));

    let mut log = open(folder.path(), 1);
    log.append(1, &record(1)).unwrap();
    drop(log);
    let overtaken = CrashLog::find(&config(folder.path(), 3)).unwrap();
    assert!(overtaken.is_err_and(|why| why.contains("another process")));
    let found = CrashLog::find(&config(folder.path(), 2)).unwrap().unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(lsns(&found), [1]);
    assert!(matches!(CrashLog::find(&config(folder.path(), 2)), Err(CrashLogError::InUse(_))));
}

#[test]
fn a_copy_of_the_pool_has_a_log_of_its_own() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut log = open(folder.path(), 1);
    log.append(1, &record(1)).unwrap();
    let copy = CrashLogConfig { instance: [10; 16], ..config(folder.path(), 2) };
    let mut of_copy = CrashLog::open(&copy).unwrap();
    assert_eq!(*of_copy.found(), Found::Nothing);
    of_copy.append(1, &record(2)).unwrap();
    drop((log, of_copy));
    assert_eq!(lsns(&open(folder.path(), 2)), [1]);

    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    std::fs::write(&one, "a pool").unwrap();
    std::fs::copy(&one, &two).unwrap();
    assert_ne!(instance_of(&one).unwrap(), instance_of(&two).unwrap());
    let before = instance_of(&one).unwrap();
    std::fs::rename(&one, folder.path().join("three")).unwrap();
    assert_eq!(instance_of(&folder.path().join("three")).unwrap(), before, "it may be moved");
}
