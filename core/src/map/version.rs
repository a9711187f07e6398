//! One version of a cluster, and its 24 bytes on disk.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::states::BlockStates;
use crate::ids::Epoch;
use crate::space::{Geometry, Place};

/// A version of a cluster: when it was born, where its data is, what it says of each block.
///
/// Invariant: data bits only with a place; birth is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Stamp of the write that made it. Unique among the versions of one cluster.
    pub birth: Epoch,
    /// Its cluster, or [`Place::NONE`] where no block is data.
    pub place: Place,
    /// What it says of each block.
    pub states: BlockStates,
}

impl Version {
    /// Whether the invariant holds.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.birth.0 != 0 && (self.place.is_some() || !self.states.any_data())
    }

    /// Whether it has neither place nor says anything, so that it need not exist.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.place.is_none() && self.states == BlockStates::ABSENT
    }
}

/// On disk. `cluster` is only used among older versions; it is the cluster's number in its node.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawVersion {
    pub(super) birth: U64,
    pub(super) place: U64,
    pub(super) states: U32,
    pub(super) cluster: u8,
    pub(super) reserved: [u8; 3],
}

const _: () = assert!(size_of::<RawVersion>() == 24);
const _: () = assert!(size_of::<Version>() == 24);

impl RawVersion {
    pub(super) const EMPTY: RawVersion =
        RawVersion { birth: U64::ZERO, place: U64::ZERO, states: U32::ZERO, cluster: 0, reserved: [0; 3] };

    pub(super) fn of(version: &Version, cluster: u8) -> RawVersion {
        RawVersion {
            birth: version.birth.0.into(),
            place: version.place.raw().into(),
            states: version.states.raw().into(),
            cluster,
            reserved: [0; 3],
        }
    }

    pub(super) fn check(&self, geometry: &Geometry) -> Option<Version> {
        checked(self.birth.get(), self.place.get(), self.states.get(), geometry)
    }
}

/// A version from the disk: sound, and its place inside a slab of the pool.
pub(super) fn checked(birth: u64, place: u64, states: u32, geometry: &Geometry) -> Option<Version> {
    let version =
        Version { birth: Epoch(birth), place: Place::from_raw(place), states: BlockStates::from_raw(states)? };
    let placed = version.place.is_none() || geometry.holds(version.place);
    (version.is_sound() && placed).then_some(version)
}
