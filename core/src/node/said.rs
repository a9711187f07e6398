//! What shards have said and the node has not yet heeded, in order, each with its shard.
//!
//! Shards write straight into one list; which of them wrote what is noted by stretches, so that an event moves only once.

use crate::ids::ShardId;
use crate::shard::Event;

#[derive(Debug, Default)]
pub(super) struct Said {
    events: Vec<Event>,
    /// Up to which place of `events` each shard wrote, ascending.
    stretches: Vec<(usize, ShardId)>,
}

impl Said {
    pub(super) fn with_capacity(events: usize) -> Said {
        Said { events: Vec::with_capacity(events), stretches: Vec::with_capacity(events) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Lets `shard` add to it.
    pub(super) fn by<R>(&mut self, shard: ShardId, speak: impl FnOnce(&mut Vec<Event>) -> R) -> R {
        let before = self.events.len();
        let result = speak(&mut self.events);
        let end = self.events.len();
        match self.stretches.last_mut() {
            Some((last, by)) if *by == shard => *last = end,
            _ if end > before => self.stretches.push((end, shard)),
            _ => {}
        }
        result
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (ShardId, Event)> {
        let mut stretches = self.stretches.drain(..).peekable();
        self.events.drain(..).enumerate().map(move |(at, event)| {
            while stretches.next_if(|&(end, _)| end <= at).is_some() {}
            (stretches.peek().expect("every event has its shard").1, event)
        })
    }

    /// Takes over what was said while this was being heeded; it is empty by now.
    pub(super) fn take_over(&mut self, later: &mut Said) {
        assert!(self.is_empty(), "what was said first is heeded first");
        self.events.append(&mut later.events);
        self.stretches.append(&mut later.stretches);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_comes_out_in_order_with_the_shard_that_said_it() {
        let mut said = Said::default();
        let need = |urgent| Event::NeedSlab { urgent };
        said.by(ShardId(3), |out| out.push(need(true)));
        said.by(ShardId(1), |_| {});
        said.by(ShardId(3), |out| out.push(Event::Drained));
        said.by(ShardId(1), |out| out.extend([need(false), Event::Drained]));
        said.by(ShardId(2), |_| {});
        let taken: Vec<_> = said.drain().map(|(shard, event)| (shard.0, format!("{event:?}"))).collect();
        let (yes, no) = (format!("{:?}", need(true)), format!("{:?}", need(false)));
        assert_eq!(taken, [(3, yes), (3, "Drained".into()), (1, no), (1, "Drained".into())]);
        assert!(said.is_empty() && said.drain().next().is_none());
    }
}
