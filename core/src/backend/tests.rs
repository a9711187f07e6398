//! Sync, collection and restore against a model, over a store that fails; then single histories.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::collect::{CollectError, Collector, Kept, mark};
use super::faulty::{Faults, Faulty};
use super::manifest::{CHUNK_BYTES, Manifest, Reference, Subject};
use super::memory::MemoryPool;
use super::names::{Attempt, Object};
use super::pack::PackRef;
use super::reader::Reader;
use super::remote::{Patience, Remote, RemoteError, SpeedLimit, Trouble};
use super::restore::{RestoreError, RestoreProgress, hold, release, restore};
use super::store::StoreErrorKind;
use super::sync::{SyncError, UploadJob, UploadProgress, publish, upload};
use crate::ids::{Epoch, VolumeId};
use crate::limits::BLOCK;

const POOL: Uuid = Uuid::from_u128(0xAB);
const VOLUME: VolumeId = VolumeId(1);
const GRACE: Duration = Duration::from_secs(600);

fn remote(store: &Faulty) -> Remote {
    Remote::new(Arc::new(store.clone()), POOL, Arc::new(SpeedLimit::new(0)))
}

fn job(id: u64, snapshot: VolumeId, epoch: u64, size: u64, base: Option<(Attempt, Epoch)>) -> UploadJob {
    UploadJob {
        attempt: Attempt { id, nonce: id as u32 ^ 0x5555 },
        snapshot,
        of: Subject {
            volume: VOLUME,
            volume_name: "vm1".into(),
            volume_uuid: Uuid::from_u128(1),
            snapshot_name: format!("s{id}"),
            snapshot_uuid: Uuid::from_u128(u128::from(id)),
            size,
            lba_bytes: 512,
            epoch: Epoch(epoch),
            created_unix_s: 0,
        },
        base,
    }
}

fn endless() -> Patience {
    Patience::endless(Arc::default())
}

async fn sync(remote: &Remote, pool: &MemoryPool, job: &UploadJob) -> Result<Manifest, SyncError> {
    let manifest = upload(remote, pool, job, &UploadProgress::default(), &endless()).await?;
    publish(remote, job.attempt, &manifest, &endless()).await?;
    Ok(manifest)
}

/// The whole snapshot as the backend has it.
async fn read_all(remote: &Remote, attempt: Attempt) -> Result<Vec<u8>, RemoteError> {
    let reader = Reader::open(remote.clone(), attempt, &endless()).await?;
    let size = reader.manifest.of.size;
    reader.read(0, size as u32, &endless()).await
}

/// A run of a pool whose snapshots go to a store, with crashes of the process in between.
struct Simulation {
    seed: u64,
    rng: StdRng,
    store: Faulty,
    pool: MemoryPool,
    size: u64,
    epoch: u64,
    next: u64,
    /// What the catalog has: synced snapshots, by attempt; and attempts that were noted and came to nothing.
    live: BTreeMap<Attempt, (VolumeId, Epoch)>,
    given_up: BTreeSet<Attempt>,
    collector: Collector,
    /// How often worn packs were rewritten, to the end.
    rewritten: u32,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let store = Faulty::new(seed);
        let pool = MemoryPool::default();
        let size = 40 * BLOCK + 512;
        pool.volume(VOLUME.0, size);
        Simulation {
            seed,
            rng: StdRng::seed_from_u64(seed ^ 0xF00D),
            collector: Collector::new(remote(&store), GRACE),
            store,
            pool,
            size,
            epoch: 10,
            next: 1,
            live: BTreeMap::new(),
            given_up: BTreeSet::new(),
            rewritten: 0,
        }
    }

    fn write_some(&mut self) {
        for _ in 0..self.rng.random_range(0..6) {
            let blocks = self.size.div_ceil(BLOCK);
            let at = self.rng.random_range(0..blocks) * BLOCK;
            let len = (self.rng.random_range(1..4) * BLOCK).min(self.size - at);
            let mut data = vec![0; len as usize];
            if self.rng.random_bool(0.7) {
                self.rng.fill(&mut data[..]);
            }
            self.pool.write(VOLUME, at, &data);
        }
        if self.rng.random_bool(0.05) {
            self.size += 3 * BLOCK + 512;
            self.pool.grow(VOLUME, self.size);
        }
    }

    /// Cuts, and puts the snapshot up within a deadline: it is there, or it is not.
    async fn snapshot(&mut self) {
        let id = self.next;
        self.next += 1;
        self.epoch += 1;
        let snapshot = self.pool.snapshot(1000 + id as u32, VOLUME, self.epoch);
        let base = self.live.iter().max_by_key(|(_, (_, epoch))| *epoch).map(|(by, (_, epoch))| (*by, *epoch));
        let job = job(id, snapshot, self.epoch, self.size, base);
        let remote = remote(&self.store);
        let deadline = Duration::from_millis(self.rng.random_range(0..60_000));
        let uploaded =
            timeout(deadline, upload(&remote, &self.pool, &job, &UploadProgress::default(), &endless())).await;
        let manifest = match uploaded {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(_)) | Err(_) => {
                self.pool.remove_snapshot(snapshot);
                return;
            }
        };
        // The attempt is noted before its manifest is put.
        self.given_up.insert(job.attempt);
        let deadline = Duration::from_millis(self.rng.random_range(0..2_000));
        match timeout(deadline, publish(&remote, job.attempt, &manifest, &endless())).await {
            Ok(Ok(())) if self.rng.random_bool(0.9) => {
                self.given_up.remove(&job.attempt);
                self.live.insert(job.attempt, (snapshot, Epoch(self.epoch)));
                if self.rng.random_bool(0.7) {
                    mark(&remote, job.attempt, 0, &endless()).await.unwrap();
                }
            }
            // Late, or refused by the catalog.
            _ => self.pool.remove_snapshot(snapshot),
        }
    }

    fn remove_one(&mut self) {
        // The newest synced one stays as a hidden cut: the base of the next.
        let newest = self.live.values().map(|(_, epoch)| *epoch).max();
        let old: Vec<_> =
            self.live.iter().filter(|(_, (_, epoch))| Some(*epoch) != newest).map(|(by, _)| *by).collect();
        if old.is_empty() {
            return;
        }
        let by = old[self.rng.random_range(0..old.len())];
        let (snapshot, _) = self.live.remove(&by).unwrap();
        self.pool.remove_snapshot(snapshot);
    }

    fn kept(&self) -> Kept {
        Kept {
            live: self.live.keys().copied().collect(),
            running: BTreeSet::new(),
            given_up: self.given_up.clone(),
            highest: self.next - 1,
        }
    }

    async fn collect(&mut self) -> BTreeSet<PackRef> {
        let kept = self.kept();
        let pass = self.collector.pass(7, &endless(), || async { Ok(kept) }).await;
        let pass = pass.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        for gone in pass.gone {
            self.given_up.remove(&gone);
        }
        pass.worn
    }

    /// Rewrites worn packs, and dies in the middle of it, or does not.
    async fn rewrite(&mut self, worn: &BTreeSet<PackRef>) {
        let live = self.live.keys().copied().collect();
        let remote = remote(&self.store);
        let deadline = Duration::from_millis(self.rng.random_range(0..60_000));
        let planned = timeout(deadline, self.collector.plan(&live, worn, &endless())).await;
        let Ok(Ok(plans)) = planned else { return };
        for plan in plans {
            let names: Vec<_> = (self.next..).map(|id| Attempt { id, nonce: 9 }).take(plan.manifests.len()).collect();
            self.next += names.len() as u64;
            let deadline = Duration::from_millis(self.rng.random_range(0..60_000));
            let Ok(Ok(manifests)) = timeout(deadline, plan.copy(&remote, &names, &endless())).await else { return };
            self.given_up.extend(&names);
            for (name, manifest) in names.iter().zip(&manifests) {
                let deadline = Duration::from_millis(self.rng.random_range(0..10_000));
                let Ok(Ok(())) = timeout(deadline, publish(&remote, *name, manifest, &endless())).await else { return };
            }
            if self.rng.random_bool(0.1) {
                return;
            }
            for ((old, _), new) in plan.manifests.iter().zip(names) {
                self.given_up.remove(&new);
                let snapshot = self.live.remove(old).expect("nothing else happens meanwhile");
                self.live.insert(new, snapshot);
                if self.rng.random_bool(0.7) {
                    mark(&remote, new, 0, &endless()).await.unwrap();
                }
            }
            self.rewritten += 1;
        }
    }

    async fn check(&self, when: &str) {
        for (by, (snapshot, _)) in &self.live {
            let got = read_all(&remote(&self.store), *by).await;
            let got = got.unwrap_or_else(|error| panic!("seed {}, {when}: snapshot {by}: {error}", self.seed));
            assert!(
                got == self.pool.contents(*snapshot),
                "seed {}, {when}: snapshot {by} reads as something else",
                self.seed
            );
        }
    }
}

/// Faults that pass by themselves.
const FLAPPING: Faults = Faults {
    fails: 150,
    lies_about_failing: 100,
    loses_deletes: 100,
    reads_wrong: 0,
    latency_ms: 400,
    delete_ms: 5_000,
    refuses: None,
    space: None,
};

/// Returns how often worn packs were rewritten.
async fn simulate(seed: u64) -> u32 {
    let mut run = Simulation::new(seed);
    run.store.set(FLAPPING);
    for _ in 0..40 {
        match run.rng.random_range(0..10) {
            0..=2 => run.write_some(),
            3..=6 => {
                run.write_some();
                run.snapshot().await;
            }
            7 => run.remove_one(),
            8 => {
                // What was removed is gone after the grace time: then what it alone kept alive is worn.
                run.collect().await;
                sleep(2 * GRACE).await;
                let worn = run.collect().await;
                run.rewrite(&worn).await;
            }
            _ => {
                // The process dies and comes back: what it knew of tombstones and absences is gone.
                run.collector = Collector::new(remote(&run.store), GRACE);
                sleep(Duration::from_secs(run.rng.random_range(0..1200))).await;
            }
        }
    }
    run.store.set(Faults::default());
    run.check("at the end").await;
    // The store is well again: within a few passes everything that is not needed is gone.
    for _ in 0..6 {
        sleep(2 * GRACE).await;
        run.collect().await;
    }
    run.check("after collecting").await;
    assert_eq!(run.given_up, BTreeSet::new(), "seed {seed}: nothing can come of these any more");
    let mut expected = BTreeSet::new();
    for by in run.live.keys() {
        expected.extend(needed(&run.store, *by).await);
    }
    let there: BTreeSet<_> = run.store.names().into_iter().collect();
    assert_eq!(there, expected, "seed {seed}: exactly what is needed is there");
    run.rewritten
}

/// The names of everything that a snapshot needs, by its own maps.
async fn needed(store: &Faulty, by: Attempt) -> Vec<String> {
    let remote = remote(store);
    let reader = Reader::open(remote.clone(), by, &endless()).await.unwrap();
    let mut objects = vec![Object::Manifest(by), Object::Marker(by)];
    for chunk in &reader.manifest.chunks {
        objects.push(chunk.object());
        let map = super::maps::read_chunk(&remote, chunk, &endless()).await.unwrap();
        objects.extend(map.packs.iter().map(PackRef::object));
    }
    objects.into_iter().map(|object| object.name(POOL)).collect()
}

#[tokio::test(start_paused = true)]
async fn over_a_store_that_fails_snapshots_are_whole_or_absent_and_nothing_needed_is_ever_collected() {
    let first = std::env::var("RINGWAY_SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut rewritten = 0;
    for seed in first..first + 150 {
        rewritten += simulate(seed).await;
    }
    assert!(rewritten > 10, "worn packs were rewritten {rewritten} times");
}

#[tokio::test(start_paused = true)]
async fn reads_that_lie_are_seen_and_never_believed() {
    for seed in 0..60 {
        let (store, pool) = (Faulty::new(seed), MemoryPool::default());
        pool.volume(1, 64 * BLOCK);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut data = vec![0; 64 * BLOCK as usize];
        rng.fill(&mut data[..]);
        pool.write(VOLUME, 0, &data);
        let snapshot = pool.snapshot(1001, VOLUME, 5);
        sync(&remote(&store), &pool, &job(1, snapshot, 5, 64 * BLOCK, None)).await.unwrap();
        store.set(Faults { reads_wrong: 300, ..Faults::default() });
        let by = Attempt { id: 1, nonce: 1 ^ 0x5555 };
        for _ in 0..20 {
            if let Ok(got) = read_all(&remote(&store), by).await {
                assert!(got == data, "seed {seed}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_keep_what_it_is_given_fails_the_snapshot() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    pool.volume(1, 64 * BLOCK);
    pool.write(VOLUME, 0, &[7; 4096]);
    let snapshot = pool.snapshot(1001, VOLUME, 5);
    store.set(Faults { reads_wrong: 1000, ..Faults::default() });
    let error = sync(&remote(&store), &pool, &job(1, snapshot, 5, 64 * BLOCK, None)).await.unwrap_err();
    assert!(matches!(error, SyncError::Remote(RemoteError::NotKept(_))), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_no_retry_can_mend_fails_at_once_and_what_may_pass_is_waited_for() {
    for (kind, at_once) in [
        (StoreErrorKind::NoBucket, true),
        (StoreErrorKind::Unsupported, true),
        (StoreErrorKind::Denied, true),
        (StoreErrorKind::Full, false),
        (StoreErrorKind::Busy, false),
    ] {
        let (store, pool) = (Faulty::new(1), MemoryPool::default());
        pool.volume(1, BLOCK);
        pool.write(VOLUME, 0, &[7; 4096]);
        let snapshot = pool.snapshot(1001, VOLUME, 5);
        store.set(Faults { refuses: Some(kind), ..Faults::default() });
        let trouble = Arc::new(Trouble::default());
        let patience = Patience::endless(Arc::clone(&trouble));
        let (remote, job) = (remote(&store), job(1, snapshot, 5, BLOCK, None));
        let progress = UploadProgress::default();
        let outcome = timeout(Duration::from_secs(10), upload(&remote, &pool, &job, &progress, &patience)).await;
        match outcome {
            Ok(Err(SyncError::Remote(RemoteError::Store(error)))) => {
                assert!(at_once, "{kind:?} may pass");
                assert_eq!(error.kind, kind);
            }
            Err(_) => {
                assert!(!at_once, "{kind:?} does not pass");
                let said = trouble.last().expect("whoever waits can be told why");
                assert!(said.contains("refused by the test"), "{said}");
                assert!((10..24).contains(&trouble.retries()), "{} tries of two objects in 10 s", trouble.retries());
            }
            other => panic!("{kind:?}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_store_that_is_given_space_takes_the_snapshot_after_all() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    pool.volume(1, 64 * BLOCK);
    let mut data = vec![0; 64 * BLOCK as usize];
    StdRng::seed_from_u64(1).fill(&mut data[..]);
    pool.write(VOLUME, 0, &data);
    let snapshot = pool.snapshot(1001, VOLUME, 5);
    store.set(Faults { space: Some(BLOCK), ..Faults::default() });
    let (more, remote) = (store.clone(), remote(&store));
    let job = job(1, snapshot, 5, 64 * BLOCK, None);
    let (synced, ()) = tokio::join!(sync(&remote, &pool, &job), async move {
        sleep(Duration::from_secs(30)).await;
        more.set(Faults::default());
    });
    synced.unwrap();
    assert!(read_all(&remote, job.attempt).await.unwrap() == data);
}

#[tokio::test(start_paused = true)]
async fn c10_a_manifest_is_whole_in_itself_when_its_base_and_what_lay_between_are_gone() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    pool.volume(1, 8 * BLOCK);
    let remote = remote(&store);
    let mut base = None;
    let mut last = None;
    for id in 1..=3_u64 {
        pool.write(VOLUME, id * BLOCK, &[id as u8; 4096]);
        let snapshot = pool.snapshot(1000 + id as u32, VOLUME, id);
        let job = job(id, snapshot, id, 8 * BLOCK, base);
        sync(&remote, &pool, &job).await.unwrap();
        // The second one is cut, and never becomes a base: the third builds upon the first.
        if id != 2 {
            base = Some((job.attempt, Epoch(id)));
        }
        last = Some((job.attempt, snapshot));
    }
    let (last, snapshot) = last.unwrap();
    let mut collector = Collector::new(remote.clone(), GRACE);
    for _ in 0..4 {
        let kept = Kept { live: BTreeSet::from([last]), highest: 3, ..Kept::default() };
        collector.pass(0, &endless(), || async { Ok(kept) }).await.unwrap();
        sleep(2 * GRACE).await;
    }
    assert!(read_all(&remote, last).await.unwrap() == pool.contents(snapshot));
    let manifests: Vec<_> = store.names().into_iter().filter(|name| name.contains("manifests")).collect();
    assert_eq!(manifests, [Object::Manifest(last).name(POOL)]);
}

#[tokio::test(start_paused = true)]
async fn a_base_that_is_damaged_or_no_longer_kept_costs_a_full_upload_and_nothing_else() {
    for broken in ["manifests", "maps", "missing", "pool"] {
        let (store, pool) = (Faulty::new(1), MemoryPool::default());
        pool.volume(1, 8 * BLOCK);
        let remote = remote(&store);
        pool.write(VOLUME, 0, &[1; 4096]);
        let first = pool.snapshot(1001, VOLUME, 1);
        let one = job(1, first, 1, 8 * BLOCK, None);
        sync(&remote, &pool, &one).await.unwrap();
        pool.write(VOLUME, BLOCK, &[2; 4096]);
        let second = pool.snapshot(1002, VOLUME, 2);
        match broken {
            "missing" => store.remove(&Object::Manifest(one.attempt).name(POOL)),
            "pool" => pool.remove_snapshot(first),
            kind => {
                let name = store.names().into_iter().find(|name| name.contains(kind)).unwrap();
                store.spoil(&name, 70);
            }
        }
        let two = job(2, second, 2, 8 * BLOCK, Some((one.attempt, Epoch(1))));
        let manifest = sync(&remote, &pool, &two).await.unwrap();
        assert_eq!((manifest.base, manifest.blocks), (None, 2), "{broken}");
        assert!(read_all(&remote, two.attempt).await.unwrap() == pool.contents(second), "{broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn h5_what_goes_up_is_blocks_and_not_clusters() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    let size = 1024 * BLOCK;
    pool.volume(1, size);
    let mut data = vec![0; size as usize];
    StdRng::seed_from_u64(1).fill(&mut data[..]);
    pool.write(VOLUME, 0, &data);
    let remote = remote(&store);
    let one = job(1, pool.snapshot(1001, VOLUME, 1), 1, size, None);
    sync(&remote, &pool, &one).await.unwrap();
    // A block in each of 64 clusters.
    for cluster in 0..64 {
        let mut block = vec![0; BLOCK as usize];
        StdRng::seed_from_u64(cluster + 9).fill(&mut block[..]);
        pool.write(VOLUME, cluster * 16 * BLOCK, &block);
    }
    let two = job(2, pool.snapshot(1002, VOLUME, 2), 2, size, Some((one.attempt, Epoch(1))));
    let progress = UploadProgress::default();
    upload(&remote, &pool, &two, &progress, &endless()).await.unwrap();
    let sent = progress.sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!((64 * BLOCK..160 * BLOCK).contains(&sent), "{sent} bytes for 64 blocks, and 78 that are named besides");
}

#[tokio::test(start_paused = true)]
async fn h11_what_another_pool_reads_stays_until_it_lets_go_and_what_is_going_cannot_be_begun() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    pool.volume(1, 8 * BLOCK);
    pool.write(VOLUME, 0, &[1; 4096]);
    let remote = remote(&store);
    let snapshot = pool.snapshot(1001, VOLUME, 1);
    let one = job(1, snapshot, 1, 8 * BLOCK, None);
    sync(&remote, &pool, &one).await.unwrap();
    let here = Reference { holder: Uuid::from_u128(0xB), volume_name: "copy".into(), unix_s: 0 };
    hold(&remote, one.attempt, &here, &endless()).await.unwrap();
    hold(&remote, one.attempt, &here, &endless()).await.expect("again, after a crash");
    // The owner removes the snapshot, and collects for a long time.
    let mut collector = Collector::new(remote.clone(), GRACE);
    for _ in 0..5 {
        let kept = Kept { highest: 1, ..Kept::default() };
        let pass = collector.pass(0, &endless(), || async { Ok(kept) }).await.unwrap();
        assert_eq!((pass.deleted, pass.waiting), (0, 1));
        sleep(2 * GRACE).await;
    }
    // Read to the end on the other host.
    let other = MemoryPool::default();
    let target = other.volume(50, 8 * BLOCK);
    let reader = Reader::open(remote.clone(), one.attempt, &endless()).await.unwrap();
    restore(&reader, &other, target, &RestoreProgress::default(), &endless()).await.unwrap();
    assert!(other.contents(target) == pool.contents(snapshot));
    // A third one comes too late.
    let late = Reference { holder: Uuid::from_u128(0xC), ..here.clone() };
    assert_eq!(hold(&remote, one.attempt, &late, &endless()).await, Err(RestoreError::Going));
    release(&remote, one.attempt, here.holder, &endless()).await.unwrap();
    for _ in 0..3 {
        sleep(2 * GRACE).await;
        let kept = Kept { highest: 1, ..Kept::default() };
        collector.pass(0, &endless(), || async { Ok(kept) }).await.unwrap();
    }
    assert_eq!(store.names(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn c14_a_manifest_that_lands_after_its_attempt_was_given_up_is_found_and_deleted_also_across_restarts() {
    let store = Faulty::new(1);
    let (remote, pool) = (remote(&store), MemoryPool::default());
    pool.volume(1, 8 * BLOCK);
    pool.write(VOLUME, 0, &[1; 4096]);
    let late = job(1, pool.snapshot(1001, VOLUME, 1), 1, 8 * BLOCK, None);
    let manifest = upload(&remote, &pool, &late, &UploadProgress::default(), &endless()).await.unwrap();
    let kept = Kept { given_up: BTreeSet::from([late.attempt]), highest: 1, ..Kept::default() };
    let mut collector = Collector::new(remote.clone(), GRACE);
    let one = collector.pass(0, &endless(), || async { Ok(kept.clone()) }).await.unwrap();
    assert_eq!(one.gone, [], "absent once");
    collector = Collector::new(remote.clone(), GRACE);
    sleep(2 * GRACE).await;
    let two = collector.pass(0, &endless(), || async { Ok(kept.clone()) }).await.unwrap();
    assert_eq!(two.gone, [], "absent once since the restart");
    publish(&remote, late.attempt, &manifest, &endless()).await.unwrap();
    let mut gone = Vec::new();
    for _ in 0..4 {
        sleep(2 * GRACE).await;
        gone.extend(collector.pass(0, &endless(), || async { Ok(kept.clone()) }).await.unwrap().gone);
    }
    assert_eq!(gone.first(), Some(&late.attempt));
    assert_eq!(store.names(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_old_copy_of_a_pool_collects_nothing() {
    let store = Faulty::new(1);
    let (remote, pool) = (remote(&store), MemoryPool::default());
    pool.volume(1, 8 * BLOCK);
    let five = job(5, pool.snapshot(1001, VOLUME, 1), 1, 8 * BLOCK, None);
    sync(&remote, &pool, &five).await.unwrap();
    let before = store.names();
    let kept = Kept { highest: 4, ..Kept::default() };
    let outcome = Collector::new(remote, GRACE).pass(0, &endless(), || async { Ok(kept) }).await;
    assert_eq!(outcome, Err(CollectError::FromTheFuture(five.attempt)));
    assert_eq!(store.names(), before);
}

#[tokio::test(start_paused = true)]
async fn while_a_live_manifest_cannot_be_read_nothing_is_deleted() {
    let store = Faulty::new(1);
    let (remote, pool) = (remote(&store), MemoryPool::default());
    pool.volume(1, 8 * BLOCK);
    pool.write(VOLUME, 0, &[1; 4096]);
    let one = job(1, pool.snapshot(1001, VOLUME, 1), 1, 8 * BLOCK, None);
    sync(&remote, &pool, &one).await.unwrap();
    let orphan = job(2, pool.snapshot(1002, VOLUME, 2), 2, 8 * BLOCK, None);
    upload(&remote, &pool, &orphan, &UploadProgress::default(), &endless()).await.unwrap();
    store.spoil(&Object::Manifest(one.attempt).name(POOL), 70);
    let before = store.names();
    let kept = Kept { live: BTreeSet::from([one.attempt]), highest: 2, ..Kept::default() };
    let outcome = Collector::new(remote, GRACE).pass(0, &endless(), || async { Ok(kept) }).await;
    assert!(matches!(outcome, Err(CollectError::Unreadable(by, _)) if by == one.attempt), "{outcome:?}");
    assert_eq!(store.names(), before);
}

#[tokio::test(start_paused = true)]
async fn a_large_sparse_volume_takes_maps_over_for_what_did_not_change() {
    let store = Faulty::new(1);
    let (remote, pool) = (remote(&store), SparsePool::default());
    let size = 5 * CHUNK_BYTES;
    pool.put(1, &[(0, 1), (CHUNK_BYTES - BLOCK, 2), (3 * CHUNK_BYTES, 3), (5 * CHUNK_BYTES - BLOCK, 4)]);
    let one = job(1, VolumeId(1), 1, size, None);
    let manifest = upload(&remote, &pool, &one, &UploadProgress::default(), &endless()).await.unwrap();
    publish(&remote, one.attempt, &manifest, &endless()).await.unwrap();
    assert_eq!(manifest.chunks.iter().map(|chunk| chunk.chunk).collect::<Vec<_>>(), [0, 3, 4]);
    // The third GiB is zeros now, and one block of the last is new.
    pool.put(2, &[(3 * CHUNK_BYTES, 0), (5 * CHUNK_BYTES - 2 * BLOCK, 9)]);
    let two = job(2, VolumeId(2), 2, size, Some((one.attempt, Epoch(1))));
    let next = upload(&remote, &pool, &two, &UploadProgress::default(), &endless()).await.unwrap();
    assert_eq!(next.chunks.iter().map(|chunk| (chunk.chunk, chunk.by.id)).collect::<Vec<_>>(), [(0, 1), (4, 2)]);
    assert_eq!(next.blocks, 4);
    let reader = Reader::of(remote, Arc::new(next));
    for (offset, byte) in [
        (0, 1),
        (BLOCK, 0),
        (CHUNK_BYTES - BLOCK, 2),
        (3 * CHUNK_BYTES, 0),
        (5 * CHUNK_BYTES - 2 * BLOCK, 9),
        (5 * CHUNK_BYTES - BLOCK, 4),
    ] {
        let block = reader.read(offset, BLOCK as u32, &endless()).await.unwrap();
        assert!(block.iter().all(|&got| got == byte), "at {offset}");
    }
    let across = reader.read(CHUNK_BYTES - BLOCK, 2 * BLOCK as u32, &endless()).await.unwrap();
    assert_eq!((across[0], across[BLOCK as usize]), (2, 0));
    assert_eq!(reader.check(true, &endless()).await.unwrap(), 4 * BLOCK);
}

#[tokio::test(start_paused = true)]
async fn of_a_pack_that_hardly_anything_is_needed_of_the_rest_is_copied_and_the_pack_goes() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    let (remote, size) = (remote(&store), 200 * BLOCK);
    pool.volume(1, size);
    let mut rng = StdRng::seed_from_u64(1);
    let mut noise = |blocks: u64| {
        let mut data = vec![0; (blocks * BLOCK) as usize];
        rng.fill(&mut data[..]);
        data
    };
    pool.write(VOLUME, 0, &noise(200));
    let one = job(1, pool.snapshot(1001, VOLUME, 1), 1, size, None);
    sync(&remote, &pool, &one).await.unwrap();
    // Of each eight blocks one is left as it was.
    for at in 0..25 {
        pool.write(VOLUME, (8 * at + 1) * BLOCK, &noise(7));
    }
    let two = job(2, pool.snapshot(1002, VOLUME, 2), 2, size, Some((one.attempt, Epoch(1))));
    sync(&remote, &pool, &two).await.unwrap();
    let three = job(3, pool.snapshot(1003, VOLUME, 3), 3, size, Some((two.attempt, Epoch(2))));
    sync(&remote, &pool, &three).await.unwrap();
    let mut collector = Collector::new(remote.clone(), GRACE);
    let mut pass = async |live: &[Attempt], highest| {
        let kept = Kept { live: live.iter().copied().collect(), highest, ..Kept::default() };
        let pass = collector.pass(0, &endless(), || async { Ok(kept) }).await.unwrap();
        let plans = collector.plan(&live.iter().copied().collect(), &pass.worn, &endless()).await.unwrap();
        sleep(2 * GRACE).await;
        (pass, plans)
    };
    let (_, plans) = pass(&[one.attempt, two.attempt, three.attempt], 3).await;
    assert!(plans.is_empty(), "the first snapshot needs all of it");
    let (_, plans) = pass(&[two.attempt, three.attempt], 3).await;
    assert!(plans.is_empty(), "it stays for the grace time");
    let (_, plans) = pass(&[two.attempt, three.attempt], 3).await;
    let [plan] = &plans[..] else { panic!("{plans:?}") };
    // Of the 25 blocks that did not change, one was named among the changes all the same.
    assert_eq!((plan.bytes(), plan.manifests.len()), (24 * BLOCK, 2));
    let names = [4, 5].map(|id| Attempt { id, nonce: 0 });
    let manifests = plan.copy(&remote, &names, &endless()).await.unwrap();
    for (name, manifest) in names.iter().zip(&manifests) {
        publish(&remote, *name, manifest, &endless()).await.unwrap();
    }
    for _ in 0..3 {
        pass(&names, 5).await;
    }
    let old = Object::Pack { by: one.attempt, sequence: 0 }.name(POOL);
    assert!(!store.names().contains(&old), "{:?}", store.names());
    for (name, snapshot) in names.iter().zip([1002, 1003]) {
        assert!(read_all(&remote, *name).await.unwrap() == pool.contents(VolumeId(snapshot)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_refers_to_is_not_rewritten() {
    let (store, pool) = (Faulty::new(1), MemoryPool::default());
    let (remote, size) = (remote(&store), 16 * BLOCK);
    pool.volume(1, size);
    pool.write(VOLUME, 0, &vec![7; size as usize]);
    let one = job(1, pool.snapshot(1001, VOLUME, 1), 1, size, None);
    sync(&remote, &pool, &one).await.unwrap();
    pool.write(VOLUME, 0, &vec![8; 15 * BLOCK as usize]);
    let two = job(2, pool.snapshot(1002, VOLUME, 2), 2, size, Some((one.attempt, Epoch(1))));
    sync(&remote, &pool, &two).await.unwrap();
    let here = Reference { holder: Uuid::from_u128(0xB), volume_name: "copy".into(), unix_s: 0 };
    hold(&remote, two.attempt, &here, &endless()).await.unwrap();
    let mut collector = Collector::new(remote.clone(), GRACE);
    let mut worn = async || {
        let kept = Kept { live: BTreeSet::from([two.attempt]), highest: 2, ..Kept::default() };
        let pass = collector.pass(0, &endless(), || async { Ok(kept) }).await.unwrap();
        sleep(2 * GRACE).await;
        pass.worn.len()
    };
    assert_eq!([worn().await, worn().await, worn().await], [0, 0, 0]);
    release(&remote, two.attempt, here.holder, &endless()).await.unwrap();
    assert_eq!(worn().await, 1);
}

/// Snapshots of single blocks far apart.
#[derive(Default)]
struct SparsePool(parking_lot::Mutex<BTreeMap<VolumeId, BTreeMap<u64, u8>>>);

impl SparsePool {
    fn put(&self, snapshot: u32, blocks: &[(u64, u8)]) {
        self.0.lock().insert(VolumeId(snapshot), blocks.iter().copied().collect());
    }
}

impl super::source::Source for SparsePool {
    fn changed(
        &self,
        snapshot: VolumeId,
        _after: Option<Epoch>,
        _cursor: u64,
    ) -> super::source::Pull<'_, super::source::Changes> {
        let change = |(&offset, &byte): (&u64, &u8)| super::source::Change { offset, len: BLOCK, data: byte != 0 };
        let ranges = self.0.lock()[&snapshot].iter().map(change).collect();
        Box::pin(async { Ok(super::source::Changes { ranges, next: None }) })
    }

    fn read(&self, snapshot: VolumeId, offset: u64, len: u32) -> super::source::Pull<'_, bytes::Bytes> {
        let byte = self.0.lock()[&snapshot][&offset];
        Box::pin(async move { Ok(vec![byte; len as usize].into()) })
    }
}
