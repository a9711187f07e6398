//! Deadlines of one reactor.
//!
//! A hierarchical wheel: 6 levels of 64 slots, the finest 65.5 us wide, so that inserting and cancelling are a few instructions
//! however many timers there are, and a turn in which nothing is due compares two numbers. Entries live in a slab and are linked
//! through it: after warm-up nothing is allocated.
//!
//! Invariants: an entry is in exactly one slot's list; a timer never fires early, and fires at the first `expire` whose `now`
//! is not before its deadline; one `expire` yields in order of deadline.

use crate::io::Instant;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 6;
/// Width of a slot of the finest level, as a power of two of nanoseconds: 65.5 us. The six levels span 52 days.
const TICK_BITS: u32 = 16;
const NONE: u32 = u32::MAX;

/// Names one inserted timer; of no use once it fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

struct Entry<K> {
    deadline: Instant,
    key: Option<K>,
    generation: u32,
    previous: u32,
    next: u32,
    /// `level * SLOTS + slot`.
    slot: u32,
}

/// Timers that carry a key each.
pub struct TimerWheel<K> {
    entries: Vec<Entry<K>>,
    free: Vec<u32>,
    heads: Box<[u32; LEVELS * SLOTS]>,
    /// Bit n: slot n of the level has an entry.
    occupied: [u64; LEVELS],
    /// Everything before this tick was expired.
    tick: u64,
    /// At most the earliest deadline; exact after `next_deadline`.
    earliest: Instant,
    due: Vec<(Instant, u32)>,
}

impl<K> Default for TimerWheel<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> TimerWheel<K> {
    /// An empty wheel.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            heads: Box::new([NONE; LEVELS * SLOTS]),
            occupied: [0; LEVELS],
            tick: 0,
            earliest: Instant::NEVER,
            due: Vec::new(),
        }
    }

    /// Timers that have neither fired nor been cancelled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether there is no timer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `key` comes out of the first [`TimerWheel::expire`] at or after `deadline`.
    pub fn insert(&mut self, deadline: Instant, key: K) -> TimerId {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry { deadline, key: None, generation: 0, previous: NONE, next: NONE, slot: NONE });
                (self.entries.len() - 1) as u32
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.deadline = deadline;
        entry.key = Some(key);
        let generation = entry.generation;
        self.link(index);
        self.earliest = self.earliest.min(deadline);
        TimerId { index, generation }
    }

    /// Takes a timer out; its key if it had not fired or been cancelled yet.
    pub fn cancel(&mut self, id: TimerId) -> Option<K> {
        let entry = self.entries.get(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        self.unlink(id.index);
        // `earliest` stays: a lower bound may be too low, which costs one walk in `next_deadline`.
        Some(self.release(id.index))
    }

    /// Appends the keys of all timers due at `now`, earliest first.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<K>) {
        if now < self.earliest {
            return;
        }
        let target = now.0 >> TICK_BITS;
        debug_assert!(self.due.is_empty());
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            // Slots of this level that the hand passes, that of `target` included; all of them after a whole round.
            let (from, to) = (self.tick >> shift, target.max(self.tick) >> shift);
            let passed = (to - from + 1).min(SLOTS as u64);
            for step in 0..passed {
                let slot = ((from + step) as usize) & (SLOTS - 1);
                if self.occupied[level] & (1 << slot) != 0 {
                    self.collect(level * SLOTS + slot, now, target);
                }
            }
        }
        self.tick = self.tick.max(target);
        let mut due = std::mem::take(&mut self.due);
        due.sort_unstable_by_key(|&(deadline, index)| (deadline, index));
        out.extend(due.drain(..).map(|(_, index)| self.release(index)));
        self.due = due;
        self.earliest = self.scan();
    }

    /// The earliest deadline, `None` without timers.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        self.earliest = self.scan();
        Some(self.earliest)
    }

    /// A deadline not after the earliest, without a walk: [`Instant::NEVER`] without timers. Cancelling may leave it too early.
    #[must_use]
    pub fn next_bound(&self) -> Instant {
        if self.is_empty() { Instant::NEVER } else { self.earliest }
    }

    /// Takes a slot's list apart: due entries to `due`, the others to where they now belong.
    fn collect(&mut self, slot: usize, now: Instant, target: u64) {
        let mut index = std::mem::replace(&mut self.heads[slot], NONE);
        self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        let tick = self.tick;
        self.tick = tick.max(target);
        while index != NONE {
            let entry = &self.entries[index as usize];
            let next = entry.next;
            if entry.deadline <= now {
                self.due.push((entry.deadline, index));
            } else {
                self.link(index);
            }
            index = next;
        }
        self.tick = tick;
    }

    fn link(&mut self, index: u32) {
        let ticks = (self.entries[index as usize].deadline.0 >> TICK_BITS).max(self.tick);
        let (mut level, mut position) = (0, ticks);
        // The finest level whose round still reaches the deadline; what lies beyond the last level goes round again there.
        while level < LEVELS - 1 && position - (self.tick >> (SLOT_BITS * level as u32)) >= SLOTS as u64 {
            level += 1;
            position = ticks >> (SLOT_BITS * level as u32);
        }
        if level == LEVELS - 1 {
            let last = (self.tick >> (SLOT_BITS * level as u32)) + SLOTS as u64 - 1;
            position = position.min(last);
        }
        let slot = level * SLOTS + (position as usize & (SLOTS - 1));
        let head = std::mem::replace(&mut self.heads[slot], index);
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        (entry.previous, entry.next, entry.slot) = (NONE, head, slot as u32);
        self.occupied[level] |= 1 << (slot % SLOTS);
    }

    fn unlink(&mut self, index: u32) {
        let Entry { previous, next, slot, .. } = self.entries[index as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        self.heads[slot as usize] = next;
        if next == NONE {
            self.occupied[slot as usize / SLOTS] &= !(1 << (slot as usize % SLOTS));
        }
    }

    fn release(&mut self, index: u32) -> K {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        entry.key.take().expect("a live entry has its key")
    }

    /// The earliest deadline: that of the first occupied slot of each level from the hand on. The last level holds what lies
    /// beyond it in the wrong slot, so all of it is looked at.
    fn scan(&self) -> Instant {
        let mut earliest = Instant::NEVER;
        for level in 0..LEVELS {
            let hand = (self.tick >> (SLOT_BITS * level as u32)) as u32 & (SLOTS as u32 - 1);
            let mut ahead = self.occupied[level].rotate_right(hand);
            while ahead != 0 {
                let slot = level * SLOTS + (ahead.trailing_zeros() + hand) as usize % SLOTS;
                earliest = earliest.min(self.earliest_in(slot));
                ahead = if level == LEVELS - 1 { ahead & (ahead - 1) } else { 0 };
            }
        }
        earliest
    }

    fn earliest_in(&self, slot: usize) -> Instant {
        let mut earliest = Instant::NEVER;
        let mut index = self.heads[slot];
        while index != NONE {
            let entry = &self.entries[index as usize];
            earliest = earliest.min(entry.deadline);
            index = entry.next;
        }
        earliest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fired(wheel: &mut TimerWheel<u32>, now: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.expire(Instant(now), &mut out);
        out
    }

    #[test]
    fn a_timer_fires_at_its_deadline_to_the_nanosecond_and_not_before() {
        let mut wheel = TimerWheel::new();
        wheel.insert(Instant(1_000_001), 1);
        assert!(fired(&mut wheel, 1_000_000).is_empty());
        assert_eq!(wheel.next_deadline(), Some(Instant(1_000_001)));
        assert_eq!(fired(&mut wheel, 1_000_001), [1]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_cancelled_timer_does_not_fire_and_its_name_is_dead() {
        let mut wheel = TimerWheel::new();
        let first = wheel.insert(Instant(10), 1);
        assert_eq!(wheel.cancel(first), Some(1));
        assert_eq!(wheel.cancel(first), None);
        let second = wheel.insert(Instant(20), 2);
        assert_eq!(wheel.cancel(first), None, "the slot was used again");
        assert_eq!(fired(&mut wheel, 100), [2]);
        assert_eq!(wheel.cancel(second), None);
    }

    #[test]
    fn a_deadline_that_has_passed_already_fires_at_once() {
        let mut wheel = TimerWheel::new();
        assert!(fired(&mut wheel, 1 << 40).is_empty());
        wheel.insert(Instant(5), 1);
        assert_eq!(fired(&mut wheel, 1 << 40), [1]);
    }

    #[test]
    fn a_deadline_beyond_every_level_waits_its_time() {
        let mut wheel = TimerWheel::new();
        let far = 400 * 86_400 * 1_000_000_000;
        wheel.insert(Instant(far), 1);
        for day in (0..400).step_by(7) {
            assert!(fired(&mut wheel, day * 86_400 * 1_000_000_000).is_empty());
            assert_eq!(wheel.next_deadline(), Some(Instant(far)));
        }
        assert_eq!(fired(&mut wheel, far), [1]);
    }

    proptest! {
        #[test]
        fn the_wheel_and_a_sorted_list_agree(
            steps in prop::collection::vec((0u8..4, 0u32..40, 0u64..1 << 20), 1..300)
        ) {
            let mut wheel = TimerWheel::new();
            let mut list: Vec<(u64, u32, TimerId)> = Vec::new();
            let (mut now, mut key) = (0u64, 0u32);
            for (what, scale, amount) in steps {
                let distance = (amount << scale.min(30)) >> 8;
                match what {
                    0 | 1 => {
                        let id = wheel.insert(Instant(now + distance), key);
                        list.push((now + distance, key, id));
                        key += 1;
                    }
                    2 if !list.is_empty() => {
                        let (_, expected, id) = list.swap_remove(amount as usize % list.len());
                        prop_assert_eq!(wheel.cancel(id), Some(expected));
                    }
                    _ => {
                        now += distance;
                        let got = fired(&mut wheel, now);
                        let mut expected: Vec<_> = list.iter().filter(|e| e.0 <= now).map(|e| e.1).collect();
                        list.retain(|e| e.0 > now);
                        let mut sorted = got.clone();
                        sorted.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(sorted, expected);
                    }
                }
                prop_assert_eq!(wheel.len(), list.len());
                let earliest = list.iter().map(|e| e.0).min().map(Instant);
                prop_assert_eq!(wheel.next_deadline(), earliest);
                prop_assert!(wheel.next_bound() <= earliest.unwrap_or(Instant::NEVER));
            }
        }
    }
}
