//! A volume from the backend alone: every block of the snapshot is read, checked and written.
//!
//! A pool that reads what another pool put there says so first, by a reference (history H11): the owner's collector keeps what it
//! reads until the reference is gone.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use thiserror::Error;
use uuid::Uuid;

use super::manifest::{CHUNK_BLOCKS, Reference};
use super::names::{Attempt, Object};
use super::reader::Reader;
use super::remote::{Patience, Remote, RemoteError};
use super::source::{Sink, SourceError};
use crate::ids::VolumeId;
use crate::limits::{BLOCK, REQUEST_BYTES_MAX};

/// Blocks read at once: a quarter of a pack.
const RUN_BLOCKS: u32 = 512;
/// Runs that are read ahead, and written at a time.
const READS: usize = 4;
const WRITES: usize = 4;

/// Why a restore failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    #[error("{0}")]
    Remote(#[from] RemoteError),
    #[error("cannot write the volume: {0}")]
    Sink(#[from] SourceError),
    #[error("the snapshot is about to be deleted by the pool that made it")]
    Going,
}

/// How far a restore is.
#[derive(Debug, Default)]
pub struct RestoreProgress {
    /// Bytes of data written.
    pub written: AtomicU64,
    /// Of so many.
    pub total: AtomicU64,
}

/// Keeps a manifest of another pool from being collected. To be called, and to have succeeded, before anything of it is read.
pub async fn hold(
    remote: &Remote,
    of: Attempt,
    reference: &Reference,
    patience: &Patience,
) -> Result<(), RestoreError> {
    let object = Object::Reference { of, holder: reference.holder };
    // One that was put before, by a restore that was cut short, is as good.
    match remote.get_small::<Reference>(object, patience).await {
        Ok(_) => {}
        Err(error) if error.is_missing() => remote.put_small(object, reference, patience).await?,
        Err(error) => return Err(error.into()),
    }
    // Whoever collects puts the tombstone first and looks for references later: one of us sees the other.
    match remote.get(Object::Tombstone(of), 0..1, patience).await {
        Err(error) if error.is_missing() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => {
            remote.delete(object, patience).await?;
            Err(RestoreError::Going)
        }
    }
}

/// The manifest is not read any more.
pub async fn release(remote: &Remote, of: Attempt, holder: Uuid, patience: &Patience) -> Result<(), RemoteError> {
    remote.delete(Object::Reference { of, holder }, patience).await
}

/// Fills `volume`, which reads as zeros, with the snapshot, durably.
pub async fn restore(
    reader: &Reader,
    sink: &dyn Sink,
    volume: VolumeId,
    progress: &RestoreProgress,
    patience: &Patience,
) -> Result<(), RestoreError> {
    let manifest = &reader.manifest;
    progress.total.store(manifest.blocks * BLOCK, Ordering::Relaxed);
    for reference in &manifest.chunks {
        let first = u64::from(reference.chunk) * u64::from(CHUNK_BLOCKS);
        let end = (first + u64::from(CHUNK_BLOCKS)).min(manifest.blocks_in_all());
        let runs = reader.runs(first..end, RUN_BLOCKS, patience).await?;
        let loaded = stream::iter(runs)
            .map(|run| async move { Ok::<_, RestoreError>((run.block * BLOCK, reader.load(run, patience).await?)) })
            .buffer_unordered(READS);
        loaded
            .try_for_each_concurrent(WRITES, |(offset, data)| async move {
                let length = data.len() as u64;
                write(sink, volume, offset, data, manifest.of.size).await?;
                progress.written.fetch_add(length, Ordering::Relaxed);
                Ok(())
            })
            .await?;
    }
    Ok(sink.flush(volume).await?)
}

async fn write(sink: &dyn Sink, volume: VolumeId, offset: u64, data: Vec<u8>, size: u64) -> Result<(), SourceError> {
    let mut data = Bytes::from(data);
    data.truncate((size - offset).min(data.len() as u64) as usize);
    let mut at = offset;
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(REQUEST_BYTES_MAX as usize));
        let length = piece.len() as u64;
        sink.write(volume, at, piece).await?;
        at += length;
    }
    Ok(())
}
