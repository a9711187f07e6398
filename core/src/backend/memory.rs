//! A pool in memory: volumes whose snapshots can be read, and that can be written. For tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::source::{Change, Changes, Pull, Sink, Source, SourceError};
use crate::ids::{Epoch, VolumeId};
use crate::limits::BLOCK;

/// Blocks of one answer: few, so that walks go on.
const ANSWER_BLOCKS: usize = 16;

#[derive(Clone, Debug)]
struct Snapshot {
    volume: VolumeId,
    epoch: Epoch,
    data: Arc<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<VolumeId, Vec<u8>>,
    snapshots: BTreeMap<VolumeId, Snapshot>,
}

/// See above. Clones are the same pool.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryPool(Arc<Mutex<State>>);

impl MemoryPool {
    pub(super) fn volume(&self, id: u32, size: u64) -> VolumeId {
        self.0.lock().volumes.insert(VolumeId(id), vec![0; size as usize]);
        VolumeId(id)
    }

    pub(super) fn write(&self, volume: VolumeId, offset: u64, data: &[u8]) {
        let mut state = self.0.lock();
        let bytes = state.volumes.get_mut(&volume).expect("a volume");
        bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }

    pub(super) fn grow(&self, volume: VolumeId, size: u64) {
        self.0.lock().volumes.get_mut(&volume).expect("a volume").resize(size as usize, 0);
    }

    pub(super) fn snapshot(&self, id: u32, of: VolumeId, epoch: u64) -> VolumeId {
        let mut state = self.0.lock();
        let data = Arc::new(state.volumes[&of].clone());
        state.snapshots.insert(VolumeId(id), Snapshot { volume: of, epoch: Epoch(epoch), data });
        VolumeId(id)
    }

    pub(super) fn remove_snapshot(&self, id: VolumeId) {
        self.0.lock().snapshots.remove(&id).expect("a snapshot");
    }

    pub(super) fn contents(&self, id: VolumeId) -> Vec<u8> {
        let state = self.0.lock();
        state.snapshots.get(&id).map_or_else(|| state.volumes[&id].clone(), |snapshot| snapshot.data.to_vec())
    }
}

fn block_at(data: &[u8], block: usize) -> &[u8] {
    let begin = (block * BLOCK as usize).min(data.len());
    &data[begin..(begin + BLOCK as usize).min(data.len())]
}

impl Source for MemoryPool {
    fn changed(&self, snapshot: VolumeId, after: Option<Epoch>, cursor: u64) -> Pull<'_, Changes> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let state = self.0.lock();
            let gone = || SourceError::Failed(format!("{snapshot} is not there"));
            let now = state.snapshots.get(&snapshot).ok_or_else(gone)?;
            let before = match after {
                None => None,
                Some(epoch) => {
                    let of = |old: &&Snapshot| old.volume == now.volume && old.epoch == epoch;
                    Some(state.snapshots.values().find(of).ok_or(SourceError::BaseGone)?)
                }
            };
            let blocks = now.data.len().div_ceil(BLOCK as usize);
            let first = (cursor / BLOCK) as usize;
            let end = (first + ANSWER_BLOCKS).min(blocks);
            let mut ranges: Vec<Change> = Vec::new();
            for block in first..end {
                let data = block_at(&now.data, block);
                let has_data = data.iter().any(|&byte| byte != 0);
                let differs = before.map_or(has_data, |before| block_at(&before.data, block) != data);
                // Some that did not change are named too, as background work does.
                if differs || before.is_some() && block % 13 == 5 {
                    let offset = block as u64 * BLOCK;
                    match ranges.last_mut() {
                        Some(last) if last.offset + last.len == offset && last.data == has_data => last.len += BLOCK,
                        _ => ranges.push(Change { offset, len: BLOCK, data: has_data }),
                    }
                }
            }
            Ok(Changes { ranges, next: (end < blocks).then_some(end as u64 * BLOCK) })
        })
    }

    fn read(&self, snapshot: VolumeId, offset: u64, len: u32) -> Pull<'_, Bytes> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let state = self.0.lock();
            let gone = || SourceError::Failed(format!("{snapshot} is not there"));
            let now = state.snapshots.get(&snapshot).ok_or_else(gone)?;
            Ok(Bytes::copy_from_slice(&now.data[offset as usize..offset as usize + len as usize]))
        })
    }
}

impl Sink for MemoryPool {
    fn write(&self, volume: VolumeId, offset: u64, data: Bytes) -> Pull<'_, ()> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            MemoryPool::write(self, volume, offset, &data);
            Ok(())
        })
    }

    fn flush(&self, _volume: VolumeId) -> Pull<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
