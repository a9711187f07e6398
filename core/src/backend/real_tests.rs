//! The same over real stores: a folder, and a server that speaks S3.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::collect::{Collector, Kept, mark};
use super::manifest::Subject;
use super::memory::MemoryPool;
use super::names::Attempt;
use super::reader::Reader;
use super::remote::{Patience, Remote, RemoteError, SpeedLimit, Trouble};
use super::restore::{RestoreProgress, restore};
use super::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use super::store::{Objects, StoreErrorKind};
use super::sync::{SyncError, UploadJob, UploadProgress, publish, upload};
use super::url::BackendUrl;
use crate::ids::{Epoch, VolumeId};
use crate::limits::{BLOCK, BLOCKS_PER_CLUSTER, CLUSTER};

const POOL: Uuid = Uuid::from_u128(0xCD);
const SIZE: u64 = 6000 * BLOCK + 512;

fn remote(objects: Arc<dyn Objects>) -> Remote {
    Remote::new(objects, POOL, Arc::new(SpeedLimit::new(0)))
}

fn credentials(folder: &Path, secret: &str) -> std::path::PathBuf {
    let path = folder.join("credentials");
    fs::write(&path, format!("aws_access_key_id={ACCESS_KEY}\naws_secret_access_key={secret}\n")).unwrap();
    path
}

fn job(id: u64, snapshot: VolumeId, base: Option<(Attempt, Epoch)>) -> UploadJob {
    UploadJob {
        attempt: Attempt { id, nonce: 7 },
        snapshot,
        of: Subject {
            volume: VolumeId(1),
            volume_name: "vm1".into(),
            volume_uuid: Uuid::from_u128(1),
            snapshot_name: format!("s{id}"),
            snapshot_uuid: Uuid::from_u128(u128::from(id)),
            size: SIZE,
            lba_bytes: 512,
            epoch: Epoch(id),
            created_unix_s: 0,
        },
        base,
    }
}

async fn put(remote: &Remote, pool: &MemoryPool, job: &UploadJob) -> Result<(), SyncError> {
    let patience = Patience::of(Duration::from_secs(30));
    let manifest = upload(remote, pool, job, &UploadProgress::default(), &patience).await?;
    publish(remote, job.attempt, &manifest, &patience).await?;
    mark(remote, job.attempt, 1, &patience).await?;
    Ok(())
}

/// What a lazy clone is given, cluster by cluster.
async fn clusters_are_as_the_snapshot(remote: &Remote, job: &UploadJob, content: &[u8]) {
    let patience = Patience::of(Duration::from_secs(60));
    let reader = Reader::open(remote.clone(), job.attempt, &patience).await.unwrap();
    let mut empty = 0;
    for (nth, cluster) in content.chunks(CLUSTER as usize).enumerate() {
        let at = nth as u64 * CLUSTER;
        let (held, bytes) = reader.blocks(at, BLOCKS_PER_CLUSTER, &patience).await.unwrap();
        let mut found = vec![0; CLUSTER as usize];
        let blocks = (0..BLOCKS_PER_CLUSTER as usize).filter(|block| held >> block & 1 == 1);
        for (block, data) in blocks.zip(bytes.chunks(BLOCK as usize)) {
            found[block * BLOCK as usize..][..BLOCK as usize].copy_from_slice(data);
        }
        assert!(found[..cluster.len()] == *cluster, "cluster {nth}");
        assert_eq!(bytes.len(), held.count_ones() as usize * BLOCK as usize);
        assert_eq!(reader.has_any(at, BLOCKS_PER_CLUSTER, &patience).await.unwrap(), held != 0);
        empty += usize::from(held == 0);
    }
    assert!(empty > 10, "{empty} clusters are empty");
    let beyond = content.len().next_multiple_of(CLUSTER as usize) as u64;
    assert_eq!(reader.blocks(beyond, BLOCKS_PER_CLUSTER, &patience).await.unwrap(), (0, Vec::new()));
    assert_eq!((reader.next_data(0), reader.next_data(SIZE)), (Some(0), None));
}

/// Two snapshots, the second over the first; both come back; the first goes, and the second still comes back.
async fn whole_life(remote: &Remote) {
    let patience = Patience::of(Duration::from_secs(60));
    let pool = MemoryPool::default();
    let volume = pool.volume(1, SIZE);
    let mut rng = StdRng::seed_from_u64(3);
    let mut noise = vec![0; 5000 * BLOCK as usize];
    rng.fill(&mut noise[..]);
    pool.write(volume, 300 * BLOCK, &noise);
    pool.write(volume, SIZE - 512, &[9; 512]);
    let one = job(1, pool.snapshot(1001, volume, 1), None);
    put(remote, &pool, &one).await.unwrap();
    pool.write(volume, 1000 * BLOCK, &vec![5; 100 * BLOCK as usize]);
    pool.write(volume, 2000 * BLOCK, &vec![0; 100 * BLOCK as usize]);
    let two = job(2, pool.snapshot(1002, volume, 2), Some((one.attempt, Epoch(1))));
    put(remote, &pool, &two).await.unwrap();

    let back = |by: Attempt, id: u32| {
        let (pool, patience) = (pool.clone(), patience.clone());
        async move {
            let target = pool.volume(id, SIZE);
            let reader = Reader::open(remote.clone(), by, &patience).await.unwrap();
            restore(&reader, &pool, target, &RestoreProgress::default(), &patience).await.unwrap();
            pool.contents(target)
        }
    };
    assert!(back(one.attempt, 11).await == pool.contents(VolumeId(1001)), "the first comes back");
    assert!(back(two.attempt, 12).await == pool.contents(VolumeId(1002)), "the second comes back");

    clusters_are_as_the_snapshot(remote, &two, &pool.contents(VolumeId(1002))).await;

    let before = remote.list(&patience).await.unwrap().len();
    let mut collector = Collector::new(remote.clone(), Duration::from_millis(5));
    for _ in 0..4 {
        let kept = Kept { live: BTreeSet::from([two.attempt]), highest: 2, ..Kept::default() };
        collector.pass(1, &patience, || async { Ok(kept) }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let names = remote.list(&patience).await.unwrap();
    assert!(names.len() < before, "what only the first needed is gone");
    assert!(back(two.attempt, 13).await == pool.contents(VolumeId(1002)), "and the second still comes back");
    for _ in 0..4 {
        let kept = Kept { highest: 2, ..Kept::default() };
        collector.pass(1, &patience, || async { Ok(kept) }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(remote.list(&patience).await.unwrap(), [], "nothing is left of a pool without snapshots");
}

#[tokio::test]
async fn snapshots_live_and_go_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = BackendUrl::File(folder.path().to_owned());
    whole_life(&remote(url.open(None).unwrap())).await;
}

#[tokio::test]
async fn snapshots_live_and_go_on_a_server_that_speaks_s3() {
    let folder = tempfile::tempdir().unwrap();
    let buckets = folder.path().join("buckets");
    fs::create_dir_all(buckets.join("backups")).unwrap();
    let server = S3Server::start(&buckets);
    let url: BackendUrl = format!("s3://backups/site/a?endpoint={}", server.endpoint).parse().unwrap();
    whole_life(&remote(url.open(Some(&credentials(folder.path(), SECRET_KEY))).unwrap())).await;
}

#[tokio::test]
async fn a_server_that_refuses_lacks_the_bucket_or_is_away_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let buckets = folder.path().join("buckets");
    fs::create_dir_all(buckets.join("backups")).unwrap();
    let server = S3Server::start(&buckets);
    let open = |bucket: &str, secret: &str| {
        let url: BackendUrl = format!("s3://{bucket}?endpoint={}", server.endpoint).parse().unwrap();
        remote(url.open(Some(&credentials(folder.path(), secret))).unwrap())
    };
    let patience = || Patience::of(Duration::from_millis(1500));
    let kind = |error: RemoteError| match error {
        RemoteError::Store(error) => (error.kind, error.to_string()),
        other => panic!("{other}"),
    };
    let (denied, says) = kind(open("backups", "wrong").list(&patience()).await.unwrap_err());
    assert_eq!(denied, StoreErrorKind::Denied, "{says}");
    assert!(!says.contains("wrong"), "no secret is said: {says}");
    let (missing, says) = kind(open("nowhere", SECRET_KEY).list(&patience()).await.unwrap_err());
    assert_eq!(missing, StoreErrorKind::NoBucket, "{says}");
    let there = open("backups", SECRET_KEY);
    there.list(&patience()).await.unwrap();
    drop(server);
    let trouble = Arc::new(Trouble::default());
    let patience = Patience { trouble: Arc::clone(&trouble), ..patience() };
    let (busy, says) = kind(there.list(&patience).await.unwrap_err());
    assert_eq!(busy, StoreErrorKind::Busy, "{says}");
    assert!(trouble.retries() > 2, "{} tries", trouble.retries());
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let url = BackendUrl::File(folder.path().to_owned());
    let remote = remote(url.open(None).unwrap());
    // A file where a folder would be: root may write anywhere, so permissions prove nothing here.
    fs::write(folder.path().join(POOL.simple().to_string()), b"in the way").unwrap();
    let pool = MemoryPool::default();
    let volume = pool.volume(1, SIZE);
    pool.write(volume, 0, &[1; 4096]);
    let one = job(1, pool.snapshot(1001, volume, 1), None);
    // Long enough that the last try of all gets its answer on a busy machine.
    let patience = Patience::of(Duration::from_secs(3));
    let error = upload(&remote, &pool, &one, &UploadProgress::default(), &patience).await.unwrap_err().to_string();
    assert!(error.contains("cannot put file://") && error.contains("Not a directory"), "{error}");
}
