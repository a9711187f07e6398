//! Room in completion queues: each queue pair has as many entries as it can have completions, before it exists, so that no
//! completion queue can overrun whatever happens. A queue that overruns breaks every queue pair on it.

/// A completion queue among those of a device and reactor.
pub(crate) type Bank = usize;

/// How full the completion queues of one device are.
#[derive(Debug)]
pub(crate) struct Room {
    /// Entries of a completion queue that is made for nobody in particular.
    usual: u32,
    /// The most that the device has.
    most: u32,
    /// Size and reserved entries of each.
    banks: Vec<(u32, u32)>,
    /// Entries of queue pairs that are destroyed: completions of theirs may still lie there.
    leaving: Vec<(Bank, u32)>,
}

/// Where a queue pair's completions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// To a completion queue that is there.
    There(Bank),
    /// To one that has to be made first, with so many entries; then [`Room::add`].
    Make(u32),
    /// The device has none that large.
    TooMuch,
}

impl Room {
    pub(crate) fn new(usual: u32, most: u32) -> Room {
        Room { usual: usual.min(most), most, banks: Vec::new(), leaving: Vec::new() }
    }

    /// Finds room for `entries`, and takes it where it is there.
    pub(crate) fn reserve(&mut self, entries: u32) -> Placed {
        if let Some(bank) = self.banks.iter().position(|&(size, reserved)| size - reserved >= entries) {
            self.banks[bank].1 += entries;
            return Placed::There(bank);
        }
        if entries > self.most { Placed::TooMuch } else { Placed::Make(entries.max(self.usual)) }
    }

    /// A completion queue of `size` was made.
    pub(crate) fn add(&mut self, size: u32) {
        self.banks.push((size, 0));
    }

    /// The queue pair is destroyed.
    pub(crate) fn leave(&mut self, bank: Bank, entries: u32) {
        self.leaving.push((bank, entries));
    }

    /// Every completion queue was found empty: what destroyed queue pairs had is free.
    pub(crate) fn drained(&mut self) {
        for (bank, entries) in self.leaving.drain(..) {
            self.banks[bank].1 -= entries;
        }
    }
}

#[cfg(test)]
mod tests {
    use ringway_reactor::sim::Rng;

    use super::*;

    #[test]
    fn queue_pairs_that_come_and_go_never_have_more_completions_than_their_queue_has_entries() {
        let mut rng = Rng::new(5);
        let mut room = Room::new(1024, 4096);
        // What may lie in each completion queue: of queue pairs that are there, and of those that left undrained.
        let mut there: Vec<(Bank, u32)> = Vec::new();
        let mut lying = Vec::new();
        let mut sizes = Vec::new();
        for _ in 0..20_000 {
            match rng.below(4) {
                0 | 1 => {
                    let entries = 1 + rng.below(600) as u32;
                    let mut placed = room.reserve(entries);
                    if let Placed::Make(size) = placed {
                        room.add(size);
                        sizes.push(size);
                        placed = room.reserve(entries);
                    }
                    let Placed::There(bank) = placed else { panic!("{placed:?}") };
                    there.push((bank, entries));
                }
                2 if !there.is_empty() => {
                    let (bank, entries) = there.swap_remove(rng.below(there.len() as u64) as usize);
                    room.leave(bank, entries);
                    lying.push((bank, entries));
                }
                _ => {
                    room.drained();
                    lying.clear();
                }
            }
            for (bank, &size) in sizes.iter().enumerate() {
                let all = there.iter().chain(&lying).filter(|(at, _)| *at == bank);
                assert!(all.map(|(_, entries)| entries).sum::<u32>() <= size);
            }
            if there.len() > 40 {
                there.drain(20..).for_each(|(bank, entries)| {
                    room.leave(bank, entries);
                    lying.push((bank, entries));
                });
            }
        }
        assert!(sizes.len() < 40, "room is used again: {}", sizes.len());
    }

    #[test]
    fn more_than_the_device_has_is_refused_and_more_than_usual_gets_a_queue_of_its_own() {
        let mut room = Room::new(1024, 4096);
        assert_eq!(room.reserve(5000), Placed::TooMuch);
        assert_eq!(room.reserve(4000), Placed::Make(4000));
        assert_eq!(room.reserve(10), Placed::Make(1024));
    }
}
