//! Snapshots, clones, rollbacks and questions as the catalog's owner would ask for them: the catalog first, then the shard.

use std::sync::Arc;

use ringway_core::ids::{Epoch, VolumeId};
use ringway_core::request::Status;
use ringway_core::shard::verify::Verification;
use ringway_core::shard::{Answer, Ask, ChangedRange};
use ringway_core::volume::{Parent, SnapshotView, VolumeRecord};

use super::{Rig, volume};

impl Rig {
    fn tell(&mut self, record: VolumeRecord) {
        let record = Arc::new(record);
        self.setup.volumes.retain(|known| known.id != record.id);
        self.setup.volumes.push(Arc::clone(&record));
        self.shard.on_volume(record);
    }

    pub fn record(&self, id: u32) -> &VolumeRecord {
        self.setup.volumes.iter().find(|known| known.id.0 == id).expect("such a volume")
    }

    fn forget(&mut self, id: u32) {
        self.setup.volumes.retain(|known| known.id.0 != id);
        let mut events = std::mem::take(&mut self.events);
        self.shard.on_volume_removed(VolumeId(id), &mut events);
        for event in std::mem::take(&mut events) {
            self.on_event(event, &mut events);
        }
        self.events = events;
    }

    /// Snapshot `id` of volume `origin`.
    pub fn snapshot(&mut self, origin: u32, id: u32) -> Epoch {
        let epoch = self.cut(origin);
        let view = Some(SnapshotView { origin: VolumeId(origin), epoch });
        let of = self.record(origin).clone();
        self.tell(VolumeRecord { view, size: of.size, lba_bytes: of.lba_bytes, ..volume(id, of.size, of.lba_bytes) });
        epoch
    }

    pub fn remove_snapshot(&mut self, id: u32) {
        let view = self.record(id).view.expect("a snapshot");
        self.setup.volumes.retain(|known| known.id.0 != id);
        let shared = self.setup.volumes.iter().any(|other| other.view == Some(view));
        if !shared {
            self.change_volume(view.origin.0, |origin| origin.cuts.retain(|&cut| cut != view.epoch));
        }
        self.forget(id);
    }

    /// Clone `id` of snapshot `snapshot`, of `size` bytes.
    pub fn clone_of(&mut self, snapshot: u32, id: u32, size: u64) {
        let of = self.record(snapshot).clone();
        let view = of.view.expect("a snapshot");
        let parent = Some(Parent { volume: view.origin, epoch: view.epoch, size: of.size });
        self.tell(VolumeRecord { parent, ..volume(id, size, of.lba_bytes) });
    }

    /// The link of a clone that is filled goes.
    pub fn detach(&mut self, id: u32) {
        self.change_volume(id, |clone| clone.parent = None);
    }

    /// Takes a volume back to its snapshot; later ones go.
    pub fn roll_back(&mut self, snapshot: u32) {
        let view = self.record(snapshot).view.expect("a snapshot");
        let later =
            self.setup.volumes.iter().filter(|other| {
                other.view.is_some_and(|other| other.origin == view.origin && other.epoch > view.epoch)
            });
        let later: Vec<u32> = later.map(|other| other.id.0).collect();
        let until = Epoch(self.word);
        self.word += 1;
        self.change_volume(view.origin.0, |origin| {
            origin.cuts.retain(|&cut| cut <= view.epoch);
            origin.dead.retain(|&(after, up_to)| after < view.epoch || up_to > until);
            origin.dead.push((view.epoch, until));
        });
        later.into_iter().for_each(|id| self.forget(id));
    }

    /// Runs until nothing is left to do in the background; false if the world ended before.
    pub fn settle_background(&mut self) -> bool {
        for _ in 0..400_000 {
            if self.world.crashed() {
                return false;
            }
            if self.shard.is_tidy() && self.shard.is_idle() {
                return true;
            }
            self.turn();
        }
        panic!("the background does not come to an end: {}", self.shard.describe());
    }

    /// The answer; `None` if the world ended before.
    pub fn ask(&mut self, ask: Ask) -> Option<Result<Answer, Status>> {
        self.shard.ask(7, ask);
        for _ in 0..400_000 {
            if self.world.crashed() {
                return None;
            }
            if let Some((_, answer)) = self.answers.pop() {
                return Some(answer);
            }
            self.turn();
        }
        panic!("no answer to {ask:?}: {}", self.shard.describe());
    }

    /// Fills a clone from end to end; bytes copied.
    pub fn fill(&mut self, id: u32) -> Option<Result<u64, Status>> {
        let (mut range, mut all) = (0, 0);
        loop {
            match self.ask(Ask::Fill { volume: VolumeId(id), range, most: u64::MAX })? {
                Ok(Answer::Filled { copied, next }) => {
                    all += copied;
                    match next {
                        Some(next) => range = next,
                        None => return Some(Ok(all)),
                    }
                }
                Ok(other) => panic!("{other:?} is no answer to a fill"),
                Err(status) => return Some(Err(status)),
            }
        }
    }

    /// Everything that has changed.
    pub fn changed(&mut self, id: u32, after: Option<Epoch>) -> Result<Vec<ChangedRange>, Status> {
        let (mut range, mut all) = (0, Vec::new());
        loop {
            let ask = Ask::Changed { volume: VolumeId(id), after, range };
            match self.ask(ask).expect("this world goes on")? {
                Answer::Changed { ranges, next } => {
                    all.extend(ranges);
                    match next {
                        Some(next) => range = next,
                        None => return Ok(all),
                    }
                }
                other => panic!("{other:?} is no answer to what has changed"),
            }
        }
    }

    /// Bytes that each cut alone keeps.
    pub fn held(&mut self, id: u32) -> Vec<(Epoch, u64)> {
        match self.ask(Ask::Held { volume: VolumeId(id), range: 0 }) {
            Some(Ok(Answer::Held { unique, next: None })) => unique,
            other => panic!("{other:?} is no answer to what is held"),
        }
    }

    /// Walks over the map as it is; the shard goes on afterwards.
    pub fn look_over(&mut self) -> Verification {
        let mut walk = Verification::default();
        while !self.shard.verify(&mut self.io, &mut walk) {
            self.turn();
        }
        walk
    }

    /// Stops in order: nothing leaked, and nothing is there that no view needs.
    pub fn settle_and_verify(&mut self) {
        // What recovery had records for is looked over when it is loaded.
        self.look_over();
        self.settle_background();
        let untidy = self.look_over().untidy;
        assert_eq!(untidy, Vec::<String>::new());
        self.drain_and_verify();
    }
}
