//! Two bits a block: absent (look below), data, zero (C6).

use std::ops::Range;

use crate::limits::BLOCKS_PER_CLUSTER;

/// What a version says of one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Nothing: an older version, the parent, or nothing at all decides.
    #[default]
    Absent,
    /// The block's bytes are at the version's place.
    Data,
    /// The block reads as zeros, whatever is below.
    Zero,
}

const LOW: u32 = 0x5555_5555;

/// The states of a cluster's sixteen blocks: bits `2n` and `2n + 1` are block `n`; 0 absent, 1 data, 2 zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BlockStates(u32);

impl BlockStates {
    /// Every block absent.
    pub const ABSENT: BlockStates = BlockStates(0);
    /// Every block data.
    pub const DATA: BlockStates = BlockStates(LOW);
    /// Every block zero.
    pub const ZERO: BlockStates = BlockStates(LOW << 1);

    /// From the disk: `None` where a block has the fourth, meaningless value.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<BlockStates> {
        if raw & raw >> 1 & LOW == 0 { Some(BlockStates(raw)) } else { None }
    }

    /// For the disk.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The state of one block.
    #[must_use]
    pub fn get(self, block: u32) -> BlockState {
        assert!(block < BLOCKS_PER_CLUSTER, "block {block} of a cluster");
        match self.0 >> (2 * block) & 3 {
            0 => BlockState::Absent,
            1 => BlockState::Data,
            _ => BlockState::Zero,
        }
    }

    /// These states with those of `blocks` replaced.
    #[must_use]
    pub fn with(self, blocks: Range<u32>, state: BlockState) -> BlockStates {
        let mask = mask(&blocks);
        let bits = match state {
            BlockState::Absent => 0,
            BlockState::Data => LOW,
            BlockState::Zero => LOW << 1,
        };
        BlockStates(self.0 & !mask | bits & mask)
    }

    /// Whether every block of `blocks` is in this state.
    #[must_use]
    pub fn all(self, blocks: Range<u32>, state: BlockState) -> bool {
        self.with(blocks, state) == self
    }

    /// Whether some block holds data, so that the version needs a place.
    #[must_use]
    pub const fn any_data(self) -> bool {
        self.0 & LOW != 0
    }

    /// Whether some block is absent, so that a reader may have to look below.
    #[must_use]
    pub const fn any_absent(self) -> bool {
        (self.0 | self.0 >> 1) & LOW != LOW
    }

    /// The blocks in a state, as bits 0 to 15.
    #[must_use]
    pub fn blocks(self, state: BlockState) -> u16 {
        let low = match state {
            BlockState::Absent => !(self.0 | self.0 >> 1) & LOW,
            BlockState::Data => self.0 & LOW,
            BlockState::Zero => self.0 >> 1 & LOW,
        };
        // Every other bit, pressed together.
        let mut bits = low;
        bits = (bits | bits >> 1) & 0x3333_3333;
        bits = (bits | bits >> 2) & 0x0f0f_0f0f;
        bits = (bits | bits >> 4) & 0x00ff_00ff;
        (bits | bits >> 8) as u16
    }

    /// These states with those of the blocks in `bits` replaced.
    #[must_use]
    pub fn with_bits(self, bits: u16, state: BlockState) -> BlockStates {
        let mut states = self;
        for block in ones(bits) {
            states = states.with(block..block + 1, state);
        }
        states
    }

    /// How many blocks hold data.
    #[must_use]
    pub const fn data_blocks(self) -> u32 {
        (self.0 & LOW).count_ones()
    }

    /// Maximal runs of equal state within `blocks`, in order.
    pub fn runs(self, blocks: Range<u32>) -> impl Iterator<Item = (Range<u32>, BlockState)> {
        assert!(blocks.start <= blocks.end && blocks.end <= BLOCKS_PER_CLUSTER);
        let mut next = blocks.start;
        std::iter::from_fn(move || {
            let start = next;
            if start >= blocks.end {
                return None;
            }
            let state = self.get(start);
            while next < blocks.end && self.get(next) == state {
                next += 1;
            }
            Some((start..next, state))
        })
    }
}

impl std::fmt::Debug for BlockStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (0..BLOCKS_PER_CLUSTER).try_for_each(|block| {
            f.write_str(match self.get(block) {
                BlockState::Absent => "-",
                BlockState::Data => "d",
                BlockState::Zero => "0",
            })
        })
    }
}

/// The blocks whose bits are set, ascending.
pub fn ones(bits: u16) -> impl Iterator<Item = u32> {
    let mut rest = bits;
    std::iter::from_fn(move || {
        let block = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (block < BLOCKS_PER_CLUSTER).then_some(block)
    })
}

/// Both bits of every block of the range.
fn mask(blocks: &Range<u32>) -> u32 {
    assert!(blocks.start <= blocks.end && blocks.end <= BLOCKS_PER_CLUSTER, "blocks {blocks:?} of a cluster");
    let below = |block: u32| if block == BLOCKS_PER_CLUSTER { !0 } else { (1u32 << (2 * block)) - 1 };
    below(blocks.end) & !below(blocks.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [BlockState; 3] = [BlockState::Absent, BlockState::Data, BlockState::Zero];

    proptest! {
        #[test]
        fn setting_ranges_does_what_sixteen_variables_would(
            steps in proptest::collection::vec((0u32..=16, 0u32..=16, 0usize..3), 0..20)
        ) {
            let (mut states, mut model) = (BlockStates::ABSENT, [BlockState::Absent; 16]);
            for (a, b, state) in steps {
                let blocks = a.min(b)..a.max(b);
                states = states.with(blocks.clone(), STATES[state]);
                model[blocks.start as usize..blocks.end as usize].fill(STATES[state]);
                prop_assert!(states.all(blocks, STATES[state]));
            }
            prop_assert!((0..16).all(|block| states.get(block) == model[block as usize]));
            prop_assert_eq!(states.any_data(), model.contains(&BlockState::Data));
            prop_assert_eq!(states.any_absent(), model.contains(&BlockState::Absent));
            prop_assert_eq!(states.data_blocks() as usize, model.iter().filter(|&&s| s == BlockState::Data).count());
            prop_assert_eq!(BlockStates::from_raw(states.raw()), Some(states));
            for state in STATES {
                let found: Vec<u32> = ones(states.blocks(state)).collect();
                let expected: Vec<u32> = (0..16).filter(|&block| model[block as usize] == state).collect();
                prop_assert_eq!(found, expected);
            }
            let mut at = 0;
            let mut last = None;
            for (run, state) in states.runs(0..16) {
                prop_assert!(run.start == at && run.end > at && last != Some(state));
                prop_assert!(run.clone().all(|block| model[block as usize] == state));
                (at, last) = (run.end, Some(state));
            }
            prop_assert_eq!(at, 16);
        }
    }

    #[test]
    fn the_fourth_value_is_refused_wherever_it_stands() {
        for block in 0..16 {
            assert_eq!(BlockStates::from_raw(3 << (2 * block)), None);
        }
    }
}
