//! Removal of a volume, in the background: node by node its places are freed by records, then its nodes are forgotten.
//!
//! The catalog has recorded the removal before it is told here, and tells it again at each opening until [`Event::Erased`] has been
//! recorded too. So a crash between two nodes only means that the rest is done later.

use ringway_reactor::io::Io;

use super::Shard;
use super::api::{Event, RecordLog};
use super::nodes::Readiness;
use crate::ids::{Lsn, VolumeId};
use crate::map::{NodeKey, Record};
use crate::request::Status;
use crate::space::Ticket;

/// A volume on its way out.
#[derive(Debug)]
pub(super) struct Erasure {
    volume: VolumeId,
    /// Nodes not yet emptied; `None` until its last part has ended.
    todo: Option<Vec<NodeKey>>,
    /// The last record; erased when a checkpoint has it.
    last: Lsn,
    /// Records of its map were lost: a cluster that it names may be another's by now, so none is given back.
    suspect: bool,
    /// It is known to be a snapshot.
    snapshot: bool,
}

impl<L: RecordLog> Shard<L> {
    /// The catalog says that the volume is removed: its parts that have not started fail, and its space is freed in the background.
    pub fn on_volume_removed(&mut self, volume: VolumeId, out: &mut Vec<Event>) {
        self.calm = false;
        let known = self.volumes.remove(&volume);
        if let Some(known) = &known {
            self.forget_background(volume);
            self.forget_fetches(volume);
            self.views_may_have_changed(Some(&known.record), None);
        }
        let waiting: Vec<_> = self
            .parts
            .iter()
            .filter(|(_, state)| state.asked == volume && state.stamp.is_none())
            .map(|(key, _)| key)
            .collect();
        for key in waiting {
            self.finish(key, Status::VolumeGone, out);
        }
        if self.erasing.iter().all(|erasure| erasure.volume != volume) {
            let suspect = self.suspect.contains(&volume);
            let snapshot = known.is_some_and(|known| known.record.is_snapshot());
            self.erasing.push_back(Erasure { volume, todo: None, last: Lsn(0), suspect, snapshot });
        }
    }

    /// Empties nodes of the first volume in line while the journal has room.
    pub(super) fn advance_erasure<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        if self.fault.is_some() {
            return;
        }
        let Some(mut erasure) = self.erasing.pop_front() else { return };
        if self.erase(io, &mut erasure) {
            out.push(Event::Erased(erasure.volume));
            self.space_changed = true;
        } else {
            self.erasing.push_front(erasure);
        }
    }

    /// One step; true if nothing of the volume is left, durably.
    fn erase<I: Io>(&mut self, io: &mut I, erasure: &mut Erasure) -> bool {
        let volume = erasure.volume;
        let Some(todo) = &mut erasure.todo else {
            // A part that is at the device may still change the map.
            let parts = self.parts.iter().any(|(_, state)| state.part.volume == volume || state.asked == volume);
            if !parts && !self.background.works_on(volume) {
                erasure.todo = Some(self.nodes.of_volume(volume));
                erasure.last = self.commit.last();
            }
            // A snapshot has no nodes of its own, and had none before.
            return erasure.snapshot && erasure.todo.is_some();
        };
        while let Some(&key) = todo.last() {
            let condemned = self.nodes.stand_in_if_condemned(key);
            if self.require(io, key) != Readiness::Ready {
                return false;
            }
            let node = self.nodes.get(key).expect("it is ready");
            let mut records = if node.is_empty() && !condemned { Vec::new() } else { node.drop_records() };
            if erasure.suspect {
                records.iter_mut().for_each(Record::keep_freed);
            }
            if !self.journal_has_room(records.len()) {
                self.commit.force();
                self.checkpoint.want();
                return false;
            }
            for record in &records {
                let lsn = self.record(record);
                erasure.last = lsn;
                self.mapped.change(lsn, volume, -(record.freed().len() as i64));
                for &place in record.freed() {
                    self.space.free(place, lsn, Ticket(self.ops.next_ticket()));
                }
            }
            todo.pop();
            // One that was only read is neither on disk nor changed: no checkpoint would come by it.
            if self.nodes.table.get(key).is_none() {
                self.nodes.forget(key);
            }
        }
        if self.commit.durable() < erasure.last {
            self.commit.force();
        } else if self.checkpoint.covered() < erasure.last {
            self.checkpoint.want();
        }
        self.checkpoint.covered() >= erasure.last && self.nodes.of_volume(volume).is_empty()
    }
}
