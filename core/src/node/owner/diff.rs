//! What has changed between two snapshots of a volume, or one and now, by their names.

use super::Owner;
use super::asking::Asker;
use crate::control::{ChangedQuery, ControlError, ControlRequest, Reply};
use crate::snapshot::asked::DiffQuery;

impl Owner {
    /// A question to the shards, once names are numbers.
    pub(super) fn diff(&mut self, query: &DiffQuery, reply: Reply) {
        match self.diff_query(query) {
            Ok(changed) => self.ask(ControlRequest::Changed(changed), u64::MAX, Asker::Caller(reply)),
            Err(error) => reply(Err(error)),
        }
    }

    fn diff_query(&self, query: &DiffQuery) -> Result<ChangedQuery, ControlError> {
        let DiffQuery { from, to, cursor } = query;
        let (_, older) = self.named_snapshot(from)?;
        let origin = &self.store.state().volume(older.origin).expect("a snapshot has its volume").record;
        let after = Some(older.epoch);
        let Some(to) = to.as_ref().filter(|&to| *to != origin.name) else {
            return Ok(ChangedQuery { volume: origin.id, after, cursor: *cursor });
        };
        if !to.contains('@') {
            return Err(ControlError::invalid(format!(
                "{to:?} is not what {from:?} is a snapshot of; a difference is between two snapshots of {:?}, or one and {:?} itself",
                origin.name, origin.name
            )));
        }
        let (entry, newer) = self.named_snapshot(to)?;
        if newer.origin != older.origin {
            return Err(ControlError::invalid(format!(
                "{from:?} and {to:?} are of different volumes; a difference is between two snapshots of one"
            )));
        }
        if newer.epoch < older.epoch {
            return Err(ControlError::invalid(format!("{to:?} was cut before {from:?}; name the older one first")));
        }
        Ok(ChangedQuery { volume: entry.record.id, after, cursor: *cursor })
    }
}
