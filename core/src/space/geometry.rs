//! How the devices of a pool are cut into slabs and clusters. Pure arithmetic, shared by every shard.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::place::{CLASS_CLUSTER, CLASS_PAGE, Place};
use crate::limits::{CLUSTER, DEVICES_MAX};

/// Slabs of a device: a slab number has 24 bits beside its device.
pub const SLABS_PER_DEVICE_MAX: u32 = 1 << 24;

/// A slab of the pool: device (8 bits) and number on that device (24 bits). Never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlabId(pub u32);

impl SlabId {
    /// Slab `number` of device `device`.
    ///
    /// # Panics
    /// If the number has more than 24 bits.
    #[must_use]
    pub fn new(device: u8, number: u32) -> SlabId {
        assert!(number < SLABS_PER_DEVICE_MAX, "slab {number} of device {device}");
        SlabId(u32::from(device) << 24 | number)
    }

    /// The device it is on.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Its number on that device.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 & (SLABS_PER_DEVICE_MAX - 1)
    }
}

impl fmt::Display for SlabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.device(), self.number())
    }
}

/// The part of a device that is cut into slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabArea {
    /// Bytes from the start of the device; a multiple of 1 MiB.
    pub start: u64,
    /// How many slabs.
    pub slabs: u32,
}

/// Slab size and the slab area of each device, as the superblocks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    slab_bytes: u64,
    areas: Vec<SlabArea>,
}

impl Geometry {
    /// # Panics
    /// If the slab size is not a power of two of at least a cluster, or there are more devices than a place can name:
    /// superblocks are checked before this is made.
    #[must_use]
    pub fn new(slab_bytes: u64, areas: Vec<SlabArea>) -> Geometry {
        assert!(slab_bytes.is_power_of_two() && slab_bytes >= CLUSTER, "slab of {slab_bytes} bytes");
        assert!(areas.len() <= DEVICES_MAX);
        assert!(
            areas.iter().all(|area| area.start % CLUSTER == 0 && area.start > 0 && area.slabs <= SLABS_PER_DEVICE_MAX)
        );
        Geometry { slab_bytes, areas }
    }

    /// Bytes of a slab.
    #[must_use]
    pub fn slab_bytes(&self) -> u64 {
        self.slab_bytes
    }

    /// The slab area of each device, by number.
    #[must_use]
    pub fn areas(&self) -> &[SlabArea] {
        &self.areas
    }

    /// Clusters of a slab.
    #[must_use]
    pub fn clusters_per_slab(&self) -> u32 {
        (self.slab_bytes / CLUSTER) as u32
    }

    /// Every slab of the pool, by device.
    pub fn slabs(&self) -> impl Iterator<Item = SlabId> {
        self.areas
            .iter()
            .enumerate()
            .flat_map(|(device, area)| (0..area.slabs).map(move |number| SlabId::new(device as u8, number)))
    }

    /// Slabs of the whole pool.
    #[must_use]
    pub fn slab_count(&self) -> u64 {
        self.areas.iter().map(|area| u64::from(area.slabs)).sum()
    }

    /// Whether there is such a slab.
    #[must_use]
    pub fn has_slab(&self, slab: SlabId) -> bool {
        self.areas.get(usize::from(slab.device())).is_some_and(|area| slab.number() < area.slabs)
    }

    /// The place of cluster `cluster` of `slab`.
    ///
    /// # Panics
    /// If there is no such slab or cluster.
    #[must_use]
    pub fn place(&self, slab: SlabId, cluster: u32) -> Place {
        assert!(self.has_slab(slab) && cluster < self.clusters_per_slab(), "slab {slab} cluster {cluster}");
        let area = &self.areas[usize::from(slab.device())];
        let offset = area.start + u64::from(slab.number()) * self.slab_bytes + u64::from(cluster) * CLUSTER;
        Place::new(slab.device(), CLASS_CLUSTER, offset)
    }

    /// The slab and the cluster in it that hold `place` (a cluster or a page), or `None` for a place that no slab has.
    #[must_use]
    pub fn slab_of(&self, place: Place) -> Option<(SlabId, u32)> {
        if place.is_none() || !matches!(place.class(), CLASS_CLUSTER | CLASS_PAGE) {
            return None;
        }
        let area = self.areas.get(usize::from(place.device()))?;
        let offset = place.offset().checked_sub(area.start)?;
        let number = offset / self.slab_bytes;
        if number >= u64::from(area.slabs) {
            return None;
        }
        let within = offset % self.slab_bytes;
        if !within.is_multiple_of(place.len()) {
            return None;
        }
        Some((SlabId::new(place.device(), number as u32), (within / CLUSTER) as u32))
    }

    /// Whether `place` is one that data may have: an aligned cluster inside a slab. To be asked of every place read from disk.
    #[must_use]
    pub fn holds(&self, place: Place) -> bool {
        place.class() == CLASS_CLUSTER && self.slab_of(place).is_some()
    }

    /// Whether `place` is a page inside a slab.
    #[must_use]
    pub fn holds_page(&self, place: Place) -> bool {
        place.class() == CLASS_PAGE && self.slab_of(place).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry() -> Geometry {
        Geometry::new(4 << 20, vec![SlabArea { start: 9 << 20, slabs: 3 }, SlabArea { start: 1 << 20, slabs: 7 }])
    }

    #[test]
    fn every_cluster_of_every_slab_has_its_own_place_and_leads_back() {
        let geometry = geometry();
        let mut seen = std::collections::BTreeSet::new();
        for slab in geometry.slabs() {
            for cluster in 0..geometry.clusters_per_slab() {
                let place = geometry.place(slab, cluster);
                assert!(geometry.holds(place) && seen.insert(place));
                assert_eq!(geometry.slab_of(place), Some((slab, cluster)));
                assert_eq!(geometry.slab_of(place.page(15)), Some((slab, cluster)));
            }
        }
        assert_eq!(seen.len() as u64, geometry.slab_count() * u64::from(geometry.clusters_per_slab()));
    }

    proptest! {
        #[test]
        fn a_hostile_place_is_either_inside_a_slab_or_refused(raw: u64) {
            let geometry = geometry();
            let place = Place::from_raw(raw);
            if geometry.holds(place) {
                let (slab, cluster) = geometry.slab_of(place).unwrap();
                prop_assert_eq!(geometry.place(slab, cluster), place);
            }
        }
    }

    #[test]
    fn places_outside_slabs_are_refused() {
        let geometry = geometry();
        for place in [
            Place::NONE,
            Place::new(0, CLASS_CLUSTER, 8 << 20),
            Place::new(0, CLASS_CLUSTER, (9 + 12) << 20),
            Place::new(0, CLASS_CLUSTER, (9 << 20) + 4096),
            Place::new(0, 3, 9 << 20),
            Place::new(0, 200, 9 << 20),
            Place::new(2, CLASS_CLUSTER, 9 << 20),
        ] {
            assert!(!geometry.holds(place), "{place:?}");
        }
    }
}
