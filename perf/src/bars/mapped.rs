//! A pool as a target leaves it that was killed with much mapped: real map pages, page table, bitmaps and a journal that has to
//! be replayed, written with the target's own encoders; the data is a hole in the file and reads as zeros.
//!
//! Invariant: what is written is what the target itself would have written: `ringway inspect` finds nothing wrong with it.

use std::path::{Path, PathBuf};

use ringway_core::catalog::CatalogRecord;
use ringway_core::checkpoint::{CHUNKS_MAX, CheckpointHeader, Chunks, HEADER_BYTES, MappedCounts, encode_image};
use ringway_core::checksum::Seed;
use ringway_core::ids::{Epoch, Lsn, ShardId, VolumeId};
use ringway_core::journal::{Group, Pressure, Ring};
use ringway_core::limits::{BLOCK, CLUSTER, CLUSTERS_PER_RANGE, STRIPE};
use ringway_core::map::{
    BlockState, BlockStates, MapNode, NodeKey, NodePages, PAGE_BYTES, PageRef, PageTable, Record, Version, encode_node,
};
use ringway_core::pool::blocking::{barrier, write};
use ringway_core::pool::{self, OpenOptions, OpenPool};
use ringway_core::space::{Place, Space};
use ringway_core::target::{Allocation, FormatOptions, PoolSpec, format};
use ringway_core::volume::VolumeRecord;
use ringway_reactor::buf::BufPoolConfig;
use ringway_reactor::files::{Access, OpenFile};
use ringway_reactor::io::FileId;
use ringway_reactor::uring::{UringConfig, UringIo};
use tempfile::TempDir;
use uuid::Uuid;

use super::Failed;
use crate::pools;

/// The volume that is mapped.
pub(super) const VOLUME: &str = "bench";
/// Slabs of which shards have more than others, the reserve, and everything that is not data.
const BEYOND_DATA: u64 = 4 << 30;
/// Named by one record of the catalog's log at a time.
const SLABS_A_FRAME: usize = 1024;
const META: FileId = FileId(0);
/// Of the checkpoint; format writes number 1.
const GENERATION: u64 = 2;

/// What the journal has beyond the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing.
    None,
    /// As much as there can be before the next checkpoint begins.
    Full,
}

/// The pool; removed when dropped.
#[derive(Debug)]
pub(super) struct MappedPool {
    folder: TempDir,
    /// Map nodes that were written, of all shards.
    pub(super) nodes: u64,
    /// Records that have to be replayed.
    pub(super) records: u64,
}

impl MappedPool {
    pub(super) fn path(&self) -> Result<&str, Failed> {
        self.folder.path().to_str().ok_or_else(|| "the folder's name is not text".into())
    }

    /// Makes it below `folder`: a volume of `bytes`, every cluster of which is mapped.
    pub(super) fn make(folder: &Path, bytes: u64, tail: Tail) -> Result<MappedPool, Failed> {
        let folder = tempfile::tempdir_in(folder)?;
        let options = FormatOptions {
            size: Some(bytes + bytes / 16 + BEYOND_DATA),
            allocation: Allocation::Sparse,
            ..FormatOptions::default()
        };
        let spec = PoolSpec::Path(folder.path().to_owned());
        format(&spec, &options, &mut |_| {})?;
        let file = only_file(folder.path())?;
        let mut made = MappedPool { folder, nodes: 0, records: 0 };
        {
            let buffers = pools::rent(BufPoolConfig { classes: vec![(4096, 4), (256 << 10, 2)] });
            let mut io = UringIo::new(&UringConfig::new(vec![buffers.pool()], 0))?;
            io.add_file(&OpenFile::open(&file, Access::ReadWrite, &mut |_| {})?)?;
            // Opened and never closed: this boot was killed.
            let mut pool = pool::open(&mut io, &OpenOptions::default())?;
            let volume = write_catalog(&mut io, &mut pool, bytes)?;
            for nth in 0..volume.shards.len() {
                ShardWriter::new(&mut io, &pool, &volume, nth).write(tail, &mut made)?;
            }
            barrier(&mut io, META)?;
        }
        // The ring gives the file up a moment after it is dropped: what follows is not to wait for that.
        drop(OpenFile::open(&file, Access::ReadWrite, &mut |_| {})?);
        Ok(made)
    }
}

fn only_file(folder: &Path) -> Result<PathBuf, Failed> {
    let mut files = std::fs::read_dir(folder)?;
    let file = files.next().ok_or("formatting made no file")??.path();
    if files.next().is_some() { Err("formatting made more than one file".into()) } else { Ok(file) }
}

/// The volume, and an owner for every slab.
fn write_catalog(io: &mut UringIo, pool: &mut OpenPool, bytes: u64) -> Result<VolumeRecord, Failed> {
    let shards = pool.layout.shards;
    let volume = VolumeRecord {
        id: VolumeId(pool.catalog.next_volume()),
        name: VOLUME.into(),
        uuid: Uuid::new_v4(),
        size: bytes,
        lba_bytes: BLOCK as u32,
        shards: (0..shards).map(ShardId).collect(),
        created_unix_s: 0,
        exclusive: false,
        allowed_hosts: Vec::new(),
        cuts: Vec::new(),
        dead: Vec::new(),
        view: None,
        parent: None,
    };
    let slabs = pool.layout.geometry.slabs().filter(|&slab| pool.catalog.owner(slab).is_none());
    let owned = slabs.enumerate().map(|(n, slab)| (slab, ShardId((n % usize::from(shards)) as u16)));
    let mut records: Vec<_> = owned.map(|(slab, shard)| CatalogRecord::SlabOwned(slab, Some(shard))).collect();
    records.push(CatalogRecord::VolumeCreated(volume.clone()));
    for batch in records.chunks(SLABS_A_FRAME) {
        batch.iter().try_for_each(|record| pool.catalog.apply(record))?;
        let frame = pool.log.append(batch)?;
        for start in pool.layout.catalog {
            write(io, META, start + frame.offset, &frame.bytes)?;
        }
        barrier(io, META)?;
    }
    Ok(volume)
}

/// Writes one shard as its checkpoint and its journal would have it.
struct ShardWriter<'a> {
    io: &'a mut UringIo,
    pool: &'a OpenPool,
    volume: &'a VolumeRecord,
    shard: ShardId,
    seed: Seed,
    /// Clusters of the volume on this shard.
    clusters: u32,
    space: Space,
    /// Clusters of the shard's slabs that nothing has taken.
    free: Box<dyn Iterator<Item = Place> + 'a>,
    /// Map pages of the last cluster of them that are not written yet.
    pages: Vec<u8>,
    page_cluster: Option<Place>,
    /// The data of each cluster, of which the journal tells again.
    places: Vec<Place>,
}

impl<'a> ShardWriter<'a> {
    fn new(io: &'a mut UringIo, pool: &'a OpenPool, volume: &'a VolumeRecord, nth: usize) -> ShardWriter<'a> {
        let (shard, shards) = (volume.shards[nth], volume.shards.len() as u64);
        let stripes = volume.size.div_ceil(STRIPE);
        let mine = stripes / shards + u64::from(stripes % shards > nth as u64);
        let geometry = &pool.layout.geometry;
        let mut space = Space::new(geometry.clone(), pool.layout.reserve_clusters.into());
        pool.catalog.slabs_of(shard).for_each(|slab| space.add_slab(slab));
        let of_slab = move |slab| (0..geometry.clusters_per_slab()).map(move |cluster| geometry.place(slab, cluster));
        ShardWriter {
            io,
            pool,
            volume,
            shard,
            seed: Seed::pool(pool.uuid).shard(shard),
            clusters: (mine * (STRIPE / CLUSTER)) as u32,
            space,
            free: Box::new(pool.catalog.slabs_of(shard).flat_map(of_slab)),
            pages: Vec::new(),
            page_cluster: None,
            places: Vec::new(),
        }
    }

    fn write(mut self, tail: Tail, made: &mut MappedPool) -> Result<(), Failed> {
        let mut table = PageTable::default();
        for range in 0..self.clusters.div_ceil(CLUSTERS_PER_RANGE) {
            let key = NodeKey { volume: self.volume.id, range };
            let node = self.node(key)?;
            let pages = self.page(&node)?;
            table.insert(key, pages);
        }
        self.flush_pages()?;
        made.nodes += table.len() as u64;
        let clusters = vec![(self.volume.id, u64::from(self.clusters))];
        let mapped = MappedCounts { lsn: Lsn(self.covered()), clusters };
        let stream = encode_image(&table, &self.space.image(), &mapped, &[]);
        let chunks = Chunks::image(stream, self.shard, GENERATION, self.seed);
        let (start, records) = self.journal(tail)?;
        made.records += records;
        let header = CheckpointHeader {
            generation: GENERATION,
            boot: self.pool.generation,
            start,
            level: chunks.level(),
            image_bytes: chunks.stream_bytes(),
            chunks: self.chunks(&chunks)?,
        };
        barrier(self.io, META)?;
        let mut bytes = vec![0; HEADER_BYTES];
        header.encode(self.shard, self.seed, &mut bytes);
        Ok(write(self.io, META, self.pool.layout.checkpoint_ring(self.shard) + header.slot(), &bytes)?)
    }

    /// The last record that the checkpoint has: what the pages have was told by the first records.
    fn covered(&self) -> u64 {
        u64::from(CLUSTERS_PER_RANGE.min(self.clusters))
    }

    fn take(&mut self) -> Result<Place, Failed> {
        self.free.next().ok_or_else(|| format!("the slabs of shard {} are full", self.shard).into())
    }

    /// One block of each cluster was written, in order.
    fn node(&mut self, key: NodeKey) -> Result<MapNode, Failed> {
        let mut node = MapNode::new(key);
        for index in 0..CLUSTERS_PER_RANGE.min(self.clusters - key.cluster(0)) {
            let place = self.take()?;
            self.space.mark_used(place)?;
            self.places.push(place);
            let record = self.record(key.cluster(index), 1);
            node.apply(Lsn(u64::from(index) + 1), &record);
        }
        Ok(node)
    }

    /// The first `blocks` of a cluster are data.
    fn record(&self, cluster: u32, blocks: u32) -> Record {
        let version = Version {
            birth: Epoch::first_of(self.pool.generation),
            place: self.places[cluster as usize],
            states: BlockStates::ABSENT.with(0..blocks, BlockState::Data),
        };
        Record::Set { volume: self.volume.id, cluster, version, freed: Place::NONE }
    }

    /// Encodes the one page of a node; a cluster full of them is written at once.
    fn page(&mut self, node: &MapNode) -> Result<NodePages, Failed> {
        if self.pages.len() as u64 == CLUSTER {
            self.flush_pages()?;
        }
        let cluster = match self.page_cluster {
            Some(cluster) => cluster,
            None => *self.page_cluster.insert(self.free.next().ok_or("no cluster for map pages is left")?),
        };
        let at = self.pages.len();
        self.pages.resize(at + PAGE_BYTES, 0);
        let crc = encode_node(node, 0, GENERATION, self.seed, &mut self.pages[at..]);
        let place = cluster.page((at / PAGE_BYTES) as u32);
        Ok(NodePages::new(GENERATION, vec![PageRef { place, crc }]))
    }

    fn flush_pages(&mut self) -> Result<(), Failed> {
        if let Some(cluster) = self.page_cluster.take() {
            write(self.io, META, cluster.offset(), &self.pages)?;
            self.pages.clear();
        }
        Ok(())
    }

    /// The image's chunks, each in a cluster of its own.
    fn chunks(&mut self, chunks: &Chunks) -> Result<Vec<ringway_core::checkpoint::ChunkRef>, Failed> {
        if chunks.count() > CHUNKS_MAX {
            return Err("the image needs an index; map less, or in more shards".into());
        }
        let mut refs = Vec::new();
        for nth in 0..chunks.count() {
            let place = self.take()?;
            let mut bytes = vec![0; chunks.bytes(nth)];
            refs.push(chunks.encode(nth, place, &mut bytes));
            write(self.io, META, place.offset(), &bytes)?;
        }
        Ok(refs)
    }

    /// Groups from the first on, up to what would begin a checkpoint; where replay starts, and how many records it finds.
    fn journal(&mut self, tail: Tail) -> Result<(ringway_core::journal::Position, u64), Failed> {
        let layout = &self.pool.layout;
        let (region, blocks) = (layout.journal(self.shard), layout.journal_blocks());
        let mut ring = Ring::new(blocks, self.shard, self.pool.generation, self.seed);
        let covered = self.covered();
        let mut lsn = 1;
        let mut group = Group::default();
        loop {
            let record = if lsn <= covered {
                self.record(lsn as u32 - 1, 1)
            } else {
                // A second block of clusters all over the volume; the multiplier is prime to any number of them.
                self.record((lsn * 2_654_435_761 % u64::from(self.clusters)) as u32, 2)
            };
            let last = lsn == covered && tail == Tail::None;
            let pushed = group.push(Lsn(lsn), &record);
            lsn += u64::from(pushed);
            if !pushed || last {
                let mut bytes = vec![0; group.blocks() as usize * BLOCK as usize];
                let sealed = ring.seal(&group, &mut bytes)?;
                write(self.io, META, region + Ring::offset(sealed.block), &bytes)?;
                ring.written();
                group = Group::default();
                if last || ring.pressure() > Pressure::None {
                    break;
                }
            }
        }
        Ok((ring.position_of(Lsn(covered + 1)), ring.durable().0 - covered))
    }
}
