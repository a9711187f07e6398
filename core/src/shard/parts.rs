//! The parts a shard has taken and not yet answered.
//!
//! ```text
//! Queued -> (Overlap | Node | Journal | Space)* -> started: Reading | Writing | Filling .. -> Committing? -> answered
//! ```
//! Until it has started a part holds nothing but its own buffer and its claim, and may be dropped (C11). A key carries a
//! generation, so that one left over in a list of waiters names nobody rather than somebody else.

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Data;

use super::api::Part;
use super::levels::Pins;
use super::overlap::StripeKey;
use super::targets::Target;
use crate::ids::{Epoch, Lsn, VolumeId};
use crate::request::Status;
use crate::space::Place;

/// A part in the table. Never equal to that of another part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartKey {
    slot: u32,
    generation: u32,
}

impl PartKey {
    #[cfg(test)]
    pub(crate) fn for_test(slot: u32) -> PartKey {
        PartKey { slot, generation: 0 }
    }
}

/// What a part waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its turn; nothing has been looked up.
    Queued,
    /// Earlier parts on the same blocks.
    Overlap,
    /// Its map node, journal room, space: it will be queued again.
    Parked,
    /// Reads or writes of its own buffer at the device.
    Device,
    /// A scratch buffer for step [`PartState::step`].
    Scratch,
    /// Reads into the scratch buffer.
    Filling,
    /// The write of the scratch buffer.
    Patching,
    /// A commit round.
    Committing,
}

/// One stretch of a part's buffer, in order; the buffer is split along them and joined again.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The stretch, while it is not at the device.
    pub(crate) data: Option<Data>,
    /// Where it goes: `None` where it is read as zeros or moved through a scratch buffer.
    pub(crate) at: Option<Run>,
    /// Bytes.
    pub(crate) len: u32,
}

/// Bytes of one device, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) file: u16,
    pub(crate) offset: u64,
}

impl Run {
    /// From byte `from` of a cluster on.
    pub(crate) fn of(place: Place, from: u32) -> Run {
        Run { file: u16::from(place.device()), offset: place.offset() + u64::from(from) }
    }
}

/// A stretch that has to go through a scratch buffer: whole blocks of one cluster of which the part covers `start..end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Which of the part's targets (writes).
    pub(crate) target: usize,
    /// Which segment holds the client's bytes; `None`: zeros.
    pub(crate) segment: Option<usize>,
    /// Cluster on this shard.
    pub(crate) cluster: u32,
    /// Bytes from the start of the cluster.
    pub(crate) start: u32,
    pub(crate) end: u32,
}

#[derive(Debug)]
pub(crate) struct PartState {
    pub(crate) part: Part,
    /// What the client asked for: a snapshot, where the part names the volume that has its blocks.
    pub(crate) asked: VolumeId,
    pub(crate) stage: Stage,
    /// The stamp, once it has started.
    pub(crate) stamp: Option<Epoch>,
    pub(crate) claimed: Option<StripeKey>,
    pub(crate) status: Status,
    /// Device operations it waits for.
    pub(crate) outstanding: u32,
    pub(crate) segments: Vec<Segment>,
    pub(crate) targets: Vec<Target>,
    pub(crate) steps: Vec<Step>,
    /// Next of `steps`.
    pub(crate) step: usize,
    /// Pieces of the scratch buffer of the current step, in order.
    pub(crate) scratch: Vec<Segment>,
    /// What is left of the shard's reserve while its front is lent to this part.
    pub(crate) scratch_rest: Option<Buf>,
    /// Volumes whose nodes of the part's range may not be evicted.
    pub(crate) pins: Pins,
    /// It waits for the backend, with so many bytes of buffers of ours.
    pub(crate) awaits_backend: Option<usize>,
    /// Its device writes are durable by themselves.
    pub(crate) durable: bool,
    /// The last record it made or found in its node: its answer has to wait until that survives.
    pub(crate) lsn: Lsn,
}

/// All of them. Slots keep their vectors, so that a busy shard stops allocating.
#[derive(Debug, Default)]
pub(crate) struct PartTable {
    slots: Vec<(u32, Option<Box<PartState>>)>,
    free: Vec<u32>,
    #[expect(clippy::vec_box, reason = "the boxes themselves are kept for the next parts")]
    spare: Vec<Box<PartState>>,
}

impl PartTable {
    pub(crate) fn insert(&mut self, part: Part) -> PartKey {
        let state = match self.spare.pop() {
            Some(mut state) => {
                debug_assert!(state.segments.is_empty() && state.targets.is_empty() && state.scratch.is_empty());
                state.asked = part.volume;
                state.part = part;
                state
            }
            None => Box::new(PartState {
                asked: part.volume,
                part,
                stage: Stage::Queued,
                stamp: None,
                claimed: None,
                status: Status::Success,
                outstanding: 0,
                segments: Vec::new(),
                targets: Vec::new(),
                steps: Vec::new(),
                step: 0,
                scratch: Vec::new(),
                scratch_rest: None,
                pins: Pins::new(),
                awaits_backend: None,
                durable: false,
                lsn: Lsn(0),
            }),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (generation, place) = &mut self.slots[slot as usize];
        assert!(place.is_none(), "a free slot is empty");
        *place = Some(state);
        PartKey { slot, generation: *generation }
    }

    /// The part, if it has not been answered.
    pub(crate) fn get_mut(&mut self, key: PartKey) -> Option<&mut PartState> {
        let (generation, state) = &mut self.slots[key.slot as usize];
        if *generation == key.generation { state.as_deref_mut() } else { None }
    }

    /// The part, which cannot have been answered.
    pub(crate) fn at(&mut self, key: PartKey) -> &mut PartState {
        self.get_mut(key).expect("a part with work under way is not answered")
    }

    /// Takes a part out. What it held must have been given back, and its buffer taken.
    pub(crate) fn remove(&mut self, key: PartKey) {
        let (generation, place) = &mut self.slots[key.slot as usize];
        assert_eq!(*generation, key.generation, "a part is answered once");
        let mut state = place.take().expect("a part is answered once");
        assert!(
            state.outstanding == 0 && state.claimed.is_none() && state.targets.is_empty() && state.part.data.is_none()
        );
        assert!(state.segments.is_empty() && state.scratch.is_empty() && state.pins.is_empty());
        assert!(state.awaits_backend.is_none());
        *generation = generation.wrapping_add(1);
        self.free.push(key.slot);
        state.stage = Stage::Queued;
        state.stamp = None;
        state.status = Status::Success;
        state.steps.clear();
        state.step = 0;
        state.durable = false;
        state.lsn = Lsn(0);
        self.spare.push(state);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartKey, &PartState)> {
        self.slots.iter().enumerate().filter_map(|(slot, (generation, state))| {
            state.as_deref().map(|state| (PartKey { slot: slot as u32, generation: *generation }, state))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
