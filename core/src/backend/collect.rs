//! What no snapshot needs any more is deleted, and nothing else.
//!
//! One pass:
//!
//! ```text
//! list everything -> then ask which manifests the catalog has (live), which attempts run, which were given up
//!   manifest, neither live nor running:  no tombstone -> put one
//!                                        tombstone, seen for the grace time, nobody refers to it -> it goes
//!   packs and maps:  needed by a manifest that stays, or of an attempt that runs -> stay; all others go
//! ```
//!
//! Rules that make it safe, whatever dies when:
//! - The listing comes first, the question second: an object in the listing was put by an attempt that was running then; if it has
//!   committed since, it is in the answer.
//! - Whoever wants to read another pool's manifest puts a reference and then looks for a tombstone; we put the tombstone, wait, and then
//!   look for references (history H11). The grace time is counted by this process's clock from when it saw the tombstone.
//! - If one manifest that stays cannot be read, no pack goes.
//! - A manifest that was being put when its attempt was given up may land late (history C14): the attempt is remembered until the
//!   manifest was found absent twice, some time apart.
//! - A pack of which little is needed is not touched: the pass only names it, and `rewrite` makes other packs and other manifests.
//! - A manifest of an attempt that the catalog has not yet noted means that it is an old copy: nothing goes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use thiserror::Error;
use tokio::time::Instant;

use super::manifest::{ChunkRef, Marker, Tombstone};
use super::maps::read_chunk;
use super::names::{Attempt, Object};
use super::pack::PackRef;
use super::remote::{Patience, Remote, RemoteError};
use super::rewrite::{self, Rewriting, is_worn};
use super::sync::read_manifest;

/// Deletes at a time.
const DELETES: usize = 8;

/// What the catalog says, as of after the listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Manifests of snapshots that exist.
    pub live: BTreeSet<Attempt>,
    /// Attempts under way.
    pub running: BTreeSet<Attempt>,
    /// Attempts whose manifest may have been put and that came to nothing.
    pub given_up: BTreeSet<Attempt>,
    /// The highest number that the catalog has given to an attempt.
    pub highest: u64,
}

/// Why nothing was collected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CollectError {
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The catalog did not say what must be kept.
    #[error("the catalog did not say what must be kept: {0}")]
    NotTold(String),
    /// The pool has seen less than its backend.
    #[error(
        "the backend has objects of attempt {0}, which this pool has never made: the pool was put back from an older copy, or is served \
         twice; nothing is deleted"
    )]
    FromTheFuture(Attempt),
    /// A snapshot that exists is not readable from the backend.
    #[error("the manifest {0} of a snapshot that exists cannot be read, so nothing is deleted: {1}")]
    Unreadable(Attempt, RemoteError),
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Objects deleted.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Bytes of objects that stay.
    pub kept_bytes: u64,
    /// Given-up attempts of which nothing can come any more.
    pub gone: Vec<Attempt>,
    /// Manifests that wait for the grace time, or for another pool.
    pub waiting: u64,
    /// Markers that a crash had prevented.
    pub marked: u64,
    /// Packs of which no manifest needs much, and that only manifests of the catalog need: worth being rewritten, perhaps.
    pub worn: BTreeSet<PackRef>,
}

/// What is needed of a pack.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// Blocks that one manifest needs, at the most.
    most: u64,
    /// A manifest needs it that stays as it is: one that is going, or that another pool or a clone reads.
    by_others: bool,
}

/// What the manifests that stay need.
#[derive(Default)]
struct Needed {
    objects: HashSet<Object>,
    packs: HashMap<PackRef, Use>,
    /// Every manifest could be read.
    complete: bool,
}

/// The collector of one pool's objects.
#[derive(Debug)]
pub struct Collector {
    remote: Remote,
    grace: Duration,
    /// Since when this process knows of a tombstone.
    tombstones: BTreeMap<Attempt, Instant>,
    /// Since when a manifest was not there.
    absent: BTreeMap<Attempt, Instant>,
    /// What chunks need, and how many blocks of it, of those that were looked at in the last pass.
    chunks: Chunks,
}

type Chunks = HashMap<ChunkRef, Arc<[(PackRef, u32)]>>;

/// A listing by kind.
#[derive(Default)]
struct Listing {
    bytes: HashMap<Object, u64>,
    manifests: BTreeSet<Attempt>,
    markers: BTreeSet<Attempt>,
    tombstones: BTreeSet<Attempt>,
    references: Vec<Object>,
    /// Packs and maps.
    pieces: Vec<Object>,
}

impl Listing {
    fn of(objects: Vec<(Object, u64)>) -> Listing {
        let mut listing = Listing::default();
        for (object, bytes) in objects {
            listing.bytes.insert(object, bytes);
            match object {
                Object::Manifest(attempt) => drop(listing.manifests.insert(attempt)),
                Object::Marker(attempt) => drop(listing.markers.insert(attempt)),
                Object::Tombstone(attempt) => drop(listing.tombstones.insert(attempt)),
                Object::Reference { .. } => listing.references.push(object),
                Object::Pack { .. } | Object::Map { .. } => listing.pieces.push(object),
            }
        }
        listing
    }
}

impl Collector {
    /// A tombstone stands for `grace` before what it stands for goes.
    #[must_use]
    pub fn new(remote: Remote, grace: Duration) -> Self {
        Self { remote, grace, tombstones: BTreeMap::new(), absent: BTreeMap::new(), chunks: HashMap::new() }
    }

    /// One pass. `kept` is asked once, after the listing.
    pub async fn pass<F: Future<Output = Result<Kept, String>>>(
        &mut self,
        unix_s: u64,
        patience: &Patience,
        kept: impl FnOnce() -> F,
    ) -> Result<Pass, CollectError> {
        let listing = Listing::of(self.remote.list(patience).await?);
        let kept = kept().await.map_err(CollectError::NotTold)?;
        // Packs may be of attempts that died before they were noted; a manifest is put by a noted one.
        if let Some(&future) = listing.manifests.last().filter(|last| last.id > kept.highest) {
            return Err(CollectError::FromTheFuture(future));
        }
        let mut pass = Pass::default();
        let going = self.bury(&listing, &kept, unix_s, &mut pass, patience).await?;
        let needed = self.needed(&listing, &kept, &going, patience).await?;
        self.delete_manifests(&listing, &going, &mut pass, patience).await?;
        if needed.complete {
            let useless =
                |object: &&Object| !needed.objects.contains(*object) && !kept.running.contains(&object.attempt());
            let useless: Vec<_> = listing.pieces.iter().filter(useless).copied().collect();
            self.delete(&listing, useless, &mut pass, patience).await?;
            let worn = needed.packs.iter().filter(|(pack, of)| !of.by_others && is_worn(pack, of.most));
            pass.worn = worn.map(|(pack, _)| *pack).collect();
        }
        self.mark(&listing, &kept, unix_s, &mut pass, patience).await?;
        self.forget(&listing, &kept, &mut pass, patience).await?;
        pass.kept_bytes = listing.bytes.values().sum::<u64>() - pass.deleted_bytes;
        Ok(pass)
    }

    /// How worn packs, as the last pass named them, can be rewritten.
    pub async fn plan(
        &self,
        live: &BTreeSet<Attempt>,
        worn: &BTreeSet<PackRef>,
        patience: &Patience,
    ) -> Result<Vec<Rewriting>, RemoteError> {
        let names_worn = |chunk: &ChunkRef| {
            self.chunks.get(chunk).is_none_or(|packs| packs.iter().any(|(pack, _)| worn.contains(pack)))
        };
        rewrite::plan(&self.remote, live, worn, names_worn, patience).await
    }

    /// Puts tombstones; says which manifests may go now.
    async fn bury(
        &mut self,
        listing: &Listing,
        kept: &Kept,
        unix_s: u64,
        pass: &mut Pass,
        patience: &Patience,
    ) -> Result<BTreeSet<Attempt>, CollectError> {
        let stays = |attempt: &Attempt| kept.live.contains(attempt) || kept.running.contains(attempt);
        let dead: Vec<_> = listing.manifests.iter().filter(|attempt| !stays(attempt)).copied().collect();
        let mut going = BTreeSet::new();
        for attempt in dead {
            if !listing.tombstones.contains(&attempt) {
                self.remote.put_small(Object::Tombstone(attempt), &Tombstone { unix_s }, patience).await?;
            }
            let since = *self.tombstones.entry(attempt).or_insert_with(Instant::now);
            pass.waiting += 1;
            if since.elapsed() < self.grace {
                continue;
            }
            let references = self.remote.list_kind(&format!("references/{attempt}"), patience).await?;
            if references.is_empty() {
                pass.waiting -= 1;
                going.insert(attempt);
            }
        }
        Ok(going)
    }

    /// The packs and maps that manifests need which stay.
    async fn needed(
        &mut self,
        listing: &Listing,
        kept: &Kept,
        going: &BTreeSet<Attempt>,
        patience: &Patience,
    ) -> Result<Needed, CollectError> {
        let mut needed = Needed { complete: true, ..Needed::default() };
        let mut chunks = HashMap::new();
        let present = listing.manifests.iter().filter(|attempt| !going.contains(attempt));
        for &attempt in kept.live.iter().chain(present).collect::<BTreeSet<_>>() {
            let ours = kept.live.contains(&attempt);
            // One that somebody refers to would stay beside the one that is put in its place.
            let free = ours && !listing.references.iter().any(|reference| reference.attempt() == attempt);
            match self.needs((attempt, free), &mut needed, &mut chunks, patience).await {
                Ok(()) => {}
                Err(error) if ours => return Err(CollectError::Unreadable(attempt, error)),
                // It was put by an attempt that was given up, and is going by itself.
                Err(error) => {
                    tracing::warn!(%attempt, %error, "a manifest cannot be read: until it is gone no pack is deleted");
                    needed.complete = false;
                }
            }
        }
        self.chunks = chunks;
        Ok(needed)
    }

    async fn needs(
        &self,
        (attempt, free): (Attempt, bool),
        needed: &mut Needed,
        chunks: &mut Chunks,
        patience: &Patience,
    ) -> Result<(), RemoteError> {
        let manifest = read_manifest(&self.remote, attempt, patience).await?;
        let mut blocks: HashMap<PackRef, u64> = HashMap::new();
        for reference in &manifest.chunks {
            needed.objects.insert(reference.object());
            let packs = match chunks.get(reference).or_else(|| self.chunks.get(reference)) {
                Some(packs) => Arc::clone(packs),
                None => {
                    let map = read_chunk(&self.remote, reference, patience).await?;
                    map.blocks_by_pack().into()
                }
            };
            for &(pack, count) in packs.iter() {
                needed.objects.insert(pack.object());
                *blocks.entry(pack).or_default() += u64::from(count);
            }
            chunks.insert(*reference, packs);
        }
        for (pack, blocks) in blocks {
            let of = needed.packs.entry(pack).or_default();
            of.most = of.most.max(blocks);
            of.by_others |= !free;
        }
        Ok(())
    }

    /// The marker first: from then on nobody takes it for a snapshot.
    async fn delete_manifests(
        &self,
        listing: &Listing,
        going: &BTreeSet<Attempt>,
        pass: &mut Pass,
        patience: &Patience,
    ) -> Result<(), RemoteError> {
        let markers = going.intersection(&listing.markers).map(|&attempt| Object::Marker(attempt)).collect();
        self.delete(listing, markers, pass, patience).await?;
        let manifests = going.iter().map(|&attempt| Object::Manifest(attempt)).collect();
        self.delete(listing, manifests, pass, patience).await
    }

    async fn delete(
        &self,
        listing: &Listing,
        objects: Vec<Object>,
        pass: &mut Pass,
        patience: &Patience,
    ) -> Result<(), RemoteError> {
        for object in &objects {
            pass.deleted += 1;
            pass.deleted_bytes += listing.bytes.get(object).copied().unwrap_or(0);
        }
        stream::iter(objects)
            .map(|object| async move { self.remote.delete(object, patience).await })
            .buffer_unordered(DELETES)
            .try_collect::<()>()
            .await
    }

    /// Puts the markers that a crash between commit and marker has prevented.
    async fn mark(
        &self,
        listing: &Listing,
        kept: &Kept,
        unix_s: u64,
        pass: &mut Pass,
        patience: &Patience,
    ) -> Result<(), RemoteError> {
        for &attempt in kept.live.difference(&listing.markers) {
            mark(&self.remote, attempt, unix_s, patience).await?;
            pass.marked += 1;
        }
        Ok(())
    }

    /// What is left of manifests that are not there, and attempts of which nothing can come.
    async fn forget(
        &mut self,
        listing: &Listing,
        kept: &Kept,
        pass: &mut Pass,
        patience: &Patience,
    ) -> Result<(), RemoteError> {
        let left = listing.tombstones.union(&listing.markers).copied();
        let left = left.chain(listing.references.iter().map(|object| object.attempt()));
        let candidates: BTreeSet<_> = left.chain(kept.given_up.iter().copied()).collect();
        let absent = |attempt: &Attempt| {
            !listing.manifests.contains(attempt) && !kept.live.contains(attempt) && !kept.running.contains(attempt)
        };
        let absent: BTreeSet<_> = candidates.into_iter().filter(absent).collect();
        self.absent.retain(|attempt, _| absent.contains(attempt));
        self.tombstones.retain(|attempt, _| listing.manifests.contains(attempt));
        for attempt in absent {
            let since = *self.absent.entry(attempt).or_insert_with(Instant::now);
            if since.elapsed() < self.grace || since.elapsed().is_zero() {
                continue;
            }
            let of = |object: &&Object| object.attempt() == attempt;
            let mut rest: Vec<_> = listing.references.iter().filter(of).copied().collect();
            rest.extend(listing.markers.get(&attempt).map(|_| Object::Marker(attempt)));
            rest.extend(listing.tombstones.get(&attempt).map(|_| Object::Tombstone(attempt)));
            self.delete(listing, rest, pass, patience).await?;
            if kept.given_up.contains(&attempt) {
                pass.gone.push(attempt);
            }
        }
        Ok(())
    }
}

/// Marks a manifest as committed.
pub async fn mark(remote: &Remote, attempt: Attempt, unix_s: u64, patience: &Patience) -> Result<(), RemoteError> {
    // One that is there already says the same with another time, also one that came while we looked.
    let object = Object::Marker(attempt);
    match remote.get_small::<Marker>(object, patience).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_missing() => {}
        Err(error) => return Err(error),
    }
    match remote.put_small(object, &Marker { unix_s }, patience).await {
        Err(RemoteError::NotKept(_)) => remote.get_small::<Marker>(object, patience).await.map(drop),
        outcome => outcome,
    }
}
