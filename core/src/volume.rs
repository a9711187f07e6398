//! What a volume is: its record in the catalog, its name, and where its bytes live.

use std::fmt;

use ringway_shm_ring::message::{WRITER, WRITER_AGAIN};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Epoch, ShardId, VolumeId};
use crate::limits::{CLUSTER, CLUSTERS_PER_STRIPE, STRIPE, VOLUME_NAME_MAX};

/// Whether a host wants to be the one writer of what it attaches. The lease is between those that ask for it; others follow their own
/// sharing rules. It ends with the association, and who gets it next waits for that one's fence, as for an exclusive volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// From now on.
    Taken,
    /// It was it, has lost its connection, and will send again what was not answered: to be refused if another host has been the writer
    /// meanwhile, or those writes would land over newer ones.
    Resumed,
}

/// Takes what is said about the lease off the name, or NQN, of what is to be attached.
#[must_use]
pub fn split_lease(name: &str) -> (&str, Option<Lease>) {
    match (name.strip_suffix(WRITER), name.strip_suffix(WRITER_AGAIN)) {
        (Some(name), _) => (name, Some(Lease::Taken)),
        (_, Some(name)) => (name, Some(Lease::Resumed)),
        _ => (name, None),
    }
}

/// A volume as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Never reused.
    pub id: VolumeId,
    /// 1 to 200 bytes, see [`check_name`].
    pub name: String,
    /// The namespace's NGUID and UUID.
    pub uuid: Uuid,
    /// Bytes; a multiple of `lba_bytes`.
    pub size: u64,
    /// 512 or 4096.
    pub lba_bytes: u32,
    /// Where its stripes go, in turn. Immutable; a clone inherits it.
    pub shards: Vec<ShardId>,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
    /// One writer at a time, on every transport.
    pub exclusive: bool,
    /// Host NQNs that may attach; empty: any host where the listener allows that.
    pub allowed_hosts: Vec<String>,
    /// Epochs at which this volume was cut, ascending: a version born at or before one of them, and older than the stamp of a
    /// write beyond it, may not be overwritten.
    pub cuts: Vec<Epoch>,
    /// Intervals `(after, up to]` of epochs whose versions a rollback has made void.
    pub dead: Vec<(Epoch, Epoch)>,
    /// This record is a snapshot: read-only, what its origin held. Records of their own keep it in the catalog.
    #[serde(skip)]
    pub view: Option<SnapshotView>,
    /// This volume is a clone. Records of their own keep it in the catalog.
    #[serde(skip)]
    pub parent: Option<Parent>,
}

/// What a snapshot shows: `origin` as it was at the end of `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// The volume whose map its blocks are found in.
    pub origin: VolumeId,
    /// The cut.
    pub epoch: Epoch,
}

/// Where a clone finds what none of its own versions decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The volume whose map is looked at next (the origin of the snapshot that was cloned); [`Parent::BACKEND`]: nobody's here.
    pub volume: VolumeId,
    /// As it was at the end of this epoch.
    pub epoch: Epoch,
    /// Its size then, bytes: beyond are zeros.
    pub size: u64,
}

/// Where a byte of a volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The shard that owns it.
    pub shard: ShardId,
    /// The cluster among those of this volume on that shard.
    pub cluster: u32,
    /// Bytes from the start of the cluster.
    pub offset: u32,
}

impl Parent {
    /// In place of a volume's number: the snapshot is on a backend, and in no map here. No volume has this number.
    pub const BACKEND: VolumeId = VolumeId(0);

    /// What a snapshot of this size, that is on a backend alone, is to a clone of it. Everything that is written to the clone is
    /// born later than what is fetched.
    #[must_use]
    pub const fn on_backend(size: u64) -> Parent {
        Parent { volume: Parent::BACKEND, epoch: Epoch(1), size }
    }

    /// Whether what is looked through to has to be fetched.
    #[must_use]
    pub fn is_on_backend(&self) -> bool {
        self.volume == Parent::BACKEND
    }
}

impl VolumeRecord {
    /// Where the byte at `offset` lives.
    ///
    /// Stripe `s` belongs to shard `shards[s % n]` and is its local stripe `s / n`.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Location {
        let stripe = offset / STRIPE;
        let shards = self.shards.len() as u64;
        let cluster = (stripe / shards) as u32 * CLUSTERS_PER_STRIPE + ((offset % STRIPE) / CLUSTER) as u32;
        Location { shard: self.shards[(stripe % shards) as usize], cluster, offset: (offset % CLUSTER) as u32 }
    }

    /// The volume's offset of byte 0 of local cluster `cluster` on the shard at place `nth` of its shard list.
    #[must_use]
    pub fn offset_of(&self, nth: usize, cluster: u32) -> u64 {
        let local_stripe = u64::from(cluster / CLUSTERS_PER_STRIPE);
        let stripe = local_stripe * self.shards.len() as u64 + nth as u64;
        stripe * STRIPE + u64::from(cluster % CLUSTERS_PER_STRIPE) * CLUSTER
    }

    /// Whether this is a snapshot, which nobody writes to.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.view.is_some()
    }

    /// Whether a write stamped `stamp` must leave a version born at `birth` alone: a cut lies between them.
    #[must_use]
    pub fn redirects(&self, birth: Epoch, stamp: Epoch) -> bool {
        // Cuts ascend and are few and mostly old: look from the newest.
        self.cuts.iter().rev().find(|&&cut| cut < stamp).is_some_and(|&cut| birth <= cut)
    }
}

/// Why a name is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadName {
    /// The name as given.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "volume name {:?} {}; a name is 1 to {VOLUME_NAME_MAX} bytes of A-Z a-z 0-9 . _ / -, not starting with - / or .",
            self.name, self.why
        )
    }
}

impl std::error::Error for BadName {}

/// Checks a volume's name: `:`, `@` and `,` are separators elsewhere, and a name is part of paths and NQNs.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let bad = |why| Err(BadName { name: name.to_owned(), why });
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > VOLUME_NAME_MAX {
        return bad("is too long");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b)) {
        return bad("has a character that is not allowed");
    }
    if name.starts_with(['-', '/', '.']) {
        return bad("starts with - / or .");
    }
    if name.contains("//") || name.ends_with('/') {
        return bad("has an empty path component");
    }
    if name.split('/').any(|component| component == "." || component == "..") {
        return bad("has a . or .. path component");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(shards: u16, cuts: &[u64]) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId(1),
            name: "v".into(),
            uuid: Uuid::nil(),
            size: 1 << 30,
            lba_bytes: 512,
            shards: (0..shards).map(ShardId).collect(),
            created_unix_s: 0,
            exclusive: false,
            allowed_hosts: Vec::new(),
            cuts: cuts.iter().map(|&c| Epoch(c)).collect(),
            dead: Vec::new(),
            view: None,
            parent: None,
        }
    }

    #[test]
    fn every_byte_has_one_place_and_the_way_back_finds_it() {
        let volume = volume(3, &[]);
        for offset in (0..64 << 20).step_by(CLUSTER as usize) {
            let at = volume.locate(offset + 5);
            assert_eq!(volume.offset_of(usize::from(at.shard.0), at.cluster), offset);
            assert_eq!(at.offset, 5);
        }
    }

    #[test]
    fn a_write_redirects_exactly_if_a_cut_lies_between_birth_and_stamp() {
        let volume = volume(1, &[10, 20]);
        for (birth, stamp, expected) in [
            (5, 8, false),
            (5, 10, false),
            (5, 11, true),
            (10, 11, true),
            (11, 20, false),
            (11, 21, true),
            (21, 99, false),
        ] {
            assert_eq!(volume.redirects(Epoch(birth), Epoch(stamp)), expected, "birth {birth} stamp {stamp}");
        }
    }

    #[test]
    fn names_that_would_confuse_paths_and_separators_are_refused() {
        for good in ["vm1", "a/b.c_d-e", "A"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "/a", ".a", "a//b", "a:b", "a@b", "a,b", "a b", "a/", "a/../b", &"x".repeat(201), "ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
