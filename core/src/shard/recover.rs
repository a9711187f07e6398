//! Opening a shard: headers, the image of the chosen checkpoint, the journal, the crash log. No map page is read (H6).
//!
//! ```text
//! Headers -> Chunks* (of an older header if the newest image is bad) -> Chunks* (of the header before) -> Journal* -> Void* -> Opened
//! ```
//! What the checkpoint before the chosen one names stays held until the next one is durable, as it was before the process ended: it
//! is what an opening falls back to if the chosen one rots (H14). A header that was passed over is voided: the shard goes on
//! without holding what it names, so no later opening may take it, even if it reads again.
//!
//! Sequential reads through one buffer. A shard that has never been written recovers like any other: no header, an empty journal.
//! What is read is taken as durable: the pool's opening has made it so, by a barrier on each device after the process before was
//! certainly gone. Damage never stops the shard: volumes that lost records are faulted, the others come up (I4).

mod fall_back;

use std::collections::BTreeSet;
use std::sync::Arc;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, FileId, Io, IoError, Op, Payload};
use thiserror::Error;
use uuid::Uuid;

use self::fall_back::Before;
use super::api::{RecordLog, ShardConfig, TokenBase};
use super::background::Background;
use super::checkpoint::{Checkpoint, Roots};
use super::commit::Commit;
use super::mapped::Mapped;
use super::nodes::NodeCache;
use super::parts::Run;
use super::scratch::{RESERVE_BYTES, Scratch};
use super::{Parts, Shard};
use crate::checkpoint::{
    CheckpointHeader, ChunkRef, Image, RING_BYTES, decode_image, decode_index, join_chunks, read_ring,
};
use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId, VolumeId};
use crate::journal::{RecoverError, Ring, VolumeList, recover};
use crate::map::{BadRecord, Decoded, Record};
use crate::space::{Geometry, Place, SlabId, Space, Ticket, UnknownPlace};
use crate::volume::VolumeRecord;

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Which device.
    pub file: FileId,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Everything that a shard is opened with.
pub struct RecoverySpec<L> {
    /// Which shard.
    pub id: ShardId,
    /// For its operations, during recovery too.
    pub tokens: TokenBase,
    /// Bounds and times.
    pub config: ShardConfig,
    /// The pool's.
    pub pool: Uuid,
    /// This boot, durable in every superblock.
    pub generation: u32,
    /// The pool's slabs.
    pub geometry: Arc<Geometry>,
    /// Clusters never given to data.
    pub reserve: u64,
    /// Its ring of checkpoint headers.
    pub headers: Region,
    /// Its journal.
    pub journal: Region,
    /// Slabs that the catalog says are its own.
    pub slabs: Vec<SlabId>,
    /// The catalog's volumes with stripes here.
    pub volumes: Vec<Arc<VolumeRecord>>,
    /// Volumes that are removed and perhaps not yet erased.
    pub removed: Vec<VolumeId>,
    /// Volumes, removed ones too, of which the catalog knows that this shard has lost records.
    pub suspect: Vec<VolumeId>,
    /// What survived the process.
    pub log: L,
}

/// A shard that is open.
pub struct Opened<L> {
    /// Ready for parts.
    pub shard: Shard<L>,
    /// What was damaged or repaired, to be told.
    pub notes: Vec<String>,
    /// Volumes that lost records and answer faults only.
    pub faulted: Vec<VolumeId>,
    /// Records replayed from the journal and from the crash log.
    pub replayed: (usize, usize),
}

/// How far the opening of a shard has come.
pub enum Progress<L> {
    /// Another read is in flight.
    Reading(Box<Recovery<L>>),
    /// Done.
    Opened(Box<Opened<L>>),
}

/// Why a shard cannot be opened at all.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No buffers for it.
    #[error("shard {0}: the reactor's buffer pool cannot spare {1} bytes; make the pool larger or the shards fewer")]
    Buffers(ShardId, usize),
    /// The device does not read.
    #[error("shard {shard}: cannot read {what}: {source}")]
    Read {
        /// Whose.
        shard: ShardId,
        /// What was read.
        what: &'static str,
        /// The device's error.
        source: IoError,
    },
    /// A header that was passed over cannot be voided.
    #[error("shard {shard}: cannot void a checkpoint header that was passed over: {source}")]
    Void {
        /// Whose.
        shard: ShardId,
        /// The device's error.
        source: IoError,
    },
    /// A checkpoint was made, and no image that a header names is whole.
    #[error("shard {shard}: none of its checkpoints can be read: {why}")]
    NoCheckpoint {
        /// Whose.
        shard: ShardId,
        /// Of each.
        why: String,
    },
    /// The journal must not be replayed.
    #[error(transparent)]
    Journal(#[from] RecoverError),
    /// The crash log has a record that is none.
    #[error("shard {0}: crash log: {1}")]
    Log(ShardId, BadRecord),
    /// The map names a place outside of the shard's slabs.
    #[error("shard {0}: {1}")]
    Place(ShardId, UnknownPlace),
}

enum Phase {
    Headers,
    /// Reads the chunks that `refs` name; `level` counts down to the image.
    Chunks {
        refs: Vec<ChunkRef>,
        level: u16,
        read: Vec<Vec<u8>>,
    },
    /// Writes over headers that were passed over. The journal is here.
    Void {
        journal: Vec<u8>,
    },
    Journal {
        bytes: Vec<u8>,
    },
    Done,
}

/// A shard that is being opened.
pub struct Recovery<L> {
    spec: RecoverySpec<L>,
    seed: Seed,
    phase: Phase,
    bufs: Vec<Buf>,
    /// The front buffer's rest while the front is at the device.
    rest: Option<Buf>,
    /// Headers that may be chosen, newest first; the first is being tried.
    headers: Vec<CheckpointHeader>,
    /// The image of the first header, and the clusters of its chunks.
    image: Image,
    chunks: Vec<Place>,
    /// The image of the first header is here: what is read now is that of the header before.
    chosen: bool,
    before: Option<Before>,
    /// Headers that are whole and name what is not.
    passed: Vec<CheckpointHeader>,
    notes: Vec<String>,
    why: String,
}

impl<L: RecordLog> Recovery<L> {
    /// Starts reading. Completions with the shard's tokens go to [`Recovery::on_completion`].
    pub fn start<I: Io>(io: &mut I, spec: RecoverySpec<L>) -> Result<Recovery<L>, OpenError> {
        let pool = io.buffers();
        let bufs: Vec<Buf> = (0..3).filter_map(|_| pool.get(RESERVE_BYTES)).collect();
        if bufs.len() < 3 {
            return Err(OpenError::Buffers(spec.id, 3 * RESERVE_BYTES));
        }
        let seed = Seed::pool(spec.pool).shard(spec.id);
        let Region { file, offset, len } = spec.headers;
        assert_eq!(len as usize, RING_BYTES, "the region of a header ring");
        let mut recovery = Recovery {
            spec,
            seed,
            phase: Phase::Headers,
            bufs,
            rest: None,
            headers: Vec::new(),
            image: Image::default(),
            chunks: Vec::new(),
            chosen: false,
            before: None,
            passed: Vec::new(),
            notes: Vec::new(),
            why: String::new(),
        };
        recovery.read(io, file, offset, RING_BYTES);
        Ok(recovery)
    }

    fn read<I: Io>(&mut self, io: &mut I, file: FileId, offset: u64, len: usize) {
        let mut buf = self.bufs.pop().expect("one read at a time");
        self.rest = Some(buf.split_off(len));
        io.submit(self.spec.tokens.token(0), Op::Read { file, offset, data: buf.into() });
    }

    /// A read came back; the shard, once it is open.
    pub fn on_completion<I: Io>(mut self, io: &mut I, completion: Completion) -> Result<Progress<L>, OpenError> {
        let Payload::Data(data) = completion.payload else { panic!("a read gives its buffer back") };
        let mut buf = data.into_own();
        let content = buf.to_vec();
        buf.join(self.rest.take().expect("what was split off"));
        self.bufs.push(buf);
        let shard = self.spec.id;
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Headers => {
                completion.result.map_err(|source| OpenError::Read {
                    shard,
                    what: "the checkpoint headers",
                    source,
                })?;
                let ring = read_ring(&content, shard, self.seed, &self.spec.geometry);
                let damaged = ring.damaged.iter();
                self.notes.extend(damaged.map(|(slot, why)| format!("shard {shard}: checkpoint header {slot}: {why}")));
                self.headers = ring.newest_first;
                self.begin_image(io)?;
            }
            Phase::Chunks { refs, level, mut read } => {
                if let Err(error) = completion.result {
                    self.give_up_image(io, &error.to_string())?;
                } else {
                    read.push(content);
                    self.next_chunk(io, refs, level, read)?;
                }
            }
            Phase::Void { journal } => {
                completion.result.map_err(|source| OpenError::Void { shard, source })?;
                return self.void_or_finish(io, journal);
            }
            Phase::Journal { mut bytes } => {
                completion.result.map_err(|source| OpenError::Read { shard, what: "the journal", source })?;
                bytes.extend_from_slice(&content);
                if bytes.len() as u64 == self.spec.journal.len {
                    self.check_fall_back(&bytes)?;
                    return self.void_or_finish(io, bytes);
                }
                self.read_journal(io, bytes);
            }
            Phase::Done => unreachable!("nothing is read any more"),
        }
        Ok(Progress::Reading(Box::new(self)))
    }

    /// Starts on the image of the first header that is left.
    fn begin_image<I: Io>(&mut self, io: &mut I) -> Result<(), OpenError> {
        let Some(header) = self.headers.first() else {
            return Err(OpenError::NoCheckpoint { shard: self.spec.id, why: std::mem::take(&mut self.why) });
        };
        let (refs, level) = (header.chunks.clone(), header.level);
        self.chunks.clear();
        self.next_chunk(io, refs, level, Vec::new())
    }

    fn begin_journal<I: Io>(&mut self, io: &mut I) {
        self.read_journal(io, Vec::with_capacity(self.spec.journal.len as usize));
    }

    /// Whichever image is being read cannot be.
    fn give_up_image<I: Io>(&mut self, io: &mut I, why: &str) -> Result<(), OpenError> {
        if !self.chosen {
            return self.give_up_header(io, why);
        }
        let before = self.before.take().expect("it is being read");
        let (shard, generation) = (self.spec.id, before.header.generation);
        self.notes.push(format!("shard {shard}: checkpoint {generation}, to fall back to: {why}"));
        self.begin_journal(io);
        Ok(())
    }

    fn give_up_header<I: Io>(&mut self, io: &mut I, why: &str) -> Result<(), OpenError> {
        let header = self.headers.remove(0);
        self.passed.push(header.clone());
        let note = format!("shard {}: checkpoint {}: {why}", self.spec.id, header.generation);
        self.why = format!("{}{}{note}", self.why, if self.why.is_empty() { "" } else { "; " });
        self.notes.push(note);
        self.begin_image(io)
    }

    /// Reads the next chunk of this level, or judges the level when all are here.
    fn next_chunk<I: Io>(
        &mut self,
        io: &mut I,
        refs: Vec<ChunkRef>,
        level: u16,
        read: Vec<Vec<u8>>,
    ) -> Result<(), OpenError> {
        if let Some(next) = refs.get(read.len()) {
            let (file, offset, len) = (next.place.file(), next.place.offset(), next.bytes as usize);
            self.phase = Phase::Chunks { refs, level, read };
            self.read(io, file, offset, len);
            return Ok(());
        }
        let places = refs.iter().map(|chunk| chunk.place);
        let header = match &mut self.before {
            None => {
                self.chunks.extend(places);
                &self.headers[0]
            }
            Some(before) => {
                before.chunks.extend(places);
                &before.header
            }
        };
        let bytes: Vec<&[u8]> = read.iter().map(Vec::as_slice).collect();
        let stream = match join_chunks(header, level, &refs, &bytes, self.spec.id, self.seed) {
            Ok(stream) => stream,
            Err(error) => return self.give_up_image(io, &error.to_string()),
        };
        if level > 0 {
            return match decode_index(&stream, &self.spec.geometry) {
                Ok(refs) => self.next_chunk(io, refs, level - 1, Vec::new()),
                Err(error) => self.give_up_image(io, &error.to_string()),
            };
        }
        let image = match decode_image(&stream, &self.spec.geometry) {
            Ok(image) => image,
            Err(error) => return self.give_up_image(io, &error.to_string()),
        };
        let Some(before) = &mut self.before else {
            self.image = image;
            return self.begin_before(io);
        };
        let pages = |image: &Image| {
            let places = image.table.iter().flat_map(|(_, pages)| pages.iter()).map(|page| page.place);
            let mut places: Vec<Place> = places.collect();
            places.sort_unstable();
            places
        };
        let named = pages(&self.image);
        before.pages = pages(&image);
        before.pages.dedup();
        before.pages.retain(|page| named.binary_search(page).is_err());
        self.begin_journal(io);
        Ok(())
    }

    fn read_journal<I: Io>(&mut self, io: &mut I, bytes: Vec<u8>) {
        let Region { file, offset, len } = self.spec.journal;
        let next = (len - bytes.len() as u64).min(RESERVE_BYTES as u64);
        let offset = offset + bytes.len() as u64;
        self.phase = Phase::Journal { bytes };
        self.read(io, file, offset, next as usize);
    }

    /// Everything has been read: what the records say is put on top of the image.
    fn finish<I: Io>(mut self, io: &mut I, journal: &[u8]) -> Result<Opened<L>, OpenError> {
        let RecoverySpec { id, generation, .. } = self.spec;
        let geometry = Arc::clone(&self.spec.geometry);
        let header = self.headers.remove(0);
        let recovered = match self.replay_from_before(journal, &header) {
            Some(recovered) => recovered,
            None => recover(journal, id, generation, self.seed, header.start, &geometry)?,
        };
        let mut damage: Vec<VolumeList> = recovered.damage.iter().map(|damage| damage.volumes.clone()).collect();
        self.notes.extend(recovered.damage.iter().map(|damage| {
            format!(
                "shard {id}: journal group {} at block {} is lost: {:?}",
                damage.sequence, damage.block, damage.volumes
            )
        }));
        if let Some(torn) = recovered.torn {
            self.notes.push(format!("shard {id}: journal group {torn} was torn and has been cut off"));
        }
        let durable = recovered.ring.durable();
        let (kept, missing) = self.kept_records(durable, &geometry)?;
        if missing {
            self.notes.push(format!("shard {id}: records beyond {durable} were durable and are lost"));
            damage.push(VolumeList::Any);
        }
        let replayed = (recovered.records.len(), kept.len());
        let lost = !damage.is_empty();
        let (mut space, mapped, strays) =
            self.space(&recovered.records, &kept, durable, lost).map_err(|error| OpenError::Place(id, error))?;
        if let Some(slab) = strays.filter(|_| !lost) {
            // It was given back when it was empty: what emptied it is gone from the journal, like any other end of it.
            self.notes
                .push(format!("shard {id}: records that emptied slab {slab}, which is not its own any more, are lost"));
            damage.push(VolumeList::Any);
        }
        self.hold_before(&mut space);
        let mut faulted = self.losers(&damage);
        self.spec.suspect.extend(&faulted);
        faulted.retain(|id| self.spec.volumes.iter().any(|volume| volume.id == *id));
        let notes = std::mem::take(&mut self.notes);
        let mut shard = self.assemble(io, &header, recovered.ring, recovered.records, kept, (space, mapped));
        if missing {
            shard.commit.distrust_log();
        }
        for volume in &faulted {
            shard.fault_volume(*volume, format!("shard {id}: records of its map are lost"), &mut Vec::new());
        }
        Ok(Opened { shard, notes, faulted, replayed })
    }

    /// Records that survived the process beyond what the journal has, and whether some in between are missing: then the journal
    /// has lost its end, since the log forgets only what was durable.
    fn kept_records(&mut self, durable: Lsn, geometry: &Geometry) -> Result<(Vec<(Lsn, Record)>, bool), OpenError> {
        let mut kept: Vec<(Lsn, Record)> = Vec::new();
        for (lsn, bytes) in self.spec.log.replay() {
            let next = Lsn(durable.0 + 1 + kept.len() as u64);
            if lsn < next {
                continue;
            }
            if lsn > next {
                return Ok((kept, true));
            }
            match Record::decode(&bytes, geometry).map_err(|error| OpenError::Log(self.spec.id, error))? {
                (Decoded::Record(record), _) => kept.push((lsn, record)),
                (Decoded::Skipped, _) => kept.push((lsn, Record::Free { places: Vec::new() })),
            }
        }
        Ok((kept, false))
    }

    /// The bitmaps and counts of the image with what the records did to them.
    fn space(
        &self,
        records: &[(Lsn, Record)],
        kept: &[(Lsn, Record)],
        durable: Lsn,
        lost: bool,
    ) -> Result<(Space, Mapped, Option<SlabId>), UnknownPlace> {
        let mut mapped = Mapped::recovered(&self.image.mapped);
        let mut space = Space::new(Arc::clone(&self.spec.geometry), self.spec.reserve);
        self.spec.slabs.iter().for_each(|&slab| space.add_slab(slab));
        let former = self.former_slabs(records);
        former.iter().for_each(|&slab| space.add_slab(slab));
        for bitmap in &self.image.bitmaps {
            let unknown = UnknownPlace(self.spec.geometry.place(bitmap.slab, 0));
            space.load_bitmap(bitmap).map_err(|_| unknown)?;
        }
        for (lsn, record) in records {
            let mut by = 0;
            for &place in record.freed() {
                by -= i64::from(space.mark_free(place)?);
            }
            if let Some(place) = record.used() {
                by += i64::from(space.mark_used(place)?);
            }
            // Up to there the image has counted; beyond, the bitmap knows what is new.
            if *lsn > self.image.mapped.lsn
                && let Some(volume) = record.volume()
            {
                mapped.change(*lsn, volume, by);
            }
        }
        mapped.settle(durable);
        let mut strays = None;
        for &slab in &former {
            if space.disown(slab) {
                strays = Some(slab);
            }
        }
        // What these free is mapped as far as the device knows: it goes through quarantine like any other.
        for (lsn, record) in kept {
            let used = record.used().map_or(Ok(false), |place| space.mark_used(place))?;
            if let Some(volume) = record.volume() {
                // The record that had mapped what this frees may be lost.
                let freed = record.freed().iter().filter(|&&place| space.is_in_use(place)).count();
                mapped.change(*lsn, volume, i64::from(used) - freed as i64);
            }
        }
        if lost {
            // A record that freed what has become a page or a chunk since may be among those lost.
            let pages = self.image.table.iter().flat_map(|(_, pages)| pages.iter()).map(|page| page.place);
            for place in pages.chain(self.chunks.iter().copied()) {
                let (slab, cluster) = self.spec.geometry.slab_of(place).ok_or(UnknownPlace(place))?;
                space.mark_free(self.spec.geometry.place(slab, cluster))?;
            }
        }
        for page in self.image.table.iter().flat_map(|(_, pages)| pages.iter()) {
            space.mark_page(page.place)?;
        }
        self.chunks.iter().try_for_each(|&chunk| space.mark_chunk(chunk))?;
        space.recovered(durable);
        for (lsn, record) in kept {
            // The record that had mapped it may be lost: then it is free already.
            let mapped = record.freed().iter().filter(|&&place| space.is_in_use(place)).copied().collect::<Vec<_>>();
            mapped.into_iter().for_each(|place| space.free(place, *lsn, Ticket(0)));
        }
        Ok((space, mapped, strays))
    }

    /// Slabs that this shard has given back (H7) and that its checkpoint or its journal still name. They were empty when it did, so
    /// they are at the end of the replay.
    fn former_slabs(&self, records: &[(Lsn, Record)]) -> BTreeSet<SlabId> {
        let slab_of = |place: Place| self.spec.geometry.slab_of(place).map(|(slab, _)| slab);
        let places = records.iter().flat_map(|(_, record)| record.freed().iter().copied().chain(record.used()));
        let bitmaps = self.image.bitmaps.iter().map(|bitmap| bitmap.slab);
        let mut named: BTreeSet<SlabId> = places.filter_map(slab_of).chain(bitmaps).collect();
        named.retain(|slab| !self.spec.slabs.contains(slab));
        named
    }

    /// Volumes that lost records, those being erased included.
    fn losers(&self, damage: &[VolumeList]) -> Vec<VolumeId> {
        let mut faulted: Vec<VolumeId> = Vec::new();
        for list in damage {
            match list {
                VolumeList::Some(list) => faulted.extend(list),
                VolumeList::Any => {
                    faulted.extend(self.spec.volumes.iter().map(|volume| volume.id).chain(self.spec.removed.clone()));
                }
            }
        }
        faulted.sort_unstable();
        faulted.dedup();
        faulted
    }

    fn assemble<I: Io>(
        mut self,
        io: &mut I,
        root: &CheckpointHeader,
        ring: Ring,
        mut records: Vec<(Lsn, Record)>,
        kept: Vec<(Lsn, Record)>,
        (space, mapped): (Space, Mapped),
    ) -> Shard<L> {
        let files = io.files().to_vec();
        let (pages_before, chunks_before) =
            self.before.take().map(|before| (before.pages, before.chunks)).unwrap_or_default();
        let region = |region: Region| Run { file: region.file.0, offset: region.offset };
        let mut buf = || self.bufs.pop().expect("three were taken");
        let covered = ring.durable();
        let dirty = !records.is_empty() || !kept.is_empty();
        let roots = Roots {
            generation: root.generation,
            start: root.start,
            chunks: std::mem::take(&mut self.chunks),
            chunks_before,
            pages_before,
        };
        let covered = if dirty { Lsn(root.start.lsn.0 - 1) } else { covered };
        let mut commit = Commit::new(ring, region(self.spec.journal), buf());
        let checkpoint = Checkpoint::new(region(self.spec.headers), roots, covered, buf());
        let scratch = Scratch::new(io.buffers(), buf());
        for (lsn, record) in &kept {
            let again = commit.push_kept(record);
            assert_eq!(*lsn, again, "kept records follow the journal");
        }
        records.extend(kept);
        let background = Background::recovered(self.image.tidied);
        let nodes = NodeCache::new(self.image.table, records, self.spec.config.map_cache_bytes);
        let mut shard = Shard::new(
            self.spec,
            self.seed,
            &files,
            Parts { space, mapped, nodes, commit, checkpoint, scratch, background },
        );
        shard.now = io.now();
        shard
    }
}
