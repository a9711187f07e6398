//! The end of a group: its record, or nothing.

use super::group::{Group, Stage};
use super::{GroupId, Outcome};
use crate::control::{ControlError, ControlErrorKind};
use crate::node::message::Message;
use crate::node::owner::{Answer, Owner, Plan, Then};

impl Owner {
    /// Answers whose deadline has passed, and clears up what others have answered.
    pub(super) fn expire_snapshots(&mut self) {
        let now = self.snapshots.now;
        let over = |group: &Group| {
            if group.stage() != Stage::Committing && group.promise.deadline() <= now {
                group.promise.expire(now);
            }
            group.stage() != Stage::Committing && !group.promise.is_pending()
        };
        let ended: Vec<GroupId> =
            self.snapshots.groups.iter().filter(|(_, group)| over(group)).map(|(&id, _)| id).collect();
        for id in ended {
            self.forget_group(id);
        }
    }

    /// A group cannot be made: its caller learns why, unless the deadline was first, and nothing of it stays.
    pub(super) fn give_up(&mut self, id: GroupId, why: ControlError) {
        let group = &self.snapshots.groups[&id];
        group.promise.withdraw(|| why);
        self.forget_group(id);
    }

    /// Every group is given up: the target stops.
    pub(in crate::node::owner) fn give_up_all(&mut self) {
        let pending = |group: &Group| group.stage() != Stage::Committing;
        let ids: Vec<_> = self.snapshots.groups.iter().filter(|(_, g)| pending(g)).map(|(&id, _)| id).collect();
        for id in ids {
            let why = "the target is stopping; nothing is left of the snapshot";
            self.give_up(id, ControlError::new(ControlErrorKind::Unavailable, why));
        }
    }

    /// Nothing of the group is to be left: not in shards, not in the backend, and its name is free.
    fn forget_group(&mut self, id: GroupId) {
        let mut group = self.snapshots.groups.remove(&id).expect("it was there");
        self.count_steps(&mut group);
        match group.promise.late_ns() {
            Some(late) => {
                self.metrics.snapshots.expired.add(1);
                self.metrics.snapshots.late.record(late);
            }
            None => self.metrics.snapshots.failed.add(1),
        }
        let mut shown = false;
        for member in &group.members {
            shown |= self.stop_sync(member.attempt);
        }
        self.release(&group);
        if shown {
            // Shards forget the views by which it was read.
            self.publish(None);
        }
    }

    /// What its steps took goes into the metrics.
    fn count_steps(&self, group: &mut Group) {
        for (step, ns) in group.take_steps() {
            self.metrics.snapshots.step(step, ns);
        }
    }

    /// The shards have heard all they will of these attempts.
    fn release(&mut self, group: &Group) {
        for member in &group.members {
            for &shard in &member.shards {
                self.send_to_shard(shard, Message::Release { shard, attempt: member.attempt });
            }
        }
    }

    /// The writer of the catalog is free for this group. From the swap on the answer is what the write comes to (C14).
    pub(in crate::node::owner) fn plan_commit(&mut self, id: GroupId) -> Plan {
        // It may have been given up while it was in the queue.
        let Some(group) = self.snapshots.groups.get(&id) else { return Plan::Nothing };
        let late = self.is_too_late(group);
        let record = match self.check_record(group) {
            Ok(record) => record,
            Err(why) => {
                self.give_up(id, why);
                return Plan::Nothing;
            }
        };
        let group = self.snapshots.groups.get_mut(&id).expect("just seen");
        if late {
            group.is_late();
            return Plan::Nothing;
        }
        if !group.promise.commit() {
            self.forget_group(id);
            return Plan::Nothing;
        }
        group.commit();
        Plan::Change(vec![record], Then::Snapshot(Outcome::Committed(id)))
    }

    /// The record is durable: they exist. Shards get the new cuts before they forget the attempts, since mail arrives in order.
    pub(in crate::node::owner) fn committed(&mut self, id: GroupId) {
        let mut group = self.snapshots.groups.remove(&id).expect("a group that commits stays");
        group.committed(self.snapshots.now);
        self.count_steps(&mut group);
        self.metrics.snapshots.made.add(1);
        let times = group.times();
        tracing::info!(
            name = group.name,
            volumes = group.members.len(),
            cut = %group.cut().expect("it was cut"),
            cut_us = times.cut_us,
            sealed_us = times.sealed_us,
            synced_us = times.synced_us,
            committed_us = times.committed_us,
            "snapshots exist"
        );
        self.syncs_committed(&group);
        let made = group.members.iter().map(|member| member.id).collect();
        let answer = group.promise.take_reply().map(|reply| (reply, Answer::Snapshots(made, times)));
        self.publish(answer);
        self.release(&group);
    }

    /// The record could not be written, and is void.
    pub(in crate::node::owner) fn commit_failed(&mut self, id: GroupId, why: ControlError) {
        let group = &self.snapshots.groups[&id];
        group.promise.answer(Err(why));
        self.forget_group(id);
    }

    /// A snapshot that is being made is not wanted any more.
    pub(super) fn withdraw_snapshot(&mut self, id: GroupId, name: &str) -> Result<(), ControlError> {
        if self.snapshots.groups[&id].stage() == Stage::Committing {
            let why = format!("snapshot {name:?} is just being recorded; try again");
            return Err(ControlError::new(ControlErrorKind::Busy, why));
        }
        let why = format!("snapshot {name:?} was removed while it was being made");
        self.give_up(id, ControlError::new(ControlErrorKind::Unavailable, why));
        Ok(())
    }
}
