//! What is where. Pure arithmetic over device sizes and options.
//!
//! ```text
//! device 0: superblock, 64 KiB | checkpoint rings, 32 KiB a shard | catalog A, 4 MiB | journals | slabs | catalog B, 4 MiB | superblock
//! others:   superblock, 1 MiB  | slabs | superblock
//! ```
//! Slab areas start at a multiple of 1 MiB. The copy of the superblock is the last whole 4 KiB block of the device as it was at
//! format.

use std::sync::Arc;

use super::error::PoolError;
use crate::catalog::COPY_BYTES;
use crate::checkpoint::RING_BYTES;
use crate::ids::ShardId;
use crate::limits::{BLOCK, CLUSTER, DEVICES_MAX, SHARDS_MAX};
use crate::space::{Geometry, SLABS_PER_DEVICE_MAX, SlabArea};

/// Bytes at the start of a device that only the superblock uses.
pub const SUPERBLOCK_AREA: u64 = 64 << 10;
/// Bytes of the smallest device other than device 0.
pub const DEVICE_BYTES_MIN: u64 = ALIGN + SLAB_BYTES_MIN + BLOCK;

const ALIGN: u64 = 1 << 20;
pub(super) const SLAB_BYTES_MIN: u64 = 4 << 20;
pub(super) const SLAB_BYTES_MAX: u64 = 1 << 30;
pub(super) const JOURNAL_BYTES_MIN: u64 = 1 << 20;
pub(super) const JOURNAL_BYTES_MAX: u64 = 32 << 20;
const JOURNAL_BYTES_DEFAULT: u64 = 8 << 20;
/// Slabs a shard that the slab size aims at: fewer, and one full shard could not get more.
const SLABS_PER_SHARD: u64 = 16;

/// What may be chosen at format. `None`: by the size of the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayoutOptions {
    /// Bytes of each shard's journal: 1 to 32 MiB, a multiple of 4096.
    pub journal_bytes: Option<u64>,
    /// Bytes of a slab: a power of two from 4 MiB to 1 GiB.
    pub slab_bytes: Option<u64>,
    /// Clusters a shard that data may not take, for map pages and checkpoints.
    pub reserve_clusters: Option<u32>,
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of shards.
    pub shards: u16,
    /// Byte of device 0 at which the first shard's checkpoint ring starts.
    pub checkpoints: u64,
    /// Bytes of device 0 at which the catalog's copies start.
    pub catalog: [u64; 2],
    /// Byte of device 0 at which the first shard's journal starts.
    pub journals: u64,
    /// Bytes of a journal.
    pub journal_bytes: u64,
    /// Clusters a shard keeps back from data.
    pub reserve_clusters: u32,
    /// Slab size and areas of all devices.
    pub geometry: Arc<Geometry>,
}

impl Layout {
    /// The layout for devices of these sizes.
    pub fn compute(sizes: &[u64], shards: u16, options: &LayoutOptions) -> Result<Layout, PoolError> {
        if sizes.is_empty() || sizes.len() > DEVICES_MAX {
            return Err(PoolError::Devices(sizes.len()));
        }
        if shards == 0 || shards > SHARDS_MAX {
            return Err(PoolError::Shards(shards));
        }
        check_options(options)?;
        let smallest_slab = options.slab_bytes.unwrap_or(SLAB_BYTES_MIN);
        let journal_bytes = options.journal_bytes.unwrap_or_else(|| journal_bytes(sizes[0], shards));
        let start = [slab_start(shards, journal_bytes), ALIGN];
        let end = |device: usize| slab_end(device, sizes[device]);
        let room: Vec<u64> = (0..sizes.len()).map(|device| end(device).saturating_sub(start[device.min(1)])).collect();
        for (device, (&found, &room)) in sizes.iter().zip(&room).enumerate() {
            // Every shard needs a slab; with one device, all of them are on it.
            let slabs = if sizes.len() == 1 { u64::from(shards) } else { 1 };
            if room < slabs * smallest_slab {
                let behind = if device == 0 { COPY_BYTES as u64 } else { 0 } + BLOCK;
                let minimum = start[device.min(1)] + slabs * smallest_slab + behind;
                return Err(PoolError::TooSmall { device: device as u16, found, minimum, shards });
            }
        }
        let slab_bytes = options.slab_bytes.unwrap_or_else(|| slab_bytes(&room, shards));
        let area = |(device, &room): (usize, &u64)| SlabArea {
            start: start[device.min(1)],
            slabs: (room / slab_bytes).min(u64::from(SLABS_PER_DEVICE_MAX)) as u32,
        };
        let geometry = Geometry::new(slab_bytes, room.iter().enumerate().map(area).collect());
        if geometry.slab_count() < u64::from(shards) {
            let minimum = sizes[0] + (u64::from(shards) - geometry.slab_count()) * slab_bytes;
            return Err(PoolError::TooSmall { device: 0, found: sizes[0], minimum, shards });
        }
        let per_shard = geometry.slab_count() * u64::from(geometry.clusters_per_slab()) / u64::from(shards);
        // Map pages of two checkpoints take 1/1024 of a shard in the worst case, their images less.
        let reserve = (16 + per_shard / 512).min(u64::from(geometry.clusters_per_slab()) / 2) as u32;
        let checkpoints = SUPERBLOCK_AREA;
        let catalog = checkpoints + u64::from(shards) * RING_BYTES as u64;
        Ok(Layout {
            shards,
            checkpoints,
            catalog: [catalog, end(0)],
            journals: catalog + COPY_BYTES as u64,
            journal_bytes,
            reserve_clusters: options.reserve_clusters.unwrap_or(reserve),
            geometry: Arc::new(geometry),
        })
    }

    /// Byte of device 0 at which this shard's checkpoint ring, [`RING_BYTES`], starts.
    #[must_use]
    pub fn checkpoint_ring(&self, shard: ShardId) -> u64 {
        assert!(shard.0 < self.shards);
        self.checkpoints + u64::from(shard.0) * RING_BYTES as u64
    }

    /// Byte of device 0 at which this shard's journal starts.
    #[must_use]
    pub fn journal(&self, shard: ShardId) -> u64 {
        assert!(shard.0 < self.shards);
        self.journals + u64::from(shard.0) * self.journal_bytes
    }

    /// Blocks of each journal.
    #[must_use]
    pub fn journal_blocks(&self) -> u32 {
        (self.journal_bytes / BLOCK) as u32
    }

    /// Whether a layout read from superblocks can be: regions inside their devices, in order, none over another. Says what not.
    pub(super) fn check(&self, sizes: &[u64]) -> Result<(), &'static str> {
        let shards = u64::from(self.shards);
        let behind = |start: u64, len: Option<u64>| len.and_then(|len| start.checked_add(len));
        let rings_end = behind(self.checkpoints, Some(shards * RING_BYTES as u64));
        let journals_end = behind(self.journals, self.journal_bytes.checked_mul(shards));
        let aligned = [self.checkpoints, self.catalog[0], self.catalog[1], self.journals, self.journal_bytes];
        let first = self.geometry.place(crate::space::SlabId::new(0, 0), 0).offset();
        let checks = [
            (aligned.iter().all(|start| start % BLOCK == 0), "alignment of a region"),
            (self.checkpoints >= SUPERBLOCK_AREA, "start of the checkpoint rings"),
            (rings_end.is_some_and(|end| end <= self.catalog[0]), "start of the catalog"),
            (
                behind(self.catalog[0], Some(COPY_BYTES as u64)).is_some_and(|end| end <= self.journals),
                "start of the journals",
            ),
            (journals_end.is_some_and(|end| end <= first), "end of the journals"),
            (
                behind(self.catalog[1], Some(COPY_BYTES as u64)).is_some_and(|end| end <= copy_offset(sizes[0])),
                "copy of the catalog",
            ),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some(&(_, what)) => Err(what),
            None => Ok(()),
        }
    }
}

/// The slabs of a device that joins a pool, number 1 or higher, and of `size` bytes. `None`: not one fits.
pub(super) fn joining_area(size: u64, slab_bytes: u64) -> Option<SlabArea> {
    let slabs = copy_offset(size).saturating_sub(ALIGN) / slab_bytes;
    (slabs > 0).then_some(SlabArea { start: ALIGN, slabs: slabs.min(u64::from(SLABS_PER_DEVICE_MAX)) as u32 })
}

/// Bytes of the smallest device that can join a pool with slabs of this size.
#[must_use]
pub fn joining_bytes_min(slab_bytes: u64) -> u64 {
    ALIGN + slab_bytes + BLOCK
}

/// Byte of the superblock's copy on a device of `size` bytes.
pub(super) fn copy_offset(size: u64) -> u64 {
    (size / BLOCK).saturating_sub(1) * BLOCK
}

/// Byte at which slabs must end on a device of `size` bytes.
pub(super) fn slab_end(device: usize, size: u64) -> u64 {
    let end = copy_offset(size);
    if device == 0 { end.saturating_sub(COPY_BYTES as u64) } else { end }
}

fn slab_start(shards: u16, journal_bytes: u64) -> u64 {
    let regions = SUPERBLOCK_AREA + u64::from(shards) * (RING_BYTES as u64 + journal_bytes) + COPY_BYTES as u64;
    regions.next_multiple_of(ALIGN)
}

/// 8 MiB, less where that would take more than an eighth of device 0.
fn journal_bytes(size: u64, shards: u16) -> u64 {
    let mut bytes = JOURNAL_BYTES_DEFAULT;
    while bytes > JOURNAL_BYTES_MIN && bytes * u64::from(shards) > size / 8 {
        bytes /= 2;
    }
    bytes
}

/// The largest slab of which every shard gets as many as it should, and every device has one.
fn slab_bytes(room: &[u64], shards: u16) -> u64 {
    let mut bytes = SLAB_BYTES_MAX;
    let slabs = |bytes: u64| room.iter().map(|room| room / bytes).sum::<u64>();
    let fits = |bytes: u64| room.iter().all(|&room| room >= bytes);
    while bytes > SLAB_BYTES_MIN && !(fits(bytes) && slabs(bytes) >= u64::from(shards) * SLABS_PER_SHARD) {
        bytes /= 2;
    }
    bytes
}

fn check_options(options: &LayoutOptions) -> Result<(), PoolError> {
    if let Some(found) = options.slab_bytes
        && !(found.is_power_of_two() && (SLAB_BYTES_MIN..=SLAB_BYTES_MAX).contains(&found))
    {
        return Err(PoolError::Option { option: "slab size", found, right: "a power of two from 4 MiB to 1 GiB" });
    }
    if let Some(found) = options.journal_bytes
        && !(found % BLOCK == 0 && (JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&found))
    {
        return Err(PoolError::Option {
            option: "journal size",
            found,
            right: "a multiple of 4096 from 1 MiB to 32 MiB",
        });
    }
    let slab = options.slab_bytes.unwrap_or(SLAB_BYTES_MIN) / CLUSTER;
    if let Some(found) = options.reserve_clusters
        && u64::from(found) > slab / 2
    {
        let right = "at most half of a slab's clusters";
        return Err(PoolError::Option { option: "reserve", found: u64::from(found), right });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::SlabId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn regions_never_overlap_and_end_inside_their_device(
            sizes in proptest::collection::vec(0u64..(1 << 45), 1..5), small in 0u64..(256 << 20), shards in 1u16..=256,
        ) {
            for sizes in [sizes.clone(), vec![small], vec![small, sizes[0]]] {
                let Ok(layout) = Layout::compute(&sizes, shards, &LayoutOptions::default()) else { continue };
                prop_assert_eq!(layout.check(&sizes), Ok(()));
                let mut regions = vec![(0, SUPERBLOCK_AREA), (copy_offset(sizes[0]), BLOCK)];
                for shard in (0..shards).map(ShardId) {
                    regions.push((layout.checkpoint_ring(shard), RING_BYTES as u64));
                    regions.push((layout.journal(shard), layout.journal_bytes));
                }
                regions.extend(layout.catalog.map(|start| (start, COPY_BYTES as u64)));
                let geometry = &layout.geometry;
                for slab in geometry.slabs() {
                    let start = geometry.place(slab, 0).offset();
                    if slab.device() == 0 {
                        regions.push((start, geometry.slab_bytes()));
                    }
                    prop_assert!(start + geometry.slab_bytes() <= slab_end(slab.device().into(), sizes[usize::from(slab.device())]));
                }
                regions.sort();
                prop_assert!(regions.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
                prop_assert!(geometry.slab_count() >= u64::from(shards));
                prop_assert!(layout.reserve_clusters <= geometry.clusters_per_slab() / 2);
                prop_assert!(regions.last().unwrap().0 + BLOCK <= sizes[0]);
            }
        }

        #[test]
        fn the_minimum_that_an_error_names_is_enough_and_less_is_not(shards in 1u16..=256) {
            let options = LayoutOptions::default();
            let Err(PoolError::TooSmall { minimum, .. }) = Layout::compute(&[1 << 20], shards, &options) else {
                return Err(TestCaseError::fail("1 MiB is too small"));
            };
            prop_assert!(Layout::compute(&[minimum], shards, &options).is_ok());
            prop_assert!(Layout::compute(&[minimum - BLOCK], shards, &options).is_err());
        }
    }

    #[test]
    fn slabs_are_at_most_a_gibibyte_and_every_shard_gets_sixteen_where_the_pool_allows() {
        for (size, shards, expected) in
            [(1u64 << 30, 2u16, 16u64 << 20), (64 << 30, 4, 512 << 20), (16 << 40, 64, 1 << 30), (64 << 20, 1, 4 << 20)]
        {
            let layout = Layout::compute(&[size], shards, &LayoutOptions::default()).unwrap();
            assert_eq!(layout.geometry.slab_bytes(), expected, "{size} bytes, {shards} shards");
        }
    }

    #[test]
    fn impossible_options_are_refused_with_what_would_be_right() {
        let compute = |options| Layout::compute(&[1 << 40], 4, &options).unwrap_err().to_string();
        let slab = compute(LayoutOptions { slab_bytes: Some(3 << 20), ..Default::default() });
        assert_eq!(slab, "slab size is 3145728; it must be a power of two from 4 MiB to 1 GiB");
        let journal = compute(LayoutOptions { journal_bytes: Some(5), ..Default::default() });
        assert_eq!(journal, "journal size is 5; it must be a multiple of 4096 from 1 MiB to 32 MiB");
        let small = Layout::compute(&[10 << 20], 4, &LayoutOptions::default()).unwrap_err();
        assert!(small.to_string().contains("needs at least"), "{small}");
        assert_eq!(Layout::compute(&[], 4, &LayoutOptions::default()), Err(PoolError::Devices(0)));
        assert_eq!(Layout::compute(&[1 << 40], 0, &LayoutOptions::default()), Err(PoolError::Shards(0)));
    }

    #[test]
    fn a_layout_whose_regions_overlap_is_refused() {
        let sizes = [1 << 30];
        let good = Layout::compute(&sizes, 2, &LayoutOptions::default()).unwrap();
        let bad = [
            Layout { checkpoints: 0, ..good.clone() },
            Layout { journals: good.catalog[0], ..good.clone() },
            Layout { journal_bytes: 1 << 40, ..good.clone() },
            Layout { journal_bytes: u64::MAX / 4096 * 4096, ..good.clone() },
            Layout { catalog: [good.catalog[0], u64::MAX / 4096 * 4096], ..good.clone() },
            Layout { catalog: [good.catalog[0], 1 << 31], ..good.clone() },
        ];
        for layout in bad {
            assert!(layout.check(&sizes).is_err(), "{layout:?}");
        }
        assert!(good.geometry.has_slab(SlabId::new(0, 0)));
    }
}
