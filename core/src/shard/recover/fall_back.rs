//! The checkpoint before the newest: what an opening falls back to, and what it keeps so that the next one can (H14).
//!
//! Invariants: pages, chunks and journal of the checkpoint before the chosen one are held until the next one is durable, as they were
//! before the process ended; a header that was passed over is void before anything it names is used; where falling back would
//! lose records, nothing is touched.

use ringway_reactor::io::{Io, Op};

use super::{OpenError, Phase, Progress, RecordLog, Recovery, RecoverySpec, Region};
use crate::checkpoint::{CheckpointHeader, HEADER_BYTES};
use crate::journal::{Recovered, recover};
use crate::space::{CLASS_CLUSTER, Place, Space};

/// The checkpoint before the chosen one: what only it names.
pub(super) struct Before {
    pub(super) header: CheckpointHeader,
    pub(super) pages: Vec<Place>,
    pub(super) chunks: Vec<Place>,
}

impl<L: RecordLog> Recovery<L> {
    /// Goes on to the image of the header before the chosen one, if that is there.
    pub(super) fn begin_before<I: Io>(&mut self, io: &mut I) -> Result<(), OpenError> {
        self.chosen = true;
        match self.headers.get(1) {
            Some(header) if header.generation + 1 == self.headers[0].generation => {
                let (header, refs, level) = (header.clone(), header.chunks.clone(), header.level);
                self.before = Some(Before { header, pages: Vec::new(), chunks: Vec::new() });
                self.next_chunk(io, refs, level, Vec::new())
            }
            _ => {
                self.begin_journal(io);
                Ok(())
            }
        }
    }

    /// A header that was passed over says how far the journal went. What lies between an older one and that must be whole: if it
    /// is not, nothing is touched, since the image that does not read now may read some other time.
    pub(super) fn check_fall_back(&self, journal: &[u8]) -> Result<(), OpenError> {
        let Some(end) = self.passed.iter().map(|passed| passed.start).max_by_key(|start| start.sequence) else {
            return Ok(());
        };
        let RecoverySpec { id: shard, generation, .. } = self.spec;
        let header = &self.headers[0];
        let recovered = recover(journal, shard, generation, self.seed, header.start, &self.spec.geometry)?;
        let reached = recovered.ring.sequence() >= end.sequence && recovered.ring.lsn_next() >= end.lsn;
        if recovered.damage.is_empty() && reached {
            return Ok(());
        }
        let lacks = format!("checkpoint {} reads, and its part of the journal is gone", header.generation);
        Err(OpenError::NoCheckpoint { shard, why: format!("{}; {lacks}", self.why) })
    }

    /// Sees to it that no later opening takes a header that was passed over; then the shard is put together.
    pub(super) fn void_or_finish<I: Io>(mut self, io: &mut I, journal: Vec<u8>) -> Result<Progress<L>, OpenError> {
        let Some(header) = self.passed.pop() else {
            return self.finish(io, &journal).map(|opened| Progress::Opened(Box::new(opened)));
        };
        let Region { file, offset, .. } = self.spec.headers;
        let mut buf = self.bufs.pop().expect("one operation at a time");
        self.rest = Some(buf.split_off(HEADER_BYTES));
        buf.fill(0);
        self.phase = Phase::Void { journal };
        let offset = offset + header.slot();
        io.submit(self.spec.tokens.token(0), Op::Write { file, offset, data: buf.into(), durable: true });
        Ok(Progress::Reading(Box::new(self)))
    }

    /// What the journal has from the chosen checkpoint on, with everything kept that the one before needs; `None` if that one is not
    /// to be had, or could not be replayed whole.
    pub(super) fn replay_from_before(&mut self, journal: &[u8], chosen: &CheckpointHeader) -> Option<Recovered> {
        let (id, generation) = (self.spec.id, self.spec.generation);
        let before = self.before.take()?;
        let start = before.header.start;
        let recovered = recover(journal, id, generation, self.seed, start, &self.spec.geometry).ok();
        let whole = recovered.filter(|recovered| {
            let ring = &recovered.ring;
            let reached = ring.sequence() >= chosen.start.sequence && ring.lsn_next() >= chosen.start.lsn;
            reached && recovered.damage.is_empty() && start.sequence <= chosen.start.sequence
        });
        let Some(mut recovered) = whole else {
            let why = "its part of the journal is gone";
            self.notes.push(format!("shard {id}: checkpoint {}, to fall back to: {why}", before.header.generation));
            return None;
        };
        recovered.records.retain(|&(lsn, _)| lsn >= chosen.start.lsn);
        self.before = Some(before);
        Some(recovered)
    }

    /// Keeps what only the checkpoint before names out of use, all of it or, where something else has some of it, nothing.
    pub(super) fn hold_before(&mut self, space: &mut Space) {
        let Some(before) = &self.before else { return };
        let metadata = before.pages.iter().chain(&before.chunks);
        if let Some(taken) = metadata.copied().find(|&place| !space.hold(place)) {
            for &page in before.pages.iter().take_while(|&&page| page != taken) {
                space.free_page(page);
            }
            for &chunk in before.chunks.iter().take_while(|&&chunk| chunk != taken && taken.class() == CLASS_CLUSTER) {
                space.free_chunk(chunk);
            }
            let (id, generation) = (self.spec.id, before.header.generation);
            self.notes.push(format!("shard {id}: checkpoint {generation}, to fall back to: {taken:?} is in use"));
            self.before = None;
        }
    }
}
