//! A backend for the shard under test: images by volume, there at once, later, or not at all.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_core::ids::VolumeId;
use ringway_core::request::Status;
use ringway_core::shard::{ClusterData, Fetch, Fetched, RangeMap, Wanted};
use ringway_core::volume::{Parent, VolumeRecord};

use super::Rig;

const BLOCK: usize = 4096;
const CLUSTER: usize = 65536;
const RANGE: u32 = 128;

#[derive(Clone, Default)]
pub struct Backend {
    /// By clone.
    pub images: HashMap<VolumeId, Arc<Vec<u8>>>,
    /// Nothing is answered before [`Rig::release_fetches`].
    pub holds: bool,
    /// Everything fails so.
    pub fails: Option<Status>,
    pub held: Vec<Fetch>,
    /// Clusters that were fetched.
    pub fetched: usize,
}

/// A clone of an image, as the catalog has it.
pub fn lazy_clone(id: u32, image: &[u8]) -> VolumeRecord {
    let size = image.len() as u64;
    VolumeRecord { parent: Some(Parent::on_backend(size)), ..super::volume(id, size, 512) }
}

impl Rig {
    /// A clone of `image`, which is on the backend alone.
    pub fn clone_of_image(&mut self, id: u32, image: Vec<u8>) {
        let record = Arc::new(lazy_clone(id, &image));
        let image = Arc::new(image);
        self.backend.images.insert(VolumeId(id), Arc::clone(&image));
        self.setup.backend.images.insert(VolumeId(id), image);
        self.setup.volumes.push(Arc::clone(&record));
        self.shard.on_volume(record);
    }

    pub fn on_fetch(&mut self, fetch: Fetch) {
        if self.backend.holds {
            self.backend.held.push(fetch);
        } else {
            self.answer_fetch(&fetch);
        }
    }

    pub fn release_fetches(&mut self) {
        for fetch in std::mem::take(&mut self.backend.held) {
            self.answer_fetch(&fetch);
        }
    }

    fn answer_fetch(&mut self, fetch: &Fetch) {
        let outcome = match self.backend.fails {
            Some(status) => Err(status),
            None => Ok(self.fetched(fetch)),
        };
        self.shard.on_fetched(fetch.token, outcome);
    }

    fn fetched(&mut self, fetch: &Fetch) -> Fetched {
        let image = Arc::clone(&self.backend.images[&fetch.record.id]);
        let blocks = |cluster: u32| {
            let at = fetch.record.offset_of(fetch.nth, cluster) as usize;
            let cluster = &image[at.min(image.len())..(at + CLUSTER).min(image.len())];
            let mut data = ClusterData::default();
            for (nth, block) in cluster.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|&b| b != 0)) {
                data.blocks |= 1 << nth;
                let end = data.bytes.len() + BLOCK;
                data.bytes.extend_from_slice(block);
                data.bytes.resize(end, 0);
            }
            data
        };
        match fetch.wanted {
            Wanted::Cluster { cluster } => {
                self.backend.fetched += 1;
                Fetched::Cluster(blocks(cluster))
            }
            Wanted::Map { range } => {
                let any = |index: u32| u128::from(blocks(range * RANGE + index).blocks != 0) << index;
                let data = (0..RANGE).map(any).fold(0, |all, one| all | one);
                let ranges = (image.len() as u64).div_ceil(u64::from(RANGE) * CLUSTER as u64) as u32;
                Fetched::Map(RangeMap { data, next: Some(range + 1).filter(|&next| next < ranges) })
            }
        }
    }
}
