//! How objects are named. A name says what an object is, whose it is and which attempt made it, so that a listing alone tells
//! the collector what it may ever touch.
//!
//! ```text
//! POOL/manifests/ATTEMPT            the whole map of one snapshot: where each of its blocks lies
//! POOL/markers/ATTEMPT              that manifest is committed in the pool's catalog
//! POOL/tombstones/ATTEMPT           that manifest is about to go: nobody may begin to read it
//! POOL/references/ATTEMPT/HOLDER    another pool, or a clone, reads it: it stays
//! POOL/packs/ATTEMPT-SEQUENCE       blocks
//! POOL/maps/ATTEMPT-SEQUENCE        pieces of manifests
//! ```
//!
//! Invariant: no name is used twice. An attempt's number comes from the catalog and is never given again; its nonce keeps apart
//! what a pool that was put back from an old copy would name alike.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// One try to put one snapshot on the backend; also the name of the manifest that it leaves there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt {
    /// From the catalog's counter.
    pub id: u64,
    /// Random.
    pub nonce: u32,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.id, self.nonce)
    }
}

/// What is no name of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("is no manifest's name; one looks like 0000000000000007-1a2b3c4d")]
pub struct NoAttempt;

impl FromStr for Attempt {
    type Err = NoAttempt;

    fn from_str(text: &str) -> Result<Self, NoAttempt> {
        let (id, nonce) = text.split_once('-').ok_or(NoAttempt)?;
        Ok(Attempt { id: hex(id, 16).ok_or(NoAttempt)?, nonce: hex(nonce, 8).ok_or(NoAttempt)? as u32 })
    }
}

/// Exactly `digits` lowercase hexadecimal digits: one value has one spelling.
fn hex(text: &str, digits: usize) -> Option<u64> {
    let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if fits { u64::from_str_radix(text, 16).ok() } else { None }
}

/// An object of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// The whole map of one snapshot.
    Manifest(Attempt),
    /// It is committed.
    Marker(Attempt),
    /// It is about to go.
    Tombstone(Attempt),
    /// The pool `holder` reads it.
    Reference { of: Attempt, holder: Uuid },
    /// Blocks.
    Pack { by: Attempt, sequence: u32 },
    /// Pieces of manifests.
    Map { by: Attempt, sequence: u32 },
}

impl Object {
    /// The attempt whose object it is.
    #[must_use]
    pub fn attempt(self) -> Attempt {
        match self {
            Object::Manifest(attempt) | Object::Marker(attempt) | Object::Tombstone(attempt) => attempt,
            Object::Reference { of, .. } => of,
            Object::Pack { by, .. } | Object::Map { by, .. } => by,
        }
    }

    /// Its name below the backend's prefix.
    #[must_use]
    pub fn name(self, pool: Uuid) -> String {
        format!("{}/{self}", pool.simple())
    }

    /// What a name in a listing means; `None` for what is not of this pool, and for what nobody of us has named.
    #[must_use]
    pub fn of_name(name: &str, pool: Uuid) -> Option<Object> {
        let (owner, rest) = name.split_once('/')?;
        if owner != pool.simple().to_string() {
            return None;
        }
        let (kind, rest) = rest.split_once('/')?;
        Some(match kind {
            "manifests" => Object::Manifest(rest.parse().ok()?),
            "markers" => Object::Marker(rest.parse().ok()?),
            "tombstones" => Object::Tombstone(rest.parse().ok()?),
            "references" => {
                let (of, holder) = rest.split_once('/')?;
                let object = Object::Reference { of: of.parse().ok()?, holder: Uuid::try_parse(holder).ok()? };
                // Other spellings of the same number are not ours.
                return (object.name(pool) == name).then_some(object);
            }
            "packs" => numbered(rest).map(|(by, sequence)| Object::Pack { by, sequence })?,
            "maps" => numbered(rest).map(|(by, sequence)| Object::Map { by, sequence })?,
            _ => return None,
        })
    }
}

fn numbered(rest: &str) -> Option<(Attempt, u32)> {
    let (attempt, sequence) = rest.rsplit_once('-')?;
    Some((attempt.parse().ok()?, hex(sequence, 8)? as u32))
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Manifest(attempt) => write!(f, "manifests/{attempt}"),
            Object::Marker(attempt) => write!(f, "markers/{attempt}"),
            Object::Tombstone(attempt) => write!(f, "tombstones/{attempt}"),
            Object::Reference { of, holder } => write!(f, "references/{of}/{}", holder.simple()),
            Object::Pack { by, sequence } => write!(f, "packs/{by}-{sequence:08x}"),
            Object::Map { by, sequence } => write!(f, "maps/{by}-{sequence:08x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_name_means_one_object_and_foreign_names_mean_none() {
        let (pool, holder) = (Uuid::from_u128(7), Uuid::from_u128(9));
        let attempt = Attempt { id: 0x1f, nonce: 0xdead_beef };
        for object in [
            Object::Manifest(attempt),
            Object::Marker(attempt),
            Object::Tombstone(attempt),
            Object::Reference { of: attempt, holder },
            Object::Pack { by: attempt, sequence: 3 },
            Object::Map { by: attempt, sequence: u32::MAX },
        ] {
            let name = object.name(pool);
            assert_eq!(Object::of_name(&name, pool), Some(object), "{name}");
            assert_eq!(Object::of_name(&name, holder), None, "another pool's {name}");
            assert_eq!(Object::of_name(&name.to_uppercase(), pool), None, "{name} spelt otherwise");
            assert_eq!(Object::of_name(&format!("{name}0"), pool), None);
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_understood_is_the_name_of_what_it_means(name in "[0-9a-f]{32}/(packs|maps|manifests|references)/[0-9a-f/+-]{0,80}") {
            let pool = Uuid::try_parse(&name[..32]).unwrap();
            if let Some(object) = Object::of_name(&name, pool) {
                prop_assert_eq!(object.name(pool), name);
            }
        }
    }
}
