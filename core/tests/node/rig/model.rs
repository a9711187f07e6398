//! What a host was promised, block by block (I1, I2): each block has the values written to it in order, of which some are
//! acknowledged and some are durable. At most one operation of a block is in flight, so "at least as new as" is a number.

use std::collections::BTreeMap;

use ringway_core::ids::VolumeId;

use super::BLOCK;

/// A value that a block may have: 0 is zeros, any other is unique.
pub(crate) type Value = u64;

#[derive(Clone, Debug)]
struct History {
    values: Vec<Value>,
    /// The newest that is acknowledged.
    acknowledged: usize,
    /// The newest that a flush or FUA has made durable.
    durable: usize,
    busy: bool,
}

impl Default for History {
    fn default() -> Self {
        History { values: vec![0], acknowledged: 0, durable: 0, busy: false }
    }
}

/// All blocks of all volumes.
#[derive(Debug, Default)]
pub(crate) struct Model {
    blocks: BTreeMap<(VolumeId, u64), History>,
    next: Value,
}

/// What is acknowledged when a flush is submitted.
pub(crate) type Snapshot = Vec<(u64, usize)>;

/// How a target ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Kill,
    PowerLoss,
    /// It did not.
    None,
}

impl Model {
    /// Takes the blocks for one operation, or says that somebody has one of them.
    pub(crate) fn begin(&mut self, volume: VolumeId, blocks: std::ops::Range<u64>) -> bool {
        let free = blocks.clone().all(|block| self.blocks.get(&(volume, block)).is_none_or(|history| !history.busy));
        if free {
            blocks.for_each(|block| self.blocks.entry((volume, block)).or_default().busy = true);
        }
        free
    }

    /// New values for blocks that were taken, and their bytes; or zeros.
    pub(crate) fn write(&mut self, volume: VolumeId, blocks: std::ops::Range<u64>, zeros: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in blocks {
            self.next += 1;
            let value = if zeros { 0 } else { self.next };
            self.history(volume, block).values.push(value);
            bytes.extend(value.to_le_bytes().repeat(BLOCK as usize / 8));
        }
        bytes
    }

    pub(crate) fn written(&mut self, volume: VolumeId, blocks: std::ops::Range<u64>, success: bool, durable: bool) {
        for block in blocks {
            let history = self.history(volume, block);
            history.busy = false;
            if success {
                history.acknowledged = history.values.len() - 1;
                if durable {
                    history.durable = history.acknowledged;
                }
            }
        }
    }

    pub(crate) fn flush(&self, volume: VolumeId) -> Snapshot {
        let range = (volume, 0)..=(volume, u64::MAX);
        self.blocks.range(range).map(|(&(_, block), history)| (block, history.acknowledged)).collect()
    }

    pub(crate) fn flushed(&mut self, volume: VolumeId, snapshot: &Snapshot) {
        for &(block, acknowledged) in snapshot {
            let history = self.history(volume, block);
            history.durable = history.durable.max(acknowledged);
        }
    }

    /// Checks what was read of blocks that were taken, after `end`; what is seen is then what the block has.
    pub(crate) fn check(&mut self, volume: VolumeId, first: u64, bytes: &[u8], end: End) -> Result<(), String> {
        for (block, content) in (first..).zip(bytes.chunks(BLOCK as usize)) {
            let value = u64::from_le_bytes(content[..8].try_into().unwrap());
            if content.chunks(8).any(|word| word != value.to_le_bytes()) {
                return Err(format!("volume {volume} block {block} is torn"));
            }
            let history = self.history(volume, block);
            let before = history.acknowledged;
            let oldest = if end == End::PowerLoss { history.durable } else { history.acknowledged };
            let found = history.values.iter().rposition(|&known| known == value);
            let Some(found) = found.filter(|&found| found >= oldest) else {
                return Err(format!(
                    "volume {volume} block {block} has {value} after {end:?}: its values were {:?}, {} acknowledged, {} durable",
                    history.values, history.acknowledged, history.durable
                ));
            };
            // What was read once is not taken back.
            history.acknowledged = before.max(found);
            if end != End::None {
                // Nothing newer can come to light any more.
                history.values.truncate(found + 1);
                history.acknowledged = found;
                history.durable = history.durable.min(found);
            }
            history.busy = false;
        }
        Ok(())
    }

    /// Operations in flight have ended with the process.
    pub(crate) fn crashed(&mut self) {
        self.blocks.values_mut().for_each(|history| history.busy = false);
    }

    /// The machine has failed while its hosts live: what is not durable may be gone, and what is in flight is sent again.
    pub(crate) fn power_lost(&mut self) {
        self.blocks.values_mut().for_each(|history| history.acknowledged = history.durable);
    }

    /// The value of a block, if no other is possible.
    pub(crate) fn certain(&self, volume: VolumeId, block: u64) -> Option<Value> {
        let Some(history) = self.blocks.get(&(volume, block)) else { return Some(0) };
        (history.acknowledged + 1 == history.values.len()).then(|| history.values[history.acknowledged])
    }

    /// Blocks of a volume that were ever written.
    pub(crate) fn blocks_of(&self, volume: VolumeId) -> Vec<u64> {
        self.blocks.range((volume, 0)..=(volume, u64::MAX)).map(|(&(_, block), _)| block).collect()
    }

    fn history(&mut self, volume: VolumeId, block: u64) -> &mut History {
        self.blocks.get_mut(&(volume, block)).expect("a block that was taken")
    }
}
