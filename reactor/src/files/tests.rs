//! Against real files; the temporary folder has to be on a file system with O_DIRECT.

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn silent(_: &Progress) {}

#[test]
fn a_written_file_has_all_its_blocks_and_says_how_far_it_is() {
    let folder = folder();
    let path = folder.path().join("device-0.ringway");
    let mut last = 0;
    let file = OpenFile::create(&path, 3 << 20, Allocation::Written, &mut |progress| {
        if let Progress::Writing { done, total } = progress {
            assert!(*done > last && *total == 3 << 20);
            last = *done;
        }
    })
    .unwrap();
    assert_eq!(last, 3 << 20);
    assert_eq!(file.info().size, 3 << 20);
    assert!(file.info().logical_block.is_power_of_two() && file.info().atomic_write_unit >= 512);
    let stat = rustix::fs::fstat(file.fd().unwrap()).unwrap();
    assert!(stat.st_blocks as u64 * 512 >= 3 << 20);
}

#[test]
fn a_sparse_file_takes_no_space() {
    let folder = folder();
    let path = folder.path().join("device-0.ringway");
    let file = OpenFile::create(&path, 64 << 20, Allocation::Sparse, &mut silent).unwrap();
    assert!(rustix::fs::fstat(file.fd().unwrap()).unwrap().st_blocks < 1024);
}

#[test]
fn what_cannot_be_a_pool_file_is_refused_with_what_would_be_right() {
    let folder = folder();
    let path = folder.path().join("x");
    let text = |result: Result<OpenFile, FileError>| result.unwrap_err().to_string();
    assert!(text(OpenFile::open(&path, Access::ReadWrite, &mut silent)).contains("does not exist"));
    assert!(text(OpenFile::open(folder.path(), Access::ReadWrite, &mut silent)).contains("is a directory"));
    assert!(text(OpenFile::open(Path::new("/dev/null"), Access::ReadWrite, &mut silent)).contains("character"));
    assert!(text(OpenFile::create(&path, 1000, Allocation::Sparse, &mut silent)).contains("multiple of 4096"));
    drop(OpenFile::create(&path, 4096, Allocation::Sparse, &mut silent).unwrap());
    assert!(text(OpenFile::create(&path, 4096, Allocation::Sparse, &mut silent)).contains("exists already"));
}

#[test]
fn a_file_in_memory_is_refused_by_name_and_leaves_nothing_behind() {
    let path = Path::new("/dev/shm").join(format!("ringway-test-{}", std::process::id()));
    let error = OpenFile::create(&path, 4096, Allocation::Sparse, &mut silent).unwrap_err().to_string();
    assert!(error.contains("tmpfs cannot do direct I/O"), "{error}");
    assert!(!path.exists());
}

#[test]
fn no_space_says_how_much_there_is() {
    let folder = folder();
    let path = folder.path().join("huge");
    let error = OpenFile::create(&path, 1 << 43, Allocation::Reserved, &mut silent).unwrap_err();
    assert!(
        matches!(error, FileError::NoSpace { needed, available, .. } if needed == 1 << 43 && available < needed),
        "{error}"
    );
    assert!(!path.exists());
}

#[test]
fn c4_a_second_opener_waits_for_the_first_and_says_who_it_is() {
    let folder = folder();
    let path = folder.path().join("device-0.ringway");
    let first = OpenFile::create(&path, 1 << 20, Allocation::Sparse, &mut silent).unwrap();
    let releasing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(first);
    });
    let mut told = Vec::new();
    let second = OpenFile::open(&path, Access::ReadWrite, &mut |progress| told.push(progress.to_string()));
    assert!(second.is_ok());
    assert!(told[0].contains("is locked by this process"), "{told:?}");
    releasing.join().unwrap();
}

#[test]
fn readers_share_and_the_lock_lasts_as_long_as_any_clone() {
    let folder = folder();
    let path = folder.path().join("device-0.ringway");
    drop(OpenFile::create(&path, 1 << 20, Allocation::Sparse, &mut silent).unwrap());
    let one = OpenFile::open(&path, Access::ReadOnly, &mut silent).unwrap();
    let two = OpenFile::open(&path, Access::ReadOnly, &mut silent).unwrap();
    drop((one, two));
    let first = OpenFile::open(&path, Access::ReadWrite, &mut silent).unwrap();
    let clone = first.clone();
    drop(first);
    let probe = std::fs::File::open(&path).unwrap();
    let lock = || rustix::fs::flock(&probe, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(lock(), Err(Errno::WOULDBLOCK));
    drop(clone);
    assert_eq!(lock(), Ok(()));
}
